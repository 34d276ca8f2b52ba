//! Meshes of a node without a model and providers with scripted engines, asked over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tirami_core::{PartyId, Trm};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Generation, ModelInfo, PIECES_AHEAD_MAX, Piece, PrepareError,
    Prompt, Sampling, StartError,
};
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_ledger::book::{Limits, ServingPolicy, Target};
use tirami_ledger::command::{Actor, Command, Outcome};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::support::{Ahead, Peer, SOON, joining, on_loopback, until};
use tirami_node::mesh::MeshOptions;
use tirami_node::models::Models;

pub fn script(tokens: u32, delay: Duration) -> FakeScript {
    FakeScript { tokens_per_answer: tokens, delay, fail_after: None }
}

/// What an amount in JSON is, in µTRM.
pub fn micro(amount: &Value) -> u64 {
    let amount: tirami_sdk::Amount = amount.to_string().parse().unwrap();
    amount.trm().micro()
}

pub fn words(count: usize) -> String {
    "word ".repeat(count)
}

/// A chat of at most `tokens` completion tokens.
pub fn ask(tokens: u32, stream: bool) -> Value {
    json!({
        "model": "fake",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": tokens,
        "stream": stream,
    })
}

pub struct TestNode {
    pub peer: Peer,
    pub engine: Option<Arc<dyn Engine>>,
    pub url: String,
    pub dir: Option<tempfile::TempDir>,
    runtime: Arc<Runtime>,
    http: reqwest::Client,
}

impl TestNode {
    pub fn start(mesh: MeshOptions, engine: Option<Arc<dyn Engine>>) -> Self {
        Self::start_with(mesh, engine, |_| {})
    }

    /// Whether it could order from `provider`.
    pub fn knows(&self, provider: PartyId) -> bool {
        self.peer.read(move |kernel| {
            let mut known = kernel.mesh().providers(kernel.clock());
            known.any(|one| one.connected && one.signal.serving && one.signal.provider == provider)
        })
    }

    /// The settings are changed before the start.
    pub fn start_with(
        mesh: MeshOptions,
        engine: Option<Arc<dyn Engine>>,
        set: impl FnOnce(&mut tirami_node::config::Config),
    ) -> Self {
        Self::begun_in(tempfile::tempdir().unwrap(), mesh, engine, set)
    }

    /// In a directory that a node may have left.
    pub fn start_in(
        dir: tempfile::TempDir,
        mesh: MeshOptions,
        engine: Option<Arc<dyn Engine>>,
    ) -> Self {
        Self::begun_in(dir, mesh, engine, |_| {})
    }

    /// The same, with settings changed before the start.
    pub fn begun_in(
        dir: tempfile::TempDir,
        mesh: MeshOptions,
        engine: Option<Arc<dyn Engine>>,
        set: impl FnOnce(&mut tirami_node::config::Config),
    ) -> Self {
        let peer = Peer::try_with(dir.path(), mesh, engine.clone(), set).unwrap();
        Self::around(peer, engine, dir)
    }

    /// A node with these models.
    pub fn serving(mesh: MeshOptions, models: Models) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peer = Peer::try_serving(dir.path(), mesh, models, |_| {}).unwrap();
        Self::around(peer, None, dir)
    }

    fn around(peer: Peer, engine: Option<Arc<dyn Engine>>, dir: tempfile::TempDir) -> Self {
        let url = format!("http://127.0.0.1:{}", peer.node.api.port());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map(Arc::new)
            .unwrap();
        // It sets up the TLS that the other one needs too.
        drop(tirami_sdk::Client::new(&url, None).unwrap());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let node = Self { peer, engine, url, dir: Some(dir), runtime, http };
        // The defaults guard people; a test is about something else.
        for target in [Target::Node, Target::Agent(node.peer.node.personal_agent())] {
            node.submit(Actor::Node, Command::SetLimits { target, limits: Limits::default() });
        }
        node
    }

    pub fn party(&self) -> PartyId {
        self.peer.party()
    }

    pub fn submit(&self, actor: Actor, command: Command) -> Outcome {
        let handle = self.peer.node.handle();
        self.peer.block_on(handle.submit(actor, command)).unwrap()
    }

    /// Lets it lend more than any test needs.
    pub fn generous(&self) {
        let policy = self.peer.read(|kernel| kernel.ledger().book().serving().clone());
        let much = Trm::from_micro(1_000_000_000);
        let (exposure_start, exposure_max) = (much, much);
        let policy = ServingPolicy { exposure_start, exposure_max, jobs_max: 64, ..policy };
        self.submit(Actor::Node, Command::SetServing(policy));
    }

    /// Sends a chat; gives status and JSON.
    pub fn raw(&self, request: &Value) -> (u16, Value) {
        self.send("/v1/chat/completions", request)
    }

    /// Posts JSON; gives status and JSON.
    pub fn send(&self, path: &str, request: &Value) -> (u16, Value) {
        let body = serde_json::to_vec(request).unwrap();
        let call = self
            .http
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(body);
        self.runtime.block_on(async {
            let answer = call.send().await.unwrap();
            let status = answer.status().as_u16();
            (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
        })
    }

    /// Sends a chat that has to be answered.
    pub fn post(&self, request: &Value) -> Value {
        let (status, answer) = self.raw(request);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn admin_key(&self) -> String {
        let path = self.dir.as_ref().unwrap().path().join("api_token");
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// The owner's client.
    pub fn owner(&self) -> tirami_sdk::Client {
        tirami_sdk::Client::new(&self.url, Some(&self.admin_key())).unwrap()
    }

    /// What the owner sees.
    pub fn get(&self, path: &str) -> Value {
        let call = self.http.get(format!("{}{path}", self.url)).bearer_auth(self.admin_key());
        self.runtime.block_on(async {
            let text = call.send().await.unwrap().text().await.unwrap();
            serde_json::from_str(&text).unwrap()
        })
    }

    /// The same as text.
    pub fn text(&self, path: &str) -> String {
        let call = self.http.get(format!("{}{path}", self.url)).bearer_auth(self.admin_key());
        self.runtime.block_on(async { call.send().await.unwrap().text().await.unwrap() })
    }

    pub fn trades(&self) -> Vec<Value> {
        let list = self.get("/v1/tirami/trades");
        list["trades"].as_array().unwrap_or_else(|| panic!("{list}")).clone()
    }

    pub fn running(&self) -> u32 {
        self.engine.as_ref().unwrap().load().running
    }

    pub fn open_holds(&self) -> usize {
        self.peer.read(|kernel| kernel.ledger().book().holds().len())
    }

    pub fn served_running(&self) -> usize {
        self.peer.read(|kernel| kernel.ledger().book().served_running())
    }

    /// How often this node recorded a refusal of `party` with this code.
    pub fn refused(&self, party: PartyId, code: &str) -> u64 {
        let list = self.get("/v1/tirami/refusals");
        let rows = list["refusals"].as_array().unwrap_or_else(|| panic!("{list}")).iter();
        let mut of = rows.filter(|row| row["node_id"] == party.to_string() && row["code"] == code);
        of.next().and_then(|row| row["times"].as_u64()).unwrap_or_default()
    }

    /// Ends at once, as a machine that loses power.
    pub fn kill(self) {
        self.peer.kill();
    }

    /// The same, and leaves its directory.
    pub fn killed(mut self) -> tempfile::TempDir {
        let dir = self.dir.take().unwrap();
        self.peer.kill();
        dir
    }
}

/// A node without a model, which founded the mesh, and providers.
pub struct Mesh {
    /// The time of all its nodes.
    pub clock: Ahead,
    user: Option<TestNode>,
    providers: Vec<Option<TestNode>>,
}

impl Mesh {
    pub fn of(scripts: &[FakeScript]) -> Self {
        let engine =
            |script: &FakeScript| -> Arc<dyn Engine> { Arc::new(FakeEngine::new(script.clone())) };
        Self::with(scripts.iter().map(engine).collect())
    }

    /// One engine that says `words`.
    pub fn saying(words: Vec<String>) -> Self {
        let script = script(u32::try_from(words.len()).unwrap(), Duration::ZERO);
        Self::with(vec![Arc::new(FakeEngine::new(script).saying(words))])
    }

    /// The engines say only five seconds after its last token that an answer is complete.
    pub fn holding_their_ends(scripts: &[FakeScript]) -> Self {
        let engine = |script: &FakeScript| -> Arc<dyn Engine> {
            Arc::new(HoldsEnd(FakeEngine::new(script.clone())))
        };
        Self::with(scripts.iter().map(engine).collect())
    }

    /// The first engine has no place for anybody.
    pub fn with_a_full_one(script: &FakeScript) -> Self {
        let engine = FakeEngine::new(script.clone());
        Self::with(vec![Arc::new(Full(FakeEngine::new(script.clone()))), Arc::new(engine)])
    }

    pub fn with(engines: Vec<Arc<dyn Engine>>) -> Self {
        Self::with_first(engines, |_| {})
    }

    /// The settings of the first provider are changed before its start.
    pub fn with_first(
        engines: Vec<Arc<dyn Engine>>,
        set: impl Fn(&mut tirami_node::config::Config),
    ) -> Self {
        let clock = Ahead::default();
        let by_it = |options| MeshOptions { clock: clock.clock(), ..options };
        let user = TestNode::start(by_it(on_loopback()), None);
        let invite = || user.peer.node.invite().unwrap();
        let start = |(n, engine)| {
            let set = |config: &mut _| {
                if n == 0 {
                    set(config)
                }
            };
            Some(TestNode::start_with(by_it(joining(invite())), Some(engine), set))
        };
        let providers: Vec<_> = engines.into_iter().enumerate().map(start).collect();
        let mesh = Self { clock, user: Some(user), providers };
        mesh.ready(mesh.user());
        mesh
    }

    /// Another provider, whose settings are changed before its start; nobody waits for it.
    pub fn add_provider(
        &self,
        engine: Arc<dyn Engine>,
        set: impl FnOnce(&mut tirami_node::config::Config),
    ) -> TestNode {
        let invite = self.user().peer.node.invite().unwrap();
        TestNode::start_with(joining(invite), Some(engine), set)
    }

    /// Another provider, with these models; nobody waits for it.
    pub fn add_serving(&self, models: Models) -> TestNode {
        let invite = self.user().peer.node.invite().unwrap();
        TestNode::serving(joining(invite), models)
    }

    /// Waits until `user` knows that everybody serves.
    pub fn ready(&self, user: &TestNode) {
        let wanted = self.providers.iter().flatten().count();
        until("all providers are known", SOON, || {
            user.peer.read(|kernel| {
                let now = kernel.clock();
                let known = kernel.mesh().providers(now);
                known.filter(|one| one.connected && one.signal.serving).count()
            }) >= wanted
        });
    }

    /// Lets every provider lend more than any test needs.
    pub fn generous(&self) {
        self.providers.iter().flatten().for_each(TestNode::generous);
    }

    /// Another node without a model.
    pub fn add_user(&self) -> TestNode {
        self.add_user_with(|_| {})
    }

    /// The same, with settings changed before its start.
    pub fn add_user_with(&self, set: impl FnOnce(&mut tirami_node::config::Config)) -> TestNode {
        let invite = self.user().peer.node.invite().unwrap();
        let options = MeshOptions { clock: self.clock.clock(), ..joining(invite) };
        let user = TestNode::start_with(options, None, set);
        until("it is a member", SOON, || {
            user.peer.is_member() && !user.peer.line_of(user.party()).is_zero()
        });
        self.ready(&user);
        self.funded(&user);
        user
    }

    /// Waits until the personal agent of `node` has money.
    pub fn funded(&self, node: &TestNode) {
        let agent = node.peer.node.personal_agent();
        until("its agent has money", SOON, || {
            node.peer
                .read(move |kernel| !kernel.ledger().book().agents()[&agent].balance().is_zero())
        });
    }

    pub fn user(&self) -> &TestNode {
        self.user.as_ref().unwrap()
    }

    pub fn provider(&self, n: usize) -> &TestNode {
        self.providers[n].as_ref().unwrap()
    }

    /// The provider that runs a job.
    pub fn running(&self) -> &TestNode {
        let mut found = None;
        until("a provider runs the job", SOON, || {
            found = self
                .providers
                .iter()
                .flatten()
                .find(|one| one.running() > 0 || one.served_running() > 0);
            found.is_some()
        });
        found.unwrap()
    }

    /// Kills the provider that runs a job.
    pub fn kill_running(&mut self) -> PartyId {
        let party = self.running().party();
        let is_it = |one: &Option<TestNode>| one.as_ref().is_some_and(|one| one.party() == party);
        let place = self.providers.iter().position(is_it).unwrap();
        self.providers[place].take().unwrap().kill();
        party
    }
}

/// A stream of server-sent events that is being read.
pub struct Stream {
    runtime: Arc<Runtime>,
    bytes: futures_util::stream::BoxStream<'static, Vec<u8>>,
    buffer: Vec<u8>,
    answer: Answer,
    last_at: Instant,
    /// [`machine_busy`] at that time.
    last_busy: Duration,
}

/// How much longer than it wanted a thread has slept in this process so far, in all: the machine
/// had no time for it.
fn machine_busy() -> Duration {
    const NAP: Duration = Duration::from_millis(10);
    static BUSY_US: AtomicU64 = AtomicU64::new(0);
    static SLEEPER: Once = Once::new();
    SLEEPER.call_once(|| {
        std::thread::spawn(|| {
            loop {
                let begun = Instant::now();
                std::thread::sleep(NAP);
                let late = begun.elapsed().saturating_sub(NAP);
                BUSY_US.fetch_add(late.as_micros() as u64, Ordering::Relaxed);
            }
        });
    });
    Duration::from_micros(BUSY_US.load(Ordering::Relaxed))
}

/// What came of a stream.
#[derive(Debug, Default)]
pub struct Answer {
    pub chunks: Vec<Value>,
    pub text: String,
    pub done: bool,
    /// The longest time in which neither text nor the end came, without the time in which the
    /// machine was busy with other things.
    pub longest_pause: Duration,
}

impl Answer {
    pub fn info(&self) -> &Value {
        &self.chunks.iter().rfind(|chunk| chunk["x_tirami"].is_object()).unwrap()["x_tirami"]
    }
}

impl Stream {
    pub fn open(node: &TestNode, request: &Value) -> Self {
        Self::at(node, "/v1/chat/completions", request)
    }

    pub fn at(node: &TestNode, path: &str, request: &Value) -> Self {
        let call = node
            .http
            .post(format!("{}{path}", node.url))
            .header("content-type", "application/json")
            .body(serde_json::to_vec(request).unwrap());
        let answer = node.runtime.block_on(call.send()).unwrap();
        if answer.status() != 200 {
            panic!("{}", node.runtime.block_on(answer.text()).unwrap());
        }
        let bytes = answer.bytes_stream().filter_map(|chunk| async { chunk.ok() });
        let bytes = bytes.map(|chunk| chunk.to_vec()).boxed();
        let last_at = Instant::now();
        let runtime = Arc::clone(&node.runtime);
        let last_busy = machine_busy();
        let (buffer, answer) = (Vec::new(), Answer::default());
        Self { runtime, bytes, buffer, answer, last_at, last_busy }
    }

    fn step(&mut self) -> bool {
        let Some(bytes) = self.runtime.block_on(self.bytes.next()) else { return false };
        self.buffer.extend_from_slice(&bytes);
        while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let event = String::from_utf8(event).unwrap();
            let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) else {
                continue;
            };
            if data == "[DONE]" {
                self.answer.done = true;
                self.came();
                continue;
            }
            let chunk: Value = serde_json::from_str(data).unwrap();
            let choice = &chunk["choices"][0];
            let text = [&choice["delta"]["content"], &choice["text"], &chunk["delta"]["text"]];
            let text = text.into_iter().chain([&chunk["delta"]]).find_map(Value::as_str);
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                self.answer.text.push_str(text);
                self.came();
            }
            self.answer.chunks.push(chunk);
        }
        true
    }

    /// What the reader waits for has come.
    fn came(&mut self) {
        let busy = machine_busy();
        let pause = self.last_at.elapsed().saturating_sub(busy.saturating_sub(self.last_busy));
        self.answer.longest_pause = self.answer.longest_pause.max(pause);
        (self.last_at, self.last_busy) = (Instant::now(), busy);
    }

    /// Reads until so many words have come.
    pub fn until_words(&mut self, count: usize) {
        while self.answer.text.matches("word").count() < count {
            assert!(self.step(), "the stream ended: {:?}", self.answer);
        }
    }

    pub fn rest(mut self) -> Answer {
        while self.step() {}
        self.came();
        self.answer
    }
}

/// Delays the word that an answer is complete.
struct HoldsEnd(FakeEngine);

impl Engine for HoldsEnd {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.0.prepare(conversation)
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        // Whoever resumes the whole answer has nothing to hold back.
        let is_whole = !prompt.resumed.is_empty();
        let mut inner = self.0.start(prompt, sampling)?;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        tokio::spawn(async move {
            while let Some(piece) = inner.pieces.recv().await {
                if matches!(piece, Piece::End { .. }) && !is_whole {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Ok(Generation::new(pieces, Arc::default()))
    }

    fn load(&self) -> EngineLoad {
        self.0.load()
    }
}

/// Has no place for anybody.
struct Full(FakeEngine);

impl Engine for Full {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.0.prepare(conversation)
    }

    fn start(&self, _: Prompt, _: Sampling) -> Result<Generation, StartError> {
        Err(StartError::Busy { queued: 0 })
    }

    fn load(&self) -> EngineLoad {
        self.0.load()
    }
}
