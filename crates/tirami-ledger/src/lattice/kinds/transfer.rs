//! `transfer`: a party gives TRM to another.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, Trm};

use super::{Effect, Outcome, Past, Payout, Rules};
use crate::lattice::rejection::EntryRejection;

/// A gift: the amount goes in transit to the payee, without a fee.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Transfer {
    /// Who may collect the amount.
    #[n(0)]
    pub payee: PartyId,
    /// How much, above zero.
    #[n(1)]
    pub amount: Trm,
}

impl Rules for Transfer {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(&[])
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        if self.amount.is_zero() {
            return Err(EntryRejection::ZeroAmount);
        }
        if self.payee == past.chain {
            return Err(EntryRejection::SelfPayment);
        }
        Ok(Outcome {
            balance: past.debit(self.amount.signed())?,
            effect: Effect {
                payout: Some(Payout {
                    payee: self.payee,
                    amount: self.amount,
                }),
                ..Effect::default()
            },
        })
    }
}
