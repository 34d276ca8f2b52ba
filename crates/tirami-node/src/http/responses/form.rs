//! An answer as OpenAI's responses tell it: items, and what the next answer goes on from.

use bytes::Bytes;
use serde_json::{Value, json};
use tirami_core::AgentId;
use tirami_infer::calls::Said;
use tirami_infer::engine::TokenLogprobs;
use tirami_sdk::types::{
    IncompleteDetails, InputDetails, OutputContent, OutputDetails, OutputItem, ResponseError,
    ResponseEvent, ResponseEventKind, ResponseObject, ResponseUsage, TokenLogprob,
};

use crate::http::chat::form::{Ended, Form, News, named_event, token, written};
use crate::http::chat::{Head, call_id};
use crate::http::error::ApiError;
use crate::http::views;
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
    /// Whether it is told whole, so that nobody reads its events.
    is_whole: bool,
    /// So many more log-probabilities are gathered.
    likely_left: usize,
    /// Calls that have begun.
    calls: u32,
    /// Events told so far.
    told: u64,
    /// What is told whole, until it ends.
    news: Vec<News>,
    /// Events of the end that are not told yet; none before the end.
    last: Option<Vec<u8>>,
}

const IN_PROGRESS: &str = "in_progress";

/// Log-probabilities that the events which end a stream tell again, at most, those of the first
/// tokens: one is up to 2 KB of JSON, four events tell it, and a stream gathers it until then.
const LIKELY_AGAIN_MAX: usize = 512;

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
            is_whole: false,
            likely_left: LIKELY_AGAIN_MAX,
            calls: 0,
            told: 0,
            news: Vec::new(),
            last: None,
        }
    }

    fn tell(&mut self, into: &mut Vec<u8>, kind: ResponseEventKind) {
        if self.is_whole {
            return;
        }
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

    /// Tells what became certain, and of the text how likely its tokens were.
    fn hear(&mut self, into: &mut Vec<u8>, head: &Head, news: News) {
        let News { said, mut likely } = news;
        let has_calls = said.iter().any(|said| !matches!(said, Said::Text(_)));
        for said in said {
            match said {
                Said::Text(text) => {
                    let end = if has_calls { tokens_of(&text, &likely) } else { likely.len() };
                    let logprobs = likely.drain(..end).map(token).collect();
                    self.text(into, head, text, logprobs);
                }
                Said::Call { name, .. } => self.call(into, head, name),
                Said::Arguments { text, .. } => self.arguments(into, text),
            }
        }
    }

    fn call(&mut self, into: &mut Vec<u8>, head: &Head, name: String) {
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

    fn arguments(&mut self, into: &mut Vec<u8>, delta: String) {
        let output_index = self.index();
        if let Some(OutputItem::FunctionCall { id, arguments, .. }) = &mut self.open {
            arguments.push_str(&delta);
            let item_id = id.clone();
            self.tell(into, ResponseEventKind::ArgumentsDelta { item_id, output_index, delta });
        }
    }

    fn text(&mut self, into: &mut Vec<u8>, head: &Head, delta: String, likely: Vec<TokenLogprob>) {
        if !matches!(self.open, Some(OutputItem::Message { .. })) {
            self.close(into, "completed");
            self.begin_text(into, head);
        }
        let output_index = self.index();
        let Some(OutputItem::Message { id, content, .. }) = &mut self.open else { return };
        if let Some(OutputContent::OutputText { text, logprobs, .. }) = content.last_mut() {
            text.push_str(&delta);
            logprobs.extend(likely.iter().take(self.likely_left).cloned());
            self.likely_left = self.likely_left.saturating_sub(likely.len());
        }
        let (item_id, content_index, logprobs) = (id.clone(), 0, likely);
        let delta =
            ResponseEventKind::TextDelta { item_id, output_index, content_index, delta, logprobs };
        self.tell(into, delta);
    }

    fn begin_text(&mut self, into: &mut Vec<u8>, head: &Head) {
        let item_id = self.item_id("msg", head);
        let item = OutputItem::Message {
            id: item_id.clone(),
            role: "assistant".to_owned(),
            status: IN_PROGRESS.to_owned(),
            content: Vec::new(),
        };
        self.start(into, item);
        let (part, content_index, output_index) = (empty(), 0, self.index());
        self.tell(
            into,
            ResponseEventKind::PartAdded { item_id, output_index, content_index, part },
        );
        if let Some(OutputItem::Message { content, .. }) = &mut self.open {
            content.push(empty());
        }
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
                    let OutputContent::OutputText { text, logprobs, .. } = whole;
                    let (content_index, logprobs) = (0, logprobs.clone());
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
        for news in core::mem::take(&mut self.news) {
            self.hear(&mut last, head, news);
        }
        let is_cut = end.finishes.first().is_some_and(|finished| finished.reason == "length");
        let status = if is_cut { "incomplete" } else { "completed" };
        self.close(&mut last, status);
        let answer = &mut self.answer;
        status.clone_into(&mut answer.status);
        answer.completed_at = (!is_cut).then(|| views::now_ms() / 1_000);
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

    /// The answer as it is kept: log-probabilities would take many times the room of their text,
    /// which is everybody's, and nobody goes on from them.
    fn kept(&self) -> ResponseObject {
        let mut kept = self.answer.clone();
        for item in &mut kept.output {
            if let OutputItem::Message { content, .. } = item {
                for OutputContent::OutputText { logprobs, .. } in content {
                    logprobs.clear();
                }
            }
        }
        kept
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
        self.hear(&mut bytes, head, news);
        bytes.into()
    }

    fn keeps(&mut self, head: &Head, end: &Ended) -> Option<Kept> {
        self.end(head, end);
        let agent = self.keeper?;
        self.conversation.push(self.message());
        let conversation = written(&core::mem::take(&mut self.conversation));
        Some(Kept { agent, id: head.id.clone(), response: written(&self.kept()), conversation })
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
        // These are told once, in the answer itself.
        (self.is_whole, self.likely_left) = (true, usize::MAX);
        self.news.push(news);
    }

    fn whole(&mut self, head: &Head, end: &Ended) -> Vec<u8> {
        self.end(head, end);
        written(&self.answer)
    }
}

fn empty() -> OutputContent {
    let text = String::new();
    OutputContent::OutputText { text, annotations: Vec::new(), logprobs: Vec::new() }
}

/// So many of the tokens, from the first, say the text; those behind them say calls.
fn tokens_of(text: &str, likely: &[TokenLogprobs]) -> usize {
    let mut bytes = 0_usize;
    let is_part = |one: &&TokenLogprobs| {
        let is_part = bytes < text.len();
        bytes = bytes.saturating_add(one.chosen.bytes.len());
        is_part
    };
    likely.iter().take_while(is_part).count()
}
