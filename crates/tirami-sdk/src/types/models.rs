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
    /// Whether there are more; false, since all are listed at once.
    #[serde(default)]
    pub has_more: bool,
    /// The first one's `id`, null where there is none.
    #[serde(default)]
    pub first_id: Option<String>,
    /// The last one's `id`, null where there is none.
    #[serde(default)]
    pub last_id: Option<String>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// The name to ask for.
    pub id: String,
    /// `model`.
    pub object: String,
    /// `model`, under the name Anthropic gives it.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The name for people: the same as `id`.
    #[serde(default)]
    pub display_name: String,
    /// When it was loaded, in seconds since the Unix epoch.
    pub created: u64,
    /// The same time, RFC 3339 in UTC.
    #[serde(default)]
    pub created_at: String,
    /// `active`: it answers.
    #[serde(default)]
    pub lifecycle: String,
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
    /// What goes in and comes out: `text`, and `image` for a model that reads pictures.
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

/// How long a model stays in memory after its last use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum KeepAlive {
    /// So many seconds; 0 unloads it at once, a number below 0 keeps it until its room is needed.
    Seconds(i64),
    /// A time such as `5m` or `1h30m`.
    Time(String),
}

/// How to load a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadModel {
    /// How long it then stays after its last use; unset, as long as the owner set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
}

/// Which models are in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelStateList {
    /// The models this node can load, those its owner named first.
    pub models: Vec<ModelState>,
    /// Bytes of memory that loaded models take together, as counted from their files and shapes.
    pub memory_bytes: u64,
    /// Bytes they may take together; unset where there is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_budget_bytes: Option<u64>,
}

/// A model on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelState {
    /// The name to ask for.
    pub name: String,
    /// blake3 of the model's file.
    pub digest: String,
    /// `loaded`, `loading`, or `on_disk`.
    pub state: String,
    /// Whether other nodes are offered it while it is in memory: its owner named it.
    pub offered: bool,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Bytes of memory it takes when it is loaded.
    pub memory_bytes: u64,
    /// Milliseconds since its last use ended, 0 while it is used; unset while it is not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// Requests that are being answered.
    pub running: u32,
    /// Requests that wait for a place.
    pub queued: u32,
    /// Completion tokens since the node started.
    pub completion_tokens_total: u64,
    /// Prompt tokens since the node started.
    pub prompt_tokens_total: u64,
}
