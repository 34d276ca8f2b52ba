//! Anthropic's messages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ErrorExtra, TiramiInfo};

/// A conversation to be continued, as Anthropic's clients send it. What would change the answer
/// and is not built here is refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct MessagesRequest {
    /// The model's name or digest, as in `GET /v1/models`.
    pub model: String,
    /// Completion tokens at most, at least 1.
    #[schema(minimum = 1)]
    pub max_tokens: u32,
    /// The messages, oldest first; at least one. The last one is not the assistant's.
    pub messages: Vec<InputMessage>,
    /// What the model is told before everything else: text, or blocks of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<MessageContent>,
    /// Tools the model may call; at most 128. The input of a call always follows the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<MessageTool>>,
    /// Whether tools are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<MessageToolChoice>,
    /// Texts that end the answer and are not part of it; at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_sequences: Option<Vec<String>>,
    /// 0 always takes the likeliest token; 1, the default, follows the model's own probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    pub temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability, 0 to 1; 0 is the likeliest
    /// one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Only so many of the likeliest tokens; 0 is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// `{"type": "disabled"}` or `enabled`: whether the model thinks, where its template can be
    /// told. Elsewhere it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<serde_json::Value>,
    /// Variables of the model's chat template by name, such as `{"enable_thinking": false}`; at
    /// most 32, and 16 384 bytes as JSON. One that the template does not read is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<BTreeMap<String, serde_json::Value>>,
    /// `{"format": {"type": "json_schema", "schema": …}}`: the answer follows the schema, and one
    /// that cannot be followed in all is refused. The `effort` beside it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_config: Option<serde_json::Value>,
    /// Whether the answer comes piece by piece as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Who asks; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MessageMetadata>,
}

impl MessagesRequest {
    /// A question of the user.
    pub fn new(model: impl Into<String>, max_tokens: u32, text: impl Into<String>) -> Self {
        let message =
            InputMessage { role: "user".to_owned(), content: MessageContent::Text(text.into()) };
        Self { model: model.into(), max_tokens, messages: vec![message], ..Self::default() }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MessageMetadata {
    /// A name for the end user; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InputMessage {
    /// `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: MessageContent,
}

/// A message's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum MessageContent {
    /// One text.
    Text(String),
    /// Blocks in order.
    Blocks(Vec<ContentBlock>),
}

/// A block of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture of the user's, PNG or JPEG.
    Image {
        /// The file itself; nothing is fetched from elsewhere.
        source: ImageSource,
    },
    /// A tool the assistant calls.
    ToolUse {
        /// Names the call, for the block with its result.
        id: String,
        /// The tool's name.
        name: String,
        /// A JSON object; empty where the answer ended for its length before it was complete.
        input: serde_json::Value,
    },
    /// What a call came to.
    ToolResult {
        /// The call whose result it is.
        tool_use_id: String,
        /// The result: text, or blocks of text.
        #[serde(default)]
        content: serde_json::Value,
        /// Whether the call failed.
        #[serde(default)]
        is_error: bool,
    },
}

/// A picture's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSource {
    /// `base64`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `image/png` or `image/jpeg`.
    pub media_type: String,
    /// The file in base64.
    pub data: String,
}

/// A tool the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageTool {
    /// Its name: 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its input, which is an object.
    pub input_schema: serde_json::Value,
}

/// Whether tools are called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MessageToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The tool, where it is `tool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether there is one call at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_parallel_tool_use: Option<bool>,
}

/// A whole answer, or what is known of one when its stream begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageAnswer {
    /// `msg_` and the job's id.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `assistant`.
    pub role: String,
    /// Text, then calls of tools.
    pub content: Vec<ContentBlock>,
    /// The model that answered.
    pub model: String,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`; null while it runs.
    pub stop_reason: Option<String>,
    /// The stop text that ended it.
    pub stop_sequence: Option<String>,
    /// Tokens read and written.
    pub usage: MessageUsage,
    /// What the answer cost, who gave it and how it can be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<TiramiInfo>,
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MessageUsage {
    /// Tokens of the rendered prompt that were read; together with `cache_read_input_tokens` all.
    pub input_tokens: u32,
    /// Tokens of the rendered prompt that were in the cache of this node's engine; they cost as much
    /// as others. 0 where another node answered.
    #[serde(default)]
    pub cache_read_input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
}

/// An event of a streamed answer, as a node tells it. Its name is its `type`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageEvent {
    /// The answer begins.
    MessageStart {
        /// What is known of it.
        message: Box<MessageAnswer>,
    },
    /// A block begins.
    ContentBlockStart {
        /// Counts from 0.
        index: u32,
        /// The block, empty.
        content_block: ContentBlock,
    },
    /// A block goes on.
    ContentBlockDelta {
        /// Which block.
        index: u32,
        /// What is new.
        delta: BlockDelta,
    },
    /// A block is complete.
    ContentBlockStop {
        /// Which block.
        index: u32,
    },
    /// Why the answer ended.
    MessageDelta {
        /// Why.
        delta: MessageEnd,
        /// Tokens read and written, in all.
        usage: MessageUsage,
        /// What the answer cost, who gave it and how it can be verified.
        #[serde(skip_serializing_if = "Option::is_none")]
        x_tirami: Option<Box<TiramiInfo>>,
    },
    /// The answer is complete.
    MessageStop,
    /// There is no news.
    Ping,
    /// The answer broke off; what was delivered is charged, nothing else.
    Error {
        /// What happened.
        error: MessageErrorDetail,
    },
}

/// What is new of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// Of a text.
    TextDelta {
        /// The next part.
        text: String,
    },
    /// Of a call's input.
    InputJsonDelta {
        /// The next part of the JSON text.
        partial_json: String,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageEnd {
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    pub stop_reason: Option<String>,
    /// The stop text that ended it.
    pub stop_sequence: Option<String>,
}

/// How many tokens a conversation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageTokens {
    /// Tokens of the rendered prompt.
    pub input_tokens: u32,
}

/// A refusal in Anthropic's envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageError {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened and what to do.
    pub error: MessageErrorDetail,
    /// What Tirami adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<ErrorExtra>,
}

/// What happened and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageErrorDetail {
    /// The class of the error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened and what to do, for people.
    pub message: String,
    /// The request's field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// The stable code, such as `budget_limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}
