//! Jobs between nodes, each with a book of its own.

mod claims;
mod memory;
mod nodes;
mod play;
mod properties;
mod scenarios;
