//! Signed announcements: what a provider says of itself to the whole mesh. Newest wins.

use minicbor::{Decode, Encode};
use tirami_core::{
    Document, MINUTE_MS, MeshId, ModelDigest, ModelShape, PartyId, Ppm, PublicKey, Signed,
    SignedError, Timestamp, decode_body,
};

use crate::hello::ADDRESSES_MAX;
use crate::{ADDRESS_BYTES_MAX, WireDocument, bounded};

/// Bytes of a price signal at most.
pub const PRICE_SIGNAL_BYTES_MAX: usize = 4_096;
/// How long a price signal may be valid at most, in milliseconds.
pub const SIGNAL_LIFE_MS_MAX: u64 = 5 * MINUTE_MS;
/// How far a signal's clock may be ahead of the reader's, in milliseconds.
pub const SIGNAL_AHEAD_MS_MAX: u64 = 10_000;
/// Models in one price signal at most.
pub const OFFERS_MAX: usize = 8;
/// Bytes of a model's name at most.
pub const MODEL_NAME_BYTES_MAX: usize = 128;
/// Bytes of a region's name at most.
pub const REGION_BYTES_MAX: usize = 32;

/// Bytes of a quantisation's name at most.
const QUANTISATION_BYTES_MAX: usize = 24;
/// Bytes of the name of engine, version and back-end at most.
const BUILD_BYTES_MAX: usize = 64;

/// What a provider serves, for how much, and how busy it is. Signed by the provider's node key.
///
/// The price binds: an order at this price is accepted until a minute after a dearer signal.
/// Everything else is a hint that nobody's money depends on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PriceSignal {
    /// Who serves.
    #[n(0)]
    pub provider: PartyId,
    /// When it was signed. A later one replaces an earlier one.
    #[n(1)]
    pub issued_at: Timestamp,
    /// When it ends, at most [`SIGNAL_LIFE_MS_MAX`] after `issued_at`.
    #[n(2)]
    pub expires_at: Timestamp,
    /// Price of work, µTRM for 10⁹ FLOP.
    #[n(3)]
    pub price: Ppm,
    /// Price of prompt tokens that the provider has cached, µTRM for 10⁹ FLOP.
    #[n(4)]
    pub cached_price: Ppm,
    /// Jobs that could start at once.
    #[n(5)]
    pub slots_free: u16,
    /// Jobs that can run at the same time.
    #[n(6)]
    pub slots: u16,
    /// Jobs that wait.
    #[n(7)]
    pub queue: u16,
    /// The models served, in the order of their digests, each once.
    #[cbor(n(8), decode_with = "bounded::list::<_, Offer, {OFFERS_MAX as u64}>")]
    pub models: Vec<Offer>,
    /// Where the provider says it is, for example `eu-west`; may be empty.
    #[cbor(n(9), decode_with = "bounded::text::<_, REGION_BYTES_MAX>")]
    pub region: String,
    /// Bit set of the provider's optional abilities, as in its hello.
    #[n(10)]
    pub features: u64,
    /// Where the provider can be reached, each as a [`crate::Via`] prints.
    #[cbor(n(11), decode_with = "bounded::texts::<_, {ADDRESSES_MAX as u64}, ADDRESS_BYTES_MAX>")]
    pub addresses: Vec<String>,
    /// An HTTP endpoint of its own, for people.
    #[cbor(
        n(12),
        decode_with = "bounded::some_text::<_, ADDRESS_BYTES_MAX>",
        nil = "bounded::none"
    )]
    pub http_endpoint: Option<String>,
    /// Whether it takes jobs at this time.
    #[n(13)]
    pub serving: bool,
}

impl Document for PriceSignal {
    const KIND: &'static str = "price-signal";
}

/// One model in a price signal.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// The model.
    #[n(0)]
    pub model: ModelDigest,
    /// Its name, for example `smollm2:135m`. Names bind nobody; the digest does.
    #[cbor(n(1), decode_with = "bounded::text::<_, MODEL_NAME_BYTES_MAX>")]
    pub name: String,
    /// Its quantisation, for example `Q4_K_M`.
    #[cbor(n(2), decode_with = "bounded::text::<_, QUANTISATION_BYTES_MAX>")]
    pub quantisation: String,
    /// The longest context served, in tokens.
    #[n(3)]
    pub context_tokens: u32,
    /// The numbers that decide how much work a token is.
    #[n(4)]
    pub shape: ModelShape,
    /// Tokens per 1 000 s that one job gets, as the provider measured it.
    #[n(5)]
    pub tokens_per_second_milli: u32,
    /// Engine, version and back-end.
    #[cbor(n(6), decode_with = "bounded::text::<_, BUILD_BYTES_MAX>")]
    pub build: String,
    /// Numbers in a vector that says what a text means; 0 where it makes none.
    #[cbor(n(7), default, skip_if = "is_zero")]
    pub embedding_width: u32,
    /// Tokens one picture takes at most; 0 where pictures are not read.
    #[cbor(n(8), default, skip_if = "is_zero")]
    pub image_tokens_max: u32,
}

const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why a price signal is dropped, in order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignalRefusal {
    /// It is larger than [`PRICE_SIGNAL_BYTES_MAX`].
    #[error("a price signal has at most {PRICE_SIGNAL_BYTES_MAX} bytes, this one has {bytes}")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// It was signed in the future.
    #[error("the price signal is dated {ahead_ms} ms ahead of this node's clock")]
    FromFuture {
        /// How far ahead.
        ahead_ms: u64,
    },
    /// Its time is over.
    #[error("the price signal has expired")]
    Expired,
    /// It claims to be valid for too long, or ends before it begins.
    #[error("a price signal is valid for at most {SIGNAL_LIFE_MS_MAX} ms, and not for less than 1")]
    Lifetime,
    /// Its models are not in order, or one stands there twice.
    #[error("the models of a price signal stand in the order of their digests, each once")]
    Models,
    /// It has more free slots than slots.
    #[error("the price signal has more free slots than slots")]
    Slots,
    /// Its bytes are not a price signal, or its signature is not its provider's.
    #[error(transparent)]
    Signed(#[from] SignedError),
}

/// How a signal relates to another one of the same provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalOrder {
    /// It is older and changes nothing.
    Older,
    /// It is the same.
    Same,
    /// It is newer and takes the other one's place.
    Newer,
    /// Both claim the same time and differ: neither is believed.
    Contradicts,
}

impl PriceSignal {
    /// Checks the signal without its signature.
    ///
    /// # Errors
    ///
    /// The first [`SignalRefusal`] that applies.
    pub fn check(&self, now: Timestamp) -> Result<(), SignalRefusal> {
        let ahead_ms = self.issued_at.since_ms(now);
        if ahead_ms > SIGNAL_AHEAD_MS_MAX {
            return Err(SignalRefusal::FromFuture { ahead_ms });
        }
        if self.expires_at <= now {
            return Err(SignalRefusal::Expired);
        }
        let life_ms = self.expires_at.since_ms(self.issued_at);
        if life_ms == 0 || life_ms > SIGNAL_LIFE_MS_MAX {
            return Err(SignalRefusal::Lifetime);
        }
        if !self.models.is_sorted_by(|left, right| left.model < right.model) {
            return Err(SignalRefusal::Models);
        }
        if self.slots_free > self.slots {
            return Err(SignalRefusal::Slots);
        }
        if !self.models.iter().all(|offer| offer.shape.is_plausible()) {
            return Err(SignalRefusal::Models);
        }
        Ok(())
    }

    /// Reads and checks a signal from a peer; the signature comes last because it costs most.
    ///
    /// # Errors
    ///
    /// The first [`SignalRefusal`] that applies.
    pub fn receive(
        mesh: MeshId,
        sent: &WireDocument,
        now: Timestamp,
    ) -> Result<Signed<Self>, SignalRefusal> {
        let bytes = sent.bytes.len();
        if bytes > PRICE_SIGNAL_BYTES_MAX {
            return Err(SignalRefusal::TooLarge { bytes });
        }
        let signal: Self = decode_body(&sent.bytes)?;
        signal.check(now)?;
        let key = PublicKey::from(signal.provider);
        Ok(Signed::verify(mesh, key, sent.bytes.clone(), sent.signature)?)
    }

    /// The offer of `model`, if this signal has one.
    pub fn offer(&self, model: ModelDigest) -> Option<&Offer> {
        self.models.iter().find(|offer| offer.model == model)
    }

    /// How `newcomer` relates to `held`, both received from the same provider.
    pub fn order(newcomer: &Signed<Self>, held: &Signed<Self>) -> SignalOrder {
        let (new, old) = (newcomer.body().issued_at, held.body().issued_at);
        match new.cmp(&old) {
            core::cmp::Ordering::Less => SignalOrder::Older,
            core::cmp::Ordering::Greater => SignalOrder::Newer,
            core::cmp::Ordering::Equal if newcomer.id() == held.id() => SignalOrder::Same,
            core::cmp::Ordering::Equal => SignalOrder::Contradicts,
        }
    }
}
