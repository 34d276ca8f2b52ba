//! The book against a naive model: plain vectors, every sum recomputed, nothing kept twice. Both
//! take the same random commands and must give the same answers and the same balances.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tirami_core::{AgentId, Digest, JobId, ModelDigest, Trm};
use tirami_ledger::book::{ApprovalId, KeyId, Limits, Scope, Target};
use tirami_ledger::command::{Actor, Command, FinishJob, StartJob};
use tirami_ledger::documents::FinishReason;

use super::model::{AGENTS, Max, Model, Step};
use super::world::{TOKEN_IS_ONE_TRM, World, agent_key};

const NAMES: [&str; AGENTS] = ["alice", "bob"];

struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let mut model = Model { now: 1_700_000_000_000, answer: "ok", ..Model::default() };
        for agent in &mut model.agents {
            agent.balance = 300;
        }
        Just(model).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let agent = 0..AGENTS;
        let hold = 0..3_usize;
        let wait = prop_oneof![0..90_000_u64, 0..7_200_000_u64, 0..200_000_000_u64];
        prop_oneof![
            4 => wait.prop_map(|ms| Step::Wait { ms }),
            2 => (agent.clone(), 1..500_u64).prop_map(|(agent, amount)| Step::Fund { agent, amount }),
            1 => (agent.clone(), 1..300_u64)
                .prop_map(|(agent, amount)| Step::Defund { agent, amount }),
            2 => (0..3_usize, agent.clone(), max())
                .prop_map(|(level, agent, max)| Step::Limit { level, agent, max }),
            1 => prop::bool::weighted(0.2).prop_map(|on| Step::Kill { on }),
            1 => agent.clone().prop_map(|agent| Step::Reset { agent }),
            12 => (agent, any::<bool>(), 1..20_u64, 1..40_u64, 0..2_u8).prop_map(
                |(agent, by_key, prompt, max, request)| {
                    Step::Start { agent, by_key, prompt, max, request }
                }
            ),
            4 => (hold.clone(), 0..45_u64).prop_map(|(hold, tokens)| Step::Deliver { hold, tokens }),
            6 => (hold.clone(), 0..45_u64, prop::bool::weighted(0.3))
                .prop_map(|(hold, tokens, failed)| Step::Finish { hold, tokens, failed }),
            3 => (hold, any::<bool>()).prop_map(|(hold, failed)| Step::Void { hold, failed }),
            6 => (0..2_usize, prop::bool::weighted(0.6))
                .prop_map(|(approval, approve)| Step::Answer { approval, approve }),
            1 => Just(Step::Recover),
            2 => Just(Step::Tick),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.answer = model.take(step);
        model
    }
}

fn max() -> impl Strategy<Value = Max> {
    let some = |range: std::ops::Range<u64>| prop::option::weighted(0.3, range);
    let money = (some(20..60), some(30..120), some(60..300), some(100..600), some(300..3_000));
    (money, prop::option::weighted(0.5, 5..40_u64), some(1..4), some(2..8)).prop_map(
        |(money, approval, errors, spends)| {
            let (request, minute, hour, day, life) = money;
            Max { request, minute, hour, day, life, approval, errors, spends }
        },
    )
}

/// The ledger under test, and which of its jobs and approvals the model's places mean.
struct Subject {
    world: World,
    jobs: u64,
}

impl StateMachineTest for Subject {
    type SystemUnderTest = Self;
    type Reference = Machine;

    fn init_test(model: &Model) -> Self {
        let mut world = World::quick();
        world.now_ms = model.now;
        for (index, name) in NAMES.into_iter().enumerate() {
            world.keys.add_agent(agent_key(name));
            let commands = [
                Command::CreateAgent { agent: agent(index), name: name.to_owned() },
                Command::FundAgent { agent: agent(index), amount: trm(300) },
                Command::CreateKey {
                    key: key(index),
                    secret: Digest::of(name.as_bytes()),
                    label: name.to_owned(),
                    scope: Scope::Inference,
                    agent: Some(agent(index)),
                    limits: Limits::default(),
                    expires_at: None,
                },
            ];
            commands.iter().for_each(|command| drop(world.run(&Actor::Node, command).unwrap()));
        }
        Self { world, jobs: 0 }
    }

    fn apply(mut subject: Self, model: &Model, step: Step) -> Self {
        if let Step::Wait { ms } = step {
            subject.world.now_ms += ms;
            return subject;
        }
        let (actor, command) = subject.command(&step);
        let answer = match subject.world.run(&actor, &command) {
            Ok(tirami_ledger::command::Outcome::ApprovalPending { .. }) => "pending",
            Ok(_) => "ok",
            Err(rejection) => rejection.code(),
        };
        assert_eq!(answer, model.answer, "{step:?}");
        subject
    }

    fn check_invariants(subject: &Self, model: &Model) {
        let book = subject.world.ledger.book();
        let now = subject.world.now();
        for (index, expected) in model.agents.iter().enumerate() {
            let account = &book.agents()[&agent(index)];
            assert_eq!(account.balance(), trm(expected.balance));
            assert_eq!(account.held(), trm(model.held(index)));
            assert_eq!(u64::from(account.errors_in_a_row()), expected.errors);
            let broken = model.now < expected.broken_until;
            assert_eq!(account.breaker_open_until(now).is_some(), broken);
            for (level, target) in
                [Target::Key(key(index)), Target::Agent(agent(index)), Target::Node]
                    .into_iter()
                    .enumerate()
            {
                let usage = book.usage(target, now).unwrap();
                let used = |window| trm(model.used(level, index, window));
                assert_eq!(usage.minute, used((1_000, 60)));
                assert_eq!(usage.hour, used((60_000, 60)));
                assert_eq!(usage.day, used((3_600_000, 24)));
                assert_eq!(usage.lifetime, used((u64::MAX, 1)));
            }
        }
        assert_eq!(book.charged_total(), trm(model.charged()));
        assert_eq!(book.holds().len(), model.holds.len());
        assert_eq!(book.approvals().len(), model.asks.len());
        assert_eq!(subject.world.ledger.fundable(), trm(model.fundable()));
    }
}

impl Subject {
    fn command(&mut self, step: &Step) -> (Actor, Command) {
        let number = |value: u64| u32::try_from(value).unwrap();
        let command = match *step {
            Step::Wait { .. } | Step::Tick => Command::Tick,
            Step::Fund { agent: index, amount } => {
                Command::FundAgent { agent: agent(index), amount: trm(amount) }
            }
            Step::Defund { agent: index, amount } => {
                Command::DefundAgent { agent: agent(index), amount: trm(amount) }
            }
            Step::Limit { level, agent: index, max } => limit(level, index, max),
            Step::Kill { on } => Command::SetKill { on, reason: String::new() },
            Step::Reset { agent: index } => Command::ResetBreaker { agent: agent(index) },
            Step::Start { agent: index, by_key, prompt, max, request } => {
                self.jobs += 1;
                let actor = Actor::Caller {
                    key: by_key.then(|| key(index)),
                    agent: Some(agent(index)),
                    scope: Scope::Inference,
                };
                let start = StartJob {
                    job: job(self.jobs),
                    model: ModelDigest::from_bytes([9; 32]),
                    shape: TOKEN_IS_ONE_TRM,
                    request: Digest::of(&[request]),
                    seed: 0,
                    prompt_tokens: number(prompt),
                    completion_max: number(max),
                    continues: None,
                };
                return (actor, Command::StartJob(start));
            }
            Step::Deliver { hold, tokens } => Command::Deliver {
                job: self.job_at(hold),
                completion_tokens: number(tokens),
                stream: Digest::of(b""),
                prompt_tokens: None,
            },
            Step::Finish { hold, tokens, failed } => Command::FinishJob(FinishJob {
                job: self.job_at(hold),
                cached_tokens: 0,
                completion_tokens: number(tokens),
                output: Digest::of(b""),
                build: String::new(),
                finish: if failed { FinishReason::Failed } else { FinishReason::Length },
            }),
            Step::Void { hold, failed } => Command::VoidJob { job: self.job_at(hold), failed },
            Step::Answer { approval, approve } => {
                let mut queue = self.world.ledger.book().approvals().keys();
                let approval = queue.nth(approval).copied().unwrap_or(ApprovalId::new(u64::MAX));
                Command::DecideApproval { approval, approve }
            }
            Step::Recover => Command::Recover,
        };
        (Actor::Node, command)
    }

    /// The job at a place in the order in which jobs were opened; an unknown one beyond.
    fn job_at(&self, place: usize) -> JobId {
        // Job ids count up, so the book's order is the order of opening.
        self.world.ledger.book().holds().keys().nth(place).copied().unwrap_or(job(u64::MAX))
    }
}

fn limit(level: usize, index: usize, max: Max) -> Command {
    let amount = |value: Option<u64>| value.map(trm);
    let count = |value: Option<u64>| value.filter(|_| level > 0).map(|value| value as u32);
    let limits = Limits {
        request_max: amount(max.request),
        minute_max: amount(max.minute),
        hour_max: amount(max.hour),
        day_max: amount(max.day),
        lifetime_max: amount(max.life),
        approval_above: amount(max.approval),
        breaker_errors: count(max.errors),
        breaker_spends_per_minute: count(max.spends),
        breaker_open_ms: None,
    };
    let targets = [Target::Key(key(index)), Target::Agent(agent(index)), Target::Node];
    Command::SetLimits { target: targets[level], limits }
}

fn agent(index: usize) -> AgentId {
    agent_key(NAMES[index]).public().agent()
}

fn key(index: usize) -> KeyId {
    KeyId::new(index as u32)
}

fn job(number: u64) -> JobId {
    JobId::from_bytes(u128::from(number).to_be_bytes())
}

fn trm(amount: u64) -> Trm {
    Trm::from_trm(amount).unwrap()
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_book_agrees_with_a_naive_model(sequential 20..120 => Subject);
}

#[test]
fn the_model_refuses_for_every_reason_somewhere() {
    // A model that never refuses would agree with a book that never does.
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::<&'static str, u32>::new();
    for _ in 0..300 {
        let steps = Machine::sequential_strategy(60..120).new_tree(&mut runner).unwrap();
        let (mut model, steps, _) = steps.current();
        for step in &steps {
            model = Machine::apply(model, step);
            *seen.entry(model.answer).or_default() += 1;
        }
    }
    for answer in [
        "ok",
        "pending",
        "kill_switch",
        "request_limit",
        "budget_limit",
        "velocity_limit",
        "breaker_open",
        "approval_denied",
        "insufficient_balance",
        "contradicts",
        "unknown_job",
        "unknown_approval",
    ] {
        assert!(seen.get(answer).is_some_and(|count| *count >= 10), "{answer}: {seen:?}");
    }
}
