//! `open`: a party begins its chain.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PublicKey, Trm};

use super::{Change, Extra, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;

/// The first entry of a chain, at 0. The chain's balance begins at 0.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Open {
    /// A member's `sponsor` entry for this party, which lends it a welcome line.
    #[n(0)]
    pub sponsor: Option<DocumentId>,
    /// The enrolment of this party, which sets its line; without one the line is 0.
    #[n(1)]
    pub enrol: Option<DocumentId>,
    /// A key kept elsewhere that may replace the chain's key.
    #[n(2)]
    pub recovery: Option<PublicKey>,
}

impl Rules for Open {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Owned(self.sponsor.into_iter().chain(self.enrol).collect())
    }

    fn needs(&self) -> Cow<'_, [DocumentId]> {
        Cow::Owned(self.enrol.into_iter().collect())
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        let line = self
            .enrol
            .map_or(Ok(Trm::ZERO), |enrol| past.grant(enrol))?;
        let lent = match self.sponsor {
            None => None,
            Some(lock) => Some(Box::new(Extra::Lent { lock, amount: past.welcome(lock)? })),
        };
        let mut outcome = Outcome::change(past, Change::Opened { line, recovery: self.recovery });
        outcome.effect.extra = lent;
        Ok(outcome)
    }
}
