//! Why the store refuses or stops, each reason as one sentence that says what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the account book cannot be opened, read or written.
///
/// No variant ever goes with a change to the file: a store that reports one has overwritten
/// nothing, and everything it acknowledged before is still there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the data directory.
    #[error(
        "{path} is locked by another node{}; nothing was changed; stop that node or choose \
         another data directory", pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that wrote itself into it.
        pid: Option<u32>,
    },
    /// The directory or a file cannot be written by this user.
    #[error(
        "{path} cannot be written ({reason}); nothing was changed; make it writable for this user \
         or choose another data directory"
    )]
    ReadOnly {
        /// What cannot be written.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// The disk is full.
    #[error(
        "the disk is full, so {path} could not be written; nothing acknowledged is lost and \
         nothing was overwritten; free some space and start the node again"
    )]
    Full {
        /// The file that was to grow.
        path: PathBuf,
    },
    /// The book is gone although this directory had one.
    #[error(
        "{path} is missing although {records} records were acknowledged in this directory; nothing \
         was created in its place; put the file back, or choose an empty data directory to begin \
         anew"
    )]
    Missing {
        /// The file that should be there.
        path: PathBuf,
        /// Records that were acknowledged.
        records: u64,
    },
    /// The file is something else.
    #[error(
        "{path} is not a Tirami account book ({what}); nothing was overwritten; restore the newest \
         backup of it, or choose another data directory"
    )]
    NotABook {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: String,
    },
    /// The file was written by a newer build.
    #[error(
        "{path} has schema version {found} and this build reads versions up to {known}; nothing \
         was changed; use the tirami that wrote it, or a newer one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this build knows.
        known: u32,
    },
    /// The file's content contradicts itself.
    #[error(
        "{path} is damaged: {what}; nothing was overwritten; run `tirami doctor`, then restore the \
         newest backup of the data directory"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first contradiction found.
        what: String,
    },
    /// The file is older than what was acknowledged.
    #[error(
        "{path} ends at record {found} although record {acknowledged} was acknowledged: it is an \
         older copy, or its write-ahead log is lost or damaged; nothing was overwritten; put the \
         newest copy of the data directory back, or remove {head} to go on from the older state"
    )]
    RolledBack {
        /// The file.
        path: PathBuf,
        /// Its last record.
        found: u64,
        /// The last record that was acknowledged.
        acknowledged: u64,
        /// The file that remembers what was acknowledged.
        head: PathBuf,
    },
    /// A file operation failed.
    #[error(
        "{path} could not be {what}; nothing acknowledged is lost; see to the disk and start again"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a participle.
        what: &'static str,
        /// The operating system's reason.
        #[source]
        source: Arc<io::Error>,
    },
    /// The database refused an operation for another reason.
    #[error(
        "the account book {path} could not be used ({source}); nothing acknowledged is lost; see \
         to the disk and start the node again"
    )]
    Database {
        /// The file.
        path: PathBuf,
        /// SQLite's reason.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The writer has ended, after an earlier failure or a shutdown.
    #[error("the store is closed; start the node again")]
    Closed,
}

impl StoreError {
    /// The error for a failed operation on a file or directory.
    pub(crate) fn io(path: &Path, what: &'static str, error: io::Error) -> Self {
        let path = path.to_path_buf();
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly { path, reason: error.to_string() }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { path, what, source: Arc::new(error) },
        }
    }

    /// The error for a refusal by SQLite.
    pub(super) fn sqlite(path: &Path, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let path = path.to_path_buf();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                Self::ReadOnly { path, reason: error.to_string() }
            }
            Some(ErrorCode::NotADatabase) => Self::NotABook { path, what: error.to_string() },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Locked { path, pid: None }
            }
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, what: error.to_string() },
            _ => Self::Database { path, source: Arc::new(error) },
        }
    }

    /// The error for a refusal by SQLite while reading a file that should be whole: a column or
    /// table it does not find, or a value of another type, is damage.
    pub(super) fn reading(path: &Path, error: rusqlite::Error) -> Self {
        match Self::sqlite(path, error) {
            Self::Database { path, source } => Self::Damaged { path, what: source.to_string() },
            other => other,
        }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), what: what.into() }
    }
}
