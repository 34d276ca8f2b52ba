//! Deciding everything about the book that is not a job: agents, keys, limits, the kill switch,
//! approvals, and what falls due.

use tirami_core::{AgentId, Digest, Timestamp, Trm};

use super::account::{AGENTS_MAX, check_name};
use super::keys::Rotation;
use super::{ApprovalId, Book, Caller, KeyId, Limits, REASON_MAX_CHARS, Scope, Target};
use crate::Rejection;
use crate::command::Command;
use crate::event::BookEvent;

impl Book {
    /// Checks an API key: the digest of its text, whether it was revoked, whether it expired. The
    /// comparison takes the same time wherever the digests differ.
    ///
    /// # Errors
    ///
    /// [`Rejection::KeyInvalid`], whatever the reason.
    pub fn authenticate(
        &self,
        now: Timestamp,
        key: KeyId,
        secret: Digest,
    ) -> Result<Caller, Rejection> {
        self.keys.authenticate(now.max(self.clock), key, secret)
    }

    pub(crate) fn check_kill(&self) -> Result<(), Rejection> {
        match &self.kill {
            Some(kill) => {
                Err(Rejection::KillSwitch { since: kill.since, reason: kill.reason.clone() })
            }
            None => Ok(()),
        }
    }

    pub(crate) fn check_key(&self, now: Timestamp, key: KeyId) -> Result<Caller, Rejection> {
        let found = self.keys.live(now, key)?;
        Ok(Caller { key, agent: found.agent(), scope: found.scope() })
    }

    /// Decides a command about agents, keys, limits, price, kill switch, breakers and approvals;
    /// any other command is none of this function's and leads to nothing.
    pub(crate) fn manage(
        &self,
        now: Timestamp,
        command: &Command,
        fundable: Trm,
    ) -> Result<Vec<BookEvent>, Rejection> {
        match command {
            Command::CreateAgent { agent, name } => self.create_agent(now, *agent, name),
            Command::FundAgent { agent, amount } => self.fund(now, *agent, *amount, fundable),
            Command::DefundAgent { agent, amount } => self.defund(now, *agent, *amount),
            Command::CreateKey { .. } => self.create_key(now, command),
            Command::RotateKey { old, new, secret, grace_ms } => {
                let rotation =
                    Rotation { old: *old, new: *new, secret: *secret, grace_ms: *grace_ms };
                self.keys.rotate(now, &rotation).map(Vec::from)
            }
            Command::RevokeKey { key } => self.revoke_key(now, *key),
            Command::SetLimits { target, limits } => self.replace_limits(*target, *limits),
            Command::SetPrice { price } => {
                Ok(vec![BookEvent::PriceSet { price: *price, at: Some(now) }])
            }
            Command::SetServing(policy) => {
                policy.check()?;
                Ok(vec![BookEvent::ServingSet(policy.clone())])
            }
            Command::SetKill { on, reason } => self.turn_kill(now, *on, reason),
            Command::ResetBreaker { agent } => {
                self.account(*agent)?;
                Ok(vec![BookEvent::BreakerReset { agent: *agent }])
            }
            Command::DecideApproval { approval, approve } => {
                self.decide_approval(now, *approval, *approve)
            }
            _ => Ok(Vec::new()),
        }
    }

    fn create_agent(
        &self,
        at: Timestamp,
        agent: AgentId,
        name: &str,
    ) -> Result<Vec<BookEvent>, Rejection> {
        if self.agents.contains_key(&agent) {
            return Err(Rejection::Exists { what: "the agent" });
        }
        check_name("name", name)?;
        if self.agents.len() >= AGENTS_MAX as usize {
            return Err(Rejection::TooMany { what: "agents", max: AGENTS_MAX });
        }
        Ok(vec![BookEvent::AgentCreated { agent, name: name.to_owned(), at }])
    }

    fn fund(
        &self,
        at: Timestamp,
        agent: AgentId,
        amount: Trm,
        fundable: Trm,
    ) -> Result<Vec<BookEvent>, Rejection> {
        self.account(agent)?;
        check_amount(amount)?;
        // The sum of all balances has to stay countable, whatever the node's line is.
        if amount > fundable || self.agents_total.checked_add(amount).is_none() {
            return Err(Rejection::Insufficient { needed: amount, available: fundable });
        }
        Ok(vec![BookEvent::AgentFunded { agent, amount, at }])
    }

    fn defund(
        &self,
        at: Timestamp,
        agent: AgentId,
        amount: Trm,
    ) -> Result<Vec<BookEvent>, Rejection> {
        let available = self.account(agent)?.available();
        check_amount(amount)?;
        if amount > available {
            return Err(Rejection::Insufficient { needed: amount, available });
        }
        Ok(vec![BookEvent::AgentDefunded { agent, amount, at }])
    }

    fn create_key(&self, now: Timestamp, command: &Command) -> Result<Vec<BookEvent>, Rejection> {
        let Command::CreateKey { key, secret, label, scope, agent, limits, expires_at } = command
        else {
            return Ok(Vec::new());
        };
        match agent {
            Some(agent) => {
                self.account(*agent)?;
            }
            None if *scope == Scope::Inference => return Err(Rejection::NoAgent),
            None => {}
        }
        self.keys.check_room(now, *key)?;
        check_name("label", label)?;
        check_limits(Target::Key(*key), limits)?;
        if expires_at.is_some_and(|end| end <= now) {
            return Err(Rejection::OutOfRange { field: "expires_at", range: "in the future" });
        }
        Ok(vec![BookEvent::KeyCreated {
            key: *key,
            secret: *secret,
            label: label.clone(),
            scope: *scope,
            agent: *agent,
            limits: *limits,
            expires_at: *expires_at,
            at: now,
            replaces: None,
        }])
    }

    /// Revoking a key twice is no error and changes nothing.
    fn revoke_key(&self, at: Timestamp, key: KeyId) -> Result<Vec<BookEvent>, Rejection> {
        let found = self.keys.all().get(&key).ok_or(Rejection::UnknownKey)?;
        let revoked = found.revoked_at().is_none().then_some(BookEvent::KeyRevoked { key, at });
        Ok(revoked.into_iter().collect())
    }

    fn replace_limits(&self, target: Target, limits: Limits) -> Result<Vec<BookEvent>, Rejection> {
        if self.limits(target).is_none() {
            return Err(match target {
                Target::Agent(agent) => Rejection::UnknownAgent { agent },
                Target::Node | Target::Key(_) => Rejection::UnknownKey,
            });
        }
        check_limits(target, &limits)?;
        Ok(vec![BookEvent::LimitsSet { target, limits }])
    }

    /// Turning the switch where it already is changes nothing: the first time and reason stand.
    fn turn_kill(
        &self,
        at: Timestamp,
        on: bool,
        reason: &str,
    ) -> Result<Vec<BookEvent>, Rejection> {
        if reason.chars().count() > REASON_MAX_CHARS {
            return Err(Rejection::OutOfRange { field: "reason", range: "at most 256 characters" });
        }
        let turned = self.kill.is_some() != on;
        let event = || BookEvent::KillSet { on, reason: reason.to_owned(), at };
        Ok(turned.then(event).into_iter().collect())
    }

    fn decide_approval(
        &self,
        at: Timestamp,
        approval: ApprovalId,
        approve: bool,
    ) -> Result<Vec<BookEvent>, Rejection> {
        self.approvals.check_waiting(at, approval)?;
        Ok(vec![BookEvent::ApprovalDecided { approval, approve, at }])
    }

    /// The ends of all open jobs, for a node that starts again: each is charged its highest
    /// voucher, the others are voided; of served jobs the highest voucher is due.
    pub(crate) fn recovered(&self, now: Timestamp) -> impl Iterator<Item = BookEvent> {
        self.holds.recovered(now).chain(self.served.recovered(now))
    }

    /// The ends of everything whose time ran out.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = BookEvent> {
        let ends = self.holds.expired(now).chain(self.approvals.lapsed(now));
        ends.chain(self.served.due(now))
    }
}

fn check_amount(amount: Trm) -> Result<(), Rejection> {
    if amount.is_zero() {
        return Err(Rejection::OutOfRange { field: "amount", range: "above 0" });
    }
    Ok(())
}

fn check_limits(target: Target, limits: &Limits) -> Result<(), Rejection> {
    let Limits { breaker_errors, breaker_spends_per_minute, breaker_open_ms, .. } = limits;
    let is_key = matches!(target, Target::Key(_));
    let has_breaker = breaker_errors.is_some()
        || breaker_spends_per_minute.is_some()
        || breaker_open_ms.is_some();
    if is_key && has_breaker {
        let range = "set for an agent or the node, not for an API key";
        return Err(Rejection::OutOfRange { field: "breaker", range });
    }
    if *breaker_errors == Some(0) || *breaker_spends_per_minute == Some(0) {
        return Err(Rejection::OutOfRange { field: "breaker", range: "at least 1" });
    }
    Ok(())
}
