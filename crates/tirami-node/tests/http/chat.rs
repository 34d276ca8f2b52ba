//! Chat completions at the edge: shapes, streams, clients that leave, and requests gone wrong.

use std::time::Duration;

use crate::support::{Raw, TestNode, chat, cost, script, times};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tirami_infer::fake::FakeScript;
use tirami_sdk::types::{Limits, Scope};
use tirami_sdk::{Amount, Client};

fn quick() -> FakeScript {
    script(3, Duration::ZERO)
}

#[tokio::test]
async fn an_answer_has_openais_shape_and_says_what_it_cost() {
    let node = TestNode::start(quick()).await;
    let before = node.personal().balance(None).await.unwrap();
    let body = json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2,
        "temperature": 0, "seed": 7, "unknown_field": {"a": 1},
    });
    let raw = node.post("/v1/chat/completions", None, body.to_string()).await;
    assert_eq!(raw.status, 200, "{raw:?}");
    assert_eq!(raw.header("content-type"), "application/json");
    let answer = raw.json();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "fake");
    assert_eq!(answer["system_fingerprint"], "fake");
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": "word word "},
                "finish_reason": "length", "logprobs": null}])
    );
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3,
               "prompt_tokens_details": {"cached_tokens": 0}})
    );
    // The price of 3 tokens at par is their work, to the last digit.
    let extra = &answer["x_tirami"];
    let shape_work = 2 * 1_000_000 * 3 + 4 * 2 * 64 * (1 + 2 + 3);
    assert_eq!(extra["flops"], shape_work);
    assert!(raw.text.contains(&format!("\"trm_cost\":{}", cost(2))), "{}", raw.text);
    let left: Amount = extra["effective_balance"].to_string().parse().unwrap();
    let spent = before.effective_balance.trm().micro() - left.trm().micro();
    assert_eq!(spent, cost(2).trm().micro());
    let provider = node.admin.status().await.unwrap().node_id;
    assert_eq!(extra["provider"], Value::from(provider.clone()));
    assert_eq!(extra["route"]["provider"], Value::from(provider));
    assert_eq!(extra["route"]["candidates"], 1);

    let complete = node.personal().chat(&chat(9)).await.unwrap();
    assert_eq!(complete.choices[0].finish_reason, "stop");
    let trade = node.personal().trade(&complete.x_tirami.unwrap().trade_id).await.unwrap();
    assert!(trade.verified, "{:?}", trade.problem);
    let proof = tirami_sdk::verify_trade(&trade).unwrap();
    assert!(proof.receipt);
    assert_ne!(proof.consumer, proof.provider);
}

/// A stream with everything that differs from run to run replaced.
fn golden(text: &str) -> String {
    let mut lines = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        let data = event.strip_prefix("data: ").unwrap();
        let Ok(mut value) = serde_json::from_str::<Value>(data) else {
            lines.push(data.to_owned());
            continue;
        };
        value["id"] = "ID".into();
        value["created"] = 0.into();
        if let Some(extra) = value.get_mut("x_tirami") {
            *extra = extra.as_object().unwrap().keys().cloned().collect::<Vec<_>>().into();
        }
        lines.push(value.to_string());
    }
    lines.join("\n")
}

const HEAD: &str = r#""id":"ID","object":"chat.completion.chunk","created":0,"model":"fake","system_fingerprint":"fake""#;

#[tokio::test]
async fn a_stream_is_what_openais_clients_expect() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    let chunk = |choices: &str, more: &str| format!("{{{HEAD},\"choices\":{choices}{more}}}");
    let delta = |delta: &str, finish: &str| {
        format!(r#"[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]"#)
    };
    let info =
        r#","x_tirami":["trm_cost","effective_balance","provider","trade_id","flops","route"]"#;
    let first = chunk(&delta(r#"{"role":"assistant","content":""}"#, "null"), "");
    let word = chunk(&delta(r#"{"content":"word "}"#, "null"), "");
    let usage = r#","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}"#;
    for (options, tail) in [
        (json!({}), vec![chunk(&delta("{}", "\"stop\""), info)]),
        (
            json!({"stream_options": {"include_usage": true}}),
            vec![chunk(&delta("{}", "\"stop\""), ""), chunk("[]", &format!("{usage}{info}"))],
        ),
    ] {
        let mut body = json!({
            "model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": true,
        });
        body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let raw = node.post("/v1/chat/completions", None, body.to_string()).await;
        assert_eq!(raw.header("content-type"), "text/event-stream; charset=utf-8");
        let mut expected = vec![first.clone(), word.clone(), word.clone()];
        expected.extend(tail);
        expected.push("[DONE]".to_owned());
        assert_eq!(golden(&raw.text), expected.join("\n"));
    }
}

#[tokio::test]
async fn every_number_that_openai_takes_is_taken() {
    let node = TestNode::start(quick()).await;
    for (field, value) in [
        ("seed", json!(-1)),
        ("seed", json!(1_u64 << 32)),
        ("seed", json!(i64::MIN)),
        ("seed", json!(u64::MAX)),
        ("top_p", json!(0)),
        // What other servers have it by.
        ("top_k", json!(-1)),
        ("repetition_penalty", json!(1.1)),
    ] {
        for (path, subject) in [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")]
        {
            let said = match subject {
                "messages" => json!([{"role": "user", "content": "hi"}]),
                _ => json!("hi"),
            };
            let body = json!({"model": "fake", "max_tokens": 2, subject: said, field: value});
            let raw = node.post(path, None, body.to_string()).await;
            assert_eq!(raw.status, 200, "{body}: {raw:?}");
        }
    }
}

#[tokio::test]
async fn what_would_change_the_answer_is_refused_by_name_unless_it_asks_for_nothing() {
    let node = TestNode::start(quick()).await;
    for (field, asks, asks_nothing) in [
        ("grammar", json!("root ::= \"a\""), json!("")),
        ("guided_choice", json!(["a"]), json!([])),
        ("guided_grammar", json!("root ::= \"a\""), json!(null)),
        ("guided_json", json!({"type": "object"}), json!(null)),
        ("guided_regex", json!("a+"), json!("")),
        ("ignore_eos", json!(true), json!(false)),
        ("json_schema", json!({"type": "object"}), json!({})),
        ("min_tokens", json!(5), json!(0)),
        ("stop_token_ids", json!([2]), json!([])),
        ("structured_outputs", json!({"regex": "a+"}), json!(null)),
    ] {
        for (path, subject) in [(PATH, "messages"), ("/v1/completions", "prompt")] {
            let said = match subject {
                "messages" => json!([{"role": "user", "content": "hi"}]),
                _ => json!("hi"),
            };
            let body = |value: &Value| {
                json!({"model": "fake", "max_tokens": 2, subject: said, field: value}).to_string()
            };
            let raw = node.post(path, None, body(&asks)).await;
            assert_eq!(
                (raw.status, raw.code().as_str()),
                (400, "unsupported_parameter"),
                "{field}"
            );
            assert_eq!(raw.json()["error"]["param"], field, "{raw:?}");
            let raw = node.post(path, None, body(&asks_nothing)).await;
            assert_eq!(raw.status, 200, "{field}: {raw:?}");
        }
    }
    let wrong = json!({"model": "fake", "messages": [{"role": "user", "content": "hi"}],
                       "repetition_penalty": 0});
    let raw = node.post(PATH, None, wrong.to_string()).await;
    assert_eq!((raw.status, &raw.json()["error"]["param"]), (400, &json!("repetition_penalty")));
}

#[tokio::test]
async fn an_assistant_may_have_said_nothing_or_that_it_would_not() {
    let node = TestNode::start(quick()).await;
    for said in [
        json!({"content": null}),
        json!({"content": null, "refusal": "12345678"}),
        json!({"content": [{"type": "refusal", "refusal": "12345678"}]}),
    ] {
        let mut assistant = said.clone();
        assistant["role"] = "assistant".into();
        let user = json!({"role": "user", "content": "1234"});
        let body = json!({"model": "fake", "max_tokens": 2, "messages": [user, assistant, user]});
        let raw = node.post(PATH, None, body.to_string()).await;
        assert_eq!(raw.status, 200, "{said}: {raw:?}");
        // Four bytes are a token here.
        let tokens = if said.to_string().contains("12345678") { 4 } else { 2 };
        assert_eq!(raw.json()["usage"]["prompt_tokens"], tokens, "{said}");
    }
}

#[tokio::test]
async fn an_answer_without_a_word_is_one_and_costs_nothing() {
    let node = TestNode::start(script(0, Duration::ZERO)).await;
    let before = node.personal().balance(None).await.unwrap().effective_balance;
    let answer = node.personal().chat(&chat(9)).await.unwrap();
    assert_eq!(answer.choices[0].message.content.as_ref().map(|text| text.text()), Some("".into()));
    assert_eq!(answer.choices[0].finish_reason, "stop");
    assert_eq!(answer.usage.completion_tokens, 0);
    let info = answer.x_tirami.unwrap();
    assert_eq!((info.trm_cost, info.effective_balance), (Amount::default(), before));
    let stream = node.personal().chat_stream(&chat(9)).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    let last = items.last().unwrap().as_ref().unwrap();
    assert_eq!(last.x_tirami.as_ref().unwrap().trm_cost, Amount::default());
    assert_eq!(node.settled().await.total_trades, 0);
}

#[tokio::test]
async fn several_answers_are_several_trades_with_one_bill() {
    let node = TestNode::start(quick()).await;
    let mut body = json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "n": 3,
        "seed": 7, "logprobs": true, "top_logprobs": 2,
    });
    let answer = node.post(PATH, None, body.to_string()).await.json();
    let top = json!({"token": "word ", "logprob": -0.5, "bytes": b"word "});
    let mut token = top.clone();
    token["top_logprobs"] = json!([top, top]);
    for index in 0..3 {
        let choice = &answer["choices"][index];
        assert_eq!(choice["index"], index, "{answer}");
        assert_eq!(choice["message"]["content"], "word word ");
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(choice["logprobs"]["content"], json!([token, token]));
    }
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    let usage = json!({"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7,
                       "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(answer["usage"], usage);
    let ids = answer["x_tirami"]["trade_ids"].as_array().unwrap().clone();
    assert_eq!((ids.len(), &ids[2]), (3, &answer["x_tirami"]["trade_id"]));
    let trades = node.admin.trades(None, None, None).await.unwrap().trades;
    assert!(trades.iter().rev().zip(&ids).all(|(trade, id)| *id == trade.trade_id));
    let sum = times(cost(2), 3);
    assert_eq!(answer["x_tirami"]["trm_cost"].to_string(), sum.to_string());

    body["stream"] = true.into();
    let raw = node.post(PATH, None, body.to_string()).await;
    let events = raw.text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let chunks: Vec<Value> = events.filter_map(|data| serde_json::from_str(data).ok()).collect();
    for index in 0..3 {
        let mine = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let mine: Vec<_> = mine.filter(|choice| choice["index"] == index).collect();
        assert_eq!(mine.len(), 4, "{}", raw.text);
        assert_eq!(mine[0]["delta"], json!({"role": "assistant", "content": ""}));
        for piece in &mine[1..3] {
            assert_eq!(piece["delta"], json!({"content": "word "}));
            assert_eq!(piece["logprobs"]["content"], json!([token]));
            assert_eq!(piece["finish_reason"], Value::Null);
        }
        assert_eq!(mine[3]["finish_reason"], "length");
    }
    let bills: Vec<_> = chunks.iter().filter(|chunk| chunk.get("x_tirami").is_some()).collect();
    assert_eq!((bills.len(), bills[0]), (1, chunks.last().unwrap()));
    assert_eq!(bills[0]["x_tirami"]["trm_cost"].to_string(), sum.to_string());
    assert_eq!(node.settled().await.total_trades, 6);
}

#[tokio::test]
async fn log_probabilities_are_of_the_chosen_tokens_alone_where_no_others_are_asked_for() {
    let node = TestNode::start(quick()).await;
    let mut body = json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2,
        "logprobs": true,
    });
    let token = json!({"token": "word ", "logprob": -0.5, "bytes": b"word ", "top_logprobs": []});
    let answer = node.post(PATH, None, body.to_string()).await.json();
    assert_eq!(answer["choices"][0]["logprobs"]["content"], json!([token, token]), "{answer}");
    body["stream"] = true.into();
    let raw = node.post(PATH, None, body.to_string()).await;
    let events = raw.text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let chunks = events.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let told = chunks.map(|chunk| chunk["choices"][0]["logprobs"]["content"].clone());
    let told: Vec<Value> = told.filter(|content| !content.is_null()).collect();
    assert_eq!(told, [json!([token]), json!([token])], "{raw:?}");
}

#[tokio::test]
async fn several_answers_start_together_or_not_at_all() {
    let node = TestNode::start(quick()).await;
    let request = |n: u32, max_tokens: Option<u32>| {
        json!({"model": "fake", "messages": [{"role": "user", "content": "hi"}], "n": n,
               "max_tokens": max_tokens})
        .to_string()
    };
    let agent = node.agent("poor", &times(cost(3), 2).to_string()).await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await.key;
    let refused = node.post(PATH, Some(&key), request(3, Some(3))).await;
    assert_eq!((refused.status, refused.code().as_str()), (402, "insufficient_balance"));
    assert_eq!(node.settled().await.total_trades, 0);
    // Without a maximum the answers share what there is.
    let shared = node.post(PATH, Some(&key), request(2, None)).await;
    assert_eq!(shared.status, 200, "{shared:?}");
    assert_eq!(shared.json()["choices"][1]["message"]["content"], "word word word ");

    let limits = Limits { approval_above_trm: Some(cost(1)), ..Limits::default() };
    node.limit("node", limits).await;
    let waiting = node.post(PATH, None, request(2, Some(3))).await;
    assert_eq!((waiting.status, waiting.code().as_str()), (403, "approval_required"));
    assert!(waiting.text.contains("one at a time"), "{}", waiting.text);
    assert_eq!(node.settled().await.total_trades, 2);
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_pays_what_it_got_and_frees_the_engine() {
    let node = TestNode::start(script(2_000, Duration::from_millis(4))).await;
    let mut stream = node.personal().chat_stream(&chat(2_000)).await.unwrap();
    let mut words = 0;
    while words < 70 {
        words += u32::from(!stream.next().await.unwrap().unwrap().text().is_empty());
    }
    drop(stream);
    let status = node.settled().await;
    assert_eq!(status.total_trades, 1);
    let trade = &node.admin.trades(None, None, None).await.unwrap().trades[0];
    assert_eq!(trade.finish, "cancelled");
    // What was on the wire when the client hung up counts; what was not yet handed over does not.
    assert!((words..words + 30).contains(&trade.completion_tokens), "{trade:?}");
    assert_eq!(trade.trm_amount, cost(trade.completion_tokens));
    let detail = node.admin.trade(&trade.trade_id).await.unwrap();
    assert!(detail.verified, "{:?}", detail.problem);
    assert!(detail.voucher.is_some(), "delivered tokens were vouched for on the way");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_owes_nothing() {
    let node = TestNode::start(script(5, Duration::from_secs(3_600))).await;
    let mut stream = node.personal().chat_stream(&chat(5)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(node.admin.status().await.unwrap().engine.running, 1);
    drop(stream);
    assert_eq!(node.settled().await.total_trades, 0);

    let client = node.personal();
    let waiting = tokio::spawn(async move { client.chat(&chat(5)).await });
    while node.admin.status().await.unwrap().engine.running == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    waiting.abort();
    assert_eq!(node.settled().await.total_trades, 0);
    let balance = node.personal().balance(None).await.unwrap();
    assert_eq!((balance.consumed, balance.reserved), (Amount::default(), Amount::default()));
}

#[tokio::test]
async fn an_engine_that_fails_is_paid_for_what_it_delivered() {
    let node = TestNode::start(FakeScript { fail_after: Some(2), ..quick() }).await;
    let error = node.personal().chat(&chat(3)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(500), Some("engine_failed")));
    assert_eq!(node.settled().await.total_trades, 0, "half an answer in one piece is none");

    let stream = node.personal().chat_stream(&chat(3)).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    assert_eq!(items.last().unwrap().as_ref().unwrap_err().code(), Some("engine_failed"));
    node.settled().await;
    let trade = &node.admin.trades(None, None, None).await.unwrap().trades[0];
    assert_eq!((trade.finish.as_str(), trade.completion_tokens), ("failed", 2));
}

#[tokio::test]
async fn a_stop_ends_running_answers_and_charges_them() {
    let node = TestNode::start(script(2_000, Duration::from_millis(5))).await;
    let mut stream = node.personal().chat_stream(&chat(2_000)).await.unwrap();
    for _ in 0..5 {
        stream.next().await.unwrap().unwrap();
    }
    let TestNode { node, .. } = node;
    let stop = tokio::spawn(node.shutdown());
    let mut last = None;
    while let Some(item) = stream.next().await {
        last = Some(item);
    }
    assert_eq!(last.unwrap().unwrap_err().code(), Some("stopping"));
    let _ = tokio::time::timeout(Duration::from_secs(10), stop).await.unwrap().unwrap();
}

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn requests_gone_wrong_get_a_sentence_in_openais_envelope() {
    let node = TestNode::start(quick()).await;
    let with = |more: &str| {
        format!(r#"{{"model":"fake","messages":[{{"role":"user","content":"hi"}}]{more}}}"#)
    };
    let long = "x".repeat(5_000 * 4);
    let deep = "[".repeat(50_000);
    let large = with(&format!(r#","user":"{}""#, "x".repeat(10_000_000)));
    let cases: Vec<(&str, Vec<u8>, u16, &str, Value)> = vec![
        ("empty body", vec![], 400, "invalid_request", Value::Null),
        ("no JSON", b"hello".to_vec(), 400, "invalid_request", Value::Null),
        ("cut JSON", b"{\"model\":".to_vec(), 400, "invalid_request", Value::Null),
        ("NaN", with(",\"temperature\":NaN").into(), 400, "invalid_request", Value::Null),
        ("1e999", with(",\"temperature\":1e999").into(), 400, "invalid_request", Value::Null),
        ("no object", b"[1]".to_vec(), 400, "invalid_request", Value::Null),
        ("deep", deep.into(), 400, "invalid_request", Value::Null),
        ("not UTF-8", b"{\"model\":\"\xff\xfe\"}".to_vec(), 400, "invalid_request", Value::Null),
        ("10 MB", large.into(), 413, "body_too_large", Value::Null),
        ("no model", b"{\"messages\":[]}".to_vec(), 400, "invalid_value", json!("model")),
        (
            "unknown model",
            with("").replace("fake", "gpt-5").into(),
            404,
            "model_not_found",
            json!("model"),
        ),
        ("no messages", b"{\"model\":\"fake\"}".to_vec(), 400, "invalid_value", json!("messages")),
        (
            "zero tokens",
            with(",\"max_tokens\":0").into(),
            400,
            "invalid_value",
            json!("max_tokens"),
        ),
        (
            "absurd tokens",
            with(",\"max_tokens\":1000000").into(),
            400,
            "invalid_value",
            json!("max_tokens"),
        ),
        ("text as number", with(",\"top_k\":\"5\"").into(), 400, "invalid_value", json!("top_k")),
        ("many answers", with(",\"n\":17").into(), 400, "invalid_value", json!("n")),
        (
            "an image",
            with("").replace("\"hi\"", "[{\"type\":\"image_url\",\"image_url\":{}}]").into(),
            400,
            "invalid_value",
            json!("messages[0].content[0]"),
        ),
        (
            "tools",
            with(",\"tools\":[{\"type\":\"function\"}],\"tool_choice\":\"required\"").into(),
            400,
            "invalid_value",
            json!("tools[0].function"),
        ),
        (
            "too long",
            with("").replace("hi", &long).into(),
            400,
            "context_length_exceeded",
            json!("messages"),
        ),
    ];
    for (what, body, status, code, param) in cases {
        let raw = node.post(PATH, None, body).await;
        assert_eq!((raw.status, raw.code().as_str()), (status, code), "{what}: {raw:?}");
        let error = &raw.json()["error"];
        assert_eq!(error["param"], param, "{what}");
        assert!(error["message"].as_str().unwrap().len() > 10, "{what}");
        assert!(error["type"].is_string(), "{what}");
        assert!(raw.header("x-request-id").starts_with("req-"), "{what}");
    }
    assert_eq!(node.settled().await.total_trades, 0);
    node.personal().chat(&chat(1)).await.unwrap();
}

#[tokio::test]
async fn a_body_without_end_is_cut_at_the_limit() {
    let node = TestNode::start(quick()).await;
    let piece = || Ok::<_, std::io::Error>(vec![b' '; 64 * 1024]);
    let endless = futures_util::stream::repeat_with(piece);
    let call = node.http.post(format!("{}{PATH}", node.url));
    let call = call.header("content-type", "application/json");
    let sent = call.body(reqwest::Body::wrap_stream(endless)).send();
    // The node answers 413 and hangs up; which of the two a client sees is the network's choice.
    if let Ok(answer) = tokio::time::timeout(Duration::from_secs(20), sent).await.unwrap() {
        assert_eq!(answer.status().as_u16(), 413);
    }
    assert!(node.personal().status().await.is_ok());
}

#[tokio::test]
async fn wrong_paths_methods_and_types_are_named() {
    let node = TestNode::start(quick()).await;
    let send = |method: reqwest::Method, path: &str, kind: Option<&str>| {
        let mut call = node.http.request(method, format!("{}{path}", node.url)).body("{}");
        if let Some(kind) = kind {
            call = call.header("content-type", kind);
        }
        async move { Raw::of(call.send().await.unwrap()).await }
    };
    let raw = send(reqwest::Method::GET, "/v1/nothing", None).await;
    assert_eq!((raw.status, raw.code().as_str()), (404, "unknown_path"));
    let raw = send(reqwest::Method::GET, PATH, None).await;
    assert_eq!((raw.status, raw.code().as_str()), (405, "method_not_allowed"));
    assert_eq!(raw.header("allow"), "POST");
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let raw = send(reqwest::Method::POST, PATH, kind).await;
        assert_eq!((raw.status, raw.code().as_str()), (415, "unsupported_media_type"));
    }
    let raw = send(reqwest::Method::POST, PATH, Some("application/json; charset=utf-8")).await;
    assert_eq!(raw.code(), "invalid_value");
    assert_eq!(raw.header("access-control-allow-origin"), "", "no other origin is let in");
}

#[tokio::test]
async fn a_request_keeps_a_harmless_id_and_gets_one_otherwise() {
    let node = TestNode::start(quick()).await;
    let id_of = |given: String| {
        let call = node.http.get(format!("{}/healthz", node.url)).header("x-request-id", given);
        async move { Raw::of(call.send().await.unwrap()).await.header("x-request-id").to_owned() }
    };
    assert_eq!(id_of("abc-1".into()).await, "abc-1");
    for bad in ["x".repeat(129), "a b".into(), String::new()] {
        assert!(id_of(bad).await.starts_with("req-"));
    }
}

#[tokio::test]
async fn models_are_found_by_name_and_digest() {
    let node = TestNode::start(quick()).await;
    let client: Client = node.personal();
    let list = client.models().await.unwrap();
    assert_eq!((list.object.as_str(), list.data.len()), ("list", 1));
    let model = client.model("fake").await.unwrap();
    assert_eq!(model, list.data[0]);
    let digest = model.x_tirami.digest;
    assert_eq!(client.model(&digest).await.unwrap().id, "fake");
    let mut request = chat(1);
    request.model = digest;
    client.chat(&request).await.unwrap();
    let error = client.model("other").await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(404), Some("model_not_found")));
    assert!(error.to_string().contains("nothing was charged; this node serves fake"));
}
