//! What a node that has begun tells its owner, and leaves for the commands of its machine.

use std::io::ErrorKind;
use std::net::TcpListener;

use tempfile::tempdir;

use super::common::{self, Node, Ran, run};

#[test]
fn a_data_directory_leads_to_the_node_that_runs_with_it() {
    let home = tempdir().unwrap();
    // Each on a port that nobody knew before.
    let start = |dir: &str| Node::start_with(home.path(), dir, &["--no-model"]);
    let (mut one, mut two) = (start("one"), start("two"));
    let at = |node: &Node, args: &[&str]| {
        let dir = ["--data-dir", node.data_dir.to_str().unwrap()];
        run(home.path(), &[args, &dir].concat())
    };
    for node in [&one, &two] {
        assert!(at(node, &["mesh", "invite"]).succeeds().stdout.starts_with("tirami-invite-"));
        let found = at(node, &["--json", "status"]).succeeds().json();
        let named = node.run(&["--json", "status"]).succeeds().json();
        assert_eq!(found["status"]["node_id"], named["status"]["node_id"]);
    }

    // What is said goes before what is found; a port that is left open says nothing.
    at(&one, &["status", "--url", "http://127.0.0.1:1"]).fails(6, "at http://127.0.0.1:1");
    let by_variable = |port: &str| {
        let mut command = common::tirami(home.path());
        command.env("TIRAMI_PORT", port).args(["status", "--data-dir"]).arg(&one.data_dir);
        Ran::of(command.output().unwrap())
    };
    by_variable("1").fails(6, "at http://127.0.0.1:1");
    by_variable("0").succeeds();

    let file = |node: &Node| node.data_dir.join("api_url");
    one.interrupt();
    assert!(one.wait().success());
    assert!(!file(&one).exists(), "a node that has stopped is nowhere");
    two.kill_9();
    // Another program gets its port: it hears nothing, since no node holds the directory.
    let left = std::fs::read_to_string(file(&two)).unwrap();
    assert_eq!(left.trim_end(), two.api, "whoever is killed leaves its file");
    let other = TcpListener::bind(two.api.strip_prefix("http://").unwrap()).unwrap();
    other.set_nonblocking(true).unwrap();
    let asked = at(&two, &["status"]);
    assert!(!asked.stderr.contains(&two.api), "{asked:?}");
    let heard = other.accept().map_err(|error| error.kind());
    assert!(matches!(heard, Err(ErrorKind::WouldBlock)), "{heard:?}");
    drop(other);
    let two = start("two");
    at(&two, &["status"]).succeeds();

    let all = Node::start_with(home.path(), "all", &["--no-model", "--bind", "0.0.0.0"]);
    assert!(all.api.starts_with("http://127.0.0.1:"), "{}", all.api);
    assert_eq!(std::fs::read_to_string(file(&all)).unwrap().trim_end(), all.api);
    at(&all, &["status"]).succeeds();
}

#[test]
fn whoever_founds_a_mesh_is_told_how_many_may_lie_and_how_many_may_be_away() {
    let home = tempdir().unwrap();
    let start = |dir: &str, args: &[&str]| {
        Node::start_with(home.path(), dir, &[&["--no-model"], args].concat())
    };
    let told = |node: &Node| node.banner.iter().find(|line| line.starts_with("mesh: ")).cloned();
    let mut founder = start("one", &[]);
    let line = told(&founder).expect("the founder is told");
    let mesh = founder.run(&["--json", "mesh"]).succeeds().json();
    assert!(line.contains(mesh["network"]["mesh_id"].as_str().unwrap()), "{line}");
    let borne = "0 may lie, 0 may be away";
    assert!(line.ends_with(borne), "{line}");
    let shown = founder.run(&["mesh"]).succeeds().stdout.clone();
    assert!(shown.contains(borne), "{shown}");

    // Neither a newcomer nor a later start founds anything.
    let invite = founder.run(&["mesh", "invite"]).succeeds().stdout.clone();
    let newcomer = start("two", &["--join", invite.lines().last().unwrap()]);
    assert_eq!(told(&newcomer), None);
    founder.interrupt();
    assert!(founder.wait().success());
    assert_eq!(told(&start("one", &[])), None);
}
