//! Jobs: orders, vouchers and receipts signed beside the book's events.

use tirami_core::{Digest, Document, JobId, PartyId, Ppm, SecretKey, Signed, Timestamp};

use super::{Decision, Keyring, Ledger};
use crate::Rejection;
use crate::book::{
    Admission, Charge, End, Ending, Hold, Opening, Payer, START_WITHIN_MS, Terms, Waiting,
};
use crate::command::{FinishJob, Outcome, StartJob};
use crate::documents::{FinishReason, Order, Receipt, Voucher};
use crate::event::{BookEvent, DocumentKind, DocumentRecord, Event};

impl Ledger {
    pub(super) fn start_job(
        &self,
        now: Timestamp,
        keys: &Keyring,
        payer: Payer,
        start: &StartJob,
    ) -> Result<Decision, Rejection> {
        let terms = Terms::own(self.book.price());
        let opening = match self.book.admit(now, payer, start, &terms)? {
            Admission::Open(opening) => opening,
            Admission::Wait(waiting) => return Ok(self.waits(&waiting, start)),
        };
        let consumer = (payer.agent.party(), keys.agent(payer.agent)?);
        let (order, events) = self.open_job(consumer, start, (opening, terms.price, self.party))?;
        let (order, available) = (Box::new(order), opening.available());
        Ok(Decision { events, outcome: Outcome::JobStarted { order, available } })
    }

    /// The job needs a person's word first.
    pub(super) fn waits(&self, waiting: &Waiting, start: &StartJob) -> Decision {
        let events = self.book.asked(waiting, start).map(Event::Book).collect();
        let outcome = Outcome::ApprovalPending {
            approval: waiting.approval(),
            expires_at: waiting.expires_at(),
            max_amount: waiting.max_amount(),
        };
        Decision { events, outcome }
    }

    /// The signed order of a job that was admitted, and the events of its hold.
    pub(super) fn open_job(
        &self,
        (consumer, key): (PartyId, &SecretKey),
        start: &StartJob,
        (opening, price, provider): (Opening, Ppm, PartyId),
    ) -> Result<(Signed<Order>, Vec<Event>), Rejection> {
        let order = Order {
            consumer,
            provider,
            job: start.job,
            model: start.model,
            request: start.request,
            seed: start.seed,
            price,
            cached_price: price,
            prompt_max: start.prompt_tokens,
            max_amount: opening.order_max(),
            start_by: opening.at().plus_ms(START_WITHIN_MS),
            claim_by: opening.claim_by(),
        };
        let order = self.sign(key, order)?;
        let mut events: Vec<Event> =
            self.book.opened(opening, start, order.id()).map(Event::Book).collect();
        events.push(record(DocumentKind::Order, start.job, &order));
        Ok((order, events))
    }

    pub(super) fn deliver(
        &self,
        now: Timestamp,
        keys: &Keyring,
        job: JobId,
        (tokens, stream, prompt_tokens): (u32, Digest, Option<u32>),
    ) -> Result<Decision, Rejection> {
        let hold = self.book.hold(job)?.counted(prompt_tokens)?;
        let (voucher, events) = self.voucher(now, keys, (job, &hold), (tokens, stream))?;
        Ok(Decision { events, outcome: Outcome::VoucherSigned { voucher: Box::new(voucher) } })
    }

    /// The next voucher of a job, signed by its agent, or by the node when it is the node's order
    /// to another node; and its events.
    pub(super) fn voucher(
        &self,
        now: Timestamp,
        keys: &Keyring,
        (job, hold): (JobId, &Hold),
        (tokens, stream): (u32, Digest),
    ) -> Result<(Signed<Voucher>, Vec<Event>), Rejection> {
        let head = hold.next_voucher(now, tokens)?;
        let (n, amount) = (head.n, head.amount);
        let body = Voucher { order: hold.order, n, amount, tokens, stream };
        let key = match hold.remote {
            Some(_) => &keys.node,
            None => keys.agent(hold.agent)?,
        };
        let voucher = self.sign(key, body)?;
        let prompt_tokens = hold.remote.map(|_| hold.prompt_tokens);
        let raised = BookEvent::VoucherRaised { job, n, amount, tokens, prompt_tokens };
        let events = vec![Event::Book(raised), record(DocumentKind::Voucher, job, &voucher)];
        Ok((voucher, events))
    }

    /// A job that delivered no token is voided: nothing delivered, nothing owed.
    pub(super) fn finish_job(
        &self,
        now: Timestamp,
        keys: &Keyring,
        finish: &FinishJob,
    ) -> Result<Decision, Rejection> {
        match self.book.finish(now, finish)? {
            (hold, Ending::Charge(charge)) => self.charge_job(now, keys, (hold, charge), finish),
            (_, Ending::Void) => {
                let failed = finish.finish == FinishReason::Failed;
                Ok(Decision::done(self.book.void(now, finish.job, failed)?))
            }
        }
    }

    fn charge_job(
        &self,
        now: Timestamp,
        keys: &Keyring,
        (hold, charge): (&Hold, Charge),
        finish: &FinishJob,
    ) -> Result<Decision, Rejection> {
        let receipt = Receipt {
            order: hold.order,
            prompt_tokens: hold.prompt_tokens,
            cached_tokens: finish.cached_tokens,
            completion_tokens: finish.completion_tokens,
            flop: charge.flop,
            amount: charge.amount,
            output: finish.output,
            build: finish.build.clone(),
            finish: finish.finish,
        };
        let receipt = self.sign(&keys.node, receipt)?;
        let end = End {
            job: finish.job,
            completion_tokens: finish.completion_tokens,
            receipt: Some(receipt.id()),
            finish: finish.finish,
        };
        let posted = self.book.posted(now, hold, charge, &end);
        let mut events: Vec<Event> = posted.map(Event::Book).collect();
        events.push(record(DocumentKind::Receipt, finish.job, &receipt));
        let outcome = Outcome::JobFinished {
            trade: hold.order,
            flop: charge.flop,
            amount: charge.amount,
            fee: charge.fee,
            receipt: Some(Box::new(receipt)),
            voucher: None,
            available: charge.available,
        };
        Ok(Decision { events, outcome })
    }
}

pub(super) fn record<T: Document>(kind: DocumentKind, job: JobId, document: &Signed<T>) -> Event {
    Event::Document(DocumentRecord {
        id: document.id(),
        kind,
        job,
        bytes: document.bytes().to_vec(),
        signature: document.signature(),
    })
}
