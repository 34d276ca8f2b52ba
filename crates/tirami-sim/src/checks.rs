//! What is checked: a little after every event, everything now and then and at the end.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{Digest, DocumentId, Timestamp};
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::lattice::Lattice;
use tirami_ledger::{Ledger, Rejection};

use crate::world::World;

impl World {
    pub(crate) fn count(&mut self, command: &Command, result: &Result<Outcome, Rejection>) {
        let (accepted, refused) = self.counts.commands.entry(name(command)).or_default();
        match result {
            Ok(_) => *accepted += 1,
            Err(rejection) => {
                *refused += 1;
                *self.counts.refusals.entry(rejection.code()).or_default() += 1;
            }
        }
    }

    /// What is cheap: the sums of the node that was just touched.
    pub(crate) fn check_touched(&self, party: usize) -> Result<(), String> {
        let Some(ledger) = self.ledger(party) else {
            return Ok(());
        };
        let totals = ledger.lattice().totals();
        let there = totals.free + totals.locked + totals.transit;
        if there != totals.minted - totals.burned + totals.loss {
            return Err(format!("TRM is not conserved at party {party}: {totals:?}"));
        }
        if self.law.within && totals.loss != 0 {
            return Err(format!("party {party} counts a loss though few enough witnesses lie"));
        }
        if totals.minted > self.charter.params.cap.signed() {
            return Err(format!("party {party} counts more minted than the cap"));
        }
        Ok(())
    }

    pub(crate) fn ledger(&self, party: usize) -> Option<&Ledger> {
        self.parties[party].machine.as_ref().map(|machine| machine.ledger())
    }

    /// Everything about one party.
    pub(crate) fn audit(&mut self, party: usize) -> Result<(), String> {
        self.counts.audits += 1;
        let node = &self.parties[party];
        let Some(ledger) = self.ledger(party) else {
            return Ok(());
        };
        ledger.check_invariants().map_err(|what| format!("party {party}: {what}"))?;
        let mut account = node.oracle.account().clone();
        for waiting in &node.waiting {
            account.add(&waiting.events)?;
        }
        account.check(ledger.book())?;
        let lattice = ledger.lattice();
        let chain = i128::from(lattice.signed_balance(node.id)) + lattice.uncollected_sum(node.id);
        if ledger.own_balance() + account.total() != chain {
            return Err(format!("the accounts of party {party} are not its chain's money"));
        }
        let promised = account.total() - lattice.line(node.id).signed();
        if !self.law.double_signers.contains(&node.id)
            && promised > i128::from(lattice.signed_balance(node.id))
        {
            return Err(format!("party {party} promised its agents more than it can cover"));
        }
        let loss = loss(lattice);
        if node.waiting.is_empty()
            && (loss != lattice.totals().loss || node.archive.order.len() != lattice.final_count())
        {
            return Err(format!(
                "party {party} counts a loss of {}, its final entries say {loss}",
                lattice.totals().loss
            ));
        }
        Ok(())
    }

    /// After a timer ran, nothing is set aside beyond its time.
    pub(crate) fn check_deadlines(&self, party: usize, now: Timestamp) -> Result<(), String> {
        let Some(ledger) = self.ledger(party) else {
            return Ok(());
        };
        match ledger.book().holds().iter().find(|(_, hold)| hold.claim_by <= now) {
            Some((job, _)) => Err(format!("the hold of job {job} outlived its order")),
            None => Ok(()),
        }
    }

    /// The network heals, every party starts, and all tell each other what they have.
    pub(crate) fn come_to_rest(&mut self) -> Result<(), String> {
        self.calm = true;
        self.network.heal();
        for party in 0..self.parties.len() {
            self.start(party)?;
            self.by_node(party, &Command::Tick)?;
        }
        self.settle()?;
        for party in 0..self.parties.len() {
            self.audit(party)?;
        }
        self.check_agreement()?;
        self.check_liveness()
    }

    /// The same final entries give the same state, and in the end all have the same ones.
    fn check_agreement(&self) -> Result<(), String> {
        let mut states = BTreeMap::<BTreeSet<DocumentId>, Digest>::new();
        for party in 0..self.parties.len() {
            let Some(ledger) = self.ledger(party) else {
                continue;
            };
            let finals = self.parties[party].archive.order.iter().map(|(id, _)| *id).collect();
            let hash = ledger.lattice().state_hash();
            if *states.entry(finals).or_insert(hash) != hash {
                return Err(format!("party {party} has another state for the same final entries"));
            }
        }
        if states.len() > 1 {
            let sizes: Vec<usize> = states.keys().map(BTreeSet::len).collect();
            return Err(format!("the parties do not agree what is final: {sizes:?} entries"));
        }
        Ok(())
    }

    /// With all witnesses there, what honest owners signed is final.
    fn check_liveness(&self) -> Result<(), String> {
        let honest = |id| !self.law.double_signers.contains(&id);
        for (party, node) in self.parties.iter().enumerate().filter(|_| self.law.within) {
            let Some(ledger) = self.ledger(party).filter(|_| honest(node.id)) else {
                continue;
            };
            if let Some(open) = ledger.lattice().pending_of(node.id).next() {
                let entry = open.entry().entry();
                let (seq, kind) = (entry.seq, entry.kind.name());
                let id = open.entry().id();
                let acks: Vec<_> = open.acknowledged_by(self.charter.version).collect();
                let answers = self.parties.iter().map(|node| {
                    let machine = node.machine.as_ref()?;
                    let lattice = machine.ledger().lattice();
                    lattice.acknowledge(machine.clock(), &node.keys.node, id).err()
                });
                let answers: Vec<_> = answers.collect();
                return Err(format!(
                    "entry {seq} ({kind}) of party {party} never became final, acknowledged by \
                     {acks:?}, witnesses answer {answers:?}"
                ));
            }
        }
        Ok(())
    }
}

/// What counted entries collected of entries that do not count.
fn loss(lattice: &Lattice) -> i128 {
    if lattice.contradictions().next().is_none() {
        return 0;
    }
    let finals: BTreeMap<DocumentId, _> = lattice.final_entries().collect();
    let counts = |id: &DocumentId| {
        let record = finals.get(id);
        record.is_some_and(|record| lattice.final_at(record.slot) == Some(*id))
    };
    let counted = finals.iter().filter(|(id, _)| counts(id));
    let items = counted.flat_map(|(_, record)| &record.effect.collected);
    let lost = items.filter(|item| !counts(item));
    let payouts = lost.filter_map(|item| finals.get(item)?.effect.payout);
    payouts.map(|payout| payout.amount.signed()).sum()
}

const fn name(command: &Command) -> &'static str {
    match command {
        Command::OpenChain { .. } => "open_chain",
        Command::SignEntry { .. } => "sign_entry",
        Command::ReceiveEntry { .. } => "receive_entry",
        Command::ReceiveCertified { .. } => "receive_certified",
        Command::ReceiveCut { .. } => "receive_cut",
        Command::Acknowledge { .. } => "acknowledge",
        Command::ReceiveAcknowledgement { .. } => "receive_acknowledgement",
        Command::CreateAgent { .. } => "create_agent",
        Command::FundAgent { .. } => "fund_agent",
        Command::DefundAgent { .. } => "defund_agent",
        Command::CreateKey { .. } => "create_key",
        Command::RotateKey { .. } => "rotate_key",
        Command::RevokeKey { .. } => "revoke_key",
        Command::SetLimits { .. } => "set_limits",
        Command::SetPrice { .. } => "set_price",
        Command::SetKill { .. } => "set_kill",
        Command::ResetBreaker { .. } => "reset_breaker",
        Command::DecideApproval { .. } => "decide_approval",
        Command::StartJob(_) => "start_job",
        Command::Deliver { .. } => "deliver",
        Command::FinishJob(_) => "finish_job",
        Command::VoidJob { .. } => "void_job",
        Command::Join { .. } => "join",
        Command::ProposeCharter(_) => "propose_charter",
        Command::ApproveCharter { .. } => "approve_charter",
        Command::ReceiveCharter { .. } => "receive_charter",
        Command::AskHighest => "ask_highest",
        Command::NoteHighest { .. } => "note_highest",
        Command::ConfirmHighest => "confirm_highest",
        Command::OrderJob(_) => "order_job",
        Command::SettleJob { .. } => "settle_job",
        Command::AbandonJob { .. } => "abandon_job",
        Command::SetServing(_) => "set_serving",
        Command::AcceptOrder(_) => "accept_order",
        Command::TakeVoucher { .. } => "take_voucher",
        Command::FinishServed(_) => "finish_served",
        Command::AbandonServed { .. } => "abandon_served",
        Command::ReceiveClaim { .. } => "receive_claim",
        Command::Recover => "recover",
        Command::NoteRefusal { .. } => "note_refusal",
        Command::SponsorStranger(_) => "sponsor_stranger",
        Command::Tick => "tick",
    }
}
