//! Tirami's money: the lattice all parties of a mesh share, and the book private to a node.
//!
//! Everything here is a pure function of its inputs. There is one door for change:
//! a command is decided into events, and events are applied.

#![deny(clippy::float_arithmetic)]

pub mod book;
pub mod command;
pub mod documents;
pub mod event;
pub mod lattice;
mod ledger;
pub mod refusal;
mod rejection;

pub use ledger::{Context, Decision, Keyring, Ledger, RestoreError};
pub use rejection::Rejection;
