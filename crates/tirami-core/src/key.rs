//! Ed25519 keys and signatures, verified strictly.

use core::fmt;
use core::str::FromStr;

use ed25519_dalek::Signer as _;
use minicbor::{Decode, Encode};
use zeroize::Zeroize as _;

use crate::id::{IdError, parse_hex, write_hex};
use crate::remember::Check;
use crate::{AgentId, PartyId};

/// Why a key or a signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The 32 bytes are no Ed25519 public key.
    #[error("the key is not an Ed25519 public key")]
    NotAKey,
    /// The signature is not this key's over this message.
    #[error("the signature does not fit the key and the message")]
    BadSignature,
}

/// An Ed25519 public key, 32 bytes. Whether they are a point of the curve shows on verifying.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct PublicKey(#[cbor(n(0), with = "minicbor::bytes")] [u8; 32]);

impl PublicKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The party whose first key this is.
    pub const fn party(self) -> PartyId {
        PartyId::from_bytes(self.0)
    }

    /// The agent with this key.
    pub const fn agent(self) -> AgentId {
        AgentId::from_bytes(self.0)
    }

    /// Checks `signature` over `message`, strictly: malleable signatures and keys of small order
    /// are refused.
    ///
    /// # Errors
    ///
    /// [`KeyError`] says whether the key or the signature is at fault.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        let check = Check::of(self, message, signature);
        if check.as_ref().is_some_and(Check::passed_before) {
            return Ok(());
        }
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| KeyError::NotAKey)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(message, &signature).map_err(|_| KeyError::BadSignature)?;
        if let Some(check) = check {
            check.passed();
        }
        Ok(())
    }
}

impl From<PartyId> for PublicKey {
    fn from(party: PartyId) -> Self {
        Self(*party.as_bytes())
    }
}

impl From<AgentId> for PublicKey {
    fn from(agent: AgentId) -> Self {
        Self(*agent.as_bytes())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text).map(Self)
    }
}

/// An Ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Signature(#[cbor(n(0), with = "minicbor::bytes")] [u8; 64]);

impl Signature {
    /// The signature with these bytes.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The signature's bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature(")?;
        write_hex(&self.0[..4], f)?;
        write!(f, "…)")
    }
}

impl FromStr for Signature {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text).map(Self)
    }
}

/// An Ed25519 secret key. Its bytes are erased when it is dropped and never printed.
#[derive(Clone)]
pub struct SecretKey(ed25519_dalek::SigningKey);

impl SecretKey {
    /// The key that grows from 32 random bytes.
    pub fn from_seed(mut seed: [u8; 32]) -> Self {
        let key = ed25519_dalek::SigningKey::from_bytes(&seed);
        seed.zeroize();
        Self(key)
    }

    /// The 32 bytes the key grows from; whoever has them can sign as its owner.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`. The same key and message always give the same signature.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_fits_its_key_and_message_only() {
        let key = SecretKey::from_seed([1; 32]);
        let other = SecretKey::from_seed([2; 32]);
        let signature = key.sign(b"message");
        assert_eq!(key.public().verify(b"message", &signature), Ok(()));
        assert_eq!(key.public().verify(b"massage", &signature), Err(KeyError::BadSignature));
        assert_eq!(other.public().verify(b"message", &signature), Err(KeyError::BadSignature));
    }

    #[test]
    fn a_key_of_small_order_verifies_nothing() {
        let identity = {
            let mut bytes = [0; 32];
            bytes[0] = 1;
            PublicKey::from_bytes(bytes)
        };
        let signature = Signature::from_bytes([0; 64]);
        assert!(identity.verify(b"anything", &signature).is_err());
    }

    #[test]
    fn a_secret_key_does_not_print_itself() {
        let key = SecretKey::from_seed([9; 32]);
        assert!(!format!("{key:?}").contains("0909"));
    }
}
