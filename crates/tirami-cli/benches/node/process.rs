//! A whole process: from start to ready and to the first token, and its resident memory.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use tirami_core::{ModelDigest, ModelShape};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Generation, ModelInfo, PrepareError, Prompt, Sampling,
    StartError,
};
use tirami_node::config::Config;
use tirami_node::mesh::MeshOptions;
use tirami_node::models::Models;
use tirami_node::node::{Node, NodeOptions};
use tirami_sdk::Client;
use tirami_sdk::types::ChatRequest;

use crate::report::{Row, Table, median};
use crate::serving::model_path;

const ROUNDS: usize = 5;
/// The argument that makes this bench a node without a model, to be weighed by its parent.
const WITHOUT_MODEL: &str = "serve-without-model";
/// What the original needs on its developers' machine, in seconds: to be ready, and from there to
/// the first token.
const ORIGINAL: (f64, f64) = (0.35, 0.13);

/// What else this program can be.
pub(crate) enum Role {
    /// A node whose engine holds no model.
    WithoutModel(PathBuf),
}

/// The role the arguments ask for.
pub(crate) fn role() -> Option<Role> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == WITHOUT_MODEL)
        .then(|| Role::WithoutModel(arguments.next().expect("a directory").into()))
}

impl Role {
    /// Plays the role until the process is ended.
    pub(crate) fn run(self) {
        let Self::WithoutModel(dir) = self;
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let options = NodeOptions {
                data_dir: dir.clone(),
                bind: SocketAddr::from(([127, 0, 0, 1], 0)),
                models: Models::from_iter([Arc::new(NoModel::new()) as Arc<dyn Engine>]),
                config: Config::defaults(&dir),
                mesh: MeshOptions::default(),
            };
            let _node = Node::start(options).await.expect("a node");
            println!("ready");
            std::future::pending::<()>().await;
        });
    }
}

/// Rows (f) and (g).
pub(crate) fn start_and_memory(table: &mut Table) {
    let (mut ready, mut first, mut with_model) = (Vec::new(), Vec::new(), Vec::new());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for round in 0..=ROUNDS {
        let started = Instant::now();
        let (node, api) = start_binary(dir.path());
        let to_ready = started.elapsed().as_secs_f64();
        let asked = Instant::now();
        runtime.block_on(first_token(&api));
        // The first round warms the file cache and makes the data directory.
        if round > 0 {
            ready.push(to_ready);
            first.push(asked.elapsed().as_secs_f64());
            with_model.push(resident_mib(&node.0));
        }
    }
    let (ready, first) = (median(&mut ready), median(&mut first));
    table.push(Row {
        what: "(f) process start to ready, then to the first token over HTTP".into(),
        measured: format!("{ready:.2} s, {first:.2} s"),
        limit: format!("the original's own figures: {:.2} s, {:.2} s", ORIGINAL.0, ORIGINAL.1),
        ratio: Some((ready + first) / (ORIGINAL.0 + ORIGINAL.1)),
        target: Some(("≤ the original's", ready <= ORIGINAL.0 && first <= ORIGINAL.1)),
    });
    let with_model = median(&mut with_model);
    let without = without_model();
    let file = std::fs::metadata(model_path()).map_or(0, |file| file.len());
    table.push(Row {
        what: "(g) resident memory without, with the model".into(),
        measured: format!("{without:.0}, {with_model:.0} MiB"),
        limit: format!("model file: {:.0} MiB", file as f64 / 1_048_576.0),
        ratio: None,
        target: None,
    });
}

/// A child that is ended with its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The `tirami` binary, ready, and its address.
fn start_binary(data_dir: &Path) -> (Killed, String) {
    let binary = std::env::var_os("TIRAMI_TEST_BINARY").expect("TIRAMI_TEST_BINARY is set");
    let mut command = Command::new(binary);
    command
        .args(["start", "--port", "0", "--model"])
        .arg(model_path())
        .arg("--data-dir")
        .arg(data_dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut node = Killed(command.spawn().expect("the binary runs"));
    let mut api = None;
    for line in BufReader::new(node.0.stdout.take().expect("piped")).lines() {
        let line = line.expect("text");
        api = line.strip_prefix("API: ").map(str::to_owned).or(api);
        if line == "ready" {
            break;
        }
    }
    (node, api.expect("the node says where its API is"))
}

async fn first_token(api: &str) {
    let client = Client::new(api, None).expect("a client");
    let models = client.models().await.expect("the models");
    let mut request = ChatRequest::new(models.data[0].id.clone()).user("Say hello.");
    request.max_tokens = Some(4);
    let mut stream = client.chat_stream(&request).await.expect("an answer");
    while let Some(chunk) = stream.next().await {
        if !chunk.expect("a chunk").text().is_empty() {
            return;
        }
    }
}

fn without_model() -> f64 {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg(WITHOUT_MODEL).arg(dir.path()).stdout(Stdio::piped());
    let mut node = Killed(command.spawn().expect("this program runs"));
    let mut line = String::new();
    let mut lines = BufReader::new(node.0.stdout.take().expect("piped"));
    lines.read_line(&mut line).expect("text");
    resident_mib(&node.0)
}

/// Resident memory as the system counts it; NaN where it does not say.
fn resident_mib(process: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()));
    let status = status.unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1_024.0)
}

/// An engine that holds no model and answers nothing.
struct NoModel(ModelInfo);

impl NoModel {
    fn new() -> Self {
        Self(ModelInfo {
            name: "none".into(),
            digest: ModelDigest::from_bytes([0; 32]),
            shape: ModelShape {
                parameters_active: 1,
                layers: 1,
                attention_width: 1,
                context_max: 2,
            },
            architecture: "none".into(),
            quantisation: "none".into(),
            size_bytes: 0,
            context_tokens: 2,
            embedding_width: 0,
            image_tokens_max: 0,
            build: "none".into(),
        })
    }
}

impl Engine for NoModel {
    fn model(&self) -> &ModelInfo {
        &self.0
    }

    fn prepare(&self, _: &Conversation) -> Result<Prompt, PrepareError> {
        Err(PrepareError::ContextLength { prompt_tokens: 2, context_tokens: 2 })
    }

    fn start(&self, _: Prompt, _: Sampling) -> Result<Generation, StartError> {
        Err(StartError::Stopped)
    }

    fn load(&self) -> EngineLoad {
        EngineLoad::default()
    }
}
