//! Changing the charter (MONEY §2).
//!
//! A quorum of old witnesses signs the next version; each stops acknowledging under the old one
//! and attaches what it acknowledged. Any entry with a certificate under the old version was
//! acknowledged by a quorum, so at least one honest witness among those who signed attaches it:
//! the new witnesses acknowledge no rival of it.

use tirami_core::{
    Document, DocumentId, MeshId, PublicKey, SecretKey, SignedError, decode_body, signing_message,
};

use super::charter::{Charter, CharterApproval, CharterError};
use super::entry::SignedEntry;
use super::event::LatticeEvent;
use super::state::{Dependency, Slot};
use super::{CharterRecord, Lattice};

const LOWEST: DocumentId = DocumentId::from_bytes([0; 32]);
const HIGHEST: DocumentId = DocumentId::from_bytes([255; 32]);

impl Lattice {
    /// Approves `charter` as the next version, as `witness` of the one in force; changes nothing.
    /// The events have to be durable before the approval is sent: from then on the witness
    /// acknowledges nothing under the version in force.
    ///
    /// # Errors
    ///
    /// The first [`CharterError`] that applies.
    pub fn propose_charter(
        &self,
        witness: &SecretKey,
        charter: &Charter,
    ) -> Result<(Vec<LatticeEvent>, CharterApproval), CharterError> {
        self.check_successor(charter)?;
        let key = witness.public();
        let current = self.charter();
        current.witness_bit(&key).ok_or(CharterError::NotAWitness { witness: key })?;
        let id = charter_id(self.mesh, &charter_bytes(charter)?);
        for slot in &charter.reopens {
            self.check_reopens(*slot)?;
        }
        let signed = self.approved.get(&(key, current.version));
        if signed.is_some_and(|signed| *signed != id) {
            return Err(CharterError::OtherSuccessor);
        }
        let acknowledged = self
            .own_acks
            .iter()
            .filter(|((_, signer), _)| *signer == key)
            .filter_map(|(_, (entry, _))| Some(self.pending.entries.get(entry)?.entry.clone()))
            .collect();
        let approval = CharterApproval::sign(self.mesh, witness, id, acknowledged);
        let (bytes, max) = (approval.attached_bytes(), self.attached_max());
        if bytes > max {
            return Err(CharterError::InFlight { bytes, max });
        }
        let approved =
            LatticeEvent::CharterApproved { witness: key, current: current.version, charter: id };
        let events = if signed.is_some() { Vec::new() } else { vec![approved] };
        Ok((events, approval))
    }

    /// The exact bytes of a charter, as [`Lattice::receive_charter`] takes them.
    ///
    /// # Errors
    ///
    /// [`CharterError::Signed`] when the charter is too large.
    pub fn charter_bytes(charter: &Charter) -> Result<Vec<u8>, CharterError> {
        charter_bytes(charter)
    }

    /// What receiving the next charter with its approvals would change; changes nothing. Nothing
    /// when it is in force already.
    ///
    /// # Errors
    ///
    /// The first [`CharterError`] that applies.
    pub fn receive_charter(
        &self,
        bytes: &[u8],
        approvals: &[CharterApproval],
    ) -> Result<Vec<LatticeEvent>, CharterError> {
        let charter: Charter = decode_body(bytes)?;
        let id = charter_id(self.mesh, bytes);
        if self.charters.values().any(|record| record.id == id) {
            return Ok(Vec::new());
        }
        self.check_successor(&charter)?;
        let current = self.charter();
        self.check_approvals(id, approvals)?;
        let signed = approvals.len();
        if signed < usize::from(current.quorum) {
            return Err(CharterError::TooFew { signed, quorum: current.quorum });
        }
        for approval in approvals {
            approval.verify(self.mesh)?;
        }
        let approvals = approvals.to_vec();
        Ok(vec![LatticeEvent::CharterAdopted { bytes: bytes.to_vec(), id, approvals }])
    }

    /// Puts the next charter in force.
    pub(super) fn adopt(&mut self, bytes: &[u8], id: DocumentId, approvals: &[CharterApproval]) {
        let Ok(charter) = decode_body::<Charter>(bytes) else {
            return;
        };
        let version = charter.version;
        if version != self.charter().version.saturating_add(1) {
            return;
        }
        for entry in approvals.iter().flat_map(|approval| &approval.acknowledged) {
            if self.final_at(entry.entry().slot()).is_none() {
                self.carried.insert((entry.entry().slot(), entry.id()), entry.clone());
            }
        }
        for slot in &charter.reopens {
            self.reopen(*slot);
        }
        let (bytes, approvals) = (bytes.to_vec(), approvals.to_vec());
        let record = CharterRecord { id, charter, bytes, signature: None, approvals };
        self.charters.insert(version, record);
        self.proposals.clear();
        self.parking.release(Dependency::Charter(version));
    }

    /// Forgets the rivals of a closed slot: its owner signs anew.
    fn reopen(&mut self, slot: Slot) {
        self.forget_carried(slot);
        let rivals: Vec<DocumentId> = self.pending.rivals(slot).collect();
        for rival in rivals {
            self.pending.remove_branch(rival);
        }
        let (lowest, highest) = (PublicKey::from_bytes([0; 32]), PublicKey::from_bytes([255; 32]));
        let after = Slot { seq: u64::MAX, ..slot };
        // What was promised above the slot rested on one of its rivals.
        let promised = self.own_acks.range((slot, lowest)..=(after, highest));
        let promised: Vec<_> = promised.map(|(key, _)| *key).collect();
        for key in promised {
            self.own_acks.remove(&key);
        }
    }

    pub(super) fn forget_carried(&mut self, slot: Slot) {
        let ids: Vec<DocumentId> = self.carried_in(slot).map(|(id, _)| id).collect();
        for id in ids {
            self.carried.remove(&(slot, id));
        }
    }

    /// What old witnesses had acknowledged in `slot`.
    pub(super) fn carried_in(
        &self,
        slot: Slot,
    ) -> impl Iterator<Item = (DocumentId, &SignedEntry)> {
        self.carried.range((slot, LOWEST)..=(slot, HIGHEST)).map(|((_, id), entry)| (*id, entry))
    }

    /// Whether old witnesses had acknowledged different entries in `slot`.
    pub(super) fn carried_rivals(&self, slot: Slot) -> bool {
        self.carried_in(slot).nth(1).is_some()
    }

    fn has_rivals(&self, slot: Slot) -> bool {
        self.pending.rivals(slot).nth(1).is_some() || self.carried_rivals(slot)
    }

    /// Whether a charter may reopen `slot`: it has rivals, and none of them is final.
    pub(super) fn check_reopens(&self, slot: Slot) -> Result<(), CharterError> {
        if self.final_at(slot).is_some() || !self.has_rivals(slot) {
            return Err(CharterError::NotClosed { chain: slot.chain, seq: slot.seq });
        }
        Ok(())
    }

    /// The id that the successor with these bytes has.
    pub(super) fn charter_id_of(&self, bytes: &[u8]) -> DocumentId {
        charter_id(self.mesh, bytes)
    }

    pub(super) fn check_successor(&self, charter: &Charter) -> Result<(), CharterError> {
        charter.validate()?;
        let record = self.current();
        let current = record.charter.version;
        if charter.version != current.saturating_add(1) {
            return Err(CharterError::NotNext { current, given: charter.version });
        }
        if charter.previous != Some(record.id) {
            return Err(CharterError::WrongPrevious);
        }
        Ok(())
    }
}

fn charter_bytes(charter: &Charter) -> Result<Vec<u8>, CharterError> {
    let malformed = SignedError::Malformed { kind: Charter::KIND };
    minicbor::to_vec(charter).map_err(|_| CharterError::Signed(malformed))
}

/// A successor's id is over the mesh's id: no other mesh can adopt it.
fn charter_id(mesh: MeshId, bytes: &[u8]) -> DocumentId {
    let message = signing_message(Charter::KIND, mesh, bytes);
    DocumentId::from_bytes(*blake3::hash(&message).as_bytes())
}
