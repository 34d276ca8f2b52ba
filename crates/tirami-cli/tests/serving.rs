//! Serving with the real model, at the edge: whose turn it is, several models in one node, and the
//! setting that gives up reproducible answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Node, model};
use serde_json::{Value, json};
use tempfile::tempdir;

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A request of the personal agent that was sent.
fn sent(node: &Node, body: &Value) -> TcpStream {
    let address = node.api.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

/// The JSON that answers it.
fn answer(mut stream: TcpStream) -> Value {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let start = text.find('{').unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(&text[start..]).unwrap_or_else(|_| panic!("{text}"))
}

fn party(node: &Node) -> String {
    let status = node.run(&["--json", "status"]).succeeds().json();
    status["status"]["node_id"].as_str().unwrap().to_owned()
}

/// A short question for the node of this party only.
fn asking(node: &Node, party: &str, tokens: u32) -> Value {
    let status = node.run(&["--json", "providers"]).succeeds().json();
    let model = status["providers"][0]["models"][0]["model"].clone();
    json!({
        "model": model, "max_tokens": tokens, "temperature": 0, "provider": {"only": [party]},
        "messages": [{"role": "user", "content": "Hello."}],
    })
}

#[test]
fn who_contributes_is_answered_before_a_stranger_who_asked_first() {
    let home = tempdir().unwrap();
    let start = |dir: &str, more: &[&str]| {
        Node::start_with(home.path(), dir, &[&["--mesh-port", "0"], more].concat())
    };
    let node = start("node", &["--sequences", "1", "--serve-jobs-max", "8"]);
    let invite = node.run(&["mesh", "invite"]).succeeds().stdout.lines().last().unwrap().to_owned();
    let friend = start("friend", &["--join", &invite]);
    let stranger = start("stranger", &["--join", &invite, "--no-model"]);
    let (here, there) = (party(&node), party(&friend));
    let sees = |one: &Node, other: &str| {
        let known = one.run(&["--json", "providers"]).json();
        let open = |peer: &Value| peer["node_id"] == other && peer["connected"] == true;
        known["providers"].as_array().is_some_and(|all| all.iter().any(open))
    };
    until("all know who serves", || {
        sees(&node, &there) && sees(&friend, &here) && sees(&stranger, &here)
    });
    let asked = |one: &Node, other: &str| {
        let answer = answer(sent(one, &asking(one, other, 2)));
        answer["x_tirami"]["trade_id"].as_str().map(str::to_owned)
    };
    until("each of them is answered", || {
        asked(&node, &there).is_some()
            && asked(&friend, &here).is_some()
            && asked(&stranger, &here).is_some()
    });

    // The only place is taken, and three wait for it: the stranger, then the friend, then a caller
    // of the node itself.
    let mut long = asking(&friend, &here, 3_000);
    let stay = json!({"allow_fallbacks": false});
    (long["stream"], long["provider"]) = (json!(true), stay.clone());
    long["messages"][0]["content"] = json!("Tell a very long story.");
    let mut running = sent(&node, &long);
    running.read_exact(&mut [0]).unwrap();
    let mut waiting = Vec::new();
    let mut waits = |one: &Node, body: Value| {
        waiting.push(sent(one, &body));
        let queued = waiting.len();
        until("it waits", || {
            let status = node.run(&["--json", "status"]).succeeds().json();
            status["status"]["engine"]["queued"] == queued
        });
    };
    waits(&stranger, asking(&stranger, &here, 5));
    waits(&friend, asking(&friend, &here, 6));
    let mut own = asking(&friend, &here, 7);
    own["provider"] = stay;
    waits(&node, own);
    drop(running);
    for answered in waiting {
        assert!(answer(answered)["x_tirami"]["trade_id"].is_string());
    }
    // One after another, so the trades say whose turn it was; the newest is the first.
    let trades = node.run(&["--json", "trades"]).succeeds().json()["trades"].clone();
    let lengths = trades.as_array().unwrap().iter().map(|one| one["completion_tokens"].clone());
    let lengths: Vec<Value> = lengths.take(3).collect();
    assert_eq!(lengths, [5, 7, 6], "{trades}");
}

/// The model under another name inside, which makes it another model.
fn renamed(to: &std::path::Path) {
    let mut bytes = std::fs::read(model()).unwrap();
    let key = b"general.name";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    // The value's type and length stand between its name and its text.
    bytes[at + key.len() + 4 + 8] ^= 1;
    std::fs::write(to, bytes).unwrap();
}

#[test]
fn one_node_loads_two_real_models_when_they_are_asked_for_and_unloads_what_rests() {
    let home = tempdir().unwrap();
    let second = home.path().join("second.gguf");
    renamed(&second);
    let args = ["--keep-alive", "0", "--model", second.to_str().unwrap()];
    let node = Node::start_with(home.path(), "data", &args);
    let states = || node.run(&["--json", "models", "loaded"]).succeeds().json()["models"].clone();
    let is_loaded = |name: &str| {
        let states = states();
        let state = states.as_array().unwrap().iter().find(|one| one["name"] == name);
        state.unwrap_or_else(|| panic!("{name}: {states}"))["state"] == "loaded"
    };
    let names: Vec<String> = states()
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((names.len(), names[1].as_str()), (2, "second"), "{names:?}");
    let ask = |name: &str, keep: &str| {
        let answer = answer(sent(
            &node,
            &json!({
                "model": name, "max_tokens": 8, "temperature": 0, "keep_alive": keep,
                "messages": [{"role": "user", "content": "What is rain?"}],
            }),
        ));
        assert_eq!(answer["model"], name, "{answer}");
        answer
    };
    for name in &names {
        node.run(&["models", "unload", name]).succeeds();
        assert!(!is_loaded(name));
    }
    let first = ask(&names[0], "10m");
    assert_eq!((is_loaded(&names[0]), is_loaded("second")), (true, false), "only what was asked");
    let other = ask("second", "10m");
    assert_eq!((is_loaded(&names[0]), is_loaded("second")), (true, true), "both at a time");
    // The same weights say the same, and are two models all the same.
    assert_eq!(first["choices"], other["choices"]);
    let digest = |answer: &Value| answer["x_tirami"]["route"]["model"].clone();
    assert_ne!(digest(&first), digest(&other));
    for answer in [&first, &other] {
        let trade = answer["x_tirami"]["trade_id"].as_str().unwrap();
        let shown = node.run(&["trades", "show", trade, "--json"]).succeeds().json();
        assert_eq!(shown["verified_here"], true);
    }
    node.run(&["models", "unload", &names[0]]).succeeds();
    assert_eq!((is_loaded(&names[0]), is_loaded("second")), (false, true));
    ask("second", "0");
    until("it is unloaded when it rests", || !is_loaded("second"));
    ask(&names[0], "0");
}

#[test]
fn a_node_that_promises_no_reproducible_answers_says_so_in_its_receipts() {
    let home = tempdir().unwrap();
    let node = Node::start_with(home.path(), "data", &["--reproducible", "false"]);
    let name = node.run(&["--json", "models", "loaded"]).json()["models"][0]["name"].clone();
    // Longer than the passes of the other setting.
    let long = "The sea is wide and the road is long. ".repeat(70);
    let ask = |content: &str| {
        answer(sent(
            &node,
            &json!({
                "model": name, "max_tokens": 8, "temperature": 0,
                "messages": [{"role": "user", "content": content}],
            }),
        ))
    };
    for content in ["What is rain?", &long] {
        let answer = ask(content);
        assert_eq!(answer["usage"]["completion_tokens"], 8, "{answer}");
        let build = answer["system_fingerprint"].as_str().unwrap();
        assert!(build.contains("kv=f16/f16 ubatch=512"), "{build}");
        let trade = answer["x_tirami"]["trade_id"].as_str().unwrap();
        let shown = node.run(&["trades", "show", trade, "--json"]).succeeds().json();
        assert_eq!(shown["verified_here"], true);
    }
    drop(node);
    let node = Node::start_with(home.path(), "other", &[]);
    let json = node.run(&["chat", "--json", "--max-tokens", "4", "Hi"]).succeeds().json();
    let build = json["system_fingerprint"].as_str().unwrap();
    assert!(build.contains("kv=f16/bf16 ubatch=32"), "{build}");
}
