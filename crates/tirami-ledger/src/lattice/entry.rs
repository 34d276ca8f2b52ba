//! Entries: the signed steps of a chain, and their bytes (MONEY §3).

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use tirami_core::{
    Document, DocumentId, MeshId, PartyId, PublicKey, SIGNED_BYTES_MAX, Signature, Timestamp,
    signing_message,
};

use super::kinds::EntryKind;
use super::rejection::EntryRejection;
use super::state::Slot;

/// One step of a chain. Its signature is the chain's current key's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The party whose chain this is.
    pub chain: PartyId,
    /// Place in the chain, from 0, without gaps.
    pub seq: u64,
    /// The id of the entry before; none at 0.
    pub prev: Option<DocumentId>,
    /// When the author says it was written. For people: no rule reads it.
    pub time_ms: Timestamp,
    /// What the entry does.
    pub kind: EntryKind,
    /// The chain's free balance after the entry, in µTRM.
    pub balance: i64,
}

impl Entry {
    /// Where the entry stands.
    pub const fn slot(&self) -> Slot {
        Slot { chain: self.chain, seq: self.seq }
    }
}

impl Document for Entry {
    const KIND: &'static str = "entry";
}

impl<C> Encode<C> for Entry {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.map(6 + u64::from(self.prev.is_some()))?;
        e.u8(0)?.encode(self.chain)?.u8(1)?.u64(self.seq)?;
        if let Some(prev) = self.prev {
            e.u8(2)?.encode(prev)?;
        }
        e.u8(3)?.encode(self.time_ms)?.u8(4)?.u8(self.kind.number())?.u8(5)?;
        self.kind.encode_fields(e)?;
        e.u8(6)?.i64(self.balance)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Entry {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        match Frame::decode(d)?.entry()? {
            Ok(entry) => Ok(entry),
            Err(_) => Err(DecodeError::message("an entry of an unknown kind")),
        }
    }
}

/// The fields of an entry before its kind is looked at.
struct Frame<'b> {
    chain: PartyId,
    seq: u64,
    prev: Option<DocumentId>,
    time_ms: Timestamp,
    kind: u32,
    fields: &'b [u8],
    balance: i64,
}

impl<'b> Frame<'b> {
    fn decode(d: &mut Decoder<'b>) -> Result<Self, DecodeError> {
        let missing = || DecodeError::message("a field is missing");
        let count = d.map()?.ok_or_else(|| DecodeError::message("a map without a length"))?;
        let (mut chain, mut seq, mut prev, mut time_ms) = (None, None, None, None);
        let (mut kind, mut fields, mut balance) = (None, None, None);
        let mut above = None;
        for _ in 0..count {
            let key = d.u64()?;
            // Ascending keys: no field can stand twice and be read differently by two readers.
            if above.is_some_and(|above| key <= above) {
                return Err(DecodeError::message("the fields are not in ascending order"));
            }
            above = Some(key);
            match key {
                0 => chain = Some(d.decode()?),
                1 => seq = Some(d.u64()?),
                2 => prev = Some(d.decode()?),
                3 => time_ms = Some(d.decode()?),
                4 => kind = Some(d.u32()?),
                5 => {
                    let start = d.position();
                    d.skip()?;
                    fields = d.input().get(start..d.position());
                }
                6 => balance = Some(d.i64()?),
                _ => d.skip()?,
            }
        }
        Ok(Self {
            chain: chain.ok_or_else(missing)?,
            seq: seq.ok_or_else(missing)?,
            prev,
            time_ms: time_ms.ok_or_else(missing)?,
            kind: kind.ok_or_else(missing)?,
            fields: fields.ok_or_else(missing)?,
            balance: balance.ok_or_else(missing)?,
        })
    }

    /// The entry, or the number of a kind this build does not know.
    fn entry(self) -> Result<Result<Entry, u32>, DecodeError> {
        let Self { chain, seq, prev, time_ms, kind, fields, balance } = self;
        let Some(kind) = EntryKind::decode_fields(kind, fields)? else {
            return Ok(Err(kind));
        };
        Ok(Ok(Entry { chain, seq, prev, time_ms, kind, balance }))
    }
}

/// An entry with the exact bytes that were signed, and its id.
///
/// Its signature was checked before it entered the lattice's state; a value on its own says
/// only that the bytes are an entry and that the id is theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEntry {
    id: DocumentId,
    // Boxed: events and pending entries that carry it stay small.
    entry: Box<Entry>,
    bytes: Vec<u8>,
    signature: Signature,
}

impl SignedEntry {
    /// The id: blake3 of the signed bytes.
    pub const fn id(&self) -> DocumentId {
        self.id
    }

    /// What the bytes say.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The entry's bytes, verbatim.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signature.
    pub const fn signature(&self) -> Signature {
        self.signature
    }

    /// Whether `key` made the signature, for entries of `mesh`.
    pub(super) fn is_signed_by(&self, mesh: MeshId, key: PublicKey) -> bool {
        let message = signing_message(Entry::KIND, mesh, &self.bytes);
        key.verify(&message, &self.signature).is_ok()
    }

    /// Whether the id is that of the bytes.
    pub(super) fn has_its_id(&self, mesh: MeshId) -> bool {
        let message = signing_message(Entry::KIND, mesh, &self.bytes);
        self.id.as_bytes() == blake3::hash(&message).as_bytes()
    }
}

impl<C> Encode<C> for SignedEntry {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.array(3)?.encode(self.id)?.bytes(&self.bytes)?.encode(self.signature)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for SignedEntry {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        if d.array()? != Some(3) {
            return Err(DecodeError::message("a signed entry has three parts"));
        }
        let id = d.decode()?;
        let bytes = d.bytes()?.to_vec();
        let signature = d.decode()?;
        let entry: Entry = tirami_core::decode_body(&bytes)
            .map_err(|_| DecodeError::message("the bytes are not an entry"))?;
        Ok(Self { id, entry: Box::new(entry), bytes, signature })
    }
}

/// The chain that an entry's bytes name, without reading the rest of them: its field stands first.
pub(super) fn chain_of(bytes: &[u8]) -> Option<PartyId> {
    let mut decoder = Decoder::new(bytes);
    decoder.map().ok()?;
    let field = decoder.u64().ok()?;
    if field == 0 { decoder.decode().ok() } else { None }
}

/// An entry just read: decoded once, hashed once, its signature not yet checked.
pub(super) struct Unverified<'b> {
    pub(super) id: DocumentId,
    pub(super) entry: Entry,
    pub(super) message: Vec<u8>,
    bytes: &'b [u8],
    pub(super) signature: Signature,
}

impl<'b> Unverified<'b> {
    /// Reads `bytes`; refuses what is too large, malformed, of an unknown kind or out of place.
    pub(super) fn read(
        mesh: MeshId,
        bytes: &'b [u8],
        signature: Signature,
    ) -> Result<Self, EntryRejection> {
        if bytes.len() > SIGNED_BYTES_MAX {
            return Err(EntryRejection::TooLarge { bytes: bytes.len() });
        }
        let mut decoder = Decoder::new(bytes);
        let frame = Frame::decode(&mut decoder).map_err(|_| EntryRejection::Malformed)?;
        if decoder.position() != bytes.len() {
            return Err(EntryRejection::Malformed);
        }
        let entry = frame
            .entry()
            .map_err(|_| EntryRejection::Malformed)?
            .map_err(|kind| EntryRejection::UnknownKind { kind })?;
        let first = entry.seq == 0;
        let opens = matches!(entry.kind, EntryKind::Open(_));
        if first != entry.prev.is_none() || first != opens || entry.seq == u64::MAX {
            return Err(EntryRejection::OutOfPlace);
        }
        let message = signing_message(Entry::KIND, mesh, bytes);
        let id = DocumentId::from_bytes(*blake3::hash(&message).as_bytes());
        Ok(Self { id, entry, message, bytes, signature })
    }

    /// Keeps the bytes. The caller has checked the signature.
    pub(super) fn into_signed(self) -> SignedEntry {
        SignedEntry {
            id: self.id,
            entry: Box::new(self.entry),
            bytes: self.bytes.to_vec(),
            signature: self.signature,
        }
    }
}
