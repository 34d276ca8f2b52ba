//! What a checkpoint lists: decisions about welcome lines, which look at more than one chain
//! (MONEY §6, 7).

use minicbor::{Decode, Encode};
use tirami_core::{Digest, DocumentId, PartyId, Trm};

use crate::lattice::merkle;

/// The most decisions one checkpoint lists: it stays within 16 KiB. What is left over is listed by
/// the next one, which is due at once.
pub(in crate::lattice) const DECISIONS_MAX: usize = 256;

/// What a checkpoint says of one sponsor's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Decision {
    /// The lock: the id of the `sponsor` entry.
    #[n(0)]
    pub lock: DocumentId,
    /// How many entries of the newcomer's chain are covered in time; 0 before it opened.
    ///
    /// The first decision with a number above zero begins the 72 hours of the welcome line.
    #[n(1)]
    pub covered: u64,
    /// How the welcome line ended.
    #[n(2)]
    pub end: Option<Ending>,
}

/// How a welcome line ended. Each lock is listed with one end at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Ending {
    /// A `settle` was covered in time: the sponsor may take its lock back.
    #[n(0)]
    Settled,
    /// It was not, or the newcomer never opened its chain: the lock goes in transit.
    #[n(1)]
    Defaulted {
        /// To the newcomer, whose balance was that far below its line; the rest to the sponsor.
        #[n(0)]
        owed: Trm,
    },
}

/// The root of the decisions a checkpoint lists, in the order listed.
pub(in crate::lattice) fn decisions_root(listed: &[Decision]) -> Digest {
    // Writing into a vector cannot fail.
    merkle::root(listed.iter().map(|decision| minicbor::to_vec(decision).unwrap_or_default()))
}

/// The id under which `payee` collects its part of a lock that the checkpoint ended.
///
/// It commits to both, so that a `collect` names what it rests on by one id.
pub(in crate::lattice) fn item_id(
    checkpoint: DocumentId,
    lock: DocumentId,
    payee: PartyId,
) -> DocumentId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"tirami/default-item/1");
    hasher.update(checkpoint.as_bytes());
    hasher.update(lock.as_bytes());
    hasher.update(payee.as_bytes());
    DocumentId::from_bytes(*hasher.finalize().as_bytes())
}
