//! Charters and their approvals, as a newcomer and a witness receive them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tirami_core::decode_body;
use tirami_ledger::lattice::{Charter, CharterApproval, CharterProof};

fuzz_target!(|data: &[u8]| {
    if let Ok(charter) = decode_body::<Charter>(data) {
        let _ = charter.validate();
        let bytes = minicbor::to_vec(&charter).unwrap_or_default();
        assert_eq!(decode_body::<Charter>(&bytes), Ok(charter));
    }
    let _ = minicbor::decode::<CharterApproval>(data);
    let _ = minicbor::decode::<CharterProof>(data);
});
