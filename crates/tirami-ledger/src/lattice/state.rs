//! What the lattice remembers of chains and entries.

use core::ops::{Deref, DerefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use tirami_core::{DocumentId, PartyId, PublicKey, Signature, Trm};

use super::certificate::Certificate;
use super::entry::SignedEntry;
use super::kinds::{Change, Effect};
use super::trail::Trail;

/// A place in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Slot {
    /// The chain.
    #[n(0)]
    pub chain: PartyId,
    /// The sequence number, from 0.
    #[n(1)]
    pub seq: u64,
}

/// The last entry of a chain that a cut covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutHead {
    /// Where it stands.
    pub slot: Slot,
    /// Its id.
    pub id: DocumentId,
    /// The chain's free balance after it, in µTRM.
    pub balance: i64,
    /// What the chain has locked by its own entries.
    pub locked: Trm,
}

/// Where a chain stands after one of its entries.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ChainState {
    /// The sequence number the next entry has.
    #[n(0)]
    pub next: u64,
    /// The last entry; none before the first.
    #[n(1)]
    pub head: Option<DocumentId>,
    /// The free balance in µTRM.
    #[n(2)]
    pub balance: i64,
    /// The key that signs the next entry.
    #[n(3)]
    pub key: PublicKey,
    /// The key that may replace it.
    #[n(4)]
    pub recovery: Option<PublicKey>,
    /// How far below zero the balance may go.
    #[n(5)]
    pub line: Trm,
    /// The sum of the lines this chain enrolled.
    #[n(6)]
    pub enrolled: Trm,
    /// What this chain burned so far.
    #[n(7)]
    pub burned: Trm,
    /// The last checkpoint on this chain.
    #[n(8)]
    pub checkpoint: Option<DocumentId>,
    /// How far below the line the balance may go for jobs; zero when settled.
    #[cbor(n(9), default)]
    pub welcome: Trm,
    /// The sponsor's lock that the chain was opened with.
    #[n(10)]
    pub sponsor: Option<DocumentId>,
    /// What this chain locked and did not free by its own entries.
    #[cbor(n(11), default)]
    pub locked: Trm,
    /// Whether the chain was opened with a sponsor's lock that is not held here: how much it may
    /// owe besides its line is not known.
    #[cbor(n(12), default, skip_if = "is_false")]
    pub unproven: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl ChainState {
    /// The state of `chain` before its first entry.
    pub(super) fn before_first(chain: PartyId) -> Self {
        Self {
            next: 0,
            head: None,
            balance: 0,
            key: chain.into(),
            recovery: None,
            line: Trm::ZERO,
            enrolled: Trm::ZERO,
            burned: Trm::ZERO,
            checkpoint: None,
            welcome: Trm::ZERO,
            sponsor: None,
            locked: Trm::ZERO,
            unproven: false,
        }
    }

    /// The sponsor's lock that the chain was opened with is held now.
    pub(super) fn prove(&mut self, lock: DocumentId, amount: Trm) {
        if self.unproven && self.sponsor == Some(lock) {
            (self.welcome, self.unproven) = (amount, false);
        }
    }

    /// The state after the entry `id`.
    pub(super) fn after(&self, id: DocumentId, balance: i64, effect: &Effect) -> Self {
        let mut after = self.clone();
        after.next = self.next.saturating_add(1);
        after.head = Some(id);
        after.balance = balance;
        after.burned = self.burned.saturating_add(effect.burned);
        match effect.change {
            Change::None | Change::OutOfWelcome { .. } => {}
            Change::Opened { line, recovery } => {
                after.line = line;
                after.recovery = recovery;
                if let Some((lock, amount)) = effect.lent() {
                    after.sponsor = Some(lock);
                    after.welcome = amount;
                    after.unproven = amount.is_zero();
                }
            }
            Change::Settled { .. } => (after.welcome, after.unproven) = (Trm::ZERO, false),
            Change::Sponsored { amount, .. } => after.locked = self.locked.saturating_add(amount),
            Change::Unsponsored { amount, .. } => after.locked = self.locked.saturating_sub(amount),
            Change::Enrolled { line, .. } => after.enrolled = self.enrolled.saturating_add(line),
            Change::Line { line } => after.line = self.line.max(line),
            Change::Key { key } => after.key = key,
            Change::Checkpoint { .. } => after.checkpoint = Some(id),
        }
        after
    }
}

/// A party's chain as far as its entries are final and count.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Chain {
    #[n(0)]
    pub(super) state: ChainState,
    /// Keys that replaced the first one, by the sequence number from which they sign.
    #[n(1)]
    pub(super) keys: BTreeMap<u64, PublicKey>,
    #[n(2)]
    pub(super) frozen: Option<Contradiction>,
    /// Its older part.
    #[cbor(n(3), default, skip_if = "Trail::is_empty")]
    pub(super) trail: Trail,
}

impl Chain {
    pub(super) fn new(chain: PartyId) -> Self {
        let (keys, trail) = (BTreeMap::new(), Trail::default());
        Self { state: ChainState::before_first(chain), keys, frozen: None, trail }
    }

    /// Where the chain stands after its last final entry that counts.
    pub const fn state(&self) -> &ChainState {
        &self.state
    }

    /// The id of the last final entry that counts.
    pub const fn head(&self) -> Option<DocumentId> {
        self.state.head
    }

    /// The sequence number the next entry has; the number of final entries that count.
    pub const fn next_seq(&self) -> u64 {
        self.state.next
    }

    /// The final free balance in µTRM.
    pub const fn balance(&self) -> i64 {
        self.state.balance
    }

    /// The key in force.
    pub const fn key(&self) -> PublicKey {
        self.state.key
    }

    /// How far below zero the balance may go.
    pub const fn line(&self) -> Trm {
        self.state.line
    }

    /// The contradiction that froze the chain, if one did.
    pub const fn frozen(&self) -> Option<&Contradiction> {
        self.frozen.as_ref()
    }

    /// Whether an entry of this chain at `seq` counts, given that it is final.
    pub(super) fn counts(&self, seq: u64) -> bool {
        self.frozen.as_ref().is_none_or(|frozen| seq < frozen.seq)
    }

    /// The key that signs at `seq`, which has been reached.
    pub(super) fn key_at(&self, chain: PartyId, seq: u64) -> PublicKey {
        self.keys.range(..=seq).next_back().map_or(chain.into(), |(_, key)| *key)
    }
}

/// Two or more final entries in one slot: more witnesses were dishonest than the quorum bears.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Contradiction {
    /// The lowest sequence number with two final entries. The chain counts only below it.
    #[n(0)]
    pub seq: u64,
    /// The final entries there.
    #[n(1)]
    pub entries: BTreeSet<DocumentId>,
}

/// What is kept of a final entry, whose bytes are in the store.
///
/// About 350 bytes, plus 32 for each item a `collect` names: of the newest entries, and of those
/// that a later entry may name (a payment until it is collected, a grant for ever).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FinalEntry {
    /// Where it stands.
    #[n(0)]
    pub slot: Slot,
    /// The entry before.
    #[n(1)]
    pub prev: Option<DocumentId>,
    /// The free balance after it, in µTRM.
    #[n(2)]
    pub balance: i64,
    /// What the chain burned up to and with it.
    #[n(3)]
    pub burned_so_far: Trm,
    /// What it does.
    #[n(4)]
    pub effect: Effect,
    /// The charter version of its certificate.
    #[n(5)]
    pub charter_version: u32,
    /// The signers of the certificate known first, by their place in that charter.
    #[n(6)]
    pub signers: u32,
    /// What the chain has locked by its own entries after it.
    #[cbor(n(7), default)]
    pub locked: Trm,
}

/// What all lattices hold once that were cloned with it, until one of them changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept<T>(Arc<T>);

impl<T> Kept<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<C, T: Encode<C>> Encode<C> for Kept<T> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, c: &mut C) -> Result<(), EncodeError<W::Error>> {
        self.0.encode(e, c)
    }
}

impl<'b, C, T: Decode<'b, C>> Decode<'b, C> for Kept<T> {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, DecodeError> {
        T::decode(d, c).map(Self::new)
    }
}

/// A valid entry that is not final.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PendingEntry {
    #[n(0)]
    pub(super) entry: SignedEntry,
    #[n(1)]
    pub(super) effect: Effect,
    #[n(2)]
    pub(super) after: ChainState,
    #[n(3)]
    pub(super) acks: BTreeMap<(u32, PublicKey), Signature>,
    #[n(4)]
    pub(super) certified: Option<Certified>,
    /// Its slot, or one before it on its branch, is final with another entry.
    #[n(5)]
    pub(super) lost: bool,
}

impl PendingEntry {
    /// The entry with its bytes.
    pub const fn entry(&self) -> &SignedEntry {
        &self.entry
    }

    /// What it will do when it is final.
    pub const fn effect(&self) -> &Effect {
        &self.effect
    }

    /// The witnesses whose acknowledgements under `charter_version` are known.
    pub fn acknowledged_by(&self, charter_version: u32) -> impl Iterator<Item = PublicKey> {
        self.acks
            .keys()
            .filter(move |(version, _)| *version == charter_version)
            .map(|(_, witness)| *witness)
    }

    /// Whether another entry is final in its slot or below it.
    pub const fn is_lost(&self) -> bool {
        self.lost
    }
}

/// A certificate that stands for an entry: its own or a later one's.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Certified {
    #[n(0)]
    pub(super) charter_version: u32,
    #[n(1)]
    pub(super) signers: u32,
    #[n(2)]
    pub(super) certificate: Option<Certificate>,
}

/// An entry that rests on something not known here. Its signature is checked again when it is
/// judged.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ParkedEntry {
    /// Its number in the order of parking.
    #[n(0)]
    pub number: u64,
    /// The id its bytes have.
    #[n(1)]
    pub id: DocumentId,
    /// Its bytes, verbatim.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// The signature that came with it.
    #[n(3)]
    pub signature: Signature,
    /// The certificate that came with it.
    #[n(4)]
    pub certificate: Option<Certificate>,
    /// What it waits for.
    #[n(5)]
    pub waits: Dependency,
}

/// What a parked entry waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Dependency {
    /// The entry before it on its chain.
    #[n(0)]
    Known(#[n(0)] DocumentId),
    /// An entry that it names, which must be final.
    #[n(1)]
    Final(#[n(0)] DocumentId),
    /// A version of the charter.
    #[n(2)]
    Charter(#[n(0)] u32),
    /// The records of a chain's old entries.
    #[n(3)]
    Records(#[n(0)] PartyId),
}

/// The owner of a chain signed two entries for one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DoubleSignProof {
    /// The slot.
    #[n(0)]
    pub slot: Slot,
    /// The entry known first. Its bytes are in the store.
    #[n(1)]
    pub known: DocumentId,
    /// The other one. Its bytes are in the event that recorded the proof.
    #[n(2)]
    pub rival: DocumentId,
}

/// Where all TRM of a mesh are, in µTRM.
///
/// `free + locked + transit = minted − burned + loss + outside`, always. Of a node that holds all
/// chains `outside` is zero. One that holds some counts over those: `transit` is what they paid and
/// no chain held here collected, `outside` what they collected of payers whose chains are not held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Totals {
    /// The sum of all free balances; negative balances count against it.
    #[cbor(n(0), with = "wide")]
    pub free: i128,
    /// The sum of all locks.
    #[cbor(n(1), with = "wide")]
    pub locked: i128,
    /// Paid and not collected.
    #[cbor(n(2), with = "wide")]
    pub transit: i128,
    /// Made by checkpoints.
    #[cbor(n(3), with = "wide")]
    pub minted: i128,
    /// Burned as fees.
    #[cbor(n(4), with = "wide")]
    pub burned: i128,
    /// Collected from parts of frozen chains that do not count.
    #[cbor(n(5), with = "wide")]
    pub loss: i128,
    /// Collected on chains held here of payments that are not held.
    #[cbor(n(6), with = "wide", default, skip_if = "is_zero")]
    pub outside: i128,
}

fn is_zero(sum: &i128) -> bool {
    *sum == 0
}

/// Numbers of 128 bits as 16 bytes, which CBOR has no integer for.
pub(super) mod wide {
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(in crate::lattice) fn encode<C, W: Write>(
        value: &i128,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&value.to_be_bytes())?;
        Ok(())
    }

    pub(in crate::lattice) fn decode<C>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<i128, DecodeError> {
        let bytes = d.bytes()?;
        let bytes = bytes.try_into().map_err(|_| DecodeError::message("16 bytes expected"))?;
        Ok(i128::from_be_bytes(bytes))
    }
}
