//! Shared state: a pure function of the set of final entries.
//!
//! An entry that extends its chain counts at once. A second final entry in one slot freezes the
//! chain: what counted at and above that slot is taken back from the sums, but stays known, so
//! that payees may still collect it. What they collect of it is the mesh's `loss`.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, Timestamp, Trm};

use super::entry::Entry;
use super::kinds::{Change, Effect, Payout};
use super::locks::{Item, Lock};
use super::state::{Chain, ChainState, Contradiction, FinalEntry, Kept, Slot, Totals, wide};
use super::trail::Aging;

/// Everything that every node of the mesh agrees on once it knows the same final entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Shared {
    #[n(0)]
    pub(super) chains: BTreeMap<PartyId, Kept<Chain>>,
    /// The final entries, counted or not, but for those that only a step stands for.
    #[n(1)]
    pub(super) finals: BTreeMap<DocumentId, Kept<FinalEntry>>,
    /// The entries that count and have no step, by place.
    #[n(2)]
    pub(super) slots: BTreeMap<Slot, DocumentId>,
    /// The final entries of frozen chains that do not count, with the chain's state after them.
    #[n(3)]
    pub(super) uncounted: BTreeMap<DocumentId, ChainState>,
    /// Items that uncounted entries collect.
    #[n(4)]
    pub(super) claims: BTreeMap<DocumentId, BTreeSet<DocumentId>>,
    /// Final payments, counted or not, that no counted entry collected.
    #[n(5)]
    pub(super) payable: BTreeMap<(PartyId, DocumentId), Trm>,
    /// The sum of the above for each payee.
    #[n(6)]
    pub(super) payable_sums: BTreeMap<PartyId, Wide>,
    /// The checkpoints that count.
    #[n(7)]
    pub(super) checkpoints: BTreeMap<(u64, DocumentId), Timestamp>,
    #[n(8)]
    pub(super) totals: Totals,
    /// What is known of every `sponsor` entry.
    #[cbor(n(9), default)]
    pub(super) locks: BTreeMap<DocumentId, Lock>,
    /// Those that count and that no checkpoint ended.
    #[cbor(n(10), default)]
    pub(super) active: BTreeSet<DocumentId>,
    /// Parts of locks that checkpoints put in transit.
    #[cbor(n(11), default)]
    pub(super) items: BTreeMap<DocumentId, Item>,
    /// Final enrolments and `sponsor` entries, by the party they are for.
    #[cbor(n(12), default)]
    pub(super) granted: BTreeSet<(PartyId, DocumentId)>,
    /// Final `sponsor` entries, by their chain.
    #[cbor(n(13), default)]
    pub(super) sponsors: BTreeSet<(PartyId, DocumentId)>,
    /// Items that counted entries collect and that are not held here, with the collector.
    #[cbor(n(14), default, skip_if = "BTreeMap::is_empty")]
    pub(super) unseen: BTreeMap<DocumentId, PartyId>,
    /// Locks that final entries speak of and that are not held here.
    #[cbor(n(15), default, skip_if = "BTreeSet::is_empty")]
    pub(super) unseen_locks: BTreeSet<DocumentId>,
    #[cbor(n(16), default, skip_if = "Aging::is_empty")]
    pub(super) aging: Aging,
}

/// A sum of 128 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub(super) struct Wide(#[cbor(n(0), with = "wide")] pub(super) i128);

/// An entry on its way into shared state.
pub(super) struct Arrival<'a> {
    pub(super) id: DocumentId,
    pub(super) entry: &'a Entry,
    pub(super) effect: &'a Effect,
    pub(super) after: ChainState,
    pub(super) charter_version: u32,
    pub(super) signers: u32,
}

impl Shared {
    /// Adds a final entry. O(log n), but for the entry that freezes a chain, which costs the
    /// length of that chain since its last step.
    pub(super) fn add(&mut self, arrival: Arrival<'_>) {
        let slot = arrival.entry.slot();
        let chain =
            self.chains.entry(slot.chain).or_insert_with(|| Kept::new(Chain::new(slot.chain)));
        let extends = chain.frozen.is_none()
            && chain.state.next == slot.seq
            && chain.state.head == arrival.entry.prev;
        self.finals.insert(
            arrival.id,
            Kept::new(FinalEntry {
                slot,
                prev: arrival.entry.prev,
                balance: arrival.entry.balance,
                burned_so_far: arrival.after.burned,
                locked: arrival.after.locked,
                effect: arrival.effect.clone(),
                charter_version: arrival.charter_version,
                signers: arrival.signers,
            }),
        );
        self.keep_grant(slot.chain, &arrival);
        let id = arrival.id;
        if extends {
            self.extend(arrival)
        } else {
            self.branch(arrival)
        }
        self.keep_recent(id);
    }

    /// The entry counts.
    fn extend(&mut self, arrival: Arrival<'_>) {
        let Arrival { id, entry, effect, after, .. } = arrival;
        let slot = entry.slot();
        let before = self.chains.get(&slot.chain).map_or(0, |chain| chain.state.balance);
        self.collect(slot.chain, effect, i128::from(after.balance) - i128::from(before));
        if let Some(payout) = effect.payout {
            self.pays(id, payout, true);
        }
        if let Change::Checkpoint { number, time, .. } = effect.change {
            self.checkpoints.insert((number, id), time);
        }
        self.totals.burned += effect.burned.signed();
        self.put_locks(id, slot, effect, true);
        if let Some(chain) = self.chains.get_mut(&slot.chain) {
            self.totals.free += i128::from(after.balance) - i128::from(chain.state.balance);
            if let Change::Key { key } = effect.change {
                chain.keys.insert(after.next, key);
            }
            chain.state = after;
        }
        self.slots.insert(slot, id);
    }

    /// The entry does not count: its slot or one before it has two final entries.
    fn branch(&mut self, arrival: Arrival<'_>) {
        let Arrival { id, entry, effect, after, .. } = arrival;
        let slot = entry.slot();
        if let Some(known) = self.slots.get(&slot).copied() {
            self.freeze(slot, known);
        }
        if let Some(payout) = effect.payout {
            self.pays(id, payout, false);
        }
        self.claim(id, effect);
        self.put_locks(id, slot, effect, false);
        self.uncounted.insert(id, after);
        let frozen = self.chains.get_mut(&slot.chain).and_then(|chain| chain.frozen.as_mut());
        if let Some(frozen) = frozen
            && frozen.seq == slot.seq
        {
            frozen.entries.insert(id);
        }
    }

    /// Takes everything at and above `slot` out of the sums.
    fn freeze(&mut self, slot: Slot, known: DocumentId) {
        let states = self.states(slot.chain);
        let end = Slot { chain: slot.chain, seq: u64::MAX };
        let above: Vec<(Slot, DocumentId)> =
            self.slots.range(slot..=end).map(|(slot, id)| (*slot, *id)).collect();
        for (above, id) in above.into_iter().rev() {
            self.slots.remove(&above);
            if let Some(record) = self.finals.get(&id) {
                let effect = record.effect.clone();
                let gained = i128::from(record.balance) - self.balance_before(record);
                self.give_back(above.chain, &effect, gained);
                self.take_back(id, &effect);
            }
        }
        let before = slot.seq.checked_sub(1).and_then(|seq| states.get(&seq).cloned());
        let before = before.unwrap_or_else(|| ChainState::before_first(slot.chain));
        let uncounted = states.into_iter().filter(|(seq, _)| *seq >= slot.seq);
        self.uncounted.extend(uncounted.filter_map(|(_, state)| Some((state.head?, state))));
        if let Some(chain) = self.chains.get_mut(&slot.chain) {
            self.totals.free += i128::from(before.balance) - i128::from(chain.state.balance);
            chain.keys.split_off(&slot.seq.saturating_add(1));
            chain.state = before;
            chain.frozen = Some(Contradiction { seq: slot.seq, entries: BTreeSet::from([known]) });
        }
    }

    /// Undoes in the sums what a counted entry did.
    fn take_back(&mut self, id: DocumentId, effect: &Effect) {
        self.claim(id, effect);
        if let Some(payout) = effect.payout {
            if self.payable.contains_key(&(payout.payee, id)) {
                self.totals.transit -= payout.amount.signed();
            } else {
                self.totals.loss += payout.amount.signed();
            }
        }
        self.take_back_locks(id, effect);
        if let Change::Checkpoint { number, .. } = effect.change {
            self.checkpoints.remove(&(number, id));
        }
        self.totals.burned -= effect.burned.signed();
    }

    /// The states of `chain` after its last step and after each counted entry since, by sequence
    /// number.
    fn states(&self, chain: PartyId) -> BTreeMap<u64, ChainState> {
        let trail = self.chains.get(&chain).and_then(|known| known.trail.state()).cloned();
        let mut states: BTreeMap<u64, ChainState> =
            trail.iter().map(|state| (state.next.saturating_sub(1), state.clone())).collect();
        let mut state = trail.unwrap_or_else(|| ChainState::before_first(chain));
        let (first, last) = (Slot { chain, seq: 0 }, Slot { chain, seq: u64::MAX });
        states.extend(self.slots.range(first..=last).filter_map(|(slot, id)| {
            let record = self.finals.get(id)?;
            state = state.after(*id, record.balance, &record.effect);
            Some((slot.seq, state.clone()))
        }));
        states
    }

    /// The state of a chain after a counted entry that is not its last, unless a step with others
    /// after it stands for it: needed only for a certified rival.
    pub(super) fn state_after(&self, slot: Slot) -> Option<ChainState> {
        self.states(slot.chain).remove(&slot.seq)
    }

    /// Whether the entry that pays `item` counts.
    pub(super) fn item_counts(&self, item: DocumentId) -> bool {
        let source = self.items.get(&item).map_or(item, |item| item.source);
        self.finals.get(&source).is_some_and(|record| self.counts(record.slot))
    }

    /// Whom `item` pays and how much.
    pub(super) fn payout(&self, item: DocumentId) -> Option<Payout> {
        let part = self.items.get(&item).map(|item| item.payout);
        part.or_else(|| self.finals.get(&item)?.effect.payout)
    }

    /// Whether `item` is a final entry or a part of a lock that a final checkpoint ended.
    pub(super) fn is_final(&self, item: &DocumentId) -> bool {
        self.finals.contains_key(item) || self.items.contains_key(item)
    }

    fn keep_grant(&mut self, chain: PartyId, arrival: &Arrival<'_>) {
        match arrival.effect.change {
            Change::Enrolled { party, .. } => {
                self.granted.insert((party, arrival.id));
            }
            Change::Opened { .. } => {
                let lent = arrival.effect.lent().filter(|(_, amount)| amount.is_zero());
                self.unseen_locks.extend(lent.map(|(lock, _)| lock));
            }
            Change::Sponsored { newcomer, .. } => {
                self.granted.insert((newcomer, arrival.id));
                self.sponsors.insert((chain, arrival.id));
            }
            _ => {}
        }
    }

    /// Whether a final entry in `slot` counts.
    pub(super) fn counts(&self, slot: Slot) -> bool {
        self.chains.get(&slot.chain).is_none_or(|chain| chain.counts(slot.seq))
    }

    fn claim(&mut self, id: DocumentId, effect: &Effect) {
        for item in &effect.collected {
            self.claims.entry(*item).or_default().insert(id);
        }
    }

    pub(super) fn put_payable(&mut self, payee: PartyId, item: DocumentId, amount: Trm) {
        self.payable.insert((payee, item), amount);
        self.payable_sums.entry(payee).or_default().0 += amount.signed();
    }

    pub(super) fn take_payable(&mut self, payee: PartyId, item: DocumentId) -> Trm {
        let amount = self.payable.remove(&(payee, item)).unwrap_or(Trm::ZERO);
        if let Some(sum) = self.payable_sums.get_mut(&payee) {
            sum.0 -= amount.signed();
            if sum.0 == 0 {
                self.payable_sums.remove(&payee);
            }
        }
        amount
    }
}
