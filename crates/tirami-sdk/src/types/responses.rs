//! OpenAI's responses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{TiramiInfo, TokenLogprob};

/// What is to be answered. What would change the answer and is not built here is refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// The model's name or digest, as in `GET /v1/models`.
    pub model: String,
    /// A question, or a list of messages, calls of functions and their results.
    pub input: ResponseInput,
    /// What the model is told before everything else; it holds for this answer only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// The answer that this one goes on from: what it was asked and what it said come before
    /// `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_response_id: Option<String>,
    /// Whether the answer is kept, so that others can go on from it; true when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<bool>,
    /// Functions the model may call; at most 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<ResponseTool>>,
    /// `auto`, `none`, `required` or `{"type": "function", "name": …}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// Whether there may be several calls in one answer; true when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// What the answer's text must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<ResponseText>,
    /// Completion tokens at most, at least 1. Unset is what there is room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u32>,
    /// `{"effort": …}`: how much the model thinks, such as `none`, `low` or `high`, where its
    /// template can be told; with `none` and `minimal` it does not think. Elsewhere it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<Value>,
    /// Variables of the model's chat template by name, such as `{"enable_thinking": false}`; at
    /// most 32, and 16 384 bytes as JSON. One that the template does not read is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// 0 always takes the likeliest token; 1 follows the model's own probabilities. 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// Only the likeliest tokens that together have this probability, 0 to 1; 0 is the likeliest
    /// one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Lowers the likelihood of what was said at all; −2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Lowers the likelihood of what was said, as often as it was; −2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// `message.output_text.logprobs` asks for the log-probabilities of the text's tokens. Others
    /// are not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<String>>,
    /// So many of the likeliest tokens at each place come with theirs; 1 and more ask for
    /// log-probabilities too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// Whether the answer comes piece by piece as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// The caller's own notes, at most 16; given back with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// A name for the end user; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Another name for the end user; not used, and given back with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety_identifier: Option<String>,
    /// What would be asked again; not used, and given back with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_cache_key: Option<String>,
}

impl ResponsesRequest {
    /// A question.
    pub fn new(model: impl Into<String>, text: impl Into<String>) -> Self {
        let input = ResponseInput::Text(text.into());
        Self { model: model.into(), input, ..Self::default() }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ResponseInput {
    /// A message of the user.
    Text(String),
    /// Items of type `message`, `function_call`, `function_call_output`, `item_reference`, in
    /// order.
    Items(Vec<Value>),
}

impl Default for ResponseInput {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponseTool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name: 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub description: Option<String>,
    /// JSON schema of its arguments, which are an object.
    #[serde(default)]
    pub parameters: Option<Value>,
    /// Whether the tool is refused where something in its schema cannot be followed; else that is
    /// left out.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// What the answer's text must be.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ResponseText {
    /// `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", "name": …,
    /// "schema": …}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Value>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponseObject {
    /// `resp_` and the job's id.
    pub id: String,
    /// `response`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// The same, of its end; null where it is not complete.
    #[serde(default)]
    pub completed_at: Option<u64>,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: String,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// Always false: nothing is answered in the background.
    #[serde(default)]
    pub background: bool,
    /// As in the request, or 0.
    #[serde(default)]
    pub frequency_penalty: f64,
    /// As in the request.
    pub instructions: Option<String>,
    /// As in the request.
    pub max_output_tokens: Option<u32>,
    /// Always null: calls are not counted.
    #[serde(default)]
    pub max_tool_calls: Option<u32>,
    /// As in the request; never null.
    pub metadata: BTreeMap<String, String>,
    /// The model that answered.
    pub model: String,
    /// What was said: a message, and calls of functions.
    pub output: Vec<OutputItem>,
    /// As in the request, or true.
    pub parallel_tool_calls: bool,
    /// As in the request, or 0.
    #[serde(default)]
    pub presence_penalty: f64,
    /// As in the request.
    pub previous_response_id: Option<String>,
    /// As in the request.
    #[serde(default)]
    pub prompt_cache_key: Option<String>,
    /// As in the request.
    #[serde(default)]
    pub reasoning: Option<ResponseReasoning>,
    /// As in the request.
    #[serde(default)]
    pub safety_identifier: Option<String>,
    /// `default`: there are no others.
    #[serde(default)]
    pub service_tier: String,
    /// Whether the answer is kept.
    pub store: bool,
    /// As in the request, or 1.
    pub temperature: f64,
    /// As in the request.
    pub text: ResponseText,
    /// As in the request, or `auto`.
    pub tool_choice: Value,
    /// As in the request.
    pub tools: Vec<ResponseTool>,
    /// As in the request, or 0.
    #[serde(default)]
    pub top_logprobs: u32,
    /// As in the request, or 1.
    pub top_p: f64,
    /// `disabled`: an input that is too long is refused.
    pub truncation: String,
    /// Tokens read and written; null while it runs.
    pub usage: Option<ResponseUsage>,
    /// As in the request.
    pub user: Option<String>,
    /// What the answer cost, who gave it and how it can be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<TiramiInfo>,
}

impl ResponseObject {
    /// The answer's text.
    pub fn output_text(&self) -> String {
        let text = |part: &OutputContent| match part {
            OutputContent::OutputText { text, .. } => text.clone(),
        };
        let of_item = |item: &OutputItem| match item {
            OutputItem::Message { content, .. } => content.iter().map(text).collect(),
            OutputItem::FunctionCall { .. } => String::new(),
        };
        self.output.iter().map(of_item).collect()
    }
}

/// How much the model thinks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ResponseReasoning {
    /// As in the request.
    pub effort: Option<String>,
    /// As in the request; nothing is summed up.
    pub summary: Option<String>,
}

/// Why an answer failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResponseError {
    /// `server_error`; the message begins with the node's own code.
    pub code: String,
    /// What happened and what to do, for people.
    pub message: String,
}

/// Why an answer is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: String,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// Text.
    Message {
        /// Names the item.
        id: String,
        /// `assistant`.
        role: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: String,
        /// The text; empty while it runs.
        content: Vec<OutputContent>,
    },
    /// A function the model calls.
    FunctionCall {
        /// Names the item.
        id: String,
        /// Names the call, for the item with its result.
        call_id: String,
        /// The function's name.
        name: String,
        /// A JSON object as text; only its beginning where the answer ended for its length.
        arguments: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: String,
    },
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputContent {
    /// Text.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: Vec<Value>,
        /// How likely its tokens were; empty where that is not asked for.
        logprobs: Vec<TokenLogprob>,
    },
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResponseUsage {
    /// Tokens of the rendered prompt.
    pub input_tokens: u32,
    /// How many of them were not read anew.
    pub input_tokens_details: InputDetails,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// How many of them are no part of the text; always 0.
    pub output_tokens_details: OutputDetails,
    /// Their sum.
    pub total_tokens: u32,
}

/// Of the tokens read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct InputDetails {
    /// How many of them were in the cache of this node's engine; they cost as much as others. 0
    /// where another node answered.
    pub cached_tokens: u32,
    /// Always 0.
    #[serde(default)]
    pub cache_write_tokens: u32,
}

/// Of the tokens written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct OutputDetails {
    /// Always 0.
    pub reasoning_tokens: u32,
}

/// An event of a streamed answer, as a node tells it. Its name is its `type`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponseEvent {
    /// Its place in the stream, from 0.
    pub sequence_number: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: ResponseEventKind,
}

/// What happened to an answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum ResponseEventKind {
    /// The answer begins.
    #[serde(rename = "response.created")]
    Created {
        /// What is known of it.
        response: Box<ResponseObject>,
    },
    /// It runs.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// What is known of it.
        response: Box<ResponseObject>,
    },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded {
        /// Which item, from 0.
        output_index: u32,
        /// The item, empty.
        item: OutputItem,
    },
    /// A message's text begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        /// The item.
        item_id: String,
        /// Which item.
        output_index: u32,
        /// Always 0.
        content_index: u32,
        /// The text, empty.
        part: OutputContent,
    },
    /// A text goes on.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        /// The item.
        item_id: String,
        /// Which item.
        output_index: u32,
        /// Always 0.
        content_index: u32,
        /// The next part.
        delta: String,
        /// How likely its tokens were; empty where that is not asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A text is complete.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        /// The item.
        item_id: String,
        /// Which item.
        output_index: u32,
        /// Always 0.
        content_index: u32,
        /// The whole text.
        text: String,
        /// How likely its tokens were; empty where that is not asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A message's text is complete.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        /// The item.
        item_id: String,
        /// Which item.
        output_index: u32,
        /// Always 0.
        content_index: u32,
        /// The whole text.
        part: OutputContent,
    },
    /// A call's arguments go on.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        /// The item.
        item_id: String,
        /// Which item.
        output_index: u32,
        /// The next part of the JSON text.
        delta: String,
    },
    /// A call's arguments are complete.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        /// The item.
        item_id: String,
        /// Which item.
        output_index: u32,
        /// The function's name.
        name: String,
        /// The whole JSON text.
        arguments: String,
    },
    /// An item is complete.
    #[serde(rename = "response.output_item.done")]
    ItemDone {
        /// Which item.
        output_index: u32,
        /// The whole item.
        item: OutputItem,
    },
    /// The answer is complete.
    #[serde(rename = "response.completed")]
    Completed {
        /// The whole answer.
        response: Box<ResponseObject>,
    },
    /// The answer ended for its length.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// What there is of it.
        response: Box<ResponseObject>,
    },
    /// The answer broke off; what was delivered is charged, nothing else.
    #[serde(rename = "response.failed")]
    Failed {
        /// What there is of it.
        response: Box<ResponseObject>,
    },
}

impl ResponseEventKind {
    /// The event's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}

/// A kept answer is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeletedResponse {
    /// Its id.
    pub id: String,
    /// `response.deleted`.
    pub object: String,
    /// Always true.
    pub deleted: bool,
}

/// A page of the items that a kept answer was asked with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponseItemList {
    /// `list`.
    pub object: String,
    /// Items of type `message`, `function_call` and `function_call_output`, each with an `id`.
    pub data: Vec<Value>,
    /// The first one's id; null where there is none.
    pub first_id: Option<String>,
    /// The last one's id; null where there is none.
    pub last_id: Option<String>,
    /// Whether there are more behind it.
    pub has_more: bool,
}
