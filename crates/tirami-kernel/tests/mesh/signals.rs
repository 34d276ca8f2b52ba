//! Announcements.

use std::collections::BTreeSet;

use tirami_core::{MINUTE_MS, ModelDigest, ModelShape, PartyId, Ppm, SecretKey, Signed, Timestamp};
use tirami_kernel::Input;
use tirami_kernel::command::Command;
use tirami_kernel::lattice::Enrol;
use tirami_kernel::mesh::{ANNOUNCED_MAX, MeshInput, OwnOffer, PEERS_TARGET, PeerEvent};
use tirami_kernel::scheduler::{Preferences, Query};
use tirami_proto::{
    ANNOUNCED_PER_FRAME_MAX, Hello, Message, Offer, PeerAddress, PriceSignal, WireDocument,
    admission_proof,
};

use crate::harness::{Net, SECRET, key, trm};

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
    signed_with(net, key, (issued_ms, price), |_| {})
}

fn signed_with(
    net: &Net,
    key: &SecretKey,
    (issued_ms, price): (u64, u32),
    change: impl FnOnce(&mut PriceSignal),
) -> WireDocument {
    let mut signal = PriceSignal {
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
    change(&mut signal);
    let signed = Signed::sign(net.nodes[0].lattice().mesh(), key, signal).unwrap();
    WireDocument { bytes: signed.bytes().to_vec(), signature: signed.signature() }
}

fn announce(net: &mut Net, from: usize, document: WireDocument) {
    tell(net, (from, 0), &[document]);
}

fn announcements(peer: PartyId, documents: &[WireDocument]) -> impl Iterator<Item = Input> {
    documents.chunks(ANNOUNCED_PER_FRAME_MAX).map(move |documents| {
        let event = PeerEvent::Message(Box::new(Message::Announce(documents.to_vec())));
        Input::Peer { peer, event }
    })
}

fn tell(net: &mut Net, (from, to): (usize, usize), documents: &[WireDocument]) {
    for input in announcements(net.party(from), documents) {
        net.give(to, input);
    }
}

/// A key that nobody knows, another one for each number.
fn made_up(n: usize) -> SecretKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(n as u64).to_be_bytes());
    SecretKey::from_seed(seed)
}

/// What strangers say of themselves, valid for as long as anything may be.
fn of_strangers(net: &Net, numbers: std::ops::Range<usize>) -> Vec<WireDocument> {
    let expires_at = Timestamp::from_ms(net.now_ms + 5 * MINUTE_MS);
    let said =
        |n| signed_with(net, &made_up(n), (net.now_ms, 1), |signal| signal.expires_at = expires_at);
    numbers.map(said).collect()
}

fn listed(net: &Net, node: usize) -> usize {
    net.nodes[node].kernel.mesh().providers(Timestamp::from_ms(net.now_ms)).count()
}

fn knows(net: &Net, node: usize, key: &SecretKey) -> bool {
    net.nodes[node].kernel.mesh().signal(key.public().party()).is_some()
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
    let documents = of_strangers(&net, 0..ANNOUNCED_MAX + 100);
    tell(&mut net, (1, 0), &documents);
    let known = listed(&net, 0);
    assert!(known > 0 && known <= ANNOUNCED_MAX / 4, "{known}");
    let own = signed(&net, &net.nodes[1].key, (net.now_ms, 2));
    announce(&mut net, 1, own);
    assert_eq!(price_at(&net, 0, 1), Some(2));
}

#[test]
fn keys_that_one_peer_makes_up_for_ever_hide_no_provider() {
    let mut net = Net::of(4);
    for round in 0..40 {
        let expires_at = Timestamp::from_ms(net.now_ms + 200);
        let keys = (0..256).map(|n| made_up(256 * round + n));
        let said = keys.map(|key| {
            signed_with(&net, &key, (net.now_ms, 1), |signal| signal.expires_at = expires_at)
        });
        let documents: Vec<WireDocument> = said.collect();
        tell(&mut net, (1, 0), &documents);
        net.run_ms(1_000);
    }
    let member = signed(&net, &net.nodes[3].key, (net.now_ms, 2));
    announce(&mut net, 2, member);
    let stranger = forged(&net, net.now_ms, 3);
    announce(&mut net, 2, stranger);
    let own = signed(&net, &net.nodes[2].key, (net.now_ms, 4));
    announce(&mut net, 2, own);
    assert_eq!(
        (price_at(&net, 0, 3), heard(&net), price_at(&net, 0, 2)),
        (Some(2), Some(3), Some(4))
    );
}

#[test]
fn a_node_that_keeps_few_chains_hears_of_all_providers_whatever_a_liar_makes_up() {
    let mut net = Net::of(3);
    let light = net.join_light(&[0, 1, 2]);
    net.run_ms(5_000);
    assert!(net.is_connected(light, 1) && net.is_connected(light, 2));
    let lies = of_strangers(&net, 0..5_000);
    tell(&mut net, (2, light), &lies);
    // As many as in a mesh of 3 000 nodes, from one peer.
    let honest = 10_000..10_750;
    let documents = of_strangers(&net, honest.clone());
    tell(&mut net, (1, light), &documents);
    assert_eq!(honest.filter(|n| knows(&net, light, &made_up(*n))).count(), 750);
    assert!(listed(&net, light) <= ANNOUNCED_MAX);
}

#[test]
fn where_all_places_are_taken_members_have_one_and_peers_that_told_of_less() {
    let mut net = Net::of(7);
    for from in 1..6 {
        let documents = of_strangers(&net, 2_000 * from..2_000 * from + 1_500);
        tell(&mut net, (from, 0), &documents);
    }
    assert_eq!(listed(&net, 0), ANNOUNCED_MAX);
    let member = signed(&net, &net.nodes[5].key, (net.now_ms, 2));
    announce(&mut net, 4, member);
    assert_eq!(price_at(&net, 0, 5), Some(2));
    let stranger = forged(&net, net.now_ms, 3);
    announce(&mut net, 6, stranger);
    assert_eq!(heard(&net), Some(3));
    // More of whoever told of most change nothing about that.
    let documents = of_strangers(&net, 20_000..20_500);
    tell(&mut net, (1, 0), &documents);
    assert_eq!((heard(&net), price_at(&net, 0, 5)), (Some(3), Some(2)));
    assert_eq!(listed(&net, 0), ANNOUNCED_MAX);
}

/// A peer with the invite connects to node 1, says what it offers and leaves.
fn visit(net: &mut Net, visitor: &SecretKey) {
    let (own, peer) = (net.party(1), visitor.public().party());
    let mesh = net.nodes[1].lattice().mesh();
    let hello = Hello {
        protocol_min: 1,
        protocol: 1,
        features: 0,
        mesh,
        charter_version: 1,
        admission: Some(admission_proof(&SECRET, mesh, peer, own)),
        addresses: Vec::new(),
        agent: String::new(),
    };
    let expires_at = Timestamp::from_ms(net.now_ms + 5 * MINUTE_MS);
    let offer = signed_with(net, visitor, (net.now_ms, 1), |signal| signal.expires_at = expires_at);
    let events = [
        PeerEvent::Connected { outgoing: false, address: None },
        PeerEvent::Message(Box::new(Message::Hello(hello))),
        PeerEvent::Message(Box::new(Message::Announce(vec![offer]))),
    ];
    for event in events {
        net.give(1, Input::Peer { peer, event });
    }
    assert!(knows(net, 1, visitor), "a peer's own word is taken");
    net.give(1, Input::Peer { peer, event: PeerEvent::Disconnected });
}

#[test]
fn keys_that_come_and_go_leave_nothing_behind() {
    let mut net = Net::of(3);
    for n in 0..ANNOUNCED_MAX + 10 {
        visit(&mut net, &made_up(n));
    }
    assert_eq!(listed(&net, 1), 0);
    let member = signed(&net, &net.nodes[2].key, (net.now_ms, 2));
    tell(&mut net, (0, 1), &[member]);
    assert_eq!(price_at(&net, 1, 2), Some(2));
}

#[test]
fn much_that_one_peer_tells_does_not_stop_what_another_one_does() {
    let mut net = Net::of(4);
    let mut keys: Vec<SecretKey> = (0..321).map(made_up).collect();
    keys.sort_by_key(|key| key.public().party());
    let (lies, honest) = (&keys[..160], &keys[320]);
    for round in 0..12 {
        let large = |signal: &mut PriceSignal| signal.addresses = vec!["x".repeat(320); 8];
        let said = lies.iter().map(|key| signed_with(&net, key, (net.now_ms, 1), large));
        let documents: Vec<WireDocument> = said.collect();
        tell(&mut net, (1, 0), &documents);
        if round == 2 {
            let document = signed(&net, honest, (net.now_ms, 2));
            tell(&mut net, (2, 0), &[document]);
        }
        net.run_ms(250);
    }
    assert!(knows(&net, 3, honest), "it was not passed on");
    // What did not fit at once came later.
    net.run_ms(10_000);
    assert!(lies.iter().all(|key| knows(&net, 3, key)));
}

/// Peers of node 0 tell of providers that all can be dialled. Whom it dials then, in rounds in
/// each of which nobody is reached.
fn dialled(net: &mut Net, told: &[(usize, &[SecretKey])], rounds: u64) -> Vec<BTreeSet<PartyId>> {
    let start_ms = net.now_ms;
    let now = Timestamp::from_ms(start_ms);
    assert!(net.nodes[0].kernel.mesh().peers().count() >= PEERS_TARGET, "it looks for no others");
    for (from, keys) in told {
        let said = keys.iter().enumerate().map(|(n, key)| {
            signed_with(net, key, (start_ms, 1), |signal| {
                signal.addresses = vec![format!("10.9.{from}.{}:3001", n + 1)];
                signal.expires_at = now.plus_ms(5 * MINUTE_MS);
            })
        });
        let documents: Vec<WireDocument> = said.collect();
        for input in announcements(net.party(*from), &documents) {
            let effects = net.nodes[0].kernel.handle(now, input);
            assert_eq!(effects.connect, []);
        }
    }
    let kernel = &mut net.nodes[0].kernel;
    let rounds = (1..=rounds).map(|round| {
        let now = Timestamp::from_ms(start_ms + 500 * round);
        let effects = kernel.handle(now, Input::Tick);
        let parties: BTreeSet<PartyId> = effects.connect.iter().map(PeerAddress::party).collect();
        for peer in parties.iter().copied() {
            let missed = Input::Peer { peer, event: PeerEvent::Disconnected };
            let _effects = kernel.handle(now, missed);
        }
        parties
    });
    rounds.collect()
}

fn among(dialled: &BTreeSet<PartyId>, keys: &[SecretKey]) -> usize {
    keys.iter().filter(|key| dialled.contains(&key.public().party())).count()
}

/// Keys that nobody knows, those that are nearest to node 0 first.
fn by_nearness(net: &Net) -> Vec<SecretKey> {
    let head = |party: PartyId| u64::from_be_bytes(party.as_bytes()[..8].try_into().unwrap());
    let own = head(net.party(0));
    let mut keys: Vec<SecretKey> = (0..1_000).map(made_up).collect();
    keys.sort_by_key(|key| head(key.public().party()) ^ own);
    keys
}

#[test]
fn keys_made_near_a_node_do_not_keep_it_from_dialling_others() {
    let mut net = Net::of(14);
    let keys = by_nearness(&net);
    let (near, honest) = (&keys[..32], &keys[960..]);
    let rounds = dialled(&mut net, &[(2, near), (1, honest)], 10);
    assert!(among(&rounds[0], honest) >= 12, "{}", among(&rounds[0], honest));
    // Whoever was not reached gives its place to the next.
    let all: BTreeSet<PartyId> = rounds.into_iter().flatten().collect();
    assert_eq!((among(&all, near), among(&all, honest)), (32, 40));
}

#[test]
fn members_are_dialled_before_keys_that_nobody_knows() {
    let mut net = Net::of(14);
    let keys = by_nearness(&net);
    let (near, members) = (&keys[..40], &keys[960..]);
    for key in members {
        let party = key.public().party();
        let kind = Enrol { party, owner: "member".to_owned(), line: trm(1) }.into();
        net.ok(0, Command::SignEntry { kind });
    }
    net.run_ms(2_000);
    let rounds = dialled(&mut net, &[(2, near), (1, members)], 1);
    assert_eq!((among(&rounds[0], near), among(&rounds[0], members)), (4, 28));
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
