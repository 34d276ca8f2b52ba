//! The mesh as a whole: many kernels in one thread, virtual time, a network that loses, repeats,
//! reorders and splits. Every message passes its wire form.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops where something is not as it should be"
)]

mod charter;
mod claims;
mod drafts;
mod faucet;
mod finality;
mod floods;
mod harness;
mod jobs;
mod kept;
mod peers;
mod signals;
mod sync;
