//! Answers that their askers may come back to: kept for a while in a file of their own.
//!
//! The file holds no money. Without it nothing is lost but what could be gone on from. It is opened
//! when it is first needed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};
use tirami_core::{AgentId, DAY_MS};

/// How long an answer is kept.
const KEPT_MS: u64 = 30 * DAY_MS;
/// Answers kept for one agent at most; the oldest go first.
const ANSWERS_PER_AGENT_MAX: u32 = 1_000;
/// Bytes of the file in use at most; beyond it the oldest answers of all agents go.
const BYTES_MAX: u64 = 1 << 30;
/// How many of them go at once.
const FORGOTTEN_AT_ONCE: u32 = 100;

/// An answer and what it takes to go on from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Who asked. Nobody else finds it.
    pub(crate) agent: AgentId,
    /// Its id.
    pub(crate) id: String,
    /// The answer, as it was told.
    pub(crate) response: Vec<u8>,
    /// What was asked and said, as the messages of a chat.
    pub(crate) conversation: Vec<u8>,
}

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} cannot be used: {reason}; kept responses are not at hand, and no money is concerned; \
     where it is damaged, move it away"
)]
pub(crate) struct ResponsesError {
    path: String,
    reason: String,
}

/// The answers that are kept. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Responses(Arc<Inner>);

struct Inner {
    path: PathBuf,
    db: Mutex<Option<Connection>>,
}

impl Responses {
    /// Those in the file at `path`, which need not be there yet.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(Arc::new(Inner { path, db: Mutex::default() }))
    }

    /// Keeps an answer; it is durable when this returns.
    ///
    /// # Errors
    ///
    /// [`ResponsesError`]; it is not kept.
    pub(crate) async fn keep(&self, kept: Kept, now_ms: u64) -> Result<(), ResponsesError> {
        self.with(move |db| keep(db, &kept, now_ms)).await
    }

    /// An agent's answer; none where there is none of this name, or of another agent.
    ///
    /// # Errors
    ///
    /// [`ResponsesError`].
    pub(crate) async fn find(
        &self,
        agent: AgentId,
        id: &str,
        now_ms: u64,
    ) -> Result<Option<Kept>, ResponsesError> {
        let id = id.to_owned();
        self.with(move |db| find(db, agent, &id, now_ms)).await
    }

    /// Forgets an agent's answer; whether there was one.
    ///
    /// # Errors
    ///
    /// [`ResponsesError`]; it is still there.
    pub(crate) async fn forget(
        &self,
        agent: AgentId,
        id: &str,
        now_ms: u64,
    ) -> Result<bool, ResponsesError> {
        let id = id.to_owned();
        self.with(move |db| forget(db, agent, &id, now_ms)).await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ResponsesError> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut place = inner.db.lock().unwrap_or_else(PoisonError::into_inner);
            let db = match place.as_mut() {
                Some(db) => db,
                None => place.insert(open(&inner.path)?),
            };
            work(db)
        });
        let reason = match done.await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(ResponsesError { path: self.0.path.display().to_string(), reason })
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS responses (
             n INTEGER PRIMARY KEY AUTOINCREMENT, agent BLOB NOT NULL, id TEXT NOT NULL UNIQUE,
             expires_at_ms INTEGER NOT NULL, response BLOB NOT NULL,
             conversation BLOB NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS responses_by_agent ON responses (agent, n);
         CREATE INDEX IF NOT EXISTS responses_by_end ON responses (expires_at_ms);",
    )?;
    Ok(db)
}

fn keep(db: &mut Connection, kept: &Kept, now_ms: u64) -> rusqlite::Result<()> {
    let agent = kept.agent.as_bytes().as_slice();
    let change = db.transaction()?;
    change.execute("DELETE FROM responses WHERE expires_at_ms <= ?1", params![time(now_ms)])?;
    change.execute(
        "INSERT INTO responses (agent, id, expires_at_ms, response, conversation)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            agent,
            kept.id,
            time(now_ms.saturating_add(KEPT_MS)),
            kept.response,
            kept.conversation
        ],
    )?;
    change.execute(
        "DELETE FROM responses WHERE agent = ?1 AND n <= (
             SELECT n FROM responses WHERE agent = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)",
        params![agent, ANSWERS_PER_AGENT_MAX],
    )?;
    while in_use(&change)? > BYTES_MAX {
        let oldest = "DELETE FROM responses WHERE n IN (
                          SELECT n FROM responses ORDER BY n LIMIT ?1)";
        if change.execute(oldest, params![FORGOTTEN_AT_ONCE])? == 0 {
            break;
        }
    }
    change.commit()
}

/// Bytes of the file that hold something.
fn in_use(db: &Connection) -> rusqlite::Result<u64> {
    let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = number("page_count")?.saturating_sub(number("freelist_count")?);
    Ok(pages.saturating_mul(number("page_size")?).unsigned_abs())
}

fn find(db: &Connection, agent: AgentId, id: &str, now_ms: u64) -> rusqlite::Result<Option<Kept>> {
    let found = db.query_row(
        "SELECT response, conversation FROM responses
         WHERE id = ?1 AND agent = ?2 AND expires_at_ms > ?3",
        params![id, agent.as_bytes().as_slice(), time(now_ms)],
        |row| {
            let (response, conversation) = (row.get(0)?, row.get(1)?);
            Ok(Kept { agent, id: id.to_owned(), response, conversation })
        },
    );
    found.optional()
}

fn forget(db: &Connection, agent: AgentId, id: &str, now_ms: u64) -> rusqlite::Result<bool> {
    let forgotten = db.execute(
        "DELETE FROM responses WHERE id = ?1 AND agent = ?2 AND expires_at_ms > ?3",
        params![id, agent.as_bytes().as_slice(), time(now_ms)],
    )?;
    Ok(forgotten > 0)
}

fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    fn agent(n: u8) -> AgentId {
        AgentId::from_bytes([n; 32])
    }

    fn kept(of: u8, id: &str) -> Kept {
        let (response, conversation) = (b"{}".to_vec(), b"[]".to_vec());
        Kept { agent: agent(of), id: id.to_owned(), response, conversation }
    }

    #[tokio::test]
    async fn an_answer_is_found_by_its_asker_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("responses");
        let responses = Responses::at(path.clone());
        responses.keep(kept(1, "a"), NOW).await.unwrap();
        // Another process would find it.
        let again = Responses::at(path.clone());
        assert_eq!(again.find(agent(1), "a", NOW).await.unwrap(), Some(kept(1, "a")));
        assert_eq!(again.find(agent(2), "a", NOW).await.unwrap(), None);
        assert!(!again.forget(agent(2), "a", NOW).await.unwrap());
        assert_eq!(again.find(agent(1), "a", NOW + KEPT_MS).await.unwrap(), None);
        again.keep(kept(2, "b"), NOW + KEPT_MS).await.unwrap();
        assert_eq!(again.find(agent(1), "a", NOW).await.unwrap(), None, "it is gone for good");
        assert!(again.forget(agent(2), "b", NOW).await.unwrap());
        assert!(!again.forget(agent(2), "b", NOW).await.unwrap());

        let damaged = dir.path().join("damaged");
        std::fs::write(&damaged, "no database, but long enough to look like one ".repeat(40))
            .unwrap();
        let error = Responses::at(damaged).find(agent(1), "a", NOW).await.unwrap_err();
        assert!(error.to_string().contains("move it away"), "{error}");
    }

    #[test]
    fn an_agent_has_so_many_and_others_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = open(&dir.path().join("responses")).unwrap();
        db.pragma_update(None, "synchronous", "off").unwrap();
        keep(&mut db, &kept(2, "other"), NOW).unwrap();
        for n in 0..ANSWERS_PER_AGENT_MAX + 3 {
            keep(&mut db, &kept(1, &n.to_string()), NOW).unwrap();
        }
        for (of, id, is_there) in
            [(1, "2", false), (1, "3", true), (1, "1002", true), (2, "other", true)]
        {
            assert_eq!(find(&db, agent(of), id, NOW).unwrap().is_some(), is_there, "{id}");
        }
    }
}
