//! Cuts over chains that contradict themselves: which heads a cut means, and the loss in it.
//!
//! Both are functions of the cut and of final entries below it. A contradiction that becomes known
//! between the clerk's checkpoint and a witness's look at it changes neither.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{Digest, DocumentId, PartyId, Trm};

use super::kinds::{Effect, Payout};
use super::rejection::CutRejection;
use super::state::{CutHead, Slot};
use super::trail::Standing;
use super::{Lattice, merkle};

/// How many combinations of rivals are tried for one cut.
const TRIES_MAX: usize = 64;

impl Lattice {
    /// The heads in `slots` that give the root `cut`. In a slot of a frozen chain any of the
    /// rivals may be meant.
    pub(super) fn heads_of(
        &self,
        slots: impl Iterator<Item = Slot>,
        cut: Digest,
    ) -> Result<Vec<CutHead>, CutRejection> {
        let (mut heads, mut open) = (Vec::new(), Vec::new());
        for slot in slots {
            let mut rivals = match self.final_at(slot) {
                Some(id) => vec![id],
                None => self.uncounted_in(slot),
            };
            let first = rivals.pop().and_then(|id| self.cut_head(slot, id));
            let unknown = CutRejection::NotFinal { chain: slot.chain, seq: slot.seq };
            if !rivals.is_empty() {
                open.push((heads.len(), rivals));
            }
            heads.push(first.ok_or(unknown)?);
        }
        let mut found = vec![heads];
        for (at, rivals) in open {
            let mut more = Vec::new();
            for (heads, rival) in
                found.iter().flat_map(|heads| rivals.iter().map(move |r| (heads, r)))
            {
                let mut other = heads.clone();
                let head = other.get(at).and_then(|head| self.cut_head(head.slot, *rival));
                if let (Some(place), Some(head)) = (other.get_mut(at), head) {
                    *place = head;
                    more.push(other);
                }
            }
            found.append(&mut more);
            found.truncate(TRIES_MAX);
        }
        let mut found = found.into_iter();
        let right = found.find(|heads| merkle::cut_root(heads.iter().copied()) == cut);
        right.ok_or(CutRejection::WrongRoot)
    }

    /// What was collected, by entries that the cut covers, of payments that it does not cover.
    ///
    /// Without a contradiction a payment is covered wherever its `collect` is, and the loss is
    /// zero. Costs as much as there are chains and entries above the cut.
    pub(super) fn loss_at(&self, heads: &[CutHead]) -> Trm {
        let above = Above::of(self, heads);
        let mut loss = Trm::ZERO;
        for (id, slot) in &above.entries {
            let Some(record) = self.shared.record(*id, *slot) else {
                continue;
            };
            for (item, payout) in self.payouts(*id, &record.effect) {
                let taken = !self.shared.payable.contains_key(&(payout.payee, item))
                    && !above.collected.contains(&item);
                if taken || above.collected_below.contains(&item) {
                    loss = loss.saturating_add(payout.amount);
                }
            }
        }
        loss
    }

    fn payouts(&self, id: DocumentId, effect: &Effect) -> Vec<(DocumentId, Payout)> {
        let parts = effect.decisions().iter().flat_map(|listed| self.shared.items_of(id, listed));
        effect.payout.map(|payout| (id, payout)).into_iter().chain(parts).collect()
    }

    fn uncounted_in(&self, slot: Slot) -> Vec<DocumentId> {
        let ids = self.shared.uncounted.keys();
        ids.filter(|id| self.final_entry(**id).is_some_and(|r| r.slot == slot)).copied().collect()
    }

    pub(super) fn cut_head(&self, slot: Slot, id: DocumentId) -> Option<CutHead> {
        let Standing { balance, locked, .. } = self.shared.standing(slot, id)?;
        Some(CutHead { slot, id, balance, locked })
    }
}

/// What a cut does not cover.
#[derive(Default)]
struct Above {
    /// The final entries that it does not cover.
    entries: Vec<(DocumentId, Slot)>,
    /// What those of them that count collect.
    collected: BTreeSet<DocumentId>,
    /// What entries collect that it covers although they do not count.
    collected_below: BTreeSet<DocumentId>,
}

impl Above {
    fn of(lattice: &Lattice, heads: &[CutHead]) -> Self {
        let heads: BTreeMap<PartyId, CutHead> =
            heads.iter().map(|head| (head.slot.chain, *head)).collect();
        let mut above = Self::default();
        for (chain, known) in lattice.chains() {
            let first = heads.get(&chain).map_or(0, |head| head.slot.seq.saturating_add(1));
            if first < known.next_seq() {
                for seq in first..known.next_seq() {
                    let slot = Slot { chain, seq };
                    let Some(id) = lattice.final_at(slot) else { continue };
                    let Some(record) = lattice.shared.record(id, slot) else { continue };
                    above.collected.extend(&record.effect.collected);
                    above.entries.push((id, slot));
                }
            }
        }
        let covered = covered_uncounted(lattice, heads.values());
        for id in lattice.shared.uncounted.keys() {
            let Some(record) = lattice.final_entry(*id) else { continue };
            if covered.contains(id) {
                above.collected_below.extend(&record.effect.collected);
            } else {
                above.entries.push((*id, record.slot));
            }
        }
        above
    }
}

/// The entries that do not count and that the heads cover.
fn covered_uncounted<'a>(
    lattice: &Lattice,
    heads: impl Iterator<Item = &'a CutHead>,
) -> BTreeSet<DocumentId> {
    let mut covered = BTreeSet::new();
    for head in heads {
        let mut at = Some(head.id);
        while let Some(id) = at.filter(|id| lattice.shared.uncounted.contains_key(id)) {
            covered.insert(id);
            at = lattice.final_entry(id).and_then(|record| record.prev);
        }
    }
    covered
}
