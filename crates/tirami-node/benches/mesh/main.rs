//! Measures what a mesh costs beside what limits it, and prints a Markdown table.
//!
//! Run by `cargo xtask bench mesh`. Real nodes with scripted engines on loopback; each figure
//! stands beside its limit, measured in the same run in alternating rounds. Read the ratios: the
//! absolute figures are this machine's.

#![allow(missing_docs, reason = "a bench has no users")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on ends")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

mod hop;
#[path = "../../tests/mesh/jobs_support.rs"]
mod jobs_support;
mod report;
mod resume;
#[path = "../../tests/mesh/support.rs"]
mod support;
mod sync;
mod trades;

use report::Table;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` asks every bench for its tests; this one has none.
    if arguments.iter().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    // A part alone, by its name, for whoever works on it.
    let wanted = |part: &str| {
        let mut parts = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
        parts.peek().is_none() || parts.any(|argument| argument == part)
    };
    // Whoever first builds a client of the SDK chooses who does TLS in this process.
    drop(tirami_sdk::Client::new("http://127.0.0.1", None).unwrap());
    let mut table = Table::default();
    if wanted("hop") {
        hop::overhead(&mut table);
    }
    if wanted("trades") {
        trades::between_two(&mut table);
    }
    if wanted("sync") {
        sync::of_a_newcomer(&mut table);
    }
    if wanted("resume") {
        resume::after_a_kill(&mut table);
    }
    println!("{}", table.markdown());
}
