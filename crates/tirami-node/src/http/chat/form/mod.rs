//! The forms of an answer: what a client sees of what the pump moves.
//!
//! A form is told what happens, in order, and gives the bytes for it. It knows nothing of jobs,
//! money or connections, and the pump knows nothing of JSON.

mod chat;
mod completion;

use bytes::Bytes;
use serde::Serialize;
use tirami_infer::calls::Said;
use tirami_infer::engine::TokenLogprobs;
use tirami_sdk::types::{CalledFunction, TiramiInfo, Usage};

use super::Head;
use crate::http::error::ApiError;
use crate::responses::Kept;

pub(super) use chat::ChatForm;
pub(in crate::http) use chat::token;
pub(super) use completion::CompletionForm;

/// How the answers to one request are told: as a stream, or whole.
pub(in crate::http) trait Form: Send + Sync {
    /// What the answer's id begins with.
    fn prefix(&self) -> &'static str;

    /// What the stream of an answer begins with; no bytes for nothing.
    fn begins(&mut self, head: &Head, choice: usize) -> Bytes;

    /// What the stream says of what became certain of an answer.
    fn says(&mut self, head: &Head, choice: usize, news: News) -> Bytes;

    /// What the stream ends with when all answers are complete and charged.
    fn ends(&mut self, head: &Head, end: &Ended) -> Vec<Bytes>;

    /// What is to be kept of answers that are complete, before they are told; nothing, for most.
    fn keeps(&mut self, head: &Head, end: &Ended) -> Option<Kept> {
        let _ = (head, end);
        None
    }

    /// It could not be kept.
    fn is_not_kept(&mut self) {}

    /// What a stream that broke off ends with.
    fn breaks(&mut self, head: &Head, error: &ApiError) -> Bytes;

    /// What a stream without news says now and then.
    fn waits(&self) -> Bytes {
        Bytes::from_static(b": alive\n\n")
    }

    /// Notes what became certain of an answer that is to be told whole.
    fn gathers(&mut self, choice: usize, news: News);

    /// The whole answer, as JSON.
    fn whole(&mut self, head: &Head, end: &Ended) -> Vec<u8>;
}

/// What became certain of an answer.
#[derive(Debug, Default)]
pub(in crate::http) struct News {
    pub(in crate::http) said: Vec<Said>,
    /// The likelihoods of its tokens, where they are asked for.
    pub(in crate::http) likely: Vec<TokenLogprobs>,
}

/// Answers that are complete and charged.
#[derive(Debug)]
pub(in crate::http) struct Ended {
    /// Of each answer, in order.
    pub(in crate::http) finishes: Vec<Finished>,
    pub(in crate::http) usage: Usage,
    pub(in crate::http) info: TiramiInfo,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) struct Finished {
    /// `stop`, `length` or `tool_calls`.
    pub(in crate::http) reason: &'static str,
    /// The request's stop text that ended it, by its place.
    pub(in crate::http) stop: Option<u32>,
}

/// Answers as far as they were gathered.
#[derive(Debug, Default)]
pub(in crate::http) struct Gathered(Vec<Answer>);

/// What came of one answer.
#[derive(Debug, Default)]
pub(in crate::http) struct Answer {
    pub(in crate::http) text: String,
    pub(in crate::http) calls: Vec<CalledFunction>,
    pub(in crate::http) likely: Vec<TokenLogprobs>,
}

impl Gathered {
    /// Adds to an answer.
    pub(in crate::http) fn add(&mut self, choice: usize, news: News) {
        if self.0.len() <= choice {
            self.0.resize_with(choice + 1, Answer::default);
        }
        let answer = &mut self.0[choice];
        news.said.into_iter().for_each(|said| answer.took(said));
        answer.likely.extend(news.likely);
    }

    /// Takes an answer out; empty where nothing came of it.
    pub(in crate::http) fn take(&mut self, choice: usize) -> Answer {
        self.0.get_mut(choice).map(core::mem::take).unwrap_or_default()
    }
}

impl Answer {
    fn took(&mut self, said: Said) {
        match said {
            Said::Text(text) => self.text.push_str(&text),
            Said::Call { name, .. } => {
                self.calls.push(CalledFunction { name, arguments: String::new() });
            }
            Said::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}

/// An event of a stream that needs no name.
pub(in crate::http) fn event(value: &impl Serialize) -> Bytes {
    let mut bytes = b"data: ".to_vec();
    write_end(&mut bytes, value);
    bytes.into()
}

/// An event with a name.
pub(in crate::http) fn named_event(into: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    into.extend_from_slice(b"event: ");
    into.extend_from_slice(name.as_bytes());
    into.extend_from_slice(b"\ndata: ");
    write_end(into, value);
}

fn write_end(into: &mut Vec<u8>, value: &impl Serialize) {
    // What is told is plain data and always serialises.
    let _ = serde_json::to_writer(&mut *into, value);
    into.extend_from_slice(b"\n\n");
}

/// An answer's JSON.
pub(in crate::http) fn written(value: &impl Serialize) -> Vec<u8> {
    // As above.
    serde_json::to_vec(value).unwrap_or_default()
}

/// What the streams of OpenAI's older interfaces end with.
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");
