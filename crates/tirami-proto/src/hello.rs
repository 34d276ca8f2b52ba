//! The first and the last words on a connection, and the proof that a newcomer was invited.

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use tirami_core::{MeshId, PartyId};

use crate::wire::CHARTERS_PER_FRAME_MAX;
use crate::{ADDRESS_BYTES_MAX, PROTOCOL, PROTOCOL_MIN, WireCharter, bounded};

/// Addresses a node tells of itself at most.
pub const ADDRESSES_MAX: usize = 8;
/// Bytes of the name and version of a peer's software at most.
pub const AGENT_BYTES_MAX: usize = 64;
/// Bytes of a sentence from a peer at most.
pub const REASON_BYTES_MAX: usize = 512;

/// In [`Hello::features`]: the sender keeps only the chains it has to do with. Others compare no
/// summaries with it and ask it for no other chain than those it tells of.
pub const FEATURE_KEEPS_OWN: u64 = 1;

/// The first message of both sides. Who speaks is known from the connection: its key is the
/// node's key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The oldest protocol version the sender speaks.
    #[n(0)]
    pub protocol_min: u16,
    /// The newest protocol version the sender speaks.
    #[n(1)]
    pub protocol: u16,
    /// Bit set of optional abilities. Bits a node does not know mean nothing to it.
    #[n(2)]
    pub features: u64,
    /// The mesh the sender belongs to or wants to join.
    #[n(3)]
    pub mesh: MeshId,
    /// The newest version of the charter the sender holds; 0 for a newcomer without any.
    #[n(4)]
    pub charter_version: u32,
    /// [`admission_proof`] from the sender to the receiver, if the sender holds the secret.
    #[cbor(
        n(5),
        encode_with = "bounded::write_some_key",
        decode_with = "bounded::some_key",
        nil = "bounded::none",
        is_nil = "bounded::is_none"
    )]
    pub admission: Option<[u8; 32]>,
    /// Where the sender can be reached, each as a [`crate::Via`] prints.
    #[cbor(n(6), decode_with = "bounded::texts::<_, {ADDRESSES_MAX as u64}, ADDRESS_BYTES_MAX>")]
    pub addresses: Vec<String>,
    /// Name and version of the sender's software, for people.
    #[cbor(n(7), decode_with = "bounded::text::<_, AGENT_BYTES_MAX>")]
    pub agent: String,
}

/// The answer to a hello that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// The version both sides speak from now on.
    #[n(0)]
    pub protocol: u16,
    /// Optional abilities both sides have.
    #[n(1)]
    pub features: u64,
    /// Charter versions after the one the hello named.
    #[cbor(n(2), decode_with = "bounded::list::<_, WireCharter, {CHARTERS_PER_FRAME_MAX as u64}>")]
    pub charters: Vec<WireCharter>,
    /// Where the receiver of this message seems to be, as `IP:PORT`.
    #[cbor(
        n(3),
        decode_with = "bounded::some_text::<_, ADDRESS_BYTES_MAX>",
        nil = "bounded::none"
    )]
    pub your_address: Option<String>,
}

/// The last message of a side that closes a connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Goodbye {
    /// Why.
    #[n(0)]
    pub code: GoodbyeCode,
    /// The same for people.
    #[cbor(n(1), decode_with = "bounded::text::<_, REASON_BYTES_MAX>")]
    pub reason: String,
    /// How long the other side should wait before it comes back; 0 when that does not matter.
    #[n(2)]
    pub retry_after_ms: u64,
}

/// Why a side closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GoodbyeCode {
    /// No protocol version is spoken by both.
    Version,
    /// The sides belong to different meshes.
    WrongMesh,
    /// The mesh is private and the hello did not prove knowledge of its secret.
    NotAdmitted,
    /// The owner does not want this peer.
    Blocked,
    /// The node has as many connections as it can hold.
    TooMany,
    /// The peer sent too much that was invalid.
    Misbehaved,
    /// The node is being stopped.
    Stopping,
    /// A reason that this version does not know.
    Other,
}

/// Codes in the order of their numbers on the wire.
const CODES: [GoodbyeCode; 7] = [
    GoodbyeCode::Version,
    GoodbyeCode::WrongMesh,
    GoodbyeCode::NotAdmitted,
    GoodbyeCode::Blocked,
    GoodbyeCode::TooMany,
    GoodbyeCode::Misbehaved,
    GoodbyeCode::Stopping,
];

impl<C> Encode<C> for GoodbyeCode {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        let number = CODES.iter().position(|code| code == self).unwrap_or(CODES.len());
        e.u64(number as u64)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for GoodbyeCode {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let number = d.u64()?;
        let code = usize::try_from(number).ok().and_then(|number| CODES.get(number));
        Ok(code.copied().unwrap_or(Self::Other))
    }
}

/// The newest version that this code and the sender of `hello` both speak.
pub const fn common_version(hello: &Hello) -> Option<u16> {
    let newest = if hello.protocol < PROTOCOL { hello.protocol } else { PROTOCOL };
    let oldest = if hello.protocol_min > PROTOCOL_MIN { hello.protocol_min } else { PROTOCOL_MIN };
    if newest < oldest { None } else { Some(newest) }
}

/// Proof that `sender` knows the mesh's secret. It is worth something to `receiver` only, and only
/// on a connection whose key is `sender`'s, so overhearing it helps nobody.
pub fn admission_proof(
    secret: &[u8; 32],
    mesh: MeshId,
    sender: PartyId,
    receiver: PartyId,
) -> [u8; 32] {
    *proof(secret, mesh, sender, receiver).as_bytes()
}

/// Whether `shown` is the [`admission_proof`] of `sender` to `receiver`; compared in constant time.
pub fn admission_fits(
    shown: &[u8; 32],
    secret: &[u8; 32],
    mesh: MeshId,
    sender: PartyId,
    receiver: PartyId,
) -> bool {
    proof(secret, mesh, sender, receiver) == blake3::Hash::from_bytes(*shown)
}

fn proof(secret: &[u8; 32], mesh: MeshId, sender: PartyId, receiver: PartyId) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(b"tirami/admission/1");
    hasher.update(mesh.as_bytes()).update(sender.as_bytes()).update(receiver.as_bytes());
    hasher.finalize()
}
