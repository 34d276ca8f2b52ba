//! The one thread that writes: it takes everything that waits, writes it in one transaction,
//! syncs once, and only then tells anybody.

use std::path::PathBuf;
use std::time::Instant;

use rusqlite::{CachedStatement, Connection};
use tirami_ledger::event::Event;
use tokio::sync::mpsc;

use super::head::{Checksum, Head, Note};
use super::journal::{Snapshot, signed};
use super::row::{Cells, Table, cells};
use super::trade::{NOBODY, trade_of};
use super::{SNAPSHOTS_KEPT, StoreError, StoreStats};

/// Records one transaction takes at most, as long as a single task is not larger.
const GROUP_RECORDS_MAX: usize = 8_192;

/// Told once whether the task is durable.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Something to write.
pub(super) struct Task {
    pub(super) what: What,
    pub(super) done: Done,
}

pub(super) enum What {
    /// These events, in order, all or none.
    Events(Vec<Event>),
    /// The state after the events given before. Its `n` is set when it is written.
    Snapshot(Snapshot),
}

pub(super) struct Writer {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    pub(super) note: Note,
    pub(super) head: Head,
    pub(super) stats: StoreStats,
    pub(super) body: Vec<u8>,
}

impl Writer {
    /// Writes until nobody can send any more, then moves the log into the database and closes
    /// it. After a failure nothing is written again and every task is told.
    pub(super) fn run(mut self, mut tasks: mpsc::Receiver<Task>) -> Result<(), StoreError> {
        let mut failure = None;
        while let Some(first) = tasks.blocking_recv() {
            let mut records = first.records();
            if records == 0 && failure.is_none() {
                // All that it waits for was written before it.
                (first.done)(Ok(()));
                continue;
            }
            let mut group = vec![first];
            while records < GROUP_RECORDS_MAX
                && let Ok(task) = tasks.try_recv()
            {
                records += task.records();
                group.push(task);
            }
            let result = match &failure {
                None => self.write(&mut group, records),
                Some(failure) => Err(StoreError::clone(failure)),
            };
            if let Err(error) = &result {
                failure.get_or_insert_with(|| error.clone());
            }
            for task in group {
                (task.done)(result.clone());
            }
        }
        match failure {
            None => self.close(),
            Some(failure) => Err(failure),
        }
    }

    fn write(&mut self, group: &mut [Task], records: usize) -> Result<(), StoreError> {
        if records == 0 {
            return Ok(());
        }
        let started = Instant::now();
        let Self { db, path, head, body, .. } = self;
        let failed = |error| StoreError::sqlite(path, error);
        let transaction = db.transaction().map_err(failed)?;
        let new_head = Statements::prepare(&transaction)
            .and_then(|mut into| into.write(*head, group, body))
            .map_err(failed)?;
        let written = Instant::now();
        transaction.commit().map_err(failed)?;
        *head = new_head;
        self.note.write(new_head)?;
        self.stats.write_seconds.observe((written - started).as_secs_f64());
        self.stats.sync_seconds.observe(written.elapsed().as_secs_f64());
        self.stats.group_records.observe(records as f64);
        self.stats.records.inc_by(records as u64);
        Ok(())
    }

    fn close(self) -> Result<(), StoreError> {
        self.db.close().map_err(|(_, error)| StoreError::sqlite(&self.path, error))
    }
}

impl Task {
    fn records(&self) -> usize {
        match &self.what {
            What::Events(events) => events.len(),
            What::Snapshot(_) => 1,
        }
    }
}

struct Statements<'c> {
    entry: CachedStatement<'c>,
    document: CachedStatement<'c>,
    book_event: CachedStatement<'c>,
    trade: CachedStatement<'c>,
    snapshot: CachedStatement<'c>,
    old_snapshots: CachedStatement<'c>,
    head: CachedStatement<'c>,
}

impl<'c> Statements<'c> {
    fn prepare(db: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            entry: db.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?,
            document: db
                .prepare_cached("INSERT INTO documents VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?,
            book_event: db.prepare_cached("INSERT INTO book_events VALUES (?1, ?2, ?3, ?4, ?5)")?,
            trade: db.prepare_cached("INSERT INTO trades VALUES (?1, ?2, ?3, ?4, ?5)")?,
            snapshot: db.prepare_cached(
                "INSERT OR REPLACE INTO snapshots VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?,
            old_snapshots: db.prepare_cached(
                "DELETE FROM snapshots WHERE n NOT IN
                 (SELECT n FROM snapshots ORDER BY n DESC LIMIT ?1)",
            )?,
            // By its key: what may change several rows copies each page first, to undo them.
            head: db.prepare_cached("UPDATE head SET n = ?1, checksum = ?2 WHERE one = 1")?,
        })
    }

    /// Writes the whole group after `head`; gives the new head.
    fn write(
        &mut self,
        mut head: Head,
        group: &mut [Task],
        body: &mut Vec<u8>,
    ) -> rusqlite::Result<Head> {
        for task in group {
            match &mut task.what {
                What::Events(events) => {
                    for event in events.iter() {
                        let n = head.n + 1;
                        let cells = cells(n, event, body)?;
                        head = Head { n, checksum: cells.checksum(&head.checksum) };
                        self.insert(&cells, &head.checksum)?;
                        self.index(n, event)?;
                    }
                }
                What::Snapshot(snapshot) => {
                    snapshot.n = head.n;
                    self.keep(snapshot, &head.checksum)?;
                }
            }
        }
        self.head.execute((signed(head.n), head.checksum))?;
        Ok(head)
    }

    fn insert(&mut self, row: &Cells<'_>, checksum: &Checksum) -> rusqlite::Result<()> {
        let n = signed(row.n);
        let (kind, body) = (row.kind, row.body);
        match row.table {
            Table::Entries => self.entry.execute((n, kind, row.key, row.number, body, checksum))?,
            Table::Documents => {
                let signature = row.signature;
                self.document.execute((n, kind, row.key, row.job, body, signature, checksum))?
            }
            Table::BookEvents => self.book_event.execute((n, kind, row.number, body, checksum))?,
        };
        Ok(())
    }

    fn index(&mut self, n: u64, event: &Event) -> rusqlite::Result<()> {
        let Event::Book(event) = event else {
            return Ok(());
        };
        if let Some(trade) = trade_of(event, NOBODY, signed(n)) {
            self.trade.execute((
                trade.cursor,
                trade.trade.as_bytes(),
                trade.payer.as_bytes(),
                signed(trade.amount.micro()),
                signed(trade.at.ms()),
            ))?;
        }
        Ok(())
    }

    /// Replaces a snapshot of the same record: a node that starts and stops without anything
    /// happening takes one each time.
    fn keep(&mut self, snapshot: &Snapshot, journal: &Checksum) -> rusqlite::Result<()> {
        self.snapshot.execute((
            signed(snapshot.n),
            signed(snapshot.at.ms()),
            snapshot.state_hash.as_bytes(),
            journal,
            &snapshot.body,
            snapshot.digest(journal),
        ))?;
        self.old_snapshots.execute([SNAPSHOTS_KEPT])?;
        Ok(())
    }
}
