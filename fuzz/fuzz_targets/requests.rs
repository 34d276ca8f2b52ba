//! The bodies of requests for answers, as HTTP clients and peers send them: whatever is read can
//! be written, and is read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use tirami_sdk::types::{
    ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingsRequest, MessagesRequest,
    ResponsesRequest, TokenizeRequest,
};

fuzz_target!(|data: &[u8]| {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 7 {
        0 => round::<ChatRequest>(body),
        1 => round::<CompletionRequest>(body),
        2 => round::<EmbeddingsRequest>(body),
        3 => round::<MessagesRequest>(body),
        4 => round::<ResponsesRequest>(body),
        5 => round::<TokenizeRequest>(body),
        _ => round::<DetokenizeRequest>(body),
    }
});

fn round<T: DeserializeOwned + Serialize>(body: &[u8]) {
    let Ok(request) = serde_json::from_slice::<T>(body) else { return };
    let written = serde_json::to_value(&request).expect("what was read can be written");
    let again: T = serde_json::from_value(written.clone()).expect("and read again");
    let again = serde_json::to_value(&again).expect("and written again");
    assert_eq!(again, written);
}
