//! An engine that is a server elsewhere: here, another node with a scripted engine, or whoever
//! listens there and means no good.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;
use tirami_core::{ModelDigest, ModelShape};
use tirami_infer::engine::{Conversation, Engine, ModelInfo, PrepareError, Prompt};
use tirami_infer::fake::FakeScript;
use tirami_infer::vocabulary::Vocabulary;
use tirami_node::models::{Models, OpenAiEngine};
use tirami_sdk::types::{ChatRequest, Limits, Scope};
use tirami_sdk::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{TestNode, chat, script};

/// A vocabulary whose tokens are words with the blank after them.
struct Words(ModelInfo);

fn words() -> Arc<Words> {
    Arc::new(Words(ModelInfo {
        name: "sold".to_owned(),
        digest: ModelDigest::from_bytes([7; 32]),
        shape: ModelShape {
            parameters_active: 2_000_000,
            layers: 2,
            attention_width: 64,
            context_max: 4_096,
        },
        architecture: "fake".to_owned(),
        quantisation: "F32".to_owned(),
        size_bytes: 1,
        context_tokens: 4_096,
        embedding_width: 0,
        image_tokens_max: 0,
        build: "openai".to_owned(),
    }))
}

impl Vocabulary for Words {
    fn model(&self) -> &ModelInfo {
        &self.0
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        let text: Vec<&str> =
            conversation.messages.iter().map(|one| one.content.as_str()).collect();
        Ok(Prompt::from(self.tokenize(&text.join(" "))?))
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        let id = |word: &str| u32::try_from(word.len()).unwrap();
        Ok(text.split_inclusive(' ').map(id).collect())
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        vec![b'x'; token as usize]
    }
}

/// A node, and one that sells its answers.
async fn selling(script: FakeScript, key: Option<&str>, places: u32) -> (TestNode, TestNode) {
    let server = TestNode::start(script).await;
    let buyer = server.agent("buyer", "100").await;
    let own = server.key(Scope::Inference, Some(&buyer.did), Limits::default()).await;
    let seller = seller_of(&server.url, key.unwrap_or(&own.key), places).await;
    (server, seller)
}

async fn seller_of(url: &str, key: &str, places: u32) -> TestNode {
    let upstream = Upstream::new(&format!("{url}/v1"), Some(key)).unwrap();
    let engine = OpenAiEngine::new(words(), upstream, ("fake".to_owned(), places));
    TestNode::serving(Models::from_iter([Arc::new(engine) as Arc<dyn Engine>])).await
}

/// A server that answers one request with these bytes, whatever is asked, and hangs up.
async fn saying(answer: Vec<u8>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut head, mut some) = (Vec::new(), [0; 4_096]);
        while !head.ends_with(b"}") {
            let read = stream.read(&mut some).await.unwrap();
            head.extend_from_slice(some.get(..read).unwrap());
        }
        // Who has heard enough hangs up first.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
    });
    url
}

/// An answer of 200 with these events.
fn events(events: &[&str]) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let events = events.iter().map(|event| format!("data: {event}\n\n"));
    [head.to_owned()].into_iter().chain(events).collect::<String>().into_bytes()
}

/// A chunk with this text.
fn adds(text: &str) -> String {
    json!({"choices": [{"delta": {"content": text}}]}).to_string()
}

fn ask(tokens: u32) -> ChatRequest {
    ChatRequest { model: "sold".to_owned(), ..chat(tokens) }
}

#[tokio::test]
async fn its_answers_are_counted_here_and_charged_by_both() {
    let (server, seller) = selling(script(5, Duration::ZERO), None, 4).await;
    for (max, tokens, finish) in [(9, 5, "stop"), (3, 3, "length")] {
        let answer = seller.personal().chat(&ask(max)).await.unwrap();
        assert_eq!(answer.text(), "word ".repeat(tokens));
        assert_eq!(answer.choices[0].finish_reason, finish);
        let usage = answer.usage;
        assert_eq!((usage.prompt_tokens, usage.completion_tokens as usize), (1, tokens));
        let told = answer.x_tirami.unwrap();
        let work = words().0.shape.work(0, u32::try_from(1 + tokens).unwrap());
        assert_eq!(told.flops, work.get());
        let trade = seller.admin.trade(&told.trade_id).await.unwrap();
        assert!(trade.verified, "{trade:?}");
        let mut stream = seller.personal().chat_stream(&ask(max)).await.unwrap();
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            text.push_str(chunk.unwrap().text());
        }
        assert_eq!(text, "word ".repeat(tokens));
    }
    assert_eq!(server.settled().await.total_trades, 4);
    let status = seller.settled().await;
    assert_eq!((status.total_trades, status.engine.completion_tokens_total), (4, 16));
}

#[tokio::test]
async fn its_refusal_is_an_error_and_no_charge_and_nobody_sees_the_key() {
    let secret = "tk_0000000000000000_secretsecretsecret";
    let (_server, seller) = selling(script(5, Duration::ZERO), Some(secret), 4).await;
    let raw = seller.post("/v1/chat/completions", None, body(json!({}))).await;
    assert_eq!((raw.status, raw.code().as_str()), (500, "engine_failed"), "{raw:?}");
    assert!(!raw.text.contains(secret));
    let status = seller.settled().await;
    assert_eq!((status.total_trades, status.open_holds), (0, 0));
    assert!(!format!("{:?}", seller.admin.model_states().await.unwrap()).contains(secret));
}

#[tokio::test]
async fn what_is_no_answer_costs_nothing_and_the_key_goes_nowhere_else() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let there = format!("http://{}/v1/chat/completions", elsewhere.local_addr().unwrap());
    let (secret, long) = ("sk-secretsecretsecret", "x".repeat(2 << 20));
    let empty = "content-length: 0\r\nconnection: close\r\n\r\n";
    for answer in [
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {there}\r\n{empty}"),
        format!("HTTP/1.1 302 Found\r\nlocation: {there}\r\n{empty}"),
        format!("HTTP/1.1 401 Unauthorized\r\nconnection: close\r\n\r\nnobody knows {secret}"),
        format!("HTTP/1.1 500 Oh\r\nconnection: close\r\n\r\n{long}"),
        format!("HTTP/1.1 200 OK\r\nx: {long}\r\n{empty}"),
        format!("HTTP/1.1 200 OK\r\n{empty}"),
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>{long}"),
        "SSH-2.0-OpenSSH_9.6\r\n".to_owned(),
        String::new(),
    ]
    .map(String::into_bytes)
    .into_iter()
    .chain([
        events(&["no json"]),
        events(&[&format!("{{\"error\":{{\"message\":\"{secret} is spent\"}}}}")]),
        events(&[&adds(&long)]),
        events(&["{\"choices\":[]}", "{}"]),
    ]) {
        let seller = seller_of(&saying(answer.clone()).await, secret, 4).await;
        let told = String::from_utf8_lossy(answer.get(..80).unwrap_or(&answer)).into_owned();
        let raw = seller.post("/v1/chat/completions", None, body(json!({}))).await;
        assert_eq!((raw.status, raw.code().as_str()), (500, "engine_failed"), "{told}: {raw:?}");
        assert!(!raw.text.contains(secret), "{told}");
        let status = seller.settled().await;
        assert_eq!((status.total_trades, status.open_holds), (0, 0), "{told}");
    }
    assert!(elsewhere.accept().is_err(), "a redirect was followed");
}

#[tokio::test]
async fn what_a_server_says_of_its_usage_is_nothing_and_more_than_was_asked_is_cut() {
    let lies =
        json!({"choices": [], "usage": {"prompt_tokens": 9_999, "completion_tokens": 9_999}});
    let (lies, much) = (lies.to_string(), adds(&"word ".repeat(2_000)));
    let stop = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}).to_string();
    for (answer, max, tokens, finish) in [
        (events(&[&adds("wo"), &adds("rd wor"), &adds("d "), &lies, "[DONE]"]), 9, 2, "stop"),
        (events(&[&much, &lies, "[DONE]"]), 7, 7, "length"),
        // Some servers mark no end.
        (events(&[&adds("word "), &stop]), 9, 1, "stop"),
    ] {
        let seller = seller_of(&saying(answer).await, "key", 4).await;
        let answer = seller.personal().chat(&ask(max)).await.unwrap();
        assert_eq!(answer.text(), "word ".repeat(tokens));
        assert_eq!(answer.choices[0].finish_reason, finish);
        let usage = answer.usage;
        assert_eq!((usage.prompt_tokens, usage.completion_tokens as usize), (1, tokens));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_costs_what_was_delivered() {
    let breaks = FakeScript { fail_after: Some(2), ..script(5, Duration::ZERO) };
    let (_server, seller) = selling(breaks, None, 4).await;
    let mut stream = seller.personal().chat_stream(&ask(9)).await.unwrap();
    let (mut text, mut code) = (String::new(), None);
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => text.push_str(chunk.text()),
            Err(error) => code = error.code().map(str::to_owned),
        }
    }
    assert_eq!((text.as_str(), code.as_deref()), ("word word ", Some("engine_failed")));
    assert_eq!(seller.settled().await.total_trades, 1);
    let trades = seller.admin.trades(None, None, None).await.unwrap();
    assert_eq!(trades.trades[0].completion_tokens, 2);
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_server_too_and_the_next_gets_its_place() {
    let (server, seller) = selling(script(400, Duration::from_millis(10)), None, 1).await;
    let first = seller.personal().chat_stream(&ask(400)).await.unwrap();
    while server.admin.status().await.unwrap().engine.running == 0 {
        tokio::task::yield_now().await;
    }
    let client = seller.personal();
    let second = tokio::spawn(async move { client.chat(&ask(2)).await });
    while seller.admin.status().await.unwrap().engine.queued == 0 {
        tokio::task::yield_now().await;
    }
    drop(first);
    assert_eq!(second.await.unwrap().unwrap().text(), "word word ");
    let status = server.settled().await;
    assert!(status.engine.completion_tokens_total < 400, "{status:?}");
}

#[tokio::test]
async fn what_such_servers_do_not_have_in_common_is_refused_for_nothing() {
    let (server, seller) = selling(script(5, Duration::ZERO), None, 4).await;
    let function = json!({"name": "f", "parameters": {"type": "object"}});
    for more in [
        json!({"logprobs": true, "top_logprobs": 2}),
        json!({"logit_bias": {"5": 1}}),
        json!({"tools": [{"type": "function", "function": function}]}),
    ] {
        let raw = seller.post("/v1/chat/completions", None, body(more)).await;
        assert_eq!(raw.status, 400, "{raw:?}");
    }
    let raw = seller.post(
        "/v1/chat/completions",
        None,
        body(json!({
            "response_format": {"type": "json_object"},
        })),
    );
    assert_eq!(raw.await.status, 200);
    assert_eq!(seller.settled().await.total_trades, 1);
    assert_eq!(server.settled().await.total_trades, 1);
}

fn body(more: serde_json::Value) -> String {
    let mut fields = json!({"model": "sold", "messages": [{"role": "user", "content": "hi"}]});
    let all = fields.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    fields.to_string()
}
