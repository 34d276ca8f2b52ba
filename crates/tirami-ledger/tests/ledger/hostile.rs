//! Bytes of strangers in the ledger: entries, charters, documents and certificates that were
//! changed on the way are read or refused, and never change a lattice.

use std::fmt::Debug;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use tirami_core::{
    Digest, Document, DocumentId, Flop, JobId, ModelDigest, PartyId, Ppm, SecretKey, Signature,
    Signed, Timestamp, Trm, decode_body,
};
use tirami_ledger::documents::{FinishReason, Order, Receipt, Voucher};
use tirami_ledger::lattice::{
    Acknowledgement, Certificate, Charter, CharterApproval, CharterProof, Entry, Lattice, Params,
};

const MUTATIONS: usize = 5_000;

fn below(dice: &mut ChaCha8Rng, bound: usize) -> usize {
    (dice.next_u64() % bound.max(1) as u64) as usize
}

/// Changes a few bytes, cuts, doubles or moves a part.
fn mutate(dice: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=below(dice, 3) {
        let at = below(dice, bytes.len());
        match below(dice, 6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, dice.next_u32() as u8),
            2 if !bytes.is_empty() => bytes[at] ^= 1 << below(dice, 8),
            3 if !bytes.is_empty() => bytes[at] = [0x9b, 0xbb, 0x5b, 0x7f, 0xff, 0][below(dice, 6)],
            4 => {
                let part = bytes[at..(at + below(dice, 40)).min(bytes.len())].to_vec();
                let to = below(dice, bytes.len());
                bytes.splice(to..to, part);
            }
            _ => drop(bytes.drain(at..(at + below(dice, 8)).min(bytes.len()))),
        }
    }
}

/// Feeds `MUTATIONS` changed copies of `bytes` to `read`.
fn torture(seed: u64, bytes: &[u8], mut read: impl FnMut(&[u8])) {
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    read(bytes);
    for _ in 0..MUTATIONS {
        let mut changed = bytes.to_vec();
        mutate(&mut dice, &mut changed);
        read(&changed);
    }
}

/// What can be read survives being written.
fn survives<T: Document + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(body) = decode_body::<T>(bytes) {
        let again = minicbor::to_vec(&body).unwrap();
        assert_eq!(decode_body::<T>(&again), Ok(body));
    }
}

fn charter() -> Signed<Charter> {
    let key = SecretKey::from_seed([1; 32]);
    let charter = Charter {
        name: "hostile".to_owned(),
        version: 1,
        previous: None,
        witnesses: vec![key.public()],
        quorum: 1,
        clerk: key.public().party(),
        registrar: key.public().party(),
        auditors: vec![PartyId::from_bytes([9; 32])],
        line_total: Trm::from_micro(1_000_000_000),
        params: Params::default(),
        reopens: Vec::new(),
    };
    Signed::sign(Charter::founding_mesh(), &key, charter).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn changed_entries_are_read_or_refused() {
    let lattice = Lattice::found(&charter()).unwrap();
    let nobody = Signature::from_bytes([1; 64]);
    let entries =
        include_str!("../golden/entries.txt").lines().filter(|line| !line.starts_with('#'));
    for (seed, line) in (0..).zip(entries) {
        let entry = bytes(line.split(' ').nth(1).unwrap());
        torture(seed, &entry, |changed| {
            survives::<Entry>(changed);
            // Refused, or parked until what it rests on is there; nobody signed it.
            let _ = lattice.receive_entry(changed, nobody);
        });
    }
}

#[test]
fn changed_charters_are_read_or_refused() {
    let charter = charter();
    torture(1, charter.bytes(), |changed| {
        survives::<Charter>(changed);
        let _ = decode_body::<Charter>(changed).map(|charter| charter.validate());
        let _ = minicbor::decode::<CharterApproval>(changed);
        let _ = minicbor::decode::<CharterProof>(changed);
    });
}

#[test]
fn changed_acknowledgements_are_refused() {
    let lattice = Lattice::found(&charter()).unwrap();
    let acknowledgement = Acknowledgement {
        charter_version: 1,
        entry: DocumentId::from_bytes([4; 32]),
        witness: SecretKey::from_seed([1; 32]).public(),
        signature: Signature::from_bytes([1; 64]),
    };
    torture(2, &minicbor::to_vec(acknowledgement).unwrap(), |changed| {
        if let Ok(read) = minicbor::decode::<Acknowledgement>(changed) {
            let events = lattice.receive_acknowledgement(&read).unwrap_or_default();
            assert!(events.is_empty(), "nobody signed it");
        }
        let _ = minicbor::decode::<Certificate>(changed);
    });
}

#[test]
fn changed_documents_are_read_or_refused() {
    let party = PartyId::from_bytes([7; 32]);
    let order = Order {
        consumer: party,
        provider: party,
        job: JobId::from_bytes([1; 16]),
        model: ModelDigest::from_bytes([2; 32]),
        request: Digest::of(b"request"),
        seed: 1,
        price: Ppm::ONE,
        cached_price: Ppm::ZERO,
        prompt_max: 1_000,
        max_amount: Trm::from_micro(1_000_000),
        start_by: Timestamp::from_ms(1_700_000_000_000),
        claim_by: Timestamp::from_ms(1_700_000_900_000),
    };
    let id = DocumentId::from_bytes([3; 32]);
    let amount = Trm::from_micro(70_000);
    let voucher = Voucher { order: id, n: 3, amount, tokens: 40, stream: Digest::of(b"stream") };
    let receipt = Receipt {
        order: id,
        prompt_tokens: 100,
        cached_tokens: 64,
        completion_tokens: 40,
        flop: Flop::new(1_000_000_000),
        amount,
        output: Digest::of(b"output"),
        build: "build".to_owned(),
        finish: FinishReason::Stop,
    };
    torture(3, &minicbor::to_vec(&order).unwrap(), survives::<Order>);
    torture(4, &minicbor::to_vec(&voucher).unwrap(), survives::<Voucher>);
    torture(5, &minicbor::to_vec(&receipt).unwrap(), survives::<Receipt>);
}
