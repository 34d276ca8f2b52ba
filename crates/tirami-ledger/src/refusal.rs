//! Why an order, a voucher, a receipt, a claim or a newcomer's wish is refused between two nodes.

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, Ppm, Timestamp, Trm};

/// Why a provider refuses an order, in order of precedence (MONEY §8, §9). Nothing was changed,
/// nothing is owed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// The owner serves nobody for now.
    #[error("this node is not serving at the moment; ask another one or try again later")]
    Paused,
    /// The bytes are no order, or more than 2 KiB.
    #[error("the bytes are not a well-formed order of at most 2 KiB")]
    Malformed,
    /// The order names another provider.
    #[error("the order is for {provider}, not for this node; sign one for this node")]
    NotForMe {
        /// The provider named.
        provider: PartyId,
    },
    /// The signature is not that of the consumer's current key for this mesh. An order for another
    /// mesh cannot be told from one that somebody else signed.
    #[error("the order is not signed for this mesh by the current key of its consumer")]
    BadSignature,
    /// Consumer and provider are one.
    #[error("a node cannot order from itself")]
    SelfOrder,
    /// The consumer has no chain that is known here.
    #[error("the consumer {consumer} has no chain known here; send its head first")]
    UnknownConsumer {
        /// The consumer.
        consumer: PartyId,
    },
    /// Two final entries stand in one slot of the consumer's chain.
    #[error("the consumer's chain is frozen")]
    Frozen,
    /// The consumer is proven to have signed two entries for one slot.
    #[error("the consumer signed two entries for one place of its chain")]
    DoubleSigned,
    /// The consumer did not settle its welcome line in time.
    #[error("the consumer defaulted on its welcome line; its sponsor paid for it")]
    Defaulted,
    /// Something that the consumer owed was claimed, or lapsed, unpaid.
    #[error("the consumer has not paid {owed} TRM for an earlier job; pay it and try again")]
    UnpaidClaim {
        /// What is unpaid.
        owed: Trm,
    },
    /// The owner blocked the consumer.
    #[error("the owner of this node does not serve this consumer")]
    Blocked,
    /// The job had to start earlier.
    #[error("the order had to be started by {} ms; sign a new one", start_by.ms())]
    Expired {
        /// When it had to start.
        start_by: Timestamp,
    },
    /// `start_by` or `claim_by` is not in its range.
    #[error("start_by must be at most 5 min and claim_by at most 24 h ahead, after start_by")]
    TooFar,
    /// The order's price, or its price for cached tokens, is below what is asked, or they differ.
    #[error(
        "the price is {} µTRM for 10⁹ FLOP; both prices of the order must be the same and not below it",
        price.get()
    )]
    Price {
        /// What the node asks.
        price: Ppm,
    },
    /// The model is not the one that would answer.
    #[error("the model of the order is not served here")]
    Model,
    /// The prompt is longer than the order pays for.
    #[error("the prompt has {prompt_tokens} tokens and the order pays for {prompt_max}")]
    PromptTooLong {
        /// Tokens as counted here.
        prompt_tokens: u32,
        /// Tokens the order pays for.
        prompt_max: u32,
    },
    /// The order does not pay for the prompt and one token.
    #[error("the order pays {max_amount} TRM at most, prompt and one token cost {needed} TRM")]
    MaxTooSmall {
        /// What the order pays at most.
        max_amount: Trm,
        /// What it takes.
        needed: Trm,
    },
    /// The job was ordered before.
    #[error("the job was ordered before; {due} TRM are due for it")]
    Replayed {
        /// The receipt of the first time; none while it runs or when it ended without one.
        receipt: Option<DocumentId>,
        /// What is due for it.
        due: Trm,
    },
    /// Another party's job, or one of this node's own, has this id.
    #[error("another job has this id; draw a new one at random")]
    JobTaken,
    /// No witness has lately said that the consumer's head known here is its newest.
    #[error("the consumer's newest entry is not known here; send its head or try again")]
    StaleHead,
    /// The consumer's money does not cover the job beside what it owes here.
    #[error("the consumer owes {owed} TRM here and its chain covers {left} TRM more")]
    Balance {
        /// What it owes here, running jobs at their maximum.
        owed: Trm,
        /// What its chain has left beside that.
        left: Trm,
    },
    /// The consumer would owe more than this node risks with it.
    #[error("this node lends {exposure} TRM to the consumer, which owes {owed} TRM; pay and retry")]
    Exposure {
        /// What the node risks with this consumer now.
        exposure: Trm,
        /// What the consumer owes here, running jobs at their maximum.
        owed: Trm,
    },
    /// All consumers that are not enrolled would together owe more than this node risks a day.
    #[error("this node has no more than {left} TRM left today for parties that are not enrolled")]
    ExposureUnknown {
        /// What is left of today's limit.
        left: Trm,
    },
    /// As many jobs run for other nodes as may at the same time.
    #[error("this node has {max} jobs at once for other nodes; try again later")]
    NoPlace {
        /// The bound.
        max: u32,
    },
    /// As many jobs are served or remembered as may be.
    #[error("this node has {max} {what}; try again later")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        max: u32,
    },
    /// The node is busy, and its owner keeps the places left for nodes that serve this one.
    #[error(
        "the places left here are kept for nodes that served this one; ask another or try again \
         later"
    )]
    Reserved,
}

impl OrderRefusal {
    /// The stable code sent to consumers.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Paused => "order_paused",
            Self::Malformed => "order_malformed",
            Self::NotForMe { .. } => "order_not_for_me",
            Self::BadSignature => "order_bad_signature",
            Self::SelfOrder => "order_self",
            Self::UnknownConsumer { .. } => "order_unknown_consumer",
            Self::Frozen => "order_frozen",
            Self::DoubleSigned => "order_double_signed",
            Self::Defaulted => "order_defaulted",
            Self::UnpaidClaim { .. } => "order_unpaid_claim",
            Self::Blocked => "order_blocked",
            Self::Expired { .. } => "order_expired",
            Self::TooFar => "order_too_far",
            Self::Price { .. } => "order_price",
            Self::Model => "order_model",
            Self::PromptTooLong { .. } => "order_prompt_too_long",
            Self::MaxTooSmall { .. } => "order_max_too_small",
            Self::Replayed { .. } => "order_replayed",
            Self::JobTaken => "order_job_taken",
            Self::StaleHead => "order_stale_head",
            Self::Balance { .. } => "order_balance",
            Self::Exposure { .. } => "order_exposure",
            Self::ExposureUnknown { .. } => "order_exposure_unknown",
            Self::NoPlace { .. } | Self::TooMany { .. } => "order_too_many",
            Self::Reserved => "order_reserved",
        }
    }

    /// Whether the same consumer may succeed here later without changing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Paused
                | Self::UnknownConsumer { .. }
                | Self::StaleHead
                | Self::Balance { .. }
                | Self::Exposure { .. }
                | Self::ExposureUnknown { .. }
                | Self::NoPlace { .. }
                | Self::TooMany { .. }
                | Self::Reserved
        )
    }

    /// Whether the consumer would be served if any job of others ended. Whoever is refused a place
    /// that is kept for contributors takes none of theirs by asking for it.
    pub const fn waits_for_a_place(&self) -> bool {
        matches!(self, Self::NoPlace { .. })
    }

    /// Whether an honest consumer could not have sent it, so that it counts against the sender.
    pub const fn is_peer_fault(&self) -> bool {
        matches!(
            self,
            Self::Malformed | Self::NotForMe { .. } | Self::BadSignature | Self::SelfOrder
        )
    }
}

/// Why a provider refuses a voucher, in order of precedence. The highest voucher before stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoucherRefusal {
    /// The bytes are no voucher, or more than 2 KiB.
    #[error("the bytes are not a well-formed voucher of at most 2 KiB")]
    Malformed,
    /// It belongs to no order that is being served.
    #[error("the voucher belongs to no job that is being served")]
    UnknownOrder,
    /// It is not signed by the consumer's current key for this mesh.
    #[error("the voucher is not signed by the current key of the order's consumer")]
    BadSignature,
    /// Its number, amount or tokens are below the voucher before.
    #[error("the voucher is below the one before it")]
    Falls,
    /// It says more tokens than were sent.
    #[error("the voucher says {tokens} tokens, {sent} were sent")]
    MoreThanSent {
        /// Tokens the voucher says.
        tokens: u32,
        /// Tokens sent.
        sent: u32,
    },
    /// The amount is not what the tokens cost.
    #[error("the voucher must be over {expected} TRM")]
    WrongAmount {
        /// The right amount.
        expected: Trm,
    },
    /// The consumer says it received other tokens than were sent.
    #[error("the voucher is for another stream of tokens than was sent")]
    StreamDiffers,
}

impl VoucherRefusal {
    /// The stable code sent to consumers.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "voucher_malformed",
            Self::UnknownOrder => "voucher_unknown_order",
            Self::BadSignature => "voucher_bad_signature",
            Self::Falls => "voucher_falls",
            Self::MoreThanSent { .. } => "voucher_more_than_sent",
            Self::WrongAmount { .. } => "voucher_wrong_amount",
            Self::StreamDiffers => "voucher_stream_differs",
        }
    }

    /// Whether an honest consumer could not have sent it, so that it counts against the sender.
    /// One that restarted may send an earlier voucher again, and may have received less.
    pub const fn is_peer_fault(&self) -> bool {
        !matches!(self, Self::UnknownOrder | Self::Falls | Self::StreamDiffers)
    }
}

/// Why a consumer refuses a receipt, in order of precedence. Only what was received is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[cbor(index_only)]
pub enum ReceiptRefusal {
    /// The bytes are no receipt.
    #[n(0)]
    #[error("the bytes are not a well-formed receipt")]
    Malformed,
    /// It is not signed by the provider's current key for this mesh.
    #[n(1)]
    #[error("the receipt is not signed by the provider's current key")]
    BadSignature,
    /// It belongs to another order.
    #[n(2)]
    #[error("the receipt is for another order")]
    OtherOrder,
    /// It says other completion tokens than were received.
    #[n(3)]
    #[error("the receipt says another number of tokens than were received")]
    Tokens,
    /// It says more prompt tokens than were ordered, or others than were vouched for, or more
    /// cached ones than there are.
    #[n(4)]
    #[error("the receipt's prompt tokens are not those agreed")]
    PromptTokens,
    /// The work is not what the model's shape makes of the tokens.
    #[n(5)]
    #[error("the receipt's work does not follow from its tokens")]
    Flop,
    /// The amount is not the work times the agreed price.
    #[n(6)]
    #[error("the receipt's amount does not follow from its work and the agreed price")]
    Amount,
    /// It is for another text than was received.
    #[n(7)]
    #[error("the receipt is for another answer than was received")]
    Output,
    /// The text about the engine is too long.
    #[n(8)]
    #[error("the receipt's build has more than 256 characters")]
    Build,
}

impl ReceiptRefusal {
    /// The stable code shown to people.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "receipt_malformed",
            Self::BadSignature => "receipt_bad_signature",
            Self::OtherOrder => "receipt_other_order",
            Self::Tokens => "receipt_tokens",
            Self::PromptTokens => "receipt_prompt_tokens",
            Self::Flop => "receipt_flop",
            Self::Amount => "receipt_amount",
            Self::Output => "receipt_output",
            Self::Build => "receipt_build",
        }
    }
}

/// Why a claim is not taken, in order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimRefusal {
    /// The bytes are no order and voucher, the voucher is of another order or above it, or the
    /// order may be claimed for longer than any may.
    #[error("the claim is not a well-formed order with a voucher of it")]
    Malformed,
    /// The order or the voucher is not signed by the consumer's current key for this mesh.
    #[error("the claim's order or voucher is not signed by the consumer's current key")]
    BadSignature,
    /// The consumer has no chain that is known here.
    #[error("the consumer has no chain known here; send its head first")]
    UnknownConsumer,
    /// The claim time has passed.
    #[error("the claim has lapsed")]
    Lapsed,
    /// The payment is final.
    #[error("the claim is paid already")]
    Paid,
    /// As many claims are kept as may be.
    #[error("this node keeps {max} {what}; try again later")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        max: u32,
    },
}

impl ClaimRefusal {
    /// The stable code sent to peers.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "claim_malformed",
            Self::BadSignature => "claim_bad_signature",
            Self::UnknownConsumer => "claim_unknown_consumer",
            Self::Lapsed => "claim_lapsed",
            Self::Paid => "claim_paid",
            Self::TooMany { .. } => "claim_too_many",
        }
    }
}

/// Why a faucet does not sponsor a newcomer, in order of precedence. Nothing was locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FaucetRefusal {
    /// The owner sponsors nobody who is not known.
    #[error("this node sponsors no strangers; ask a member to run: tirami mesh sponsor")]
    Off,
    /// The party has begun already, or was given a line.
    #[error("a welcome line is for newcomers; this party has a chain or a line already")]
    Known,
    /// The work is for another time than now.
    #[error("the work came too late; ask again for a new task")]
    Work,
    /// The mesh has no checkpoint from which the time could be counted.
    #[error("the mesh has no checkpoint yet; one comes within minutes; ask again then")]
    NoCheckpoint,
    /// What may be given in a day is given.
    #[error("this node has sponsored newcomers with {given} of {max} TRM today; ask again later")]
    Day {
        /// What was given.
        given: Trm,
        /// What may be given.
        max: Trm,
    },
    /// As many newcomers from the same place were sponsored as may be in a day.
    #[error("this node sponsors {max} newcomers a day from one address; ask again tomorrow")]
    Source {
        /// How many may come from one place.
        max: u32,
    },
    /// The node has not enough money of its own.
    #[error("this node has not enough TRM to sponsor anybody; ask another one or later")]
    Empty,
}

impl FaucetRefusal {
    /// The stable code sent to peers.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Off => "faucet_off",
            Self::Known => "faucet_known",
            Self::Work => "faucet_work",
            Self::NoCheckpoint => "faucet_no_checkpoint",
            Self::Day { .. } => "faucet_day",
            Self::Source { .. } => "faucet_source",
            Self::Empty => "faucet_empty",
        }
    }
}
