//! Drafts of the next charter: whose are kept, for how long, and that nobody keeps those of others
//! out.

use tirami_core::{DAY_MS, PartyId, PublicKey};
use tirami_kernel::Input;
use tirami_kernel::command::{Command, Outcome};
use tirami_kernel::lattice::{Charter, CharterChange, Lattice};
use tirami_kernel::mesh::{DRAFTS_MAX, MeshInput, PeerEvent};
use tirami_ledger::book::ServingPolicy;
use tirami_proto::{Hello, Message, PROTOCOL, PROTOCOL_MIN, PeerAddress, Welcome};

use crate::harness::{Net, key};

/// One of many drafts that every node finds good.
fn good(net: &Net, number: u8) -> Vec<u8> {
    let auditors = Some(vec![PartyId::from_bytes([number; 32])]);
    let change = CharterChange { auditors, ..CharterChange::default() };
    net.nodes[0].lattice().draft_charter(&change).unwrap()
}

/// A good draft after a change.
fn changed(net: &Net, change: impl Fn(&mut Charter)) -> Vec<u8> {
    let mut charter: Charter = tirami_core::decode_body(&good(net, 1)).unwrap();
    change(&mut charter);
    Lattice::charter_bytes(&charter).unwrap()
}

fn send(net: &mut Net, from: usize, to: usize, bytes: Vec<u8>) {
    let to = net.party(to);
    net.send(from, to, &Message::CharterProposal { bytes });
    net.run_ms(1_000);
}

fn draft(net: &mut Net, at: usize, number: u8) -> Vec<u8> {
    let auditors = Some(vec![PartyId::from_bytes([number; 32])]);
    let change = CharterChange { auditors, ..CharterChange::default() };
    let outcome = net.ok(at, Command::ProposeCharter(Box::new(change)));
    let Outcome::Charter { bytes, approval: None } = outcome else { panic!("{outcome:?}") };
    net.run_ms(1_000);
    bytes
}

fn kept(net: &Net, at: usize) -> Vec<Vec<u8>> {
    net.nodes[at].kernel.mesh().charter_drafts().map(<[u8]>::to_vec).collect()
}

#[test]
fn strangers_have_no_draft_and_each_member_one() {
    let mut net = Net::of(3);
    net.nodes[0].settings.public = true;
    net.settings(0);
    let stranger = net.stranger(&[0]);
    net.run_ms(3_000);
    assert!(net.nodes[0].kernel.mesh().is_open(net.party(stranger)));
    for number in 0..10 {
        let bytes = good(&net, number);
        send(&mut net, stranger, 0, bytes);
    }
    assert!(kept(&net, 0).is_empty());
    // Its own owner hears that nobody takes it.
    let auditors = Some(vec![PartyId::from_bytes([1; 32])]);
    let change = CharterChange { auditors, ..CharterChange::default() };
    let refused = net.command(stranger, Command::ProposeCharter(Box::new(change)));
    assert_eq!(refused.unwrap_err().code(), "contradicts");
    assert!(kept(&net, stranger).is_empty());
    for number in 0..10 {
        let bytes = good(&net, number);
        send(&mut net, 1, 0, bytes);
    }
    assert_eq!(kept(&net, 0), [good(&net, 9)]);
    assert!(kept(&net, 2).is_empty(), "a draft of somebody else was passed on");
    let bytes = draft(&mut net, 2, 77);
    assert!(kept(&net, 0).contains(&bytes));
    assert_eq!(net.nodes[0].kernel.mesh().faults(), 0);
    net.ok(0, Command::ApproveCharter { bytes });
    net.run_ms(3_000);
    for node in &net.nodes {
        assert_eq!(node.lattice().charter().version, 2);
        assert_eq!(node.kernel.mesh().charter_drafts().count(), 0);
    }
}

#[test]
fn a_draft_that_cannot_follow_the_charter_in_force_is_not_kept() {
    type Change = fn(&mut Charter);
    let table: [(Change, u64); 5] = [
        (|charter| charter.quorum = 0, 1),
        (|charter| charter.previous = None, 1),
        (|charter| charter.name = "x".repeat(65), 1),
        // It may have been meant for another version, which is nobody's fault.
        (|charter| charter.version += 1, 0),
        (|charter| charter.version -= 1, 0),
    ];
    for (number, (change, faults)) in table.into_iter().enumerate() {
        let mut net = Net::of(2);
        let bytes = changed(&net, change);
        send(&mut net, 1, 0, bytes);
        assert!(kept(&net, 0).is_empty(), "case {number}");
        assert_eq!(net.nodes[0].kernel.mesh().faults(), faults, "case {number}");
    }
}

#[test]
fn a_draft_is_told_to_who_connects_later_and_forgotten_after_a_day() {
    let mut net = Net::of(3);
    net.stop(0);
    let bytes = draft(&mut net, 2, 1);
    net.start(0, None);
    net.run_ms(30_000);
    assert_eq!(kept(&net, 0), [bytes]);
    net.now_ms += DAY_MS;
    net.run_ms(1_000);
    assert!(kept(&net, 0).is_empty() && kept(&net, 2).is_empty());
    let later = good(&net, 2);
    send(&mut net, 1, 0, later.clone());
    assert_eq!(kept(&net, 0), [later]);
    // Its author may draft it again.
    let again = draft(&mut net, 2, 1);
    assert!(kept(&net, 0).contains(&again));
}

/// A peer that the owner of node 1 named comes and sends a draft.
fn named_peer(net: &mut Net, seed: u8) {
    let key: PublicKey = key(seed).public();
    let (peer, bytes) = (key.party(), good(net, seed));
    let hello = Hello {
        protocol_min: PROTOCOL_MIN,
        protocol: PROTOCOL,
        features: 0,
        mesh: net.nodes[1].lattice().mesh(),
        charter_version: 1,
        admission: None,
        addresses: Vec::new(),
        agent: String::new(),
    };
    let welcome =
        Welcome { protocol: PROTOCOL, features: 0, charters: Vec::new(), your_address: None };
    net.give(1, Input::Mesh(MeshInput::AddPeer(PeerAddress { key, via: Vec::new() })));
    let connected = PeerEvent::Connected { outgoing: false, address: None };
    net.give(1, Input::Peer { peer, event: connected });
    for message in
        [Message::Hello(hello), Message::Welcome(welcome), Message::CharterProposal { bytes }]
    {
        let event = PeerEvent::Message(Box::new(message));
        net.give(1, Input::Peer { peer, event });
    }
}

#[test]
fn many_senders_keep_out_neither_the_owners_draft_nor_a_trusted_partys() {
    let mut net = Net::of(3);
    for seed in 0..=DRAFTS_MAX as u8 {
        named_peer(&mut net, 100 + seed);
    }
    assert_eq!(kept(&net, 1).len(), DRAFTS_MAX);
    net.connect(2, 1);
    net.run_ms(1_000);
    let first = good(&net, 100);
    let bytes = good(&net, 1);
    send(&mut net, 2, 1, bytes.clone());
    assert!(!kept(&net, 1).contains(&bytes), "one too many");
    let trusted = [net.party(2)].into();
    let policy = ServingPolicy { trusted, ..ServingPolicy::default() };
    net.ok(1, Command::SetServing(policy));
    send(&mut net, 2, 1, bytes.clone());
    let now = kept(&net, 1);
    assert!(now.contains(&bytes) && now.contains(&first) && now.len() == DRAFTS_MAX);
    let own = draft(&mut net, 1, 2);
    assert!(kept(&net, 1).contains(&own));
    assert_eq!(kept(&net, 1).len(), DRAFTS_MAX + 1);
}
