//! Names of things: 32-byte digests and keys, 16-byte job ids, written as lower-case hex.

use core::fmt;
use core::str::FromStr;

use minicbor::{Decode, Encode};

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It does not have the right number of characters.
    #[error("an id of this kind has {expected} hexadecimal characters")]
    Length {
        /// Hexadecimal characters an id of this kind has.
        expected: usize,
    },
    /// A character is not a lower-case hexadecimal digit.
    #[error("an id has only the characters 0-9 and a-f")]
    NotHex,
    /// A DID does not begin with `did:tirami:`.
    #[error("an agent's DID has the form did:tirami:<64 hexadecimal characters>")]
    NotDid,
}

/// The bytes of `N × 2` lower-case hexadecimal characters.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    if text.len() != N * 2 {
        return Err(IdError::Length { expected: N * 2 });
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(IdError::NotHex),
    };
    let mut bytes = [0; N];
    for (target, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *target = digit(pair[0])? * 16 + digit(pair[1])?;
    }
    Ok(bytes)
}

pub(crate) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $size:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "minicbor::bytes")] [u8; $size]);

        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $size]) -> Self {
                Self(bytes)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $size] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "("))?;
                write_hex(&self.0[..4], f)?;
                write!(f, "…)")
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

id!(
    /// A party: the first Ed25519 public key of a chain, or the key of an agent where an agent
    /// acts as the consumer of a job.
    PartyId, 32
);
id!(
    /// An agent: the Ed25519 public key of an account in its host's book.
    ///
    /// [`AgentId::did`] is its form for people and other systems.
    AgentId, 32
);
id!(
    /// A mesh: the id of version 1 of its charter.
    MeshId, 32
);
id!(
    /// A signed document or entry: blake3 of exactly the bytes its signature covers.
    DocumentId, 32
);
id!(
    /// A model: blake3 of its GGUF file (of all shards, in order).
    ModelDigest, 32
);
id!(
    /// blake3 of any other content, such as a request or an answer.
    Digest, 32
);
id!(
    /// A job, drawn at random by its consumer's node.
    JobId, 16
);

impl AgentId {
    /// The agent's decentralised identifier, `did:tirami:<64 hex>`.
    pub fn did(&self) -> String {
        format!("did:tirami:{self}")
    }

    /// Reads `did:tirami:<64 hex>`.
    ///
    /// # Errors
    ///
    /// [`IdError`] when the text has another form.
    pub fn from_did(did: &str) -> Result<Self, IdError> {
        did.strip_prefix("did:tirami:").ok_or(IdError::NotDid)?.parse()
    }

    /// The agent as the consumer or provider of a job.
    pub const fn party(self) -> PartyId {
        PartyId(self.0)
    }
}

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

/// How many buckets chains fall into where nodes compare what they hold.
pub const BUCKETS: u8 = 64;

/// The bucket of a chain: the first six bits of its id.
pub const fn bucket_of(chain: PartyId) -> u8 {
    chain.0[0] >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text() {
        let id = PartyId::from_bytes([0xa5; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let agent = AgentId::from_bytes([7; 32]);
        assert_eq!(AgentId::from_did(&agent.did()), Ok(agent));
    }

    #[test]
    fn other_texts_are_refused() {
        assert_eq!("ab".parse::<JobId>(), Err(IdError::Length { expected: 32 }));
        assert_eq!("G".repeat(32).parse::<JobId>(), Err(IdError::NotHex));
        assert_eq!("é".repeat(16).parse::<JobId>(), Err(IdError::NotHex));
        assert_eq!(AgentId::from_did("did:key:z"), Err(IdError::NotDid));
    }
}
