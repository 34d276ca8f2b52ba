//! The node's own chain and its part as a witness: opening the chain, signing entries, taking
//! entries and acknowledgements from others, checkpoints.

use tirami_core::{Document, DocumentId, SecretKey, Signature, Signed, Timestamp, Trm};

use super::{Context, Decision, Keyring, Ledger};
use crate::Rejection;
use crate::command::Outcome;
use crate::event::Event;
use crate::lattice::{
    Acknowledgement, Certificate, Enrol, Entry, EntryKind, Lattice, LatticeEvent, Line, Open, Slot,
};

/// Whom a founder enrols itself as.
const FOUNDER_LABEL: &str = "founder";

impl Ledger {
    pub(super) fn open_chain(
        &self,
        now: Timestamp,
        keys: &Keyring,
        line: Trm,
    ) -> Result<Decision, Rejection> {
        let is_pending = self.lattice.pending_of(self.party).next().is_some();
        if is_pending || self.lattice.chain(self.party).is_some() {
            return Err(Rejection::Exists { what: "the chain" });
        }
        // Each entry rests on the one before being final, so they are tried on a copy, which at
        // this point is small: a mesh of one whose only chain is not open.
        let mut founding = Founding { lattice: self.lattice.clone(), events: Vec::new(), now };
        founding.sign(self, keys, Open { sponsor: None, enrol: None, recovery: None }.into())?;
        let enrol = Enrol { party: self.party, owner: FOUNDER_LABEL.to_owned(), line };
        let enrol = founding.sign(self, keys, enrol.into())?;
        let entry = founding.sign(self, keys, Line { enrol }.into())?;
        let events = lattice_events(founding.events);
        Ok(Decision { events, outcome: Outcome::Entry { entry, acknowledgement: None } })
    }

    pub(super) fn sign_entry(
        &self,
        now: Timestamp,
        keys: &Keyring,
        kind: &EntryKind,
    ) -> Result<Decision, Rejection> {
        self.check_may_sign()?;
        let entry = self.lattice.draft(self.party, now, kind.clone())?;
        // What belongs to the agents is not the node's to pay with.
        let debit = self.chain_balance() - i128::from(entry.balance);
        let available = self.fundable();
        if debit > available.signed() {
            let needed = Trm::from_micro(u64::try_from(debit).unwrap_or(u64::MAX));
            return Err(Rejection::Insufficient { needed, available });
        }
        let (entry, events) = self.signed_entry(&keys.node, entry)?;
        let outcome = Outcome::Entry { entry, acknowledgement: None };
        Ok(Decision { events: lattice_events(events), outcome })
    }

    /// Signs an entry of the node's own chain and takes it as pending. Every entry this node
    /// signs after its first ones passes here.
    pub(super) fn signed_entry(
        &self,
        key: &SecretKey,
        entry: Entry,
    ) -> Result<(DocumentId, Vec<LatticeEvent>), Rejection> {
        self.check_may_sign()?;
        let signed = self.sign(key, entry)?;
        let events = self.lattice.receive_entry(signed.bytes(), signed.signature())?;
        Ok((signed.id(), events))
    }

    pub(super) fn receive_entry(
        &self,
        bytes: &[u8],
        signature: Signature,
    ) -> Result<Decision, Rejection> {
        Ok(taken(self.lattice.receive_entry(bytes, signature)?))
    }

    pub(super) fn receive_certified(
        &self,
        bytes: &[u8],
        signature: Signature,
        certificate: &Certificate,
    ) -> Result<Decision, Rejection> {
        let events = self.lattice.receive_certified(bytes, signature, certificate)?;
        Ok(taken(events))
    }

    pub(super) fn receive_cut(
        &self,
        checkpoint: DocumentId,
        slots: &[Slot],
    ) -> Result<Decision, Rejection> {
        Ok(taken(self.lattice.receive_cut(checkpoint, slots)?))
    }

    pub(super) fn acknowledge(
        &self,
        now: Timestamp,
        keys: &Keyring,
        entry: DocumentId,
    ) -> Result<Decision, Rejection> {
        self.check_confirmed()?;
        self.check_claims(now, entry)?;
        let (events, acknowledgement) = self.lattice.acknowledge(now, &keys.node, entry)?;
        let outcome = Outcome::Entry { entry, acknowledgement: Some(Box::new(acknowledgement)) };
        Ok(Decision { events: lattice_events(events), outcome })
    }

    pub(super) fn receive_acknowledgement(
        &self,
        acknowledgement: &Acknowledgement,
    ) -> Result<Decision, Rejection> {
        Ok(taken(self.lattice.receive_acknowledgement(acknowledgement)?))
    }

    /// What is due: the ends of holds, approvals and served jobs, claims, and the next entry of
    /// the node's chain: the clerk's checkpoint, else a payment, else a collection.
    pub(super) fn tick(&self, now: Timestamp, keys: &Keyring) -> Decision {
        let mut decision = Decision::done(self.book.due(now));
        decision.events.extend(self.dun(now, keys));
        let draft = self.is_clerk().then(|| self.lattice.draft_checkpoint(now)).flatten();
        // A clerk whose key was replaced elsewhere, or that asks how far its chain goes, cannot
        // sign it. What else is due is tried all the same, so that it is put off and not asked
        // for again at once.
        match draft.and_then(|entry| self.signed_entry(&keys.node, entry).ok()) {
            Some((_, events)) => decision.events.extend(lattice_events(events)),
            None => decision.events.extend(self.settle(now, keys)),
        }
        decision
    }

    fn is_clerk(&self) -> bool {
        self.lattice.charter().clerk == self.party
    }

    /// The earliest time of the next checkpoint when this node is the clerk; none when nothing
    /// is on its chain yet. At that time [`crate::command::Command::Tick`] writes one if anything
    /// changed.
    pub fn checkpoint_due(&self) -> Option<Timestamp> {
        self.lattice.chain(self.party).filter(|_| self.is_clerk())?;
        Some(self.lattice.next_checkpoint())
    }

    /// What the events applied so far made possible: entries that became final or need to wait no
    /// longer, and this witness's acknowledgement of the node's own entries. Nothing when nothing
    /// is left to do. The events are stored with those before them.
    pub fn resume(&self, context: &Context<'_>) -> Vec<Event> {
        let mut events = self.lattice.resume();
        if events.is_empty() {
            events = self.own_acknowledgement(context).unwrap_or_default();
        }
        lattice_events(events)
    }

    fn own_acknowledgement(&self, context: &Context<'_>) -> Option<Vec<LatticeEvent>> {
        self.check_confirmed().ok()?;
        let witness = context.keys.node.public();
        let version = self.lattice.charter().version;
        let mut pending = self.lattice.pending_of(self.party);
        let open = pending.find(|own| own.acknowledged_by(version).all(|by| by != witness))?;
        // A refusal is no fault: this node may be no witness, or the entry has to wait.
        self.check_claims(context.now, open.entry().id()).ok()?;
        let decided = self.lattice.acknowledge(context.now, &context.keys.node, open.entry().id());
        decided.ok().map(|(events, _)| events)
    }

    /// Applies `events` and then everything they make possible; gives all of it, in order, to be
    /// stored together.
    pub fn absorb(&mut self, context: &Context<'_>, events: Vec<Event>) -> Vec<Event> {
        let mut all = Vec::new();
        let mut next = events;
        while !next.is_empty() {
            let touches_lattice = next.iter().any(|event| matches!(event, Event::Lattice(_)));
            next.iter().for_each(|event| self.apply(event));
            // Payments for served jobs follow the entry they are in.
            let settled: Vec<Event> =
                next.iter().flat_map(|event| self.settled_by(event)).collect();
            settled.iter().for_each(|event| self.apply(event));
            all.append(&mut next);
            all.extend(settled);
            if touches_lattice {
                next = self.resume(context);
            }
        }
        all
    }

    pub(super) fn sign<T: Document>(
        &self,
        key: &SecretKey,
        body: T,
    ) -> Result<Signed<T>, Rejection> {
        // Every text and list in a body is bounded far below the limit of signed bytes.
        Signed::sign(self.lattice.mesh(), key, body)
            .map_err(|_| Rejection::OutOfRange { field: "document", range: "at most 16 KiB" })
    }
}

/// What somebody else sent was taken, or was known already.
pub(super) fn taken(events: Vec<LatticeEvent>) -> Decision {
    Decision { events: lattice_events(events), outcome: Outcome::Done }
}

pub(super) fn lattice_events(events: Vec<LatticeEvent>) -> Vec<Event> {
    events.into_iter().map(|event| Event::Lattice(Box::new(event))).collect()
}

/// The first entries of a founder's chain, each made final before the next is written.
struct Founding {
    lattice: Lattice,
    events: Vec<LatticeEvent>,
    now: Timestamp,
}

impl Founding {
    fn sign(
        &mut self,
        ledger: &Ledger,
        keys: &Keyring,
        kind: EntryKind,
    ) -> Result<DocumentId, Rejection> {
        let entry = self.lattice.draft(ledger.party, self.now, kind)?;
        let entry = ledger.sign(&keys.node, entry)?;
        let pending = self.lattice.receive_entry(entry.bytes(), entry.signature())?;
        self.events.extend(self.lattice.absorb(pending));
        let (made, _) = self.lattice.acknowledge(self.now, &keys.node, entry.id())?;
        self.events.extend(self.lattice.absorb(made));
        Ok(entry.id())
    }
}
