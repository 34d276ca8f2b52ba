//! Nodes that keep only the chains they have to do with.

use std::collections::BTreeSet;

use tirami_core::{DocumentId, PartyId};
use tirami_kernel::Input;
use tirami_kernel::command::Command;
use tirami_kernel::lattice::{CharterChange, Keep, Lattice, Sponsor};
use tirami_kernel::mesh::{FOLLOWED_MS, MeshInput, PeerEvent, WISHED_MAX};
use tirami_proto::{Head, Message, WirePlace};

use crate::harness::{Faults, Net, START_MS, trm};

fn held(net: &Net, node: usize) -> BTreeSet<PartyId> {
    net.nodes[node].lattice().chains().map(|(chain, _)| chain).collect()
}

fn parties(net: &Net, nodes: &[usize]) -> BTreeSet<PartyId> {
    nodes.iter().map(|node| net.party(*node)).collect()
}

/// What `node` holds is what the founder, the witness, holds of it.
fn level_with_witness(net: &Net, node: usize) -> bool {
    let witness = net.nodes[0].lattice();
    let mut chains = net.nodes[node].lattice().chains();
    chains.all(|(party, chain)| {
        let known = witness.chain(party);
        known
            .is_some_and(|known| (known.state(), known.frozen()) == (chain.state(), chain.frozen()))
    })
}

fn contact(net: &mut Net, node: usize, party: PartyId) {
    net.give(node, Input::Mesh(MeshInput::FirstContact(party)));
}

#[test]
fn a_newcomer_fetches_what_it_needs_is_paid_by_a_stranger_and_starts_again() {
    let mut net = Net::of(8);
    for round in 0..6 {
        for node in 1..8 {
            net.transfer(node, 1 + (node + round) % 7, 1);
        }
        net.run_ms(500);
        for node in 1..8 {
            net.collect(node);
        }
    }
    let light = net.join_light(&[0, 3]);
    net.run_ms(5_000);
    // Its own chain and that of clerk and registrar.
    assert_eq!(held(&net, light), parties(&net, &[0, light]));
    assert_eq!(held(&net, 1).len(), 9, "the others keep all");
    assert_eq!(net.nodes[light].kernel.entries_behind(), 0);

    // Node 6 is no peer of it; a witness tells.
    net.transfer(6, light, 5);
    net.run_ms(15_000);
    assert_eq!(held(&net, light), parties(&net, &[0, 6, light]));
    net.collect(light);
    net.run_ms(2_000);
    let balance = |net: &Net| net.nodes[0].lattice().chain(net.party(light)).unwrap().balance();
    assert_eq!(balance(&net), 5_000_000);
    assert!(level_with_witness(&net, light));
    assert!(net.nodes[light].lattice().totals().outside > 0, "the payer collected unseen");
    net.check();

    // It pays, and starts again with what it stored.
    net.transfer(light, 2, 3);
    net.run_ms(1_000);
    net.stop(light);
    net.transfer(5, light, 1);
    net.transfer(6, light, 1);
    net.run_ms(2_000);
    net.start(light, None);
    net.run_ms(15_000);
    net.collect(light);
    net.run_ms(2_000);
    assert_eq!(balance(&net), 4_000_000);
    assert_eq!(held(&net, light), parties(&net, &[0, 5, 6, light]));
    assert!(level_with_witness(&net, light));
    net.check();
    net.stop(light);
    net.converge_ms(10_000);
}

#[test]
fn a_consumer_is_known_a_moment_after_it_came() {
    let mut net = Net::of(6);
    for _ in 0..40 {
        net.transfer(4, 5, 1);
    }
    net.run_ms(500);
    net.collect(5);
    net.run_ms(500);
    let light = net.join_light(&[0]);
    net.run_ms(3_000);
    let consumer = net.party(5);
    let kernel = |net: &Net| net.nodes[light].kernel.clone();
    assert!(!kernel(&net).knows_consumer(consumer));
    assert_eq!(kernel(&net).head_at(consumer), None);
    contact(&mut net, light, consumer);
    net.run_ms(300);
    assert!(kernel(&net).knows_consumer(consumer));
    let known = net.nodes[light].lattice().chain(consumer).unwrap();
    assert_eq!(known.balance(), 40_000_000);
    // What it earned is nobody's here to check, and counts as what its certificate says.
    assert_eq!(held(&net, light), parties(&net, &[0, 5, light]));
    // Cut off, it does not go on believing.
    net.split(&[&[light]]);
    let fresh_ms = net.nodes[light].kernel.ledger().book().serving().fresh_ms;
    net.run_ms(fresh_ms + 1_000);
    assert!(!kernel(&net).knows_consumer(consumer));
    net.split(&[]);
    net.run_ms(20_000);
    contact(&mut net, light, consumer);
    net.run_ms(300);
    assert!(kernel(&net).knows_consumer(consumer));
}

#[test]
fn a_newcomers_sponsor_is_found_and_with_it_how_much_the_newcomer_may_owe() {
    let mut net = Net::found_with(1, |charter| charter.params.checkpoint_ms = 2_000);
    for _ in 1..4 {
        net.join(&[0]);
    }
    net.run_ms(8_000);
    let checkpoint = net.nodes[2].lattice().last_checkpoint().unwrap().1;
    let consumer = net.join_without_secret(&[0]);
    let newcomer = net.party(consumer);
    let kind = Sponsor { newcomer, amount: trm(40), checkpoint }.into();
    net.ok(2, Command::SignEntry { kind });
    net.run_ms(8_000);
    assert!(net.nodes[0].lattice().chain(newcomer).is_some(), "the newcomer did not begin");
    let light = net.join_light(&[0]);
    net.run_ms(3_000);
    contact(&mut net, light, newcomer);
    net.run_ms(1_000);
    assert!(net.nodes[light].kernel.knows_consumer(newcomer));
    assert!(held(&net, light).contains(&net.party(2)));
    let floor = |node: usize| net.nodes[node].lattice().floor(newcomer);
    assert_eq!((floor(light), floor(0)), (trm(40), trm(40)));
    assert!(level_with_witness(&net, light));
    net.check();
}

#[test]
fn what_is_lost_on_the_way_is_fetched_again() {
    let mut net = Net::of(5);
    let light = net.join_light(&[0]);
    net.run_ms(3_000);
    net.faults = Faults { drop: 20, duplicate: 10, reorder: 10 };
    for round in 0..30 {
        // Many at once: a later entry's certificate stands for earlier ones.
        for _ in 0..10 {
            net.transfer(1 + round % 4, light, 1);
            net.transfer(1 + round % 4, 1 + (round + 1) % 4, 1);
        }
        net.run_ms(700);
        for node in 1..5 {
            net.collect(node);
        }
        net.collect(light);
    }
    net.faults = Faults::default();
    net.run_ms(60_000);
    net.collect(light);
    net.run_ms(5_000);
    let balance = net.nodes[0].lattice().chain(net.party(light)).unwrap().balance();
    assert_eq!(balance, 300_000_000);
    assert!(level_with_witness(&net, light));
    net.check();
}

#[test]
fn who_gets_an_office_keeps_all() {
    let mut net = Net::of(4);
    let light = net.join_light(&[0]);
    net.run_ms(3_000);
    net.transfer(1, light, 5);
    net.transfer(2, 3, 5);
    net.run_ms(15_000);
    net.collect(light);
    net.collect(3);
    net.run_ms(1_000);
    assert_eq!(net.nodes[light].kernel.keeps(), Keep::Own);
    assert!(held(&net, light).len() < 5);
    let witnesses = [0, 1, light].map(|node| net.nodes[node].key.public()).to_vec();
    let change = CharterChange { witnesses: Some(witnesses), ..CharterChange::default() };
    net.ok(0, Command::ProposeCharter(Box::new(change)));
    net.run_ms(3_000);
    assert_eq!(net.nodes[light].kernel.keeps(), Keep::All);
    net.converge_ms(60_000);
    net.transfer(2, light, 1);
    net.run_ms(1_000);
    net.stop(0);
    net.transfer(3, 2, 1);
    net.run_ms(5_000);
    net.converge_ms(10_000);
    assert_eq!(net.nodes[2].lattice().pending_of(net.party(3)).count(), 0);
}

#[test]
fn nobody_makes_a_node_keep_what_it_does_not_want() {
    let mut net = Net::of(4);
    let light = net.join_light(&[0, 1, 2]);
    net.run_ms(3_000);
    net.connect(1, light);
    net.run_ms(500);
    let before = held(&net, light);
    let (peer, chain) = (net.party(1), net.party(2));
    let head = DocumentId::from_bytes([9; 32]);
    let heads = vec![Head { chain, next_seq: 5, head }];
    let places = vec![WirePlace { entry: head, chain, seq: 0 }];
    let unasked = [
        Message::Heads { bucket: tirami_core::bucket_of(chain), heads: heads.clone() },
        Message::Beyond { number: 0, heads },
        Message::Places { places, more: true },
    ];
    for message in unasked {
        let event = PeerEvent::Message(Box::new(message));
        net.give(light, Input::Peer { peer, event });
    }
    // Strangers that come and go leave no more wishes than there is room for.
    for number in 0..2 * WISHED_MAX {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        contact(&mut net, light, PartyId::from_bytes(bytes));
    }
    net.transfer(1, 3, 1);
    net.run_ms(20_000);
    assert_eq!(held(&net, light), before);
    assert_eq!(net.nodes[light].kernel.entries_behind(), 0);
    net.run_ms(60_000);
    contact(&mut net, light, chain);
    net.run_ms(1_000);
    assert!(held(&net, light).contains(&chain), "there is room again");
}

#[test]
fn a_newcomer_judges_a_consumer_before_it_holds_what_the_consumer_earned() {
    let mut net = Net::of(6);
    for round in 0..30 {
        for node in [0, 2, 3, 4, 5] {
            for _ in 0..8 {
                net.transfer(node, if round % 3 == 0 { 1 } else { 2 + node % 4 }, 1);
            }
        }
        net.run_ms(300);
        for node in 1..6 {
            net.collect(node);
        }
    }
    net.run_ms(2_000);
    let light = net.join_light(&[0]);
    net.run_ms(2_000);
    let consumer = net.party(1);
    contact(&mut net, light, consumer);
    net.run_ms(300);
    assert!(net.nodes[light].kernel.knows_consumer(consumer));
    let (here, there) = (net.nodes[light].lattice(), net.nodes[0].lattice());
    let standing = |lattice: &Lattice| {
        let balance = lattice.chain(consumer).unwrap().balance();
        (balance, lattice.floor(consumer), lattice.line(consumer))
    };
    assert_eq!(standing(here), standing(there));
    assert!(standing(here).0 > 100_000_000);
    let (held, all) = (here.final_count(), there.final_count());
    assert!(3 * held < all, "{held} of {all} entries");
    net.check();
}

#[test]
fn what_only_its_owner_knows_to_be_final_reaches_the_witnesses() {
    let mut net = Net::of(3);
    let witnesses = [0, 1, 2].map(|node| net.nodes[node].key.public()).to_vec();
    let change = CharterChange { witnesses: Some(witnesses), ..CharterChange::default() };
    net.ok(0, Command::ProposeCharter(Box::new(change)));
    net.run_ms(3_000);
    let light = net.join_light(&[0, 1, 2]);
    net.run_ms(10_000);
    let party = net.party(light);
    let next_seq =
        |net: &Net, node: usize| net.nodes[node].lattice().chain(party).unwrap().next_seq();
    net.transfer(light, 1, 1);
    // The acknowledgements arrive, and what the owner says then does not.
    net.run_ms(11);
    net.split(&[&[light]]);
    let known = next_seq(&net, light);
    net.run_ms(2_000);
    assert!((0..3).all(|witness| next_seq(&net, witness) < known));
    net.split(&[]);
    net.run_ms(6_000);
    assert!((0..3).all(|witness| next_seq(&net, witness) == known));
}

#[test]
fn a_chain_is_followed_while_something_rests_on_it_and_found_again_later() {
    let mut net = Net::of(5);
    let light = net.join_light(&[0]);
    net.run_ms(3_000);
    net.transfer(1, light, 5);
    let payer = net.party(1);
    let follows = |net: &Net| net.nodes[light].kernel.follows(payer);
    while !follows(&net) {
        net.run_ms(1);
        assert!(net.now_ms < START_MS + 60_000, "it does not hear of what it was paid");
    }
    // While the witness is away no collection becomes final.
    net.stop(0);
    net.run_ms(FOLLOWED_MS + 20_000);
    let held = |net: &Net, node: usize| net.nodes[node].lattice().chain(payer).unwrap().next_seq();
    assert!(follows(&net), "what it was paid is not collected");
    net.start(0, None);
    net.run_ms(FOLLOWED_MS / 2);
    assert!(follows(&net), "it may be needed again soon");
    net.run_ms(FOLLOWED_MS);
    assert!(!follows(&net));
    assert_eq!(net.nodes[light].kernel.head_at(payer), None);
    let stood = held(&net, light);
    for _ in 0..3 {
        net.transfer(1, 2, 1);
    }
    net.run_ms(20_000);
    assert_eq!((held(&net, light), held(&net, 0)), (stood, stood + 3));
    // It wants something.
    contact(&mut net, light, payer);
    net.run_ms(300);
    assert!(net.nodes[light].kernel.knows_consumer(payer));
    assert_eq!(held(&net, light), stood + 3);
    // It is forgotten once more, and pays.
    net.run_ms(FOLLOWED_MS + 20_000);
    assert!(!follows(&net));
    net.transfer(1, light, 2);
    net.run_ms(15_000);
    assert!(follows(&net));
    net.collect(light);
    net.run_ms(2_000);
    assert_eq!(net.nodes[0].lattice().chain(net.party(light)).unwrap().balance(), 7_000_000);
    assert!(level_with_witness(&net, light));
    net.check();
}
