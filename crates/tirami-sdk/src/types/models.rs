//! The models a node serves.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Amount;

/// The models a node serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<Model>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// The name to ask for.
    pub id: String,
    /// `model`.
    pub object: String,
    /// When it was loaded, in seconds since the Unix epoch.
    pub created: u64,
    /// The party that serves it.
    pub owned_by: String,
    /// Tokens one request may have, prompt and answer together, under the name vLLM gives it.
    #[serde(default)]
    pub max_model_len: u32,
    /// What Tirami adds.
    pub x_tirami: ModelDetail,
}

/// What a model is and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelDetail {
    /// blake3 of the model's file; what makes two models the same.
    pub digest: String,
    /// `general.architecture` of the file.
    pub architecture: String,
    /// The quantisation, such as `Q4_1`.
    pub quantisation: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Tokens one request may have, prompt and answer together.
    pub context_tokens: u32,
    /// Weights that take part in a token.
    pub parameters_active: u64,
    /// Engine, version and back-end.
    pub build: String,
    /// What one token costs before attention, at the cheapest node.
    pub trm_per_token: Amount,
    /// What 10⁹ FLOP cost at the cheapest node.
    #[serde(default)]
    pub price_trm: Amount,
    /// Tokens the model was trained to hold.
    #[serde(default)]
    pub context_max: u32,
    /// What goes in and comes out: `text`.
    #[serde(default)]
    pub modalities: Vec<String>,
    /// What it can be asked for: `chat`, `tools`, `embeddings`, `tokenize`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Numbers in an embedding; 0 where none is made.
    #[serde(default)]
    pub embedding_width: u32,
    /// Whether an answer can begin without loading it first.
    #[serde(default)]
    pub loaded: bool,
    /// Nodes that serve it, this one included.
    #[serde(default)]
    pub providers: u32,
    /// Those nodes, this one first and then the cheapest; at most 64.
    #[serde(default)]
    pub served_by: Vec<String>,
}
