//! Measures serving beside what a user would take instead, and prints a table.
//!
//! Run by `cargo xtask bench serve`. Every contender has the same model file and the same number
//! of threads, and they take turns within each round; figures are medians. Read the ratios: the
//! absolute figures are this machine's.

#![allow(missing_docs, reason = "a bench has no users")]
#![allow(clippy::expect_used, reason = "a bench that cannot go on ends")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]
#![expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]

mod bench;
mod client;
mod edge;
mod memory;
mod picture;
mod report;
mod servers;
mod speed;
mod streams;

use std::panic::AssertUnwindSafe;

use bench::Bench;

/// Measures and adds its lines.
type Part = fn(&mut Bench);

/// What can be measured alone, by its name.
const PARTS: [(&str, Part); 9] = [
    ("decode", speed::decode),
    ("edit", speed::edit),
    ("prompt", speed::prompt),
    ("turn", speed::second_turn),
    ("streams", streams::together),
    ("stall", streams::longest_stall),
    ("http", edge::overhead),
    ("accounting", edge::accounting),
    ("memory", memory::at_sixteen_streams),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` asks every bench for its tests; this one has none.
    if arguments.iter().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let rounds = after("--rounds").map_or(3, |text| text.parse().expect("a number of rounds"));
    let is_wanted = |part: &str| {
        let mut named = PARTS.iter().filter(|(name, _)| arguments.iter().any(|word| word == name));
        named.next().is_none() || arguments.iter().any(|word| word == part)
    };
    // Whoever first builds a client of the SDK chooses who does TLS in this process.
    drop(tirami_sdk::Client::new("http://127.0.0.1", None).expect("a client"));
    let mut bench = Bench::new(rounds);
    bench.table.note(format!("Rounds: {rounds}; a p99 is of all requests of all rounds"));
    for (name, part) in PARTS.iter().filter(|(name, _)| is_wanted(name)) {
        eprintln!("{name} …");
        if std::panic::catch_unwind(AssertUnwindSafe(|| part(&mut bench))).is_err() {
            bench.table.missing(name, "it ended with a defect, see above");
        }
    }
    if let Some(path) = after("--curve")
        && let Some(picture) = picture::draw(&bench.curves)
    {
        std::fs::write(path, picture).expect("the picture is written");
    }
    let is_json = arguments.iter().any(|argument| argument == "--json");
    println!("{}", if is_json { bench.table.json() } else { bench.table.markdown() });
}
