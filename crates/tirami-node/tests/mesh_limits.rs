//! What one node can make another one do: streams of jobs, frames without sense, far too many.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "mesh/support.rs"]
mod support;

use std::time::{Duration, Instant};

use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode, TransportAddr};
use support::{Peer, SOON, joining, on_loopback, until};
use tirami_core::{SecretKey, Signature};
use tirami_node::mesh::StreamError;
use tirami_proto::{
    ALPN, FrameError, Hello, Invite, JOB_FRAME_BYTES_MAX, JobRequest, Message, PROTOCOL,
    PROTOCOL_MIN, STREAM_CONTROL, ToConsumer, ToProvider, Via, WireDocument, admission_proof,
    encode,
};

fn request(bytes: usize) -> ToProvider {
    let signature = Signature::from_bytes([0; 64]);
    ToProvider::Request(JobRequest {
        order: WireDocument { bytes: vec![1; 100], signature },
        body: vec![7; bytes],
        path: "/v1/chat/completions".to_owned(),
        resumed: Vec::new(),
        consumer_head: None,
    })
}

#[test]
fn a_job_has_a_stream_of_its_own_and_its_frames_have_a_limit() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::with_engine(dirs[0].path(), on_loopback(), None);
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("they are connected", SOON, || one.sees(&two) && two.sees(&one));
    let (streams, mut incoming) =
        (two.node.job_streams().unwrap(), one.node.incoming_jobs().unwrap());
    assert!(one.node.incoming_jobs().is_none());
    two.block_on(async {
        let mut consumer = streams.open(one.party()).await.unwrap();
        let sending = request(6 << 20);
        let (sent, provider) = tokio::join!(consumer.send.send(&sending), async {
            let mut provider = incoming.recv().await.unwrap();
            assert_eq!(provider.peer, two.party());
            let received = provider.receive.next().await.unwrap();
            assert_eq!(received.as_ref(), Some(&sending));
            provider
        });
        sent.unwrap();
        let mut provider = provider;
        let tokens =
            ToConsumer::Tokens { tokens: vec![1, 2], text: "ab".into(), likelihoods: Vec::new() };
        provider.send.send(&tokens).await.unwrap();
        assert_eq!(consumer.receive.next().await, Ok(Some(tokens)));
        provider.send.finish();
        assert_eq!(consumer.receive.next().await, Ok(None));

        // Larger than any frame: refused by its length, before it is there.
        let mut consumer = streams.open(one.party()).await.unwrap();
        let sending = request(JOB_FRAME_BYTES_MAX + 1);
        let mut provider = None;
        tokio::select! {
            _ = consumer.send.send(&sending) => {}
            () = async {
                let mut job = incoming.recv().await.unwrap();
                let refused = job.receive.next().await;
                let too_large = matches!(
                    refused,
                    Err(StreamError::Frame(FrameError::TooLarge { .. }))
                );
                assert!(too_large, "{refused:?}");
                provider = Some(job);
            } => {}
        }
        assert!(provider.is_some());
    });
    two.stop();
    one.stop();
}

/// A stranger who knows the secret.
async fn endpoint(key: &SecretKey) -> Endpoint {
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

async fn connect(endpoint: &Endpoint, invite: &Invite) -> Option<Connection> {
    let peer = &invite.peers[0];
    let id = iroh::PublicKey::from_bytes(peer.key.as_bytes()).unwrap();
    let ways = peer.via.iter().filter_map(|via| match via {
        Via::Ip(address) => Some(TransportAddr::Ip(*address)),
        Via::Relay(_) => None,
    });
    let address = EndpointAddr::from_parts(id, ways);
    tokio::time::timeout(Duration::from_secs(5), endpoint.connect(address, ALPN)).await.ok()?.ok()
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
        match tokio::time::timeout_at(until.into(), send.write_all(&batch)).await {
            Ok(Ok(())) => sent += 100,
            _ => break,
        }
        paced.await;
    }
    reading.abort();
    sent
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() / 1_024
}

#[test]
fn ten_thousand_messages_a_second_leave_memory_bounded_and_the_owner_served() {
    let dir = tempfile::tempdir().unwrap();
    let one = Peer::start(dir.path(), on_loopback());
    let invite = one.node.invite().unwrap();
    let url = format!("http://{}/health", one.node.api);
    let malformed = {
        let mut frame = 40_u32.to_be_bytes().to_vec();
        frame.extend_from_slice(&[0xff; 40]);
        frame
    };
    let floods =
        [malformed, encode(&Message::WantPeers), encode(&Message::WantHeads { bucket: 3 })];
    let before = resident_mib();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let until = Instant::now() + Duration::from_secs(8);
        let flooding = floods.iter().enumerate().map(|(n, frame)| {
            let (invite, frame) = (invite.clone(), frame.clone());
            tokio::spawn(async move {
                let key = SecretKey::from_seed([40 + n as u8; 32]);
                let endpoint = endpoint(&key).await;
                let (own, peer) = (key.public().party(), invite.peers[0].party());
                let proof = |secret| admission_proof(secret, invite.mesh, own, peer);
                let hello = Message::Hello(Hello {
                    protocol_min: PROTOCOL_MIN,
                    protocol: PROTOCOL,
                    features: 0,
                    mesh: invite.mesh,
                    charter_version: 1,
                    admission: invite.secret.as_ref().map(proof),
                    addresses: Vec::new(),
                    agent: "flood".into(),
                });
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
            })
        });
        let flooding: Vec<_> = flooding.collect();
        // Chooses the TLS library for this process, as every client of a node does.
        drop(tirami_sdk::Client::new("http://127.0.0.1:1", None).unwrap());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (mut answers, mut slowest) = (0, Duration::ZERO);
        while Instant::now() < until {
            let asked = Instant::now();
            let answer = http.get(&url).timeout(Duration::from_secs(5)).send().await.unwrap();
            assert!(answer.status().is_success(), "{}", answer.status());
            slowest = slowest.max(asked.elapsed());
            answers += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for flood in flooding {
            println!("(messages, connections): {:?}", flood.await.unwrap());
        }
        println!("{answers} answers, the slowest after {slowest:?}");
        assert!(answers > 20);
    });
    let grown = resident_mib().saturating_sub(before);
    println!("memory grew by {grown} MiB");
    assert!(grown < 100, "{grown} MiB");
    one.stop();
}
