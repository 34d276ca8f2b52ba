//! Entries, acknowledgements and certificates, as a lattice receives them from peers.

#![no_main]

use std::sync::LazyLock;

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
    if let Ok(entry) = decode_body::<Entry>(data) {
        let bytes = minicbor::to_vec(&entry).unwrap_or_default();
        assert_eq!(decode_body::<Entry>(&bytes), Ok(entry));
    }
    let nobody = Signature::from_bytes([1; 64]);
    let _ = LATTICE.receive_entry(data, nobody);
    if let Ok(acknowledgement) = minicbor::decode::<Acknowledgement>(data) {
        assert!(LATTICE.receive_acknowledgement(&acknowledgement).is_err(), "nobody signed it");
    }
    if let Ok(certificate) = minicbor::decode::<Certificate>(data) {
        let _ = LATTICE.receive_certified(data, nobody, &certificate);
    }
});
