//! Who is in the mesh: peers, providers, their places and what is spoken.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use tirami_core::{Flop, PartyId, Ppm, Timestamp, Trm};
use tirami_kernel::Kernel;
use tirami_kernel::mesh::{
    FEATURES, Farewell as KernelFarewell, Peer as KernelPeer, Provider as KernelProvider,
};
use tirami_kernel::scheduler::Known;
use tirami_proto::{
    ALPN, CONTROL_FRAME_BYTES_MAX, FEATURE_KEEPS_OWN, GoodbyeCode, JOB_FRAME_BYTES_MAX, Offer,
    PROTOCOL, PROTOCOL_MIN, SIGNAL_LIFE_MS_MAX,
};
use tirami_sdk::Amount;
use tirami_sdk::types::{
    Farewell, OfferedModel, Peer, PeerList, Protocol, Provider, ProviderList, Topology,
    TopologyLink, TopologyNode,
};

use super::error::ApiError;
use super::{AppState, json};

pub(super) async fn peers(State(app): State<AppState>) -> Result<Response, ApiError> {
    let peers = app.handle.read(|kernel, _| {
        let witnesses = witnesses(kernel);
        let peers = kernel.mesh().peers();
        let peers = peers.map(|(party, known)| (party, peer(kernel, &witnesses, (party, known))));
        let farewells = kernel.mesh().farewells().map(farewell);
        (peers.collect::<Vec<_>>(), farewells.collect())
    });
    let (mut peers, farewells) = peers.await?;
    if let Some(mesh) = &app.mesh {
        for (party, peer) in &mut peers {
            let rtt = mesh.streams.rtt(*party);
            peer.rtt_us = rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
        }
    }
    let peers: Vec<Peer> = peers.into_iter().map(|(_, peer)| peer).collect();
    Ok(json::ok(&PeerList { count: peers.len() as u64, peers, farewells }))
}

fn farewell(known: &KernelFarewell) -> Farewell {
    let code = match known.code {
        GoodbyeCode::Version => "version",
        GoodbyeCode::WrongMesh => "wrong_mesh",
        GoodbyeCode::NotAdmitted => "not_admitted",
        GoodbyeCode::Blocked => "blocked",
        GoodbyeCode::TooMany => "too_many",
        GoodbyeCode::Misbehaved => "misbehaved",
        GoodbyeCode::Stopping => "stopping",
        GoodbyeCode::Other => "other",
    };
    Farewell {
        node_id: known.peer.to_string(),
        by_peer: known.said_by_peer,
        code: code.to_owned(),
        reason: known.reason.clone(),
        at_ms: known.at.ms(),
        times: known.times,
    }
}

/// The names of abilities that this version knows.
fn features(bits: u64) -> Vec<String> {
    let known = [(FEATURE_KEEPS_OWN, "keeps_own")];
    let named = known.iter().filter(|(bit, _)| bits & bit != 0);
    named.map(|(_, name)| (*name).to_owned()).collect()
}

fn peer(
    kernel: &Kernel,
    witnesses: &BTreeSet<PartyId>,
    (party, known): (PartyId, &KernelPeer),
) -> Peer {
    let signal = kernel.mesh().signal(party).filter(|signal| signal.expires_at > kernel.clock());
    Peer {
        node_id: party.to_string(),
        state: if known.is_open() { "open" } else { "introducing" }.to_owned(),
        outgoing: known.is_outgoing(),
        address: known.address().map(str::to_owned),
        // Only the connection knows.
        rtt_us: None,
        agent: known.agent().to_owned(),
        protocol_version: known.protocol(),
        features: features(known.features()),
        connected_at_ms: known.since().ms(),
        last_seen_ms: known.heard_at().ms(),
        synced_at_ms: known.synced_at().map(Timestamp::ms),
        chains_ahead: known.chains_ahead() as u64,
        witness: witnesses.contains(&party),
        trusted: kernel.is_trusted(party),
        owes_trm: kernel.ledger().book().owed_by(party).into(),
        models: signal.map(|signal| names(&signal.models)).unwrap_or_default(),
        price_trm: signal.map(|signal| price(signal.price)),
        slots_free: signal.map(|signal| signal.slots_free),
        signal_at_ms: signal.map(|signal| signal.issued_at.ms()),
        http_endpoint: signal.and_then(|signal| signal.http_endpoint.clone()),
    }
}

fn witnesses(kernel: &Kernel) -> BTreeSet<PartyId> {
    kernel.ledger().lattice().charter().witnesses.iter().map(|key| key.party()).collect()
}

fn names(models: &[Offer]) -> Vec<String> {
    models.iter().map(|offer| offer.name.clone()).collect()
}

pub(super) async fn providers(State(app): State<AppState>) -> Result<Response, ApiError> {
    let providers = app.handle.read(|kernel, now| {
        let known = kernel.mesh().providers(now).filter(|known| !known.lost);
        known.map(|known| provider(kernel, known)).collect::<Vec<_>>()
    });
    let providers = providers.await?;
    Ok(json::ok(&ProviderList { count: providers.len() as u64, providers }))
}

fn provider(kernel: &Kernel, known: KernelProvider<'_>) -> Provider {
    let signal = known.signal;
    let is_self = signal.provider == kernel.ledger().party();
    let opinion = kernel.mesh().opinions().known(signal.provider, kernel.clock());
    Provider {
        node_id: signal.provider.to_string(),
        is_self,
        connected: known.connected || is_self,
        serving: signal.serving,
        trusted: kernel.is_trusted(signal.provider),
        price_trm: price(signal.price),
        slots_free: signal.slots_free,
        slots: signal.slots,
        queue: signal.queue,
        region: signal.region.clone(),
        features: features(signal.features),
        http_endpoint: signal.http_endpoint.clone(),
        models: signal.models.iter().map(|offer| offered(offer, signal.price, &opinion)).collect(),
        jobs_measured: opinion.jobs,
        failure_ppm: opinion.failure_ppm,
        bought_trm: opinion.traded.0.into(),
        sold_trm: opinion.traded.1.into(),
        issued_at_ms: signal.issued_at.ms(),
        expires_at_ms: signal.expires_at.ms(),
    }
}

/// A price of work as the amount that 10⁹ FLOP cost.
pub(super) fn price(price: Ppm) -> Amount {
    Trm::from_micro(price.get().into()).into()
}

fn offered(offer: &Offer, price: Ppm, opinion: &Known) -> OfferedModel {
    let speed = opinion.speeds.get(&offer.model);
    let token = Flop::new(offer.shape.parameters_active.saturating_mul(2));
    OfferedModel {
        model: offer.name.clone(),
        model_id: offer.model.to_string(),
        quantisation: offer.quantisation.clone(),
        context_tokens: offer.context_tokens,
        tokens_per_second_milli: offer.tokens_per_second_milli,
        measured_first_token_ms: speed.map(|speed| speed.0),
        measured_tokens_per_second_milli: speed.map(|speed| speed.1),
        trm_per_token: token.cost_ceil(price).into(),
        build: offer.build.clone(),
    }
}

/// What is known of a node for the topology.
#[derive(Default)]
struct Place {
    roles: BTreeSet<&'static str>,
    connected: bool,
    models: Vec<String>,
}

pub(super) async fn topology(State(app): State<AppState>) -> Result<Response, ApiError> {
    let topology = app.handle.read(|kernel, now| {
        let own = kernel.ledger().party();
        let mut places = places(kernel, now);
        let first = places.remove(&own).map(|place| (own, place));
        let nodes = first.into_iter().chain(places).map(|(party, place)| TopologyNode {
            node_id: party.to_string(),
            roles: place.roles.into_iter().map(str::to_owned).collect(),
            connected: place.connected,
            models: place.models,
        });
        let links =
            kernel.mesh().peers().filter(|(_, peer)| peer.is_open()).map(|(party, peer)| {
                let (from, to) = if peer.is_outgoing() { (own, party) } else { (party, own) };
                let address = peer.address().map(str::to_owned);
                TopologyLink { from: from.to_string(), to: to.to_string(), address }
            });
        Topology {
            node_id: own.to_string(),
            mesh_id: kernel.ledger().lattice().mesh().to_string(),
            nodes: nodes.collect(),
            links: links.collect(),
        }
    });
    Ok(json::ok(&topology.await?))
}

fn places(kernel: &Kernel, now: Timestamp) -> BTreeMap<PartyId, Place> {
    let own = kernel.ledger().party();
    let charter = kernel.ledger().lattice().charter();
    let mut places = BTreeMap::<PartyId, Place>::new();
    let mut is = |party: PartyId, role| places.entry(party).or_default().roles.insert(role);
    is(own, "self");
    is(charter.clerk, "clerk");
    is(charter.registrar, "registrar");
    for witness in &charter.witnesses {
        is(witness.party(), "witness");
    }
    for provider in kernel.mesh().providers(now).filter(|known| !known.lost) {
        let place = places.entry(provider.signal.provider).or_default();
        place.models = names(&provider.signal.models);
        if provider.signal.serving {
            place.roles.insert("provider");
        }
    }
    for (party, _) in kernel.mesh().peers().filter(|(_, peer)| peer.is_open()) {
        places.entry(party).or_default().connected = true;
    }
    places.entry(own).or_default().connected = true;
    places
}

pub(super) async fn protocol() -> Response {
    json::ok(&Protocol {
        protocol_version: PROTOCOL,
        min_protocol_version: PROTOCOL_MIN,
        features: features(FEATURES),
        transport: "quic".to_owned(),
        wire_codec: "cbor".to_owned(),
        alpn: String::from_utf8_lossy(ALPN).into_owned(),
        control_frame_bytes_max: CONTROL_FRAME_BYTES_MAX as u64,
        job_frame_bytes_max: JOB_FRAME_BYTES_MAX as u64,
        signal_life_ms_max: SIGNAL_LIFE_MS_MAX,
    })
}
