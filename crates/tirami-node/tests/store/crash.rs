//! A process that writes is stopped at random moments and its files are copied as they are: what
//! it had been told is durable must be there, and nothing in part.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Dice, Life, create, futures_executor, ledger_of, open, snapshot, start};
use tirami_node::store::doctor::doctor;

const WRITER_DIR: &str = "STORE_TEST_WRITER_DIR";
const COPIES: usize = 25;
const JOBS_MAX: u64 = 200_000;

/// The process that is stopped: jobs without end, and the number acknowledged in a file.
#[test]
fn writes_until_it_is_killed() {
    let Ok(dir) = std::env::var(WRITER_DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let mut life = Life::new(1);
    let (store, _) = start(create(&dir.join("node"), &life.genesis));
    let told = Arc::new(Mutex::new(fs::File::create(dir.join("told")).unwrap()));
    futures_executor(async {
        store.append(life.begin(), Box::new(|result| result.unwrap())).await.unwrap();
        for job in 1..=JOBS_MAX {
            let told = Arc::clone(&told);
            let done = Box::new(move |result: Result<(), _>| {
                result.unwrap();
                let mut told = told.lock().unwrap();
                told.seek(SeekFrom::Start(0)).unwrap();
                told.write_all(&job.to_le_bytes()).unwrap();
            });
            store.append(life.job(), done).await.unwrap();
            if job % 500 == 0 {
                let (hash, body) = (life.ledger.state_hash(), life.ledger.snapshot());
                let at = tirami_core::Timestamp::from_ms(1);
                store.snapshot(at, hash, body, Box::new(|r| r.unwrap())).await.unwrap();
            }
        }
    });
    store.close().unwrap();
}

struct Writer(Child);

impl Writer {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(name).arg(self.0.id().to_string()).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_copy_at_any_moment_has_every_acknowledged_job_whole() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    fs::create_dir(&node).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::writes_until_it_is_killed", "--nocapture"])
        .env(WRITER_DIR, dir.path())
        .spawn()
        .unwrap();
    let writer = Writer(child);
    while fs::metadata(dir.path().join("told")).map_or(0, |told| told.len()) < 8 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut dice = Dice(11);
    let mut told_before = 0;
    let mut pending = Vec::new();
    for number in 0..COPIES {
        std::thread::sleep(Duration::from_millis(5 + dice.below(60)));
        writer.signal("-STOP");
        let copy = dir.path().join(format!("copy-{number}"));
        fs::create_dir(&copy).unwrap();
        for file in ["tirami.db", "tirami.db-wal", "tirami.head"] {
            fs::copy(node.join(file), copy.join(file)).unwrap();
        }
        let mut bytes = [0; 8];
        fs::File::open(dir.path().join("told")).unwrap().read_exact(&mut bytes).unwrap();
        writer.signal("-CONT");
        let told = u64::from_le_bytes(bytes);
        assert!(told >= told_before);
        told_before = told;
        pending.push((copy, told));
    }
    drop(writer);
    assert!(told_before > 0);
    for (copy, told) in pending {
        check_copy(&copy, told);
    }
}

/// The copy holds the first `m` jobs of the life, `m` not below `told`, and nothing else.
fn check_copy(copy: &Path, told: u64) {
    let opening = open(copy).unwrap();
    let ledger = ledger_of(&opening);
    let whole = ledger.book().jobs_charged();
    assert!(whole >= told, "{told} jobs were acknowledged, {whole} are there");
    let mut life = Life::new(1);
    life.begin();
    (0..whole).for_each(|_| drop(life.job()));
    assert_eq!(ledger.state_hash(), life.ledger.state_hash(), "after {whole} jobs");
    // It can be gone on with.
    let (store, _) = start(opening);
    crate::support::append(&store, life.job()).unwrap();
    snapshot(&store, &life.ledger).unwrap();
    store.close().unwrap();
    crate::support::keep_keys(copy, &life.genesis);
    let report = doctor(copy);
    assert!(report.is_healthy(), "{report:?}");
    fs::remove_dir_all(copy).unwrap();
}
