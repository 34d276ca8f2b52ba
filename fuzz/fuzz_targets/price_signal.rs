//! Price signals: read, checked, and never accepted without a signature.

#![no_main]

mod again;

use again::again;
use libfuzzer_sys::fuzz_target;
use tirami_core::{MeshId, Signature, Timestamp, decode_body};
use tirami_proto::{PriceSignal, WireDocument};

fuzz_target!(|data: &[u8]| {
    let now = Timestamp::from_ms(1_700_000_001_000);
    if let Ok(signal) = decode_body::<PriceSignal>(data) {
        let _ = signal.check(now);
        again(&signal);
    }
    let sent = WireDocument { bytes: data.to_vec(), signature: Signature::from_bytes([1; 64]) };
    assert!(PriceSignal::receive(MeshId::from_bytes([1; 32]), &sent, now).is_err());
});
