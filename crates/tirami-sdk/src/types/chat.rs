//! Chat completions in OpenAI's shapes, and what Tirami adds to an answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Amount;

/// A chat to be continued. Fields Tirami does not know are ignored, as OpenAI does; fields that
/// would change the answer and are not supported here are refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// The model's name or digest, as in `GET /v1/models`.
    pub model: String,
    /// The messages, oldest first; at least one.
    pub messages: Vec<ChatMessage>,
    /// Completion tokens at most, at least 1. The older name of `max_completion_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// Completion tokens at most, at least 1. Unset is what the context, the limits, the approval
    /// threshold and the available TRM leave room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u32>,
    /// 0 always takes the likeliest token; 1 follows the model's own probabilities. 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability, 0 to 1; 0 is the likeliest
    /// one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Only so many of the likeliest tokens; 0 is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// How long the model stays in this node's memory after this request; unset, as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<super::KeepAlive>,
    /// How long all of it may take, in milliseconds from the request's arrival, at most a day.
    /// Then an answer that has begun ends with `finish_reason` `length`, and one that has not is
    /// refused with `deadline_exceeded` and costs nothing. Unset, there is no such end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub timeout_ms: Option<u32>,
    /// Seed of the sampler: the same request on the same build gives the same answer. A node takes
    /// whole numbers of 64 bits, of which the lowest 32 count. Unset draws one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub seed: Option<u32>,
    /// Texts that end the answer and are not part of it; at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Answers to the same messages, 1 to 16; each is held and charged for itself, and the n-th
    /// has the seed plus n.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16)]
    pub n: Option<u32>,
    /// Whether each token of the answer comes with its log-probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// So many of the likeliest tokens at each place come with theirs; only with `logprobs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// Functions the model may call; at most 128. The arguments of a call always are a JSON object
    /// and follow the function's schema, unless the answer comes from a server elsewhere, which
    /// `system_fingerprint` `openai` tells: then following it is that server's affair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Tool>>,
    /// Whether functions are called: `auto`, the default, leaves it to the model; `none`,
    /// `required`, one function, or some of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// Whether there may be several calls in one answer; true when unset. At most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// Variables of the model's chat template by name, such as `{"enable_thinking": false}`; at
    /// most 32, and 16 384 bytes as JSON. One that the template does not read is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<BTreeMap<String, serde_json::Value>>,
    /// How much the model thinks, such as `none`, `low` or `high`, where its template can be told;
    /// with `none` and `minimal` it does not think. Elsewhere it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
    /// `{"type": "disabled"}` or `enabled`: whether the model thinks, where its template can be
    /// told. Elsewhere it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<serde_json::Value>,
    /// Whether the answer comes piece by piece as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What a stream carries besides text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// A name for the end user; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl ChatRequest {
    /// A request to `model` without messages yet.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    /// The request with a message of the user appended.
    #[must_use]
    pub fn user(self, text: impl Into<String>) -> Self {
        self.message("user", text)
    }

    /// The request with a message of `role` appended.
    #[must_use]
    pub fn message(mut self, role: &str, text: impl Into<String>) -> Self {
        self.messages.push(ChatMessage::new(role, text));
        self
    }
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text; null where the assistant called functions and said nothing.
    #[serde(default)]
    pub content: Option<Content>,
    /// Functions the assistant called; absent when none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// In a message of `tool`, the call whose result it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who said it among those of one role, or the tool whose result it is, where the model's
    /// template can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    /// A message of `role`.
    pub fn new(role: &str, text: impl Into<String>) -> Self {
        let content = Some(Content::Text(text.into()));
        let tool_calls = Vec::new();
        Self { role: role.to_owned(), content, tool_calls, tool_call_id: None, name: None }
    }
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    pub function: Function,
}

/// What the model is told of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Function {
    /// Its name: 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments, which are an object; unset is any object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<serde_json::Value>,
}

/// Whether functions are called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// `auto`, `none` or `required`.
    Mode(String),
    /// This function is called.
    Named(NamedTool),
    /// Only these functions are called.
    Allowed(AllowedChoice),
}

/// A choice among some of the functions; the model is told of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllowedChoice {
    /// `allowed_tools`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The functions.
    pub allowed_tools: AllowedTools,
}

/// The functions that may be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllowedTools {
    /// `auto` or `required`.
    pub mode: String,
    /// The functions by their names; at least one and at most 128.
    pub tools: Vec<NamedTool>,
}

/// A function that is to be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedTool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    pub function: FunctionName,
}

/// The name of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionName {
    /// The name.
    pub name: String,
}

/// A function that was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// Names the call, for the message with its result.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function and its arguments.
    pub function: CalledFunction,
}

/// A function and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CalledFunction {
    /// The function's name.
    pub name: String,
    /// A JSON object as text; only its beginning where the answer ended for its length.
    pub arguments: String,
}

/// What is new of a call in a piece of a streamed answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which call of the answer, from 0.
    pub index: u32,
    /// Names the call; only in its first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`; only in its first piece.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is new.
    pub function: FunctionDelta,
}

/// What is new of a function call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct FunctionDelta {
    /// The function's name; only in the call's first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The next part of the arguments' text.
    #[serde(default)]
    pub arguments: String,
}

/// A message's text, whole or in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// The whole text.
    Text(String),
    /// Parts that are joined without a separator.
    Parts(Vec<ContentPart>),
}

impl Content {
    /// Whether there is neither text nor picture.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Parts(parts) => {
                parts.iter().all(|part| part.text.is_empty() && part.image_url.is_none())
            }
        }
    }

    /// The whole text.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`, or `image_url` in a message of the user.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    #[serde(default)]
    pub text: String,
    /// The picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_url: Option<ImageUrl>,
}

/// A picture of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageUrl {
    /// The PNG or JPEG file itself, as `data:image/png;base64,…`; nothing is fetched from
    /// elsewhere.
    pub url: String,
}

/// One stop text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Stop {
    /// One text.
    One(String),
    /// At most 16 texts.
    Many(Vec<String>),
}

/// What a stream carries besides text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Whether a last chunk without choices tells the usage.
    #[serde(default)]
    pub include_usage: bool,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatResponse {
    /// `chatcmpl-` and the job's id.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// Engine, version and back-end that answered.
    pub system_fingerprint: String,
    /// As many answers as `n` asks for.
    pub choices: Vec<ChatChoice>,
    /// Tokens read and written.
    pub usage: Usage,
    /// What the answer cost, who gave it and how it can be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<TiramiInfo>,
}

impl ChatResponse {
    /// The answer's text.
    pub fn text(&self) -> String {
        let content = self.choices.first().and_then(|choice| choice.message.content.as_ref());
        content.map(Content::text).unwrap_or_default()
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChoice {
    /// Counts from 0.
    pub index: u32,
    /// The answer.
    pub message: ChatMessage,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: String,
    /// How likely the answer's tokens were; null unless asked for.
    #[serde(default)]
    pub logprobs: Option<ChoiceLogprobs>,
}

/// How likely the tokens of an answer, or of a piece of one, were.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ChoiceLogprobs {
    /// The tokens in order.
    pub content: Vec<TokenLogprob>,
}

/// How likely a token was: before temperature, bias, penalties and grammar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenLogprob {
    /// The token's text; where it is a part of a character, with a replacement for it.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at this place, likeliest first; as many as `top_logprobs` asks for.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the likeliest tokens at a place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// The token's bytes.
    pub bytes: Vec<u8>,
}

/// A piece of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// Engine, version and back-end that answer.
    pub system_fingerprint: String,
    /// One piece; none in the usage chunk.
    pub choices: Vec<ChatChunkChoice>,
    /// Tokens read and written; only in the usage chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Only in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<TiramiInfo>,
}

impl ChatChunk {
    /// The piece's text; empty when it has none.
    pub fn text(&self) -> &str {
        self.choices.first().and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
    }
}

/// One piece of one answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ChatChunkChoice {
    /// Counts from 0.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta,
    /// `stop`, `length` or `tool_calls` in the last piece.
    #[serde(default)]
    pub finish_reason: Option<String>,
    /// How likely the piece's tokens were; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChoiceLogprobs>,
}

/// What is new in a piece.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ChatDelta {
    /// `assistant`; only in the first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// New text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// What is new of calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of the rendered prompt, once however many answers there are.
    pub prompt_tokens: u32,
    /// Tokens of all answers.
    pub completion_tokens: u32,
    /// Their sum.
    pub total_tokens: u32,
    /// Of the tokens read.
    #[serde(default)]
    pub prompt_tokens_details: PromptDetails,
}

/// Of the tokens read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PromptDetails {
    /// How many of them were in the cache of this node's engine; they cost as much as others. 0
    /// where another node answered.
    pub cached_tokens: u32,
}

/// What an answer cost, who gave it and how it can be verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TiramiInfo {
    /// What was charged.
    pub trm_cost: Amount,
    /// What the paying agent has left beside all its holds.
    pub effective_balance: Amount,
    /// The party that answered, 64 hexadecimal characters.
    pub provider: String,
    /// The trade, for `GET /v1/tirami/trades/{id}`; of several, the last one.
    pub trade_id: String,
    /// The trades of a request for several answers, in their order; absent for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trade_ids: Vec<String>,
    /// The work in floating-point operations.
    pub flops: u64,
    /// `deadline` where the time that the request gives was up before the answer's end; else
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// Who was chosen and why.
    pub route: Route,
}

/// Who was chosen to answer, out of how many, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// `local` when this node answered itself, `mesh` when another one did.
    #[serde(default)]
    pub kind: String,
    /// The party that answered.
    pub provider: String,
    /// Digest of the model that answered.
    pub model: String,
    /// Providers that could have answered.
    pub candidates: u32,
    /// Why this one.
    pub reason: String,
    /// What spoke for it, the decisive reason first; empty for `local`.
    #[serde(default)]
    pub why: Vec<String>,
    /// Each node's part of the answer, in order; empty for `local`. More than one when a node was
    /// lost and another one went on.
    #[serde(default)]
    pub attempts: Vec<RouteAttempt>,
}

/// One node's part of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteAttempt {
    /// The party.
    pub provider: String,
    /// The trade, which is charged and paid for itself.
    pub trade_id: String,
    /// What this part costs.
    pub trm_cost: Amount,
    /// Tokens it read, those of the answer that came from others before included.
    pub prompt_tokens: u32,
    /// How many of them are paid for again, because the node before was lost.
    #[serde(default)]
    pub repeated_tokens: u32,
    /// Tokens it delivered.
    pub completion_tokens: u32,
    /// How it ended, for people.
    pub ended: String,
}
