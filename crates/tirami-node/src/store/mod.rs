//! The account book on disk: one SQLite file that only ever grows, and is true or refused.
//!
//! The journal is three append-only tables under one count: entries of the lattice, documents,
//! and events of the book. Every record carries a checksum of all before it. Everything else in
//! the file (the index of trades, snapshots) follows from the journal.
//!
//! ```text
//! DirLock::take ─► Opening::open ─► snapshot, replay ─► Opening::start ─► Store + StoreReader
//!                  verifies, reads only                  first write
//! ```
//!
//! Until [`Opening::start`] the book is only read, so a file that is refused is left exactly as
//! it was found. (A file of an older version is first brought up to date, whole or not at all.)

pub mod doctor;
mod error;
mod finals;
mod genesis;
mod head;
mod journal;
mod lock;
mod names;
mod reader;
mod row;
mod schema;
mod trade;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use rusqlite::Connection;
use tirami_core::{Digest, Timestamp};
use tirami_ledger::event::Event;
use tokio::sync::mpsc;

pub use error::StoreError;
pub use genesis::Genesis;
pub use journal::Snapshot;
pub use lock::DirLock;
pub use reader::{Page, StoreReader, TRADES_PAGE_MAX, TradeDetail, TradeFilter, TradeRow};
pub use writer::Done;

use crate::keys::{make_private, private_file};
use head::{Checksum, Head, Note};
use schema::Standing;
use writer::{Task, What, Writer};

/// The database's file in the data directory.
pub const STORE_FILE: &str = "tirami.db";
/// Journals of up to so many records are verified whole at every start; longer ones from the
/// newest snapshot on. `tirami doctor` always verifies everything.
pub const VERIFY_RECORDS_MAX: u64 = 200_000;
/// Snapshots kept; the older ones are deleted.
const SNAPSHOTS_KEPT: u32 = 2;
/// Tasks that may wait for the writer before [`Store::append`] itself waits.
const WRITE_QUEUE_MAX: usize = 64;

/// What the writer measures.
#[derive(Debug, Clone)]
pub struct StoreStats {
    /// Seconds from the beginning of a group to the beginning of its commit.
    pub write_seconds: Histogram,
    /// Seconds of a commit: the sync of the log, and now and then moving it into the database.
    pub sync_seconds: Histogram,
    /// Records that one sync made durable.
    pub group_records: Histogram,
    /// Records written since the start.
    pub records: Counter,
}

impl Default for StoreStats {
    fn default() -> Self {
        Self {
            write_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            sync_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            group_records: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            records: Counter::default(),
        }
    }
}

/// What a data directory holds.
#[derive(Debug)]
pub enum Found {
    /// A whole book.
    Book(Box<Opening>),
    /// No book yet; one may be created.
    Nothing(DirLock),
}

/// A verified book that nothing was written to yet.
#[derive(Debug)]
pub struct Opening {
    data_dir: PathBuf,
    path: PathBuf,
    db: Connection,
    genesis: Genesis,
    head: Head,
    /// Whether the note of the head is there.
    is_noted: bool,
    snapshot: Option<Snapshot>,
    lock: DirLock,
}

impl Opening {
    /// Opens and verifies the book of a data directory.
    ///
    /// # Errors
    ///
    /// [`StoreError`] says what is wrong with it. Nothing was changed.
    pub fn open(data_dir: &Path, lock: DirLock) -> Result<Found, StoreError> {
        let path = data_dir.join(STORE_FILE);
        if !exists(data_dir, &path)? {
            return Ok(Found::Nothing(lock));
        }
        // SQLite would fall back to reading only, and to reporting that at the first payment.
        let writable = File::options().read(true).write(true).open(&path);
        writable.map_err(|error| StoreError::io(&path, "opened", error))?;
        if schema::check(&path)? == Standing::Older {
            schema::upgrade(&path)?;
        }
        // The note first: what is acknowledged meanwhile only makes the database longer.
        let note = head::read_note(data_dir)?;
        let db = schema::open_reading(&path).map_err(|error| StoreError::sqlite(&path, error))?;
        let (genesis, root) = Genesis::read(&db, &path)?;
        let head = journal::read_head(&db, &path)?;
        check_note(&db, &path, data_dir, note, head, root)?;
        let snapshots = journal::read_snapshots(&db, &path, 1)?;
        check_journal(&db, &path, root, head, snapshots.first())?;
        let snapshot = snapshots.into_iter().next().map(|(snapshot, _)| snapshot);
        let (data_dir, is_noted) = (data_dir.to_path_buf(), note.is_some());
        let opening = Self { data_dir, path, db, genesis, head, is_noted, snapshot, lock };
        Ok(Found::Book(Box::new(opening)))
    }

    /// Makes the book of a data directory that has none. It appears whole or not at all.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the disk refuses.
    pub fn create(data_dir: &Path, genesis: &Genesis, lock: DirLock) -> Result<Self, StoreError> {
        let path = data_dir.join(STORE_FILE);
        let new = data_dir.join(format!("{STORE_FILE}.new"));
        for leftover in ["", "-wal", "-shm", "-journal"] {
            let leftover = data_dir.join(format!("{STORE_FILE}.new{leftover}"));
            match fs::remove_file(&leftover) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io(&leftover, "removed", error));
                }
                _ => {}
            }
        }
        let failed = |error| StoreError::sqlite(&new, error);
        // SQLite gives its other files the rights of the database.
        let file = private_file().create_new(true).open(&new);
        file.map_err(|error| StoreError::io(&new, "created", error))?;
        let mut db = schema::create_at(&new).map_err(failed)?;
        let transaction = db.transaction().map_err(failed)?;
        genesis.write(&transaction).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        db.close().map_err(|(_, error)| failed(error))?;
        fs::rename(&new, &path).map_err(|error| StoreError::io(&path, "created", error))?;
        sync_dir(data_dir).map_err(|error| StoreError::io(data_dir, "synced", error))?;
        match Self::open(data_dir, lock)? {
            Found::Book(opening) => Ok(*opening),
            Found::Nothing(_) => Err(StoreError::Missing { path, records: 0 }),
        }
    }

    /// What the book is about.
    pub const fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Records in the journal.
    pub const fn records(&self) -> u64 {
        self.head.n
    }

    /// The newest snapshot; none in a young book.
    pub const fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// Gives every event after the newest snapshot, in order.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] when a record cannot be read.
    pub fn replay(&self, mut visit: impl FnMut(Event)) -> Result<(), StoreError> {
        let after = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.n);
        journal::each_row(&self.db, &self.path, after, |cells, _| {
            visit(journal::event_of(&self.path, &cells)?);
            Ok(())
        })
    }

    /// The refusal of a book whose records contradict each other in a way only their reader sees.
    pub fn contradiction(&self, what: impl Into<String>) -> StoreError {
        StoreError::damaged(&self.path, what)
    }

    /// Begins writing.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the file cannot be opened for writing.
    pub fn start(self, stats: StoreStats) -> Result<(Store, StoreReader), StoreError> {
        self.start_with(stats, |_| Ok(()))
    }

    pub(crate) fn start_with(
        self,
        stats: StoreStats,
        configure: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(Store, StoreReader), StoreError> {
        let Self { data_dir, path, db, genesis, head, is_noted, lock, .. } = self;
        drop(db);
        if !is_noted && head.n > 0 {
            tracing::warn!(
                path = %head::note_path(&data_dir).display(),
                records = head.n,
                "the note of what was acknowledged last is gone, so an older copy of the book \
                 would not be noticed; it is written anew"
            );
        }
        for file in ["", "-wal", "-shm"] {
            let file = data_dir.join(format!("{STORE_FILE}{file}"));
            match make_private(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io(&file, "made private", error));
                }
                _ => {}
            }
        }
        let failed = |error| StoreError::sqlite(&path, error);
        let db = schema::open_writing(&path).map_err(failed)?;
        configure(&db).map_err(failed)?;
        let note = Note::open(&data_dir, head)?;
        let reader = StoreReader::new(path.clone(), genesis.party);
        let (sender, tasks) = mpsc::channel(WRITE_QUEUE_MAX);
        let writer = Writer { db, path: path.clone(), note, head, stats, body: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("tirami-store".to_owned())
            .spawn(move || writer.run(tasks))
            .map_err(|error| StoreError::io(&path, "written in a thread of its own", error))?;
        Ok((Store { sender, thread, _lock: lock }, reader))
    }
}

/// The writing end of the store.
#[derive(Debug)]
pub struct Store {
    sender: mpsc::Sender<Task>,
    thread: JoinHandle<Result<(), StoreError>>,
    _lock: DirLock,
}

impl Store {
    /// Queues events to be written together, all or none, after everything queued before. Waits
    /// while the queue is full.
    ///
    /// `done` is called on the writer's thread, in the order of the calls, once they are synced
    /// or have failed. After one failure everything fails.
    ///
    /// # Errors
    ///
    /// [`StoreError::Closed`] when the writer has ended; `done` is dropped.
    pub async fn append(&self, events: Vec<Event>, done: Done) -> Result<(), StoreError> {
        self.send(Task { what: What::Events(events), done }).await
    }

    /// Queues a snapshot of the state after the events queued before.
    ///
    /// # Errors
    ///
    /// As [`Store::append`].
    pub async fn snapshot(
        &self,
        at: Timestamp,
        state_hash: Digest,
        body: Vec<u8>,
        done: Done,
    ) -> Result<(), StoreError> {
        let snapshot = Snapshot { n: 0, at, state_hash, body };
        self.send(Task { what: What::Snapshot(snapshot), done }).await
    }

    async fn send(&self, task: Task) -> Result<(), StoreError> {
        self.sender.send(task).await.map_err(|_| StoreError::Closed)
    }

    /// Writes what is queued, moves the log into the database and gives the directory back.
    /// Blocks until that is done.
    ///
    /// # Errors
    ///
    /// The failure that stopped the writer, if one did.
    pub fn close(self) -> Result<(), StoreError> {
        drop(self.sender);
        self.thread.join().unwrap_or(Err(StoreError::Closed))
    }
}

/// Whether there is a book. One that is gone or empty is no reason to begin a new one.
fn exists(data_dir: &Path, path: &Path) -> Result<bool, StoreError> {
    match fs::metadata(path) {
        Ok(file) if file.len() == 0 => Err(StoreError::damaged(path, "it is empty")),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let log = data_dir.join(format!("{STORE_FILE}-wal"));
            let records = head::read_note(data_dir)?.map_or(0, |head| head.n);
            if records > 0 || log.exists() {
                return Err(StoreError::Missing { path: path.to_path_buf(), records });
            }
            Ok(false)
        }
        Err(error) => Err(StoreError::io(path, "opened", error)),
    }
}

/// Refuses a database that ends before what was acknowledged, or took another turn before it.
fn check_note(
    db: &Connection,
    path: &Path,
    data_dir: &Path,
    note: Option<Head>,
    head: Head,
    root: Checksum,
) -> Result<(), StoreError> {
    let Some(note) = note else { return Ok(()) };
    if note.n > head.n {
        return Err(StoreError::RolledBack {
            path: path.to_path_buf(),
            found: head.n,
            acknowledged: note.n,
            head: head::note_path(data_dir),
        });
    }
    let stored = match note.n {
        0 => Some(root.to_vec()),
        n => journal::checksum_at(db, path, n)?,
    };
    if stored.as_deref() == Some(note.checksum.as_slice()) {
        Ok(())
    } else {
        let what = format!("its record {} is not the one that was acknowledged", note.n);
        Err(StoreError::damaged(path, what))
    }
}

/// Verifies pages, records and the index of trades, or of a long journal its tail.
fn check_journal(
    db: &Connection,
    path: &Path,
    root: Checksum,
    head: Head,
    snapshot: Option<&(Snapshot, Checksum)>,
) -> Result<(), StoreError> {
    if let Some((snapshot, _)) = snapshot
        && snapshot.n > head.n
    {
        let what = format!("its snapshot is of record {}, its head is {}", snapshot.n, head.n);
        return Err(StoreError::damaged(path, what));
    }
    if head.n <= VERIFY_RECORDS_MAX {
        check_pages(db, path)?;
        return check_whole(db, path, root, head, snapshot);
    }
    let from = match snapshot {
        Some((snapshot, checksum)) => Head { n: snapshot.n, checksum: *checksum },
        None => Head { n: 0, checksum: root },
    };
    journal::check_chain(db, path, from, head, |_, _| Ok(()))
}

fn check_pages(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let verdict: String = db
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| StoreError::reading(path, error))?;
    if verdict == "ok" { Ok(()) } else { Err(StoreError::damaged(path, verdict)) }
}

fn check_whole(
    db: &Connection,
    path: &Path,
    root: Checksum,
    head: Head,
    snapshot: Option<&(Snapshot, Checksum)>,
) -> Result<(), StoreError> {
    let mut trades = 0_i64;
    journal::check_chain(db, path, Head { n: 0, checksum: root }, head, |cells, checksum| {
        trades += i64::from([names::TRADE, names::SERVED].contains(&cells.kind));
        match snapshot {
            Some((snapshot, stood_on)) if snapshot.n == cells.n && stood_on != checksum => {
                let what = format!("its snapshot at record {} is of another journal", cells.n);
                Err(StoreError::damaged(path, what))
            }
            _ => Ok(()),
        }
    })?;
    let indexed: i64 = db
        .query_row("SELECT count(*) FROM trades", [], |row| row.get(0))
        .map_err(|error| StoreError::reading(path, error))?;
    if indexed == trades {
        Ok(())
    } else {
        let what = format!("its index has {indexed} trades, its journal {trades}");
        Err(StoreError::damaged(path, what))
    }
}

/// Makes a directory's own entries durable: files created in it, and renames.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
