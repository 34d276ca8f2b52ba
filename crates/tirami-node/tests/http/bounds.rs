//! Deadlines and bounds of connections, and what a browser on this machine meets.

use std::time::{Duration, Instant};

use crate::support::{Raw, TestNode, chat, script};
use tirami_core::ModelDigest;
use tirami_infer::engine::{Engine as _, ModelInfo};
use tirami_infer::fake::FakeEngine;
use tirami_node::http::HttpConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

const SOON: Duration = Duration::from_millis(300);
const LATE: Duration = Duration::from_secs(20);

fn quick() -> FakeEngine {
    FakeEngine::new(script(3, Duration::ZERO))
}

/// A connection that takes in next to nothing by itself.
async fn connect(node: &TestNode) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(node.node.api).await.unwrap()
}

/// What comes until the node hangs up.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = tokio::time::timeout(LATE, stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn healthz(node: &TestNode) -> Result<u16, reqwest::Error> {
    let answer = node.http.get(format!("{}/healthz", node.url)).send().await?;
    Ok(answer.status().as_u16())
}

#[tokio::test]
async fn a_connection_without_headers_is_ended() {
    let node = TestNode::within(quick(), |http| http.header_within = SOON).await;
    let started = Instant::now();
    let mut silent = connect(&node).await;
    let mut slow = connect(&node).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").await.unwrap();
    for stream in [&mut silent, &mut slow] {
        assert!(!rest(stream).await.contains("200 OK"));
    }
    assert!(started.elapsed() >= SOON && started.elapsed() < LATE);
    assert_eq!(healthz(&node).await.unwrap(), 200);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let node = TestNode::within(quick(), |http| http.body_within = SOON).await;
    let mut stream = connect(&node).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_too_slow"), "{answer}");
}

#[tokio::test]
async fn more_connections_than_there_may_be_wait_for_their_turn() {
    // One is the admin client's.
    let node = TestNode::within(quick(), |http| {
        http.connections_max = 3;
        http.header_within = Duration::from_secs(600);
    })
    .await;
    let (first, _second) = (connect(&node).await, connect(&node).await);
    let waiting = tokio::time::timeout(SOON, healthz(&node)).await;
    assert!(waiting.is_err(), "a fourth connection was served: {waiting:?}");
    drop(first);
    let served = tokio::time::timeout(LATE, healthz(&node)).await;
    assert_eq!(served.unwrap().unwrap(), 200);
}

#[tokio::test]
async fn one_address_takes_no_more_than_its_share_of_the_connections() {
    // One address has 64 of them.
    let node = TestNode::within(quick(), |http| {
        http.connections_max = 128;
        http.header_within = Duration::from_secs(600);
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(connect(&node).await);
    }
    let mut beyond = connect(&node).await;
    assert_eq!(rest(&mut beyond).await, "");
    #[cfg(target_os = "linux")]
    {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = socket.connect(node.node.api).await.unwrap();
        let asks = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        other.write_all(asks.as_bytes()).await.unwrap();
        let answer = rest(&mut other).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop(held);
}

#[tokio::test]
async fn a_stop_is_heard_while_every_connection_is_taken() {
    let node = TestNode::within(quick(), |http| http.connections_max = 2).await;
    let _held = connect(&node).await;
    let TestNode { node, .. } = node;
    let stopped = tokio::time::timeout(LATE, node.shutdown()).await;
    stopped.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_takes_nothing_loses_its_connection() {
    let node = TestNode::within(quick(), |http| {
        http.connections_max = 2;
        http.stall_max = SOON;
        http.header_within = Duration::from_secs(600);
    })
    .await;
    let mut silent = connect(&node).await;
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(400);
    silent.write_all(request.as_bytes()).await.unwrap();
    // The only other connection is the admin client's, so this waits for the silent one's end.
    let served = tokio::time::timeout(LATE, healthz(&node)).await;
    assert_eq!(served.unwrap().unwrap(), 200);
    drop(silent);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_charged_for_what_was_taken() {
    let shape = quick().model().shape;
    let digest = ModelDigest::from_bytes([0xfa; 32]);
    // A long name makes long chunks, which no socket's buffer takes in whole.
    let name = "long".repeat(2_048);
    let model = ModelInfo { name, shape, digest, ..quick().model().clone() };
    let engine = FakeEngine::with_model(script(4_000, Duration::ZERO), model);
    let node = TestNode::within(engine, |http| http.stall_max = SOON).await;
    let mut request = chat(4_000);
    request.model = digest.to_string();
    request.stream = Some(true);
    let body = serde_json::to_string(&request).unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut silent = connect(&node).await;
    silent.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    while node.admin.status().await.unwrap().total_trades == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = node.settled().await;
    assert_eq!(status.engine.running, 0);
    let trade = &node.admin.trades(None, None, None).await.unwrap().trades[0];
    assert_eq!(trade.finish, "cancelled");
    assert!((1..4_000).contains(&trade.completion_tokens), "{trade:?}");
    drop(silent);
}

#[tokio::test]
async fn a_host_named_in_the_request_line_counts_as_host() {
    let node = TestNode::within(quick(), |_| {}).await;
    for (uri, status) in [
        ("/v1/models", "200"),
        ("http://localhost/v1/models", "200"),
        ("http://evil.example/v1/models", "403"),
        ("http://localhost@evil.example/v1/models", "403"),
    ] {
        let mut stream = connect(&node).await;
        let request = format!("GET {uri} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{uri}: {answer}");
    }
}

#[tokio::test]
async fn an_engine_that_ended_is_not_ready() {
    let node = TestNode::within(quick(), |_| {}).await;
    let ready = || async {
        let answer = node.http.get(format!("{}/readyz", node.url)).send().await.unwrap();
        let raw = Raw::of(answer).await;
        let components = raw.json()["components"].clone();
        (raw.status, components["ledger"] == true, components["engine"] == true)
    };
    assert_eq!(ready().await, (200, true, true));
    node.engine.stop();
    assert_eq!(ready().await, (503, true, false));
    let error = node.personal().chat(&chat(1)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(503), Some("engine_stopped")));
    assert_eq!(node.settled().await.total_trades, 0);
}

#[tokio::test]
async fn a_browser_finds_the_page_and_the_figures() {
    let node = TestNode::within(quick(), |_| {}).await;
    let get = |path: &'static str| {
        let call = node.http.get(format!("{}{path}", node.url));
        let call = call.header("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        let call = call.header("sec-fetch-site", "none").header("sec-fetch-mode", "navigate");
        async move { Raw::of(call.send().await.unwrap()).await }
    };
    let page = get("/docs/index.html").await.text;
    assert!(page.contains("<html"), "{page}");
    for path in ["/", "/docs", "/docs/"] {
        let raw = get(path).await;
        assert_eq!((raw.status, &raw.text), (200, &page), "{path}");
    }
    let figures = get("/metrics").await;
    assert_eq!(
        (figures.status, figures.header("content-type")),
        (200, "text/plain; charset=utf-8")
    );
    assert!(figures.text.contains("tirami_trades 0"), "{}", figures.text);
    let scraped = node.http.get(format!("{}/metrics", node.url)).send().await.unwrap();
    let kind = Raw::of(scraped).await.header("content-type").to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
}

/// As long as a node takes them by default.
fn long_bodies(http: &mut HttpConfig) {
    http.body_max_bytes = 4 << 20;
}

#[tokio::test]
async fn a_body_of_too_many_small_things_is_refused_before_anything_is_made_of_it() {
    let node = TestNode::within(quick(), long_bodies).await;
    let with = |one: &str, count: usize| {
        let many = format!("{one},").repeat(count);
        let start = r#"{"model":"fake","max_tokens":1,"messages":[{"role":"user","content":"hi"}]"#;
        format!(r#"{start},"unknown":[{many}0]}}"#)
    };
    for path in ["chat/completions", "completions", "embeddings", "messages", "responses"] {
        let answer = node.post(&format!("/v1/{path}"), None, with(r#"{"a":0}"#, 100_000)).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.text);
        // Anthropic's envelope has no code.
        assert!(answer.text.contains("65536 fields and lists"), "{path}: {}", answer.text);
    }
    for path in ["/tokenize", "/v1/tirami/estimate", "/v1/chat/completions"] {
        let answer = node.post(path, None, with("0", 400_000)).await;
        assert_eq!((answer.status, &*answer.code()), (400, "too_many_values"), "{path}");
    }
    let answer = node.post("/v1/chat/completions", None, with(r#"{"a":0}"#, 60_000)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn bodies_that_are_withheld_take_the_room_there_is_and_short_ones_pass() {
    let patient = |http: &mut HttpConfig| {
        long_bodies(http);
        http.body_within = Duration::from_secs(600);
    };
    let node = TestNode::within(quick(), patient).await;
    let length = 4 << 20;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    let part = vec![b' '; length - 1];
    let mut held = Vec::new();
    // Each takes 63 of 2 048 parts of the room.
    for _ in 0..33 {
        let mut stream = TcpStream::connect(node.node.api).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // One that finds no room is hung up on.
        if stream.write_all(&part).await.is_ok() {
            held.push(stream);
        }
    }
    // 32 parts are left, and this takes 34.
    let long = format!("{}{{}}", " ".repeat(34 * (64 << 10)));
    let send = || async {
        let call = node.http.post(format!("{}/v1/chat/completions", node.url));
        let call = call.header("content-type", "application/json").body(long.clone());
        // The node may hang up before it has read what it refuses.
        Some(Raw::of(call.send().await.ok()?).await)
    };
    let full = async {
        loop {
            if let Some(answer) = send().await
                && answer.status == 429
            {
                break answer;
            }
        }
    };
    let answer = tokio::time::timeout(LATE, full).await.unwrap();
    assert_eq!((&*answer.code(), answer.header("retry-after")), ("bodies_full", "2"));
    node.personal().chat(&chat(1)).await.unwrap();
    drop(held);
    let free = async { while send().await.is_none_or(|answer| answer.status == 429) {} };
    tokio::time::timeout(LATE, free).await.unwrap();
}

#[tokio::test]
async fn what_comes_with_many_prompts_is_not_copied_for_each_beyond_a_bodys_length() {
    let node = TestNode::within(quick(), long_bodies).await;
    let with = |length: usize| {
        let (prompts, more) = (vec!["hi"; 16], "x".repeat(length));
        let body = serde_json::json!({"model": "fake", "prompt": prompts, "unknown": more});
        body.to_string()
    };
    let answer = node.post("/v1/completions", None, with(300 << 10)).await;
    assert_eq!((answer.status, &*answer.code()), (400, "prompts_too_large"), "{}", answer.text);
    let answer = node.post("/v1/completions", None, with(200 << 10)).await;
    assert_ne!(answer.code(), "prompts_too_large", "{}", answer.text);
    assert_eq!(node.settled().await.open_holds, 0);
}
