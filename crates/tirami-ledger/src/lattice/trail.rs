//! Trails: how old final entries are kept. The newest [`RECENT_MAX`] are kept as records. When one
//! that counts grows older, a [`Step`] on its chain's trail takes its place: what a payment or a
//! `collect` did, in 56 bytes and 8 more for each item collected. The record stays beside its step
//! while an entry may still name it: grants, locks, checkpoints, payments until they are collected.
//!
//! A step gives its record back. That is needed when a certified rival of an old entry turns up,
//! which takes back what the chain did since: the chain is unrolled first, and stays so.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, Trm};

use super::entry::Entry;
use super::kinds::{Change, Effect, Payout};
use super::shared::Shared;
use super::state::{ChainState, FinalEntry, Kept, Slot};

/// Final entries that are kept as records besides those that may still be named: about 620 bytes
/// each with their indexes.
pub const RECENT_MAX: u32 = 1_024;
/// The number of no party.
const NOBODY: u32 = u32::MAX;

/// What is kept of an old final entry that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    id: DocumentId,
    /// The chain's free balance after it, in µTRM.
    balance: i64,
    /// What the chain burned up to and with it.
    burned: Trm,
    /// Whom it pays, by number; [`NOBODY`] when it pays nobody, or its record is kept.
    payee: u32,
    /// Items collected by all steps of the chain up to and with it.
    collected: u32,
}

/// What seldom changes from one entry of a chain to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
struct Stretch {
    /// Where it begins.
    #[n(0)]
    seq: u64,
    #[n(1)]
    line: Trm,
    #[n(2)]
    locked: Trm,
    #[n(3)]
    charter_version: u32,
    #[n(4)]
    signers: u32,
}

/// The older part of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Trail {
    /// The chain's state after the last step; none without any.
    #[n(0)]
    after: Option<Box<ChainState>>,
    /// The entries from 0 on.
    #[cbor(n(1), with = "packed")]
    steps: Vec<Step>,
    /// The payments that the steps collected: the payer by number, and the place on its chain.
    #[cbor(n(2), with = "packed")]
    items: Vec<(u32, u32)>,
    #[n(3)]
    stretches: Vec<Stretch>,
    /// Whether it was unrolled, and is not to grow again.
    #[n(4)]
    is_unrolled: bool,
}

/// The order in which records grow old, and what steps name parties by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Aging {
    /// The newest final entries, in the order in which they came.
    #[n(0)]
    recent: VecDeque<DocumentId>,
    /// Final entries of which only a step is kept.
    #[n(1)]
    pub(super) without_record: u64,
    #[n(2)]
    parties: Vec<PartyId>,
    /// Follows from `parties`.
    #[n(3)]
    numbers: BTreeMap<PartyId, u32>,
    /// How many records are kept when it is not [`RECENT_MAX`].
    #[n(4)]
    recent_max: Option<u32>,
}

impl Aging {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) const fn set_recent_max(&mut self, max: u32) {
        self.recent_max = Some(max);
    }

    fn number(&mut self, party: PartyId) -> u32 {
        let next = u32::try_from(self.parties.len()).unwrap_or(NOBODY);
        *self.numbers.entry(party).or_insert_with(|| {
            self.parties.push(party);
            next
        })
    }

    fn party(&self, number: u32) -> Option<PartyId> {
        self.parties.get(number as usize).copied()
    }
}

impl Trail {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && !self.is_unrolled
    }

    /// The sequence number after the last step.
    pub(super) const fn next(&self) -> u64 {
        self.steps.len() as u64
    }

    /// The chain's state after the last step.
    pub(super) fn state(&self) -> Option<&ChainState> {
        self.after.as_deref()
    }

    pub(super) fn state_mut(&mut self) -> Option<&mut ChainState> {
        self.after.as_deref_mut()
    }

    fn step(&self, seq: u64) -> Option<&Step> {
        self.steps.get(usize::try_from(seq).ok()?)
    }

    fn stretch(&self, seq: u64) -> Option<&Stretch> {
        let after = self.stretches.partition_point(|stretch| stretch.seq <= seq);
        self.stretches.get(after.checked_sub(1)?)
    }

    fn push(&mut self, step: Step, items: &[(u32, u32)], after: ChainState, by: (u32, u32)) {
        let (charter_version, signers) = by;
        let (seq, line, locked) = (self.next(), after.line, after.locked);
        let stretch = Stretch { seq, line, locked, charter_version, signers };
        let same = |last: &Stretch| Stretch { seq: last.seq, ..stretch } == *last;
        if !self.stretches.last().is_some_and(same) {
            self.stretches.push(stretch);
        }
        append(&mut self.items, items);
        append(&mut self.steps, &[step]);
        self.after = Some(Box::new(after));
    }
}

/// Appends with an eighth of room to spare: doubling would keep as much memory again for nothing.
fn append<T: Copy>(to: &mut Vec<T>, more: &[T]) {
    if to.capacity() - to.len() < more.len() {
        to.reserve_exact((to.len() / 8).max(more.len()).max(16));
    }
    to.extend_from_slice(more);
}

/// What a cut says of a final entry.
pub(super) struct Standing {
    pub(super) balance: i64,
    pub(super) burned: Trm,
    pub(super) locked: Trm,
}

impl Shared {
    /// The entry that counts at a place.
    pub(super) fn counted_at(&self, slot: Slot) -> Option<DocumentId> {
        let step = self.chains.get(&slot.chain).and_then(|chain| chain.trail.step(slot.seq));
        step.map(|step| step.id).or_else(|| self.slots.get(&slot).copied())
    }

    /// Whether the entry `id`, whose place is `slot`, is final.
    pub(super) fn is_final_at(&self, id: DocumentId, slot: Slot) -> bool {
        self.finals.contains_key(&id) || self.counted_at(slot) == Some(id)
    }

    /// Whether what `entry` follows is final, or it is the first of its chain.
    pub(super) fn follows_final(&self, entry: &Entry) -> bool {
        let before = entry.seq.checked_sub(1).map(|seq| Slot { seq, ..entry.slot() });
        before.zip(entry.prev).is_none_or(|(slot, prev)| self.is_final_at(prev, slot))
    }

    /// Whether a step stands for the counted entry in `slot`.
    pub(super) fn is_aged(&self, slot: Slot) -> bool {
        self.chains.get(&slot.chain).is_some_and(|chain| slot.seq < chain.trail.next())
    }

    /// The places and ids of all entries of `chain` that count, in their order.
    pub(super) fn counted(&self, chain: PartyId) -> impl Iterator<Item = (Slot, DocumentId)> {
        let steps = self.chains.get(&chain).map_or(&[][..], |known| &known.trail.steps);
        let steps = (0..).zip(steps).map(move |(seq, step)| (Slot { chain, seq }, step.id));
        let range = Slot { chain, seq: 0 }..=Slot { chain, seq: u64::MAX };
        steps.chain(self.slots.range(range).map(|(slot, id)| (*slot, *id)))
    }

    /// The record of the final entry `id` in `slot`.
    pub(super) fn record(&self, id: DocumentId, slot: Slot) -> Option<Cow<'_, FinalEntry>> {
        if let Some(record) = self.finals.get(&id) {
            return Some(Cow::Borrowed(&**record));
        }
        let trail = &self.chains.get(&slot.chain)?.trail;
        let step = trail.step(slot.seq).filter(|step| step.id == id)?;
        let stretch = trail.stretch(slot.seq)?;
        let before = slot.seq.checked_sub(1).and_then(|seq| trail.step(seq));
        let (balance, burned, first) =
            before.map_or((0, Trm::ZERO, 0), |step| (step.balance, step.burned, step.collected));
        let burned = step.burned.saturating_sub(burned);
        let payout = self.aging.party(step.payee).map(|payee| {
            let paid = i128::from(balance) - i128::from(step.balance) - burned.signed();
            Payout { payee, amount: Trm::from_micro(u64::try_from(paid).unwrap_or_default()) }
        });
        let items = trail.items.get(first as usize..step.collected as usize).unwrap_or_default();
        let collected = items.iter().filter_map(|(payer, seq)| {
            let slot = Slot { chain: self.aging.party(*payer)?, seq: u64::from(*seq) };
            self.counted_at(slot)
        });
        let collected = collected.collect();
        let effect = Effect { burned, payout, collected, ..Effect::default() };
        Some(Cow::Owned(FinalEntry {
            slot,
            prev: before.map(|step| step.id),
            balance: step.balance,
            burned_so_far: step.burned,
            effect,
            charter_version: stretch.charter_version,
            signers: stretch.signers,
            locked: stretch.locked,
        }))
    }

    /// The records of all final entries. O(everything).
    pub(super) fn records(&self) -> impl Iterator<Item = (DocumentId, Cow<'_, FinalEntry>)> {
        let kept = self.finals.iter().map(|(id, record)| (*id, Cow::Borrowed(&**record)));
        let places = self.chains.keys().flat_map(|chain| self.counted(*chain));
        let steps = places.filter(|(_, id)| !self.finals.contains_key(id));
        kept.chain(steps.filter_map(|(slot, id)| Some((id, self.record(id, slot)?))))
    }

    /// What the final entry `id` in `slot` left its chain with.
    pub(super) fn standing(&self, slot: Slot, id: DocumentId) -> Option<Standing> {
        if let Some(record) = self.finals.get(&id) {
            let FinalEntry { balance, burned_so_far: burned, locked, .. } = **record;
            return Some(Standing { balance, burned, locked });
        }
        let trail = &self.chains.get(&slot.chain)?.trail;
        let Step { balance, burned, .. } = *trail.step(slot.seq).filter(|step| step.id == id)?;
        Some(Standing { balance, burned, locked: trail.stretch(slot.seq)?.locked })
    }

    /// The line and the free balance of a chain after its counted entry in `slot`.
    pub(super) fn line_and_balance(&self, slot: Slot) -> Option<(Trm, i64)> {
        let trail = &self.chains.get(&slot.chain)?.trail;
        match trail.step(slot.seq) {
            Some(step) => Some((trail.stretch(slot.seq)?.line, step.balance)),
            None => self.state_after(slot).map(|state| (state.line, state.balance)),
        }
    }

    /// A final entry came: the oldest records grow old.
    pub(super) fn keep_recent(&mut self, id: DocumentId) {
        self.aging.recent.push_back(id);
        let max = self.aging.recent_max.unwrap_or(RECENT_MAX) as usize;
        while self.aging.recent.len() > max {
            if let Some(oldest) = self.aging.recent.pop_front() {
                self.age(oldest);
            }
        }
    }

    /// A step takes the place of a record; not on chains that contradict themselves.
    fn age(&mut self, id: DocumentId) {
        let Some(record) = self.finals.get(&id) else { return };
        let slot = record.slot;
        let Some(trail) = self.chains.get(&slot.chain).map(|chain| &chain.trail) else { return };
        let is_frozen = self.chains.get(&slot.chain).is_some_and(|chain| chain.frozen.is_some());
        if is_frozen || trail.is_unrolled || trail.next() != slot.seq {
            return;
        }
        let first = ChainState::before_first(slot.chain);
        let after = trail.state().unwrap_or(&first).after(id, record.balance, &record.effect);
        let before = trail.steps.last().map_or(0, |step| step.collected);
        let Effect { payout, collected, change, .. } = &record.effect;
        let (payout, by) = (*payout, (record.charter_version, record.signers));
        let payments: Option<Vec<(Slot, DocumentId)>> =
            collected.iter().map(|item| Some((self.aged_payment(*item)?, *item))).collect();
        let payments = payments.filter(|_| *change == Change::None).unwrap_or_default();
        let is_kept = *change != Change::None || payments.len() < collected.len();
        let payee = payout.filter(|_| !is_kept).map_or(NOBODY, |to| self.aging.number(to.payee));
        let items: Vec<(u32, u32)> = payments
            .iter()
            .map(|(slot, _)| (self.aging.number(slot.chain), slot.seq as u32))
            .collect();
        let step = Step {
            id,
            balance: after.balance,
            burned: after.burned,
            payee,
            collected: before + items.len() as u32,
        };
        if let Some(chain) = self.chains.get_mut(&slot.chain) {
            chain.trail.push(step, &items, after, by);
        }
        self.slots.remove(&slot);
        for (_, item) in payments {
            self.forget_record(item);
        }
        if !is_kept && payout.is_none() {
            self.forget_record(id);
        }
    }

    /// Where an item was paid, if a step can give its record back. Where it can be taken back
    /// without unrolling, its place may come to be another's.
    fn aged_payment(&self, item: DocumentId) -> Option<Slot> {
        let record = self.finals.get(&item)?;
        let is_aged = self.is_aged(record.slot) && u32::try_from(record.slot.seq).is_ok();
        (is_aged && record.effect.change == Change::None).then_some(record.slot)
    }

    fn forget_record(&mut self, id: DocumentId) {
        if self.finals.remove(&id).is_some() {
            self.aging.without_record += 1;
        }
    }

    /// Gives all chains their records back, since what one did is taken back from others too.
    /// Those of the others grow old again; `party`'s stay.
    pub(super) fn unroll(&mut self, party: PartyId) {
        let mut restored = Vec::new();
        for (chain, known) in &self.chains {
            let steps = self.counted(*chain).take(known.trail.steps.len());
            restored
                .extend(steps.filter_map(|(slot, id)| {
                    Some((slot, id, self.record(id, slot)?.into_owned()))
                }));
        }
        for (chain, known) in &mut self.chains {
            let is_unrolled = known.trail.is_unrolled || *chain == party;
            known.trail = Trail { is_unrolled, ..Trail::default() };
        }
        for (slot, id, record) in restored.into_iter().rev() {
            self.slots.insert(slot, id);
            if self.finals.insert(id, Kept::new(record)).is_none() {
                self.aging.without_record = self.aging.without_record.saturating_sub(1);
            }
            self.aging.recent.push_front(id);
        }
    }
}

/// Lists as one run of bytes: they are long.
mod packed {
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};
    use tirami_core::{DocumentId, Trm};

    use super::Step;

    /// Something of a fixed number of bytes.
    pub(super) trait Packed: Sized {
        const BYTES: usize;

        fn write(&self, to: &mut Vec<u8>);
        fn read(from: &[u8]) -> Option<Self>;
    }

    impl Packed for (u32, u32) {
        const BYTES: usize = 8;

        fn write(&self, to: &mut Vec<u8>) {
            to.extend_from_slice(&self.0.to_be_bytes());
            to.extend_from_slice(&self.1.to_be_bytes());
        }

        fn read(from: &[u8]) -> Option<Self> {
            let (first, second) = from.split_at_checked(4)?;
            Some((
                u32::from_be_bytes(first.try_into().ok()?),
                u32::from_be_bytes(second.try_into().ok()?),
            ))
        }
    }

    impl Packed for Step {
        const BYTES: usize = 56;

        fn write(&self, to: &mut Vec<u8>) {
            to.extend_from_slice(self.id.as_bytes());
            to.extend_from_slice(&self.balance.to_be_bytes());
            to.extend_from_slice(&self.burned.micro().to_be_bytes());
            (self.payee, self.collected).write(to);
        }

        fn read(from: &[u8]) -> Option<Self> {
            let (id, from) = from.split_at_checked(32)?;
            let (balance, from) = from.split_at_checked(8)?;
            let (burned, from) = from.split_at_checked(8)?;
            let (payee, collected) = Packed::read(from)?;
            Some(Self {
                id: DocumentId::from_bytes(id.try_into().ok()?),
                balance: i64::from_be_bytes(balance.try_into().ok()?),
                burned: Trm::from_micro(u64::from_be_bytes(burned.try_into().ok()?)),
                payee,
                collected,
            })
        }
    }

    pub(super) fn encode<C, T: Packed, W: Write>(
        list: &[T],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let mut bytes = Vec::with_capacity(list.len() * T::BYTES);
        list.iter().for_each(|one| one.write(&mut bytes));
        e.bytes(&bytes)?;
        Ok(())
    }

    pub(super) fn decode<C, T: Packed>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<Vec<T>, DecodeError> {
        let chunks = d.bytes()?.chunks(T::BYTES);
        let list: Option<Vec<T>> = chunks.map(T::read).collect();
        list.ok_or_else(|| DecodeError::message("a list with a part of an item"))
    }
}
