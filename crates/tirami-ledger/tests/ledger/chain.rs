//! The node's own chain seen from its book: opening it, paying without touching what belongs to
//! agents, acknowledging its own entries, and what is refused.

use tirami_core::{AgentId, Digest, DocumentId, JobId, SecretKey, Timestamp, Trm};
use tirami_ledger::book::Scope;
use tirami_ledger::command::{Actor, Command, FinishJob, Outcome};
use tirami_ledger::documents::FinishReason;
use tirami_ledger::lattice::{Collect, Transfer};
use tirami_ledger::{Context, Keyring, Ledger, Rejection, RestoreError};

use crate::book::world::{LINE_TRM, World, a_job, agent_key, founded};

fn trm(amount: u64) -> Trm {
    Trm::from_trm(amount).unwrap()
}

fn alice() -> AgentId {
    agent_key("alice").public().agent()
}

/// A world whose agent `alice` has `amount` TRM.
fn with_alice(amount: u64) -> World {
    let mut world = World::new();
    world.keys.add_agent(agent_key("alice"));
    let create = Command::CreateAgent { agent: alice(), name: "alice".to_owned() };
    world.run(&Actor::Node, &create).unwrap();
    world.run(&Actor::Node, &Command::FundAgent { agent: alice(), amount: trm(amount) }).unwrap();
    world
}

fn transfer(amount: u64) -> Command {
    let payee = SecretKey::from_seed([77; 32]).public().party();
    Command::SignEntry { kind: Transfer { payee, amount: trm(amount) }.into() }
}

fn start() -> (Actor, Command) {
    let actor = Actor::Caller { key: None, agent: Some(alice()), scope: Scope::Inference };
    (actor, Command::StartJob(a_job(JobId::from_bytes([5; 16]))))
}

fn finish(completion_tokens: u32) -> Command {
    Command::FinishJob(FinishJob {
        job: JobId::from_bytes([5; 16]),
        cached_tokens: 1,
        completion_tokens,
        output: Digest::of(b"output"),
        build: "engine 1.0 cpu".to_owned(),
        finish: FinishReason::Stop,
    })
}

#[test]
fn a_lone_node_opens_its_chain_once_with_its_line() {
    let mut world = World::new();
    let lattice = world.ledger.lattice();
    assert_eq!(lattice.final_count(), 3);
    assert_eq!(lattice.line(world.party()), trm(LINE_TRM));
    assert_eq!(world.ledger.fundable(), trm(LINE_TRM));
    let again = world.run(&Actor::Node, &Command::OpenChain { line: trm(1) });
    assert_eq!(again, Err(Rejection::Exists { what: "the chain" }));
}

#[test]
fn a_chain_cannot_be_opened_beyond_the_line_total() {
    let node = SecretKey::from_seed([1; 32]);
    let ledger = founded(&node, trm(5));
    let keys = Keyring::new(node);
    let context = Context { now: Timestamp::from_ms(1), keys: &keys };
    let refused = ledger.decide(&context, &Actor::Node, &Command::OpenChain { line: trm(6) });
    assert!(matches!(refused, Err(Rejection::Entry(_))), "{refused:?}");
}

#[test]
fn the_node_pays_with_its_own_money_and_not_with_its_agents() {
    let mut world = with_alice(LINE_TRM - 10);
    let refused = world.run(&Actor::Node, &transfer(11));
    let insufficient = Rejection::Insufficient { needed: trm(11), available: trm(10) };
    assert_eq!(refused, Err(insufficient));
    world.run(&Actor::Node, &transfer(10)).unwrap();
    assert_eq!(world.ledger.fundable(), Trm::ZERO);
    // What alice pays for an answer is the node's again.
    let (actor, command) = start();
    world.run(&actor, &command).unwrap();
    world.run(&Actor::Node, &finish(7)).unwrap();
    assert_eq!(world.ledger.fundable(), trm(10));
    world.run(&Actor::Node, &transfer(10)).unwrap();
    assert_eq!(world.ledger.lattice().totals().transit, trm(20).signed());
}

#[test]
fn the_nodes_own_entries_become_final_by_its_own_acknowledgement() {
    let mut world = World::new();
    let outcome = world.run(&Actor::Node, &transfer(10)).unwrap();
    let Outcome::Entry { entry, .. } = outcome else { panic!("{outcome:?}") };
    assert!(world.ledger.lattice().final_entry(entry).is_some());
    let refused = world.run(&Actor::Node, &Command::Acknowledge { entry });
    assert!(matches!(refused, Err(Rejection::Acknowledge(_))), "{refused:?}");
}

#[test]
fn an_entry_the_rules_forbid_is_refused_with_its_reason() {
    let mut world = World::new();
    let kind = Collect { ids: vec![DocumentId::from_bytes([1; 32])], checkpoint: None }.into();
    let refused = world.run(&Actor::Node, &Command::SignEntry { kind });
    assert!(matches!(refused, Err(Rejection::Entry(_))), "{refused:?}");
}

#[test]
fn the_kill_switch_and_the_scope_stop_payments_of_the_node() {
    let mut world = with_alice(1);
    let caller = |scope| Actor::Caller { key: None, agent: None, scope };
    let refused = world.run(&caller(Scope::Inference), &transfer(1));
    let scope = Rejection::Scope { needed: Scope::Economy, held: Scope::Inference };
    assert_eq!(refused, Err(scope));
    world.run(&caller(Scope::Economy), &transfer(1)).unwrap();
    let kill = Command::SetKill { on: true, reason: "why".to_owned() };
    world.run(&Actor::Node, &kill).unwrap();
    let refused = world.run(&caller(Scope::Economy), &transfer(1));
    assert!(matches!(refused, Err(Rejection::KillSwitch { .. })), "{refused:?}");
}

#[test]
fn a_job_needs_the_agents_own_key_to_sign() {
    let mut world = with_alice(100);
    world.keys.agents.clear();
    let (actor, command) = start();
    assert_eq!(world.run(&actor, &command), Err(Rejection::KeyNotHeld));
}

#[test]
fn texts_and_shapes_out_of_range_are_refused() {
    let mut world = with_alice(100);
    let long = "x".repeat(65);
    let agent = AgentId::from_bytes([3; 32]);
    for name in ["", long.as_str(), "a\nb"] {
        let create = Command::CreateAgent { agent, name: name.to_owned() };
        let refused = world.run(&Actor::Node, &create);
        assert!(matches!(refused, Err(Rejection::OutOfRange { field: "name", .. })), "{name:?}");
    }
    let kill = Command::SetKill { on: true, reason: "y".repeat(257) };
    let refused = world.run(&Actor::Node, &kill);
    assert!(matches!(refused, Err(Rejection::OutOfRange { field: "reason", .. })));
    let (actor, command) = start();
    let Command::StartJob(mut job) = command else { unreachable!() };
    job.shape.layers = u32::MAX;
    job.shape.attention_width = u32::MAX;
    let refused = world.run(&actor, &Command::StartJob(job));
    assert!(matches!(refused, Err(Rejection::OutOfRange { .. })), "{refused:?}");
}

#[test]
fn a_snapshot_that_was_cut_or_extended_is_refused() {
    let world = with_alice(100);
    let mut bytes = world.ledger.snapshot();
    bytes.push(0);
    assert!(matches!(Ledger::restore(&bytes), Err(RestoreError::TrailingBytes)));
    bytes.truncate(bytes.len() / 2);
    assert!(matches!(Ledger::restore(&bytes), Err(RestoreError::Malformed(_))));
}
