//! Strangers in a public mesh, over real connections: what a faucet gives them, what they do with
//! it, and what becomes of it after three days. And whom the owner welcomes by hand.

use std::time::Duration;

use serde_json::Value;
use tirami_core::{HOUR_MS, MINUTE_MS, SecretKey, Trm};
use tirami_infer::fake::FakeEngine;
use tirami_kernel::command::FaucetBounds;
use tirami_kernel::mesh::Faucet;
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::Transfer;
use tirami_node::mesh::MeshOptions;
use tirami_sdk::types::{EnrolRequest, InviteRequest};

use crate::jobs_support::{TestNode, ask, script, words};
use crate::support::{Ahead, SOON, joining, on_loopback, until};

fn trm(amount: u64) -> Trm {
    Trm::from_trm(amount).unwrap()
}

/// A provider that founded a public mesh and sponsors two newcomers a day from one address.
fn provider(clock: &Ahead) -> TestNode {
    let bounds = FaucetBounds { day_max: trm(5_000), source_max: 2 };
    let options = MeshOptions {
        public: true,
        faucet: Some(Faucet { amount: trm(900), work_bits: 12, bounds }),
        clock: clock.clock(),
        ..on_loopback()
    };
    let engine = FakeEngine::new(script(5, Duration::ZERO));
    TestNode::start(options, Some(std::sync::Arc::new(engine)))
}

fn welcome(node: &TestNode) -> Value {
    node.get("/v1/tirami/mesh/charter")["welcome"].clone()
}

fn is(node: &TestNode, state: &str) -> bool {
    welcome(node)["state"] == state
}

/// Lets the time of a checkpoint pass, and waits until all have seen it.
fn checkpoint(clock: &Ahead, nodes: &[&TestNode]) {
    let number = |node: &TestNode| {
        let charter = node.get("/v1/tirami/mesh/charter");
        charter["checkpoint"]["number"].as_u64().unwrap_or_default()
    };
    let before = number(nodes[0]);
    clock.pass_ms(11 * MINUTE_MS);
    until("a checkpoint, everywhere", SOON, || nodes.iter().all(|node| number(node) > before));
}

#[test]
fn a_stranger_shows_work_asks_pays_and_settles_and_one_that_does_not_costs_its_sponsor_the_lock() {
    let clock = Ahead::default();
    let founder = provider(&clock);
    let invite = || founder.peer.node.invite().unwrap();
    assert!(invite().secret.is_none(), "the mesh is public");
    let newcomer = || {
        let options = MeshOptions { clock: clock.clock(), ..joining(invite()) };
        TestNode::start(options, None)
    };
    let (good, bad) = (newcomer(), newcomer());
    until("both have a welcome line", SOON, || is(&good, "open") && is(&bad, "open"));
    assert!(good.peer.line_of(good.party()).is_zero(), "nobody enrolled it");
    // A third key from the same address is refused, with a reason its owner sees.
    let third = newcomer();
    until("the third one is told why not", SOON, || {
        let refused = welcome(&third)["refused"].clone();
        refused.as_str().is_some_and(|reason| reason.contains("a day from one address"))
    });
    let given = &founder.get("/v1/tirami/mesh/charter")["faucet"]["given_trm"];
    assert_eq!(given.as_f64(), Some(1_800.0));

    // Both ask; their answers are paid out of the welcome lines.
    for node in [&good, &bad] {
        let answered = || {
            let (status, answer) = node.raw(&ask(9, false));
            (status == 200).then_some(answer)
        };
        let mut answer = None;
        until("a stranger is answered", SOON, || {
            answer = answered();
            answer.is_some()
        });
        assert_eq!(answer.unwrap()["choices"][0]["message"]["content"], words(5));
    }
    clock.pass_ms(15_000);
    let below = |node: &TestNode| {
        let party = node.party();
        founder.peer.read(move |kernel| kernel.ledger().lattice().signed_balance(party)) < 0
    };
    until("both payments are final", SOON, || below(&good) && below(&bad));
    // What is paid out of a welcome line is collected once a checkpoint covers it.
    let uncollected = || {
        let own = founder.party();
        founder.peer.read(move |kernel| kernel.ledger().lattice().uncollected_sum(own))
    };
    assert!(uncollected() > 0);
    checkpoint(&clock, &[&founder, &good, &bad]);
    clock.pass_ms(2 * MINUTE_MS);
    until("the provider has collected", SOON, || uncollected() == 0);

    // The third one is sponsored by hand.
    let sponsor = tirami_sdk::types::SponsorRequest {
        party: third.party().to_string(),
        amount_trm: Some(trm(700).into()),
    };
    let owner = founder.owner();
    founder.peer.block_on(owner.sponsor(&sponsor)).unwrap();
    until("the third one begins", SOON, || is(&third, "open"));

    // One earns: the founder gives it something.
    let kind = Transfer { payee: good.party(), amount: trm(5) }.into();
    founder.submit(Actor::Node, Command::SignEntry { kind });
    clock.pass_ms(2 * MINUTE_MS);
    until("it has collected", SOON, || !below(&good));
    checkpoint(&clock, &[&founder, &good, &bad, &third]);

    // A day before the end those who can settle do, and the sponsor takes its locks back.
    clock.pass_ms(48 * HOUR_MS);
    until("they settle", SOON, || is(&good, "settled") && is(&third, "settled"));
    checkpoint(&clock, &[&founder, &good, &bad, &third]);
    let locks = || {
        let own = founder.party();
        founder.peer.read(move |kernel| kernel.ledger().lattice().sponsored(own).count())
    };
    until("only one lock is left", SOON, || locks() == 1);

    // The other one cannot, and the sponsor's lock pays for it.
    clock.pass_ms(24 * HOUR_MS);
    until("it defaults", SOON, || is(&bad, "defaulted"));
    until("its orders are refused, which the provider records", SOON, || {
        let (status, _) = bad.raw(&ask(9, false));
        assert_ne!(status, 200);
        founder.refused(bad.party(), "order_defaulted") > 0
    });
    assert_eq!(founder.get("/v1/tirami/network")["conserved"], true);
}

#[test]
fn whom_the_owner_enrols_by_hand_takes_no_use_from_its_invites() {
    let owner = TestNode::start(on_loopback(), None);
    let client = owner.owner();
    let invite = |uses| {
        let asked = InviteRequest { uses: Some(uses), expires_in_s: None, renew: false };
        owner.peer.block_on(client.mesh_invite(&asked)).unwrap()
    };
    let one = invite(1);
    assert_eq!(one.enrolments_left, 1);
    let enrol = |seed: u8, line: &str| {
        let party = SecretKey::from_seed([seed; 32]).public().party().to_string();
        let line_trm = Some(line.parse().unwrap());
        let asked = EnrolRequest { party, owner: "by hand".to_owned(), line_trm };
        owner.peer.block_on(client.enrol(&asked)).unwrap()
    };
    enrol(90, "5");
    enrol(91, "5");
    // A greater line for one of them is nobody new.
    enrol(91, "7");
    assert_eq!(invite(0).enrolments_left, 1);
    let word: tirami_proto::Invite = one.invite.parse().unwrap();
    let first = TestNode::start(joining(word.clone()), None);
    until("the invite brings one in", SOON, || !owner.peer.line_of(first.party()).is_zero());
    let second = TestNode::start(joining(word), None);
    until("and no other", SOON, || owner.refused(second.party(), "invite_used_up") == 1);
}
