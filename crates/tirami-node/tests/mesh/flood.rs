//! A stranger who knows the mesh's secret and sends whatever it likes, past any node's own code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::time::Duration;

use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode, TransportAddr};
use tirami_core::SecretKey;
use tirami_proto::{
    ALPN, Hello, Invite, Message, PROTOCOL, PROTOCOL_MIN, STREAM_CONTROL, Via, admission_proof,
    encode,
};
use tokio::time::Instant;

/// A stranger's way into the network.
pub async fn endpoint(key: &SecretKey) -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&key.seed()))
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .unwrap()
        .bind()
        .await
        .unwrap()
}

pub async fn connect(endpoint: &Endpoint, invite: &Invite) -> Option<Connection> {
    let peer = &invite.peers[0];
    let id = iroh::PublicKey::from_bytes(peer.key.as_bytes()).unwrap();
    let ways = peer.via.iter().filter_map(|via| match via {
        Via::Ip(address) => Some(TransportAddr::Ip(*address)),
        Via::Relay(_) => None,
    });
    let address = EndpointAddr::from_parts(id, ways);
    tokio::time::timeout(Duration::from_secs(5), endpoint.connect(address, ALPN)).await.ok()?.ok()
}

/// What a stranger who knows the secret says first.
pub fn hello(key: &SecretKey, invite: &Invite) -> Message {
    let (own, peer) = (key.public().party(), invite.peers[0].party());
    let proof = |secret| admission_proof(secret, invite.mesh, own, peer);
    Message::Hello(Hello {
        protocol_min: PROTOCOL_MIN,
        protocol: PROTOCOL,
        features: 0,
        mesh: invite.mesh,
        charter_version: 1,
        admission: invite.secret.as_ref().map(proof),
        addresses: Vec::new(),
        agent: "stranger".into(),
    })
}

/// Sends `frame` as fast as it is taken, up to 10 000 times each second, until the other side
/// closes; gives how many it sent.
async fn flood(connection: &Connection, hello: &Message, frame: &[u8], until: Instant) -> u64 {
    let mut sent = 0;
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return 0 };
    // What comes back is read, so that nothing but the sender's own haste is at fault.
    let reading =
        tokio::spawn(async move { while let Ok(Some(_)) = receive.read_chunk(65_536).await {} });
    if send.write_all(&[STREAM_CONTROL]).await.is_err()
        || send.write_all(&encode(hello)).await.is_err()
    {
        return 0;
    }
    let batch = frame.repeat(100);
    while Instant::now() < until {
        let paced = tokio::time::sleep(Duration::from_millis(10));
        match tokio::time::timeout_at(until, send.write_all(&batch)).await {
            Ok(Ok(())) => sent += 100,
            _ => break,
        }
        paced.await;
    }
    reading.abort();
    sent
}

/// Floods the node of `invite` with `frame` as the party of `key` until `until`, connecting again
/// whenever it is sent away; gives messages and connections.
pub async fn flooding(
    key: SecretKey,
    invite: Invite,
    frame: Vec<u8>,
    until: Instant,
) -> (u64, u64) {
    let endpoint = endpoint(&key).await;
    let hello = hello(&key, &invite);
    let (mut sent, mut connections) = (0, 0);
    while Instant::now() < until {
        if let Some(connection) = connect(&endpoint, &invite).await {
            connections += 1;
            sent += flood(&connection, &hello, &frame, until).await;
            connection.close(0_u32.into(), b"");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    endpoint.close().await;
    (sent, connections)
}

/// A frame that is no message.
pub fn malformed() -> Vec<u8> {
    let mut frame = 40_u32.to_be_bytes().to_vec();
    frame.extend_from_slice(&[0xff; 40]);
    frame
}
