//! `pay`: a consumer pays a provider for jobs.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, JobId, PartyId, Ppm, Trm};

use super::{Effect, Outcome, Past, Payout, Rules, each_once};
use crate::lattice::rejection::EntryRejection;

/// The most jobs one `pay` names.
const ITEMS_MAX: usize = 64;

/// A payment for jobs: the sum goes in transit to the payee, the fee is burned.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pay {
    /// Who may collect the sum.
    #[n(0)]
    pub payee: PartyId,
    /// The jobs paid for, 1 to 64, each once.
    #[n(1)]
    pub items: Vec<PayItem>,
    /// What is burned: the charter's share of the sum, rounded up.
    #[n(3)]
    pub fee: Trm,
}

/// One job paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PayItem {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// What is paid for it, above zero.
    #[n(1)]
    pub amount: Trm,
}

impl Pay {
    /// A payment of `items` with the fee that `fee_ppm` asks for.
    pub fn new(payee: PartyId, items: Vec<PayItem>, fee_ppm: Ppm) -> Self {
        let sum = items
            .iter()
            .fold(Trm::ZERO, |sum, item| sum.saturating_add(item.amount));
        Self {
            payee,
            items,
            fee: sum.mul_ceil(fee_ppm),
        }
    }
}

impl Rules for Pay {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(&[])
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        each_once(self.items.iter().map(|item| item.job), ITEMS_MAX)?;
        if self.items.iter().any(|item| item.amount.is_zero()) {
            return Err(EntryRejection::ZeroAmount);
        }
        if self.payee == past.chain {
            return Err(EntryRejection::SelfPayment);
        }
        let sum = self
            .items
            .iter()
            .try_fold(Trm::ZERO, |sum, item| sum.checked_add(item.amount))
            .ok_or(EntryRejection::Overflow)?;
        let expected = sum.mul_ceil(past.charter.params.fee_ppm);
        if self.fee != expected {
            return Err(EntryRejection::WrongFee { expected });
        }
        let (balance, change) = past.debit_for_jobs(sum.signed() + self.fee.signed())?;
        Ok(Outcome {
            balance,
            effect: Effect {
                burned: self.fee,
                change,
                payout: Some(Payout {
                    payee: self.payee,
                    amount: sum,
                }),
                ..Effect::default()
            },
        })
    }
}
