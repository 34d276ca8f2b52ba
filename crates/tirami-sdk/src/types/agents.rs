//! Agents: accounts in the node's book, each with its own key.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Limits, LimitsReport, Spending};
use crate::{Amount, SignedAmount};

/// The agents of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentList {
    /// How many.
    pub count: u64,
    /// The agents.
    pub agents: Vec<Agent>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// `did:tirami:<64 hex>`.
    pub did: String,
    /// For people.
    pub name: String,
    /// Whether it is the one that pays for calls on loopback without an API key.
    pub personal: bool,
    /// What the account holds, reserved TRM included.
    pub balance_trm: Amount,
    /// What is set aside for running jobs.
    pub reserved_trm: Amount,
    /// What may be spent now.
    pub available_trm: Amount,
    /// `available_trm` in answers of 1 000 tokens, rounded down.
    pub available_answers: u64,
    /// What it spent and set aside.
    pub spending: Spending,
    /// Its limits.
    pub limits: LimitsReport,
    /// When its circuit breaker closes by itself; null while it is closed.
    pub breaker_open_until_ms: Option<u64>,
}

/// Opens an account for a new agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAgent {
    /// For people; 1 to 64 characters.
    pub name: String,
    /// Moved from the node's account at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fund_trm: Option<Amount>,
    /// Its limits; unset are none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// Moves TRM between the node's account and an agent's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FundAgent {
    /// To the agent; negative takes back.
    pub amount_trm: SignedAmount,
}

/// Asks for an agent's key in a bundle only the passphrase opens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportAgent {
    /// At least 8 characters. Without it the bundle is worthless.
    pub passphrase: String,
}

/// Opens a bundle and gives its agent an account here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportAgent {
    /// The passphrase of the export.
    pub passphrase: String,
    /// The bundle.
    pub bundle: Bundle,
    /// For people; unset is the name in the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// An agent's key, encrypted under a passphrase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bundle {
    /// `tirami/agent-bundle/1`.
    pub format: String,
    /// The agent.
    pub did: String,
    /// Its name at the export.
    pub name: String,
    /// How the key is encrypted.
    pub cryption: Cryption,
    /// The encrypted key in hexadecimal.
    pub ciphertext: String,
}

/// How a bundle is encrypted: Argon2id turns the passphrase into the key of XChaCha20-Poly1305.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cryption {
    /// `argon2id+xchacha20poly1305`.
    pub algorithm: String,
    /// Argon2id's memory in KiB.
    pub memory_kib: u32,
    /// Argon2id's passes.
    pub passes: u32,
    /// Argon2id's lanes.
    pub lanes: u32,
    /// Salt, 16 bytes in hexadecimal.
    pub salt: String,
    /// Nonce, 24 bytes in hexadecimal.
    pub nonce: String,
}
