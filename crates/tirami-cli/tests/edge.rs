//! The whole walk with a real process and the real model.

mod common;

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use common::{Node, Ran, run};
use tempfile::tempdir;

fn balance(node: &Node) -> serde_json::Value {
    node.run(&["status", "--json"]).succeeds().json()["balance"]["effective_balance_micro"].clone()
}

#[test]
fn a_chat_is_a_trade_with_two_signatures_and_a_restart_changes_nothing() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let kinds: Vec<&str> = node.banner.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(kinds, ["data dir", "model", "API", "API key", "ready"]);
    assert!(!node.api.ends_with(":0"), "{}", node.api);

    let answer = node.run(&["chat", "--max-tokens", "9", "--seed", "1", "What", "is", "rain?"]);
    answer.succeeds();
    assert!(!answer.stdout.trim().is_empty());
    assert!(answer.stderr.contains("TRM"), "{answer:?}");

    let json = node.run(&["chat", "--json", "--max-tokens", "9", "Count to three."]);
    let json = json.succeeds().json();
    assert_eq!(json["object"], "chat.completion");
    let trade = json["x_tirami"]["trade_id"].as_str().unwrap().to_owned();
    let cost = json["x_tirami"]["trm_cost"].clone();

    let list = node.run(&["trades", "--json"]).succeeds().json();
    assert_eq!(list["count"], 2);
    assert_eq!(list["trades"][0]["trade_id"], trade.as_str());
    assert_eq!(list["trades"][0]["trm_amount"], cost);
    let shown = node.run(&["trades", "show", &trade, "--json"]).succeeds().json();
    assert_eq!(shown["verified_here"], true);
    let human = node.run(&["trades", "show", &trade]);
    assert!(human.succeeds().stdout.contains("here: order signed by the consumer, receipt signed"));

    let identity = node.run(&["identity", "--json"]).succeeds().json();
    let before = balance(&node);
    let hash = node.run(&["status", "--json"]).json()["status"]["total_trades"].clone();
    drop(node);

    // Without filling the account up again.
    let node = Node::start_with(home.path(), "data", &["--personal-agent-answers", "0"]);
    assert_eq!(balance(&node), before);
    assert_eq!(node.run(&["identity", "--json"]).json(), identity);
    assert_eq!(node.run(&["status", "--json"]).json()["status"]["total_trades"], hash);
    assert_eq!(node.run(&["trades", "--json"]).json()["trades"], list["trades"]);
}

#[test]
fn ctrl_c_lets_running_answers_end_and_the_node_exits_with_0() {
    let home = tempdir().unwrap();
    let mut node = Node::start(home.path());
    let mut chat = node
        .command(&["chat", "--max-tokens", "40", "Tell a long story."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    chat.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    node.interrupt();
    let answer = Ran::of(chat.wait_with_output().unwrap());
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stderr.contains("TRM"), "{answer:?}");
    assert_eq!(node.wait().code(), Some(0));
    let report = run(home.path(), &["doctor", "--data-dir", node.data_dir.to_str().unwrap()]);
    assert!(!report.stdout.contains("WRONG  account"), "{report:?}");
}

#[test]
fn a_second_ctrl_c_ends_at_once_and_the_next_start_settles() {
    let home = tempdir().unwrap();
    let mut node = Node::start_with(home.path(), "data", &["--drain-ms", "60000"]);
    let mut chat = node
        .command(&["chat", "--max-tokens", "2000", "Tell a very long story."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    chat.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    node.interrupt();
    std::thread::sleep(Duration::from_millis(200));
    node.interrupt();
    assert_eq!(node.wait().code(), Some(130));
    let answer = Ran::of(chat.wait_with_output().unwrap());
    answer.fails(6, "");
    let node = Node::start(home.path());
    let status = node.run(&["status", "--json"]).succeeds().json();
    assert_eq!(status["status"]["open_holds"], 0);
}

#[test]
fn ctrl_c_stops_an_answer_and_says_what_it_cost() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let mut chat = node
        .command(&["chat", "--max-tokens", "2000", "Tell a very long story."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    chat.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    common::signal(chat.id(), "INT");
    let answer = Ran::of(chat.wait_with_output().unwrap());
    answer.fails(130, "stopped; ");
    assert!(answer.stderr.contains("were delivered and cost"), "{answer:?}");
    let list = node.run(&["trades", "--json"]).succeeds().json();
    assert_eq!(list["trades"][0]["finish"], "cancelled");
}

#[test]
fn a_second_node_on_the_same_directory_is_refused() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let second = Node::refused(home.path(), "data", &[]);
    second.fails(4, "is locked by another node");
    assert!(second.stderr.contains(&format!("pid {}", node.pid())), "{second:?}");
    node.run(&["status"]).succeeds();
}

#[test]
fn the_doctor_praises_a_whole_book_and_names_the_damage_in_a_broken_one() {
    let home = tempdir().unwrap();
    let mut node = Node::start(home.path());
    node.run(&["chat", "--max-tokens", "4", "Hello"]).succeeds();
    let model = common::model();
    let args = ["doctor", "--model", model.to_str().unwrap()];
    let live = node.run(&args);
    assert!(live.succeeds().stdout.contains("invariants"), "{live:?}");
    node.interrupt();
    assert_eq!(node.wait().code(), Some(0));
    let report = node.run(&["doctor", "--json", args[1], args[2]]).succeeds().json();
    assert_eq!(report["healthy"], true);

    let book = node.data_dir.join("tirami.db");
    let whole = std::fs::read(&book).unwrap();
    // A byte in the middle, the second half, and everything.
    for damage in 0..3 {
        let mut bytes = whole.clone();
        match damage {
            0 => {
                // The body of a document: the page is still well-formed, the content is not.
                let at = find(&bytes, b"llama.cpp").expect("a receipt is stored");
                bytes[at] ^= 1;
            }
            1 => bytes.truncate(bytes.len() / 2),
            _ => bytes.fill(0x55),
        }
        std::fs::write(&book, &bytes).unwrap();
        node.run(&args).fails(4, "not as it should be");
        let refused = Node::refused(home.path(), "data", &[]);
        refused.fails(4, "nothing was overwritten");
        assert_eq!(std::fs::read(&book).unwrap(), bytes, "damage {damage} was touched");
    }
    std::fs::write(&book, &whole).unwrap();
    drop(Node::start(home.path()));
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|part| part == needle)
}

#[test]
fn agents_keys_limits_approvals_and_the_kill_switch_work_from_the_command_line() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let agent = node.run(&["agents", "create", "worker", "--fund", "2000", "--json"]);
    let did = agent.succeeds().json()["did"].as_str().unwrap().to_owned();
    let funded = node.run(&["agents", "fund", &did, "-5.5", "--json"]).succeeds().json();
    assert_eq!(funded["balance_trm"].to_string(), "1994.5");
    let key = node.run(&["keys", "create", "bot", "--agent", &did, "--expires-in", "1h"]);
    let key = key.succeeds().stdout.trim().to_owned();
    let chat = ["chat", "--json", "--max-tokens", "4", "Hi", "--api-key"];
    let ask = |key: &str| node.run(&[&chat[..], &[key]].concat());
    ask(&key).succeeds();

    let id = key.split('_').nth(1).unwrap();
    let rotated = node.run(&["keys", "rotate", id]).succeeds().stdout.trim().to_owned();
    ask(&key).fails(7, "");
    ask(&rotated).succeeds();

    node.run(&["policy", "set", &did, "--approval-above", "0.1"]).succeeds();
    let waits = ask(&rotated);
    waits.fails(7, "run `tirami approve");
    let error: serde_json::Value = serde_json::from_str(&waits.stderr).unwrap();
    assert_eq!(error["error"]["code"], "approval_required");
    let list = node.run(&["approve", "list", "--json"]).succeeds().json();
    let approval = list["approvals"][0]["id"].to_string();
    node.run(&["approve", &approval]).succeeds();
    ask(&rotated).succeeds();
    node.run(&["policy", "set", &did, "--approval-above", "none", "--day-max", "0.5"]).succeeds();
    let shown = node.run(&["policy", "show", &did]).succeeds().stdout.clone();
    assert!(shown.contains("0.5 TRM (0 answers)"), "{shown}");
    ask(&rotated).fails(7, "");

    node.run(&["kill", "on", "--reason", "drill"]).succeeds();
    node.run(&["chat", "Hi"]).fails(7, "");
    assert_eq!(node.run(&["status", "--json"]).json()["status"]["status"], "frozen");
    node.run(&["kill", "off"]).succeeds();
    node.run(&["chat", "--max-tokens", "4", "Hi"]).succeeds();

    let id = rotated.split('_').nth(1).unwrap();
    node.run(&["keys", "revoke", id]).succeeds();
    ask(&rotated).fails(7, "");
}

#[test]
fn an_agent_moves_to_another_node_with_its_passphrase_only() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let agent = node.run(&["agents", "create", "mover", "--json"]).succeeds().json();
    let did = agent["did"].as_str().unwrap();
    let (right, wrong) = (home.path().join("right"), home.path().join("wrong"));
    std::fs::write(&right, "correct horse\n").unwrap();
    std::fs::write(&wrong, "battery staple\n").unwrap();
    let file = home.path().join("mover.json");
    let file = file.to_str().unwrap();
    let phrase = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let export = ["agents", "export", did, file, "--passphrase-file", &phrase(&right)];
    node.run(&export).succeeds();
    node.run(&export).fails(1, "nothing was overwritten");
    let other = Node::start_with(home.path(), "other", &[]);
    let import = |path: &std::path::Path| {
        other.run(&["agents", "import", file, "--json", "--passphrase-file", &phrase(path)])
    };
    import(&wrong).fails(7, "");
    assert_eq!(import(&right).succeeds().json()["did"], did);
}
