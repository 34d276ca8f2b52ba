//! `settle`: a newcomer is at or above zero again and gives its welcome line back.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::DocumentId;

use super::{Change, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;

/// Closes the welcome line. Covered by a checkpoint dated at or before the welcome deadline it
/// frees the sponsor's lock; later it only closes the line.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Settle {}

impl Rules for Settle {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(&[])
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        let is_open = !past.state.welcome.is_zero()
            || (past.state.unproven && past.vouched.is_some());
        let open = past.state.sponsor.filter(|_| is_open);
        let unproven = past.state.sponsor.filter(|_| past.state.unproven);
        let refused = unproven.map(|entry| EntryRejection::Missing { entry });
        let lock = open.ok_or(refused.unwrap_or(EntryRejection::NoWelcome))?;
        if past.balance() < 0 {
            let short_micro = past.balance().unsigned_abs();
            return Err(EntryRejection::BelowFloor { short_micro });
        }
        Ok(Outcome::change(past, Change::Settled { lock }))
    }
}
