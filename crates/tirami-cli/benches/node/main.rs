//! Measures a node beside what limits it, and prints a Markdown table.
//!
//! Run by `cargo xtask bench`. Figures are medians of interleaved rounds in one run: read the
//! ratios, the absolute figures are this machine's.

#![allow(missing_docs, reason = "a bench has no users")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]
#![expect(clippy::expect_used, reason = "a bench that cannot go on has nothing to say")]
#![expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]

mod money;
mod process;
mod report;
mod serving;
mod storage;

use report::Table;

fn main() {
    // `cargo test --benches` asks every bench for its tests; this one has none.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    if let Some(role) = process::role() {
        return role.run();
    }
    let mut table = Table::default();
    money::memory_pairs(&mut table);
    money::decision_latency(&mut table);
    money::foreign_entries(&mut table);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(storage::durable_pairs(&mut table));
    runtime.block_on(serving::over_http(&mut table));
    process::start_and_memory(&mut table);
    println!("{}", table.markdown());
}
