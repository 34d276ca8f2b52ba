//! Transfers that a repeated request must not make twice: each is written down before it is
//! signed and again after, so that what a crash left open is known and never paid again.
//!
//! The file has one line for each step: `begun KEY MARK`, then `done KEY MARK ENTRY` or `void KEY`.
//! The mark says what the key is for, so that it is used for one transfer only.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tirami_core::DocumentId;
use tokio::sync::Mutex;

/// Transfers remembered at most; the oldest are forgotten first, open ones last.
const TRANSFERS_MAX: usize = 10_000;
/// Lines after which the file is written anew.
const LINES_MAX: usize = 3 * TRANSFERS_MAX;
/// Bytes of a file that is read at most; a larger one is none of this node's.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begun,
    Done(DocumentId),
}

/// Why a transfer was not made.
#[derive(Debug)]
pub(crate) enum TransferError<E> {
    /// The key was used for another transfer.
    Other,
    /// It was begun before the node stopped, and nobody wrote down how it ended.
    Uncertain,
    /// It could not be written down, so it was not signed.
    Unwritten(io::Error),
    /// It was refused.
    Refused(E),
}

/// The transfers of a node.
#[derive(Debug)]
pub(crate) struct Transfers {
    path: PathBuf,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    steps: BTreeMap<String, (String, Step)>,
    order: VecDeque<String>,
    lines: usize,
}

impl Transfers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::new(None) }
    }

    /// Makes the transfer named `key` by `sign`, or says which entry it was; the flag says that it
    /// was made before. One at a time.
    pub(crate) async fn once<E>(
        &self,
        (key, mark): (&str, &str),
        sign: impl Future<Output = Result<DocumentId, E>>,
    ) -> Result<(DocumentId, bool), TransferError<E>> {
        let mut turn = self.known.lock().await;
        let known = match turn.as_mut() {
            Some(known) => known,
            None => turn.insert(Known::read(&self.path).map_err(TransferError::Unwritten)?),
        };
        match known.steps.get(key) {
            Some((known, _)) if known != mark => return Err(TransferError::Other),
            Some((_, Step::Done(entry))) => return Ok((*entry, true)),
            Some((_, Step::Begun)) => return Err(TransferError::Uncertain),
            None => {}
        }
        known
            .write(&self.path, &format!("begun {key} {mark}"))
            .map_err(TransferError::Unwritten)?;
        known.set(key, mark, Step::Begun);
        match sign.await {
            Ok(entry) => {
                known.set(key, mark, Step::Done(entry));
                // The entry is signed. Unwritten, a later repeat is uncertain and pays nothing.
                if let Err(error) = known.write(&self.path, &format!("done {key} {mark} {entry}")) {
                    tracing::error!(%error, key, "a transfer was made and not written down");
                }
                Ok((entry, false))
            }
            Err(error) => {
                if known.write(&self.path, &format!("void {key}")).is_ok() {
                    known.unset(key);
                }
                Err(TransferError::Refused(error))
            }
        }
    }
}

impl Known {
    fn read(path: &Path) -> io::Result<Self> {
        let mut known = Self::default();
        match std::fs::metadata(path) {
            Ok(meta) if meta.len() > FILE_BYTES_MAX => {
                return Err(io::Error::other(format!("{} is too large", path.display())));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(known),
            Err(error) => return Err(error),
        }
        for line in std::fs::read_to_string(path)?.lines() {
            known.lines += 1;
            let mut words = line.split(' ');
            // A line that a crash cut is of a transfer that was not signed, or of one that then
            // counts as open.
            match (words.next(), words.next(), words.next(), words.next().map(str::parse)) {
                (Some("begun"), Some(key), Some(mark), _) => known.set(key, mark, Step::Begun),
                (Some("done"), Some(key), Some(mark), Some(Ok(entry))) => {
                    known.set(key, mark, Step::Done(entry));
                }
                (Some("void"), Some(key), ..) => known.unset(key),
                _ => {}
            }
        }
        Ok(known)
    }

    fn set(&mut self, key: &str, mark: &str, step: Step) {
        if self.steps.insert(key.to_owned(), (mark.to_owned(), step)).is_none() {
            self.order.push_back(key.to_owned());
        }
        while self.order.len() > TRANSFERS_MAX {
            let done = |key: &String| matches!(self.steps.get(key), Some((_, Step::Done(_))));
            let at = self.order.iter().position(done).unwrap_or(0);
            if let Some(key) = self.order.remove(at) {
                self.steps.remove(&key);
            }
        }
    }

    fn unset(&mut self, key: &str) {
        self.steps.remove(key);
        self.order.retain(|known| known != key);
    }

    /// Appends a line, synced. A file that has grown long is first replaced by what it says.
    fn write(&mut self, path: &Path, line: &str) -> io::Result<()> {
        if self.lines >= LINES_MAX {
            self.rewrite(path)?;
        }
        let is_new = !path.exists();
        let mut file = crate::keys::private_file().append(true).create(true).open(path)?;
        // A line that a crash cut must not swallow the next one.
        file.write_all(format!("\n{line}\n").as_bytes())?;
        file.sync_all()?;
        if is_new {
            sync_folder(path)?;
        }
        self.lines += 2;
        Ok(())
    }

    fn rewrite(&mut self, path: &Path) -> io::Result<()> {
        let mut text = String::new();
        for key in &self.order {
            match self.steps.get(key) {
                Some((mark, Step::Done(entry))) => {
                    text.push_str(&format!("done {key} {mark} {entry}\n"));
                }
                Some((mark, Step::Begun)) => text.push_str(&format!("begun {key} {mark}\n")),
                None => {}
            }
        }
        let new = path.with_extension("new");
        let mut file =
            crate::keys::private_file().write(true).create(true).truncate(true).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        sync_folder(path)?;
        self.lines = self.order.len();
        Ok(())
    }
}

/// Makes the name of a file durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    // Only Unix can sync a folder; elsewhere the system does what it does.
    if cfg!(unix) { std::fs::File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(byte: u8) -> DocumentId {
        DocumentId::from_bytes([byte; 32])
    }

    #[tokio::test]
    async fn a_key_pays_once_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transfers");
        let transfers = Transfers::new(path.clone());
        let made = |byte| async move { Ok::<_, ()>(entry(byte)) };
        assert_eq!(transfers.once(("a", "m"), made(1)).await.unwrap(), (entry(1), false));
        assert_eq!(transfers.once(("a", "m"), made(2)).await.unwrap(), (entry(1), true));
        let other = transfers.once(("a", "n"), made(2)).await;
        assert!(matches!(other, Err(TransferError::Other)));
        // What was refused may be tried again.
        let refused = transfers.once(("b", "m"), async { Err("no") }).await;
        assert!(matches!(refused, Err(TransferError::Refused("no"))));
        let transfers = Transfers::new(path.clone());
        assert_eq!(transfers.once(("a", "m"), made(3)).await.unwrap(), (entry(1), true));
        assert_eq!(transfers.once(("b", "m"), made(4)).await.unwrap(), (entry(4), false));
    }

    #[tokio::test]
    async fn what_a_crash_left_open_is_never_paid_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transfers");
        for text in ["begun a m\n", "begun a m\ndone a m 1234", "done b m 00\nbegun a m\nvoi"] {
            std::fs::write(&path, text).unwrap();
            let transfers = Transfers::new(path.clone());
            let repeated = transfers.once(("a", "m"), async { Ok::<_, ()>(entry(9)) }).await;
            assert!(matches!(repeated, Err(TransferError::Uncertain)), "{text}");
            let other = transfers.once(("c", "m"), async { Ok::<_, ()>(entry(7)) }).await.unwrap();
            assert_eq!(other, (entry(7), false));
        }
    }

    #[test]
    fn only_so_many_are_remembered_and_open_ones_longest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transfers");
        let mut known = Known::default();
        known.set("open", "m", Step::Begun);
        for n in 0..TRANSFERS_MAX + 5 {
            known.set(&n.to_string(), "m", Step::Done(entry(1)));
        }
        assert_eq!((known.order.len(), known.steps.len()), (TRANSFERS_MAX, TRANSFERS_MAX));
        known.lines = LINES_MAX;
        known.write(&path, "begun last m").unwrap();
        let read = Known::read(&path).unwrap();
        assert_eq!(read.steps.get("open"), Some(&("m".to_owned(), Step::Begun)));
        assert_eq!(read.steps.get("0"), None);
        assert!(read.steps.contains_key("last"));
    }
}
