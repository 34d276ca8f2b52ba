//! A job's stream as a provider reads it.

#![no_main]

mod frames;

use libfuzzer_sys::fuzz_target;
use tirami_proto::{JOB_FRAME_BYTES_MAX, ToProvider};

fuzz_target!(|data: &[u8]| frames::read::<ToProvider>(data, JOB_FRAME_BYTES_MAX));
