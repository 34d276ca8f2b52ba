//! An answer as Anthropic tells it: one message of blocks.

use bytes::Bytes;
use serde_json::{Map, Value};
use tirami_infer::calls::Said;
use tirami_sdk::types::{
    BlockDelta, ContentBlock, MessageAnswer, MessageEnd, MessageEvent, MessageUsage,
};

use super::envelope;
use crate::http::chat::form::{Ended, Form, Gathered, News, named_event, written};
use crate::http::chat::{Head, call_id};
use crate::http::error::ApiError;

/// One answer; there is never more than one.
pub(super) struct MessagesForm {
    /// The request's stop texts.
    stops: Vec<String>,
    gathered: Gathered,
    /// Blocks that have begun.
    blocks: u32,
    /// What the last of them is, while it is open.
    open: Option<Open>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Call,
}

impl MessagesForm {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, gathered: Gathered::default(), blocks: 0, open: None }
    }

    /// The open block's place.
    const fn index(&self) -> u32 {
        self.blocks.saturating_sub(1)
    }

    fn close(&mut self, into: &mut Vec<u8>) {
        if self.open.take().is_some() {
            tell(into, &MessageEvent::ContentBlockStop { index: self.index() });
        }
    }

    fn start(&mut self, into: &mut Vec<u8>, open: Open, content_block: ContentBlock) {
        self.close(into);
        (self.open, self.blocks) = (Some(open), self.blocks.saturating_add(1));
        tell(into, &MessageEvent::ContentBlockStart { index: self.index(), content_block });
    }

    fn said(&mut self, into: &mut Vec<u8>, head: &Head, said: Said) {
        let delta = match said {
            Said::Call { index, name } => {
                let (id, input) = (call_id(&head.id, 0, index), Value::Object(Map::new()));
                return self.start(into, Open::Call, ContentBlock::ToolUse { id, name, input });
            }
            Said::Arguments { text, .. } => BlockDelta::InputJsonDelta { partial_json: text },
            Said::Text(text) => {
                if self.open != Some(Open::Text) {
                    self.start(into, Open::Text, ContentBlock::Text { text: String::new() });
                }
                BlockDelta::TextDelta { text }
            }
        };
        tell(into, &MessageEvent::ContentBlockDelta { index: self.index(), delta });
    }

    fn end(&self, end: &Ended) -> MessageEnd {
        let finished = end.finishes.first();
        let stop = finished.and_then(|finished| self.stops.get(finished.stop? as usize));
        let stop_reason = match finished.map(|finished| finished.reason) {
            Some("length") => "max_tokens",
            Some("tool_calls") => "tool_use",
            _ if stop.is_some() => "stop_sequence",
            _ => "end_turn",
        };
        let stop_sequence = stop.filter(|_| stop_reason == "stop_sequence").cloned();
        MessageEnd { stop_reason: Some(stop_reason.to_owned()), stop_sequence }
    }
}

impl Form for MessagesForm {
    fn prefix(&self) -> &'static str {
        "msg_"
    }

    fn begins(&mut self, head: &Head, _: usize) -> Bytes {
        let mut bytes = Vec::new();
        let end = MessageEnd { stop_reason: None, stop_sequence: None };
        // What of it is cached shows when it is read; the end says it.
        let usage = MessageUsage { input_tokens: head.prompt_tokens, ..MessageUsage::default() };
        let message = Box::new(message(head, Vec::new(), end, usage));
        tell(&mut bytes, &MessageEvent::MessageStart { message });
        tell(&mut bytes, &MessageEvent::Ping);
        bytes.into()
    }

    fn says(&mut self, head: &Head, _: usize, news: News) -> Bytes {
        let mut bytes = Vec::new();
        for said in news.said {
            self.said(&mut bytes, head, said);
        }
        bytes.into()
    }

    fn ends(&mut self, _: &Head, end: &Ended) -> Vec<Bytes> {
        let mut bytes = Vec::new();
        self.close(&mut bytes);
        let (delta, usage) = (self.end(end), usage(end));
        let x_tirami = Some(Box::new(end.info.clone()));
        tell(&mut bytes, &MessageEvent::MessageDelta { delta, usage, x_tirami });
        tell(&mut bytes, &MessageEvent::MessageStop);
        vec![bytes.into()]
    }

    fn breaks(&mut self, _: &Head, error: &ApiError) -> Bytes {
        let mut bytes = Vec::new();
        tell(&mut bytes, &MessageEvent::Error { error: envelope::detail(error) });
        bytes.into()
    }

    fn waits(&self) -> Bytes {
        Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n")
    }

    fn gathers(&mut self, choice: usize, news: News) {
        self.gathered.add(choice, news);
    }

    fn whole(&mut self, head: &Head, end: &Ended) -> Vec<u8> {
        let answer = self.gathered.take(0);
        let text = Some(answer.text).filter(|text| !text.is_empty());
        let text = text.map(|text| ContentBlock::Text { text });
        let calls = answer.calls.into_iter().zip(0..).map(|(call, index)| ContentBlock::ToolUse {
            id: call_id(&head.id, 0, index),
            name: call.name,
            // The answer may have ended before its JSON did.
            input: serde_json::from_str(&call.arguments).unwrap_or_else(|_| Map::new().into()),
        });
        let content = text.into_iter().chain(calls).collect();
        let mut message = message(head, content, self.end(end), usage(end));
        message.x_tirami = Some(end.info.clone());
        written(&message)
    }
}

fn usage(end: &Ended) -> MessageUsage {
    let cached = end.usage.prompt_tokens_details.cached_tokens;
    MessageUsage {
        input_tokens: end.usage.prompt_tokens.saturating_sub(cached),
        cache_read_input_tokens: cached,
        output_tokens: end.usage.completion_tokens,
    }
}

fn message(
    head: &Head,
    content: Vec<ContentBlock>,
    end: MessageEnd,
    usage: MessageUsage,
) -> MessageAnswer {
    MessageAnswer {
        id: head.id.clone(),
        kind: "message".to_owned(),
        role: "assistant".to_owned(),
        content,
        model: head.model.clone(),
        stop_reason: end.stop_reason,
        stop_sequence: end.stop_sequence,
        usage,
        x_tirami: None,
    }
}

fn tell(into: &mut Vec<u8>, event: &MessageEvent) {
    let name = match event {
        MessageEvent::MessageStart { .. } => "message_start",
        MessageEvent::ContentBlockStart { .. } => "content_block_start",
        MessageEvent::ContentBlockDelta { .. } => "content_block_delta",
        MessageEvent::ContentBlockStop { .. } => "content_block_stop",
        MessageEvent::MessageDelta { .. } => "message_delta",
        MessageEvent::MessageStop => "message_stop",
        MessageEvent::Ping => "ping",
        MessageEvent::Error { .. } => "error",
    };
    named_event(into, name, event);
}
