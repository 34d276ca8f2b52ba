//! Joining, witnesses, finality.

use tirami_core::Timestamp;
use tirami_kernel::command::{Actor, Command};
use tirami_kernel::event::Event;
use tirami_kernel::lattice::{CharterChange, LatticeEvent, SignedEntry, Transfer};
use tirami_kernel::mesh::PeerEvent;
use tirami_kernel::{Input, Rejection, RequestId};
use tirami_ledger::refusal::OrderRefusal;
use tirami_proto::{Message, WireEntry};

use crate::claims::would_take;
use crate::harness::{Faults, Net, trm};

fn balance(net: &Net, at: usize, of: usize) -> i64 {
    net.nodes[at].lattice().chain(net.party(of)).map_or(0, |chain| chain.balance())
}

#[test]
fn an_invited_node_is_enrolled_and_opens_its_chain_by_itself() {
    let mut net = Net::found(1);
    net.run_ms(1_000);
    let newcomer = net.join(&[0]);
    net.run_ms(2_000);
    let party = net.party(newcomer);
    for node in &net.nodes {
        assert_eq!(node.lattice().line(party), trm(1_000));
    }
    net.converge_ms(1_000);
    // Coming again enrols nobody twice.
    let entries = net.nodes[0].lattice().final_count();
    net.stop(newcomer);
    net.run_ms(1_000);
    net.start(newcomer, None);
    net.run_ms(10_000);
    assert_eq!(net.nodes[0].lattice().final_count(), entries);
}

#[test]
fn a_transfer_and_its_collect_become_final_everywhere() {
    let mut net = Net::of(3);
    net.transfer(1, 2, 30);
    net.run_ms(500);
    for node in 0..3 {
        assert_eq!(balance(&net, node, 1), -30_000_000);
    }
    net.collect(2);
    net.run_ms(500);
    for node in 0..3 {
        assert_eq!(balance(&net, node, 1), -30_000_000);
        assert_eq!(balance(&net, node, 2), 30_000_000);
    }
    assert!(net.agree());
    net.check();
}

#[test]
fn a_network_that_loses_repeats_and_reorders_only_delays() {
    let mut net = Net::of(4);
    net.faults = Faults { drop: 15, duplicate: 15, reorder: 30 };
    for round in 0..30 {
        net.transfer(1 + round % 3, (round + 1) % 3 + 1, 1);
        net.run_ms(200);
    }
    net.run_ms(20_000);
    net.faults = Faults::default();
    net.run_ms(20_000);
    net.converge_ms(10_000);
    for node in 1..4 {
        assert_eq!(net.nodes[node].lattice().pending_of(net.party(node)).count(), 0);
        assert!(net.nodes[node].lattice().chain(net.party(node)).unwrap().next_seq() >= 11);
    }
}

#[test]
fn while_the_witness_is_away_entries_wait_and_then_become_final() {
    let mut net = Net::of(3);
    net.stop(0);
    for _ in 0..100 {
        net.transfer(1, 2, 1);
    }
    net.run_ms(5_000);
    let party = net.party(1);
    assert_eq!(net.nodes[1].lattice().pending_of(party).count(), 100);
    net.start(0, None);
    net.run_ms(10_000);
    net.converge_ms(5_000);
    assert_eq!(net.nodes[1].lattice().pending_of(party).count(), 0);
    assert_eq!(balance(&net, 2, 1), -100_000_000);
}

#[test]
fn after_a_partition_heals_all_states_are_equal_within_ten_seconds() {
    let mut net = Net::of(5);
    net.split(&[&[0, 1, 2], &[3, 4]]);
    for _ in 0..20 {
        net.transfer(1, 2, 1);
        net.transfer(3, 4, 2);
        net.run_ms(300);
    }
    assert!(!net.agree());
    assert_eq!(net.nodes[3].lattice().pending_of(net.party(3)).count(), 20);
    net.split(&[]);
    net.run_ms(10_000);
    assert!(net.agree(), "{:?}", net.heads());
    assert_eq!(balance(&net, 0, 3), -40_000_000);
    net.check();
}

#[test]
fn a_node_that_was_set_back_signs_nothing_until_it_has_repaired_itself() {
    let mut net = Net::of(3);
    net.transfer(1, 2, 1);
    net.run_ms(500);
    let backup = net.nodes[1].store.len();
    for _ in 0..5 {
        net.transfer(1, 2, 10);
    }
    net.run_ms(500);
    net.stop(1);
    net.split(&[&[0, 2], &[1]]);
    net.start(1, Some(backup));
    net.run_ms(3_000);
    // Nobody answered: it signs nothing.
    let payee = net.party(2);
    let rival = || Command::SignEntry { kind: Transfer { payee, amount: trm(999) }.into() };
    assert!(matches!(net.command(1, rival()), Err(Rejection::Unconfirmed)));
    net.split(&[]);
    net.run_ms(10_000);
    assert!(net.agree());
    assert_eq!(balance(&net, 1, 1), -51_000_000);
    assert!(net.nodes[0].lattice().double_sign_proofs().next().is_none());
    net.transfer(1, 2, 4);
    net.run_ms(1_000);
    assert_eq!(balance(&net, 0, 1), -55_000_000);
}

#[test]
fn every_crash_and_replay_goes_on_where_it_was() {
    let mut net = Net::of(3);
    for round in 0..12 {
        net.transfer(1, 2, 1);
        net.run_ms(7 * round);
        let node = round as usize % 3;
        net.stop(node);
        net.run_ms(40);
        net.start(node, None);
        net.run_ms(12_000);
    }
    net.converge_ms(20_000);
    assert_eq!(balance(&net, 0, 1), -12_000_000);
}

#[test]
fn the_clerks_checkpoint_becomes_final_at_three_witnesses() {
    let mut net = Net::found_with(1, |charter| charter.params.checkpoint_ms = 60_000);
    for _ in 0..3 {
        net.join(&[0]);
    }
    net.run_ms(3_000);
    let witnesses = (0..3).map(|node| net.nodes[node].key.public()).collect();
    let change = CharterChange { witnesses: Some(witnesses), ..CharterChange::default() };
    net.ok(0, Command::ProposeCharter(Box::new(change)));
    net.run_ms(3_000);
    for step in 0..6 {
        net.transfer(1, 2, step + 1);
        net.run_ms(30_000);
    }
    let last = net.nodes[3].lattice().last_checkpoint().map(|(number, ..)| number);
    assert!(last >= Some(2), "{last:?}");
    net.converge_ms(1_000);
}

/// A second copy of node 1, with the same key, signs another entry for the same slot, which `payee`
/// shows to the witness when the first one is final.
fn signed_twice(net: &mut Net, payee: usize) -> SignedEntry {
    let payee = net.party(payee);
    let mut twin = net.nodes[1].kernel.clone();
    let kind = Transfer { payee, amount: trm(77) }.into();
    let input = Input::Command {
        request: RequestId::new(9),
        actor: Actor::Node,
        command: Command::SignEntry { kind },
    };
    let effects = twin.handle(Timestamp::from_ms(net.now_ms), input);
    let rival = effects.append.iter().find_map(|event| match event {
        Event::Lattice(event) => match &**event {
            LatticeEvent::EntryPending { entry, .. } => Some(entry.clone()),
            _ => None,
        },
        _ => None,
    });
    let rival = rival.expect("the twin signed");
    net.transfer(1, 2, 5);
    net.run_ms(500);
    let entry = WireEntry { bytes: rival.bytes().to_vec(), signature: rival.signature() };
    let event = PeerEvent::Message(Box::new(Message::Entry(entry)));
    net.give(0, Input::Peer { peer: payee, event });
    net.run_ms(2_000);
    rival
}

#[test]
fn a_provider_that_was_away_and_a_new_one_hear_who_signed_twice() {
    let mut net = Net::of(4);
    net.stop(3);
    signed_twice(&mut net, 2);
    net.start(3, None);
    let newcomer = net.join(&[0]);
    net.run_ms(70_000);
    for provider in [3, newcomer] {
        let refused = would_take(&net, (1, provider));
        assert_eq!(refused, Err(OrderRefusal::DoubleSigned), "node {provider}");
    }
}

#[test]
fn a_rival_signed_in_secret_is_proved_to_everybody_and_only_one_becomes_final() {
    let mut net = Net::of(4);
    let cheat = net.party(1);
    let rival = signed_twice(&mut net, 3);
    for node in &net.nodes {
        assert!(node.lattice().double_sign_proof(cheat).is_some(), "somebody has no proof");
        assert!(node.lattice().final_entry(rival.id()).is_none());
    }
    net.converge_ms(1_000);
    assert_eq!(balance(&net, 0, 1), -5_000_000);
}

#[test]
fn the_only_witness_set_back_learns_from_its_members_before_it_acknowledges() {
    let mut net = Net::of(3);
    let backup = net.nodes[0].store.len();
    for _ in 0..5 {
        net.transfer(1, 2, 10);
        net.run_ms(200);
    }
    let before = net.nodes[2].lattice().state_hash();
    net.stop(0);
    net.run_ms(1_000);
    net.start(0, Some(backup));
    net.run_ms(1_000);
    assert!(net.nodes[0].lattice().is_asking());
    net.run_ms(10_000);
    assert!(!net.nodes[0].lattice().is_asking());
    assert_eq!(net.nodes[0].lattice().state_hash(), before);
    net.transfer(1, 2, 10);
    net.run_ms(3_000);
    net.converge_ms(3_000);
    assert_eq!(balance(&net, 0, 1), -60_000_000);
}

#[test]
fn a_newcomer_that_comes_while_the_registrar_may_not_sign_is_enrolled_a_little_later() {
    let mut net = Net::of(2);
    net.stop(0);
    net.run_ms(1_000);
    net.start(0, None);
    let newcomer = net.join(&[0]);
    net.run_ms(1_000);
    assert!(net.nodes[0].lattice().chain(net.party(newcomer)).is_none());
    net.run_ms(9_000);
    assert!(net.nodes[newcomer].lattice().chain(net.party(newcomer)).is_some());
    net.converge_ms(2_000);
}
