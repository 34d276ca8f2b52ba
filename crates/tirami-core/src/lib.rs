//! The words every Tirami crate shares: units, times, ids, keys, signed bytes and model shapes.
//!
//! This crate does no I/O, reads no clock and draws no randomness. Money is in integers only;
//! where a result is rounded, the function's name says in which direction.

mod flop;
mod id;
mod key;
mod model;
mod remember;
mod signed;
mod time;
mod trm;

pub use flop::Flop;
pub use id::{
    AgentId, BUCKETS, Digest, DocumentId, IdError, JobId, MeshId, ModelDigest, PartyId, bucket_of,
};
pub use key::{KeyError, PublicKey, SecretKey, Signature};
pub use model::ModelShape;
pub use remember::{REMEMBERED_MAX, RememberSignatures, one_copy};
pub use signed::{
    Checked, Document, SIGNED_BYTES_MAX, Signed, SignedError, decode_body, signing_message,
};
pub use time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
pub use trm::{Ppm, TRM_MICRO, Trm, TrmError};
