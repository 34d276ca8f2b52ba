//! The history of a mesh's charter: every version with what proves it, so that a newcomer can
//! follow it from the mesh's id, and the successors that are on their way.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, MeshId, PartyId, PublicKey, SecretKey, Signature, Signed, Trm};

use super::Lattice;
use super::charter::{Charter, CharterApproval, CharterError, Params};
use super::entry::SignedEntry;
use super::event::LatticeEvent;
use super::state::Slot;

/// The most bytes of entries that one approval attaches, times the quorum: all approvals of a
/// charter fit one frame between peers.
pub const ATTACHED_BYTES_MAX: usize = 768 << 10;

/// A version of the charter and what proves it: for version 1 the founder's signature, for each
/// later one the approvals of a quorum of the witnesses before.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CharterProof {
    /// The charter's bytes, verbatim.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// The founder's signature; only of version 1.
    #[n(1)]
    pub signature: Option<Signature>,
    /// Approvals of old witnesses; none of version 1.
    #[n(2)]
    pub approvals: Vec<CharterApproval>,
}

/// What the next version of the charter changes. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CharterChange {
    /// All witnesses from then on.
    pub witnesses: Option<Vec<PublicKey>>,
    /// The quorum; [`Charter::default_quorum`] when only the witnesses change.
    pub quorum: Option<u8>,
    /// Whose chain carries checkpoints.
    pub clerk: Option<PartyId>,
    /// Whose chain enrols members.
    pub registrar: Option<PartyId>,
    /// All auditors from then on.
    pub auditors: Option<Vec<PartyId>>,
    /// The most that the lines enrolled may sum to.
    pub line_total: Option<Trm>,
    /// The numbers in the rules.
    pub params: Option<Params>,
    /// Closed slots that are opened again.
    pub reopens: Vec<Slot>,
}

/// A successor of the charter in force that is not in force yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Proposal {
    #[cbor(n(0), with = "minicbor::bytes")]
    bytes: Vec<u8>,
    #[n(1)]
    approvals: BTreeMap<PublicKey, CharterApproval>,
}

impl Lattice {
    /// The lattice of `mesh` at the last version of `history`, without any entry: where a node
    /// begins that joins. `history` begins with version 1 and has no gap.
    ///
    /// # Errors
    ///
    /// [`CharterError`] of the first version that is not proved, and [`CharterError::NotFirst`]
    /// when the history is empty or its first version is not the charter of `mesh`.
    pub fn from_history(mesh: MeshId, history: &[CharterProof]) -> Result<Self, CharterError> {
        let (first, later) = history.split_first().ok_or(CharterError::NotFirst)?;
        let signature = first.signature.ok_or(CharterError::NotFirst)?;
        let signed = Signed::from_store(Charter::founding_mesh(), first.bytes.clone(), signature)?;
        let mut lattice = Self::found(&signed)?;
        if lattice.mesh != mesh {
            return Err(CharterError::NotFirst);
        }
        for proof in later {
            let events = lattice.receive_charter(&proof.bytes, &proof.approvals)?;
            lattice.absorb(events);
        }
        Ok(lattice)
    }

    /// Every version of the charter above `after` with its proof, in order: what a newcomer needs
    /// for [`Lattice::from_history`] (`after` = 0), and a node that was away to follow.
    pub fn charters(&self, after: u32) -> impl Iterator<Item = CharterProof> {
        let later = self.charters.range(after.saturating_add(1)..);
        later.map(|(_, record)| CharterProof {
            bytes: record.bytes.clone(),
            signature: record.signature,
            approvals: record.approvals.clone(),
        })
    }

    /// The next version of the charter in force with `change`, as bytes that witnesses approve;
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// The first [`CharterError`] that applies.
    pub fn draft_charter(&self, change: &CharterChange) -> Result<Vec<u8>, CharterError> {
        let next = self.charter().next(self.charter_id(), change);
        next.validate()?;
        for slot in &next.reopens {
            self.check_reopens(*slot)?;
        }
        let bytes = Self::charter_bytes(&next)?;
        // What could not be read back is not proposed.
        tirami_core::decode_body::<Charter>(&bytes)?;
        Ok(bytes)
    }

    /// Approves the successor `bytes` as `witness`, and keeps it with the approval until it is in
    /// force; changes nothing. The events have to be durable before the approval is sent: from
    /// then on the witness acknowledges nothing under the version in force. Approved before, the
    /// approval is the same again and there are no events.
    ///
    /// # Errors
    ///
    /// The first [`CharterError`] that applies.
    pub fn approve_charter(
        &self,
        witness: &SecretKey,
        bytes: &[u8],
    ) -> Result<(Vec<LatticeEvent>, CharterApproval), CharterError> {
        let charter: Charter = tirami_core::decode_body(bytes)?;
        let id = self.charter_id_of(bytes);
        let kept = self.proposals.get(&id).and_then(|kept| kept.approvals.get(&witness.public()));
        if let Some(approval) = kept {
            return Ok((Vec::new(), approval.clone()));
        }
        let (mut events, approval) = self.propose_charter(witness, &charter)?;
        let approvals = vec![approval.clone()];
        events.push(LatticeEvent::CharterProposed { bytes: bytes.to_vec(), id, approvals });
        Ok((events, approval))
    }

    /// What learning a successor of the charter in force, or approvals of it, would change;
    /// changes nothing. Nothing when all of it is known. A successor comes into force by
    /// [`Lattice::resume`] as soon as a quorum of approvals is known.
    ///
    /// Of each witness the first approval for a version is kept, so that proposals are bounded by
    /// the witnesses; a successor that nobody approved is not kept.
    ///
    /// # Errors
    ///
    /// The first [`CharterError`] that applies.
    pub fn receive_proposal(
        &self,
        bytes: &[u8],
        approvals: &[CharterApproval],
    ) -> Result<Vec<LatticeEvent>, CharterError> {
        let quorum = self.charter().quorum;
        if approvals.len() >= usize::from(quorum) {
            return self.receive_charter(bytes, approvals);
        }
        let charter: Charter = tirami_core::decode_body(bytes)?;
        let id = self.charter_id_of(bytes);
        if self.charters.values().any(|record| record.id == id) {
            return Ok(Vec::new());
        }
        self.check_successor(&charter)?;
        self.check_approvals(id, approvals)?;
        let heard = |witness: &PublicKey| {
            self.proposals.values().any(|kept| kept.approvals.contains_key(witness))
        };
        let new: Vec<_> =
            approvals.iter().filter(|approval| !heard(&approval.witness)).cloned().collect();
        for approval in &new {
            approval.verify(self.mesh)?;
        }
        if approvals.is_empty() && !self.proposals.contains_key(&id) {
            return Err(CharterError::TooFew { signed: 0, quorum });
        }
        let known =
            LatticeEvent::CharterProposed { bytes: bytes.to_vec(), id, approvals: new.clone() };
        Ok(if new.is_empty() { Vec::new() } else { vec![known] })
    }

    /// The successors of the charter in force that at least one of its witnesses approved: the
    /// charter's id, its bytes, and the approvals known.
    pub fn proposals(
        &self,
    ) -> impl Iterator<Item = (DocumentId, &[u8], impl Iterator<Item = &CharterApproval>)> {
        self.proposals
            .iter()
            .map(|(id, kept)| (*id, kept.bytes.as_slice(), kept.approvals.values()))
    }

    /// What witnesses before the last charter changes had acknowledged and is not settled yet.
    /// Received here and acknowledged by the witnesses in force they become final as they would
    /// have; none of them is lost by its owner being away.
    pub fn carried(&self) -> impl Iterator<Item = &SignedEntry> {
        self.carried.values()
    }

    /// The pending entries that `witness` has not acknowledged under the charter in force, in the
    /// order of their slots: what it looks at after a charter change. O(pending).
    pub fn unacknowledged(&self, witness: PublicKey) -> impl Iterator<Item = DocumentId> {
        let version = self.charter().version;
        self.pending.live.iter().map(|(_, id)| *id).filter(move |id| {
            let pending = self.pending.entries.get(id);
            pending.is_some_and(|pending| !pending.acks.contains_key(&(version, witness)))
        })
    }

    /// The successor whose quorum of approvals is complete.
    pub(super) fn complete_proposal(&self) -> Option<LatticeEvent> {
        let quorum = usize::from(self.charter().quorum);
        let (id, complete) =
            self.proposals.iter().find(|(_, kept)| kept.approvals.len() >= quorum)?;
        let approvals = complete.approvals.values().cloned().collect();
        Some(LatticeEvent::CharterAdopted { bytes: complete.bytes.clone(), id: *id, approvals })
    }

    pub(super) fn keep_proposal(
        &mut self,
        id: DocumentId,
        bytes: &[u8],
        approvals: &[CharterApproval],
    ) {
        let kept = self.proposals.entry(id).or_default();
        bytes.clone_into(&mut kept.bytes);
        for approval in approvals {
            kept.approvals.entry(approval.witness).or_insert_with(|| approval.clone());
        }
    }

    /// Checks everything about approvals of the charter `id` but their signatures and number.
    pub(super) fn check_approvals(
        &self,
        id: DocumentId,
        approvals: &[CharterApproval],
    ) -> Result<(), CharterError> {
        let current = self.charter();
        let mut signed = BTreeSet::new();
        for approval in approvals {
            let witness = approval.witness;
            current.witness_bit(&witness).ok_or(CharterError::NotAWitness { witness })?;
            let fits = approval.attached_bytes() <= self.attached_max()
                && approval.acknowledged.iter().all(|entry| entry.has_its_id(self.mesh));
            if approval.charter != id || !fits || !signed.insert(witness) {
                return Err(CharterError::Approval { witness });
            }
        }
        Ok(())
    }

    /// The most bytes of entries one approval of a successor may attach.
    pub(super) fn attached_max(&self) -> usize {
        ATTACHED_BYTES_MAX / usize::from(self.charter().quorum)
    }
}

impl Charter {
    /// The version after this one, whose id is `previous`, with `change`.
    fn next(&self, previous: DocumentId, change: &CharterChange) -> Self {
        let mut next = self.clone();
        next.version = self.version.saturating_add(1);
        next.previous = Some(previous);
        if let Some(witnesses) = &change.witnesses {
            next.witnesses.clone_from(witnesses);
            // More than fit a charter are refused when it is validated.
            let count = u8::try_from(witnesses.len()).unwrap_or(u8::MAX);
            next.quorum = Self::default_quorum(count);
        }
        next.quorum = change.quorum.unwrap_or(next.quorum);
        next.clerk = change.clerk.unwrap_or(self.clerk);
        next.registrar = change.registrar.unwrap_or(self.registrar);
        next.auditors = change.auditors.clone().unwrap_or_else(|| self.auditors.clone());
        next.line_total = change.line_total.unwrap_or(self.line_total);
        next.params = change.params.unwrap_or(self.params);
        next.reopens.clone_from(&change.reopens);
        next
    }
}

impl CharterApproval {
    /// The bytes of the entries attached.
    pub(super) fn attached_bytes(&self) -> usize {
        self.acknowledged.iter().map(|entry| entry.bytes().len()).sum()
    }
}
