//! Limits, what was spent against them, approvals and the kill switch.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Amount;

/// What may be spent. A field that is null or missing is no limit at this level; other levels
/// still apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// One request, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_max_trm: Option<Amount>,
    /// The last 60 seconds, spent and set aside together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minute_max_trm: Option<Amount>,
    /// The last 60 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour_max_trm: Option<Amount>,
    /// The last 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day_max_trm: Option<Amount>,
    /// For ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_max_trm: Option<Amount>,
    /// A request that may cost more waits for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_above_trm: Option<Amount>,
    /// So many failed jobs in a row open the agent's circuit breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_errors: Option<u32>,
    /// So many jobs within a minute open it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_spends_per_minute: Option<u32>,
    /// How long it stays open, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_open_ms: Option<u64>,
}

/// Limits shown both in TRM and in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitsReport {
    /// One request, at most.
    pub request_max: Option<LimitAmount>,
    /// The last 60 seconds.
    pub minute_max: Option<LimitAmount>,
    /// The last 60 minutes.
    pub hour_max: Option<LimitAmount>,
    /// The last 24 hours.
    pub day_max: Option<LimitAmount>,
    /// For ever.
    pub lifetime_max: Option<LimitAmount>,
    /// A request that may cost more waits for a person.
    pub approval_above: Option<LimitAmount>,
    /// So many failed jobs in a row open the agent's circuit breaker.
    pub breaker_errors: Option<u32>,
    /// So many jobs within a minute open it.
    pub breaker_spends_per_minute: Option<u32>,
    /// How long it stays open, in milliseconds.
    pub breaker_open_ms: Option<u64>,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitAmount {
    /// In TRM.
    pub trm: Amount,
    /// In answers of 1 000 tokens of the model served, rounded down.
    pub answers: u64,
}

/// What was spent and set aside against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Spending {
    /// In the last 60 seconds.
    pub minute_trm: Amount,
    /// In the last 60 minutes.
    pub hour_trm: Amount,
    /// In the last 24 hours.
    pub day_trm: Amount,
    /// Ever.
    pub lifetime_trm: Amount,
}

/// The gates a request passes, as they stand now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Safety {
    /// Whether all spending is frozen.
    pub kill_switch_active: bool,
    /// Why, when it is.
    pub kill_switch_reason: Option<String>,
    /// Since when, in milliseconds since the Unix epoch.
    pub kill_switch_since_ms: Option<u64>,
    /// The agent the figures below are for.
    pub agent: Option<String>,
    /// Whether the agent's circuit breaker is open.
    pub circuit_tripped: bool,
    /// When it closes by itself.
    pub circuit_open_until_ms: Option<u64>,
    /// The agent's limits.
    pub policy: Option<LimitsReport>,
    /// What the agent spent.
    pub spending: Option<Spending>,
    /// The node's limits, over all agents.
    pub node_policy: LimitsReport,
    /// What all agents spent.
    pub node_spending: Spending,
    /// Approvals that wait for a person.
    pub approvals_waiting: u64,
    /// What one answer of 1 000 tokens costs, the unit of the `answers` figures.
    pub answer_trm: Amount,
}

/// Turns the kill switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// Whether to freeze all spending.
    pub activate: bool,
    /// For the record; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How the kill switch stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KillStatus {
    /// Whether all spending is frozen.
    pub kill_switch_active: bool,
    /// The reason given.
    pub reason: String,
}

/// Replaces the limits of the node, an agent or an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// `node`, an agent's DID, or the eight characters that name an API key.
    pub target: String,
    /// The new limits. They replace all old ones of the target.
    pub limits: Limits,
}

/// The limits as they stand now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// `node`, an agent's DID, or an API key's name.
    pub target: String,
    /// Its limits.
    pub policy: LimitsReport,
}

/// The requests that wait for a person; with `state=all` also those that no longer do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApprovalList {
    /// How many.
    pub count: u64,
    /// The approvals, oldest first.
    pub approvals: Vec<Approval>,
}

/// A request that waits for a person, or was answered and not used yet, or has lapsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    /// Its number.
    pub id: u64,
    /// Who wants to spend: an agent's DID.
    pub agent: String,
    /// The API key used; null for the personal agent on loopback.
    pub key: Option<String>,
    /// blake3 of the request.
    pub request: String,
    /// What it may cost at most.
    pub max_amount_trm: Amount,
    /// `waiting`, `approved`, `denied` or `lapsed`.
    pub state: String,
    /// When it was asked, in milliseconds since the Unix epoch.
    pub asked_at_ms: u64,
    /// When it lapses.
    pub expires_at_ms: u64,
}

/// Answers an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalDecision {
    /// Whether the request may run once.
    pub approve: bool,
}

/// That a change was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// Always true.
    pub ok: bool,
}
