//! The language nodes speak with each other: frames, messages, signed announcements, addresses of
//! peers, invites, and the limits a node holds its peers to.
//!
//! This crate does no I/O. It knows nothing of money either: entries, charters, orders, vouchers
//! and receipts pass through it as signed bytes, which the kernel hands to the ledger.
//!
//! Everything a stranger can send is read here or in the ledger. Each length is checked before
//! memory is taken for it, and fields and messages this version does not know are skipped, so that
//! a newer node can speak to an older one.

mod announce;
mod bounded;
mod frame;
mod hello;
mod job;
mod limits;
mod message;
mod peer;
mod wire;
mod work;

pub use announce::{
    MODEL_NAME_BYTES_MAX, OFFERS_MAX, Offer, PRICE_SIGNAL_BYTES_MAX, PriceSignal, REGION_BYTES_MAX,
    SIGNAL_AHEAD_MS_MAX, SIGNAL_LIFE_MS_MAX, SignalOrder, SignalRefusal,
};
pub use frame::{
    CONTROL_FRAME_BYTES_MAX, Frame, FrameError, Frames, JOB_FRAME_BYTES_MAX, NESTING_MAX,
    TOKEN_FRAME_BYTES_MAX, encode,
};
pub use hello::{
    ADDRESSES_MAX, AGENT_BYTES_MAX, FEATURE_KEEPS_OWN, Goodbye, GoodbyeCode, Hello,
    REASON_BYTES_MAX, Welcome, admission_fits, admission_proof, common_version,
};
pub use job::{
    BODY_BYTES_MAX, InvalidRequest, JobRequest, LIKELIEST_MAX, LIKELIHOODS_PER_FRAME_MAX,
    Likelihood, Likely, PATH_BYTES_MAX, RESUMED_TOKENS_MAX, TEXT_BYTES_MAX, TOKEN_BYTES_MAX,
    TOKENS_PER_FRAME_MAX, ToConsumer, ToProvider, VECTOR_WIDTH_MAX,
};
pub use limits::{
    BYTES_BURST, BYTES_PER_SECOND, FRAMES_BURST, FRAMES_PER_SECOND, Fault, PeerLimits,
    REFUSAL_MS_MAX, REFUSAL_MS_MIN, SCORE_MAX, Score, TokenBucket,
};
pub use message::{
    ANNOUNCED_PER_FRAME_MAX, HEADS_PER_FRAME_MAX, KEPT_PER_FRAME_MAX, MeasuredSpeed, Message,
    OPINIONS_PER_FRAME_MAX, PEERS_PER_FRAME_MAX, PLACES_ASKED_MAX, PLACES_MAX, ProviderOpinion,
};
pub use peer::{
    ADDRESS_BYTES_MAX, AddressError, INVITE_PEERS_MAX, INVITE_PREFIX, Invite, InviteError,
    NAME_BYTES_MAX, PeerAddress, RELAY_BYTES_MAX, VIA_MAX, Via,
};
pub use wire::{
    APPROVAL_BYTES_MAX, APPROVALS_MAX, CERTIFICATE_BYTES_MAX, CHARTERS_PER_FRAME_MAX,
    CUT_SLOTS_MAX, FINALS_PER_FRAME_MAX, FinalEntry, Head, WireCharter, WireClaim, WireDocument,
    WireEntry, WirePlace, WireSlot,
};
pub use work::{WORK_BITS_MAX, Work};

/// The newest protocol version this code speaks.
pub const PROTOCOL: u16 = 1;
/// The oldest protocol version this code still speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The name of the protocol when two nodes open a QUIC connection.
pub const ALPN: &[u8] = b"tirami/1";
/// First byte of a stream that carries [`Message`]s.
pub const STREAM_CONTROL: u8 = 0;
/// First byte of a stream that carries one job: [`ToProvider`] one way, [`ToConsumer`] the other.
pub const STREAM_JOB: u8 = 1;
