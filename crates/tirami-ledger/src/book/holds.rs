//! Holds: TRM set aside for running jobs, and what they end with.
//!
//! A hold ends once: posted with a charge, voided, or expired. Its charge follows from the model's
//! shape and the tokens alone, by the same rule for vouchers and receipts: the work of running
//! prompt and completion from an empty cache, times the price, rounded up. Prompt tokens the
//! provider still had in its cache are charged at the order's cached price; a node sets it equal
//! to its price, so they do not change the sum.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{AgentId, DocumentId, Flop, JobId, ModelDigest, ModelShape, Ppm, Timestamp, Trm};

use super::KeyId;
use super::account::JobOutcome;
use super::keys::BudgetId;
use crate::Rejection;
use crate::command::FinishJob;
use crate::documents::FinishReason;
use crate::event::{BookEvent, HoldOpened, HoldPosted};

/// Open holds of one book at most.
pub const HOLDS_MAX: u32 = 4_096;

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
        }
    }

    /// The work and the charge when `completion_tokens` were delivered. The charge is at most what
    /// is set aside.
    pub fn charge(&self, completion_tokens: u32) -> (Flop, Trm) {
        let flop = self
            .shape
            .work(0, self.prompt_tokens.saturating_add(completion_tokens));
        (flop, flop.cost_ceil(self.price).min(self.max_amount))
    }

    /// The voucher that follows when `tokens` completion tokens were handed over in all.
    pub(crate) fn next_voucher(
        &self,
        now: Timestamp,
        tokens: u32,
    ) -> Result<VoucherHead, Rejection> {
        self.check_delivery(now, tokens)?;
        if tokens == 0 {
            return contradicts("a voucher needs at least one delivered token");
        }
        let n = match self.voucher {
            None => 0,
            Some(VoucherHead { n: u32::MAX, .. }) => {
                return contradicts("no voucher number is left");
            }
            Some(before) => before.n + 1,
        };
        Ok(VoucherHead {
            n,
            amount: self.charge(tokens).1,
            tokens,
        })
    }

    /// Whether the job may end with what `finish` reports.
    pub(super) fn check_finish(&self, now: Timestamp, finish: &FinishJob) -> Result<(), Rejection> {
        self.check_delivery(now, finish.completion_tokens)?;
        if finish.cached_tokens > self.prompt_tokens {
            return contradicts("more prompt tokens are reported cached than the prompt has");
        }
        Ok(())
    }

    fn check_delivery(&self, now: Timestamp, tokens: u32) -> Result<(), Rejection> {
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
        }))
    }
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

/// All open holds, and when they end by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Holds {
    #[n(0)]
    open: BTreeMap<JobId, Hold>,
    /// Follows from `open`; kept so that what is due is found without a search.
    #[n(1)]
    deadlines: BTreeSet<(Timestamp, JobId)>,
}

impl Holds {
    pub(super) fn all(&self) -> &BTreeMap<JobId, Hold> {
        &self.open
    }

    pub(super) fn get(&self, job: JobId) -> Result<&Hold, Rejection> {
        self.open.get(&job).ok_or(Rejection::UnknownJob { job })
    }

    pub(super) fn check_room(&self, job: JobId) -> Result<(), Rejection> {
        if self.open.contains_key(&job) {
            return Err(Rejection::Exists { what: "the job" });
        }
        if self.open.len() >= HOLDS_MAX as usize {
            return Err(Rejection::TooMany {
                what: "open jobs",
                max: HOLDS_MAX,
            });
        }
        Ok(())
    }

    /// The ends of all open holds, each by its highest voucher or voided.
    pub(super) fn recovered(&self, at: Timestamp) -> impl Iterator<Item = BookEvent> {
        self.open.iter().map(move |(job, hold)| {
            let voided = BookEvent::HoldVoided {
                job: *job,
                failed: false,
                at,
            };
            hold.settle_by_voucher(*job, at).unwrap_or(voided)
        })
    }

    /// The ends of the holds whose time ran out by `now`.
    pub(super) fn expired(&self, now: Timestamp) -> impl Iterator<Item = BookEvent> {
        let due = self
            .deadlines
            .iter()
            .take_while(move |(claim_by, _)| *claim_by <= now);
        due.filter_map(move |(_, job)| {
            let hold = self.open.get(job)?;
            let expired = BookEvent::HoldExpired { job: *job, at: now };
            Some(hold.settle_by_voucher(*job, now).unwrap_or(expired))
        })
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(claim_by, _)| *claim_by)
    }

    pub(super) fn insert(&mut self, job: JobId, hold: Hold) {
        self.deadlines.insert((hold.claim_by, job));
        self.open.insert(job, hold);
    }

    pub(super) fn remove(&mut self, job: JobId) -> Option<Hold> {
        let hold = self.open.remove(&job)?;
        self.deadlines.remove(&(hold.claim_by, job));
        Some(hold)
    }

    pub(super) fn set_voucher(&mut self, job: JobId, voucher: VoucherHead) {
        if let Some(hold) = self.open.get_mut(&job) {
            hold.voucher = Some(voucher);
        }
    }

    pub(super) fn is_consistent(&self) -> bool {
        let mut deadlines: Vec<_> = self
            .open
            .iter()
            .map(|(job, hold)| (hold.claim_by, *job))
            .collect();
        deadlines.sort_unstable();
        let bounded = |hold: &Hold| {
            hold.voucher
                .is_none_or(|head| head.amount <= hold.max_amount)
        };
        self.open.len() <= HOLDS_MAX as usize
            && deadlines.iter().eq(self.deadlines.iter())
            && self.open.values().all(bounded)
    }
}
