//! A whole mesh in one thread: the production ledger of every party, virtual time, a lossy
//! network, disks that lose power, dishonest owners and witnesses, all drawn from one seed.
//!
//! The same configuration always gives the same run, down to the last bit of the final hash. A
//! broken invariant ends the run with the seed and the number of the event that broke it.

mod checks;
mod crash;
mod dice;
mod disk;
mod foes;
mod gossip;
mod jobs;
mod law;
mod machine;
mod mesh;
mod network;
mod nodes;
mod oracle;
mod party;
mod report;
mod world;

pub use nodes::{Bug, Cost, Group, NodesConfig, NodesCounts, NodesReport, run_nodes};
pub use report::{Counts, Failure, Report};

/// A bug that a run plants into itself, to show that the checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// No bug: the run judges the production code.
    #[default]
    None,
    /// Replies are delivered when their batch is written, before it is synced.
    ReplyBeforeSync,
    /// A power cut takes the last synced batch too.
    DiskLosesSynced,
    /// A start reads the newest snapshot and forgets the batches after it.
    StaleSnapshot,
}

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// All chance of the run comes from it.
    pub seed: u64,
    /// Inputs handled by nodes (commands and messages) before the run is wound up.
    pub events: u64,
    /// Parties with a node; drawn from 4 to 8 when none. At least the witnesses.
    pub parties: Option<usize>,
    /// Witnesses of the charter; 1, 3, 4 or 7, drawn when none.
    pub witnesses: Option<usize>,
    /// Dishonest witnesses; drawn when none, most often within what the charter tolerates.
    pub liars: Option<usize>,
    /// A bug to plant.
    pub fault: Fault,
}

/// Runs one seed to its end.
///
/// # Errors
///
/// [`Failure`] with the first invariant that was broken, and when.
pub fn run(config: &Config) -> Result<Report, Failure> {
    world::World::new(config).and_then(world::World::run)
}
