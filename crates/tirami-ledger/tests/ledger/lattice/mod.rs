//! The lattice that all parties of a mesh share.

mod charter;
mod golden;
mod interval;
mod model;
mod partial;
mod properties;
mod room;
mod scenarios;
mod welcome;
mod world;
