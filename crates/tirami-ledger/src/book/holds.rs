//! Holds: TRM set aside for running jobs, and what they end with.
//!
//! A hold ends once: posted with a charge, voided, or expired. Its charge follows from the model's
//! shape and the tokens alone, by the same rule for vouchers and receipts: the work of running
//! prompt and completion from an empty cache, times the price, rounded up. Prompt tokens the
//! provider still had in its cache are charged at the order's cached price; a node sets it equal
//! to its price, so they do not change the sum.
//!
//! The id of a job that ended is remembered as long as its order could be started: a repeat of the
//! order must not be charged again (MONEY §8). Until it is paid, a job at another node is a debt,
//! which nothing with its id is ordered beside.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{
    AgentId, Digest, DocumentId, Flop, JobId, ModelDigest, ModelShape, Ppm, Timestamp, Trm,
};

use super::KeyId;
use super::account::JobOutcome;
use super::admit::{Payer, START_WITHIN_MS};
use super::keys::BudgetId;
use crate::Rejection;
use crate::command::{FinishJob, StartJob};
use crate::documents::FinishReason;
use crate::event::{Before, BookEvent, HoldOpened, HoldPosted, RemoteTerms};

/// Open holds of one book at most.
pub const HOLDS_MAX: u32 = 4_096;
/// Open jobs, and ended ones whose order could still be started, together, at most: room for 3 495
/// new jobs a second over the five minutes for which each is remembered. About 150 bytes each.
pub const JOBS_REMEMBERED_MAX: u32 = 1 << 20;
/// A job at another node that ended can be gone on with elsewhere for so long, in milliseconds.
pub const CONTINUE_WITHIN_MS: u64 = 60_000;
/// Ended jobs that can be gone on with at most; beyond it the oldest cannot any more.
pub const CONTINUABLE_MAX: u32 = 4_096;
/// Ended jobs that one opened hold forgets at most when their time has passed. Each job is
/// remembered once, so two for one catch up, and no command waits for a long queue.
const FORGOTTEN_PER_HOLD: usize = 2;

/// TRM set aside for one running job.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hold {
    /// Who pays.
    #[n(0)]
    pub agent: AgentId,
    /// The key used.
    #[n(1)]
    pub key: Option<KeyId>,
    /// The signed order.
    #[n(2)]
    pub order: DocumentId,
    /// The model.
    #[n(3)]
    pub model: ModelDigest,
    /// Its shape.
    #[n(4)]
    pub shape: ModelShape,
    /// The agreed price.
    #[n(5)]
    pub price: Ppm,
    /// Tokens of the prompt.
    #[n(6)]
    pub prompt_tokens: u32,
    /// Completion tokens at most.
    #[n(7)]
    pub completion_max: u32,
    /// What is set aside.
    #[n(8)]
    pub max_amount: Trm,
    /// When the hold ends by itself.
    #[n(9)]
    pub claim_by: Timestamp,
    /// When it was opened.
    #[n(10)]
    pub at: Timestamp,
    /// The highest voucher; the charge cannot be lower.
    #[n(11)]
    pub voucher: Option<VoucherHead>,
    /// The key's budget it counts in.
    #[n(12)]
    pub(super) budget: Option<BudgetId>,
    /// What makes it a job at another node.
    #[n(13)]
    pub remote: Option<RemoteTerms>,
    /// What the jobs before it, which it goes on with, came to.
    #[n(14)]
    pub before: Option<Before>,
}

/// What the highest voucher of a job says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct VoucherHead {
    /// Its number, counted from 0.
    #[n(0)]
    pub n: u32,
    /// Owed in all.
    #[n(1)]
    pub amount: Trm,
    /// Completion tokens received in all.
    #[n(2)]
    pub tokens: u32,
}

impl Hold {
    pub(super) fn new(opened: &HoldOpened, budget: Option<BudgetId>) -> Self {
        Self {
            agent: opened.agent,
            key: opened.key,
            order: opened.order,
            model: opened.model,
            shape: opened.shape,
            price: opened.price,
            prompt_tokens: opened.prompt_tokens,
            completion_max: opened.completion_max,
            max_amount: opened.max_amount,
            claim_by: opened.claim_by,
            at: opened.at,
            voucher: None,
            budget,
            remote: opened.remote,
            before: opened.before,
        }
    }

    /// When its order is too late to be started.
    fn startable_until(&self) -> Timestamp {
        self.at.plus_ms(START_WITHIN_MS).min(self.claim_by)
    }

    /// The work and the charge when `completion_tokens` were delivered. The charge is at most the
    /// order's maximum; the mesh's fee comes beside it.
    pub fn charge(&self, completion_tokens: u32) -> (Flop, Trm) {
        let tokens = self.prompt_tokens.saturating_add(completion_tokens);
        charge(&self.shape, self.price, tokens, self.order_max())
    }

    /// Whether the job's result is no text: it reads its prompt, and what it delivers for that
    /// has no completion tokens.
    pub const fn only_reads(&self) -> bool {
        self.completion_max == 0
    }

    /// The order's maximum.
    pub fn order_max(&self) -> Trm {
        self.remote.map_or(self.max_amount, |remote| remote.max_amount)
    }

    /// The mesh's fee for paying `amount`; none for a job this node does itself.
    pub fn fee(&self, amount: Trm) -> Option<Trm> {
        self.remote.map(|remote| amount.mul_ceil(remote.fee_ppm))
    }

    /// The hold as it is when its provider counted other prompt tokens than were ordered.
    ///
    /// # Errors
    ///
    /// [`Rejection::Contradicts`] when they are more, when this node does the job itself, or when
    /// a voucher was signed for others.
    pub(crate) fn counted(&self, prompt_tokens: Option<u32>) -> Result<Self, Rejection> {
        let mut counted = self.clone();
        match prompt_tokens {
            None => {}
            Some(tokens) if tokens == self.prompt_tokens => {}
            Some(_) if self.remote.is_none() => {
                return contradicts("the prompt of a job of this node is counted at its start");
            }
            Some(_) if self.voucher.is_some() => {
                return contradicts("a voucher was signed for other prompt tokens");
            }
            Some(tokens) if tokens == 0 || tokens > self.prompt_tokens => {
                return contradicts("the prompt has more tokens than were ordered, or none");
            }
            Some(tokens) => counted.prompt_tokens = tokens,
        }
        Ok(counted)
    }

    /// The voucher that follows when `tokens` completion tokens were handed over in all.
    pub(crate) fn next_voucher(
        &self,
        now: Timestamp,
        tokens: u32,
    ) -> Result<VoucherHead, Rejection> {
        self.check_received(now, tokens)?;
        if tokens == 0 && !self.only_reads() {
            return contradicts("a voucher needs at least one delivered token");
        }
        let n = match self.voucher {
            None => 0,
            Some(VoucherHead { n: u32::MAX, .. }) => {
                return contradicts("no voucher number is left");
            }
            Some(before) => before.n + 1,
        };
        Ok(VoucherHead { n, amount: self.charge(tokens).1, tokens })
    }

    /// Whether the job may end with what `finish` reports.
    pub(super) fn check_finish(&self, now: Timestamp, finish: &FinishJob) -> Result<(), Rejection> {
        self.check_received(now, finish.completion_tokens)?;
        if finish.cached_tokens > self.prompt_tokens {
            return contradicts("more prompt tokens are reported cached than the prompt has");
        }
        Ok(())
    }

    /// Whether so many tokens may be reported as received.
    pub(crate) fn check_received(&self, now: Timestamp, tokens: u32) -> Result<(), Rejection> {
        if self.claim_by <= now {
            return contradicts("the order's claim time has passed");
        }
        if tokens > self.completion_max {
            return contradicts("more tokens are reported than the order allows");
        }
        if self.voucher.is_some_and(|voucher| tokens < voucher.tokens) {
            return contradicts("fewer tokens are reported than a signed voucher says");
        }
        Ok(())
    }

    /// The hold's end without a receipt: its highest voucher is charged, if there is one.
    fn settle_by_voucher(&self, job: JobId, at: Timestamp) -> Option<BookEvent> {
        let voucher = self.voucher?;
        Some(BookEvent::HoldPosted(HoldPosted {
            job,
            agent: self.agent,
            order: self.order,
            receipt: None,
            model: self.model,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: voucher.tokens,
            flop: self.charge(voucher.tokens).0,
            amount: voucher.amount,
            finish: FinishReason::Cancelled,
            at,
            provider: self.remote.map(|remote| remote.provider),
            fee: self.fee(voucher.amount),
        }))
    }
}

/// The work of `tokens` tokens from an empty cache, and its cost at `price`, at most `max`.
pub(super) fn charge(shape: &ModelShape, price: Ppm, tokens: u32, max: Trm) -> (Flop, Trm) {
    let flop = shape.work(0, tokens);
    (flop, flop.cost_ceil(price).min(max))
}

fn contradicts<T>(reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection::Contradicts { reason })
}

pub(super) const fn outcome_of(finish: FinishReason) -> JobOutcome {
    match finish {
        FinishReason::Stop | FinishReason::Length => JobOutcome::Success,
        FinishReason::Cancelled => JobOutcome::Neither,
        FinishReason::Failed => JobOutcome::Failure,
    }
}

/// All open holds, when they end by themselves, and the jobs that ended lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Holds {
    #[n(0)]
    open: BTreeMap<JobId, Hold>,
    /// Follows from `open`; kept so that what is due is found without a search.
    #[n(1)]
    deadlines: BTreeSet<(Timestamp, JobId)>,
    /// Jobs that ended, with the time until which they are remembered. One whose time has passed
    /// may still be in it.
    #[n(2)]
    #[cbor(default)]
    ended: BTreeMap<JobId, Timestamp>,
    /// Follows from `ended`; kept so that the oldest are found without a search.
    #[n(3)]
    #[cbor(default)]
    ended_until: BTreeSet<(Timestamp, JobId)>,
    /// Jobs at other nodes that ended lately and can be gone on with.
    #[n(4)]
    #[cbor(default)]
    continuable: BTreeMap<JobId, Continuable>,
    /// Follows from `continuable`.
    #[n(5)]
    #[cbor(default)]
    continuable_until: BTreeSet<(Timestamp, JobId)>,
}

/// What a job has to have in common with the one it goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct Continuable {
    #[n(0)]
    agent: AgentId,
    #[n(1)]
    key: Option<KeyId>,
    #[n(2)]
    request: Digest,
    #[n(3)]
    max_amount: Trm,
    #[n(4)]
    until: Timestamp,
    /// What it and the jobs before it were charged.
    #[n(5)]
    #[cbor(default)]
    spent: Trm,
}

impl Holds {
    pub(super) fn all(&self) -> &BTreeMap<JobId, Hold> {
        &self.open
    }

    pub(super) fn get(&self, job: JobId) -> Result<&Hold, Rejection> {
        self.open.get(&job).ok_or(Rejection::UnknownJob { job })
    }

    /// Whether the job is open, or ended and its order could still be started.
    pub(super) fn is_known(&self, now: Timestamp, job: JobId) -> bool {
        let ended_lately = self.ended.get(&job).is_some_and(|until| now < *until);
        ended_lately || self.open.contains_key(&job)
    }

    pub(super) fn check_room(&self, now: Timestamp, job: JobId) -> Result<(), Rejection> {
        if self.is_known(now, job) {
            return Err(Rejection::Exists { what: "the job" });
        }
        if self.open.len() >= HOLDS_MAX as usize {
            return Err(Rejection::TooMany { what: "open jobs", max: HOLDS_MAX });
        }
        // What has passed makes room when the hold opens.
        let oldest = self.ended_until.first();
        let makes_room = oldest.is_some_and(|(until, _)| *until <= now);
        if !makes_room && self.open.len() + self.ended.len() >= JOBS_REMEMBERED_MAX as usize {
            return Err(Rejection::TooMany {
                what: "jobs within five minutes of their order",
                max: JOBS_REMEMBERED_MAX,
            });
        }
        Ok(())
    }

    /// What `start` goes on with; nothing where that was another's or another request.
    ///
    /// # Errors
    ///
    /// [`Rejection::UnknownJob`] when it goes on with a job that did not end lately: what that one
    /// cost is not known any more.
    pub(super) fn before(
        &self,
        now: Timestamp,
        payer: Payer,
        start: &StartJob,
    ) -> Result<Option<Before>, Rejection> {
        let Some(job) = start.continues else { return Ok(None) };
        let ended = self.continuable.get(&job).filter(|ended| now < ended.until);
        let ended = ended.ok_or(Rejection::UnknownJob { job })?;
        let is_same =
            (ended.agent, ended.key) == (payer.agent, payer.key) && ended.request == start.request;
        let Continuable { spent, max_amount, request, .. } = *ended;
        Ok(is_same.then_some(Before { spent, max_amount, request: Some(request) }))
    }

    /// The ends of all open holds, each by its highest voucher or voided.
    pub(super) fn recovered(&self, at: Timestamp) -> impl Iterator<Item = BookEvent> {
        self.open.iter().map(move |(job, hold)| {
            let voided = BookEvent::HoldVoided { job: *job, failed: false, at };
            hold.settle_by_voucher(*job, at).unwrap_or(voided)
        })
    }

    /// The ends of the holds whose time ran out by `now`.
    pub(super) fn expired(&self, now: Timestamp) -> impl Iterator<Item = BookEvent> {
        let due = self.deadlines.iter().take_while(move |(claim_by, _)| *claim_by <= now);
        due.filter_map(move |(_, job)| {
            let hold = self.open.get(job)?;
            let expired = BookEvent::HoldExpired { job: *job, at: now };
            Some(hold.settle_by_voucher(*job, now).unwrap_or(expired))
        })
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(claim_by, _)| *claim_by)
    }

    pub(super) fn insert(&mut self, now: Timestamp, job: JobId, hold: Hold) {
        self.forget_passed(now);
        self.deadlines.insert((hold.claim_by, job));
        self.open.insert(job, hold);
    }

    /// Ends a hold; its job is remembered while its order could still be started.
    pub(super) fn remove(&mut self, now: Timestamp, job: JobId, charged: Trm) -> Option<Hold> {
        let hold = self.open.remove(&job)?;
        self.deadlines.remove(&(hold.claim_by, job));
        self.keep_continuable(now, job, (&hold, charged));
        let until = hold.startable_until();
        if now < until {
            if let Some(before) = self.ended.insert(job, until) {
                self.ended_until.remove(&(before, job));
            }
            self.ended_until.insert((until, job));
        }
        Some(hold)
    }

    fn keep_continuable(&mut self, now: Timestamp, job: JobId, (hold, charged): (&Hold, Trm)) {
        // What this node began itself nobody goes on with.
        let remote = hold.remote.map(|remote| remote.request);
        let Some(request) = remote.or(hold.before.and_then(|before| before.request)) else {
            return;
        };
        let until = now.plus_ms(CONTINUE_WITHIN_MS);
        let first = Before { spent: Trm::ZERO, max_amount: hold.max_amount, request: None };
        let Before { spent, max_amount, .. } = hold.before.unwrap_or(first);
        let (agent, key) = (hold.agent, hold.key);
        let spent = spent.saturating_add(charged);
        let ended = Continuable { agent, key, request, max_amount, until, spent };
        self.continuable.insert(job, ended);
        self.continuable_until.insert((until, job));
        while self.continuable.len() > CONTINUABLE_MAX as usize
            && let Some((_, oldest)) = self.continuable_until.pop_first()
        {
            self.continuable.remove(&oldest);
        }
    }

    fn forget_passed(&mut self, now: Timestamp) {
        for _ in 0..FORGOTTEN_PER_HOLD {
            let oldest = self.ended_until.first().copied();
            let Some((until, job)) = oldest.filter(|(until, _)| *until <= now) else {
                return;
            };
            self.ended_until.remove(&(until, job));
            self.ended.remove(&job);
        }
    }

    pub(super) fn set_voucher(&mut self, job: JobId, voucher: VoucherHead, prompt: Option<u32>) {
        if let Some(hold) = self.open.get_mut(&job) {
            hold.voucher = Some(voucher);
            hold.prompt_tokens = prompt.unwrap_or(hold.prompt_tokens);
        }
    }

    /// How many jobs that ended are remembered.
    pub(super) fn ended(&self) -> usize {
        self.ended.len()
    }

    pub(super) fn is_consistent(&self) -> bool {
        let mut deadlines: Vec<_> =
            self.open.iter().map(|(job, hold)| (hold.claim_by, *job)).collect();
        deadlines.sort_unstable();
        let mut ended: Vec<_> = self.ended.iter().map(|(job, until)| (*until, *job)).collect();
        ended.sort_unstable();
        let bounded = |hold: &Hold| {
            hold.voucher.is_none_or(|head| head.amount <= hold.order_max())
                && hold.order_max() <= hold.max_amount
        };
        self.continuable.len() == self.continuable_until.len()
            && self.open.len() <= HOLDS_MAX as usize
            && self.open.len() + self.ended.len() <= JOBS_REMEMBERED_MAX as usize
            && deadlines.iter().eq(self.deadlines.iter())
            && ended.iter().eq(self.ended_until.iter())
            && self.open.values().all(bounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u32) -> JobId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        JobId::from_bytes(bytes)
    }

    fn hold(claim_by_ms: u64) -> Hold {
        let opened = HoldOpened {
            job: job(0),
            agent: AgentId::from_bytes([1; 32]),
            key: None,
            order: DocumentId::from_bytes([2; 32]),
            model: ModelDigest::from_bytes([3; 32]),
            shape: ModelShape {
                parameters_active: 1,
                layers: 0,
                attention_width: 0,
                context_max: 1,
            },
            price: Ppm::ONE,
            prompt_tokens: 1,
            completion_max: 1,
            max_amount: Trm::from_micro(1),
            claim_by: Timestamp::from_ms(claim_by_ms),
            at: Timestamp::default(),
            remote: None,
            before: None,
        };
        Hold::new(&opened, None)
    }

    #[test]
    fn a_full_memory_takes_no_job_until_its_oldest_has_passed_and_then_shrinks() {
        let (start, end) = (Timestamp::default(), Timestamp::from_ms(100));
        let mut holds = Holds::default();
        for number in 0..JOBS_REMEMBERED_MAX {
            assert_eq!(holds.check_room(start, job(number)), Ok(()));
            holds.insert(start, job(number), hold(100));
            assert!(holds.remove(start, job(number), Trm::ZERO).is_some());
        }
        let new = job(JOBS_REMEMBERED_MAX);
        let full = holds.check_room(Timestamp::from_ms(99), new);
        assert!(matches!(full, Err(Rejection::TooMany { .. })), "{full:?}");
        assert!(holds.is_consistent());
        // What has passed is no hindrance, forgotten or not.
        for number in [JOBS_REMEMBERED_MAX - 1, JOBS_REMEMBERED_MAX, 0] {
            assert_eq!(holds.check_room(end, job(number)), Ok(()));
            holds.insert(end, job(number), hold(200));
            assert!(holds.remove(end, job(number), Trm::ZERO).is_some());
            assert!(holds.check_room(end, job(number)).is_err());
        }
        assert_eq!(holds.ended.len(), JOBS_REMEMBERED_MAX as usize - 4);
        assert!(holds.is_consistent());
    }
}
