//! Ids, amounts and the names of API keys, as they stand in headers, paths and settings.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tirami_core::{AgentId, JobId, PartyId, Trm};
use tirami_ledger::book::KeyId;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(party) = text.parse::<PartyId>() {
        assert_eq!(party.to_string(), text);
    }
    if let Ok(job) = text.parse::<JobId>() {
        assert_eq!(job.to_string(), text);
    }
    if let Ok(agent) = AgentId::from_did(text) {
        assert_eq!(agent.did(), text);
    }
    if let Ok(key) = text.parse::<KeyId>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(amount) = text.parse::<Trm>() {
        assert_eq!(amount.to_string().parse(), Ok(amount));
    }
});
