//! The notice of a test that cannot run on this machine: a line that `cargo xtask test` repeats at
//! its end.

use std::fmt::Display;
use std::io::Write as _;

/// Tells that the test of this thread is skipped, and why. The line goes past the test harness,
/// which drops what a test prints that passes.
pub(crate) fn skipped(why: impl Display) {
    let thread = std::thread::current();
    let (test, why) = (thread.name().unwrap_or("a test"), why.to_string().replace('\n', " "));
    // Whole lines: other tests write at the same time.
    let _ = std::io::stderr().write_all(format!("skipped: {test}: {why}\n").as_bytes());
}
