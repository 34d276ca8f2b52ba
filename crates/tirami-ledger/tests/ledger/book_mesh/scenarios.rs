//! Plays every scenario in `scenarios/book_mesh`: each file is one test of one rule of jobs between
//! nodes, with a consumer, two providers and a witness.

#![expect(clippy::disallowed_methods, reason = "the scenarios are files")]
#![expect(clippy::print_stdout, reason = "a failed scenario shows how far it came")]

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use super::play::Play;
use crate::script;

/// Fewer files than this means that some were lost.
const SCENARIOS_MIN: usize = 30;

#[test]
fn every_scenario_comes_out_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/book_mesh");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= SCENARIOS_MIN, "only {} scenarios are left", files.len());
    let failed: Vec<&PathBuf> =
        files.iter().filter(|file| panic::catch_unwind(|| play(file)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

fn play(file: &Path) {
    let steps = script::read(&fs::read_to_string(file).unwrap());
    assert!(steps.len() > 1, "{} tests nothing", file.display());
    let first = &steps[0];
    let fee_ppm = if first.verb == "fee" { first.args[0].parse().unwrap() } else { 0 };
    let mut play = Play::new(fee_ppm);
    for step in &steps {
        println!("{}:{}: {}", file.display(), step.line, step.verb);
        play.step(step);
    }
}
