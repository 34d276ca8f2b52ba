//! Lattices of some chains: a node that is no witness may keep only those it has to do with.
//!
//! What a chain's entry names may then be on a chain that is not held. A certificate stands for
//! everything before its entry and everything it names (MONEY §4, 11), so a certified entry does
//! not wait for that; what is held of it is judged as ever. An entry without a certificate is
//! judged as everywhere: it waits, and a node that cannot check does not sign and does not serve.
//!
//! Shared state is still a pure function of the final entries held. What was collected before its
//! payment was held is remembered as *unseen*, and forgotten as soon as the payment is here; so are
//! sponsors' locks that others speak of.

use std::collections::BTreeSet;

use tirami_core::{DocumentId, PartyId, Trm};

use super::Lattice;
use super::kinds::{Change, Effect, Ending, Extra, Payout};
use super::receive::Proof;
use super::shared::Shared;
use super::state::{Dependency, FinalEntry, Slot};

/// Which chains a node keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    /// All chains of the mesh.
    #[default]
    All,
    /// Its own, those of the offices, and those of parties it has to do with. A witness, a clerk
    /// and a registrar keep all the same.
    Own,
}

/// An entry and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The entry.
    pub entry: DocumentId,
    /// Where it stands.
    pub slot: Slot,
}

impl Lattice {
    /// Sets which chains the node keeps. Changes nothing of what is held.
    pub fn set_keep(&mut self, keep: Keep) {
        self.keeps = keep;
    }

    /// Which chains the node keeps under the charter in force: witnesses, the clerk and the
    /// registrar keep all.
    pub fn keeps(&self) -> Keep {
        let charter = self.charter();
        let has_office = self.own.is_some_and(|own| {
            let is_witness = charter.witnesses.iter().any(|key| key.party() == own);
            is_witness || charter.clerk == own || charter.registrar == own
        });
        if has_office { Keep::All } else { self.keeps }
    }

    /// Whether chains are left out, so that a certificate has to stand for what is not here.
    pub(super) fn leaves_out(&self) -> bool {
        self.keeps() == Keep::Own
    }

    /// The chains that every node keeps: those of all clerks and registrars so far.
    pub fn offices(&self) -> BTreeSet<PartyId> {
        let charters = self.charters.values().map(|record| &record.charter);
        charters.flat_map(|charter| [charter.clerk, charter.registrar]).collect()
    }

    /// Where a final entry stands; of a part of a lock, the checkpoint that ended the lock.
    pub fn place_of(&self, entry: DocumentId) -> Option<Place> {
        let source = self.shared.items.get(&entry).map_or(entry, |item| item.source);
        Some(Place { entry, slot: self.final_entry(source)?.slot })
    }

    /// How many chains are held.
    pub fn chain_count(&self) -> usize {
        self.shared.chains.len()
    }

    /// What concerns `party` on other chains, in the order of the entries' ids after `after`:
    /// payments to it that it has not collected, and locks of sponsors for it.
    pub fn places_for(
        &self,
        party: PartyId,
        after: Option<DocumentId>,
    ) -> impl Iterator<Item = Place> {
        use core::ops::Bound::{Excluded, Included, Unbounded};
        let first = (party, after.unwrap_or(DocumentId::from_bytes([0; 32])));
        let first = if after.is_some() { Excluded(first) } else { Included(first) };
        let paid = self.shared.payable.range((first, Unbounded)).map(|((of, id), _)| (*of, *id));
        let granted = self.shared.granted.range((first, Unbounded)).copied();
        let (mut paid, mut granted) = (paid.peekable(), granted.peekable());
        let next = move || match (paid.peek().copied(), granted.peek().copied()) {
            (Some(left), Some(right)) if left == right => {
                paid.next();
                granted.next()
            }
            (Some(left), right) if right.is_none_or(|right| left < right) => paid.next(),
            _ => granted.next(),
        };
        let mine = core::iter::from_fn(next).take_while(move |(of, _)| *of == party);
        mine.filter_map(|(_, id)| self.place_of(id))
    }

    /// The sponsor's lock that `party` began with, when the lock is not held here.
    pub fn unseen_lock(&self, party: PartyId) -> Option<DocumentId> {
        let lock = self.chain(party)?.state.sponsor?;
        self.shared.unseen_locks.contains(&lock).then_some(lock)
    }

    /// The proof of an entry that a parked, certified entry after it stands for, where one is
    /// taken for what is not held.
    pub(super) fn covered(&self, id: DocumentId) -> Option<Proof> {
        if self.leaves_out() { self.proof_after(id) } else { None }
    }

    /// The proof of the next certified entry after `id` that is parked because `id` is not known.
    pub(super) fn proof_after(&self, id: DocumentId) -> Option<Proof> {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            let dependency = Dependency::Known(id);
            let waiting = self.parking.waiting.range((dependency, 0)..=(dependency, u64::MAX));
            for parked in waiting.filter_map(|(_, number)| self.parking.entries.get(number)) {
                let Some(certificate) = parked.certificate.as_ref() else {
                    open.push(parked.id);
                    continue;
                };
                let version = certificate.charter_version();
                let record = version.and_then(|version| self.charters.get(&version));
                // It was checked when it was parked.
                if let Some(record) = record.filter(|_| self.is_proven(parked)) {
                    let witnesses = certificate.acknowledgements.iter().map(|ack| ack.witness);
                    let bits = witnesses.filter_map(|key| record.charter.witness_bit(&key));
                    let version = record.charter.version;
                    return Some(Proof { version, signers: bits.sum(), certificate: None });
                }
            }
        }
        None
    }

    /// Whether `item`, which is not held here, was collected on `chain` at or before `prev`.
    pub(super) fn was_collected_unseen(
        &self,
        item: DocumentId,
        chain: PartyId,
        prev: Option<DocumentId>,
    ) -> bool {
        self.shared.unseen.get(&item) == Some(&chain)
            && self.collected_in_counted_past(item, chain, prev)
    }

    /// How a welcome line ended whose lock is not held here.
    pub(super) fn end_of_unseen(&self, lock: DocumentId) -> Option<Ending> {
        let checkpoints = self.shared.checkpoints.keys();
        let mut listed =
            checkpoints.filter_map(|(_, id)| self.final_entry(*id)?.effect.decision(lock));
        listed.find_map(|decision| decision.end)
    }
}

impl Shared {
    /// The balance of a final entry's chain before it.
    pub(super) fn balance_before(&self, record: &FinalEntry) -> i128 {
        let before = record.prev.and_then(|prev| self.finals.get(&prev));
        before.map_or(0, |before| i128::from(before.balance))
    }

    /// `item` pays: what was collected before it was held is unseen no longer.
    pub(super) fn pays(&mut self, item: DocumentId, payout: Payout, counts: bool) {
        let Payout { payee, amount } = payout;
        if self.unseen.get(&item) == Some(&payee) {
            self.unseen.remove(&item);
            self.totals.outside -= amount.signed();
            self.totals.loss += if counts { 0 } else { amount.signed() };
            return;
        }
        self.put_payable(payee, item, amount);
        self.totals.transit += if counts { amount.signed() } else { 0 };
    }

    /// A counted entry takes its items out of transit, which brought its chain `gained`.
    pub(super) fn collect(&mut self, chain: PartyId, effect: &Effect, gained: i128) {
        let (mut seen, mut some_unseen) = (0, false);
        for item in &effect.collected {
            if !self.is_final(item) {
                self.unseen.insert(*item, chain);
                some_unseen = true;
                continue;
            }
            let amount = self.take_payable(chain, *item);
            seen += amount.signed();
            if self.item_counts(*item) {
                self.totals.transit -= amount.signed();
            } else {
                self.totals.loss += amount.signed();
            }
        }
        if some_unseen {
            self.totals.outside += gained - seen;
        }
    }

    /// Undoes [`Shared::collect`].
    pub(super) fn give_back(&mut self, chain: PartyId, effect: &Effect, gained: i128) {
        let (mut seen, mut some_unseen) = (0, false);
        for item in &effect.collected {
            if !self.is_final(item) {
                self.unseen.remove(item);
                some_unseen = true;
                continue;
            }
            let amount = self.payout(*item).map_or(Trm::ZERO, |payout| payout.amount);
            seen += amount.signed();
            self.put_payable(chain, *item, amount);
            if self.item_counts(*item) {
                self.totals.transit += amount.signed();
            } else {
                self.totals.loss -= amount.signed();
            }
        }
        if some_unseen {
            self.totals.outside -= gained - seen;
        }
    }

    /// A lock is held now that final entries spoke of before: what they say of it is taken in.
    pub(super) fn lock_seen(&mut self, lock: DocumentId, newcomer: PartyId, amount: Trm) {
        self.prove(lock, newcomer, amount);
        let (first, last) =
            (Slot { chain: newcomer, seq: 0 }, Slot { chain: newcomer, seq: u64::MAX });
        let settle = self.slots.range(first..=last).find_map(|(slot, id)| {
            let change = self.finals.get(id)?.effect.change;
            (change == Change::Settled { lock }).then_some((slot.seq, *id))
        });
        self.change_lock(lock, |lock| lock.settle = settle);
        let counted = self.checkpoints.keys().map(|(_, id)| (*id, true));
        let uncounted = self.uncounted.keys().map(|id| (*id, false));
        let listed: Vec<_> = counted
            .chain(uncounted)
            .filter_map(|(id, counts)| {
                let effect = &self.finals.get(&id)?.effect;
                let Change::Checkpoint { time, .. } = effect.change else { return None };
                Some((id, time, effect.decision(lock)?, counts))
            })
            .collect();
        for (id, time, decision, counts) in listed {
            self.list(id, time, &decision, counts);
        }
    }

    /// The chain of `newcomer` was opened with `lock`: its welcome line is known now.
    fn prove(&mut self, lock: DocumentId, newcomer: PartyId, amount: Trm) {
        if let Some(chain) = self.chains.get_mut(&newcomer) {
            chain.state.prove(lock, amount);
        }
        let first = self.slots.get(&Slot { chain: newcomer, seq: 0 }).copied();
        let mut opens: Vec<DocumentId> = first.into_iter().collect();
        for (id, state) in &mut self.uncounted {
            if let Some(record) = self.finals.get(id).filter(|record| record.slot.chain == newcomer)
            {
                state.prove(lock, amount);
                opens.extend((record.slot.seq == 0).then_some(*id));
            }
        }
        for open in opens {
            let record = self.finals.get_mut(&open);
            if let Some(record) = record.filter(|r| r.effect.lent() == Some((lock, Trm::ZERO))) {
                record.effect.extra = Some(Box::new(Extra::Lent { lock, amount }));
            }
        }
    }
}
