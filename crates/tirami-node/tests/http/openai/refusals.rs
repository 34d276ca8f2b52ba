//! What a server elsewhere refuses is told to the caller as what it is, and costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use tirami_sdk::types::{Limits, Scope};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};

use super::{adds, ask, body, events, give, patient_seller, request, selling, standing_still};
use crate::support::{Raw, TestNode, script};

const CHAT: &str = "/v1/chat/completions";
const SECRET: &str = "sk-secretsecretsecret";
/// Long enough for a full server to be asked three times, and not the fourth time.
const FIRST_WITHIN: Duration = Duration::from_secs(3);

/// A server that gives this answer to every request.
pub(super) async fn always(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            request(&mut stream).await;
            give(&mut stream, &answer).await;
        }
    });
    url
}

/// A refusal with this status and these words.
pub(super) fn refuses(status: u16, words: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} No\r\nconnection: close\r\n\r\n{words}").into_bytes()
}

/// Asks once, whole, and sees to it that the answer costs nothing and has no key in it.
async fn refused(seller: &TestNode) -> Raw {
    let client = seller.personal();
    let before = client.balance(None).await.unwrap();
    let raw = seller.post(CHAT, None, body(json!({}))).await;
    assert!(!raw.text.contains(SECRET), "{raw:?}");
    let status = seller.settled().await;
    assert_eq!((status.total_trades, status.open_holds), (0, 0), "{raw:?}");
    assert_eq!(client.balance(None).await.unwrap(), before, "{raw:?}");
    raw
}

fn message(raw: &Raw) -> String {
    raw.json()["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_refusal_of_the_server_has_its_status_and_its_code_and_costs_nothing() {
    let key = format!("{{\"error\":{{\"message\":\"who is {SECRET}?\"}}}}");
    let half = events(&[&adds("half an answer ")]);
    for (answer, status, code, retry_after, words) in [
        (refuses(400, "{\"error\":{\"message\":\"a\\nb\"}}"), 400, "invalid_request", "", ": a b;"),
        (refuses(422, "{\"message\":\"too long\"}"), 400, "invalid_request", "", ": too long;"),
        (refuses(413, ""), 400, "invalid_request", "", "does not say why"),
        (refuses(401, &key), 500, "engine_misconfigured", "", "owner must act"),
        (refuses(403, &key), 500, "engine_misconfigured", "", "owner must act"),
        (refuses(404, &key), 404, "model_not_found", "", "does not have it"),
        (refuses(405, &key), 400, "unsupported", "", "has no /v1/chat/completions"),
        (refuses(501, &key), 400, "unsupported", "", "has no /v1/chat/completions"),
        (refuses(429, &key), 429, "engine_busy", "5", "is full"),
        (refuses(503, &key), 429, "engine_busy", "5", "is full"),
        (refuses(502, &key), 503, "engine_unreachable", "5", "cannot be reached"),
        (Vec::new(), 503, "engine_unreachable", "5", "cannot be reached"),
        (refuses(504, &key), 504, "engine_slow", "", "for too long"),
        (half, 502, "engine_broke_off", "", "broke the answer off"),
        (refuses(500, &key), 500, "engine_failed", "", "the node's log"),
    ] {
        let answered = String::from_utf8_lossy(&answer).into_owned();
        let url = always(answer).await;
        let seller = patient_seller(&url, SECRET, (4, FIRST_WITHIN)).await;
        let raw = refused(&seller).await;
        let told = (raw.status, raw.code(), raw.header("retry-after"));
        assert_eq!(told, (status, code.to_owned(), retry_after), "{answered}: {raw:?}");
        assert!(message(&raw).contains(words), "{answered}: {raw:?}");
        assert!(message(&raw).contains("only what was delivered is charged"), "{raw:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_full_for_longer_than_it_may_take_is_told_of_at_once_with_its_wait() {
    let answer = b"HTTP/1.1 429 No\r\nretry-after: 9000\r\nconnection: close\r\n\r\n".to_vec();
    let url = always(answer).await;
    let seller = patient_seller(&url, SECRET, (4, Duration::from_secs(300))).await;
    let began = std::time::Instant::now();
    let raw = refused(&seller).await;
    assert!(began.elapsed() < Duration::from_secs(150), "{raw:?}");
    let told = (raw.status, raw.code(), raw.header("retry-after"));
    assert_eq!(told, (429, "engine_busy".to_owned(), "9000"), "{raw:?}");
    assert!(message(&raw).contains("ask again in 9000 seconds"), "{raw:?}");
}

#[tokio::test]
async fn who_has_spent_a_budget_is_refused_and_the_server_is_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            request(&mut stream).await;
            give(&mut stream, &events(&[&adds("word "), "[DONE]"])).await;
        }
    });
    let seller = patient_seller(&url, SECRET, (4, Duration::from_secs(300))).await;
    let agent = seller.agent("payer", "100").await;
    let key = seller.key(Scope::Inference, Some(&agent.did), Limits::default()).await;
    let client = seller.with(&key);
    let answer = client.chat(&ask(1)).await.unwrap();
    assert_eq!((answer.text().as_str(), asked.load(Ordering::Relaxed)), ("word ", 1));
    let spent = answer.x_tirami.unwrap().trm_cost;
    seller.limit(&key.info.id, Limits { lifetime_max_trm: Some(spent), ..Limits::default() }).await;
    for stream in [false, true] {
        let body = body(json!({"max_tokens": 1, "stream": stream}));
        let raw = seller.post(CHAT, Some(&key.key), body).await;
        assert_eq!((raw.status, raw.code().as_str()), (403, "budget_limit"), "{raw:?}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let status = seller.settled().await;
    assert_eq!((status.total_trades, status.open_holds), (1, 0));
    assert_eq!(seller.admin.balance(Some(&agent.did)).await.unwrap().consumed, spent);
}

#[tokio::test]
async fn a_server_that_is_not_there_or_speaks_no_tls_or_says_nothing_is_told_apart() {
    // It has its port, so that no other test gets it, and hears nobody there.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let gone = format!("http://{}", nobody.local_addr().unwrap());
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let no_tls = format!("https://{}", plain.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        let read = stream.read(&mut [0; 4_096]).await.unwrap();
        assert!(read > 0);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    for (url, status, code, retry_after) in [
        (gone, 503, "engine_unreachable", "5"),
        (no_tls, 503, "engine_unreachable", "5"),
        (standing_still("").await, 504, "engine_slow", ""),
    ] {
        let seller = patient_seller(&url, SECRET, (4, FIRST_WITHIN)).await;
        let raw = refused(&seller).await;
        let told = (raw.status, raw.code(), raw.header("retry-after"));
        assert_eq!(told, (status, code.to_owned(), retry_after), "{url}: {raw:?}");
    }
}

#[tokio::test]
async fn the_servers_words_are_one_short_line_without_the_key() {
    let long = format!("{SECRET}\u{1b}[2J\r\n{}", "é".repeat(1_000));
    let words = json!({"error": {"message": long}}).to_string();
    let url = always(refuses(400, &words)).await;
    let seller = patient_seller(&url, SECRET, (4, FIRST_WITHIN)).await;
    let message = message(&refused(&seller).await);
    assert!(message.contains("… [2J  éé"), "{message}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
    let of_server = message.split_once("invalid: ").unwrap().1.split_once(';').unwrap().0;
    assert!(of_server.len() <= 300 && of_server.len() > 290, "{message}");
}

#[tokio::test]
async fn in_a_stream_and_as_a_message_it_is_the_same_refusal() {
    let url = always(refuses(401, "no")).await;
    let seller = patient_seller(&url, SECRET, (4, FIRST_WITHIN)).await;
    let streamed = seller.post(CHAT, None, body(json!({"stream": true}))).await;
    assert!(streamed.text.contains("\"engine_misconfigured\""), "{streamed:?}");
    let ask = json!({
        "model": "sold", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}],
    });
    let told = seller.post("/v1/messages", None, ask.to_string()).await;
    assert_eq!((told.status, told.code().as_str()), (500, "engine_misconfigured"), "{told:?}");
    let status = seller.settled().await;
    assert_eq!((status.total_trades, status.open_holds), (0, 0));
}

#[tokio::test]
async fn log_probabilities_of_a_response_are_refused_as_those_of_a_chat_are() {
    let (_server, seller) = selling(script(2, Duration::ZERO), None, 1).await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    let included = json!(["message.output_text.logprobs"]);
    for (path, asked, param) in [
        (CHAT, json!({"model": "sold", "messages": messages, "logprobs": true}), "logprobs"),
        ("/v1/responses", json!({"model": "sold", "input": "hi", "include": included}), "include"),
    ] {
        let raw = seller.post(path, None, asked.to_string()).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, "unsupported_parameter"), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], param, "{raw:?}");
    }
}
