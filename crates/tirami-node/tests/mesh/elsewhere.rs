//! A provider whose engine is a server elsewhere: its answers are sold through the mesh like any
//! others.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tirami_core::{ModelShape, Ppm, Trm};
use tirami_infer::engine::{Conversation, Engine, ModelInfo, PrepareError, Prompt};
use tirami_infer::fake::FakeEngine;
use tirami_infer::vocabulary::{ByteVocabulary, ToldModel, Vocabulary};
use tirami_kernel::scheduler::FAILURE_NEUTRAL_PPM;
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tirami_node::models::{Models, OPENAI_BUILD, OpenAiEngine, Server};
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
    sold_by(server, Arc::new(Spelled(fake())))
}

fn sold_by(server: &TestNode, words: Arc<dyn Vocabulary>) -> (Mesh, TestNode, TestNode) {
    let upstream = Upstream::new(&format!("{}/v1", server.url), None).unwrap();
    let at = Server::new(upstream, PLACES, Duration::from_secs(30));
    let engine = OpenAiEngine::new(words, at, "fake");
    let mesh = Mesh::of(&[]);
    let seller = mesh.add_serving(Models::from_iter([Arc::new(engine) as Arc<dyn Engine>]));
    let user = mesh.add_user();
    until("the offer is known", SOON, || {
        user.get("/v1/models")["data"].as_array().is_some_and(|models| !models.is_empty())
    });
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
    let (_mesh, seller, user) = sold_by(&server, Arc::new(ByteVocabulary::new(told, OPENAI_BUILD)));
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
    let (status, error) = user.raw(&request);
    assert_eq!((status, &error["error"]["code"]), (400, &json!("unsupported")), "{error}");
    let answer = user.post(&ask(100, false));
    assert_eq!(answer["x_tirami"]["provider"], seller.party().to_string(), "{answer}");
    // The same as where the seller is asked by itself.
    let (status, error) = seller.raw(&request);
    assert_eq!((status, &error["error"]["code"]), (400, &json!("unsupported")), "{error}");
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
fn a_format_that_costs_too_much_is_asked_of_no_second_provider() {
    let troubles = Troubles::new(&[Trouble::Costly(0), Trouble::Costly(3)]);
    let engine = || -> Arc<dyn Engine> { Odd::with(5, 0, troubles.clone(), |_| {}) };
    let mesh = Mesh::with(vec![engine(), engine()]);
    mesh.generous();
    let (user, code) = (mesh.user(), json!("format_too_costly"));
    let (status, error) = user.raw(&ask(9, false));
    assert_eq!((status, &error["error"]["code"]), (400, &code), "{error}");
    assert!(user.trades().is_empty());
    let mut request = ask(9, true);
    request["messages"][0]["content"] = json!("hi, hi");
    let broken = Stream::open(user, &request).rest();
    assert_eq!(broken.text, words(3), "{broken:?}");
    assert!(broken.chunks.iter().any(|chunk| chunk["error"]["code"] == code), "{broken:?}");
    let trades = user.trades();
    assert_eq!((trades.len(), &trades[0]["completion_tokens"]), (1, &json!(3)), "{trades:?}");
    for n in 0..2 {
        assert!(failures(user, mesh.provider(n).party()) <= FAILURE_NEUTRAL_PPM);
    }
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
