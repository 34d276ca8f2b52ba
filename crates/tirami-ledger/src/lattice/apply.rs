//! Applying events: total, without failure, O(log n) but for the entry that freezes a chain.

use tirami_core::DocumentId;

use super::Lattice;
use super::certificate::{Acknowledgement, Certificate};
use super::entry::SignedEntry;
use super::event::LatticeEvent;
use super::kinds::{Change, Effect};
use super::shared::Arrival;
use super::state::{Certified, Dependency, DoubleSignProof, PendingEntry, Slot};

impl Lattice {
    /// Applies an event that this lattice decided, or one read back from its store.
    ///
    /// An event that does not fit the state changes nothing it does not fit.
    pub fn apply(&mut self, event: &LatticeEvent) {
        match event {
            LatticeEvent::EntryPending { entry, effect } => self.apply_pending(entry, effect),
            LatticeEvent::EntryFinal { entry, effect, charter_version, signers, .. } => {
                self.apply_final(entry, effect, (*charter_version, *signers));
            }
            LatticeEvent::Acknowledged { acknowledgement } => self.add_ack(acknowledgement),
            LatticeEvent::AcknowledgementMade { acknowledgement: ack, slot } => {
                self.own_acks.insert((*slot, ack.witness), (ack.entry, ack.charter_version));
                self.add_ack(ack);
            }
            LatticeEvent::Certified { entry, charter_version, certificate, signers } => {
                self.certify(*entry, (*charter_version, *signers), Some(certificate.clone()));
            }
            LatticeEvent::Parked { parked } => self.parking.park(parked.clone()),
            LatticeEvent::Unparked { number } => self.parking.unpark(*number),
            LatticeEvent::Discarded { entry } => self.pending.remove_branch(*entry),
            LatticeEvent::DoubleSigned { known, rival } => {
                let slot = rival.entry().slot();
                let proof = DoubleSignProof { slot, known: *known, rival: rival.id() };
                self.proofs.entry(slot.chain).or_insert(proof);
            }
            LatticeEvent::CharterApproved { witness, current, charter } => {
                self.approved.insert((*witness, *current), *charter);
            }
            LatticeEvent::CharterAdopted { bytes, id, approvals } => {
                self.adopt(bytes, *id, approvals);
            }
            LatticeEvent::CharterProposed { bytes, id, approvals } => {
                self.keep_proposal(*id, bytes, approvals);
            }
            LatticeEvent::HighestNoted { chain, next_seq, asking } => {
                let noted = self.noted.entry(*chain).or_default();
                *noted = (*noted).max(*next_seq);
                self.asking = *asking;
            }
            LatticeEvent::CutKnown { checkpoint, heads } => self.keep_cut(*checkpoint, heads),
            LatticeEvent::Unrolled { chain } => {
                self.shared.unroll(*chain);
                self.parking.release(Dependency::Records(*chain));
            }
        }
    }

    fn apply_pending(&mut self, entry: &SignedEntry, effect: &Effect) {
        let Ok(state) = self.state_at(entry.entry()) else {
            return;
        };
        let after = state.after(entry.id(), entry.entry().balance, effect);
        let prev = entry.entry().prev.and_then(|prev| self.pending.entries.get(&prev));
        let lost =
            prev.is_some_and(|prev| prev.lost) || self.final_at(entry.entry().slot()).is_some();
        let id = entry.id();
        let (acks, certified) = (std::collections::BTreeMap::new(), None);
        let (entry, effect) = (entry.clone(), effect.clone());
        self.pending.insert(id, PendingEntry { entry, effect, after, acks, certified, lost });
        self.parking.release(Dependency::Known(id));
    }

    fn apply_final(&mut self, entry: &SignedEntry, effect: &Effect, proof: (u32, u32)) {
        let id = entry.id();
        if self.shared.is_final_at(id, entry.entry().slot()) {
            return;
        }
        let Ok(state) = self.state_at(entry.entry()) else {
            return;
        };
        let after = state.after(id, entry.entry().balance, effect);
        let slot = entry.entry().slot();
        self.pending.remove(id);
        let (charter_version, signers) = proof;
        let entry = entry.entry();
        self.shared.add(Arrival { id, entry, effect, after, charter_version, signers });
        if let Change::Sponsored { newcomer, amount } = effect.change {
            self.pending.prove(newcomer, id, amount);
        }
        self.settle_slot(slot);
        for child in self.pending.children(slot, id) {
            if self.pending.entries.get(&child).is_some_and(|child| child.certified.is_some()) {
                let next = Slot { seq: slot.seq.saturating_add(1), ..slot };
                self.pending.ready.insert((next, child));
            }
        }
        self.parking.release(Dependency::Known(id));
        self.parking.release(Dependency::Final(id));
        for decision in effect.decisions() {
            for (item, _) in self.shared.items_of(id, decision) {
                self.parking.release(Dependency::Final(item));
            }
        }
    }

    /// A slot is final: its rivals have lost, and what witnesses promised about it is settled.
    fn settle_slot(&mut self, slot: Slot) {
        let rivals: Vec<DocumentId> = self.pending.rivals(slot).collect();
        for rival in rivals {
            self.pending.lose_branch(rival);
        }
        let lowest = tirami_core::PublicKey::from_bytes([0; 32]);
        let highest = tirami_core::PublicKey::from_bytes([255; 32]);
        let settled = self.own_acks.range((slot, lowest)..=(slot, highest));
        let settled: Vec<_> = settled.map(|(key, _)| *key).collect();
        for key in settled {
            self.own_acks.remove(&key);
        }
        self.forget_carried(slot);
    }

    fn add_ack(&mut self, ack: &Acknowledgement) {
        if self.shared.finals.contains_key(&ack.entry) {
            return;
        }
        let Some(pending) = self.pending.entries.get_mut(&ack.entry) else {
            return;
        };
        let version = ack.charter_version;
        pending.acks.insert((version, ack.witness), ack.signature);
        let Some(record) = self.charters.get(&version) else {
            return;
        };
        let signers: u32 = pending
            .acknowledged_by(version)
            .filter_map(|witness| record.charter.witness_bit(&witness))
            .sum();
        if signers.count_ones() >= u32::from(record.charter.quorum) {
            let certificate = self.pending.certificate(ack.entry, version);
            self.certify(ack.entry, (version, signers), Some(certificate));
        }
    }

    /// A certificate stands for the entry and for everything before it on its branch.
    fn certify(
        &mut self,
        entry: DocumentId,
        (charter_version, signers): (u32, u32),
        mut certificate: Option<Certificate>,
    ) {
        let mut next = Some(entry);
        while let Some(id) = next {
            let Some(pending) = self.pending.entries.get_mut(&id) else {
                return;
            };
            if pending.certified.is_some() {
                return;
            }
            let certificate = certificate.take();
            pending.certified = Some(Certified { charter_version, signers, certificate });
            let entry = pending.entry.entry();
            next = entry.prev.filter(|_| !self.shared.follows_final(entry));
            if next.is_none() {
                self.pending.ready.insert((entry.slot(), id));
            }
        }
    }
}
