//! Invites: one word with the mesh, nodes to ask, and in a private mesh its secret.

use tirami_proto::{INVITE_PEERS_MAX, Invite, PeerAddress};

use super::{Shared, lock};

/// An invite to the mesh of this node, with this node first and those it is connected to after.
pub(super) fn make(shared: &Shared) -> Invite {
    let mut peers = vec![shared.own_address()];
    let reached = shared.peers.reached().into_iter();
    peers.extend(reached.map(|(peer, way)| PeerAddress { key: peer.into(), via: vec![way] }));
    peers.truncate(INVITE_PEERS_MAX);
    let settings = &lock(&shared.settings).settings;
    let secret = if settings.public { None } else { settings.secret };
    Invite { mesh: shared.handle.mesh(), peers, secret }
}
