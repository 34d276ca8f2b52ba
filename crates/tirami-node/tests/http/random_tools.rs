//! Random valid requests with tools, streamed: what a strict client puts together of each is what
//! the model said, and no piece is malformed.
//!
//! `TIRAMI_TOOL_REQUESTS` says how many; the seed of each is its number.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tirami_infer::calls::{CALL_BEGIN, CALL_END};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Finish, Format, Generation, ModelInfo, Piece, PrepareError,
    Prompt, Sampling, StartError,
};
use tirami_infer::fake::FakeEngine;
use tirami_node::models::Models;
use tirami_sdk::types::Limits;
use tokio::sync::mpsc;

use crate::support::{TestNode, script};
use crate::tools::put_together;

/// Requests when nobody says how many.
const REQUESTS: u64 = 300;
/// Requests at the same time.
const AT_ONCE: usize = 16;
/// Requests that the personal agent of one node can pay.
const FOR_ONE_NODE: usize = 2_000;

/// Says the last message of the chat, cut anywhere.
struct Parrot(FakeEngine);

impl Engine for Parrot {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        let said = conversation.messages.last().map(|message| message.content.as_str());
        Ok(Prompt::from(said.unwrap_or_default().chars().map(u32::from).collect::<Vec<_>>()))
    }

    fn check_format(&self, _: &Format) -> Result<(), PrepareError> {
        Ok(())
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        let (sender, pieces) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut dice = Dice::new(u64::from(sampling.seed));
            let mut text: Vec<char> =
                prompt.tokens.into_iter().filter_map(char::from_u32).collect();
            let mut made = 0;
            while !text.is_empty() && made < sampling.completion_max {
                let rest = text.split_off((1 + dice.below(9)).min(text.len()));
                let (tokens, logprobs) = (vec![made], Vec::new());
                let said = core::mem::replace(&mut text, rest).into_iter().collect();
                if sender.send(Piece::Delta { tokens, text: said, logprobs }).await.is_err() {
                    return;
                }
                made += 1;
            }
            let finish = if text.is_empty() { Finish::Stop } else { Finish::Length };
            let _ = sender.send(Piece::End { text: String::new(), finish }).await;
        });
        Ok(Generation::new(pieces, Arc::default()))
    }

    fn load(&self) -> EngineLoad {
        self.0.load()
    }
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        // Near seeds must not give near numbers.
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % count as u64).unwrap()
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn text(&mut self) -> String {
        const PARTS: [&str; 14] = [
            "Hello",
            " ",
            "\n",
            "<",
            "<tool",
            "</tool_call>",
            "{\"name\": \"f\"}",
            "é",
            "😀",
            "\"",
            "\\",
            "}",
            "]",
            "word ",
        ];
        (0..self.below(5)).map(|_| *self.of(&PARTS)).collect()
    }

    /// A schema, and a value that is valid by it.
    fn schema(&mut self, depth: usize) -> (Value, Value) {
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => (json!({"type": "string"}), self.text().into()),
            1 => {
                let n = self.below(1_000);
                (json!({"type": "integer", "minimum": 0, "maximum": 1_000}), n.into())
            }
            2 => (json!({"type": "boolean"}), (self.below(2) == 0).into()),
            3 => {
                let all = ["celsius", "fahrenheit", "kelvin"];
                (json!({"enum": all}), (*self.of(&all)).into())
            }
            4 => (json!({"type": ["number", "null"]}), Value::Null),
            5 => {
                let (item, value) = self.schema(depth - 1);
                let count = self.below(3);
                (json!({"type": "array", "items": item}), vec![value; count].into())
            }
            _ => self.object(depth - 1),
        }
    }

    fn object(&mut self, depth: usize) -> (Value, Value) {
        let (mut properties, mut values) = (Map::new(), Map::new());
        for n in 0..self.below(4) {
            let (name, (schema, value)) = (format!("p{n}"), self.schema(depth));
            properties.insert(name.clone(), schema);
            values.insert(name, value);
        }
        let required: Vec<&String> = properties.keys().collect();
        let schema = json!({"type": "object", "required": required, "properties": properties,
                            "additionalProperties": false});
        (schema, values.into())
    }
}

/// A request, and what is to come of it: the text, each call's name and arguments, and the end.
struct Case {
    request: Value,
    text: String,
    calls: Vec<(String, String)>,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let names = ["weather", "get-time", "f", "a_very_long_name_of_a_tool_that_does_little"];
        let offered = 1 + dice.below(names.len());
        let tools: Vec<(&str, Value, Value)> = names[..offered]
            .iter()
            .map(|name| {
                let (schema, value) = dice.object(2);
                (*name, schema, value)
            })
            .collect();
        let several = dice.below(2) == 0;
        let most = if several { 4 } else { 2 };
        let choice = *dice.of(&["auto", "required", "named"]);
        let callable = if choice == "named" { &tools[..1] } else { &tools[..] };
        let before = if choice == "auto" { dice.text() } else { String::new() };
        let least = usize::from(choice != "auto");
        let count = least + dice.below(most - least);
        let (mut said, mut calls) = (before.clone(), Vec::new());
        for _ in 0..count {
            let (name, _, value) = dice.of(callable);
            let arguments = match dice.below(2) {
                0 => value.to_string(),
                _ => serde_json::to_string_pretty(value).unwrap(),
            };
            let [a, b, c] = [(); 3].map(|()| *dice.of(&["", " ", "\n", "\n  "]));
            said += &format!(
                "{a}{CALL_BEGIN}{b}{{{c}\"name\":{a}\"{name}\",{b}\"arguments\":{c}{arguments}{a}}}\
                 {b}{CALL_END}"
            );
            calls.push(((*name).to_owned(), arguments));
        }
        if said.is_empty() {
            "word".clone_into(&mut said);
        }
        let word = before.trim_start();
        let is_begun = !word.is_empty() && CALL_BEGIN.starts_with(word);
        let text = match (calls.is_empty(), is_begun) {
            (true, true) => String::new(),
            (true, false) => said.clone(),
            (false, _) => before.trim_end().to_owned(),
        };
        let offered = tools.iter().map(|(name, schema, _)| {
            json!({"type": "function", "function": {"name": name, "parameters": schema}})
        });
        let mut request = json!({
            "model": "fake", "stream": true, "seed": seed, "parallel_tool_calls": several,
            "max_tokens": 4_000, "tools": offered.collect::<Vec<_>>(),
            "messages": [{"role": "user", "content": said}],
        });
        request["tool_choice"] = match choice {
            "named" => json!({"type": "function", "function": {"name": tools[0].0}}),
            other => other.into(),
        };
        if dice.below(3) == 0 {
            request["stream_options"] = json!({"include_usage": true});
        }
        if dice.below(3) == 0 {
            request["n"] = 2.into();
        }
        Self { request, text, calls }
    }

    /// What a strict client makes of the stream.
    fn check(&self, seed: u64, stream: &str) {
        let choices = put_together(stream);
        let wanted = usize::try_from(self.request["n"].as_u64().unwrap_or(1)).unwrap();
        assert_eq!(choices.len(), wanted, "{seed}: {stream}");
        let mut ids = std::collections::BTreeSet::new();
        for (text, calls, finish) in &choices {
            let read = calls.iter().map(|call| {
                assert!(ids.insert(call["id"].to_string()), "{seed}: an id stands there twice");
                let field = |name: &str| call["function"][name].as_str().unwrap().to_owned();
                let arguments: Value = serde_json::from_str(&field("arguments")).unwrap();
                assert!(arguments.is_object(), "{seed}");
                (field("name"), field("arguments"))
            });
            let read: Vec<_> = read.collect();
            assert_eq!((text, &read), (&self.text, &self.calls), "{seed}: {}", self.request);
            let end = if self.calls.is_empty() { "stop" } else { "tool_calls" };
            assert_eq!(finish, end, "{seed}: {}", self.request);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_piece_of_a_random_request_with_tools_is_malformed() {
    let count = std::env::var("TIRAMI_TOOL_REQUESTS").ok().map(|count| count.parse().unwrap());
    let count: u64 = count.unwrap_or(REQUESTS);
    for first in (0..count).step_by(FOR_ONE_NODE) {
        let most = u64::try_from(FOR_ONE_NODE).unwrap();
        ask(first..count.min(first + most)).await;
    }
}

async fn ask(seeds: Range<u64>) {
    let engine: Arc<dyn Engine> = Arc::new(Parrot(FakeEngine::new(script(1, Duration::ZERO))));
    let node = TestNode::serving(Models::from_iter([engine])).await;
    let agent = node.admin.status().await.unwrap().personal_agent;
    node.limit(&agent, Limits::default()).await;
    let callers = (0..AT_ONCE).map(|first| {
        let (http, url) = (node.http.clone(), format!("{}/v1/chat/completions", node.url));
        let seeds = seeds.clone().skip(first).step_by(AT_ONCE);
        tokio::spawn(async move {
            for seed in seeds {
                let case = Case::new(seed);
                let call = http.post(&url).header("content-type", "application/json");
                let answer = call.body(case.request.to_string()).send().await.unwrap();
                let status = answer.status().as_u16();
                let stream = answer.text().await.unwrap();
                assert_eq!(status, 200, "{seed}: {stream} {}", case.request);
                case.check(seed, &stream);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
}
