//! Damaged copies of the model: each gets a sentence, none ends the process.
//!
//! Loading happens in a child process (this test binary again), so that a native abort is seen
//! as a failed test and not as the end of all tests.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tirami_infer::engine::Engine;
use tirami_infer::llama::{LlamaEngine, LlamaOptions};

use super::{chat, greedy, model_path};

/// Names the folder of damaged files to the child.
const FOLDER: &str = "TIRAMI_TEST_DAMAGED_FOLDER";

/// The child's part: loads every file named on its standard input, and runs those that load.
#[test]
fn the_child_loads_what_it_is_given() {
    if std::env::var_os(FOLDER).is_none() {
        return;
    }
    for line in std::io::stdin().lines() {
        let path = line.unwrap();
        let options =
            LlamaOptions { sequences: 1, context_tokens: Some(64), ..LlamaOptions::default() };
        match LlamaEngine::load(Path::new(&path), &options) {
            Err(error) => println!("\nrefused {path}: {error}"),
            Ok(engine) => {
                if let Ok(prompt) = engine.prepare(&chat("Hi")) {
                    let mut generation = engine.start(prompt, greedy(2)).unwrap();
                    while generation.pieces.blocking_recv().is_some() {}
                }
                println!("\nloaded {path}");
            }
        }
    }
}

/// Loads the files in a child; gives the lines it printed.
fn load_in_child(paths: &[String]) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["damage::the_child_loads_what_it_is_given", "--exact", "--nocapture"])
        .env(FOLDER, "yes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let list = paths.join("\n") + "\n";
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(list.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text
        .lines()
        .filter(|line| line.starts_with("refused ") || line.starts_with("loaded "))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    assert!(
        output.status.success() && lines.len() == paths.len(),
        "the process ended at {:?}: {}\n{}",
        paths.get(lines.len()),
        output.status,
        String::from_utf8_lossy(&output.stderr)
            .lines()
            .rev()
            .take(20)
            .collect::<Vec<_>>()
            .join("\n"),
    );
    lines
}

/// Bytes of the real file's header: settings, vocabulary, settings, tensors.
const HEADER_BYTES: u64 = 1_785_664;

fn noise(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn truncated_and_foreign_files_get_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let size = std::fs::metadata(model_path()).unwrap().len();
    let mut paths = Vec::new();
    for length in
        [0, 3, 4, 23, 24, 100, 5_000, 1_000_000, HEADER_BYTES, 2_000_000, size / 2, size - 1]
    {
        let path = folder.path().join(format!("{length}.gguf"));
        let mut part = std::fs::File::open(model_path()).unwrap().take(length);
        std::io::copy(&mut part, &mut std::fs::File::create(&path).unwrap()).unwrap();
        paths.push(path.display().to_string());
    }
    for (name, bytes) in [("text.gguf", "Hello ".repeat(99)), ("zeros.gguf", "\0".repeat(4096))] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        paths.push(folder.path().join(name).display().to_string());
    }
    paths.push(folder.path().display().to_string());
    paths.push(folder.path().join("absent.gguf").display().to_string());
    for line in load_in_child(&paths) {
        assert!(line.starts_with("refused "), "{line}");
    }
}

#[test]
fn damaged_headers_get_a_sentence_or_load_and_never_end_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    std::fs::copy(model_path(), &path).unwrap();
    let count = std::env::var("TIRAMI_TEST_MUTATIONS").ok().and_then(|n| n.parse().ok());
    let count: u64 = count.unwrap_or(200);
    let seed = std::env::var("TIRAMI_TEST_SEED").ok().and_then(|n| n.parse().ok());
    let mut state: u64 = seed.unwrap_or(1);
    let mut refused = 0;
    for i in 0..count {
        // Half of the damage falls on the keys before and after the vocabulary, which decide most.
        let place = match noise(&mut state) % 4 {
            0 => 4 + noise(&mut state) % 1_080,
            1 => HEADER_BYTES - 20_000 + noise(&mut state) % 20_000,
            _ => noise(&mut state) % HEADER_BYTES,
        };
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut original = [0; 4];
        file.seek(SeekFrom::Start(place)).unwrap();
        file.read_exact(&mut original).unwrap();
        let mut damaged = original;
        match noise(&mut state) % 3 {
            0 => damaged[0] ^= 1 << (noise(&mut state) % 8),
            1 => damaged[0] = 0,
            _ => damaged = (noise(&mut state) as u32).to_le_bytes(),
        }
        let mut put = |bytes: &[u8]| {
            file.seek(SeekFrom::Start(place)).unwrap();
            file.write_all(bytes).unwrap();
        };
        put(&damaged);
        let lines = load_in_child(&[path.display().to_string()]);
        refused += u64::from(lines[0].starts_with("refused "));
        put(&original);
        if std::env::var_os("TIRAMI_TEST_VERBOSE").is_some() {
            println!("{i}: byte {place} {original:?} -> {damaged:?}: {}", lines[0]);
        }
    }
    assert!(refused > count / 4, "only {refused} of {count} damaged files were refused");
}
