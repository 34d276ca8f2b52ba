//! The start of a node that is not alone: before it signs anything it asks the witnesses how far
//! its own chain goes, and repairs itself when its store was set back (MONEY §10).

use std::collections::BTreeSet;

use tirami_core::{PartyId, Timestamp};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{Lattice, SignedEntry};
use tirami_proto::{FinalEntry, Message, WireEntry};

use super::Serve;
use super::sync::HEAD_BYTES;
use super::witness::{SHOWN_BYTES, wire_entry};
use crate::kernel::{Effects, Kernel};

/// How long further witnesses are waited for after the first that answered.
const OTHERS_MS: u64 = 5_000;
/// How long the only witness waits for members that may know more than it does.
const MEMBERS_MS: u64 = 3_000;
/// When a witness that did not answer is asked again.
const ASK_AGAIN_MS: u64 = 2_000;

/// What is known of the own chain since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    began_at: Option<Timestamp>,
    /// Witnesses whose answer is known to hold nothing that is missing here.
    answered: BTreeSet<PartyId>,
    first_at: Option<Timestamp>,
}

impl Kernel {
    /// With the first input: whether the node has to ask before it signs.
    pub(crate) fn begin(&mut self, effects: &mut Effects) {
        if self.mesh.start.began_at.is_some() {
            return;
        }
        self.mesh.start.began_at = Some(self.clock);
        let (party, lattice) = (self.ledger.party(), self.ledger.lattice());
        let own = self.keys.node.public();
        let others = lattice.charter().witnesses.iter().any(|key| *key != own);
        let members = lattice.chains().any(|(chain, _)| chain != party);
        let command = match (others || members, lattice.is_asking()) {
            (true, false) => Command::AskHighest,
            (false, true) => Command::ConfirmHighest,
            _ => return,
        };
        self.command(&command, effects);
    }

    /// Carries out a command of the node's own whose answer nobody waits for.
    pub(super) fn command(&mut self, command: &Command, effects: &mut Effects) -> bool {
        let decided = self.decide(&Actor::Node, command);
        decided.map(|(events, _)| self.take(events, effects)).is_ok()
    }

    pub(super) fn ask_highest(&mut self, witness: PartyId, effects: &mut Effects) {
        if !self.is_witness(witness) {
            return;
        }
        let (chain, now) = (self.ledger.party(), self.clock);
        let Some(peer) = self.mesh.peers.get_mut(&witness) else { return };
        if peer.highest_asked_at.is_none_or(|at| now >= at.plus_ms(ASK_AGAIN_MS)) {
            peer.highest_asked_at = Some(now);
            effects.send.push((witness, Message::WantHighest { chain }));
        }
    }

    /// Tells how far this node knows a chain to go. To the chain's own party goes along what this
    /// node acknowledged and is not final; what is final that one gets from the store.
    pub(super) fn tell_highest(&mut self, to: PartyId, chain: PartyId, effects: &mut Effects) {
        let (witness, lattice) = (self.keys.node.public(), self.ledger.lattice());
        let highest = lattice.highest_acknowledged(witness, chain);
        let next_seq = highest.map_or(0, |(seq, _)| seq.saturating_add(1));
        let key = lattice.chain(chain).map(|known| known.key().party());
        let is_own = to == chain || key == Some(to);
        let Some((seq, id)) = highest.filter(|_| is_own) else {
            if self.may_answer(to, HEAD_BYTES) {
                effects.send.push((to, Message::Highest { chain, next_seq, entry: None }));
            }
            return;
        };
        let last = lattice.pending_entry(id).map(|pending| pending.entry());
        let bytes = last.map_or(SHOWN_BYTES, about_bytes)
            + before(lattice, chain, seq).map(about_bytes).sum::<u32>();
        if !self.may_answer(to, bytes) {
            return;
        }
        let lattice = self.ledger.lattice();
        let before = before(lattice, chain, seq).map(wire_entry);
        effects.send.extend(before.map(|entry| (to, Message::Entry(entry))));
        let entry = lattice.pending_entry(id).map(|pending| wire_entry(pending.entry()));
        if entry.is_none() {
            effects.serve.push(Serve { peer: to, chain, from_seq: seq, max: 1 });
        }
        effects.send.push((to, Message::Highest { chain, next_seq, entry }));
    }

    pub(super) fn take_highest(
        &mut self,
        from: PartyId,
        (chain, next_seq, entry): (PartyId, u64, Option<WireEntry>),
        effects: &mut Effects,
    ) {
        if chain != self.ledger.party() || !self.is_witness(from) {
            return;
        }
        if let Some(entry) = entry {
            self.note_highest(&entry, effects);
        }
        let lattice = self.ledger.lattice();
        let known = lattice.next_signed_seq(chain).saturating_add(lattice.missing_own(chain));
        let own_final = self.next_seq(chain);
        if next_seq > own_final
            && let Some(peer) = self.mesh.peers.get_mut(&from)
        {
            peer.ahead.insert(chain, next_seq);
        }
        // Who claims more has to show an entry that this node signed; until then it is asked again.
        if next_seq <= known {
            self.mesh.start.answered.insert(from);
            self.mesh.start.first_at.get_or_insert(self.clock);
            self.confirm(effects);
        }
        self.fetch_more(effects);
    }

    /// An own entry that somebody else knows: proof of how far the chain goes.
    pub(super) fn note_highest(&mut self, entry: &WireEntry, effects: &mut Effects) {
        let WireEntry { bytes, signature } = entry.clone();
        let noted = Command::NoteHighest { bytes: bytes.clone(), signature };
        if self.command(&noted, effects) {
            self.command(&Command::ReceiveEntry { bytes, signature }, effects);
        }
    }

    pub(super) fn note_own(&mut self, last: Option<&FinalEntry>, effects: &mut Effects) {
        if let Some(FinalEntry { bytes, signature, .. }) = last {
            let (bytes, signature) = (bytes.clone(), *signature);
            self.command(&Command::NoteHighest { bytes, signature }, effects);
        }
    }

    /// Ends the asking once enough have answered.
    fn confirm(&mut self, effects: &mut Effects) {
        let lattice = self.ledger.lattice();
        if !lattice.is_asking() {
            return;
        }
        let own = self.keys.node.public();
        let charter = lattice.charter();
        let others = charter.witnesses.iter().filter(|key| **key != own);
        let others: Vec<PartyId> = others.map(|key| key.party()).collect();
        let answered = others.iter().filter(|key| self.mesh.start.answered.contains(key)).count();
        let waited = |since: Option<Timestamp>, ms| {
            since.is_some_and(|since| self.clock >= since.plus_ms(ms))
        };
        // Every quorum has one of so many witnesses in it, so nothing certified is overlooked.
        let enough = (charter.away_tolerated() + 1).min(others.len());
        let confirmed = if others.is_empty() {
            let open = self.mesh.peers.values().filter(|peer| peer.is_open() && !peer.keeps_own);
            let compared = open.clone().all(|peer| peer.synced_at.is_some());
            waited(self.mesh.start.began_at, MEMBERS_MS)
                && (compared || waited(self.mesh.start.began_at, MEMBERS_MS + OTHERS_MS))
        } else {
            answered >= enough || (answered > 0 && waited(self.mesh.start.first_at, OTHERS_MS))
        };
        if confirmed {
            self.command(&Command::ConfirmHighest, effects);
        }
    }

    pub(super) fn beat_start(&mut self, effects: &mut Effects) {
        let lattice = self.ledger.lattice();
        if !lattice.is_asking() && lattice.missing_own(self.ledger.party()) == 0 {
            return;
        }
        for witness in self.open_witnesses() {
            self.ask_highest(witness, effects);
        }
        self.confirm(effects);
    }
}

/// The entries of a chain before `seq` that are not final.
fn before(lattice: &Lattice, chain: PartyId, seq: u64) -> impl Iterator<Item = &SignedEntry> {
    let pending = lattice.pending_of(chain).map(|pending| pending.entry());
    pending.filter(move |entry| entry.entry().seq < seq)
}

/// About the bytes of an entry on the wire. Few entries are held, so their sum fits.
fn about_bytes(entry: &SignedEntry) -> u32 {
    HEAD_BYTES + entry.bytes().len() as u32
}
