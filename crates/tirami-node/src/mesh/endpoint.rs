//! The node's QUIC endpoint: which key, which port, which limits, and where it can be reached.
//!
//! Nothing is asked of anybody else's servers: no DNS, no relay, no directory except those the
//! owner names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use iroh::address_lookup::{
    AddrFilter, AddressLookupBuilder, DnsAddressLookup, PkarrPublisher, PkarrResolver,
};
use iroh::endpoint::{BindOpts, Builder, Connection, QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, EndpointAddr, RelayUrl, TransportAddr};
use tirami_core::{PartyId, PublicKey, SecretKey};
use tirami_proto::{ALPN, PeerAddress, VIA_MAX, Via};
use tokio::time::timeout;

use super::MeshError;
use super::doors::Source;
use super::finding::{Finding, Relays, Within, system_resolver};

/// How often a quiet connection shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A connection on which nothing was heard for this long has ended. The last sign of life sent
/// may start the count again, so a dead peer is noticed within this time and [`KEEP_ALIVE`].
const IDLE_TIMEOUT_MS: u32 = 3_000;
/// Streams a peer may have open at the same time: its control stream and its jobs.
pub const STREAMS_PER_PEER_MAX: u32 = 64;
/// Bytes of one stream that may arrive before they are read.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// Bytes of a connection that may arrive before they are read: so many that jobs nobody reads
/// never keep the control stream from being read.
const CONNECTION_WINDOW_BYTES: u32 = (STREAMS_PER_PEER_MAX + 1) * STREAM_WINDOW_BYTES;
/// How long looking up the name of a peer may take.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(3);
/// Bytes sent to a peer that it has not confirmed yet.
const SEND_WINDOW_BYTES: u64 = 4 << 20;

/// Opens the endpoint of the node with this key.
///
/// A port that something else uses is replaced by a free one, unless the owner chose it.
///
/// # Errors
///
/// [`MeshError`] when the address cannot be bound or a URL is none.
pub(super) async fn open(
    key: &SecretKey,
    (bind, is_chosen): (SocketAddr, bool),
    finding: &Finding,
) -> Result<(Endpoint, Arc<Relays>), MeshError> {
    let relays = finding.relays()?;
    let endpoint = match bound(key, bind, finding, &relays).await {
        Err(MeshError::Bind { reason, .. }) if bind.port() != 0 && !is_chosen => {
            let free = SocketAddr::new(bind.ip(), 0);
            let opened = bound(key, free, finding, &relays).await?;
            let taken = opened.bound_sockets().first().map_or(0, SocketAddr::port);
            let port = bind.port();
            tracing::warn!(%reason, "the mesh cannot have UDP port {port} and takes {taken}");
            Ok(opened)
        }
        opened => opened,
    }?;
    look_up(&endpoint, finding, &relays)?;
    Ok((endpoint, relays))
}

async fn bound(
    key: &SecretKey,
    bind: SocketAddr,
    finding: &Finding,
    relays: &Relays,
) -> Result<Endpoint, MeshError> {
    let failed = |reason: String| MeshError::Bind { address: bind, reason };
    let builder = Endpoint::builder(presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&key.seed()))
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(relays.mode())
        .dns_resolver(system_resolver())
        .transport_config(transport())
        .clear_ip_transports();
    let builder = match pkarr_url(finding)? {
        // Leaves this node's addresses, signed, at the owner's server.
        Some(url) => builder.address_lookup(
            PkarrPublisher::builder(url.into()).addr_filter(AddrFilter::unfiltered()),
        ),
        None => builder,
    };
    let builder = with_addresses(builder, bind).map_err(|error| failed(error.to_string()))?;
    builder.bind().await.map_err(|error| failed(error.to_string()))
}

/// The address itself; for "any address" of one kind also that of the other, if there is one.
fn with_addresses(
    builder: Builder,
    bind: SocketAddr,
) -> Result<Builder, iroh::endpoint::InvalidSocketAddr> {
    let builder = builder.bind_addr(bind)?;
    if !bind.ip().is_unspecified() {
        return Ok(builder);
    }
    let other: IpAddr = match bind {
        SocketAddr::V4(_) => Ipv6Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED.into(),
    };
    let optional = BindOpts::default().set_is_required(false);
    builder.bind_addr_with_opts(SocketAddr::new(other, bind.port()), optional)
}

/// Asks the owner's servers for the addresses of others.
fn look_up(endpoint: &Endpoint, finding: &Finding, relays: &Arc<Relays>) -> Result<(), MeshError> {
    if let Some(url) = pkarr_url(finding)? {
        ask(endpoint, PkarrResolver::builder(url.into()), relays);
    }
    if let Some(dns) = &finding.dns {
        let lookup = DnsAddressLookup::builder(dns.origin.clone()).dns_resolver(dns.resolver());
        ask(endpoint, lookup, relays);
    }
    Ok(())
}

fn ask(endpoint: &Endpoint, lookup: impl AddressLookupBuilder, relays: &Arc<Relays>) {
    // Neither fails while the endpoint is open, which it was a moment ago.
    if let (Ok(services), Ok(lookup)) =
        (endpoint.address_lookup(), lookup.into_address_lookup(endpoint))
    {
        services.add(Within { lookup, relays: Arc::clone(relays) });
    }
}

fn pkarr_url(finding: &Finding) -> Result<Option<RelayUrl>, MeshError> {
    let parse = |text: &String| text.parse().map_err(|_| MeshError::Pkarr { url: text.clone() });
    finding.pkarr_url.as_ref().map(parse).transpose()
}

fn transport() -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .keep_alive_interval(KEEP_ALIVE)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_PEER_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .build()
}

/// The party on the other side: the key that the connection proved.
pub(super) fn party_of(connection: &Connection) -> PartyId {
    PartyId::from_bytes(*connection.remote_id().as_bytes())
}

/// Where the other side is now.
pub(super) fn way_of(connection: &Connection) -> Option<Via> {
    let paths = connection.paths();
    let selected = paths.iter().find(iroh::endpoint::Path::is_selected);
    via_of(selected.or_else(|| paths.iter().next())?.remote_addr())
}

/// Where the other side is, as far as limits tell addresses apart.
pub(super) fn source_of(connection: &Connection) -> Source {
    match way_of(connection) {
        Some(Via::Ip(address)) => Source::of_ip(address.ip()),
        _ => Source::Relay,
    }
}

/// How long a round trip to the other side takes at this time.
pub(super) fn rtt_of(connection: &Connection) -> Duration {
    let paths = connection.paths();
    let selected = paths.iter().find(iroh::endpoint::Path::is_selected);
    selected.or_else(|| paths.iter().next()).map_or(Duration::ZERO, |path| path.rtt())
}

/// What iroh dials. `None` when the key is no point of the curve.
pub(super) fn dialled(address: &PeerAddress, relays: &Relays) -> Option<EndpointAddr> {
    let id = iroh::PublicKey::from_bytes(address.key.as_bytes()).ok()?;
    let ways = address.via.iter().filter_map(|via| match via {
        Via::Ip(address) => Some(TransportAddr::Ip(*address)),
        Via::Relay(url) => url.parse().ok().map(TransportAddr::Relay),
        // It was looked up before.
        Via::Name(_) => None,
    });
    Some(EndpointAddr::from_parts(id, ways.filter(|way| relays.allow(way))))
}

/// Where the node can be reached: its own addresses, then those at which others saw it.
pub(super) fn own_address(endpoint: &Endpoint, observed: &[SocketAddr]) -> PeerAddress {
    let known = endpoint.addr();
    let bound = endpoint.bound_sockets().into_iter().map(Via::Ip);
    let seen = observed.iter().copied().map(Via::Ip);
    let mut via = Vec::new();
    for way in known.addrs.iter().filter_map(via_of).chain(bound).chain(seen) {
        if is_reachable(&way) && !via.contains(&way) && via.len() < VIA_MAX {
            via.push(way);
        }
    }
    PeerAddress { key: PublicKey::from_bytes(*endpoint.id().as_bytes()), via }
}

pub(super) fn via_of(address: &TransportAddr) -> Option<Via> {
    match address {
        TransportAddr::Ip(address) => Some(Via::Ip(canonical(*address))),
        TransportAddr::Relay(url) => Some(Via::Relay(url.to_string())),
        _ => None,
    }
}

/// An IPv4 address that came through an IPv6 socket is written as what it is.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_reachable(way: &Via) -> bool {
    match way {
        Via::Ip(address) => !address.ip().is_unspecified() && address.port() != 0,
        Via::Relay(_) => true,
        Via::Name(_) => false,
    }
}

/// Looks up the names among the ways to a peer: anew each time, as names move.
pub(super) async fn looked_up(address: &mut PeerAddress) {
    let (names, mut via): (Vec<Via>, Vec<Via>) =
        address.via.drain(..).partition(|via| matches!(via, Via::Name(_)));
    for name in names {
        let Via::Name(name) = name else { continue };
        match timeout(LOOK_UP_WITHIN, tokio::net::lookup_host(&name)).await {
            Ok(Ok(found)) => via.extend(found.map(|address| Via::Ip(canonical(address)))),
            Ok(Err(error)) => tracing::debug!(name, %error, "the name of a peer is not known"),
            Err(_) => tracing::debug!(name, "the name of a peer could not be looked up in time"),
        }
    }
    via.truncate(2 * VIA_MAX);
    address.via = via;
}
