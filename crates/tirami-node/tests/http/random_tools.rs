//! Random valid requests with tools, streamed by each interface that has them: what a strict client
//! puts together of each is what the model said, wherever it was cut, and no piece is malformed.
//!
//! `TIRAMI_TOOL_REQUESTS` says how many; the seed of each is its number.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tirami_infer::calls::{CALL_BEGIN, CALL_END};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Finish, Format, Generation, ModelInfo, Piece, PrepareError,
    Progress, Prompt, Sampling, StartError,
};
use tirami_infer::fake::FakeEngine;
use tirami_infer::text::AnswerText;
use tirami_node::models::Models;
use tirami_sdk::types::Limits;
use tokio::sync::mpsc;

use crate::support::{TestNode, script};
use crate::{messages, responses, tools};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
/// Requests when nobody says how many.
const REQUESTS: u64 = 300;
/// Requests at the same time.
const AT_ONCE: usize = 16;
/// Requests that the personal agent of one node can pay.
const FOR_ONE_NODE: usize = 2_000;
/// Characters of what the model says at most; as many are its prompt, and as many tokens find room.
const SAID_CHARS_MAX: usize = 2_000;
/// More tokens than it says.
const TOKENS_MAX: u32 = 4_000;
/// Below so many the bound decides how many characters a token has, so what is cut off is known.
const FEW_TOKENS: u32 = 64;

/// Characters of each token where there may be so few.
fn token_chars(completion_max: u32) -> Option<usize> {
    (completion_max < FEW_TOKENS).then(|| 1 + completion_max as usize % 9)
}

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
        let progress = Arc::new(Progress::default());
        let told = Arc::clone(&progress);
        tokio::spawn(async move {
            let mut dice = Dice::new(u64::from(sampling.seed));
            let mut answer = AnswerText::new(&sampling.stop);
            let mut text: Vec<char> =
                prompt.tokens.into_iter().filter_map(char::from_u32).collect();
            let mut made = 0;
            while !text.is_empty() && made < sampling.completion_max {
                let chars = token_chars(sampling.completion_max);
                let chars = chars.unwrap_or_else(|| 1 + dice.below(9));
                let rest = text.split_off(chars.min(text.len()));
                let said: String = core::mem::replace(&mut text, rest).into_iter().collect();
                let certain = answer.push(said.as_bytes());
                told.stopped_by(answer.met());
                let (tokens, logprobs) = (vec![made], Vec::new());
                let delta = Piece::Delta { tokens, text: certain.text, logprobs };
                if sender.send(delta).await.is_err() {
                    return;
                }
                if certain.stopped {
                    text.clear();
                }
                made += 1;
            }
            let finish = if text.is_empty() { Finish::Stop } else { Finish::Length };
            // Whoever asked may have left.
            drop(sender.send(Piece::End { text: answer.finish(), finish }).await);
        });
        Ok(Generation::new(pieces, progress))
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

    /// Some characters of a text that stand beside each other.
    fn part_of(&mut self, text: &str) -> String {
        let chars: Vec<char> = text.chars().collect();
        let start = self.below(chars.len());
        chars[start..].iter().take(1 + self.below(12)).collect()
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

/// A tool: its name, its schema, and arguments that are valid by it.
type Tool<'a> = (&'a str, Value, Value);

/// What the model is to say: a text, then calls.
struct Speech {
    before: String,
    calls: Vec<Spoken>,
    said: String,
}

/// A call, and where it stands in what is said.
struct Spoken {
    name: String,
    /// Behind what every call begins with.
    begun: usize,
    arguments: Range<usize>,
}

impl Speech {
    fn new(dice: &mut Dice, callable: &[Tool<'_>], before: String, calls: usize) -> Self {
        let (mut said, mut spoken) = (before.clone(), Vec::new());
        for _ in 0..calls {
            let (name, _, value) = dice.of(callable);
            let arguments = match dice.below(2) {
                0 => value.to_string(),
                _ => serde_json::to_string_pretty(value).unwrap(),
            };
            let [a, b, c] = [(); 3].map(|()| *dice.of(&["", " ", "\n", "\n  "]));
            said += &format!("{a}{CALL_BEGIN}");
            let begun = said.len();
            said += &format!("{b}{{{c}\"name\":{a}\"{name}\",{b}\"arguments\":{c}");
            let start = said.len();
            said += &arguments;
            let arguments = start..said.len();
            spoken.push(Spoken { name: (*name).to_owned(), begun, arguments });
            said += &format!("{a}}}{b}{CALL_END}");
        }
        if said.is_empty() {
            "word".clone_into(&mut said);
        }
        Self { before, calls: spoken, said }
    }

    /// What there is of it when only `begun` of it was said: the text, each call's name and
    /// arguments, and whether the last call is one that nobody can make.
    fn heard(&self, begun: &str) -> (String, Vec<(String, String)>, bool) {
        let end = begun.len();
        let calls = self.calls.iter().filter(|call| call.arguments.start < end);
        let calls = calls.map(|call| {
            let arguments = &begun[call.arguments.start..call.arguments.end.min(end)];
            (call.name.clone(), arguments.to_owned())
        });
        let is_within = |call: &Spoken| (call.begun..call.arguments.end).contains(&end);
        let word = begun.trim_start();
        let text = if self.calls.first().is_some_and(|call| call.begun <= end) {
            self.before.trim_end()
        } else if !word.is_empty() && CALL_BEGIN.starts_with(word) {
            // The beginning of a call, as far as anybody can tell.
            ""
        } else {
            begun
        };
        (text.to_owned(), calls.collect(), self.calls.iter().any(is_within))
    }
}

/// Why an answer ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All is said.
    Said,
    /// A stop text was met.
    Stopped,
    /// There are calls to be made.
    Called,
    /// There was no more room.
    Cut,
}

/// What a client put together of an answer: its text, the id, name and arguments of each call, and
/// why it ended.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    text: String,
    calls: Vec<[Value; 3]>,
    end: Value,
}

/// A request, and what is to come of it.
struct Case {
    path: &'static str,
    request: Value,
    text: String,
    calls: Vec<(String, String)>,
    end: End,
    stop: Option<String>,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let path = *dice.of(&[CHAT, MESSAGES, RESPONSES]);
        let names = ["weather", "get-time", "f", "a_very_long_name_of_a_tool_that_does_little"];
        let offered = 1 + dice.below(names.len());
        let tools: Vec<Tool<'_>> = names[..offered]
            .iter()
            .map(|name| {
                let (schema, value) = dice.object(2);
                (*name, schema, value)
            })
            .collect();
        let several = dice.below(2) == 0;
        let most = if several { 4 } else { 2 };
        let choice = *dice.of(&["auto", "none", "required", "named"]);
        let callable = if choice == "named" { &tools[..1] } else { &tools[..] };
        let is_owed = choice == "required" || choice == "named";
        let speech = loop {
            let before = if is_owed { String::new() } else { dice.text() };
            let least = usize::from(is_owed);
            let calls = least + dice.below(most - least);
            let speech = Speech::new(&mut dice, callable, before, calls);
            if speech.said.chars().count() <= SAID_CHARS_MAX {
                break speech;
            }
        };
        let room = match dice.below(3) {
            0 => u32::try_from(1 + dice.below(FEW_TOKENS as usize - 1)).unwrap(),
            _ => TOKENS_MAX,
        };
        // Responses have no stop texts.
        let has_stop = path != RESPONSES && dice.below(3) == 0;
        let stop = has_stop.then(|| dice.part_of(&speech.said));
        let kept: String = match token_chars(room) {
            Some(chars) => speech.said.chars().take(chars * room as usize).collect(),
            None => speech.said.clone(),
        };
        let stopped = stop.as_ref().and_then(|stop| kept.find(stop.as_str()));
        let begun = &kept[..stopped.unwrap_or(kept.len())];
        let (text, calls, is_within) = match choice {
            "none" => (begun.to_owned(), Vec::new(), false),
            _ => speech.heard(begun),
        };
        let end = if stopped.is_none() && kept.len() < speech.said.len() {
            End::Cut
        } else if !calls.is_empty() && !is_within {
            End::Called
        } else if stopped.is_some() {
            End::Stopped
        } else {
            End::Said
        };
        let mut request = asking(path, &speech.said, &tools, (choice, several));
        let (of_room, of_stop) = match path {
            CHAT => ("max_tokens", "stop"),
            MESSAGES => ("max_tokens", "stop_sequences"),
            _ => ("max_output_tokens", ""),
        };
        request[of_room] = room.into();
        if let Some(stop) = &stop {
            request[of_stop] = json!([stop]);
        }
        (request["model"], request["stream"], request["seed"]) =
            ("fake".into(), true.into(), seed.into());
        if path == CHAT && dice.below(3) == 0 {
            request["stream_options"] = json!({"include_usage": true});
        }
        if path == CHAT && dice.below(3) == 0 {
            request["n"] = 2.into();
        }
        Self { path, request, text, calls, end, stop }
    }

    /// Why it ends, as its interface says it.
    fn ends(&self) -> Value {
        let reason = match (self.path, self.end) {
            (CHAT, End::Cut) => "length",
            (CHAT, End::Called) => "tool_calls",
            (CHAT, End::Said | End::Stopped) => "stop",
            (MESSAGES, End::Cut) => "max_tokens",
            (MESSAGES, End::Called) => "tool_use",
            (MESSAGES, End::Stopped) => "stop_sequence",
            (MESSAGES, End::Said) => "end_turn",
            (_, End::Cut) => "incomplete",
            _ => "completed",
        };
        if self.path == MESSAGES {
            let stop = self.stop.as_ref().filter(|_| self.end == End::Stopped);
            return json!([reason, stop]);
        }
        reason.into()
    }

    /// What a strict client makes of the stream.
    fn check(&self, seed: u64, stream: &str) {
        let answers: Vec<Heard> = match self.path {
            CHAT => tools::put_together(stream).into_iter().map(of_choice).collect(),
            MESSAGES => vec![of_message(&messages::put_together(stream))],
            _ => vec![of_response(&responses::events(stream))],
        };
        let wanted = usize::try_from(self.request["n"].as_u64().unwrap_or(1)).unwrap();
        assert_eq!(answers.len(), wanted, "{seed}: {stream}");
        let arguments = |text: &str| -> Value {
            // In messages they are no text, but of a call that was cut.
            let parsed = if self.path == MESSAGES { serde_json::from_str(text).ok() } else { None };
            parsed.unwrap_or_else(|| text.into())
        };
        let calls = self.calls.iter();
        let calls = calls.map(|(name, text)| [Value::from(name.as_str()), arguments(text)]);
        let calls: Vec<[Value; 2]> = calls.collect();
        let mut ids = std::collections::BTreeSet::new();
        for Heard { text, calls: read, end } in answers {
            let read = read.into_iter().map(|[id, name, arguments]| {
                assert!(id.as_str().unwrap().starts_with("call_"), "{seed}: {id}");
                assert!(ids.insert(id.to_string()), "{seed}: an id stands there twice");
                [name, arguments]
            });
            let read: Vec<[Value; 2]> = read.collect();
            assert_eq!((&text, &read), (&self.text, &calls), "{seed}: {}", self.request);
            assert_eq!(end, self.ends(), "{seed}: {}", self.request);
        }
    }
}

/// A request that offers these tools, whose answer is what is said in it.
fn asking(path: &str, said: &str, tools: &[Tool<'_>], (choice, several): (&str, bool)) -> Value {
    let offered = |one: fn(&str, &Value) -> Value| -> Vec<Value> {
        tools.iter().map(|(name, schema, _)| one(name, schema)).collect()
    };
    let name = tools[0].0;
    let messages = json!([{"role": "user", "content": said}]);
    match path {
        CHAT => {
            let tools = offered(|name, schema| {
                let function = json!({"name": name, "parameters": schema});
                json!({"type": "function", "function": function})
            });
            let choice = match choice {
                "named" => json!({"type": "function", "function": {"name": name}}),
                other => other.into(),
            };
            json!({"messages": messages, "tools": tools, "tool_choice": choice,
                   "parallel_tool_calls": several})
        }
        MESSAGES => {
            let tools = offered(|name, schema| json!({"name": name, "input_schema": schema}));
            let mut choice = match choice {
                "named" => json!({"type": "tool", "name": name}),
                "required" => json!({"type": "any"}),
                other => json!({"type": other}),
            };
            choice["disable_parallel_tool_use"] = (!several).into();
            json!({"messages": messages, "tools": tools, "tool_choice": choice})
        }
        _ => {
            let tools = offered(
                |name, schema| json!({"type": "function", "name": name, "parameters": schema}),
            );
            let choice = match choice {
                "named" => json!({"type": "function", "name": name}),
                other => other.into(),
            };
            json!({"input": said, "tools": tools, "tool_choice": choice,
                   "parallel_tool_calls": several, "store": false})
        }
    }
}

/// A choice of a chat, put together.
fn of_choice((text, calls, end): (String, Vec<Value>, String)) -> Heard {
    let call = |call: &Value| {
        let [name, arguments] = ["name", "arguments"].map(|field| call["function"][field].clone());
        [call["id"].clone(), name, arguments]
    };
    Heard { text, calls: calls.iter().map(call).collect(), end: end.into() }
}

/// A message, put together.
fn of_message(message: &Value) -> Heard {
    let end = json!([message["stop_reason"], message["stop_sequence"]]);
    let mut heard = Heard { end, ..Heard::default() };
    for block in message["content"].as_array().unwrap() {
        match block["type"].as_str().unwrap() {
            "text" => heard.text += block["text"].as_str().unwrap(),
            "tool_use" => {
                heard.calls.push(["id", "name", "input"].map(|field| block[field].clone()));
            }
            other => panic!("{other}"),
        }
    }
    heard
}

/// What the events of a response tell piece by piece, which is what the last of them tells whole.
fn of_response(events: &[Value]) -> Heard {
    let call = |item: &Value| ["call_id", "name", "arguments"].map(|field| item[field].clone());
    let response = &events.last().unwrap()["response"];
    let end = || response["status"].clone();
    let mut heard = Heard { end: end(), ..Heard::default() };
    for event in events {
        match event["type"].as_str().unwrap() {
            "response.output_item.added" if event["item"]["type"] == "function_call" => {
                heard.calls.push(call(&event["item"]));
            }
            "response.output_text.delta" => heard.text += event["delta"].as_str().unwrap(),
            "response.output_text.done" => assert_eq!(event["text"], heard.text.as_str()),
            "response.function_call_arguments.delta" => {
                let arguments = &mut heard.calls.last_mut().unwrap()[2];
                let before = arguments.as_str().unwrap().to_owned();
                *arguments = (before + event["delta"].as_str().unwrap()).into();
            }
            "response.function_call_arguments.done" => {
                assert_eq!(event["arguments"], heard.calls.last().unwrap()[2]);
            }
            _ => {}
        }
    }
    let mut whole = Heard { end: end(), ..Heard::default() };
    for item in response["output"].as_array().unwrap() {
        match item["type"].as_str().unwrap() {
            "message" => whole.text += item["content"][0]["text"].as_str().unwrap(),
            "function_call" => whole.calls.push(call(item)),
            other => panic!("{other}"),
        }
    }
    assert_eq!(heard, whole);
    whole
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
        let (http, url) = (node.http.clone(), node.url.clone());
        let seeds = seeds.clone().skip(first).step_by(AT_ONCE);
        tokio::spawn(async move {
            for seed in seeds {
                let case = Case::new(seed);
                let call = http.post(format!("{url}{}", case.path));
                let call = call.header("content-type", "application/json");
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
