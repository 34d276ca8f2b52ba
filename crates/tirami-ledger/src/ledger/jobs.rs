//! Jobs: orders, vouchers and receipts signed beside the book's events.

use tirami_core::{Digest, Document, JobId, Signed, Timestamp};

use super::{Decision, Keyring, Ledger};
use crate::Rejection;
use crate::book::{Admission, Charge, Ending, Hold, Payer, START_WITHIN_MS};
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
        let opening = match self.book.admit(now, payer, start)? {
            Admission::Open(opening) => opening,
            Admission::Wait(waiting) => {
                let events = self.book.asked(&waiting, start).map(Event::Book).collect();
                let outcome = Outcome::ApprovalPending {
                    approval: waiting.approval(),
                    expires_at: waiting.expires_at(),
                    max_amount: waiting.max_amount(),
                };
                return Ok(Decision { events, outcome });
            }
        };
        let order = Order {
            consumer: payer.agent.party(),
            provider: self.party,
            job: start.job,
            model: start.model,
            request: start.request,
            seed: start.seed,
            price: self.book.price(),
            cached_price: self.book.price(),
            prompt_max: start.prompt_tokens,
            max_amount: opening.max_amount(),
            start_by: now.plus_ms(START_WITHIN_MS),
            claim_by: opening.claim_by(),
        };
        let order = self.sign(keys.agent(payer.agent)?, order)?;
        let mut events: Vec<Event> =
            self.book.opened(opening, start, order.id()).map(Event::Book).collect();
        events.push(record(DocumentKind::Order, start.job, &order));
        let available = opening.available();
        Ok(Decision { events, outcome: Outcome::JobStarted { order: Box::new(order), available } })
    }

    pub(super) fn deliver(
        &self,
        now: Timestamp,
        keys: &Keyring,
        job: JobId,
        (tokens, stream): (u32, Digest),
    ) -> Result<Decision, Rejection> {
        let (hold, head) = self.book.next_voucher(now, job, tokens)?;
        let body = Voucher { order: hold.order, n: head.n, amount: head.amount, tokens, stream };
        let voucher = self.sign(keys.agent(hold.agent)?, body)?;
        let raised = BookEvent::VoucherRaised { job, n: head.n, amount: head.amount, tokens };
        let events = vec![Event::Book(raised), record(DocumentKind::Voucher, job, &voucher)];
        Ok(Decision { events, outcome: Outcome::Done })
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
        let posted = self.book.posted(now, hold, charge, (finish, receipt.id()));
        let mut events: Vec<Event> = posted.map(Event::Book).collect();
        events.push(record(DocumentKind::Receipt, finish.job, &receipt));
        let outcome = Outcome::JobFinished {
            trade: hold.order,
            flop: charge.flop,
            amount: charge.amount,
            receipt: Box::new(receipt),
            available: charge.available,
        };
        Ok(Decision { events, outcome })
    }
}

fn record<T: Document>(kind: DocumentKind, job: JobId, document: &Signed<T>) -> Event {
    Event::Document(DocumentRecord {
        id: document.id(),
        kind,
        job,
        bytes: document.bytes().to_vec(),
        signature: document.signature(),
    })
}
