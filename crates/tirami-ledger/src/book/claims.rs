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
/// A higher voucher of a claimed job counts when it adds one part in so many: a debtor and its
/// friends make few records of one job.
const RAISE_PART: u64 = 10;
/// What there is too much of, by bound.
const OF_CONSUMER: (u32, &str) = (CONSUMER_CLAIMS_MAX, "claims against one consumer");
const OF_PROVIDER: (u32, &str) = (PROVIDER_CLAIMS_MAX, "claims of one provider");
const IN_ALL: (u32, &str) = (CLAIMS_MAX, "claims");
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
    /// Whether a claim for the same job adds what is worth a record: a tenth more, or ten more
    /// minutes.
    pub fn is_raised_by(&self, amount: Trm, claim_by: Timestamp) -> bool {
        let part = Trm::from_micro((self.amount.micro() / RAISE_PART).max(1));
        amount >= self.amount.saturating_add(part) || claim_by >= self.claim_by.plus_ms(DUN_MS)
    }

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

    /// The claim known for a job, if it has not lapsed at `now`.
    pub(super) fn noted(
        &self,
        consumer: PartyId,
        claimed: Claimed,
        now: Timestamp,
    ) -> Option<&NotedClaim> {
        let known = self.by_consumer.get(&consumer).and_then(|claims| claims.get(&claimed));
        known.filter(|known| now < known.claim_by)
    }

    /// The claims that give way to a new one of which `left` is to pay, and of which `means` says
    /// what each consumer could pay.
    ///
    /// Where there is no room, the claim that is worth least gives way to one that is worth more: a
    /// claim is worth what is left of it, but no more than its share of what its consumer could
    /// pay, of which all claims against it have an equal part as far as they need it. So nobody
    /// keeps the claims of others out with consumers that have nothing, with many claims against
    /// one that has something, or with small sums. Among the claims against one consumer the shares
    /// do not count.
    pub(super) fn room(
        &self,
        (consumer, claimed): (PartyId, Claimed),
        left: Trm,
        now: Timestamp,
        means: impl Fn(PartyId) -> Trm,
    ) -> Result<Vec<(PartyId, Claimed)>, ClaimRefusal> {
        let claims = self.by_consumer.get(&consumer);
        if claims.is_some_and(|claims| claims.contains_key(&claimed)) {
            return Ok(Vec::new());
        }
        let Some((max, what)) = self.reached(consumer, claimed.0, now) else {
            return Ok(Vec::new());
        };
        if left.min(means(consumer)).is_zero() {
            // Nothing is worth less.
            return Err(ClaimRefusal::TooMany { what, max });
        }
        let mut all = Vec::with_capacity(self.count as usize + 1);
        for debtor in self.by_consumer.keys().filter(|debtor| **debtor != consumer) {
            weigh(*debtor, self.against(*debtor, now), means(*debtor), &mut all);
        }
        let new = (claimed, left);
        let claims = self.against(consumer, now).chain([new]);
        weigh(consumer, claims, means(consumer), &mut all);
        let is_new = |claim: &Weighed| claim.debtor == consumer && claim.claimed == claimed;
        let Some(at) = all.iter().position(is_new) else { return Ok(Vec::new()) };
        let new = all.swap_remove(at);
        let mut gone = Vec::new();
        for ((max, what), worth, among) in [
            (
                OF_CONSUMER,
                Weighed::alone as fn(&Weighed) -> Trm,
                Weighed::has_debtor_of as fn(&Weighed, &Weighed) -> bool,
            ),
            (OF_PROVIDER, Weighed::shared, Weighed::is_by_same),
            (IN_ALL, Weighed::shared, |_, _| true),
        ] {
            let those = all.iter().enumerate().filter(|(_, claim)| among(claim, &new));
            if those.clone().count() < max as usize {
                continue;
            }
            let order = |claim: &Weighed| (worth(claim), claim.debtor, claim.claimed);
            let least = those.min_by_key(|(_, claim)| order(claim));
            let least = least.filter(|(_, claim)| worth(claim) < worth(&new));
            let (at, _) = least.ok_or(ClaimRefusal::TooMany { what, max })?;
            let claim = all.swap_remove(at);
            gone.push((claim.debtor, claim.claimed));
        }
        Ok(gone)
    }

    /// The first bound that leaves no room for one more claim of these two, if one does.
    fn reached(
        &self,
        consumer: PartyId,
        provider: PartyId,
        now: Timestamp,
    ) -> Option<(u32, &'static str)> {
        let (mut against, mut by, mut all) = (0_u32, 0_u32, 0_u32);
        for (debtor, claims) in &self.by_consumer {
            for ((claimant, _), claim) in claims {
                let counts = u32::from(now < claim.claim_by);
                all += counts;
                against += counts * u32::from(*debtor == consumer);
                by += counts * u32::from(*claimant == provider);
            }
        }
        let counted = [(against, OF_CONSUMER), (by, OF_PROVIDER), (all, IN_ALL)];
        counted.into_iter().find(|(count, (max, _))| count >= max).map(|(_, bound)| bound)
    }

    /// Forgets a claim that gave way to another.
    pub(super) fn forget(&mut self, consumer: PartyId, claimed: Claimed) {
        let Some(claims) = self.by_consumer.get_mut(&consumer) else { return };
        if claims.remove(&claimed).is_some() {
            self.count = self.count.saturating_sub(1);
        }
        if claims.is_empty() {
            self.by_consumer.remove(&consumer);
        }
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
            self.forget(consumer, claimed);
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

/// What a claim is worth beside others.
struct Weighed {
    debtor: PartyId,
    claimed: Claimed,
    /// What is left of it, but no more than its consumer could pay.
    alone: Trm,
    /// The same, but no more than its share of what its consumer could pay.
    shared: Trm,
}

impl Weighed {
    const fn alone(&self) -> Trm {
        self.alone
    }

    const fn shared(&self) -> Trm {
        self.shared
    }

    fn has_debtor_of(&self, other: &Self) -> bool {
        self.debtor == other.debtor
    }

    fn is_by_same(&self, other: &Self) -> bool {
        self.claimed.0 == other.claimed.0
    }
}

/// Adds the `claims` against `debtor`, who could pay `means`, to `all`.
fn weigh(
    debtor: PartyId,
    claims: impl Iterator<Item = (Claimed, Trm)>,
    means: Trm,
    all: &mut Vec<Weighed>,
) {
    let mut claims: Vec<(Claimed, Trm)> = claims.collect();
    claims.sort_unstable_by_key(|(claimed, left)| (*left, *claimed));
    // Those that need less than an equal part leave the rest of it to the others.
    let mut rest = means.micro();
    for (before, (claimed, left)) in claims.iter().enumerate() {
        let sharers = u64::try_from(claims.len() - before).unwrap_or(u64::MAX);
        let shared = (*left).min(Trm::from_micro(rest / sharers));
        rest -= shared.micro();
        let alone = (*left).min(means);
        all.push(Weighed { debtor, claimed: *claimed, alone, shared });
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

    #[test]
    fn where_claims_are_too_many_the_least_worth_gives_way() {
        let now = Timestamp::from_ms(1);
        let claim_by = now.plus_ms(1_000);
        let number = |id: PartyId| u64::from(id.as_bytes()[0]);
        // Consumers from 100 on have nothing; the others could pay 1 000 times their number.
        let means = |id: PartyId| match number(id) {
            number @ 0..100 => Trm::from_micro(number * 1_000),
            _ => Trm::ZERO,
        };
        let of = |provider: u8, n: u32| (party(provider), job(n));
        let one = |micro| Trm::from_micro(micro);
        let note = |claims: &mut Claims, debtor: u8, claimed: Claimed, micro: u64| {
            let room = claims.room((party(debtor), claimed), one(micro), now, means)?;
            for (debtor, claimed) in &room {
                claims.forget(*debtor, *claimed);
            }
            claims.note(now, (party(debtor), claimed), (one(micro), claim_by));
            assert!(claims.is_consistent());
            Ok::<_, ClaimRefusal>(room)
        };
        let refused = |what, max| Err(ClaimRefusal::TooMany { what, max });
        let mut claims = Claims::default();
        // Sixteen keys with nothing fill everything.
        for n in 0..CLAIMS_MAX {
            let (debtor, provider) = (100 + (n / 256) as u8, 200 + (n / 256) as u8);
            assert_eq!(note(&mut claims, debtor, of(provider, n), 50), Ok(Vec::new()));
        }
        // One more of theirs finds no room, whatever it says; one against somebody with means does.
        let more = note(&mut claims, 150, of(250, 0), 1 << 40);
        assert_eq!(more, refused("claims", CLAIMS_MAX));
        let honest = note(&mut claims, 7, of(9, 0), 5);
        assert_eq!(honest, Ok(vec![(party(100), of(200, 0))]));
        // A consumer's friends do not hold its place with small claims.
        for n in 1..CONSUMER_CLAIMS_MAX {
            assert_eq!(note(&mut claims, 7, of(20, n), 1).map(|gone| gone.len()), Ok(1));
        }
        let what = "claims against one consumer";
        assert_eq!(note(&mut claims, 7, of(9, 1), 1), refused(what, CONSUMER_CLAIMS_MAX));
        assert_eq!(note(&mut claims, 7, of(9, 1), 3), Ok(vec![(party(7), of(20, 1))]));
        // A higher voucher of a claimed job takes no room.
        assert_eq!(note(&mut claims, 7, of(9, 1), 4), Ok(Vec::new()));
        // A provider's least gives way to its own.
        for n in 1_000..1_002 {
            assert_eq!(note(&mut claims, 8, of(20, n), 2).map(|gone| gone.len()), Ok(1));
        }
        let what = "claims of one provider";
        assert_eq!(note(&mut claims, 8, of(20, 2_000), 1), refused(what, PROVIDER_CLAIMS_MAX));
    }

    #[test]
    fn many_claims_against_one_consumer_are_worth_no_more_than_it_could_pay() {
        let now = Timestamp::from_ms(1);
        let claim_by = now.plus_ms(1_000);
        // Sixteen sponsored keys could pay 1 000 each; so could the honest provider's debtor.
        let means = |_| Trm::from_micro(1_000);
        let mut claims = Claims::default();
        for n in 0..CLAIMS_MAX {
            let (debtor, provider) = (100 + (n / 256) as u8, 200 + (n / 256) as u8);
            let claimed = (party(provider), job(n));
            claims.note(now, (party(debtor), claimed), (Trm::from_micro(1_000), claim_by));
        }
        let room = |debtor: u8, micro: u64| {
            let claimed = (party(9), job(0));
            claims.room((party(debtor), claimed), Trm::from_micro(micro), now, means)
        };
        assert_eq!(room(7, 4).map(|gone| gone.len()), Ok(1), "four are more than 1 000 ÷ 256");
        assert!(room(7, 3).is_err(), "three are not");
        assert!(room(100, 1_000).is_err(), "nor is one more against a key that has many");
        assert!(room(100, 4).is_err());
    }

    #[test]
    fn small_claims_leave_their_part_to_larger_ones() {
        let claims = [(1, 5), (2, 100), (3, 40)].map(|(n, left)| {
            let claimed = (party(9), job(n));
            (claimed, Trm::from_micro(left))
        });
        let mut all = Vec::new();
        weigh(party(1), claims.into_iter(), Trm::from_micro(75), &mut all);
        let shared: Vec<u64> = all.iter().map(|claim| claim.shared.micro()).collect();
        assert_eq!(shared, [5, 35, 35]);
    }
}
