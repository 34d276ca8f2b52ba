//! OpenAI's older completions: texts that are continued as they stand, without a chat template.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Stop, StreamOptions, TiramiInfo, Usage};

/// Texts to be continued. Fields of a chat that say how tokens are chosen are understood here too.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// The model's name or digest, as in `GET /v1/models`.
    pub model: String,
    /// What is to be continued; at most 16 answers to all of it together.
    pub prompt: TextPrompt,
    /// What stands after the gap that the answer fills; only for models with tokens for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Completion tokens at most, at least 1; 16 when unset. 0 with both `echo` and `logprobs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; 1 follows the model's own probabilities. 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability, 0 to 1; 0 is the likeliest
    /// one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Seed of the sampler. A node takes whole numbers of 64 bits, of which the lowest 32 count.
    /// Unset draws one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub seed: Option<u32>,
    /// Texts that end an answer and are not part of it; at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Answers to each text, 1 to 16; each is held and charged for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16)]
    pub n: Option<u32>,
    /// The same as `n`, or unset: every answer that is made is given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u32>,
    /// Whether each token comes with its log-probability, and those of so many likeliest ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 5)]
    pub logprobs: Option<u32>,
    /// Whether an answer begins with the text that it continues. With `logprobs` the text's own
    /// tokens have theirs, but not in a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Whether the answer comes piece by piece as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What a stream carries besides text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// How long all of it may take, in milliseconds from the request's arrival, at most a day; see
    /// the chat's field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub timeout_ms: Option<u32>,
    /// A name for the end user; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl CompletionRequest {
    /// A request to continue one text.
    pub fn new(model: impl Into<String>, text: impl Into<String>) -> Self {
        let prompt = TextPrompt::Text(text.into());
        Self { model: model.into(), prompt, ..Self::default() }
    }
}

/// What is to be continued: one text or several, as text or as the model's tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum TextPrompt {
    /// One text. Spellings of control tokens in it mean those tokens.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// The tokens of one text.
    Tokens(Vec<u32>),
    /// The tokens of several texts.
    TokenLists(Vec<Vec<u32>>),
}

impl Default for TextPrompt {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// Continued texts, or a piece of them in a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionResponse {
    /// `cmpl-` and the first job's id.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// Engine, version and back-end that answered.
    pub system_fingerprint: String,
    /// The answers to the first text, then to the next one.
    pub choices: Vec<CompletionChoice>,
    /// Tokens read and written; in a stream only in the usage chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What the answers cost; in a stream only in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<TiramiInfo>,
}

/// One continued text, or a piece of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CompletionChoice {
    /// Counts from 0.
    pub index: u32,
    /// What was written.
    pub text: String,
    /// How likely its tokens were; null unless asked for.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in a stream null before the last piece.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// How likely the tokens of a text were: before temperature, bias, penalties and grammar.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The tokens' texts; a part of a character is spelt `bytes:\x…`.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for the first token of a text that is
    /// echoed.
    pub token_logprobs: Vec<Option<f64>>,
    /// At each place the likeliest tokens, and the one that stands there; null as above.
    pub top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
    /// Where each token begins, in characters.
    pub text_offset: Vec<u32>,
}
