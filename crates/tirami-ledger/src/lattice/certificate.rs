//! Acknowledgements of witnesses, and certificates made of them (MONEY §4).
//!
//! Every signature is verified strictly and one by one. Batch verification of Ed25519 multiplies
//! by the cofactor's blind spot: it accepts signatures with a torsion component that strict
//! verification refuses. A node that batched and one that did not could then disagree about what
//! is final, which is the one thing they must never disagree about.

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, KeyError, MeshId, PublicKey, SecretKey, Signature, signing_message};

use super::charter::{Charter, WITNESSES_MAX};
use super::rejection::EntryRejection;

const ACKNOWLEDGEMENT_KIND: &str = "ack";

/// A witness's promise: this entry and no other in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Acknowledgement {
    /// The version of the charter that makes the signer a witness.
    #[n(0)]
    pub charter_version: u32,
    /// The entry.
    #[n(1)]
    pub entry: DocumentId,
    /// Who acknowledges.
    #[n(2)]
    pub witness: PublicKey,
    /// Its signature over version and entry.
    #[n(3)]
    pub signature: Signature,
}

impl Acknowledgement {
    /// Signs without asking whether the witness may: [`super::Lattice::acknowledge`] asks.
    pub fn sign(mesh: MeshId, charter_version: u32, entry: DocumentId, key: &SecretKey) -> Self {
        let signature = key.sign(&acknowledgement_message(mesh, charter_version, entry));
        Self { charter_version, entry, witness: key.public(), signature }
    }

    /// Checks the signature; whether the signer is a witness is the charter's to say.
    ///
    /// # Errors
    ///
    /// [`KeyError`] says whether the key or the signature is at fault.
    pub fn verify(&self, mesh: MeshId) -> Result<(), KeyError> {
        let message = acknowledgement_message(mesh, self.charter_version, self.entry);
        self.witness.verify(&message, &self.signature)
    }
}

/// Acknowledgements of one entry by a quorum of one charter's witnesses, in any order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Certificate {
    /// At least the quorum and at most all of the witnesses, each once.
    #[n(0)]
    pub acknowledgements: Vec<Acknowledgement>,
}

impl Certificate {
    /// The charter version all acknowledgements name; `None` when they are none or differ.
    pub fn charter_version(&self) -> Option<u32> {
        let version = self.acknowledgements.first()?.charter_version;
        self.acknowledgements.iter().all(|ack| ack.charter_version == version).then_some(version)
    }

    /// Checks that a quorum of `charter` acknowledged `entry`; gives the mask of the signers.
    /// Verifies each signature once.
    pub(super) fn check(
        &self,
        mesh: MeshId,
        charter: &Charter,
        entry: DocumentId,
    ) -> Result<u32, EntryRejection> {
        if self.acknowledgements.len() > WITNESSES_MAX {
            return Err(EntryRejection::CertificateMismatch);
        }
        let mut signers = 0_u32;
        for ack in &self.acknowledgements {
            let bit = charter.witness_bit(&ack.witness);
            let bit = bit.ok_or(EntryRejection::NotAWitness { witness: ack.witness })?;
            if ack.entry != entry || ack.charter_version != charter.version || signers & bit != 0 {
                return Err(EntryRejection::CertificateMismatch);
            }
            signers |= bit;
        }
        if signers.count_ones() < u32::from(charter.quorum) {
            return Err(EntryRejection::CertificateShort {
                signed: signers.count_ones(),
                quorum: charter.quorum,
            });
        }
        // One message for all: an acknowledgement's bytes do not name the witness, its key does.
        let message = acknowledgement_message(mesh, charter.version, entry);
        for ack in &self.acknowledgements {
            ack.witness
                .verify(&message, &ack.signature)
                .map_err(|_| EntryRejection::BadAcknowledgement { witness: ack.witness })?;
        }
        Ok(signers)
    }
}

fn acknowledgement_message(mesh: MeshId, charter_version: u32, entry: DocumentId) -> Vec<u8> {
    // A CBOR map {0: version, 1: entry} with a version of fixed width.
    let mut body = Vec::with_capacity(42);
    body.extend_from_slice(&[0xa2, 0x00, 0x1a]);
    body.extend_from_slice(&charter_version.to_be_bytes());
    body.extend_from_slice(&[0x01, 0x58, 0x20]);
    body.extend_from_slice(entry.as_bytes());
    signing_message(ACKNOWLEDGEMENT_KIND, mesh, &body)
}
