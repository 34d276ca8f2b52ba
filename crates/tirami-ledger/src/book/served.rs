//! Jobs that this node does for others: what runs, what is owed for what has ended, and how much
//! is risked with whom.
//!
//! A consumer's *owed* is the sum over its jobs that are not paid: a running one counts with its
//! maximum, an ended one with what is due. What was lost with a consumer counts until it pays
//! after all, or has paid much else: of each job paid in full and in time [`LOST_BACK`] is taken
//! off. So all that is ever lost with a consumer is at most its exposure and that share of what it
//! paid.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{
    DAY_MS, DocumentId, Flop, JobId, MINUTE_MS, ModelDigest, ModelShape, PartyId, Ppm, Timestamp,
    Trm,
};

use super::admit::START_WITHIN_MS;
use super::holds::{VoucherHead, charge};
use super::meter::DaySum;
use super::serving::ServingPolicy;
use crate::documents::{Claim, FinishReason, SignedBytes};
use crate::event::{BookEvent, ServedAccepted, ServedFinished};
use crate::refusal::OrderRefusal;

mod done;
#[cfg(test)]
mod tests;

use done::{Done, DoneJobs};

/// A served job that is not paid so long after its end is claimed, in milliseconds (MONEY §8).
pub const DUN_MS: u64 = 10 * MINUTE_MS;
/// How far a consumer's clock may be ahead of this node's when it orders, in milliseconds.
pub const ORDER_AHEAD_MAX_MS: u64 = MINUTE_MS;
/// How far ahead an order's claim time may be, by this node's clock, in milliseconds (MONEY §8).
pub const CLAIM_AHEAD_MAX_MS: u64 = DAY_MS + ORDER_AHEAD_MAX_MS;
/// Bytes of an order, and of a voucher, that are taken: honest ones have about 300. A claim shows
/// both to the whole mesh.
pub const CLAIMED_DOCUMENT_BYTES_MAX: usize = 2 * 1_024;
/// Served jobs that run or are not paid at most. About 1 KiB each.
pub const SERVED_UNPAID_MAX: u32 = 16_384;
/// Of them, those of one consumer: others always find room.
pub const SERVED_UNPAID_PER_CONSUMER_MAX: u32 = SERVED_UNPAID_MAX / 4;
/// Served jobs that are paid, or owe nothing, and whose order could still be started, at most: room
/// for 728 new jobs a second over the six minutes for which each is remembered. About 215 bytes
/// each. What comes of a repeat after that, the store says.
pub const SERVED_DONE_MAX: u32 = 1 << 18;
/// Of [`SERVED_DONE_MAX`], those of one consumer when there is room for no more than so many: the
/// last quarter is for others.
const SERVED_DONE_PER_CONSUMER_MAX: u32 = SERVED_DONE_MAX / 4;
/// Consumers remembered at most. When there are more, one is forgotten that owes nothing.
pub const CONSUMERS_MAX: u32 = 10_000;
/// Completion tokens that a provider may send ahead of the vouchers, at least (MONEY §8).
pub const WINDOW_TOKENS: u32 = 32;
/// The share of what a consumer pays that is taken off what was lost with it, rounded down for each
/// job that it pays in full before a claim is made: one part in a hundred. To take one more part
/// without paying it has to pay a hundred first.
const LOST_BACK: Ppm = Ppm::new(10_000);
/// Jobs of [`SERVED_DONE_MAX`] that one more job forgets at most when their time has passed.
const FORGOTTEN_PER_JOB: usize = 2;

/// A job that runs for another node, or that it has not paid.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServedJob {
    /// Who pays.
    #[n(0)]
    pub consumer: PartyId,
    /// The order's id.
    #[n(1)]
    pub order: DocumentId,
    /// The order itself.
    #[n(2)]
    pub order_bytes: SignedBytes,
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
    /// What it may cost at most.
    #[n(8)]
    pub max_amount: Trm,
    /// When nothing can be claimed any more.
    #[n(9)]
    pub claim_by: Timestamp,
    /// Whether the consumer was enrolled when the order was taken.
    #[n(10)]
    pub enrolled: bool,
    /// When the order was taken.
    #[n(11)]
    pub at: Timestamp,
    /// The highest voucher.
    #[n(12)]
    pub voucher: Option<VoucherHead>,
    /// The highest voucher itself.
    #[n(13)]
    pub voucher_bytes: Option<SignedBytes>,
    /// How it ended; `None` while it runs.
    #[n(14)]
    pub end: Option<ServedEnd>,
    /// Paid by final entries.
    #[n(15)]
    pub paid: Trm,
    /// Whether its claim was made.
    #[n(16)]
    pub claimed: bool,
}

/// How a served job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServedEnd {
    /// What is due.
    #[n(0)]
    pub due: Trm,
    /// The receipt; none when what is due rests on the highest voucher.
    #[n(1)]
    pub receipt: Option<DocumentId>,
    /// When.
    #[n(2)]
    pub at: Timestamp,
    /// What was sent beyond what is due and is not paid. It was lost with the consumer at the end.
    #[cbor(n(3), default, skip_if = "nothing")]
    pub unsigned: Trm,
}

/// Left out of the bytes where it says nothing, so that equal records have equal bytes.
fn nothing(amount: &Trm) -> bool {
    amount.is_zero()
}

impl ServedJob {
    /// The work and what it costs when `completion_tokens` are delivered, at most the maximum.
    pub fn charge(&self, completion_tokens: u32) -> (Flop, Trm) {
        let tokens = self.prompt_tokens.saturating_add(completion_tokens);
        charge(&self.shape, self.price, tokens, self.max_amount)
    }

    /// Whether it reads its prompt and delivers no completion tokens.
    pub const fn only_reads(&self) -> bool {
        self.completion_max == 0
    }

    /// What it counts for in what its consumer owes.
    pub fn owed(&self) -> Trm {
        self.end.map_or(self.max_amount, |end| end.due.saturating_sub(self.paid))
    }

    /// What the consumer has signed for.
    pub fn vouched(&self) -> Trm {
        self.voucher.map_or(Trm::ZERO, |voucher| voucher.amount)
    }

    /// What proves to others what the consumer owes; none without a voucher.
    pub fn claim(&self) -> Option<Claim> {
        let voucher = self.voucher_bytes.clone()?;
        Some(Claim { order: self.order_bytes.clone(), voucher })
    }

    /// When it is to be claimed if it is not paid before: late jobs while there is still time.
    fn dun_at(&self) -> Option<Timestamp> {
        let ended = self.end?.at;
        let latest = self.claim_by.ms().saturating_sub(DUN_MS).max(ended.ms());
        Some(ended.plus_ms(DUN_MS).min(Timestamp::from_ms(latest)))
    }

    /// The latest that the order's `start_by` can be, or its claim time if that is before.
    fn startable_until(&self) -> Timestamp {
        self.at.plus_ms(START_WITHIN_MS).plus_ms(ORDER_AHEAD_MAX_MS).min(self.claim_by)
    }

    /// The end by the highest voucher.
    pub(crate) fn ended_by_voucher(&self, job: JobId, at: Timestamp) -> ServedFinished {
        let tokens = self.voucher.map_or(0, |voucher| voucher.tokens);
        let flop = self.voucher.map_or(Flop::ZERO, |voucher| self.charge(voucher.tokens).0);
        ServedFinished {
            job,
            consumer: self.consumer,
            order: self.order,
            receipt: None,
            model: self.model,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: tokens,
            flop,
            amount: self.vouched(),
            finish: FinishReason::Cancelled,
            at,
            unsigned: Trm::ZERO,
        }
    }

    /// Nothing is owed, or all that the consumer signed for is paid. Of what it did not sign for
    /// there is no proof to wait with.
    fn is_settled(&self) -> bool {
        let evidence_paid = !self.paid.is_zero() && self.paid >= self.vouched();
        self.end.is_some() && (self.owed().is_zero() || evidence_paid)
    }
}

/// What a node remembers of a party it served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Consumer {
    /// Owed for its jobs, running ones at their maximum, and lost with it.
    #[n(0)]
    pub owed: Trm,
    /// Delivered, not paid, and not claimable any more. Part of `owed`.
    #[n(1)]
    pub lost: Trm,
    /// Whether a part of what was lost had been vouched for.
    #[n(2)]
    pub defaulted: bool,
    /// Jobs paid in full.
    #[n(3)]
    pub settled: u32,
    /// Jobs that run or are not paid.
    #[n(4)]
    pub jobs: u32,
    /// Of these, jobs whose claim was made.
    #[n(5)]
    pub claimed: u32,
}

impl Consumer {
    /// Takes at most `amount` off what was lost, and with it off what is owed.
    fn recover(&mut self, amount: Trm) {
        let back = amount.min(self.lost);
        self.lost = self.lost.saturating_sub(back);
        self.owed = self.owed.saturating_sub(back);
        self.defaulted &= !self.lost.is_zero();
    }
}

/// All that a node does for others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Served {
    #[n(0)]
    policy: ServingPolicy,
    #[n(1)]
    jobs: BTreeMap<JobId, ServedJob>,
    /// Follows from `jobs`: those that run, by their order.
    #[n(2)]
    running: BTreeMap<DocumentId, JobId>,
    /// Follows from `jobs`: their claim times.
    #[n(3)]
    claim_times: BTreeSet<(Timestamp, JobId)>,
    /// When jobs that ended are to be claimed, if they are not paid before.
    #[n(4)]
    duns: BTreeSet<(Timestamp, JobId)>,
    #[n(5)]
    consumers: BTreeMap<PartyId, Consumer>,
    #[n(6)]
    done: DoneJobs,
    /// Follows from `done`.
    #[n(7)]
    done_until: BTreeSet<(Timestamp, JobId)>,
    /// Taken from consumers that are not enrolled and not paid, by the time it was taken.
    #[n(8)]
    unknown: DaySum,
    #[n(9)]
    earned: Trm,
    #[n(10)]
    jobs_served: u64,
}

/// What the checks of an order have to know beside it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) consumer: PartyId,
    pub(crate) max_amount: Trm,
    pub(crate) enrolled: bool,
}

impl Served {
    pub(super) const fn policy(&self) -> &ServingPolicy {
        &self.policy
    }

    pub(super) const fn jobs(&self) -> &BTreeMap<JobId, ServedJob> {
        &self.jobs
    }

    pub(super) const fn consumers(&self) -> &BTreeMap<PartyId, Consumer> {
        &self.consumers
    }

    pub(super) const fn totals(&self) -> (Trm, u64) {
        (self.earned, self.jobs_served)
    }

    pub(super) fn by_order(&self, order: DocumentId) -> Option<(JobId, &ServedJob)> {
        let job = *self.running.get(&order)?;
        self.jobs.get(&job).map(|served| (job, served))
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// How many jobs that are paid or owe nothing are remembered.
    pub(super) fn done(&self) -> usize {
        self.done.len()
    }

    pub(super) fn unknown_left(&self, now: Timestamp) -> Trm {
        self.policy.exposure_unknown_day.saturating_sub(self.unknown.used(now))
    }

    /// Refuses a job that was ordered before.
    pub(super) fn check_new(&self, job: JobId, consumer: PartyId) -> Result<(), OrderRefusal> {
        let known = self.jobs.get(&job).map(|served| {
            let end = served.end;
            let due = end.map_or(served.vouched(), |end| end.due);
            (served.consumer, end.and_then(|end| end.receipt), due)
        });
        let known = known
            .or_else(|| self.done.get(job).map(|done| (done.consumer, done.receipt, done.due)));
        match known {
            Some((of, receipt, due)) if of == consumer => {
                Err(OrderRefusal::Replayed { receipt, due })
            }
            Some(_) => Err(OrderRefusal::JobTaken),
            None => Ok(()),
        }
    }

    /// Refuses what would be risked beyond the limits, and what there is no room for.
    pub(super) fn check_exposure(
        &self,
        now: Timestamp,
        demand: &Demand,
    ) -> Result<(), OrderRefusal> {
        let known = self.consumers.get(&demand.consumer).copied().unwrap_or_default();
        let exposure = self.policy.exposure(demand.consumer, known.settled);
        if known.owed.signed() + demand.max_amount.signed() > exposure.signed() {
            return Err(OrderRefusal::Exposure { exposure, owed: known.owed });
        }
        let left = self.unknown_left(now);
        if !demand.enrolled && demand.max_amount > left {
            return Err(OrderRefusal::ExposureUnknown { left });
        }
        self.check_room(now, demand.consumer)
    }

    fn check_room(&self, now: Timestamp, consumer: PartyId) -> Result<(), OrderRefusal> {
        let full = |what, max| Err(OrderRefusal::TooMany { what, max });
        if self.running.len() >= self.policy.jobs_max as usize {
            return Err(OrderRefusal::NoPlace { max: self.policy.jobs_max });
        }
        if self.jobs.len() >= SERVED_UNPAID_MAX as usize {
            return full("jobs that are not paid", SERVED_UNPAID_MAX);
        }
        let of_consumer = self.consumers.get(&consumer).map_or(0, |known| known.jobs);
        if of_consumer >= SERVED_UNPAID_PER_CONSUMER_MAX {
            return full("jobs that this consumer has not paid", SERVED_UNPAID_PER_CONSUMER_MAX);
        }
        let makes_room = self.done_until.first().is_some_and(|(until, _)| *until <= now);
        let kept = self.jobs.len() + self.done.len();
        if !makes_room && kept >= SERVED_DONE_MAX as usize {
            return full("paid jobs whose order could come again", SERVED_DONE_MAX);
        }
        let is_crowded = kept >= (SERVED_DONE_MAX - SERVED_DONE_PER_CONSUMER_MAX) as usize;
        let has_its_part = self.done.count_of(consumer) >= SERVED_DONE_PER_CONSUMER_MAX;
        if !makes_room && is_crowded && has_its_part {
            let what = "paid jobs of this consumer whose order could come again";
            return full(what, SERVED_DONE_PER_CONSUMER_MAX);
        }
        let is_known = self.consumers.contains_key(&consumer);
        if !is_known && self.consumers.len() >= CONSUMERS_MAX as usize && self.idle().is_none() {
            return full("consumers that owe something", CONSUMERS_MAX);
        }
        Ok(())
    }

    /// The consumer that is forgotten first: one without jobs, of those the one with the fewest
    /// paid and the least lost.
    fn idle(&self) -> Option<PartyId> {
        let idle = self.consumers.iter().filter(|(_, consumer)| consumer.jobs == 0);
        idle.min_by_key(|(_, consumer)| (consumer.lost, consumer.settled)).map(|(party, _)| *party)
    }

    /// What ends by itself by `now`: jobs whose claim time has passed.
    pub(super) fn due(&self, now: Timestamp) -> impl Iterator<Item = BookEvent> {
        let passed = self.claim_times.iter().take_while(move |(claim_by, _)| *claim_by <= now);
        passed.flat_map(move |(_, job)| {
            let served = self.jobs.get(job);
            let runs = served.filter(|served| served.end.is_none());
            let ended = runs.map(|served| served.ended_by_voucher(*job, now));
            let owed = ended
                .as_ref()
                .map_or_else(|| served.map_or(Trm::ZERO, ServedJob::owed), |ended| ended.amount);
            let lapsed =
                (!owed.is_zero()).then_some(BookEvent::ServedLapsed { job: *job, at: now });
            ended.map(BookEvent::ServedFinished).into_iter().chain(lapsed)
        })
    }

    /// The ends of all that runs, for a node that starts again.
    pub(super) fn recovered(&self, at: Timestamp) -> impl Iterator<Item = BookEvent> {
        self.running.values().filter_map(move |job| {
            let served = self.jobs.get(job)?;
            Some(BookEvent::ServedFinished(served.ended_by_voucher(*job, at)))
        })
    }

    /// Jobs that are to be claimed by `now`.
    pub(super) fn unclaimed(&self, now: Timestamp) -> impl Iterator<Item = (JobId, &ServedJob)> {
        let due = self.duns.iter().take_while(move |(at, _)| *at <= now);
        due.filter_map(|(_, job)| self.jobs.get(job).map(|served| (*job, served)))
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let firsts = [self.claim_times.first(), self.duns.first()];
        firsts.into_iter().flatten().map(|(at, _)| *at).min()
    }
}

/// Applying facts.
impl Served {
    pub(super) fn set_policy(&mut self, policy: ServingPolicy) {
        self.policy = policy;
    }

    pub(super) fn accept(&mut self, now: Timestamp, accepted: &ServedAccepted) {
        self.forget_passed(now);
        let ServedAccepted { job, consumer, order, order_bytes, .. } = accepted;
        if !self.consumers.contains_key(consumer)
            && self.consumers.len() >= CONSUMERS_MAX as usize
            && let Some(idle) = self.idle()
        {
            self.consumers.remove(&idle);
        }
        let known = self.consumers.entry(*consumer).or_default();
        known.owed = known.owed.saturating_add(accepted.max_amount);
        known.jobs = known.jobs.saturating_add(1);
        if !accepted.enrolled {
            self.unknown.add(accepted.at, accepted.max_amount);
        }
        let served = ServedJob {
            consumer: *consumer,
            order: *order,
            order_bytes: order_bytes.clone(),
            model: accepted.model,
            shape: accepted.shape,
            price: accepted.price,
            prompt_tokens: accepted.prompt_tokens,
            completion_max: accepted.completion_max,
            max_amount: accepted.max_amount,
            claim_by: accepted.claim_by,
            enrolled: accepted.enrolled,
            at: accepted.at,
            voucher: None,
            voucher_bytes: None,
            end: None,
            paid: Trm::ZERO,
            claimed: false,
        };
        self.running.insert(*order, *job);
        self.claim_times.insert((accepted.claim_by, *job));
        self.jobs.insert(*job, served);
    }

    pub(super) fn raise(&mut self, job: JobId, head: VoucherHead, voucher: &SignedBytes) {
        if let Some(served) = self.jobs.get_mut(&job) {
            served.voucher = Some(head);
            served.voucher_bytes = Some(voucher.clone());
        }
    }

    pub(super) fn finish(&mut self, finished: &ServedFinished) {
        let job = finished.job;
        let Some(served) = self.jobs.get_mut(&job).filter(|served| served.end.is_none()) else {
            return;
        };
        let before = served.owed();
        let due = finished.amount;
        // Paid before the end was known, by a voucher that did not come.
        let ahead = served.paid.saturating_sub(due);
        let unsigned = finished.unsigned.saturating_sub(ahead);
        let end = ServedEnd { due, receipt: finished.receipt, at: finished.at, unsigned };
        served.end = Some(end);
        let after = served.owed();
        // What was sent and nobody signed for stays taken for the day.
        let unused = served.max_amount.saturating_sub(due).saturating_sub(unsigned);
        if !served.enrolled {
            self.unknown.give_back(served.at, unused);
        }
        if !served.vouched().is_zero() {
            self.duns.extend(served.dun_at().map(|at| (at, job)));
        }
        let (order, consumer) = (served.order, served.consumer);
        self.running.remove(&order);
        if let Some(known) = self.consumers.get_mut(&consumer) {
            let owed = known.owed.saturating_sub(before).saturating_add(after);
            known.owed = owed.saturating_add(finished.unsigned);
            known.lost = known.lost.saturating_add(finished.unsigned);
            known.recover(ahead);
        }
        if !end.due.is_zero() {
            self.jobs_served = self.jobs_served.saturating_add(1);
        }
        self.close_if_settled(job);
    }

    /// A final payment. What names no job that is waited for, and what is more than is due for the
    /// job, pays off what was lost.
    pub(super) fn pay(&mut self, job: JobId, consumer: PartyId, amount: Trm) {
        let served = self.jobs.get_mut(&job).filter(|served| served.consumer == consumer);
        let Some(served) = served else {
            if let Some(known) = self.consumers.get_mut(&consumer) {
                known.recover(amount);
            }
            self.earned = self.earned.saturating_add(amount);
            return;
        };
        let before = served.owed();
        served.paid = served.paid.saturating_add(amount);
        let after = served.owed();
        self.earned = self.earned.saturating_add(amount);
        // While it runs nobody knows what is due.
        let mut beyond = Trm::ZERO;
        if let Some(end) = &mut served.end {
            beyond = amount.saturating_sub(before.saturating_sub(after));
            let signed_late = beyond.min(end.unsigned);
            end.unsigned = end.unsigned.saturating_sub(signed_late);
            if !served.enrolled {
                self.unknown.give_back(served.at, signed_late);
            }
        }
        if let Some(known) = self.consumers.get_mut(&consumer) {
            known.owed = known.owed.saturating_sub(before).saturating_add(after);
            known.recover(beyond);
        }
        self.close_if_settled(job);
    }

    pub(super) fn set_claimed(&mut self, job: JobId) {
        if let Some(served) = self.jobs.get_mut(&job) {
            served.claimed = true;
            if let Some(known) = self.consumers.get_mut(&served.consumer) {
                known.claimed = known.claimed.saturating_add(1);
            }
            if let Some(at) = served.dun_at() {
                self.duns.remove(&(at, job));
            }
        }
    }

    /// The claim time has passed: what is owed is lost.
    pub(super) fn lapse(&mut self, job: JobId) {
        if let Some(served) = self.remove(job)
            && let Some(known) = self.consumers.get_mut(&served.consumer)
        {
            known.lost = known.lost.saturating_add(served.owed());
            known.defaulted |= served.vouched() > served.paid;
        }
    }

    fn close_if_settled(&mut self, job: JobId) {
        if !self.jobs.get(&job).is_some_and(ServedJob::is_settled) {
            return;
        }
        let Some(served) = self.remove(job) else { return };
        let Some(end) = served.end else { return };
        let short = served.owed();
        if let Some(known) = self.consumers.get_mut(&served.consumer) {
            known.lost = known.lost.saturating_add(short);
            let in_full = short.is_zero() && !end.due.is_zero();
            known.settled = known.settled.saturating_add(u32::from(in_full));
            // Who took what it had signed for pays back all of it.
            if in_full && !served.claimed && !known.defaulted {
                known.recover(end.due.mul_floor(LOST_BACK));
            }
        }
        if !served.enrolled {
            self.unknown.give_back(served.at, end.due.saturating_sub(short));
        }
        // The order is late when it is forgotten.
        let (consumer, until) = (served.consumer, served.startable_until());
        let done = Done { consumer, receipt: end.receipt, due: end.due, until };
        if let Some(before) = self.done.insert(job, done) {
            self.done_until.remove(&(before.until, job));
        }
        self.done_until.insert((until, job));
    }

    fn remove(&mut self, job: JobId) -> Option<ServedJob> {
        let served = self.jobs.remove(&job)?;
        self.running.remove(&served.order);
        self.claim_times.remove(&(served.claim_by, job));
        if let Some(at) = served.dun_at() {
            self.duns.remove(&(at, job));
        }
        if let Some(known) = self.consumers.get_mut(&served.consumer) {
            known.jobs = known.jobs.saturating_sub(1);
            known.claimed = known.claimed.saturating_sub(u32::from(served.claimed));
        }
        Some(served)
    }

    fn forget_passed(&mut self, now: Timestamp) {
        for _ in 0..FORGOTTEN_PER_JOB {
            let oldest = self.done_until.first().copied();
            let Some((until, job)) = oldest.filter(|(until, _)| *until <= now) else {
                return;
            };
            self.done_until.remove(&(until, job));
            self.done.remove(job);
        }
    }

    /// Whether everything kept twice agrees and every bound holds. O(state).
    pub(super) fn is_consistent(&self) -> bool {
        let mut owed: BTreeMap<PartyId, (i128, u32)> = BTreeMap::new();
        for served in self.jobs.values() {
            let (sum, jobs) = owed.entry(served.consumer).or_default();
            *sum += served.owed().signed();
            *jobs += 1;
        }
        let counted = self.consumers.iter().all(|(party, known)| {
            let (sum, jobs) = owed.get(party).copied().unwrap_or_default();
            known.owed.signed() == sum + known.lost.signed() && known.jobs == jobs
        });
        let running = self.jobs.values().filter(|served| served.end.is_none()).count();
        counted
            && owed.keys().all(|party| self.consumers.contains_key(party))
            && running == self.running.len()
            && self.claim_times.len() == self.jobs.len()
            && self.done_until.len() == self.done.len()
            && self.done.is_consistent()
            && self.jobs.len() <= SERVED_UNPAID_MAX as usize
            && self.done.len() <= SERVED_DONE_MAX as usize
            && self.consumers.len() <= CONSUMERS_MAX as usize
            && self.unknown.is_consistent()
    }
}
