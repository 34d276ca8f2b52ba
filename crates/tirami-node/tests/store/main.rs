//! The account book on a real disk.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod crash;
mod damage;
mod finals;
mod log;
mod node;
mod support;
