//! A Tirami node: everything that touches the outside. HTTP, storage, keys, the clock and the
//! settings live here, around a kernel that decides and does no I/O.

pub mod api_file;
pub mod bundle;
mod clock;
pub mod config;
mod driver;
pub mod handle;
pub mod http;
pub mod keys;
mod memory;
pub mod mesh;
pub mod metrics;
pub mod models;
pub mod node;
mod owner;
mod responses;
pub mod store;

pub use clock::Clock;
pub use driver::{DriverStats, SNAPSHOT_EVERY_EVENTS};
pub use owner::OthersUse;
