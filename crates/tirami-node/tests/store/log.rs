//! The account book on a real disk: what is acknowledged is there, in order, and only once.

use std::sync::{Arc, Mutex};

use crate::support::{Life, append, create, futures_executor, ledger_of, open, snapshot, start};
use tirami_core::{DocumentId, Flop, JobId, ModelDigest, PartyId, Signature, Timestamp, Trm};
use tirami_ledger::documents::FinishReason;
use tirami_ledger::event::{BookEvent, DocumentKind, Event, ServedFinished};
use tirami_node::store::doctor::{Report, doctor};
use tirami_node::store::{DirLock, StoreError, TradeFilter};

fn failed(report: &Report) -> Vec<&'static str> {
    report.checks.iter().filter(|check| !check.ok).map(|check| check.name).collect()
}

#[test]
fn what_was_acknowledged_is_replayed_to_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(1);
    let (store, _) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    for _ in 0..20 {
        append(&store, life.job()).unwrap();
    }
    store.close().unwrap();
    let opening = open(dir.path()).unwrap();
    assert_eq!(opening.genesis(), &life.genesis);
    assert_eq!(ledger_of(&opening), life.ledger);
}

#[test]
fn a_snapshot_shortens_the_replay_and_gives_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(2);
    let (store, _) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    for _ in 0..4 {
        append(&store, life.job()).unwrap();
        snapshot(&store, &life.ledger).unwrap();
    }
    let tail = life.job();
    append(&store, tail.clone()).unwrap();
    store.close().unwrap();
    let opening = open(dir.path()).unwrap();
    let mut replayed = Vec::new();
    opening.replay(|event| replayed.push(event)).unwrap();
    assert_eq!(replayed, tail);
    assert_eq!(ledger_of(&opening).state_hash(), life.ledger.state_hash());
    drop(opening);
    let kept = doctor(dir.path());
    assert!(kept.is_healthy(), "{kept:?}");
    let detail = kept.checks.iter().find(|check| check.name == "snapshots").unwrap();
    assert!(detail.detail.starts_with("2,"), "{detail:?}");
}

#[test]
fn waiters_of_one_group_are_told_in_order_after_the_sync() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(3);
    let (store, reader) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    futures_executor(async {
        for number in 0..500 {
            // Every third waits for nothing of its own, and must not overtake.
            let events = if number % 3 == 0 { Vec::new() } else { life.job() };
            let order = Arc::clone(&order);
            let done = Box::new(move |result: Result<(), StoreError>| {
                result.unwrap();
                order.lock().unwrap().push(number);
            });
            store.append(events, done).await.unwrap();
        }
    });
    store.close().unwrap();
    assert_eq!(*order.lock().unwrap(), (0..500).collect::<Vec<_>>());
    drop(reader);
    assert_eq!(ledger_of(&open(dir.path()).unwrap()), life.ledger);
}

#[test]
fn a_second_node_is_refused_while_the_first_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let life = Life::new(4);
    let (store, _) = start(create(dir.path(), &life.genesis));
    let error = DirLock::take(dir.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == std::process::id())
    );
    let pid = format!("locked by another node (pid {})", std::process::id());
    assert!(error.to_string().contains(&pid), "{error}");
    store.close().unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn trades_are_listed_in_pages_with_their_documents() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(5);
    let (store, reader) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    for _ in 0..25 {
        append(&store, life.job()).unwrap();
    }
    futures_executor(async {
        for agent in [None, Some(life.genesis.personal)] {
            let mut filter = TradeFilter { agent, before: None, limit: 10 };
            let mut seen = Vec::new();
            loop {
                let page = reader.trades(filter).await.unwrap();
                seen.extend(page.items);
                filter.before = page.next;
                if page.next.is_none() {
                    break;
                }
            }
            assert_eq!(seen.len(), 25);
            assert!(seen.is_sorted_by(|one, next| one.cursor > next.cursor));
            let trade = reader.trade(seen[3].trade).await.unwrap().unwrap();
            assert_eq!(trade.row, seen[3]);
            let kinds: Vec<_> = trade.documents.iter().map(|document| document.kind).collect();
            use DocumentKind::{Order, Receipt, Voucher};
            assert_eq!(kinds, [Order, Voucher, Receipt]);
            assert_eq!(trade.documents[2].id, trade.row.receipt.unwrap());
        }
        let stranger = Some(tirami_core::AgentId::from_bytes([9; 32]));
        let filter = TradeFilter { agent: stranger, before: None, limit: 10 };
        assert!(reader.trades(filter).await.unwrap().items.is_empty());
        let unknown = tirami_core::DocumentId::from_bytes([9; 32]);
        assert_eq!(reader.trade(unknown).await.unwrap(), None);
    });
    store.close().unwrap();
}

#[test]
fn the_doctor_finds_a_whole_book_healthy_and_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(6);
    assert!(doctor(dir.path()).is_healthy());
    let (store, _) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    for _ in 0..10 {
        append(&store, life.job()).unwrap();
    }
    // Also beside a running node.
    let report = doctor(dir.path());
    assert!(report.is_healthy(), "{report:?}");
    store.close().unwrap();
    let before = std::fs::read(dir.path().join("tirami.db")).unwrap();
    let report = doctor(dir.path());
    assert!(report.is_healthy() && report.advice.is_empty(), "{report:?}");
    let names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
    for name in ["journal", "snapshots", "entries", "documents", "invariants", "index of trades"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(std::fs::read(dir.path().join("tirami.db")).unwrap(), before);
}

#[test]
fn the_doctor_finds_a_document_that_its_signer_did_not_sign() {
    for kind in [DocumentKind::Order, DocumentKind::Voucher, DocumentKind::Receipt] {
        let dir = tempfile::tempdir().unwrap();
        let mut life = Life::new(7);
        let (store, _) = start(create(dir.path(), &life.genesis));
        append(&store, life.begin()).unwrap();
        let mut job = life.job();
        for event in &mut job {
            if let Event::Document(document) = event
                && document.kind == kind
            {
                document.signature = Signature::from_bytes([1; 64]);
            }
        }
        append(&store, job).unwrap();
        store.close().unwrap();
        let report = doctor(dir.path());
        assert_eq!(failed(&report), ["documents"], "{report:?}");
        assert!(!report.advice.is_empty());
    }
}

#[test]
fn the_doctor_finds_a_snapshot_of_another_state() {
    let dir = tempfile::tempdir().unwrap();
    let (mut life, mut other) = (Life::new(8), Life::new(8));
    let (store, _) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    other.begin();
    other.job();
    snapshot(&store, &other.ledger).unwrap();
    append(&store, life.job()).unwrap();
    store.close().unwrap();
    assert_eq!(failed(&doctor(dir.path())), ["snapshots"]);
}

#[test]
fn a_job_done_for_another_node_says_what_was_paid_beyond_what_this_node_could_prove() {
    const DUE: u64 = 36_675_213;
    let dir = tempfile::tempdir().unwrap();
    let life = Life::new(10);
    let (store, reader) = start(create(dir.path(), &life.genesis));
    let (consumer, other) = (PartyId::from_bytes([1; 32]), PartyId::from_bytes([2; 32]));
    let (job, order) = (|n| JobId::from_bytes([n; 16]), |n| DocumentId::from_bytes([n; 32]));
    let finished = |n| {
        Event::Book(BookEvent::ServedFinished(ServedFinished {
            job: job(n),
            consumer,
            order: order(n),
            receipt: None,
            model: ModelDigest::from_bytes([5; 32]),
            prompt_tokens: 37,
            completion_tokens: 97,
            flop: Flop::new(1),
            amount: Trm::from_micro(DUE),
            finish: FinishReason::Failed,
            at: Timestamp::from_ms(7),
            unsigned: Trm::ZERO,
        }))
    };
    let settled = |n, consumer, amount| {
        let (job, amount) = (job(n), Trm::from_micro(amount));
        Event::Book(BookEvent::ServedSettled { job, consumer, amount, entry: order(9) })
    };
    let events = vec![
        finished(1),
        finished(2),
        finished(3),
        finished(4),
        // By a later voucher; as much as is due; in two parts; by somebody else.
        settled(1, consumer, 40_857_889),
        settled(2, consumer, DUE),
        settled(3, consumer, DUE - 1),
        settled(3, consumer, 3),
        settled(4, other, DUE + 1),
    ];
    append(&store, events).unwrap();
    futures_executor(async {
        let filter = TradeFilter { agent: None, before: None, limit: 10 };
        let trades = reader.trades(filter).await.unwrap().items;
        let told: Vec<_> = trades.iter().rev().map(|trade| (trade.amount, trade.paid)).collect();
        let paid = [Some(40_857_889), None, Some(DUE + 2), None];
        let paid = paid.map(|paid| (Trm::from_micro(DUE), paid.map(Trm::from_micro)));
        assert_eq!(told, paid);
        let one = reader.trade(order(1)).await.unwrap().unwrap();
        assert_eq!(one.row.paid, paid[0].1);
    });
    store.close().unwrap();
}

#[test]
fn the_doctor_finds_an_index_that_differs_from_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(9);
    let (store, _) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    append(&store, life.job()).unwrap();
    store.close().unwrap();
    let db = rusqlite::Connection::open(dir.path().join("tirami.db")).unwrap();
    db.execute("UPDATE trades SET amount_micro = amount_micro + 1", []).unwrap();
    db.close().unwrap();
    assert_eq!(failed(&doctor(dir.path())), ["index of trades"]);
}
