//! For how long this node has known of final entries that it lacks: whether a mesh converges, and
//! how fast.

use std::collections::BTreeMap;

use tirami_core::{PartyId, Timestamp};

use super::peer::AHEAD_MAX;
use crate::kernel::Kernel;

/// Chains whose lag is measured.
const LAGGING_MAX: usize = AHEAD_MAX;

/// Chains of which a connected peer is known to hold more: up to where, seen first at which beat.
#[derive(Debug, Clone, Default)]
pub(super) struct Lag {
    chains: BTreeMap<PartyId, (u64, Timestamp)>,
}

impl Kernel {
    /// How long ago this node learned of the oldest final entry that some connected peer holds and
    /// it still lacks, in milliseconds; 0 when it lacks nothing, or nothing for as long as a beat.
    /// A chain that goes on while it is fetched does not add to it.
    pub fn lag_ms(&self, now: Timestamp) -> u64 {
        let ahead = self.known_ahead();
        let lacking = self.mesh.lag.chains.iter().filter(|(chain, (next, _))| {
            ahead.contains_key(chain) && self.next_seq(**chain) < *next
        });
        let oldest = lacking.map(|(_, (_, since))| *since).min();
        oldest.map_or(0, |since| now.since_ms(since))
    }

    /// Notes what is known to be missing, and forgets what has come.
    pub(super) fn beat_lag(&mut self, now: Timestamp) {
        let ahead = self.known_ahead();
        let noted = core::mem::take(&mut self.mesh.lag.chains);
        let chains = ahead.into_iter().take(LAGGING_MAX).map(|(chain, next)| {
            let same = noted.get(&chain).filter(|(until, _)| self.next_seq(chain) < *until);
            (chain, same.copied().unwrap_or((next, now)))
        });
        self.mesh.lag.chains = chains.collect();
    }

    /// How far the peer that holds most of each chain is, where that is further than this node.
    fn known_ahead(&self) -> BTreeMap<PartyId, u64> {
        let mut ahead = BTreeMap::<PartyId, u64>::new();
        for (chain, next) in self.mesh.peers.values().flat_map(|peer| &peer.ahead) {
            if *next > self.next_seq(*chain) {
                let most = ahead.entry(*chain).or_default();
                *most = (*next).max(*most);
            }
        }
        ahead
    }
}
