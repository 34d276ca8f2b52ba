//! Admission, goodbyes, scores, finding peers.

use std::collections::BTreeSet;

use tirami_core::{DocumentId, MeshId, Signature, Signed, Timestamp};
use tirami_kernel::Input;
use tirami_kernel::lattice::{Entry, PARKED_PER_CHAIN_MAX, Transfer};
use tirami_kernel::mesh::{Admission, MeshInput, PARKED_PER_PEER_MAX, PeerEvent};
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::Command;
use tirami_proto::{GoodbyeCode, Hello, Message, PeerAddress, VIA_MAX, Via, WireEntry};

use crate::harness::{Net, START_MS, key, trm};

/// What node 0 says to a stranger whose hello is changed.
fn refused(change: impl Fn(&mut Hello)) -> GoodbyeCode {
    let mut net = Net::found(1);
    let peer = tirami_core::PartyId::from_bytes([200; 32]);
    let give = |net: &mut Net, event| {
        let now = Timestamp::from_ms(net.now_ms);
        net.nodes[0].kernel.handle(now, Input::Peer { peer, event })
    };
    give(&mut net, PeerEvent::Connected { outgoing: false, address: None });
    let own = net.party(0);
    let mesh = net.nodes[0].lattice().mesh();
    let mut hello = Hello {
        protocol_min: 1,
        protocol: 1,
        features: 0,
        mesh,
        charter_version: 1,
        admission: Some(tirami_proto::admission_proof(&crate::harness::SECRET, mesh, peer, own)),
        addresses: Vec::new(),
        agent: String::new(),
    };
    change(&mut hello);
    let effects = give(&mut net, PeerEvent::Message(Box::new(Message::Hello(hello))));
    effects.disconnect.first().map_or(GoodbyeCode::Other, |(_, goodbye)| goodbye.code)
}

#[test]
fn who_does_not_fit_hears_why() {
    type Change = fn(&mut Hello);
    let table: [(Change, GoodbyeCode); 6] = [
        (|_| {}, GoodbyeCode::Other),
        (|hello| hello.mesh = MeshId::from_bytes([1; 32]), GoodbyeCode::WrongMesh),
        (|hello| (hello.protocol_min, hello.protocol) = (2, 9), GoodbyeCode::Version),
        (|hello| hello.admission = None, GoodbyeCode::NotAdmitted),
        (|hello| hello.admission = Some([0; 32]), GoodbyeCode::NotAdmitted),
        (|hello| hello.protocol = 9, GoodbyeCode::Other),
    ];
    for (number, (change, expected)) in table.into_iter().enumerate() {
        assert_eq!(refused(change), expected, "case {number}");
    }
}

#[test]
fn a_peer_without_the_secret_stays_out_and_a_public_mesh_takes_it() {
    let mut net = Net::found(1);
    let stranger = net.join(&[0]);
    net.nodes[stranger].settings.secret = None;
    net.settings(stranger);
    net.run_ms(5_000);
    assert!(!net.nodes[0].kernel.mesh().is_open(net.party(stranger)));
    assert_eq!(net.nodes[0].goodbyes[0].1.code, GoodbyeCode::NotAdmitted);
    net.nodes[0].settings.public = true;
    net.settings(0);
    net.connect(stranger, 0);
    net.run_ms(2_000);
    assert!(net.nodes[0].kernel.mesh().is_open(net.party(stranger)));
    // Admitted, but not enrolled.
    assert!(net.nodes[0].lattice().chain(net.party(stranger)).is_none());
}

#[test]
fn an_invite_brings_in_as_many_as_the_owner_said_and_not_later() {
    let mut net = Net::found(1);
    let at = |net: &Net, ms| Timestamp::from_ms(net.now_ms + ms);
    let members = |net: &Net| net.nodes[0].lattice().chains().count();
    let allow = |net: &mut Net, uses, ms| {
        let kernel = &net.nodes[0].kernel;
        let (enrolled, now) = (kernel.enrolled(), Timestamp::from_ms(net.now_ms));
        let before = kernel.mesh().settings().admission;
        let before = before.filter(|before| before.enrolled_max < u64::MAX);
        let wanted = (uses, at(net, ms));
        net.nodes[0].settings.admission =
            Some(Admission::extended(before, (enrolled, now), wanted));
        net.settings(0);
    };
    allow(&mut net, 2, 20_000);
    for _ in 0..5 {
        net.join(&[0]);
    }
    net.run_ms(10_000);
    assert_eq!(members(&net), 3, "the founder and two of five keys that have the invite");
    assert!(net.is_connected(0, 5), "the others are let in without a line");
    // Uses of several invites add up, and what is over by time is over.
    allow(&mut net, 1, 5_000);
    allow(&mut net, 1, 5_000);
    net.run_ms(4_000);
    assert_eq!(members(&net), 5);
    net.run_ms(10_000);
    allow(&mut net, 9, 0);
    net.run_ms(4_000);
    assert_eq!(members(&net), 5, "an invite that has expired enrols nobody");
    allow(&mut net, 9, 60_000);
    net.run_ms(4_000);
    assert_eq!(members(&net), 6);
}

#[test]
fn a_blocked_peer_is_ended_at_once_and_does_not_come_back() {
    let mut net = Net::of(3);
    assert!(net.is_connected(1, 2));
    let blocked = BTreeSet::from([net.party(2)]);
    let policy = ServingPolicy { blocked, ..ServingPolicy::default() };
    net.command(1, Command::SetServing(policy)).unwrap();
    net.run_ms(20_000);
    assert!(!net.is_connected(1, 2));
    assert!(net.is_connected(0, 2));
}

#[test]
fn garbage_is_scored_and_its_sender_refused_for_a_growing_time() {
    let mut net = Net::of(3);
    let (liar, now) = (net.party(2), |net: &Net| Timestamp::from_ms(net.now_ms));
    let mut waits = Vec::new();
    for _ in 0..4 {
        let mut sent = 0;
        while net.nodes[0].kernel.mesh().refused_ms(liar, now(&net)).is_none() {
            let entry =
                WireEntry { bytes: vec![1, 2, 3], signature: Signature::from_bytes([0; 64]) };
            let event = PeerEvent::Message(Box::new(Message::Entry(entry)));
            net.give(0, Input::Peer { peer: liar, event });
            sent += 1;
            assert!(sent < 20, "never refused");
        }
        let wait_ms = net.nodes[0].kernel.mesh().refused_ms(liar, now(&net)).unwrap();
        waits.push(wait_ms);
        net.run_ms(wait_ms / 2);
        net.connect(2, 0);
        net.run_ms(50);
        assert!(!net.is_connected(0, 2), "it was let in too early");
        net.run_ms(wait_ms + 30_000);
        net.connect(2, 0);
        net.run_ms(2_000);
        assert!(net.nodes[0].kernel.mesh().is_open(liar), "it was never let in again");
    }
    assert_eq!(waits, [1_000, 2_000, 4_000, 8_000]);
    // Nobody else was disturbed.
    net.transfer(1, 2, 1);
    net.converge_ms(5_000);
}

#[test]
fn ten_thousand_messages_of_garbage_a_second_end_with_a_goodbye() {
    let mut net = Net::of(3);
    let liar = net.party(2);
    for _ in 0..10_000 {
        let event = PeerEvent::Message(Box::new(Message::WantPeers));
        net.give(0, Input::Peer { peer: liar, event });
    }
    assert!(!net.nodes[0].kernel.mesh().is_open(liar));
    assert!(net.nodes[0].goodbyes.iter().any(|(_, bye)| bye.code == GoodbyeCode::Misbehaved));
}

#[test]
fn one_bootstrap_peer_is_enough_to_find_the_others() {
    let mut net = Net::of(8);
    net.run_ms(5_000);
    let mut found = 0;
    for one in 1..8 {
        found += (1..8).filter(|other| *other != one && net.is_connected(one, *other)).count();
    }
    assert!(found >= 30, "{found} of 42 connections");
    // The first node goes; the others keep each other.
    net.stop(0);
    net.run_ms(10_000);
    assert!(net.is_connected(1, 2) || net.is_connected(1, 3));
}

/// A peer whose key is that of `number`, with as many ways as there are ports.
fn address(number: u8, ports: std::ops::Range<u16>) -> PeerAddress {
    let via = ports.map(|port| Via::Ip(([10, 8, 0, number], port).into())).collect();
    PeerAddress { key: key(number).public(), via }
}

/// Node 0 of two, and what it dials while the other one says something now and then.
struct Asked {
    net: Net,
    dialled: Vec<PeerAddress>,
}

impl Asked {
    fn handle(&mut self, input: Input) -> Vec<(tirami_core::PartyId, Message)> {
        let now = Timestamp::from_ms(self.net.now_ms);
        let effects = self.net.nodes[0].kernel.handle(now, input);
        self.dialled.extend(effects.connect);
        effects.send
    }

    fn hear(&mut self, peers: Vec<PeerAddress>) {
        let event = PeerEvent::Message(Box::new(Message::Peers(peers)));
        let peer = self.net.party(1);
        self.handle(Input::Peer { peer, event });
    }

    /// Lets time pass, and says whether the other one was asked for peers.
    fn run_ms(&mut self, ms: u64) -> bool {
        let mut asked = false;
        for _ in 0..ms / 500 {
            self.net.now_ms += 500;
            let sent = self.handle(Input::Tick);
            asked |= sent.contains(&(self.net.party(1), Message::WantPeers));
        }
        asked
    }

    fn has_dialled(&self, number: u8) -> bool {
        self.dialled.iter().any(|address| address.key == key(number).public())
    }
}

#[test]
fn addresses_are_taken_once_from_a_peer_that_was_asked() {
    let mut net = Net::of(2);
    net.run_ms(2_000);
    let mut asked = Asked { net, dialled: Vec::new() };
    asked.hear(vec![address(201, 1..3)]);
    assert!(!asked.run_ms(10_000));
    assert!(asked.run_ms(40_000), "it looks for more peers");
    assert!(!asked.has_dialled(201), "nobody asked for that one");
    asked.hear(vec![address(202, 1..3)]);
    asked.hear(vec![address(203, 1..3)]);
    asked.run_ms(5_000);
    assert!(asked.has_dialled(202) && !asked.has_dialled(203));
}

#[test]
fn ways_that_the_owner_gave_stay_first_whatever_peers_tell() {
    let net = Net::of(2);
    let mut asked = Asked { net, dialled: Vec::new() };
    let name = Via::Name("node.example.org:3001".to_owned());
    let mut friend = address(201, 1..2);
    friend.via.insert(0, name);
    asked.handle(Input::Mesh(MeshInput::AddPeer(friend.clone())));
    assert!(asked.run_ms(60_000));
    asked.dialled.clear();
    asked.hear(vec![address(201, 1_000..1_008)]);
    asked.run_ms(10_000);
    assert!(asked.has_dialled(201));
    for dialled in asked.dialled.iter().filter(|address| address.key == friend.key) {
        assert_eq!(dialled.via[..2], friend.via);
        assert_eq!(dialled.via.len(), VIA_MAX);
    }
}

#[test]
fn a_node_that_comes_back_is_connected_within_ten_seconds() {
    let mut net = Net::of(3);
    net.stop(2);
    net.run_ms(300_000);
    net.start(2, None);
    net.run_ms(10_000);
    assert!(net.is_connected(0, 2));
    net.split(&[&[1]]);
    net.run_ms(600_000);
    net.split(&[]);
    net.run_ms(10_000);
    assert!(net.is_connected(0, 1), "after a long sleep");
}

#[test]
fn who_says_nothing_is_shown_out() {
    let mut net = Net::found(1);
    let peer = tirami_core::PartyId::from_bytes([200; 32]);
    let event = PeerEvent::Connected { outgoing: false, address: None };
    net.give(0, Input::Peer { peer, event });
    net.run_ms(6_000);
    assert_eq!(net.nodes[0].kernel.mesh().peers().count(), 0);
    assert_eq!(net.nodes[0].goodbyes.len(), 1);
}

/// An entry of `chain` after one that nobody has.
fn hanging(net: &Net, chain: usize, seq: u64) -> WireEntry {
    let entry = Entry {
        chain: net.party(chain),
        seq,
        prev: Some(DocumentId::from_bytes([9; 32])),
        time_ms: Timestamp::from_ms(net.now_ms),
        kind: Transfer { payee: net.party(0), amount: trm(1) }.into(),
        balance: 0,
    };
    let node = &net.nodes[chain];
    let signed = Signed::sign(node.lattice().mesh(), &node.key, entry).unwrap();
    WireEntry { bytes: signed.bytes().to_vec(), signature: signed.signature() }
}

#[test]
fn entries_that_wait_take_one_peer_its_own_room_and_nobody_elses() {
    let mut net = Net::of(7);
    let offer = |net: &mut Net, from: usize, entry: WireEntry| {
        let event = PeerEvent::Message(Box::new(Message::Entry(entry)));
        let peer = net.party(from);
        net.give(0, Input::Peer { peer, event });
    };
    let parked = |net: &Net| net.nodes[0].lattice().held().1;
    // Of each chain few are kept, so a peer needs several to fill its room.
    for chain in 1..7 {
        for n in 0..PARKED_PER_CHAIN_MAX as u64 {
            let entry = hanging(&net, chain, 100 + n);
            offer(&mut net, 1, entry);
        }
    }
    assert_eq!(parked(&net), PARKED_PER_PEER_MAX);
    let entry = hanging(&net, 6, 200);
    offer(&mut net, 2, entry);
    assert_eq!(parked(&net), PARKED_PER_PEER_MAX + 1);
}

#[test]
fn a_node_alone_never_wakes_for_the_mesh() {
    let mut net = Net::found(1);
    net.run_ms(2_000_000);
    let now = Timestamp::from_ms(START_MS);
    let offer = Input::Mesh(MeshInput::Offer(None));
    let effects = net.nodes[0].kernel.handle(now, offer);
    assert_eq!(effects.send, []);
    assert_eq!(effects.connect, []);
    assert!(
        effects.wake_at.is_none_or(|at| at.ms() > net.now_ms + 60_000),
        "{:?}",
        effects.wake_at
    );
}
