//! API keys: who may call, on whose account, up to which limits.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Limits, LimitsReport, Spending};

/// What a caller may do. Each scope includes those before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look at balances, trades and status.
    Read,
    /// Ask models, spending the bound agent's TRM.
    Inference,
    /// Move TRM between accounts and create agents.
    Economy,
    /// Everything: keys, limits, approvals, the kill switch.
    Admin,
}

impl Scope {
    /// All scopes, the least first.
    pub const ALL: [Self; 4] = [Self::Read, Self::Inference, Self::Economy, Self::Admin];

    /// The scope's name in JSON and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Inference => "inference",
            Self::Economy => "economy",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scope; use read, inference, economy or admin")]
pub struct NoScope(String);

impl FromStr for Scope {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<Self, NoScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.name() == text)
            .ok_or_else(|| NoScope(text.to_owned()))
    }
}

/// Makes an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// For people; 1 to 64 characters.
    pub label: String,
    /// What the key may do.
    pub scope: Scope,
    /// The DID of the agent that pays; needed to ask models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The key's own limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When it stops working, in milliseconds since the Unix epoch; unset is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// A new API key. The node keeps only a digest, so this is the only time it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedKey {
    /// The key itself.
    pub key: String,
    /// What it may do.
    pub info: KeyInfo,
}

impl fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedKey").field("info", &self.info).finish_non_exhaustive()
    }
}

/// The node's API keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyList {
    /// How many.
    pub count: u64,
    /// The keys.
    pub keys: Vec<KeyInfo>,
}

/// An API key without the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyInfo {
    /// The eight characters after `tirami_` that name it.
    pub id: String,
    /// For people.
    pub label: String,
    /// What it may do.
    pub scope: Scope,
    /// The DID of the agent that pays.
    pub agent: Option<String>,
    /// Its own limits.
    pub limits: LimitsReport,
    /// What it spent and set aside.
    pub spending: Spending,
    /// When it stops working; null is never.
    pub expires_at_ms: Option<u64>,
    /// `active`, `expired` or `revoked`.
    pub state: String,
}

/// Replaces a key by a new one with the same rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// How long the old key still works, in milliseconds.
    #[serde(default)]
    pub grace_ms: u64,
}
