//! Reading trades and their documents beside the writer.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, named_params};
use tirami_core::{
    AgentId, DocumentId, Flop, JobId, ModelDigest, PartyId, Signature, Timestamp, Trm, decode_body,
};
use tirami_ledger::documents::{FinishReason, Order, SignedBytes};
use tirami_ledger::event::{BookEvent, DocumentKind, DocumentRecord, Event};

use super::journal::unsigned;
use super::row::{Cells, Table, decode};
use super::trade::trade_of;
use super::{StoreError, names, schema};

/// Trades one page holds at most.
pub const TRADES_PAGE_MAX: u32 = 1_000;
/// Documents of one trade that are read at most: an order, its vouchers, a receipt.
const TRADE_DOCUMENTS_MAX: u32 = 4_096;
/// Documents of one job that are looked at for its order, from the first on, or for its receipt,
/// from the last on: that is where they are, and between them is a voucher for each token.
const JOB_DOCUMENTS_MAX: u32 = 64;
/// Payments for one job that are added up at most: a job is paid at once, and what a claim shows to
/// be missing once more.
const JOB_PAYMENTS_MAX: u32 = 64;
/// Idle connections that are kept.
const CONNECTIONS_MAX: usize = 4;

/// Which trades are wanted, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TradeFilter {
    /// Only those this agent paid for.
    pub agent: Option<AgentId>,
    /// Only those before this cursor of an earlier page.
    pub before: Option<i64>,
    /// So many at most; never more than [`TRADES_PAGE_MAX`].
    pub limit: u32,
}

/// A stretch of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// The cursor of the last item, when there are more after it.
    pub next: Option<i64>,
}

/// A job that was charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TradeRow {
    /// Its place in the journal, and so in any list.
    pub cursor: i64,
    /// The trade's id, which is its order's.
    pub trade: DocumentId,
    /// The job.
    pub job: JobId,
    /// The account that paid: an agent of this node, or for a job done for another node that one.
    pub payer: AgentId,
    /// Who signed the order.
    pub consumer: PartyId,
    /// Who served.
    pub provider: PartyId,
    /// The model that answered.
    pub model: ModelDigest,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Completion tokens delivered.
    pub completion_tokens: u32,
    /// The work.
    pub flop: Flop,
    /// What was charged.
    pub amount: Trm,
    /// What was paid to this node for it, where that is more: the consumer had signed a higher
    /// voucher than the one that this node holds.
    pub paid: Option<Trm>,
    /// Why the answer ended.
    pub finish: FinishReason,
    /// The receipt; none when the charge rests on the highest voucher.
    pub receipt: Option<DocumentId>,
    /// When it was charged.
    pub at: Timestamp,
}

/// A trade with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TradeDetail {
    /// The trade.
    pub row: TradeRow,
    /// Its documents, oldest first.
    pub documents: Vec<DocumentRecord>,
}

/// Reads what is durable. Cheap to clone; readers wait for nobody and nobody waits for them.
#[derive(Debug, Clone)]
pub struct StoreReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) path: PathBuf,
    own: PartyId,
    idle: Mutex<Vec<Connection>>,
}

impl StoreReader {
    pub(super) fn new(path: PathBuf, own: PartyId) -> Self {
        Self { shared: Arc::new(Shared { path, own, idle: Mutex::new(Vec::new()) }) }
    }

    /// Lists trades, newest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the file cannot be read.
    pub async fn trades(&self, filter: TradeFilter) -> Result<Page<TradeRow>, StoreError> {
        self.blocking(move |shared, db| shared.trades(db, filter)).await
    }

    /// One trade with its documents; `None` when there is no such trade.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the file cannot be read.
    pub async fn trade(&self, id: DocumentId) -> Result<Option<TradeDetail>, StoreError> {
        self.blocking(move |shared, db| shared.trade(db, id)).await
    }

    /// What came of the first order of `consumer` under a job's id; `None` when there was none
    /// among the job's first documents, or nothing was due.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the file cannot be read.
    pub async fn first_trade(
        &self,
        job: JobId,
        consumer: PartyId,
    ) -> Result<Option<TradeRow>, StoreError> {
        self.blocking(move |shared, db| shared.first_trade(db, job, consumer)).await
    }

    /// The bytes and the signature of one of the last documents of a job; `None` when it is not
    /// among them.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the file cannot be read.
    pub async fn document(
        &self,
        job: JobId,
        id: DocumentId,
    ) -> Result<Option<SignedBytes>, StoreError> {
        self.blocking(move |shared, db| shared.document(db, job, id)).await
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared, &Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let read = tokio::task::spawn_blocking(move || {
            let db = shared.connection()?;
            let result = read(&shared, &db);
            shared.keep(db);
            result
        });
        read.await.unwrap_or(Err(StoreError::Closed))
    }
}

const TRADES: &str = "
    SELECT trades.n, body FROM trades JOIN book_events ON book_events.n = trades.n
    WHERE trades.n < :before AND :agent IS NULL
    ORDER BY trades.n DESC LIMIT :limit";
const TRADES_OF_AGENT: &str = "
    SELECT trades.n, body FROM trades JOIN book_events ON book_events.n = trades.n
    WHERE agent = :agent AND trades.n < :before ORDER BY trades.n DESC LIMIT :limit";
const TRADE: &str = "
    SELECT trades.n, body FROM trades JOIN book_events ON book_events.n = trades.n
    WHERE trade = ?1 ORDER BY trades.n LIMIT 1";
const PAYMENTS: &str = "
    SELECT body FROM book_events
    WHERE kind = 'served_settled' AND substr(body, 6, 16) = ?1 ORDER BY n LIMIT ?2";
const DOCUMENTS: &str = "
    SELECT n, kind, id, job, body, signature FROM documents WHERE job = ?1 ORDER BY n LIMIT ?2";
const FIRST_DOCUMENTS: &str = "
    SELECT kind, id, body FROM documents WHERE job = ?1 ORDER BY n LIMIT ?2";
const DOCUMENT: &str = "
    SELECT body, signature FROM (
        SELECT id, body, signature FROM documents WHERE job = ?1 ORDER BY n DESC LIMIT ?3)
    WHERE id = ?2 LIMIT 1";

impl Shared {
    fn connection(&self) -> Result<Connection, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(db) => Ok(db),
            None => schema::open_reading(&self.path)
                .map_err(|error| StoreError::sqlite(&self.path, error)),
        }
    }

    fn keep(&self, db: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < CONNECTIONS_MAX {
            idle.push(db);
        }
    }

    fn document(
        &self,
        db: &Connection,
        job: JobId,
        id: DocumentId,
    ) -> Result<Option<SignedBytes>, StoreError> {
        let read = || -> rusqlite::Result<Option<(Vec<u8>, [u8; 64])>> {
            let mut statement = db.prepare_cached(DOCUMENT)?;
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let of = (job.as_bytes(), id.as_bytes(), JOB_DOCUMENTS_MAX);
            statement.query_row(of, row).optional()
        };
        let found = read().map_err(|error| StoreError::sqlite(&self.path, error))?;
        Ok(found.map(|(bytes, signature)| SignedBytes {
            bytes,
            signature: Signature::from_bytes(signature),
        }))
    }

    fn trades(&self, db: &Connection, filter: TradeFilter) -> Result<Page<TradeRow>, StoreError> {
        let limit = filter.limit.min(TRADES_PAGE_MAX) as usize;
        let before = filter.before.unwrap_or(i64::MAX);
        let agent = filter.agent.as_ref().map(AgentId::as_bytes);
        let read = || -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
            let sql = if agent.is_some() { TRADES_OF_AGENT } else { TRADES };
            let mut statement = db.prepare_cached(sql)?;
            let params = named_params! {
                ":agent": agent, ":before": before, ":limit": limit as i64 + 1
            };
            statement.query_map(params, |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let rows = read().map_err(|error| StoreError::sqlite(&self.path, error))?;
        let more = rows.len() > limit;
        let items = rows
            .iter()
            .take(limit)
            .map(|(n, body)| self.row(db, *n, body))
            .collect::<Result<Vec<_>, _>>()?;
        let next = if more { items.last().map(|row| row.cursor) } else { None };
        Ok(Page { items, next })
    }

    fn trade(&self, db: &Connection, id: DocumentId) -> Result<Option<TradeDetail>, StoreError> {
        let Some(row) = self.trade_row(db, id)? else {
            return Ok(None);
        };
        let documents = self.documents(db, row.job)?;
        Ok(Some(TradeDetail { row, documents }))
    }

    fn first_trade(
        &self,
        db: &Connection,
        job: JobId,
        consumer: PartyId,
    ) -> Result<Option<TradeRow>, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let kind = names::document(DocumentKind::Order);
        let mut statement = db.prepare_cached(FIRST_DOCUMENTS).map_err(failed)?;
        let mut rows = statement.query((job.as_bytes(), JOB_DOCUMENTS_MAX)).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if row.get::<_, String>(0).map_err(failed)? != kind {
                continue;
            }
            let id: [u8; 32] = row.get(1).map_err(failed)?;
            let body: Vec<u8> = row.get(2).map_err(failed)?;
            let order = decode_body::<Order>(&body);
            if order.is_ok_and(|order| order.consumer == consumer)
                && let Some(trade) = self.trade_row(db, DocumentId::from_bytes(id))?
            {
                return Ok(Some(trade));
            }
        }
        Ok(None)
    }

    fn trade_row(&self, db: &Connection, id: DocumentId) -> Result<Option<TradeRow>, StoreError> {
        let found: Option<(i64, Vec<u8>)> = db
            .prepare_cached(TRADE)
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                statement.query_row([id.as_bytes()], read).optional()
            })
            .map_err(|error| StoreError::sqlite(&self.path, error))?;
        found.map(|(n, body)| self.row(db, n, &body)).transpose()
    }

    /// A trade as the journal has it; the index only finds it.
    fn row(&self, db: &Connection, cursor: i64, body: &[u8]) -> Result<TradeRow, StoreError> {
        let event = decode(body);
        let row = event.and_then(|event| trade_of(&event, self.own, cursor));
        let mut row = row.ok_or_else(|| {
            let what = format!("record {cursor} is no trade although its index says so");
            StoreError::damaged(&self.path, what)
        })?;
        if row.provider == self.own {
            let paid = self.paid(db, &row)?;
            row.paid = (paid > row.amount).then_some(paid);
        }
        Ok(row)
    }

    /// What final entries of its consumer paid for a job that this node did.
    fn paid(&self, db: &Connection, trade: &TradeRow) -> Result<Trm, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let mut statement = db.prepare_cached(PAYMENTS).map_err(failed)?;
        let of = (trade.job.as_bytes(), JOB_PAYMENTS_MAX);
        let mut rows = statement.query(of).map_err(failed)?;
        let mut paid = Trm::ZERO;
        while let Some(row) = rows.next().map_err(failed)? {
            let body = row.get_ref(0).and_then(|body| Ok(body.as_blob()?)).map_err(failed)?;
            if let Some(BookEvent::ServedSettled { job, consumer, amount, .. }) = decode(body)
                && (job, consumer) == (trade.job, trade.consumer)
            {
                paid = paid.saturating_add(amount);
            }
        }
        Ok(paid)
    }

    fn documents(&self, db: &Connection, job: JobId) -> Result<Vec<DocumentRecord>, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let mut statement = db.prepare_cached(DOCUMENTS).map_err(failed)?;
        let mut rows = statement.query((job.as_bytes(), TRADE_DOCUMENTS_MAX)).map_err(failed)?;
        let mut documents = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let read = || -> rusqlite::Result<Option<Event>> {
                let cells = Cells {
                    table: Table::Documents,
                    n: unsigned(row.get(0)?),
                    kind: row.get_ref(1)?.as_str()?,
                    key: Some(row.get_ref(2)?.as_blob()?),
                    job: Some(row.get_ref(3)?.as_blob()?),
                    number: None,
                    body: row.get_ref(4)?.as_blob()?,
                    signature: Some(row.get_ref(5)?.as_blob()?),
                };
                Ok(cells.event())
            };
            match read().map_err(failed)? {
                Some(Event::Document(document)) => documents.push(document),
                _ => {
                    let what = format!("a document of job {job} cannot be read");
                    return Err(StoreError::damaged(&self.path, what));
                }
            }
        }
        Ok(documents)
    }
}
