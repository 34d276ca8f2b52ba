//! `sponsor`: a member locks TRM so that a newcomer may begin below zero.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, Trm};

use super::{Change, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;

/// From this epoch on nobody is sponsored any more: earning is how newcomers begin.
const EPOCH_END: u8 = 2;

/// A welcome line for a newcomer, secured by the sponsor's own TRM under this entry's id.
///
/// The newcomer names it in `open`. It ends once: given back by `unsponsor` after a `settle` in
/// time, or by a checkpoint that lists the newcomer's default.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Sponsor {
    /// Who is welcomed; not the sponsor.
    #[n(0)]
    pub newcomer: PartyId,
    /// What is locked, above zero and at most the charter's `welcome`.
    #[n(1)]
    pub amount: Trm,
    /// A checkpoint whose epoch still allows it.
    #[n(2)]
    pub checkpoint: DocumentId,
}

impl Rules for Sponsor {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(core::slice::from_ref(&self.checkpoint))
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        if self.amount.is_zero() {
            return Err(EntryRejection::ZeroAmount);
        }
        if self.newcomer == past.chain {
            return Err(EntryRejection::SelfPayment);
        }
        let max = past.charter.params.welcome;
        if self.amount > max {
            return Err(EntryRejection::WelcomeTooHigh { max });
        }
        match past.vouched(self.checkpoint)?.map(|known| known.effect.change) {
            None => {}
            Some(Change::Checkpoint { epoch, .. }) if epoch < EPOCH_END => {}
            _ => return Err(EntryRejection::WelcomeOver),
        }
        let (newcomer, amount) = (self.newcomer, self.amount);
        let mut outcome = Outcome::change(past, Change::Sponsored { newcomer, amount });
        outcome.balance = past.debit(amount.signed())?;
        Ok(outcome)
    }
}
