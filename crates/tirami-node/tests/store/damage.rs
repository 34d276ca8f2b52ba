//! Damaged, foreign, missing and forbidden files: one sentence each, and nothing is overwritten.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{
    Dice, Life, append, create, futures_executor, ledger_of, open, snapshot, start,
};
use tirami_core::Digest;
use tirami_ledger::Ledger;
use tirami_node::store::doctor::doctor;
use tirami_node::store::{DirLock, Found, Opening, StoreError, TradeFilter};

const DB: &str = "tirami.db";
const FLIPS: u64 = 300;

/// A book with a few jobs and a snapshot in the middle, closed; and the state it holds.
fn book(dir: &Path) -> Ledger {
    let mut life = Life::new(1);
    let (store, _) = start(create(dir, &life.genesis));
    append(&store, life.begin()).unwrap();
    for number in 0..100 {
        append(&store, life.job()).unwrap();
        if number == 60 {
            snapshot(&store, &life.ledger).unwrap();
        }
    }
    store.close().unwrap();
    life.ledger
}

/// Copies a directory's files through another process: closing a file of SQLite's in this one
/// would drop its locks.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let copied = Command::new("cp").arg("-r").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success());
}

fn digest(path: &Path) -> Digest {
    Digest::of(&fs::read(path).unwrap())
}

/// Opens, which must fail and leave the file as it is; gives the sentence.
fn refused(dir: &Path) -> StoreError {
    let before = digest(&dir.join(DB));
    let error = open(dir).err().unwrap_or_else(|| panic!("{} was opened", dir.display()));
    assert_eq!(digest(&dir.join(DB)), before);
    let sentence = error.to_string();
    assert!(sentence.contains("nothing"), "{sentence}");
    assert!(sentence.contains(dir.to_str().unwrap()), "{sentence}");
    error
}

#[test]
fn a_flipped_bit_is_found_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    fs::create_dir(&whole).unwrap();
    let state = book(&whole);
    let agent = Life::new(1).genesis.personal;
    let bytes = fs::read(whole.join(DB)).unwrap();
    let mut dice = Dice(2026);
    let (mut found, mut harmless) = (0, 0);
    for round in 0..FLIPS {
        let damaged = dir.path().join(format!("flip-{round}"));
        copy(&whole, &damaged);
        // A third of them in the first pages, where the header and the schema are.
        let bound = if round % 3 == 0 { 8_192 } else { bytes.len() as u64 };
        let (at, bit) = (dice.below(bound) as usize, dice.below(8));
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        fs::write(damaged.join(DB), flipped).unwrap();
        match open(&damaged) {
            Err(error) => {
                found += 1;
                assert!(!error.to_string().is_empty());
            }
            Ok(opening) => {
                harmless += 1;
                assert_eq!(ledger_of(&opening), state, "byte {at} bit {bit}");
                drop(opening);
                // What can be opened can also be gone on with.
                let (store, reader) = start(open(&damaged).unwrap());
                for agent in [None, Some(agent)] {
                    let filter = TradeFilter { agent, before: None, limit: 1_000 };
                    let trades = futures_executor(reader.trades(filter)).unwrap().items;
                    assert_eq!(trades.len(), 100, "byte {at} bit {bit}");
                    for trade in trades.iter().step_by(33) {
                        let found = futures_executor(reader.trade(trade.trade)).unwrap().unwrap();
                        assert_eq!((&found.row, found.documents.len()), (trade, 3));
                    }
                }
                let mut life = Life::new(1);
                life.begin();
                append(&store, life.job()).unwrap();
                store.close().unwrap();
                open(&damaged).unwrap();
            }
        }
        fs::remove_dir_all(&damaged).unwrap();
    }
    println!("{found} flips were found, {harmless} changed nothing");
    assert!(found > FLIPS / 3, "{found}");
}

#[test]
fn a_truncated_book_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    fs::create_dir(&whole).unwrap();
    book(&whole);
    let bytes = fs::read(whole.join(DB)).unwrap();
    let lengths =
        [0, 1, 50, 100, 4_095, 4_096, 8_192, bytes.len() / 2, bytes.len() - 4_096, bytes.len() - 1];
    for length in lengths {
        let damaged = dir.path().join(format!("length-{length}"));
        copy(&whole, &damaged);
        fs::write(damaged.join(DB), &bytes[..length]).unwrap();
        let error = refused(&damaged);
        assert!(
            matches!(error, StoreError::Damaged { .. } | StoreError::NotABook { .. }),
            "{length}: {error:?}"
        );
        assert!(!doctor(&damaged).is_healthy());
        assert_eq!(fs::read(damaged.join(DB)).unwrap(), &bytes[..length]);
    }
}

#[test]
fn a_file_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(DB), "Dear diary, ".repeat(1_000)).unwrap();
    assert!(matches!(refused(dir.path()), StoreError::NotABook { .. }));

    fs::remove_file(dir.path().join(DB)).unwrap();
    let other = rusqlite::Connection::open(dir.path().join(DB)).unwrap();
    other.execute_batch("CREATE TABLE photos (name TEXT)").unwrap();
    other.close().unwrap();
    assert!(matches!(refused(dir.path()), StoreError::NotABook { .. }));
}

#[test]
fn a_book_of_a_newer_build_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    book(dir.path());
    let db = rusqlite::Connection::open(dir.path().join(DB)).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    db.close().unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Newer { found: 99, .. }));
    assert!(error.to_string().contains("has schema version 99"), "{error}");
}

#[test]
fn a_book_that_is_gone_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    book(dir.path());
    fs::remove_file(dir.path().join(DB)).unwrap();
    let error = Opening::open(dir.path(), DirLock::take(dir.path()).unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::Missing { records, .. } if records > 0), "{error:?}");
    assert!(!dir.path().join(DB).exists());
    assert!(!doctor(dir.path()).is_healthy());
}

#[test]
fn an_older_copy_put_back_is_refused_until_its_owner_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(3);
    let (store, _) = start(create(dir.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    store.close().unwrap();
    let old = fs::read(dir.path().join(DB)).unwrap();
    let earlier = life.ledger.clone();
    let (store, _) = start(open(dir.path()).unwrap());
    append(&store, life.job()).unwrap();
    store.close().unwrap();
    fs::write(dir.path().join(DB), old).unwrap();
    assert!(matches!(refused(dir.path()), StoreError::RolledBack { .. }));
    fs::remove_file(dir.path().join("tirami.head")).unwrap();
    assert_eq!(ledger_of(&open(dir.path()).unwrap()), earlier);
}

const HEAD: &str = "tirami.head";

#[test]
fn a_garbled_note_is_refused_and_reported_and_may_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let state = book(dir.path());
    let whole = fs::read(dir.path().join(HEAD)).unwrap();
    let garbled = |bytes: &[u8]| fs::write(dir.path().join(HEAD), bytes).unwrap();
    for bytes in [&whole[..31], b"x", &[&whole[..], b"x"].concat(), &[7; 32]] {
        garbled(bytes);
        let error = refused(dir.path());
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains(HEAD), "{error}");
        assert_eq!(fs::read(dir.path().join(HEAD)).unwrap(), bytes, "nothing is overwritten");
        let report = doctor(dir.path());
        let bad: Vec<_> = report.checks.iter().filter(|check| !check.ok).collect();
        assert_eq!((bad.len(), bad[0].name), (1, "note of the head"), "{report:?}");
        assert!(report.advice.iter().any(|advice| advice.contains("remove the file")));
    }
    // Without a book a garbled note is no reason to begin a new one.
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join(HEAD), "x").unwrap();
    let error = Opening::open(other.path(), DirLock::take(other.path()).unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");

    fs::remove_file(dir.path().join(HEAD)).unwrap();
    assert_eq!(ledger_of(&open(dir.path()).unwrap()), state);
}

#[test]
fn a_note_that_is_gone_is_reported_and_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    book(dir.path());
    let whole = fs::read(dir.path().join(HEAD)).unwrap();
    assert!(doctor(dir.path()).is_healthy());
    // What a loss of power can leave of a file that was never synced.
    let leftovers: [Option<&[u8]>; 3] = [None, Some(b""), Some(&[0; 32])];
    for left in leftovers {
        match left {
            None => fs::remove_file(dir.path().join(HEAD)).unwrap(),
            Some(bytes) => fs::write(dir.path().join(HEAD), bytes).unwrap(),
        }
        let report = doctor(dir.path());
        let bad: Vec<_> = report.checks.iter().filter(|check| !check.ok).collect();
        assert_eq!((bad.len(), bad[0].name), (1, "note of the head"), "{report:?}");
        let (store, _) = start(open(dir.path()).unwrap());
        assert_eq!(fs::read(dir.path().join(HEAD)).unwrap(), whole);
        store.close().unwrap();
        assert!(doctor(dir.path()).is_healthy());
    }
}

#[test]
fn a_note_of_another_journal_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    book(dir.path());
    let mut life = Life::new(9);
    let (store, _) = start(create(other.path(), &life.genesis));
    append(&store, life.begin()).unwrap();
    store.close().unwrap();
    fs::copy(other.path().join(HEAD), dir.path().join(HEAD)).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(!doctor(dir.path()).is_healthy());
}

#[cfg(unix)]
#[test]
fn no_file_of_the_book_can_be_read_by_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let life = Life::new(1);
    let modes = || {
        let files = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap());
        let files = files.filter(fs::Metadata::is_file);
        files.map(|file| file.permissions().mode() & 0o777).collect::<Vec<_>>()
    };
    let (store, _) = start(create(dir.path(), &life.genesis));
    assert!(modes().len() >= 4 && modes().iter().all(|mode| *mode == 0o600), "{:?}", modes());
    store.close().unwrap();
    for file in [DB, HEAD, "node.lock"] {
        fs::set_permissions(dir.path().join(file), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (store, _) = start(open(dir.path()).unwrap());
    for file in ["tirami.db", "tirami.db-wal", "tirami.db-shm", HEAD] {
        let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    store.close().unwrap();
}

/// A node that was killed leaves its last records in the write-ahead log. SQLite drops what it
/// cannot read of it without a word; the note beside the book does not.
#[test]
fn a_damaged_or_lost_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let killed = dir.path().join("killed");
    let running = dir.path().join("running");
    fs::create_dir(&running).unwrap();
    let mut life = Life::new(4);
    let (store, _) = start(create(&running, &life.genesis));
    append(&store, life.begin()).unwrap();
    for _ in 0..5 {
        append(&store, life.job()).unwrap();
    }
    copy(&running, &killed);
    store.close().unwrap();
    let log = killed.join("tirami.db-wal");
    let bytes = fs::read(&log).unwrap();
    let again = dir.path().join("again");
    let with_log = |change: &dyn Fn(&Path)| {
        let _ = fs::remove_dir_all(&again);
        copy(&killed, &again);
        fs::remove_file(again.join("tirami.db-shm")).unwrap();
        change(&again.join("tirami.db-wal"));
    };
    with_log(&|_| {});
    assert_eq!(ledger_of(&open(&again).unwrap()), life.ledger);
    with_log(&|log| fs::remove_file(log).unwrap());
    assert!(matches!(refused(&again), StoreError::RolledBack { .. }));
    let mut dice = Dice(7);
    for _ in 0..40 {
        let at = dice.below(bytes.len() as u64) as usize;
        with_log(&|log| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            fs::write(log, bytes).unwrap();
        });
        let before = digest(&again.join("tirami.db-wal"));
        match open(&again) {
            Ok(opening) => assert_eq!(ledger_of(&opening), life.ledger, "byte {at}"),
            Err(error) => assert!(error.to_string().contains("nothing was overwritten"), "{error}"),
        }
        assert_eq!(digest(&again.join("tirami.db-wal")), before);
    }
}

const FORBIDDEN_DIR: &str = "STORE_TEST_FORBIDDEN_DIR";

/// The other half of the next test, run by it as a user without rights.
#[test]
fn opened_by_a_user_who_may_only_read() {
    let Ok(dir) = std::env::var(FORBIDDEN_DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let opened = DirLock::take(dir)
        .and_then(|lock| Opening::open(dir, lock))
        .map(|found| matches!(found, Found::Book(_)));
    println!("said: {}", opened.unwrap_err());
}

#[cfg(unix)]
#[test]
fn a_directory_or_file_that_may_only_be_read_is_refused() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let is_root = fs::metadata(dir.path()).unwrap().uid() == 0;
    book(dir.path());
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let said = || {
        // Root may write everywhere, so it asks somebody else; from a copy they can reach.
        let copy = dir.path().join("this-test");
        if is_root && !copy.exists() {
            fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
            mode(&copy, 0o755);
        }
        let program = if is_root { copy } else { std::env::current_exe().unwrap() };
        let mut child = Command::new(program);
        child.args(["--exact", "damage::opened_by_a_user_who_may_only_read", "--nocapture"]);
        child.env(FORBIDDEN_DIR, dir.path()).current_dir("/");
        if is_root {
            child.uid(NOBODY).gid(NOBODY);
        }
        let output = child.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for file in ["tirami.db", "tirami.head", "node.lock"] {
        mode(&dir.path().join(file), 0o444);
    }
    mode(dir.path(), 0o555);
    let text = said();
    assert!(text.contains("node.lock cannot be written"), "{text}");
    // The directory may be written, the book not.
    mode(dir.path(), 0o777);
    mode(&dir.path().join("node.lock"), 0o666);
    let text = said();
    assert!(text.contains("tirami.db cannot be written"), "{text}");
    assert!(text.contains("make it writable"), "{text}");
    mode(&dir.path().join(DB), 0o666);
    open(dir.path()).unwrap();
}
