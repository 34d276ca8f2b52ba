//! Accounts of agents: money, holds against it, limits, and the circuit breaker.

use minicbor::{Decode, Encode};
use tirami_core::{AgentId, Timestamp, Trm};

use super::defaults::BREAKER_OPEN_MS;
use super::meter::{Meter, SpendCount};
use super::{Limits, NAME_MAX_CHARS};
use crate::Rejection;
use crate::event::{BookEvent, BreakerCause};

/// Agents one book keeps at most.
pub const AGENTS_MAX: u32 = 10_000;

/// An agent's account. Its balance is never negative and never below what is held.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Account {
    #[n(0)]
    name: String,
    #[n(1)]
    created_at: Timestamp,
    #[n(2)]
    pub(super) balance: Trm,
    #[n(3)]
    pub(super) held: Trm,
    #[n(4)]
    pub(super) limits: Limits,
    #[n(5)]
    pub(super) meter: Meter,
    #[n(6)]
    breaker: Breaker,
}

impl Account {
    pub(super) fn new(name: String, created_at: Timestamp) -> Self {
        Self {
            name,
            created_at,
            balance: Trm::ZERO,
            held: Trm::ZERO,
            limits: Limits::default(),
            meter: Meter::default(),
            breaker: Breaker::default(),
        }
    }

    /// The name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When the account was opened.
    pub const fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// What the agent owns, held amounts included.
    pub const fn balance(&self) -> Trm {
        self.balance
    }

    /// The sum of its open holds.
    pub const fn held(&self) -> Trm {
        self.held
    }

    /// What it can still spend: balance − holds.
    pub const fn available(&self) -> Trm {
        self.balance.saturating_sub(self.held)
    }

    /// Its limits, whichever key is used.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Until when its circuit breaker is open; `None` when it is closed at `now`.
    pub fn breaker_open_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.breaker.open_until.filter(|until| now < *until)
    }

    /// Why its circuit breaker opened, and what keeps it from opening so soon again.
    pub(super) fn breaker_why(&self) -> String {
        match (self.breaker.cause, self.breaker.reached) {
            (Some(BreakerCause::Spends), Some(max)) => format!(
                "it started {max} jobs within a minute, and so many open it; `tirami policy set \
                 '{}' --breaker-spends-per-minute N`, and the same for `node`, allow more",
                self.name
            ),
            (Some(BreakerCause::Errors), Some(max)) => {
                format!("{max} errors in a row, and so many open it; see why its jobs fail")
            }
            _ => "too many errors in a row, or too many jobs within a minute".to_owned(),
        }
    }

    /// Failed jobs since the last success or the last opening of the breaker.
    pub const fn errors_in_a_row(&self) -> u32 {
        self.breaker.errors
    }

    pub(super) fn hold(&mut self, at: Timestamp, max: Trm) {
        self.held = self.held.saturating_add(max);
        self.meter.hold(at, max);
        self.breaker.spends.count(at);
    }

    pub(super) fn release(&mut self, held_at: Timestamp, max: Trm, charged: Trm) {
        self.held = self.held.saturating_sub(max);
        self.balance = self.balance.saturating_sub(charged);
        self.meter.give_back(held_at, max.saturating_sub(charged));
    }

    pub(super) fn count_outcome(&mut self, outcome: JobOutcome) {
        match outcome {
            JobOutcome::Success => self.breaker.errors = 0,
            JobOutcome::Failure => self.breaker.errors = self.breaker.errors.saturating_add(1),
            JobOutcome::Neither => {}
        }
    }

    /// Opens the breaker, by the numbers of the agent or of the node.
    pub(super) fn open_breaker(&mut self, cause: BreakerCause, until: Timestamp, node: &Limits) {
        let reached = BreakerRule::of(&self.limits, node).number(cause);
        let (open_until, cause) = (Some(until), Some(cause));
        self.breaker = Breaker { open_until, cause, reached, ..Breaker::default() };
    }

    pub(super) fn reset_breaker(&mut self) {
        self.breaker = Breaker::default();
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.held <= self.balance
            && self.meter.is_consistent()
            && self.breaker.spends.is_consistent()
    }
}

/// How a job's end counts for the breaker. A consumer that left is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobOutcome {
    Success,
    Failure,
    Neither,
}

/// Counts since the breaker last opened or was reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
struct Breaker {
    #[n(0)]
    open_until: Option<Timestamp>,
    #[n(1)]
    errors: u32,
    #[n(2)]
    spends: SpendCount,
    /// Why it last opened, where that is known.
    #[n(3)]
    cause: Option<BreakerCause>,
    /// The number that was reached then.
    #[n(4)]
    reached: Option<u32>,
}

/// When an agent's breaker opens: of the agent's and the node's numbers the smaller one.
pub(super) struct BreakerRule {
    errors: Option<u32>,
    spends_per_minute: Option<u32>,
    open_ms: u64,
}

impl BreakerRule {
    /// The open time is the agent's own, else the node's, else [`BREAKER_OPEN_MS`].
    pub(super) fn of(agent: &Limits, node: &Limits) -> Self {
        Self {
            errors: smaller(agent.breaker_errors, node.breaker_errors),
            spends_per_minute: smaller(
                agent.breaker_spends_per_minute,
                node.breaker_spends_per_minute,
            ),
            open_ms: agent.breaker_open_ms.or(node.breaker_open_ms).unwrap_or(BREAKER_OPEN_MS),
        }
    }

    /// The number that opens it for this cause.
    const fn number(&self, cause: BreakerCause) -> Option<u32> {
        match cause {
            BreakerCause::Errors => self.errors,
            BreakerCause::Spends => self.spends_per_minute,
        }
    }

    /// Until when the breaker opens if `account` starts one more job now.
    pub(super) fn after_a_spend(&self, account: &Account, now: Timestamp) -> Option<Timestamp> {
        let spends = account.breaker.spends.in_last_minute(now) + 1;
        let reached = self.spends_per_minute.is_some_and(|max| spends >= u64::from(max));
        reached.then(|| now.plus_ms(self.open_ms))
    }

    /// Until when the breaker opens if one more job of `account` fails now.
    pub(super) fn after_an_error(&self, account: &Account, now: Timestamp) -> Option<Timestamp> {
        let errors = account.breaker.errors.saturating_add(1);
        let reached = self.errors.is_some_and(|max| errors >= max);
        reached.then(|| now.plus_ms(self.open_ms))
    }
}

pub(super) fn breaker_opened(
    agent: AgentId,
    cause: BreakerCause,
    until: Option<Timestamp>,
) -> Option<BookEvent> {
    until.map(|until| BookEvent::BreakerOpened { agent, cause, until })
}

/// The smaller of the numbers that are set.
pub(super) fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

pub(super) fn check_name(field: &'static str, name: &str) -> Result<(), Rejection> {
    let chars = name.chars().count();
    if chars == 0 || chars > NAME_MAX_CHARS || name.chars().any(char::is_control) {
        return Err(Rejection::OutOfRange {
            field,
            range: "1 to 64 characters without control characters",
        });
    }
    Ok(())
}
