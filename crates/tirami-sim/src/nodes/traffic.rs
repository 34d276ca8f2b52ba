//! What messages are for: the groups that their bytes are counted in.

use core::fmt;

use tirami_proto::Message;

/// What a message is for. Each kind of message is of exactly one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// What a job itself needs: its frames, the entries that pay for it, their acknowledgements
    /// and refusals, and claims.
    Trade,
    /// What is told to all whom it may concern: price signals, peers, proofs of two signatures.
    Gossip,
    /// What makes nodes hold the same: final entries with their certificates, heads, summaries,
    /// places, cuts of checkpoints, charters.
    Sync,
    /// What opens and ends a connection, and what a newcomer without a line says to its sponsor.
    Handshake,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Trade => "trade",
            Self::Gossip => "gossip",
            Self::Sync => "sync",
            Self::Handshake => "handshake",
        })
    }
}

/// A kind of message: its group and its name.
pub(super) type Kind = (Group, &'static str);

/// The kind of a message. A new kind has to be placed here before it compiles.
pub(super) const fn kind_of(message: &Message) -> Kind {
    match message {
        Message::Entry(_) => (Group::Trade, "entry"),
        Message::Acknowledgement(_) => (Group::Trade, "acknowledgement"),
        Message::EntryRefused { .. } => (Group::Trade, "entry_refused"),
        Message::Claim(_) => (Group::Trade, "claim"),

        Message::Announce(_) => (Group::Gossip, "announce"),
        Message::WantPeers => (Group::Gossip, "want_peers"),
        Message::Peers(_) => (Group::Gossip, "peers"),
        Message::DoubleSign { .. } => (Group::Gossip, "double_sign"),

        Message::Finals { .. } => (Group::Sync, "finals"),
        Message::Summary { .. } => (Group::Sync, "summary"),
        Message::WantHeads { .. } => (Group::Sync, "want_heads"),
        Message::Heads { .. } => (Group::Sync, "heads"),
        Message::WantRange { .. } => (Group::Sync, "want_range"),
        Message::WantCut { .. } => (Group::Sync, "want_cut"),
        Message::Cut { .. } => (Group::Sync, "cut"),
        Message::WantCharters { .. } => (Group::Sync, "want_charters"),
        Message::Charters { .. } => (Group::Sync, "charters"),
        Message::CharterProposal { .. } => (Group::Sync, "charter_proposal"),
        Message::CharterApproval { .. } => (Group::Sync, "charter_approval"),
        Message::WantHighest { .. } => (Group::Sync, "want_highest"),
        Message::Highest { .. } => (Group::Sync, "highest"),
        Message::Kept { .. } => (Group::Sync, "kept"),
        Message::Beyond { .. } => (Group::Sync, "beyond"),
        Message::WantPlaces { .. } => (Group::Sync, "want_places"),
        Message::WantMine { .. } => (Group::Sync, "want_mine"),
        Message::Opinions(..) => (Group::Gossip, "opinions"),
        Message::Places { .. } => (Group::Sync, "places"),

        Message::Hello(_) => (Group::Handshake, "hello"),
        Message::Welcome(_) => (Group::Handshake, "welcome"),
        Message::Goodbye(_) => (Group::Handshake, "goodbye"),
        Message::WantSponsor => (Group::Handshake, "want_sponsor"),
        Message::SponsorTask { .. } => (Group::Handshake, "sponsor_task"),
        Message::SponsorProof { .. } => (Group::Handshake, "sponsor_proof"),
        Message::SponsorRefused { .. } => (Group::Handshake, "sponsor_refused"),
    }
}
