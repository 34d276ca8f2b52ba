//! An answer as OpenAI's responses tell it: items, and what the next answer goes on from.

use bytes::Bytes;
use serde_json::{Value, json};
use tirami_core::AgentId;
use tirami_infer::calls::Said;
use tirami_sdk::types::{
    IncompleteDetails, InputDetails, OutputContent, OutputDetails, OutputItem, ResponseError,
    ResponseEvent, ResponseEventKind, ResponseObject, ResponseUsage,
};

use crate::http::chat::form::{Ended, Form, News, named_event, written};
use crate::http::chat::{Head, call_id};
use crate::http::error::ApiError;
use crate::responses::Kept;

/// One answer; there is never more than one.
pub(super) struct ResponsesForm {
    /// The answer as far as it is known.
    answer: ResponseObject,
    /// The chat that the answer goes on from.
    conversation: Vec<Value>,
    /// For whom it is kept; none for nobody.
    keeper: Option<AgentId>,
    /// The item that has begun.
    open: Option<OutputItem>,
    /// Calls that have begun.
    calls: u32,
    /// Events told so far.
    told: u64,
    /// What is told whole, until it ends.
    news: Vec<Said>,
    /// Events of the end that are not told yet; none before the end.
    last: Option<Vec<u8>>,
}

const IN_PROGRESS: &str = "in_progress";

impl ResponsesForm {
    pub(super) fn new(
        answer: ResponseObject,
        conversation: Vec<Value>,
        keeper: Option<AgentId>,
    ) -> Self {
        Self {
            answer: ResponseObject { store: keeper.is_some(), ..answer },
            conversation,
            keeper,
            open: None,
            calls: 0,
            told: 0,
            news: Vec::new(),
            last: None,
        }
    }

    fn tell(&mut self, into: &mut Vec<u8>, kind: ResponseEventKind) {
        let event = ResponseEvent { sequence_number: self.told, kind };
        self.told += 1;
        named_event(into, event.kind.name(), &event);
    }

    /// The place of the item that is open, or of the next one.
    fn index(&self) -> u32 {
        u32::try_from(self.answer.output.len()).unwrap_or(u32::MAX)
    }

    fn know(&mut self, head: &Head) {
        self.answer.id.clone_from(&head.id);
        self.answer.created_at = head.created;
        self.answer.model.clone_from(&head.model);
    }

    fn said(&mut self, into: &mut Vec<u8>, head: &Head, said: Said) {
        match said {
            Said::Text(text) => self.text(into, head, text),
            Said::Call { name, .. } => {
                self.close(into, "completed");
                let item = OutputItem::FunctionCall {
                    id: self.item_id("fc", head),
                    call_id: call_id(&head.id, 0, self.calls),
                    name,
                    arguments: String::new(),
                    status: IN_PROGRESS.to_owned(),
                };
                self.calls += 1;
                self.start(into, item);
            }
            Said::Arguments { text, .. } => {
                let output_index = self.index();
                if let Some(OutputItem::FunctionCall { id, arguments, .. }) = &mut self.open {
                    arguments.push_str(&text);
                    let item_id = id.clone();
                    let delta =
                        ResponseEventKind::ArgumentsDelta { item_id, output_index, delta: text };
                    self.tell(into, delta);
                }
            }
        }
    }

    fn text(&mut self, into: &mut Vec<u8>, head: &Head, delta: String) {
        let output_index = self.index();
        if !matches!(self.open, Some(OutputItem::Message { .. })) {
            self.close(into, "completed");
            let id = self.item_id("msg", head);
            self.start(
                into,
                OutputItem::Message {
                    id: id.clone(),
                    role: "assistant".to_owned(),
                    status: IN_PROGRESS.to_owned(),
                    content: Vec::new(),
                },
            );
            let (part, content_index, output_index) = (part(String::new()), 0, self.index());
            let added =
                ResponseEventKind::PartAdded { item_id: id, output_index, content_index, part };
            self.tell(into, added);
            if let Some(OutputItem::Message { content, .. }) = &mut self.open {
                content.push(self::part(String::new()));
            }
            return self.text(into, head, delta);
        }
        let Some(OutputItem::Message { id, content, .. }) = &mut self.open else { return };
        if let Some(OutputContent::OutputText { text, .. }) = content.last_mut() {
            text.push_str(&delta);
        }
        let (item_id, content_index, logprobs) = (id.clone(), 0, Vec::new());
        let delta =
            ResponseEventKind::TextDelta { item_id, output_index, content_index, delta, logprobs };
        self.tell(into, delta);
    }

    fn item_id(&self, kind: &str, head: &Head) -> String {
        let job = head.id.rsplit('_').next().unwrap_or_default();
        format!("{kind}_{job}{:02}", self.answer.output.len())
    }

    fn start(&mut self, into: &mut Vec<u8>, item: OutputItem) {
        self.open = Some(item.clone());
        let output_index = self.index();
        self.tell(into, ResponseEventKind::ItemAdded { output_index, item });
    }

    /// Ends the item that is open.
    fn close(&mut self, into: &mut Vec<u8>, ended: &str) {
        let Some(mut item) = self.open.take() else { return };
        let output_index = self.index();
        match &mut item {
            OutputItem::Message { id, content, status, .. } => {
                ended.clone_into(status);
                for whole in content.iter() {
                    let OutputContent::OutputText { text, .. } = whole;
                    let (content_index, logprobs) = (0, Vec::new());
                    let (item_id, text) = (id.clone(), text.clone());
                    self.tell(
                        into,
                        ResponseEventKind::TextDone {
                            item_id,
                            output_index,
                            content_index,
                            text,
                            logprobs,
                        },
                    );
                    let (item_id, part) = (id.clone(), whole.clone());
                    self.tell(
                        into,
                        ResponseEventKind::PartDone { item_id, output_index, content_index, part },
                    );
                }
            }
            OutputItem::FunctionCall { id, name, arguments, status, .. } => {
                ended.clone_into(status);
                let done = ResponseEventKind::ArgumentsDone {
                    item_id: id.clone(),
                    output_index,
                    name: name.clone(),
                    arguments: arguments.clone(),
                };
                self.tell(into, done);
            }
        }
        self.answer.output.push(item.clone());
        self.tell(into, ResponseEventKind::ItemDone { output_index, item });
    }

    /// The answer is complete: what it is now, and the events that say so.
    fn end(&mut self, head: &Head, end: &Ended) {
        if self.last.is_some() {
            return;
        }
        let mut last = Vec::new();
        self.know(head);
        for said in core::mem::take(&mut self.news) {
            self.said(&mut last, head, said);
        }
        let is_cut = end.finishes.first().is_some_and(|finished| finished.reason == "length");
        let status = if is_cut { "incomplete" } else { "completed" };
        self.close(&mut last, status);
        let answer = &mut self.answer;
        status.clone_into(&mut answer.status);
        answer.incomplete_details =
            is_cut.then(|| IncompleteDetails { reason: "max_output_tokens".to_owned() });
        answer.usage = Some(ResponseUsage {
            input_tokens: end.usage.prompt_tokens,
            input_tokens_details: InputDetails {
                cached_tokens: end.usage.prompt_tokens_details.cached_tokens,
                ..InputDetails::default()
            },
            output_tokens: end.usage.completion_tokens,
            output_tokens_details: OutputDetails::default(),
            total_tokens: end.usage.total_tokens,
        });
        answer.x_tirami = Some(end.info.clone());
        self.last = Some(last);
    }

    /// The answer as a message of a chat.
    fn message(&self) -> Value {
        let (mut text, mut calls) = (String::new(), Vec::new());
        for item in &self.answer.output {
            match item {
                OutputItem::Message { content, .. } => {
                    for OutputContent::OutputText { text: more, .. } in content {
                        text.push_str(more);
                    }
                }
                OutputItem::FunctionCall { call_id, name, arguments, status, .. } => {
                    // One that was cut off has no arguments that anybody could read.
                    if status == "completed" {
                        calls.push(json!({
                            "id": call_id, "type": "function",
                            "function": {"name": name, "arguments": arguments},
                        }));
                    }
                }
            }
        }
        if calls.is_empty() {
            json!({"role": "assistant", "content": text})
        } else {
            json!({"role": "assistant", "content": text, "tool_calls": calls})
        }
    }
}

impl Form for ResponsesForm {
    fn prefix(&self) -> &'static str {
        "resp_"
    }

    fn begins(&mut self, head: &Head, _: usize) -> Bytes {
        self.know(head);
        let mut bytes = Vec::new();
        let response = Box::new(self.answer.clone());
        self.tell(&mut bytes, ResponseEventKind::Created { response: response.clone() });
        self.tell(&mut bytes, ResponseEventKind::InProgress { response });
        bytes.into()
    }

    fn says(&mut self, head: &Head, _: usize, news: News) -> Bytes {
        let mut bytes = Vec::new();
        for said in news.said {
            self.said(&mut bytes, head, said);
        }
        bytes.into()
    }

    fn keeps(&mut self, head: &Head, end: &Ended) -> Option<Kept> {
        self.end(head, end);
        let agent = self.keeper?;
        self.conversation.push(self.message());
        let conversation = written(&core::mem::take(&mut self.conversation));
        Some(Kept { agent, id: head.id.clone(), response: written(&self.answer), conversation })
    }

    fn is_not_kept(&mut self) {
        self.answer.store = false;
    }

    fn ends(&mut self, head: &Head, end: &Ended) -> Vec<Bytes> {
        self.end(head, end);
        let mut bytes = self.last.take().unwrap_or_default();
        let response = Box::new(self.answer.clone());
        let last = match response.incomplete_details {
            Some(_) => ResponseEventKind::Incomplete { response },
            None => ResponseEventKind::Completed { response },
        };
        self.tell(&mut bytes, last);
        vec![bytes.into()]
    }

    fn breaks(&mut self, head: &Head, error: &ApiError) -> Bytes {
        self.know(head);
        let mut bytes = Vec::new();
        self.close(&mut bytes, "incomplete");
        let message = format!("{}: {}", error.code(), error.body().error.message);
        self.answer.error = Some(ResponseError { code: "server_error".to_owned(), message });
        "failed".clone_into(&mut self.answer.status);
        // What broke off is not kept.
        self.answer.store = false;
        let response = Box::new(self.answer.clone());
        self.tell(&mut bytes, ResponseEventKind::Failed { response });
        bytes.into()
    }

    fn gathers(&mut self, _: usize, news: News) {
        self.news.extend(news.said);
    }

    fn whole(&mut self, head: &Head, end: &Ended) -> Vec<u8> {
        self.end(head, end);
        written(&self.answer)
    }
}

fn part(text: String) -> OutputContent {
    OutputContent::OutputText { text, annotations: Vec::new(), logprobs: Vec::new() }
}
