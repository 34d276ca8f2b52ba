//! OpenAI's chat completions.

use bytes::Bytes;
use tirami_infer::calls::Said;
use tirami_infer::engine::{Likely, TokenLogprobs};
use tirami_sdk::types::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatMessage, ChatResponse, ChoiceLogprobs,
    Content, FunctionDelta, TokenLogprob, ToolCall, ToolCallDelta, TopLogprob,
};

use super::{Answer, DONE, Ended, Form, Gathered, Head, News, event, written};
use crate::http::chat::choices::call_id;
use crate::http::error::ApiError;

/// A chat's answers as OpenAI tells them.
pub(in crate::http::chat) struct ChatForm {
    pub(in crate::http::chat) include_usage: bool,
    pub(in crate::http::chat) logprobs: bool,
    pub(in crate::http::chat) gathered: Gathered,
}

impl Form for ChatForm {
    fn prefix(&self) -> &'static str {
        "chatcmpl-"
    }

    /// Says who speaks.
    fn begins(&mut self, head: &Head, choice: usize) -> Bytes {
        let role = Some("assistant".to_owned());
        let delta = ChatDelta { role, content: Some(String::new()), tool_calls: Vec::new() };
        event(&chunk(head, vec![ChatChunkChoice { delta, ..piece(choice) }]))
    }

    fn says(&mut self, head: &Head, choice: usize, news: News) -> Bytes {
        let delta = delta(news.said, &head.id, choice);
        let logprobs = shown(news.likely, self.logprobs);
        event(&chunk(head, vec![ChatChunkChoice { delta, logprobs, ..piece(choice) }]))
    }

    fn ends(&mut self, head: &Head, end: &Ended) -> Vec<Bytes> {
        let ends = end.finishes.iter().enumerate().map(|(choice, finished)| {
            let finish_reason = Some(finished.reason.to_owned());
            chunk(head, vec![ChatChunkChoice { finish_reason, ..piece(choice) }])
        });
        let usage = self
            .include_usage
            .then(|| ChatChunk { usage: Some(end.usage), ..chunk(head, Vec::new()) });
        let mut last: Vec<_> = ends.chain(usage).collect();
        if let Some(last) = last.last_mut() {
            last.x_tirami = Some(end.info.clone());
        }
        last.iter().map(event).chain([DONE]).collect()
    }

    fn breaks(&mut self, _: &Head, error: &ApiError) -> Bytes {
        event(error.body())
    }

    fn gathers(&mut self, choice: usize, news: News) {
        self.gathered.add(choice, news);
    }

    fn whole(&mut self, head: &Head, end: &Ended) -> Vec<u8> {
        let choices = end.finishes.iter().enumerate().map(|(index, finished)| {
            let mut answer = self.gathered.take(index);
            let likely = core::mem::take(&mut answer.likely);
            ChatChoice {
                index: u32::try_from(index).unwrap_or(u32::MAX),
                logprobs: shown(likely, self.logprobs),
                message: message(answer, &head.id, index),
                finish_reason: finished.reason.to_owned(),
            }
        });
        written(&ChatResponse {
            choices: choices.collect(),
            id: head.id.clone(),
            object: "chat.completion".to_owned(),
            created: head.created,
            model: head.model.clone(),
            system_fingerprint: head.build.clone(),
            usage: end.usage,
            x_tirami: Some(end.info.clone()),
        })
    }
}

fn chunk(head: &Head, choices: Vec<ChatChunkChoice>) -> ChatChunk {
    ChatChunk {
        id: head.id.clone(),
        object: "chat.completion.chunk".to_owned(),
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.build.clone(),
        choices,
        usage: None,
        x_tirami: None,
    }
}

fn piece(choice: usize) -> ChatChunkChoice {
    let index = u32::try_from(choice).unwrap_or(u32::MAX);
    ChatChunkChoice { index, ..ChatChunkChoice::default() }
}

/// What is new, in one piece: of each call one entry, which the clients put together by its index.
fn delta(said: Vec<Said>, answer: &str, choice: usize) -> ChatDelta {
    let mut delta = ChatDelta::default();
    for said in said {
        match said {
            Said::Text(text) => delta.content.get_or_insert_default().push_str(&text),
            Said::Call { index, name } => delta.tool_calls.push(ToolCallDelta {
                index,
                id: Some(call_id(answer, choice, index)),
                kind: Some("function".to_owned()),
                function: FunctionDelta { name: Some(name), arguments: String::new() },
            }),
            Said::Arguments { index, text } => {
                match delta.tool_calls.last_mut().filter(|last| last.index == index) {
                    Some(last) => last.function.arguments.push_str(&text),
                    None => delta.tool_calls.push(ToolCallDelta {
                        index,
                        function: FunctionDelta { name: None, arguments: text },
                        ..ToolCallDelta::default()
                    }),
                }
            }
        }
    }
    delta
}

fn message(answer: Answer, id: &str, choice: usize) -> ChatMessage {
    let mut message = ChatMessage::new("assistant", answer.text);
    if !answer.calls.is_empty() && message.content.as_ref().is_some_and(Content::is_empty) {
        message.content = None;
    }
    let calls = answer.calls.into_iter().zip(0..).map(|(function, call)| ToolCall {
        id: call_id(id, choice, call),
        kind: "function".to_owned(),
        function,
    });
    message.tool_calls = calls.collect();
    message
}

/// The likelihoods as the interface shows them; none where none were asked for.
fn shown(likely: Vec<TokenLogprobs>, is_asked: bool) -> Option<ChoiceLogprobs> {
    is_asked.then(|| ChoiceLogprobs { content: likely.into_iter().map(token).collect() })
}

/// A token's likelihood as OpenAI's interfaces show it.
pub(in crate::http) fn token(token: TokenLogprobs) -> TokenLogprob {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let top = |top: Likely| TopLogprob {
        token: text(&top.bytes),
        logprob: top.logprob.into(),
        bytes: top.bytes,
    };
    TokenLogprob {
        token: text(&token.chosen.bytes),
        logprob: token.chosen.logprob.into(),
        bytes: token.chosen.bytes,
        top_logprobs: token.top.into_iter().map(top).collect(),
    }
}
