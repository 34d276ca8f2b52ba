//! Jobs that this node does for others: whose order is taken, what its consumer signed for, and
//! what is due in the end (MONEY §8, §9).

use tirami_core::{
    Digest, JobId, ModelShape, PartyId, Signature, Signed, Timestamp, Trm, decode_body,
};

use super::jobs::record;
use super::{Decision, Keyring, Ledger};
use crate::Rejection;
use crate::book::{
    BUILD_MAX_CHARS, CLAIM_AHEAD_MAX_MS, CLAIMED_DOCUMENT_BYTES_MAX, Demand, JOB_TOKENS_MAX,
    ORDER_AHEAD_MAX_MS, START_WITHIN_MS, ServedJob, WINDOW_TOKENS, check_shape,
};
use crate::command::{AcceptOrder, FinishJob, Outcome};
use crate::documents::{Order, Receipt, SignedBytes, Voucher};
use crate::event::{BookEvent, DocumentKind, Event, ServedAccepted, ServedFinished};
use crate::refusal::{OrderRefusal, VoucherRefusal};

impl Ledger {
    pub(super) fn accept_order(
        &self,
        now: Timestamp,
        accept: &AcceptOrder,
    ) -> Result<Decision, Rejection> {
        self.book.check_kill()?;
        check_shape(&accept.shape)?;
        let order = self.proven_order(accept)?;
        self.check_standing(now, order.body().consumer)?;
        self.check_offer(now, order.body())?;
        check_terms(accept, order.body())?;
        let completion_max = affordable(accept, order.body())?;
        self.check_risk(now, accept.head_at, order.body())?;
        let body = order.body();
        let accepted = ServedAccepted {
            job: body.job,
            consumer: body.consumer,
            order: order.id(),
            order_bytes: SignedBytes::from(&order),
            model: body.model,
            shape: accept.shape,
            price: body.price,
            prompt_tokens: accept.prompt_tokens,
            completion_max,
            max_amount: body.max_amount,
            claim_by: body.claim_by,
            enrolled: self.is_enrolled(body.consumer),
            at: now,
        };
        let outcome = Outcome::OrderAccepted {
            order: order.id(),
            job: body.job,
            consumer: body.consumer,
            completion_max,
            window_tokens: WINDOW_TOKENS,
        };
        let accepted = Event::Book(BookEvent::ServedAccepted(accepted));
        let events = vec![accepted, record(DocumentKind::Order, body.job, &order)];
        Ok(Decision { events, outcome })
    }

    /// Looks at a consumer and its order before the request costs any work: whether it may order
    /// here at all, whether the order is one that could be taken for some request, and whether what
    /// the consumer owes leaves room for it. `least` is the shape of the model that is ordered and
    /// the completion tokens of the shortest job; none where the model is not served.
    ///
    /// # Errors
    ///
    /// [`OrderRefusal`]; [`crate::command::Command::AcceptOrder`] looks at everything again.
    pub fn check_consumer(
        &self,
        now: Timestamp,
        order: &Order,
        head_at: Timestamp,
        least: Option<(ModelShape, u32)>,
    ) -> Result<(), OrderRefusal> {
        let now = now.max(self.book.clock());
        if order.provider != self.party {
            return Err(OrderRefusal::NotForMe { provider: order.provider });
        }
        if order.consumer == self.party {
            return Err(OrderRefusal::SelfOrder);
        }
        self.check_standing(now, order.consumer)?;
        self.check_offer(now, order)?;
        let (shape, completion) = least.ok_or(OrderRefusal::Model)?;
        let tokens = completion.saturating_add(1);
        check_max(order, shape.work(0, tokens).cost_ceil(order.price))?;
        self.check_risk(now, head_at, order)
    }

    /// The order is one, for this node, and its consumer's.
    fn proven_order(&self, accept: &AcceptOrder) -> Result<Signed<Order>, OrderRefusal> {
        if self.book.serving().paused {
            return Err(OrderRefusal::Paused);
        }
        if accept.order.len() > CLAIMED_DOCUMENT_BYTES_MAX {
            return Err(OrderRefusal::Malformed);
        }
        let body: Order = decode_body(&accept.order).map_err(|_| OrderRefusal::Malformed)?;
        if body.provider != self.party {
            return Err(OrderRefusal::NotForMe { provider: body.provider });
        }
        let (mesh, key) = (self.lattice.mesh(), self.key_of(body.consumer));
        let (bytes, signature) = (accept.order.clone(), accept.signature);
        let order = Signed::verify_unless(accept.checked, mesh, key, bytes, signature)
            .map_err(|_| OrderRefusal::BadSignature)?;
        if body.consumer == self.party { Err(OrderRefusal::SelfOrder) } else { Ok(order) }
    }

    /// The consumer is a party of the mesh that is served here.
    fn check_standing(&self, now: Timestamp, consumer: PartyId) -> Result<(), OrderRefusal> {
        let chain = self.lattice.chain(consumer);
        let chain = chain.ok_or(OrderRefusal::UnknownConsumer { consumer })?;
        if chain.frozen().is_some() {
            return Err(OrderRefusal::Frozen);
        }
        if self.lattice.double_sign_proof(consumer).is_some() {
            return Err(OrderRefusal::DoubleSigned);
        }
        if self.lattice.has_defaulted(consumer) {
            return Err(OrderRefusal::Defaulted);
        }
        let known = self.book.consumers().get(&consumer);
        let defaulted = known.filter(|known| known.defaulted).map(|known| known.lost);
        let claimed = self.book.served_claims(consumer);
        let claimed = claimed
            .or_else(|| self.book.claims_binding(consumer, now).map(|(_, left)| left).next());
        if let Some(owed) = defaulted.or(claimed) {
            return Err(OrderRefusal::UnpaidClaim { owed });
        }
        if self.book.serving().blocked.contains(&consumer) {
            return Err(OrderRefusal::Blocked);
        }
        Ok(())
    }

    /// Times and price are as this node serves.
    fn check_offer(&self, now: Timestamp, order: &Order) -> Result<(), OrderRefusal> {
        if order.start_by <= now {
            return Err(OrderRefusal::Expired { start_by: order.start_by });
        }
        let start_in = order.start_by.since_ms(now);
        // A consumer's clock may be a little ahead; its own orders are at the limit.
        let is_near = start_in <= START_WITHIN_MS + ORDER_AHEAD_MAX_MS
            && order.claim_by.since_ms(now) <= CLAIM_AHEAD_MAX_MS
            && order.start_by <= order.claim_by;
        if !is_near {
            return Err(OrderRefusal::TooFar);
        }
        let price = self.book.lowest_price(now);
        if order.price < price || order.cached_price != order.price {
            return Err(OrderRefusal::Price { price: self.book.price() });
        }
        Ok(())
    }

    /// What is risked with the consumer is within the limits.
    fn check_risk(
        &self,
        now: Timestamp,
        head_at: Timestamp,
        order: &Order,
    ) -> Result<(), OrderRefusal> {
        let consumer = order.consumer;
        self.book.check_new(now, order.job, consumer)?;
        // A payment that is remembered would answer the claim for another job with this id.
        if !self.book.paid_for(consumer, (order.provider, order.job)).is_zero() {
            return Err(OrderRefusal::JobTaken);
        }
        if head_at.plus_ms(self.book.serving().fresh_ms) <= now {
            return Err(OrderRefusal::StaleHead);
        }
        let owed = self.book.owed_by(consumer);
        let left = self.covered(consumer) - owed.signed();
        if left < order.max_amount.signed() {
            let left = Trm::from_micro(u64::try_from(left.max(0)).unwrap_or(u64::MAX));
            return Err(OrderRefusal::Balance { owed, left });
        }
        let enrolled = self.is_enrolled(consumer);
        let demand = Demand { consumer, max_amount: order.max_amount, enrolled };
        self.book.check_exposure(now, &demand)
    }

    /// What a consumer's chain can still pay with, in µTRM: its final balance or the one it
    /// signed last, whichever is less, and its lines. What it signed to this node and is not final
    /// is owed here still, so it is not taken off twice.
    fn covered(&self, consumer: PartyId) -> i128 {
        let lattice = &self.lattice;
        let balance = lattice.chain(consumer).map_or(0, crate::lattice::Chain::balance);
        let to_me = lattice.pending_of(consumer).filter_map(|pending| {
            let payout = pending.effect().payout.filter(|payout| payout.payee == self.party);
            payout.map(|payout| payout.amount.signed())
        });
        let signed = i128::from(lattice.signed_balance(consumer)) + to_me.sum::<i128>();
        i128::from(balance).min(signed) + lattice.floor(consumer).signed()
    }

    /// Only the registrar grants lines.
    fn is_enrolled(&self, consumer: PartyId) -> bool {
        !self.lattice.line(consumer).is_zero()
    }

    pub(super) fn take_voucher(
        &self,
        (bytes, signature): (&[u8], Signature),
        (stream, sent): (Digest, u32),
    ) -> Result<Decision, Rejection> {
        if bytes.len() > CLAIMED_DOCUMENT_BYTES_MAX {
            return Err(VoucherRefusal::Malformed.into());
        }
        let body: Voucher = decode_body(bytes).map_err(|_| VoucherRefusal::Malformed)?;
        let found = self.book.served_by_order(body.order);
        let (job, served) = found.ok_or(VoucherRefusal::UnknownOrder)?;
        let (mesh, key) = (self.lattice.mesh(), self.key_of(served.consumer));
        let voucher: Signed<Voucher> = Signed::verify(mesh, key, bytes.to_vec(), signature)
            .map_err(|_| VoucherRefusal::BadSignature)?;
        // The same word again, also under a new number, is worth no record.
        let is_known = served.voucher.is_some_and(|known| {
            (known.tokens, known.amount) == (body.tokens, body.amount) && body.n >= known.n
        });
        if is_known {
            return Ok(Decision { events: Vec::new(), outcome: Outcome::Done });
        }
        check_voucher(served, &body, (stream, sent))?;
        let taken = BookEvent::VoucherTaken {
            job,
            n: body.n,
            amount: body.amount,
            tokens: body.tokens,
            voucher: SignedBytes::from(&voucher),
        };
        let events = vec![Event::Book(taken), record(DocumentKind::Voucher, job, &voucher)];
        Ok(Decision { events, outcome: Outcome::Done })
    }

    /// Nothing delivered, nothing owed; else the receipt says what is due.
    pub(super) fn finish_served(
        &self,
        now: Timestamp,
        keys: &Keyring,
        finish: &FinishJob,
    ) -> Result<Decision, Rejection> {
        let served = self.running_served(finish.job)?;
        if finish.build.chars().count() > BUILD_MAX_CHARS {
            return Err(Rejection::OutOfRange { field: "build", range: "at most 256 characters" });
        }
        check_report(served, finish)?;
        if finish.completion_tokens == 0 && !served.only_reads() {
            return self.abandon_served(now, finish.job, 0);
        }
        let (flop, amount) = served.charge(finish.completion_tokens);
        let receipt = Receipt {
            order: served.order,
            prompt_tokens: served.prompt_tokens,
            cached_tokens: finish.cached_tokens,
            completion_tokens: finish.completion_tokens,
            flop,
            amount,
            output: finish.output,
            build: finish.build.clone(),
            finish: finish.finish,
        };
        let receipt = self.sign(&keys.node, receipt)?;
        let finished = ServedFinished {
            job: finish.job,
            consumer: served.consumer,
            order: served.order,
            receipt: Some(receipt.id()),
            model: served.model,
            prompt_tokens: served.prompt_tokens,
            completion_tokens: finish.completion_tokens,
            flop,
            amount,
            finish: finish.finish,
            at: now,
            unsigned: Trm::ZERO,
        };
        let finished = Event::Book(BookEvent::ServedFinished(finished));
        let events = vec![finished, record(DocumentKind::Receipt, finish.job, &receipt)];
        let outcome = Outcome::JobServed { receipt: Some(Box::new(receipt)), due: amount };
        Ok(Decision { events, outcome })
    }

    pub(super) fn abandon_served(
        &self,
        now: Timestamp,
        job: JobId,
        sent: u32,
    ) -> Result<Decision, Rejection> {
        let served = self.running_served(job)?;
        let mut ended = served.ended_by_voucher(job, now);
        if sent > 0 {
            let (_, done) = served.charge(sent.min(served.completion_max));
            ended.unsigned = done.saturating_sub(ended.amount);
        }
        let due = ended.amount;
        let events = vec![Event::Book(BookEvent::ServedFinished(ended))];
        Ok(Decision { events, outcome: Outcome::JobServed { receipt: None, due } })
    }

    fn running_served(&self, job: JobId) -> Result<&ServedJob, Rejection> {
        let served = self.book.served().get(&job).filter(|served| served.end.is_none());
        served.ok_or(Rejection::UnknownJob { job })
    }
}

/// Model and prompt are those of the order.
fn check_terms(accept: &AcceptOrder, order: &Order) -> Result<(), OrderRefusal> {
    if order.model != accept.model {
        return Err(OrderRefusal::Model);
    }
    let (prompt_tokens, prompt_max) = (accept.prompt_tokens, order.prompt_max);
    if prompt_tokens > prompt_max || prompt_tokens > JOB_TOKENS_MAX {
        return Err(OrderRefusal::PromptTooLong { prompt_tokens, prompt_max });
    }
    Ok(())
}

/// The order pays for what is `needed`.
fn check_max(order: &Order, needed: Trm) -> Result<(), OrderRefusal> {
    let max_amount = order.max_amount;
    if needed > max_amount {
        return Err(OrderRefusal::MaxTooSmall { max_amount, needed });
    }
    Ok(())
}

/// The completion tokens that the order pays for beside the prompt, at most those asked for; none
/// for a job that only reads.
fn affordable(accept: &AcceptOrder, order: &Order) -> Result<u32, OrderRefusal> {
    let cost = |tokens: u32| {
        let tokens = accept.prompt_tokens.saturating_add(tokens);
        accept.shape.work(0, tokens).cost_ceil(order.price)
    };
    check_max(order, cost(accept.completion_max.min(1)))?;
    if accept.completion_max == 0 {
        return Ok(0);
    }
    let (mut pays, mut above) = (1, accept.completion_max.min(JOB_TOKENS_MAX).saturating_add(1));
    while above - pays > 1 {
        let middle = pays + (above - pays) / 2;
        if cost(middle) <= order.max_amount { pays = middle } else { above = middle }
    }
    Ok(pays)
}

fn check_voucher(
    served: &ServedJob,
    voucher: &Voucher,
    (stream, sent): (Digest, u32),
) -> Result<(), VoucherRefusal> {
    let falls = served.voucher.is_some_and(|before| {
        voucher.n <= before.n || voucher.tokens < before.tokens || voucher.amount < before.amount
    });
    if falls {
        return Err(VoucherRefusal::Falls);
    }
    if voucher.tokens > sent.min(served.completion_max) {
        return Err(VoucherRefusal::MoreThanSent { tokens: voucher.tokens, sent });
    }
    let (_, expected) = served.charge(voucher.tokens);
    if voucher.amount != expected || (voucher.tokens == 0 && !served.only_reads()) {
        return Err(VoucherRefusal::WrongAmount { expected });
    }
    if voucher.stream != stream {
        return Err(VoucherRefusal::StreamDiffers);
    }
    Ok(())
}

/// What the engine reports fits the order and what the consumer signed for.
fn check_report(served: &ServedJob, finish: &FinishJob) -> Result<(), Rejection> {
    let contradicts = |reason| Err(Rejection::Contradicts { reason });
    if finish.completion_tokens > served.completion_max {
        return contradicts("more tokens are reported than the order pays for");
    }
    if served.voucher.is_some_and(|voucher| finish.completion_tokens < voucher.tokens) {
        return contradicts("fewer tokens are reported than the consumer's voucher says");
    }
    if finish.cached_tokens > served.prompt_tokens {
        return contradicts("more prompt tokens are reported cached than the prompt has");
    }
    Ok(())
}
