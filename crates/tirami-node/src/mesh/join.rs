//! Joining a mesh: before there is an account book, a member is asked for the mesh's charter.
//!
//! Nothing of what the member says is believed without proof: the charter has to be the one the
//! mesh is named by, signed by its founder. Everything else comes later, through the kernel.

use std::net::SocketAddr;
use std::time::Duration;

use iroh::Endpoint;
use iroh::endpoint::Connection;
use tirami_core::{MeshId, PartyId, SecretKey, Signed};
use tirami_ledger::lattice::{Charter, Lattice};
use tirami_proto::{
    ALPN, CONTROL_FRAME_BYTES_MAX, Goodbye, GoodbyeCode, Hello, Invite, Message, PROTOCOL,
    PROTOCOL_MIN, PeerAddress, STREAM_CONTROL, WireCharter, admission_proof,
};
use tokio::time::timeout;

use super::finding::Relays;
use super::frames::{FrameReceiver, FrameSender};
use super::lan::Lan;
use super::{Finding, MeshError, endpoint};

/// How long one member may take.
const MEMBER_WITHIN: Duration = Duration::from_secs(8);
/// How long a goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// Why a mesh was not joined. No account book was begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The data directory belongs to another mesh.
    #[error(
        "this data directory belongs to the mesh {found} and was not changed; to join {wanted}, \
         start with another --data-dir"
    )]
    OtherMesh {
        /// The mesh of the data directory.
        found: MeshId,
        /// The mesh of the invite.
        wanted: MeshId,
    },
    /// The endpoint cannot be opened.
    #[error(transparent)]
    Endpoint(#[from] MeshError),
    /// The invite names nobody.
    #[error("the invite names no node to ask; ask a member for a new one: tirami mesh invite")]
    Nobody,
    /// A member does not let this node in.
    #[error("the node {peer} does not let this one in: {}", goodbye.reason)]
    Refused {
        /// The member.
        peer: PartyId,
        /// What it said.
        goodbye: Goodbye,
    },
    /// A member showed a charter that is not the mesh's.
    #[error("the node {peer} showed the charter of another mesh; ask for a new invite")]
    Charter {
        /// The member.
        peer: PartyId,
    },
    /// No member could be reached.
    #[error(
        "none of the {nodes} nodes in the invite could be reached; check that one of them runs \
         and that UDP passes between you, then start again"
    )]
    Unreachable {
        /// How many there are.
        nodes: usize,
    },
}

/// Asks the members named in an invite for the charter that founded the mesh.
///
/// # Errors
///
/// [`JoinError`]: what a member said, rather than that others were not reached.
pub(crate) async fn ask(
    key: &SecretKey,
    bind: SocketAddr,
    finding: &Finding,
    invite: &Invite,
) -> Result<Signed<Charter>, JoinError> {
    if invite.peers.is_empty() {
        return Err(JoinError::Nobody);
    }
    // Any port does for asking; the node's own one is opened when it starts.
    let bind = SocketAddr::new(bind.ip(), 0);
    let (endpoint, relays) = endpoint::open(key, (bind, false), finding).await?;
    // A member that has moved may be found by its key.
    let _lan = finding.lan.then(|| Lan::listen(&endpoint, &relays, invite.mesh));
    let mut refused = JoinError::Unreachable { nodes: invite.peers.len() };
    for peer in &invite.peers {
        match timeout(MEMBER_WITHIN, ask_one((&endpoint, &relays), key, peer, invite)).await {
            Ok(Ok(charter)) => {
                endpoint.close().await;
                return Ok(charter);
            }
            Ok(Err(Some(error))) => refused = error,
            Ok(Err(None)) | Err(_) => {}
        }
    }
    endpoint.close().await;
    Err(refused)
}

/// `None` when the member was not reached.
async fn ask_one(
    (endpoint, relays): (&Endpoint, &Relays),
    key: &SecretKey,
    peer: &PeerAddress,
    invite: &Invite,
) -> Result<Signed<Charter>, Option<JoinError>> {
    let address = endpoint::dialled(peer, relays).ok_or(None)?;
    let connection = endpoint.connect(address, ALPN).await.map_err(|_| None)?;
    let hello = hello(key.public().party(), peer.party(), invite);
    let charters = introduce(&connection, hello).await.map_err(|goodbye| {
        goodbye.map(|goodbye| JoinError::Refused { peer: peer.party(), goodbye })
    })?;
    founding(invite.mesh, &charters).ok_or(Some(JoinError::Charter { peer: peer.party() }))
}

fn hello(own: PartyId, peer: PartyId, invite: &Invite) -> Hello {
    let proof = |secret| admission_proof(secret, invite.mesh, own, peer);
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol: PROTOCOL,
        features: 0,
        mesh: invite.mesh,
        charter_version: 0,
        admission: invite.secret.as_ref().map(proof),
        addresses: Vec::new(),
        agent: super::agent(),
    }
}

/// Says hello and waits for the welcome, or for the goodbye.
async fn introduce(
    connection: &Connection,
    hello: Hello,
) -> Result<Vec<WireCharter>, Option<Goodbye>> {
    let (mut send, receive) = connection.open_bi().await.map_err(|_| None)?;
    send.write_all(&[STREAM_CONTROL]).await.map_err(|_| None)?;
    let mut send = FrameSender::new(send);
    let mut receive = FrameReceiver::new(receive, CONTROL_FRAME_BYTES_MAX);
    send.send(&Message::Hello(hello)).await.map_err(|_| None)?;
    loop {
        match receive.next().await {
            Ok(Some(Message::Welcome(welcome))) => {
                let reason = "this node starts with the charter it came for".to_owned();
                let code = GoodbyeCode::Stopping;
                let goodbye = Goodbye { code, reason, retry_after_ms: 0 };
                let leave = async {
                    if send.send(&Message::Goodbye(goodbye)).await.is_ok() {
                        send.finish();
                        send.flushed().await;
                    }
                };
                // The welcome is here; how the goodbye fares changes nothing.
                let _ = timeout(GOODBYE_WITHIN, leave).await;
                return Ok(welcome.charters);
            }
            Ok(Some(Message::Goodbye(goodbye))) => return Err(Some(goodbye)),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Err(None),
        }
    }
}

/// The charter the mesh is named by, proved.
fn founding(mesh: MeshId, charters: &[WireCharter]) -> Option<Signed<Charter>> {
    let first = charters.first()?;
    let founding = Charter::founding_mesh();
    let signed = Signed::from_store(founding, first.bytes.clone(), first.signature?).ok()?;
    // Checks the signature by the first witness, and the form.
    let lattice = Lattice::found(&signed).ok()?;
    (lattice.mesh() == mesh).then_some(signed)
}
