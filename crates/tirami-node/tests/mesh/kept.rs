//! Members that keep only the chains they have to do with, over real connections: what they serve,
//! and whose word they take for what they do not hold.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tirami_infer::fake::FakeEngine;
use tirami_ledger::lattice::Keep;
use tirami_node::mesh::MeshOptions;

use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::support::{Peer, SOON, joining, until};

fn heads(node: &Peer) -> Vec<Value> {
    node.read(|kernel| {
        let chains = kernel.ledger().lattice().chains();
        chains
            .map(|(party, chain)| serde_json::json!([party.to_string(), chain.next_seq()]))
            .collect()
    })
}

/// What `node` holds is what the witness holds of it.
fn level(node: &TestNode, witness: &TestNode) -> bool {
    let all = heads(&witness.peer);
    heads(&node.peer).iter().all(|head| all.contains(head))
}

#[test]
fn a_provider_that_keeps_few_chains_serves_whom_it_never_heard_of_and_is_paid() {
    let mesh = Mesh::of(&[]);
    let consumers = [mesh.add_user(), mesh.add_user(), mesh.add_user()];
    let invite = mesh.user().peer.node.invite().unwrap();
    let options =
        MeshOptions { keep: Some(Keep::Own), clock: mesh.clock.clock(), ..joining(invite) };
    let engine = Arc::new(FakeEngine::new(script(5, Duration::ZERO)));
    let provider = TestNode::start(options, Some(engine));
    until("it is a member", SOON, || provider.peer.is_member());
    assert_eq!(provider.get("/v1/tirami/network")["keeps"], "own");
    let (party, witness) = (provider.party(), mesh.user());
    let held = || heads(&provider.peer).len();
    assert_eq!(held(), 2, "its own chain and that of the offices");

    for (n, consumer) in consumers[..2].iter().enumerate() {
        until("its offer is known", SOON, || consumer.knows(party));
        let answer = consumer.post(&ask(9, false));
        assert_eq!(answer["x_tirami"]["route"]["provider"], party.to_string(), "{answer}");
        assert_eq!(held(), 3 + n, "it follows whoever orders");
    }
    // It is paid, takes the money, and everybody's accounts of it are the same.
    mesh.clock.pass_ms(120_000);
    until("it is paid", SOON, || {
        provider.get("/v1/tirami/serving")["owed_trm"].as_f64() == Some(0.0)
    });
    mesh.clock.pass_ms(120_000);
    until("it has collected", SOON, || {
        let balance = move |node: &TestNode| {
            node.peer.read(move |kernel| {
                let lattice = kernel.ledger().lattice();
                (lattice.signed_balance(party), lattice.uncollected_sum(party))
            })
        };
        let known = balance(&provider);
        known.0 > 0 && known.1 == 0 && known == balance(witness)
    });
    until("it stands where the witness does", SOON, || level(&provider, witness));
    assert_eq!(held(), 4, "the third consumer is nothing to it");
    assert_eq!(provider.get("/v1/tirami/network")["conserved"], true);

    // After a start it serves a consumer it knew, and one that it did not.
    let options = MeshOptions {
        keep: Some(Keep::Own),
        clock: mesh.clock.clock(),
        bind: Some(([127, 0, 0, 1], 0).into()),
        ..MeshOptions::default()
    };
    let engine = Arc::new(FakeEngine::new(script(5, Duration::ZERO)));
    let provider = TestNode::start_in(provider.killed(), options, Some(engine));
    for consumer in [&consumers[0], &consumers[2]] {
        until("it is answered again", SOON, || consumer.raw(&ask(9, false)).0 == 200);
    }
    assert_eq!(heads(&provider.peer).len(), 5);
}

#[test]
fn in_a_public_mesh_members_keep_their_own_chains_unless_told_otherwise() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let public = |options: MeshOptions| MeshOptions { public: true, ..options };
    let one = Peer::start(dirs[0].path(), public(crate::support::on_loopback()));
    let invite = || one.node.invite().unwrap();
    let two = Peer::start(dirs[1].path(), public(joining(invite())));
    let all = MeshOptions { keep: Some(Keep::All), ..public(joining(invite())) };
    let three = Peer::start(dirs[2].path(), all);
    let keeps = |node: &Peer| node.read(|kernel| kernel.keeps());
    // The founder has all offices.
    assert_eq!([&one, &two, &three].map(keeps), [Keep::All, Keep::Own, Keep::All]);
    for node in [three, two, one] {
        node.stop();
    }
}
