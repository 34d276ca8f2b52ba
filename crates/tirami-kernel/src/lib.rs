//! Every decision of a node, as a pure function of its inputs.
//!
//! One task owns a [`Kernel`] and feeds it [`Input`]s with the time; what comes back are
//! [`Effects`]. A run can be replayed from its inputs, and a kernel rebuilt from its events.

#![deny(clippy::float_arithmetic)]

mod kernel;

pub use kernel::{Effects, Input, Kernel, RequestId};
pub use tirami_ledger as ledger;
