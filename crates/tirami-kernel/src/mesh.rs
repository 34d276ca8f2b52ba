//! The node's part in its mesh: who its peers are, what they hold, what they announce, and how
//! its own entries become final. It decides and answers; the node carries the bytes.
//!
//! Nothing here is durable. What counts is in the ledger; the rest is found again after a start.
//! Every table has a named bound.

mod addresses;
mod buckets;
mod charters;
mod claims;
mod farewell;
mod faucet;
mod fetch;
mod handshake;
mod kept;
mod lag;
mod peer;
mod proofs;
mod react;
mod reciprocity;
mod roll;
mod settings;
mod signals;
mod start;
mod sync;
mod witness;

use std::collections::BTreeMap;

use tirami_core::{Digest, PartyId, Timestamp};
use tirami_proto::Score;

use crate::scheduler::Opinions;

pub use addresses::ADDRESSES_KNOWN_MAX;
pub use charters::DRAFTS_MAX;
pub use claims::CLAIMS_TAKEN;
pub use farewell::{FAREWELLS_MAX, Farewell};
pub use faucet::Faucet;
pub use fetch::PAGE_MAX;
pub use handshake::Standing;
pub use kept::{FIRST_CONTACT_MAX, FOLLOWED_MAX, FOLLOWED_MS, HELD_MAX, WISHED_MAX};
pub use peer::Peer;
pub use settings::{ADMITTED_MAX, Admission, MeshInput, MeshSettings, OwnOffer, PeerEvent, Serve};
pub use signals::{ANNOUNCED_MAX, Provider, SIGNAL_LIFE_MS, SIGNAL_RENEW_MS};
pub use sync::SERVE_MAX;
pub use witness::{
    CHAIN_BYTES, FREE_OPENS, OFFERED_MAX, PARKED_PER_PEER_MAX, PENDING_PER_CHAIN_MAX,
};

/// Peers that a node looks for by itself; witnesses come on top.
pub const PEERS_TARGET: usize = 12;
/// Connections at most; those to witnesses and trusted peers come on top.
pub const PEERS_MAX: usize = 4_096;
/// Of them, at most so many whose party is not known to the mesh.
pub const STRANGERS_MAX: usize = 128;
/// Peers whose behaviour is remembered after their connection ended.
pub const SCORES_MAX: usize = 4_096;
/// Optional abilities of this version.
pub const FEATURES: u64 = tirami_proto::FEATURE_KEEPS_OWN;
/// How often a node with peers looks at what is due.
pub const BEAT_MS: u64 = 500;
/// How long news wait for more before they are passed on together.
pub const FLUSH_MS: u64 = 100;
/// Peers that hear of one piece of news at once, others in each round. The rest hear of it from
/// them, or by comparing: so what news cost a node does not grow with its number of peers.
pub const NEWS_PEERS_MAX: usize = 8;
/// Of them, those that hear of price signals when not all peers do. A signal is renewed twice
/// within its life, so that a node that misses one still has the one before.
pub const SIGNAL_PEERS_MAX: usize = 4;
/// Connections up to which each new peer is asked for addresses and signals; later the news
/// bring both.
const FIRST_PEERS: usize = 3;
/// Bits of the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// How often a peer is asked for further peers while some are wanted.
const PEERS_ASK_MS: u64 = 30_000;

/// The mesh as a node sees it.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    settings: MeshSettings,
    peers: BTreeMap<PartyId, Peer>,
    addresses: addresses::Addresses,
    scores: BTreeMap<PartyId, Score>,
    signals: signals::Signals,
    held: sync::Held,
    fetch: fetch::Fetch,
    lag: lag::Lag,
    kept: kept::Kept,
    desk: witness::Desk,
    claims: claims::Claims,
    rivals: proofs::Rivals,
    start: start::Start,
    roll: roll::Roll,
    drafts: charters::Drafts,
    search: faucet::Search,
    opinions: Opinions,
    opinions_told_at: Timestamp,
    /// Chains of others that went on since the last flush, and who told.
    news: BTreeMap<PartyId, Option<PartyId>>,
    flush_at: Option<Timestamp>,
    /// Flushes so far: which peers hear of the news of one.
    flushes: u64,
    beat_at: Option<Timestamp>,
    /// Whose message is being handled.
    source: Option<PartyId>,
    /// Who asked for the acknowledgement that is being handled.
    offering: Option<PartyId>,
    /// Who sent the parked entry that is looked at again.
    reparked: Option<PartyId>,
    /// Events of the current input that were reacted to.
    seen: usize,
    faults: u64,
    farewells: farewell::Farewells,
}

impl Mesh {
    /// The connected peers, those included that are still introducing themselves.
    pub fn peers(&self) -> impl Iterator<Item = (PartyId, &Peer)> {
        self.peers.iter().map(|(party, peer)| (*party, peer))
    }

    /// Whether there is a connection to `party` on which both sides accepted each other.
    pub fn is_open(&self, party: PartyId) -> bool {
        self.peers.get(&party).is_some_and(Peer::is_open)
    }

    /// What this node thinks of providers.
    pub const fn opinions(&self) -> &Opinions {
        &self.opinions
    }

    /// The settings in force.
    pub const fn settings(&self) -> &MeshSettings {
        &self.settings
    }

    /// Faults of peers since the start.
    pub const fn faults(&self) -> u64 {
        self.faults
    }

    /// Connections that one side ended with a reason, the latest first.
    pub fn farewells(&self) -> impl Iterator<Item = &Farewell> {
        self.farewells.latest_first()
    }

    /// Connections that one side ended with a reason, since the start.
    pub const fn goodbyes(&self) -> u64 {
        self.farewells.count()
    }

    /// For how long `party` is refused because of its behaviour, in milliseconds.
    pub fn refused_ms(&self, party: PartyId, now: Timestamp) -> Option<u64> {
        self.scores.get(&party)?.refused_ms(now)
    }

    fn open_peers(&self) -> Vec<PartyId> {
        let open = self.peers.iter().filter(|(_, peer)| peer.is_open());
        open.map(|(party, _)| *party).collect()
    }

    /// The open peers but the one whose message is being handled.
    fn others(&self) -> Vec<PartyId> {
        let mut others = self.open_peers();
        others.retain(|party| Some(*party) != self.source);
        others
    }

    /// The open peers that hear of the news of this flush: all of a few, some of many,
    /// and every node chooses others, in another order each time.
    fn news_peers(&mut self, own: PartyId, of: impl Fn(&Peer) -> bool) -> Vec<PartyId> {
        self.flushes = self.flushes.wrapping_add(1);
        let mut open = self.open_peers();
        open.retain(|party| self.peers.get(party).is_some_and(&of));
        if open.len() > NEWS_PEERS_MAX {
            let round = [own.as_bytes().as_slice(), &self.flushes.to_be_bytes()].concat();
            let dice = nearness(PartyId::from_bytes(*Digest::of(&round).as_bytes()), own);
            // An odd factor keeps all numbers apart and takes neighbours away from each other.
            let place = |party: &PartyId| (nearness(*party, own) ^ dice).wrapping_mul(SPREAD);
            open.sort_by_cached_key(place);
            open.truncate(NEWS_PEERS_MAX);
        }
        open
    }

    /// A new input: none of its events was reacted to.
    pub(crate) const fn events_begin(&mut self) {
        self.seen = 0;
    }

    fn flush_soon(&mut self, now: Timestamp) {
        if !self.peers.is_empty() {
            self.flush_at.get_or_insert(now.plus_ms(FLUSH_MS));
        }
    }
}

/// How near two parties are to each other: for each party the others are in another order, so
/// that nodes which choose by it choose different ones.
fn nearness(one: PartyId, other: PartyId) -> u64 {
    let head = |party: PartyId| {
        let mut head = [0; 8];
        head.copy_from_slice(&party.as_bytes()[..8]);
        u64::from_be_bytes(head)
    };
    head(one) ^ head(other)
}
