//! `unsponsor`: a sponsor takes its lock back after its newcomer settled in time.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::DocumentId;

use super::{Change, Ending, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;

/// Frees the lock of a `sponsor` entry of this chain.
///
/// That the newcomer settled in time is for the checkpoint to say, which lists it: no lock is
/// listed both as settled and as defaulted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Unsponsor {
    /// The `sponsor` entry of this chain.
    #[n(0)]
    pub lock: DocumentId,
    /// The newcomer's `settle`.
    #[n(1)]
    pub settle: DocumentId,
    /// The checkpoint that lists the lock as settled.
    #[n(2)]
    pub checkpoint: DocumentId,
}

impl Rules for Unsponsor {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Owned(vec![self.lock, self.settle, self.checkpoint])
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        let sponsor = past.named(self.lock)?;
        let amount = match sponsor.effect.change {
            Change::Sponsored { amount, .. } if sponsor.slot.chain == past.chain => amount,
            _ => return Err(EntryRejection::NotMyLock { entry: self.lock }),
        };
        if past.lattice.was_unsponsored(self.lock, past.chain, past.prev) {
            return Err(EntryRejection::LockEnded { entry: self.lock });
        }
        let settled = past.vouched(self.settle)?.map(|settle| settle.effect.change);
        let checkpoint = past.vouched(self.checkpoint)?;
        let settles = |change| change == Change::Settled { lock: self.lock };
        let lists = |known: &super::FinalEntry| {
            let listed = known.effect.decision(self.lock);
            listed.is_some_and(|listed| listed.end == Some(Ending::Settled))
        };
        if !settled.is_none_or(settles) || !checkpoint.is_none_or(lists) {
            return Err(EntryRejection::NotSettled { entry: self.lock });
        }
        let mut outcome = Outcome::change(past, Change::Unsponsored { lock: self.lock, amount });
        outcome.balance = past.balance() + amount.signed();
        Ok(outcome)
    }
}
