//! What may be asked of the ledger, by whom, and what it answers with.

use tirami_core::{
    AgentId, Checked, Digest, DocumentId, Flop, JobId, ModelDigest, ModelShape, PartyId, Ppm,
    Signature, Timestamp, Trm,
};

use crate::book::{ApprovalId, KeyId, Limits, Scope, ServingPolicy, Target};
use crate::documents::{FinishReason, Order, Receipt, SignedBytes, Voucher};
use crate::lattice::{
    Acknowledgement, Certificate, CharterApproval, CharterChange, EntryKind, Slot,
};
use crate::refusal::ReceiptRefusal;
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
    /// Opens the chain of a node that joins a mesh, with the grants it was given.
    /// Refused when the chain exists.
    Join {
        /// The registrar's `enrol` of this party; without it the line is zero.
        enrol: Option<DocumentId>,
        /// A member's `sponsor` entry for this party, which lends a welcome line.
        sponsor: Option<DocumentId>,
    },
    /// Writes the next version of the charter. When this node is a witness it approves it at
    /// once, and acknowledges nothing until it is in force; with a quorum of one that is at once.
    ProposeCharter(Box<CharterChange>),
    /// Approves the next version of the charter as a witness, which acknowledges nothing from
    /// then on until it is in force. There is no way back: a witness signs one successor.
    ApproveCharter {
        /// The charter's bytes, verbatim.
        bytes: Vec<u8>,
    },
    /// Takes a successor of the charter in force with approvals of its witnesses, as far as they
    /// are known. It comes into force when they are a quorum, by [`crate::Ledger::resume`].
    ReceiveCharter {
        /// The charter's bytes, verbatim.
        bytes: Vec<u8>,
        /// Approvals, each of another witness.
        approvals: Vec<CharterApproval>,
    },
    /// From now on the node signs and acknowledges nothing, until [`Command::ConfirmHighest`]: it
    /// asks the witnesses for its own highest slot. For the start of a node that is not alone.
    AskHighest,
    /// Takes an entry of the node's own chain that somebody else knows. If it is above what is
    /// known here, the node was set back: it signs nothing until the entries up to it have come.
    NoteHighest {
        /// The entry's bytes, verbatim.
        bytes: Vec<u8>,
        /// Its signature, by the node's key.
        signature: Signature,
    },
    /// Enough witnesses have answered: the node signs again, unless entries of its are missing.
    ConfirmHighest,
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
        /// Completion tokens handed over in all; 0 for the result of a job that only reads.
        completion_tokens: u32,
        /// blake3 of their ids, each as four little-endian bytes, or of that result.
        stream: Digest,
        /// Of a job at another node: the prompt tokens its provider counted, at most those
        /// ordered. Without it those of the voucher before count, else all that were ordered.
        prompt_tokens: Option<u32>,
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
    /// Holds the most a job may cost and signs its order to another node, in the name of this
    /// node's chain, which pays for it.
    OrderJob(OrderJob),
    /// Charges a job of another node by its provider's receipt, which has to agree with what was
    /// received. One that does not is recorded against the provider and charges nothing; the job
    /// is then ended with [`Command::AbandonJob`].
    SettleJob {
        /// The job.
        job: JobId,
        /// The receipt's bytes, verbatim.
        receipt: Vec<u8>,
        /// The provider's signature.
        signature: Signature,
        /// Completion tokens received in all.
        completion_tokens: u32,
        /// blake3 of their ids, each as four little-endian bytes.
        output: Digest,
    },
    /// Ends a job whose provider is lost or cheated: what was received is charged, without a
    /// receipt. Nothing received, nothing owed.
    AbandonJob {
        /// The job.
        job: JobId,
        /// Completion tokens received in all.
        completion_tokens: u32,
        /// blake3 of their ids, each as four little-endian bytes.
        stream: Digest,
        /// Prompt tokens as the provider counted them, where no voucher has named them yet;
        /// without it those ordered.
        prompt_tokens: Option<u32>,
        /// Whether it counts as an error for the agent's circuit breaker.
        failed: bool,
    },

    /// Records that another node tried something here and was refused.
    NoteRefusal {
        /// Who.
        party: PartyId,
        /// The refusal's code.
        code: String,
        /// How often since it was last recorded.
        more: u32,
    },
    /// Sponsors a newcomer that showed work, within what the owner lets the node's faucet give.
    SponsorStranger(SponsorStranger),
    /// Sets to whom and how far this node serves.
    SetServing(ServingPolicy),
    /// Takes another node's order, if it passes every check of MONEY §9.
    AcceptOrder(AcceptOrder),
    /// Takes a voucher for tokens that were sent to the consumer.
    TakeVoucher {
        /// The voucher's bytes, verbatim.
        bytes: Vec<u8>,
        /// The consumer's signature.
        signature: Signature,
        /// blake3 of the ids of the first tokens sent, as many as the voucher names.
        stream: Digest,
        /// Completion tokens sent in all.
        sent: u32,
    },
    /// Ends a served job and signs its receipt; none for a job that delivered nothing.
    FinishServed(FinishJob),
    /// Ends a served job without a receipt: its consumer is lost. Its highest voucher is due.
    AbandonServed {
        /// The job.
        job: JobId,
        /// Completion tokens sent in all; of a job that only reads, 1 once all of its result was
        /// sent. What was not signed for counts as lost with the consumer, or it could take one
        /// window after another for nothing.
        sent: u32,
    },
    /// Takes a provider's claim against its consumer. Until it is paid or lapses, this node
    /// takes no order of the consumer and, as a witness, holds back its entries (MONEY §8).
    ReceiveClaim {
        /// The order.
        order: SignedBytes,
        /// The voucher that was not paid.
        voucher: SignedBytes,
    },
    /// Ends the jobs that were open when the node stopped: each is charged its highest voucher,
    /// and of each served one the highest voucher is due.
    Recover,
    /// Does what is due: expired holds and approvals, a checkpoint.
    Tick,
}

impl Command {
    /// The scope a caller needs for it. What the engine and the timers report is the node's own
    /// to say, and of callers only an administrator's: a consumer must not end its own job.
    pub const fn scope(&self) -> Scope {
        match self {
            Self::StartJob(_) | Self::OrderJob(_) => Scope::Inference,
            Self::CreateAgent { .. }
            | Self::FundAgent { .. }
            | Self::DefundAgent { .. }
            | Self::SetLimits { target: Target::Agent(_), .. }
            | Self::SignEntry { kind: EntryKind::Pay(_) | EntryKind::Transfer(_) } => {
                Scope::Economy
            }
            Self::OpenChain { .. }
            | Self::Join { .. }
            | Self::ProposeCharter(_)
            | Self::ApproveCharter { .. }
            | Self::ReceiveCharter { .. }
            | Self::AskHighest
            | Self::NoteHighest { .. }
            | Self::ConfirmHighest
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
            | Self::SettleJob { .. }
            | Self::AbandonJob { .. }
            | Self::NoteRefusal { .. }
            | Self::SponsorStranger(_)
            | Self::SetServing(_)
            | Self::AcceptOrder(_)
            | Self::TakeVoucher { .. }
            | Self::FinishServed(_)
            | Self::AbandonServed { .. }
            | Self::ReceiveClaim { .. }
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
                | Self::OrderJob(_)
                | Self::FundAgent { .. }
                | Self::DefundAgent { .. }
                | Self::SponsorStranger(_)
                | Self::SignEntry { kind: EntryKind::Pay(_) | EntryKind::Transfer(_) }
        )
    }
}

/// A job that wants to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartJob {
    /// 16 bytes that nobody can guess.
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
    /// Completion tokens at most; 0 for a job that only reads, see [`crate::documents`].
    pub completion_max: u32,
    /// The job at another node that this one goes on with after that node was lost. What that one
    /// cost, and those before it, counts for the limits of one request; and the person's approval
    /// of the first, of the same agent, key and request, counts for all of them together.
    pub continues: Option<JobId>,
}

/// A job that another node is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderJob {
    /// The job. Its `prompt_tokens` are the most that are paid for: this node may not have the
    /// model that would count them.
    pub start: StartJob,
    /// Who is to do it; not this node.
    pub provider: PartyId,
    /// The provider's price, µTRM for 10⁹ FLOP.
    pub price: Ppm,
}

/// An order that came from another node, and what this node would do for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptOrder {
    /// The order's bytes, verbatim.
    pub order: Vec<u8>,
    /// The consumer's signature.
    pub signature: Signature,
    /// Where it was verified already, that: it is not computed twice.
    pub checked: Option<Checked>,
    /// The model that would answer.
    pub model: ModelDigest,
    /// Its shape.
    pub shape: ModelShape,
    /// Tokens of the prompt as this node counts them, those of an answer that is gone on with
    /// included.
    pub prompt_tokens: u32,
    /// Completion tokens that the request asks for at most.
    pub completion_max: u32,
    /// When a witness last said, or this node as a witness last knew, that the consumer's head
    /// known here is its newest.
    pub head_at: Timestamp,
}

/// What an owner lets the node's faucet give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaucetBounds {
    /// All newcomers of a sliding day together.
    pub day_max: Trm,
    /// Newcomers of a sliding day that come from one source.
    pub source_max: u32,
}

/// A newcomer that asks the node's faucet for a welcome line, and has shown its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SponsorStranger {
    /// The newcomer.
    pub newcomer: PartyId,
    /// Where it connects from, as a number: newcomers from one place have the same.
    pub source: u64,
    /// What is locked for it.
    pub amount: Trm,
    /// The owner's bounds.
    pub bounds: FaucetBounds,
}

/// What a job delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishJob {
    /// The job.
    pub job: JobId,
    /// Prompt tokens that were not computed again.
    pub cached_tokens: u32,
    /// Completion tokens handed to the consumer; 0 for the result of a job that only reads.
    pub completion_tokens: u32,
    /// blake3 of their ids, each as four little-endian bytes, or of that result.
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
    /// The job may be sent to its provider; its order is signed.
    JobOrdered {
        /// The signed order.
        order: Box<Signed<Order>>,
        /// What the agent has left beside all its holds.
        available: Trm,
    },
    /// A voucher is signed.
    VoucherSigned {
        /// The voucher, to be sent to the provider of a job at another node.
        voucher: Box<Signed<Voucher>>,
    },
    /// The receipt does not agree with what was ordered and received. It is recorded; the job is
    /// open still.
    ReceiptRefused {
        /// What is wrong with it.
        refusal: ReceiptRefusal,
    },
    /// Another node's order is taken: the job may be served.
    OrderAccepted {
        /// The order's id, which will be the trade's.
        order: DocumentId,
        /// The job.
        job: JobId,
        /// Who pays.
        consumer: PartyId,
        /// Completion tokens that may be delivered: those asked for, as far as the order pays.
        completion_max: u32,
        /// Completion tokens that may be sent ahead of the vouchers, at least.
        window_tokens: u32,
    },
    /// A served job has ended.
    JobServed {
        /// The signed receipt; none when nothing was delivered or the consumer was lost.
        receipt: Option<Box<Signed<Receipt>>>,
        /// What the consumer owes for it.
        due: Trm,
    },
    /// The job is charged.
    JobFinished {
        /// The trade's id, which is its order's.
        trade: DocumentId,
        /// The work.
        flop: Flop,
        /// What the work costs.
        amount: Trm,
        /// The mesh's fee for paying another node, charged beside the amount.
        fee: Trm,
        /// The signed receipt; none when the charge rests on a voucher.
        receipt: Option<Box<Signed<Receipt>>>,
        /// The voucher signed at the end of an abandoned job, to be sent if its provider can be
        /// reached.
        voucher: Option<Box<Signed<Voucher>>>,
        /// What the agent has left beside all its holds.
        available: Trm,
    },
    /// The next charter was written or approved.
    Charter {
        /// Its bytes, verbatim.
        bytes: Vec<u8>,
        /// This node's approval, if it is a witness.
        approval: Option<Box<CharterApproval>>,
    },
    /// An entry was signed, received or acknowledged.
    Entry {
        /// Its id.
        entry: DocumentId,
        /// This node's acknowledgement, when the command asked for it.
        acknowledgement: Option<Box<Acknowledgement>>,
    },
}
