//! Receiving entries, acknowledgements and certificates; resuming what waited; drafting.

use std::borrow::Cow;

use tirami_core::{DocumentId, PartyId, PublicKey, Signature, Timestamp};

use super::certificate::{Acknowledgement, Certificate};
use super::charter::Charter;
use super::entry::{Entry, Unverified};
use super::event::LatticeEvent;
use super::kinds::{Effect, EntryKind, Past};
use super::pending::RIVALS_MAX;
use super::rejection::EntryRejection;
use super::state::{ChainState, Dependency, Slot};
use super::{CharterRecord, Lattice};

/// A certificate that was checked.
pub(super) struct Proof {
    pub(super) version: u32,
    pub(super) signers: u32,
    /// None when that of a later entry of the chain stands for this one.
    pub(super) certificate: Option<Certificate>,
}

impl Lattice {
    /// What receiving an entry would change; changes nothing. Nothing when it is known.
    ///
    /// An entry that rests on something unknown is parked when its chain's key signed it and there
    /// is room; else nothing changes, and it is asked for again in its order.
    ///
    /// # Errors
    ///
    /// The first [`EntryRejection`] that applies.
    pub fn receive_entry(
        &self,
        bytes: &[u8],
        signature: Signature,
    ) -> Result<Vec<LatticeEvent>, EntryRejection> {
        let read = Unverified::read(self.mesh, bytes, signature)?;
        let slot = read.entry.slot();
        if self.shared.is_final_at(read.id, slot) {
            return Ok(Vec::new());
        }
        if self.pending.entries.contains_key(&read.id) {
            return Ok(Vec::new());
        }
        let proof = self.covered(read.id);
        match (&proof, self.final_at(slot)) {
            (None, Some(known)) => return self.double_signed_below(read, known),
            (Some(_), Some(_)) if self.shared.is_aged(slot) => {
                return self.unroll_for(&read, bytes, None);
            }
            _ => {}
        }
        if let Some(waits) = self.missing_dependency(&read, proof.is_some()) {
            let waits_in_vain = self.leaves_out() && matches!(waits, Dependency::Final(_));
            if proof.is_none() && waits_in_vain {
                // What it names may never come; its certificate will stand for that.
                return Ok(Vec::new());
            }
            return self.park(&read, bytes, None, waits);
        }
        self.weigh(read, self.charter(), proof)
    }

    /// What receiving an entry with its certificate would change; changes nothing. Nothing when
    /// the entry is known to be final.
    ///
    /// Reads the bytes once, hashes them once and verifies each signature once.
    ///
    /// # Errors
    ///
    /// The first [`EntryRejection`] that applies.
    pub fn receive_certified(
        &self,
        bytes: &[u8],
        signature: Signature,
        certificate: &Certificate,
    ) -> Result<Vec<LatticeEvent>, EntryRejection> {
        let read = Unverified::read(self.mesh, bytes, signature)?;
        if self.shared.is_final_at(read.id, read.entry.slot()) {
            return Ok(Vec::new());
        }
        let version = certificate.charter_version().ok_or(EntryRejection::CertificateMismatch)?;
        let Some(CharterRecord { charter, .. }) = self.charters.get(&version) else {
            return self.park(&read, bytes, Some(certificate), Dependency::Charter(version));
        };
        let known = self.pending.entries.get(&read.id);
        if known.is_some_and(|known| known.certified.is_some()) {
            return Ok(Vec::new());
        }
        if known.is_none() && self.shared.is_aged(read.entry.slot()) {
            return self.unroll_for(&read, bytes, Some(certificate));
        }
        let missing = if known.is_some() { None } else { self.missing_dependency(&read, true) };
        if let Some(waits) = missing {
            return self.park(&read, bytes, Some(certificate), waits);
        }
        let signers = certificate.check(self.mesh, charter, read.id)?;
        let proof = Proof { version, signers, certificate: Some(certificate.clone()) };
        if known.is_some() {
            return Ok(proof.certified(read.id).into_iter().collect());
        }
        self.weigh(read, charter, Some(proof))
    }

    /// What receiving an acknowledgement would change; changes nothing. Nothing when it is known,
    /// and when its entry is not: who asked for it has the entry, and all others get certificates.
    ///
    /// # Errors
    ///
    /// [`EntryRejection::MissingCharter`], [`EntryRejection::NotAWitness`] or
    /// [`EntryRejection::BadAcknowledgement`].
    pub fn receive_acknowledgement(
        &self,
        ack: &Acknowledgement,
    ) -> Result<Vec<LatticeEvent>, EntryRejection> {
        let version = ack.charter_version;
        let record = self.charters.get(&version);
        let record = record.ok_or(EntryRejection::MissingCharter { version })?;
        let witness = ack.witness;
        record.charter.witness_bit(&witness).ok_or(EntryRejection::NotAWitness { witness })?;
        let pending = self.pending.entries.get(&ack.entry);
        if pending.is_none_or(|pending| pending.acks.contains_key(&(version, witness))) {
            return Ok(Vec::new());
        }
        ack.verify(self.mesh).map_err(|_| EntryRejection::BadAcknowledgement { witness })?;
        Ok(vec![LatticeEvent::Acknowledged { acknowledgement: *ack }])
    }

    /// What has become possible by the events applied so far: one entry made final, or taken out
    /// of parking, at a time. Nothing when nothing waits that could go on.
    pub fn resume(&self) -> Vec<LatticeEvent> {
        if let Some(adopted) = self.complete_proposal() {
            return vec![adopted];
        }
        if let Some((slot, id)) = self.pending.ready.first() {
            let unrolled = || vec![LatticeEvent::Unrolled { chain: slot.chain }];
            return if self.shared.is_aged(*slot) { unrolled() } else { self.finish(*id) };
        }
        let Some(number) = self.parking.ready.first() else {
            return Vec::new();
        };
        let mut events = vec![LatticeEvent::Unparked { number: *number }];
        if let Some(parked) = self.parking.entries.get(number) {
            let again = match &parked.certificate {
                Some(certificate) => {
                    self.receive_certified(&parked.bytes, parked.signature, certificate)
                }
                None => self.receive_entry(&parked.bytes, parked.signature),
            };
            // What turned out to be refused is dropped: it was never known to anybody.
            events.extend(again.unwrap_or_default());
        }
        events
    }

    /// Applies `events` and then everything they make possible; gives all of it, in order.
    pub fn absorb(&mut self, events: Vec<LatticeEvent>) -> Vec<LatticeEvent> {
        let mut all = Vec::new();
        let mut next = events;
        while !next.is_empty() {
            for event in &next {
                self.apply(event);
            }
            all.append(&mut next);
            next = self.resume();
        }
        all
    }

    /// The next entry of `chain`, after its own pending entries, checked and ready to be signed.
    ///
    /// # Errors
    ///
    /// [`EntryRejection::Frozen`], [`EntryRejection::SlotTaken`] when rivals stand where the
    /// chain goes on, [`EntryRejection::Missing`], or what the kind's rules say.
    pub fn draft(
        &self,
        chain: PartyId,
        time: Timestamp,
        kind: EntryKind,
    ) -> Result<Entry, EntryRejection> {
        if self.chain(chain).is_some_and(|chain| chain.frozen.is_some()) {
            return Err(EntryRejection::Frozen);
        }
        let state = match self.pending.tail(chain) {
            Some((last, true)) => Cow::Borrowed(&last.after),
            Some((rival, false)) => {
                return Err(EntryRejection::SlotTaken { seq: rival.entry.entry().seq });
            }
            None => self.chain(chain).map_or_else(
                || Cow::Owned(ChainState::before_first(chain)),
                |chain| Cow::Borrowed(&chain.state),
            ),
        };
        if (state.next == 0) != matches!(kind, EntryKind::Open(_)) {
            return Err(EntryRejection::OutOfPlace);
        }
        let mut entry =
            Entry { chain, seq: state.next, prev: state.head, time_ms: time, kind, balance: 0 };
        (entry.balance, _) = self.outcome(&entry, &state, (self.charter(), false))?;
        Ok(entry)
    }

    /// Judges an entry whose dependencies are known.
    fn weigh(
        &self,
        read: Unverified<'_>,
        charter: &Charter,
        proof: Option<Proof>,
    ) -> Result<Vec<LatticeEvent>, EntryRejection> {
        let charter = match &proof {
            Some(proof) => self.charters.get(&proof.version).map_or(charter, |r| &r.charter),
            None => charter,
        };
        let slot = read.entry.slot();
        let state = self.state_at(&read.entry)?;
        verify_author(&read, &state)?;
        // The one that a certificate stands for has a place beside any number of rivals.
        let is_covered = proof.is_some() || self.proof_after(read.id).is_some();
        if !is_covered {
            self.admit_rival(slot)?;
        }
        let vouched = proof.is_some() && self.leaves_out();
        let effect = self.effect(&read.entry, &state, (charter, vouched))?;
        let rival = self.pending.rivals(slot).next().or_else(|| self.final_at(slot));
        let id = read.id;
        let prev_is_final = self.shared.follows_final(&read.entry);
        let mut events = Vec::with_capacity(2);
        let entry = read.into_signed();
        if let Some(known) = rival.filter(|_| !self.proofs.contains_key(&slot.chain)) {
            events.push(LatticeEvent::DoubleSigned { known, rival: entry.clone() });
        }
        match proof {
            Some(proof) if prev_is_final => {
                let cut = self.cut_now(&effect, id);
                let Proof { version: charter_version, signers, certificate } = proof;
                events.push(LatticeEvent::EntryFinal {
                    entry,
                    effect,
                    charter_version,
                    signers,
                    certificate,
                });
                events.extend(cut);
            }
            proof => {
                events.extend(self.make_room(slot.chain, is_covered)?);
                let cut = self.cut_now(&effect, id);
                events.push(LatticeEvent::EntryPending { entry, effect });
                events.extend(cut);
                events.extend(proof.and_then(|proof| proof.certified(id)));
            }
        }
        Ok(events)
    }

    /// A pending entry whose certificate and predecessor are there becomes final.
    fn finish(&self, id: DocumentId) -> Vec<LatticeEvent> {
        let discarded = vec![LatticeEvent::Discarded { entry: id }];
        let Some(pending) = self.pending.entries.get(&id) else {
            return discarded;
        };
        let Some(certified) = &pending.certified else {
            return discarded;
        };
        let Some(record) = self.charters.get(&certified.charter_version) else {
            return discarded;
        };
        let entry = pending.entry.entry();
        let by = (&record.charter, self.leaves_out());
        let effect = self.state_at(entry).and_then(|state| self.effect(entry, &state, by));
        // A quorum that certified an invalid entry changes nothing for anybody.
        let Ok(effect) = effect else { return discarded };
        let cut = self.cut_now(&effect, id);
        let mut events = vec![LatticeEvent::EntryFinal {
            entry: pending.entry.clone(),
            effect,
            charter_version: certified.charter_version,
            signers: certified.signers,
            certificate: certified.certificate.clone(),
        }];
        events.extend(cut);
        events
    }

    /// The effect of an entry, whose balance must be right, under a charter; and whether a
    /// certificate stands for what it names and is not held here.
    pub(super) fn effect(
        &self,
        entry: &Entry,
        state: &ChainState,
        by: (&Charter, bool),
    ) -> Result<Effect, EntryRejection> {
        let (expected, effect) = self.outcome(entry, state, by)?;
        if entry.balance != expected {
            return Err(EntryRejection::WrongBalance { expected, given: entry.balance });
        }
        Ok(effect)
    }

    fn outcome(
        &self,
        entry: &Entry,
        state: &ChainState,
        (charter, vouched): (&Charter, bool),
    ) -> Result<(i64, Effect), EntryRejection> {
        let (chain, prev) = (entry.chain, entry.prev);
        let vouched = vouched.then_some(entry.balance);
        let past = Past { chain, prev, state, charter, lattice: self, vouched };
        let outcome = entry.kind.rules().outcome(&past)?;
        let balance = i64::try_from(outcome.balance).map_err(|_| EntryRejection::Overflow)?;
        Ok((balance, outcome.effect))
    }

    /// The state of the chain that `entry` extends.
    pub(super) fn state_at(&self, entry: &Entry) -> Result<Cow<'_, ChainState>, EntryRejection> {
        let Some(prev) = entry.prev else {
            return Ok(Cow::Owned(ChainState::before_first(entry.chain)));
        };
        let before = entry.seq.checked_sub(1).ok_or(EntryRejection::WrongPredecessor)?;
        let expected = Slot { chain: entry.chain, seq: before };
        if let Some(pending) = self.pending.entries.get(&prev) {
            return match pending.entry.entry().slot() == expected {
                true => Ok(Cow::Borrowed(&pending.after)),
                false => Err(EntryRejection::WrongPredecessor),
            };
        }
        let missing = EntryRejection::Missing { entry: prev };
        let record = self.shared.finals.get(&prev);
        if record.is_some_and(|record| record.slot != expected) {
            return Err(EntryRejection::WrongPredecessor);
        }
        if !self.shared.is_final_at(prev, expected) {
            return Err(missing);
        }
        if let Some(state) = self.shared.uncounted.get(&prev) {
            return Ok(Cow::Borrowed(state));
        }
        match self.shared.chains.get(&entry.chain) {
            Some(chain) if chain.state.head == Some(prev) => Ok(Cow::Borrowed(&chain.state)),
            _ => self.shared.state_after(expected).map(Cow::Owned).ok_or(missing),
        }
    }

    /// The first thing that `read` rests on and that is not known.
    fn missing_dependency(&self, read: &Unverified<'_>, certified: bool) -> Option<Dependency> {
        let is_final = |id: &DocumentId| self.shared.is_final(id);
        let follows_final = self.shared.follows_final(&read.entry);
        let prev = read
            .entry
            .prev
            .filter(|prev| !follows_final && !self.pending.entries.contains_key(prev));
        let named = || {
            let rules = read.entry.kind.rules();
            let vouched = certified && self.leaves_out();
            let named = if vouched { rules.needs() } else { rules.names() };
            named.iter().find(|id| !is_final(id)).copied()
        };
        prev.map(Dependency::Known).or_else(|| named().map(Dependency::Final))
    }

    /// A rival of an old entry has a certificate, so witnesses lied: it waits until the records of
    /// its chain are there again.
    fn unroll_for(
        &self,
        read: &Unverified<'_>,
        bytes: &[u8],
        certificate: Option<&Certificate>,
    ) -> Result<Vec<LatticeEvent>, EntryRejection> {
        let chain = read.entry.chain;
        let mut events = self.park(read, bytes, certificate, Dependency::Records(chain))?;
        if !events.is_empty() {
            events.push(LatticeEvent::Unrolled { chain });
        }
        Ok(events)
    }

    /// Whether one more entry without a certificate is kept for `slot`, which is not final.
    fn admit_rival(&self, slot: Slot) -> Result<(), EntryRejection> {
        if self.chain(slot.chain).is_some_and(|chain| chain.frozen.is_some()) {
            return Err(EntryRejection::Frozen);
        }
        if self.pending.rivals(slot).count() >= RIVALS_MAX {
            return Err(EntryRejection::TooManyRivals { seq: slot.seq });
        }
        Ok(())
    }

    /// A second signature for a slot that is final: a proof, the first time.
    fn double_signed_below(
        &self,
        read: Unverified<'_>,
        known: DocumentId,
    ) -> Result<Vec<LatticeEvent>, EntryRejection> {
        let slot = read.entry.slot();
        let taken = EntryRejection::SlotTaken { seq: slot.seq };
        let chain = self.chain(slot.chain).ok_or(taken.clone())?;
        chain.key_at(slot.chain, slot.seq).verify(&read.message, &read.signature)?;
        if self.proofs.contains_key(&slot.chain) {
            return Err(taken);
        }
        Ok(vec![LatticeEvent::DoubleSigned { known, rival: read.into_signed() }])
    }
}

impl Proof {
    /// Nothing without a certificate of its own: the later entry's says it.
    fn certified(self, entry: DocumentId) -> Option<LatticeEvent> {
        Some(LatticeEvent::Certified {
            entry,
            charter_version: self.version,
            certificate: self.certificate?,
            signers: self.signers,
        })
    }
}

/// The chain's key signed the entry, or another key that the kind admits.
pub(super) fn verify_author(
    read: &Unverified<'_>,
    state: &ChainState,
) -> Result<(), EntryRejection> {
    let verify = |key: PublicKey| key.verify(&read.message, &read.signature);
    let first = verify(state.key);
    match (first, read.entry.kind.rules().other_signer(state)) {
        (Err(_), Some(other)) => Ok(verify(other)?),
        (first, _) => Ok(first?),
    }
}
