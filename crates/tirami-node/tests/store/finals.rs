//! Ranges of final entries, as the store gives them to other nodes.

use std::path::Path;

use crate::support::{Life, append, create, futures_executor, open, start};
use tirami_core::PartyId;
use tirami_node::store::{STORE_FILE, StoreReader};
use tirami_proto::{FINALS_PER_FRAME_MAX, FinalEntry};

fn finals(reader: &StoreReader, chain: PartyId, from: u64, max: u32) -> (Vec<FinalEntry>, bool) {
    futures_executor(reader.finals(chain, from, max)).unwrap()
}

/// A book with more gifts than one answer holds.
fn book(dir: &Path) -> (Life, u64) {
    let mut life = Life::new(1);
    let (store, _) = start(create(dir, &life.genesis));
    append(&store, life.begin()).unwrap();
    for _ in 0..FINALS_PER_FRAME_MAX {
        append(&store, life.gift()).unwrap();
    }
    store.close().unwrap();
    let party = life.genesis.party;
    let next = life.ledger.lattice().chain(party).unwrap().next_seq();
    (life, next)
}

#[test]
fn a_chain_is_read_in_ranges_that_continue_each_other_and_end_with_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (life, next) = book(dir.path());
    let party = life.genesis.party;
    let (store, reader) = start(open(dir.path()).unwrap());
    let mut read = Vec::new();
    loop {
        let (entries, more) = finals(&reader, party, read.len() as u64, 100);
        assert!(entries.len() <= 100 && entries.last().unwrap().certificate.is_some());
        read.extend(entries);
        if !more {
            break;
        }
    }
    assert_eq!(read.len() as u64, next);
    let whole = finals(&reader, party, 0, u32::MAX);
    assert_eq!((whole.0.len(), whole.1), (FINALS_PER_FRAME_MAX, true));
    assert_eq!(whole.0[..], read[..FINALS_PER_FRAME_MAX]);
    assert_eq!(finals(&reader, party, next - 1, 7), (read[read.len() - 1..].to_vec(), false));
    assert_eq!(finals(&reader, party, next, 7), (Vec::new(), false));
    assert_eq!(finals(&reader, PartyId::from_bytes([9; 32]), 0, 7), (Vec::new(), false));
    drop(store);
}

#[test]
fn a_book_of_the_version_before_gets_its_index_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (life, next) = book(dir.path());
    let db = rusqlite::Connection::open(dir.path().join(STORE_FILE)).unwrap();
    let before = "DROP INDEX entries_final; DROP INDEX settled_by_job; PRAGMA user_version = 1";
    db.execute_batch(before).unwrap();
    drop(db);
    let (store, reader) = start(open(dir.path()).unwrap());
    assert_eq!(finals(&reader, life.genesis.party, next - 5, 100).0.len(), 5);
    store.close().unwrap();
}
