//! How far the journal reaches, and the note beside the database that remembers it.
//!
//! SQLite forgives a damaged or lost write-ahead log by going back to an earlier state. A ledger
//! must not: the note is written after every sync, so a database that ends before it has lost
//! something that was acknowledged. The note itself is synced once at the start and not after
//! each record; after a loss of power it may lag behind the database, never run ahead of it.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::StoreError;
use crate::keys::{make_private, private_file};

const HEAD_FILE: &str = "tirami.head";
const NOTE_BYTES: usize = 32;

/// The running checksum of the journal up to a record.
pub(super) type Checksum = [u8; 16];

/// The last record of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Its number; 0 when there is none.
    pub(super) n: u64,
    /// The running checksum including it.
    pub(super) checksum: Checksum,
}

impl Head {
    fn to_note(self) -> [u8; NOTE_BYTES] {
        let mut note = [0; NOTE_BYTES];
        note[..8].copy_from_slice(&self.n.to_le_bytes());
        note[8..24].copy_from_slice(&self.checksum);
        let digest = blake3::hash(&note[..24]);
        note[24..].copy_from_slice(&digest.as_bytes()[..8]);
        note
    }

    fn from_note(note: &[u8]) -> Option<Self> {
        let n = u64::from_le_bytes(note.get(..8)?.try_into().ok()?);
        let checksum = note.get(8..24)?.try_into().ok()?;
        let head = Self { n, checksum };
        (head.to_note() == note).then_some(head)
    }
}

/// Where the note of a data directory is.
pub(super) fn note_path(data_dir: &Path) -> PathBuf {
    data_dir.join(HEAD_FILE)
}

/// What the note says; `None` when there is none. A file that is empty or all zeros is none: a
/// loss of power can leave one of a note that was never synced.
///
/// # Errors
///
/// [`StoreError`] when it cannot be read, and [`StoreError::Damaged`] when it says nothing.
pub(super) fn read_note(data_dir: &Path) -> Result<Option<Head>, StoreError> {
    let path = note_path(data_dir);
    let note = match std::fs::read(&path) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io(&path, "read", error)),
    };
    if note.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    Head::from_note(&note).map(Some).ok_or_else(|| {
        let what = "it does not say which record was acknowledged last (when nothing else is \
                    wrong, remove it: the next start writes it anew)";
        StoreError::damaged(&path, what)
    })
}

/// Keeps the note up to date.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    file: File,
}

impl Note {
    /// Opens the note and brings it up to `head`, synced, so that from then on a loss of power
    /// leaves an older note at worst.
    pub(super) fn open(data_dir: &Path, head: Head) -> Result<Self, StoreError> {
        let path = note_path(data_dir);
        let failed = |error| StoreError::io(&path, "opened", error);
        let file = private_file().create(true).truncate(false).open(&path).map_err(failed)?;
        make_private(&path).map_err(failed)?;
        let mut note = Self { path, file };
        note.write(head)?;
        let synced = note.file.sync_all().and_then(|()| super::sync_dir(data_dir));
        synced.map_err(|error| StoreError::io(&note.path, "synced", error))?;
        Ok(note)
    }

    /// Remembers that everything up to `head` is durable.
    pub(super) fn write(&mut self, head: Head) -> Result<(), StoreError> {
        let written =
            self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(&head.to_note()));
        written.map_err(|error| StoreError::io(&self.path, "written", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_with_a_changed_bit_says_nothing() {
        let note = Head { n: 77, checksum: [3; 16] }.to_note();
        assert_eq!(Head::from_note(&note), Some(Head { n: 77, checksum: [3; 16] }));
        for bit in 0..NOTE_BYTES * 8 {
            let mut flipped = note;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::from_note(&flipped), None);
        }
        assert_eq!(Head::from_note(&note[..31]), None);
    }
}
