//! Claims: a provider that was not paid shows the consumer's voucher, and witnesses hold back the
//! consumer's entries until it pays (MONEY §8).

use std::collections::BTreeMap;

use tirami_core::{DocumentId, PartyId, PublicKey, Signed, Timestamp, Trm, decode_body};

use super::jobs::record;
use super::{Decision, Keyring, Ledger};
use crate::Rejection;
use crate::book::{CLAIM_AHEAD_MAX_MS, Claimed};
use crate::command::Outcome;
use crate::documents::{Claim, Order, SignedBytes, Voucher};
use crate::event::{BookEvent, DocumentKind, Event};
use crate::lattice::{AcknowledgeRefusal, EntryKind};
use crate::refusal::ClaimRefusal;

/// Claims that one tick makes at most; the next one goes on.
const CLAIMS_PER_TICK: usize = 64;

impl Ledger {
    /// The claims that are due. They are signed, stored and sent to the witnesses.
    pub(super) fn dun(&self, now: Timestamp, keys: &Keyring) -> Vec<Event> {
        let unclaimed = self.book.unclaimed(now).take(CLAIMS_PER_TICK);
        let made = unclaimed.filter_map(|(job, served)| {
            let claim = self.sign(&keys.node, served.claim()?).ok()?;
            let made = Event::Book(BookEvent::ClaimMade { job, at: now });
            Some([made, record(DocumentKind::Claim, job, &claim)])
        });
        made.flatten().collect()
    }

    pub(super) fn receive_claim(
        &self,
        now: Timestamp,
        order: &SignedBytes,
        voucher: &SignedBytes,
    ) -> Result<Decision, Rejection> {
        let (order, voucher) = self.proven_claim(order, voucher)?;
        let Order { consumer, provider, job, claim_by, .. } = *order.body();
        let amount = voucher.body().amount;
        if self.lattice.chain(consumer).is_none() {
            return Err(ClaimRefusal::UnknownConsumer.into());
        }
        if claim_by <= now {
            return Err(ClaimRefusal::Lapsed.into());
        }
        if claim_by.since_ms(now) > CLAIM_AHEAD_MAX_MS {
            // No provider takes such an order.
            return Err(ClaimRefusal::Malformed.into());
        }
        if self.book.paid_for(consumer, (provider, job)) >= amount {
            return Err(ClaimRefusal::Paid.into());
        }
        let noted = self.book.noted_claim(consumer, (provider, job), now);
        if noted.is_some_and(|noted| !noted.is_raised_by(amount, claim_by)) {
            return Ok(Decision { events: Vec::new(), outcome: Outcome::Done });
        }
        // The debtor signs orders: no other one of it ends or shrinks what is claimed.
        let amount = noted.map_or(amount, |noted| noted.amount.max(amount));
        let claim_by = noted.map_or(claim_by, |noted| noted.claim_by.max(claim_by));
        let left = amount.saturating_sub(self.book.paid_for(consumer, (provider, job)));
        let means = |party| self.means(party);
        let outweighed = self.book.claim_room((consumer, (provider, job)), left, now, means)?;
        let gone =
            |(consumer, (provider, job))| BookEvent::ClaimOutweighed { consumer, provider, job };
        let noted = BookEvent::ClaimNoted { consumer, provider, job, amount, claim_by, at: now };
        Ok(Decision::done(outweighed.into_iter().map(gone).chain([noted])))
    }

    /// Whether a claim, of which nothing is verified, says nothing that is worth a record beside
    /// what was noted or paid for the same job.
    pub fn knows_claim(&self, now: Timestamp, order: &Order, voucher: &Voucher) -> bool {
        let claimed = (order.provider, order.job);
        let noted = self.book.noted_claim(order.consumer, claimed, now);
        noted.is_some_and(|noted| !noted.is_raised_by(voucher.amount, order.claim_by))
            || self.book.paid_for(order.consumer, claimed) >= voucher.amount
    }

    /// Whether a claim of this node against `consumer` proves anything: what an old key signed is
    /// void once a new one is in force (MONEY §5).
    pub fn claim_stands(&self, consumer: PartyId, claim: &Claim) -> bool {
        self.key_of(consumer) == PublicKey::from(consumer)
            || self.proven_claim(&claim.order, &claim.voucher).is_ok()
    }

    /// What a party could pay by its final entries: its line and what it has.
    fn means(&self, party: PartyId) -> Trm {
        let lattice = &self.lattice;
        let balance = lattice.chain(party).map_or(0, |chain| chain.balance());
        let room = i128::from(balance) + lattice.line(party).signed();
        Trm::from_micro(u64::try_from(room.max(0)).unwrap_or(u64::MAX))
    }

    fn proven_claim(
        &self,
        order: &SignedBytes,
        voucher: &SignedBytes,
    ) -> Result<(Signed<Order>, Signed<Voucher>), ClaimRefusal> {
        let body: Order = decode_body(&order.bytes).map_err(|_| ClaimRefusal::Malformed)?;
        decode_body::<Voucher>(&voucher.bytes).map_err(|_| ClaimRefusal::Malformed)?;
        let (mesh, key) = (self.lattice.mesh(), self.key_of(body.consumer));
        let order: Signed<Order> = Signed::verify(mesh, key, order.bytes.clone(), order.signature)
            .map_err(|_| ClaimRefusal::BadSignature)?;
        let voucher: Signed<Voucher> =
            Signed::verify(mesh, key, voucher.bytes.clone(), voucher.signature)
                .map_err(|_| ClaimRefusal::BadSignature)?;
        let fits = voucher.body().order == order.id()
            && voucher.body().amount <= body.max_amount
            && body.provider != body.consumer;
        if fits { Ok((order, voucher)) } else { Err(ClaimRefusal::Malformed) }
    }

    /// While a claim against a chain binds and is not paid, a witness acknowledges of it only
    /// collects, or a run of entries that pays it.
    pub(super) fn check_claims(
        &self,
        now: Timestamp,
        entry: DocumentId,
    ) -> Result<(), AcknowledgeRefusal> {
        let Some(pending) = self.lattice.pending_entry(entry) else { return Ok(()) };
        let entry = pending.entry().entry();
        let mut claims = self.book.claims_binding(entry.chain, now).peekable();
        if claims.peek().is_none() || matches!(entry.kind, EntryKind::Collect(_)) {
            return Ok(());
        }
        let mut run: BTreeMap<Claimed, Trm> = BTreeMap::new();
        for pending in self.lattice.pending_of(entry.chain) {
            if let EntryKind::Pay(pay) = &pending.entry().entry().kind {
                for item in &pay.items {
                    let paid = run.entry((pay.payee, item.job)).or_default();
                    *paid = paid.saturating_add(item.amount);
                }
            }
        }
        let mut unpaid =
            claims.filter(|(claimed, left)| run.get(claimed).is_none_or(|paid| paid < left));
        match unpaid.next() {
            Some(((provider, job), left)) => {
                Err(AcknowledgeRefusal::UnpaidClaim { provider, job, left })
            }
            None => Ok(()),
        }
    }
}
