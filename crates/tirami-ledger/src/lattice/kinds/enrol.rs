//! `enrol`: the registrar grants a party a right to overdraw.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, Trm};

use super::{Change, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;

/// The longest owner label, in bytes.
const LABEL_BYTES_MAX: usize = 64;

/// A grant on the registrar's chain. It moves nothing until the party names it.
///
/// Every grant counts in full against the charter's `line_total`, also a second one to the same
/// party: the sum is the registrar's chain's alone, so it needs no other chain to be known.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Enrol {
    /// Who is enrolled.
    #[n(0)]
    pub party: PartyId,
    /// Whom the registrar says the party belongs to, at most 64 bytes.
    #[n(1)]
    pub owner: String,
    /// How far below zero the party's balance may go.
    #[n(2)]
    pub line: Trm,
}

impl Rules for Enrol {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(&[])
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        if past.chain != past.charter.registrar {
            return Err(EntryRejection::NotRegistrar);
        }
        if self.owner.len() > LABEL_BYTES_MAX {
            return Err(EntryRejection::LabelTooLong);
        }
        let left = past.charter.line_total.saturating_sub(past.state.enrolled);
        if self.line > left {
            return Err(EntryRejection::LineTotal { left });
        }
        Ok(Outcome::change(
            past,
            Change::Enrolled {
                party: self.party,
                line: self.line,
            },
        ))
    }
}
