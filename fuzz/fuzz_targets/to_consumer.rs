//! A job's stream as a consumer reads it.

#![no_main]

mod frames;

use libfuzzer_sys::fuzz_target;
use tirami_proto::{JOB_FRAME_BYTES_MAX, ToConsumer};

fuzz_target!(|data: &[u8]| frames::read::<ToConsumer>(data, JOB_FRAME_BYTES_MAX));
