//! How parties find what they miss: asking another for its final and pending entries.

use std::collections::BTreeSet;

use tirami_core::DocumentId;
use tirami_ledger::command::Command;
use tirami_ledger::lattice::{EntryKind, Lattice};

use crate::network::Message;
use crate::world::World;

/// Final entries, and pending ones, that one answer carries.
const ANSWER_MAX: usize = 40;
/// Entries that a witness looks at again in one round.
const LOOK_AGAIN_MAX: usize = 10;
/// Rounds in which all tell each other everything before they must agree.
const ROUNDS_MAX: usize = 60;

impl World {
    /// A party's timer: what is due, entries it has not acknowledged yet, and one question to
    /// another party.
    pub(crate) fn gossip(&mut self, party: usize) -> Result<(), String> {
        self.by_node(party, &Command::Tick)?;
        let now = self.parties[party].clock;
        self.check_deadlines(party, now)?;
        self.acknowledge_open(party, LOOK_AGAIN_MAX)?;
        let other = self.dice.index(self.parties.len());
        if other == party || !self.network.reaches(other, party) {
            return Ok(());
        }
        for message in self.missing(party, other, ANSWER_MAX) {
            self.send(other, party, &message);
        }
        Ok(())
    }

    /// What `other` has and `party` lacks.
    fn missing(&self, party: usize, other: usize, max: usize) -> Vec<Message> {
        let (Some(has), Some(lacks)) = (self.ledger(other), self.ledger(party)) else {
            return Vec::new();
        };
        let (has, lacks) = (has.lattice(), lacks.lattice());
        let archive = &self.parties[other].archive;
        let finals = archive.order.iter().filter(|(id, slot)| !lacks.is_final(*id, *slot));
        let mut messages: Vec<Message> = finals
            .filter_map(|(id, _)| {
                let (bytes, signature) = archive.finals.get(id)?.clone();
                Some(match archive.certificates.get(id).cloned() {
                    Some(certificate) => Message::Certified { bytes, signature, certificate },
                    None => Message::Proof { acks: archive.acks_of(*id), bytes, signature },
                })
            })
            .take(max)
            .collect();
        for owner in self.owners() {
            for pending in has.pending_of(owner).take(max) {
                let entry = pending.entry();
                let acks = archive.acks_of(entry.id());
                match lacks.pending_entry(entry.id()) {
                    Some(_) => {
                        let known = self.parties[party].archive.acks.get(&entry.id());
                        let new = acks.into_iter().filter(|ack| {
                            known.is_none_or(|known| !known.contains_key(&ack.witness))
                        });
                        messages.extend(new.map(Message::Acknowledgement));
                    }
                    None if !lacks.is_final(entry.id(), entry.entry().slot()) => {
                        let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
                        messages.push(Message::Proof { acks, bytes, signature });
                    }
                    None => {}
                }
            }
        }
        messages.extend(self.cuts(has, lacks));
        messages
    }

    /// The cuts of checkpoints that `lacks` knows without them: of those that are pending, and of
    /// the last one, by which the next is judged.
    fn cuts(&self, has: &Lattice, lacks: &Lattice) -> Vec<Message> {
        let pending = has.pending_of(self.charter.clerk).map(|own| own.entry());
        let checkpoints = pending
            .filter(|entry| matches!(entry.entry().kind, EntryKind::Checkpoint(_)))
            .map(|entry| entry.id())
            .chain(has.last_checkpoint().map(|(_, id, _)| id));
        checkpoints
            .filter(|id| lacks.pending_entry(*id).is_some() || lacks.final_entry(*id).is_some())
            .filter(|id| lacks.cut(*id).is_none())
            .filter_map(|checkpoint| {
                let slots = has.cut(checkpoint)?;
                Some(Message::Cut { checkpoint, slots })
            })
            .collect()
    }

    /// A witness acknowledges what it did not yet.
    fn acknowledge_open(&mut self, party: usize, max: usize) -> Result<(), String> {
        if !self.is_witness(party) {
            return Ok(());
        }
        let Some(ledger) = self.ledger(party) else {
            return Ok(());
        };
        let (lattice, key) = (ledger.lattice(), self.parties[party].key());
        let version = lattice.charter().version;
        let open = self.owners().into_iter().flat_map(|owner| lattice.pending_of(owner));
        let open = open.filter(|pending| pending.acknowledged_by(version).all(|by| by != key));
        let open: Vec<DocumentId> = open.map(|pending| pending.entry().id()).take(max).collect();
        for entry in open {
            self.by_node(party, &Command::Acknowledge { entry })?;
        }
        Ok(())
    }

    fn owners(&self) -> BTreeSet<tirami_core::PartyId> {
        self.parties.iter().map(|party| party.id).chain(self.foes.owners()).collect()
    }

    /// All tell each other everything until nobody learns anything new.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.drain()?;
        let mut before = None;
        for _ in 0..ROUNDS_MAX {
            for party in 0..self.parties.len() {
                self.acknowledge_open(party, usize::MAX)?;
                self.drain()?;
                for other in (0..self.parties.len()).filter(|other| *other != party) {
                    for message in self.missing(party, other, usize::MAX) {
                        self.send(other, party, &message);
                    }
                    self.drain()?;
                }
            }
            let known = self.parties.iter().map(|party| {
                (
                    party.archive.order.len(),
                    party.archive.acks.values().map(|a| a.len()).sum(),
                    party.archive.cuts,
                )
            });
            let known: Vec<(usize, usize, usize)> = known.collect();
            if before.as_ref() == Some(&known) {
                return Ok(());
            }
            before = Some(known);
        }
        Err("the parties never come to rest".to_owned())
    }
}
