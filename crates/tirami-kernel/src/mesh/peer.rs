//! One connected peer: what it said of itself, and what is open between it and this node.

use std::collections::BTreeMap;

use tirami_core::{Digest, PartyId, Timestamp};
use tirami_proto::{FRAMES_BURST, FRAMES_PER_SECOND, Hello, TokenBucket};

/// Heads remembered of one peer, so that it is not told what it told: those of the latest news.
const TOLD_MAX: usize = 128;
/// Chains of one peer that are known to be ahead.
pub(crate) const AHEAD_MAX: usize = 4_096;

/// Bytes of answers to one peer each second in the long run.
const ANSWER_BYTES_PER_SECOND: u32 = 32 << 20;
/// Bytes of answers to one peer at once after a pause.
const ANSWER_BYTES_BURST: u32 = 64 << 20;

/// A peer with an open control stream.
#[derive(Debug, Clone)]
pub struct Peer {
    pub(crate) since: Timestamp,
    pub(crate) outgoing: bool,
    pub(crate) address: Option<String>,
    /// Its hello, once it was accepted.
    pub(crate) hello: Option<Hello>,
    /// Whether it accepted this node's hello.
    pub(crate) welcomed: bool,
    /// Whether it showed the mesh's secret.
    pub(crate) invited: bool,
    /// Whether it was told that it is not enrolled.
    pub(crate) gets_no_line: bool,
    pub(crate) protocol: u16,
    /// Messages it may send. The node slows down a peer at half of this, so that only one whose
    /// node does not is charged.
    pub(crate) frames: TokenBucket,
    /// What its questions may still cost.
    pub(crate) answers: TokenBucket,
    /// Where it stands ahead of this node: the sequence number after its last final entry.
    pub(crate) ahead: BTreeMap<PartyId, u64>,
    /// What it is known to hold.
    pub(crate) told: BTreeMap<PartyId, u64>,
    /// Buckets that it said it holds otherwise than this node ever did, and since when that waits
    /// for news on their way.
    pub(crate) doubts: BTreeMap<u8, Digest>,
    pub(crate) doubts_at: Option<Timestamp>,
    /// Whether it was compared with since it connected.
    pub(crate) is_compared: bool,
    /// Whether it keeps only some chains, and so is no measure of what this node lacks.
    pub(crate) keeps_own: bool,
    pub(crate) questions: super::kept::Questions,
    pub(crate) summary_at: Option<Timestamp>,
    pub(crate) synced_at: Option<Timestamp>,
    pub(crate) pages: super::fetch::Pages,
    /// The place after the last own entry it was asked to acknowledge, and when.
    pub(crate) offered_seq: u64,
    pub(crate) offered_at: Option<Timestamp>,
    pub(crate) highest_asked_at: Option<Timestamp>,
    pub(crate) peers_asked_at: Option<Timestamp>,
    /// Whether its answer to that has not come.
    pub(crate) peers_due: bool,
    pub(crate) charters_asked_at: Option<Timestamp>,
    /// When it is told once more who signed twice.
    pub(crate) proofs_again_at: Option<Timestamp>,
    /// The last party of which it was told so.
    pub(crate) proofs_told: Option<PartyId>,
}

impl Peer {
    pub(crate) fn new(now: Timestamp, outgoing: bool, address: Option<String>) -> Self {
        Self {
            since: now,
            outgoing,
            address,
            hello: None,
            welcomed: false,
            invited: false,
            gets_no_line: false,
            protocol: 0,
            frames: TokenBucket::new(2 * FRAMES_PER_SECOND, 2 * FRAMES_BURST, now),
            answers: TokenBucket::new(ANSWER_BYTES_PER_SECOND, ANSWER_BYTES_BURST, now),
            ahead: BTreeMap::new(),
            told: BTreeMap::new(),
            doubts: BTreeMap::new(),
            doubts_at: None,
            is_compared: false,
            keeps_own: false,
            questions: super::kept::Questions::default(),
            summary_at: None,
            synced_at: None,
            pages: super::fetch::Pages::default(),
            offered_seq: 0,
            offered_at: None,
            highest_asked_at: None,
            peers_asked_at: None,
            peers_due: false,
            charters_asked_at: None,
            proofs_again_at: None,
            proofs_told: None,
        }
    }

    /// Whether both sides accepted each other.
    pub const fn is_open(&self) -> bool {
        self.hello.is_some() && self.welcomed
    }

    /// Since when it is connected.
    pub const fn since(&self) -> Timestamp {
        self.since
    }

    /// When its last message came; before its first one, when it connected.
    pub const fn heard_at(&self) -> Timestamp {
        self.frames.at()
    }

    /// Whether this node dialled it.
    pub const fn is_outgoing(&self) -> bool {
        self.outgoing
    }

    /// Where its connection comes from.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Name and version of its software; empty before its hello.
    pub fn agent(&self) -> &str {
        self.hello.as_ref().map_or("", |hello| &hello.agent)
    }

    /// The protocol version spoken with it; 0 before both sides agreed.
    pub const fn protocol(&self) -> u16 {
        self.protocol
    }

    /// The abilities it says it has, as a bit set; none before its hello.
    pub fn features(&self) -> u64 {
        self.hello.as_ref().map_or(0, |hello| hello.features)
    }

    /// When this node last held everything the peer was known to hold.
    pub const fn synced_at(&self) -> Option<Timestamp> {
        self.synced_at
    }

    /// Whether it keeps only the chains it has to do with.
    pub const fn keeps_own(&self) -> bool {
        self.keeps_own
    }

    /// Chains of which the peer holds more than this node did when it said so.
    pub fn chains_ahead(&self) -> usize {
        self.ahead.len()
    }

    pub(crate) fn knows(&mut self, chain: PartyId, next_seq: u64) {
        if self.told.len() >= TOLD_MAX && !self.told.contains_key(&chain) {
            self.told.clear();
        }
        let told = self.told.entry(chain).or_default();
        *told = next_seq.max(*told);
    }
}
