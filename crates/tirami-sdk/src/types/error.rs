//! The error envelope of every refusal.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Amount;

/// A refusal in OpenAI's envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What happened.
    pub error: ErrorDetail,
    /// What Tirami adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_tirami: Option<ErrorExtra>,
}

/// What happened and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// What happened and what to do, for people.
    pub message: String,
    /// The class of the error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The request's field at fault.
    pub param: Option<String>,
    /// The stable code, such as `budget_limit`. A released code is never renamed.
    pub code: Option<String>,
}

/// What Tirami adds to a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorExtra {
    /// The approval to wait for; after it is given the same request passes once.
    pub approval_id: u64,
    /// When the approval lapses, in milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// What the request may cost at most.
    pub max_amount_trm: Amount,
}
