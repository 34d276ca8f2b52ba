//! What a run of whole nodes has to say at its end.

use core::fmt;
use std::collections::BTreeMap;

use tirami_core::Digest;
use tirami_ledger::lattice::Keep;

use super::traffic::{Group, Kind};

/// What a stretch of trade cost all nodes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Virtual time, in milliseconds.
    pub ms: u64,
    /// Messages and job frames sent.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of them, those of [`Group::Trade`].
    pub trade_bytes: u64,
    /// Of them, those of [`Group::Gossip`].
    pub gossip_bytes: u64,
    /// Of them, those of [`Group::Sync`].
    pub sync_bytes: u64,
    /// Jobs answered.
    pub jobs: u64,
}

impl Cost {
    /// What was added since `before`.
    pub(super) const fn since(self, before: Self, ms: u64) -> Self {
        Self {
            ms,
            messages: self.messages - before.messages,
            bytes: self.bytes - before.bytes,
            trade_bytes: self.trade_bytes - before.trade_bytes,
            gossip_bytes: self.gossip_bytes - before.gossip_bytes,
            sync_bytes: self.sync_bytes - before.sync_bytes,
            jobs: self.jobs - before.jobs,
        }
    }
}

/// What happened how often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodesCounts {
    /// Inputs handled by kernels.
    pub events: u64,
    /// Messages and job frames sent, and their bytes on the wire, by what they are.
    pub sent: BTreeMap<Kind, (u64, u64)>,
    /// Messages and frames that were lost.
    pub lost: u64,
    /// Power cuts.
    pub crashes: u64,
    /// Of these, those that left a torn batch on the disk.
    pub torn: u64,
    /// Snapshots written.
    pub snapshots: u64,
    /// Times the network split.
    pub splits: u64,
    /// Lies told, by kind.
    pub lies: BTreeMap<&'static str, u64>,
    /// Final entries, by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Refusals, by their stable code.
    pub refusals: BTreeMap<String, u64>,
    /// Jobs that honest consumers began.
    pub jobs: u64,
    /// Of these, answered completely.
    pub completed: u64,
    /// Of these, not answered for a reason that is not the mesh's: the consumer lost power, had no
    /// money, or had no provider on its side of the split.
    pub excused: u64,
    /// Of these, not answered.
    pub failed: u64,
    /// Times another provider went on with an answer.
    pub failovers: u64,
    /// Jobs paid by final entries.
    pub paid: u64,
    /// The longest time from a heal until everything known anywhere was known everywhere.
    pub converged_ms: u64,
    /// The longest time from the end of trade to equal states everywhere.
    pub settled_ms: u64,
    /// Checks of everything at a node.
    pub audits: u64,
}

impl NodesCounts {
    /// Adds the figures of another run.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        for (kind, (messages, bytes)) in &other.sent {
            let both = self.sent.entry(*kind).or_default();
            both.0 += messages;
            both.1 += bytes;
        }
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.torn += other.torn;
        self.snapshots += other.snapshots;
        self.splits += other.splits;
        for (name, times) in &other.lies {
            *self.lies.entry(name).or_default() += times;
        }
        for (name, times) in &other.kinds {
            *self.kinds.entry(name).or_default() += times;
        }
        for (code, times) in &other.refusals {
            *self.refusals.entry(code.clone()).or_default() += times;
        }
        self.jobs += other.jobs;
        self.completed += other.completed;
        self.excused += other.excused;
        self.failed += other.failed;
        self.failovers += other.failovers;
        self.paid += other.paid;
        self.converged_ms = self.converged_ms.max(other.converged_ms);
        self.settled_ms = self.settled_ms.max(other.settled_ms);
        self.audits += other.audits;
    }

    /// What was sent so far, and how many jobs are answered.
    pub(super) fn cost(&self) -> Cost {
        let mut cost = Cost { jobs: self.completed, ..Cost::default() };
        for ((group, _), (messages, bytes)) in &self.sent {
            cost.messages += messages;
            cost.bytes += bytes;
            match group {
                Group::Trade => cost.trade_bytes += bytes,
                Group::Gossip => cost.gossip_bytes += bytes,
                Group::Sync => cost.sync_bytes += bytes,
                // The rest of all bytes.
                Group::Handshake => {}
            }
        }
        cost
    }

    /// Of the jobs that could be answered, those that were, in 1/10 000.
    pub fn completion(&self) -> u64 {
        (self.completed * 10_000).checked_div(self.completed + self.failed).unwrap_or(10_000)
    }
}

/// The figures of a run without a broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodesReport {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Which chains nodes without an office keep.
    pub keep: Keep,
    /// Nodes that lie.
    pub liars: usize,
    /// Witnesses of the charter.
    pub witnesses: usize,
    /// Of them, the dishonest ones.
    pub dishonest: usize,
    /// Virtual time of trade, in milliseconds.
    pub virtual_ms: u64,
    /// Connections at the end of trade.
    pub connections: usize,
    /// What was sent while there was trade, once the mesh had connected.
    pub cost: Cost,
    /// Entries that became final.
    pub finals: usize,
    /// What happened how often.
    pub counts: NodesCounts,
    /// The state of every honest node at the end.
    pub state: Digest,
}

impl NodesReport {
    /// Why the run shows little: it handled fewer than `events` inputs, or a fault never happened.
    pub fn shortfall(&self, events: u64) -> Option<String> {
        let counts = &self.counts;
        if counts.events < events {
            return Some(format!(
                "{} inputs were handled, {events} at least expected",
                counts.events
            ));
        }
        let faults = [
            ("split", counts.splits),
            ("power cut", counts.crashes),
            ("failover", counts.failovers),
        ];
        let missing = faults.iter().find(|(_, times)| *times == 0);
        missing.map(|(fault, _)| format!("the run went through no {fault}"))
    }

    /// Bytes that a node sends because of one job answered: those of trade and of sync. Rounded
    /// down, as are the figures below.
    pub fn bytes_per_node_and_job(&self) -> u64 {
        let bytes = self.cost.trade_bytes + self.cost.sync_bytes;
        bytes / self.nodes as u64 / self.cost.jobs.max(1)
    }

    /// Bytes that a node sends each second, for trade and everything else.
    pub fn bytes_per_node_and_second(&self) -> u64 {
        self.per_node_and_second(self.cost.bytes)
    }

    /// Bytes of gossip that a node sends each second of virtual time.
    pub fn gossip_bytes_per_node_and_second(&self) -> u64 {
        self.per_node_and_second(self.cost.gossip_bytes)
    }

    /// Bytes of sync that a node sends each second of virtual time.
    pub fn sync_bytes_per_node_and_second(&self) -> u64 {
        self.per_node_and_second(self.cost.sync_bytes)
    }

    /// Messages that a node sends each second.
    pub fn messages_per_node_and_second(&self) -> u64 {
        self.per_node_and_second(self.cost.messages)
    }

    fn per_node_and_second(&self, sum: u64) -> u64 {
        (sum / self.nodes as u64 * 1_000).checked_div(self.cost.ms).unwrap_or_default()
    }
}

impl fmt::Display for NodesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        write!(
            f,
            "seed {}: {} nodes, {} liars, {} of {} witnesses dishonest, {} connections, {} s virtual, {} events, {} crashes, \
             {} splits, {} lost, {} jobs ({} completed, {} failed, {} excused), {} failovers, \
             {} paid, {} entries final, {} ms to converge, {} ms to settle, {} messages/node/s, \
             {} B/node/s ({} of gossip, {} of sync), {} B/node/job, state {}",
            self.seed,
            self.nodes,
            self.liars,
            self.dishonest,
            self.witnesses,
            self.connections,
            self.virtual_ms / 1_000,
            counts.events,
            counts.crashes,
            counts.splits,
            counts.lost,
            counts.jobs,
            counts.completed,
            counts.failed,
            counts.excused,
            counts.failovers,
            counts.paid,
            self.finals,
            counts.converged_ms,
            counts.settled_ms,
            self.messages_per_node_and_second(),
            self.bytes_per_node_and_second(),
            self.gossip_bytes_per_node_and_second(),
            self.sync_bytes_per_node_and_second(),
            self.bytes_per_node_and_job(),
            self.state,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_what_their_messages_are_for() {
        let sent = [
            ((Group::Trade, "job"), (2, 100)),
            ((Group::Trade, "entry"), (1, 20)),
            ((Group::Gossip, "announce"), (3, 4_000)),
            ((Group::Sync, "heads"), (4, 600)),
            ((Group::Handshake, "hello"), (1, 50)),
        ];
        let counts = NodesCounts { sent: sent.into(), completed: 7, ..NodesCounts::default() };
        let expected = Cost {
            ms: 0,
            messages: 11,
            bytes: 4_770,
            trade_bytes: 120,
            gossip_bytes: 4_000,
            sync_bytes: 600,
            jobs: 7,
        };
        assert_eq!(counts.cost(), expected);
        let mut twice = counts.clone();
        twice.add(&counts);
        assert_eq!(twice.cost().since(counts.cost(), 5), Cost { ms: 5, ..expected });
    }
}
