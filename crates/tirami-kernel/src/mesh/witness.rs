//! Finality: own entries to the witnesses, acknowledgements back, and this node's own part as a
//! witness for others (MONEY §4).

use std::collections::BTreeMap;

use tirami_core::{
    Digest, Document, DocumentId, PartyId, SIGNED_BYTES_MAX, Timestamp, decode_body,
    signing_message,
};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::lattice::{
    AcknowledgeRefusal, Acknowledgement, Entry, EntryKind, EntryRejection, SignedEntry, Slot,
};
use tirami_proto::{Fault, Message, TokenBucket, WireEntry};

use super::Serve;
use super::buckets::{Buckets, Rate};
use super::sync::fault_of;
use crate::kernel::{Effects, Kernel};

/// Own entries that one witness is asked to acknowledge and has not answered.
pub const OFFERED_MAX: usize = 64;
/// Entries of one chain that are not final and that a witness holds.
pub const PENDING_PER_CHAIN_MAX: usize = 128;
/// Bytes of entries of one chain that are not final here: a certificate may stand for all of them,
/// and with it they have to fit a frame.
const PENDING_BYTES_PER_CHAIN_MAX: usize = tirami_proto::CONTROL_FRAME_BYTES_MAX / 2;
/// Entries that wait for something and came from one peer.
pub const PARKED_PER_PEER_MAX: usize = 64;
/// When a witness that has not answered is asked again.
const OFFER_AGAIN_MS: u64 = 2_000;
/// Entries of others that this witness could not acknowledge yet and looks at again.
const WAITING_MAX: usize = 1_024;
/// Chains that parties without a grant open, each second in the long run and at once: the bytes of
/// each are kept for ever, whether it is acknowledged or not.
pub const FREE_OPENS: (u32, u32) = (1, 64);
/// Bytes of entries without a price that a witness acknowledges of one chain, each second in the
/// long run and at once: every node that keeps all chains keeps them for ever.
pub const CHAIN_BYTES: (u32, u32) = (1 << 10, 1 << 20);
/// The same of all chains without a line together: they cost nothing to open. What only a grant
/// makes valid is not among it, so that nobody has to wait for others to take up or give back a
/// line.
const FREE_BYTES: Rate = (64 << 10, 64 << 20);
/// What a final entry counts that is read from the store to be shown: the most it can have.
pub(super) const SHOWN_BYTES: u32 = SIGNED_BYTES_MAX as u32;
/// Entries looked at again at once.
const AGAIN_MAX: usize = 64;
/// What the owner reads of offers that this witness refused.
const SLOT_TAKEN: &str = "entry_slot_taken";
const TOO_MANY: &str = "entry_too_many";
const UNPAID_CLAIM: &str = "entry_unpaid_claim";

/// What this node does as a witness.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk {
    /// Entries that could not be acknowledged yet.
    waiting: BTreeMap<DocumentId, Waiting>,
    /// Whether something became final since they were looked at.
    pub(super) again: bool,
    cursor: Option<DocumentId>,
    /// How many chains without a grant may still be opened now.
    free_opens: Option<TokenBucket>,
    /// What each chain has left of [`CHAIN_BYTES`], and chains without a line of [`FREE_BYTES`].
    bytes: Buckets<PartyId>,
    free_bytes: Option<TokenBucket>,
    /// When the last checkpoint's cut was asked for.
    cut_asked_at: Option<Timestamp>,
    /// Who sent which parked entry, by its number in the order of parking.
    parked: BTreeMap<u64, PartyId>,
}

/// Who asked for an entry that waits, and whether its bytes are counted.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    to: PartyId,
    counted: bool,
}

/// What an entry costs its chain.
struct Cost {
    chain: PartyId,
    bytes: u32,
    /// What it costs all chains without a line, if it is one.
    free: u32,
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

    /// Whether there is room for an entry.
    fn has_bytes(&self, cost: &Cost, now: Timestamp) -> bool {
        let fits_all = cost.free == 0 || self.free_left(now).take(cost.free, now).is_ok();
        cost.bytes == 0 || (fits_all && self.bytes.has(&cost.chain, CHAIN_BYTES, cost.bytes, now))
    }

    /// Counts the bytes of an entry; `false` when there is no room for it.
    fn take_bytes(&mut self, cost: &Cost, now: Timestamp) -> bool {
        if !self.has_bytes(cost, now) {
            return false;
        }
        if cost.free > 0 {
            let mut left = self.free_left(now);
            self.free_bytes = left.take(cost.free, now).is_ok().then_some(left);
        }
        cost.bytes == 0 || self.bytes.take(cost.chain, CHAIN_BYTES, cost.bytes, now)
    }

    fn free_left(&self, now: Timestamp) -> TokenBucket {
        let (per_second, burst) = FREE_BYTES;
        self.free_bytes.unwrap_or(TokenBucket::new(per_second, burst, now))
    }

    fn parked_of(&self, peer: PartyId) -> usize {
        self.parked.values().filter(|source| **source == peer).count()
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
        let slot = body.as_ref().map(Entry::slot);
        if let Some(slot) = slot.filter(|slot| lattice.final_at(*slot) == Some(id)) {
            self.show_final(from, slot, effects);
            return;
        }
        let is_new = lattice.pending_entry(id).is_none();
        let body = body.filter(|_| is_new);
        if body.is_some_and(|body| self.must_wait(from, &body, bytes.len())) {
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
            if taken && let Some(slot) = slot {
                self.show_final(from, slot, effects);
            }
            if let Some(fault) = fault_of(&rejection) {
                self.fault(from, fault, effects);
            }
            return;
        }
        if !self.is_counted(id) {
            refuse(from, id, ("too_many", true), effects);
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

    /// Whether there is no room for an entry that is new here. Nothing of it is verified yet, so
    /// its bytes are not counted: anybody could name another's chain.
    fn must_wait(&mut self, from: PartyId, entry: &Entry, len: usize) -> bool {
        let (now, cost) = (self.clock, self.cost(entry, len));
        let pending = self.ledger.lattice().pending_of(entry.chain);
        let (count, bytes) = pending
            .map(|pending| pending.entry().bytes().len())
            .fold((0, len), |(count, bytes), more| (count + 1, bytes + more));
        let desk = &mut self.mesh.desk;
        count >= PENDING_PER_CHAIN_MAX
            || bytes > PENDING_BYTES_PER_CHAIN_MAX
            || desk.parked_of(from) >= PARKED_PER_PEER_MAX
            || !desk.has_bytes(&cost, now)
            || (count == 0 && opens_free(entry) && desk.is_crowded(now))
    }

    /// Counts the bytes of an entry that is not acknowledged yet, once; `false` when it has to
    /// wait for room. Its author is verified: it is held.
    fn is_counted(&mut self, id: DocumentId) -> bool {
        let (own, lattice) = (self.keys.node.public(), self.ledger.lattice());
        let Some(pending) = lattice.pending_entry(id) else { return true };
        let mut acknowledged = pending.acknowledged_by(lattice.charter().version);
        let waits = self.mesh.desk.waiting.get(&id);
        if acknowledged.any(|by| by == own) || waits.is_some_and(|waits| waits.counted) {
            return true;
        }
        let entry = pending.entry();
        let cost = self.cost(entry.entry(), entry.bytes().len());
        self.mesh.desk.take_bytes(&cost, self.clock)
    }

    fn cost(&self, entry: &Entry, len: usize) -> Cost {
        let has_line = !self.ledger.lattice().line(entry.chain).is_zero();
        let says = minicbor::to_vec(entry).map_or(0, |bytes| bytes.len());
        let says = u32::try_from(says).unwrap_or(u32::MAX);
        let all = u32::try_from(len).unwrap_or(u32::MAX);
        let beside = all.saturating_sub(says);
        // Nothing is paid for them. What moves money has its price: of that only what it has beside
        // what it says counts. Grants and checkpoints only the offices write.
        let (bytes, free) = match entry.kind {
            EntryKind::Rekey(_) => (all, all),
            EntryKind::Line(_) | EntryKind::Settle(_) => (all, beside),
            _ if opens_free(entry) => (all, all),
            _ => (beside, beside),
        };
        Cost { chain: entry.chain, bytes, free: if has_line { 0 } else { free } }
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
                let slot = self.ledger.lattice().final_entry(id).map(|known| known.slot);
                if let Some(slot) = slot {
                    self.show_final(to, slot, effects);
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
        let counted = self.ledger.lattice().pending_entry(id).is_some();
        let waiting = &mut self.mesh.desk.waiting;
        if waiting.len() < WAITING_MAX || waiting.contains_key(&id) {
            waiting.insert(id, Waiting { to, counted });
        }
        Some(refusal)
    }

    /// Shows an owner which of its entries has the slot.
    fn show_rival(&mut self, to: PartyId, taken: DocumentId, effects: &mut Effects) {
        let lattice = self.ledger.lattice();
        if let Some(pending) = lattice.pending_entry(taken) {
            effects.send.push((to, Message::Entry(wire_entry(pending.entry()))));
        } else if let Some(slot) = lattice.final_entry(taken).map(|known| known.slot) {
            self.show_final(to, slot, effects);
        }
    }

    /// Shows an owner the final entry of a slot with its certificate.
    fn show_final(&mut self, to: PartyId, slot: Slot, effects: &mut Effects) {
        let Slot { chain, seq: from_seq } = slot;
        if self.may_answer(to, SHOWN_BYTES) {
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
        let mut ready: Vec<_> = after.take(AGAIN_MAX).map(|(id, waits)| (*id, waits.to)).collect();
        if ready.len() < AGAIN_MAX {
            let before = desk.waiting.iter().filter(|(id, _)| Some(**id) <= desk.cursor);
            ready.extend(before.take(AGAIN_MAX - ready.len()).map(|(id, waits)| (*id, waits.to)));
        }
        desk.cursor = ready.last().map(|(id, _)| *id);
        for (id, to) in ready {
            let lattice = self.ledger.lattice();
            let parked = lattice.pending_entry(id).is_none() && lattice.final_entry(id).is_none();
            if !self.mesh.is_open(to) {
                self.mesh.desk.waiting.remove(&id);
            } else if !parked && self.is_counted(id) {
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
        "too_many" => "too much of this chain or this peer came lately or waits; try again later",
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
