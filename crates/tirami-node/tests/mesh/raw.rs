//! The other side of a connection, played by hand: strangers, liars and nodes of other versions.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode, TransportAddr};
use tirami_core::{PartyId, SecretKey};
use tirami_proto::{
    ALPN, CONTROL_FRAME_BYTES_MAX, Frames, Hello, Invite, Message, PROTOCOL, PROTOCOL_MIN,
    STREAM_CONTROL, STREAM_JOB, TOKEN_FRAME_BYTES_MAX, ToConsumer, Via, Welcome, admission_proof,
    encode,
};

/// More than a node leaves unread on one stream.
pub const UNREAD_BYTES: usize = 160 << 10;

/// An endpoint on `address`.
pub async fn endpoint(key: &SecretKey, address: &str) -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&key.seed()))
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr(address)
        .unwrap()
        .bind()
        .await
        .unwrap()
}

/// Dials the first node of the invite.
pub async fn connect(endpoint: &Endpoint, invite: &Invite) -> Option<Connection> {
    let peer = &invite.peers[0];
    let id = iroh::PublicKey::from_bytes(peer.key.as_bytes()).unwrap();
    let ways = peer.via.iter().filter_map(|via| match via {
        Via::Ip(address) => Some(TransportAddr::Ip(*address)),
        Via::Relay(_) | Via::Name(_) => None,
    });
    let address = EndpointAddr::from_parts(id, ways);
    tokio::time::timeout(Duration::from_secs(5), endpoint.connect(address, ALPN)).await.ok()?.ok()
}

/// The hello of `key` to the first node of the invite, with the proof the invite allows.
pub fn hello(key: &SecretKey, invite: &Invite) -> Hello {
    let (own, peer): (PartyId, PartyId) = (key.public().party(), invite.peers[0].party());
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol: PROTOCOL,
        features: 0,
        mesh: invite.mesh,
        charter_version: 1,
        admission: invite.secret.as_ref().map(|s| admission_proof(s, invite.mesh, own, peer)),
        addresses: Vec::new(),
        agent: "by hand".into(),
    }
}

/// A control stream, in frames.
pub struct Control {
    pub connection: Connection,
    send: SendStream,
    receive: RecvStream,
    frames: Frames,
}

impl Control {
    pub async fn open(connection: Connection) -> Option<Self> {
        let (mut send, receive) = connection.open_bi().await.ok()?;
        send.write_all(&[STREAM_CONTROL]).await.ok()?;
        Some(Self { connection, send, receive, frames: Frames::new(CONTROL_FRAME_BYTES_MAX) })
    }

    pub async fn send(&mut self, message: &Message) -> bool {
        self.send_raw(&encode(message)).await
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.send.write_all(bytes).await.is_ok()
    }

    /// The first message that `wanted` takes; none when the connection ends before.
    pub async fn wait_for<T>(&mut self, wanted: impl Fn(Message) -> Option<T>) -> Option<T> {
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                while let Some(message) = self.frames.next::<Message>().ok()? {
                    if let Some(found) = wanted(message) {
                        return Some(found);
                    }
                }
                let chunk = self.receive.read_chunk(65_536).await.ok()??;
                self.frames.push(&chunk);
            }
        });
        waited.await.ok()?
    }
}

/// What `key` says first where it lets the first node of the invite in.
pub fn first_words(key: &SecretKey, invite: &Invite) -> [Message; 2] {
    let welcome =
        Welcome { protocol: PROTOCOL, features: 0, charters: Vec::new(), your_address: None };
    [Message::Hello(hello(key, invite)), Message::Welcome(welcome)]
}

/// Says hello and welcome, and waits to be let in.
pub async fn let_in(connection: Connection, key: &SecretKey, invite: &Invite) -> Option<Control> {
    let mut control = Control::open(connection).await?;
    for message in first_words(key, invite) {
        control.send(&message).await.then_some(())?;
    }
    let welcomed = |message| matches!(message, Message::Welcome(_)).then_some(());
    control.wait_for(welcomed).await?;
    Some(control)
}

/// What a provider says on the stream of a job.
pub struct Answers {
    receive: RecvStream,
    frames: Frames,
}

impl Answers {
    /// The next frame; none when the stream has ended.
    pub async fn next(&mut self) -> Option<ToConsumer> {
        loop {
            if let Some(frame) = self.frames.next::<ToConsumer>().ok()? {
                return Some(frame);
            }
            let chunk = self.receive.read_chunk(65_536).await.ok()??;
            self.frames.push(&chunk);
        }
    }
}

/// Opens the stream of a job on a connection that is let in.
pub async fn job(connection: &Connection) -> Option<(SendStream, Answers)> {
    let (mut send, receive) = connection.open_bi().await.ok()?;
    send.write_all(&[STREAM_JOB]).await.ok()?;
    Some((send, Answers { receive, frames: Frames::new(TOKEN_FRAME_BYTES_MAX) }))
}

/// Connects and says hello.
pub async fn introduced(endpoint: &Endpoint, invite: &Invite, hello: Hello) -> Option<Control> {
    let mut control = Control::open(connect(endpoint, invite).await?).await?;
    control.send(&Message::Hello(hello)).await.then_some(control)
}
