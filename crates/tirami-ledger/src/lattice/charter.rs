//! The charter: the signed constitution of a mesh (MONEY §2).

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};
use tirami_core::{
    Document, DocumentId, KeyError, MeshId, PartyId, Ppm, PublicKey, SecretKey, Signature,
    SignedError, Trm, signing_message,
};

use super::entry::SignedEntry;
use super::state::Slot;

/// The most witnesses a charter names: a set of them fits one 32-bit mask.
pub const WITNESSES_MAX: usize = 31;
/// The most auditors a charter names.
pub const AUDITORS_MAX: usize = 64;
/// The most slots one charter reopens.
pub const REOPENED_MAX: usize = 128;
/// The longest name of a mesh, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Where a mesh's charter is signed: before the mesh has an id.
const BEFORE_MESH: MeshId = MeshId::from_bytes([0; 32]);
const APPROVAL_KIND: &str = "charter-approval";

/// One version of a mesh's constitution.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Charter {
    /// What people call the mesh, at most [`NAME_BYTES_MAX`] bytes.
    #[n(0)]
    pub name: String,
    /// 1 for the first, then one more for each change.
    #[n(1)]
    pub version: u32,
    /// The id of the version before; none for version 1.
    #[n(2)]
    pub previous: Option<DocumentId>,
    /// Who acknowledges entries, 1 to [`WITNESSES_MAX`], each once.
    #[n(3)]
    pub witnesses: Vec<PublicKey>,
    /// How many acknowledgements make an entry final: more than half of the witnesses.
    #[n(4)]
    pub quorum: u8,
    /// Whose chain carries checkpoints.
    #[n(5)]
    pub clerk: PartyId,
    /// Whose chain enrols members.
    #[n(6)]
    pub registrar: PartyId,
    /// Whose verdicts count, at most [`AUDITORS_MAX`].
    #[n(7)]
    pub auditors: Vec<PartyId>,
    /// The most that the lines enrolled on the registrar's chain may sum to.
    #[n(8)]
    pub line_total: Trm,
    /// The numbers in the rules.
    #[n(9)]
    pub params: Params,
    /// Closed slots that this version opens again, at most [`REOPENED_MAX`].
    ///
    /// The witnesses who sign it vouch that no certificate exists for a rival in them: one that
    /// is shown later is honoured all the same and freezes the chain.
    #[n(10)]
    pub reopens: Vec<Slot>,
}

/// The numbers in the rules of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Params {
    /// The share of a payment that is burned, rounded up.
    #[n(0)]
    pub fee_ppm: Ppm,
    /// The least time between two checkpoints, in milliseconds. The default stands for an hour
    /// where there are more than 1 000 parties (MONEY §6).
    #[n(1)]
    pub checkpoint_ms: u64,
    /// The most TRM that may ever be minted.
    #[n(2)]
    pub cap: Trm,
    /// The line a member is enrolled with when nobody says otherwise.
    #[n(3)]
    pub line_default: Trm,
    /// The most that a sponsor locks for a newcomer; zero in charters that do not say: nobody is
    /// sponsored then.
    #[cbor(n(4), default, skip_if = "none")]
    pub welcome: Trm,
}

/// Left out of the bytes where it says nothing, so that equal charters have equal bytes.
fn none(amount: &Trm) -> bool {
    amount.is_zero()
}

impl Default for Params {
    /// No fee, a checkpoint every ten minutes, a cap of 21·10⁹ TRM, lines of 10⁶ TRM, 1 000 TRM
    /// for newcomers.
    fn default() -> Self {
        Self {
            fee_ppm: Ppm::ZERO,
            checkpoint_ms: 600_000,
            cap: Trm::from_micro(21_000_000_000_000_000),
            line_default: Trm::from_micro(1_000_000_000_000),
            welcome: Trm::from_micro(1_000_000_000),
        }
    }
}

/// Why a charter was refused, in order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CharterError {
    /// The bytes are not a charter.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// The name is too long.
    #[error("the name of a mesh has at most {NAME_BYTES_MAX} bytes; choose a shorter one")]
    Name,
    /// There are no witnesses, too many, or one of them twice.
    #[error("a charter names 1 to {WITNESSES_MAX} witnesses, each once; it names {count}")]
    Witnesses {
        /// Witnesses that the charter names.
        count: usize,
    },
    /// The quorum is not more than half of the witnesses, or more than all.
    #[error(
        "a quorum of {quorum} among {count} witnesses is unsafe; it must be {least} to {count}"
    )]
    Quorum {
        /// The quorum that the charter names.
        quorum: u8,
        /// Its witnesses.
        count: usize,
        /// The smallest quorum allowed.
        least: usize,
    },
    /// There are too many auditors.
    #[error("a charter names at most {AUDITORS_MAX} auditors; it names {count}")]
    Auditors {
        /// Auditors that the charter names.
        count: usize,
    },
    /// It reopens too many slots.
    #[error("a charter reopens at most {REOPENED_MAX} slots; it reopens {count}")]
    Reopens {
        /// Slots that the charter reopens.
        count: usize,
    },
    /// The time between checkpoints is zero.
    #[error("checkpoint_ms must be at least 1")]
    CheckpointInterval,
    /// The first version of a mesh has another version number, a predecessor, or reopens slots.
    #[error("the first charter of a mesh has version 1, no predecessor and reopens nothing")]
    NotFirst,
    /// It is not the next version of this mesh's charter.
    #[error("this mesh is at charter version {current}; version {given} does not follow it")]
    NotNext {
        /// The version in force here.
        current: u32,
        /// The version of the refused charter.
        given: u32,
    },
    /// It does not name the charter in force as its predecessor.
    #[error("the charter does not name the one in force as its predecessor")]
    WrongPrevious,
    /// It reopens a slot that is final or has no rivals here.
    #[error("slot {seq} of chain {chain} is not closed, so there is nothing to reopen")]
    NotClosed {
        /// The chain of the slot.
        chain: PartyId,
        /// The sequence number of the slot.
        seq: u64,
    },
    /// The signer is no witness of the charter in force.
    #[error("{witness} is no witness of the charter in force")]
    NotAWitness {
        /// The key that signed.
        witness: PublicKey,
    },
    /// The witness has signed another successor of the same version.
    #[error("this witness has signed another successor of the charter in force")]
    OtherSuccessor,
    /// The entries that the witness acknowledged and that are not final are too many to attach.
    #[error(
        "the entries acknowledged and not final have {bytes} bytes, {max} fit an approval; nothing \
         was signed; try again when they are final, or let the charter reopen closed slots"
    )]
    InFlight {
        /// Their bytes.
        bytes: usize,
        /// The most that fit.
        max: usize,
    },
    /// An approval is for another charter, is given twice, or attaches something else.
    #[error("the approval of {witness} does not fit the charter")]
    Approval {
        /// The key that signed.
        witness: PublicKey,
    },
    /// Too few witnesses signed.
    #[error("{signed} of the old witnesses signed the charter, {quorum} must")]
    TooFew {
        /// Witnesses that signed.
        signed: usize,
        /// Witnesses that must.
        quorum: u8,
    },
    /// A signature is wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Charter {
    /// The charter of a new private mesh: the founder's node is its only witness, its clerk and
    /// its registrar.
    pub fn founder(name: impl Into<String>, founder: PublicKey, line_total: Trm) -> Self {
        Self {
            name: name.into(),
            version: 1,
            previous: None,
            witnesses: vec![founder],
            quorum: 1,
            clerk: founder.party(),
            registrar: founder.party(),
            auditors: Vec::new(),
            line_total,
            params: Params::default(),
            reopens: Vec::new(),
        }
    }

    /// The quorum for `witnesses` witnesses unless the charter says otherwise: two of three, else
    /// one more than two thirds, rounded down.
    pub const fn default_quorum(witnesses: u8) -> u8 {
        match witnesses {
            3 => 2,
            // Two thirds of at most 255 fit; the product would not.
            n => (n as u16 * 2 / 3) as u8 + 1,
        }
    }

    /// How many dishonest witnesses change nothing: `2q − n − 1`.
    pub fn witnesses_tolerated(&self) -> usize {
        (2 * usize::from(self.quorum)).saturating_sub(self.witnesses.len() + 1)
    }

    /// How many witnesses may be away while entries still become final: `n − q`.
    pub fn away_tolerated(&self) -> usize {
        self.witnesses.len().saturating_sub(usize::from(self.quorum))
    }

    /// Checks everything about a charter that needs no other document.
    ///
    /// # Errors
    ///
    /// The first of [`CharterError`]'s variants up to `CheckpointInterval` that applies.
    pub fn validate(&self) -> Result<(), CharterError> {
        if self.name.len() > NAME_BYTES_MAX {
            return Err(CharterError::Name);
        }
        let count = self.witnesses.len();
        let distinct: BTreeSet<_> = self.witnesses.iter().collect();
        if count == 0 || count > WITNESSES_MAX || distinct.len() < count {
            return Err(CharterError::Witnesses { count });
        }
        let least = count / 2 + 1;
        if usize::from(self.quorum) < least || usize::from(self.quorum) > count {
            return Err(CharterError::Quorum { quorum: self.quorum, count, least });
        }
        if self.auditors.len() > AUDITORS_MAX {
            return Err(CharterError::Auditors { count: self.auditors.len() });
        }
        if self.reopens.len() > REOPENED_MAX {
            return Err(CharterError::Reopens { count: self.reopens.len() });
        }
        if self.params.checkpoint_ms == 0 {
            return Err(CharterError::CheckpointInterval);
        }
        Ok(())
    }

    /// The mesh id under which version 1 is signed: a mesh has no id before its charter.
    pub const fn founding_mesh() -> MeshId {
        BEFORE_MESH
    }

    /// The place of `witness` in the list, as a mask of one bit.
    pub(super) fn witness_bit(&self, witness: &PublicKey) -> Option<u32> {
        self.witnesses.iter().position(|known| known == witness).map(|index| 1 << index)
    }

    /// The witnesses whose bits are in `signers`.
    pub(super) fn witnesses_in(&self, signers: u32) -> impl Iterator<Item = PublicKey> {
        self.witnesses
            .iter()
            .enumerate()
            .filter(move |(index, _)| signers & (1 << index) != 0)
            .map(|(_, witness)| *witness)
    }
}

impl Document for Charter {
    const KIND: &'static str = "charter";
}

/// An old witness's signature under the next version of the charter.
///
/// It attaches every entry the witness acknowledged that is not final to it, so that the new
/// witnesses acknowledge no rival of an entry whose certificate may be on its way.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CharterApproval {
    /// The id of the charter that is approved.
    #[n(0)]
    pub charter: DocumentId,
    /// Who approves.
    #[n(1)]
    pub witness: PublicKey,
    /// What it acknowledged and does not know to be final.
    #[n(2)]
    pub acknowledged: Vec<SignedEntry>,
    /// Its signature over the charter's id and the ids of the attached entries.
    #[n(3)]
    pub signature: Signature,
}

impl CharterApproval {
    /// Signs `charter` and attaches `acknowledged`.
    pub fn sign(
        mesh: MeshId,
        witness: &SecretKey,
        charter: DocumentId,
        acknowledged: Vec<SignedEntry>,
    ) -> Self {
        let signature = witness.sign(&approval_message(mesh, charter, &acknowledged));
        Self { charter, witness: witness.public(), acknowledged, signature }
    }

    /// Checks the signature.
    ///
    /// # Errors
    ///
    /// [`KeyError`] says whether the key or the signature is at fault.
    pub fn verify(&self, mesh: MeshId) -> Result<(), KeyError> {
        let message = approval_message(mesh, self.charter, &self.acknowledged);
        self.witness.verify(&message, &self.signature)
    }
}

fn approval_message(mesh: MeshId, charter: DocumentId, entries: &[SignedEntry]) -> Vec<u8> {
    let mut body = charter.as_bytes().to_vec();
    for entry in entries {
        body.extend_from_slice(entry.id().as_bytes());
    }
    signing_message(APPROVAL_KIND, mesh, &body)
}
