//! A real node on a real socket with a scripted engine, for the tests of its HTTP interface.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "shared by the files of this crate alone")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tirami_infer::engine::Engine;
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_node::config::Config;
use tirami_node::http::HttpConfig;
use tirami_node::mesh::MeshOptions;
use tirami_node::models::Models;
use tirami_node::node::{Node, NodeOptions, RunningNode};
use tirami_sdk::types::*;
use tirami_sdk::{Amount, Client};

pub struct TestNode {
    pub node: RunningNode,
    pub url: String,
    pub admin_key: String,
    pub admin: Client,
    pub http: reqwest::Client,
    pub engine: Arc<FakeEngine>,
    pub dir: tempfile::TempDir,
}

/// An engine that answers with `tokens` words, one each `delay`.
pub fn script(tokens: u32, delay: Duration) -> FakeScript {
    FakeScript { tokens_per_answer: tokens, delay, fail_after: None }
}

/// An engine that says `text`, some characters with each token.
pub fn saying(text: &str) -> FakeEngine {
    let chars: Vec<char> = text.chars().collect();
    let words: Vec<String> = chars.chunks(3).map(|some| some.iter().collect()).collect();
    let tokens = u32::try_from(words.len()).unwrap();
    FakeEngine::new(script(tokens, Duration::ZERO)).saying(words)
}

impl TestNode {
    pub async fn start(script: FakeScript) -> Self {
        Self::bound("127.0.0.1:0", script).await
    }

    pub async fn bound(bind: &str, script: FakeScript) -> Self {
        Self::start_with(bind, FakeEngine::new(script), |http| http).await
    }

    /// A node whose HTTP interface has other bounds than the production ones.
    pub async fn within(engine: FakeEngine, bounds: impl FnOnce(&mut HttpConfig)) -> Self {
        let bounds = |mut http: HttpConfig| {
            bounds(&mut http);
            http
        };
        Self::start_with("127.0.0.1:0", engine, bounds).await
    }

    /// The same node after a stop and a start.
    pub async fn restarted(self) -> Self {
        let Self { node, engine, dir, .. } = self;
        node.shutdown().await.unwrap();
        let models = Models::from_iter([engine.clone() as Arc<dyn Engine>]);
        Self::start_in(dir, "127.0.0.1:0", (engine, models), |http| http).await
    }

    /// A node with these models.
    pub async fn serving(models: Models) -> Self {
        let engine = Arc::new(FakeEngine::new(script(1, Duration::ZERO)));
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, "127.0.0.1:0", (engine, models), |http| http).await
    }

    /// The same, with other bounds of its HTTP interface.
    pub async fn serving_within(models: Models, bounds: impl FnOnce(&mut HttpConfig)) -> Self {
        let engine = Arc::new(FakeEngine::new(script(1, Duration::ZERO)));
        let bounds = |mut http: HttpConfig| {
            bounds(&mut http);
            http
        };
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, "127.0.0.1:0", (engine, models), bounds).await
    }

    async fn start_with(
        bind: &str,
        engine: FakeEngine,
        bounds: impl FnOnce(HttpConfig) -> HttpConfig,
    ) -> Self {
        let engine = Arc::new(engine);
        let models = Models::from_iter([engine.clone() as Arc<dyn Engine>]);
        Self::start_in(tempfile::tempdir().unwrap(), bind, (engine, models), bounds).await
    }

    async fn start_in(
        dir: tempfile::TempDir,
        bind: &str,
        (engine, models): (Arc<FakeEngine>, Models),
        bounds: impl FnOnce(HttpConfig) -> HttpConfig,
    ) -> Self {
        let data_dir = dir.path().join("data");
        let mut config = Config::defaults(dir.path());
        config.data_dir.clone_from(&data_dir);
        config.body_max_bytes = 1024 * 1024;
        config.drain_ms = 100;
        let bind: SocketAddr = bind.parse().unwrap();
        let mesh = MeshOptions::default();
        let options = NodeOptions { data_dir: data_dir.clone(), bind, models, config, mesh };
        let node = Node::start_with(options, bounds).await.unwrap();
        let url = format!("http://127.0.0.1:{}", node.api.port());
        let token = std::fs::read_to_string(data_dir.join("api_token")).unwrap();
        let admin_key = token.trim().to_owned();
        let admin = Client::new(&url, Some(&admin_key)).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let test = Self { node, url, admin_key, admin, http, engine, dir };
        // The defaults guard people; a test sets the limits it is about.
        test.limit("node", Limits::default()).await;
        test
    }

    pub async fn limit(&self, target: &str, limits: Limits) {
        let request = PolicyRequest { target: target.to_owned(), limits };
        self.admin.set_policy(&request).await.unwrap();
    }

    /// A caller on loopback without a key.
    pub fn personal(&self) -> Client {
        Client::new(&self.url, None).unwrap()
    }

    /// An agent with `fund` TRM.
    pub async fn agent(&self, name: &str, fund: &str) -> Agent {
        let fund: Amount = fund.parse().unwrap();
        let request = CreateAgent { name: name.into(), fund_trm: Some(fund), limits: None };
        self.admin.create_agent(&request).await.unwrap()
    }

    pub async fn key(&self, scope: Scope, agent: Option<&str>, limits: Limits) -> CreatedKey {
        let request = CreateKey {
            label: "test".into(),
            scope,
            agent: agent.map(str::to_owned),
            limits: Some(limits),
            expires_at_ms: None,
        };
        self.admin.create_key(&request).await.unwrap()
    }

    pub fn with(&self, key: &CreatedKey) -> Client {
        Client::new(&self.url, Some(&key.key)).unwrap()
    }

    /// Sends a body as it is; gives status, headers and JSON.
    pub async fn post(&self, path: &str, key: Option<&str>, body: impl Into<reqwest::Body>) -> Raw {
        let mut call = self
            .http
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(body);
        if let Some(key) = key {
            call = call.bearer_auth(key);
        }
        Raw::of(call.send().await.unwrap()).await
    }

    /// Waits until no job is open and the engine rests.
    pub async fn settled(&self) -> Status {
        for _ in 0..500 {
            let status = self.admin.status().await.unwrap();
            if status.open_holds == 0 && status.engine.running == 0 {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("a job is still open");
    }
}

/// An answer as it came.
#[derive(Debug)]
pub struct Raw {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Raw {
    pub async fn of(answer: reqwest::Response) -> Self {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self { status, headers, text: answer.text().await.unwrap() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

/// A chat of one prompt token and at most `tokens` completion tokens.
pub fn chat(tokens: u32) -> ChatRequest {
    ChatRequest { max_tokens: Some(tokens), ..ChatRequest::new("fake").user("hi") }
}

/// What `chat(tokens)` costs with the scripted engine's model when it is answered in full.
pub fn cost(tokens: u32) -> Amount {
    let shape = tirami_core::ModelShape {
        parameters_active: 1_000_000,
        layers: 2,
        attention_width: 64,
        context_max: 4_096,
    };
    shape.work(0, 1 + tokens).cost_ceil(tirami_core::Ppm::ONE).into()
}

pub fn micro(amount: Amount) -> u64 {
    amount.trm().micro()
}

pub fn times(amount: Amount, count: u64) -> Amount {
    tirami_core::Trm::from_micro(micro(amount) * count).into()
}
