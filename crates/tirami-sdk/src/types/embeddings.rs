//! Texts as vectors.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ProviderWish, TiramiInfo};

/// Texts to be turned into vectors that say what they mean.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct EmbeddingsRequest {
    /// The model's name or digest.
    pub model: String,
    /// What is to be embedded.
    pub input: EmbeddingInput,
    /// `float`, which is meant when unset, or `base64`: the numbers as IEEE 754 singles, each in
    /// four little-endian bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<String>,
    /// Numbers of each vector: the first ones of the model's, brought back to length 1. At most as
    /// many as the model has, which is meant when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// A name for the end user; nothing depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Milliseconds from the request's arrival after which the vectors are of no use, 1 to a day: a
    /// request that is not answered by then is refused with `deadline_exceeded` and costs nothing.
    /// Unset, there is no such end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Whom the requester wants to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderWish>,
}

/// One text or several, as text or as the model's tokens; at most 2 048, with at most 300 000
/// tokens in all. Each has at most as many tokens as the model's context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EmbeddingInput {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// The tokens of a text.
    Tokens(Vec<u32>),
    /// The tokens of several texts.
    TokenLists(Vec<Vec<u32>>),
}

impl Default for EmbeddingInput {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// Vectors, one for each text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Embeddings {
    /// `list`.
    pub object: String,
    /// The vectors in the order of the texts.
    pub data: Vec<Embedding>,
    /// The model that read the texts.
    pub model: String,
    /// Tokens read.
    pub usage: EmbeddingsUsage,
    /// What it cost, who did it and how it can be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<TiramiInfo>,
}

/// What one text means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// Which of the texts, from 0.
    pub index: u32,
    /// A vector of length 1.
    pub embedding: EmbeddingVector,
}

/// A vector in the form that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EmbeddingVector {
    /// Its numbers.
    Numbers(Vec<f32>),
    /// Its numbers as `base64` says.
    Base64(String),
}

/// Tokens read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct EmbeddingsUsage {
    /// Tokens of all texts.
    pub prompt_tokens: u32,
    /// The same.
    pub total_tokens: u32,
}
