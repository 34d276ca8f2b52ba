//! What is held although it is not final, and what gives way when there is no room (MONEY §11).

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DocumentId, PartyId, PublicKey};

use super::Lattice;
use super::certificate::Certificate;
use super::entry::{Entry, Unverified, chain_of};
use super::event::LatticeEvent;
use super::pending::{
    CHAIN_HELD_MAX, HELD_MAX, OWN_HELD_MAX, PARKED_PER_CHAIN_MAX, PARKED_UNPROVEN_MAX,
};
use super::receive::verify_author;
use super::rejection::EntryRejection;
use super::state::{ChainState, Dependency, ParkedEntry, Slot};

impl Lattice {
    /// Parks an entry that can be told from a forgery and for which there is room. What is not
    /// parked leaves no trace: parking only saves fetching a chain in its order again, so nobody
    /// fills the store with entries that rest on nothing.
    pub(super) fn park(
        &self,
        read: &Unverified<'_>,
        bytes: &[u8],
        certificate: Option<&Certificate>,
        waits: Dependency,
    ) -> Result<Vec<LatticeEvent>, EntryRejection> {
        let mut events = Vec::with_capacity(2);
        let version = certificate.and_then(Certificate::charter_version);
        let charter = version.and_then(|version| self.charters.get(&version));
        // On resuming, the entry being judged is itself still there: it is parked anew.
        let known = self.parking.by_id.get(&(read.id, read.signature));
        let held = known.filter(|number| !self.parking.ready.contains(number));
        let held = held.and_then(|number| self.parking.entries.get(number));
        // One whose certificate cannot be checked yet may be anything.
        if held.is_some_and(|held| charter.is_none() || self.is_proven(held)) {
            return Ok(events);
        }
        let covered = certificate.is_none() && self.covered(read.id).is_some();
        if !self.is_by_its_chain(read, certificate.is_some() || covered)? {
            return Ok(events);
        }
        if let (Some(certificate), Some(record)) = (certificate, charter) {
            certificate.check(self.mesh, &record.charter, read.id)?;
        }
        match (known, held) {
            (_, Some(held)) => events.push(LatticeEvent::Unparked { number: held.number }),
            (Some(_), None) => {}
            // One proof is enough of an entry, however often its owner signed it.
            (None, None) if self.is_parked_proven(read.id) => return Ok(events),
            (None, None) => match self.room_to_park(read.entry.chain, charter.is_some() || covered)
            {
                Some(room) => events.extend(room),
                None => return Ok(events),
            },
        }
        let parked = ParkedEntry {
            number: self.parking.next,
            id: read.id,
            bytes: bytes.to_vec(),
            signature: read.signature,
            certificate: certificate.cloned(),
            waits,
        };
        events.push(LatticeEvent::Parked { parked });
        Ok(events)
    }

    /// Whether the chain's owner signed an entry whose dependencies are not all known. `false`
    /// when that cannot be told: what replaced the key may be among what is missing.
    fn is_by_its_chain(
        &self,
        read: &Unverified<'_>,
        certified: bool,
    ) -> Result<bool, EntryRejection> {
        match self.state_at(&read.entry) {
            Ok(state) => return verify_author(read, &state).map(|()| true),
            Err(EntryRejection::Missing { .. }) => {}
            Err(refused) => return Err(refused),
        }
        let Entry { chain, seq, .. } = read.entry;
        let reached = self.chain(chain).filter(|known| seq < known.next_seq());
        let key = reached.map(|known| known.key_at(chain, seq));
        if key.is_some_and(|key| key.verify(&read.message, &read.signature).is_ok()) {
            return Ok(true);
        }
        let pending = self.pending.tail(chain).map(|(last, _)| &last.after);
        let known: Vec<_> =
            pending.into_iter().chain(self.chain(chain).map(|chain| &chain.state)).collect();
        if known.is_empty() {
            // Keys cost nothing, so without a certificate a chain is taken from its beginning.
            return Ok(certified && verify_author(read, &ChainState::before_first(chain)).is_ok());
        }
        Ok(known.into_iter().any(|state| verify_author(read, state).is_ok()))
    }

    /// What gives way to one more parked entry; none when there is no room. An entry whose
    /// certificate was checked takes the place of the oldest one without.
    fn room_to_park(&self, chain: PartyId, proven: bool) -> Option<Option<LatticeEvent>> {
        let is_full = self.held_now() >= HELD_MAX;
        let mut unproven = self.parking.entries.values().filter(|parked| !self.is_proven(parked));
        if proven {
            let oldest = if is_full { Some(unproven.next()?.number) } else { None };
            return Some(oldest.map(|number| LatticeEvent::Unparked { number }));
        }
        let (mut of_chain, mut all) = (0, 0);
        for parked in unproven {
            all += 1;
            of_chain += usize::from(chain_of(&parked.bytes) == Some(chain));
        }
        let has_room = of_chain < PARKED_PER_CHAIN_MAX && all < PARKED_UNPROVEN_MAX && !is_full;
        has_room.then_some(None)
    }

    /// Whether an entry is parked with a certificate that was checked, under any signature.
    fn is_parked_proven(&self, id: DocumentId) -> bool {
        let mut copies = self.parking.copies(id);
        copies.any(|number| self.parking.entries.get(&number).is_some_and(|e| self.is_proven(e)))
    }

    /// Whether a parked entry's certificate was checked.
    pub(super) fn is_proven(&self, parked: &ParkedEntry) -> bool {
        let version = parked.certificate.as_ref().and_then(Certificate::charter_version);
        !matches!(parked.waits, Dependency::Charter(_))
            && version.is_some_and(|version| self.charters.contains_key(&version))
    }

    fn held_now(&self) -> usize {
        self.pending.entries.len() + self.parking.entries.len()
    }

    /// What has to give way for one more entry of `chain`: the oldest parked one, else one that
    /// lost its slot, else one of another chain that this node made no promise about. The node's
    /// own entries have room when all others have none.
    pub(super) fn make_room(
        &self,
        chain: PartyId,
        certified: bool,
    ) -> Result<Option<LatticeEvent>, EntryRejection> {
        let is_own = self.own == Some(chain);
        let held = self.held_now();
        if !is_own && !certified && held >= CHAIN_HELD_MAX && self.is_crowded(chain) {
            return Err(EntryRejection::Full);
        }
        if held < HELD_MAX {
            return Ok(None);
        }
        if let Some(number) = self.parking.entries.keys().next() {
            return Ok(Some(LatticeEvent::Unparked { number: *number }));
        }
        let lost = self.pending.lost.iter().find(|(slot, _)| slot.chain != chain);
        let entry = lost.map(|(_, id)| *id).or_else(|| self.least_needed(chain, is_own));
        match entry {
            Some(entry) => Ok(Some(LatticeEvent::Discarded { entry })),
            None if is_own && held < HELD_MAX + OWN_HELD_MAX => Ok(None),
            None => Err(EntryRejection::Full),
        }
    }

    /// Whether a chain has as many entries here that are not final as any may have.
    fn is_crowded(&self, chain: PartyId) -> bool {
        let of_chain = |set: &BTreeSet<(Slot, DocumentId)>| {
            let first = (Slot { chain, seq: 0 }, DocumentId::from_bytes([0; 32]));
            let last = (Slot { chain, seq: u64::MAX }, DocumentId::from_bytes([255; 32]));
            set.range(first..=last).count()
        };
        of_chain(&self.pending.live) + of_chain(&self.pending.lost) >= CHAIN_HELD_MAX
    }

    /// Of the other chain with the most entries that this node neither acknowledged nor knows to
    /// be certified, the lowest such entry; everything after it goes with it. Their owner offers
    /// them again. An entry of another node pushes out only those of a chain that has more.
    fn least_needed(&self, chain: PartyId, is_own: bool) -> Option<DocumentId> {
        let mut open = BTreeMap::<PartyId, (usize, DocumentId)>::new();
        for (slot, id) in &self.pending.live {
            if self.own != Some(slot.chain) && !self.is_promised(*slot, *id) {
                open.entry(slot.chain).or_insert((0, *id)).0 += 1;
            }
        }
        let floor = if is_own { 0 } else { open.remove(&chain).map_or(0, |(count, _)| count) };
        let most = open.into_values().rev().max_by_key(|(count, _)| *count);
        most.filter(|(count, _)| *count > floor).map(|(_, id)| id)
    }

    /// Whether this node's witness acknowledged the entry, or its certificate is known.
    fn is_promised(&self, slot: Slot, id: DocumentId) -> bool {
        let (lowest, highest) = (PublicKey::from_bytes([0; 32]), PublicKey::from_bytes([255; 32]));
        let mut acks = self.own_acks.range((slot, lowest)..=(slot, highest));
        acks.any(|(_, (acknowledged, _))| *acknowledged == id)
            || self.pending.entries.get(&id).is_some_and(|pending| pending.certified.is_some())
    }
}
