//! Claims of providers against consumers that do not pay, and the payments that answer them.
//!
//! A final entry's items are not kept in the lattice, so the newest payments are remembered here:
//! a claim for what was paid before it came must not hold back its consumer.

use std::collections::{BTreeMap, VecDeque};

use minicbor::{Decode, Encode};
use tirami_core::{Digest, JobId, PartyId, Timestamp, Trm};

use crate::lattice::Pay;
use crate::refusal::ClaimRefusal;

/// Claims kept at most.
pub const CLAIMS_MAX: u32 = 4_096;
/// Claims against one consumer kept at most.
pub const CONSUMER_CLAIMS_MAX: u32 = 256;
/// Final payments for single jobs remembered at most, the oldest dropped first. About 100 bytes
/// each.
pub const PAYMENTS_REMEMBERED_MAX: usize = 1 << 16;

/// What a provider proves that a consumer owes it for one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct NotedClaim {
    /// What the voucher says.
    #[n(0)]
    pub amount: Trm,
    /// What was paid for the job by final entries.
    #[n(1)]
    pub paid: Trm,
    /// When the claim lapses.
    #[n(2)]
    pub claim_by: Timestamp,
}

/// A provider and its job.
pub type Claimed = (PartyId, JobId);

/// All claims that are not paid, and the newest payments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Claims {
    #[n(0)]
    by_consumer: BTreeMap<PartyId, BTreeMap<Claimed, NotedClaim>>,
    #[n(1)]
    count: u32,
    /// Paid for a job, by the digest of consumer, provider and job.
    #[n(2)]
    paid: BTreeMap<Digest, Trm>,
    /// The keys of `paid`, the oldest first.
    #[n(3)]
    order: VecDeque<Digest>,
}

impl Claims {
    /// The claims against `consumer` that bind at `now`, with what is left to pay of each.
    pub(super) fn against(
        &self,
        consumer: PartyId,
        now: Timestamp,
    ) -> impl Iterator<Item = (Claimed, Trm)> {
        let claims = self.by_consumer.get(&consumer).into_iter().flatten();
        claims
            .filter(move |(_, claim)| now < claim.claim_by)
            .map(|(claimed, claim)| (*claimed, claim.amount.saturating_sub(claim.paid)))
    }

    /// What was paid for a job by final entries, as far as it is remembered.
    pub(super) fn paid(&self, consumer: PartyId, claimed: Claimed) -> Trm {
        self.paid.get(&payment(consumer, claimed)).copied().unwrap_or_default()
    }

    /// The claim known for the same job, if it is for at least as much.
    pub(super) fn knows(&self, consumer: PartyId, claimed: Claimed, amount: Trm) -> bool {
        let known = self.by_consumer.get(&consumer).and_then(|claims| claims.get(&claimed));
        known.is_some_and(|known| known.amount >= amount)
    }

    pub(super) fn check_room(&self, consumer: PartyId, now: Timestamp) -> Result<(), ClaimRefusal> {
        let binding = |claims: &BTreeMap<Claimed, NotedClaim>| {
            claims.values().filter(|claim| now < claim.claim_by).count()
        };
        if self.by_consumer.get(&consumer).map_or(0, binding) >= CONSUMER_CLAIMS_MAX as usize {
            let what = "claims against one consumer";
            return Err(ClaimRefusal::TooMany { what, max: CONSUMER_CLAIMS_MAX });
        }
        let full = self.count >= CLAIMS_MAX;
        if full && self.by_consumer.values().map(binding).sum::<usize>() >= CLAIMS_MAX as usize {
            return Err(ClaimRefusal::TooMany { what: "claims", max: CLAIMS_MAX });
        }
        Ok(())
    }

    pub(super) fn note(
        &mut self,
        now: Timestamp,
        (consumer, claimed): (PartyId, Claimed),
        (amount, claim_by): (Trm, Timestamp),
    ) {
        self.forget_lapsed(now);
        let paid = self.paid(consumer, claimed);
        let claim = NotedClaim { amount, paid, claim_by };
        let claims = self.by_consumer.entry(consumer).or_default();
        if claims.insert(claimed, claim).is_none() {
            self.count = self.count.saturating_add(1);
        }
    }

    /// A final payment of `consumer`.
    pub(super) fn pay(&mut self, consumer: PartyId, pay: &Pay) {
        for item in &pay.items {
            let claimed = (pay.payee, item.job);
            let key = payment(consumer, claimed);
            let paid = self.paid.entry(key).or_default();
            if paid.is_zero() {
                self.order.push_back(key);
            }
            *paid = paid.saturating_add(item.amount);
            if self.order.len() > PAYMENTS_REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.paid.remove(&oldest);
            }
            self.answer(consumer, claimed, item.amount);
        }
    }

    fn answer(&mut self, consumer: PartyId, claimed: Claimed, amount: Trm) {
        let Some(claims) = self.by_consumer.get_mut(&consumer) else { return };
        let Some(claim) = claims.get_mut(&claimed) else { return };
        claim.paid = claim.paid.saturating_add(amount);
        if claim.paid >= claim.amount {
            claims.remove(&claimed);
            self.count = self.count.saturating_sub(1);
        }
        if claims.is_empty() {
            self.by_consumer.remove(&consumer);
        }
    }

    /// Claims are few and seldom, so all are looked at.
    fn forget_lapsed(&mut self, now: Timestamp) {
        self.by_consumer.retain(|_, claims| {
            claims.retain(|_, claim| now < claim.claim_by);
            !claims.is_empty()
        });
        let count: usize = self.by_consumer.values().map(BTreeMap::len).sum();
        self.count = u32::try_from(count).unwrap_or(u32::MAX);
    }

    pub(super) fn is_consistent(&self) -> bool {
        let count: usize = self.by_consumer.values().map(BTreeMap::len).sum();
        count == self.count as usize
            && count <= CLAIMS_MAX as usize
            && self.paid.len() == self.order.len()
            && self.order.len() <= PAYMENTS_REMEMBERED_MAX
    }
}

fn payment(consumer: PartyId, (provider, job): Claimed) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(consumer.as_bytes()).update(provider.as_bytes()).update(job.as_bytes());
    Digest::from_bytes(*hasher.finalize().as_bytes())
}
