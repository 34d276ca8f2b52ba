//! Fetching: which ranges of final entries are asked of which peer, and how many at once.
//!
//! A node asks one peer at a time for the next page of a chain, from its own last final entry on.
//! A page whose entries rest on another chain is parked by the ledger and goes on by itself when
//! that chain has come; so long no further page of the chain is asked for. Of all entries that
//! are missing at least one rests on nothing that is missing, so a round over all chains always
//! makes progress, and nothing is ever followed by hashes. A cut-off peer costs nothing but time:
//! what is final here is never asked for again.
//!
//! The chains of clerk and registrar come first, and others wait a moment for them: checkpoints
//! are the only clock, and whoever was enrolled rests on the registrar's grant.

use core::ops::Bound::{Excluded, Unbounded};
use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{PartyId, Timestamp};
use tirami_proto::Message;

use super::{Mesh, Peer};
use crate::kernel::{Effects, Kernel};

/// Final entries asked for at once.
pub const PAGE_MAX: u32 = 256;
/// Final entries asked for that have not come, in all: as many as the peers said they had.
const ENTRIES_ASKED_MAX: u64 = 4_096;
/// Of them, those asked of one peer.
const ENTRIES_PER_PEER_MAX: u64 = 2_048;
/// Pages asked for that have not come, in all. Most are of few entries: a mesh has many chains that
/// went on a little.
const PAGES_ASKED_MAX: usize = 256;
/// Of them, those asked of one peer.
const PAGES_PER_PEER_MAX: usize = 32;
/// Of them, those asked of a peer that served none yet.
const PAGES_OF_UNKNOWN_MAX: usize = 2;
/// Of them, those asked of a peer that left some unserved.
const PAGES_OF_UNSERVED_MAX: usize = 1;
/// How often the rest of a peer doubles that announces what it does not serve.
const RESTS_DOUBLED_MAX: u32 = 4;
/// How long a page may take before another peer is asked. One that comes later is used too.
const PAGE_MS: u64 = 1_500;
/// How much longer it may take for each entry that its peer was asked for by then.
const ENTRY_MS: u64 = 2;
/// The first rest of a peer that left pages unserved; each further one is twice as long.
const REST_MS: u64 = 3_000;
/// How long other chains wait for a page of an office's chain.
const OFFICES_FIRST_MS: u64 = 1_000;

/// What is asked for and has not come.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    pages: usize,
    entries: u64,
}

impl Load {
    const fn add(&mut self, entries: u64) {
        self.pages += 1;
        self.entries = self.entries.saturating_add(entries);
    }

    /// Whether one more page may be asked for. The last one may go beyond the entries allowed by
    /// less than a page.
    const fn has_room(self, pages_max: usize, entries_max: u64) -> bool {
        self.pages < pages_max && self.entries < entries_max
    }
}

/// How a peer serves what it says it holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pages {
    has_served: bool,
    /// How often pages of it did not come, since one came that was of use.
    unserved: u32,
    /// Until when nothing is asked of it, and what it announces is not believed.
    rests_until: Option<Timestamp>,
}

impl Pages {
    /// A page of it was of use.
    pub(super) fn served(&mut self) {
        *self = Self { has_served: true, ..Self::default() };
    }

    /// What it said it had did not come. The first time may be a slow line; after that it rests,
    /// each time for longer.
    pub(super) fn failed(&mut self, now: Timestamp) {
        self.unserved = self.unserved.saturating_add(1);
        if let Some(doubled) = self.unserved.checked_sub(2) {
            let rest_ms = REST_MS << doubled.min(RESTS_DOUBLED_MAX);
            self.rests_until = Some(now.plus_ms(rest_ms));
        }
    }

    const fn asked_max(&self) -> usize {
        match (self.has_served, self.unserved) {
            (true, 0) => PAGES_PER_PEER_MAX,
            (false, 0) => PAGES_OF_UNKNOWN_MAX,
            _ => PAGES_OF_UNSERVED_MAX,
        }
    }

    pub(super) fn rests(&self, now: Timestamp) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

/// A page that is on its way.
#[derive(Debug, Clone, Copy)]
struct Asked {
    from: PartyId,
    since: Timestamp,
    /// Until when it is waited for.
    until: Timestamp,
    /// Entries that it brings if the peer has what it said.
    entries: u64,
}

/// What is being fetched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fetch {
    /// When this node last held all that a witness held which is not connected any more. A
    /// partition makes that older, not untrue: jobs go on for as long as their provider allows.
    pub(super) level_at: Option<Timestamp>,
    /// Chains of which a page is on its way.
    asked: BTreeMap<PartyId, Asked>,
    /// Chains that rest, until when, or until they go on from where they stood.
    stalled: BTreeMap<PartyId, (Timestamp, u64)>,
    /// Where the round over the chains goes on.
    cursor: Option<PartyId>,
}

impl Fetch {
    /// Remembers that this node held at `at` all that a witness did which now goes away.
    pub(super) fn keep_level(&mut self, at: Option<Timestamp>) {
        self.level_at = self.level_at.max(at);
    }

    pub(super) fn lost(&mut self, peer: PartyId) {
        self.asked.retain(|_, asked| asked.from != peer);
    }

    pub(super) fn is_asked(&self, chain: PartyId) -> bool {
        self.asked.contains_key(&chain)
    }

    /// Whether what `peer` sends of `chain` is what it was asked for; it is no longer.
    pub(super) fn answered(&mut self, chain: PartyId, peer: PartyId) -> bool {
        let answered = self.asked.get(&chain).is_some_and(|asked| asked.from == peer);
        if answered {
            self.asked.remove(&chain);
        }
        answered
    }

    /// A page of the chain could not be used yet: it rests from `next_seq` on.
    pub(super) fn rest(&mut self, chain: PartyId, until: Timestamp, next_seq: u64) {
        self.stalled.insert(chain, (until, next_seq));
    }

    fn rests(&self, chain: PartyId, next_seq: u64, now: Timestamp) -> bool {
        let stood = self.stalled.get(&chain).filter(|(until, _)| *until > now);
        stood.is_some_and(|(_, stood)| *stood == next_seq)
    }
}

/// A peer that is ahead somewhere and may be asked for more.
struct Able<'a> {
    party: PartyId,
    peer: &'a Peer,
    load: Load,
}

impl Able<'_> {
    fn has_room(&self) -> bool {
        self.load.has_room(self.peer.pages.asked_max(), ENTRIES_PER_PEER_MAX)
    }
}

/// A look over the chains that are ahead somewhere: what to ask for, and what is here by now.
struct Round<'a> {
    kernel: &'a Kernel,
    all: Load,
    able: Vec<Able<'a>>,
    asks: Vec<(PartyId, Asked)>,
    here: Vec<(PartyId, PartyId)>,
}

impl<'a> Round<'a> {
    fn new(kernel: &'a Kernel) -> Self {
        let (mut all, mut loads) = (Load::default(), BTreeMap::<PartyId, Load>::new());
        for asked in kernel.mesh.fetch.asked.values() {
            all.add(asked.entries);
            loads.entry(asked.from).or_default().add(asked.entries);
        }
        let ahead = kernel.mesh.peers.iter().filter(|(_, peer)| !peer.ahead.is_empty());
        let able = ahead.map(|(party, peer)| {
            let load = loads.get(party).copied().unwrap_or_default();
            Able { party: *party, peer, load }
        });
        let able = able.filter(Able::has_room).collect();
        Self { kernel, all, able, asks: Vec::new(), here: Vec::new() }
    }

    fn is_over(&self) -> bool {
        self.able.is_empty() || !self.all.has_room(PAGES_ASKED_MAX, ENTRIES_ASKED_MAX)
    }

    /// The next chain after `after` that a peer with room is ahead of.
    fn next(&self, after: Option<PartyId>) -> Option<PartyId> {
        let from = after.map_or(Unbounded, Excluded);
        let peers = self.able.iter().map(|able| able.peer);
        let next = peers.filter_map(|peer| peer.ahead.range((from, Unbounded)).next());
        next.map(|(chain, _)| *chain).min()
    }

    /// Whether a page of `chain` is on its way that may come any moment. A peer that left something
    /// unserved is not waited for.
    fn awaits(&self, chain: PartyId) -> bool {
        let mesh = &self.kernel.mesh;
        let now = self.asks.iter().find(|(asked, _)| *asked == chain).map(|(_, asked)| asked);
        now.or_else(|| mesh.fetch.asked.get(&chain)).is_some_and(|asked| {
            let peer = mesh.peers.get(&asked.from);
            self.kernel.clock < asked.since.plus_ms(OFFICES_FIRST_MS)
                && peer.is_some_and(|peer| peer.pages.unserved == 0)
        })
    }

    /// Asks for the next page of a chain, of whom served best and is asked least.
    fn visit(&mut self, chain: PartyId) {
        let (kernel, next_seq) = (self.kernel, self.kernel.next_seq(chain));
        let fetch = &kernel.mesh.fetch;
        let busy = fetch.is_asked(chain) || fetch.rests(chain, next_seq, kernel.clock);
        let mut best = None;
        for (at, able) in self.able.iter().enumerate() {
            let Some(ahead) = able.peer.ahead.get(&chain).copied() else { continue };
            if ahead <= next_seq {
                self.here.push((able.party, chain));
                continue;
            }
            let rank = (able.peer.pages.unserved, able.load.pages, at);
            if best.is_none_or(|(known, _)| rank < known) {
                best = Some((rank, ahead - next_seq));
            }
        }
        let Some(((_, _, at), lacking)) = best.filter(|_| !busy) else { return };
        let entries = lacking.min(u64::from(PAGE_MAX));
        let Some(able) = self.able.get_mut(at) else { return };
        able.load.add(entries);
        self.all.add(entries);
        let (from, since) = (able.party, kernel.clock);
        let until = since.plus_ms(PAGE_MS + ENTRY_MS.saturating_mul(able.load.entries));
        self.asks.push((chain, Asked { from, since, until, entries }));
        if !able.has_room() {
            self.able.swap_remove(at);
        }
    }
}

impl Mesh {
    /// Pages of final entries that were asked for and have not come.
    pub fn pages_asked(&self) -> usize {
        self.fetch.asked.len()
    }
}

impl Kernel {
    /// Asks for the next pages, in turns over all chains that are ahead somewhere, after the one
    /// asked for last; those of offices come first.
    pub(super) fn fetch_more(&mut self, effects: &mut Effects) {
        let offices = self.ledger.lattice().offices();
        let mut round = Round::new(self);
        for chain in &offices {
            if !round.is_over() {
                round.visit(*chain);
            }
        }
        let first = round.asks.len();
        let begin = self.mesh.fetch.cursor;
        let (mut cursor, mut is_again) = (begin, false);
        let wait = offices.iter().any(|chain| round.awaits(*chain));
        while !wait && !round.is_over() {
            match round.next(cursor) {
                Some(chain) if is_again && Some(chain) > begin => break,
                Some(chain) => {
                    cursor = Some(chain);
                    if !offices.contains(&chain) {
                        round.visit(chain);
                    }
                }
                None if is_again => break,
                None => (cursor, is_again) = (None, true),
            }
        }
        let Round { asks, here, .. } = round;
        self.have_come(here);
        if let Some((last, _)) = asks.get(first..).and_then(<[_]>::last) {
            self.mesh.fetch.cursor = Some(*last);
        }
        for (chain, asked) in asks {
            self.mesh.fetch.asked.insert(chain, asked);
            let (from_seq, max) = (self.next_seq(chain), asked.entries as u32);
            effects.send.push((asked.from, Message::WantRange { chain, from_seq, max }));
        }
    }

    /// What peers were ahead in is here.
    fn have_come(&mut self, here: Vec<(PartyId, PartyId)>) {
        for (party, chain) in here {
            let is_witness = self.is_witness(party);
            let Some(peer) = self.mesh.peers.get_mut(&party) else { continue };
            peer.ahead.remove(&chain);
            if peer.ahead.is_empty() {
                peer.synced_at = Some(self.clock);
            }
            if is_witness {
                self.mesh.kept.is_level(chain, self.clock);
            }
        }
    }

    /// Gives up on pages that do not come, and believes again those that have rested. Peers to
    /// compare with.
    pub(super) fn beat_fetch(&mut self, now: Timestamp) -> BTreeSet<PartyId> {
        let fetch = &mut self.mesh.fetch;
        fetch.stalled.retain(|_, (until, _)| *until > now);
        let late = fetch.asked.iter().filter(|(_, asked)| now >= asked.until);
        let late: Vec<_> = late.map(|(chain, asked)| (*chain, asked.from)).collect();
        let mut failed = BTreeSet::new();
        for (chain, from) in late {
            self.mesh.fetch.asked.remove(&chain);
            if let Some(peer) = self.mesh.peers.get_mut(&from) {
                peer.ahead.remove(&chain);
                failed.insert(from);
            }
        }
        for (party, peer) in &mut self.mesh.peers {
            let has_rested = peer.pages.rests_until.take_if(|until| *until <= now).is_some();
            if failed.contains(party) {
                peer.pages.failed(now);
                if peer.pages.rests(now) {
                    peer.ahead.clear();
                }
            } else if has_rested {
                failed.insert(*party);
            }
        }
        // Such a peer may be slow and still the only one that has the chain.
        failed
    }
}
