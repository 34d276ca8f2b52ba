//! The frames of one job's stream: the consumer's side and the provider's side.

use minicbor::{Decode, Encode};

use crate::frame::{Frame, JOB_FRAME_BYTES_MAX, TOKEN_FRAME_BYTES_MAX};
use crate::{REASON_BYTES_MAX, WireDocument, bounded};

/// Bytes of the HTTP request that a job carries at most.
pub const BODY_BYTES_MAX: usize = 7 << 20;
/// Bytes of the request's path at most.
pub const PATH_BYTES_MAX: usize = 64;
/// Tokens of an answer that a request can hand on to another provider at most.
pub const RESUMED_TOKENS_MAX: usize = 131_072;
/// Tokens in one frame at most.
pub const TOKENS_PER_FRAME_MAX: usize = 1_024;
/// Bytes of text in one frame at most.
pub const TEXT_BYTES_MAX: usize = 32 * 1024;

/// Tokens in one frame at most that come with their likelihoods.
pub const LIKELIHOODS_PER_FRAME_MAX: usize = 4;
/// Likeliest tokens that one token's likelihood comes with at most.
pub const LIKELIEST_MAX: usize = 20;
/// Bytes of one token at most, where likelihoods are told; longer ones are cut.
pub const TOKEN_BYTES_MAX: usize = 256;

/// Numbers of one vector at most.
pub const VECTOR_WIDTH_MAX: usize = 16_000;
/// Bytes of one vector at most.
const VECTOR_BYTES_MAX: usize = VECTOR_WIDTH_MAX * 4;

/// Bytes of a refusal's code at most.
const CODE_BYTES_MAX: usize = 64;

/// What the consumer sends.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum ToProvider {
    /// The first frame: the order and what is asked.
    #[n(0)]
    Request(#[n(0)] JobRequest),
    /// A voucher for the tokens received so far.
    #[n(1)]
    Voucher(#[n(0)] WireDocument),
    /// The consumer wants no more; the provider ends the job with a receipt.
    #[n(2)]
    Cancel,
}

/// What is asked of a provider.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JobRequest {
    /// The order, signed by the consumer.
    #[n(0)]
    pub order: WireDocument,
    /// The HTTP request's body, verbatim. Its digest stands in the order.
    #[cbor(
        n(1),
        encode_with = "bounded::write_bytes",
        decode_with = "bounded::bytes::<_, BODY_BYTES_MAX>"
    )]
    pub body: Vec<u8>,
    /// The HTTP request's path, for example `/v1/chat/completions`.
    #[cbor(n(2), decode_with = "bounded::text::<_, PATH_BYTES_MAX>")]
    pub path: String,
    /// Token ids of this answer that the consumer already has from a provider that was lost.
    #[cbor(n(3), decode_with = "bounded::list::<_, u32, {RESUMED_TOKENS_MAX as u64}>")]
    pub resumed: Vec<u32>,
}

/// A token and its natural logarithm of probability.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Likely {
    /// The token's bytes; they may be a part of a character.
    #[cbor(
        n(0),
        encode_with = "bounded::write_bytes",
        decode_with = "bounded::bytes::<_, TOKEN_BYTES_MAX>"
    )]
    pub bytes: Vec<u8>,
    /// The bits of the number, an IEEE 754 single.
    #[n(1)]
    pub logprob_bits: u32,
}

/// How likely a token of the answer was.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Likelihood {
    /// The token itself.
    #[n(0)]
    pub chosen: Likely,
    /// The likeliest tokens, likeliest first.
    #[cbor(n(1), decode_with = "bounded::list::<_, Likely, {LIKELIEST_MAX as u64}>")]
    pub top: Vec<Likely>,
}

/// What is wrong with a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct InvalidRequest {
    /// The field at fault, if it is one.
    #[cbor(n(0), decode_with = "bounded::some_text::<_, CODE_BYTES_MAX>", nil = "bounded::none")]
    pub param: Option<String>,
}

/// What the provider sends.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum ToConsumer {
    /// The order is accepted and the job runs.
    #[n(0)]
    Accepted {
        /// Tokens of the prompt, cached and resumed ones included.
        #[n(0)]
        prompt_tokens: u32,
        /// Completion tokens the order's maximum amount pays for.
        #[n(1)]
        completion_max: u32,
        /// How many tokens the provider sends beyond the last voucher.
        #[n(3)]
        window_tokens: u32,
    },
    /// The order is refused. Nothing is owed.
    #[n(1)]
    Refused {
        /// Which rule refuses it, for programs.
        #[cbor(n(0), decode_with = "bounded::text::<_, CODE_BYTES_MAX>")]
        code: String,
        /// Why, for people.
        #[cbor(n(1), decode_with = "bounded::text::<_, REASON_BYTES_MAX>")]
        message: String,
        /// When it may be worth trying again.
        #[n(2)]
        retry_after_ms: Option<u64>,
        /// Set where the request itself is at fault, so that no provider could serve it.
        #[n(3)]
        invalid: Option<InvalidRequest>,
        /// The receipt of the first time, where the job was ordered and done before.
        #[n(4)]
        receipt: Option<WireDocument>,
    },
    /// The next tokens of the answer.
    #[n(2)]
    Tokens {
        /// Their ids.
        #[cbor(n(0), decode_with = "bounded::list::<_, u32, {TOKENS_PER_FRAME_MAX as u64}>")]
        tokens: Vec<u32>,
        /// Text that is complete with them; may be empty while a character is not.
        #[cbor(n(1), decode_with = "bounded::text::<_, TEXT_BYTES_MAX>")]
        text: String,
        /// How likely each of them was, where the request asks for it; else empty.
        #[cbor(
            n(2),
            default,
            skip_if = "Vec::is_empty",
            decode_with = "bounded::list::<_, Likelihood, {LIKELIHOODS_PER_FRAME_MAX as u64}>"
        )]
        likelihoods: Vec<Likelihood>,
    },
    /// The answer is complete.
    #[n(3)]
    End {
        /// Text that was held back until now.
        #[cbor(n(0), decode_with = "bounded::text::<_, TEXT_BYTES_MAX>")]
        text: String,
        /// Why it ended: the number of the ledger's finish reason.
        #[n(1)]
        finish: u8,
        /// What was delivered and what it costs, signed by the provider.
        #[n(2)]
        receipt: WireDocument,
        /// Which of the request's stop texts ended it, by its place; none where none did.
        #[n(3)]
        stop: Option<u32>,
    },
    /// The provider cannot go on. What was vouched for is owed, nothing else.
    #[n(4)]
    Failed {
        /// Why, for people.
        #[cbor(n(0), decode_with = "bounded::text::<_, REASON_BYTES_MAX>")]
        reason: String,
        /// Set where the request itself is at fault, so that no provider could go on: which rule
        /// refuses it, for programs.
        #[cbor(
            n(1),
            decode_with = "bounded::some_text::<_, CODE_BYTES_MAX>",
            nil = "bounded::none"
        )]
        invalid: Option<String>,
    },
    /// There is no news but that the job is not forgotten, and how far it is.
    #[n(5)]
    Working {
        /// How many tokens of prompt and resumed answer are read.
        #[n(0)]
        read: u32,
        /// How many jobs, this one included, are to begin before it runs; 0 once it runs.
        #[n(1)]
        place_in_queue: u32,
    },
    /// One of the vectors that were asked for. They come in the order of the texts; when all are
    /// there the consumer signs for them, and [`ToConsumer::End`] follows.
    #[n(6)]
    Vector {
        /// Its numbers, IEEE 754 singles, each as four little-endian bytes.
        #[cbor(
            n(0),
            encode_with = "bounded::write_bytes",
            decode_with = "bounded::bytes::<_, VECTOR_BYTES_MAX>"
        )]
        numbers: Vec<u8>,
    },
    /// The next tokens of the prompt, where the request asks what is in it: all of them come in
    /// order, before the first token of the answer. A provider that goes on with an answer tells
    /// nothing of the prompt.
    #[n(7)]
    Prompt {
        /// How many tokens it tells of, at least 1.
        #[n(0)]
        tokens: u32,
        /// Their bytes as they stand in a text, where the prompt came as tokens and is to be
        /// repeated; else empty. Of each token at most [`TOKEN_BYTES_MAX`].
        #[cbor(
            n(1),
            encode_with = "bounded::write_bytes",
            decode_with = "bounded::bytes::<_, TEXT_BYTES_MAX>"
        )]
        text: Vec<u8>,
        /// How likely each of them was after those before it, where the request asks for it; else
        /// empty.
        #[cbor(
            n(2),
            default,
            skip_if = "Vec::is_empty",
            decode_with = "bounded::list::<_, Likelihood, {LIKELIHOODS_PER_FRAME_MAX as u64}>"
        )]
        likelihoods: Vec<Likelihood>,
    },
}

impl Frame for ToProvider {
    fn bytes_max(number: u64) -> Option<usize> {
        match number {
            0 => Some(JOB_FRAME_BYTES_MAX),
            1 | 2 => Some(TOKEN_FRAME_BYTES_MAX),
            _ => None,
        }
    }
}

impl Frame for ToConsumer {
    fn bytes_max(number: u64) -> Option<usize> {
        (number <= 7).then_some(TOKEN_FRAME_BYTES_MAX)
    }
}
