//! The bundle that carries an agent's key from node to node.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tirami_sdk::types::Bundle;

fuzz_target!(|data: &[u8]| {
    if let Ok(bundle) = serde_json::from_slice::<Bundle>(data) {
        // Only its maker knows the passphrase, and it is none of these.
        assert!(tirami_node::bundle::open(&bundle, "a wrong passphrase").is_err());
    }
});
