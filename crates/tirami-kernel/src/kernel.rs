//! The kernel: inputs in, effects out.

use tirami_core::{JobId, SecretKey, Timestamp};
use tirami_ledger::book::Hold;
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::event::{BookEvent, Event};
use tirami_ledger::{Context, Keyring, Ledger, Rejection};

/// The shortest time between two wishes to be woken, in milliseconds.
const TICK_MIN_MS: u64 = 1_000;

/// Matches a reply with its request; chosen by whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What may happen to a node.
#[derive(Debug, Clone)]
pub enum Input {
    /// Somebody asks for a change.
    Command {
        /// For the reply.
        request: RequestId,
        /// Who asks.
        actor: Actor,
        /// What is asked.
        command: Command,
    },
    /// The node holds an agent's key from now on. Comes before the agent's account is created,
    /// after the key is durable.
    AddAgentKey(SecretKey),
    /// Time has passed.
    Tick,
}

/// What has to be done outside, in this order.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be stored together, durably, before the reply is sent or a job is told to stop.
    pub append: Vec<Event>,
    /// The answer to the request; only after `append` is durable.
    pub reply: Option<(RequestId, Result<Outcome, Rejection>)>,
    /// Jobs whose generation must stop. Those still open are then finished with what they
    /// delivered.
    pub cancel: Vec<JobId>,
    /// When to come back with [`Input::Tick`] if nothing else happens; replaces earlier wishes.
    pub wake_at: Option<Timestamp>,
}

/// The decisions of one node.
#[derive(Debug, Clone)]
pub struct Kernel {
    ledger: Ledger,
    keys: Keyring,
    clock: Timestamp,
}

impl Kernel {
    /// A kernel over a ledger as it was stored.
    pub fn new(ledger: Ledger, keys: Keyring) -> Self {
        let clock = ledger.book().clock();
        Self { ledger, keys, clock }
    }

    /// A kernel over `ledger` and the events stored after it, in order.
    pub fn replay<'e>(
        mut ledger: Ledger,
        events: impl IntoIterator<Item = &'e Event>,
        keys: Keyring,
    ) -> Self {
        events.into_iter().for_each(|event| ledger.apply(event));
        Self::new(ledger, keys)
    }

    /// Takes one input. A time before an earlier input's counts as that input's time.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Effects {
        self.clock = self.clock.max(now);
        let mut effects = match input {
            Input::Command { request, actor, command } => self.command(request, &actor, &command),
            Input::AddAgentKey(key) => {
                self.keys.add_agent(key);
                Effects::default()
            }
            Input::Tick => self.tick(),
        };
        // A deadline that passed with nothing to do, such as that of a checkpoint nothing changed
        // for, must not wake the node all the time.
        let soonest = self.clock.plus_ms(TICK_MIN_MS);
        effects.wake_at = self.ledger.next_deadline().map(|deadline| deadline.max(soonest));
        effects
    }

    fn command(&mut self, request: RequestId, actor: &Actor, command: &Command) -> Effects {
        let decided = self.ledger.decide(&self.context(), actor, command);
        let (mut effects, reply) = match decided {
            Ok(decision) => (self.take(decision.events), Ok(decision.outcome)),
            Err(rejection) => (Effects::default(), Err(rejection)),
        };
        effects.reply = Some((request, reply));
        effects
    }

    fn tick(&mut self) -> Effects {
        match self.ledger.decide(&self.context(), &Actor::Node, &Command::Tick) {
            Ok(decision) => self.take(decision.events),
            // What could not be decided now stays due.
            Err(_) => Effects::default(),
        }
    }

    /// Applies events and all that follows from them.
    fn take(&mut self, events: Vec<Event>) -> Effects {
        let cancel = self.stopped_by(&events);
        let context = Context { now: self.clock, keys: &self.keys };
        let append = self.ledger.absorb(&context, events);
        Effects { append, cancel, ..Effects::default() }
    }

    /// The jobs that may not go on after `events`, which are not applied yet.
    fn stopped_by(&self, events: &[Event]) -> Vec<JobId> {
        let mut stopped = Vec::new();
        for event in events {
            match event {
                Event::Book(BookEvent::KillSet { on: true, .. }) => {
                    stopped.extend(self.open_jobs(|_| true));
                }
                Event::Book(BookEvent::KeyRevoked { key, .. }) => {
                    stopped.extend(self.open_jobs(|hold| hold.key == Some(*key)));
                }
                Event::Book(BookEvent::HoldPosted(posted)) => stopped.push(posted.job),
                Event::Book(
                    BookEvent::HoldExpired { job, .. } | BookEvent::HoldVoided { job, .. },
                ) => stopped.push(*job),
                _ => {}
            }
        }
        stopped
    }

    fn open_jobs(&self, which: impl Fn(&Hold) -> bool) -> impl Iterator<Item = JobId> {
        let holds = self.ledger.book().holds().iter();
        holds.filter(move |(_, hold)| which(hold)).map(|(job, _)| *job)
    }

    fn context(&self) -> Context<'_> {
        Context { now: self.clock, keys: &self.keys }
    }

    /// The state, for reading.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The latest time the kernel was told.
    pub const fn clock(&self) -> Timestamp {
        self.clock
    }

    /// The whole state as bytes, for the store. The keys are not in it.
    pub fn snapshot(&self) -> Vec<u8> {
        self.ledger.snapshot()
    }
}
