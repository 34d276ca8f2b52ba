//! `rekey`: a party changes its key.

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PublicKey};

use super::{Change, Outcome, Past, Rules};
use crate::lattice::rejection::EntryRejection;
use crate::lattice::state::ChainState;

/// From its finality on, entries and documents of the party need the new key. The party's id and
/// its money stay. Signed by the current key or the recovery key named in `open`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Rekey {
    /// The new key.
    #[n(0)]
    pub key: PublicKey,
}

impl Rules for Rekey {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(&[])
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        Ok(Outcome::change(past, Change::Key { key: self.key }))
    }

    fn other_signer(&self, state: &ChainState) -> Option<PublicKey> {
        state.recovery
    }
}
