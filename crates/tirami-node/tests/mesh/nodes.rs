//! Nodes that find each other, agree, and lose each other: real connections on loopback.

use std::time::Duration;

use crate::support::{Peer, SOON, joining, on_loopback, until};
use tirami_core::{PartyId, Trm};
use tirami_kernel::Kernel;
use tirami_kernel::mesh::MeshInput;
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{EntryKind, Keep, Transfer};
use tirami_node::mesh::{JoinError, MeshOptions};
use tirami_node::node::StartError;
use tirami_proto::GoodbyeCode;

fn dirs<const N: usize>() -> [tempfile::TempDir; N] {
    std::array::from_fn(|_| tempfile::tempdir().unwrap())
}

fn pay(from: &Peer, to: &Peer, amount: u64) {
    pay_party(from, to.party(), amount);
}

fn pay_party(from: &Peer, payee: PartyId, amount: u64) {
    let kind = EntryKind::Transfer(Transfer { payee, amount: Trm::from_micro(amount) });
    let command = Command::SignEntry { kind };
    from.block_on(from.node.handle().submit(Actor::Node, command)).unwrap();
}

#[test]
fn a_newcomer_is_enrolled_and_a_third_needs_to_know_only_one_of_them() {
    let dirs = dirs::<3>();
    let one = Peer::start(dirs[0].path(), on_loopback());
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("the newcomer has a chain with a line", SOON, || {
        two.is_member() && !two.line_of(two.party()).is_zero()
    });
    until("both have the same state", SOON, || one.state() == two.state());

    let mut invite = two.node.invite().unwrap();
    invite.peers.retain(|peer| peer.party() == two.party());
    let three = Peer::start(dirs[2].path(), joining(invite));
    until("the third heard of the first", SOON, || three.sees(&one) && one.sees(&three));
    until("the third is a member", SOON, || three.is_member());

    pay(&one, &three, 1_000_000);
    let party = three.party();
    until("the transfer is final everywhere", SOON, || {
        [&one, &two, &three].iter().all(|node| node.worth_of(party) == 1_000_000)
    });
    until("all have the same state", SOON, || {
        one.state() == two.state() && two.state() == three.state()
    });
    for node in [one, two, three] {
        node.stop();
    }
}

#[test]
fn a_killed_node_is_gone_within_five_seconds_and_finds_its_peers_again() {
    let dirs = dirs::<2>();
    let one = Peer::start(dirs[0].path(), on_loopback());
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("they are connected", SOON, || one.sees(&two) && two.sees(&one) && two.is_member());
    // The peers file is written every second.
    until("the peers are written down", SOON, || dirs[1].path().join("peers").exists());

    let party = two.party();
    let is_gone = |one: &Peer| !one.read(move |kernel| kernel.mesh().is_open(party));
    two.kill();
    let took = until("the killed node is gone", Duration::from_secs(8), || is_gone(&one));
    println!("gone after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");

    // No bootstrap peer, no invite: what was remembered is enough.
    let two = Peer::start(dirs[1].path(), on_loopback());
    let took = until("they are connected again", SOON, || one.sees(&two) && two.sees(&one));
    println!("back after {took:?}");
    until("both have the same state", SOON, || one.state() == two.state());
    two.stop();
    until("a goodbye is heard at once", Duration::from_secs(3), || is_gone(&one));
    one.stop();
}

#[test]
fn who_has_a_wrong_secret_hears_a_typed_goodbye_and_begins_no_book() {
    let dirs = dirs::<2>();
    let one = Peer::start(dirs[0].path(), on_loopback());
    let mut invite = one.node.invite().unwrap();
    invite.secret = Some([9; 32]);
    let refused = Peer::try_start(dirs[1].path(), joining(invite.clone())).err().unwrap();
    let StartError::Join(JoinError::Refused { peer, goodbye }) = refused else {
        panic!("{refused}");
    };
    assert_eq!((peer, goodbye.code), (one.party(), GoodbyeCode::NotAdmitted));
    assert!(!dirs[1].path().join("tirami.db").exists());

    // The node that was told no can still be invited properly.
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("it is a member", SOON, || two.is_member());
    two.stop();

    // A book of one mesh never becomes that of another.
    invite.mesh = tirami_core::MeshId::from_bytes([7; 32]);
    let other = Peer::try_start(dirs[1].path(), joining(invite)).err().unwrap();
    assert!(matches!(other, StartError::Join(JoinError::OtherMesh { .. })), "{other}");
    one.stop();
}

/// Four nodes; the last one keeps only what it has to do with. It is paid by a node that is no
/// peer of it, serves one whose chain it never saw, and starts again.
#[test]
fn a_member_that_keeps_its_own_chains_trades_and_holds_no_others() {
    let dirs = dirs::<4>();
    let one = Peer::start(dirs[0].path(), on_loopback());
    let invite = || one.node.invite().unwrap();
    let two = Peer::start(dirs[1].path(), joining(invite()));
    let three = Peer::start(dirs[2].path(), joining(invite()));
    until("they are members", SOON, || two.is_member() && three.is_member());
    pay(&two, &three, 5);
    let light = MeshOptions { keep: Some(Keep::Own), ..joining(invite()) };
    let four = Peer::start(dirs[3].path(), light.clone());
    until("the fourth is a member", SOON, || four.is_member());
    let held = |node: &Peer| node.read(|kernel| kernel.ledger().lattice().chain_count());
    assert_eq!((held(&one), held(&four)), (4, 2));

    let party = four.party();
    pay(&two, &four, 1_000_000);
    until("the payment is found and taken", SOON, || {
        let taken = move |kernel: &Kernel| kernel.ledger().lattice().uncollected_sum(party) == 0;
        one.worth_of(party) == 1_000_000 && four.worth_of(party) == 1_000_000 && one.read(taken)
    });
    assert_eq!(held(&four), 3);
    let consumer = three.party();
    four.block_on(four.node.handle().mesh_input(MeshInput::FirstContact(consumer))).unwrap();
    let knows = move |kernel: &Kernel| kernel.knows_consumer(consumer);
    until("a consumer is known", Duration::from_secs(3), || four.read(knows));
    four.stop();
    pay_party(&two, party, 7);

    let four = Peer::start(dirs[3].path(), MeshOptions { join: None, ..light });
    until("what was paid meanwhile is found", SOON, || four.worth_of(party) == 1_000_007);
    let heads = |node: &Peer| {
        let heads = |kernel: &Kernel| kernel.ledger().lattice().chain_heads().collect::<Vec<_>>();
        node.read(heads)
    };
    until("what both hold is the same", SOON, || {
        let all = heads(&one);
        heads(&four).iter().all(|head| all.contains(head))
    });
    let conserved = four.read(|kernel| kernel.ledger().check_invariants());
    assert_eq!(conserved, Ok(()));
    for node in [one, two, three, four] {
        node.stop();
    }
}
