//! Balances, prices, trades and the mesh's totals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ChatMessage;
use crate::{Amount, SignedAmount};

/// What an account has, has spent and has set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Balance {
    /// The node's party.
    pub node_id: String,
    /// The agent's DID; null for the node's own account.
    pub agent: Option<String>,
    /// What was earned by answering; only the node's account earns.
    pub contributed: Amount,
    /// What was spent on answers.
    pub consumed: Amount,
    /// What is set aside for running jobs.
    pub reserved: Amount,
    /// What the account holds, reserved TRM included.
    pub net_balance: SignedAmount,
    /// What may be spent now: net balance without what is reserved; for the node's account
    /// with what its line allows.
    pub effective_balance: Amount,
    /// `effective_balance` in µTRM.
    pub effective_balance_micro: String,
    /// `effective_balance` in answers of 1 000 tokens, rounded down.
    pub effective_balance_answers: u64,
}

/// What work costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pricing {
    /// The model the figures are for.
    pub model: String,
    /// µTRM for 10⁹ FLOP; 1 000 000 is par.
    pub price_ppm: u32,
    /// FLOP of one token before attention.
    pub flops_per_token: u64,
    /// What one token costs before attention, rounded up.
    pub trm_per_token: Amount,
    /// What an answer of 100 tokens to an empty prompt costs, rounded up.
    pub estimated_cost_100_tokens: Amount,
    /// What an answer of 1 000 tokens to an empty prompt costs, rounded up. One answer, where
    /// limits are shown in answers.
    pub estimated_cost_1000_tokens: Amount,
    /// Trades in the book.
    pub total_trades_ever: u64,
}

/// A page of trades, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TradeList {
    /// Trades in this page.
    pub count: u64,
    /// The trades.
    pub trades: Vec<Trade>,
    /// What to give as `before` for the next page; null on the last.
    pub next: Option<i64>,
}

/// A job that was charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trade {
    /// The order's id, which names the trade.
    pub trade_id: String,
    /// The job.
    pub job_id: String,
    /// Who paid: an agent's DID.
    pub consumer: String,
    /// The party that answered.
    pub provider: String,
    /// Digest of the model.
    pub model_id: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Completion tokens delivered.
    pub completion_tokens: u32,
    /// The work.
    pub flops: u64,
    /// What was charged.
    pub trm_amount: Amount,
    /// What was paid for it, where that is more than `trm_amount`: the consumer had signed a higher
    /// voucher than the one that the provider holds. Null otherwise.
    pub trm_paid: Option<Amount>,
    /// `stop`, `length`, `cancelled` or `failed`.
    pub finish: String,
    /// The receipt; null when the charge rests on the consumer's highest voucher.
    pub receipt_id: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// A trade with its documents, so that anybody can verify it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TradeDetail {
    /// The trade as booked.
    pub trade: Trade,
    /// The mesh whose id every signature covers.
    pub mesh_id: String,
    /// The consumer's public key.
    pub consumer_key: String,
    /// The provider's public key.
    pub provider_key: String,
    /// The consumer's order.
    pub order: SignedDocument,
    /// The provider's receipt.
    pub receipt: Option<SignedDocument>,
    /// The consumer's highest voucher.
    pub voucher: Option<SignedDocument>,
    /// Whether the node verified all signatures and figures while answering. Do not believe it:
    /// the same check runs on your side with `verify_trade`.
    pub verified: bool,
    /// Why not, when `verified` is false.
    pub problem: Option<String>,
}

/// A signed document, verbatim. The signature covers
/// `"tirami/<kind>/1" ‖ mesh id ‖ body`; the id is blake3 of the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedDocument {
    /// blake3 of the signed bytes.
    pub id: String,
    /// `order`, `receipt` or `voucher`.
    pub kind: String,
    /// The CBOR body in hexadecimal.
    pub body: String,
    /// The Ed25519 signature in hexadecimal.
    pub signature: String,
}

/// The mesh's totals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// The mesh.
    pub mesh_id: String,
    /// This node's party.
    pub node_id: String,
    /// Digest of the node's whole ledger; the same after a restart.
    pub state_hash: String,
    /// Digest of the lattice alone: the same on all nodes that hold the same chains.
    pub lattice_state_hash: String,
    /// The version of the charter in force.
    pub charter_version: u32,
    /// Witnesses of the mesh.
    pub witnesses: u32,
    /// How many of them make an entry final.
    pub quorum: u32,
    /// How many dishonest witnesses change nothing.
    pub witnesses_tolerated: u64,
    /// How many witnesses may be away while entries still become final.
    pub away_tolerated: u64,
    /// Connected nodes, this one not counted.
    pub peers: u64,
    /// Nodes that serve models now, this one included.
    pub providers: u64,
    /// Final entries in the lattice.
    pub entries_final: u64,
    /// Entries of this node that are not final yet.
    pub entries_pending: u64,
    /// Final entries that some peer is known to hold and this node lacks, at least.
    pub entries_behind: u64,
    /// How long ago this node learned of the oldest final entry that some connected peer holds and
    /// it still lacks, in milliseconds; 0 when it is up to date.
    pub lag_ms: u64,
    /// When the newest checkpoint was written, in milliseconds since the Unix epoch.
    pub checkpoint_at_ms: Option<u64>,
    /// Chains in the lattice.
    pub total_nodes: u64,
    /// Which chains this node keeps: `all` of the mesh, or its `own` and those of parties it has
    /// to do with.
    pub keeps: String,
    /// Trades in this node's book.
    pub total_trades: u64,
    /// What this node's agents were charged, ever.
    pub charged_trm: Amount,
    /// What other nodes paid this one for its work, ever.
    pub earned_trm: Amount,
    /// Agents in this node's book.
    pub total_agents: u64,
    /// Σ of free balances of all chains.
    pub free_trm: SignedAmount,
    /// Payments that are not collected.
    pub in_transit_trm: Amount,
    /// TRM ever issued.
    pub minted_trm: Amount,
    /// TRM ever burned.
    pub burned_trm: Amount,
    /// TRM that contradictions made good; 0 unless witnesses provably lied.
    pub loss_trm: SignedAmount,
    /// TRM that chains kept here collected from chains that are not; 0 on a node that keeps all.
    pub outside_trm: SignedAmount,
    /// Whether free + in transit = minted − burned + loss + outside, and the book's accounts sum to
    /// the chain's money.
    pub conserved: bool,
}

/// What a request would cost.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct EstimateRequest {
    /// The model's name or digest; unset is the one served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The messages, as in a chat.
    pub messages: Vec<ChatMessage>,
    /// The variables of the template for that chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<BTreeMap<String, serde_json::Value>>,
    /// Completion tokens at most, as in a chat. Unset, it is what limits, the approval threshold
    /// and the available TRM leave room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    /// How many answers, 1 to 16; 1 when unset. Each is a job of its own, prompt included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
}

/// A quote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// The model that would answer.
    pub model: String,
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Completion tokens at most: what the request names, or what there is room for.
    pub completion_max: u32,
    /// Answers that are quoted, each of `completion_max` tokens.
    #[serde(default)]
    pub n: u32,
    /// The work of all answers when all of their tokens are used.
    pub max_flops: u64,
    /// What would be set aside: the cost of all answers when all of their tokens are used.
    pub max_cost_trm: Amount,
    /// `max_cost_trm` in answers of 1 000 tokens.
    pub max_cost_answers: f64,
    /// What the prompt costs, once for each answer.
    pub prompt_cost_trm: Amount,
    /// What the first 100 completion tokens after this prompt cost.
    pub cost_per_100_tokens_trm: Amount,
    /// `cost_per_100_tokens_trm` in answers of 1 000 tokens.
    pub cost_per_100_tokens_answers: f64,
    /// What the caller's agent may spend now; null without an agent.
    pub available_trm: Option<Amount>,
    /// Whether such a chat would run at once: enough TRM, within every limit, below the approval
    /// threshold, circuit breaker closed and kill switch off.
    pub affordable: bool,
}
