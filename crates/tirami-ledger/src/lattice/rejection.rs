//! Why an entry, an acknowledgement or a certificate is refused.

use tirami_core::{DocumentId, KeyError, PublicKey, Timestamp, Trm};

/// Why an entry, or what came with it, was refused; in order of precedence.
///
/// A refused entry changed nothing. Something that is merely missing is no refusal on receiving
/// (the entry is parked); on drafting and acknowledging it is [`EntryRejection::Missing`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryRejection {
    /// The body exceeds 16 KiB.
    #[error("an entry has at most 16384 bytes, this one has {bytes}")]
    TooLarge {
        /// Bytes of the body.
        bytes: usize,
    },
    /// The bytes are not the CBOR of an entry.
    #[error("the bytes are not a well-formed entry")]
    Malformed,
    /// This build does not know the kind, so it cannot follow the chain any further.
    #[error(
        "the entry is of kind {kind}, which this version does not know; upgrade to follow the chain"
    )]
    UnknownKind {
        /// The number of the kind.
        kind: u32,
    },
    /// `seq` 0, no predecessor and kind `open` come together or not at all.
    #[error("a chain begins with open at 0, and only there an entry has no predecessor")]
    OutOfPlace,
    /// The signer is no witness of the charter version named.
    #[error("{witness} is no witness of the charter version it names")]
    NotAWitness {
        /// The signer.
        witness: PublicKey,
    },
    /// The acknowledgements name other entries or versions, or a witness twice.
    #[error("the certificate's acknowledgements are not by different witnesses for this entry")]
    CertificateMismatch,
    /// There are fewer acknowledgements than the quorum.
    #[error("the certificate has {signed} signatures, the quorum is {quorum}")]
    CertificateShort {
        /// Witnesses that signed.
        signed: u32,
        /// Witnesses that must.
        quorum: u8,
    },
    /// A witness's signature is wrong.
    #[error("the acknowledgement of {witness} is not signed by it")]
    BadAcknowledgement {
        /// The witness named.
        witness: PublicKey,
    },
    /// The predecessor is on another chain or in another slot.
    #[error("the entry's predecessor is not the entry before it on its chain")]
    WrongPredecessor,
    /// The chain's key, or the entry's signature, is wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The slot holds a final entry and the owner's proof of signing twice is already known, or
    /// (on drafting) the chain goes on in a slot that has rivals.
    #[error("slot {seq} of the chain is taken; adopt the final branch before signing again")]
    SlotTaken {
        /// The slot's sequence number.
        seq: u64,
    },
    /// Two final entries stand in one slot of the chain; it goes no further.
    #[error("the chain is frozen: two of its entries in one slot are final")]
    Frozen,
    /// So many entries for the slot are held already that one more proves nothing.
    #[error("slot {seq} of the chain has as many rivals as are kept")]
    TooManyRivals {
        /// The slot's sequence number.
        seq: u64,
    },
    /// Something that the entry rests on is not known here, or not final.
    #[error("the entry rests on {entry}, which is not known to be final here; fetch it first")]
    Missing {
        /// What is missing.
        entry: DocumentId,
    },
    /// The charter version it rests on is not known here.
    #[error("charter version {version} is not known here; fetch it first")]
    MissingCharter {
        /// The version.
        version: u32,
    },
    /// Only the registrar's chain may enrol.
    #[error("only the registrar of the charter enrols")]
    NotRegistrar,
    /// Only the clerk's chain may carry checkpoints.
    #[error("only the clerk of the charter writes checkpoints")]
    NotClerk,
    /// The owner label is longer than 64 bytes.
    #[error("an owner label has at most 64 bytes")]
    LabelTooLong,
    /// There are no items, too many, or one twice.
    #[error("the entry names {count} items; it must name 1 to {max}, each once")]
    ItemCount {
        /// Items that the entry names, repeated ones counted.
        count: usize,
        /// The most it may name.
        max: usize,
    },
    /// An amount is zero.
    #[error("every amount must be above zero")]
    ZeroAmount,
    /// The payee is the chain itself.
    #[error("a chain cannot pay itself")]
    SelfPayment,
    /// The fee is not the charter's share, rounded up.
    #[error("the fee must be {expected} TRM")]
    WrongFee {
        /// The fee that the charter asks for.
        expected: Trm,
    },
    /// A grant that is named is no enrolment of this party.
    #[error("{entry} does not enrol this party")]
    NotMyGrant {
        /// The entry named.
        entry: DocumentId,
    },
    /// An item that is named is no payment to this party.
    #[error("{entry} is no payment to this party")]
    NotMyItem {
        /// The entry named.
        entry: DocumentId,
    },
    /// An item was collected before on this chain.
    #[error("{entry} was collected before")]
    AlreadyCollected {
        /// The item.
        entry: DocumentId,
    },
    /// The amount is above what the charter lets a newcomer begin with.
    #[error("a newcomer is welcomed with at most {max} TRM; lock at most that much")]
    WelcomeTooHigh {
        /// The charter's `welcome`.
        max: Trm,
    },
    /// What is named is no checkpoint of an epoch in which newcomers are sponsored.
    #[error("newcomers are sponsored in the first two epochs only, shown by a checkpoint of them")]
    WelcomeOver,
    /// The chain has no welcome line, or closed it.
    #[error("the chain has no open welcome line")]
    NoWelcome,
    /// The lock that is named is no `sponsor` entry of this chain.
    #[error("{entry} is no lock of this chain")]
    NotMyLock {
        /// The entry named.
        entry: DocumentId,
    },
    /// The lock was given back before.
    #[error("the lock {entry} was given back before")]
    LockEnded {
        /// The lock.
        entry: DocumentId,
    },
    /// The checkpoint does not list that the newcomer settled in time.
    #[error("the checkpoint does not say that the newcomer of {entry} settled in time")]
    NotSettled {
        /// The lock.
        entry: DocumentId,
    },
    /// The payment is out of a welcome line and no checkpoint in time is named that covers it.
    #[error("{entry} was paid out of a welcome line; name the checkpoint that covers it in time")]
    NotCovered {
        /// The payment.
        entry: DocumentId,
    },
    /// The lines enrolled would sum to more than the charter allows.
    #[error("the charter leaves {left} TRM to enrol; ask for less")]
    LineTotal {
        /// What may still be enrolled.
        left: Trm,
    },
    /// The checkpoint does not follow the one it names, or does not name its chain's last one.
    #[error("the checkpoint does not follow the one before")]
    CheckpointOrder,
    /// The checkpoint's time is not after the one before.
    #[error("a checkpoint's time must be after {after}")]
    CheckpointTime {
        /// The time of the one before.
        after: Timestamp,
    },
    /// The checkpoint's parameters, supply or decisions are not what the charter makes them.
    #[error("the checkpoint's parameters, supply or decisions do not follow from the charter")]
    CheckpointContent,
    /// The balance would fall below the floor.
    #[error("the balance would be {short_micro} µTRM below what the line allows")]
    BelowFloor {
        /// How much is missing, in µTRM.
        short_micro: u128,
    },
    /// The balance would not fit 64 bits.
    #[error("the balance would exceed what can be written")]
    Overflow,
    /// The balance in the entry is not what its effect makes it.
    #[error("the entry says its balance is {given}, it is {expected} µTRM")]
    WrongBalance {
        /// The right balance in µTRM.
        expected: i64,
        /// The one written in µTRM.
        given: i64,
    },
    /// As many entries that are not final are held as may be.
    #[error("too many entries wait for becoming final; try again later")]
    Full,
}

impl EntryRejection {
    /// Whether an honest peer could not have sent this, so that sending it counts against it.
    pub const fn is_peer_fault(&self) -> bool {
        !matches!(
            self,
            Self::UnknownKind { .. }
                | Self::SlotTaken { .. }
                | Self::Frozen
                | Self::TooManyRivals { .. }
                | Self::Missing { .. }
                | Self::MissingCharter { .. }
                | Self::Full
        )
    }
}

/// Why a witness does not acknowledge an entry (yet), in order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcknowledgeRefusal {
    /// The key is no witness of the charter in force.
    #[error("this key is no witness of the charter in force")]
    NotAWitness,
    /// The witness has signed the next charter and acknowledges nothing under this one.
    #[error("this witness has signed the next charter; adopt it first")]
    Retired,
    /// The entry is final already.
    #[error("the entry is final already")]
    Final,
    /// The entry is not held here.
    #[error("the entry is not known here; send it first")]
    Unknown,
    /// The chain is frozen.
    #[error("the chain is frozen")]
    Frozen,
    /// The slot is final with another entry, or this witness acknowledged another one for it.
    #[error("slot {seq} is taken by {taken}")]
    SlotTaken {
        /// The slot's sequence number.
        seq: u64,
        /// The entry that has it.
        taken: DocumentId,
    },
    /// The last charter change found rivals in the slot.
    #[error("slot {seq} is closed until a certificate is shown or a charter reopens it")]
    Closed {
        /// The slot's sequence number.
        seq: u64,
    },
    /// The predecessor is neither final nor acknowledged by this witness.
    #[error("the entry before is neither final nor acknowledged by this witness")]
    PredecessorOpen,
    /// The entry is not valid under the charter in force.
    #[error(transparent)]
    Invalid(#[from] EntryRejection),
    /// A claim against the chain is not paid, neither by this entry nor by one that follows it.
    #[error("{provider} claims {left} TRM of this chain for job {job}; send the payment with it")]
    UnpaidClaim {
        /// Who claims.
        provider: tirami_core::PartyId,
        /// For what.
        job: tirami_core::JobId,
        /// What is left to pay.
        left: Trm,
    },
    /// The checkpoint's time is more than 60 s ahead of the witness's clock.
    #[error("the checkpoint's time is {ahead_ms} ms ahead of this clock; try again later")]
    CheckpointAhead {
        /// How far ahead it is, in ms.
        ahead_ms: u64,
    },
    /// The chains that the checkpoint covers are not known; they are when the clerk's cut has
    /// been received, or when this node's chains stand where the clerk's do.
    #[error("the heads the checkpoint covers are not known here; ask the clerk for its cut")]
    CutUnknown,
    /// A head in the cut is below the cut before.
    #[error("the checkpoint's cut is below the one before at chain {chain}")]
    CutBelow {
        /// The chain.
        chain: tirami_core::PartyId,
    },
    /// What the checkpoint lists about welcome lines does not recompute.
    #[error("what the checkpoint decides about welcome lines does not recompute")]
    DecisionsDiffer,
    /// As many chains exist as this witness lets strangers open for nothing.
    #[error("the mesh has {max} chains; only a party with a grant may open another one for now")]
    TooManyChains {
        /// The bound.
        max: usize,
    },
    /// As many welcome lines are open as this witness follows.
    #[error("{max} welcome lines are open; try again when some have ended")]
    TooManyWelcomes {
        /// The bound.
        max: usize,
    },
    /// What the checkpoint says of supply does not recompute.
    #[error("what the checkpoint says was burned or lost does not recompute")]
    SupplyDiffers,
}

/// Why a cut was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CutRejection {
    /// The entry is no checkpoint that is known here.
    #[error("the entry is no checkpoint known here; fetch it first")]
    NotACheckpoint,
    /// A head is not final here.
    #[error("slot {seq} of chain {chain} is not final here; fetch it first")]
    NotFinal {
        /// The chain.
        chain: tirami_core::PartyId,
        /// The head's sequence number.
        seq: u64,
    },
    /// The heads are not those the checkpoint was made of.
    #[error("the heads do not give the root that stands in the checkpoint")]
    WrongRoot,
}
