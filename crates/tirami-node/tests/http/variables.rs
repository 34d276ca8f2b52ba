//! What a request tells the model's chat template besides the messages. The scripted engine reads
//! `enable_thinking`, and writes two tokens more where that is false.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::support::{Raw, TestNode, script};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";
const COUNTED: &str = "/v1/messages/count_tokens";
const RESPONSES: &str = "/v1/responses";

/// Asks with a question of one token.
async fn asked(node: &TestNode, path: &str, more: &Value) -> Raw {
    let mut request = match path {
        RESPONSES => json!({"input": "1234"}),
        TEXT => json!({"prompt": "1234"}),
        _ => json!({"messages": [{"role": "user", "content": "1234"}]}),
    };
    let fields = request.as_object_mut().unwrap();
    fields.insert("model".to_owned(), "fake".into());
    if path != RESPONSES {
        fields.insert("max_tokens".to_owned(), 2.into());
    }
    fields.extend(more.as_object().unwrap().clone());
    node.post(path, None, request.to_string()).await
}

/// Tokens of the prompt, as each interface says it.
fn read(raw: &Raw) -> u64 {
    assert_eq!(raw.status, 200, "{raw:?}");
    let json = raw.json();
    let names = ["prompt_tokens", "input_tokens", "count"];
    let of = |told: &Value| names.iter().find_map(|name| told[*name].as_u64());
    of(&json["usage"]).or_else(|| of(&json)).unwrap_or_else(|| panic!("{raw:?}"))
}

#[tokio::test]
async fn a_template_that_reads_a_variable_is_told_it_in_every_interface() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let named = |thinks: bool| json!({"chat_template_kwargs": {"enable_thinking": thinks}});
    let effort = |word: &str| json!({"reasoning_effort": word});
    let of_responses = |word: Value| json!({"reasoning": {"effort": word, "summary": "auto"}});
    let thinking = |kind: &str| json!({"thinking": {"type": kind, "budget_tokens": 1_024}});
    let both = |one: Value, other: Value| {
        let mut both = one.as_object().unwrap().clone();
        both.extend(other.as_object().unwrap().clone());
        Value::from(both)
    };
    for (path, more, tokens) in [
        (CHAT, json!({}), 1),
        (CHAT, named(false), 3),
        (CHAT, named(true), 1),
        (CHAT, json!({"chat_template_kwargs": {}}), 1),
        (CHAT, json!({"chat_template_kwargs": null}), 1),
        (CHAT, effort("none"), 3),
        (CHAT, effort("minimal"), 3),
        (CHAT, effort("high"), 1),
        (CHAT, json!({"reasoning_effort": null}), 1),
        (CHAT, effort(""), 1),
        (CHAT, thinking("disabled"), 3),
        (CHAT, thinking("enabled"), 1),
        (CHAT, thinking("adaptive"), 1),
        // What is named goes before how much to think, and whether before how much.
        (CHAT, both(named(true), effort("none")), 1),
        (CHAT, both(named(false), thinking("enabled")), 3),
        (CHAT, both(thinking("disabled"), effort("high")), 3),
        (MESSAGES, thinking("disabled"), 3),
        (MESSAGES, thinking("enabled"), 1),
        (MESSAGES, named(false), 3),
        (COUNTED, thinking("disabled"), 3),
        (RESPONSES, of_responses(json!("none")), 3),
        (RESPONSES, of_responses(json!("high")), 1),
        (RESPONSES, of_responses(json!(null)), 1),
        (RESPONSES, named(false), 3),
        ("/tokenize", named(false), 3),
        ("/v1/tirami/estimate", named(false), 3),
    ] {
        let raw = asked(&node, path, &more).await;
        assert_eq!(read(&raw), tokens, "{path} {more}");
    }
}

#[tokio::test]
async fn what_a_template_does_not_read_or_cannot_be_told_is_refused_by_name() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let named = |name: &str, value: Value| json!({"chat_template_kwargs": {name: value}});
    let all = "chat_template_kwargs";
    let many = (0..33).map(|n| (format!("v{n}"), json!(n))).collect::<Map<String, Value>>();
    let deep = (0..17).fold(json!(1), |inner, _| json!([inner]));
    let (long, unread) = ("x".repeat(16_384), named("colour", json!("red")));
    let (unsupported, invalid) = ("unsupported_parameter", "invalid_value");
    let colour = (unsupported, "chat_template_kwargs.colour", "it reads enable_thinking");
    let own = "the node gives it to every template";
    for (path, more, (code, param, says)) in [
        (CHAT, unread.clone(), colour),
        (MESSAGES, unread.clone(), colour),
        (COUNTED, unread.clone(), colour),
        (RESPONSES, unread.clone(), colour),
        ("/tokenize", unread.clone(), colour),
        (TEXT, unread, (unsupported, all, "are for chats")),
        (CHAT, named("messages", json!([])), (unsupported, "chat_template_kwargs.messages", own)),
        (CHAT, named("bos_token", json!("")), (unsupported, "chat_template_kwargs.bos_token", own)),
        (CHAT, named("tokenize", json!(1)), (unsupported, "chat_template_kwargs.tokenize", own)),
        (
            CHAT,
            named("strftime_now", json!(1)),
            (unsupported, "chat_template_kwargs.strftime_now", own),
        ),
        (CHAT, json!({all: "x"}), (invalid, all, "must be an object")),
        (CHAT, json!({all: [1]}), (invalid, all, "must be an object")),
        (CHAT, json!({all: many}), (invalid, all, "at most 32")),
        (CHAT, named("enable-thinking", json!(1)), (invalid, all, "letters, digits and _")),
        (CHAT, named(&"x".repeat(65), json!(1)), (invalid, all, "letters, digits and _")),
        (CHAT, named("enable_thinking", json!(long)), (invalid, all, "more than 16384 bytes")),
        (
            CHAT,
            named("enable_thinking", deep),
            (invalid, "chat_template_kwargs.enable_thinking", "more than 16 lists or objects"),
        ),
        (CHAT, json!({"reasoning_effort": 7}), (invalid, "reasoning_effort", "must be text")),
        (CHAT, json!({"thinking": "yes"}), (invalid, "thinking", "must be an object")),
        (CHAT, json!({"thinking": []}), (invalid, "thinking", "must be an object")),
        (CHAT, json!({"thinking": {"type": "banana"}}), (invalid, "thinking.type", "adaptive")),
        (MESSAGES, json!({"thinking": {"type": 1}}), (invalid, "thinking.type", "adaptive")),
        (RESPONSES, json!({"reasoning": "low"}), (invalid, "reasoning", "must be an object")),
        (CHAT, json!({"logit_bias": {"256": 1}}), (invalid, "logit_bias", "has no token 256")),
        (
            RESPONSES,
            json!({"reasoning": {"effort": "x".repeat(33)}}),
            (invalid, "reasoning.effort", "reasoning.effort must be text"),
        ),
    ] {
        let raw = asked(&node, path, &more).await;
        let short: String = more.to_string().chars().take(80).collect();
        assert_eq!((raw.status, raw.code().as_str()), (400, code), "{path} {short} {raw:?}");
        assert_eq!(raw.json()["error"]["param"], param, "{path} {short}");
        assert!(raw.text.contains(says), "{path} {short} {raw:?}");
    }
    let status = node.settled().await;
    assert_eq!((status.total_trades, status.open_holds), (0, 0));
}
