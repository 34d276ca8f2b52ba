//! Serving with the real model, at the edge: whose turn it is, whose prompts are remembered for
//! whom, deadlines, several models in one node and in the memory they may take, guesses, layers
//! for a GPU, and the setting that gives up reproducible answers.

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
    sent_with(node, "", body)
}

/// The same with more lines in its head.
fn sent_with(node: &Node, head: &str, body: &Value) -> TcpStream {
    let address = node.api.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{head}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

/// The JSON that answers it.
fn answer(stream: TcpStream) -> Value {
    replied(stream).1
}

/// The same, and the status before it.
fn replied(mut stream: TcpStream) -> (u16, Value) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let start = text.find('{').unwrap_or_else(|| panic!("{text}"));
    let body = serde_json::from_str(&text[start..]).unwrap_or_else(|_| panic!("{text}"));
    (status.unwrap_or_else(|| panic!("{text}")), body)
}

/// The models of a node.
fn states(node: &Node) -> Vec<Value> {
    let shown = node.run(&["--json", "models", "loaded"]).succeeds().json();
    shown["models"].as_array().unwrap().clone()
}

fn name_of(state: &Value) -> String {
    state["name"].as_str().unwrap().to_owned()
}

fn is_loaded(node: &Node, name: &str) -> bool {
    let states = states(node);
    let state = states.iter().find(|one| one["name"] == name);
    state.unwrap_or_else(|| panic!("{name}: {states:?}"))["state"] == "loaded"
}

fn party(node: &Node) -> String {
    let status = node.run(&["--json", "status"]).succeeds().json();
    status["status"]["node_id"].as_str().unwrap().to_owned()
}

/// Completion tokens of so many trades, the newest first.
fn newest_lengths(node: &Node, count: usize) -> Vec<Value> {
    let trades = node.run(&["--json", "trades"]).succeeds().json()["trades"].take();
    let trades = trades.as_array().unwrap().iter().take(count);
    trades.map(|one| one["completion_tokens"].clone()).collect()
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
    assert_eq!(newest_lengths(&node, 3), [5, 7, 6]);
}

#[test]
fn agents_take_turns_at_the_engine_and_who_has_most_waiting_gives_way() {
    /// Requests that wait for the engine at most.
    const QUEUE_MAX: usize = 64;
    let home = tempdir().unwrap();
    let node = Node::start_with(home.path(), "data", &["--sequences", "1"]);
    let [many, few, third, fourth] =
        ["many", "few", "third", "fourth"].map(|name| agent(&node, name));
    let ask = |tokens: u32| {
        json!({
            "model": name_of(&states(&node)[0]), "max_tokens": tokens, "temperature": 0,
            "logit_bias": {"0": -100, "2": -100},
            "messages": [{"role": "user", "content": "Tell a very long story."}],
        })
    };
    let mut long = ask(3_000);
    long["stream"] = json!(true);
    let engine = || node.run(&["--json", "status"]).succeeds().json()["status"]["engine"].take();
    let queued = |count: usize| until("they wait", || engine()["queued"] == count);
    let running = || {
        let stream = sent(&node, &long);
        until("it runs", || engine()["running"] == 1 && engine()["queued"] == 0);
        stream
    };

    let first = running();
    let mut waiting = Vec::new();
    for (whose, tokens) in [(&many, 3), (&many, 4), (&many, 5), (&few, 6)] {
        waiting.push(sent_with(&node, whose, &ask(tokens)));
        queued(waiting.len());
    }
    drop(first);
    for answered in waiting {
        assert!(answer(answered)["x_tirami"]["trade_id"].is_string());
    }
    assert_eq!(newest_lengths(&node, 4), [5, 4, 6, 3]);

    let first = running();
    // Of three agents, so that none of them has most of what waits.
    let askers = [&many, &third, &fourth].into_iter().cycle().take(QUEUE_MAX);
    let all: Vec<TcpStream> = askers.map(|whose| sent_with(&node, whose, &ask(1))).collect();
    queued(QUEUE_MAX);
    let (status, refused) = replied(sent_with(&node, &many, &ask(1)));
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("engine_busy")), "{refused}");
    let late = sent_with(&node, &few, &ask(1));
    let mut replies: Vec<(u16, Value)> = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            all.into_iter().map(|stream| scope.spawn(move || replied(stream))).collect();
        until("one of them gives way", || threads.iter().any(|thread| thread.is_finished()));
        drop(first);
        replies.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    });
    assert!(answer(late)["x_tirami"]["trade_id"].is_string());
    let (served, gone): (Vec<_>, Vec<_>) = replies.iter().partition(|(status, _)| *status == 200);
    assert_eq!((served.len(), gone.len()), (QUEUE_MAX - 1, 1), "{gone:?}");
    let (status, gone) = gone[0];
    assert_eq!((*status, &gone["error"]["code"]), (429, &json!("engine_busy")), "{gone}");
}

/// A new agent with TRM; gives the line of a request's head that makes it the agent's.
fn agent(node: &Node, name: &str) -> String {
    node.run(&["agents", "create", name, "--fund", "5000"]).succeeds();
    let key = node.run(&["keys", "create", name, "--agent", name]).succeeds().stdout.clone();
    format!("Authorization: Bearer {}\r\n", key.trim())
}

/// Tokens of what all chats begin with at most: they are read when the engine starts.
const COMMON_MAX: u64 = 32;

#[test]
fn nobody_sees_by_cached_tokens_what_others_asked() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let asked = json!({
        "model": name_of(&states(&node)[0]), "max_tokens": 2, "temperature": 0,
        "messages": [{"role": "user", "content": "A secret text. ".repeat(60)}],
    });
    let [one, other] = ["one", "other"].map(|name| agent(&node, name));
    let cached = |head: &str| {
        let usage = answer(sent_with(&node, head, &asked))["usage"].take();
        let all = usage["prompt_tokens"].as_u64().unwrap_or_default();
        assert!(all > 200, "{usage}");
        (usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(), all)
    };
    for first in [&*one, &*other, ""] {
        let (found, _) = cached(first);
        assert!(found <= COMMON_MAX, "{found} tokens of another's prompt");
        let (found, all) = cached(first);
        assert_eq!(found, all - 1, "its own prompt is remembered");
    }
    assert_eq!(cached(&one).0, cached(&one).1 - 1, "the others' prompts took other places");
}

#[test]
fn a_deadline_ends_an_answer_where_it_is_and_one_that_waited_costs_nothing() {
    let home = tempdir().unwrap();
    let node = Node::start_with(home.path(), "data", &["--sequences", "1"]);
    let name = name_of(&states(&node)[0]);
    // Without its end tokens the model goes on until nobody listens.
    let ask = |more: Value| {
        let mut asked = json!({
            "model": name, "max_tokens": 3_000, "seed": 1, "logit_bias": {"0": -100, "2": -100},
            "messages": [{"role": "user", "content": "Tell a very long story."}],
        });
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        sent(&node, &asked)
    };
    let status = || node.run(&["--json", "status"]).succeeds().json()["status"].take();
    let rests = || {
        let status = status();
        status["engine"]["running"] == 0 && status["open_holds"] == 0
    };
    let trades = || node.run(&["--json", "trades"]).succeeds().json()["trades"].take();
    let count = |trades: &Value| trades.as_array().unwrap().len();

    let running = ask(json!({"stream": true}));
    until("the only place is taken", || status()["engine"]["running"] == 1);
    let (code, late) = replied(ask(json!({"timeout_ms": 400})));
    assert_eq!((code, &late["error"]["code"]), (504, &json!("deadline_exceeded")), "{late}");
    drop(running);
    until("it rests", rests);
    // Only the one that ran can have delivered anything.
    let before = count(&trades());
    assert!(before <= 1, "{}", trades());

    let (code, cut) = replied(ask(json!({"timeout_ms": 3_000})));
    assert_eq!((code, &cut["choices"][0]["finish_reason"]), (200, &json!("length")), "{cut}");
    let (bill, tokens) = (&cut["x_tirami"], &cut["usage"]["completion_tokens"]);
    assert_eq!(bill["ended_by"], "deadline", "{cut}");
    assert!(tokens.as_u64().is_some_and(|tokens| (1..3_000).contains(&tokens)), "{cut}");
    until("it rests", rests);
    let trades = trades();
    assert_eq!(count(&trades), before + 1, "{trades}");
    let trade = &trades[0];
    assert_eq!((&trade["trade_id"], &trade["finish"]), (&bill["trade_id"], &json!("length")));
    assert_eq!((&trade["completion_tokens"], &trade["trm_amount"]), (tokens, &bill["trm_cost"]));
    let id = trade["trade_id"].as_str().unwrap();
    let shown = node.run(&["trades", "show", id, "--json"]).succeeds().json();
    assert_eq!(shown["verified_here"], true);
}

/// The most memory that a process had at a time, in bytes, as Linux counts it.
#[cfg(target_os = "linux")]
fn resident_max(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_takes_about_as_much_memory_as_it_says() {
    const STREAMS: usize = 16;
    let home = tempdir().unwrap();
    let without = Node::start_with(home.path(), "without", &["--no-model"]);
    let args = ["--sequences", "16", "--context-tokens", "1024"];
    let node = Node::start_with(home.path(), "data", &args);
    let state = states(&node).remove(0);
    let asked = json!({
        "model": name_of(&state), "max_tokens": 64, "logit_bias": {"0": -100, "2": -100},
        "messages": [{"role": "user", "content": "Tell a very long story."}],
    });
    let streams: Vec<TcpStream> = (0..STREAMS).map(|_| sent(&node, &asked)).collect();
    for answered in streams.into_iter().map(answer) {
        assert_eq!(answered["usage"]["completion_tokens"], 64, "{answered}");
    }
    let said = state["memory_bytes"].as_u64().unwrap();
    let taken = resident_max(&node) - resident_max(&without);
    // What the model takes is not all that differs between the two processes.
    let percent = taken * 100 / said;
    assert!((70..=125).contains(&percent), "{taken} of {said} bytes: {percent} %");
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
    let is_loaded = |name: &str| is_loaded(&node, name);
    let names: Vec<String> = states(&node).iter().map(name_of).collect();
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
fn a_model_that_rests_makes_room_for_another_and_one_that_is_used_does_not() {
    let home = tempdir().unwrap();
    let second = home.path().join("second.gguf");
    renamed(&second);
    let budget_mib = 224_u64;
    let budget = budget_mib.to_string();
    let args = ["--sequences", "1", "--context-tokens", "1024", "--memory-budget-mib", &budget];
    let more = ["--model", second.to_str().unwrap()];
    let node = Node::start_with(home.path(), "data", &[&args[..], &more].concat());
    let first = name_of(&states(&node)[0]);
    for state in states(&node) {
        let mib = state["memory_bytes"].as_u64().unwrap() >> 20;
        assert!((budget_mib / 2..budget_mib).contains(&mib), "one of them fits, not two: {state}");
    }
    let loaded = || (is_loaded(&node, &first), is_loaded(&node, "second"));
    assert_eq!(loaded(), (true, false), "a start loads what fits");
    let ask = |name: &str, more: Value| {
        let mut asked = json!({
            "model": name, "max_tokens": 4, "temperature": 0,
            "messages": [{"role": "user", "content": "What is rain?"}],
        });
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        sent(&node, &asked)
    };
    for (name, expected) in [("second", (false, true)), (first.as_str(), (true, false))] {
        let answer = answer(ask(name, json!({})));
        assert_eq!((&answer["model"], loaded()), (&json!(name), expected), "{answer}");
    }
    // Without its end tokens the model goes on until nobody listens.
    let endless = json!({
        "stream": true, "max_tokens": 900, "logit_bias": {"0": -100, "2": -100},
    });
    let mut running = ask(&first, endless);
    running.read_exact(&mut [0]).unwrap();
    let refused = answer(ask("second", json!({})));
    assert_eq!(refused["error"]["code"], "no_memory", "{refused}");
    assert_eq!(loaded(), (true, false));
    drop(running);
    until("it rests", || answer(ask("second", json!({})))["model"] == "second");
    assert_eq!(loaded(), (false, true));
}

/// Completion tokens that were guessed right, as the metrics say.
fn guessed(node: &Node) -> u64 {
    let (address, key) = (node.api.strip_prefix("http://").unwrap(), node.admin_key());
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("tirami_guessed_tokens_total "));
    count.unwrap_or_else(|| panic!("{text}")).trim().parse().unwrap()
}

#[test]
fn an_answer_that_repeats_itself_is_guessed_and_counted_in_both_settings() {
    let home = tempdir().unwrap();
    for reproducible in ["true", "false"] {
        let args = ["--reproducible", reproducible];
        let node = Node::start_with(home.path(), reproducible, &args);
        assert_eq!(guessed(&node), 0);
        // The schema has the same line again and again. Each size of a guess is tried once, also
        // on a machine on which none pays.
        let line = json!({"const": "Red apples and green pears from the gardens of the north."});
        let lines = json!({"type": "array", "items": line, "minItems": 5, "maxItems": 5});
        let schema = json!({
            "type": "object", "properties": {"lines": lines}, "required": ["lines"],
            "additionalProperties": false,
        });
        let asked = json!({
            "model": name_of(&states(&node)[0]), "max_tokens": 300, "temperature": 0,
            "messages": [{"role": "user", "content": "Say it again and again."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "lines", "strict": true, "schema": schema},
            },
        });
        let answer = answer(sent(&node, &asked));
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(text.matches("Red apples and green pears").count(), 5, "{answer}");
        let (guessed, all) = (guessed(&node), answer["usage"]["completion_tokens"].as_u64());
        assert!(guessed >= 2 && Some(guessed) < all, "{guessed} with {reproducible}: {answer}");
    }
}

#[test]
fn layers_for_a_gpu_are_a_number_or_left_to_the_node() {
    let home = tempdir().unwrap();
    for layers in ["0", "auto"] {
        let node = Node::start_with(home.path(), layers, &["--gpu-layers", layers]);
        let answer = node.run(&["chat", "--json", "--max-tokens", "4", "Hi"]).succeeds().json();
        assert_eq!(answer["usage"]["completion_tokens"], 4, "{answer}");
        // What auto is depends on the machine; none is the processor everywhere.
        let build = answer["system_fingerprint"].as_str().unwrap();
        assert!(layers == "auto" || build.contains(" cpu "), "{build}");
    }
    for wrong in ["many", "10001", "1.5"] {
        let refused = Node::refused(home.path(), "refused", &["--gpu-layers", wrong]);
        refused.fails(2, "it must be auto or a whole number up to 10000");
    }
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

#[test]
fn a_variable_that_the_models_template_does_not_read_is_refused_and_a_wish_is_not() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let name = name_of(&states(&node)[0]);
    let asked = |more: &Value| {
        let mut body = json!({
            "model": name, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello."}],
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        replied(sent(&node, &body))
    };
    let (status, refused) = asked(&json!({"chat_template_kwargs": {"enable_thinking": false}}));
    let error = &refused["error"];
    assert_eq!((status, &error["code"]), (400, &json!("unsupported_parameter")), "{refused}");
    assert_eq!(error["param"], "chat_template_kwargs.enable_thinking", "{refused}");
    assert!(error["message"].as_str().unwrap().contains("it reads no variables"), "{refused}");
    let plain = asked(&json!({})).1["usage"]["prompt_tokens"].clone();
    for effort in [json!({"reasoning_effort": "none"}), json!({"thinking": {"type": "disabled"}})] {
        let (status, answer) = asked(&effort);
        assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &plain), "{answer}");
    }
}
