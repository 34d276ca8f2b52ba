//! Claims of providers against consumers that do not pay, and the payments that answer them.
//!
//! A final entry's items are not kept in the lattice, so the newest payments are remembered here:
//! a claim for what was paid before it came must not hold back its consumer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use tirami_core::{Digest, JobId, PartyId, Timestamp, Trm};

use super::served::DUN_MS;
use crate::lattice::Pay;
use crate::refusal::ClaimRefusal;

/// Claims kept at most.
pub const CLAIMS_MAX: u32 = 4_096;
/// Claims against one consumer kept at most.
pub const CONSUMER_CLAIMS_MAX: u32 = 256;
/// Claims of one provider kept at most.
pub const PROVIDER_CLAIMS_MAX: u32 = 256;
/// Final payments for single jobs remembered at most, the oldest of the consumer with the most
/// dropped first: nobody's payments are forgotten because others pay a lot. About 60 bytes each.
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
    /// From when the claim holds back its consumer: [`DUN_MS`] after it came, so that a consumer
    /// that was about to pay has paid; sooner when it lapses before twice that time. None binds at
    /// once.
    #[n(3)]
    pub binds_at: Option<Timestamp>,
}

/// A provider and its job.
pub type Claimed = (PartyId, JobId);

impl NotedClaim {
    const fn left(&self) -> Trm {
        self.amount.saturating_sub(self.paid)
    }
}

/// All claims that are not paid, and the newest payments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Claims {
    #[n(0)]
    by_consumer: BTreeMap<PartyId, BTreeMap<Claimed, NotedClaim>>,
    #[n(1)]
    count: u32,
    /// Of each consumer what it paid.
    #[cbor(n(7), default)]
    paid: BTreeMap<PartyId, Payments>,
    /// Follows from `paid`: how many payments of each consumer are remembered.
    #[cbor(n(5), default)]
    sizes: BTreeSet<(u32, PartyId)>,
    /// Follows from `paid`: how many payments are remembered in all.
    #[cbor(n(6), default)]
    remembered: u32,
}

/// The newest final payments of one consumer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Payments {
    #[n(0)]
    amounts: BTreeMap<PaidFor, Trm>,
    /// The keys of `amounts`, the oldest first.
    #[n(1)]
    order: VecDeque<PaidFor>,
}

/// A provider and its job, by the first half of a digest of both: of what a mesh pays much is
/// remembered, and nobody finds two with the same.
type PaidFor = ByteArray<16>;

fn paid_for((provider, job): Claimed) -> PaidFor {
    let digest = Digest::of(&[provider.as_bytes().as_slice(), job.as_bytes()].concat());
    let mut half = [0; 16];
    half.copy_from_slice(&digest.as_bytes()[..16]);
    half.into()
}

impl Payments {
    fn count(&self) -> u32 {
        u32::try_from(self.order.len()).unwrap_or(u32::MAX)
    }
}

impl Claims {
    /// The claims against `consumer` that have not lapsed at `now`, with what is left to pay of
    /// each.
    pub(super) fn against(
        &self,
        consumer: PartyId,
        now: Timestamp,
    ) -> impl Iterator<Item = (Claimed, Trm)> {
        self.known(consumer, now).map(|(claimed, claim)| (claimed, claim.left()))
    }

    /// Those of [`Claims::against`] that hold back the consumer at `now`.
    pub(super) fn binding(
        &self,
        consumer: PartyId,
        now: Timestamp,
    ) -> impl Iterator<Item = (Claimed, Trm)> {
        let known = self.known(consumer, now);
        known
            .filter(move |(_, claim)| claim.binds_at.is_none_or(|at| at <= now))
            .map(|(claimed, claim)| (claimed, claim.left()))
    }

    fn known(
        &self,
        consumer: PartyId,
        now: Timestamp,
    ) -> impl Iterator<Item = (Claimed, &NotedClaim)> {
        let claims = self.by_consumer.get(&consumer).into_iter().flatten();
        claims
            .filter(move |(_, claim)| now < claim.claim_by)
            .map(|(claimed, claim)| (*claimed, claim))
    }

    /// What was paid for a job by final entries, as far as it is remembered.
    pub(super) fn paid(&self, consumer: PartyId, claimed: Claimed) -> Trm {
        let payments = self.paid.get(&consumer);
        payments.and_then(|paid| paid.amounts.get(&paid_for(claimed))).copied().unwrap_or_default()
    }

    /// The claim known for the same job, if it is for at least as much.
    pub(super) fn knows(&self, consumer: PartyId, claimed: Claimed, amount: Trm) -> bool {
        let known = self.by_consumer.get(&consumer).and_then(|claims| claims.get(&claimed));
        known.is_some_and(|known| known.amount >= amount)
    }

    pub(super) fn check_room(
        &self,
        (consumer, provider): (PartyId, PartyId),
        now: Timestamp,
    ) -> Result<(), ClaimRefusal> {
        let lasting = |(_, claim): &(&Claimed, &NotedClaim)| now < claim.claim_by;
        let against = self.by_consumer.get(&consumer).into_iter().flatten();
        if against.filter(lasting).count() >= CONSUMER_CLAIMS_MAX as usize {
            let what = "claims against one consumer";
            return Err(ClaimRefusal::TooMany { what, max: CONSUMER_CLAIMS_MAX });
        }
        let all = self.by_consumer.values().flatten().filter(lasting);
        let (mut count, mut of_provider) = (0, 0);
        for ((claimant, _), _) in all {
            count += 1;
            of_provider += u32::from(*claimant == provider);
        }
        if of_provider >= PROVIDER_CLAIMS_MAX {
            let what = "claims of one provider";
            return Err(ClaimRefusal::TooMany { what, max: PROVIDER_CLAIMS_MAX });
        }
        if count >= CLAIMS_MAX {
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
        let latest = Timestamp::from_ms(claim_by.ms().saturating_sub(DUN_MS)).max(now);
        let claims = self.by_consumer.entry(consumer).or_default();
        // A higher voucher of a job that is claimed already buys no time.
        let before = claims.get(&claimed).map(|known| known.binds_at);
        let binds_at = before.unwrap_or(Some(now.plus_ms(DUN_MS).min(latest)));
        if claims.insert(claimed, NotedClaim { amount, paid, claim_by, binds_at }).is_none() {
            self.count = self.count.saturating_add(1);
        }
    }

    /// A final payment of `consumer`.
    pub(super) fn pay(&mut self, consumer: PartyId, pay: &Pay) {
        for item in &pay.items {
            let claimed = (pay.payee, item.job);
            self.remember(consumer, claimed, item.amount);
            self.answer(consumer, claimed, item.amount);
        }
    }

    fn remember(&mut self, consumer: PartyId, claimed: Claimed, amount: Trm) {
        let (payments, claimed) = (self.paid.entry(consumer).or_default(), paid_for(claimed));
        if let Some(paid) = payments.amounts.get_mut(&claimed) {
            *paid = paid.saturating_add(amount);
            return;
        }
        let before = payments.count();
        payments.amounts.insert(claimed, amount);
        payments.order.push_back(claimed);
        self.sizes.remove(&(before, consumer));
        self.sizes.insert((payments.count(), consumer));
        self.remembered = self.remembered.saturating_add(1);
        if self.remembered as usize > PAYMENTS_REMEMBERED_MAX {
            self.forget_payment();
        }
    }

    /// Forgets the oldest payment of the consumer with the most.
    fn forget_payment(&mut self) {
        let Some((count, consumer)) = self.sizes.pop_last() else { return };
        let Some(payments) = self.paid.get_mut(&consumer) else { return };
        if let Some(oldest) = payments.order.pop_front() {
            payments.amounts.remove(&oldest);
        }
        if payments.order.is_empty() {
            self.paid.remove(&consumer);
        } else {
            self.sizes.insert((count.saturating_sub(1), consumer));
        }
        self.remembered = self.remembered.saturating_sub(1);
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
            && self.remembered as usize <= PAYMENTS_REMEMBERED_MAX
            && self.remembered == self.paid.values().map(Payments::count).sum::<u32>()
            && self.paid.len() == self.sizes.len()
            && self.paid.iter().all(|(consumer, payments)| {
                payments.amounts.len() == payments.order.len()
                    && self.sizes.contains(&(payments.count(), *consumer))
            })
    }
}

#[cfg(test)]
mod tests {
    use tirami_core::Ppm;

    use super::*;
    use crate::lattice::PayItem;

    fn party(number: u8) -> PartyId {
        PartyId::from_bytes([number; 32])
    }

    fn job(number: u32) -> JobId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        JobId::from_bytes(bytes)
    }

    #[test]
    fn payments_of_others_push_out_nobodys_memory() {
        let (debtor, friend, provider) = (party(1), party(2), party(3));
        let pay = |first: u32, count: u32| {
            let amount = Trm::from_micro(1);
            let items = (first..first + count).map(|n| PayItem { job: job(n), amount });
            Pay::new(provider, items.collect(), Ppm::ZERO)
        };
        let mut claims = Claims::default();
        claims.pay(debtor, &pay(0, 3));
        for batch in 0..PAYMENTS_REMEMBERED_MAX as u32 / 64 + 2 {
            claims.pay(friend, &pay(batch * 64, 64));
        }
        assert!((0..3).all(|n| !claims.paid(debtor, (provider, job(n))).is_zero()));
        assert!(claims.paid(friend, (provider, job(0))).is_zero(), "its own oldest gave way");
        assert_eq!(claims.remembered as usize, PAYMENTS_REMEMBERED_MAX);
        assert!(claims.is_consistent());
    }
}
