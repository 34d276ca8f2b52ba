//! Finality: own entries to the witnesses, acknowledgements back, and this node's own part as a
//! witness for others (MONEY §4).

use std::collections::BTreeMap;

use tirami_core::{Digest, Document, DocumentId, PartyId, Timestamp, decode_body, signing_message};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::lattice::{
    AcknowledgeRefusal, Acknowledgement, Entry, EntryKind, EntryRejection, SignedEntry,
};
use tirami_proto::{Fault, Message, TokenBucket, WireEntry};

use super::sync::fault_of;
use super::{Mesh, Serve};
use crate::kernel::{Effects, Kernel};

/// Own entries that one witness is asked to acknowledge and has not answered.
pub const OFFERED_MAX: usize = 64;
/// Entries of one chain that are not final and that a witness holds.
pub const PENDING_PER_CHAIN_MAX: usize = 128;
/// Entries that wait for something and came from one peer.
pub const PARKED_PER_PEER_MAX: usize = 64;
/// When a witness that has not answered is asked again.
const OFFER_AGAIN_MS: u64 = 2_000;
/// Entries of others that this witness could not acknowledge yet and looks at again.
const WAITING_MAX: usize = 1_024;
/// Chains that parties without a grant open, each second in the long run and at once: the bytes of
/// each are kept for ever, whether it is acknowledged or not.
pub const FREE_OPENS: (u32, u32) = (1, 64);
/// Entries looked at again at once.
const AGAIN_MAX: usize = 64;
/// What the owner reads of offers that this witness refused.
const SLOT_TAKEN: &str = "entry_slot_taken";
const TOO_MANY: &str = "entry_too_many";
const UNPAID_CLAIM: &str = "entry_unpaid_claim";

/// What this node does as a witness.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk {
    /// Entries that could not be acknowledged yet, and who asked.
    waiting: BTreeMap<DocumentId, PartyId>,
    /// Whether something became final since they were looked at.
    pub(super) again: bool,
    cursor: Option<DocumentId>,
    /// How many chains without a grant may still be opened now.
    free_opens: Option<TokenBucket>,
    /// When the last checkpoint's cut was asked for.
    cut_asked_at: Option<Timestamp>,
    /// Who sent which parked entry, by its number in the order of parking.
    parked: BTreeMap<u64, PartyId>,
}

impl Desk {
    /// An entry was parked; `number` says which.
    pub(super) fn parked(&mut self, number: u64, source: Option<PartyId>) {
        if let Some(source) = source {
            self.parked.insert(number, source);
        }
    }

    pub(super) fn unparked(&mut self, number: u64) -> Option<PartyId> {
        self.parked.remove(&number)
    }

    /// Whether too many chains without a grant were opened just now; counts one more.
    fn is_crowded(&mut self, now: Timestamp) -> bool {
        let (per_second, burst) = FREE_OPENS;
        let room = self.free_opens.get_or_insert(TokenBucket::new(per_second, burst, now));
        room.take(1, now).is_err()
    }

    fn parked_of(&self, peer: PartyId) -> usize {
        self.parked.values().filter(|source| **source == peer).count()
    }
}

impl Mesh {
    /// Entries of others that wait for this witness: what they rest on is not final here.
    pub fn entries_waiting(&self) -> usize {
        self.desk.waiting.len()
    }
}

impl Kernel {
    /// Whether the party's first key is a witness of the charter in force.
    pub(super) fn is_witness(&self, party: PartyId) -> bool {
        self.ledger.lattice().charter().witnesses.iter().any(|key| key.party() == party)
    }

    /// The witnesses that are open peers.
    pub(super) fn open_witnesses(&self) -> Vec<PartyId> {
        let witnesses = self.ledger.lattice().charter().witnesses.iter();
        witnesses.map(|key| key.party()).filter(|party| self.mesh.is_open(*party)).collect()
    }

    /// Sends own entries that are not final to the witnesses that have not acknowledged them:
    /// the new ones, or all `again`.
    pub(super) fn offer_entries(&mut self, again: bool, effects: &mut Effects) {
        if self.mesh.peers.is_empty() {
            return;
        }
        let (party, lattice) = (self.ledger.party(), self.ledger.lattice());
        let version = lattice.charter().version;
        let keys = lattice.charter().witnesses.iter();
        for (witness, key) in keys.map(|key| (key.party(), *key)) {
            let now = self.clock;
            let Some(peer) = self.mesh.peers.get_mut(&witness).filter(|peer| peer.is_open()) else {
                continue;
            };
            let late = peer.offered_at.is_none_or(|at| now >= at.plus_ms(OFFER_AGAIN_MS));
            let mut next = if again && late { 0 } else { peer.offered_seq };
            let pending = lattice.pending_of(party).take(OFFERED_MAX);
            for own in pending {
                let entry = own.entry();
                let seq = entry.entry().seq;
                if seq < next || own.acknowledged_by(version).any(|by| by == key) {
                    continue;
                }
                next = seq.saturating_add(1);
                peer.offered_at = Some(now);
                effects.send.push((witness, Message::Entry(wire_entry(entry))));
            }
            peer.offered_seq = next.max(peer.offered_seq);
        }
    }

    /// Another node asks for an acknowledgement.
    pub(super) fn take_offer(&mut self, from: PartyId, entry: WireEntry, effects: &mut Effects) {
        let WireEntry { bytes, signature } = entry;
        let id = entry_id(self, &bytes);
        let body = decode_body::<Entry>(&bytes).ok();
        let chain = body.as_ref().map(|body| body.chain);
        if chain == Some(self.ledger.party()) {
            // An entry of this node's own that it may have lost.
            self.note_highest(&WireEntry { bytes, signature }, effects);
            return;
        }
        if !self.is_witness(self.keys.node.public().party()) {
            refuse(from, id, ("not_a_witness", false), effects);
            return;
        }
        let lattice = self.ledger.lattice();
        let known = lattice.pending_entry(id).is_some() || lattice.final_entry(id).is_some();
        let many =
            chain.is_some_and(|chain| lattice.pending_of(chain).count() >= PENDING_PER_CHAIN_MAX);
        let is_new = chain.is_some_and(|chain| lattice.pending_of(chain).next().is_none());
        let is_free = body.as_ref().is_some_and(opens_free) && is_new;
        let many = many || self.mesh.desk.parked_of(from) >= PARKED_PER_PEER_MAX;
        if !known && (many || (is_free && self.mesh.desk.is_crowded(self.clock))) {
            refuse(from, id, ("too_many", true), effects);
            return;
        }
        self.mesh.offering = Some(from);
        if let Err(rejection) = self.take_entry(bytes, signature, effects) {
            let taken = matches!(rejection, Rejection::Entry(EntryRejection::SlotTaken { .. }));
            effects.refused.push((from, if taken { SLOT_TAKEN } else { rejection.code() }));
            let code = if taken { "slot_taken" } else { rejection.code() };
            let message = Message::EntryRefused {
                entry: id,
                code: code.to_owned(),
                reason: sentence(&rejection.to_string()),
                retry: matches!(rejection, Rejection::Entry(EntryRejection::Full)),
            };
            effects.send.push((from, message));
            if taken && let Some(body) = body {
                effects.serve.push(Serve {
                    peer: from,
                    chain: body.chain,
                    from_seq: body.seq,
                    max: 1,
                });
            }
            if let Some(fault) = fault_of(&rejection) {
                self.fault(from, fault, effects);
            }
            return;
        }
        if let Some(refusal) = self.acknowledge(from, id, effects) {
            if let Rejection::Acknowledge(AcknowledgeRefusal::UnpaidClaim { .. }) = refusal {
                effects.refused.push((from, UNPAID_CLAIM));
            }
            let message = Message::EntryRefused {
                entry: id,
                code: refusal.code().to_owned(),
                reason: sentence(&refusal.to_string()),
                retry: true,
            };
            effects.send.push((from, message));
        }
    }

    /// Acknowledges an entry that was received. Why it has to wait, if it has.
    fn acknowledge(
        &mut self,
        to: PartyId,
        id: DocumentId,
        effects: &mut Effects,
    ) -> Option<Rejection> {
        let refusal = match self.decide(&Actor::Node, &Command::Acknowledge { entry: id }) {
            Ok((events, outcome)) => {
                self.mesh.desk.waiting.remove(&id);
                self.take(events, effects);
                if let Outcome::Entry { acknowledgement: Some(acknowledgement), .. } = outcome
                    && let Ok(bytes) = minicbor::to_vec(*acknowledgement)
                {
                    effects.send.push((to, Message::Acknowledgement(bytes)));
                }
                return None;
            }
            Err(rejection) => rejection,
        };
        match &refusal {
            Rejection::Acknowledge(AcknowledgeRefusal::Final) => {
                self.mesh.desk.waiting.remove(&id);
                if let Some(known) = self.ledger.lattice().final_entry(id) {
                    let (chain, from_seq) = (known.slot.chain, known.slot.seq);
                    effects.serve.push(Serve { peer: to, chain, from_seq, max: 1 });
                }
                return None;
            }
            Rejection::Acknowledge(AcknowledgeRefusal::SlotTaken { taken, .. }) => {
                self.mesh.desk.waiting.remove(&id);
                refuse(to, id, ("slot_taken", false), effects);
                self.show_rival(to, *taken, effects);
                return None;
            }
            Rejection::Acknowledge(AcknowledgeRefusal::CutUnknown) => {
                effects.send.push((to, Message::WantCut { checkpoint: id }));
            }
            // It is parked: what it rests on may be at the one who sent it.
            Rejection::Acknowledge(AcknowledgeRefusal::Unknown) => self.compare_with(to, effects),
            _ => {}
        }
        let waiting = &mut self.mesh.desk.waiting;
        if waiting.len() < WAITING_MAX || waiting.contains_key(&id) {
            waiting.insert(id, to);
        }
        Some(refusal)
    }

    /// Shows an owner which of its entries has the slot.
    fn show_rival(&self, to: PartyId, taken: DocumentId, effects: &mut Effects) {
        let lattice = self.ledger.lattice();
        if let Some(pending) = lattice.pending_entry(taken) {
            effects.send.push((to, Message::Entry(wire_entry(pending.entry()))));
        } else if let Some(known) = lattice.final_entry(taken) {
            let (chain, from_seq) = (known.slot.chain, known.slot.seq);
            effects.serve.push(Serve { peer: to, chain, from_seq, max: 1 });
        }
    }

    /// Looks again at entries that could not be acknowledged, after something became final.
    pub(super) fn acknowledge_waiting(&mut self, effects: &mut Effects) {
        if !core::mem::take(&mut self.mesh.desk.again) || self.mesh.desk.waiting.is_empty() {
            return;
        }
        let desk = &mut self.mesh.desk;
        let after = desk.waiting.iter().filter(|(id, _)| Some(**id) > desk.cursor);
        let mut ready: Vec<_> = after.take(AGAIN_MAX).map(|(id, to)| (*id, *to)).collect();
        if ready.len() < AGAIN_MAX {
            let before = desk.waiting.iter().filter(|(id, _)| Some(**id) <= desk.cursor);
            ready.extend(before.take(AGAIN_MAX - ready.len()).map(|(id, to)| (*id, *to)));
        }
        desk.cursor = ready.last().map(|(id, _)| *id);
        for (id, to) in ready {
            let lattice = self.ledger.lattice();
            let parked = lattice.pending_entry(id).is_none() && lattice.final_entry(id).is_none();
            if !self.mesh.is_open(to) {
                self.mesh.desk.waiting.remove(&id);
            } else if !parked {
                let _still_waits = self.acknowledge(to, id, effects);
            }
        }
    }

    pub(super) fn take_acknowledgement(
        &mut self,
        from: PartyId,
        bytes: &[u8],
        effects: &mut Effects,
    ) {
        let Ok(acknowledgement) = minicbor::decode::<Acknowledgement>(bytes) else {
            self.fault(from, Fault::Malformed, effects);
            return;
        };
        // One for an entry that is final by now, or that was never sent, changes nothing.
        if self.ledger.lattice().pending_entry(acknowledgement.entry).is_none() {
            return;
        }
        let command = Command::ReceiveAcknowledgement { acknowledgement };
        match self.decide(&Actor::Node, &command) {
            Ok((events, _)) => {
                self.take(events, effects);
                self.offer_entries(false, effects);
            }
            Err(Rejection::Entry(EntryRejection::MissingCharter { .. })) => {
                self.ask_charters(from, effects);
            }
            Err(rejection) => {
                if let Some(fault) = fault_of(&rejection) {
                    self.fault(from, fault, effects);
                }
            }
        }
    }

    /// A witness does not acknowledge an own entry. Only a taken slot needs something done: the
    /// branch that has it is fetched, and the ledger signs nothing after rivals.
    pub(super) fn take_refusal(&mut self, from: PartyId, code: &str, effects: &mut Effects) {
        if code == "slot_taken" && self.is_witness(from) {
            self.ask_highest(from, effects);
        }
    }

    /// Asks witnesses again that did not answer.
    pub(super) fn beat_witness(&mut self, effects: &mut Effects) {
        self.mesh.desk.again = true;
        self.ask_cut(effects);
        self.acknowledge_waiting(effects);
        self.offer_entries(true, effects);
    }

    /// A witness that learned of the last checkpoint when it was final does not know what it
    /// covers, and cannot judge the next one without.
    fn ask_cut(&mut self, effects: &mut Effects) {
        let lattice = self.ledger.lattice();
        let (own, clerk) = (self.ledger.party(), lattice.charter().clerk);
        let Some(checkpoint) = lattice.missing_cut() else { return };
        let late =
            self.mesh.desk.cut_asked_at.is_none_or(|at| self.clock >= at.plus_ms(OFFER_AGAIN_MS));
        if !late || (own != clerk && !self.is_witness(own)) {
            return;
        }
        self.mesh.desk.cut_asked_at = Some(self.clock);
        let mut from = self.open_witnesses();
        if self.mesh.is_open(clerk) && !from.contains(&clerk) {
            from.push(clerk);
        }
        effects.send.extend(from.into_iter().map(|to| (to, Message::WantCut { checkpoint })));
    }
}

/// Whether an entry opens a chain that nobody granted anything.
fn opens_free(entry: &Entry) -> bool {
    matches!(&entry.kind, EntryKind::Open(open) if open.enrol.is_none() && open.sponsor.is_none())
}

pub(super) fn wire_entry(entry: &SignedEntry) -> WireEntry {
    WireEntry { bytes: entry.bytes().to_vec(), signature: entry.signature() }
}

fn entry_id(kernel: &Kernel, bytes: &[u8]) -> DocumentId {
    let message = signing_message(Entry::KIND, kernel.ledger.lattice().mesh(), bytes);
    DocumentId::from_bytes(*Digest::of(&message).as_bytes())
}

fn refuse(to: PartyId, entry: DocumentId, (code, retry): (&str, bool), effects: &mut Effects) {
    match code {
        "slot_taken" => effects.refused.push((to, SLOT_TAKEN)),
        "too_many" => effects.refused.push((to, TOO_MANY)),
        _ => {}
    }
    let reason = match code {
        "not_a_witness" => "this node is no witness of the charter in force",
        "too_many" => "too many entries of this chain or this peer wait here; try again later",
        _ => "another entry has the slot; adopt that branch before signing again",
    };
    let (code, reason) = (code.to_owned(), reason.to_owned());
    effects.send.push((to, Message::EntryRefused { entry, code, reason, retry }));
}

/// A sentence that fits a message.
pub(super) fn sentence(reason: &str) -> String {
    let mut end = reason.len().min(tirami_proto::REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}
