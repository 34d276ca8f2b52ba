//! Reading the journal: rows in order, their checksums, the events they hold, and snapshots.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, Row};
use tirami_core::{Digest, Timestamp};
use tirami_ledger::event::Event;

use super::StoreError;
use super::head::{Checksum, Head};
use super::row::{Cells, Table};
use super::schema::JOURNAL_AFTER;

/// Calls `visit` with every row after `after`, in order, and the checksum stored with it.
pub(super) fn each_row(
    db: &Connection,
    path: &Path,
    after: u64,
    mut visit: impl FnMut(Cells<'_>, &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let reading = |error| StoreError::reading(path, error);
    let mut statement = db.prepare_cached(JOURNAL_AFTER).map_err(reading)?;
    let mut rows = statement.query([signed(after)]).map_err(reading)?;
    while let Some(row) = rows.next().map_err(reading)? {
        let (cells, checksum) = cells_of(row).map_err(reading)?;
        visit(cells, checksum)?;
    }
    Ok(())
}

fn cells_of<'r>(row: &'r Row<'_>) -> rusqlite::Result<(Cells<'r>, &'r [u8])> {
    let blob = |index| -> rusqlite::Result<Option<&'r [u8]>> {
        row.get_ref(index)?.as_blob_or_null().map_err(rusqlite::Error::from)
    };
    let required = |index| blob(index)?.ok_or(rusqlite::Error::InvalidQuery);
    let cells = Cells {
        table: Table::from_number(row.get(1)?).ok_or(rusqlite::Error::InvalidQuery)?,
        n: unsigned(row.get(0)?),
        kind: row.get_ref(2)?.as_str()?,
        key: blob(3)?,
        job: blob(4)?,
        number: row.get(5)?,
        body: required(6)?,
        signature: blob(7)?,
    };
    Ok((cells, required(8)?))
}

/// Checks that the rows after `from` continue it without a gap and end at `head`; tells `visit`
/// each row and the checksum that includes it.
pub(super) fn check_chain(
    db: &Connection,
    path: &Path,
    from: Head,
    head: Head,
    mut visit: impl FnMut(&Cells<'_>, &Checksum) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut at = from;
    each_row(db, path, from.n, |cells, stored| {
        let n = at.n + 1;
        if cells.n != n {
            return Err(StoreError::damaged(path, format!("record {n} is missing")));
        }
        at = Head { n, checksum: cells.checksum(&at.checksum) };
        if stored != at.checksum {
            let what = format!("record {n} does not fit its checksum");
            return Err(StoreError::damaged(path, what));
        }
        visit(&cells, &at.checksum)
    })?;
    if at == head {
        Ok(())
    } else {
        let what = format!("its records end at {}, its head is at {}", at.n, head.n);
        Err(StoreError::damaged(path, what))
    }
}

/// Reads the event of a row whose checksum was verified.
pub(super) fn event_of(path: &Path, cells: &Cells<'_>) -> Result<Event, StoreError> {
    cells.event().ok_or_else(|| {
        let what = format!("record {} ({}) is no event this build knows", cells.n, cells.kind);
        StoreError::damaged(path, what)
    })
}

/// The last record, as the database says.
pub(super) fn read_head(db: &Connection, path: &Path) -> Result<Head, StoreError> {
    db.query_row("SELECT n, checksum FROM head", [], |row| {
        Ok(Head { n: unsigned(row.get(0)?), checksum: row.get(1)? })
    })
    .optional()
    .map_err(|error| StoreError::reading(path, error))?
    .ok_or_else(|| StoreError::damaged(path, "its head is missing"))
}

/// The checksum stored with record `n`, if there is such a record.
pub(super) fn checksum_at(
    db: &Connection,
    path: &Path,
    n: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    db.query_row(
        "SELECT checksum FROM entries WHERE n = ?1 UNION ALL
         SELECT checksum FROM documents WHERE n = ?1 UNION ALL
         SELECT checksum FROM book_events WHERE n = ?1",
        [signed(n)],
        |row| row.get(0),
    )
    .optional()
    .map_err(|error| StoreError::reading(path, error))
}

/// The state after some record, as the kernel wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last record it includes.
    pub n: u64,
    /// When it was taken.
    pub at: Timestamp,
    /// The state's hash.
    pub state_hash: Digest,
    /// The kernel's bytes.
    pub body: Vec<u8>,
}

impl Snapshot {
    /// What a stored snapshot must hash to: every column, and the journal it stands on.
    pub(super) fn digest(&self, journal: &Checksum) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("tirami snapshot 1");
        hasher.update(&self.n.to_le_bytes());
        hasher.update(&self.at.ms().to_le_bytes());
        hasher.update(self.state_hash.as_bytes());
        hasher.update(journal);
        hasher.update(&self.body);
        *hasher.finalize().as_bytes()
    }
}

/// The stored snapshots, newest first, each with the journal's checksum it stands on.
pub(super) fn read_snapshots(
    db: &Connection,
    path: &Path,
    limit: u32,
) -> Result<Vec<(Snapshot, Checksum)>, StoreError> {
    let reading = |error| StoreError::reading(path, error);
    let mut statement = db
        .prepare(
            "SELECT n, at_ms, state_hash, body, journal_checksum, digest FROM snapshots
             ORDER BY n DESC LIMIT ?1",
        )
        .map_err(reading)?;
    let mut rows = statement.query([limit]).map_err(reading)?;
    let mut snapshots = Vec::new();
    while let Some(row) = rows.next().map_err(reading)? {
        let read = || -> rusqlite::Result<_> {
            let snapshot = Snapshot {
                n: unsigned(row.get(0)?),
                at: Timestamp::from_ms(unsigned(row.get(1)?)),
                state_hash: Digest::from_bytes(row.get(2)?),
                body: row.get(3)?,
            };
            Ok((snapshot, row.get::<_, Checksum>(4)?, row.get::<_, [u8; 32]>(5)?))
        };
        let (snapshot, journal, digest) = read().map_err(reading)?;
        if snapshot.digest(&journal) != digest {
            let what = format!(
                "the snapshot at record {} does not fit its checksum (the journal holds \
                 everything a snapshot does: `sqlite3 tirami.db 'DELETE FROM snapshots'` makes \
                 the next start read it from the beginning)",
                snapshot.n
            );
            return Err(StoreError::damaged(path, what));
        }
        snapshots.push((snapshot, journal));
    }
    Ok(snapshots)
}

/// SQLite's integers are signed; counts and times of this program stay far below the bound.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A negative number can only be damage; it becomes one that nothing fits.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
