//! What nodes say to each other on the control stream.

use minicbor::{Decode, Encode};
use tirami_core::{BUCKETS, Digest, DocumentId, ModelDigest, PartyId, SIGNED_BYTES_MAX};

use crate::frame::{CONTROL_FRAME_BYTES_MAX, Frame};
use crate::wire::{
    APPROVAL_BYTES_MAX, CERTIFICATE_BYTES_MAX, CHARTERS_PER_FRAME_MAX, CUT_SLOTS_MAX,
};
use crate::wire::{FINALS_PER_FRAME_MAX, Head, WireCharter, WireClaim, WireDocument};
use crate::{FinalEntry, Goodbye, Hello, PeerAddress, Welcome, WireEntry, WirePlace, WireSlot};
use crate::{OFFERS_MAX, REASON_BYTES_MAX, bounded, wire};

/// Heads in one frame at most: those of one bucket.
pub const HEADS_PER_FRAME_MAX: usize = 8_192;
/// Announcements in one frame at most.
pub const ANNOUNCED_PER_FRAME_MAX: usize = 64;
/// Heads of kept chains in one frame at most.
pub const KEPT_PER_FRAME_MAX: usize = 512;
/// Entries whose places are asked for at once at most.
pub const PLACES_ASKED_MAX: usize = 64;
/// Places in one frame at most.
pub const PLACES_MAX: usize = 256;
/// Peers in one frame at most.
pub const PEERS_PER_FRAME_MAX: usize = 64;
/// Opinions in one frame at most.
pub const OPINIONS_PER_FRAME_MAX: usize = 64;

/// Bytes of a code, such as `slot_taken`, at most.
const CODE_BYTES_MAX: usize = 64;
/// Bytes of a frame that carries one signed thing, its certificate or a question.
const SMALL_FRAME: usize = 64 * 1024;

/// A message on the control stream, in either direction. Unknown numbers are skipped by
/// [`crate::Frames`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum Message {
    /// Opens the connection.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Accepts a hello.
    #[n(1)]
    Welcome(#[n(0)] Welcome),
    /// Closes the connection.
    #[n(2)]
    Goodbye(#[n(0)] Goodbye),
    /// Asks a witness to acknowledge an entry.
    #[n(3)]
    Entry(#[n(0)] WireEntry),
    /// A witness's acknowledgement: the CBOR of the ledger's type.
    #[n(4)]
    Acknowledgement(
        #[cbor(
            n(0),
            encode_with = "bounded::write_bytes",
            decode_with = "bounded::bytes::<_, CERTIFICATE_BYTES_MAX>"
        )]
        Vec<u8>,
    ),
    /// A witness does not acknowledge an entry.
    #[n(5)]
    EntryRefused {
        /// The entry.
        #[n(0)]
        entry: DocumentId,
        /// Which rule refuses it, for programs.
        #[cbor(n(1), decode_with = "bounded::text::<_, CODE_BYTES_MAX>")]
        code: String,
        /// Why, for people.
        #[cbor(n(2), decode_with = "bounded::text::<_, REASON_BYTES_MAX>")]
        reason: String,
        /// Whether the same entry may be accepted later.
        #[n(3)]
        retry: bool,
    },
    /// Consecutive final entries of one chain: the answer to [`Message::WantRange`], or a push.
    #[n(6)]
    Finals {
        /// The party whose chain it is.
        #[n(0)]
        chain: PartyId,
        /// Entries in the order of the chain.
        #[cbor(
            n(1),
            decode_with = "bounded::list::<_, FinalEntry, {FINALS_PER_FRAME_MAX as u64}>"
        )]
        entries: Vec<FinalEntry>,
        /// Whether the sender holds more of this chain.
        #[n(2)]
        more: bool,
    },
    /// What the sender holds, in short.
    #[n(7)]
    Summary {
        /// Its state hash.
        #[n(0)]
        state: Digest,
        /// One digest of the heads in each of the [`BUCKETS`] buckets.
        #[cbor(n(1), decode_with = "bounded::list::<_, Digest, {BUCKETS as u64}>")]
        buckets: Vec<Digest>,
    },
    /// Asks for the heads of one bucket.
    #[n(8)]
    WantHeads {
        /// The bucket, below [`BUCKETS`].
        #[n(0)]
        bucket: u8,
    },
    /// The heads of all chains the sender holds in one bucket.
    #[n(9)]
    Heads {
        /// The bucket, below [`BUCKETS`].
        #[n(0)]
        bucket: u8,
        /// Heads in the order of their chains' ids.
        #[cbor(n(1), decode_with = "bounded::list::<_, Head, {HEADS_PER_FRAME_MAX as u64}>")]
        heads: Vec<Head>,
    },
    /// Asks for final entries of one chain.
    #[n(10)]
    WantRange {
        /// The party whose chain it is.
        #[n(0)]
        chain: PartyId,
        /// The first entry wanted.
        #[n(1)]
        from_seq: u64,
        /// How many entries at most; the answer may have fewer.
        #[n(2)]
        max: u32,
    },
    /// Asks which heads a checkpoint's cut has.
    #[n(11)]
    WantCut {
        /// The checkpoint's entry.
        #[n(0)]
        checkpoint: DocumentId,
    },
    /// The heads of a checkpoint's cut.
    #[n(12)]
    Cut {
        /// The checkpoint's entry.
        #[n(0)]
        checkpoint: DocumentId,
        /// Heads in the order of their chains' ids.
        #[cbor(n(1), decode_with = "bounded::list::<_, WireSlot, {CUT_SLOTS_MAX as u64}>")]
        slots: Vec<WireSlot>,
    },
    /// Asks for newer versions of the charter.
    #[n(13)]
    WantCharters {
        /// The newest version the sender holds; 0 for none.
        #[n(0)]
        after_version: u32,
    },
    /// Consecutive versions of the charter.
    #[n(14)]
    Charters {
        /// Versions in order.
        #[cbor(
            n(0),
            decode_with = "bounded::list::<_, WireCharter, {CHARTERS_PER_FRAME_MAX as u64}>"
        )]
        charters: Vec<WireCharter>,
    },
    /// A new version of the charter that the witnesses are asked to approve.
    #[n(15)]
    CharterProposal {
        /// The CBOR of the charter.
        #[cbor(
            n(0),
            encode_with = "bounded::write_bytes",
            decode_with = "bounded::bytes::<_, SIGNED_BYTES_MAX>"
        )]
        bytes: Vec<u8>,
    },
    /// A witness's approval of a proposed charter.
    #[n(16)]
    CharterApproval {
        /// The CBOR of the ledger's type.
        #[cbor(
            n(0),
            encode_with = "bounded::write_bytes",
            decode_with = "bounded::bytes::<_, APPROVAL_BYTES_MAX>"
        )]
        bytes: Vec<u8>,
    },
    /// Asks for the highest entry of a chain that the receiver ever acknowledged.
    #[n(17)]
    WantHighest {
        /// The party whose chain it is.
        #[n(0)]
        chain: PartyId,
    },
    /// The highest entry of a chain that the sender ever acknowledged.
    #[n(18)]
    Highest {
        /// The party whose chain it is.
        #[n(0)]
        chain: PartyId,
        /// The slot after it; 0 when there is none.
        #[n(1)]
        next_seq: u64,
        /// The entry, when the sender still has it.
        #[n(2)]
        entry: Option<WireEntry>,
    },
    /// A provider's claim against a silent consumer.
    #[n(19)]
    Claim(#[n(0)] WireClaim),
    /// Two entries that one author signed for one slot.
    #[n(20)]
    DoubleSign {
        /// The one with the lower id.
        #[n(0)]
        first: WireEntry,
        /// The other.
        #[n(1)]
        second: WireEntry,
    },
    /// Signed announcements; newest wins.
    #[n(21)]
    Announce(
        #[cbor(
            n(0),
            decode_with = "bounded::list::<_, WireDocument, {ANNOUNCED_PER_FRAME_MAX as u64}>"
        )]
        Vec<WireDocument>,
    ),
    /// Asks for peers.
    #[n(22)]
    WantPeers,
    /// Peers the sender knows to be good.
    #[n(23)]
    Peers(
        #[cbor(
            n(0),
            decode_with = "bounded::list::<_, PeerAddress, {PEERS_PER_FRAME_MAX as u64}>"
        )]
        Vec<PeerAddress>,
    ),
    /// A newcomer without a line asks whether the receiver would sponsor it.
    #[n(24)]
    WantSponsor,
    /// The sender would, once this work is shown to it.
    #[n(25)]
    SponsorTask {
        /// What the work is bound to; good for some minutes.
        #[n(0)]
        challenge: Digest,
        /// How much work it takes, as in [`crate::Work`].
        #[n(1)]
        bits: u8,
    },
    /// The work is done.
    #[n(26)]
    SponsorProof {
        /// The challenge of the task.
        #[n(0)]
        challenge: Digest,
        /// The number that was found.
        #[n(1)]
        nonce: u64,
    },
    /// The sender does not sponsor the newcomer.
    #[n(27)]
    SponsorRefused {
        /// Which rule refuses it, for programs.
        #[cbor(n(0), decode_with = "bounded::text::<_, CODE_BYTES_MAX>")]
        code: String,
        /// Why, for people.
        #[cbor(n(1), decode_with = "bounded::text::<_, REASON_BYTES_MAX>")]
        reason: String,
    },
    /// Where the sender stands on some chains, of those it keeps: asks for what goes beyond.
    #[n(28)]
    Kept {
        /// The number that the answer has.
        #[n(0)]
        number: u32,
        /// Heads in the order of their chains' ids; one of a chain that the sender does not hold
        /// yet has the sequence number 0.
        #[cbor(n(1), decode_with = "bounded::list::<_, Head, {KEPT_PER_FRAME_MAX as u64}>")]
        heads: Vec<Head>,
    },
    /// The answer to [`Message::Kept`].
    #[n(29)]
    Beyond {
        /// The number of the question.
        #[n(0)]
        number: u32,
        /// Those of the chains asked for that stand otherwise here, in the same order: none when
        /// the asker is level.
        #[cbor(n(1), decode_with = "bounded::list::<_, Head, {KEPT_PER_FRAME_MAX as u64}>")]
        heads: Vec<Head>,
    },
    /// Asks on which chains entries stand.
    #[n(30)]
    WantPlaces {
        /// The entries.
        #[cbor(n(0), decode_with = "bounded::list::<_, DocumentId, {PLACES_ASKED_MAX as u64}>")]
        entries: Vec<DocumentId>,
    },
    /// Asks for what concerns the sender on other chains: payments it has not collected, and
    /// locks of its sponsors.
    #[n(31)]
    WantMine {
        /// The last entry of the page before.
        #[n(0)]
        after: Option<DocumentId>,
    },
    /// Where entries stand.
    #[n(32)]
    Places {
        /// The entries that are final at the sender.
        #[cbor(n(0), decode_with = "bounded::list::<_, WirePlace, {PLACES_MAX as u64}>")]
        places: Vec<WirePlace>,
        /// Whether there are more of what was asked for.
        #[n(1)]
        more: bool,
    },
    /// What the sender saw providers do in its own jobs; said to those it has settled trade with.
    #[n(33)]
    Opinions(
        #[cbor(
            n(0),
            decode_with = "bounded::list::<_, ProviderOpinion, {OPINIONS_PER_FRAME_MAX as u64}>"
        )]
        Vec<ProviderOpinion>,
    ),
}

/// What a node saw a provider do. Not signed: it counts only from the mouth of whoever saw it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ProviderOpinion {
    /// The provider.
    #[n(0)]
    pub provider: PartyId,
    /// Failures among its jobs, in ppm; more than 1 000 000 counts as that.
    #[n(1)]
    pub failure_ppm: u32,
    /// How fast it was, once for each model.
    #[cbor(n(2), decode_with = "bounded::list::<_, MeasuredSpeed, {OFFERS_MAX as u64}>")]
    pub speeds: Vec<MeasuredSpeed>,
}

/// How fast a provider was with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MeasuredSpeed {
    /// The model.
    #[n(0)]
    pub model: ModelDigest,
    /// Milliseconds from sending the order to the first token.
    #[n(1)]
    pub first_token_ms: u32,
    /// Tokens per 1 000 s that one job got.
    #[n(2)]
    pub tokens_per_second_milli: u32,
}

impl Frame for Message {
    fn bytes_max(number: u64) -> Option<usize> {
        match number {
            1 | 6 | 9 | 12 | 14 | 16 | 21 | 23 => Some(CONTROL_FRAME_BYTES_MAX),
            0..=33 => Some(SMALL_FRAME),
            _ => None,
        }
    }
}

// A small frame has room for two entries, and for an entry with a certificate.
const _: () = assert!(SMALL_FRAME > 3 * wire::CERTIFICATE_BYTES_MAX);
