//! Short runs of the simulations, and an attack on a whole node.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod nodes;
mod runs;
mod sybil;
