//! The ledger of a node: the lattice it shares with its mesh and its private book, behind one
//! door. A command is decided into events, which changes nothing; events are applied, which cannot
//! fail. Replaying all events from the same beginning gives the same ledger.

mod chain;
mod charter;
mod claims;
mod debts;
mod faucet;
mod jobs;
mod remote;
mod served;
mod welcome;

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use tirami_core::{AgentId, Digest, PartyId, SecretKey, Timestamp, Trm};

use crate::Rejection;
use crate::book::{Book, Payer, REFUSED_CODE_MAX};
use crate::command::{Actor, Command, Outcome};
use crate::event::{BookEvent, Event};
use crate::lattice::{Keep, Lattice};

/// The secret keys a node signs with.
#[derive(Debug, Clone)]
pub struct Keyring {
    /// The current key of the node's own chain. It signs entries, acknowledgements and receipts.
    pub node: SecretKey,
    /// The keys of the agents this node hosts. They sign orders and vouchers.
    pub agents: BTreeMap<AgentId, SecretKey>,
}

impl Keyring {
    /// A keyring of a node that hosts no agent yet.
    pub const fn new(node: SecretKey) -> Self {
        Self { node, agents: BTreeMap::new() }
    }

    /// Adds an agent's key.
    pub fn add_agent(&mut self, key: SecretKey) {
        self.agents.insert(key.public().agent(), key);
    }

    fn agent(&self, agent: AgentId) -> Result<&SecretKey, Rejection> {
        self.agents.get(&agent).ok_or(Rejection::KeyNotHeld)
    }
}

/// What a decision rests on beside the ledger.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The time. A time before that of an earlier event counts as that event's time.
    pub now: Timestamp,
    /// What the node can sign with.
    pub keys: &'a Keyring,
}

/// What an accepted command leads to. Nothing has happened until the events are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// To be stored together, then applied in this order. Empty when nothing changes.
    pub events: Vec<Event>,
    /// The answer, to be given after the events are stored.
    pub outcome: Outcome,
}

impl Decision {
    fn done(events: impl IntoIterator<Item = BookEvent>) -> Self {
        let events = events.into_iter().map(Event::Book).collect();
        Self { events, outcome: Outcome::Done }
    }
}

/// Why bytes are no snapshot of a ledger.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes cannot be read.
    #[error("the snapshot cannot be read; restore the data directory from a backup")]
    Malformed(#[from] minicbor::decode::Error),
    /// Something follows the snapshot.
    #[error("the snapshot is followed by other bytes; restore the data directory from a backup")]
    TrailingBytes,
}

/// The ledger of one node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ledger {
    #[n(0)]
    party: PartyId,
    #[n(1)]
    lattice: Lattice,
    #[n(2)]
    book: Book,
}

impl Ledger {
    /// The ledger of `party` with an empty book.
    pub fn new(lattice: Lattice, party: PartyId) -> Self {
        Self { party, lattice: lattice.held_by(party), book: Book::default() }
    }

    /// Sets which chains the node keeps: a setting, which says how entries are judged that come.
    pub fn set_keep(&mut self, keep: Keep) {
        self.lattice.set_keep(keep);
    }

    /// Decides a command. Changes nothing.
    ///
    /// # Errors
    ///
    /// The first [`Rejection`] that applies, in the order of its variants.
    pub fn decide(
        &self,
        context: &Context<'_>,
        actor: &Actor,
        command: &Command,
    ) -> Result<Decision, Rejection> {
        let now = context.now.max(self.book.clock());
        self.authorize(now, actor, command)?;
        match command {
            Command::OpenChain { line } => self.open_chain(now, context.keys, *line),
            Command::SignEntry { kind } => self.sign_entry(now, context.keys, kind),
            Command::ReceiveEntry { bytes, signature } => self.receive_entry(bytes, *signature),
            Command::ReceiveCertified { bytes, signature, certificate } => {
                self.receive_certified(bytes, *signature, certificate)
            }
            Command::Join { enrol, sponsor } => {
                self.join(&Context { now, ..*context }, *enrol, *sponsor)
            }
            Command::ProposeCharter(change) => self.propose_charter(context.keys, change),
            Command::ApproveCharter { bytes } => self.approve_charter(context.keys, bytes),
            Command::ReceiveCharter { bytes, approvals } => self.receive_charter(bytes, approvals),
            Command::AskHighest => Ok(self.ask_highest()),
            Command::NoteHighest { bytes, signature } => {
                self.note_highest(context.keys, bytes, *signature)
            }
            Command::ConfirmHighest => Ok(self.confirm_highest()),
            Command::ReceiveCut { entry, slots } => self.receive_cut(*entry, slots),
            Command::Acknowledge { entry } => self.acknowledge(now, context.keys, *entry),
            Command::ReceiveAcknowledgement { acknowledgement } => {
                self.receive_acknowledgement(acknowledgement)
            }
            Command::StartJob(start) => self.start_job(now, context.keys, payer(actor)?, start),
            Command::Deliver { job, completion_tokens, stream, prompt_tokens } => {
                let delivered = (*completion_tokens, *stream, *prompt_tokens);
                self.deliver(now, context.keys, *job, delivered)
            }
            Command::FinishJob(finish) => self.finish_job(now, context.keys, finish),
            Command::VoidJob { job, failed } => {
                Ok(Decision::done(self.book.void(now, *job, *failed)?))
            }
            Command::OrderJob(order) => self.order_job(now, context.keys, payer(actor)?, order),
            Command::SettleJob { .. }
            | Command::AbandonJob { .. }
            | Command::AcceptOrder(_)
            | Command::TakeVoucher { .. }
            | Command::FinishServed(_)
            | Command::AbandonServed { .. }
            | Command::ReceiveClaim { .. } => {
                self.between_nodes(&Context { now, ..*context }, command)
            }
            Command::NoteRefusal { party, code, more } => {
                if code.len() > REFUSED_CODE_MAX || *more == 0 {
                    let range = "a code of at most 64 bytes, with a count above 0";
                    return Err(Rejection::OutOfRange { field: "refusal", range });
                }
                let (party, code, more) = (*party, code.clone(), *more);
                Ok(Decision::done([BookEvent::Refused { party, code, more, at: now }]))
            }
            Command::SponsorStranger(asked) => self.sponsor_stranger(now, context.keys, asked),
            Command::Recover => Ok(Decision::done(self.book.recovered(now))),
            Command::Tick => Ok(self.tick(now, context.keys)),
            Command::CreateAgent { agent, .. } => {
                let events = self.book.manage(now, command, Trm::ZERO)?;
                context.keys.agent(*agent)?;
                Ok(Decision::done(events))
            }
            _ => Ok(Decision::done(self.book.manage(now, command, self.fundable())?)),
        }
    }

    fn between_nodes(
        &self,
        context: &Context<'_>,
        command: &Command,
    ) -> Result<Decision, Rejection> {
        let (now, keys) = (context.now, context.keys);
        match command {
            Command::SettleJob { job, receipt, signature, completion_tokens, output } => {
                let received = (*completion_tokens, *output);
                self.settle_job(now, *job, (receipt, *signature), received)
            }
            Command::AbandonJob { job, completion_tokens, stream, prompt_tokens, failed } => {
                let received = (*completion_tokens, *stream);
                self.abandon_job(context, *job, (received, *prompt_tokens), *failed)
            }
            Command::AcceptOrder(accept) => self.accept_order(now, accept),
            Command::TakeVoucher { bytes, signature, stream, sent } => {
                self.take_voucher((bytes, *signature), (*stream, *sent))
            }
            Command::FinishServed(finish) => self.finish_served(now, keys, finish),
            Command::AbandonServed { job, sent } => self.abandon_served(now, *job, *sent),
            Command::ReceiveClaim { order, voucher } => self.receive_claim(now, order, voucher),
            _ => Ok(Decision { events: Vec::new(), outcome: Outcome::Done }),
        }
    }

    /// Changes the ledger by a fact. Cannot fail.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Lattice(event) => {
                self.book.follow(self.party, event);
                self.lattice.apply(event);
            }
            Event::Book(event) => self.book.apply(event),
            Event::Document(_) => {}
        }
    }

    /// Kill switch, scope, key: what every command passes first. A caller with a key has no more
    /// rights than the key.
    fn authorize(&self, now: Timestamp, actor: &Actor, command: &Command) -> Result<(), Rejection> {
        if command.spends() {
            self.book.check_kill()?;
        }
        let Actor::Caller { key, agent, scope } = actor else {
            return Ok(());
        };
        let recorded = key.and_then(|key| self.book.keys().get(&key));
        let held = recorded.map_or(*scope, |key| key.scope().min(*scope));
        let needed = command.scope();
        if held < needed {
            return Err(Rejection::Scope { needed, held });
        }
        match key {
            Some(key) if self.book.check_key(now, *key)?.agent != *agent => {
                Err(Rejection::KeyInvalid)
            }
            _ => Ok(()),
        }
    }

    /// The whole ledger as bytes. The same ledger always gives the same bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        // Writing into a vector cannot fail.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Reads a snapshot back.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] when the bytes are not exactly one snapshot.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let Self { party, lattice, book } = decoder.decode()?;
        if decoder.position() != bytes.len() {
            return Err(RestoreError::TrailingBytes);
        }
        Ok(Self { party, lattice: lattice.held_by(party), book })
    }

    /// The digest of everything, private state included. O(state).
    pub fn state_hash(&self) -> Digest {
        Self::hash_of_snapshot(&self.snapshot())
    }

    /// The state hash of the ledger whose [`Ledger::snapshot`] these bytes are.
    pub fn hash_of_snapshot(snapshot: &[u8]) -> Digest {
        Digest::of(snapshot)
    }
}

fn payer(actor: &Actor) -> Result<Payer, Rejection> {
    match actor {
        Actor::Caller { key, agent: Some(agent), .. } => Ok(Payer { key: *key, agent: *agent }),
        Actor::Node | Actor::Caller { agent: None, .. } => Err(Rejection::NoAgent),
    }
}

/// What the ledger holds, for reading.
impl Ledger {
    /// The node's party.
    pub const fn party(&self) -> PartyId {
        self.party
    }

    /// The state shared with the mesh.
    pub const fn lattice(&self) -> &Lattice {
        &self.lattice
    }

    /// The node's private accounts.
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// The balance of the node's own account in µTRM: its chain's balance with pending entries,
    /// and final payments to it that it has not collected, less its agents' balances and what it
    /// owes other nodes. What its agents pay for its own answers stays in it. May be negative down to the node's line.
    pub fn own_balance(&self) -> i128 {
        let chain = self.chain_balance() + self.lattice.uncollected_sum(self.party);
        chain - self.book.agents_total().signed() - self.book.debts_open().signed()
    }

    /// What the node can still give to agents or pay: its chain's balance, line and welcome line, less its
    /// agents' balances and what it owes other nodes. So its chain can always pay what it owes.
    pub fn fundable(&self) -> Trm {
        let line = self.lattice.floor(self.party).signed();
        let bound = self.book.agents_total().signed() + self.book.debts_open().signed();
        let left = self.chain_balance() + line - bound;
        Trm::from_micro(u64::try_from(left.max(0)).unwrap_or(u64::MAX))
    }

    fn chain_balance(&self) -> i128 {
        i128::from(self.lattice.signed_balance(self.party))
    }

    /// When the next hold, approval or served job ends by itself, or something is to be paid,
    /// collected or claimed. The next checkpoint is apart, in [`Ledger::checkpoint_due`]: at its
    /// time there may be nothing to write.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [self.book.next_deadline(), self.next_collect()].into_iter().flatten().min()
    }

    /// Checks everything that must hold after every step (MONEY §12). O(state).
    ///
    /// # Errors
    ///
    /// The first sentence that is not true.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.lattice.check_invariants()?;
        if self.book.is_consistent() {
            Ok(())
        } else {
            Err("the book's sums do not agree with its accounts and holds".to_owned())
        }
    }
}
