//! Announcements.

use std::collections::BTreeSet;

use tirami_core::{ModelDigest, ModelShape, Ppm, SecretKey, Signed, Timestamp};
use tirami_kernel::Input;
use tirami_kernel::mesh::{ANNOUNCED_MAX, MeshInput, OwnOffer, PeerEvent};
use tirami_kernel::scheduler::{Preferences, Query};
use tirami_proto::{Message, Offer, PriceSignal, WireDocument};

use crate::harness::{Net, key};

fn offer(price: u32) -> OwnOffer {
    let shape = ModelShape {
        parameters_active: 500_000_000,
        layers: 1,
        attention_width: 1,
        context_max: 1_024,
    };
    let model = Offer {
        model: ModelDigest::from_bytes([9; 32]),
        name: "smollm2:135m".to_owned(),
        quantisation: "Q4_1".to_owned(),
        context_tokens: 1_024,
        shape,
        tokens_per_second_milli: 20_000,
        embedding_width: 0,
        image_tokens_max: 0,
        build: "test".to_owned(),
    };
    OwnOffer {
        price: Ppm::new(price),
        cached_price: Ppm::new(price),
        slots_free: 1,
        slots: 1,
        queue: 0,
        models: vec![model],
        region: String::new(),
        http_endpoint: None,
        serving: true,
    }
}

fn serve(net: &mut Net, node: usize, price: u32) {
    net.give(node, Input::Mesh(MeshInput::Offer(Some(offer(price)))));
}

fn price_at(net: &Net, node: usize, provider: usize) -> Option<u32> {
    let now = Timestamp::from_ms(net.now_ms);
    let mut providers = net.nodes[node].kernel.mesh().providers(now);
    let found = providers.find(|known| known.signal.provider == net.party(provider))?;
    Some(found.signal.price.get())
}

/// How many providers node `node` could choose from.
fn candidates(net: &Net, node: usize) -> usize {
    let query = Query {
        model: ModelDigest::from_bytes([9; 32]),
        shape: None,
        prompt_tokens: 10,
        completion_tokens: 10,
        prefixes: Vec::new(),
        tried: BTreeSet::new(),
        preferences: Preferences::default(),
    };
    let now = Timestamp::from_ms(net.now_ms);
    net.nodes[node].kernel.rank(&query, now, 1).candidates.len()
}

#[test]
fn a_signal_reaches_everybody_is_renewed_and_ends_with_its_node() {
    let mut net = Net::of(4);
    serve(&mut net, 3, 1_000);
    net.run_ms(1_000);
    for node in 0..3 {
        assert_eq!(price_at(&net, node, 3), Some(1_000));
    }
    serve(&mut net, 3, 2_000);
    net.run_ms(2_000);
    assert_eq!(price_at(&net, 0, 3), Some(2_000));
    net.run_ms(300_000);
    assert_eq!(price_at(&net, 0, 3), Some(2_000), "it was not renewed");
    assert_eq!(candidates(&net, 0), 1);
    net.stop(3);
    net.run_ms(10);
    assert_eq!(candidates(&net, 0), 0, "a lost provider is still chosen");
    let now = Timestamp::from_ms(net.now_ms);
    let lost =
        net.nodes[0].kernel.mesh().providers(now).find(|p| p.signal.provider == net.party(3));
    assert!(lost.is_some_and(|provider| provider.lost && !provider.connected));
    net.run_ms(60_000);
    assert_eq!(price_at(&net, 0, 3), None);
}

fn forged(net: &Net, issued_ms: u64, price: u32) -> WireDocument {
    signed(net, &key(200), (issued_ms, price))
}

fn signed(net: &Net, key: &SecretKey, (issued_ms, price): (u64, u32)) -> WireDocument {
    let now = Timestamp::from_ms(net.now_ms);
    let signal = PriceSignal {
        provider: key.public().party(),
        issued_at: Timestamp::from_ms(issued_ms),
        expires_at: Timestamp::from_ms(issued_ms + 45_000),
        price: Ppm::new(price),
        cached_price: Ppm::new(price),
        slots_free: 0,
        slots: 0,
        queue: 0,
        models: Vec::new(),
        region: String::new(),
        features: 0,
        addresses: Vec::new(),
        http_endpoint: None,
        serving: true,
    };
    assert!(now.ms() > 0);
    let signed = Signed::sign(net.nodes[0].lattice().mesh(), key, signal).unwrap();
    WireDocument { bytes: signed.bytes().to_vec(), signature: signed.signature() }
}

fn announce(net: &mut Net, from: usize, document: WireDocument) {
    let event = PeerEvent::Message(Box::new(Message::Announce(vec![document])));
    let peer = net.party(from);
    net.give(0, Input::Peer { peer, event });
}

fn heard(net: &Net) -> Option<u32> {
    let signal = net.nodes[0].kernel.mesh().signal(key(200).public().party());
    signal.map(|signal| signal.price.get())
}

#[test]
fn an_old_signal_never_comes_back() {
    let mut net = Net::of(2);
    let first = forged(&net, net.now_ms, 1);
    let second = forged(&net, net.now_ms + 1_000, 2);
    announce(&mut net, 1, first.clone());
    // Nobody has something new to say so soon.
    let hasty = forged(&net, net.now_ms + 1, 3);
    announce(&mut net, 1, hasty);
    assert_eq!(heard(&net), Some(1));
    announce(&mut net, 1, second.clone());
    announce(&mut net, 1, first.clone());
    assert_eq!(heard(&net), Some(2));
    // After it ran out neither the first nor the second is taken again.
    net.run_ms(47_000);
    assert_eq!(heard(&net), None);
    announce(&mut net, 1, first);
    announce(&mut net, 1, second);
    assert_eq!(heard(&net), None);
    assert!(net.nodes[0].kernel.mesh().is_open(net.party(1)), "late news are no fault");
}

#[test]
fn providers_that_one_peer_makes_up_take_little_of_the_room_and_none_of_its_own() {
    let mut net = Net::of(2);
    for n in 0..ANNOUNCED_MAX as u64 + 100 {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        let document = signed(&net, &SecretKey::from_seed(seed), (net.now_ms, 1));
        announce(&mut net, 1, document);
    }
    let now = Timestamp::from_ms(net.now_ms);
    let known = net.nodes[0].kernel.mesh().providers(now).count();
    assert!(known > 0 && known <= ANNOUNCED_MAX / 8, "{known}");
    let own = signed(&net, &net.nodes[1].key, (net.now_ms, 2));
    announce(&mut net, 1, own);
    assert_eq!(price_at(&net, 0, 1), Some(2));
}

#[test]
fn signals_from_the_future_and_contradictions_are_dropped() {
    let mut net = Net::of(2);
    let future = forged(&net, net.now_ms + 11_000, 1);
    announce(&mut net, 1, future);
    assert_eq!(heard(&net), None);
    let (one, other) = (forged(&net, net.now_ms, 1), forged(&net, net.now_ms, 2));
    announce(&mut net, 1, one.clone());
    announce(&mut net, 1, other.clone());
    assert_eq!(heard(&net), None);
    announce(&mut net, 1, one);
    announce(&mut net, 1, other);
    assert_eq!(heard(&net), None, "a contradiction was believed later");
    // Nor is there anything new so soon, whatever was said before.
    let hasty = forged(&net, net.now_ms + 1, 3);
    announce(&mut net, 1, hasty);
    assert_eq!(heard(&net), None);
    let newer = forged(&net, net.now_ms + 1_000, 4);
    announce(&mut net, 1, newer);
    assert_eq!(heard(&net), Some(4));
}

#[test]
fn fifty_nodes_with_six_connections_each_all_hear_a_signal() {
    let mut net = Net::found(1);
    net.nodes[0].settings.public = true;
    net.settings(0);
    for node in 1..50 {
        net.join(&[]);
        net.nodes[node].settings.public = true;
        // The witness is away, so that nobody dials by itself: the ring and its chords decide.
        net.settings(node);
    }
    net.stop(0);
    for node in 1..50 {
        for step in [1, 5, 17] {
            net.connect(node, 1 + (node - 1 + step) % 49);
        }
    }
    net.run_ms(500);
    net.sent.clear();
    serve(&mut net, 7, 1_234);
    net.run_ms(2_000);
    for node in (1..50).filter(|node| *node != 7) {
        assert_eq!(price_at(&net, node, 7), Some(1_234), "node {node}");
    }
}
