//! Measures what a mesh costs beside what limits it, and prints a Markdown table.
//!
//! Run by `cargo xtask bench mesh`. Real nodes with scripted engines on loopback; each figure
//! stands beside its limit, measured in the same run in alternating rounds. Read the ratios: the
//! absolute figures are this machine's.

#![allow(missing_docs, reason = "a bench has no users")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on ends")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

#[path = "../../tests/mesh/flood.rs"]
mod flood;
mod garbage;
mod hop;
#[path = "../../tests/mesh/jobs_support.rs"]
mod jobs_support;
#[path = "../../tests/mesh/raw.rs"]
mod raw;
mod report;
mod resume;
#[path = "../../tests/mesh/support.rs"]
mod support;
mod sync;
mod trades;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use report::Table;

/// Measures and adds its lines.
type Part = fn(&Table);

/// What can be measured alone, by its name.
const PARTS: [(&str, Part); 5] = [
    ("hop", hop::overhead),
    ("trades", trades::between_two),
    ("garbage", garbage::beside_the_work),
    ("sync", sync::of_a_newcomer),
    ("resume", resume::after_a_kill),
];
/// Longer than everything together takes on a slow machine.
const WITHIN: Duration = Duration::from_secs(450);

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
    let table = Table::default();
    end_in_time(&table);
    for (name, part) in PARTS.iter().filter(|(name, _)| wanted(name)) {
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| part(&table)));
        if let Err(panic) = ran {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            table.missing(name, text.unwrap_or("it ended with a defect"));
        }
    }
    println!("{}", table.markdown());
}

/// Nobody may be there to end a bench that hangs: it shows what it has.
fn end_in_time(table: &Table) {
    let table = table.clone();
    std::thread::spawn(move || {
        std::thread::sleep(WITHIN);
        table.missing("the rest", "the bench ran out of time");
        println!("{}", table.markdown());
        std::process::exit(0);
    });
}
