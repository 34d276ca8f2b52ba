//! Embeddings at the edge: shapes, money, clients that leave, and requests gone wrong.

use std::time::Duration;

use crate::support::{TestNode, script};
use serde_json::{Value, json};
use tirami_core::{Flop, Ppm};
use tirami_infer::fake::FakeScript;
use tirami_sdk::Amount;
use tirami_sdk::types::{EmbeddingInput, EmbeddingVector, EmbeddingsRequest, Limits, Scope};

fn quick() -> FakeScript {
    script(3, Duration::ZERO)
}

fn ask(input: EmbeddingInput) -> EmbeddingsRequest {
    EmbeddingsRequest { model: "fake".to_owned(), input, ..EmbeddingsRequest::default() }
}

fn texts(texts: &[&str]) -> EmbeddingInput {
    EmbeddingInput::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

/// What reading so many tokens costs with the scripted engine's model.
fn cost(tokens: u64) -> Amount {
    Flop::new(2 * 1_000_000 * tokens).cost_ceil(Ppm::ONE).into()
}

fn numbers(vector: &EmbeddingVector) -> Vec<f32> {
    match vector {
        EmbeddingVector::Numbers(numbers) => numbers.clone(),
        EmbeddingVector::Base64(_) => panic!("numbers were asked for"),
    }
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|value| value * value).sum::<f32>().sqrt()
}

#[tokio::test]
async fn texts_become_vectors_in_openais_shape_and_every_token_is_paid_once() {
    let node = TestNode::start(quick()).await;
    let body = json!({"model": "fake", "input": ["abc", "defgh"], "user": "u"});
    let raw = node.post("/v1/embeddings", None, body.to_string()).await;
    assert_eq!(raw.status, 200, "{raw:?}");
    let answer = raw.json();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("fake")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 8, "total_tokens": 8}));
    for (index, one) in answer["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&one["object"], &one["index"]), (&json!("embedding"), &json!(index)));
        assert_eq!(one["embedding"].as_array().unwrap().len(), 8);
    }
    let extra = &answer["x_tirami"];
    assert_eq!(extra["flops"], 2 * 1_000_000 * 8);
    assert!(raw.text.contains(&format!("\"trm_cost\":{}", cost(8))), "{}", raw.text);
    assert_eq!(extra["route"]["kind"], "local");
    let trade = node.personal().trade(extra["trade_id"].as_str().unwrap()).await.unwrap();
    assert!(trade.verified, "{:?}", trade.problem);
    assert!(tirami_sdk::verify_trade(&trade).unwrap().receipt);
    assert_eq!((trade.trade.prompt_tokens, trade.trade.completion_tokens), (8, 0));
    let status = node.settled().await;
    assert_eq!((status.total_trades, status.open_holds), (1, 0));
}

#[tokio::test]
async fn every_form_of_a_text_and_of_a_vector_says_the_same() {
    let node = TestNode::start(quick()).await;
    let client = node.personal();
    let tokens: Vec<u32> = "abc".bytes().map(u32::from).collect();
    let mut all = Vec::new();
    for input in [
        EmbeddingInput::Text("abc".to_owned()),
        texts(&["abc"]),
        EmbeddingInput::Tokens(tokens.clone()),
        EmbeddingInput::TokenLists(vec![tokens]),
    ] {
        let answer = client.embeddings(&ask(input)).await.unwrap();
        assert_eq!((answer.data.len(), answer.usage.prompt_tokens), (1, 3));
        all.push(numbers(&answer.data[0].embedding));
    }
    assert!(all.iter().all(|vector| *vector == all[0]), "{all:?}");
    let whole = &all[0];
    assert!((length(whole) - 1.0).abs() < 1e-6);
    let text = EmbeddingInput::Text("abc".to_owned());
    let request =
        EmbeddingsRequest { encoding_format: Some("base64".to_owned()), ..ask(text.clone()) };
    let answer = client.embeddings(&request).await.unwrap();
    let EmbeddingVector::Base64(encoded) = &answer.data[0].embedding else { panic!() };
    let bytes: Vec<u8> = whole.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(decoded(encoded), bytes);
    let request = EmbeddingsRequest { dimensions: Some(3), ..ask(text) };
    let short = numbers(&client.embeddings(&request).await.unwrap().data[0].embedding);
    assert_eq!(short.len(), 3);
    assert!((length(&short) - 1.0).abs() < 1e-6);
    let scale = length(&whole[..3]);
    assert!(short.iter().zip(whole).all(|(short, whole)| (short - whole / scale).abs() < 1e-6));
}

fn decoded(base64: &str) -> Vec<u8> {
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = base64
        .trim_end_matches('=')
        .chars()
        .map(|digit| u32::try_from(alphabet.find(digit).unwrap()).unwrap())
        .collect();
    let four = |four: &[u32]| {
        let bits = (0..4).fold(0, |bits, at| (bits << 6) | four.get(at).copied().unwrap_or(0));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    digits.chunks(4).flat_map(four).collect()
}

#[tokio::test]
async fn what_cannot_be_embedded_is_named_and_costs_nothing() {
    let node = TestNode::start(quick()).await;
    let before = node.personal().balance(None).await.unwrap().effective_balance;
    let long = "x".repeat(4_097);
    for (fields, status, param) in [
        (json!({"input": "a", "model": "gpt"}), 404, "model"),
        (json!({"input": "a"}), 400, "model"),
        (json!({"model": "fake"}), 400, "input"),
        (json!({"model": "fake", "input": ""}), 400, "input"),
        (json!({"model": "fake", "input": ["a", long]}), 400, "input[1]"),
        (json!({"model": "fake", "input": vec![7; 4_097]}), 400, "input[0]"),
        (json!({"model": "fake", "input": [[97], [97, 256]]}), 400, "input[1]"),
        (json!({"model": "fake", "input": vec!["x".repeat(4_096); 74]}), 400, "input"),
        (json!({"model": "fake", "input": vec!["a"; 2_049]}), 400, "input"),
        (json!({"model": "fake", "input": "a", "dimensions": 9}), 400, "dimensions"),
        (json!({"model": "fake", "input": "a", "encoding_format": "x"}), 400, "encoding_format"),
    ] {
        let raw = node.post("/v1/embeddings", None, fields.to_string()).await;
        assert_eq!((raw.status, &raw.json()["error"]["param"]), (status, &json!(param)), "{raw:?}");
    }
    let agent = node.agent("poor", "0.001").await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await;
    let error = node.with(&key).embeddings(&ask(texts(&["abc"]))).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(402), Some("insufficient_balance")));
    node.admin
        .kill(&tirami_sdk::types::KillRequest { activate: true, reason: None })
        .await
        .unwrap();
    let error = node.personal().embeddings(&ask(texts(&["abc"]))).await.unwrap_err();
    assert_eq!(error.code(), Some("kill_switch"));
    let after = node.personal().balance(None).await.unwrap().effective_balance;
    assert_eq!(before, after);
    assert_eq!(node.settled().await.total_trades, 0);
}

#[tokio::test]
async fn a_budget_is_never_overrun_by_many_at_once() {
    let node = TestNode::start(quick()).await;
    let agent = node.agent("payer", "100").await;
    let limits = Limits { lifetime_max_trm: Some(cost(3 * 5)), ..Limits::default() };
    let key = node.key(Scope::Inference, Some(&agent.did), limits).await;
    let client = node.with(&key);
    let calls = (0..40).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.embeddings(&ask(texts(&["abc"]))).await.is_ok() })
    });
    let mut answered = 0;
    for call in calls.collect::<Vec<_>>() {
        answered += usize::from(call.await.unwrap());
    }
    node.settled().await;
    let spent = node.admin.balance(Some(&agent.did)).await.unwrap().consumed;
    assert_eq!((answered, spent), (5, cost(15)));
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_engine_and_owes_nothing() {
    let node = TestNode::start(script(3, Duration::from_secs(3_600))).await;
    let before = node.personal().balance(None).await.unwrap().effective_balance;
    let (client, many) = (node.personal(), texts(&["a", "b", "c"]));
    let call = tokio::spawn(async move { client.embeddings(&ask(many)).await });
    while node.admin.status().await.unwrap().engine.running == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.admin.status().await.unwrap().open_holds, 1);
    call.abort();
    let status = node.settled().await;
    assert_eq!((status.open_holds, status.total_trades), (0, 0));
    assert_eq!(node.personal().balance(None).await.unwrap().effective_balance, before);
}

#[tokio::test]
async fn texts_that_are_not_read_in_time_are_refused_and_cost_nothing() {
    let node = TestNode::start(script(3, Duration::from_secs(3_600))).await;
    let before = node.personal().balance(None).await.unwrap().effective_balance;
    let late = EmbeddingsRequest { timeout_ms: Some(50), ..ask(texts(&["a", "b"])) };
    let refused = node.personal().embeddings(&late).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(504), Some("deadline_exceeded")));
    let status = node.settled().await;
    assert_eq!((status.open_holds, status.total_trades, status.engine.running), (0, 0, 0));
    assert_eq!(node.personal().balance(None).await.unwrap().effective_balance, before);
    let wrong = json!({"model": "fake", "input": "a", "timeout_ms": 0}).to_string();
    let refused = node.post("/v1/embeddings", None, wrong).await;
    assert_eq!(refused.json()["error"]["param"], "timeout_ms");
}

#[tokio::test]
async fn an_engine_that_fails_is_said_and_nothing_is_charged() {
    let failing = FakeScript { fail_after: Some(0), ..quick() };
    let node = TestNode::start(failing).await;
    let raw = node
        .post("/v1/embeddings", None, json!({"model": "fake", "input": "abc"}).to_string())
        .await;
    assert_eq!((raw.status, raw.code().as_str()), (500, "engine_failed"), "{raw:?}");
    assert_eq!(raw.json()["error"]["type"], Value::from("server_error"));
    let status = node.settled().await;
    assert_eq!((status.open_holds, status.total_trades), (0, 0));
}
