//! The ledger from outside: the lattice, the book, the two together, and bytes of strangers.
//! Scenarios stand in `tests/scenarios`, bytes that never change in `tests/golden`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod book;
mod book_mesh;
mod chain;
mod golden;
mod hostile;
mod lattice;
mod mesh;
mod money;
mod replay;
mod script;
