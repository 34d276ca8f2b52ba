//! Why the ledger refuses a command.

use tirami_core::{AgentId, JobId, Timestamp, Trm};

use crate::book::{ApprovalId, Level, Period, Scope};
use crate::lattice::{AcknowledgeRefusal, CharterError, CutRejection, EntryRejection};
use crate::refusal::{ClaimRefusal, FaucetRefusal, OrderRefusal, VoucherRefusal};

/// Why a command was refused. Nothing has changed when one is returned.
///
/// Variants are in order of precedence: when several apply, the first is returned (MONEY §10).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Spending is frozen.
    #[error("the kill switch is on since {since} ({reason}); turn it off to spend again")]
    KillSwitch {
        /// Since when.
        since: Timestamp,
        /// The reason given.
        reason: String,
    },
    /// The caller may not do this.
    #[error("this needs the scope {needed}, the caller has {held}")]
    Scope {
        /// The scope the command needs.
        needed: Scope,
        /// The caller's.
        held: Scope,
    },
    /// The API key is unknown, expired or revoked.
    #[error("the API key is unknown, expired or revoked")]
    KeyInvalid,
    /// The caller is bound to no agent that could pay.
    #[error("the API key is bound to no agent; create a key with an agent to spend")]
    NoAgent,
    /// No such agent.
    #[error("there is no agent {agent}")]
    UnknownAgent {
        /// The agent.
        agent: AgentId,
    },
    /// No such key.
    #[error("there is no such API key")]
    UnknownKey,
    /// No such job is open.
    #[error("no job {job} is open")]
    UnknownJob {
        /// The job.
        job: JobId,
    },
    /// No such approval waits.
    #[error("no approval {approval} is waiting")]
    UnknownApproval {
        /// The approval.
        approval: ApprovalId,
    },
    /// The thing exists already.
    #[error("{what} exists already")]
    Exists {
        /// What exists.
        what: &'static str,
    },
    /// A value is outside its range.
    #[error("{field} must be {range}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The allowed range in words.
        range: &'static str,
    },
    /// A bound of the book is reached.
    #[error("the node keeps at most {max} {what}; end some first")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        max: u32,
    },
    /// One request may not cost this much.
    #[error("the request may cost up to {needed} TRM and {level} allows {max} TRM per request")]
    RequestLimit {
        /// Whose limit.
        level: Level,
        /// The limit.
        max: Trm,
        /// What the request may cost.
        needed: Trm,
    },
    /// A budget would be overrun.
    #[error(
        "the request may cost up to {needed} TRM; {level} has spent or set aside {used} TRM \
         of {max} TRM for the {period}; {}",
        budget_advice(.level, .period, .room_at)
    )]
    BudgetLimit {
        /// Whose budget.
        level: Level,
        /// Hour, day or lifetime; the sliding minute is the velocity limit.
        period: Period,
        /// The budget.
        max: Trm,
        /// Spent and held in the period.
        used: Trm,
        /// What the request may cost.
        needed: Trm,
        /// When enough has left the period, if nothing else is spent; `None` where waiting does
        /// not help.
        room_at: Option<Timestamp>,
    },
    /// The agent's circuit breaker is open.
    #[error(
        "the agent's circuit breaker is open until {until}; {why}; wait, or have the node's owner \
         close it: `tirami agents reset-breaker '{agent}'`"
    )]
    BreakerOpen {
        /// When it closes by itself.
        until: Timestamp,
        /// The agent's name.
        agent: String,
        /// What opened it, in words.
        why: String,
    },
    /// A person said no to this request.
    #[error("the request was denied by the node's owner (approval {approval})")]
    ApprovalDenied {
        /// The approval.
        approval: ApprovalId,
    },
    /// There is not enough TRM.
    #[error("{needed} TRM are needed and {available} TRM are available")]
    Insufficient {
        /// What is needed.
        needed: Trm,
        /// What is there beside all holds.
        available: Trm,
    },
    /// A voucher or a finish contradicts what was signed before.
    #[error("{reason}")]
    Contradicts {
        /// What does not fit.
        reason: &'static str,
    },
    /// Another node's order was refused.
    #[error(transparent)]
    Order(#[from] OrderRefusal),
    /// A voucher was refused.
    #[error(transparent)]
    Voucher(#[from] VoucherRefusal),
    /// A claim was refused.
    #[error(transparent)]
    Claim(#[from] ClaimRefusal),
    /// The node's faucet gives nothing.
    #[error(transparent)]
    Faucet(#[from] FaucetRefusal),
    /// The node does not hold the key that has to sign.
    #[error("the node does not hold the secret key that has to sign this")]
    KeyNotHeld,
    /// Others know entries of this node's chain that it does not: it was set back.
    #[error(
        "others know {missing} entries of this node's chain that it does not, so a backup was \
         restored; nothing is signed until they have been fetched, which happens by itself"
    )]
    RolledBack {
        /// How many are missing.
        missing: u64,
    },
    /// The node asks the witnesses for its own highest slot.
    #[error(
        "the node is asking the witnesses where its chain ends and signs nothing until one \
         answers; nothing was lost; try again when a witness can be reached"
    )]
    Unconfirmed,
    /// An entry was refused.
    #[error(transparent)]
    Entry(#[from] EntryRejection),
    /// An acknowledgement was refused.
    #[error(transparent)]
    Acknowledge(#[from] AcknowledgeRefusal),
    /// A charter was refused.
    #[error(transparent)]
    Charter(#[from] CharterError),
    /// A checkpoint's cut was refused.
    #[error(transparent)]
    Cut(#[from] CutRejection),
}

/// What to do about a budget that is used up.
fn budget_advice(level: &Level, period: &Period, room_at: &Option<Timestamp>) -> String {
    let wait = match room_at {
        Some(at) => format!("wait until {at}, "),
        None => String::new(),
    };
    let whom = match level {
        Level::Key => "KEY",
        Level::Agent => "AGENT",
        Level::Node => "node",
    };
    format!(
        "{wait}ask for less, or have the node's owner raise it: `tirami policy set {whom} \
         --{period}-max TRM`"
    )
}

impl Rejection {
    /// The stable code sent to clients. A released code is never renamed.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::KillSwitch { .. } => "kill_switch",
            Self::Scope { .. } => "insufficient_scope",
            Self::KeyInvalid => "invalid_api_key",
            Self::NoAgent => "no_agent",
            Self::UnknownAgent { .. } => "unknown_agent",
            Self::UnknownKey => "unknown_key",
            Self::UnknownJob { .. } => "unknown_job",
            Self::UnknownApproval { .. } => "unknown_approval",
            Self::Exists { .. } => "exists",
            Self::OutOfRange { .. } => "out_of_range",
            Self::TooMany { .. } => "too_many",
            Self::RequestLimit { .. } => "request_limit",
            Self::BudgetLimit { period: Period::Minute, .. } => "velocity_limit",
            Self::BudgetLimit { .. } => "budget_limit",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::ApprovalDenied { .. } => "approval_denied",
            Self::Insufficient { .. } => "insufficient_balance",
            Self::Contradicts { .. } => "contradicts",
            Self::Order(refusal) => refusal.code(),
            Self::Voucher(refusal) => refusal.code(),
            Self::Claim(refusal) => refusal.code(),
            Self::Faucet(refusal) => refusal.code(),
            Self::KeyNotHeld => "key_not_held",
            Self::RolledBack { .. } => "rolled_back",
            Self::Unconfirmed => "unconfirmed",
            Self::Entry(_) => "entry_refused",
            Self::Acknowledge(_) => "acknowledge_refused",
            Self::Charter(_) => "charter_refused",
            Self::Cut(_) => "cut_refused",
        }
    }

    /// Whether the same command may succeed later without the caller changing it.
    pub const fn is_transient(&self) -> bool {
        if let Self::Order(refusal) = self {
            return refusal.is_transient();
        }
        matches!(
            self,
            Self::KillSwitch { .. }
                | Self::TooMany { .. }
                | Self::BudgetLimit { .. }
                | Self::BreakerOpen { .. }
                | Self::RolledBack { .. }
                | Self::Unconfirmed
                | Self::Insufficient { .. }
        )
    }
}
