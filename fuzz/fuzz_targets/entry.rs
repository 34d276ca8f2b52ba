//! Entries, acknowledgements and certificates, as a lattice receives them from peers.

#![no_main]

mod again;

use std::sync::LazyLock;

use again::again;
use libfuzzer_sys::fuzz_target;
use tirami_core::{SecretKey, Signature, Signed, Trm, decode_body};
use tirami_ledger::lattice::{Acknowledgement, Certificate, Charter, Entry, Lattice, Params};

static LATTICE: LazyLock<Lattice> = LazyLock::new(|| {
    let key = SecretKey::from_seed([1; 32]);
    let charter = Charter {
        name: "fuzz".to_owned(),
        version: 1,
        previous: None,
        witnesses: vec![key.public()],
        quorum: 1,
        clerk: key.public().party(),
        registrar: key.public().party(),
        auditors: Vec::new(),
        line_total: Trm::from_micro(1_000_000_000),
        params: Params::default(),
        reopens: Vec::new(),
    };
    let signed = Signed::sign(Charter::founding_mesh(), &key, charter).expect("small enough");
    Lattice::found(&signed).expect("a valid charter")
});

fuzz_target!(|data: &[u8]| {
    let _ = decode_body::<Entry>(data).inspect(again);
    let nobody = Signature::from_bytes([1; 64]);
    let _ = LATTICE.receive_entry(data, nobody);
    if let Ok(acknowledgement) = minicbor::decode::<Acknowledgement>(data) {
        again(&acknowledgement);
        let events = LATTICE.receive_acknowledgement(&acknowledgement).unwrap_or_default();
        assert!(events.is_empty(), "nobody signed it");
    }
    if let Ok(certificate) = minicbor::decode::<Certificate>(data) {
        again(&certificate);
        let _ = LATTICE.receive_certified(data, nobody, &certificate);
    }
});
