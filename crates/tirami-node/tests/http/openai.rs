//! An engine that is a server elsewhere: here, another node with a scripted engine, or whoever
//! listens there and means no good.

mod refusals;
mod texts;
mod turns;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tirami_core::{ModelDigest, ModelShape};
use tirami_infer::engine::{Conversation, Engine, ModelInfo, PrepareError, Prompt, RawPrompt};
use tirami_infer::fake::FakeScript;
use tirami_infer::vocabulary::Vocabulary;
use tirami_node::models::{Models, OpenAiEngine, Server};
use tirami_sdk::types::{ChatRequest, Limits, Scope};
use tirami_sdk::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::support::{TestNode, chat, saying as says, script};
use crate::tools::put_together;

/// A vocabulary whose tokens are words with the blank after them.
struct Words(ModelInfo);

fn words() -> Arc<Words> {
    words_of("sold", 7)
}

fn words_of(name: &str, digest: u8) -> Arc<Words> {
    Arc::new(Words(ModelInfo {
        name: name.to_owned(),
        digest: ModelDigest::from_bytes([digest; 32]),
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

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        Ok(Prompt::from(match raw {
            RawPrompt::Text(text) => self.tokenize(text)?,
            RawPrompt::Tokens(tokens) => tokens.clone(),
            RawPrompt::Infill { .. } => Vec::new(),
        }))
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        let id = |word: &str| u32::try_from(word.len()).unwrap();
        Ok(text.split_inclusive(' ').map(id).collect())
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        vec![b'x'; token as usize]
    }

    fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        Some(self.token_bytes(token))
    }

    fn begin_token(&self) -> Option<u32> {
        None
    }
}

/// A node, and one that sells its answers.
async fn selling(script: FakeScript, key: Option<&str>, places: u32) -> (TestNode, TestNode) {
    let server = TestNode::start(script).await;
    let seller = seller_for(&server, key, places).await;
    (server, seller)
}

async fn seller_for(server: &TestNode, key: Option<&str>, places: u32) -> TestNode {
    let buyer = server.agent("buyer", "100").await;
    let own = server.key(Scope::Inference, Some(&buyer.did), Limits::default()).await;
    seller_of(&server.url, key.unwrap_or(&own.key), places).await
}

async fn seller_of(url: &str, key: &str, places: u32) -> TestNode {
    patient_seller(url, key, (places, Duration::from_secs(300))).await
}

async fn patient_seller(url: &str, key: &str, (places, first): (u32, Duration)) -> TestNode {
    let upstream = Upstream::new(&format!("{url}/v1"), Some(key)).unwrap();
    let engine = OpenAiEngine::new(words(), Server::new(upstream, places, first), "fake");
    TestNode::serving(Models::from_iter([Arc::new(engine) as Arc<dyn Engine>])).await
}

/// A server that answers one request with these bytes, whatever is asked, and hangs up.
async fn saying(answer: Vec<u8>) -> String {
    hearing(answer).await.0
}

/// The same, and what it was asked.
async fn hearing(answer: Vec<u8>) -> (String, oneshot::Receiver<Value>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (heard, asked) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Not every test asks.
        let _ = heard.send(request(&mut stream).await);
        give(&mut stream, &answer).await;
    });
    (url, asked)
}

/// The body of the request that comes.
async fn request(stream: &mut TcpStream) -> Value {
    let (mut head, mut some) = (Vec::new(), [0; 4_096]);
    loop {
        let read = stream.read(&mut some).await.unwrap();
        assert!(read > 0, "it hung up");
        head.extend_from_slice(some.get(..read).unwrap());
        let text = String::from_utf8_lossy(&head);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
        if let Some(body) = body.and_then(|body| serde_json::from_str(body).ok()) {
            return body;
        }
    }
}

/// Answers, and hangs up.
async fn give(stream: &mut TcpStream, answer: &[u8]) {
    // Who has heard enough hangs up first.
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
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
    assert_eq!((raw.status, raw.code().as_str()), (500, "engine_misconfigured"), "{raw:?}");
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
    let failed = (500, "engine_failed");
    let (unreachable, broke_off) = ((503, "engine_unreachable"), (502, "engine_broke_off"));
    for (answer, expected) in [
        (format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {there}\r\n{empty}"), failed),
        (format!("HTTP/1.1 302 Found\r\nlocation: {there}\r\n{empty}"), failed),
        (
            format!("HTTP/1.1 401 Unauthorized\r\nconnection: close\r\n\r\nnobody knows {secret}"),
            (500, "engine_misconfigured"),
        ),
        (format!("HTTP/1.1 500 Oh\r\nconnection: close\r\n\r\n{long}"), failed),
        (format!("HTTP/1.1 200 OK\r\nx: {long}\r\n{empty}"), unreachable),
        (format!("HTTP/1.1 200 OK\r\n{empty}"), broke_off),
        (format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>{long}"), failed),
        ("SSH-2.0-OpenSSH_9.6\r\n".to_owned(), unreachable),
        (String::new(), unreachable),
    ]
    .map(|(answer, expected)| (answer.into_bytes(), expected))
    .into_iter()
    .chain([
        (events(&["no json"]), failed),
        (events(&[&format!("{{\"error\":{{\"message\":\"{secret} is spent\"}}}}")]), broke_off),
        (events(&[&adds(&long)]), failed),
        (events(&["{\"choices\":[]}", "{}"]), broke_off),
    ]) {
        let seller = seller_of(&saying(answer.clone()).await, secret, 4).await;
        let told = String::from_utf8_lossy(answer.get(..80).unwrap_or(&answer)).into_owned();
        let raw = seller.post("/v1/chat/completions", None, body(json!({}))).await;
        assert_eq!((raw.status, raw.code().as_str()), expected, "{told}: {raw:?}");
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
    assert_eq!((text.as_str(), code.as_deref()), ("word word ", Some("engine_broke_off")));
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
async fn what_still_fits_is_handed_over_and_what_a_server_does_not_say_is_no_cut() {
    let stop = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}).to_string();
    // The last word is longer than its first piece, and there is room for two words.
    for (pieces, text, finish) in [
        (vec!["one tw", "o "], "one two ", "stop"),
        (vec!["one tw", "o three"], "one two ", "length"),
    ] {
        let mut said: Vec<String> = pieces.into_iter().map(adds).collect();
        said.extend([stop.clone(), "[DONE]".to_owned()]);
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        let seller = seller_of(&saying(events(&said)).await, "key", 4).await;
        let answer = seller.personal().chat(&ask(2)).await.unwrap();
        assert_eq!((answer.text().len(), answer.choices[0].finish_reason.as_str()), (8, finish));
        assert_eq!((answer.text().as_str(), answer.usage.completion_tokens), (text, 2));
    }
}

#[tokio::test]
async fn a_server_is_asked_for_no_number_of_tokens_that_it_may_refuse_by_its_own_count() {
    for (max_tokens, told) in [(json!(5), json!(5)), (json!(null), json!(null))] {
        let (url, asked) = hearing(events(&[&adds("word "), "[DONE]"])).await;
        let seller = seller_of(&url, "key", 4).await;
        let raw =
            seller.post("/v1/chat/completions", None, body(json!({"max_tokens": max_tokens})));
        assert_eq!(raw.await.status, 200);
        assert_eq!(asked.await.unwrap()["max_tokens"], told);
    }
}

#[tokio::test]
async fn the_server_is_told_the_variables_of_its_template_as_they_came() {
    let variables = json!({"enable_thinking": false, "z": {"b": [1, null], "a": "x"}});
    for (more, told) in [
        (json!({"chat_template_kwargs": variables}), variables.clone()),
        // What its template reads is not known here.
        (json!({"reasoning_effort": "none", "thinking": {"type": "disabled"}}), Value::Null),
    ] {
        let (url, asked) = hearing(events(&[&adds("word "), "[DONE]"])).await;
        let seller = seller_of(&url, "key", 4).await;
        let raw = seller.post("/v1/chat/completions", None, body(more)).await;
        assert_eq!(raw.status, 200, "{raw:?}");
        let asked = asked.await.unwrap();
        assert_eq!(asked["chat_template_kwargs"], told);
        assert_eq!(asked["reasoning_effort"], Value::Null);
    }
}

#[tokio::test]
async fn what_a_model_thinks_is_part_of_its_answer_and_a_sign_of_life() {
    // Some servers have both words, one of them empty.
    let thinks = |word: &str, text: &str| {
        let delta = json!({"reasoning_content": "", word: text});
        json!({"choices": [{"delta": delta}]}).to_string()
    };
    for word in ["reasoning", "reasoning_content"] {
        let (one, more) = (thinks(word, "Hm "), thinks(word, "so "));
        let said = events(&[&one, &more, &adds("word "), &adds("word "), "[DONE]"]);
        let seller = seller_of(&saying(said).await, "key", 4).await;
        let answer = seller.personal().chat(&ask(50)).await.unwrap();
        assert_eq!(answer.text(), "<think>\nHm so \n</think>\n\nword word ");
        // One that has to be JSON has no room for it.
        let said = events(&[&one, &adds("{}"), "[DONE]"]);
        let seller = seller_of(&saying(said).await, "key", 4).await;
        let json = body(json!({"response_format": {"type": "json_object"}, "max_tokens": 50}));
        let raw = seller.post("/v1/chat/completions", None, json).await;
        assert_eq!(raw.json()["choices"][0]["message"]["content"], "{}", "{raw:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_full_is_asked_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let full = "HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-length: 0\r\n\
                    connection: close\r\n\r\n";
        for answer in [full.as_bytes().to_vec(), events(&[&adds("word "), "[DONE]"])] {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The request is small: what comes first is all of it.
            let read = stream.read(&mut [0; 16_384]).await.unwrap();
            assert!(read > 0);
            stream.write_all(&answer).await.unwrap();
        }
    });
    let seller = seller_of(&url, "key", 4).await;
    let began = std::time::Instant::now();
    let answer = seller.personal().chat(&ask(9)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2), "it is left alone for as long as it says");
    assert_eq!((answer.text().as_str(), seller.settled().await.total_trades), ("word ", 1));
}

#[tokio::test]
async fn the_models_of_one_server_share_its_places() {
    let server = TestNode::start(script(1_000, Duration::from_millis(20))).await;
    let buyer = server.agent("buyer", "100").await;
    let key = server.key(Scope::Inference, Some(&buyer.did), Limits::default()).await.key;
    let upstream = Upstream::new(&format!("{}/v1", server.url), Some(&key)).unwrap();
    let one_place = Server::new(upstream, 1, Duration::from_secs(300));
    let engines = [words_of("sold", 7), words_of("other", 8)].map(|words| {
        Arc::new(OpenAiEngine::new(words, one_place.clone(), "fake")) as Arc<dyn Engine>
    });
    let seller = TestNode::serving(Models::from_iter(engines)).await;
    let mut running = seller.personal().chat_stream(&ask(1_000)).await.unwrap();
    running.next().await.unwrap().unwrap();
    let waits = body(json!({"model": "other", "timeout_ms": 300}));
    let raw = seller.post("/v1/chat/completions", None, waits).await;
    assert_eq!((raw.status, raw.code().as_str()), (504, "deadline_exceeded"), "{raw:?}");
    // Its queue is one too: four may wait for its place, whatever their model is.
    let client = seller.personal();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.chat(&ask(1)).await })
        })
        .collect();
    while seller.admin.status().await.unwrap().engine.queued < 4 {
        tokio::task::yield_now().await;
    }
    let one_more = seller.post("/v1/chat/completions", None, body(json!({"model": "other"})));
    let raw = one_more.await;
    assert_eq!((raw.status, raw.code().as_str()), (429, "engine_busy"), "{raw:?}");
    for one in waiting {
        one.abort();
    }
    drop(running);
    let answered = body(json!({"model": "other", "max_tokens": 2}));
    let raw = seller.post("/v1/chat/completions", None, answered).await;
    assert_eq!(raw.status, 200, "{raw:?}");
    let reason = raw.json()["x_tirami"]["route"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("a server elsewhere computes the model"), "{raw:?}");
}

#[tokio::test]
async fn what_such_servers_do_not_have_in_common_is_refused_for_nothing() {
    let (server, seller) = selling(script(5, Duration::ZERO), None, 4).await;
    for more in [json!({"logprobs": true, "top_logprobs": 2}), json!({"logit_bias": {"5": 1}})] {
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

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

/// What the server does with a call of `f` that has these arguments.
fn calls(name: &str, arguments: &[&str]) -> Vec<u8> {
    let delta = |function: Value| {
        let call = json!({"index": 0, "id": "x", "type": "function", "function": function});
        json!({"choices": [{"delta": {"content": null, "tool_calls": [call]}}]}).to_string()
    };
    let mut all = vec![delta(json!({"name": name, "arguments": ""}))];
    all.extend(arguments.iter().map(|text| delta(json!({"arguments": text}))));
    all.push(json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}).to_string());
    all.push("[DONE]".to_owned());
    events(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

#[tokio::test]
async fn its_calls_of_tools_are_passed_on_whole_and_streamed_and_counted_as_text() {
    const SAID: &str = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                        {\"city\": \"K\u{f6}ln \\\"}\\\"\", \"days\": [1, 2]}}\n</tool_call>\n\
                        <tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>";
    let server = TestNode::within(says(SAID), |_| ()).await;
    let seller = seller_for(&server, None, 4).await;
    let tools = json!({"tools": [tool("weather"), tool("now")], "max_tokens": 200});
    let whole = seller.post("/v1/chat/completions", None, body(tools.clone())).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["content"], "Let me see.");
    let functions = |calls: &Value| {
        let calls = calls.as_array().unwrap().iter();
        calls.map(|call| call["function"].clone()).collect::<Vec<_>>()
    };
    let wanted = [
        json!({"name": "weather", "arguments": "{\"city\": \"K\u{f6}ln \\\"}\\\"\", \"days\": [1, 2]}"}),
        json!({"name": "now", "arguments": "{}"}),
    ];
    assert_eq!(functions(&choice["message"]["tool_calls"]), wanted);
    let mut streamed = tools;
    streamed["stream"] = json!(true);
    let streamed = seller.post("/v1/chat/completions", None, body(streamed)).await;
    let (text, calls, finish) = put_together(&streamed.text).remove(0);
    assert_eq!((text.as_str(), finish.as_str()), ("Let me see.", "tool_calls"));
    assert_eq!(functions(&json!(calls)), wanted);
    let status = seller.settled().await;
    assert_eq!((status.total_trades, server.settled().await.total_trades), (2, 2));
    let trades = seller.admin.trades(None, None, None).await.unwrap().trades;
    assert_eq!(trades[0].completion_tokens, trades[1].completion_tokens);
    assert!(trades[0].completion_tokens > 10, "{trades:?}");
}

#[tokio::test]
async fn the_server_is_told_the_tools_the_calls_before_and_which_one_is_wanted() {
    let (url, asked) = hearing(calls("f", &["{\"a\"", ": 1}"])).await;
    let seller = seller_of(&url, "key", 4).await;
    let called = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
    let request = json!({
        "max_tokens": 99,
        "tools": [tool("f"), tool("g")],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": false,
        "messages": [
            {"role": "user", "name": "Ann", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [called("1", "f"), called("2", "g")]},
            {"role": "tool", "tool_call_id": "2", "content": "two"},
            {"role": "tool", "tool_call_id": "1", "content": "one"},
        ],
    });
    let answer = seller.post("/v1/chat/completions", None, body(request)).await.json();
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(*call, json!({"name": "f", "arguments": "{\"a\": 1}"}), "{answer}");
    let asked = asked.await.unwrap();
    assert_eq!(asked["tool_choice"], json!({"type": "function", "function": {"name": "f"}}));
    assert_eq!(asked["parallel_tool_calls"], false);
    // What a server would do by itself is not left to it.
    for (field, value) in [("top_p", json!(1.0)), ("min_p", json!(0.0)), ("top_k", json!(1 << 20))]
    {
        assert_eq!(asked[field], value, "{field}");
    }
    let names: Vec<&Value> =
        asked["tools"].as_array().unwrap().iter().map(|tool| &tool["function"]["name"]).collect();
    assert_eq!(names, ["f", "g"]);
    let messages = &asked["messages"];
    assert_eq!((&messages[0]["name"], messages[1].get("name")), (&json!("Ann"), None));
    for (of, result, content) in [(0, 2, "one"), (1, 3, "two")] {
        let id = &messages[1]["tool_calls"][of]["id"];
        assert_eq!(
            (&messages[result]["tool_call_id"], &messages[result]["content"]),
            (id, &json!(content)),
            "{messages}"
        );
    }
}

#[tokio::test]
async fn the_server_is_told_only_the_tools_that_are_allowed() {
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    for (mode, allowed) in [("auto", vec!["g"]), ("required", vec!["f", "g"])] {
        let (url, asked) = hearing(calls("g", &["{}"])).await;
        let seller = seller_of(&url, "key", 4).await;
        let tools: Vec<Value> = allowed.iter().copied().map(named).collect();
        let choice = json!({"type": "allowed_tools",
                            "allowed_tools": {"mode": mode, "tools": tools}});
        let request = json!({"max_tokens": 99, "tools": [tool("e"), tool("f"), tool("g")],
                             "tool_choice": choice});
        let raw = seller.post("/v1/chat/completions", None, body(request)).await;
        assert_eq!(raw.status, 200, "{raw:?}");
        let asked = asked.await.unwrap();
        assert_eq!(asked["tool_choice"], mode, "{asked}");
        let told = asked["tools"].as_array().unwrap();
        let told: Vec<&Value> = told.iter().map(|tool| &tool["function"]["name"]).collect();
        assert_eq!(told, allowed);
    }
}

#[tokio::test]
async fn a_call_that_cannot_be_made_is_an_error_and_no_charge() {
    for (answer, more) in [
        (calls("f", &["{\"a\": "]), json!({})),
        (calls("f", &["[1]"]), json!({})),
        (calls("g", &["{}"]), json!({})),
        (events(&[&adds("Well. "), "[DONE]"]), json!({"tool_choice": "required"})),
    ] {
        let told = String::from_utf8_lossy(&answer).into_owned();
        let seller = seller_of(&saying(answer).await, "key", 4).await;
        let mut request = json!({"tools": [tool("f")], "max_tokens": 99});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let raw = seller.post("/v1/chat/completions", None, body(request)).await;
        assert_eq!((raw.status, raw.code().as_str()), (500, "engine_failed"), "{told}: {raw:?}");
        let status = seller.settled().await;
        assert_eq!((status.total_trades, status.open_holds), (0, 0), "{told}");
    }
}

#[tokio::test]
async fn stop_texts_end_its_answers_here_and_which_one_it_was_is_told() {
    let stop = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}).to_string();
    let answer = || events(&[&adds("one two th"), &adds("ree four "), &stop, "[DONE]"]);
    let seller = seller_of(&saying(answer()).await, "key", 4).await;
    let whole = seller.post("/v1/chat/completions", None, body(json!({"stop": ["six", "three"]})));
    let whole = whole.await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "one two ", "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"]["completion_tokens"], 2);
    let seller = seller_of(&saying(answer()).await, "key", 4).await;
    let ask = json!({
        "model": "sold", "max_tokens": 9, "stop_sequences": ["six", "three"],
        "messages": [{"role": "user", "content": "hi"}],
    });
    let whole = seller.post("/v1/messages", None, ask.to_string()).await.json();
    assert_eq!(
        (&whole["stop_reason"], &whole["stop_sequence"]),
        (&json!("stop_sequence"), &json!("three")),
        "{whole}"
    );
}

#[tokio::test]
async fn an_answer_that_just_fits_has_ended_and_one_that_was_broken_off_has_failed() {
    let ends = |word: &str| json!({"choices": [{"delta": {}, "finish_reason": word}]}).to_string();
    let said = adds("one two ");
    let answer = events(&[&said, &ends("stop"), "[DONE]"]);
    let seller = seller_of(&saying(answer).await, "key", 4).await;
    let whole = seller.personal().chat(&ask(2)).await.unwrap();
    assert_eq!(whole.text(), "one two ");
    assert_eq!(whole.choices[0].finish_reason, "stop");
    let answer = events(&[&said, &ends("abort"), "[DONE]"]);
    let seller = seller_of(&saying(answer).await, "key", 4).await;
    let raw = seller.post("/v1/chat/completions", None, body(json!({"stream": true}))).await;
    assert!(raw.text.contains("engine_broke_off"), "{raw:?}");
    assert_eq!(seller.settled().await.total_trades, 1, "what was delivered is paid");
}

#[tokio::test]
async fn what_there_is_room_for_is_handed_over_whatever_comes_after_it() {
    // A call that is much longer than the room, in one piece with a text before it.
    let function = json!({"name": "f", "arguments": format!("{{\"a\": \"{}", "x".repeat(400))});
    let call = json!({"index": 0, "id": "x", "type": "function", "function": function});
    let piece = json!({"choices": [{"delta": {"content": "Well. ", "tool_calls": [call]}}]});
    let seller = seller_of(&saying(events(&[&piece.to_string()])).await, "key", 4).await;
    let more = json!({"tools": [tool("f")], "max_tokens": 2});
    let whole = seller.post("/v1/chat/completions", None, body(more)).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length", "{whole}");
    assert!(choice["message"]["content"].as_str().unwrap().starts_with("Well."), "{whole}");
    // A stop text beyond the room has ended nothing.
    let answer = events(&[&adds("one two six "), "[DONE]"]);
    let seller = seller_of(&saying(answer).await, "key", 4).await;
    let ask = json!({
        "model": "sold", "max_tokens": 1, "stop_sequences": ["six"],
        "messages": [{"role": "user", "content": "hi"}],
    });
    let whole = seller.post("/v1/messages", None, ask.to_string()).await.json();
    assert_eq!(whole["stop_reason"], "max_tokens", "{whole}");
    assert_eq!(whole["stop_sequence"], Value::Null, "{whole}");
}

#[tokio::test]
async fn its_tokens_are_spelled_with_the_models_own_vocabulary() {
    let seller = seller_of("http://127.0.0.1:9", "key", 4).await;
    let ask = json!({"model": "sold", "tokens": [3, 2]}).to_string();
    let spelled = seller.post("/detokenize", None, ask).await;
    assert_eq!((spelled.status, &spelled.json()["content"]), (200, &json!("xxxxx")), "{spelled:?}");
}

/// A server that sends this after its head and then nothing, and never hangs up.
async fn standing_still(after: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let said = format!("{head}{after}");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut rest, mut some) = (Vec::new(), [0; 4_096]);
        while !rest.ends_with(b"}") {
            let read = stream.read(&mut some).await.unwrap();
            rest.extend_from_slice(some.get(..read).unwrap());
        }
        stream.write_all(said.as_bytes()).await.unwrap();
        // Until the other side leaves.
        while stream.read(&mut some).await.is_ok_and(|read| read > 0) {}
    });
    url
}

#[tokio::test]
async fn a_server_that_stands_still_has_failed_and_only_what_it_said_is_paid() {
    for (said, words) in [("", 0), ("data: {\"choices\": []}\n\n", 0), ("text", 1)] {
        let said = if words > 0 { format!("data: {}\n\n", adds("word ")) } else { said.to_owned() };
        let url = standing_still(&said).await;
        let seller = patient_seller(&url, "key", (4, Duration::from_secs(2))).await;
        let raw = seller.post("/v1/chat/completions", None, body(json!({"stream": true}))).await;
        assert!(raw.text.contains("engine_slow"), "{raw:?}");
        assert_eq!(raw.text.matches("word ").count(), words, "{raw:?}");
        let status = seller.settled().await;
        assert_eq!((status.total_trades as usize, status.open_holds), (words, 0));
    }
}

fn body(more: serde_json::Value) -> String {
    let mut fields = json!({"model": "sold", "messages": [{"role": "user", "content": "hi"}]});
    let all = fields.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    fields.to_string()
}
