//! How the node is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// That the process answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// Whether a model is loaded.
    pub model_loaded: bool,
}

/// Whether the node can take requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// Whether all components are ready.
    pub ready: bool,
    /// Each component.
    pub components: ReadyComponents,
}

/// The parts a node needs to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadyComponents {
    /// Whether the ledger and its store take commands.
    pub ledger: bool,
    /// Whether the engine takes requests.
    pub engine: bool,
}

/// The node at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// `ok`, or `frozen` while the kill switch is on.
    pub status: String,
    /// The version of the node.
    pub version: String,
    /// The node's party.
    pub node_id: String,
    /// The mesh it belongs to.
    pub mesh_id: String,
    /// The personal agent's DID.
    pub personal_agent: String,
    /// The name of the first model served.
    pub model: String,
    /// Its digest.
    pub model_digest: String,
    /// How busy the engines are together.
    pub engine: EngineStatus,
    /// The models the node can load, those its owner named first.
    #[serde(default)]
    pub models: Vec<super::ModelState>,
    /// When the node started, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// Milliseconds since then.
    pub uptime_ms: u64,
    /// Whether the kill switch is on.
    pub kill_switch_active: bool,
    /// Trades in the book.
    pub total_trades: u64,
    /// Jobs that run now.
    pub open_holds: u64,
    /// Approvals that wait for a person.
    pub approvals_waiting: u64,
    /// What the caller may do.
    pub scope: super::Scope,
}

/// How busy engines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EngineStatus {
    /// Requests that are being answered.
    pub running: u32,
    /// Requests that wait for a place.
    pub queued: u32,
    /// Completion tokens since the node started.
    pub completion_tokens_total: u64,
    /// Prompt tokens since the node started.
    pub prompt_tokens_total: u64,
}
