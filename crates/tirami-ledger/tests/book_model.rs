//! The book against a naive model: plain vectors, every sum recomputed, nothing kept twice. Both
//! take the same random commands and must give the same answers and the same balances.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod book_support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tirami_core::{AgentId, Digest, JobId, ModelDigest, Trm};
use tirami_ledger::book::{ApprovalId, KeyId, Limits, Scope, Target};
use tirami_ledger::command::{Actor, Command, FinishJob, StartJob};
use tirami_ledger::documents::FinishReason;

use book_support::{LINE_TRM, TOKEN_IS_ONE_TRM, World, agent_key};

const AGENTS: usize = 2;
const NAMES: [&str; AGENTS] = ["alice", "bob"];

/// Limits in whole TRM, as the model keeps them.
#[derive(Debug, Clone, Copy, Default)]
struct Max {
    request: Option<u64>,
    minute: Option<u64>,
    hour: Option<u64>,
    day: Option<u64>,
    life: Option<u64>,
    approval: Option<u64>,
    errors: Option<u64>,
    spends: Option<u64>,
}

#[derive(Debug, Clone)]
enum Step {
    Wait {
        ms: u64,
    },
    Fund {
        agent: usize,
        amount: u64,
    },
    Defund {
        agent: usize,
        amount: u64,
    },
    Limit {
        level: usize,
        agent: usize,
        max: Max,
    },
    Kill {
        on: bool,
    },
    Reset {
        agent: usize,
    },
    Start {
        agent: usize,
        by_key: bool,
        prompt: u64,
        max: u64,
        request: u8,
    },
    Deliver {
        hold: usize,
        tokens: u64,
    },
    Finish {
        hold: usize,
        tokens: u64,
        failed: bool,
    },
    Void {
        hold: usize,
        failed: bool,
    },
    Answer {
        approval: usize,
        approve: bool,
    },
    Recover,
    Tick,
}

#[derive(Debug, Clone)]
struct Hold {
    job: u64,
    agent: usize,
    prompt: u64,
    completion_max: u64,
    voucher: Option<u64>,
    ends: u64,
}

/// Something that was or may be spent.
#[derive(Debug, Clone)]
struct Spend {
    job: u64,
    agent: usize,
    by_key: bool,
    at: u64,
    amount: u64,
}

#[derive(Debug, Clone)]
struct Ask {
    id: u64,
    agent: usize,
    request: u8,
    amount: u64,
    lapses: u64,
    answer: Option<bool>,
}

#[derive(Debug, Clone, Default)]
struct Agent {
    balance: u64,
    key_max: Max,
    max: Max,
    errors: u64,
    started: Vec<u64>,
    broken_until: u64,
}

#[derive(Debug, Clone, Default)]
struct Model {
    now: u64,
    agents: [Agent; AGENTS],
    node_max: Max,
    holds: Vec<Hold>,
    spends: Vec<Spend>,
    asks: Vec<Ask>,
    asked: u64,
    jobs: u64,
    killed: bool,
    /// What the last step must answer: `ok`, `pending` or a rejection's code.
    answer: &'static str,
}

fn smaller(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}

impl Model {
    fn held(&self, agent: usize) -> u64 {
        let own = self.holds.iter().filter(|hold| hold.agent == agent);
        own.map(|hold| hold.prompt + hold.completion_max).sum()
    }

    /// Spent and held by a level (0 key, 1 agent, 2 node) in the buckets that reach into a window.
    fn used(&self, level: usize, agent: usize, (width, buckets): (u64, u64)) -> u64 {
        let counts = |spend: &&Spend| {
            let in_time = spend.at / width + buckets >= self.now / width;
            let at_level = match level {
                0 => spend.agent == agent && spend.by_key,
                1 => spend.agent == agent,
                _ => true,
            };
            in_time && at_level
        };
        self.spends
            .iter()
            .filter(counts)
            .map(|spend| spend.amount)
            .sum()
    }

    fn levels(&self, agent: usize, by_key: bool) -> Vec<(usize, Max)> {
        let mut levels = vec![(1, self.agents[agent].max), (2, self.node_max)];
        if by_key {
            levels.insert(0, (0, self.agents[agent].key_max));
        }
        levels
    }

    fn fundable(&self) -> u64 {
        LINE_TRM + self.charged() - self.funded()
    }

    fn funded(&self) -> u64 {
        self.agents.iter().map(|agent| agent.balance).sum::<u64>() + self.charged()
    }

    /// Charged ever: what was spent and is not held any more.
    fn charged(&self) -> u64 {
        let open = |job: u64| self.holds.iter().any(|hold| hold.job == job);
        self.spends
            .iter()
            .filter(|spend| !open(spend.job))
            .map(|spend| spend.amount)
            .sum()
    }

    fn start(&mut self, agent: usize, by_key: bool, cost: (u64, u64), request: u8) -> &'static str {
        let needed = cost.0 + cost.1;
        if self.killed {
            return "kill_switch";
        }
        let levels = self.levels(agent, by_key);
        if levels
            .iter()
            .any(|(_, max)| max.request.is_some_and(|max| needed > max))
        {
            return "request_limit";
        }
        let over = |model: &Self, window, of: fn(&Max) -> Option<u64>| {
            levels.iter().any(|(level, max)| {
                of(max).is_some_and(|max| model.used(*level, agent, window) + needed > max)
            })
        };
        if over(self, (60_000, 60), |max| max.hour)
            || over(self, (3_600_000, 24), |max| max.day)
            || over(self, (u64::MAX, 1), |max| max.life)
        {
            return "budget_limit";
        }
        if over(self, (1_000, 60), |max| max.minute) {
            return "velocity_limit";
        }
        if self.now < self.agents[agent].broken_until {
            return "breaker_open";
        }
        let mut used_ask = None;
        let threshold = levels.iter().filter_map(|(_, max)| max.approval).min();
        if threshold.is_some_and(|above| needed > above) {
            match self.ask(agent, request, needed) {
                Ok(ask) => used_ask = Some(ask),
                Err(answer) => return answer,
            }
        }
        if self.held(agent) + needed > self.agents[agent].balance {
            return "insufficient_balance";
        }
        self.asks.retain(|ask| Some(ask.id) != used_ask);
        self.open(agent, by_key, cost);
        "ok"
    }

    fn ask(&mut self, agent: usize, request: u8, needed: u64) -> Result<u64, &'static str> {
        let place = self
            .asks
            .iter()
            .position(|ask| ask.agent == agent && ask.request == request);
        if let Some(ask) = place.map(|place| &self.asks[place])
            && self.now < ask.lapses
        {
            match ask.answer {
                Some(false) => return Err("approval_denied"),
                Some(true) if ask.amount >= needed => return Ok(ask.id),
                None if ask.amount >= needed => return Err("pending"),
                _ => {}
            }
        }
        if let Some(place) = place {
            self.asks.remove(place);
        }
        self.asked += 1;
        let lapses = self.now + 3_600_000;
        self.asks.push(Ask {
            id: self.asked,
            agent,
            request,
            amount: needed,
            lapses,
            answer: None,
        });
        Err("pending")
    }

    fn open(&mut self, agent: usize, by_key: bool, (prompt, completion_max): (u64, u64)) {
        let (now, job) = (self.now, self.jobs);
        let amount = prompt + completion_max;
        let ends = now + 3_600_000;
        self.holds.push(Hold {
            job,
            agent,
            prompt,
            completion_max,
            voucher: None,
            ends,
        });
        self.spends.push(Spend {
            job,
            agent,
            by_key,
            at: now,
            amount,
        });
        let most = smaller(self.agents[agent].max.spends, self.node_max.spends);
        let account = &mut self.agents[agent];
        account.started.push(now);
        let lately = account
            .started
            .iter()
            .filter(|at| *at / 1_000 + 60 >= now / 1_000)
            .count();
        if most.is_some_and(|most| lately as u64 >= most) {
            account.trip(now);
        }
    }

    /// Ends the hold at a place with a charge; `None` is a void.
    fn end(&mut self, place: usize, charge: Option<u64>) {
        let hold = self.holds.remove(place);
        let charge = charge.unwrap_or(0);
        self.agents[hold.agent].balance -= charge;
        let spend = self
            .spends
            .iter_mut()
            .find(|spend| spend.job == hold.job)
            .unwrap();
        spend.amount = charge;
    }

    fn failed(&mut self, agent: usize) {
        let most = smaller(self.agents[agent].max.errors, self.node_max.errors);
        self.agents[agent].errors += 1;
        if most.is_some_and(|most| self.agents[agent].errors >= most) {
            self.agents[agent].trip(self.now);
        }
    }

    fn deliver(&mut self, place: usize, tokens: u64) -> &'static str {
        let now = self.now;
        let Some(hold) = self.holds.get_mut(place) else {
            return "unknown_job";
        };
        if tokens == 0 || !hold.allows(now, tokens) {
            return "contradicts";
        }
        hold.voucher = Some(tokens);
        "ok"
    }

    fn finish(&mut self, place: usize, tokens: u64, failed: bool) -> &'static str {
        let Some(hold) = self.holds.get(place).cloned() else {
            return "unknown_job";
        };
        if !hold.allows(self.now, tokens) {
            return "contradicts";
        }
        self.end(place, (tokens > 0).then_some(hold.prompt + tokens));
        if failed {
            self.failed(hold.agent);
        } else if tokens > 0 {
            self.agents[hold.agent].errors = 0;
        }
        "ok"
    }

    /// Ends holds by their vouchers: all of them, or those whose time ran out.
    fn settle(&mut self, all: bool) {
        for place in (0..self.holds.len()).rev() {
            let hold = self.holds[place].clone();
            if all || hold.ends <= self.now {
                self.end(place, hold.voucher.map(|tokens| hold.prompt + tokens));
            }
        }
    }

    fn take(&mut self, step: &Step) -> &'static str {
        match *step {
            Step::Wait { ms } => self.now += ms,
            Step::Fund { amount, .. } | Step::Defund { amount, .. } if self.killed => {
                let _ = amount;
                return "kill_switch";
            }
            Step::Fund { amount, .. } if amount > self.fundable() => return "insufficient_balance",
            Step::Fund { agent, amount } => self.agents[agent].balance += amount,
            Step::Defund { agent, amount } => {
                if amount > self.agents[agent].balance - self.held(agent) {
                    return "insufficient_balance";
                }
                self.agents[agent].balance -= amount;
            }
            Step::Limit {
                level: 0,
                agent,
                max,
            } => {
                self.agents[agent].key_max = Max {
                    errors: None,
                    spends: None,
                    ..max
                };
            }
            Step::Limit {
                level: 1,
                agent,
                max,
            } => self.agents[agent].max = max,
            Step::Limit { max, .. } => self.node_max = max,
            Step::Kill { on } => self.killed = on,
            Step::Reset { agent } => self.agents[agent].trip(0),
            Step::Start {
                agent,
                by_key,
                prompt,
                max,
                request,
            } => {
                self.jobs += 1;
                return self.start(agent, by_key, (prompt, max), request);
            }
            Step::Deliver { hold, tokens } => return self.deliver(hold, tokens),
            Step::Finish {
                hold,
                tokens,
                failed,
            } => return self.finish(hold, tokens, failed),
            Step::Void { hold, failed } => match self.holds.get(hold).cloned() {
                None => return "unknown_job",
                Some(Hold {
                    voucher: Some(_), ..
                }) => return "contradicts",
                Some(Hold { agent, .. }) => {
                    self.end(hold, None);
                    if failed {
                        self.failed(agent);
                    }
                }
            },
            Step::Answer { approval, approve } => {
                let now = self.now;
                let ask = self.asks.get_mut(approval);
                match ask.filter(|ask| ask.answer.is_none() && now < ask.lapses) {
                    Some(ask) => ask.answer = Some(approve),
                    None => return "unknown_approval",
                }
            }
            Step::Recover => self.settle(true),
            Step::Tick => {
                self.settle(false);
                let now = self.now;
                self.asks.retain(|ask| now < ask.lapses);
            }
        }
        "ok"
    }
}

impl Agent {
    fn trip(&mut self, now: u64) {
        self.started.clear();
        self.errors = 0;
        self.broken_until = if now == 0 { 0 } else { now + 300_000 };
    }
}

impl Hold {
    fn allows(&self, now: u64, tokens: u64) -> bool {
        now < self.ends && tokens <= self.completion_max && tokens >= self.voucher.unwrap_or(0)
    }
}

struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let mut model = Model {
            now: 1_700_000_000_000,
            answer: "ok",
            ..Model::default()
        };
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
    let money = (
        some(20..60),
        some(30..120),
        some(60..300),
        some(100..600),
        some(300..3_000),
    );
    (
        money,
        prop::option::weighted(0.5, 5..40_u64),
        some(1..4),
        some(2..8),
    )
        .prop_map(|(money, approval, errors, spends)| {
            let (request, minute, hour, day, life) = money;
            Max {
                request,
                minute,
                hour,
                day,
                life,
                approval,
                errors,
                spends,
            }
        })
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
                Command::CreateAgent {
                    agent: agent(index),
                    name: name.to_owned(),
                },
                Command::FundAgent {
                    agent: agent(index),
                    amount: trm(300),
                },
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
            commands
                .iter()
                .for_each(|command| drop(world.run(&Actor::Node, command).unwrap()));
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
            for (level, target) in [
                Target::Key(key(index)),
                Target::Agent(agent(index)),
                Target::Node,
            ]
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
            Step::Fund {
                agent: index,
                amount,
            } => Command::FundAgent {
                agent: agent(index),
                amount: trm(amount),
            },
            Step::Defund {
                agent: index,
                amount,
            } => Command::DefundAgent {
                agent: agent(index),
                amount: trm(amount),
            },
            Step::Limit {
                level,
                agent: index,
                max,
            } => limit(level, index, max),
            Step::Kill { on } => Command::SetKill {
                on,
                reason: String::new(),
            },
            Step::Reset { agent: index } => Command::ResetBreaker {
                agent: agent(index),
            },
            Step::Start {
                agent: index,
                by_key,
                prompt,
                max,
                request,
            } => {
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
                };
                return (actor, Command::StartJob(start));
            }
            Step::Deliver { hold, tokens } => Command::Deliver {
                job: self.job_at(hold),
                completion_tokens: number(tokens),
                stream: Digest::of(b""),
            },
            Step::Finish {
                hold,
                tokens,
                failed,
            } => Command::FinishJob(FinishJob {
                job: self.job_at(hold),
                cached_tokens: 0,
                completion_tokens: number(tokens),
                output: Digest::of(b""),
                build: String::new(),
                finish: if failed {
                    FinishReason::Failed
                } else {
                    FinishReason::Length
                },
            }),
            Step::Void { hold, failed } => Command::VoidJob {
                job: self.job_at(hold),
                failed,
            },
            Step::Answer { approval, approve } => {
                let mut queue = self.world.ledger.book().approvals().keys();
                let approval = queue
                    .nth(approval)
                    .copied()
                    .unwrap_or(ApprovalId::new(u64::MAX));
                Command::DecideApproval { approval, approve }
            }
            Step::Recover => Command::Recover,
        };
        (Actor::Node, command)
    }

    /// The job at a place in the order in which jobs were opened; an unknown one beyond.
    fn job_at(&self, place: usize) -> JobId {
        // Job ids count up, so the book's order is the order of opening.
        self.world
            .ledger
            .book()
            .holds()
            .keys()
            .nth(place)
            .copied()
            .unwrap_or(job(u64::MAX))
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
    let targets = [
        Target::Key(key(index)),
        Target::Agent(agent(index)),
        Target::Node,
    ];
    Command::SetLimits {
        target: targets[level],
        limits,
    }
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
        let steps = Machine::sequential_strategy(60..120)
            .new_tree(&mut runner)
            .unwrap();
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
        assert!(
            seen.get(answer).is_some_and(|count| *count >= 10),
            "{answer}: {seen:?}"
        );
    }
}
