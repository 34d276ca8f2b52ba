//! `open`: a party begins its chain.

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PublicKey, Trm};

use super::{Change, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;

/// The first entry of a chain, at 0. The chain's balance begins at 0.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Open {
    /// The enrolment of this party, which sets its line; without one the line is 0.
    #[n(1)]
    pub enrol: Option<DocumentId>,
    /// A key kept elsewhere that may replace the chain's key.
    #[n(2)]
    pub recovery: Option<PublicKey>,
}

impl Rules for Open {
    fn names(&self) -> &[DocumentId] {
        self.enrol.as_slice()
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        let line = self
            .enrol
            .map_or(Ok(Trm::ZERO), |enrol| past.grant(enrol))?;
        Ok(Outcome::change(
            past,
            Change::Opened {
                line,
                recovery: self.recovery,
            },
        ))
    }
}
