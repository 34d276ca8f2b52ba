//! `line`: a party takes up an enrolment after it began.

use core::slice;
use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::DocumentId;

use super::{Change, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;

/// Raises the chain's line to the enrolment's, if that is higher.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Line {
    /// The enrolment of this party.
    #[n(0)]
    pub enrol: DocumentId,
}

impl Rules for Line {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(slice::from_ref(&self.enrol))
    }

    fn needs(&self) -> Cow<'_, [DocumentId]> {
        self.names()
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        let line = past.grant(self.enrol)?;
        Ok(Outcome::change(past, Change::Line { line }))
    }
}
