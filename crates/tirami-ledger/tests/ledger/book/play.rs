//! Plays scenario files against a ledger. One token of the toy model costs 1 TRM at par.
//!
//! ```text
//! agent NAME [fund=TRM]           fund|defund NAME TRM          after DURATION
//! key NAME scope=S [agent=A] [expires=D] [limits…]              auth KEY
//! rotate OLD NEW grace=D          revoke KEY                    price PPM
//! limits node|NAME|KEY [request= minute= hour= day= life= approval= errors= spends= open=]
//! start JOB by=WHO [prompt=N] max=N [request=R] [model=smollm2]
//! deliver JOB N    finish JOB N [reason=stop|length|cancelled|failed] [cached=N]
//! void JOB [failed]    kill on|off [reason]    approve|deny N    reset NAME    recover    tick
//! check NAME|KEY|node|book field=value…
//! ```
//! `by=` is the node, an agent (loopback, scope inference) or a key; every verb takes it and the
//! node is meant without it. After `->` stands `ok`, `pending` or a rejection's code, then fields
//! of the answer. Without `->` the step must be accepted.

use std::collections::BTreeMap;

use tirami_core::{AgentId, Digest, JobId, ModelDigest, ModelShape, Ppm, Trm};
use tirami_ledger::Rejection;
use tirami_ledger::book::{ApprovalId, KeyId, Level, Limits, Period, Scope, Target};
use tirami_ledger::command::{Actor, Command, FinishJob, Outcome, StartJob};
use tirami_ledger::documents::FinishReason;

use super::world::{SMOLLM2, TOKEN_IS_ONE_TRM, World, agent_key};
use crate::script::{Step, duration};

type Answer = (String, BTreeMap<String, String>);

/// A scenario in progress.
pub(crate) struct Play {
    pub(crate) world: World,
    /// The keys made, with who they act for and what they may do.
    keys: BTreeMap<String, (Option<AgentId>, Scope)>,
}

impl Play {
    pub(crate) fn new() -> Self {
        Self { world: World::new(), keys: BTreeMap::new() }
    }

    /// Takes one step and checks its expectation.
    pub(crate) fn step(&mut self, step: &Step) {
        let line = step.line;
        let answer = match step.verb.as_str() {
            "after" => {
                self.world.now_ms += duration(&step.args[0]);
                return;
            }
            "check" => return self.check(step),
            "auth" => self.authenticate(step),
            _ => {
                let actor = self.actor(step.named.get("by").map_or("node", String::as_str));
                let command = self.command(step);
                let answer = answer(self.world.run(&actor, &command));
                if let ("agent", Some(fund)) = (step.verb.as_str(), step.named.get("fund")) {
                    let agent = agent_of(&step.args[0]);
                    let fund = Command::FundAgent { agent, amount: trm(fund) };
                    self.world.run(&Actor::Node, &fund).unwrap();
                }
                answer
            }
        };
        let expected = step.expect.as_deref().unwrap_or("ok");
        let mut words = expected.split_whitespace();
        assert_eq!(Some(answer.0.as_str()), words.next(), "line {line}: {:?}", answer.1);
        for word in words {
            let (field, value) = word.split_once('=').expect("field=value after the first word");
            let found = answer.1.get(field).map(String::as_str);
            assert_eq!(found, Some(value), "line {line}: {field} of {:?}", answer.1);
        }
    }

    fn authenticate(&self, step: &Step) -> Answer {
        let name = &step.args[0];
        let secret = step.named.get("secret").unwrap_or(name);
        match self.world.ledger.book().authenticate(
            self.world.now(),
            key_of(name),
            secret_of(secret),
        ) {
            Ok(caller) => {
                ("ok".into(), BTreeMap::from([("scope".into(), caller.scope.to_string())]))
            }
            Err(rejection) => answer(Err(rejection)),
        }
    }

    fn actor(&self, who: &str) -> Actor {
        if who == "node" {
            return Actor::Node;
        }
        if who == "nobody" {
            return Actor::Caller { key: None, agent: None, scope: Scope::Inference };
        }
        if who.starts_with('k') {
            let (agent, scope) = self.keys.get(who).copied().unwrap_or((None, Scope::Admin));
            return Actor::Caller { key: Some(key_of(who)), agent, scope };
        }
        Actor::Caller { key: None, agent: Some(agent_of(who)), scope: Scope::Inference }
    }

    fn command(&mut self, step: &Step) -> Command {
        let arg = |index: usize| step.args.get(index).map_or("", String::as_str);
        let number = |text: &str| text.parse::<u32>().unwrap();
        match step.verb.as_str() {
            "agent" => {
                self.world.keys.add_agent(agent_key(arg(0)));
                Command::CreateAgent { agent: agent_of(arg(0)), name: arg(0).to_owned() }
            }
            "fund" => Command::FundAgent { agent: agent_of(arg(0)), amount: trm(arg(1)) },
            "defund" => Command::DefundAgent { agent: agent_of(arg(0)), amount: trm(arg(1)) },
            "key" => self.create_key(step),
            "rotate" => {
                if let Some(rights) = self.keys.get(arg(0)).copied() {
                    self.keys.insert(arg(1).to_owned(), rights);
                }
                Command::RotateKey {
                    old: key_of(arg(0)),
                    new: key_of(arg(1)),
                    secret: secret_of(arg(1)),
                    grace_ms: duration(&step.named["grace"]),
                }
            }
            "revoke" => Command::RevokeKey { key: key_of(arg(0)) },
            "limits" => Command::SetLimits { target: target(arg(0)), limits: limits(&step.named) },
            "price" => Command::SetPrice { price: Ppm::new(number(arg(0))) },
            "start" => start(step),
            "deliver" => Command::Deliver {
                job: job_of(arg(0)),
                completion_tokens: number(arg(1)),
                stream: Digest::of(arg(1).as_bytes()),
                prompt_tokens: None,
            },
            "finish" => finish(step),
            "void" => Command::VoidJob { job: job_of(arg(0)), failed: arg(1) == "failed" },
            "kill" => Command::SetKill { on: arg(0) == "on", reason: arg(1).to_owned() },
            "approve" | "deny" => Command::DecideApproval {
                approval: ApprovalId::new(arg(0).parse().unwrap()),
                approve: step.verb == "approve",
            },
            "reset" => Command::ResetBreaker { agent: agent_of(arg(0)) },
            "recover" => Command::Recover,
            "tick" => Command::Tick,
            verb => panic!("line {}: no verb {verb}", step.line),
        }
    }

    fn create_key(&mut self, step: &Step) -> Command {
        let name = step.args[0].clone();
        let scope =
            Scope::ALL.into_iter().find(|scope| scope.name() == step.named["scope"]).unwrap();
        let agent = step.named.get("agent").map(|agent| agent_of(agent));
        let now = self.world.now();
        let expires_at = step.named.get("expires").map(|after| now.plus_ms(duration(after)));
        self.keys.insert(name.clone(), (agent, scope));
        Command::CreateKey {
            key: key_of(&name),
            secret: secret_of(&name),
            label: name,
            scope,
            agent,
            limits: limits(&step.named),
            expires_at,
        }
    }

    fn check(&self, step: &Step) {
        let found = match step.args[0].as_str() {
            "node" => self.node_fields(),
            "book" => self.book_fields(),
            name if name.starts_with('k') => self.usage(Target::Key(key_of(name))),
            name => self.agent_fields(name),
        };
        for (field, value) in &step.named {
            assert_eq!(found.get(field), Some(value), "line {}: {field} of {found:?}", step.line);
        }
    }

    fn usage(&self, target: Target) -> BTreeMap<String, String> {
        let Some(usage) = self.world.ledger.book().usage(target, self.world.now()) else {
            return BTreeMap::new();
        };
        BTreeMap::from([
            ("minute".into(), usage.minute.to_string()),
            ("hour".into(), usage.hour.to_string()),
            ("day".into(), usage.day.to_string()),
            ("life".into(), usage.lifetime.to_string()),
        ])
    }

    fn agent_fields(&self, name: &str) -> BTreeMap<String, String> {
        let account = &self.world.ledger.book().agents()[&agent_of(name)];
        let open = account.breaker_open_until(self.world.now()).is_some();
        let mut found = self.usage(Target::Agent(agent_of(name)));
        found.extend([
            ("balance".into(), account.balance().to_string()),
            ("held".into(), account.held().to_string()),
            ("available".into(), account.available().to_string()),
            ("errors".into(), account.errors_in_a_row().to_string()),
            ("breaker".into(), if open { "open" } else { "closed" }.to_owned()),
        ]);
        found
    }

    fn node_fields(&self) -> BTreeMap<String, String> {
        let ledger = &self.world.ledger;
        let mut found = self.usage(Target::Node);
        found.extend([
            ("own".into(), Trm::signed_text(ledger.own_balance())),
            ("fundable".into(), ledger.fundable().to_string()),
            ("agents".into(), ledger.book().agents_total().to_string()),
            ("charged".into(), ledger.book().charged_total().to_string()),
            ("jobs".into(), ledger.book().jobs_charged().to_string()),
        ]);
        found
    }

    fn book_fields(&self) -> BTreeMap<String, String> {
        let book = self.world.ledger.book();
        BTreeMap::from([
            ("holds".into(), book.holds().len().to_string()),
            ("approvals".into(), book.approvals().len().to_string()),
            ("keys".into(), book.keys().len().to_string()),
            ("killed".into(), book.kill().is_some().to_string()),
        ])
    }
}

fn start(step: &Step) -> Command {
    let number = |name: &str| step.named.get(name).map_or(1, |text| text.parse().unwrap());
    let smollm2 = step.named.get("model").is_some_and(|model| model == "smollm2");
    let shape: ModelShape = if smollm2 { SMOLLM2 } else { TOKEN_IS_ONE_TRM };
    let job = &step.args[0];
    Command::StartJob(StartJob {
        job: job_of(job),
        model: ModelDigest::from_bytes([9; 32]),
        shape,
        request: Digest::of(step.named.get("request").unwrap_or(job).as_bytes()),
        seed: 7,
        prompt_tokens: number("prompt"),
        completion_max: number("max"),
        continues: None,
    })
}

fn finish(step: &Step) -> Command {
    let finish = match step.named.get("reason").map(String::as_str) {
        None | Some("stop") => FinishReason::Stop,
        Some("length") => FinishReason::Length,
        Some("cancelled") => FinishReason::Cancelled,
        Some("failed") => FinishReason::Failed,
        Some(reason) => panic!("line {}: no reason {reason}", step.line),
    };
    Command::FinishJob(FinishJob {
        job: job_of(&step.args[0]),
        cached_tokens: step.named.get("cached").map_or(0, |text| text.parse().unwrap()),
        completion_tokens: step.args[1].parse().unwrap(),
        output: Digest::of(b"output"),
        build: "test".into(),
        finish,
    })
}

fn limits(named: &BTreeMap<String, String>) -> Limits {
    let amount = |name: &str| named.get(name).map(|text| trm(text));
    Limits {
        request_max: amount("request"),
        minute_max: amount("minute"),
        hour_max: amount("hour"),
        day_max: amount("day"),
        lifetime_max: amount("life"),
        approval_above: amount("approval"),
        breaker_errors: named.get("errors").map(|text| text.parse().unwrap()),
        breaker_spends_per_minute: named.get("spends").map(|text| text.parse().unwrap()),
        breaker_open_ms: named.get("open").map(|text| duration(text)),
    }
}

fn answer(result: Result<Outcome, Rejection>) -> Answer {
    let mut fields = BTreeMap::new();
    let mut put = |name: &str, value: String| fields.insert(name.to_owned(), value);
    let word = match result {
        Ok(
            Outcome::Done
            | Outcome::Entry { .. }
            | Outcome::Charter { .. }
            | Outcome::VoucherSigned { .. },
        ) => "ok",
        Ok(Outcome::JobStarted { order, available }) => {
            put("max", order.body().max_amount.to_string());
            put("available", available.to_string());
            "ok"
        }
        Ok(Outcome::ApprovalPending { approval, max_amount, .. }) => {
            put("approval", approval.to_string());
            put("max", max_amount.to_string());
            "pending"
        }
        Ok(Outcome::JobFinished { flop, amount, available, .. }) => {
            put("flop", flop.to_string());
            put("amount", amount.to_string());
            put("available", available.to_string());
            "ok"
        }
        Ok(other) => panic!("{other:?} is no answer to a lone node's command"),
        Err(rejection) => {
            rejection_fields(&rejection, put);
            rejection.code()
        }
    };
    (word.to_owned(), fields)
}

fn rejection_fields(rejection: &Rejection, mut put: impl FnMut(&str, String) -> Option<String>) {
    match rejection {
        Rejection::RequestLimit { level, max, needed } => {
            put("level", level_name(*level).into());
            put("max", max.to_string());
            put("needed", needed.to_string());
        }
        Rejection::BudgetLimit { level, period, max, used, needed, .. } => {
            put("level", level_name(*level).into());
            put("period", period_name(*period).into());
            put("max", max.to_string());
            put("used", used.to_string());
            put("needed", needed.to_string());
        }
        Rejection::Insufficient { needed, available } => {
            put("needed", needed.to_string());
            put("available", available.to_string());
        }
        Rejection::Scope { needed, held } => {
            put("needed", needed.to_string());
            put("held", held.to_string());
        }
        Rejection::ApprovalDenied { approval } | Rejection::UnknownApproval { approval } => {
            put("approval", approval.to_string());
        }
        _ => {}
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Key => "key",
        Level::Agent => "agent",
        Level::Node => "node",
    }
}

fn period_name(period: Period) -> &'static str {
    match period {
        Period::Minute => "minute",
        Period::Hour => "hour",
        Period::Day => "day",
        Period::Lifetime => "life",
    }
}

fn target(name: &str) -> Target {
    match name {
        "node" => Target::Node,
        key if key.starts_with('k') => Target::Key(key_of(key)),
        agent => Target::Agent(agent_of(agent)),
    }
}

fn agent_of(name: &str) -> AgentId {
    agent_key(name).public().agent()
}

fn key_of(name: &str) -> KeyId {
    let digest = Digest::of(name.as_bytes());
    let [a, b, c, d, ..] = *digest.as_bytes();
    KeyId::new(u32::from_be_bytes([a, b, c, d]))
}

fn secret_of(name: &str) -> Digest {
    Digest::of(format!("secret of {name}").as_bytes())
}

fn job_of(name: &str) -> JobId {
    let digest = Digest::of(name.as_bytes());
    JobId::from_bytes(digest.as_bytes()[..16].try_into().unwrap())
}

fn trm(text: &str) -> Trm {
    text.parse().unwrap()
}
