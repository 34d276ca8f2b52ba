//! What a run has to say at its end.

use core::fmt;
use std::collections::BTreeMap;

use tirami_core::Digest;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// The number of the event after which it was found.
    pub event: u64,
    /// The invariant, and where it broke.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} event {}: {}", self.seed, self.event, self.what)
    }
}

/// The figures of a run without a broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Parties with a node.
    pub parties: usize,
    /// Witnesses.
    pub witnesses: usize,
    /// Acknowledgements that make an entry final.
    pub quorum: u8,
    /// Dishonest witnesses.
    pub liars: usize,
    /// Whether the charter tolerates that many.
    pub within: bool,
    /// Virtual time that passed, in milliseconds.
    pub virtual_ms: u64,
    /// Entries final, the same set at every party.
    pub finals: usize,
    /// Of these, checkpoints.
    pub checkpoints: u64,
    /// Slots with two final entries; 0 unless too many witnesses lied.
    pub contradictions: usize,
    /// TRM lost by contradictions, in µTRM.
    pub loss: i128,
    /// What happened how often.
    pub counts: Counts,
    /// The digest of every party's whole state at the end.
    pub state: Digest,
}

/// What happened how often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inputs handled by nodes.
    pub events: u64,
    /// Of these, by kind of command: accepted and refused.
    pub commands: BTreeMap<&'static str, (u64, u64)>,
    /// Refusals, by their stable code.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Power cuts.
    pub crashes: u64,
    /// Of these, those that left a torn batch.
    pub torn: u64,
    /// Starts from a snapshot and the batches after it.
    pub from_snapshot: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Slots in which an owner signed twice.
    pub rivals: u64,
    /// Forged entries sent.
    pub forged: u64,
    /// Jobs charged.
    pub jobs: u64,
    /// Checks of everything.
    pub audits: u64,
}

impl Counts {
    /// Adds the figures of another run.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        for (name, (accepted, refused)) in &other.commands {
            let both = self.commands.entry(name).or_default();
            both.0 += accepted;
            both.1 += refused;
        }
        for (code, times) in &other.refusals {
            *self.refusals.entry(code).or_default() += times;
        }
        self.crashes += other.crashes;
        self.torn += other.torn;
        self.from_snapshot += other.from_snapshot;
        self.lost += other.lost;
        self.rivals += other.rivals;
        self.forged += other.forged;
        self.jobs += other.jobs;
        self.audits += other.audits;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { events, crashes, torn, rivals, jobs, audits, .. } = &self.counts;
        let bound = if self.within { "" } else { " (more than tolerated)" };
        write!(
            f,
            "seed {}: {} parties, n={} q={} liars={}{bound}, {} s virtual, {events} events, \
             {crashes} crashes ({torn} torn), {} entries final, {} checkpoints, {rivals} rivals, \
             {} contradictions, loss {} µTRM, {jobs} jobs, {audits} audits, state {}",
            self.seed,
            self.parties,
            self.witnesses,
            self.quorum,
            self.liars,
            self.virtual_ms / 1_000,
            self.finals,
            self.checkpoints,
            self.contradictions,
            self.loss,
            self.state,
        )
    }
}
