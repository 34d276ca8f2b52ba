//! A provider whose engine is a server elsewhere: its answers are sold through the mesh like any
//! others.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tirami_core::{ModelShape, Ppm, Trm};
use tirami_infer::engine::{Conversation, Engine, ModelInfo, PrepareError, Prompt, RawPrompt};
use tirami_infer::fake::FakeEngine;
use tirami_infer::vocabulary::{ByteVocabulary, ToldModel, Vocabulary};
use tirami_kernel::scheduler::FAILURE_NEUTRAL_PPM;
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tirami_node::models::{Models, OPENAI_BUILD, OpenAiEngine, Server, Serves};
use tirami_sdk::upstream::Upstream;

use crate::blame::failures;
use crate::engines::{Odd, Trouble, Troubles};
use crate::jobs_support::{Mesh, Stream, TestNode, ask, script, words};
use crate::support::{SOON, on_loopback, until};

/// Answers the server gives at the same time: fewer than a node does by itself.
const PLACES: u32 = 3;

/// The scripted engine's vocabulary, which is its model file's elsewhere.
struct Spelled(FakeEngine);

impl Vocabulary for Spelled {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.0.prepare(conversation)
    }

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        Ok(Prompt::from(match raw {
            RawPrompt::Text(text) => self.tokenize(text)?,
            RawPrompt::Tokens(tokens) => tokens.clone(),
            RawPrompt::Infill { .. } => Vec::new(),
        }))
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        self.0.tokenize(text)
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.0.token_bytes(token).unwrap()
    }

    fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        self.0.spelling(token).unwrap()
    }

    fn begin_token(&self) -> Option<u32> {
        self.0.begin_token()
    }
}

fn fake() -> FakeEngine {
    FakeEngine::new(script(5, Duration::ZERO))
}

/// A node that sells the answers of `server` in a mesh, and one that asks there.
fn sold(server: &TestNode) -> (Mesh, TestNode, TestNode) {
    sold_by(&server.url, Arc::new(Spelled(fake())), Serves::default())
}

/// All that a server may have.
const ALL: Serves = Serves { chat: true, completions: true, embeddings: Some(8) };

fn engine_at(
    url: &str,
    words: Arc<dyn Vocabulary>,
    (serves, first_within): (Serves, Duration),
) -> Arc<dyn Engine> {
    let upstream = Upstream::new(&format!("{url}/v1"), None).unwrap();
    let server = Server::new(upstream, PLACES, first_within);
    Arc::new(OpenAiEngine::new(words, server, "fake").serving(serves))
}

fn sold_by(url: &str, words: Arc<dyn Vocabulary>, serves: Serves) -> (Mesh, TestNode, TestNode) {
    let mesh = Mesh::of(&[]);
    let engine = engine_at(url, words, (serves, Duration::from_secs(30)));
    let seller = mesh.add_serving(Models::from_iter([engine]));
    let user = mesh.add_user();
    until("the offer is known", SOON, || user.knows(seller.party()));
    (mesh, seller, user)
}

#[test]
fn what_a_server_says_at_once_comes_in_frames_that_a_consumer_can_sign_for() {
    let long = "9".repeat(1_500);
    let engine = FakeEngine::new(script(1, Duration::ZERO)).saying(vec![long.clone()]);
    let server = TestNode::start(on_loopback(), Some(Arc::new(engine)));
    let (_mesh, seller, user) = sold(&server);
    let policy = seller.peer.read(|kernel| kernel.ledger().book().serving().clone());
    let much = Trm::from_micro(1_000_000_000);
    let policy = ServingPolicy { exposure_start: much, exposure_max: much, ..policy };
    seller.submit(Actor::Node, Command::SetServing(policy));
    let answer = user.post(&ask(2_000, false));
    assert_eq!(answer["choices"][0]["message"]["content"], long, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 1_500);
    assert_eq!((user.trades().len(), seller.trades().len()), (1, 1));
}

#[test]
fn a_model_whose_file_is_nowhere_is_sold_by_its_shape_and_the_bytes_of_its_text() {
    let server = TestNode::start(on_loopback(), Some(Arc::new(fake())));
    let shape = ModelShape {
        parameters_active: 1_000_000,
        layers: 0,
        attention_width: 0,
        context_max: 4_096,
    };
    let (name, upstream) = ("fake".to_owned(), "fake".to_owned());
    let told = ToldModel { name, upstream, shape };
    let words_of = Arc::new(ByteVocabulary::new(told, OPENAI_BUILD));
    let (_mesh, seller, user) = sold_by(&server.url, words_of, Serves::default());
    let answer = user.post(&ask(100, false));
    assert_eq!(answer["choices"][0]["message"]["content"], words(5), "{answer}");
    let completion = words(5).len().div_ceil(4) as u64;
    assert_eq!(answer["usage"]["completion_tokens"], completion);
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    // Two FLOP for each weight and token, and nothing for attention that nobody told of.
    let owed = shape.work(0, u32::try_from(prompt + completion).unwrap()).cost_ceil(Ppm::ONE);
    let (bought, sold) = (user.trades(), seller.trades());
    assert_eq!((bought.len(), sold.len()), (1, 1));
    let paid: tirami_sdk::Amount = bought[0]["trm_amount"].to_string().parse().unwrap();
    assert_eq!(paid.trm(), owed, "{bought:?}");
    assert_eq!(bought[0]["trm_amount"], sold[0]["trm_amount"]);
    let cut = user.post(&ask(2, false));
    let text = cut["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty() && text.len() <= 8 && words(5).starts_with(text), "{cut}");
    assert_eq!(cut["usage"]["completion_tokens"], text.len().div_ceil(4));
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
}

#[test]
fn what_a_server_cannot_do_is_told_as_the_requests_fault_and_keeps_nobody_else_from_it() {
    let server = TestNode::start(on_loopback(), Some(Arc::new(fake())));
    let (mesh, seller, user) = sold(&server);
    mesh.funded(&seller);
    let mut request = ask(100, false);
    request["logprobs"] = json!(true);
    let unsupported = json!("unsupported_parameter");
    let (status, error) = user.raw(&request);
    assert_eq!((status, &error["error"]["code"]), (400, &unsupported), "{error}");
    assert_eq!(error["error"]["param"], "logprobs", "{error}");
    let answer = user.post(&ask(100, false));
    assert_eq!(answer["x_tirami"]["provider"], seller.party().to_string(), "{answer}");
    // The same as where the seller is asked by itself.
    let (status, error) = seller.raw(&request);
    assert_eq!((status, &error["error"]["code"]), (400, &unsupported), "{error}");
    assert_eq!(error["error"]["param"], "logprobs", "{error}");
    assert_eq!(user.trades().len(), 1);
}

#[test]
fn what_a_server_finds_wrong_with_a_request_that_was_taken_is_told_as_the_requests_fault() {
    let says = script(5, Duration::ZERO);
    let mut info = FakeEngine::new(says.clone()).model().clone();
    // The seller believes that there is more room.
    info.context_tokens = 1;
    let engine = FakeEngine::with_model(says, info);
    let server = TestNode::start(on_loopback(), Some(Arc::new(engine)));
    let (_mesh, seller, user) = sold(&server);
    let (status, error) = user.raw(&ask(100, false));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid_request")), "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("finds the request invalid"), "{message}");
    assert!(failures(&user, seller.party()) <= FAILURE_NEUTRAL_PPM);
    assert!(user.trades().is_empty());
    until("no hold is left", SOON, || user.open_holds() == 0);
}

#[test]
fn a_format_that_costs_too_much_is_asked_of_one_more_provider_and_of_no_third() {
    let engine = || -> Arc<dyn Engine> {
        let troubles = Troubles::new(&[Trouble::Costly(0), Trouble::Costly(3)]);
        Odd::with(5, 0, troubles, |_| {})
    };
    let mesh = Mesh::with(vec![engine(), engine(), engine()]);
    mesh.generous();
    let (user, code) = (mesh.user(), json!("format_too_costly"));
    let (status, error) = user.raw(&ask(9, false));
    assert_eq!((status, &error["error"]["code"]), (400, &code), "{error}");
    assert!(user.trades().is_empty());
    // The third one was not asked, and would have found the same.
    let asked = |n: usize| mesh.provider(n).engine.as_ref().unwrap().load().prompt_tokens_total;
    assert_eq!((0..3).filter(|n| asked(*n) > 0).count(), 2);
    for n in 0..3 {
        assert!(failures(user, mesh.provider(n).party()) <= FAILURE_NEUTRAL_PPM);
    }
    // Where there is only one, its word counts also in the middle of the answer.
    let mut request = ask(9, true);
    request["messages"][0]["content"] = json!("hi, hi");
    let party = mesh.provider(0).party().to_string();
    request["provider"] = json!({"only": [party]});
    let broken = Stream::open(user, &request).rest();
    assert_eq!(broken.text, words(3), "{broken:?}");
    assert!(broken.chunks.iter().any(|chunk| chunk["error"]["code"] == code), "{broken:?}");
    let trades = user.trades();
    assert_eq!((trades.len(), &trades[0]["completion_tokens"]), (1, &json!(3)), "{trades:?}");
    until("no hold is left", SOON, || user.open_holds() == 0);
}

#[test]
fn a_server_elsewhere_is_sold_and_paid_and_its_failure_costs_the_asker_nothing() {
    let server = TestNode::start(on_loopback(), Some(Arc::new(fake())));
    let (_mesh, seller, user) = sold(&server);

    let providers = user.get("/v1/tirami/providers");
    assert_eq!(providers["providers"][0]["slots"], PLACES, "{providers}");

    // A byte of text is a token of this vocabulary.
    let tokens = words(5).len();
    let whole = user.post(&ask(100, false));
    assert_eq!(whole["choices"][0]["message"]["content"], words(5), "{whole}");
    assert_eq!(whole["usage"]["completion_tokens"], tokens);
    assert_eq!(whole["x_tirami"]["provider"], seller.party().to_string());
    let streamed = Stream::open(&user, &ask(100, true)).rest();
    assert_eq!((streamed.text, streamed.done), (words(5), true));
    let (bought, sold) = (user.trades(), seller.trades());
    assert_eq!((bought.len(), sold.len(), server.trades().len()), (2, 2, 2), "{bought:?}");
    for trade in &bought {
        let same = sold.iter().find(|sold| sold["trade_id"] == trade["trade_id"]).unwrap();
        for field in ["trm_amount", "completion_tokens", "receipt_id"] {
            assert_eq!(trade[field], same[field], "{field}");
        }
        assert_eq!(trade["completion_tokens"], tokens);
    }

    server.kill();
    let (status, error) = user.raw(&ask(100, false));
    assert!(status >= 500 && error["error"]["code"].is_string(), "{status} {error}");
    until("the job has ended on both sides", SOON, || {
        user.open_holds() == 0 && seller.served_running() == 0
    });
    assert_eq!((user.trades().len(), seller.trades().len()), (2, 2));
    assert_eq!(json!(user.trades()), json!(bought));
}

/// The numbers of all vectors of an answer.
fn numbers(answer: &Value) -> Vec<f64> {
    let data = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let vectors = data.iter().flat_map(|one| one["embedding"].as_array().unwrap());
    vectors.map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn texts_and_vectors_of_a_server_elsewhere_are_sold_and_paid_like_chats() {
    let server = TestNode::start(on_loopback(), Some(Arc::new(fake())));
    let (_mesh, seller, user) = sold_by(&server.url, Arc::new(Spelled(fake())), ALL);
    seller.generous();
    let models = user.get("/v1/models");
    let detail = &models["data"][0]["x_tirami"];
    assert_eq!(detail["embedding_width"], 8, "{detail}");

    let text = |prompt: Value, stream: bool| {
        let mut text = json!({"model": "fake", "max_tokens": 100, "stream": stream});
        text["prompt"] = prompt;
        text
    };
    // The tokens of the same text.
    for prompt in [json!("hi"), json!([104, 105])] {
        let (status, whole) = user.send("/v1/completions", &text(prompt, false));
        assert_eq!((status, &whole["choices"][0]["text"]), (200, &json!(words(5))), "{whole}");
        let tokens = json!([2, words(5).len()]);
        let usage = &whole["usage"];
        assert_eq!(json!([usage["prompt_tokens"], usage["completion_tokens"]]), tokens);
        assert_eq!(whole["x_tirami"]["provider"], seller.party().to_string());
    }
    let streamed = Stream::at(&user, "/v1/completions", &text(json!("hi"), true)).rest();
    assert_eq!((streamed.text, streamed.done), (words(5), true));

    let ask = json!({"model": "fake", "input": ["abc", "defgh"]});
    let (there, here) = (user.send("/v1/embeddings", &ask), server.send("/v1/embeddings", &ask));
    assert_eq!((there.0, here.0), (200, 200), "{there:?} {here:?}");
    assert_eq!(there.1["usage"]["prompt_tokens"], 8);
    let (there, here) = (numbers(&there.1), numbers(&here.1));
    assert_eq!((there.len(), here.len()), (16, 16));
    assert!(there.iter().zip(&here).all(|(there, here)| (there - here).abs() < 1e-6), "{there:?}");

    let (bought, sold) = (user.trades(), seller.trades());
    assert_eq!((bought.len(), sold.len()), (4, 4), "{bought:?}");
    for trade in &bought {
        let same = sold.iter().find(|sold| sold["trade_id"] == trade["trade_id"]).unwrap();
        for field in ["trm_amount", "prompt_tokens", "completion_tokens", "receipt_id"] {
            assert_eq!(trade[field], same[field], "{field}");
        }
    }
    until("no hold is left", SOON, || user.open_holds() == 0);
}

#[test]
fn vectors_that_a_server_is_not_asked_for_are_not_offered_and_not_made() {
    let server = TestNode::start(on_loopback(), Some(Arc::new(fake())));
    let (_mesh, seller, user) = sold(&server);
    let models = user.get("/v1/models");
    let detail = &models["data"][0]["x_tirami"];
    assert_eq!((&detail["embedding_width"], &detail["capabilities"][2]), (&json!(0), &Value::Null));
    let (status, error) = user.send("/v1/embeddings", &json!({"model": "fake", "input": "abc"}));
    assert_eq!(
        (status, &error["error"]["code"]),
        (400, &json!("unsupported_parameter")),
        "{error}"
    );
    let gap = json!({"model": "fake", "prompt": "a", "suffix": "b", "max_tokens": 9});
    let (status, error) = user.send("/v1/completions", &gap);
    assert_eq!((status, &error["error"]["param"]), (400, &json!("suffix")), "{error}");
    assert_eq!((user.trades().len(), seller.trades().len(), server.trades().len()), (0, 0, 0));
    until("no hold is left", SOON, || user.open_holds() == 0);
}

/// A server that refuses everything with this status.
fn refusing_server(status: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let end = "content-length: 0\r\nconnection: close\r\n\r\n";
    let refusal = format!("HTTP/1.1 {status} No\r\n{end}");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            read_request(&mut stream);
            // Who has left hears nothing.
            let _ = stream.write_all(refusal.as_bytes());
        }
    });
    url
}

/// Reads a request, whose body is JSON, to its end: a connection that is closed before that is
/// reset, and the answer with it.
fn read_request(stream: &mut TcpStream) {
    let (mut all, mut some) = (Vec::new(), [0; 4_096]);
    while let Ok(read @ 1..) = stream.read(&mut some) {
        all.extend_from_slice(&some[..read]);
        let text = String::from_utf8_lossy(&all);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
        if body.is_some_and(|body| serde_json::from_str::<Value>(body).is_ok()) {
            break;
        }
    }
}

#[test]
fn an_endpoint_that_a_server_lacks_is_told_through_the_mesh_and_not_paid() {
    let (_mesh, seller, user) = sold_by(&refusing_server(404), Arc::new(Spelled(fake())), ALL);
    let (status, error) = user.send("/v1/embeddings", &json!({"model": "fake", "input": "abc"}));
    assert_eq!((status, &error["error"]["code"]), (503, &json!("no_provider")), "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("has no /v1/embeddings"), "{message}");
    let text = json!({"model": "fake", "prompt": "hi", "max_tokens": 9});
    let (status, error) = user.send("/v1/completions", &text);
    let message = error["error"]["message"].as_str().unwrap();
    assert!(status >= 500 && message.contains("has no /v1/completions"), "{status} {error}");
    until("the jobs have ended on both sides", SOON, || {
        user.open_holds() == 0 && seller.served_running() == 0
    });
    assert!(user.trades().is_empty() && seller.trades().is_empty());
}

#[test]
fn vectors_for_which_a_server_has_no_room_are_made_by_another_node_where_the_request_lets_it() {
    let first_within = Duration::from_secs(3);
    let full = engine_at(&refusing_server(429), Arc::new(Spelled(fake())), (ALL, first_within));
    let free: Arc<dyn Engine> = Arc::new(fake());
    let mesh = Mesh::with(vec![full, free]);
    mesh.generous();
    let (asking, other) = (mesh.provider(0), mesh.provider(1));
    mesh.funded(asking);
    until("it knows the other one", SOON, || asking.knows(other.party()));
    let mut ask = json!({"model": "fake", "input": ["abc", "defgh"]});
    let (status, answer) = asking.send("/v1/embeddings", &ask);
    assert_eq!((status, numbers(&answer).len()), (200, 16), "{answer}");
    let info = &answer["x_tirami"];
    assert_eq!(info["provider"], other.party().to_string(), "{info}");
    let attempts = info["route"]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{info}");
    assert!(attempts[0]["ended"].as_str().unwrap().contains("full"), "{info}");

    ask["provider"] = json!({"allow_fallbacks": false});
    let (status, error) = asking.send("/v1/embeddings", &ask);
    assert_eq!((status, &error["error"]["code"]), (429, &json!("engine_busy")), "{error}");
    ask["provider"] = json!({"only": [asking.party().to_string()]});
    let (status, error) = asking.send("/v1/embeddings", &ask);
    assert_eq!((status, &error["error"]["code"]), (429, &json!("engine_busy")), "{error}");
    assert_eq!((asking.trades().len(), asking.open_holds()), (1, 0));
}
