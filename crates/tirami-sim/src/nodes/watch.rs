//! What must hold, checked from outside: on every event, on every message that leaves a node, and
//! now and then on everything.

use std::collections::BTreeMap;
use std::rc::Rc;

use tirami_core::{JobId, Ppm, Trm, decode_body};
use tirami_ledger::event::{BookEvent, Event};
use tirami_ledger::lattice::{Acknowledgement, Entry, LatticeEvent};
use tirami_proto::Message;

use super::founding::final_entry;
use super::liars::{entry_id, shared};
use super::members::cost;
use super::node::local;
use super::world::World;

/// Events between two checks of everything at one node.
const AUDIT_EVENTS: u64 = 2_500;

/// What a job really was: the tokens on its stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) consumer: usize,
    pub(super) provider: usize,
    pub(super) prompt: u32,
    pub(super) price: Ppm,
    /// Tokens that the provider sent.
    pub(super) sent: u32,
    /// Tokens that the consumer received.
    pub(super) delivered: u32,
}

impl Work {
    /// What so many tokens cost, the prompt included; nothing when there are none.
    pub(super) fn cost(&self, tokens: u32) -> Trm {
        if tokens == 0 { Trm::ZERO } else { cost(self.prompt + tokens, self.price) }
    }
}

impl World {
    /// A node wrote events.
    pub(super) fn written(&mut self, at: usize, events: &[Event]) -> Result<(), String> {
        for event in events {
            match event {
                Event::Lattice(event) => self.written_lattice(at, event)?,
                Event::Book(BookEvent::HoldPosted(posted)) if self.nodes[at].is_honest() => {
                    self.check_paid(posted.job, posted.amount)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn written_lattice(&mut self, at: usize, event: &LatticeEvent) -> Result<(), String> {
        match event {
            LatticeEvent::EntryFinal { entry, certificate, .. } => {
                let key = (entry.id(), certificate.is_some());
                let slot = entry.entry().slot();
                let known = self.entries.get(&key).map(Rc::clone);
                let wire = match known {
                    Some(known) => known,
                    None => {
                        let Some((_, wire)) = final_entry(event) else { return Ok(()) };
                        let wire = shared(wire);
                        self.entries.insert(key, Rc::clone(&wire));
                        wire
                    }
                };
                self.nodes[at].keep(slot.chain, slot.seq, wire);
                if self.nodes[at].is_honest() {
                    if self.law.forged.contains(&entry.id()) {
                        return Err(format!("forged entry {} is final at node {at}", entry.id()));
                    }
                    self.tally.add(entry.id(), entry.entry())?;
                }
            }
            LatticeEvent::AcknowledgementMade { acknowledgement, slot } => {
                self.slots.insert(acknowledgement.entry, *slot);
            }
            _ => {}
        }
        Ok(())
    }

    /// A message leaves a node: an honest one never promises a slot twice.
    pub(super) fn leaves(&mut self, at: usize, message: &Message) -> Result<(), String> {
        let node = &self.nodes[at];
        if !node.is_honest() {
            return Ok(());
        }
        match message {
            Message::Acknowledgement(bytes) => {
                let ack = minicbor::decode::<Acknowledgement>(bytes).map_err(|e| e.to_string())?;
                match self.slots.get(&ack.entry).copied() {
                    Some(slot) => self.law.promised(node.key.public(), slot, ack.entry),
                    None => Ok(()),
                }
            }
            Message::Entry(wire) => {
                let body = decode_body::<Entry>(&wire.bytes).map_err(|e| e.to_string())?;
                if body.chain != node.party {
                    return Ok(());
                }
                let id = entry_id(self, &wire.bytes);
                self.law.signed(body.slot(), id)
            }
            _ => Ok(()),
        }
    }

    /// Nobody honest is charged for tokens that did not come.
    fn check_paid(&self, job: JobId, amount: Trm) -> Result<(), String> {
        let Some(work) = self.work.get(&job) else { return Ok(()) };
        let due = work.cost(work.delivered);
        if amount > due {
            let Work { consumer, delivered, .. } = work;
            return Err(format!(
                "node {consumer} pays {amount} for {delivered} tokens that cost {due}"
            ));
        }
        Ok(())
    }

    /// A provider lost power: what nobody had signed for by then is its own loss.
    pub(super) fn excuse(&mut self, job: JobId, vouched: u32) {
        let Some(work) = self.work.get(&job) else { return };
        let loss = work.cost(work.sent).saturating_sub(work.cost(vouched));
        let sum = self.excused.entry((work.provider, work.consumer)).or_default();
        *sum = sum.saturating_add(loss);
    }

    pub(super) fn check_sometimes(&mut self) -> Result<(), String> {
        if !self.counts.events.is_multiple_of(AUDIT_EVENTS) {
            return Ok(());
        }
        let at = self.dice.index(self.nodes.len());
        self.audit(at)?;
        self.check_money()
    }

    /// The money of the whole mesh.
    pub(super) fn check_money(&self) -> Result<(), String> {
        self.tally.check()?;
        for (consumer, job, amount) in self.tally.payments() {
            let honest = self.by_party.get(&consumer).is_some_and(|at| self.nodes[*at].is_honest());
            if honest {
                self.check_paid(job, amount)?;
            }
        }
        Ok(())
    }

    /// Everything about one node.
    pub(super) fn audit(&mut self, at: usize) -> Result<(), String> {
        let node = &self.nodes[at];
        let Some(ledger) = node.ledger().filter(|_| node.is_honest()) else { return Ok(()) };
        self.counts.audits += 1;
        ledger.check_invariants().map_err(|what| format!("node {at}: {what}"))?;
        let (lattice, book) = (ledger.lattice(), ledger.book());
        let totals = lattice.totals();
        if totals.loss != 0 {
            return Err(format!("node {at} counts a loss though few enough witnesses lie"));
        }
        let promised = book.agents_total().signed() + book.debts_open().signed();
        let covered = i128::from(lattice.signed_balance(node.party));
        if promised > covered + lattice.floor(node.party).signed() {
            return Err(format!("node {at} promised more than its chain can pay"));
        }
        let now = local(self.now, node.skew_ms);
        if let Some((job, _)) = book.holds().iter().find(|(_, hold)| hold.claim_by <= now) {
            return Err(format!("the hold of job {job} outlived its order at node {at}"));
        }
        self.check_exposure(at)
    }

    /// What a provider did and was not paid stays within what it risks with each consumer.
    pub(super) fn check_exposure(&self, at: usize) -> Result<(), String> {
        let Some(ledger) = self.nodes[at].ledger() else { return Ok(()) };
        let mut unpaid = BTreeMap::<usize, i128>::new();
        for (job, work) in self.work.iter().filter(|(_, work)| work.provider == at) {
            let consumer = self.nodes[work.consumer].party;
            let paid = self.tally.paid(self.nodes[at].party, consumer, *job);
            let open = work.cost(work.sent).signed() - paid.signed();
            *unpaid.entry(work.consumer).or_default() += open.max(0);
        }
        for (consumer, open) in unpaid {
            let excused = self.excused.get(&(at, consumer)).copied().unwrap_or_default();
            let lends = ledger.book().exposure_of(self.nodes[consumer].party);
            if open - excused.signed() > lends.signed() {
                return Err(format!(
                    "node {at} lends node {consumer} {lends} TRM and did {} TRM of work unpaid",
                    Trm::signed_text(open - excused.signed())
                ));
            }
        }
        Ok(())
    }
}
