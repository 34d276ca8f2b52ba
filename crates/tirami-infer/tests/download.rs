//! Downloads from a local server that misbehaves: a verified file or a clear error, nothing else.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tirami_infer::catalogue;
use tirami_infer::download::{DownloadError, Expected, Progress, download};
use tirami_infer::models::{ModelStore, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What the server does with its n-th request, counted from 0.
type Behaviour = fn(usize, &Request, &[u8]) -> Reply;

#[derive(Debug, Clone)]
struct Request {
    path: String,
    range: Option<usize>,
    if_range: Option<String>,
}

/// Raw bytes of an answer; the connection is closed after them.
struct Reply(Vec<u8>);

fn reply(status: &str, headers: &str, body: &[u8]) -> Reply {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n\r\n");
    Reply([head.as_bytes(), body].concat())
}

/// An honest answer, as a hub gives it, of which only `send` bytes arrive.
fn honest(request: &Request, content: &[u8], send: usize) -> Reply {
    let length = content.len();
    let from = request.range.filter(|_| request.if_range.as_deref() == Some("\"v1\""));
    let (status, from) = from.map_or(("200 OK", 0), |from| ("206 Partial Content", from));
    let mut headers = format!("ETag: \"v1\"\r\nContent-Length: {}", length - from);
    if from > 0 {
        headers += &format!("\r\nContent-Range: bytes {from}-{}/{length}", length - 1);
    }
    reply(status, &headers, &content[from..(from + send).min(length)])
}

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

async fn serve(content: Vec<u8>, behaviour: Behaviour) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (seen, count) = (Arc::clone(&requests), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let header = |name: &str| {
                head.lines().find_map(|line| {
                    let (found, value) = line.split_once(": ")?;
                    found.eq_ignore_ascii_case(name).then(|| value.to_owned())
                })
            };
            let request = Request {
                path: head.split(' ').nth(1).unwrap().to_owned(),
                range: header("range")
                    .map(|range| range[6..].trim_end_matches('-').parse().unwrap()),
                if_range: header("if-range"),
            };
            seen.lock().unwrap().push(request.clone());
            let Reply(bytes) = behaviour(count.fetch_add(1, Ordering::Relaxed), &request, &content);
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
    });
    Server { address, requests }
}

fn content() -> Vec<u8> {
    (0..300_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn expected(content: &[u8]) -> Expected {
    Expected { size_bytes: Some(content.len() as u64), sha256: Some(sha256(content)) }
}

async fn fetch(server: &Server, target: &Path) -> Result<(), DownloadError> {
    let url = format!("{}/file", server.address);
    let received = AtomicU64::new(0);
    let progress = |progress: Progress| {
        assert!(progress.total_bytes.is_none_or(|total| progress.received_bytes <= total));
        received.store(progress.received_bytes, Ordering::Relaxed);
    };
    let outcome = download(&url, target, expected(&content()), &progress).await;
    if outcome.is_ok() {
        assert_eq!(received.load(Ordering::Relaxed), content().len() as u64);
    }
    outcome
}

/// Where a connection is dropped.
const PART: usize = 500_000;
/// What a server does, and what the download must come to.
const BEHAVIOURS: &[(&str, Behaviour, Result<(), &str>)] = &[
    ("honest", |_, r, c| honest(r, c, c.len()), Ok(())),
    ("drops twice", |n, r, c| honest(r, c, if n < 2 { PART } else { c.len() }), Ok(())),
    (
        "drops at once, then serves",
        |n, r, c| {
            if n < 3 { Reply(Vec::new()) } else { honest(r, c, c.len()) }
        },
        Ok(()),
    ),
    (
        "busy, then serves",
        |n, r, c| match n {
            0 => reply("429 Too Many Requests", "Content-Length: 0", b""),
            1 => reply("503 Service Unavailable", "Content-Length: 0", b""),
            _ => honest(r, c, c.len()),
        },
        Ok(()),
    ),
    (
        "ignores ranges",
        |n, r, c| {
            let request = Request { range: None, ..r.clone() };
            honest(&request, c, if n == 0 { PART } else { c.len() })
        },
        Ok(()),
    ),
    (
        "another version after a drop",
        |n, r, c| {
            let request = Request { if_range: Some("\"v0\"".to_owned()), ..r.clone() };
            honest(&request, c, if n == 0 { PART } else { c.len() })
        },
        Ok(()),
    ),
    (
        "sends another range",
        |n, r, c| match n {
            0 => honest(r, c, PART),
            1 => reply(
                "206 Partial Content",
                "ETag: \"v1\"\r\nContent-Range: bytes 7-9/10\r\nContent-Length: 3",
                b"abc",
            ),
            _ => honest(r, c, c.len()),
        },
        Ok(()),
    ),
    (
        "denies the range",
        |n, r, c| match n {
            0 => honest(r, c, PART),
            1 => reply("416 Range Not Satisfiable", "Content-Length: 0", b""),
            _ => honest(r, c, c.len()),
        },
        Ok(()),
    ),
    ("names no length", |_, _, c| reply("200 OK", "ETag: \"v1\"", c), Ok(())),
    (
        "redirects",
        |n, r, c| {
            if n == 0 {
                reply("302 Found", "Location: /there\r\nContent-Length: 0", b"")
            } else {
                honest(r, c, c.len())
            }
        },
        Ok(()),
    ),
    (
        "redirects for ever",
        |_, _, _| reply("302 Found", "Location: /again\r\nContent-Length: 0", b""),
        Err("too many redirections"),
    ),
    (
        "announces less",
        |_, _, c| reply("200 OK", "Content-Length: 1000", &c[..1_000]),
        Err("has 1000 bytes instead of 1200000"),
    ),
    (
        "announces more",
        |_, _, c| reply("200 OK", "Content-Length: 9000000", c),
        Err("has 9000000 bytes instead of 1200000"),
    ),
    (
        "sends more than it says",
        |_, _, c| reply("200 OK", "ETag: \"v1\"", &[c, c].concat()),
        Err("instead of 1200000"),
    ),
    (
        "corrupt",
        |_, r, c| {
            let mut bytes = c.to_vec();
            bytes[700_000] ^= 1;
            honest(r, &bytes, c.len())
        },
        Err("sha256 is"),
    ),
    ("absent", |_, _, _| reply("404 Not Found", "Content-Length: 0", b""), Err("answered 404")),
    ("forbidden", |_, _, _| reply("403 Forbidden", "Content-Length: 0", b""), Err("answered 403")),
    ("broken", |_, _, _| reply("500 Oops", "Content-Length: 0", b""), Err("after 5 attempts")),
    ("never answers", |_, _, _| Reply(Vec::new()), Err("after 5 attempts")),
    ("no HTTP", |_, _, _| Reply(b"220 ftp ready\r\n".to_vec()), Err("after 5 attempts")),
];

#[tokio::test]
async fn a_bad_server_gives_a_verified_file_or_a_clear_error() {
    for (name, behaviour, outcome) in BEHAVIOURS {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.gguf");
        let server = serve(content(), *behaviour).await;
        let result = fetch(&server, &target).await;
        match outcome {
            Ok(()) => {
                result.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(std::fs::read(&target).unwrap() == content(), "{name}");
            }
            Err(sentence) => {
                let error = result.unwrap_err().to_string();
                assert!(error.contains(sentence), "{name}: {error}");
                assert!(!target.exists(), "{name}");
            }
        }
        let part = folder.path().join("model.gguf.part");
        assert!(!part.exists() || part.metadata().unwrap().len() == 0, "{name} left a part");
    }
}

#[tokio::test]
async fn a_later_call_goes_on_where_the_last_one_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.gguf");
    let server = serve(content(), |n, r, c| match n {
        0 => honest(r, c, 400_000),
        1..6 => Reply(Vec::new()),
        _ => honest(r, c, c.len()),
    })
    .await;
    assert!(matches!(fetch(&server, &target).await, Err(DownloadError::GaveUp { .. })));
    assert!(!target.exists());
    assert_eq!(folder.path().join("model.gguf.part").metadata().unwrap().len(), 400_000);
    fetch(&server, &target).await.unwrap();
    assert!(std::fs::read(&target).unwrap() == content());
    assert_eq!(server.requests.lock().unwrap().last().unwrap().range, Some(400_000));
}

#[tokio::test]
async fn one_download_of_a_file_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.gguf");
    let lock = std::fs::File::create(folder.path().join("model.gguf.lock")).unwrap();
    lock.lock().unwrap();
    let server = serve(content(), |_, r, c| honest(r, c, c.len())).await;
    assert!(matches!(fetch(&server, &target).await, Err(DownloadError::Busy(_))));
    drop(lock);
    fetch(&server, &target).await.unwrap();
}

#[tokio::test]
async fn a_named_model_is_pulled_from_the_hub_and_verified_by_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(content(), |n, r, c| {
        let claims = format!("X-Linked-Size: {}\r\nX-Linked-Etag: \"{}\"", c.len(), sha256(c));
        match n {
            0 => {
                reply("302 Found", &format!("{claims}\r\nLocation: /cdn\r\nContent-Length: 0"), b"")
            }
            _ => honest(r, c, c.len()),
        }
    })
    .await;
    let store = ModelStore::new(folder.path().join("models")).with_hub(&server.address);
    let unverifiable = serve(content(), |_, r, c| honest(r, c, c.len())).await;
    let other = store.clone().with_hub(&unverifiable.address);
    let error = other.pull("qwen2.5:0.5b", &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("cannot be verified"), "{error}");

    assert_eq!(store.list().unwrap().len(), catalogue::CATALOGUE.len());
    let error = store.resolve("qwen2.5:0.5b").unwrap_err().to_string();
    assert!(error.contains("tirami models pull qwen2.5:0.5b"), "{error}");
    let path = store.pull("qwen2.5:0.5b", &|_| {}).await.unwrap();
    assert_eq!(store.resolve("qwen2.5:0.5b").unwrap(), path);
    assert_eq!(
        server.requests.lock().unwrap()[0].path,
        "/Qwen/Qwen2.5-0.5B-Instruct-GGUF/resolve/main/qwen2.5-0.5b-instruct-q4_k_m.gguf"
    );
    // The bytes are the right ones and no model, which the card says.
    let card = store.show("qwen2.5:0.5b").unwrap();
    assert_eq!((card.path.is_some(), card.details, card.fault.is_some()), (true, None, true));
    // A second pull needs no server.
    store.clone().with_hub("http://127.0.0.1:1").pull("qwen2.5:0.5b", &|_| {}).await.unwrap();
    store.remove("qwen2.5:0.5b").unwrap();
    assert!(matches!(store.remove("qwen2.5:0.5b"), Err(StoreError::NotDownloaded { .. })));
    assert!(matches!(store.pull("nobody", &|_| {}).await, Err(StoreError::Unknown { .. })));
    assert!(matches!(store.resolve("/nowhere.gguf"), Err(StoreError::Unknown { .. })));
    assert!(matches!(store.remove("../models"), Err(StoreError::Unknown { .. })));
}
