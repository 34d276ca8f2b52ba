//! Jobs that other nodes do for this one. The node's chain is the consumer: the node's key signs
//! orders and vouchers; the agent that asked is charged in the book.

use tirami_core::{Digest, JobId, PublicKey, Signature, Signed, Timestamp, decode_body};

use super::jobs::record;
use super::{Context, Decision, Keyring, Ledger};
use crate::Rejection;
use crate::book::{Admission, BUILD_MAX_CHARS, End, Hold, Payer, Terms};
use crate::command::{OrderJob, Outcome};
use crate::documents::{FinishReason, Receipt};
use crate::event::{BookEvent, DocumentKind, Event, RemoteTerms};
use crate::refusal::ReceiptRefusal;

/// What was received of a job: how many tokens, and the digest of their ids.
pub(super) type Received = (u32, Digest);

impl Ledger {
    pub(super) fn order_job(
        &self,
        now: Timestamp,
        keys: &Keyring,
        payer: Payer,
        order: &OrderJob,
    ) -> Result<Decision, Rejection> {
        if order.provider == self.party {
            let range = "another node; this node's own jobs are started, not ordered";
            return Err(Rejection::OutOfRange { field: "provider", range });
        }
        let fee_ppm = self.lattice.charter().params.fee_ppm;
        let terms = Terms { price: order.price, provider: Some((order.provider, fee_ppm)) };
        let opening = match self.book.admit(now, payer, &order.start, &terms)? {
            Admission::Open(opening) => opening,
            Admission::Wait(waiting) => return Ok(self.waits(&waiting, &order.start)),
        };
        let consumer = (self.party, &keys.node);
        let ordered = (opening, order.price, order.provider);
        let (order, events) = self.open_job(consumer, &order.start, ordered)?;
        let (order, available) = (Box::new(order), opening.available());
        Ok(Decision { events, outcome: Outcome::JobOrdered { order, available } })
    }

    /// A receipt that does not agree is recorded against its provider, and the hold stays.
    pub(super) fn settle_job(
        &self,
        now: Timestamp,
        job: JobId,
        (bytes, signature): (&[u8], Signature),
        received: Received,
    ) -> Result<Decision, Rejection> {
        let (hold, remote) = self.book.remote_hold(job)?;
        hold.check_received(now, received.0)?;
        match self.checked_receipt(hold, &remote, (bytes, signature), received) {
            Err(refusal) => {
                let provider = remote.provider;
                let refused = BookEvent::ReceiptRefused { job, provider, refusal, at: now };
                let events = vec![Event::Book(refused)];
                Ok(Decision { events, outcome: Outcome::ReceiptRefused { refusal } })
            }
            Ok(_) if received.0 == 0 && !hold.only_reads() => {
                Ok(Decision::done(self.book.void(now, job, false)?))
            }
            Ok(receipt) => self.post_by_receipt(now, (job, hold), receipt),
        }
    }

    fn post_by_receipt(
        &self,
        now: Timestamp,
        (job, hold): (JobId, &Hold),
        receipt: Signed<Receipt>,
    ) -> Result<Decision, Rejection> {
        let body = receipt.body();
        let hold = hold.counted(Some(body.prompt_tokens))?;
        let charge = self.book.charge_of(&hold, body.completion_tokens)?;
        let end = End {
            job,
            completion_tokens: body.completion_tokens,
            receipt: Some(receipt.id()),
            finish: body.finish,
        };
        let posted = self.book.posted(now, &hold, charge, &end);
        let mut events: Vec<Event> = posted.map(Event::Book).collect();
        events.push(record(DocumentKind::Receipt, job, &receipt));
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

    fn checked_receipt(
        &self,
        hold: &Hold,
        remote: &RemoteTerms,
        (bytes, signature): (&[u8], Signature),
        (tokens, output): Received,
    ) -> Result<Signed<Receipt>, ReceiptRefusal> {
        decode_body::<Receipt>(bytes).map_err(|_| ReceiptRefusal::Malformed)?;
        let key = self.key_of(remote.provider);
        let receipt: Signed<Receipt> =
            Signed::verify(self.lattice.mesh(), key, bytes.to_vec(), signature)
                .map_err(|_| ReceiptRefusal::BadSignature)?;
        let body = receipt.body();
        if body.order != hold.order {
            return Err(ReceiptRefusal::OtherOrder);
        }
        if body.completion_tokens != tokens {
            return Err(ReceiptRefusal::Tokens);
        }
        let counted = hold.counted(Some(body.prompt_tokens));
        let counted = counted.map_err(|_| ReceiptRefusal::PromptTokens)?;
        if body.cached_tokens > body.prompt_tokens {
            return Err(ReceiptRefusal::PromptTokens);
        }
        let (flop, amount) = counted.charge(tokens);
        if body.flop != flop {
            return Err(ReceiptRefusal::Flop);
        }
        if body.amount != amount {
            return Err(ReceiptRefusal::Amount);
        }
        if body.output != output {
            return Err(ReceiptRefusal::Output);
        }
        if body.build.chars().count() > BUILD_MAX_CHARS {
            return Err(ReceiptRefusal::Build);
        }
        Ok(receipt)
    }

    pub(super) fn abandon_job(
        &self,
        context: &Context<'_>,
        job: JobId,
        (received, prompt_tokens): (Received, Option<u32>),
        failed: bool,
    ) -> Result<Decision, Rejection> {
        let now = context.now;
        let (hold, _) = self.book.remote_hold(job)?;
        hold.check_received(now, received.0)?;
        // A voucher of a job that only reads says that its result was received.
        let has_result = hold.only_reads() && hold.voucher.is_some();
        if received.0 == 0 && !has_result {
            return Ok(Decision::done(self.book.void(now, job, failed)?));
        }
        let hold = &hold.counted(prompt_tokens)?;
        let vouched = hold.voucher.is_some_and(|voucher| voucher.tokens == received.0);
        let (voucher, mut events) = if vouched {
            (None, Vec::new())
        } else {
            let (voucher, events) = self.voucher(now, context.keys, (job, hold), received)?;
            (Some(Box::new(voucher)), events)
        };
        let charge = self.book.charge_of(hold, received.0)?;
        let finish = if failed { FinishReason::Failed } else { FinishReason::Cancelled };
        let end = End { job, completion_tokens: received.0, receipt: None, finish };
        events.extend(self.book.posted(now, hold, charge, &end).map(Event::Book));
        let outcome = Outcome::JobFinished {
            trade: hold.order,
            flop: charge.flop,
            amount: charge.amount,
            fee: charge.fee,
            receipt: None,
            voucher,
            available: charge.available,
        };
        Ok(Decision { events, outcome })
    }

    /// The current key of a party; its first one while its chain is not known.
    pub(super) fn key_of(&self, party: tirami_core::PartyId) -> PublicKey {
        self.lattice.chain(party).map_or(party.into(), crate::lattice::Chain::key)
    }
}
