//! The mesh as a whole: many kernels in one thread, virtual time, a network that loses, repeats,
//! reorders and splits. Every message passes its wire form.

mod charter;
mod finality;
mod harness;
mod jobs;
mod peers;
mod signals;
mod sync;
