//! The whole mesh: the production kernel of every node, joined by the messages that really travel.
//!
//! Virtual time, one thread, one seed. Connections break, messages are lost, doubled and
//! overtaken, disks lose what was not synced, the power goes between any two effects, providers
//! fail in the middle of an answer, one node in ten lies, and so does one witness in four. What
//! must hold is checked from outside: from the bytes that left the nodes and from the union of all
//! final entries, never from what a kernel says about itself alone.

mod consumer;
mod founding;
mod liars;
mod links;
mod members;
mod node;
mod provider;
mod report;
mod rest;
mod tally;
mod watch;
mod world;

pub use report::{Cost, NodesCounts, NodesReport};

use tirami_ledger::lattice::Keep;

use crate::Failure;

/// A bug that a run plants into itself, to show that the checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bug {
    /// No bug: the run judges the production code.
    #[default]
    None,
    /// Effects are carried out before what they rest on is synced.
    ToldBeforeSync,
    /// Consumers sign vouchers for more tokens than they received.
    PaysAhead,
    /// Providers serve though the ledger refused the order.
    ServesRefused,
    /// Providers do not count what they sent to a consumer that signed nothing for it.
    ForgetsWork,
    /// A node that is asked for final entries answers with nothing.
    ServesNothing,
}

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodesConfig {
    /// All chance of the run comes from it.
    pub seed: u64,
    /// Nodes in the end, 8 at least, those that join on the way included.
    pub nodes: usize,
    /// Virtual seconds of trade before the run is wound up.
    pub seconds: u64,
    /// How long a client waits between two questions on average, in milliseconds; at least 2.
    pub pause_ms: u64,
    /// Whether nothing fails and nobody lies: what the cost of a mesh is measured with.
    pub calm: bool,
    /// Which chains nodes without an office keep.
    pub keep: Keep,
    /// A bug to plant.
    pub bug: Bug,
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            nodes: 30,
            seconds: 240,
            pause_ms: 8_000,
            calm: false,
            keep: Keep::All,
            bug: Bug::None,
        }
    }
}

/// Runs one seed to its end.
///
/// # Errors
///
/// [`Failure`] with the first invariant that was broken, and when.
pub fn run_nodes(config: &NodesConfig) -> Result<NodesReport, Failure> {
    world::World::new(config).and_then(world::World::run)
}
