//! How peers are found besides by the addresses they tell of, and over which relays they may be
//! reached.
//!
//! Reaching a relay is a request to its server. What others tell of themselves names whatever they
//! like, so a relay is used only where the owner named it: in the settings, in a peer to begin with
//! or in an invite; and where a connection came over it before.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use iroh::address_lookup::{AddressLookup, EndpointData, EndpointInfo, Error, Item};
use iroh::dns::{DnsResolver, NameserverConfig};
use iroh::{EndpointId, RelayMode, RelayUrl, TransportAddr};
use tirami_proto::{PeerAddress, Via};

use super::MeshError;

/// Relays used because a peer was named or reached over them, beside those of the settings.
pub const RELAYS_NAMED_MAX: usize = 16;
/// Bytes of a domain below which nodes are looked up: with a key before it, it is still a name.
const ORIGIN_BYTES_MAX: usize = 190;

/// What helps nodes to find each other, besides the addresses they tell of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// Relays over which nodes connect that cannot reach each other directly.
    pub relay_urls: Vec<String>,
    /// Whether to look in the local network, and to be found there.
    pub lan: bool,
    /// A pkarr server to leave addresses at and to ask for them.
    pub pkarr_url: Option<String>,
    /// A domain below which addresses of nodes are looked up.
    pub dns: Option<DnsOrigin>,
}

impl Finding {
    /// The same, with the relays over which these peers are reached.
    pub(crate) fn naming<'a>(mut self, peers: impl IntoIterator<Item = &'a PeerAddress>) -> Self {
        let most = self.relay_urls.len() + RELAYS_NAMED_MAX;
        for via in peers.into_iter().flat_map(|peer| &peer.via) {
            let Via::Relay(url) = via else { continue };
            let is_new = url.parse::<RelayUrl>().is_ok() && !self.relay_urls.contains(url);
            if is_new && self.relay_urls.len() < most {
                self.relay_urls.push(url.clone());
            }
        }
        self
    }

    pub(super) fn relays(&self) -> Result<Arc<Relays>, MeshError> {
        let parse = |url: &String| {
            url.parse::<RelayUrl>().map_err(|_| MeshError::Relay { url: url.clone() })
        };
        self.relay_urls.iter().map(parse).collect::<Result<_, _>>().map(Relays).map(Arc::new)
    }
}

/// The relays that this node uses.
#[derive(Debug)]
pub(super) struct Relays(BTreeSet<RelayUrl>);

impl Relays {
    pub(super) fn mode(&self) -> RelayMode {
        if self.0.is_empty() {
            RelayMode::Disabled
        } else {
            RelayMode::custom(self.0.iter().cloned())
        }
    }

    /// Whether a peer may be dialled this way.
    pub(super) fn allow(&self, way: &TransportAddr) -> bool {
        match way {
            TransportAddr::Relay(url) => self.0.contains(url),
            TransportAddr::Ip(_) => true,
            _ => false,
        }
    }
}

/// A service that finds addresses, without relays that this node does not use.
#[derive(Debug)]
pub(super) struct Within<L> {
    pub(super) lookup: L,
    pub(super) relays: Arc<Relays>,
}

impl<L: AddressLookup> AddressLookup for Within<L> {
    fn publish(&self, data: &EndpointData) {
        self.lookup.publish(data);
    }

    fn resolve(&self, id: EndpointId) -> Option<BoxStream<'static, Result<Item, Error>>> {
        let (found, relays) = (self.lookup.resolve(id)?, Arc::clone(&self.relays));
        let within = move |item: Item| {
            let ways = item.addrs().filter(|way| relays.allow(way)).cloned().collect();
            let info = EndpointInfo::from_parts(item.endpoint_id(), EndpointData::new(ways));
            Item::new(info, item.provenance(), item.last_updated())
        };
        Some(found.map(move |item| item.map(&within)).boxed())
    }
}

/// A domain below which nodes are looked up by their keys, and who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOrigin {
    /// The domain.
    pub origin: String,
    /// The server that is asked; those of the system when there is none.
    pub server: Option<SocketAddr>,
}

impl DnsOrigin {
    pub(super) fn resolver(&self) -> DnsResolver {
        let builder = DnsResolver::builder().disable_fallback();
        match self.server {
            Some(server) => {
                let asked = NameserverConfig::udp(server.ip()).with_port(server.port());
                builder.add_nameserver_config(asked).build()
            }
            None => builder.with_system_defaults().build(),
        }
    }
}

/// Looks up the names of relays and servers: by the system's servers, and never by those that a
/// library falls back to.
pub(super) fn system_resolver() -> DnsResolver {
    DnsResolver::builder().with_system_defaults().disable_fallback().build()
}

impl fmt::Display for DnsOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        self.server.map_or(Ok(()), |server| write!(f, "@{server}"))
    }
}

/// `DOMAIN` or `DOMAIN@IP:PORT`.
impl FromStr for DnsOrigin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (origin, server) = match text.split_once('@') {
            Some((origin, server)) => (origin, Some(server.parse().map_err(|_| ())?)),
            None => (text, None),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
        let fits = origin.len() <= ORIGIN_BYTES_MAX && origin.split('.').all(label);
        if fits { Ok(Self { origin: origin.to_owned(), server }) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_read_with_the_server_that_knows_it_and_nothing_else_is() {
        for text in ["nodes.example", "nodes.example@192.0.2.53:53", "a@[2001:db8::1]:5300"] {
            assert_eq!(text.parse::<DnsOrigin>().unwrap().to_string(), text);
        }
        let long = format!("{}.example", "a".repeat(64));
        for text in ["", ".", "a..b", "a b", "a@", "a@host:53", "a@192.0.2.53", "@1.2.3.4:5", &long]
        {
            assert!(text.parse::<DnsOrigin>().is_err(), "{text}");
        }
    }

    #[test]
    fn relays_are_those_the_owner_named_and_their_number_is_bounded() {
        let key = tirami_core::SecretKey::from_seed([1; 32]).public();
        let url = |n: usize| format!("http://relay{n}.example/");
        let peer = |n| PeerAddress { key, via: vec![Via::Relay(url(n))] };
        let finding = Finding { relay_urls: vec![url(0)], ..Finding::default() };
        let peers: Vec<_> = (0..2 * RELAYS_NAMED_MAX).map(peer).collect();
        let finding = finding.naming(&peers);
        assert_eq!(finding.relay_urls.len(), 1 + RELAYS_NAMED_MAX);
        let relays = finding.relays().unwrap();
        let way = |url: &str| TransportAddr::Relay(url.parse().unwrap());
        assert!(relays.allow(&way("http://relay0.example")) && relays.allow(&way(&url(1))));
        assert!(!relays.allow(&way("http://192.0.2.1/")));
        assert!(relays.allow(&TransportAddr::Ip(([192, 0, 2, 1], 1).into())));
    }
}
