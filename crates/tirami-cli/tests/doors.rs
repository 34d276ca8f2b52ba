//! Who gets into a mesh, and who comes back after a sleep: real processes, the real model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::{Duration, Instant};

use common::{Node, signal};
use tempfile::tempdir;

const SOON: Duration = Duration::from_secs(30);

fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    begun.elapsed()
}

fn invite(node: &Node) -> String {
    let printed = node.run(&["mesh", "invite"]).succeeds().stdout.clone();
    printed.lines().last().unwrap().to_owned()
}

fn start(home: &std::path::Path, dir: &str, more: &[&str]) -> Node {
    let mut args = vec!["--mesh-port", "0"];
    args.extend_from_slice(more);
    Node::start_with(home, dir, &args)
}

fn party(node: &Node) -> String {
    node.run(&["mesh", "--json"]).succeeds().json()["network"]["node_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn sees(node: &Node, party: &str) -> bool {
    let peers = node.run(&["peers", "--json"]).succeeds().json();
    let open = |peer: &serde_json::Value| peer["node_id"] == party && peer["state"] == "open";
    peers["peers"].as_array().unwrap().iter().any(open)
}

#[test]
fn a_stranger_joins_a_public_mesh_and_has_no_line() {
    let home = tempdir().unwrap();
    let open = start(home.path(), "open", &["--no-model", "--public"]);
    let shown = open.run(&["mesh", "invite", "--json"]).succeeds().json();
    assert_eq!(shown["secret"], false);
    let stranger = start(home.path(), "stranger", &["--no-model", "--join", &invite(&open)]);
    let (one, other) = (party(&open), party(&stranger));
    until("both see each other", SOON, || sees(&open, &other) && sees(&stranger, &one));
    // No line, so no chain: the mesh has one member.
    let members = open.run(&["mesh", "--json"]).succeeds().json()["network"]["total_nodes"].clone();
    assert_eq!(members, 1);
    // A mesh that is not open says no, and why.
    let closed = start(home.path(), "closed", &["--no-model"]);
    let invite = invite(&closed);
    let mut parsed: tirami_node::mesh::Invite = invite.parse().unwrap();
    parsed.secret = None;
    let args = ["--no-model", "--mesh-port", "0", "--join", &parsed.to_string()];
    Node::refused(home.path(), "refused", &args).fails(7, "this mesh is private; join it with an");
    let told = closed.run(&["peers", "--json"]).succeeds().json();
    assert_eq!(told["farewells"][0]["code"], "not_admitted");
    let told = closed.run(&["peers"]).succeeds().stdout.clone();
    assert!(told.contains("sent away") && told.contains("this mesh is private"), "{told}");
}

#[test]
fn a_node_that_slept_is_used_again_within_ten_seconds() {
    let home = tempdir().unwrap();
    let user = start(home.path(), "user", &["--no-model"]);
    let sleeper = start(home.path(), "sleeper", &["--join", &invite(&user)]);
    let third = start(home.path(), "third", &["--no-model", "--join", &invite(&user)]);
    let (asleep, other) = (party(&sleeper), party(&third));
    let answered = |node: &Node| {
        let asked = ["chat", "--json", "--max-tokens", "2", "Hi"];
        let asked = node.run(&asked);
        asked.code == 0 && asked.json()["x_tirami"]["route"]["provider"] == asleep.as_str()
    };
    until("the sleeper answers", SOON, || answered(&user));
    until("all know each other", SOON, || {
        sees(&user, &asleep) && sees(&third, &asleep) && sees(&user, &other)
    });
    signal(sleeper.pid(), "STOP");
    until("it is missed", SOON, || !sees(&user, &asleep) && !sees(&third, &asleep));
    // Nobody else is given up because of it.
    assert!(sees(&user, &other) && sees(&third, &party(&user)));
    signal(sleeper.pid(), "CONT");
    let took = until("it answers again", Duration::from_secs(10), || answered(&user));
    println!("used again {took:?} after it woke");
    until("and the third sees it", Duration::from_secs(10), || sees(&third, &asleep));
}

/// The charter bounds what its registrar may grant, by hand and by invite.
#[test]
fn a_line_that_finds_no_room_is_refused_and_a_newcomer_is_told() {
    let home = tempdir().unwrap();
    let founder = Node::start_with(home.path(), "a", &["--no-model"]);
    let mesh = |node: &Node| node.run(&["--json", "mesh"]).succeeds().json();
    let enrol = |line: &str| {
        let party = "11".repeat(32);
        founder.run(&["mesh", "enrol", &party, "--owner", "Bea", "--line", line])
    };
    let left = || {
        let refused = enrol("18446744073709");
        refused.fails(7, " TRM to enrol; ask for less");
        assert!(refused.stdout.is_empty(), "{refused:?}");
        let (_, left) = refused.stderr.split_once("the charter leaves ").unwrap();
        left.split_once(' ').unwrap().0.to_owned()
    };
    let state = || mesh(&founder)["network"]["lattice_state_hash"].clone();
    let (before, all) = (state(), left());
    assert_eq!((state(), left()), (before, all.clone()), "what is refused changes nothing");
    enrol(&all).succeeds();
    assert_eq!(left(), "0");

    let invite = invite(&founder);
    let join = ["--no-model", "--join", &invite];
    let newcomer = Node::start_with(home.path(), "b", &join);
    until("the newcomer hears why it has no line", SOON, || {
        let told = mesh(&newcomer)["charter"]["welcome"]["refused"].to_string();
        told.contains("the charter leaves 0 TRM to enrol")
    });
    let shown = newcomer.run(&["mesh"]);
    assert!(shown.succeeds().stdout.contains("the charter leaves 0 TRM"), "{shown:?}");
}
