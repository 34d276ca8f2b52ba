//! Changing the charter, and what a node that may have been set back does before it signs.

use tirami_core::{Signature, decode_body, signing_message};

use super::chain::{lattice_events, taken};
use super::{Context, Decision, Keyring, Ledger};
use crate::Rejection;
use crate::command::Outcome;
use crate::lattice::{CharterApproval, CharterChange, Entry, EntryRejection, LatticeEvent, Open};
use tirami_core::{Document, DocumentId};

impl Ledger {
    /// Writes the next charter; approves it at once when this node is a witness.
    pub(super) fn propose_charter(
        &self,
        keys: &Keyring,
        change: &CharterChange,
    ) -> Result<Decision, Rejection> {
        let bytes = self.lattice.draft_charter(change)?;
        if self.lattice.charter().witnesses.contains(&keys.node.public()) {
            return self.approve_charter(keys, &bytes);
        }
        Ok(Decision { events: Vec::new(), outcome: Outcome::Charter { bytes, approval: None } })
    }

    pub(super) fn approve_charter(
        &self,
        keys: &Keyring,
        bytes: &[u8],
    ) -> Result<Decision, Rejection> {
        let (events, approval) = self.lattice.approve_charter(&keys.node, bytes)?;
        let outcome =
            Outcome::Charter { bytes: bytes.to_vec(), approval: Some(Box::new(approval)) };
        Ok(Decision { events: lattice_events(events), outcome })
    }

    pub(super) fn receive_charter(
        &self,
        bytes: &[u8],
        approvals: &[CharterApproval],
    ) -> Result<Decision, Rejection> {
        Ok(taken(self.lattice.receive_proposal(bytes, approvals)?))
    }

    /// The first entry of a newcomer's chain, with the grants it was given.
    pub(super) fn join(
        &self,
        context: &Context<'_>,
        enrol: Option<DocumentId>,
        sponsor: Option<DocumentId>,
    ) -> Result<Decision, Rejection> {
        if self.lattice.next_signed_seq(self.party) > 0 {
            return Err(Rejection::Exists { what: "the chain" });
        }
        let open = Open { sponsor, enrol, recovery: None };
        self.sign_entry(context.now, context.keys, &open.into())
    }

    /// From now on nothing is signed until [`Ledger::confirm_highest`].
    pub(super) fn ask_highest(&self) -> Decision {
        self.noted(0, true)
    }

    pub(super) fn confirm_highest(&self) -> Decision {
        self.noted(0, false)
    }

    /// Somebody shows an entry of this node's chain: the chain is at least that long.
    pub(super) fn note_highest(
        &self,
        keys: &Keyring,
        bytes: &[u8],
        signature: Signature,
    ) -> Result<Decision, Rejection> {
        let entry: Entry = decode_body(bytes).map_err(|_| EntryRejection::Malformed)?;
        if entry.chain != self.party {
            return Err(EntryRejection::WrongPredecessor.into());
        }
        let message = signing_message(Entry::KIND, self.lattice.mesh(), bytes);
        let current = self.lattice.chain(self.party).map(crate::lattice::Chain::key);
        let known = [Some(keys.node.public()), current, Some(self.party.into())];
        let signed =
            known.into_iter().flatten().any(|key| key.verify(&message, &signature).is_ok());
        if !signed {
            return Err(EntryRejection::Key(tirami_core::KeyError::BadSignature).into());
        }
        let next_seq = entry.seq.saturating_add(1);
        let known = self.lattice.next_signed_seq(self.party);
        if next_seq <= known.saturating_add(self.lattice.missing_own(self.party)) {
            return Ok(taken(Vec::new()));
        }
        Ok(self.noted(next_seq, self.lattice.is_asking()))
    }

    fn noted(&self, next_seq: u64, asking: bool) -> Decision {
        if next_seq == 0 && asking == self.lattice.is_asking() {
            return taken(Vec::new());
        }
        taken(vec![LatticeEvent::HighestNoted { chain: self.party, next_seq, asking }])
    }

    /// Refuses to sign while others may know entries of this chain that this node does not.
    pub(super) fn check_may_sign(&self) -> Result<(), Rejection> {
        match self.lattice.missing_own(self.party) {
            0 => self.check_confirmed(),
            missing => Err(Rejection::RolledBack { missing }),
        }
    }

    pub(super) fn check_confirmed(&self) -> Result<(), Rejection> {
        if self.lattice.is_asking() { Err(Rejection::Unconfirmed) } else { Ok(()) }
    }
}
