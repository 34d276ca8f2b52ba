//! Several models on one node: loaded when asked for, kept, unloaded, and refused.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tirami_core::{ModelDigest, ModelShape, Timestamp};
use tirami_infer::engine::{Engine, ModelInfo};
use tirami_infer::fake::FakeEngine;
use tirami_infer::loader::Loader;
use tirami_node::models::{Bounds, KeepAlive, LOADS_WAITING_MAX, Models};
use tirami_sdk::types::{ChatRequest, LoadModel};
use tokio::sync::Notify;

use crate::support::{Raw, TestNode, script};

const MIB: u64 = 1 << 20;
const CHAT: &str = "/v1/chat/completions";

/// A model that is loaded when its test says so.
struct Scripted {
    info: ModelInfo,
    memory_mib: u64,
    loads: AtomicU32,
    fails: AtomicBool,
    /// Whether a load may not end yet.
    is_shut: AtomicBool,
    begun: Notify,
    /// The engine that was loaded last.
    engine: Mutex<Option<Arc<FakeEngine>>>,
    /// Tokens of its answers, and the pause before each.
    answers: (u32, Duration),
}

fn model(name: &str, memory_mib: u64) -> Arc<Scripted> {
    answering(name, memory_mib, (3, Duration::ZERO))
}

fn answering(name: &str, memory_mib: u64, answers: (u32, Duration)) -> Arc<Scripted> {
    let shape = ModelShape {
        parameters_active: 1_000_000,
        layers: 2,
        attention_width: 64,
        context_max: 4_096,
    };
    let info = ModelInfo {
        name: name.to_owned(),
        digest: ModelDigest::from_bytes([name.as_bytes()[0]; 32]),
        shape,
        architecture: "fake".to_owned(),
        quantisation: "F32".to_owned(),
        size_bytes: 4_000_000,
        context_tokens: 4_096,
        embedding_width: 8,
        image_tokens_max: 0,
        build: "fake".to_owned(),
    };
    Arc::new(Scripted {
        info,
        memory_mib,
        loads: AtomicU32::new(0),
        fails: AtomicBool::new(false),
        is_shut: AtomicBool::new(false),
        begun: Notify::new(),
        engine: Mutex::default(),
        answers,
    })
}

impl Loader for Scripted {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_mib * MIB
    }

    fn load(&self) -> Result<Arc<dyn Engine>, String> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        while self.is_shut.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err("the script says so".to_owned());
        }
        let (tokens, pause) = self.answers;
        let engine = FakeEngine::with_model(script(tokens, pause), self.info.clone());
        let engine = Arc::new(engine);
        *self.engine.lock().unwrap() = Some(Arc::clone(&engine));
        Ok(engine)
    }
}

impl Scripted {
    /// Ends the engine that was loaded last, as a defect in it would.
    fn breaks(&self) {
        self.engine.lock().unwrap().take().unwrap().stop();
    }

    /// Loads do not end until the gate is opened.
    fn shut(&self, is_shut: bool) {
        self.is_shut.store(is_shut, Ordering::SeqCst);
    }
}

fn bounds(memory_mib: u64, keep_alive: KeepAlive) -> Models {
    Models::new(Bounds { memory_bytes: Some(memory_mib * MIB), keep_alive })
}

async fn node(memory_mib: u64, models: &[&Arc<Scripted>]) -> TestNode {
    let all = bounds(memory_mib, KeepAlive::FOREVER);
    for one in models {
        assert!(all.serve(Arc::clone(*one) as Arc<dyn Loader>));
    }
    TestNode::serving(all).await
}

fn ask(model: &str) -> ChatRequest {
    ChatRequest { max_tokens: Some(3), ..ChatRequest::new(model).user("hi") }
}

/// The body of a request that says how long its model is kept.
fn asking(model: &str, keep_alive: &Value) -> String {
    let messages = json!([{"role": "user", "content": "hi"}]);
    json!({"model": model, "messages": messages, "keep_alive": keep_alive}).to_string()
}

async fn states(node: &TestNode) -> Vec<String> {
    let list = node.admin.model_states().await.unwrap();
    list.models.iter().map(|model| format!("{} {}", model.name, model.state)).collect()
}

async fn until_state(node: &TestNode, wanted: &[&str]) {
    for _ in 0..400 {
        if states(node).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(states(node).await, wanted);
}

#[tokio::test]
async fn the_first_request_loads_a_model_once_and_all_who_wait_are_answered_by_their_own() {
    let (a, b) = (model("a", 1), model("b", 1));
    let node = node(10, &[&a, &b]).await;
    assert_eq!(states(&node).await, ["a on_disk", "b on_disk"]);
    assert!(!node.admin.health().await.unwrap().model_loaded);
    let client = node.personal();
    let answers = join_all((0..8).map(|n| {
        let (client, name) = (client.clone(), if n % 2 == 0 { "a" } else { "b" });
        async move { (name, client.chat(&ask(name)).await.unwrap()) }
    }))
    .await;
    for (name, answer) in answers {
        assert_eq!((answer.model.as_str(), answer.usage.completion_tokens), (name, 3));
        let digest = ModelDigest::from_bytes([name.as_bytes()[0]; 32]).to_string();
        assert_eq!(answer.x_tirami.unwrap().route.model, digest);
    }
    let by_digest = node.personal().chat(&ask(&b.info.digest.to_string())).await.unwrap();
    assert_eq!(by_digest.model, "b");
    assert_eq!((a.loads.load(Ordering::SeqCst), b.loads.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(states(&node).await, ["a loaded", "b loaded"]);
    let listed = node.admin.models().await.unwrap().data;
    assert_eq!(listed.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let metrics = node.admin.metrics().await.unwrap();
    assert!(metrics.contains("tirami_model_memory_bytes{model=\"b\"} 1048576"), "{metrics}");
}

#[tokio::test]
async fn a_name_with_slashes_is_found_whether_its_asker_encodes_them_or_not() {
    let a = model("vendor/family/a", 1);
    let node = node(10, &[&a]).await;
    for name in ["vendor/family/a", "vendor%2Ffamily%2Fa"] {
        let answer = node.http.get(format!("{}/v1/models/{name}", node.url)).send().await.unwrap();
        let raw = Raw::of(answer).await;
        assert_eq!((raw.status, &raw.json()["id"]), (200, &json!("vendor/family/a")), "{raw:?}");
    }
    for name in ["vendor", "vendor/family", "vendor/family/a/"] {
        let answer = node.http.get(format!("{}/v1/models/{name}", node.url)).send().await.unwrap();
        let raw = Raw::of(answer).await;
        assert_eq!((raw.status, raw.code().as_str()), (404, "model_not_found"), "{name} {raw:?}");
    }
}

#[tokio::test]
async fn a_model_is_listed_as_openais_and_as_anthropics_clients_read_it() {
    let get = async |node: &TestNode, path: &str| {
        let answer = node.http.get(format!("{}{path}", node.url)).send().await.unwrap();
        Raw::of(answer).await.json()
    };
    let list = get(&node(10, &[&model("a", 1), &model("b", 1)]).await, "/v1/models").await;
    let ends = (&list["object"], &list["has_more"], &list["first_id"], &list["last_id"]);
    assert_eq!(ends, (&json!("list"), &json!(false), &json!("a"), &json!("b")), "{list}");
    let node = node(10, &[&model("a", 1)]).await;
    let one = get(&node, "/v1/models/a").await;
    for (field, value) in [
        ("id", "a"),
        ("display_name", "a"),
        ("object", "model"),
        ("type", "model"),
        ("lifecycle", "active"),
    ] {
        assert_eq!(one[field], value, "{one}");
    }
    let created_ms = one["created"].as_u64().unwrap() * 1_000;
    let created_at = Timestamp::from_ms(created_ms).to_string();
    assert_eq!(one["created_at"], created_at, "{one}");
    assert!(created_at.starts_with("20") && created_at.ends_with(".000Z"), "{created_at}");
    assert_eq!(get(&node, "/v1/models").await["data"], json!([one]));
}

#[tokio::test]
async fn room_is_made_by_those_that_rest_the_longest_and_nothing_else() {
    let slow = (400, Duration::from_millis(10));
    let (a, b, c) = (answering("a", 4, slow), model("b", 4), model("c", 4));
    let huge = model("d", 11);
    let node = node(10, &[&a, &b, &c, &huge]).await;
    let client = node.personal();
    for name in ["b", "c", "b"] {
        client.chat(&ask(name)).await.unwrap();
    }
    assert_eq!(states(&node).await, ["a on_disk", "b loaded", "c loaded", "d on_disk"]);
    // c rests longer than b.
    let long = ChatRequest { max_tokens: Some(400), ..ask("a") };
    let stream = client.chat_stream(&long).await.unwrap();
    assert_eq!(states(&node).await, ["a loaded", "b loaded", "c on_disk", "d on_disk"]);
    let error = client.chat(&ask("d")).await.unwrap_err();
    assert_eq!(node.admin.status().await.unwrap().open_holds, 1);
    assert_eq!((error.status(), error.code()), (Some(503), Some("model_too_large")), "{error}");
    // a is in use: of 10 MiB it leaves 6, and c takes the place of b.
    client.chat(&ask("c")).await.unwrap();
    assert_eq!(states(&node).await, ["a loaded", "b on_disk", "c loaded", "d on_disk"]);
    let error = node.admin.unload_model("a").await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(409), Some("model_in_use")));
    drop(stream);
}

#[tokio::test]
async fn a_model_finds_no_room_while_those_in_memory_are_in_use() {
    let slow = (400, Duration::from_millis(10));
    let (a, b) = (answering("a", 4, slow), model("b", 7));
    let node = node(10, &[&a, &b]).await;
    let client = node.personal();
    let long = ChatRequest { max_tokens: Some(400), ..ask("a") };
    let stream = client.chat_stream(&long).await.unwrap();
    let error = client.chat(&ask("b")).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(503), Some("no_memory")), "{error}");
    assert_eq!(node.admin.status().await.unwrap().open_holds, 1);
    drop(stream);
    node.settled().await;
    assert_eq!(client.chat(&ask("b")).await.unwrap().model, "b");
    assert_eq!(states(&node).await, ["a on_disk", "b loaded"]);
}

#[tokio::test]
async fn a_load_that_fails_is_told_to_all_who_wait_for_it_and_the_others_go_on() {
    let (a, b) = (model("a", 1), model("b", 1));
    let all = bounds(10, KeepAlive::FOREVER);
    assert!(all.serve(a.clone()) && all.serve(b.clone()));
    let node = TestNode::serving(all.clone()).await;
    a.fails.store(true, Ordering::SeqCst);
    let client = node.personal();
    a.shut(true);
    let asking = ["a", "a", "a", "a", "a", "b"].map(|name| {
        let client = client.clone();
        tokio::spawn(async move { client.chat(&ask(name)).await })
    });
    while all.waiting() < asking.len() {
        tokio::task::yield_now().await;
    }
    a.shut(false);
    let mut answers = join_all(asking).await.into_iter().map(Result::unwrap);
    for error in answers.by_ref().take(5).map(Result::unwrap_err) {
        assert_eq!((error.status(), error.code()), (Some(503), Some("model_load_failed")));
        assert!(error.to_string().contains("the script says so"), "{error}");
    }
    assert_eq!(answers.next().unwrap().unwrap().model, "b");
    assert_eq!(a.loads.load(Ordering::SeqCst), 1);
    let status = node.admin.status().await.unwrap();
    assert_eq!((status.open_holds, status.total_trades), (0, 1));
    a.fails.store(false, Ordering::SeqCst);
    assert_eq!(client.chat(&ask("a")).await.unwrap().model, "a");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_model_is_there_owes_nothing() {
    let a = model("a", 1);
    let node = node(10, &[&a]).await;
    a.shut(true);
    let client = node.personal();
    let asking = tokio::spawn(async move { client.chat(&ask("a")).await });
    a.begun.notified().await;
    assert_eq!(states(&node).await, ["a loading"]);
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    a.shut(false);
    until_state(&node, &["a loaded"]).await;
    let status = node.admin.status().await.unwrap();
    assert_eq!((status.open_holds, status.total_trades), (0, 0));
}

#[tokio::test]
async fn keep_alive_says_how_long_a_model_rests_in_memory() {
    let (a, b) = (model("a", 1), model("b", 1));
    let node = node(10, &[&a, &b]).await;
    let client = node.personal();
    client.chat(&ask("b")).await.unwrap();
    for wrong in [json!("soon"), json!(1.5), json!(true), json!([5])] {
        let raw = node.post(CHAT, None, asking("a", &wrong)).await;
        assert_eq!((raw.status, &raw.json()["error"]["param"]), (400, &json!("keep_alive")));
    }
    let raw = node.post(CHAT, None, asking("a", &json!(0))).await;
    assert_eq!(raw.status, 200, "{raw:?}");
    until_state(&node, &["a on_disk", "b loaded"]).await;
    client.chat(&ask("a")).await.unwrap();
    assert_eq!(a.loads.load(Ordering::SeqCst), 2);
    assert_eq!(states(&node).await, ["a loaded", "b loaded"]);
}

#[tokio::test]
async fn what_the_owner_set_unloads_without_a_word_of_any_request() {
    let (a, all) = (model("a", 1), bounds(10, KeepAlive::seconds(0)));
    assert!(all.serve(a.clone()));
    assert!(!all.serve(a.clone()), "a model is known once");
    let node = TestNode::serving(all).await;
    node.personal().chat(&ask("a")).await.unwrap();
    until_state(&node, &["a on_disk"]).await;
    let written = node.admin.status().await.unwrap().engine.completion_tokens_total;
    assert_eq!(written, 3, "totals outlive the engine");
}

#[tokio::test]
async fn the_owner_loads_and_unloads_and_finds_what_is_new() {
    let (a, b) = (model("a", 1), model("b", 1));
    let all = bounds(10, KeepAlive::FOREVER);
    assert!(all.serve(a.clone()));
    let (is_there, found) = (Arc::new(AtomicBool::new(false)), b.clone());
    let there = is_there.clone();
    all.found_by(Box::new(move |models| {
        if there.load(Ordering::SeqCst) {
            models.know(found.clone());
        }
    }));
    let node = TestNode::serving(all).await;
    let word = LoadModel::default();
    let error = node.admin.load_model("b", &word).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(404), Some("model_not_found")));
    is_there.store(true, Ordering::SeqCst);
    // What a caller says looks for nothing.
    let error = node.personal().chat(&ask("b")).await.unwrap_err();
    assert_eq!(error.code(), Some("model_not_found"));
    let loaded = node.admin.load_model("b", &word).await.unwrap();
    assert_eq!((loaded.state.as_str(), loaded.offered), ("loaded", false));
    assert_eq!(node.admin.unload_model("b").await.unwrap().state, "on_disk");
    assert_eq!(states(&node).await, ["a on_disk", "b on_disk"]);
    let error = node.personal().load_model("a", &word).await.unwrap_err();
    assert_eq!(error.code(), Some("insufficient_scope"));
}

#[tokio::test]
async fn so_many_wait_for_a_load_and_the_next_is_turned_away() {
    let a = model("a", 1);
    let models = bounds(10, KeepAlive::FOREVER);
    assert!(models.serve(a.clone()));
    let one = models.first().unwrap();
    a.shut(true);
    let lease = || {
        let (models, one) = (models.clone(), one.clone());
        tokio::spawn(async move { models.lease(&one, None).await })
    };
    let waiting: Vec<_> = (0..LOADS_WAITING_MAX).map(|_| lease()).collect();
    while models.waiting() < LOADS_WAITING_MAX {
        tokio::task::yield_now().await;
    }
    let refused = models.lease(&one, None).await.unwrap_err();
    assert!(refused.to_string().starts_with("too many requests wait"), "{refused}");
    a.shut(false);
    for lease in join_all(waiting).await {
        assert_eq!(lease.unwrap().unwrap().model().name, "a");
    }
    assert_eq!(a.loads.load(Ordering::SeqCst), 1);
    assert_eq!(models.waiting(), 0);
}

#[tokio::test]
async fn an_engine_that_ended_is_loaded_again_and_the_next_request_is_answered() {
    let a = model("a", 1);
    let node = node(10, &[&a]).await;
    node.admin.chat(&ask("a")).await.unwrap();
    a.breaks();
    node.admin.chat(&ask("a")).await.unwrap();
    assert_eq!(a.loads.load(Ordering::SeqCst), 2);
    // Nobody has to ask for it: it was to stay. What cannot be loaded is tried again.
    a.fails.store(true, Ordering::SeqCst);
    a.breaks();
    let loaded = async |times: u32| {
        for _ in 0..6_000 {
            if a.loads.load(Ordering::SeqCst) >= times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it was not loaded {times} times");
    };
    loaded(3).await;
    a.fails.store(false, Ordering::SeqCst);
    loaded(4).await;
    until_state(&node, &["a loaded"]).await;
    assert!(node.admin.ready().await.is_ok());
}
