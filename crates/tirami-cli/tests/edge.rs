//! The whole walk with a real process and the real model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "edge/begun.rs"]
mod begun;
mod common;
#[path = "edge/elsewhere.rs"]
mod elsewhere;
#[path = "edge/formats.rs"]
mod formats;

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use common::{Node, Ran, run};
use tempfile::tempdir;

/// An answer of several seconds: greedy, because a sampled one may be over after a sentence.
const LONG_CHAT: [&str; 6] =
    ["chat", "--max-tokens", "2000", "--temperature", "0", "Tell a very long story."];

fn balance(node: &Node) -> serde_json::Value {
    node.run(&["status", "--json"]).succeeds().json()["balance"]["effective_balance_micro"].clone()
}

#[test]
fn a_chat_is_a_trade_with_two_signatures_and_a_restart_changes_nothing() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let kinds: Vec<&str> = node.banner.iter().map(|line| line.split(':').next().unwrap()).collect();
    let expected =
        ["data dir", "model", "API", "OpenAI base URL", "API key", "peer", "mesh", "ready"];
    assert_eq!(kinds, expected);
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
fn on_all_addresses_the_owners_commands_on_the_machine_still_need_no_key() {
    let home = tempdir().unwrap();
    let node = Node::start_with(home.path(), "data", &["--bind", "0.0.0.0"]);
    assert!(node.api.starts_with("http://127.0.0.1:"), "{}", node.api);
    assert!(node.banner.contains(&format!("OpenAI base URL: {}/v1", node.api)));
    // A stranger is refused, so the commands do send the key of the data directory.
    let stranger = node.personal();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let refused = runtime.block_on(stranger.status()).unwrap_err();
    assert_eq!(refused.status(), Some(401));
    node.run(&["status"]).succeeds();
    node.run(&["identity"]).succeeds();
    node.run(&["estimate", "Hello"]).succeeds();
    node.run(&["agents"]).succeeds();
    let chat = node.run(&["chat", "--json", "--max-tokens", "4", "Hello"]);
    assert!(chat.succeeds().json()["x_tirami"]["trade_id"].is_string());
    // By the settings instead of by the address.
    let port = node.api.rsplit(':').next().unwrap();
    let data_dir = node.data_dir.to_str().unwrap();
    for bind in ["0.0.0.0", "127.0.0.1"] {
        let mut command = common::tirami(home.path());
        command.env("TIRAMI_BIND", bind).env("TIRAMI_PORT", port);
        let output = command.args(["status", "--data-dir", data_dir]).output().unwrap();
        Ran::of(output).succeeds();
    }
    // Another data directory has no key for this node, and it says so.
    let elsewhere = home.path().join("elsewhere");
    let args = ["status", "--url", &node.api, "--data-dir", elsewhere.to_str().unwrap()];
    run(home.path(), &args).fails(7, "give one with --api-key, or name the node's data directory");
    // A key that was given is the one that is used.
    node.run(&["status", "--api-key", "tirami_00000000_wrong"]).fails(7, "unknown, expired or");
}

#[test]
fn the_nodes_own_account_is_shown_with_what_it_can_still_give() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let status = node.run(&["status"]);
    assert!(status.succeeds().stdout.contains(" TRM; can still give "), "{status:?}");
    assert!(status.stderr.contains("TRM is work"), "{status:?}");
    let list = node.run(&["agents", "list"]);
    assert!(list.succeeds().stdout.contains("its own account"), "{list:?}");
    assert!(list.stderr.contains("1 agent; TRM is work"), "{list:?}");
    let before = node.run(&["agents", "--json"]).succeeds().json();
    assert_eq!(before["count"], 1);
    node.run(&["agents", "create", "one", "--fund", "1000"]).succeeds();
    let after = node.run(&["status", "--json"]).succeeds().json();
    let left = |json: &serde_json::Value| json["node"]["effective_balance"].as_f64().unwrap();
    assert!((left(&before) - left(&after) - 1000.0).abs() < 0.001, "{before} {after}");
    // A key with less than the scope economy sees its own agent only.
    let key = node.run(&["keys", "create", "k", "--scope", "read"]).succeeds().stdout.clone();
    let status = node.run(&["status", "--json", "--api-key", key.trim()]).succeeds().json();
    assert!(status["node"].is_object(), "a key bound to no agent may see all: {status}");
    let key = node.run(&["keys", "create", "i"]).succeeds().stdout.clone();
    let status = node.run(&["status", "--json", "--api-key", key.trim()]).succeeds().json();
    assert!(status["node"].is_null(), "{status}");
}

#[test]
fn agents_keys_and_trades_are_named_by_name_or_by_the_beginning_of_their_id() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let agent = node.run(&["agents", "create", "writer", "--json"]).succeeds().json();
    let did = agent["did"].as_str().unwrap();
    node.run(&["agents", "fund", "writer", "500"]).succeeds();
    let funded = node.run(&["agents", "fund", &did[..30], "500", "--json"]).succeeds().json();
    assert_eq!(funded["balance_trm"].to_string(), "1000");
    node.run(&["agents", "fund", "nobody", "1"]).fails(7, "`tirami agents list` shows all");
    node.run(&["agents", "fund", "did:tirami:", "1"]).fails(2, "write more of the id");
    let key = node.run(&["keys", "create", "bot", "--agent", "wri"]).succeeds().stdout.clone();
    node.run(&["policy", "set", "bot", "--day-max", "700"]).succeeds();
    let shown = node.run(&["policy", "show", "bot"]).succeeds().stdout.clone();
    assert!(shown.contains("700 TRM"), "{shown}");
    assert!(node.run(&["policy", "show", "writer"]).succeeds().stdout.starts_with(did));
    node.run(&["policy", "show", "zzz"]).fails(7, "is no agent or API key of this node");

    let chat = ["chat", "--json", "--max-tokens", "4", "Hi", "--api-key", key.trim()];
    let trade = node.run(&chat).succeeds().json()["x_tirami"]["trade_id"].clone();
    let trade = trade.as_str().unwrap();
    let shown = node.run(&["trades", "show", &trade[..10], "--json"]).succeeds().json();
    assert_eq!(shown["trade"]["trade"]["trade_id"], trade);
    node.run(&["trades", "show", "zz"]).fails(7, "no trade begins with");
    let list = node.run(&["trades", "list", "--agent", "writer"]);
    assert!(list.succeeds().stderr.contains("1 trade\n"), "{list:?}");
    assert_eq!(node.run(&["trades", "list", "--agent", "personal", "--json"]).json()["count"], 0);

    let rotated = node.run(&["keys", "rotate", "bot"]).succeeds().stdout.clone();
    // The old key has the label too, and no longer counts.
    node.run(&["keys", "revoke", "bot"]).succeeds();
    let chat = ["chat", "--max-tokens", "4", "Hi", "--api-key", rotated.trim()];
    node.run(&chat).fails(7, "unknown, expired or revoked");
}

#[test]
fn an_answer_has_a_bound_and_says_when_it_was_reached() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let cut = node.run(&["chat", "--max-tokens", "5", "Tell a very long story."]);
    let told = "the answer was ended at 5 tokens; --max-tokens N lets it be longer";
    assert!(cut.succeeds().stderr.contains(told), "{cut:?}");
    // Where the default finds no room, the answer is as long as there is room for.
    node.run(&["agents", "create", "poor", "--fund", "30"]).succeeds();
    let key = node.run(&["keys", "create", "k", "--agent", "poor"]).succeeds().stdout.clone();
    let story = ["chat", "--json", "Tell a very long story.", "--api-key", key.trim()];
    let answer = node.run(&story).succeeds().json();
    let written = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..512).contains(&written), "{answer}");
}

#[test]
fn a_model_that_is_served_is_removed_only_when_that_is_said() {
    let home = tempdir().unwrap();
    let dir = home.path().join("models");
    std::fs::create_dir(&dir).unwrap();
    let source = common::model();
    std::fs::copy(&source, dir.join("mine.gguf")).unwrap();
    let at = ["--models-dir", dir.to_str().unwrap()];
    let node = Node::start_with(home.path(), "data", &["--model", "mine", at[0], at[1]]);
    let rm = ["models", "rm", "mine", at[0], at[1]];
    node.run(&rm).fails(2, "serves mine and cannot load it again without its file");
    assert!(dir.join("mine.gguf").is_file());
    node.run(&[&rm[..], &["--yes"]].concat()).succeeds();
    assert!(!dir.join("mine.gguf").exists());
}

#[test]
fn a_quote_says_what_a_question_may_cost_in_trm_and_in_answers() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let ask = ["--max-tokens", "9", "What", "is", "rain?"];
    let quote = node.run(&[&["estimate", "--json"], &ask[..]].concat()).succeeds().json();
    let answer = node.run(&[&["chat", "--json"], &ask[..]].concat()).succeeds().json();
    assert_eq!(quote["completion_max"], 9);
    assert_eq!(quote["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    let (most, cost) = (&quote["max_cost_trm"], &answer["x_tirami"]["trm_cost"]);
    assert!(cost.as_f64() <= most.as_f64() && most.as_f64() > Some(0.0), "{quote} {answer}");
    let human = node.run(&[&["estimate"], &ask[..]].concat()).succeeds().stdout.clone();
    assert!(human.contains(" answers) for 9 tokens"), "{human}");
    assert!(human.contains("TRM, enough"), "{human}");
    // Nothing was asked but the one chat.
    assert_eq!(node.run(&["trades", "--json"]).json()["count"], 1);
    node.run(&["estimate"]).fails(2, "the prompt is empty");
}

#[test]
fn a_chat_begins_with_what_suits_the_model_and_flags_win() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let text = |args: &[&str]| {
        let flags = ["chat", "--max-tokens", "24", "--seed", "5", "Who was Newton?"];
        node.run(&[&flags, args].concat()).succeeds().stdout.clone()
    };
    let usual = text(&[]);
    assert_eq!(usual, text(&["--temperature", "0.2", "--top-p", "0.9"]));
    assert_ne!(usual, text(&["--temperature", "2", "--top-p", "1"]));
    assert_ne!(usual, text(&["--system", "Answer with one word."]));
}

#[test]
fn ctrl_c_ends_a_node_in_time_although_a_client_never_reads() {
    use std::io::Write as _;
    let home = tempdir().unwrap();
    let mut node = Node::start_with(home.path(), "data", &["--drain-ms", "1000"]);
    let address = node.api.strip_prefix("http://").unwrap().to_owned();
    let body = r#"{"model":"MODEL","stream":true,"temperature":0,
                   "messages":[{"role":"user","content":"Tell a very long story."}]}"#;
    let model = node.banner[1].strip_prefix("model: ").unwrap().split(' ').next().unwrap();
    let body = body.replace("MODEL", model);
    let mut silent = std::net::TcpStream::connect(&address).unwrap();
    write!(
        silent,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut first = [0];
    silent.read_exact(&mut first).unwrap();
    // Half a request, which may never become a whole one.
    let mut half = std::net::TcpStream::connect(&address).unwrap();
    half.write_all(b"GET /health HTTP/1.1\r\nHost:").unwrap();
    let begun = std::time::Instant::now();
    node.interrupt();
    assert_eq!(node.wait().code(), Some(0));
    // One second to go on, two to close connections, and room for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((silent, half));
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
    let mut chat =
        node.command(&LONG_CHAT).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
    let mut chat =
        node.command(&LONG_CHAT).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
    let list = node.run(&["approve", "--json"]).succeeds().json();
    let approval = list["approvals"][0]["id"].to_string();
    let waiting = node.run(&["approve"]);
    assert!(waiting.succeeds().stdout.contains("waiting"), "{waiting:?}");
    node.run(&["approve", &approval]).succeeds();
    // Answered is not waiting, and is shown when asked for.
    assert_eq!(node.run(&["approve", "--json"]).succeeds().json()["count"], 0);
    assert_eq!(node.run(&["approve", "--all", "--json"]).succeeds().json()["count"], 1);
    ask(&rotated).succeeds();
    node.run(&["policy", "set", &did, "--approval-above", "none", "--day-max", "0.5"]).succeeds();
    let shown = node.run(&["policy", "show", &did]).succeeds().stdout.clone();
    assert!(shown.contains("0.5 TRM (less than 0.1 answers)"), "{shown}");
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

#[test]
fn the_fields_that_choose_tokens_reach_the_model() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let model = node.banner[1].strip_prefix("model: ").unwrap().split(' ').next().unwrap();
    let ask = |fields: serde_json::Value| {
        let mut body = serde_json::json!({
            "model": model, "temperature": 0, "max_tokens": 48,
            "messages": [{"role": "user", "content": "Count from one to twenty."}],
        });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        post(&node, "/v1/chat/completions", &body)
    };
    let said = |answer: &serde_json::Value| {
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let plain = said(&ask(serde_json::json!({})));
    for field in ["presence_penalty", "frequency_penalty", "repeat_penalty"] {
        assert_ne!(said(&ask(serde_json::json!({field: 2.0}))), plain, "{field}");
    }
    let biased = said(&ask(serde_json::json!({"logit_bias": {"28": 100}})));
    assert_ne!(biased, plain, "logit_bias");
    let schema = serde_json::json!({
        "type": "object", "properties": {"even": {"type": "boolean"}},
        "required": ["even"], "additionalProperties": false,
    });
    let format = serde_json::json!({"type": "json_schema", "json_schema": {"schema": schema}});
    let answer = said(&ask(serde_json::json!({"response_format": format})));
    let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert!(value["even"].is_boolean() && value.as_object().unwrap().len() == 1, "{answer}");
    // Beside tools it is that, or a call.
    let tools = serde_json::json!([{"type": "function", "function": {"name": "count"}}]);
    let either = serde_json::json!({"response_format": format, "tools": tools, "max_tokens": 200});
    let either = ask(either)["choices"][0]["message"].take();
    let is_even = either["content"].as_str().is_some_and(|text| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        value["even"].is_boolean()
    });
    assert_ne!(is_even, either["tool_calls"].is_array(), "{either}");
    let text = |pattern: &str| {
        let schema = serde_json::json!({"type": "string", "pattern": pattern});
        let schema = serde_json::json!({"schema": schema, "strict": true});
        serde_json::json!({"type": "json_schema", "json_schema": schema})
    };
    let number = said(&ask(serde_json::json!({"response_format": text(r"^\d{3}-[ab]$")})));
    let number: String = serde_json::from_str(&number).unwrap();
    assert!(number.len() == 5 && number[..3].parse::<u16>().is_ok(), "{number}");
    let refused = ask(serde_json::json!({"response_format": text("(?=a)a")}));
    assert_eq!(refused["error"]["param"], "response_format", "{refused}");
}

/// OpenAI promises the schema's order, and a model that has to reason first reasons first.
#[test]
fn what_the_model_writes_follows_its_schemas_order() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let model = node.banner[1].strip_prefix("model: ").unwrap().split(' ').next().unwrap();
    let ask = |fields: serde_json::Value| {
        let mut body = serde_json::json!({
            "model": model, "temperature": 0, "max_tokens": 120,
            "messages": [{"role": "user", "content": "Is rain wet?"}],
        });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        post(&node, "/v1/chat/completions", &body)
    };
    let order = |text: &str, names: [&str; 2]| {
        let at = names.map(|name| text.find(&format!("\"{name}\"")));
        assert!(at[0].is_some() && at[0] < at[1], "{names:?} in {text}");
    };
    // As texts, so that nothing here can put them in another order.
    let schema: serde_json::Value = serde_json::from_str(
        r#"{"type": "object", "properties": {
            "reasoning": {"type": "string", "maxLength": 30},
            "answer": {"enum": ["yes", "no"]}
        }, "required": ["reasoning", "answer"], "additionalProperties": false}"#,
    )
    .unwrap();
    let format = serde_json::json!({"type": "json_schema", "json_schema": {"schema": schema}});
    let answer = ask(serde_json::json!({"response_format": format}));
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    order(said, ["reasoning", "answer"]);

    let schema: serde_json::Value = serde_json::from_str(
        r#"{"type": "object", "properties": {
            "zebra": {"type": "string", "maxLength": 12, "description": "an animal"},
            "apple": {"type": "integer", "minimum": 1, "maximum": 9}
        }, "required": ["zebra", "apple"], "additionalProperties": false}"#,
    )
    .unwrap();
    let function = serde_json::json!({"name": "zoo", "parameters": schema});
    let answer = ask(serde_json::json!({
        "tools": [{"type": "function", "function": function}], "tool_choice": "required",
        "parallel_tool_calls": false,
    }));
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    order(call["arguments"].as_str().unwrap(), ["zebra", "apple"]);

    // A share of nothing is the likeliest token, however hot.
    let said = |fields: serde_json::Value| {
        ask(fields)["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let hot = serde_json::json!({"temperature": 2, "top_p": 0, "seed": -1});
    assert_eq!(said(hot), said(serde_json::json!({})));
}

/// Two nodes: one with the model, which founded the mesh, and one without.
#[test]
fn the_commands_of_the_mesh_work_between_two_nodes() {
    let home = tempdir().unwrap();
    let a = Node::start_with(home.path(), "a", &[]);
    let party = |node: &Node| {
        let status = node.run(&["--json", "status"]).succeeds().json();
        status["status"]["node_id"].as_str().unwrap().to_owned()
    };
    let invite = a.run(&["mesh", "invite"]).succeeds().stdout.lines().last().unwrap().to_owned();
    let b = Node::start_with(home.path(), "b", &["--join", &invite, "--no-model"]);
    until("the newcomer sees the provider and has TRM", || {
        let providers = b.run(&["--json", "providers"]).json();
        providers["providers"].as_array().unwrap().iter().any(|one| one["connected"] == true)
            && b.run(&["chat", "--max-tokens", "4", "Hi."]).code == 0
    });
    assert!(b.run(&["peers"]).succeeds().stdout.contains(&party(&a)[..8]));
    let members = a.run(&["--json", "mesh"]).succeeds().json();
    assert_eq!(members["charter"]["witnesses"].as_array().unwrap().len(), 1, "{members}");
    b.run(&["join", &invite]).succeeds();
    b.run(&["join", "tirami-invite-x"]).fails(7, "the invite is incomplete");

    // What a transfer gives goes once for each word.
    let give = |key: &str| a.run(&["--json", "transfer", &party(&b), "2.5", "--key", key]);
    let (first, again) = (give("rent").succeeds().json(), give("rent").succeeds().json());
    assert_eq!(first["entry"], again["entry"]);
    assert_eq!((&first["repeated"], &again["repeated"]), (&false.into(), &true.into()));

    // Only the registrar grants lines, and only an owner pauses.
    let enrol = ["mesh", "enrol", &party(&b), "--owner", "Bea", "--line", "5"];
    a.run(&enrol).succeeds();
    b.run(&enrol).fails(7, "");
    a.run(&["mesh", "witness", "add", &party(&b), "--yes"]).succeeds();
    until("there are two witnesses", || {
        let witnesses =
            b.run(&["--json", "mesh"]).json()["charter"]["witnesses"].as_array().unwrap().len();
        witnesses == 2
    });

    a.run(&["pause"]).succeeds();
    until("nobody serves the model any more", || {
        b.run(&["chat", "--max-tokens", "4", "Hi."]).code != 0
    });
    a.run(&["resume"]).succeeds();
    until("it is served again", || b.run(&["chat", "--max-tokens", "4", "Hi."]).code == 0);

    // Out again: one witness drafts it, and it holds once the other one has approved.
    let charter = |node: &Node| node.run(&["--json", "mesh"]).succeeds().json()["charter"].clone();
    let remove = ["--json", "mesh", "witness", "remove", &party(&b), "--yes"];
    let draft = a.run(&remove).succeeds().json()["draft"].as_str().unwrap().to_owned();
    until("the draft has come", || charter(&b)["drafts"].to_string().contains(&draft));
    b.run(&["mesh", "approve", &draft]).fails(2, "nothing was approved");
    assert_eq!(charter(&a)["version"], 2);
    b.run(&["mesh", "approve", &draft, "--yes"]).succeeds();
    until("there is one witness", || {
        [&a, &b].iter().all(|node| charter(node)["witnesses"] == serde_json::json!([party(&a)]))
    });
}

/// A public mesh whose faucet is shut: nobody knows the newcomer.
#[test]
fn a_stranger_begins_with_the_line_that_a_member_sponsors_from_the_command_line() {
    let home = tempdir().unwrap();
    let member = Node::start_with(home.path(), "a", &["--no-model", "--public"]);
    let invite = member.run(&["mesh", "invite"]).succeeds().stdout.clone();
    let join = ["--no-model", "--join", invite.lines().last().unwrap()];
    let stranger = Node::start_with(home.path(), "b", &join);
    let mesh = |node: &Node| node.run(&["--json", "mesh"]).succeeds().json();
    until("they are connected", || mesh(&stranger)["network"]["peers"] == 1);
    let party = mesh(&stranger)["network"]["node_id"].as_str().unwrap().to_owned();
    let welcome = || mesh(&stranger)["charter"]["welcome"].clone();
    assert_ne!(welcome()["state"], "open");
    // Nobody serves, and it is said so; no empty name is asked for.
    member.run(&["estimate", "hi"]).fails(7, "no other node serves one");
    member.run(&["mesh", "sponsor", &"07".repeat(32)]).fails(2, "nothing was locked");
    let sponsor = ["--json", "mesh", "sponsor", &party, "--amount", "700", "--yes"];
    assert_eq!(member.run(&sponsor).succeeds().json()["final"], true);
    until("it begins with the line", || welcome()["state"] == "open");
    assert_eq!(welcome()["amount_trm"].as_f64(), Some(700.0));
    assert_eq!(welcome()["sponsor"], mesh(&member)["network"]["node_id"]);
}

#[test]
fn a_node_that_forgot_everybody_finds_its_mesh_by_a_word_an_address_and_a_variable() {
    let home = tempdir().unwrap();
    // On another port each time: who remembers the other one finds nobody there.
    let start = |dir: &str, more: &[&str], variables: &[(&str, &str)]| {
        let args = [&["--no-model", "--mesh-port", "0"], more].concat();
        Node::start_under(home.path(), dir, &args, variables)
    };
    let forget = |mut node: Node| {
        node.interrupt();
        assert!(node.wait().success());
        let _ = std::fs::remove_file(node.data_dir.join("peers"));
    };
    let invite = |node: &Node| {
        let invite = node.run(&["mesh", "invite"]).succeeds().stdout.clone();
        invite.lines().last().unwrap().to_owned()
    };
    let sees = |node: &Node| node.run(&["--json", "peers"]).succeeds().json()["count"] == 1;
    let a = start("a", &[], &[]);
    let b = start("b", &["--join", &invite(&a)], &[]);
    until("they see each other", || sees(&a) && sees(&b));
    forget(b);
    forget(a);

    let (a, b) = (start("a", &[], &[]), start("b", &[], &[]));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!sees(&a) && !sees(&b), "they forgot each other");
    b.run(&["join", &invite(&a)]).succeeds();
    until("they see each other by the word", || sees(&a) && sees(&b));

    let peer = |node: &Node| {
        node.banner.iter().find_map(|line| line.strip_prefix("peer: ")).unwrap().to_owned()
    };
    let address = peer(&a);
    let gone = start("c", &[], &[]);
    let dead = peer(&gone);
    forget(gone);
    forget(b);
    // The first of two addresses leads nowhere.
    let b = start("b", &["--bootstrap-peer", &dead, "--bootstrap-peer", &address], &[]);
    until("they see each other by the second address", || sees(&a) && sees(&b));
    forget(b);
    let b = start("b", &[], &[("TIRAMI_BOOTSTRAP_PEERS", address.as_str())]);
    until("they see each other by the variable", || sees(&a) && sees(&b));
}

/// Restored from a backup, a node knows less of its own chain than the mesh does.
#[test]
fn a_node_set_back_to_an_old_copy_signs_nothing_until_it_has_its_newest_entries_again() {
    let home = tempdir().unwrap();
    let founder = Node::start_with(home.path(), "a", &["--no-model"]);
    let party = |node: &Node| {
        let status = node.run(&["--json", "status"]).succeeds().json();
        status["status"]["node_id"].as_str().unwrap().to_owned()
    };
    let to = party(&founder);
    let invite = founder.run(&["mesh", "invite"]).succeeds().stdout.clone();
    let invite = invite.lines().last().unwrap().to_owned();
    let mut member = Node::start_with(home.path(), "b", &["--join", &invite, "--no-model"]);
    let give =
        |node: &Node, amount: &str, key: &str| node.run(&["transfer", &to, amount, "--key", key]);
    until("the newcomer can give", || give(&member, "1", "one").code == 0);
    let stop = |node: &mut Node| {
        node.interrupt();
        assert!(node.wait().success());
    };
    stop(&mut member);
    let (data, old) = (member.data_dir.clone(), home.path().join("old"));
    copy(&data, &old);

    let mut member = Node::start_with(home.path(), "b", &["--no-model"]);
    until("it gives more", || give(&member, "2", "two").code == 0);
    let entries = |node: &Node| node.run(&["--json", "mesh"]).json()["network"].clone();
    until("the founder has it", || {
        let (one, other) = (entries(&founder), entries(&member));
        one["lattice_state_hash"] == other["lattice_state_hash"] && other["entries_pending"] == 0
    });
    let newest = entries(&founder)["entries_final"].as_u64().unwrap();
    stop(&mut member);
    std::fs::remove_dir_all(&data).unwrap();
    copy(&old, &data);

    // The only witness does not answer: the old copy is not believed.
    common::signal(founder.pid(), "STOP");
    let member = Node::start_with(home.path(), "b", &["--no-model"]);
    let refused = give(&member, "4", "three");
    common::signal(founder.pid(), "CONT");
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("asking the witnesses"), "{refused:?}");
    // It does, and the node goes on from where it really was.
    until("it gives again", || give(&member, "4", "three").code == 0);
    until("both know the same", || {
        let (one, other) = (entries(&founder), entries(&member));
        one["lattice_state_hash"] == other["lattice_state_hash"]
            && one["entries_final"].as_u64().unwrap() > newest
            && one["conserved"] == true
    });
    let mesh = member.run(&["--json", "peers", "--refused"]).succeeds().json();
    assert_eq!(mesh["count"], 0, "nothing was signed twice: {mesh}");
}

/// A copy of a directory with all that is in it, as closed to others as it was.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, from.metadata().unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Asks again until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "this did not come: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asks as a program without an API key does; the answer as JSON, whatever its status.
fn post(node: &Node, path: &str, body: &serde_json::Value) -> serde_json::Value {
    use std::io::Write as _;
    let address = node.api.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}
