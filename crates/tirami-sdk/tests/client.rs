//! The client against a socket: every route has a method, and failures say what happened.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as tests do")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use tirami_sdk::endpoints::Operation;
use tirami_sdk::types::*;
use tirami_sdk::{Client, ClientError, SignedAmount};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Answers every connection's first request with `answer` and keeps the request lines.
async fn serve(answer: impl Into<String>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let lines = Arc::new(Mutex::new(Vec::new()));
    let (answer, seen) = (answer.into(), lines.clone());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = vec![0; 64 * 1024];
            let count = socket.read(&mut bytes).await.unwrap();
            let head = String::from_utf8_lossy(&bytes[..count]).into_owned();
            seen.lock().unwrap().push(head);
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (url, lines)
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nx-request-id: r-7\r\nretry-after: 3\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn import() -> ImportAgent {
    let cryption = Cryption {
        algorithm: String::new(),
        memory_kib: 0,
        passes: 0,
        lanes: 0,
        salt: String::new(),
        nonce: String::new(),
    };
    let bundle = Bundle {
        format: String::new(),
        did: String::new(),
        name: String::new(),
        cryption,
        ciphertext: String::new(),
    };
    ImportAgent { passphrase: String::new(), bundle, name: None }
}

fn key() -> CreateKey {
    let label = "k".to_owned();
    CreateKey { label, scope: Scope::Read, agent: None, limits: None, expires_at_ms: None }
}

async fn the_mesh_is_asked_for(client: &Client) {
    let party = "07".repeat(32);
    let amount_trm = "1".parse().unwrap();
    let transfer =
        TransferRequest { to: party.clone(), amount_trm, idempotency_key: "k".to_owned() };
    let sponsor = SponsorRequest { party: party.clone(), amount_trm: None };
    let enrol = EnrolRequest { party: party.clone(), owner: String::new(), line_trm: None };
    assert!(client.peers().await.is_err());
    assert!(client.providers().await.is_err());
    assert!(client.refusals().await.is_err());
    assert!(client.topology().await.is_err());
    assert!(client.protocol().await.is_err());
    assert!(client.schedule(&ScheduleRequest::default()).await.is_err());
    assert!(client.route(Some("m"), Some(1), Some("price"), None).await.is_err());
    assert!(client.transfer(&transfer).await.is_err());
    assert!(client.mesh_invite(&InviteRequest::default()).await.is_err());
    assert!(client.mesh_join("x").await.is_err());
    assert!(client.mesh_charter().await.is_err());
    assert!(client.approve_charter("x").await.is_err());
    assert!(client.change_witnesses(WitnessAction::Add, &party).await.is_err());
    assert!(client.sponsor(&sponsor).await.is_err());
    assert!(client.enrol(&enrol).await.is_err());
    assert!(client.pause().await.is_err());
    assert!(client.resume().await.is_err());
    assert!(client.serving().await.is_err());
    assert!(client.change_serving(&ServingChange::default()).await.is_err());
}

async fn other_forms_are_asked_for(client: &Client) {
    let message = MessagesRequest::new("m", 1, "hi");
    assert!(client.complete(&CompletionRequest::new("m", "hi")).await.is_err());
    assert!(client.message(&message).await.is_err());
    assert!(client.count_tokens(&message).await.is_err());
    assert!(client.respond(&ResponsesRequest::new("m", "hi")).await.is_err());
    assert!(client.response("{id}").await.is_err());
    assert!(client.delete_response("{id}").await.is_err());
    assert!(client.response_input_items("{id}", Some("asc"), Some(5), Some("a")).await.is_err());
}

#[tokio::test]
async fn every_row_of_the_table_has_a_method() {
    let (url, lines) = serve(answer("418 I'm a teapot", "text/plain", "")).await;
    let client = Client::new(&url, Some("tirami_00000001_x")).unwrap();
    let chat = ChatRequest::new("m").user("hi");
    let (import, key) = (import(), key());
    let policy = PolicyRequest { target: "node".into(), limits: Limits::default() };
    let one = SignedAmount::from_micro(1_000_000);
    assert!(client.chat(&chat).await.is_err());
    assert!(client.chat_stream(&chat).await.is_err());
    other_forms_are_asked_for(&client).await;
    assert!(client.health().await.is_err());
    assert!(client.healthz().await.is_err());
    assert!(client.ready().await.is_err());
    assert!(client.openapi().await.is_err());
    assert!(client.metrics().await.is_err());
    the_mesh_is_asked_for(&client).await;
    assert!(client.models().await.is_err());
    assert!(client.model("{id}").await.is_err());
    assert!(client.model_states().await.is_err());
    assert!(client.load_model("{id}", &LoadModel::default()).await.is_err());
    assert!(client.unload_model("{id}").await.is_err());
    assert!(client.embeddings(&EmbeddingsRequest::default()).await.is_err());
    assert!(client.tokenize(&TokenizeRequest::default()).await.is_err());
    assert!(client.detokenize(&DetokenizeRequest::default()).await.is_err());
    assert!(client.balance(None).await.is_err());
    assert!(client.pricing().await.is_err());
    assert!(client.trades(Some("a"), Some(5), Some(-1)).await.is_err());
    assert!(client.trade("{id}").await.is_err());
    assert!(client.network().await.is_err());
    assert!(client.safety(None).await.is_err());
    assert!(client.status().await.is_err());
    assert!(client.estimate(&EstimateRequest::default()).await.is_err());
    assert!(client.agents().await.is_err());
    assert!(client.create_agent(&CreateAgent::default()).await.is_err());
    assert!(client.fund_agent("{did}", one).await.is_err());
    assert!(client.export_agent("{did}", "p").await.is_err());
    assert!(client.import_agent(&import).await.is_err());
    assert!(client.reset_breaker("{did}").await.is_err());
    assert!(client.kill(&KillRequest { activate: true, reason: None }).await.is_err());
    assert!(client.set_policy(&policy).await.is_err());
    assert!(client.approvals().await.is_err());
    assert!(client.all_approvals().await.is_err());
    assert!(client.decide_approval(1, true).await.is_err());
    assert!(client.keys().await.is_err());
    assert!(client.create_key(&key).await.is_err());
    assert!(client.rotate_key("{id}", 1).await.is_err());
    assert!(client.revoke_key("{id}").await.is_err());

    let called: BTreeSet<String> = lines
        .lock()
        .unwrap()
        .iter()
        .map(|head| {
            let mut words = head.split_whitespace();
            let method = words.next().unwrap();
            let path = words.next().unwrap().split('?').next().unwrap();
            let path = path.replace("%7B", "{").replace("%7D", "}");
            format!("{method} {}", path.replace("approvals/1", "approvals/{id}"))
        })
        .collect();
    let rows: BTreeSet<String> = Operation::ALL
        .iter()
        // Pages for a browser; the client only knows where they are.
        .filter(|operation| !is_page(**operation))
        .map(|operation| operation.endpoint())
        .map(|row| format!("{} {}", row.method.name(), row.path))
        .collect();
    assert_eq!(called, rows);
    let heads = lines.lock().unwrap();
    assert!(heads.iter().all(|head| head.contains("authorization: Bearer tirami_00000001_x")));
    assert!(heads.iter().any(|head| head.contains("?agent=a&limit=5&before=-1 ")));
    assert!(heads.iter().any(|head| head.contains("/approvals?state=all ")));
}

const fn is_page(operation: Operation) -> bool {
    use Operation as O;
    matches!(operation, O::Home | O::Docs | O::DocsFolder | O::DocsFile)
}

#[tokio::test]
async fn a_refusal_keeps_status_code_message_and_request_id() {
    let body = r#"{"error":{"message":"too much","type":"rate_limit_error","param":null,
        "code":"budget_limit"}}"#;
    let (url, _) = serve(answer("429 Too Many Requests", "application/json", body)).await;
    let error = Client::new(&url, None).unwrap().status().await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(429), Some("budget_limit")));
    assert_eq!(error.to_string(), "too much");
    assert!(error.is_transient());
    let refusal = error.refusal().unwrap();
    assert_eq!(refusal.request_id.as_deref(), Some("r-7"));
    assert_eq!(refusal.retry_after_s, Some(3));
}

#[tokio::test]
async fn when_nobody_listens_the_error_says_what_to_start() {
    let url = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let error = Client::new(&url, None).unwrap().health().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no node answers at {url}; start one with `tirami start`")
    );
}

#[tokio::test]
async fn addresses_and_keys_that_cannot_work_are_refused_at_once() {
    for url in ["", "127.0.0.1:3000", "ftp://host", "http://"] {
        assert!(matches!(Client::new(url, None), Err(ClientError::Url { .. })), "{url}");
    }
    let error = Client::new("http://localhost", Some("a\nb"));
    assert!(matches!(error, Err(ClientError::ApiKey)));
    assert!(Client::new("https://example.org/v1/", None).is_ok());
}

#[tokio::test]
async fn a_stream_gives_its_chunks_and_an_error_in_it_ends_it() {
    let chunk = |text: &str| {
        format!(
            r#"{{"id":"c","object":"chat.completion.chunk","created":1,"model":"m",
            "system_fingerprint":"f","choices":[{{"index":0,"delta":{{"content":"{text}"}},
            "finish_reason":null}}]}}"#
        )
        .replace('\n', "")
    };
    let error = r#"{"error":{"message":"the engine failed","type":"server_error","param":null,
        "code":"engine_failed"}}"#
        .replace('\n', "");
    let request = ChatRequest::new("m").user("hi");

    let whole = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", chunk("a"), chunk("b"));
    let (url, _) = serve(answer("200 OK", "text/event-stream", &whole)).await;
    let stream = Client::new(&url, None).unwrap().chat_stream(&request).await.unwrap();
    let texts: Vec<_> = stream.map(|chunk| chunk.unwrap().text().to_owned()).collect().await;
    assert_eq!(texts, ["a", "b"]);

    let failed = format!("data: {}\n\ndata: {error}\n\n", chunk("a"));
    let (url, _) = serve(answer("200 OK", "text/event-stream", &failed)).await;
    let stream = Client::new(&url, None).unwrap().chat_stream(&request).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    assert_eq!(items.len(), 2);
    assert_eq!(items[1].as_ref().unwrap_err().code(), Some("engine_failed"));

    let cut = format!("data: {}\n\n", chunk("a"));
    let (url, _) = serve(answer("200 OK", "text/event-stream", &cut)).await;
    let stream = Client::new(&url, None).unwrap().chat_stream(&request).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    assert!(matches!(items[1], Err(ClientError::Answer { .. })));
}
