//! The book of a lone node.

mod model;
mod play;
mod precedence;
mod properties;
mod scenarios;
pub(crate) mod world;
