//! Charters and their approvals, as a newcomer and a witness receive them.

#![no_main]

mod again;

use again::again;
use libfuzzer_sys::fuzz_target;
use tirami_core::decode_body;
use tirami_ledger::lattice::{Charter, CharterApproval, CharterProof};

fuzz_target!(|data: &[u8]| {
    if let Ok(charter) = decode_body::<Charter>(data) {
        let _ = charter.validate();
        again(&charter);
    }
    let _ = minicbor::decode::<CharterApproval>(data).inspect(again);
    let _ = minicbor::decode::<CharterProof>(data).inspect(again);
});
