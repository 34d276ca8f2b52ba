//! What the node tells its kernel about the mesh: settings, what it serves, what connections do.

use tirami_core::{Digest, PartyId, Ppm, Timestamp};
use tirami_ledger::lattice::Keep;
use tirami_proto::{Fault, Message, Offer, PeerAddress};

use super::faucet::Faucet;
use crate::scheduler::Observation;

/// What happened on the connection to a peer. The party is the key the connection proved.
///
/// For one peer the events come in order: `Connected`, its messages, `Disconnected`. A connection
/// that replaces another one is reported after the other's `Disconnected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// The control stream is open.
    Connected {
        /// Whether this node dialled.
        outgoing: bool,
        /// Where the peer is, as a [`tirami_proto::Via`] prints.
        address: Option<String>,
    },
    /// A message came on the control stream.
    Message(Box<Message>),
    /// A frame came that is no message.
    Malformed,
    /// The connection ended, or dialling failed.
    Disconnected,
}

/// What the node tells its kernel about the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshInput {
    /// The settings, replacing all earlier ones. Nothing is dialled and nobody admitted before.
    Settings(MeshSettings),
    /// What this node serves, renewed every few seconds; none when it serves nothing.
    Offer(Option<OwnOffer>),
    /// Somebody gave the address of a peer: it is dialled soon and kept.
    AddPeer(PeerAddress),
    /// A node that may belong to the mesh was found, or is remembered: it is dialled, and let in
    /// like anybody else.
    Found(PeerAddress),
    /// A party wants something of this node that depends on where its chain stands.
    FirstContact(PartyId),
    /// What came of a job at a provider; the next ranking counts it.
    Observed(Observation),
    /// A peer did something wrong outside the control stream: with a job's stream, say.
    Offended {
        /// Who.
        peer: PartyId,
        /// What.
        fault: Fault,
    },
    /// What came of the work of [`crate::Effects::work`].
    Worked {
        /// For whom it was done.
        sponsor: PartyId,
        /// The sponsor's challenge.
        challenge: Digest,
        /// The number that was found; none when the search was given up.
        nonce: Option<u64>,
    },
}

/// How many newcomers the registrar still enrols by itself: so many that its owner made invites
/// for. Whoever comes by one later is let in without a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Parties on the roll at which it ends.
    pub enrolled_max: u64,
    /// When it ends in any case.
    pub expires_at: Timestamp,
}

impl Admission {
    /// With `uses` further newcomers, of whom the last may come at `expires_at`.
    pub fn extended(
        before: Option<Self>,
        (enrolled, now): (u64, Timestamp),
        (uses, expires_at): (u32, Timestamp),
    ) -> Self {
        let before = before.filter(|before| before.expires_at > now);
        let left = before.map_or(0, |before| before.enrolled_max.saturating_sub(enrolled));
        let more = left.saturating_add(uses.into()).min(ADMITTED_MAX);
        let until = before.map_or(expires_at, |before| before.expires_at.max(expires_at));
        Self { enrolled_max: enrolled.saturating_add(more), expires_at: until }
    }
}

/// Newcomers at most that a registrar enrols by itself before its owner makes another invite.
pub const ADMITTED_MAX: u64 = 64;

/// How this node takes part in its mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshSettings {
    /// The secret that admits whoever proves to know it.
    pub secret: Option<[u8; 32]>,
    /// Whether everybody is admitted.
    pub public: bool,
    /// Whom a registrar enrols by itself; none for nobody.
    pub admission: Option<Admission>,
    /// Peers to dial first; they are kept whatever happens.
    pub bootstrap: Vec<PeerAddress>,
    /// Where this node can be reached, each as a [`tirami_proto::Via`] prints.
    pub addresses: Vec<String>,
    /// Which chains are kept.
    pub keep: Keep,
    /// Name and version of this software, at most [`tirami_proto::AGENT_BYTES_MAX`] bytes.
    pub agent: String,
    /// What newcomers that nobody knows are given; none when nothing.
    pub faucet: Option<Faucet>,
}

/// What this node offers, as it stands in its next price signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnOffer {
    /// Price of work, µTRM for 10⁹ FLOP.
    pub price: Ppm,
    /// Price of prompt tokens that are cached, µTRM for 10⁹ FLOP.
    pub cached_price: Ppm,
    /// Jobs that could start at once.
    pub slots_free: u16,
    /// Jobs that can run at the same time.
    pub slots: u16,
    /// Jobs that wait.
    pub queue: u16,
    /// The models served.
    pub models: Vec<Offer>,
    /// Where the node is, for example `eu-west`; may be empty.
    pub region: String,
    /// An HTTP endpoint of its own, for people.
    pub http_endpoint: Option<String>,
    /// Whether it takes jobs at this time.
    pub serving: bool,
}

/// Final entries of one chain that the node reads from its store and sends to a peer, as
/// [`Message::Finals`], rivals that are final in one slot included. The run ends with an entry that
/// has a certificate, even if it is longer than asked for, and is cut after one that fits a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serve {
    /// Who asked.
    pub peer: PartyId,
    /// The chain.
    pub chain: PartyId,
    /// The first entry wanted.
    pub from_seq: u64,
    /// How many at most.
    pub max: u32,
}
