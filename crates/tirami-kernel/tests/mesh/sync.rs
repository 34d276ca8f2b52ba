//! Newcomers, ranges, resuming.

use tirami_kernel::Input;
use tirami_kernel::mesh::PeerEvent;
use tirami_proto::{Head, Message};

use crate::harness::{Faults, Net, START_MS};

/// A mesh of three with many entries whose chains rest on each other.
fn busy(entries: usize) -> Net {
    let mut net = Net::of(3);
    let mut round = 0;
    while net.nodes[0].lattice().final_count() < entries {
        for node in 1..3 {
            for _ in 0..20 {
                net.transfer(node, 3 - node, 1);
            }
        }
        net.run_ms(300);
        for node in 1..3 {
            net.collect(node);
        }
        net.run_ms(300);
        round += 1;
        assert!(round < 200, "entries do not become final");
    }
    net
}

#[test]
fn a_newcomer_gets_two_thousand_entries_in_seconds() {
    let mut net = busy(2_000);
    let newcomer = net.join(&[0]);
    let took_ms = net.converge_ms(10_000);
    assert!(net.nodes[newcomer].lattice().final_count() >= 2_000);
    assert!(took_ms < 5_000, "{took_ms} ms");
    assert_eq!(net.nodes[newcomer].kernel.entries_behind(), 0);
}

#[test]
fn a_newcomer_knows_the_newest_checkpoint_before_it_asks_for_any_other_chain() {
    let mut net = Net::found_with(1, |charter| charter.params.checkpoint_ms = 2_000);
    for _ in 1..5 {
        net.join(&[0]);
    }
    net.run_ms(3_000);
    // More than two pages of the clerk's chain, and some of everybody's.
    for round in 0..30 {
        for _ in 0..20 {
            net.transfer(0, 1 + round % 4, 1);
        }
        net.transfer(1 + round % 4, 1 + (round + 1) % 4, 1);
        net.run_ms(300);
        net.collect(1 + round % 4);
    }
    net.run_ms(5_000);
    let checkpoint = |net: &Net, node: usize| net.nodes[node].lattice().last_checkpoint();
    let newest = checkpoint(&net, 0);
    assert!(newest.is_some());
    let newcomer = net.join(&[0, 1, 2, 3]);
    net.ranges.clear();
    let clerk = net.party(0);
    while net.ranges.iter().all(|range| range.by != newcomer || range.chain == clerk) {
        net.run_ms(1);
        assert!(net.now_ms < START_MS + 60_000, "no other chain is asked for");
    }
    assert!(net.ranges.iter().filter(|range| range.by == newcomer).count() > 3);
    assert_eq!(checkpoint(&net, newcomer), newest);
    assert_eq!(net.nodes[newcomer].lattice().chain_count(), 1);
    net.converge_ms(10_000);
}

#[test]
fn a_newcomer_that_is_cut_off_asks_for_nothing_twice() {
    let mut net = busy(4_000);
    let newcomer = net.join(&[0, 1]);
    net.ranges.clear();
    let mut cuts = 0;
    while net.nodes[newcomer].lattice().final_count() < 3_500 {
        while !net.is_connected(newcomer, 0) {
            net.run_ms(10);
        }
        net.run_ms(70);
        net.split(&[&[newcomer]]);
        net.run_ms(1_000);
        net.split(&[]);
        cuts += 1;
        assert!(cuts < 100, "it gets nowhere");
    }
    assert!(cuts > 1, "it was not cut off in the middle");
    net.converge_ms(20_000);
    let asked: Vec<_> = net.ranges.iter().filter(|range| range.by == newcomer).collect();
    assert!(asked.len() > 6);
    assert!(asked.iter().all(|range| range.from_seq == range.next_seq), "{asked:?}");
    let (arrived, needed) = (net.arrived[&newcomer], net.nodes[newcomer].lattice().final_count());
    // What rested on another chain when the cut came is fetched again.
    assert!(arrived < needed as u64 * 3 / 2, "{arrived} entries came, {needed} are needed");
}

#[test]
fn a_newcomer_that_is_cut_off_again_and_again_goes_on_where_it_was() {
    let mut net = busy(1_000);
    let newcomer = net.join(&[0]);
    net.faults = Faults { drop: 20, ..Faults::default() };
    let mut before = 0;
    for _ in 0..40 {
        net.run_ms(37);
        net.split(&[&[newcomer]]);
        net.run_ms(1_000);
        let now = net.nodes[newcomer].lattice().final_count();
        assert!(now >= before);
        before = now;
        net.split(&[]);
        net.run_ms(2_000);
    }
    net.faults = Faults::default();
    net.converge_ms(60_000);
}

#[test]
fn a_peer_that_claims_more_than_it_has_costs_nothing() {
    let mut net = Net::of(3);
    let (liar, chain) = (net.party(2), net.party(1));
    let bucket = tirami_core::bucket_of(chain);
    let head = tirami_core::DocumentId::from_bytes([9; 32]);
    let heads = vec![Head { chain, next_seq: u64::MAX, head }];
    let event = PeerEvent::Message(Box::new(Message::Heads { bucket, heads }));
    net.give(0, Input::Peer { peer: liar, event });
    assert!(net.nodes[0].kernel.entries_behind() > 1_000);
    net.run_ms(3_000);
    assert_eq!(net.nodes[0].kernel.entries_behind(), 0);
    net.transfer(1, 2, 1);
    net.run_ms(1_000);
    assert!(net.agree());
}

#[test]
fn peers_that_announce_what_they_never_serve_do_not_slow_a_newcomer() {
    let mut net = busy(2_000);
    net.boasters = [1, 2].into();
    let newcomer = net.join(&[0, 1, 2]);
    let took_ms = net.converge_ms(60_000);
    assert!((0..3).all(|peer| net.is_connected(newcomer, peer)));
    // One page of each boaster is waited for once.
    assert!(took_ms < 6_000, "{took_ms} ms");
    // What they go on announcing delays no news.
    net.transfer(0, newcomer, 1);
    net.run_ms(1_000);
    assert!(net.agree());
    net.run_ms(60_000);
    assert_eq!(net.nodes[newcomer].kernel.entries_behind(), 0);
}

#[test]
fn nodes_that_hold_the_same_send_almost_nothing() {
    let mut net = Net::of(3);
    net.run_ms(5_000);
    net.sent.clear();
    net.run_ms(60_000);
    let total: u64 = net.sent.values().sum();
    assert!(total < 60, "{:?}", net.sent);
}
