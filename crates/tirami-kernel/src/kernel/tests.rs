//! Tests of the kernel: what it stops, when it wakes, and that replay reaches the same state.

use tirami_core::{
    AgentId, Digest, HOUR_MS, JobId, ModelDigest, ModelShape, SecretKey, Signed, Timestamp, Trm,
};
use tirami_ledger::book::{KeyId, Limits, Scope};
use tirami_ledger::command::{Actor, Command, FinishJob, Outcome, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_ledger::event::{BookEvent, Event};
use tirami_ledger::lattice::{Charter, Enrol, Lattice};
use tirami_ledger::{Keyring, Ledger, Rejection};

use super::{Effects, Input, Kernel, RequestId};

const START_MS: u64 = 1_700_000_000_000;

struct Node {
    kernel: Kernel,
    genesis: Kernel,
    store: Vec<Event>,
    now_ms: u64,
    requests: u64,
}

impl Node {
    fn new() -> Self {
        let key = SecretKey::from_seed([1; 32]);
        let line = Trm::from_trm(1_000).unwrap();
        let charter = Charter::founder("test", key.public(), line);
        let charter = Signed::sign(Charter::founding_mesh(), &key, charter).unwrap();
        let ledger = Ledger::new(Lattice::found(&charter).unwrap(), key.public().party());
        let kernel = Kernel::new(ledger, Keyring::new(key));
        let mut node = Self {
            genesis: kernel.clone(),
            kernel,
            store: Vec::new(),
            now_ms: START_MS,
            requests: 0,
        };
        node.ok(Command::OpenChain { line });
        node
    }

    /// A node whose agent can spend 1 000 TRM with the key 7.
    fn with_agent() -> Self {
        let mut node = Self::new();
        let _ = node.give(Input::AddAgentKey(agent_key()));
        let name = "alice".to_owned();
        node.ok(Command::CreateAgent { agent: agent(), name: name.clone() });
        node.ok(Command::FundAgent { agent: agent(), amount: Trm::from_trm(1_000).unwrap() });
        node.ok(Command::CreateKey {
            key: KeyId::new(7),
            secret: Digest::of(b"7"),
            label: name,
            scope: Scope::Inference,
            agent: Some(agent()),
            limits: Limits::default(),
            expires_at: None,
        });
        node
    }

    fn give(&mut self, input: Input) -> Effects {
        let effects = self.kernel.handle(Timestamp::from_ms(self.now_ms), input);
        self.store.extend(effects.append.iter().cloned());
        assert_eq!(self.kernel.ledger().check_invariants(), Ok(()));
        effects
    }

    fn ask(&mut self, actor: Actor, command: Command) -> Effects {
        self.requests += 1;
        let request = RequestId::new(self.requests);
        let effects = self.give(Input::Command { request, actor, command });
        assert_eq!(effects.reply.as_ref().map(|(to, _)| *to), Some(request));
        effects
    }

    fn ok(&mut self, command: Command) -> Effects {
        let effects = self.ask(Actor::Node, command);
        assert!(matches!(effects.reply, Some((_, Ok(_)))), "{:?}", effects.reply);
        effects
    }

    fn start(&mut self, key: Option<u32>, job: u8) -> Result<Outcome, Rejection> {
        let actor = Actor::Caller {
            key: key.map(KeyId::new),
            agent: Some(agent()),
            scope: Scope::Inference,
        };
        self.ask(actor, start(job)).reply.unwrap().1
    }

    fn state(&self) -> Digest {
        self.kernel.ledger().state_hash()
    }
}

fn agent_key() -> SecretKey {
    SecretKey::from_seed([2; 32])
}

fn agent() -> AgentId {
    agent_key().public().agent()
}

fn job(number: u8) -> JobId {
    JobId::from_bytes([number; 16])
}

fn start(number: u8) -> Command {
    let shape = ModelShape {
        parameters_active: 500_000_000,
        layers: 0,
        attention_width: 0,
        context_max: 1_024,
    };
    Command::StartJob(StartJob {
        job: job(number),
        model: ModelDigest::from_bytes([9; 32]),
        shape,
        request: Digest::of(&[number]),
        seed: 0,
        prompt_tokens: 1,
        completion_max: 9,
        continues: None,
    })
}

fn finish(number: u8, completion_tokens: u32) -> Command {
    Command::FinishJob(FinishJob {
        job: job(number),
        cached_tokens: 0,
        completion_tokens,
        output: Digest::of(b""),
        build: "test".to_owned(),
        finish: FinishReason::Cancelled,
    })
}

#[test]
fn the_kill_switch_stops_every_open_job_and_what_was_delivered_is_charged() {
    let mut node = Node::with_agent();
    node.start(Some(7), 1).unwrap();
    node.start(None, 2).unwrap();
    let effects = node.ok(Command::SetKill { on: true, reason: "test".to_owned() });
    assert_eq!(effects.cancel, [job(1), job(2)]);
    assert!(matches!(node.start(None, 3), Err(Rejection::KillSwitch { .. })));
    node.ok(finish(1, 4));
    node.ok(Command::VoidJob { job: job(2), failed: false });
    assert_eq!(node.kernel.ledger().book().charged_total(), Trm::from_trm(5).unwrap());
    assert_eq!(node.ok(Command::SetKill { on: false, reason: String::new() }).cancel, []);
}

#[test]
fn a_revoked_key_stops_its_own_jobs_only() {
    let mut node = Node::with_agent();
    node.start(Some(7), 1).unwrap();
    node.start(None, 2).unwrap();
    assert_eq!(node.ok(Command::RevokeKey { key: KeyId::new(7) }).cancel, [job(1)]);
    assert_eq!(node.start(Some(7), 3), Err(Rejection::KeyInvalid));
}

#[test]
fn a_hold_whose_time_ran_out_ends_before_anything_else_is_decided() {
    let mut node = Node::with_agent();
    node.start(None, 1).unwrap();
    node.start(None, 2).unwrap();
    let stream = Digest::of(b"tokens");
    node.ok(Command::Deliver { job: job(2), completion_tokens: 3, stream, prompt_tokens: None });
    node.now_ms += HOUR_MS;
    let effects = node.ask(Actor::Node, finish(1, 5));
    assert_eq!(effects.cancel, [job(1), job(2)]);
    assert_eq!(effects.reply.unwrap().1, Err(Rejection::UnknownJob { job: job(1) }));
    assert_eq!(node.kernel.ledger().book().charged_total(), Trm::from_trm(4).unwrap());
}

#[test]
fn the_kernel_wakes_at_the_end_of_the_first_hold() {
    let mut node = Node::with_agent();
    let _ = node.give(Input::Tick);
    node.now_ms += 1_000;
    let effects = node.ask(Actor::Node, Command::Tick);
    let idle = effects.wake_at;
    assert!(idle > Some(Timestamp::from_ms(node.now_ms)));
    node.now_ms += 5 * 600_000;
    let _ = node.give(Input::Tick);
    node.start(None, 1).unwrap();
    for _ in 0..12 {
        let due = node.give(Input::Tick).wake_at.unwrap();
        assert!(due.ms() > node.now_ms, "the kernel asks to be woken in the past");
        node.now_ms = due.ms();
    }
    assert!(node.kernel.ledger().book().holds().is_empty());
}

#[test]
fn the_kernel_never_asks_to_be_woken_at_a_time_that_has_come() {
    // Each command makes something due: the first checkpoint at once, the others in time.
    let key = SecretKey::from_seed([1; 32]);
    let line = Trm::from_trm(1_000).unwrap();
    let mut charter = Charter::founder("test", key.public(), line);
    charter.params.checkpoint_ms = 1;
    let charter = Signed::sign(Charter::founding_mesh(), &key, charter).unwrap();
    let ledger = Ledger::new(Lattice::found(&charter).unwrap(), key.public().party());
    let mut kernel = Kernel::new(ledger, Keyring::new(key.clone()));
    let enrol = Enrol { party: key.public().party(), owner: "again".to_owned(), line: Trm::ZERO };
    let commands = [
        Command::Tick,
        Command::OpenChain { line },
        Command::SignEntry { kind: enrol.into() },
        Command::Tick,
    ];
    for (step, command) in commands.into_iter().enumerate() {
        let now = Timestamp::from_ms(START_MS + 10 * step as u64);
        let command = Input::Command { request: RequestId::new(0), actor: Actor::Node, command };
        for input in [command, Input::Tick] {
            let effects = kernel.handle(now, input);
            assert!(effects.wake_at.is_none_or(|due| now < due), "{effects:?}");
        }
    }
    let last = kernel.ledger().lattice().last_checkpoint();
    assert_eq!(last.map(|(number, ..)| number), Some(2));
}

#[test]
fn a_clock_that_goes_back_counts_as_the_last_time_seen() {
    let mut node = Node::with_agent();
    node.start(None, 1).unwrap();
    node.now_ms -= HOUR_MS;
    node.start(None, 2).unwrap();
    let holds = node.kernel.ledger().book().holds();
    assert_eq!(holds[&job(2)].at, Timestamp::from_ms(START_MS));
    assert_eq!(node.kernel.clock(), Timestamp::from_ms(START_MS));
}

#[test]
fn an_agent_needs_its_key_first() {
    let mut node = Node::new();
    let create = Command::CreateAgent { agent: agent(), name: "alice".to_owned() };
    let refused = node.ask(Actor::Node, create.clone()).reply.unwrap().1;
    assert_eq!(refused, Err(Rejection::KeyNotHeld));
    let effects = node.give(Input::AddAgentKey(agent_key()));
    assert_eq!((effects.append.len(), effects.reply), (0, None));
    node.ok(create);
}

#[test]
fn a_refused_command_appends_nothing() {
    let mut node = Node::with_agent();
    let before = node.state();
    let effects = node.ask(Actor::Node, finish(1, 1));
    assert_eq!(effects.append, []);
    assert_eq!(node.state(), before);
}

#[test]
fn replay_from_the_start_and_from_a_snapshot_reach_the_same_state() {
    let mut node = Node::with_agent();
    node.start(Some(7), 1).unwrap();
    let (snapshot, stored) = (node.kernel.snapshot(), node.store.len());
    node.ok(finish(1, 4));
    node.start(None, 2).unwrap();
    node.now_ms += 2 * HOUR_MS;
    let _ = node.give(Input::Tick);
    let Kernel { ledger, keys, .. } = node.genesis.clone();
    let replayed = Kernel::replay(ledger, keys.clone(), node.store.clone());
    assert_eq!(replayed.ledger().state_hash(), node.state());
    let restored = Ledger::restore(&snapshot).unwrap();
    let tail = node.store[stored..].to_vec();
    assert_eq!(Kernel::replay(restored, keys, tail).ledger().state_hash(), node.state());
}

#[test]
fn the_clerk_writes_a_checkpoint_when_something_changed_and_only_then() {
    let mut node = Node::with_agent();
    let last = |node: &Node| node.kernel.ledger().lattice().last_checkpoint();
    node.now_ms += 600_000;
    let _ = node.give(Input::Tick);
    let (number, ..) = last(&node).expect("the opened chain is worth a checkpoint");
    for _ in 0..5 {
        node.now_ms += 600_000;
        let effects = node.give(Input::Tick);
        assert_eq!(effects.append, [], "a checkpoint without a change");
    }
    let party = node.kernel.ledger().party();
    let enrol = Enrol { party, owner: "again".to_owned(), line: Trm::ZERO };
    node.ok(Command::SignEntry { kind: enrol.into() });
    assert_eq!(last(&node).map(|(now, ..)| now), Some(number));
    node.now_ms += 600_000;
    let _ = node.give(Input::Tick);
    assert_eq!(last(&node).map(|(now, ..)| now), Some(number + 1));
    let replayed =
        Kernel::replay(node.genesis.ledger.clone(), node.genesis.keys.clone(), node.store.clone());
    assert_eq!(replayed.ledger().state_hash(), node.state());
}

#[test]
fn a_restart_ends_every_open_job() {
    let mut node = Node::with_agent();
    node.start(None, 1).unwrap();
    node.start(None, 2).unwrap();
    let stream = Digest::of(b"tokens");
    node.ok(Command::Deliver { job: job(2), completion_tokens: 3, stream, prompt_tokens: None });
    let Kernel { ledger, keys, .. } = node.genesis.clone();
    node.kernel = Kernel::replay(ledger, keys, node.store.clone());
    let effects = node.ok(Command::Recover);
    let voided = |event: &Event| matches!(event, Event::Book(BookEvent::HoldVoided { .. }));
    assert_eq!(effects.append.iter().filter(|event| voided(event)).count(), 1);
    assert!(node.kernel.ledger().book().holds().is_empty());
    assert_eq!(node.kernel.ledger().book().charged_total(), Trm::from_trm(4).unwrap());
}
