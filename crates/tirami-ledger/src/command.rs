//! What may be asked of the ledger, by whom, and what it answers with.

use tirami_core::{
    AgentId, Digest, DocumentId, Flop, JobId, ModelDigest, ModelShape, Ppm, Signature, Timestamp,
    Trm,
};

use crate::book::{ApprovalId, KeyId, Limits, Scope, Target};
use crate::documents::{FinishReason, Order, Receipt};
use crate::lattice::{Acknowledgement, Certificate, EntryKind, Slot};
use tirami_core::Signed;

/// Who asks. A command is refused when the actor's scope is below what the command needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The node itself: start-up, timers, its own chain.
    Node,
    /// A caller the edge has authenticated.
    Caller {
        /// The API key presented; `None` for the personal agent on loopback.
        key: Option<KeyId>,
        /// The account that pays.
        agent: Option<AgentId>,
        /// What the caller may do.
        scope: Scope,
    },
}

/// A request to change the ledger. HTTP, timers and start-up all submit one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Opens the node's chain in a mesh of one: `open`, `enrol` of itself with `line`, `line`.
    /// Refused when the chain exists.
    OpenChain {
        /// How far the node may overdraw.
        line: Trm,
    },
    /// Signs an entry on the node's own chain. When this node is a witness its acknowledgement
    /// follows by itself, by [`crate::Ledger::resume`].
    SignEntry {
        /// What the entry does.
        kind: EntryKind,
    },
    /// Takes an entry somebody else signed.
    ReceiveEntry {
        /// The entry's bytes, verbatim.
        bytes: Vec<u8>,
        /// The chain's signature.
        signature: Signature,
    },
    /// Takes an entry somebody else signed, with its certificate: it becomes final at once when
    /// what it rests on is final here.
    ReceiveCertified {
        /// The entry's bytes, verbatim.
        bytes: Vec<u8>,
        /// The chain's signature.
        signature: Signature,
        /// Acknowledgements of a quorum.
        certificate: Certificate,
    },
    /// Takes the cut of a checkpoint that is known here: the last entry it covers of each chain.
    /// A witness whose chains stand elsewhere needs it to acknowledge the checkpoint. The root in
    /// the checkpoint proves it, so anybody may send it.
    ReceiveCut {
        /// The checkpoint.
        entry: DocumentId,
        /// The last entry covered of each chain, in the order of the chains.
        slots: Vec<Slot>,
    },
    /// Acknowledges a received entry as a witness.
    Acknowledge {
        /// The entry.
        entry: DocumentId,
    },
    /// Takes another witness's acknowledgement.
    ReceiveAcknowledgement {
        /// The acknowledgement.
        acknowledgement: Acknowledgement,
    },

    /// Opens an account for an agent whose key the node holds.
    CreateAgent {
        /// The agent's key.
        agent: AgentId,
        /// For people; 1 to 64 characters.
        name: String,
    },
    /// Moves TRM from the node's own account to an agent's.
    FundAgent {
        /// The agent.
        agent: AgentId,
        /// How much.
        amount: Trm,
    },
    /// Moves TRM from an agent's account back to the node's.
    DefundAgent {
        /// The agent.
        agent: AgentId,
        /// How much.
        amount: Trm,
    },
    /// Records an API key. The secret itself never reaches the ledger.
    CreateKey {
        /// The key's public name.
        key: KeyId,
        /// blake3 of the whole key text.
        secret: Digest,
        /// For people; 1 to 64 characters.
        label: String,
        /// What the key may do; not above the creator's own scope.
        scope: Scope,
        /// The agent that pays for what the key does; needed from scope `Inference` on to spend.
        agent: Option<AgentId>,
        /// The key's own limits.
        limits: Limits,
        /// When it stops working.
        expires_at: Option<Timestamp>,
    },
    /// Replaces a key by a new one with the same rights; the old one works for `grace_ms` more.
    RotateKey {
        /// The key to replace.
        old: KeyId,
        /// The new key's name.
        new: KeyId,
        /// blake3 of the new key text.
        secret: Digest,
        /// How long both work.
        grace_ms: u64,
    },
    /// Ends a key at once.
    RevokeKey {
        /// The key.
        key: KeyId,
    },
    /// Sets the limits of the node, an agent or a key.
    SetLimits {
        /// Whose.
        target: Target,
        /// The new limits, replacing all old ones.
        limits: Limits,
    },
    /// Sets what the node asks for its work.
    SetPrice {
        /// µTRM for 10⁹ FLOP.
        price: Ppm,
    },
    /// Turns the kill switch on or off. While on, nothing is spent and running jobs end.
    SetKill {
        /// Whether spending is frozen.
        on: bool,
        /// For the record; at most 256 characters.
        reason: String,
    },
    /// Closes an agent's open circuit breaker before its time.
    ResetBreaker {
        /// The agent.
        agent: AgentId,
    },
    /// Answers a waiting approval.
    DecideApproval {
        /// Which.
        approval: ApprovalId,
        /// Whether the job may run.
        approve: bool,
    },

    /// Holds the job's maximum and signs its order.
    StartJob(StartJob),
    /// Signs a voucher for tokens that were handed to the consumer.
    Deliver {
        /// The job.
        job: JobId,
        /// Completion tokens handed over in all.
        completion_tokens: u32,
        /// blake3 of their ids, each as four little-endian bytes.
        stream: Digest,
    },
    /// Charges what was delivered, signs the receipt and frees the rest of the hold.
    FinishJob(FinishJob),
    /// Ends a job that delivered nothing. Nothing is owed.
    VoidJob {
        /// The job.
        job: JobId,
        /// Whether the engine was at fault, which counts for the circuit breaker.
        failed: bool,
    },
    /// Ends the jobs that were open when the node stopped: each is charged its highest voucher.
    Recover,
    /// Does what is due: expired holds and approvals, a checkpoint.
    Tick,
}

impl Command {
    /// The scope a caller needs for it. What the engine and the timers report is the node's own
    /// to say, and of callers only an administrator's: a consumer must not end its own job.
    pub const fn scope(&self) -> Scope {
        match self {
            Self::StartJob(_) => Scope::Inference,
            Self::CreateAgent { .. }
            | Self::FundAgent { .. }
            | Self::DefundAgent { .. }
            | Self::SetLimits { target: Target::Agent(_), .. }
            | Self::SignEntry { kind: EntryKind::Pay(_) | EntryKind::Transfer(_) } => {
                Scope::Economy
            }
            Self::OpenChain { .. }
            | Self::SignEntry { .. }
            | Self::ReceiveEntry { .. }
            | Self::ReceiveCertified { .. }
            | Self::ReceiveCut { .. }
            | Self::Acknowledge { .. }
            | Self::ReceiveAcknowledgement { .. }
            | Self::CreateKey { .. }
            | Self::RotateKey { .. }
            | Self::RevokeKey { .. }
            | Self::SetLimits { .. }
            | Self::SetPrice { .. }
            | Self::SetKill { .. }
            | Self::ResetBreaker { .. }
            | Self::DecideApproval { .. }
            | Self::Deliver { .. }
            | Self::FinishJob(_)
            | Self::VoidJob { .. }
            | Self::Recover
            | Self::Tick => Scope::Admin,
        }
    }

    /// Whether the kill switch stops it: it commits TRM that is not committed yet. Charging what
    /// was delivered is not stopped.
    pub const fn spends(&self) -> bool {
        matches!(
            self,
            Self::StartJob(_)
                | Self::FundAgent { .. }
                | Self::DefundAgent { .. }
                | Self::SignEntry { kind: EntryKind::Pay(_) | EntryKind::Transfer(_) }
        )
    }
}

/// A job that wants to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartJob {
    /// 16 random bytes.
    pub job: JobId,
    /// The model that answers.
    pub model: ModelDigest,
    /// Its shape.
    pub shape: ModelShape,
    /// blake3 of the request as received. A repeat of an approved request is recognised by it.
    pub request: Digest,
    /// The sampler's seed.
    pub seed: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Completion tokens at most.
    pub completion_max: u32,
}

/// What a job delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishJob {
    /// The job.
    pub job: JobId,
    /// Prompt tokens that were not computed again.
    pub cached_tokens: u32,
    /// Completion tokens handed to the consumer.
    pub completion_tokens: u32,
    /// blake3 of their ids, each as four little-endian bytes.
    pub output: Digest,
    /// Engine, version and back-end.
    pub build: String,
    /// Why it ended.
    pub finish: FinishReason,
}

/// What an accepted command led to, beside its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The job may run; its order is signed.
    JobStarted {
        /// The signed order.
        order: Box<Signed<Order>>,
        /// What the agent has left beside all its holds.
        available: Trm,
    },
    /// The job needs a person's word first; nothing was held.
    ApprovalPending {
        /// The entry in the queue.
        approval: ApprovalId,
        /// When it lapses.
        expires_at: Timestamp,
        /// What the job may cost at most.
        max_amount: Trm,
    },
    /// The job is charged and its receipt signed.
    JobFinished {
        /// The trade's id, which is its order's.
        trade: DocumentId,
        /// The work.
        flop: Flop,
        /// What was charged.
        amount: Trm,
        /// The signed receipt.
        receipt: Box<Signed<Receipt>>,
        /// What the agent has left beside all its holds.
        available: Trm,
    },
    /// An entry was signed, received or acknowledged.
    Entry {
        /// Its id.
        entry: DocumentId,
        /// This node's acknowledgement, when the command asked for it.
        acknowledgement: Option<Box<Acknowledgement>>,
    },
}
