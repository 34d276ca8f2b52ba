//! How many hold + post pairs a second become durable, beside the floor: appending the same bytes
//! to a file and syncing it. Run with `--ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod store_support;

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store_support::{Life, create, futures_executor, start};
use tirami_ledger::event::{BookEvent, Event};

const GROUPS: [usize; 3] = [1, 64, 256];
const FOR: Duration = Duration::from_secs(3);

#[test]
#[ignore = "measures for a minute"]
fn durable_pairs_a_second() {
    let mut life = Life::new(1);
    life.begin();
    let job = life.job();
    let pair: Vec<Event> = job
        .iter()
        .filter(|event| {
            matches!(
                event,
                Event::Book(BookEvent::HoldOpened(_) | BookEvent::HoldPosted(_))
            )
        })
        .cloned()
        .collect();
    assert_eq!(pair.len(), 2);
    for (name, events) in [("hold + post", pair), ("whole job with documents", job)] {
        let bytes: usize = events
            .iter()
            .map(|event| minicbor::to_vec(event).unwrap().len())
            .sum();
        println!("{name}: {} records, {bytes} bytes", events.len());
        for group in GROUPS {
            let floor = floor(bytes * group, group);
            let (pairs, bound) = measure(&life, &events, group);
            println!(
                "  group {group:3}: {pairs:8.0} /s   raw append + sync {floor:9.0} /s   {bound}"
            );
        }
    }
}

fn floor(bytes: usize, group: usize) -> f64 {
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut file = File::create(dir.path().join("log")).unwrap();
    let block = vec![7; bytes];
    let (started, mut pairs) = (Instant::now(), 0);
    while started.elapsed() < FOR / 3 {
        file.write_all(&block).unwrap();
        file.sync_data().unwrap();
        pairs += group;
    }
    pairs as f64 / started.elapsed().as_secs_f64()
}

fn measure(life: &Life, events: &[Event], group: usize) -> (f64, String) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let (store, _reader) = start(create(dir.path(), &life.genesis));
    let done = Arc::new(AtomicU64::new(0));
    let (mut sent, started) = (0_u64, Instant::now());
    while started.elapsed() < FOR {
        let mut batch = Vec::with_capacity(group * events.len());
        for _ in 0..group {
            sent += 1;
            batch.extend(events.iter().map(|event| renamed(event, sent)));
        }
        let done = Arc::clone(&done);
        let told = Box::new(move |result: Result<(), _>| {
            result.unwrap();
            done.fetch_add(group as u64, Ordering::Relaxed);
        });
        futures_executor(store.append(batch, told)).unwrap();
    }
    let pairs = done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    store.close().unwrap();
    let size = std::fs::metadata(dir.path().join("tirami.db"))
        .unwrap()
        .len();
    (pairs, format!("{} bytes on disk a pair", size / sent))
}

/// The event with ids of its own, so that indexes grow as they do in life.
fn renamed(event: &Event, n: u64) -> Event {
    let id = *blake3::hash(&n.to_le_bytes()).as_bytes();
    let job = tirami_core::JobId::from_bytes(id[..16].try_into().unwrap());
    let order = tirami_core::DocumentId::from_bytes(id);
    let mut event = event.clone();
    match &mut event {
        Event::Book(BookEvent::HoldOpened(opened)) => (opened.job, opened.order) = (job, order),
        Event::Book(BookEvent::HoldPosted(posted)) => (posted.job, posted.order) = (job, order),
        Event::Document(document) => document.job = job,
        _ => {}
    }
    event
}
