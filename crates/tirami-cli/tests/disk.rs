//! A full disk, made with a small file system of its own: one sentence, exit code 4, and after
//! room was made everything that was acknowledged is there.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, tirami};
use skipped::skipped;
use tempfile::tempdir;

/// How long the node may take to notice and end.
const EXIT_MAX: Duration = Duration::from_secs(30);

/// `program` with a file system of `size` mounted at `dir`, which no other process sees and which
/// goes when it ends. `None` where this user may not mount.
fn on_a_small_disk(program: &Command, dir: &Path, size: &str) -> Option<Command> {
    let script = "mount -t tmpfs -o size=\"$0\" none \"$1\" && shift && exec \"$@\"";
    let within = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, size]).arg(dir);
        command
    };
    let may = within().arg("true").stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        skipped("this user may not mount a file system");
        return None;
    }
    let mut command = within();
    command.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

fn start(home: &Path, dir: &Path) -> Command {
    let mut command = tirami(home);
    command.args(["start", "--port", "0", "--data-dir"]).arg(dir);
    command.arg("--model").arg(common::model());
    command
}

#[test]
fn a_disk_that_is_full_from_the_start_ends_with_4_and_a_sentence() {
    let home = tempdir().unwrap();
    let dir = home.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    for size in ["8k", "16k", "64k"] {
        let Some(mut command) = on_a_small_disk(&start(home.path(), &dir), &dir, size) else {
            return;
        };
        let ran = Ran::of(command.output().unwrap());
        ran.fails(4, "full");
        assert!(!ran.stdout.contains("ready"), "{ran:?}");
    }
}

#[test]
fn a_disk_that_fills_up_ends_the_node_with_4_and_loses_nothing() {
    let home = tempdir().unwrap();
    let dir = home.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let Some(mut command) = on_a_small_disk(&start(home.path(), &dir), &dir, "16m") else {
        return;
    };
    let mut node = Killed(command.spawn().unwrap());
    let lines = BufReader::new(node.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let banner: Vec<String> = lines.take_while(|line| line != "ready").collect();
    let api = banner.iter().find_map(|line| line.strip_prefix("API: ")).expect("the node starts");
    let chat = || {
        let args = ["chat", "--max-tokens", "2", "Hi", "--url", api];
        Ran::of(tirami(home.path()).args(args).output().unwrap())
    };
    chat().succeeds();

    // The same disk, as the node sees it.
    let seen = format!("/proc/{}/root{}", node.0.id(), dir.display());
    let mut filler = File::create(Path::new(&seen).join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    drop(filler);
    let begun = Instant::now();
    let code = loop {
        let _ = chat();
        if let Some(status) = node.0.try_wait().unwrap() {
            break status.code();
        }
        assert!(begun.elapsed() < EXIT_MAX, "the node goes on without a disk");
    };
    let mut said = String::new();
    std::io::Read::read_to_string(&mut node.0.stderr.take().unwrap(), &mut said).unwrap();
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(code, Some(4), "{said}");
    assert!(last.starts_with("error: ") && last.contains("full"), "{said}");
}

/// A process that a failed test does not leave behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
