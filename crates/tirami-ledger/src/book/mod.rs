//! The book: a node's private accounts, holds, budgets, API keys, approvals and kill switch.
//!
//! Agents have balances that are never negative. The node's own account is not kept but derived:
//! the money of its chain less the sum of its agents', so that both always agree (MONEY §12.7).
//! The book decides commands into events and applies events; it reads no clock of its own, and
//! time never goes back in it.

mod account;
mod admit;
mod affordable;
mod approvals;
mod claims;
mod debts;
mod defaults;
mod faucet;
mod holds;
mod keys;
mod manage;
mod mesh;
mod meter;
mod refused;
mod served;
mod serving;
mod words;

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use tirami_core::{AgentId, JobId, Ppm, Timestamp, Trm};

pub use account::{AGENTS_MAX, Account};
pub use admit::{
    Admission, BUILD_MAX_CHARS, CLAIM_WITHIN_MS, Charge, End, Ending, JOB_TOKENS_MAX, Opening,
    Payer, START_WITHIN_MS, Terms, Waiting,
};
pub use approvals::{
    AGENT_APPROVALS_MAX, APPROVAL_LAPSE_MS, APPROVALS_MAX, Approval, ApprovalState,
};
pub use claims::{
    CLAIMS_MAX, CONSUMER_CLAIMS_MAX, Claimed, NotedClaim, PAYMENTS_REMEMBERED_MAX,
    PROVIDER_CLAIMS_MAX,
};
pub use debts::{
    CHEATS_MAX, COLLECT_MS, DEBTS_MAX, Debt, SETTLE_ANSWERS, SETTLE_ITEMS, SETTLE_MS,
    SETTLE_RETRY_MS,
};
pub use defaults::{
    ANSWER_TOKENS, APPROVAL_ANSWERS, BREAKER_ERRORS, BREAKER_OPEN_MS, BREAKER_SPENDS_PER_MINUTE,
    DAY_ANSWERS, HOUR_ANSWERS, LINE_ANSWERS, LINE_MIN, MINUTE_ANSWERS, REQUEST_ANSWERS,
    answer_cost, default_limits, founder_line,
};
pub use faucet::FAUCET_DAY_MAX;
pub use holds::{
    CONTINUABLE_MAX, CONTINUE_WITHIN_MS, HOLDS_MAX, Hold, JOBS_REMEMBERED_MAX, VoucherHead,
};
pub use keys::{ApiKey, Caller, GRACE_MAX_MS, KEYS_MAX};
pub use mesh::PRICE_GRACE_MS;
pub use meter::Usage;
pub use refused::{REFUSED_CODE_MAX, REFUSED_MAX, Refused};
pub use served::{
    CLAIM_AHEAD_MAX_MS, CLAIMED_DOCUMENT_BYTES_MAX, CONSUMERS_MAX, Consumer, DUN_MS,
    ORDER_AHEAD_MAX_MS, SERVED_DONE_MAX, SERVED_UNPAID_MAX, SERVED_UNPAID_PER_CONSUMER_MAX,
    ServedEnd, ServedJob, WINDOW_TOKENS,
};
pub use serving::{
    EXPOSURE_ANSWERS, EXPOSURE_START_ANSWERS, EXPOSURE_UNKNOWN_ANSWERS, FRESH_MS,
    SERVED_RUNNING_MAX, SERVING_LIST_MAX, ServingPolicy,
};
pub use words::{ApprovalId, KeyId, KeyIdError, Level, Limits, Period, Scope, Target};

use crate::Rejection;
use crate::event::{BookEvent, BreakerCause, HoldOpened, HoldPosted};
pub(crate) use admit::check_shape;
use approvals::Approvals;
use claims::Claims;
use debts::Debts;
use faucet::Faucet;
use holds::{Holds, outcome_of};
use keys::{Keys, NewKey};
use meter::Meter;
use refused::Refusals;
pub(crate) use served::Demand;
use served::Served;

/// Characters of an agent's name or a key's label at most.
pub const NAME_MAX_CHARS: usize = 64;
/// Characters of a kill switch's reason at most.
pub const REASON_MAX_CHARS: usize = 256;

/// The kill switch while it is on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Kill {
    /// Since when nothing is spent.
    #[n(0)]
    pub since: Timestamp,
    /// The reason given.
    #[n(1)]
    pub reason: String,
}

/// A node's private accounts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Book {
    /// The latest time of any event.
    #[n(0)]
    clock: Timestamp,
    #[n(1)]
    price: Ppm,
    #[n(2)]
    kill: Option<Kill>,
    /// The node's own limits, over all agents together.
    #[n(3)]
    limits: Limits,
    #[n(4)]
    meter: Meter,
    #[n(5)]
    agents: BTreeMap<AgentId, Account>,
    /// The sum of all agents' balances.
    #[n(6)]
    agents_total: Trm,
    /// Charged ever, for how many jobs.
    #[n(7)]
    charged_total: Trm,
    #[n(8)]
    jobs_charged: u64,
    #[n(9)]
    keys: Keys,
    #[n(10)]
    approvals: Approvals,
    #[n(11)]
    holds: Holds,
    /// What the node asked before its price rose, and until when it takes orders at it.
    #[n(12)]
    price_before: Option<(Ppm, Timestamp)>,
    #[n(13)]
    #[cbor(default)]
    debts: Debts,
    #[n(14)]
    #[cbor(default)]
    served: Served,
    #[n(15)]
    #[cbor(default)]
    claims: Claims,
    /// Left out of the bytes where they say nothing, so that equal books have equal bytes.
    #[cbor(n(16), default, skip_if = "Refusals::is_empty")]
    refusals: Refusals,
    #[cbor(n(17), default, skip_if = "Faucet::is_empty")]
    faucet: Faucet,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            clock: Timestamp::default(),
            price: Ppm::ONE,
            kill: None,
            limits: Limits::default(),
            meter: Meter::default(),
            agents: BTreeMap::new(),
            agents_total: Trm::ZERO,
            charged_total: Trm::ZERO,
            jobs_charged: 0,
            keys: Keys::default(),
            approvals: Approvals::default(),
            holds: Holds::default(),
            price_before: None,
            debts: Debts::default(),
            served: Served::default(),
            claims: Claims::default(),
            refusals: Refusals::default(),
            faucet: Faucet::default(),
        }
    }
}

impl Book {
    /// Changes the book by a fact. Cannot fail: a fact about something unknown changes nothing.
    pub fn apply(&mut self, event: &BookEvent) {
        match event {
            BookEvent::AgentCreated { agent, name, at } => {
                self.tell_time(*at);
                self.agents.entry(*agent).or_insert_with(|| Account::new(name.clone(), *at));
            }
            BookEvent::AgentFunded { agent, amount, at } => {
                self.tell_time(*at);
                if let Some(account) = self.agents.get_mut(agent) {
                    account.balance = account.balance.saturating_add(*amount);
                    self.agents_total = self.agents_total.saturating_add(*amount);
                }
            }
            BookEvent::AgentDefunded { agent, amount, at } => {
                self.tell_time(*at);
                if let Some(account) = self.agents.get_mut(agent) {
                    account.balance = account.balance.saturating_sub(*amount);
                    self.agents_total = self.agents_total.saturating_sub(*amount);
                }
            }
            BookEvent::KeyCreated { .. }
            | BookEvent::KeyExpirySet { .. }
            | BookEvent::KeyRevoked { .. } => self.apply_key(event),
            BookEvent::LimitsSet { target, limits } => self.set_limits(*target, *limits),
            BookEvent::PriceSet { price, at } => self.set_price(*price, *at),
            BookEvent::KillSet { on, reason, at } => {
                self.tell_time(*at);
                self.kill = on.then(|| Kill { since: *at, reason: reason.clone() });
            }
            BookEvent::BreakerOpened { agent, cause, until } => {
                self.open_breaker(*agent, *cause, *until);
            }
            BookEvent::BreakerReset { agent } => self.reset_breaker(*agent),
            BookEvent::ApprovalRequested { .. }
            | BookEvent::ApprovalDecided { .. }
            | BookEvent::ApprovalClosed { .. } => self.apply_approval(event),
            BookEvent::HoldOpened(opened) => self.open_hold(opened),
            BookEvent::VoucherRaised { job, n, amount, tokens, prompt_tokens } => {
                let head = VoucherHead { n: *n, amount: *amount, tokens: *tokens };
                self.holds.set_voucher(*job, head, *prompt_tokens);
            }
            BookEvent::HoldPosted(posted) => self.post_hold(posted),
            BookEvent::HoldVoided { job, failed, at } => {
                self.tell_time(*at);
                let outcome = if *failed {
                    account::JobOutcome::Failure
                } else {
                    account::JobOutcome::Neither
                };
                self.end_hold(*job, Trm::ZERO, outcome);
            }
            BookEvent::HoldExpired { job, at } => {
                self.tell_time(*at);
                self.end_hold(*job, Trm::ZERO, account::JobOutcome::Neither);
            }
            _ => self.apply_mesh(event),
        }
    }

    fn apply_key(&mut self, event: &BookEvent) {
        match event {
            BookEvent::KeyCreated {
                key,
                secret,
                label,
                scope,
                agent,
                limits,
                expires_at,
                at,
                replaces,
            } => {
                self.tell_time(*at);
                let created = NewKey {
                    secret: *secret,
                    label: label.clone(),
                    scope: *scope,
                    agent: *agent,
                    limits: *limits,
                    expires_at: *expires_at,
                    at: *at,
                };
                self.keys.insert(*key, created, *replaces);
            }
            BookEvent::KeyExpirySet { key, expires_at } => self.keys.set_expiry(*key, *expires_at),
            BookEvent::KeyRevoked { key, at } => {
                self.tell_time(*at);
                self.keys.revoke(*key, *at);
            }
            _ => {}
        }
    }

    fn apply_approval(&mut self, event: &BookEvent) {
        match event {
            BookEvent::ApprovalRequested {
                approval,
                agent,
                key,
                request,
                max_amount,
                at,
                expires_at,
            } => {
                self.tell_time(*at);
                let entry = Approval {
                    agent: *agent,
                    key: *key,
                    request: *request,
                    max_amount: *max_amount,
                    at: *at,
                    expires_at: *expires_at,
                    state: ApprovalState::Waiting,
                };
                self.approvals.insert(*approval, entry);
            }
            BookEvent::ApprovalDecided { approval, approve, at } => {
                self.tell_time(*at);
                self.approvals.answer(*approval, *approve);
            }
            BookEvent::ApprovalClosed { approval } => self.approvals.close(*approval),
            _ => {}
        }
    }

    fn set_limits(&mut self, target: Target, limits: Limits) {
        match target {
            Target::Node => self.limits = limits,
            Target::Agent(agent) => {
                if let Some(account) = self.agents.get_mut(&agent) {
                    account.limits = limits;
                }
            }
            Target::Key(key) => self.keys.set_limits(key, limits),
        }
    }

    fn open_breaker(&mut self, agent: AgentId, cause: BreakerCause, until: Timestamp) {
        if let Some(account) = self.agents.get_mut(&agent) {
            account.open_breaker(cause, until, &self.limits);
        }
    }

    fn reset_breaker(&mut self, agent: AgentId) {
        if let Some(account) = self.agents.get_mut(&agent) {
            account.reset_breaker();
        }
    }

    fn open_hold(&mut self, opened: &HoldOpened) {
        self.tell_time(opened.at);
        let Some(account) = self.agents.get_mut(&opened.agent) else {
            return;
        };
        account.hold(opened.at, opened.max_amount);
        self.meter.hold(opened.at, opened.max_amount);
        let budget = opened.key.and_then(|key| self.keys.budget_of(key)).map(|(id, _)| id);
        if let Some(budget) = budget.and_then(|id| self.keys.budget_mut(id)) {
            budget.meter.hold(opened.at, opened.max_amount);
        }
        let hold = Hold::new(opened, budget);
        self.holds.insert(self.clock, opened.job, hold);
    }

    fn post_hold(&mut self, posted: &HoldPosted) {
        self.tell_time(posted.at);
        let charged = posted.amount.saturating_add(posted.fee.unwrap_or_default());
        let hold = self.holds.all().get(&posted.job);
        let answer = hold.map_or(Trm::ZERO, |hold| answer_cost(&hold.shape, hold.price));
        if self.end_hold(posted.job, charged, outcome_of(posted.finish)) {
            self.debts.add(posted, answer);
            self.agents_total = self.agents_total.saturating_sub(charged);
            self.charged_total = self.charged_total.saturating_add(charged);
            self.jobs_charged = self.jobs_charged.saturating_add(1);
        }
    }

    /// Frees a hold after charging a part of it; `false` when there is no such hold.
    fn end_hold(&mut self, job: JobId, charged: Trm, outcome: account::JobOutcome) -> bool {
        let Some(hold) = self.holds.remove(self.clock, job, charged) else {
            return false;
        };
        let rest = hold.max_amount.saturating_sub(charged);
        if let Some(account) = self.agents.get_mut(&hold.agent) {
            account.release(hold.at, hold.max_amount, charged);
            account.count_outcome(outcome);
        }
        self.meter.give_back(hold.at, rest);
        if let Some(budget) = hold.budget.and_then(|id| self.keys.budget_mut(id)) {
            budget.meter.give_back(hold.at, rest);
        }
        true
    }

    fn tell_time(&mut self, at: Timestamp) {
        self.clock = self.clock.max(at);
    }
}

/// What the book holds, for reading.
impl Book {
    /// The latest time of any event. Decisions are never dated before it.
    pub const fn clock(&self) -> Timestamp {
        self.clock
    }

    /// What the node asks for its work, µTRM for 10⁹ FLOP.
    pub const fn price(&self) -> Ppm {
        self.price
    }

    /// The kill switch; `None` while it is off.
    pub const fn kill(&self) -> Option<&Kill> {
        self.kill.as_ref()
    }

    /// All agents' accounts.
    pub const fn agents(&self) -> &BTreeMap<AgentId, Account> {
        &self.agents
    }

    /// The sum of all agents' balances.
    pub const fn agents_total(&self) -> Trm {
        self.agents_total
    }

    /// Charged to agents ever; saturates at [`Trm::MAX`].
    pub const fn charged_total(&self) -> Trm {
        self.charged_total
    }

    /// Jobs charged ever.
    pub const fn jobs_charged(&self) -> u64 {
        self.jobs_charged
    }

    /// All API keys the book remembers.
    pub fn keys(&self) -> &BTreeMap<KeyId, ApiKey> {
        self.keys.all()
    }

    /// The approval queue.
    pub fn approvals(&self) -> &BTreeMap<ApprovalId, Approval> {
        self.approvals.all()
    }

    /// All open holds.
    pub fn holds(&self) -> &BTreeMap<JobId, Hold> {
        self.holds.all()
    }

    /// The limits of the node, an agent or a key; `None` when there is no such agent or key.
    pub fn limits(&self, target: Target) -> Option<&Limits> {
        match target {
            Target::Node => Some(&self.limits),
            Target::Agent(agent) => self.agents.get(&agent).map(Account::limits),
            Target::Key(key) => self.keys.budget_of(key).map(|(_, budget)| &budget.limits),
        }
    }

    /// What was spent and is held in each period; `None` when there is no such agent or key.
    pub fn usage(&self, target: Target, now: Timestamp) -> Option<Usage> {
        let meter = match target {
            Target::Node => &self.meter,
            Target::Agent(agent) => &self.agents.get(&agent)?.meter,
            Target::Key(key) => &self.keys.budget_of(key)?.1.meter,
        };
        Some(meter.usage(now))
    }

    /// When the next hold, approval or served job ends by itself, or a debt is to be paid.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let ends = [
            self.holds.next_deadline(),
            self.approvals.next_deadline(),
            self.served.next_deadline(),
            self.debts.next_payment(),
        ];
        ends.into_iter().flatten().min()
    }

    pub(crate) fn account(&self, agent: AgentId) -> Result<&Account, Rejection> {
        self.agents.get(&agent).ok_or(Rejection::UnknownAgent { agent })
    }

    /// Whether everything kept twice agrees and every bound holds. O(state); for tests, `doctor`
    /// and start-up.
    pub fn is_consistent(&self) -> bool {
        let mut held: BTreeMap<AgentId, u128> = BTreeMap::new();
        for hold in self.holds.all().values() {
            *held.entry(hold.agent).or_default() += u128::from(hold.max_amount.micro());
        }
        let sum: u128 =
            self.agents.values().map(|account| u128::from(account.balance.micro())).sum();
        let held_as_counted = |(agent, account): (&AgentId, &Account)| {
            held.get(agent).copied().unwrap_or_default() == u128::from(account.held.micro())
        };
        sum == u128::from(self.agents_total.micro())
            && self.agents.iter().all(held_as_counted)
            && held.keys().all(|agent| self.agents.contains_key(agent))
            && self.agents.values().all(Account::is_consistent)
            && self.agents.len() <= AGENTS_MAX as usize
            && self.meter.is_consistent()
            && self.keys.is_consistent()
            && self.approvals.is_consistent()
            && self.holds.is_consistent()
            && self.debts.is_consistent()
            && self.served.is_consistent()
            && self.claims.is_consistent()
            && self.refusals.is_consistent()
            && self.faucet.is_consistent()
    }
}
