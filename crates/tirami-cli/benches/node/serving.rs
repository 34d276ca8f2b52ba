//! Tokens per second through HTTP beside the engine's bare loop, same process, same model, in
//! interleaved rounds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use tirami_infer::engine::{Conversation, Engine, Message};
use tirami_infer::llama::{BareSetting, LlamaEngine, LlamaOptions};
use tirami_node::config::Config;
use tirami_node::mesh::MeshOptions;
use tirami_node::models::Models;
use tirami_node::node::{Node, NodeOptions};
use tirami_sdk::Client;
use tirami_sdk::types::ChatRequest;

use crate::report::{Row, Table, median};

/// A question whose greedy answer is long.
const QUESTION: &str = "Write a long story about a lighthouse keeper and the sea.";
const TOKENS: u32 = 160;
const ROUNDS: usize = 7;

/// The model the tests use.
pub(crate) fn model_path() -> PathBuf {
    std::env::var_os("TIRAMI_TEST_MODEL").map(PathBuf::from).expect("TIRAMI_TEST_MODEL is set")
}

/// Row (a).
pub(crate) async fn over_http(table: &mut Table) {
    let engine =
        Arc::new(LlamaEngine::load(&model_path(), &LlamaOptions::default()).expect("a model"));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = NodeOptions {
        data_dir: dir.path().to_path_buf(),
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        models: Models::from_iter([Arc::clone(&engine) as Arc<dyn Engine>]),
        config: Config::defaults(dir.path()),
        mesh: MeshOptions::default(),
    };
    let node = Node::start(options).await.expect("a node");
    let client = Client::new(&format!("http://{}", node.api), None).expect("a client");
    let mut request = ChatRequest::new(engine.model().name.clone()).user(QUESTION);
    request.max_tokens = Some(TOKENS);
    request.temperature = Some(0.0);
    let message = Message::new("user", QUESTION);
    let prompts = [engine.prepare(&Conversation::from(vec![message])).expect("a prompt")];
    let (mut http, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let run = engine.run_bare(&prompts, TOKENS, BareSetting::Engine).expect("a bare run");
        bare.push(f64::from(TOKENS - 1) / run.decode.as_secs_f64());
        http.push(streamed_rate(&client, &request).await);
    }
    drop(node.shutdown().await);
    let (http, bare) = (median(&mut http), median(&mut bare));
    table.push(Row {
        what: format!("(a) decode over HTTP, one stream of {TOKENS} tokens"),
        measured: format!("{http:.1} tokens/s"),
        limit: format!("bare engine loop: {bare:.1} tokens/s"),
        ratio: Some(http / bare),
        target: Some(("≥ 0.97 × bare", http / bare >= 0.97)),
    });
}

/// Completion tokens after the first, per second from the first piece to the end of the answer,
/// its charge and receipt included.
async fn streamed_rate(client: &Client, request: &ChatRequest) -> f64 {
    let mut stream = client.chat_stream(request).await.expect("an answer");
    let (mut first, mut tokens) = (None, 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.expect("a chunk");
        if !chunk.text().is_empty() {
            first.get_or_insert_with(Instant::now);
        }
        tokens = chunk.usage.map_or(tokens, |usage| usage.completion_tokens);
    }
    let first = first.expect("a piece of text");
    f64::from(tokens.saturating_sub(1)) / first.elapsed().as_secs_f64()
}
