//! A disk that fills up, provoked by SQLite's own bound on the size of a file.

use std::sync::mpsc;

use tirami_core::{AgentId, MeshId, PartyId, Signature, Timestamp, Trm};
use tirami_ledger::event::{BookEvent, Event};

use super::*;

fn genesis() -> Genesis {
    Genesis {
        mesh: MeshId::from_bytes([1; 32]),
        party: PartyId::from_bytes([2; 32]),
        personal: AgentId::from_bytes([3; 32]),
        charter: vec![4; 100],
        charter_signature: Signature::from_bytes([5; 64]),
        created_at: Timestamp::from_ms(6),
    }
}

fn funded(amount: u64) -> Event {
    let agent = AgentId::from_bytes([3; 32]);
    let (amount, at) = (Trm::from_micro(amount), Timestamp::from_ms(9));
    Event::Book(BookEvent::AgentFunded { agent, amount, at })
}

fn append(store: &Store, events: Vec<Event>) -> Result<(), StoreError> {
    let (sender, done) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.append(events, Box::new(move |result| sender.send(result).unwrap())))?;
    done.recv().unwrap()
}

#[test]
fn a_full_disk_is_one_sentence_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let lock = || DirLock::take(dir.path()).unwrap();
    let opening = Opening::create(dir.path(), &genesis(), lock()).unwrap();
    let (store, _) = opening
        .start_with(StoreStats::default(), |db| {
            db.pragma_update_and_check(None, "max_page_count", 60, |_| Ok(()))
        })
        .unwrap();
    let mut acknowledged = 0;
    let failure = loop {
        match append(&store, (0..100).map(|i| funded(acknowledged + i)).collect()) {
            Ok(()) => acknowledged += 100,
            Err(error) => break error,
        }
    };
    assert!(acknowledged > 0);
    assert!(matches!(failure, StoreError::Full { .. }), "{failure}");
    assert!(failure.to_string().starts_with("the disk is full"));
    // It does not come back by itself: the kernel's state is ahead of the disk.
    assert!(matches!(append(&store, vec![funded(1)]), Err(StoreError::Full { .. })));
    assert!(matches!(store.close(), Err(StoreError::Full { .. })));

    let Found::Book(opening) = Opening::open(dir.path(), lock()).unwrap() else { panic!() };
    let mut read = Vec::new();
    opening.replay(|event| read.push(event)).unwrap();
    assert_eq!(read, (0..acknowledged).map(funded).collect::<Vec<_>>());
    let (store, _) = opening.start(StoreStats::default()).unwrap();
    append(&store, vec![funded(0)]).unwrap();
    store.close().unwrap();
}

#[test]
fn each_column_of_a_row_is_in_its_checksum() {
    let mut body = Vec::new();
    let event = funded(7);
    let cells = row::cells(3, &event, &mut body).unwrap();
    let checksum = cells.checksum(&[0; 16]);
    let others = [
        row::Cells { n: 4, ..cells },
        row::Cells { table: row::Table::Entries, ..cells },
        row::Cells { kind: "agent_fundee", ..cells },
        row::Cells { key: Some(&[]), ..cells },
        row::Cells { job: Some(&[]), ..cells },
        row::Cells { number: None, ..cells },
        row::Cells { body: &[], ..cells },
        row::Cells { signature: Some(&[]), ..cells },
    ];
    for other in others {
        assert_ne!(other.checksum(&[0; 16]), checksum, "{other:?}");
    }
    assert_ne!(cells.checksum(&[1; 16]), checksum);
    assert_eq!(cells.event(), Some(event.clone()));
}
