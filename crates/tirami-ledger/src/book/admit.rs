//! Starting and finishing jobs: the checks a spend passes, in the order of MONEY §10, and the
//! events that follow.
//!
//! The kill switch, the scope and the key come before; they are the ledger's. Here: per request,
//! hour, day, lifetime, velocity, each at key, agent, node; then breaker, approval, available.

use std::iter;

use tirami_core::{
    AgentId, DocumentId, Flop, HOUR_MS, JobId, MINUTE_MS, ModelShape, PartyId, Ppm, Timestamp, Trm,
};

use super::account::{Account, BreakerRule, breaker_opened};
use super::approvals::{Asked, Word};
use super::holds::Hold;
use super::meter::Budget;
use super::{ApprovalId, Book, KeyId, Level, Period};
use crate::Rejection;
use crate::command::{FinishJob, StartJob};
use crate::documents::FinishReason;
use crate::event::{Before, BookEvent, BreakerCause, HoldOpened, HoldPosted, RemoteTerms};

/// A provider must have started a job this long after its order, in milliseconds.
pub const START_WITHIN_MS: u64 = 5 * MINUTE_MS;
/// Nothing can be claimed this long after a job's order, in milliseconds.
pub const CLAIM_WITHIN_MS: u64 = HOUR_MS;
/// Tokens of a prompt, and of a completion, at most.
pub const JOB_TOKENS_MAX: u32 = 1 << 24;
/// Characters of a receipt's `build` at most.
pub const BUILD_MAX_CHARS: usize = 256;

/// Who pays for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payer {
    /// The key used; `None` for the personal agent on loopback.
    pub key: Option<KeyId>,
    /// The account that pays.
    pub agent: AgentId,
}

/// Who does a job, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// µTRM for 10⁹ FLOP.
    pub price: Ppm,
    /// The other node that does it, and the mesh's fee for paying it; `None` for this node.
    pub provider: Option<(PartyId, Ppm)>,
}

impl Terms {
    /// A job of the node itself at `price`.
    pub const fn own(price: Ppm) -> Self {
        Self { price, provider: None }
    }

    /// What is set aside for `start` with `completion` tokens at most, the mesh's fee included.
    pub(super) fn needed(&self, start: &StartJob, completion: u32) -> Trm {
        let order = start.shape.work(0, start.prompt_tokens + completion).cost_ceil(self.price);
        let fee = self.provider.map_or(Trm::ZERO, |(_, fee_ppm)| order.mul_ceil(fee_ppm));
        order.saturating_add(fee)
    }
}

/// What the checks of a starting job led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The job may run.
    Open(Opening),
    /// The job needs a person's word first.
    Wait(Waiting),
}

/// A job that passed every check, at a given time and for a given state of the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    payer: Payer,
    at: Timestamp,
    price: Ppm,
    remote: Option<RemoteTerms>,
    max_amount: Trm,
    available: Trm,
    approval: Option<ApprovalId>,
    breaker_until: Option<Timestamp>,
    before: Option<Before>,
}

impl Opening {
    /// When the job was admitted.
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// What the job may cost at most. What is set aside is more by the mesh's fee.
    pub fn order_max(&self) -> Trm {
        self.remote.map_or(self.max_amount, |remote| remote.max_amount)
    }

    /// What the agent has left beside all its holds, this one included.
    pub const fn available(&self) -> Trm {
        self.available
    }

    /// When the order's claim, and with it the hold, ends.
    pub const fn claim_by(&self) -> Timestamp {
        self.at.plus_ms(CLAIM_WITHIN_MS)
    }
}

/// A job in the approval queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    payer: Payer,
    at: Timestamp,
    asked: Asked,
    is_new: bool,
    closes: Option<ApprovalId>,
}

impl Waiting {
    /// Its number in the queue.
    pub const fn approval(&self) -> ApprovalId {
        self.asked.approval
    }

    /// When it lapses.
    pub const fn expires_at(&self) -> Timestamp {
        self.asked.expires_at
    }

    /// What the job may cost at most.
    pub const fn max_amount(&self) -> Trm {
        self.asked.max_amount
    }
}

/// How a job that is charged ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The job.
    pub job: JobId,
    /// Completion tokens delivered.
    pub completion_tokens: u32,
    /// The receipt, if there is one.
    pub receipt: Option<DocumentId>,
    /// Why it ended.
    pub finish: FinishReason,
}

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Something was delivered and is charged.
    Charge(Charge),
    /// Nothing was delivered and nothing is owed.
    Void,
}

/// What a job costs in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The work.
    pub flop: Flop,
    /// What is charged; never below the highest voucher, never above the hold.
    pub amount: Trm,
    /// The mesh's fee for paying another node.
    pub fee: Trm,
    /// What the agent has left beside all its holds, after this job.
    pub available: Trm,
}

impl Book {
    /// Runs the checks of a starting job, in order; the first refusal wins.
    ///
    /// # Errors
    ///
    /// From [`Rejection::UnknownAgent`] on, in the order of the variants.
    pub fn admit(
        &self,
        now: Timestamp,
        payer: Payer,
        start: &StartJob,
        terms: &Terms,
    ) -> Result<Admission, Rejection> {
        let account = self.account(payer.agent)?;
        self.holds.check_room(now, start.job)?;
        if terms.provider.is_some() {
            self.debts.check_room(start.job, self.holds.all().len())?;
        }
        check_request(start)?;
        let tokens = start.prompt_tokens + start.completion_max;
        let order_max = start.shape.work(0, tokens).cost_ceil(terms.price);
        let remote = terms.provider.map(|(provider, fee_ppm)| RemoteTerms {
            provider,
            max_amount: order_max,
            fee_ppm,
            request: start.request,
        });
        let before = self.holds.before(now, payer, start)?;
        let needed = terms.needed(start, start.completion_max);
        // What a request may cost is said of the whole answer.
        let in_all = needed.saturating_add(before.map_or(Trm::ZERO, |before| before.spent));
        let budgets = self.budgets(payer, account);
        self.check_budgets(now, &budgets, (needed, in_all))?;
        if let Some(until) = account.breaker_open_until(now) {
            let (agent, why) = (account.name().to_owned(), account.breaker_why());
            return Err(Rejection::BreakerOpen { until, agent, why });
        }
        let word = match before {
            Some(before) if in_all <= before.max_amount => None,
            _ => self.approval_word(now, &budgets, payer, (start, in_all))?,
        };
        let approval = match word {
            None => None,
            Some(Word::Approved(approval)) => Some(approval),
            Some(Word::Waiting(asked)) => {
                let waiting = Waiting { payer, at: now, asked, is_new: false, closes: None };
                return Ok(Admission::Wait(waiting));
            }
            Some(Word::Ask { closes, asked }) => {
                let waiting = Waiting { payer, at: now, asked, is_new: true, closes };
                return Ok(Admission::Wait(waiting));
            }
        };
        let available = account.available();
        let Some(rest) = available.checked_sub(needed) else {
            return Err(Rejection::Insufficient { needed, available });
        };
        let rule = BreakerRule::of(&account.limits, &self.limits);
        Ok(Admission::Open(Opening {
            payer,
            at: now,
            price: terms.price,
            remote,
            max_amount: needed,
            available: rest,
            approval,
            breaker_until: rule.after_a_spend(account, now),
            before,
        }))
    }

    pub(super) fn budgets<'a>(
        &'a self,
        payer: Payer,
        account: &'a Account,
    ) -> [Option<Budget<'a>>; 3] {
        let key = payer.key.and_then(|key| self.keys.budget_of(key)).map(|(_, budget)| budget);
        [
            key.map(|key| Budget { level: Level::Key, limits: &key.limits, meter: &key.meter }),
            Some(Budget { level: Level::Agent, limits: &account.limits, meter: &account.meter }),
            Some(Budget { level: Level::Node, limits: &self.limits, meter: &self.meter }),
        ]
    }

    fn check_budgets(
        &self,
        now: Timestamp,
        budgets: &[Option<Budget<'_>>; 3],
        (needed, in_all): (Trm, Trm),
    ) -> Result<(), Rejection> {
        for budget in budgets.iter().flatten() {
            budget.check_request(in_all)?;
        }
        for period in [Period::Hour, Period::Day, Period::Lifetime, Period::Minute] {
            for budget in budgets.iter().flatten() {
                budget.check(period, now, needed)?;
            }
        }
        Ok(())
    }

    /// `None` when the job is not above any level's threshold.
    fn approval_word(
        &self,
        now: Timestamp,
        budgets: &[Option<Budget<'_>>; 3],
        payer: Payer,
        (start, needed): (&StartJob, Trm),
    ) -> Result<Option<Word>, Rejection> {
        match threshold(budgets) {
            Some(above) if needed > above => {
                self.approvals.word(now, payer.agent, start.request, needed).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The events of a job that was admitted and whose order is signed.
    pub fn opened(
        &self,
        opening: Opening,
        start: &StartJob,
        order: DocumentId,
    ) -> impl Iterator<Item = BookEvent> + use<> {
        let used = opening.approval.map(|approval| BookEvent::ApprovalClosed { approval });
        let opened = BookEvent::HoldOpened(HoldOpened {
            job: start.job,
            agent: opening.payer.agent,
            key: opening.payer.key,
            order,
            model: start.model,
            shape: start.shape,
            price: opening.price,
            prompt_tokens: start.prompt_tokens,
            completion_max: start.completion_max,
            max_amount: opening.max_amount,
            claim_by: opening.claim_by(),
            at: opening.at,
            remote: opening.remote,
            before: opening.before,
        });
        let (agent, until) = (opening.payer.agent, opening.breaker_until);
        let breaker = breaker_opened(agent, BreakerCause::Spends, until);
        used.into_iter().chain(iter::once(opened)).chain(breaker)
    }

    /// The events of a job that has to wait; none when it waits already.
    pub(crate) fn asked(
        &self,
        waiting: &Waiting,
        start: &StartJob,
    ) -> impl Iterator<Item = BookEvent> + use<> {
        let closed = waiting.closes.map(|approval| BookEvent::ApprovalClosed { approval });
        let requested = BookEvent::ApprovalRequested {
            approval: waiting.asked.approval,
            agent: waiting.payer.agent,
            key: waiting.payer.key,
            request: start.request,
            max_amount: waiting.asked.max_amount,
            at: waiting.at,
            expires_at: waiting.asked.expires_at,
        };
        closed.into_iter().chain(waiting.is_new.then_some(requested))
    }

    /// An open hold.
    pub(crate) fn hold(&self, job: JobId) -> Result<&Hold, Rejection> {
        self.holds.get(job)
    }

    /// An open hold for a job at another node.
    pub(crate) fn remote_hold(&self, job: JobId) -> Result<(&Hold, RemoteTerms), Rejection> {
        let hold = self.holds.get(job)?;
        let reason = "the job is done by this node itself";
        Ok((hold, hold.remote.ok_or(Rejection::Contradicts { reason })?))
    }

    /// An open hold for a job of this node.
    pub(crate) fn local_hold(&self, job: JobId) -> Result<&Hold, Rejection> {
        let hold = self.holds.get(job)?;
        match hold.remote {
            Some(_) => Err(Rejection::Contradicts { reason: "the job is done by another node" }),
            None => Ok(hold),
        }
    }

    /// What a job that ended costs.
    ///
    /// # Errors
    ///
    /// [`Rejection::UnknownJob`], [`Rejection::OutOfRange`], or [`Rejection::Contradicts`] when the
    /// report does not fit the order or a signed voucher.
    pub fn finish(&self, now: Timestamp, finish: &FinishJob) -> Result<(&Hold, Ending), Rejection> {
        let hold = self.local_hold(finish.job)?;
        if finish.build.chars().count() > BUILD_MAX_CHARS {
            return Err(Rejection::OutOfRange { field: "build", range: "at most 256 characters" });
        }
        hold.check_finish(now, finish)?;
        // What is read for is delivered whole or not at all.
        let is_read = hold.only_reads() && finish.finish == FinishReason::Stop;
        if finish.completion_tokens == 0 && !is_read {
            return Ok((hold, Ending::Void));
        }
        Ok((hold, Ending::Charge(self.charge_of(hold, finish.completion_tokens)?)))
    }

    /// What a job costs of which `completion_tokens` were delivered.
    pub(crate) fn charge_of(
        &self,
        hold: &Hold,
        completion_tokens: u32,
    ) -> Result<Charge, Rejection> {
        let account = self.account(hold.agent)?;
        let (flop, amount) = hold.charge(completion_tokens);
        let fee = hold.fee(amount).unwrap_or_default();
        let charged = amount.saturating_add(fee);
        let rest = hold.max_amount.saturating_sub(charged);
        let available = account.available().saturating_add(rest);
        Ok(Charge { flop, amount, fee, available })
    }

    /// The events of a charged job.
    pub fn posted(
        &self,
        now: Timestamp,
        hold: &Hold,
        charge: Charge,
        end: &End,
    ) -> impl Iterator<Item = BookEvent> + use<> {
        let posted = BookEvent::HoldPosted(HoldPosted {
            job: end.job,
            agent: hold.agent,
            order: hold.order,
            receipt: end.receipt,
            model: hold.model,
            prompt_tokens: hold.prompt_tokens,
            completion_tokens: end.completion_tokens,
            flop: charge.flop,
            amount: charge.amount,
            finish: end.finish,
            at: now,
            provider: hold.remote.map(|remote| remote.provider),
            fee: hold.fee(charge.amount),
        });
        let failed = end.finish == FinishReason::Failed;
        iter::once(posted).chain(self.breaker_after(now, hold.agent, failed))
    }

    /// The events of a job that delivered nothing.
    pub(crate) fn void(
        &self,
        now: Timestamp,
        job: JobId,
        failed: bool,
    ) -> Result<impl Iterator<Item = BookEvent> + use<>, Rejection> {
        let hold = self.holds.get(job)?;
        if hold.voucher.is_some() {
            let reason = "a voucher was signed for this job; finish it with what was delivered";
            return Err(Rejection::Contradicts { reason });
        }
        let voided = BookEvent::HoldVoided { job, failed, at: now };
        Ok(iter::once(voided).chain(self.breaker_after(now, hold.agent, failed)))
    }

    fn breaker_after(&self, now: Timestamp, agent: AgentId, failed: bool) -> Option<BookEvent> {
        let account = self.agents.get(&agent).filter(|_| failed)?;
        let rule = BreakerRule::of(&account.limits, &self.limits);
        breaker_opened(agent, BreakerCause::Errors, rule.after_an_error(account, now))
    }
}

/// Above which amount a job needs a person's word.
pub(super) fn threshold(budgets: &[Option<Budget<'_>>; 3]) -> Option<Trm> {
    budgets.iter().flatten().filter_map(|budget| budget.limits.approval_above).min()
}

pub(super) fn check_request(start: &StartJob) -> Result<(), Rejection> {
    if !(1..=JOB_TOKENS_MAX).contains(&start.prompt_tokens) {
        return Err(Rejection::OutOfRange { field: "prompt_tokens", range: "1 to 16777216" });
    }
    if start.completion_max > JOB_TOKENS_MAX {
        return Err(Rejection::OutOfRange { field: "completion_max", range: "0 to 16777216" });
    }
    check_shape(&start.shape)
}

/// Shapes come from files; beyond these numbers the sum of work would not fit its integer.
pub(crate) fn check_shape(shape: &ModelShape) -> Result<(), Rejection> {
    if shape.parameters_active > 1 << 50 {
        return Err(Rejection::OutOfRange { field: "parameters_active", range: "at most 2^50" });
    }
    if shape.layers > 1 << 16 || shape.attention_width > 1 << 24 {
        let field = "layers and attention_width";
        return Err(Rejection::OutOfRange { field, range: "at most 2^16 and 2^24" });
    }
    Ok(())
}
