//! What the book knows of jobs between nodes: as a consumer its debts, as a provider the jobs it
//! serves, and the claims it heard of.

use std::collections::BTreeMap;

use tirami_core::{DocumentId, JobId, MINUTE_MS, PartyId, Ppm, Timestamp, Trm};

use super::claims::{Claimed, NotedClaim};
use super::debts::Debt;
use super::holds::VoucherHead;
use super::refused::Refused;
use super::served::{Consumer, Demand, ServedJob};
use super::{Book, ServingPolicy};
use crate::command::FaucetBounds;
use crate::event::BookEvent;
use crate::lattice::{EntryKind, LatticeEvent, PayItem};
use crate::refusal::{ClaimRefusal, FaucetRefusal, OrderRefusal};

/// Orders at the price before are taken so long after it rose, in milliseconds: signals of the
/// old price are on their way.
pub const PRICE_GRACE_MS: u64 = MINUTE_MS;

impl Book {
    pub(super) fn apply_mesh(&mut self, event: &BookEvent) {
        match event {
            BookEvent::ServedAccepted(accepted) => {
                self.tell_time(accepted.at);
                self.served.accept(self.clock, accepted);
            }
            BookEvent::VoucherTaken { job, n, amount, tokens, voucher } => {
                let head = VoucherHead { n: *n, amount: *amount, tokens: *tokens };
                self.served.raise(*job, head, voucher);
            }
            BookEvent::ServedFinished(finished) => {
                self.tell_time(finished.at);
                self.served.finish(finished);
            }
            BookEvent::ServedSettled { job, consumer, amount, .. } => {
                self.served.pay(*job, *consumer, *amount);
            }
            BookEvent::ServedLapsed { job, at } => {
                self.tell_time(*at);
                self.served.lapse(*job);
            }
            BookEvent::ClaimMade { job, at } => {
                self.tell_time(*at);
                self.served.set_claimed(*job);
            }
            BookEvent::ClaimNoted { consumer, provider, job, amount, claim_by, at } => {
                self.tell_time(*at);
                let claim = (*consumer, (*provider, *job));
                self.claims.note(self.clock, claim, (*amount, *claim_by));
            }
            BookEvent::ClaimOutweighed { consumer, provider, job } => {
                self.claims.forget(*consumer, (*provider, *job));
            }
            BookEvent::ReceiptRefused { provider, at, .. } => {
                self.tell_time(*at);
                self.debts.count_cheat(*provider);
            }
            BookEvent::ServingSet(policy) => self.served.set_policy(policy.clone()),
            BookEvent::Refused { party, code, more, at } => {
                self.tell_time(*at);
                self.refusals.note(self.clock, *party, (code, *more));
            }
            BookEvent::StrangerSponsored { source, amount, at, .. } => {
                self.tell_time(*at);
                self.faucet.give(self.clock, *amount, *source);
            }
            BookEvent::SettlingFailed { at } => {
                self.tell_time(*at);
                self.debts.failed(*at);
            }
            _ => {}
        }
    }

    /// Follows the lattice: payments of this node's chain and claims that are paid.
    pub(crate) fn follow(&mut self, party: PartyId, event: &LatticeEvent) {
        match event {
            LatticeEvent::EntryPending { entry, .. } if entry.entry().chain == party => {
                match &entry.entry().kind {
                    EntryKind::Pay(pay) => {
                        self.debts.pay_pending(entry.entry().seq, entry.id(), pay);
                    }
                    EntryKind::Collect(_) => self.debts.collected(entry.entry().time_ms),
                    _ => {}
                }
            }
            LatticeEvent::EntryFinal { entry, .. } => {
                let (chain, seq) = (entry.entry().chain, entry.entry().seq);
                let pay = match &entry.entry().kind {
                    EntryKind::Pay(pay) => Some(pay),
                    _ => None,
                };
                if let Some(pay) = pay {
                    self.claims.pay(chain, pay);
                }
                if chain == party {
                    self.debts.own_final(seq, entry.id(), pay);
                }
            }
            LatticeEvent::Discarded { entry } => self.debts.discarded(*entry),
            _ => {}
        }
    }

    /// Refuses what the faucet's owner does not let it give.
    pub(crate) fn check_faucet(
        &self,
        now: Timestamp,
        wish: (Trm, u64),
        bounds: &FaucetBounds,
    ) -> Result<(), FaucetRefusal> {
        self.faucet.check(now, wish, bounds)
    }

    /// What other nodes tried here and was refused: the party, the refusal's code, how often.
    pub fn refusals(&self) -> impl Iterator<Item = (PartyId, &str, &Refused)> {
        self.refusals.all()
    }

    /// What the faucet gave within the day before `now`.
    pub fn faucet_given(&self, now: Timestamp) -> Trm {
        self.faucet.given(now)
    }

    pub(super) fn set_price(&mut self, price: Ppm, at: Option<Timestamp>) {
        if let Some(at) = at {
            self.tell_time(at);
            let rose = price > self.price;
            self.price_before = rose.then(|| (self.price, at.plus_ms(PRICE_GRACE_MS)));
        }
        self.price = price;
    }

    /// The lowest price at which orders are taken.
    pub(crate) fn lowest_price(&self, now: Timestamp) -> Ppm {
        match self.price_before {
            Some((before, until)) if now < until => before.min(self.price),
            _ => self.price,
        }
    }

    pub(crate) fn due_payment(&self, now: Timestamp) -> Option<(PartyId, Vec<PayItem>)> {
        self.debts.due(now)
    }

    /// Whether nothing that could not be signed is waited for.
    pub(crate) fn may_settle(&self, now: Timestamp) -> bool {
        self.debts.not_before(Timestamp::default()) <= now
    }

    /// When payments to this node may be collected next.
    pub(crate) fn next_collect(&self) -> Timestamp {
        self.debts.next_collect()
    }

    /// Refuses a job whose id was used before, here or for this node's own agents.
    pub(crate) fn check_new(
        &self,
        now: Timestamp,
        job: JobId,
        consumer: PartyId,
    ) -> Result<(), OrderRefusal> {
        self.served.check_new(job, consumer)?;
        if self.holds.is_known(now, job) { Err(OrderRefusal::JobTaken) } else { Ok(()) }
    }

    pub(crate) fn check_exposure(
        &self,
        now: Timestamp,
        demand: &Demand,
    ) -> Result<(), OrderRefusal> {
        self.served.check_exposure(now, demand)
    }

    pub(crate) fn served_by_order(&self, order: DocumentId) -> Option<(JobId, &ServedJob)> {
        self.served.by_order(order)
    }

    /// Served jobs whose claim is due.
    pub(crate) fn unclaimed(&self, now: Timestamp) -> impl Iterator<Item = (JobId, &ServedJob)> {
        self.served.unclaimed(now)
    }

    /// What this node itself claims of a consumer and has not been paid.
    pub(crate) fn served_claims(&self, consumer: PartyId) -> Option<Trm> {
        let known = self.consumers().get(&consumer).filter(|known| known.claimed > 0)?;
        Some(known.owed)
    }

    /// The claims that give way to a new one: see [`Claims::room`](super::claims::Claims::room).
    pub(crate) fn claim_room(
        &self,
        claim: (PartyId, Claimed),
        left: Trm,
        now: Timestamp,
        means: impl Fn(PartyId) -> Trm,
    ) -> Result<Vec<(PartyId, Claimed)>, ClaimRefusal> {
        self.claims.room(claim, left, now, means)
    }

    /// Those of [`Book::claims_against`] that have been known so long that `consumer` could have
    /// paid.
    pub(crate) fn claims_binding(
        &self,
        consumer: PartyId,
        now: Timestamp,
    ) -> impl Iterator<Item = (Claimed, Trm)> {
        self.claims.binding(consumer, now)
    }

    /// What final entries of `consumer` paid for a job, as far as it is remembered.
    pub(crate) fn paid_for(&self, consumer: PartyId, claimed: Claimed) -> Trm {
        self.claims.paid(consumer, claimed)
    }
}

/// What the book holds of jobs between nodes, for reading.
impl Book {
    /// To whom and how far the node serves.
    pub const fn serving(&self) -> &ServingPolicy {
        self.served.policy()
    }

    /// The jobs served for others that run or are not paid.
    pub const fn served(&self) -> &BTreeMap<JobId, ServedJob> {
        self.served.jobs()
    }

    /// How many served jobs run.
    pub fn served_running(&self) -> usize {
        self.served.running()
    }

    /// How many jobs that are over are remembered because their order could come again: those that
    /// this node did for others and that are paid or owe nothing, and those of its own agents.
    pub fn jobs_remembered(&self) -> usize {
        self.served.done() + self.holds.ended()
    }

    /// The consumers that this node served.
    pub const fn consumers(&self) -> &BTreeMap<PartyId, Consumer> {
        self.served.consumers()
    }

    /// What `consumer` owes here: running jobs at their maximum, ended ones with what is due, and
    /// what was lost with it.
    pub fn owed_by(&self, consumer: PartyId) -> Trm {
        self.consumers().get(&consumer).map_or(Trm::ZERO, |known| known.owed)
    }

    /// What `consumer` may owe here now.
    pub fn exposure_of(&self, consumer: PartyId) -> Trm {
        let settled = self.consumers().get(&consumer).map_or(0, |known| known.settled);
        self.serving().exposure(consumer, settled)
    }

    /// What is left of the day's limit for all consumers that are not enrolled.
    pub fn exposure_unknown_left(&self, now: Timestamp) -> Trm {
        self.served.unknown_left(now)
    }

    /// Paid to this node for served jobs by final entries, ever; saturates at [`Trm::MAX`].
    pub const fn earned_total(&self) -> Trm {
        self.served.totals().0
    }

    /// Served jobs for which something was due, ever.
    pub const fn jobs_served(&self) -> u64 {
        self.served.totals().1
    }

    /// What this node owes others, by job, until the payment is final.
    pub const fn debts(&self) -> &BTreeMap<JobId, Debt> {
        self.debts.by_job()
    }

    /// The sum of the debts that no signed entry pays yet, with the mesh's fee.
    pub const fn debts_open(&self) -> Trm {
        self.debts.open()
    }

    /// How many receipts of each provider were refused.
    pub const fn receipts_refused(&self) -> &BTreeMap<PartyId, u32> {
        self.debts.cheats()
    }

    /// The claims against `consumer` that are neither paid nor lapsed: provider, job, and what is
    /// left to pay.
    pub fn claims_against(
        &self,
        consumer: PartyId,
        now: Timestamp,
    ) -> impl Iterator<Item = (Claimed, Trm)> {
        self.claims.against(consumer, now)
    }

    /// The claim against `consumer` for one job, if it is neither paid nor lapsed.
    pub fn noted_claim(
        &self,
        consumer: PartyId,
        claimed: Claimed,
        now: Timestamp,
    ) -> Option<&NotedClaim> {
        self.claims.noted(consumer, claimed, now)
    }
}
