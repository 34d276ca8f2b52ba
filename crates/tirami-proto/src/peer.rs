//! Where peers are: their addresses as text, and invites that fit into one word.

use core::fmt;
use core::net::SocketAddr;
use core::str::FromStr;

use data_encoding::BASE32_NOPAD;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use tirami_core::{MeshId, PartyId, PublicKey};

use crate::bounded;

/// Bytes of a relay's URL at most.
pub const RELAY_BYTES_MAX: usize = 256;
/// Bytes of a peer's address as text at most.
pub const ADDRESS_BYTES_MAX: usize = 64 + 1 + RELAY_BYTES_MAX;
/// Bytes of a host's name at most.
pub const NAME_BYTES_MAX: usize = 253;
/// Ways to reach one peer at most.
pub const VIA_MAX: usize = 8;
/// Peers in an invite at most.
pub const INVITE_PEERS_MAX: usize = 8;
/// How every invite begins.
pub const INVITE_PREFIX: &str = "tirami-invite-";

/// Characters of an invite at most: eight peers with eight long ways each.
const INVITE_BYTES_MAX: usize = 32 * 1024;
/// Bytes of the checksum at the end of an invite.
const CHECKSUM_BYTES: usize = 4;

/// A way to reach a peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Its own address.
    Ip(SocketAddr),
    /// A relay that both sides can reach, as an `https://` or `http://` URL.
    Relay(String),
    /// A host's name and a port, looked up each time it is dialled. Only the owner gives one: from
    /// the wire it is not taken, so that no peer makes a node ask for a name.
    Name(String),
}

/// A peer's key and the ways to reach it; with no way, whoever dials has to find one.
///
/// The text is `PUBKEY`, `PUBKEY@IP:PORT`, `PUBKEY@HOST:PORT` or `PUBKEY@RELAY_URL`; further ways
/// follow after commas.
///
/// # Examples
///
/// ```
/// use tirami_proto::PeerAddress;
/// let text = format!("{}@192.168.1.20:3001", "a5".repeat(32));
/// let peer: PeerAddress = text.parse()?;
/// assert_eq!(peer.to_string(), text);
/// # Ok::<(), tirami_proto::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    /// The peer's node key.
    pub key: PublicKey,
    /// Ways to reach it, best first, at most [`VIA_MAX`].
    pub via: Vec<Via>,
}

/// Why a text is no address of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is longer than any address.
    #[error("an address of a peer has at most {VIA_MAX} ways of {ADDRESS_BYTES_MAX} characters")]
    TooLong,
    /// It does not begin with a key.
    #[error(
        "an address of a peer is PUBKEY, PUBKEY@IP:PORT, PUBKEY@HOST:PORT or PUBKEY@RELAY_URL, and \
         a PUBKEY has 64 characters of 0-9 and a-f"
    )]
    Key,
    /// What follows the `@` is neither an address nor a URL.
    #[error(
        "after the @ stands IP:PORT, [IPv6]:PORT, HOST:PORT, or the http:// or https:// URL of a \
         relay"
    )]
    Via,
}

impl PeerAddress {
    /// The party whose node this is.
    pub const fn party(&self) -> PartyId {
        self.key.party()
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Relay(url) => url.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl Via {
    /// Reads what an owner writes: what stands on the wire, or a host's name and a port.
    fn of_owner(text: &str) -> Result<Self, AddressError> {
        text.parse().or_else(|error| {
            let (name, port) = text.rsplit_once(':').ok_or(error)?;
            let label = |label: &str| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                !label.is_empty() && label.bytes().all(plain)
            };
            // The last part of a name begins with a letter; a number there is a mistyped address.
            let last = name.rsplit('.').next().and_then(|last| last.bytes().next());
            let named = last.is_some_and(|first| first.is_ascii_alphabetic());
            let port = port.parse::<u16>().is_ok_and(|port| port != 0);
            let fits = name.len() <= NAME_BYTES_MAX && name.split('.').all(label);
            if fits && named && port { Ok(Self::Name(text.to_owned())) } else { Err(error) }
        })
    }
}

/// What stands on the wire: an address or a relay.
impl FromStr for Via {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            // Nobody can be reached at port 0 or at "any address".
            let real = address.port() != 0 && !address.ip().is_unspecified();
            return if real { Ok(Self::Ip(address)) } else { Err(AddressError::Via) };
        }
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let host = rest.and_then(|rest| rest.split('/').next()).ok_or(AddressError::Via)?;
        // A comma would end the address, an @ would hide the host behind a user's name.
        let plain = |byte: u8| byte.is_ascii_graphic() && !b",@\"<>\\^`{|}".contains(&byte);
        let fits = text.len() <= RELAY_BYTES_MAX && text.bytes().all(plain);
        let named = host.bytes().next().is_some_and(|byte| byte != b':');
        if fits && named { Ok(Self::Relay(text.to_owned())) } else { Err(AddressError::Via) }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)?;
        for (n, via) in self.via.iter().enumerate() {
            write!(f, "{}{via}", if n == 0 { '@' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > VIA_MAX * ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        let (key, ways) = match text.split_once('@') {
            Some((key, ways)) => (key, Some(ways)),
            None => (text, None),
        };
        let key = key.parse().map_err(|_| AddressError::Key)?;
        let ways = ways.into_iter().flat_map(|ways| ways.split(','));
        let via = ways.map(Via::of_owner).collect::<Result<Vec<Via>, _>>()?;
        if via.len() > VIA_MAX { Err(AddressError::TooLong) } else { Ok(Self { key, via }) }
    }
}

impl<C> Encode<C> for PeerAddress {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, c: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.map(2)?.u8(0)?;
        self.key.encode(e, c)?;
        let told = || self.via.iter().filter(|via| !matches!(via, Via::Name(_)));
        e.u8(1)?.array(told().count() as u64)?;
        told().try_for_each(|via| e.str(&via.to_string()).map(|_| ()))
    }
}

impl<'b, C> Decode<'b, C> for PeerAddress {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, DecodeError> {
        let wire = WirePeer::decode(d, c)?;
        // A kind of way that this version does not know is left out, not refused.
        let via = wire.via.iter().filter_map(|via| via.parse().ok()).collect();
        Ok(Self { key: wire.key, via })
    }
}

#[derive(Decode)]
#[cbor(map)]
struct WirePeer {
    #[n(0)]
    key: PublicKey,
    #[cbor(n(1), decode_with = "bounded::texts::<_, {VIA_MAX as u64}, ADDRESS_BYTES_MAX>")]
    via: Vec<String>,
}

/// Everything a machine needs to join a mesh, in one word that can be copied.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invite {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// Nodes to ask, at most [`INVITE_PEERS_MAX`].
    #[cbor(n(1), decode_with = "bounded::list::<_, PeerAddress, {INVITE_PEERS_MAX as u64}>")]
    pub peers: Vec<PeerAddress>,
    /// The secret of a private mesh: whoever holds it is admitted.
    #[cbor(
        n(2),
        encode_with = "bounded::write_some_key",
        decode_with = "bounded::some_key",
        nil = "bounded::none",
        is_nil = "bounded::is_none"
    )]
    pub secret: Option<[u8; 32]>,
}

/// Why a text is no invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// It does not begin like one.
    #[error("an invite begins with {INVITE_PREFIX}; ask a member to run: tirami mesh invite")]
    Prefix,
    /// A part of it is missing or changed.
    #[error("the invite is incomplete or has a wrong character; copy it again as a whole")]
    Damaged,
    /// It is whole, but says something this version cannot read.
    #[error("the invite was made by a version of Tirami that this one does not understand")]
    Unknown,
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("mesh", &self.mesh)
            .field("peers", &self.peers)
            .field("secret", &self.secret.map(|_| "(hidden)"))
            .finish()
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = minicbor::to_vec(self).map_err(|_| fmt::Error)?;
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        let text = BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
        write!(f, "{INVITE_PREFIX}{text}")
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        if text.len() > INVITE_BYTES_MAX {
            return Err(InviteError::Damaged);
        }
        // Whoever reads it aloud or types it on a phone may mix upper and lower case.
        let text = text.to_ascii_lowercase();
        let word = text.strip_prefix(INVITE_PREFIX).ok_or(InviteError::Prefix)?;
        let word = word.to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(word.as_bytes()).map_err(|_| InviteError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk().ok_or(InviteError::Damaged)?;
        if *sum != checksum(body) {
            return Err(InviteError::Damaged);
        }
        let mut decoder = Decoder::new(body);
        let invite = decoder.decode().map_err(|_| InviteError::Unknown)?;
        if decoder.position() == body.len() { Ok(invite) } else { Err(InviteError::Unknown) }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_BYTES]);
    sum
}
