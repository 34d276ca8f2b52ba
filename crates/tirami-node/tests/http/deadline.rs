//! Requests that say how long their answer may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Generation, ModelInfo, PIECES_AHEAD_MAX, PrepareError,
    Prompt, RawPrompt, Sampling, StartError,
};
use tirami_infer::fake::FakeEngine;
use tirami_node::models::Models;
use tokio::sync::mpsc;

use crate::support::{TestNode, cost, script};

/// Says some words of each answer and then stands still, until its reader leaves.
struct StandsStill {
    inner: FakeEngine,
    /// Words of the first answer, the second and so on; of those after them all.
    words: Vec<usize>,
    started: AtomicU32,
    running: Arc<AtomicU32>,
}

impl StandsStill {
    async fn node(words: &[usize]) -> TestNode {
        let engine = Self {
            inner: FakeEngine::new(script(9, Duration::ZERO)),
            words: words.to_vec(),
            started: AtomicU32::new(0),
            running: Arc::default(),
        };
        TestNode::serving(Models::from_iter([Arc::new(engine) as Arc<dyn Engine>])).await
    }
}

impl Engine for StandsStill {
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
        let started = self.started.fetch_add(1, Ordering::Relaxed) as usize;
        let words = self.words.get(started).copied().unwrap_or(usize::MAX);
        let mut inner = self.inner.start(prompt, sampling)?;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        let running = Arc::clone(&self.running);
        running.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            for _ in 0..words {
                let Some(piece) = inner.pieces.recv().await else { break };
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            if words < usize::MAX {
                sender.closed().await;
            }
            running.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(Generation::new(pieces, Arc::default()))
    }

    fn load(&self) -> EngineLoad {
        EngineLoad { running: self.running.load(Ordering::Relaxed), ..self.inner.load() }
    }
}

const CHAT: &str = "/v1/chat/completions";
const RAW: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

fn ask(path: &str, timeout_ms: u32, stream: bool) -> Value {
    let mut body = json!({
        "model": "fake", "max_tokens": 9, "timeout_ms": timeout_ms, "stream": stream,
    });
    match path {
        RAW => body["prompt"] = json!("hi"),
        RESPONSES => {
            body["input"] = json!("hi");
            body["max_output_tokens"] = body["max_tokens"].take();
            body.as_object_mut().unwrap().remove("max_tokens");
        }
        _ => body["messages"] = json!([{"role": "user", "content": "hi"}]),
    }
    body
}

/// The events of a stream that are JSON.
fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[tokio::test]
async fn an_answer_that_has_not_begun_in_time_is_refused_and_costs_nothing() {
    let node = StandsStill::node(&[0; 8]).await;
    for path in [CHAT, RAW, MESSAGES, RESPONSES] {
        let whole = node.post(path, None, ask(path, 50, false).to_string()).await;
        assert_eq!(whole.status, 504, "{path}: {whole:?}");
        assert!(whole.text.contains("nothing was charged"), "{path}: {whole:?}");
        if path != MESSAGES {
            assert_eq!(whole.code(), "deadline_exceeded", "{path}");
        }
        let stream = node.post(path, None, ask(path, 50, true).to_string()).await;
        let last = events(&stream.text).pop().unwrap();
        let told = last.pointer(if path == RESPONSES { "/response/error" } else { "/error" });
        let told = told.unwrap()["message"].as_str().unwrap();
        assert!(told.contains("nothing was charged"), "{path}: {stream:?}");
    }
    assert_eq!(node.settled().await.total_trades, 0);
    let balance = node.personal().balance(None).await.unwrap();
    assert_eq!((balance.consumed, balance.reserved), Default::default());
}

#[tokio::test]
async fn an_answer_whose_time_is_up_ends_where_it_is_and_says_so() {
    let node = StandsStill::node(&[3; 8]).await;
    for (path, text, finish) in [
        (CHAT, "/choices/0/message/content", "/choices/0/finish_reason"),
        (RAW, "/choices/0/text", "/choices/0/finish_reason"),
        (MESSAGES, "/content/0/text", "/stop_reason"),
        (RESPONSES, "/output/0/content/0/text", "/incomplete_details/reason"),
    ] {
        let whole = node.post(path, None, ask(path, 700, false).to_string()).await;
        assert_eq!(whole.status, 200, "{path}: {whole:?}");
        let answer = whole.json();
        assert_eq!(answer.pointer(text), Some(&json!("word word word ")), "{path}: {answer}");
        let name = match path {
            MESSAGES => "max_tokens",
            RESPONSES => "max_output_tokens",
            _ => "length",
        };
        assert_eq!(answer.pointer(finish), Some(&json!(name)), "{path}: {answer}");
        assert_eq!(answer["x_tirami"]["ended_by"], "deadline", "{path}: {answer}");
        assert_eq!(answer["x_tirami"]["trm_cost"].to_string(), cost(3).to_string());

        let stream = node.post(path, None, ask(path, 700, true).to_string()).await;
        let all = events(&stream.text);
        // Of a response the whole text comes again with its end.
        let pieces = all.iter().filter(|event| event["type"] == "response.output_text.delta");
        let words = match path {
            RESPONSES => pieces.count(),
            _ => stream.text.matches("word ").count(),
        };
        assert_eq!(words, 3, "{path}: {stream:?}");
        let told = |event: &Value| {
            let response = event.get("response").filter(|response| !response["x_tirami"].is_null());
            response.unwrap_or(event).get("x_tirami").cloned()
        };
        let bill = all.iter().find_map(told);
        assert_eq!(bill.unwrap()["ended_by"], "deadline", "{path}: {stream:?}");
        assert!(stream.text.contains(&format!("\"{name}\"")), "{path}: {stream:?}");
    }
    let status = node.settled().await;
    assert_eq!(status.total_trades, 8);
    for trade in node.admin.trades(None, None, None).await.unwrap().trades {
        assert_eq!((trade.completion_tokens, trade.finish.as_str()), (3, "length"));
        assert!(node.admin.trade(&trade.trade_id).await.unwrap().verified);
    }
}

#[tokio::test]
async fn of_several_answers_each_is_paid_as_far_as_it_came() {
    let node = StandsStill::node(&[2, 0]).await;
    let mut body = ask(CHAT, 700, false);
    body["n"] = json!(3);
    let answer = node.post(CHAT, None, body.to_string()).await.json();
    let word = |count: usize| json!("word ".repeat(count));
    for (index, words, finish) in [(0, 2, "length"), (1, 0, "length"), (2, 9, "stop")] {
        let choice = &answer["choices"][index];
        assert_eq!(choice["message"]["content"], word(words), "{answer}");
        assert_eq!(choice["finish_reason"], finish, "{answer}");
    }
    assert_eq!(answer["usage"]["completion_tokens"], 11);
    assert_eq!(node.settled().await.total_trades, 2);
}

#[tokio::test]
async fn an_answer_in_time_says_nothing_of_it_and_a_wrong_time_is_named() {
    let node = StandsStill::node(&[]).await;
    let answer = node.post(CHAT, None, ask(CHAT, 60_000, false).to_string()).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["x_tirami"].get("ended_by"), None);
    for wrong in [json!(0), json!(-1), json!("1s"), json!(1.5), json!(86_400_001)] {
        let mut body = ask(CHAT, 1, false);
        body["timeout_ms"] = wrong;
        let refused = node.post(CHAT, None, body.to_string()).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "invalid_value"), "{body}");
        assert_eq!(refused.json()["error"]["param"], "timeout_ms");
    }
}
