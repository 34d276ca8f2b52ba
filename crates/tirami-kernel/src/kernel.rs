//! Input → effects.

use std::collections::BTreeMap;

use tirami_core::{JobId, PartyId, SecretKey, Timestamp};
use tirami_ledger::book::{AGENTS_MAX, KeyId};
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::event::{BookEvent, Event};
use tirami_ledger::{Context, Keyring, Ledger, Rejection};
use tirami_proto::{Goodbye, Message, PeerAddress, Work};

use crate::mesh::{Mesh, MeshInput, PeerEvent, Serve};
use crate::scheduler::{self, Query, Ranking};

#[cfg(test)]
mod tests;

/// Names a request, so that its answer finds the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

impl RequestId {
    /// The request with this number.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Everything that can happen to a kernel.
#[derive(Debug, Clone)]
pub enum Input {
    /// Somebody asks for a change of the ledger. It is answered, once.
    Command {
        /// Whom to answer.
        request: RequestId,
        /// Who asks.
        actor: Actor,
        /// What is asked.
        command: Command,
    },
    /// The node holds the secret key of an agent. It comes before the agent's `CreateAgent`, and
    /// after a start once for each agent: the kernel stores no secret. Beyond as many agents as a
    /// book can keep it changes nothing.
    AddAgentKey(SecretKey),
    /// Something happened on the connection to another node.
    Peer {
        /// The party whose key the connection proved.
        peer: PartyId,
        /// What happened.
        event: PeerEvent,
    },
    /// The node says something about itself or its mesh.
    Mesh(MeshInput),
    /// The time that was asked for in [`Effects::wake_at`] has come, or any other.
    Tick,
}

/// What an input leads to. To be carried out in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// To be stored, together and in this order. The kernel has applied them already.
    pub append: Vec<Event>,
    /// The answer to a command. It may be sent only after `append`, and what earlier inputs
    /// appended, is durable: a crash must not take back what somebody was told.
    pub reply: Option<(RequestId, Result<Outcome, Rejection>)>,
    /// Jobs to stop. Those whose hold is still open are then finished or voided as usual, with
    /// what was delivered until then; of the others nothing more can be charged.
    pub cancel: Vec<JobId>,
    /// Messages to open control streams, in this order for each peer; after `append` is durable,
    /// like answers. One to a peer without a connection is dropped.
    pub send: Vec<(PartyId, Message)>,
    /// Final entries to read from the store and to send; after `append` is durable.
    pub serve: Vec<Serve>,
    /// Connections to end, after what was sent before: the goodbye is the last message.
    pub disconnect: Vec<(PartyId, Goodbye)>,
    /// Peers to dial. One that cannot be reached is reported as disconnected.
    pub connect: Vec<PeerAddress>,
    /// What peers offered as witnesses' business and were refused, for the owner.
    pub refused: Vec<(PartyId, &'static str)>,
    /// Work to do beside everything else, reported as [`MeshInput::Worked`].
    pub work: Option<Work>,
    /// When to give [`Input::Tick`] if nothing comes before; none when nothing will fall due.
    /// Never before the input's time. Each effect replaces what the one before said.
    pub wake_at: Option<Timestamp>,
}

/// All decisions of one node.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub(crate) ledger: Ledger,
    pub(crate) keys: Keyring,
    pub(crate) mesh: Mesh,
    /// The latest time seen.
    pub(crate) clock: Timestamp,
    /// When the last checkpoint was tried: with nothing to write it stays due.
    checkpoint_tried: Option<Timestamp>,
    /// Events applied since the kernel was made.
    revision: u64,
}

impl Kernel {
    /// A kernel over a ledger and the keys its node signs with.
    pub fn new(ledger: Ledger, keys: Keyring) -> Self {
        let clock = ledger.book().clock();
        Self { ledger, keys, mesh: Mesh::default(), clock, checkpoint_tried: None, revision: 0 }
    }

    /// The kernel after `events`, which is the tail of the store after `ledger`: the one that
    /// [`Ledger::restore`] read from the newest snapshot, or an empty one.
    pub fn replay(
        mut ledger: Ledger,
        keys: Keyring,
        events: impl IntoIterator<Item = Event>,
    ) -> Self {
        for event in events {
            ledger.apply(&event);
        }
        Self::new(ledger, keys)
    }

    /// Takes one input. What fell due before it is decided first, and what it made due at once is
    /// decided after it. A `now` before one that was given earlier counts as that one.
    #[must_use = "effects that are not carried out are lost, and with them money"]
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Effects {
        self.clock = self.clock.max(now);
        let mut effects = Effects::default();
        self.mesh.events_begin();
        self.begin(&mut effects);
        self.tick(&mut effects);
        match input {
            Input::Command { request, actor, command } => {
                let decided = self.decide(&actor, &command).and_then(|decided| {
                    self.check_reserved(&decided.1)?;
                    self.check_drafted(&decided.1)?;
                    Ok(decided)
                });
                let outcome = decided.map(|(events, outcome)| {
                    self.take(events, &mut effects);
                    self.charter_made(&outcome, &mut effects);
                    outcome
                });
                effects.reply = Some((request, outcome));
            }
            Input::AddAgentKey(key) => {
                let is_known = self.keys.agents.contains_key(&key.public().agent());
                if is_known || self.keys.agents.len() < AGENTS_MAX as usize {
                    self.keys.add_agent(key);
                }
            }
            Input::Peer { peer, event } => self.peer_event(peer, event, &mut effects),
            Input::Mesh(input) => self.mesh_input(input, &mut effects),
            Input::Tick => {}
        }
        self.beat(&mut effects);
        loop {
            let before = effects.append.len();
            self.tick(&mut effects);
            self.settle_news(&mut effects);
            if effects.append.len() == before {
                break;
            }
        }
        effects.wake_at = self.wake_at();
        effects
    }

    /// The ledger, for reading.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The node's part in its mesh, for reading.
    pub const fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The providers that could do a job, best first. `dice` is a random draw, another one for
    /// each job.
    pub fn rank(&self, query: &Query, now: Timestamp, dice: u64) -> Ranking {
        let mut running = BTreeMap::<PartyId, u16>::new();
        for hold in self.ledger.book().holds().values() {
            if let Some(remote) = &hold.remote {
                let jobs = running.entry(remote.provider).or_default();
                *jobs = jobs.saturating_add(1);
            }
        }
        let own = self.ledger.party();
        let others = self.mesh.providers(now).filter(|known| known.signal.provider != own);
        let providers = others.map(|known| {
            let party = known.signal.provider;
            scheduler::Provider {
                signal: known.signal,
                connected: known.connected,
                trusted: self.is_trusted(party),
                running: running.get(&party).copied().unwrap_or_default(),
            }
        });
        scheduler::rank(providers, self.mesh.opinions(), query, now, dice)
    }

    /// The latest time seen: what reading by time is to be asked with.
    pub const fn clock(&self) -> Timestamp {
        self.clock
    }

    /// How many events were applied since the kernel was made: as long as it is the same, so is
    /// the ledger.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The whole ledger as bytes, for [`Ledger::restore`]. Secret keys are not in it.
    pub fn snapshot(&self) -> Vec<u8> {
        self.ledger.snapshot()
    }

    pub(crate) fn decide(
        &self,
        actor: &Actor,
        command: &Command,
    ) -> Result<(Vec<Event>, Outcome), Rejection> {
        let context = Context { now: self.clock, keys: &self.keys };
        let decision = self.ledger.decide(&context, actor, command)?;
        Ok((decision.events, decision.outcome))
    }

    fn tick(&mut self, effects: &mut Effects) {
        if self.ledger_due().is_none_or(|due| self.clock < due) {
            return;
        }
        if self.checkpoint_due().is_some_and(|due| due <= self.clock) {
            self.checkpoint_tried = Some(self.clock);
        }
        // The node's own tick is never refused.
        if let Ok((events, _)) = self.decide(&Actor::Node, &Command::Tick) {
            self.take(events, effects);
        }
    }

    /// Applies events, and lists the jobs they stop.
    pub(crate) fn take(&mut self, events: Vec<Event>, effects: &mut Effects) {
        for event in &events {
            if let Event::Book(event) = event {
                self.stopped_by(event, &mut effects.cancel);
            }
        }
        let context = Context { now: self.clock, keys: &self.keys };
        let absorbed = self.ledger.absorb(&context, events);
        self.revision += absorbed.len() as u64;
        effects.append.extend(absorbed);
    }

    fn stopped_by(&self, event: &BookEvent, cancel: &mut Vec<JobId>) {
        let holds = self.ledger.book().holds();
        match event {
            BookEvent::KillSet { on: true, .. } => cancel.extend(holds.keys()),
            BookEvent::KeyRevoked { key, .. } => cancel.extend(self.jobs_of(*key)),
            BookEvent::HoldExpired { job, .. } => cancel.push(*job),
            // A charge without a receipt: the time ran out, or the node starts again.
            BookEvent::HoldPosted(posted) if posted.receipt.is_none() => cancel.push(posted.job),
            _ => {}
        }
    }

    fn jobs_of(&self, key: KeyId) -> impl Iterator<Item = JobId> {
        let holds = self.ledger.book().holds().iter();
        holds.filter(move |(_, hold)| hold.key == Some(key)).map(|(job, _)| *job)
    }

    fn wake_at(&self) -> Option<Timestamp> {
        [self.ledger_due(), self.mesh_due()].into_iter().flatten().min()
    }

    fn ledger_due(&self) -> Option<Timestamp> {
        [self.ledger.next_deadline(), self.checkpoint_due()].into_iter().flatten().min()
    }

    fn checkpoint_due(&self) -> Option<Timestamp> {
        let interval_ms = self.ledger.lattice().charter().params.checkpoint_ms;
        let again = self.checkpoint_tried.map(|tried| tried.plus_ms(interval_ms));
        self.ledger.checkpoint_due().map(|due| again.map_or(due, |again| due.max(again)))
    }
}
