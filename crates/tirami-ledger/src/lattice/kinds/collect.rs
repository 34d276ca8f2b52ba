//! `collect`: a payee takes final payments onto its chain.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::DocumentId;

use super::{Effect, Outcome, Past, Rules, each_once};
use crate::lattice::rejection::EntryRejection;

/// The most items one `collect` names (MONEY §5).
pub(super) const ITEMS_MAX: usize = 256;

/// Takes payments to this party out of transit. Each is collected once.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Collect {
    /// The entries that paid, 1 to [`Collect::IDS_MAX`], each once.
    #[n(0)]
    pub ids: Vec<DocumentId>,
    /// A checkpoint that lists the payers as covered: needed by payments out of a welcome line.
    #[n(1)]
    pub checkpoint: Option<DocumentId>,
}

impl Collect {
    /// The most entries one `collect` names.
    pub const IDS_MAX: usize = ITEMS_MAX;
}

impl Rules for Collect {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        match self.checkpoint {
            None => Cow::Borrowed(&self.ids),
            Some(checkpoint) => {
                let ids = self.ids.iter().copied();
                Cow::Owned(ids.chain([checkpoint]).collect())
            }
        }
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        each_once(self.ids.iter(), ITEMS_MAX)?;
        let (mut sum, mut unseen) = (0_i128, 0_i128);
        for id in &self.ids {
            match past.item(*id, self.checkpoint)? {
                Some(amount) => sum += amount.signed(),
                None => unseen += 1,
            }
        }
        let mut balance = past.balance() + sum;
        if let Some(given) = past.vouched.map(i128::from).filter(|_| unseen > 0) {
            // What is not held is worth what the certified balance says, and at least something.
            balance = given.max(balance + unseen);
        }
        Ok(Outcome {
            balance,
            effect: Effect {
                collected: self.ids.clone(),
                ..Effect::default()
            },
        })
    }
}
