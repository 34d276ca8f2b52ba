//! What an answer says of its tokens: how many of the prompt's were in the engine's cache.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Finish, Generation, ModelInfo, Piece, PrepareError, Progress,
    Prompt, RawPrompt, Sampling, StartError,
};
use tirami_infer::fake::FakeEngine;
use tirami_node::models::Models;
use tokio::sync::mpsc;

use crate::support::{TestNode, script};

/// Has five of eight prompt tokens in its cache.
struct Remembers(FakeEngine);

impl Engine for Remembers {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, _: &Conversation) -> Result<Prompt, PrepareError> {
        Ok(Prompt::from(vec![1; 8]))
    }

    fn prepare_raw(&self, _: &RawPrompt) -> Result<Prompt, PrepareError> {
        Ok(Prompt::from(vec![1; 8]))
    }

    fn start(&self, _: Prompt, _: Sampling) -> Result<Generation, StartError> {
        let (sender, pieces) = mpsc::channel(4);
        let progress = Arc::new(Progress::default());
        progress.cached(5);
        let delta = Piece::Delta { tokens: vec![0], text: "word".to_owned(), logprobs: Vec::new() };
        for piece in [delta, Piece::End { text: String::new(), finish: Finish::Stop }] {
            sender.try_send(piece).unwrap();
        }
        Ok(Generation::new(pieces, progress))
    }

    fn load(&self) -> EngineLoad {
        self.0.load()
    }
}

/// The last usage that an answer tells, whole or streamed.
fn usage(text: &str) -> Value {
    let whole = serde_json::from_str::<Value>(text).ok();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.filter_map(|data| serde_json::from_str(data).ok());
    let told = |event: Value| {
        let usage = event.pointer("/response/usage").or_else(|| event.get("usage"));
        usage.filter(|usage| !usage.is_null()).cloned()
    };
    whole.into_iter().chain(events).filter_map(told).next_back().unwrap()
}

#[tokio::test]
async fn cached_tokens_are_told_in_every_form() {
    let engine = Remembers(FakeEngine::new(script(1, Duration::ZERO)));
    let node = TestNode::serving(Models::from_iter([Arc::new(engine) as Arc<dyn Engine>])).await;
    let chat = json!([{"role": "user", "content": "hi"}]);
    let openai = |prompt: u32, completion: u32, cached: u32| {
        json!({"prompt_tokens": prompt, "completion_tokens": completion,
               "total_tokens": prompt + completion,
               "prompt_tokens_details": {"cached_tokens": cached}})
    };
    for (path, more, expected) in [
        ("/v1/chat/completions", json!({"messages": chat}), openai(8, 1, 5)),
        // However many answers there are, the prompt counts once.
        ("/v1/chat/completions", json!({"messages": chat, "n": 3}), openai(8, 3, 5)),
        ("/v1/completions", json!({"prompt": ["a", "b"], "n": 2}), openai(16, 4, 10)),
        (
            "/v1/messages",
            json!({"messages": chat, "max_tokens": 9}),
            json!({"input_tokens": 3, "cache_read_input_tokens": 5, "output_tokens": 1}),
        ),
        (
            "/v1/responses",
            json!({"input": "hi"}),
            json!({"input_tokens": 8, "output_tokens": 1, "total_tokens": 9,
                   "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
                   "output_tokens_details": {"reasoning_tokens": 0}}),
        ),
    ] {
        for stream in [false, true] {
            let mut body = json!({"model": "fake", "stream": stream});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            if stream && path.ends_with("completions") {
                body["stream_options"] = json!({"include_usage": true});
            }
            let raw = node.post(path, None, body.to_string()).await;
            assert_eq!(raw.status, 200, "{path}: {raw:?}");
            assert_eq!(usage(&raw.text), expected, "{path}: {raw:?}");
        }
    }
}
