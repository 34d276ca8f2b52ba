//! One node per data directory: an exclusive lock that ends with the process.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::StoreError;
use crate::keys::private_file;

/// The lock's file in the data directory.
const LOCK_FILE: &str = "node.lock";
/// How long a taken lock is tried again. A process that is being started holds copies of its
/// parent's files for a moment, and a node that ends takes one to let go.
const PATIENCE: Duration = Duration::from_millis(500);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Holds the data directory until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the directory and writes this process's id into the lock file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] when another process has it, [`StoreError::ReadOnly`] or
    /// [`StoreError::Io`] when the lock file cannot be made.
    pub fn take(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join(LOCK_FILE);
        let io = |error| StoreError::io(&path, "locked", error);
        let mut file =
            private_file().create(true).read(true).truncate(false).open(&path).map_err(io)?;
        match patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The id is a courtesy; without it the sentence is still right.
                let pid =
                    file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(StoreError::Locked { path, pid });
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }

    /// Whether a process holds the directory. Nothing is made or written; what cannot be found out
    /// is no.
    pub(crate) fn is_held(data_dir: &Path) -> bool {
        // A start that meets this shared lock tries again.
        let tried = File::open(data_dir.join(LOCK_FILE)).map(|file| file.try_lock_shared());
        matches!(tried, Ok(Err(TryLockError::WouldBlock)))
    }
}

fn patiently(file: &File) -> Result<(), TryLockError> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => thread::sleep(PAUSE),
            other => return other,
        }
    }
}
