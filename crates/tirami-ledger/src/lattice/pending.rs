//! Entries that are not final: the valid ones, and those that wait for something they rest on.
//!
//! Both together are at most [`HELD_MAX`], and [`OWN_HELD_MAX`] of the node itself. Nothing here is
//! part of shared state.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, Signature, Trm};

use super::certificate::{Acknowledgement, Certificate};
use super::state::{Dependency, ParkedEntry, PendingEntry, Slot};

/// The most entries held that are not final (MONEY §11).
pub const HELD_MAX: usize = 4096;
/// So many more entries of the node's own chain are held when there is no room: what strangers
/// send never keeps a node from signing.
pub const OWN_HELD_MAX: usize = 256;
/// The most entries of another chain held that are valid and not final; those with a certificate
/// of their own come in all the same.
pub const CHAIN_HELD_MAX: usize = 1024;
/// The most entries parked of one chain whose certificate is missing or cannot be checked.
pub const PARKED_PER_CHAIN_MAX: usize = 16;
/// The most entries parked in all whose certificate is missing or cannot be checked: 8 MiB.
pub const PARKED_UNPROVEN_MAX: usize = 512;
/// The most entries held for one slot: two prove that the owner signed twice.
pub const RIVALS_MAX: usize = 4;

const LOWEST: DocumentId = DocumentId::from_bytes([0; 32]);
const HIGHEST: DocumentId = DocumentId::from_bytes([255; 32]);

/// The valid entries that are not final.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Pending {
    #[n(0)]
    pub(super) entries: BTreeMap<DocumentId, PendingEntry>,
    /// Those that may still count, by place.
    #[n(1)]
    pub(super) live: BTreeSet<(Slot, DocumentId)>,
    /// Those whose slot is final with another entry: kept for a certificate that contradicts it.
    #[n(2)]
    pub(super) lost: BTreeSet<(Slot, DocumentId)>,
    /// Items that pending entries collect.
    #[n(3)]
    pub(super) claims: BTreeMap<DocumentId, BTreeSet<DocumentId>>,
    /// Those with a certificate whose predecessor is final.
    #[n(4)]
    pub(super) ready: BTreeSet<(Slot, DocumentId)>,
}

impl Pending {
    pub(super) fn insert(&mut self, id: DocumentId, pending: PendingEntry) {
        let slot = pending.entry.entry().slot();
        for item in &pending.effect.collected {
            self.claims.entry(*item).or_default().insert(id);
        }
        if pending.lost {
            self.lost.insert((slot, id))
        } else {
            self.live.insert((slot, id))
        };
        self.entries.insert(id, pending);
    }

    pub(super) fn remove(&mut self, id: DocumentId) -> Option<PendingEntry> {
        let pending = self.entries.remove(&id)?;
        let place = (pending.entry.entry().slot(), id);
        self.live.remove(&place);
        self.lost.remove(&place);
        self.ready.remove(&place);
        for item in &pending.effect.collected {
            if let Some(claimants) = self.claims.get_mut(item) {
                claimants.remove(&id);
                if claimants.is_empty() {
                    self.claims.remove(item);
                }
            }
        }
        Some(pending)
    }

    /// Removes an entry and every pending entry after it.
    pub(super) fn remove_branch(&mut self, id: DocumentId) {
        let mut branch = vec![id];
        while let Some(id) = branch.pop() {
            if let Some(pending) = self.remove(id) {
                branch.extend(self.children(pending.entry.entry().slot(), id));
            }
        }
    }

    /// Marks an entry and every pending entry after it as lost.
    pub(super) fn lose_branch(&mut self, id: DocumentId) {
        let mut branch = vec![id];
        while let Some(id) = branch.pop() {
            let Some(pending) = self.entries.get_mut(&id) else {
                continue;
            };
            pending.lost = true;
            let slot = pending.entry.entry().slot();
            self.live.remove(&(slot, id));
            self.lost.insert((slot, id));
            branch.extend(self.children(slot, id));
        }
    }

    /// The pending entries right after the entry `id` in `slot`.
    pub(super) fn children(&self, slot: Slot, id: DocumentId) -> Vec<DocumentId> {
        let next = Slot { seq: slot.seq.saturating_add(1), ..slot };
        let children = |set: &BTreeSet<_>| {
            in_slot(set, next)
                .filter(|child| {
                    let child = self.entries.get(child);
                    child.is_some_and(|child| child.entry.entry().prev == Some(id))
                })
                .collect::<Vec<_>>()
        };
        let mut all = children(&self.live);
        all.extend(children(&self.lost));
        all
    }

    /// The live entries in `slot`.
    pub(super) fn rivals(&self, slot: Slot) -> impl Iterator<Item = DocumentId> {
        in_slot(&self.live, slot)
    }

    /// The last live entries of `chain`: one, unless they are rivals.
    pub(super) fn tail(&self, chain: PartyId) -> Option<(&PendingEntry, bool)> {
        let first = (Slot { chain, seq: 0 }, LOWEST);
        let last = (Slot { chain, seq: u64::MAX }, HIGHEST);
        let mut ends = self.live.range(first..=last).rev();
        let (slot, id) = ends.next()?;
        let alone = ends.next().is_none_or(|(before, _)| before != slot);
        Some((self.entries.get(id)?, alone))
    }

    /// The lock that the chain of `newcomer` was opened with is held now.
    pub(super) fn prove(&mut self, newcomer: PartyId, lock: DocumentId, amount: Trm) {
        let first = (Slot { chain: newcomer, seq: 0 }, LOWEST);
        let last = (Slot { chain: newcomer, seq: u64::MAX }, HIGHEST);
        for set in [&self.live, &self.lost] {
            for (_, id) in set.range(first..=last) {
                if let Some(pending) = self.entries.get_mut(id) {
                    pending.after.prove(lock, amount);
                }
            }
        }
    }

    /// The acknowledgements of an entry under one charter, as a certificate.
    pub(super) fn certificate(&self, id: DocumentId, version: u32) -> Certificate {
        let acks = self.entries.get(&id).map(|pending| &pending.acks);
        let acknowledgements = acks
            .into_iter()
            .flatten()
            .filter(|((charter_version, _), _)| *charter_version == version)
            .map(|((charter_version, witness), signature)| Acknowledgement {
                charter_version: *charter_version,
                entry: id,
                witness: *witness,
                signature: *signature,
            })
            .collect();
        Certificate { acknowledgements }
    }
}

fn in_slot(
    set: &BTreeSet<(Slot, DocumentId)>,
    slot: Slot,
) -> impl Iterator<Item = DocumentId> + '_ {
    set.range((slot, LOWEST)..=(slot, HIGHEST)).map(|(_, id)| *id)
}

/// Entries that wait for something they rest on, in the order they came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Parking {
    #[n(0)]
    pub(super) next: u64,
    #[n(1)]
    pub(super) entries: BTreeMap<u64, ParkedEntry>,
    /// An id alone would let a wrong signature keep the right one out.
    #[n(2)]
    pub(super) by_id: BTreeMap<(DocumentId, Signature), u64>,
    #[n(3)]
    pub(super) waiting: BTreeSet<(Dependency, u64)>,
    /// Those whose dependency has come.
    #[n(4)]
    pub(super) ready: BTreeSet<u64>,
}

impl Parking {
    pub(super) fn park(&mut self, parked: ParkedEntry) {
        self.next = parked.number.saturating_add(1);
        self.by_id.insert((parked.id, parked.signature), parked.number);
        self.waiting.insert((parked.waits, parked.number));
        self.entries.insert(parked.number, parked);
    }

    pub(super) fn unpark(&mut self, number: u64) {
        if let Some(parked) = self.entries.remove(&number) {
            self.by_id.remove(&(parked.id, parked.signature));
            self.waiting.remove(&(parked.waits, number));
            self.ready.remove(&number);
        }
    }

    /// The numbers under which `entry` is parked, one for each signature.
    pub(super) fn copies(&self, entry: DocumentId) -> impl Iterator<Item = u64> + '_ {
        let (lowest, highest) = (Signature::from_bytes([0; 64]), Signature::from_bytes([255; 64]));
        self.by_id.range((entry, lowest)..=(entry, highest)).map(|(_, number)| *number)
    }

    /// What waited for `dependency` waits no longer.
    pub(super) fn release(&mut self, dependency: Dependency) {
        let waiting = self.waiting.range((dependency, 0)..=(dependency, u64::MAX));
        self.ready.extend(waiting.map(|(_, number)| *number));
    }
}
