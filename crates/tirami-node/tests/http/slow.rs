//! A client that reads slowly, and those who wait for the place that its answer has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Generation, ModelInfo, PrepareError, Prompt, RawPrompt,
    Sampling, StartError,
};
use tirami_infer::fake::FakeEngine;
use tirami_node::models::Models;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, mpsc};

use crate::support::{TestNode, chat, script};

/// Bytes of each token's text: few of them fit in what the sockets keep.
const WORD_BYTES: usize = 512 * 1_024;
/// Tokens of the long answer.
const TOKENS: u32 = 4_000;
/// How long all waiting for a client may be, but for what its tokens give it.
const STALL_MAX: Duration = Duration::from_secs(3);
/// The slow client takes a token in this time: more than a token gives it, and never so long that
/// it is taken for gone.
const PACE: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(90);

/// Computes one answer at a time; the others wait.
struct OnePlace {
    inner: Arc<FakeEngine>,
    place: Arc<Semaphore>,
    queued: Arc<AtomicU32>,
}

impl OnePlace {
    fn new() -> Self {
        let engine = FakeEngine::new(script(TOKENS, Duration::ZERO));
        let inner = Arc::new(engine.saying(vec!["x".repeat(WORD_BYTES)]));
        Self { inner, place: Arc::new(Semaphore::new(1)), queued: Arc::default() }
    }
}

impl Engine for OnePlace {
    fn model(&self) -> &ModelInfo {
        self.inner.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.inner.prepare(conversation)
    }

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        self.inner.prepare_raw(raw)
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        // Few pieces are ahead of the reader, since they are large.
        let (sender, pieces) = mpsc::channel(1);
        let (inner, place) = (Arc::clone(&self.inner), Arc::clone(&self.place));
        let queued = Arc::clone(&self.queued);
        queued.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            let place = tokio::select! {
                place = place.acquire_owned() => place.ok(),
                () = sender.closed() => None,
            };
            queued.fetch_sub(1, Ordering::SeqCst);
            let (Some(_place), Ok(mut inner)) = (place, inner.start(prompt, sampling)) else {
                return;
            };
            while let Some(piece) = inner.pieces.recv().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Ok(Generation::new(pieces, Arc::default()))
    }

    fn load(&self) -> EngineLoad {
        let queued = self.queued.load(Ordering::SeqCst);
        EngineLoad { places: 1, queued, ..self.inner.load() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_keeps_no_place_that_others_wait_for() {
    let models = Models::from_iter([Arc::new(OnePlace::new()) as Arc<dyn Engine>]);
    let node = TestNode::serving_within(models, |http| http.stall_max = STALL_MAX).await;
    let mut long = chat(TOKENS);
    long.stream = Some(true);
    let body = serde_json::to_string(&long).unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\
         Connection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 * 1_024).unwrap();
    let mut slow = socket.connect(node.node.api).await.unwrap();
    slow.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let reading = tokio::spawn(async move {
        // What was read last, until the node ends the stream.
        let mut last = Vec::new();
        loop {
            let mut token = Vec::<u8>::with_capacity(WORD_BYTES);
            while token.len() < WORD_BYTES {
                if slow.read_buf(&mut token).await.unwrap_or_default() == 0 {
                    break;
                }
            }
            if token.len() < WORD_BYTES {
                last.extend(token);
                return last;
            }
            last = token;
            tokio::time::sleep(PACE).await;
        }
    });
    while node.admin.status().await.unwrap().engine.running == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let client = node.personal();
    let second = tokio::time::timeout(LATE, client.chat(&chat(1))).await;
    let second = second.expect("the second caller got no place").unwrap();
    assert_eq!(second.usage.completion_tokens, 1);
    node.settled().await;
    let trades = node.admin.trades(None, None, None).await.unwrap().trades;
    // What the slow one took is charged.
    let slow = trades.iter().find(|trade| trade.completion_tokens > 1).unwrap();
    assert_eq!(slow.finish, "cancelled");
    assert!(slow.completion_tokens < TOKENS, "{slow:?}");
    let last = tokio::time::timeout(LATE, reading).await;
    let last = last.expect("the slow stream has no end").unwrap();
    let last = String::from_utf8(last).unwrap();
    // It was told so, and was not taken for gone.
    let event = last.rsplit_once("xxx").map_or(last.as_str(), |(_, event)| event);
    assert!(event.contains("reader_too_slow"), "{event}");
}
