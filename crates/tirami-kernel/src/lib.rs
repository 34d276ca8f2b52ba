//! Every decision of a node, as a pure function of its inputs: an input and the time go in, what
//! to store, to answer and to stop comes out.
//!
//! The kernel holds the ledger and the node's secret keys. It does no I/O and reads no clock; one
//! task owns it, feeds it inputs in the order they come, and carries out its effects.

#![deny(clippy::float_arithmetic)]

mod kernel;
pub mod mesh;
pub mod scheduler;

pub use kernel::{Effects, Input, Kernel, RequestId};
pub use tirami_ledger::book;
pub use tirami_ledger::command;
pub use tirami_ledger::documents;
pub use tirami_ledger::event;
pub use tirami_ledger::lattice;
pub use tirami_ledger::{Context, Decision, Keyring, Ledger, Rejection, RestoreError};
