//! Texts as tokens and back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ChatMessage, Tool};

/// A text, or a chat, to be cut into tokens.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// The model's name or digest; unset is the one served here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The text; `content` is another name for it. Spellings of control tokens in it are text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A chat instead of a text, as the model's template renders it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<ChatMessage>,
    /// The tools of that chat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// The variables of the template for that chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<BTreeMap<String, serde_json::Value>>,
    /// Whether the token that the model wants before a text stands before it; true when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
    /// Whether the answer spells each token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_token_strs: Option<bool>,
}

/// The tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tokenized {
    /// How many they are.
    pub count: u32,
    /// Tokens one request may have, prompt and answer together.
    pub max_model_len: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// What each of them stands for, where that was asked for; else null. A token that is a part
    /// of a character has a replacement for it.
    #[serde(default)]
    pub token_strs: Option<Vec<String>>,
}

/// Tokens to be read as a text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// The model's name or digest; unset is the one served here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Their ids, at most 131 072.
    pub tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Detokenized {
    /// The text, control tokens as they are spelled. Bytes that are no text become U+FFFD.
    pub prompt: String,
    /// The same, under the name llama-server gives it.
    pub content: String,
}
