//! Places for jobs: who keeps one without use loses it to those who find none, and nobody has all
//! of them while others wait.

use core::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iroh::endpoint::{QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, RelayMode};
use serde_json::json;
use tirami_core::{SecretKey, Trm};
use tirami_infer::fake::FakeEngine;
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tirami_node::mesh::JobStream;
use tirami_proto::{Invite, STREAM_JOB, ToConsumer, encode};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::cheats::{LOSES_WITHIN, signs_slowly};
use crate::engines::Odd;
use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::orders::{CHAT, Consumer};
use crate::raw::{connect, let_in};
use crate::support::{SOON, until};

/// Bytes of a stream that a slow reader lets arrive before it has read them.
const NARROW: u32 = 512;
/// It reads as many as this.
const SIP: usize = 256;
/// So often: sooner than whoever reads nothing is given up.
const SIP_EVERY: Duration = Duration::from_secs(15);

/// Lets `provider` run so many jobs of others at once, and lend more than any test needs.
fn places(provider: &TestNode, jobs_max: u32) {
    let policy = provider.peer.read(|kernel| kernel.ledger().book().serving().clone());
    let much = Trm::from_micro(1_000_000_000);
    let (exposure_start, exposure_max) = (much, much);
    let policy = ServingPolicy { exposure_start, exposure_max, jobs_max, ..policy };
    provider.submit(Actor::Node, Command::SetServing(policy));
}

fn consumer<'a>(node: &'a TestNode, provider: &TestNode) -> Consumer<'a> {
    Consumer::chatting(node, provider.party())
}

fn accepted(consumer: &Consumer<'_>, n: u8) -> JobStream {
    let (stream, first) = consumer.send(consumer.sign(consumer.order(n)));
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    stream
}

/// Whether the provider takes a job of the consumer now.
fn finds_a_place(consumer: &Consumer<'_>) -> bool {
    match consumer.send(consumer.sign(consumer.order(9))).1 {
        Some(ToConsumer::Accepted { .. }) => true,
        Some(ToConsumer::Refused { .. }) => false,
        other => panic!("{other:?}"),
    }
}

/// An endpoint that lets little arrive before it is read.
async fn narrow(key: &SecretKey) -> Endpoint {
    let window = QuicTransportConfig::builder().stream_receive_window(VarInt::from_u32(NARROW));
    Endpoint::builder(presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&key.seed()))
        .relay_mode(RelayMode::Disabled)
        .transport_config(window.build())
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .unwrap()
        .bind()
        .await
        .unwrap()
}

/// Has a job done, takes a part of a frame now and then, and signs nothing.
async fn reads_slowly(consumer: &Consumer<'_>, invite: &Invite) {
    let key = SecretKey::from_seed([76; 32]);
    let endpoint = narrow(&key).await;
    let connection = connect(&endpoint, invite).await.unwrap();
    let mut control = let_in(connection.clone(), &key, invite).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let request = encode(&consumer.request(CHAT, consumer.sign(consumer.order(2))));
    send.write_all(&[&[STREAM_JOB][..], &request].concat()).await.unwrap();
    let sipping = async {
        while let Ok(Some(_)) = receive.read_chunk(SIP).await {
            sleep(SIP_EVERY).await;
        }
    };
    // Whatever else comes is read at once.
    let listening = async {
        while connection.close_reason().is_none() {
            let _ = control.wait_for(|_| None::<()>).await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = sipping => {}
        () = listening => {}
    }
}

#[test]
fn who_signs_or_reads_too_slowly_loses_its_place_to_one_that_finds_none() {
    let wordy = Odd::new(4_000, 0);
    wordy.fat.store(40, Ordering::Relaxed);
    let mesh = Mesh::with(vec![Odd::new(4_000, 0), wordy]);
    let (slow, other) = (mesh.add_user(), mesh.add_user());
    let providers = [mesh.provider(0), mesh.provider(1)];
    for provider in providers {
        places(provider, 1);
    }
    let (signer, reader) = (consumer(&slow, providers[0]), consumer(&slow, providers[1]));
    let order = signer.sign(signer.order(1));
    let (mut stream, first) = signer.send(order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    let invite = providers[1].peer.node.invite().unwrap();
    let over = Notify::new();
    std::thread::scope(|scope| {
        let keeping = scope.spawn(|| {
            slow.peer.block_on(async {
                let lost = Cell::new(false);
                let signing = signs_slowly(&signer, (&order, &mut stream), 1, &lost);
                let both = async { tokio::join!(signing, reads_slowly(&reader, &invite)) };
                tokio::select! {
                    _ = timeout(LOSES_WITHIN, both) => {}
                    () = over.notified() => {}
                }
            });
        });
        until("both run", SOON, || providers.iter().all(|one| one.served_running() == 1));
        let (asked, mut wanted) = (Instant::now(), providers.to_vec());
        while !wanted.is_empty() && asked.elapsed() < LOSES_WITHIN {
            wanted.retain(|provider| !finds_a_place(&consumer(&other, provider)));
            std::thread::sleep(Duration::from_secs(1));
        }
        over.notify_one();
        keeping.join().unwrap();
        println!("both gave way after {:?}", asked.elapsed());
        let names = ["the slow signer", "the slow reader"];
        for (name, provider) in names.into_iter().zip(providers) {
            let party = provider.party();
            assert!(wanted.iter().all(|one| one.party() != party), "{name} keeps its place");
        }
    });
}

#[test]
fn while_another_one_waits_a_consumer_gets_no_more_than_half_of_the_places() {
    let mesh = Mesh::of(&[script(4_000, Duration::ZERO)]);
    let provider = mesh.provider(0);
    places(provider, 2);
    let (one, other) = (mesh.add_user(), mesh.add_user());
    let (one, other) = (consumer(&one, provider), consumer(&other, provider));
    // While nobody else wants any it has all of them.
    let (_kept, given_back) = (accepted(&one, 1), accepted(&one, 2));
    assert_eq!(other.code(other.sign(other.order(3))), "order_too_many");
    drop(given_back);
    until("a place is free", SOON, || provider.served_running() == 1);
    assert_eq!(one.code(one.sign(one.order(4))), "order_too_many");
    drop(accepted(&other, 5));
}

#[test]
fn who_may_not_have_a_place_that_is_kept_takes_none_of_those_it_is_kept_for() {
    let mesh = Mesh::of(&[script(4_000, Duration::ZERO)]);
    let (provider, stranger) = (mesh.provider(0), mesh.add_user());
    let engine = FakeEngine::new(script(3, Duration::ZERO));
    let contributor = mesh.add_provider(Arc::new(engine), |_| {});
    let asks = |node: &TestNode, of: &TestNode| {
        let mut request = ask(1, false);
        request["provider"] = json!({"only": [of.party().to_string()]});
        node.raw(&request).0 == 200
    };
    mesh.funded(provider);
    until("the contributor answers", SOON, || asks(provider, &contributor));
    mesh.funded(&contributor);
    until("it is answered", SOON, || asks(&contributor, provider));
    until("nothing runs", SOON, || provider.served_running() == 0);
    places(provider, 2);
    let policy = provider.peer.read(|kernel| kernel.ledger().book().serving().clone());
    let policy = ServingPolicy { contributors_above: 1, ..policy };
    provider.submit(Actor::Node, Command::SetServing(policy));
    let (contributor, stranger) = (consumer(&contributor, provider), consumer(&stranger, provider));
    let _first = accepted(&contributor, 1);
    assert_eq!(stranger.code(stranger.sign(stranger.order(2))), "order_reserved");
    let _second = accepted(&contributor, 3);
    assert_eq!(stranger.code(stranger.sign(stranger.order(4))), "order_reserved");
}
