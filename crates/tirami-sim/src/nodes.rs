//! The whole mesh: the production kernel of every node, joined by the messages that really travel.
//!
//! Virtual time, one thread, one seed. Connections break, messages are lost, doubled and
//! overtaken, disks lose what was not synced, the power goes between any two effects, providers
//! fail in the middle of an answer, one node in ten lies, and as many witnesses are dishonest as
//! the seed draws from 0 to what the charter tolerates. What must hold is checked from outside:
//! from the bytes that left the nodes and from the union of all final entries, never from what a
//! kernel says about itself alone.

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
mod traffic;
mod watch;
mod world;

pub use report::{Cost, NodesCounts, NodesReport};
pub use traffic::Group;

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
    /// A power cut takes the last synced batch too.
    LosesSynced,
    /// Consumers end no hold.
    LeavesHolds,
    /// Every engine fails before its first token.
    NeverBegins,
    /// Providers answer with another text than asked for.
    AnswersWrongly,
    /// Providers take every voucher, also one that says less than the one before.
    VouchersFall,
    /// Providers accept orders that no rule admits.
    AcceptsForged,
    /// All dishonest witnesses acknowledge everything, and all liars sign two entries for a slot.
    Conspire,
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
    /// Witnesses of the charter; 1, 3, 4 or 7, drawn when none.
    pub witnesses: Option<usize>,
    /// Dishonest witnesses; drawn from 0 to what the charter tolerates when none. With more, a run
    /// has to fail.
    pub dishonest: Option<usize>,
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
            witnesses: None,
            dishonest: None,
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
    // Each node checks each signature; the same check is computed once for all of them.
    let _remembered = tirami_core::RememberSignatures::on_this_thread();
    world::World::new(config).and_then(world::World::run)
}
