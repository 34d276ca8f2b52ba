//! Signed things as they travel: bytes, signatures and certificates that only the ledger reads.

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, SIGNED_BYTES_MAX, Signature};

use crate::bounded;

/// Bytes of a certificate at most.
pub const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;
/// Final entries in one frame at most. A sender also stops before the frame is full; see
/// [`FinalEntry::wire_bytes`].
pub const FINALS_PER_FRAME_MAX: usize = 1_024;
/// Chains in the cut of a checkpoint at most: the largest mesh one set of witnesses serves.
pub const CUT_SLOTS_MAX: usize = 16_384;
/// Charter versions in one frame at most.
pub const CHARTERS_PER_FRAME_MAX: usize = 32;
/// Approvals of one charter at most.
pub const APPROVALS_MAX: usize = 64;
/// Bytes of one approval at most. It attaches the entries its witness acknowledged; all approvals
/// of a charter fit one frame.
pub const APPROVAL_BYTES_MAX: usize = 960 * 1024;

/// An entry with its author's signature.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireEntry {
    /// The entry's signed bytes, verbatim.
    #[cbor(
        n(0),
        encode_with = "bounded::write_bytes",
        decode_with = "bounded::bytes::<_, SIGNED_BYTES_MAX>"
    )]
    pub bytes: Vec<u8>,
    /// Its author's signature.
    #[n(1)]
    pub signature: Signature,
}

/// An entry that is final, or that a later entry of the same chain makes final.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FinalEntry {
    /// The entry's signed bytes, verbatim.
    #[cbor(
        n(0),
        encode_with = "bounded::write_bytes",
        decode_with = "bounded::bytes::<_, SIGNED_BYTES_MAX>"
    )]
    pub bytes: Vec<u8>,
    /// Its author's signature.
    #[n(1)]
    pub signature: Signature,
    /// The CBOR of the ledger's certificate for this entry. Within a run of one chain only the
    /// last needs one: a certificate stands for everything before it.
    #[cbor(
        n(2),
        encode_with = "bounded::write_some_bytes",
        decode_with = "bounded::some_bytes::<_, CERTIFICATE_BYTES_MAX>",
        nil = "bounded::none",
        is_nil = "bounded::is_none"
    )]
    pub certificate: Option<Vec<u8>>,
}

impl FinalEntry {
    /// Bytes this entry adds to a frame at most.
    pub fn wire_bytes(&self) -> usize {
        // Map, three keys, two long byte string headers and the signature's.
        96 + self.bytes.len() + self.certificate.as_ref().map_or(0, Vec::len)
    }
}

/// A signed document of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireDocument {
    /// The document's signed bytes, verbatim.
    #[cbor(
        n(0),
        encode_with = "bounded::write_bytes",
        decode_with = "bounded::bytes::<_, SIGNED_BYTES_MAX>"
    )]
    pub bytes: Vec<u8>,
    /// The signer's signature; who that has to be is part of what the document says.
    #[n(1)]
    pub signature: Signature,
}

/// One version of the mesh's charter.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireCharter {
    /// The charter's signed bytes, verbatim.
    #[cbor(
        n(0),
        encode_with = "bounded::write_bytes",
        decode_with = "bounded::bytes::<_, SIGNED_BYTES_MAX>"
    )]
    pub bytes: Vec<u8>,
    /// The founder's signature, on version 1 only.
    #[n(1)]
    pub signature: Option<Signature>,
    /// The CBOR of the approvals by the witnesses of the version before.
    #[cbor(
        n(2),
        encode_with = "bounded::write_byte_strings",
        decode_with = "bounded::byte_strings::<_, {APPROVALS_MAX as u64}, APPROVAL_BYTES_MAX>"
    )]
    pub approvals: Vec<Vec<u8>>,
}

impl WireCharter {
    /// Bytes this version adds to a frame at most. A sender stops before the frame is full.
    pub fn wire_bytes(&self) -> usize {
        let approvals: usize = self.approvals.iter().map(|bytes| 5 + bytes.len()).sum();
        96 + self.bytes.len() + approvals
    }
}

/// The last final entry a node holds of one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Head {
    /// The party whose chain it is.
    #[n(0)]
    pub chain: PartyId,
    /// Sequence number of the entry that is not there yet; equals the number of final entries.
    #[n(1)]
    pub next_seq: u64,
    /// Id of the last final entry.
    #[n(2)]
    pub head: DocumentId,
}

/// An entry and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WirePlace {
    /// The entry.
    #[n(0)]
    pub entry: DocumentId,
    /// The party whose chain it is on.
    #[n(1)]
    pub chain: PartyId,
    /// Its place there.
    #[n(2)]
    pub seq: u64,
}

/// A place in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct WireSlot {
    /// The party whose chain it is.
    #[n(0)]
    pub chain: PartyId,
    /// Place in the chain, from 0.
    #[n(1)]
    pub seq: u64,
}

/// What a provider shows to be paid for a job whose consumer keeps silent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireClaim {
    /// The consumer's order.
    #[n(0)]
    pub order: WireDocument,
    /// The highest voucher it signed.
    #[n(1)]
    pub voucher: WireDocument,
}
