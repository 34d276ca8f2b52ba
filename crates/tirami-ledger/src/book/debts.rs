//! What this node owes other nodes for jobs they did: from the end of a job until the payment for
//! it is final.
//!
//! A debt is *open* until an entry of the node's chain pays it, and *paying* until that entry is
//! final. Both follow from the lattice's own events, so that a debt that an entry pays which was
//! fetched after a restored backup is not paid again, and one whose entry lost its place is.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, JobId, MINUTE_MS, PartyId, Timestamp, Trm};

use super::serving::EXPOSURE_START_ANSWERS;
use crate::Rejection;
use crate::event::HoldPosted;
use crate::lattice::{Pay, PayItem};

/// A job that ended is paid so long after its end at the latest, in milliseconds, if the node can
/// sign (MONEY §8).
pub const SETTLE_MS: u64 = 10_000;
/// So many jobs that one provider did are paid at once.
pub const SETTLE_ITEMS: usize = 32;
/// A provider that is owed so many answers is paid at once. It is a quarter of what providers lend
/// at first, so that whoever asks one thing after the other is not refused.
pub const SETTLE_ANSWERS: u64 = EXPOSURE_START_ANSWERS / 4;
/// Payments to this node are collected so often at most, in milliseconds.
pub const COLLECT_MS: u64 = MINUTE_MS;
/// When an entry could not be signed it is tried again after so long, in milliseconds.
pub const SETTLE_RETRY_MS: u64 = 10_000;
/// Jobs that are not paid at most, those whose payment is not final included. Beyond it no job is
/// ordered. About 200 bytes each.
pub const DEBTS_MAX: u32 = 65_536;
/// Providers whose bad receipts are counted at most.
pub const CHEATS_MAX: usize = 4_096;
/// Jobs one payment names at most (MONEY §5).
const ITEMS_MAX: usize = 64;

/// Owed to another node for one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Debt {
    /// To whom.
    #[n(0)]
    pub provider: PartyId,
    /// How much.
    #[n(1)]
    pub amount: Trm,
    /// Kept beside it for the mesh's fee.
    #[n(2)]
    pub fee: Trm,
    /// Since when.
    #[n(3)]
    pub at: Timestamp,
    /// The place of the entry that pays it on this node's chain; that entry is not final.
    #[n(4)]
    pub paying: Option<u64>,
}

impl Debt {
    fn reserved(&self) -> Trm {
        self.amount.saturating_add(self.fee)
    }
}

/// The open debts to one provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
struct Creditor {
    #[n(0)]
    jobs: BTreeSet<(Timestamp, JobId)>,
    #[n(1)]
    sum: Trm,
}

/// A signed payment that is not final.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Paying {
    #[n(0)]
    entry: DocumentId,
    #[n(1)]
    jobs: Vec<JobId>,
}

/// All debts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Debts {
    #[n(0)]
    by_job: BTreeMap<JobId, Debt>,
    #[n(1)]
    creditors: BTreeMap<PartyId, Creditor>,
    /// Follows from `creditors`: when each is to be paid.
    #[n(2)]
    due: BTreeSet<(Timestamp, PartyId)>,
    /// The sum of all open debts with their fees.
    #[n(3)]
    open: Trm,
    #[n(4)]
    paying: BTreeMap<u64, Paying>,
    /// A creditor owed this much is paid at once; zero is no such amount. It is
    /// [`SETTLE_ANSWERS`] of the model and at the price of the job that was charged last.
    #[n(5)]
    settle_at: Trm,
    #[n(6)]
    collected_at: Timestamp,
    /// Nothing is signed before.
    #[n(7)]
    not_before: Timestamp,
    /// Receipts refused, by provider.
    #[n(8)]
    cheats: BTreeMap<PartyId, u32>,
}

impl Debts {
    pub(super) const fn by_job(&self) -> &BTreeMap<JobId, Debt> {
        &self.by_job
    }

    pub(super) const fn open(&self) -> Trm {
        self.open
    }

    pub(super) const fn cheats(&self) -> &BTreeMap<PartyId, u32> {
        &self.cheats
    }

    /// Refuses a job that is not paid, and any when those open and those not paid are as many as
    /// may be.
    pub(super) fn check_room(&self, job: JobId, holds: usize) -> Result<(), Rejection> {
        if self.by_job.contains_key(&job) {
            return Err(Rejection::Exists { what: "the job" });
        }
        if self.by_job.len() + holds >= DEBTS_MAX as usize {
            return Err(Rejection::TooMany {
                what: "jobs at other nodes that are not paid",
                max: DEBTS_MAX,
            });
        }
        Ok(())
    }

    /// The payment that is due: to the creditor that waits longest, for at most 64 jobs.
    pub(super) fn due(&self, now: Timestamp) -> Option<(PartyId, Vec<PayItem>)> {
        let (at, provider) = self.due.first()?;
        if *at > now || self.not_before > now {
            return None;
        }
        let jobs = self.creditors.get(provider)?.jobs.iter().take(ITEMS_MAX);
        let items = jobs.filter_map(|(_, job)| {
            Some(PayItem { job: *job, amount: self.by_job.get(job)?.amount })
        });
        Some((*provider, items.collect()))
    }

    /// When what waits since `at` may be tried.
    pub(super) fn not_before(&self, at: Timestamp) -> Timestamp {
        at.max(self.not_before)
    }

    pub(super) fn next_payment(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| self.not_before(*at))
    }

    pub(super) fn next_collect(&self) -> Timestamp {
        self.not_before(self.collected_at.plus_ms(COLLECT_MS))
    }

    pub(super) fn failed(&mut self, at: Timestamp) {
        self.not_before = at.plus_ms(SETTLE_RETRY_MS);
        self.collected_at = at;
    }

    pub(super) fn collected(&mut self, at: Timestamp) {
        self.collected_at = self.collected_at.max(at);
    }

    pub(super) fn count_cheat(&mut self, provider: PartyId) {
        if self.cheats.len() < CHEATS_MAX || self.cheats.contains_key(&provider) {
            let count = self.cheats.entry(provider).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// A job at another node was charged, where an answer costs so much.
    pub(super) fn add(&mut self, posted: &HoldPosted, answer: Trm) {
        let Some(provider) = posted.provider.filter(|_| !posted.amount.is_zero()) else {
            return;
        };
        self.settle_at = Trm::from_micro(answer.micro().saturating_mul(SETTLE_ANSWERS));
        let (amount, fee) = (posted.amount, posted.fee.unwrap_or_default());
        let debt = Debt { provider, amount, fee, at: posted.at, paying: None };
        self.by_job.insert(posted.job, debt);
        self.enter(posted.job, debt);
    }

    /// The node's chain pays: the entry is signed, by this node's timer, by its owner, or before
    /// its book was restored from a backup.
    pub(super) fn pay_pending(&mut self, seq: u64, entry: DocumentId, pay: &Pay) {
        if self.paying.contains_key(&seq) {
            // A rival of its own. If it becomes final its payments count then.
            return;
        }
        let mut jobs = Vec::new();
        for item in &pay.items {
            let debt = self.by_job.get_mut(&item.job).filter(|debt| {
                debt.provider == pay.payee && debt.paying.is_none() && item.amount >= debt.amount
            });
            if let Some(debt) = debt {
                let was = *debt;
                debt.paying = Some(seq);
                jobs.push(item.job);
                self.leave(item.job, was);
            }
        }
        if !jobs.is_empty() {
            self.paying.insert(seq, Paying { entry, jobs });
        }
    }

    /// An entry of the node's chain is final. What a rival of it would have paid, and all that
    /// stood on that, is owed again.
    pub(super) fn own_final(&mut self, seq: u64, entry: DocumentId, pay: Option<&Pay>) {
        match self.paying.get(&seq) {
            Some(paying) if paying.entry == entry => {
                self.paying.remove(&seq);
            }
            Some(_) => self.reopen_from(seq),
            None => {}
        }
        let Some(pay) = pay else { return };
        for item in &pay.items {
            let paid = self
                .by_job
                .get(&item.job)
                .copied()
                .filter(|debt| debt.provider == pay.payee && item.amount >= debt.amount);
            if let Some(debt) = paid {
                self.by_job.remove(&item.job);
                match debt.paying {
                    None => self.leave(item.job, debt),
                    Some(other) if other != seq => self.strike(other, item.job),
                    Some(_) => {}
                }
            }
        }
    }

    /// A pending entry of the node's chain is held no longer, nor those after it.
    pub(super) fn discarded(&mut self, entry: DocumentId) {
        let found = self.paying.iter().find(|(_, paying)| paying.entry == entry);
        if let Some(seq) = found.map(|(seq, _)| *seq) {
            self.reopen_from(seq);
        }
    }

    fn reopen_from(&mut self, seq: u64) {
        let lost = self.paying.split_off(&seq);
        for job in lost.into_values().flat_map(|paying| paying.jobs) {
            if let Some(debt) = self.by_job.get_mut(&job) {
                debt.paying = None;
                let debt = *debt;
                self.enter(job, debt);
            }
        }
    }

    /// The job was paid by another entry than the one that was to.
    fn strike(&mut self, seq: u64, job: JobId) {
        if let Some(paying) = self.paying.get_mut(&seq) {
            paying.jobs.retain(|other| *other != job);
        }
    }

    /// The debt is open.
    fn enter(&mut self, job: JobId, debt: Debt) {
        self.open = self.open.saturating_add(debt.reserved());
        self.change(debt.provider, |creditor| {
            creditor.jobs.insert((debt.at, job));
            creditor.sum = creditor.sum.saturating_add(debt.amount);
        });
    }

    /// The debt is not open any more.
    fn leave(&mut self, job: JobId, debt: Debt) {
        self.open = self.open.saturating_sub(debt.reserved());
        self.change(debt.provider, |creditor| {
            creditor.jobs.remove(&(debt.at, job));
            creditor.sum = creditor.sum.saturating_sub(debt.amount);
        });
    }

    fn change(&mut self, provider: PartyId, change: impl FnOnce(&mut Creditor)) {
        let mut creditor = self.creditors.remove(&provider).unwrap_or_default();
        // `settle_at` may have been another one when it was entered.
        if let Some((oldest, _)) = creditor.jobs.first() {
            self.due.remove(&(*oldest, provider));
            self.due.remove(&(oldest.plus_ms(SETTLE_MS), provider));
        }
        change(&mut creditor);
        if let Some(at) = self.due_at(&creditor) {
            self.due.insert((at, provider));
            self.creditors.insert(provider, creditor);
        }
    }

    fn due_at(&self, creditor: &Creditor) -> Option<Timestamp> {
        let (oldest, _) = creditor.jobs.first()?;
        let much = !self.settle_at.is_zero() && creditor.sum >= self.settle_at;
        let at_once = much || creditor.jobs.len() >= SETTLE_ITEMS;
        Some(if at_once { *oldest } else { oldest.plus_ms(SETTLE_MS) })
    }

    /// Whether everything kept twice agrees and every bound holds. O(state).
    pub(super) fn is_consistent(&self) -> bool {
        let open = self.by_job.values().filter(|debt| debt.paying.is_none());
        let sum: i128 = open.clone().map(|debt| debt.reserved().signed()).sum();
        let listed: usize = self.creditors.values().map(|creditor| creditor.jobs.len()).sum();
        let paying: usize = self.paying.values().map(|paying| paying.jobs.len()).sum();
        sum == self.open.signed()
            && listed == open.count()
            && paying + listed == self.by_job.len()
            && self.due.len() == self.creditors.len()
            && self.by_job.len() <= DEBTS_MAX as usize
            && self.cheats.len() <= CHEATS_MAX
    }
}
