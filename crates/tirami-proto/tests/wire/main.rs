//! What nodes say to each other, byte for byte: samples of every message, the largest of them,
//! bytes of strangers, and the limits of a peer.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod addresses;
mod golden;
mod hostile;
mod largest;
mod limits;
mod samples;
mod signals;
