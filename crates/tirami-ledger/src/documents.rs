//! Signed documents about a job: order, voucher, receipt, claim. They are evidence and move no
//! money.
//!
//! A job that only reads, such as one for embeddings, has the same documents. Its work is that of
//! its prompt tokens, its completion tokens are 0, and what stands for the ids of completion tokens
//! are the numbers of its vectors. The order of the steps is fair to both within one job: the
//! provider delivers all vectors; the consumer, when they are as many and as long as it asked for,
//! signs voucher 0 over the whole amount, which the provider can claim with; then come the receipt
//! and the payment. A consumer that takes vectors and signs nothing has cost its provider one
//! order's maximum, which its exposure bounds and which stays lost with it. A provider that
//! delivers less, or something else, has no voucher and no receipt that is accepted: it is not
//! paid.

use minicbor::{Decode, Encode};
use tirami_core::{
    Digest, Document, DocumentId, Flop, JobId, ModelDigest, PartyId, Ppm, Signature, Signed,
    Timestamp, Trm,
};

/// What a consumer promises to pay for at most, to one provider, for one job. Signed by the
/// consumer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Order {
    /// Who asks and pays: a party, or an agent of the provider's own book.
    #[n(0)]
    pub consumer: PartyId,
    /// The only party for which the order is valid.
    #[n(1)]
    pub provider: PartyId,
    /// 16 bytes, unique for the consumer.
    #[n(2)]
    pub job: JobId,
    /// The model that must answer.
    #[n(3)]
    pub model: ModelDigest,
    /// blake3 of the request as the consumer sent it.
    #[n(4)]
    pub request: Digest,
    /// Seed of the sampler.
    #[n(5)]
    pub seed: u32,
    /// Price of work, µTRM for 10⁹ FLOP.
    #[n(6)]
    pub price: Ppm,
    /// Price of prompt tokens that the provider had cached, µTRM for 10⁹ FLOP.
    #[n(7)]
    pub cached_price: Ppm,
    /// Prompt tokens the consumer will pay for at most.
    #[n(8)]
    pub prompt_max: u32,
    /// What the job may cost at most.
    #[n(9)]
    pub max_amount: Trm,
    /// The provider must have started by then; at most 5 min after signing.
    #[n(10)]
    pub start_by: Timestamp,
    /// After this time nothing can be claimed; at most 24 h after signing.
    #[n(11)]
    pub claim_by: Timestamp,
}

impl Document for Order {
    const KIND: &'static str = "order";
}

/// What the consumer owes so far for the tokens it received. Cumulative; signed by the consumer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Voucher {
    /// The order this voucher belongs to.
    #[n(0)]
    pub order: DocumentId,
    /// Counts from 0; never falls.
    #[n(1)]
    pub n: u32,
    /// Owed in all; never falls and never exceeds the order's maximum.
    #[n(2)]
    pub amount: Trm,
    /// Completion tokens received in all.
    #[n(3)]
    pub tokens: u32,
    /// blake3 of the token ids received so far, each as four little-endian bytes; of a job that
    /// only reads, of its vectors' numbers in order, each an IEEE 754 single in as many.
    #[n(4)]
    pub stream: Digest,
}

impl Document for Voucher {
    const KIND: &'static str = "voucher";
}

/// What was delivered and what it costs. Signed by the provider.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Receipt {
    /// The order that was served.
    #[n(0)]
    pub order: DocumentId,
    /// Prompt tokens, cached ones included.
    #[n(1)]
    pub prompt_tokens: u32,
    /// Prompt tokens that were not computed again.
    #[n(2)]
    pub cached_tokens: u32,
    /// Completion tokens delivered.
    #[n(3)]
    pub completion_tokens: u32,
    /// Work done for this job.
    #[n(4)]
    pub flop: Flop,
    /// What the job costs: `flop × price`, rounded up.
    #[n(5)]
    pub amount: Trm,
    /// blake3 of the completion's token ids, each as four little-endian bytes, or of what a
    /// voucher names instead.
    #[n(6)]
    pub output: Digest,
    /// Engine, version and back-end that answered.
    #[n(7)]
    pub build: String,
    /// Why the answer ended.
    #[n(8)]
    pub finish: FinishReason,
}

impl Document for Receipt {
    const KIND: &'static str = "receipt";
}

/// What a provider that was not paid shows the witnesses. Signed by the provider; what proves it
/// are the consumer's signatures inside.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Claim {
    /// The order that was served.
    #[n(0)]
    pub order: SignedBytes,
    /// The highest voucher.
    #[n(1)]
    pub voucher: SignedBytes,
}

impl Document for Claim {
    const KIND: &'static str = "claim";
}

/// A document's bytes with their signature, checked or not.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SignedBytes {
    /// The signed body, verbatim.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// The signature.
    #[n(1)]
    pub signature: Signature,
}

impl<T> From<&Signed<T>> for SignedBytes {
    fn from(document: &Signed<T>) -> Self {
        Self { bytes: document.bytes().to_vec(), signature: document.signature() }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum FinishReason {
    /// The model ended it or a stop text was met.
    #[n(0)]
    Stop,
    /// The requested length or the end of the context was reached.
    #[n(1)]
    Length,
    /// The consumer left.
    #[n(2)]
    Cancelled,
    /// The engine failed; what was delivered before counts.
    #[n(3)]
    Failed,
}
