//! The body of a chat request, as HTTP clients and peers send it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tirami_sdk::types::ChatRequest;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<ChatRequest>(data) {
        let text = serde_json::to_string(&request).expect("what was read can be written");
        serde_json::from_str::<ChatRequest>(&text).expect("and read again");
    }
});
