//! Texts that a server elsewhere goes on with as they stand, and the vectors that it makes of them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tirami_core::ModelShape;
use tirami_infer::engine::{Conversation, Engine, ModelInfo, PrepareError, Prompt, RawPrompt};
use tirami_infer::fake::FakeEngine;
use tirami_infer::vocabulary::{ByteVocabulary, ToldModel, Vocabulary};
use tirami_node::models::{Models, OPENAI_BUILD, OpenAiEngine, Server, Serves};
use tirami_sdk::types::{Limits, Scope};
use tirami_sdk::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::refusals::{always, refuses};
use super::{Words, events, hearing, saying, standing_still};
use crate::support::{Raw, TestNode, script};

const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const CHATS: &str = "/v1/chat/completions";
/// Numbers in a vector of the scripted engine.
const WIDTH: u32 = 8;
/// Long enough for a full server to be asked again.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
const ALL: Serves = Serves { chat: true, completions: true, embeddings: Some(WIDTH) };

async fn seller_with(
    (url, key): (&str, &str),
    words: Arc<dyn Vocabulary>,
    serves: Serves,
) -> TestNode {
    let upstream = Upstream::new(&format!("{url}/v1"), Some(key)).unwrap();
    let server = Server::new(upstream, 4, FIRST_WITHIN);
    let engine = OpenAiEngine::new(words, server, "fake").serving(serves);
    TestNode::serving(Models::from_iter([Arc::new(engine) as Arc<dyn Engine>])).await
}

async fn seller_at(url: &str, serves: Serves) -> TestNode {
    seller_with((url, "key"), words(), serves).await
}

/// A node, and one that sells its answers and its vectors.
async fn selling() -> (TestNode, TestNode) {
    let server = TestNode::start(script(5, Duration::ZERO)).await;
    let buyer = server.agent("buyer", "100").await;
    let key = server.key(Scope::Inference, Some(&buyer.did), Limits::default()).await.key;
    let seller = seller_with((server.url.as_str(), key.as_str()), words(), ALL).await;
    (server, seller)
}

fn words() -> Arc<dyn Vocabulary> {
    super::words()
}

/// The words of a model whose file is nowhere.
fn told() -> Arc<dyn Vocabulary> {
    let shape = ModelShape {
        parameters_active: 1_000_000,
        layers: 0,
        attention_width: 0,
        context_max: 4_096,
    };
    let (name, upstream) = ("sold".to_owned(), "fake".to_owned());
    Arc::new(ByteVocabulary::new(ToldModel { name, upstream, shape }, OPENAI_BUILD))
}

/// The same words with a token before every text, which a text may spell itself.
struct Begun(Arc<Words>);

const BEGIN: u32 = 1_000;
const SPELLED: &str = "<s>";

impl Vocabulary for Begun {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.0.prepare(conversation)
    }

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        let RawPrompt::Text(text) = raw else { return self.0.prepare_raw(raw) };
        let rest = self.tokenize(text.strip_prefix(SPELLED).unwrap_or(text))?;
        Ok(Prompt::from([vec![BEGIN], rest].concat()))
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        self.0.tokenize(text)
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.0.token_bytes(token)
    }

    fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        if token == BEGIN { Some(SPELLED.into()) } else { self.0.spelling(token) }
    }

    fn begin_token(&self) -> Option<u32> {
        Some(BEGIN)
    }
}

fn with(fields: Value, more: Value) -> Value {
    let mut fields = fields;
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fields
}

async fn complete(seller: &TestNode, more: Value) -> Raw {
    let body = with(json!({"model": "sold", "max_tokens": 9}), more);
    seller.post(COMPLETIONS, None, body.to_string()).await
}

async fn embed(seller: &TestNode, more: Value) -> Raw {
    let body = with(json!({"model": "sold"}), more);
    seller.post(EMBEDDINGS, None, body.to_string()).await
}

/// A piece of a text that goes on.
fn adds_text(text: &str) -> String {
    json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]}).to_string()
}

fn vectors(vectors: &[Value]) -> Value {
    let each = |(index, vector): (usize, &Value)| json!({"index": index, "embedding": vector});
    json!({"object": "list", "data": vectors.iter().enumerate().map(each).collect::<Vec<_>>()})
}

fn answer(body: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    format!("{head}{body}").into_bytes()
}

fn numbers(answer: &Value) -> Vec<Vec<f64>> {
    let of = |one: &Value| {
        let vector = one["embedding"].as_array().unwrap();
        vector.iter().map(|number| number.as_f64().unwrap()).collect()
    };
    answer["data"].as_array().unwrap_or_else(|| panic!("{answer}")).iter().map(of).collect()
}

async fn cost_nothing(seller: &TestNode, told: &Raw) {
    let status = seller.settled().await;
    assert_eq!((status.total_trades, status.open_holds), (0, 0), "{told:?}");
}

#[tokio::test]
async fn a_text_is_gone_on_with_and_counted_here_and_charged_by_both() {
    let (server, seller) = selling().await;
    for (max, tokens, finish) in [(9, 5, "stop"), (3, 3, "length")] {
        let more = json!({"prompt": "one two ", "max_tokens": max, "echo": true});
        let whole = complete(&seller, more.clone()).await.json();
        let choice = &whole["choices"][0];
        let text = format!("one two {}", "word ".repeat(tokens));
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!(finish)));
        let usage = &whole["usage"];
        assert_eq!(usage["prompt_tokens"], 2, "{whole}");
        assert_eq!(usage["completion_tokens"], tokens, "{whole}");
        let trade = whole["x_tirami"]["trade_id"].as_str().unwrap();
        let trade = seller.admin.trade(trade).await.unwrap();
        assert!(trade.verified, "{trade:?}");
        let streamed = complete(&seller, with(more, json!({"stream": true}))).await;
        assert_eq!(streamed.text.matches("word ").count(), tokens, "{streamed:?}");
        assert!(streamed.text.contains("data: [DONE]"), "{streamed:?}");
    }
    assert_eq!(server.settled().await.total_trades, 4);
    assert_eq!(seller.settled().await.total_trades, 4);
}

#[tokio::test]
async fn the_server_is_told_the_text_and_how_to_go_on_and_stops_end_it_here() {
    let (url, asked) =
        hearing(events(&[&adds_text("one two th"), &adds_text("ree four "), "[DONE]"])).await;
    let seller = seller_at(&url, Serves::default()).await;
    // A token of this vocabulary is a word, and its letters are all the same.
    let more = json!({"prompt": [4], "stop": "three", "seed": 7, "temperature": 0.5});
    let whole = complete(&seller, more).await.json();
    assert_eq!(whole["choices"][0]["text"], "one two ", "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let usage = &whole["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(1), &json!(2)));
    let asked = asked.await.unwrap();
    for (field, value) in [
        ("model", json!("fake")),
        ("prompt", json!("xxxx")),
        ("max_tokens", json!(9)),
        ("seed", json!(7)),
        ("temperature", json!(0.5)),
        ("top_p", json!(1.0)),
        ("stream", json!(true)),
        ("messages", Value::Null),
        ("stop", Value::Null),
    ] {
        assert_eq!(asked[field], value, "{field}: {asked}");
    }
}

#[tokio::test]
async fn a_begin_token_that_a_text_spells_is_left_to_the_server() {
    for (prompt, told) in [
        ("<s>one two ", "one two "),
        ("one two ", "one two "),
        ("one <s>two ", "one <s>two "),
        ("<s><s>one two ", "<s>one two "),
    ] {
        let (url, asked) = hearing(events(&[&adds_text("three "), "[DONE]"])).await;
        let words = Arc::new(Begun(super::words()));
        let seller = seller_with((url.as_str(), "key"), words, Serves::default()).await;
        let whole = complete(&seller, json!({"prompt": prompt})).await.json();
        assert_eq!(whole["usage"]["prompt_tokens"], 3, "{prompt}: {whole}");
        assert_eq!(asked.await.unwrap()["prompt"], told);
    }
}

#[tokio::test]
async fn what_such_a_server_cannot_do_with_a_text_is_refused_for_nothing() {
    let nobody = "http://127.0.0.1:9";
    let unsupported = "unsupported_parameter";
    let chats = Serves { completions: false, ..Serves::default() };
    for (words, serves, more, code, param) in [
        (words(), ALL, json!({"suffix": "b"}), unsupported, "suffix"),
        (words(), ALL, json!({"logprobs": 2}), unsupported, "logprobs"),
        (
            words(),
            ALL,
            json!({"response_format": {"type": "json_object"}}),
            unsupported,
            "response_format",
        ),
        // The text of these two tokens is one word.
        (words(), ALL, json!({"prompt": [4, 3]}), unsupported, "prompt"),
        (told(), ALL, json!({"prompt": [4]}), unsupported, "prompt"),
        (words(), chats, json!({}), unsupported, "prompt"),
        (told(), ALL, json!({"prompt": ""}), "invalid_value", "prompt"),
    ] {
        let seller = seller_with((nobody, "key"), words, serves).await;
        let raw = complete(&seller, with(json!({"prompt": "a "}), more.clone())).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, code), "{more}: {raw:?}");
        let told = raw.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        assert_eq!(told, param, "{more}: {raw:?}");
        let is_empty = raw.text.contains("the prompt is empty");
        assert_eq!(is_empty, more["prompt"] == "", "{more}: {raw:?}");
        cost_nothing(&seller, &raw).await;
    }
}

#[tokio::test]
async fn what_a_server_is_not_asked_for_is_refused_and_not_shown() {
    let only = Serves { chat: false, completions: false, embeddings: Some(WIDTH) };
    for (serves, capabilities, width) in [
        (Serves::default(), json!(["chat", "tools", "tokenize"]), 0),
        (ALL, json!(["chat", "tools", "embeddings", "tokenize"]), WIDTH),
        (only, json!(["embeddings", "tokenize"]), WIDTH),
    ] {
        let seller = seller_at("http://127.0.0.1:9", serves).await;
        let model = seller.admin.models().await.unwrap().data.remove(0).x_tirami;
        assert_eq!((json!(model.capabilities), model.embedding_width), (capabilities, width));
        if !serves.chat {
            let chat = super::body(json!({}));
            let raw = seller.post("/v1/chat/completions", None, chat).await;
            assert_eq!((raw.status, raw.code().as_str()), (400, "unsupported_parameter"));
            cost_nothing(&seller, &raw).await;
        }
        if serves.embeddings.is_none() {
            let raw = embed(&seller, json!({"input": "a "})).await;
            assert_eq!((raw.status, raw.code().as_str()), (400, "unsupported_parameter"));
            cost_nothing(&seller, &raw).await;
        }
    }
}

#[tokio::test]
async fn its_vectors_are_those_of_the_server_and_are_counted_here_and_charged_by_both() {
    let (server, seller) = selling().await;
    // More than a server is asked for at a time.
    let texts: Vec<String> = (0..40).map(|n| format!("text {n}")).collect();
    let sold = embed(&seller, json!({"input": texts})).await.json();
    assert_eq!(sold["usage"], json!({"prompt_tokens": 80, "total_tokens": 80}), "{sold}");
    assert_eq!(sold["x_tirami"]["flops"], 2 * 2_000_000 * 80, "{sold}");
    assert_eq!(server.settled().await.total_trades, 2);
    let own = json!({"model": "fake", "input": texts}).to_string();
    let own = numbers(&server.post(EMBEDDINGS, None, own).await.json());
    let sold = numbers(&sold);
    assert_eq!((sold.len(), own.len()), (40, 40));
    let mut both = sold.iter().flatten().zip(own.iter().flatten());
    assert!(both.all(|(sold, own)| (sold - own).abs() < 1e-6));
    let short = embed(&seller, json!({"input": "text 0", "dimensions": 3})).await.json();
    let short = numbers(&short).remove(0);
    let length = short.iter().map(|number| number * number).sum::<f64>();
    assert!(short.len() == 3 && (length - 1.0).abs() < 1e-6, "{short:?}");
    let encoded = embed(&seller, json!({"input": "a ", "encoding_format": "base64"})).await.json();
    assert!(encoded["data"][0]["embedding"].is_string(), "{encoded}");
    assert_eq!(seller.settled().await.total_trades, 3);
}

#[tokio::test]
async fn tokens_are_sent_as_their_text_and_vectors_are_put_in_order_and_brought_to_length_1() {
    let (url, asked) = hearing(answer(
        &json!({"data": [
            {"index": 1, "embedding": [0, 0, 0, 0, 0, 0, 3, 4]},
            {"index": 0, "embedding": [2, 0, 0, 0, 0, 0, 0, 0]},
        ]})
        .to_string(),
    ))
    .await;
    let seller = seller_at(&url, ALL).await;
    let sold = embed(&seller, json!({"input": [[4], [2]]})).await.json();
    assert_eq!(sold["usage"]["prompt_tokens"], 2, "{sold}");
    let vectors = numbers(&sold);
    for (at, place, number) in [(0, 0, 1.0), (1, 6, 0.6), (1, 7, 0.8)] {
        assert!((vectors[at][place] - number).abs() < 1e-6, "{sold}");
    }
    let asked = asked.await.unwrap();
    assert_eq!((&asked["model"], &asked["input"]), (&json!("fake"), &json!(["xxxx", "xx"])));
    // What no text is cut into, and what nobody here can read, is refused before.
    for (words, input) in [(words(), json!([4, 3])), (told(), json!([4]))] {
        let seller = seller_with(("http://127.0.0.1:9", "key"), words, ALL).await;
        let raw = embed(&seller, json!({"input": input})).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, "unsupported_parameter"), "{raw:?}");
        cost_nothing(&seller, &raw).await;
    }
}

#[tokio::test]
async fn what_are_no_vectors_of_the_texts_is_an_error_and_no_charge() {
    let one = json!([1, 0, 0, 0, 0, 0, 0, 0]);
    let zero = json!([0, 0, 0, 0, 0, 0, 0, 0]);
    let huge = json!([1e39, 0, 0, 0, 0, 0, 0, 0]);
    let long = format!("{{\"data\": [{}]}}", " ".repeat(1 << 20));
    for body in [
        vectors(&[]).to_string(),
        vectors(std::slice::from_ref(&one)).to_string(),
        vectors(&[one.clone(), one.clone(), one.clone()]).to_string(),
        vectors(&[one.clone(), json!([1, 0])]).to_string(),
        vectors(&[one.clone(), zero]).to_string(),
        vectors(&[one.clone(), huge]).to_string(),
        vectors(&[one.clone(), json!("AAAA")]).to_string(),
        vectors(&[one.clone(), one]).to_string().replace("0,0,0", "NaN,0,0"),
        json!({"data": [{"index": 0, "embedding": []}, {"index": 0, "embedding": []}]}).to_string(),
        "{\"error\": {\"message\": \"out of memory\"}}".to_owned(),
        "{\"data\": [".to_owned(),
        long,
    ] {
        let seller = seller_at(&saying(answer(&body)).await, ALL).await;
        let raw = embed(&seller, json!({"input": ["a ", "b "]})).await;
        let told = body.get(..80).unwrap_or(&body);
        assert_eq!((raw.status, raw.code().as_str()), (500, "engine_failed"), "{told}: {raw:?}");
        cost_nothing(&seller, &raw).await;
    }
}

#[tokio::test]
async fn the_first_numbers_of_a_vector_that_are_all_0_are_an_error_and_no_charge() {
    let body = vectors(&[json!([0, 0, 0, 0, 0, 0, 3, 4])]).to_string();
    let seller = seller_at(&saying(answer(&body)).await, ALL).await;
    let raw = embed(&seller, json!({"input": "a ", "dimensions": 6})).await;
    assert_eq!((raw.status, raw.code().as_str()), (500, "engine_failed"), "{raw:?}");
    cost_nothing(&seller, &raw).await;
}

#[tokio::test]
async fn who_waits_for_a_server_keeps_nobody_from_the_vectors_of_an_engine_here() {
    let upstream = Upstream::new(&format!("{}/v1", standing_still("").await), None).unwrap();
    let server = Server::new(upstream, 4, Duration::from_secs(300));
    let elsewhere = OpenAiEngine::new(words(), server, "fake").serving(ALL);
    let here = FakeEngine::new(script(1, Duration::ZERO));
    let engines: [Arc<dyn Engine>; 2] = [Arc::new(elsewhere), Arc::new(here)];
    let node = TestNode::serving(Models::from_iter(engines)).await;
    let slow = || embed(&node, json!({"input": "a "}));
    let waiting = async { tokio::join!(slow(), slow(), slow()) };
    let asking = async {
        // More than there are places for engines that read here.
        while node.admin.status().await.unwrap().engine.running < 3 {
            tokio::task::yield_now().await;
        }
        let body = json!({"model": "fake", "input": "a "});
        node.post(EMBEDDINGS, None, body.to_string()).await
    };
    tokio::select! {
        waited = waiting => panic!("{waited:?}"),
        read = asking => assert_eq!(read.status, 200, "{read:?}"),
    }
}

#[tokio::test]
async fn an_endpoint_that_the_server_lacks_is_named_and_its_refusals_are_those_of_chats() {
    for (refused, status, code, words) in [
        (refuses(404, ""), 400, "unsupported", "has no PATH;"),
        (refuses(405, "no"), 400, "unsupported", "has no PATH;"),
        (refuses(501, "no"), 400, "unsupported", "has no PATH;"),
        (refuses(404, "there is no \"fake\""), 404, "model_not_found", "does not have it"),
        (refuses(400, "too long"), 400, "invalid_request", ": too long;"),
        (refuses(401, "key"), 500, "engine_misconfigured", "owner must act"),
        (refuses(429, ""), 429, "engine_busy", "is full"),
        (refuses(502, ""), 503, "engine_unreachable", "cannot be reached"),
        (refuses(500, ""), 500, "engine_failed", "the node's log"),
    ] {
        let seller = seller_at(&always(refused).await, ALL).await;
        for (path, raw) in [
            (COMPLETIONS, complete(&seller, json!({"prompt": "a "})).await),
            (EMBEDDINGS, embed(&seller, json!({"input": "a "})).await),
        ] {
            assert_eq!((raw.status, raw.code().as_str()), (status, code), "{path}: {raw:?}");
            assert!(raw.text.contains(&words.replace("PATH", path)), "{raw:?}");
            cost_nothing(&seller, &raw).await;
        }
    }
}

#[tokio::test]
async fn vectors_that_do_not_come_in_time_are_refused_and_cost_nothing() {
    let seller = seller_at(&standing_still("").await, ALL).await;
    let raw = embed(&seller, json!({"input": "a ", "timeout_ms": 300})).await;
    assert_eq!((raw.status, raw.code().as_str()), (504, "deadline_exceeded"), "{raw:?}");
    cost_nothing(&seller, &raw).await;
    let seller = seller_at(&standing_still("").await, ALL).await;
    let raw = embed(&seller, json!({"input": "a "})).await;
    assert_eq!((raw.status, raw.code().as_str()), (504, "engine_slow"), "{raw:?}");
    cost_nothing(&seller, &raw).await;
}

async fn chats(seller: &TestNode, more: Value) -> Raw {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = with(json!({"model": "sold", "max_tokens": 9, "messages": messages}), more);
    seller.post(CHATS, None, body.to_string()).await
}

#[tokio::test]
async fn a_server_of_a_model_without_its_file_is_told_no_variable_that_may_be_an_order() {
    let url = standing_still("").await;
    let seller = seller_with((url.as_str(), "key"), told(), ALL).await;
    let model = told().model().name.clone();
    for name in ["chat_template", "tokenize", "continue_final_message", "documents", "colour"] {
        let more = json!({"model": model, "chat_template_kwargs": {name: "x"}});
        let raw = chats(&seller, more).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, "unsupported_parameter"), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], format!("chat_template_kwargs.{name}"));
    }
}

#[tokio::test]
async fn thoughts_that_nobody_gets_are_no_sign_of_life_and_no_longer_than_the_answer() {
    let thinks = |text: &str| json!({"choices": [{"delta": {"reasoning": text}}]}).to_string();
    let format = json!({"response_format": {"type": "json_object"}});
    let said = events(&[&thinks(&"hm ".repeat(200)), &super::adds("{}"), "[DONE]"]);
    let seller = seller_at(&saying(said).await, ALL).await;
    let raw = chats(&seller, format.clone()).await;
    assert_eq!(raw.json()["choices"][0]["finish_reason"], "length", "{raw:?}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (begins, thought) = (events(&[]), format!("data: {}\n\n", thinks("h")));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let read = stream.read(&mut [0; 16_384]).await.unwrap();
        assert!(read > 0);
        stream.write_all(&begins).await.unwrap();
        while stream.write_all(thought.as_bytes()).await.is_ok() {
            tokio::time::sleep(FIRST_WITHIN / 10).await;
        }
    });
    let seller = seller_at(&url, ALL).await;
    let raw = chats(&seller, format).await;
    assert_eq!((raw.status, raw.code().as_str()), (504, "engine_slow"), "{raw:?}");
    cost_nothing(&seller, &raw).await;
}
