//! The kernel's task over a real store.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tirami_core::{MeshId, SecretKey, Signed, Trm};
use tirami_kernel::mesh::MeshInput;
use tirami_kernel::scheduler::{Observation, Observed};
use tirami_ledger::book::{Limits, Target};
use tirami_ledger::command::Actor;
use tirami_ledger::event::BookEvent;
use tirami_ledger::lattice::{Charter, Lattice};
use tirami_ledger::{Keyring, Ledger};

use super::*;
use crate::store::{DirLock, Found, Genesis, Opening, StoreStats};

/// A node's kernel over a new book whose file may have so many pages.
fn running(dir: &Path, pages: u32) -> Running {
    running_with(dir, pages, (StoreStats::default(), PATIENCE))
}

fn running_with(dir: &Path, pages: u32, (stats, patience): (StoreStats, Duration)) -> Running {
    let node = SecretKey::from_seed([1; 32]);
    let charter = Charter::founder("test", node.public(), Trm::from_micro(1 << 50));
    let charter = Signed::sign(Charter::founding_mesh(), &node, charter).unwrap();
    let genesis = Genesis {
        mesh: MeshId::from_bytes(*charter.id().as_bytes()),
        party: node.public().party(),
        personal: node.public().agent(),
        charter: charter.bytes().to_vec(),
        charter_signature: charter.signature(),
        created_at: Clock::default().now(),
    };
    let opening = Opening::create(dir, &genesis, DirLock::take(dir).unwrap()).unwrap();
    let configure = |db: &rusqlite::Connection| {
        db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
    };
    let (store, _) = opening.start_with(stats, configure).unwrap();
    let ledger = Ledger::new(Lattice::found(&charter).unwrap(), genesis.party);
    let (peers, _) = Peers::new(genesis.party);
    start_with(
        Kernel::new(ledger, Keyring::new(node)),
        store,
        peers,
        DriverStats::default(),
        (Clock::default(), patience),
    )
}

/// A command that leaves its number in the journal.
fn numbered(number: u64) -> Command {
    let lifetime_max = Some(Trm::from_micro(number));
    Command::SetLimits {
        target: Target::Node,
        limits: Limits { lifetime_max, ..Limits::default() },
    }
}

fn number_in(kernel: &Kernel) -> Option<u64> {
    kernel.ledger().book().limits(Target::Node)?.lifetime_max.map(Trm::micro)
}

/// The numbers that the journal holds, in order; after a snapshot only the last.
fn numbers(dir: &Path) -> Vec<u64> {
    let Found::Book(opening) = Opening::open(dir, DirLock::take(dir).unwrap()).unwrap() else {
        panic!("there is no book");
    };
    let mut numbers = Vec::new();
    if let Some(snapshot) = opening.snapshot() {
        let ledger = Ledger::restore(&snapshot.body).unwrap();
        let kernel = Kernel::new(ledger, Keyring::new(SecretKey::from_seed([1; 32])));
        numbers.extend(number_in(&kernel));
    }
    let visit = |event| {
        if let Event::Book(BookEvent::LimitsSet { limits, .. }) = event {
            numbers.extend(limits.lifetime_max.map(Trm::micro));
        }
    };
    opening.replay(visit).unwrap();
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_sees_what_was_submitted_before_it_and_nothing_later() {
    let dir = tempfile::tempdir().unwrap();
    let running = running(dir.path(), 1_000_000);
    let told = Arc::new(Mutex::new(Vec::new()));
    let asked = (0..300).map(|number| {
        let (handle, told) = (running.handle.clone(), Arc::clone(&told));
        async move {
            let submit = handle.submit(Actor::Node, numbered(number));
            let read = handle.read(|kernel, _| number_in(kernel));
            let (done, read) = tokio::join!(submit, read);
            assert_eq!(done, Ok(Outcome::Done));
            assert_eq!(read, Ok(Some(number)));
            told.lock().unwrap().push(number);
        }
    });
    futures_util::future::join_all(asked).await;
    let mut told = told.lock().unwrap().clone();
    told.sort_unstable();
    assert_eq!(told, (0..300).collect::<Vec<_>>());
    running.stop().await.unwrap();
    assert_eq!(numbers(dir.path()), [299]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_stops_everything_with_its_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let running = running(dir.path(), 40);
    let handle = running.handle.clone();
    let mut acknowledged = 0;
    let stopped = loop {
        match handle.submit(Actor::Node, numbered(acknowledged)).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    let SubmitError::Stopped { reason } = &stopped else { panic!("{stopped}") };
    assert!(reason.starts_with("the disk is full"), "{reason}");
    assert_eq!(handle.submit(Actor::Node, numbered(0)).await, Err(stopped.clone()));
    assert_eq!(handle.read(|_, _| ()).await, Err(stopped.clone()));
    assert!(!handle.is_running());
    let mut failure = running.failure.clone();
    let said = failure.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(said.as_ref(), Some(reason));
    assert!(matches!(running.stop().await, Err(StoreError::Full { .. })));
    assert_eq!(numbers(dir.path()), (0..acknowledged).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_ahead_of_its_sync_is_acknowledged_by_its_sync_alone() {
    let dir = tempfile::tempdir().unwrap();
    let running = running(dir.path(), 40);
    let handle = running.handle.clone();
    let void = Command::VoidJob { job: JobId::from_bytes([7; 16]), failed: false };
    let refused = handle.decide(Actor::Node, void).await.map(|(outcome, _)| outcome);
    assert!(matches!(refused, Err(SubmitError::Rejected(_))), "{refused:?}");
    let mut acknowledged = 0;
    let error = loop {
        let decided = handle.decide(Actor::Node, numbered(acknowledged)).await;
        let synced = match decided {
            Ok((outcome, unsynced)) => {
                assert_eq!(outcome, Outcome::Done);
                unsynced.synced().await
            }
            Err(error) => Err(error),
        };
        match synced {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SubmitError::Stopped { .. }), "{error}");
    assert!(matches!(running.stop().await, Err(StoreError::Full { .. })));
    assert_eq!(numbers(dir.path()), (0..acknowledged).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_is_synced_with_what_comes_next() {
    let dir = tempfile::tempdir().unwrap();
    let stats = StoreStats::default();
    let forever = Duration::from_secs(3_600);
    let running = running_with(dir.path(), 1_000_000, (stats.clone(), forever));
    let handle = running.handle.clone();
    let numbered = |number| (Actor::Node, numbered(number));
    let decided = async |number| {
        let (actor, command) = numbered(number);
        handle.decide(actor, command).await.unwrap().1
    };
    let of_nobody = decided(1).await;
    assert_eq!(stats.records.get(), 0);
    let (actor, command) = numbered(2);
    assert_eq!(handle.submit(actor, command).await, Ok(Outcome::Done));
    assert_eq!(stats.records.get(), 2);
    of_nobody.synced().await.unwrap();
    // Whoever begins to wait hurries it, and so does the end.
    decided(3).await.synced().await.unwrap();
    assert_eq!(stats.records.get(), 3);
    drop(decided(4).await);
    assert_eq!(stats.records.get(), 3);
    running.stop().await.unwrap();
    assert_eq!(numbers(dir.path()), [4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_glance_sees_what_was_decided_and_hurries_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let stats = StoreStats::default();
    let forever = Duration::from_secs(3_600);
    let running = running_with(dir.path(), 1_000_000, (stats.clone(), forever));
    let handle = running.handle.clone();
    let glance = || handle.glance(|kernel, _| number_in(kernel));
    assert_eq!(glance().await, Ok(None));
    let (_, unsynced) = handle.decide(Actor::Node, numbered(1)).await.unwrap();
    assert_eq!(glance().await, Ok(Some(1)));
    // News that change nothing wake no store either.
    let (provider, outcome) = (PartyId::from_bytes([9; 32]), Observed::Failed);
    let observed = MeshInput::Observed(Observation { provider, outcome });
    handle.mesh_input(observed).await.unwrap();
    // The kernel has heard them before the second glance, and a sync takes a moment.
    for _ in 0..2 {
        assert_eq!(glance().await, Ok(Some(1)));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(stats.records.get(), 0);
    unsynced.synced().await.unwrap();
    assert_eq!(stats.records.get(), 1);
    running.stop().await.unwrap();
    assert!(matches!(glance().await, Err(SubmitError::Stopped { .. })));
}

#[tokio::test]
async fn a_full_queue_is_said_at_once_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running = running(dir.path(), 1_000_000);
    // On this one thread the kernel's task runs only while this one waits.
    let handle = &running.handle;
    let asked: Vec<_> = (0..=INPUT_QUEUE_MAX)
        .map(|number| {
            let handle = handle.clone();
            let mut submit =
                Box::pin(async move { handle.submit(Actor::Node, numbered(number as u64)).await });
            let waker = std::task::Waker::noop();
            let polled = submit.as_mut().poll(&mut std::task::Context::from_waker(waker));
            (submit, polled)
        })
        .collect();
    assert_eq!(handle.queued(), INPUT_QUEUE_MAX);
    for (number, (submit, polled)) in asked.into_iter().enumerate() {
        match polled {
            std::task::Poll::Ready(answer) => {
                assert_eq!((number, answer), (INPUT_QUEUE_MAX, Err(SubmitError::Busy)));
            }
            std::task::Poll::Pending => assert_eq!(submit.await, Ok(Outcome::Done)),
        }
    }
    running.stop().await.unwrap();
}
