//! What stands around the engine: HTTP and the ledger.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tirami_infer::engine::{Conversation, Engine, Message, Piece, Sampling};
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_infer::llama::{LlamaEngine, LlamaOptions};
use tirami_node::config::Config;
use tirami_node::mesh::MeshOptions;
use tirami_node::models::Models;
use tirami_node::node::{Node, NodeOptions, RunningNode};
use tirami_sdk::Client;
use tirami_sdk::types::{ChatRequest, PolicyRequest};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::bench::{Bench, model_path, threads};
use crate::report::{Row, median, quantile};

const REQUESTS: usize = 400;
const STREAMS: usize = 16;
const SHORT_TOKENS: u32 = 8;
const ROOM_TOKENS: u32 = 512;

/// A whole request to an engine that answers at once, its money durable.
pub(crate) fn overhead(bench: &mut Bench) {
    let runtime = Runtime::new().expect("a runtime");
    let script = FakeScript { tokens_per_answer: 1, delay: Duration::ZERO, fail_after: None };
    let (took, floor, synced) = runtime.block_on(async {
        let hosted = Hosted::start(Arc::new(FakeEngine::new(script))).await;
        let mut request = ChatRequest::new("fake").user("Say hello.");
        request.max_tokens = Some(1);
        let (mut took, mut floor, mut synced) = (Vec::new(), Vec::new(), Vec::new());
        let mut file = File::create(hosted.dir.path().join("floor")).expect("a file");
        for round in 0..REQUESTS + 20 {
            let asked = Instant::now();
            hosted.client.chat(&request).await.expect("an answer");
            let answered = asked.elapsed();
            let asked = Instant::now();
            hosted.client.healthz().await.expect("a sign of life");
            let alive = asked.elapsed();
            let asked = Instant::now();
            file.write_all(&[7; 4_096]).and_then(|()| file.sync_data()).expect("written");
            // The first answers open the connection and fill caches.
            if round >= 20 {
                took.push(answered.as_secs_f64() * 1e3);
                floor.push(alive.as_secs_f64() * 1e3);
                synced.push(asked.elapsed().as_secs_f64() * 1e3);
            }
        }
        drop(hosted.node.shutdown().await);
        (took, floor, synced)
    });
    for (name, part, most) in [("p50", 0.5, 1.0), ("p99", 0.99, 5.0)] {
        let measured = quantile(&took, part);
        bench.table.push(Row {
            what: format!(
                "a request to an empty engine, HTTP and ledger, {name} of {} requests",
                took.len()
            ),
            unit: "ms",
            measured,
            beside: vec![
                ("an HTTP request that asks for nothing".to_owned(), quantile(&floor, part)),
                ("one synced write of 4 KiB".to_owned(), quantile(&synced, part)),
            ],
            target: Some((format!("≤ {most} ms"), measured <= most)),
            why: "a hold, an order, a receipt and a payment are signed and synced before the \
                  answer",
        });
    }
}

/// Short answers through the node, and of the same engine through a server that keeps no accounts.
pub(crate) fn accounting(bench: &mut Bench) {
    let options = LlamaOptions {
        sequences: STREAMS as u32,
        context_tokens: Some(ROOM_TOKENS),
        threads: Some(threads()),
        ..LlamaOptions::default()
    };
    let engine = Arc::new(LlamaEngine::load(&model_path(), &options).expect("a model"));
    let runtime = Runtime::new().expect("a runtime");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let hosted = Hosted::start(Arc::clone(&engine) as _).await;
        let plain = plain_server(Arc::clone(&engine)).await;
        for round in 0..=bench.rounds {
            let questions: Vec<_> = (0..STREAMS).map(|_| bench.question()).collect();
            let booked = wave(hosted.node.api, &engine.model().name, &questions).await;
            let questions: Vec<_> = (0..STREAMS).map(|_| bench.question()).collect();
            let unbooked = wave(plain, "model", &questions).await;
            if round > 0 {
                with.push(booked);
                without.push(unbooked);
            }
        }
        drop(hosted.node.shutdown().await);
    });
    // The rounds are pairs: what the machine does otherwise is nearly the same for both.
    let ratios: Vec<f64> =
        with.iter().zip(&without).map(|(with, without)| with / without).collect();
    let (measured, plain) = (median(&with), median(&without));
    let cost = (1.0 - median(&ratios)) * 100.0;
    bench.table.push(Row {
        what: format!(
            "{STREAMS} streams of {SHORT_TOKENS} tokens with the ledger: it costs {cost:.1} %"
        ),
        unit: "tokens/s",
        measured,
        beside: vec![("without accounts".to_owned(), plain)],
        target: Some(("costs ≤ 2 %".to_owned(), cost <= 2.0)),
        why: "as above, on the processor that also computes",
    });
}

/// A node in this process, without limits.
struct Hosted {
    node: RunningNode,
    client: Client,
    dir: tempfile::TempDir,
}

impl Hosted {
    async fn start(engine: Arc<dyn Engine>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = Config { personal_agent_answers: 1_000_000, ..Config::defaults(dir.path()) };
        let options = NodeOptions {
            data_dir: dir.path().to_path_buf(),
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            models: Models::from_iter([engine]),
            config,
            mesh: MeshOptions::default(),
        };
        let node = Node::start(options).await.expect("a node");
        let url = format!("http://{}", node.api);
        let key = std::fs::read_to_string(dir.path().join("api_token")).expect("an API key");
        let admin = Client::new(&url, Some(key.trim())).expect("a client");
        let agent = admin.status().await.expect("the status").personal_agent;
        for target in ["node".to_owned(), agent] {
            let limits = serde_json::from_str("{}").expect("limits");
            admin.set_policy(&PolicyRequest { target, limits }).await.expect("no limits");
        }
        let client = Client::new(&url, None).expect("a client");
        Self { node, client, dir }
    }
}

/// Tokens per second of all questions asked at once.
async fn wave(address: SocketAddr, model: &str, questions: &[String]) -> f64 {
    let asked = Instant::now();
    let answers: Vec<_> = questions
        .iter()
        .map(|question| {
            let body = json!({
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": SHORT_TOKENS,
                "temperature": 0.0,
                "stream": true,
            });
            tokio::spawn(pieces(address, body.to_string()))
        })
        .collect();
    let mut count = 0;
    for answer in answers {
        count += answer.await.expect("an answer");
    }
    count as f64 / asked.elapsed().as_secs_f64()
}

/// Asks and reads to the end; gives the number of pieces with text.
async fn pieces(address: SocketAddr, body: String) -> usize {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let has_text = |line: &&str| {
        let event = line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok());
        let event: Value = event.unwrap_or_default();
        event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
    };
    text.lines().filter(has_text).count()
}

/// A server around the engine that streams the same events and keeps no accounts.
async fn plain_server(engine: Arc<LlamaEngine>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(plain_answer(Arc::clone(&engine), stream));
        }
    });
    address
}

async fn plain_answer(engine: Arc<LlamaEngine>, stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a header");
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    let asked: Value = serde_json::from_slice(&body).expect("JSON");
    let content = asked["messages"][0]["content"].as_str().expect("a question");
    let messages = vec![Message::new("user", content)];
    let prompt = engine.prepare(&Conversation::from(messages)).expect("a prompt");
    let sampling = Sampling { completion_max: SHORT_TOKENS, ..Sampling::default() };
    let mut generation = engine.start(prompt, sampling).expect("started");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    while let Some(Piece::Delta { text, .. }) = generation.pieces.recv().await {
        let event = json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        stream.write_all(format!("data: {event}\n\n").as_bytes()).await.expect("sent");
        stream.flush().await.expect("sent");
    }
    stream.write_all(b"data: [DONE]\n\n").await.expect("sent");
    stream.shutdown().await.expect("closed");
}
