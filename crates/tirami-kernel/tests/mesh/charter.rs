//! Charter changes with entries in flight.

use tirami_core::PublicKey;
use tirami_kernel::command::{Command, Outcome};
use tirami_kernel::lattice::CharterChange;

use crate::harness::Net;

fn witnesses(net: &Net, numbers: &[usize]) -> Vec<PublicKey> {
    numbers.iter().map(|number| net.nodes[*number].key.public()).collect()
}

fn change(net: &mut Net, at: usize, numbers: &[usize]) -> Vec<u8> {
    let witnesses = Some(witnesses(net, numbers));
    let change = CharterChange { witnesses, ..CharterChange::default() };
    match net.ok(at, Command::ProposeCharter(Box::new(change))) {
        Outcome::Charter { bytes, .. } => bytes,
        other => panic!("{other:?}"),
    }
}

fn all_at(net: &Net, version: u32) -> bool {
    let mut up = net.nodes.iter().filter(|node| node.up);
    up.all(|node| node.lattice().charter().version == version)
}

#[test]
fn witnesses_are_added_and_removed_with_entries_in_flight() {
    let mut net = Net::of(4);
    for _ in 0..10 {
        net.transfer(3, 1, 1);
    }
    change(&mut net, 0, &[0, 1, 2]);
    for _ in 0..10 {
        net.transfer(3, 1, 1);
    }
    net.run_ms(5_000);
    assert!(all_at(&net, 2));
    net.converge_ms(5_000);
    let party = net.party(3);
    assert_eq!(net.nodes[3].lattice().pending_of(party).count(), 0);
    // The founder's node goes for good: two of three are a quorum.
    net.transfer(3, 1, 1);
    let bytes = change(&mut net, 1, &[1, 2]);
    net.ok(2, Command::ApproveCharter { bytes });
    net.transfer(3, 1, 1);
    net.run_ms(5_000);
    assert!(all_at(&net, 3));
    net.stop(0);
    net.transfer(3, 2, 1);
    net.run_ms(5_000);
    net.converge_ms(10_000);
    assert_eq!(net.nodes[3].lattice().pending_of(party).count(), 0);
    assert_eq!(net.nodes[1].lattice().chain(party).unwrap().balance(), -23_000_000);
}

#[test]
fn a_draft_of_somebody_else_waits_for_the_witnesses_owner() {
    let mut net = Net::of(3);
    change(&mut net, 2, &[2]);
    net.run_ms(5_000);
    assert!(all_at(&net, 1), "a witness approved by itself");
    let drafts: Vec<Vec<u8>> =
        net.nodes[0].kernel.mesh().charter_drafts().map(<[u8]>::to_vec).collect();
    assert_eq!(drafts.len(), 1);
    net.ok(0, Command::ApproveCharter { bytes: drafts[0].clone() });
    net.run_ms(3_000);
    assert!(all_at(&net, 2));
    net.transfer(1, 0, 1);
    net.run_ms(2_000);
    net.converge_ms(2_000);
    assert_eq!(net.nodes[1].lattice().pending_of(net.party(1)).count(), 0);
}

#[test]
fn a_node_that_was_away_during_the_change_follows_it() {
    let mut net = Net::of(4);
    net.stop(3);
    change(&mut net, 0, &[0, 1, 2]);
    net.run_ms(3_000);
    for _ in 0..5 {
        net.transfer(1, 2, 1);
        net.run_ms(500);
    }
    net.start(3, None);
    net.run_ms(10_000);
    assert!(all_at(&net, 2));
    net.converge_ms(5_000);
    net.transfer(3, 1, 1);
    net.run_ms(3_000);
    net.converge_ms(2_000);
    assert_eq!(net.nodes[3].lattice().pending_of(net.party(3)).count(), 0);
}
