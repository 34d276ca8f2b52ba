//! Nodes of the same mesh in the local network: found by mDNS, so that neither a first contact nor
//! a changed address needs anybody else.
//!
//! What is found is only an address to dial. Whether its node is let in is decided as always.

use std::sync::Arc;

use futures_util::StreamExt as _;
use iroh::Endpoint;
use iroh::address_lookup::{EndpointInfo, UserData};
use iroh_mdns_address_lookup::{DiscoveryEvent, MdnsAddressLookup};
use tirami_core::{Digest, MeshId, PublicKey};
use tirami_kernel::mesh::MeshInput;
use tirami_proto::{PeerAddress, TokenBucket, VIA_MAX};

use super::endpoint;
use super::finding::{Relays, Within};
use crate::clock::now;
use crate::handle::Handle;

/// The service's name in the local network.
const SERVICE: &str = "tirami";
/// Characters of the mark by which nodes of one mesh know each other.
const MARK_CHARACTERS: usize = 32;
/// Nodes taken note of each second in the long run, and at once.
const FOUND_PER_SECOND: u32 = 8;
const FOUND_BURST: u32 = 64;

/// What this node says and hears in the local network. Dropping it ends both.
pub(super) struct Lan {
    lookup: Option<MdnsAddressLookup>,
    mark: String,
}

impl Lan {
    /// Says where this node is, and listens.
    pub(super) fn open(endpoint: &Endpoint, relays: &Arc<Relays>, mesh: MeshId) -> Self {
        Self::with(endpoint, relays, mesh, true)
    }

    /// Listens only.
    pub(super) fn listen(endpoint: &Endpoint, relays: &Arc<Relays>, mesh: MeshId) -> Self {
        Self::with(endpoint, relays, mesh, false)
    }

    fn with(endpoint: &Endpoint, relays: &Arc<Relays>, mesh: MeshId, advertise: bool) -> Self {
        let mark = mark(mesh);
        let builder = MdnsAddressLookup::builder().service_name(SERVICE).advertise(advertise);
        let lookup = match builder.build(endpoint.id()) {
            Ok(lookup) => lookup,
            Err(error) => {
                tracing::warn!(%error, "the local network is not searched for nodes");
                return Self { lookup: None, mark };
            }
        };
        endpoint.set_user_data_for_address_lookup(UserData::try_from(mark.clone()).ok());
        // A closed endpoint finds nobody.
        if let Ok(services) = endpoint.address_lookup() {
            services.add(Within { lookup: lookup.clone(), relays: Arc::clone(relays) });
        }
        Self { lookup: Some(lookup), mark }
    }

    /// Tells the kernel of nodes of this mesh until it has stopped.
    pub(super) async fn tell(self, handle: Handle) {
        let Some(lookup) = &self.lookup else { return };
        let mut events = lookup.subscribe().await;
        let mut limit = TokenBucket::new(FOUND_PER_SECOND, FOUND_BURST, now());
        while let Some(event) = events.next().await {
            let DiscoveryEvent::Discovered { endpoint_info, .. } = event else { continue };
            let ours = endpoint_info.user_data().is_some_and(|data| data.as_ref() == self.mark);
            if !ours || limit.take(1, now()).is_err() {
                continue;
            }
            let found = address_of(&endpoint_info);
            tracing::debug!(peer = %found.party(), "found a node in the local network");
            if handle.mesh_input(MeshInput::Found(found)).await.is_err() {
                return;
            }
        }
    }
}

/// The same for all nodes of a mesh, and no way back to its id.
fn mark(mesh: MeshId) -> String {
    let digest = Digest::of(&[b"tirami/lan/1".as_slice(), mesh.as_bytes()].concat());
    digest.to_string().chars().take(MARK_CHARACTERS).collect()
}

fn address_of(info: &EndpointInfo) -> PeerAddress {
    let key = PublicKey::from_bytes(*info.endpoint_id.as_bytes());
    let via = info.addrs().filter_map(endpoint::via_of).take(VIA_MAX).collect();
    PeerAddress { key, via }
}
