//! Facts: what the store keeps and replays. Nothing else changes the ledger's state.

use minicbor::{Decode, Encode};
use tirami_core::{
    AgentId, Digest, DocumentId, Flop, JobId, ModelDigest, ModelShape, PartyId, Ppm, Signature,
    Timestamp, Trm,
};

use crate::book::{ApprovalId, KeyId, Limits, Scope, ServingPolicy, Target};
use crate::documents::{FinishReason, SignedBytes};
use crate::lattice::LatticeEvent;
use crate::refusal::ReceiptRefusal;

/// A fact. Stored before anybody is told, in the order decided, and applied in that order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Event {
    /// The lattice changed.
    #[n(0)]
    Lattice(#[n(0)] Box<LatticeEvent>),
    /// The book changed.
    #[n(1)]
    Book(#[n(0)] BookEvent),
    /// A document was signed. It changes no state; the store keeps it as evidence.
    #[n(2)]
    Document(#[n(0)] DocumentRecord),
}

/// A signed document, verbatim.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DocumentRecord {
    /// Its id.
    #[n(0)]
    pub id: DocumentId,
    /// What it is.
    #[n(1)]
    pub kind: DocumentKind,
    /// The job it is about.
    #[n(2)]
    pub job: JobId,
    /// The signed body.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// The signature.
    #[n(4)]
    pub signature: Signature,
}

/// Kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum DocumentKind {
    /// An order.
    #[n(0)]
    Order,
    /// A voucher.
    #[n(1)]
    Voucher,
    /// A receipt.
    #[n(2)]
    Receipt,
    /// A claim.
    #[n(3)]
    Claim,
}

/// A change of the node's private accounts. All variants are durable and replayed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum BookEvent {
    /// An agent has an account.
    #[n(0)]
    AgentCreated {
        /// The agent.
        #[n(0)]
        agent: AgentId,
        /// Its name for people.
        #[n(1)]
        name: String,
        /// When.
        #[n(2)]
        at: Timestamp,
    },
    /// TRM moved from the node's account to an agent's.
    #[n(1)]
    AgentFunded {
        /// The agent.
        #[n(0)]
        agent: AgentId,
        /// How much.
        #[n(1)]
        amount: Trm,
        /// When.
        #[n(2)]
        at: Timestamp,
    },
    /// TRM moved from an agent's account to the node's.
    #[n(2)]
    AgentDefunded {
        /// The agent.
        #[n(0)]
        agent: AgentId,
        /// How much.
        #[n(1)]
        amount: Trm,
        /// When.
        #[n(2)]
        at: Timestamp,
    },
    /// An API key works from now on.
    #[n(3)]
    KeyCreated {
        /// The key's public name.
        #[n(0)]
        key: KeyId,
        /// blake3 of the key text.
        #[n(1)]
        secret: Digest,
        /// Its label.
        #[n(2)]
        label: String,
        /// What it may do.
        #[n(3)]
        scope: Scope,
        /// Who pays.
        #[n(4)]
        agent: Option<AgentId>,
        /// Its own limits.
        #[n(5)]
        limits: Limits,
        /// When it ends.
        #[n(6)]
        expires_at: Option<Timestamp>,
        /// When.
        #[n(7)]
        at: Timestamp,
        /// The key it was rotated from, whose budget and usage it shares.
        #[n(8)]
        replaces: Option<KeyId>,
    },
    /// A key ends at another time than before; a time in the past ends it at once.
    #[n(4)]
    KeyExpirySet {
        /// The key.
        #[n(0)]
        key: KeyId,
        /// When it ends.
        #[n(1)]
        expires_at: Timestamp,
    },
    /// A key was revoked and is never accepted again.
    #[n(5)]
    KeyRevoked {
        /// The key.
        #[n(0)]
        key: KeyId,
        /// When.
        #[n(1)]
        at: Timestamp,
    },
    /// Limits were replaced.
    #[n(6)]
    LimitsSet {
        /// Whose.
        #[n(0)]
        target: Target,
        /// The new ones.
        #[n(1)]
        limits: Limits,
    },
    /// The node's price changed.
    #[n(7)]
    PriceSet {
        /// µTRM for 10⁹ FLOP.
        #[n(0)]
        price: Ppm,
        /// When; orders at the price before are taken for a while longer.
        #[n(1)]
        at: Option<Timestamp>,
    },
    /// The kill switch was turned.
    #[n(8)]
    KillSet {
        /// Whether spending is frozen.
        #[n(0)]
        on: bool,
        /// Why.
        #[n(1)]
        reason: String,
        /// When.
        #[n(2)]
        at: Timestamp,
    },
    /// An agent's circuit breaker opened: it spends nothing until then.
    #[n(9)]
    BreakerOpened {
        /// The agent.
        #[n(0)]
        agent: AgentId,
        /// Why.
        #[n(1)]
        cause: BreakerCause,
        /// When it closes by itself.
        #[n(2)]
        until: Timestamp,
    },
    /// An agent's circuit breaker was closed by a person.
    #[n(10)]
    BreakerReset {
        /// The agent.
        #[n(0)]
        agent: AgentId,
    },
    /// A job waits for a person's word.
    #[n(11)]
    ApprovalRequested {
        /// Its number in the queue.
        #[n(0)]
        approval: ApprovalId,
        /// Who wants to spend.
        #[n(1)]
        agent: AgentId,
        /// The key used.
        #[n(2)]
        key: Option<KeyId>,
        /// blake3 of the request; the approved request is recognised by it.
        #[n(3)]
        request: Digest,
        /// What it may cost at most.
        #[n(4)]
        max_amount: Trm,
        /// When it was asked.
        #[n(5)]
        at: Timestamp,
        /// When it lapses.
        #[n(6)]
        expires_at: Timestamp,
    },
    /// A person answered.
    #[n(12)]
    ApprovalDecided {
        /// Which.
        #[n(0)]
        approval: ApprovalId,
        /// Whether the job may run.
        #[n(1)]
        approve: bool,
        /// When.
        #[n(2)]
        at: Timestamp,
    },
    /// An approval left the queue: it was used by a job or it lapsed.
    #[n(13)]
    ApprovalClosed {
        /// Which.
        #[n(0)]
        approval: ApprovalId,
    },
    /// TRM was set aside for a job.
    #[n(14)]
    HoldOpened(#[n(0)] HoldOpened),
    /// The consumer signed a higher voucher. The hold cannot end below it.
    #[n(15)]
    VoucherRaised {
        /// The job.
        #[n(0)]
        job: JobId,
        /// The voucher's number.
        #[n(1)]
        n: u32,
        /// Owed in all.
        #[n(2)]
        amount: Trm,
        /// Completion tokens received in all.
        #[n(3)]
        tokens: u32,
        /// The prompt tokens that the provider of a job at another node counted.
        #[n(4)]
        prompt_tokens: Option<u32>,
    },
    /// The hold ended with a charge; the rest is free again. This is a trade.
    #[n(16)]
    HoldPosted(#[n(0)] HoldPosted),
    /// The hold ended with nothing owed.
    #[n(17)]
    HoldVoided {
        /// The job.
        #[n(0)]
        job: JobId,
        /// Whether the engine was at fault.
        #[n(1)]
        failed: bool,
        /// When.
        #[n(2)]
        at: Timestamp,
    },
    /// The hold's time ran out with no voucher signed; nothing is owed.
    #[n(18)]
    HoldExpired {
        /// The job.
        #[n(0)]
        job: JobId,
        /// When.
        #[n(1)]
        at: Timestamp,
    },
    /// Another node's order was taken.
    #[n(30)]
    ServedAccepted(#[n(0)] ServedAccepted),
    /// The consumer of a served job signed a higher voucher.
    #[n(31)]
    VoucherTaken {
        /// The job.
        #[n(0)]
        job: JobId,
        /// The voucher's number.
        #[n(1)]
        n: u32,
        /// Owed in all.
        #[n(2)]
        amount: Trm,
        /// Completion tokens received in all.
        #[n(3)]
        tokens: u32,
        /// The voucher itself, for a claim.
        #[n(4)]
        voucher: SignedBytes,
    },
    /// A served job ended. With an amount above zero this is a trade.
    #[n(32)]
    ServedFinished(#[n(0)] ServedFinished),
    /// A final payment for a served job, or of a consumer that still owed for one that lapsed.
    #[n(33)]
    ServedSettled {
        /// The job named.
        #[n(0)]
        job: JobId,
        /// Who paid.
        #[n(1)]
        consumer: PartyId,
        /// What was paid for it.
        #[n(2)]
        amount: Trm,
        /// The entry that paid.
        #[n(3)]
        entry: DocumentId,
    },
    /// A served job was not paid by its claim time; what is owed for it is lost.
    #[n(34)]
    ServedLapsed {
        /// The job.
        #[n(0)]
        job: JobId,
        /// When.
        #[n(1)]
        at: Timestamp,
    },
    /// A served job was not paid in time; its claim goes to the witnesses.
    #[n(35)]
    ClaimMade {
        /// The job.
        #[n(0)]
        job: JobId,
        /// When.
        #[n(1)]
        at: Timestamp,
    },
    /// A provider's claim against a consumer is known.
    #[n(36)]
    ClaimNoted {
        /// Who owes.
        #[n(0)]
        consumer: PartyId,
        /// Whom.
        #[n(1)]
        provider: PartyId,
        /// For what.
        #[n(2)]
        job: JobId,
        /// How much, payments before included.
        #[n(3)]
        amount: Trm,
        /// When the claim lapses.
        #[n(4)]
        claim_by: Timestamp,
        /// When.
        #[n(5)]
        at: Timestamp,
    },
    /// A provider's receipt was refused.
    #[n(37)]
    ReceiptRefused {
        /// The job.
        #[n(0)]
        job: JobId,
        /// Who sent it.
        #[n(1)]
        provider: PartyId,
        /// What is wrong with it.
        #[n(2)]
        refusal: ReceiptRefusal,
        /// When.
        #[n(3)]
        at: Timestamp,
    },
    /// To whom and how far the node serves was set.
    #[n(38)]
    ServingSet(#[n(0)] ServingPolicy),
    /// What was due on the node's chain could not be signed; it is tried again later.
    #[n(39)]
    SettlingFailed {
        /// When.
        #[n(0)]
        at: Timestamp,
    },
    /// Another node tried something here and was refused.
    #[n(40)]
    Refused {
        /// Who.
        #[n(0)]
        party: PartyId,
        /// The refusal's code.
        #[n(1)]
        code: String,
        /// How often since it was last recorded.
        #[n(2)]
        more: u32,
        /// When.
        #[n(3)]
        at: Timestamp,
    },
    /// A claim gave way to one that is worth more.
    #[n(42)]
    ClaimOutweighed {
        /// Who owes.
        #[n(0)]
        consumer: PartyId,
        /// Whom.
        #[n(1)]
        provider: PartyId,
        /// For what.
        #[n(2)]
        job: JobId,
    },
    /// The node's faucet sponsored a newcomer.
    #[n(41)]
    StrangerSponsored {
        /// The newcomer.
        #[n(0)]
        newcomer: PartyId,
        /// Where it came from.
        #[n(1)]
        source: u64,
        /// What was locked.
        #[n(2)]
        amount: Trm,
        /// When.
        #[n(3)]
        at: Timestamp,
    },
}

/// Why a circuit breaker opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum BreakerCause {
    /// Too many jobs failed one after another.
    #[n(0)]
    Errors,
    /// Too many jobs started within a minute.
    #[n(1)]
    Spends,
}

/// TRM set aside for a job.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HoldOpened {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// Who pays.
    #[n(1)]
    pub agent: AgentId,
    /// The key used.
    #[n(2)]
    pub key: Option<KeyId>,
    /// The signed order.
    #[n(3)]
    pub order: DocumentId,
    /// The model.
    #[n(4)]
    pub model: ModelDigest,
    /// Its shape, so that the charge can be computed without the model.
    #[n(5)]
    pub shape: ModelShape,
    /// The agreed price.
    #[n(6)]
    pub price: Ppm,
    /// Tokens of the prompt.
    #[n(7)]
    pub prompt_tokens: u32,
    /// Completion tokens at most.
    #[n(8)]
    pub completion_max: u32,
    /// What is set aside.
    #[n(9)]
    pub max_amount: Trm,
    /// When the hold ends by itself.
    #[n(10)]
    pub claim_by: Timestamp,
    /// When.
    #[n(11)]
    pub at: Timestamp,
    /// What makes it a job at another node; `None` when this node does it itself.
    #[n(12)]
    pub remote: Option<RemoteTerms>,
    /// What the jobs before it, which it goes on with, came to.
    #[n(13)]
    pub before: Option<Before>,
}

/// What the jobs of an answer came to that was begun elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Before {
    /// What was charged for them in all.
    #[n(0)]
    pub spent: Trm,
    /// What the first of them could have cost: a person agreed to no more.
    #[n(1)]
    pub max_amount: Trm,
    /// What was asked, by which the next one is known to go on with the same answer.
    #[n(2)]
    pub request: Option<Digest>,
}

/// What a hold has to know of a job at another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RemoteTerms {
    /// Who does it.
    #[n(0)]
    pub provider: PartyId,
    /// The order's maximum. What is set aside is more by the mesh's fee.
    #[n(1)]
    pub max_amount: Trm,
    /// The mesh's fee for a payment.
    #[n(2)]
    pub fee_ppm: Ppm,
    /// blake3 of the request.
    #[n(3)]
    pub request: Digest,
}

/// A job was charged.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HoldPosted {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// Who paid.
    #[n(1)]
    pub agent: AgentId,
    /// The order, which names the trade.
    #[n(2)]
    pub order: DocumentId,
    /// The receipt; `None` when the charge rests on the highest voucher.
    #[n(3)]
    pub receipt: Option<DocumentId>,
    /// The model.
    #[n(4)]
    pub model: ModelDigest,
    /// Prompt tokens.
    #[n(5)]
    pub prompt_tokens: u32,
    /// Completion tokens delivered.
    #[n(6)]
    pub completion_tokens: u32,
    /// The work.
    #[n(7)]
    pub flop: Flop,
    /// What was charged.
    #[n(8)]
    pub amount: Trm,
    /// Why it ended.
    #[n(9)]
    pub finish: FinishReason,
    /// When.
    #[n(10)]
    pub at: Timestamp,
    /// Who did it; `None` when this node did.
    #[n(11)]
    pub provider: Option<PartyId>,
    /// The mesh's fee charged beside the amount; `None` when this node did the job.
    #[n(12)]
    pub fee: Option<Trm>,
}

/// Another node's order was taken.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServedAccepted {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// Who pays.
    #[n(1)]
    pub consumer: PartyId,
    /// The order's id.
    #[n(2)]
    pub order: DocumentId,
    /// The order itself, for a claim.
    #[n(3)]
    pub order_bytes: SignedBytes,
    /// The model.
    #[n(4)]
    pub model: ModelDigest,
    /// Its shape.
    #[n(5)]
    pub shape: ModelShape,
    /// The agreed price.
    #[n(6)]
    pub price: Ppm,
    /// Tokens of the prompt.
    #[n(7)]
    pub prompt_tokens: u32,
    /// Completion tokens at most.
    #[n(8)]
    pub completion_max: u32,
    /// What the job may cost at most.
    #[n(9)]
    pub max_amount: Trm,
    /// When nothing can be claimed any more.
    #[n(10)]
    pub claim_by: Timestamp,
    /// Whether the registrar enrolled the consumer with a line.
    #[n(11)]
    pub enrolled: bool,
    /// When.
    #[n(12)]
    pub at: Timestamp,
}

/// A served job ended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServedFinished {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// Who pays.
    #[n(1)]
    pub consumer: PartyId,
    /// The order, which names the trade.
    #[n(2)]
    pub order: DocumentId,
    /// The receipt; `None` when what is due rests on the highest voucher.
    #[n(3)]
    pub receipt: Option<DocumentId>,
    /// The model.
    #[n(4)]
    pub model: ModelDigest,
    /// Prompt tokens.
    #[n(5)]
    pub prompt_tokens: u32,
    /// Completion tokens delivered.
    #[n(6)]
    pub completion_tokens: u32,
    /// The work.
    #[n(7)]
    pub flop: Flop,
    /// What is due.
    #[n(8)]
    pub amount: Trm,
    /// Why it ended.
    #[n(9)]
    pub finish: FinishReason,
    /// When.
    #[n(10)]
    pub at: Timestamp,
    /// What was sent beyond what the consumer signed for: lost with it at once.
    #[cbor(n(11), default, skip_if = "nothing")]
    pub unsigned: Trm,
}

/// Left out of the bytes where it says nothing, so that equal records have equal bytes.
fn nothing(amount: &Trm) -> bool {
    amount.is_zero()
}
