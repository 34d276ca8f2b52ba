//! The database: its tables, how it is opened, and how an older one becomes a current one.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction};

use super::StoreError;

/// `PRAGMA application_id`: "TRM1".
const APPLICATION_ID: i32 = 0x5452_4d31;

/// One step from schema version `i` to `i + 1`. A released step never changes.
type Migration = fn(&Transaction<'_>) -> rusqlite::Result<()>;

const MIGRATIONS: &[Migration] =
    &[create, index_finals, drop_snapshots, drop_snapshots, index_settled];

/// Pages of write-ahead log after which they are moved into the database: about 16 MB.
const CHECKPOINT_PAGES: u32 = 4_096;
/// Memory the writer's page cache may take, in KiB: most of what it writes goes to the end of a
/// table, and what else it needs the system has at hand.
const WRITER_CACHE_KIB: i32 = 4_096;
/// Memory the page cache of each connection that reads may take, in KiB.
const READER_CACHE_KIB: i32 = 512;

/// The journal in order, as `(n, table, kind, key, job, number, body, signature, checksum)`.
pub(super) const JOURNAL_AFTER: &str = "
    SELECT n, 1, kind, chain, NULL, seq, body, NULL, checksum FROM entries WHERE n > ?1
    UNION ALL
    SELECT n, 2, kind, id, job, NULL, body, signature, checksum FROM documents WHERE n > ?1
    UNION ALL
    SELECT n, 3, kind, NULL, NULL, at_ms, body, NULL, checksum FROM book_events WHERE n > ?1
    ORDER BY n";

/// Version 1. The three journal tables share one count `n`, from 1 without gaps, and each row
/// carries the running checksum of everything up to it. `trades` follows from the journal.
fn create(db: &Transaction<'_>) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE TABLE meta (key TEXT PRIMARY KEY NOT NULL, value ANY NOT NULL) STRICT;
         CREATE TABLE head (
             one INTEGER PRIMARY KEY CHECK (one = 1),
             n INTEGER NOT NULL, checksum BLOB NOT NULL) STRICT;
         CREATE TABLE entries (
             n INTEGER PRIMARY KEY, kind TEXT NOT NULL, chain BLOB, seq INTEGER,
             body BLOB NOT NULL, checksum BLOB NOT NULL) STRICT;
         CREATE TABLE documents (
             n INTEGER PRIMARY KEY, kind TEXT NOT NULL, id BLOB NOT NULL, job BLOB NOT NULL,
             body BLOB NOT NULL, signature BLOB NOT NULL, checksum BLOB NOT NULL) STRICT;
         CREATE TABLE book_events (
             n INTEGER PRIMARY KEY, kind TEXT NOT NULL, at_ms INTEGER,
             body BLOB NOT NULL, checksum BLOB NOT NULL) STRICT;
         CREATE TABLE trades (
             n INTEGER PRIMARY KEY, trade BLOB NOT NULL, agent BLOB NOT NULL,
             amount_micro INTEGER NOT NULL, at_ms INTEGER NOT NULL) STRICT;
         CREATE TABLE snapshots (
             n INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, state_hash BLOB NOT NULL,
             journal_checksum BLOB NOT NULL, body BLOB NOT NULL, digest BLOB NOT NULL) STRICT;
         CREATE INDEX documents_by_job ON documents (job);
         CREATE INDEX trades_by_trade ON trades (trade);
         CREATE INDEX trades_by_agent ON trades (agent);",
    )
}

/// Version 2. Finds the final entries of a chain in order; SQLite fills it from what is there.
fn index_finals(db: &Transaction<'_>) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE INDEX entries_final ON entries (chain, seq) WHERE kind = 'entry_final';",
    )
}

/// Versions 3 and 4. Snapshots of before hold every final entry, or remember jobs for longer;
/// without them a start reads the journal.
fn drop_snapshots(db: &Transaction<'_>) -> rusqlite::Result<()> {
    db.execute_batch("DELETE FROM snapshots;")
}

/// Version 5. Finds what was paid for a served job: a record of it has the job's id in its bytes 6
/// to 21.
fn index_settled(db: &Transaction<'_>) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE INDEX settled_by_job ON book_events (substr(body, 6, 16))
         WHERE kind = 'served_settled';",
    )
}

/// Brings a database up to the newest version, all steps or none.
fn migrate(db: &mut Connection, steps: &[Migration]) -> rusqlite::Result<()> {
    let at = version(db)?;
    let transaction = db.transaction()?;
    for step in steps.iter().skip(at as usize) {
        step(&transaction)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", steps.len() as i64)?;
    transaction.commit()
}

fn version(db: &Connection) -> rusqlite::Result<u32> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// A new database at the newest version.
pub(super) fn create_at(path: &Path) -> rusqlite::Result<Connection> {
    let mut db = Connection::open(path)?;
    writing(&db)?;
    migrate(&mut db, MIGRATIONS)?;
    Ok(db)
}

/// Opens for reading only. Neither opening nor closing changes the database or its log.
pub(super) fn open_reading(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    Ok(db)
}

/// Opens for writing, one sync for each transaction.
pub(super) fn open_writing(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    writing(&db)?;
    Ok(db)
}

fn writing(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    db.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    db.set_prepared_statement_cache_capacity(16);
    Ok(())
}

/// How a database stands to the newest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Current,
    Older,
}

/// Brings an older database up to date.
pub(super) fn upgrade(path: &Path) -> Result<(), StoreError> {
    let upgraded = open_writing(path).and_then(|mut db| migrate(&mut db, MIGRATIONS));
    upgraded.map_err(|error| StoreError::sqlite(path, error))
}

/// Refuses a database of something else, of a newer build, or whose tables are not ours.
pub(super) fn check(path: &Path) -> Result<Standing, StoreError> {
    let reading = |error| StoreError::reading(path, error);
    let db = open_reading(path).map_err(|error| StoreError::sqlite(path, error))?;
    let id: i32 =
        db.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(reading)?;
    if id != APPLICATION_ID {
        let what = "it is a database of something else".to_owned();
        return Err(StoreError::NotABook { path: path.to_path_buf(), what });
    }
    let (found, known) = (version(&db).map_err(reading)?, MIGRATIONS.len() as u32);
    if found > known {
        return Err(StoreError::Newer { path: path.to_path_buf(), found, known });
    }
    if found == 0 {
        return Err(StoreError::damaged(path, "its schema version is missing"));
    }
    if found < known {
        return Ok(Standing::Older);
    }
    let mut wanted = Connection::open_in_memory().map_err(reading)?;
    migrate(&mut wanted, MIGRATIONS).map_err(reading)?;
    if shape(&db).map_err(reading)? == shape(&wanted).map_err(reading)? {
        Ok(Standing::Current)
    } else {
        Err(StoreError::damaged(path, "its tables are not those of its schema version"))
    }
}

/// Everything the meaning of the tables depends on.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    encoding: String,
    auto_vacuum: i64,
    page_size: i64,
    /// Type, name, table and definition of each object.
    objects: Vec<[Option<String>; 4]>,
}

fn shape(db: &Connection) -> rusqlite::Result<Shape> {
    let mut statement =
        db.prepare("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid")?;
    let objects = statement
        .query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Shape {
        encoding: db.pragma_query_value(None, "encoding", |row| row.get(0))?,
        auto_vacuum: db.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?,
        page_size: db.pragma_query_value(None, "page_size", |row| row.get(0))?,
        objects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_colour(db: &Transaction<'_>) -> rusqlite::Result<()> {
        db.execute_batch("ALTER TABLE meta ADD COLUMN colour TEXT")
    }

    fn fail(db: &Transaction<'_>) -> rusqlite::Result<()> {
        db.execute_batch("DROP TABLE meta; SELECT * FROM nothing")
    }

    #[test]
    fn an_older_database_takes_the_steps_it_lacks() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &[create]).unwrap();
        db.execute("INSERT INTO meta VALUES ('a', 1)", []).unwrap();
        migrate(&mut db, &[create, add_colour]).unwrap();
        assert_eq!(version(&db).unwrap(), 2);
        let kept: i64 = db.query_row("SELECT value FROM meta", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 1);
    }

    #[test]
    fn a_step_that_fails_leaves_the_database_as_it_was() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &[create]).unwrap();
        let before = shape(&db).unwrap();
        assert!(migrate(&mut db, &[create, add_colour, fail]).is_err());
        assert_eq!(version(&db).unwrap(), 1);
        assert_eq!(shape(&db).unwrap(), before);
    }
}
