//! The control stream between two nodes.

#![no_main]

mod frames;

use libfuzzer_sys::fuzz_target;
use tirami_proto::{CONTROL_FRAME_BYTES_MAX, Message};

fuzz_target!(|data: &[u8]| frames::read::<Message>(data, CONTROL_FRAME_BYTES_MAX));
