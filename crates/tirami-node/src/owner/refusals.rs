//! What other nodes try here and is refused: counted at once, and recorded in the book, so that it
//! is known after a restart too. A flood of refusals is counted and costs few records.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tirami_core::PartyId;
use tirami_ledger::command::{Actor, Command};

use crate::handle::Handle;
use crate::metrics::RefusalLabels;

/// Rows that are counted before they are recorded, at most.
const ROWS_MAX: usize = 1_024;
/// One row is recorded so often at most.
const RECORD_EVERY: Duration = Duration::from_secs(10);
/// All rows together are recorded so often within [`RECORD_EVERY`] at most.
const RECORDS_MAX: u32 = 100;

/// Refusals by code since the start.
pub(crate) type ByCode = Family<RefusalLabels, Counter>;

/// What was refused and is not recorded yet.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_code: ByCode,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    rows: BTreeMap<(PartyId, &'static str), Row>,
    /// Records made since then.
    records: u32,
    since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Row {
    more: u32,
    recorded: Option<Instant>,
}

impl Refusals {
    /// The counters, for the metrics.
    pub(crate) fn by_code(&self) -> ByCode {
        self.by_code.clone()
    }

    /// What is counted and not recorded yet.
    pub(crate) fn waiting(&self) -> Vec<(PartyId, &'static str, u32)> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = waiting.rows.iter().filter(|(_, row)| row.more > 0);
        rows.map(|((party, code), row)| (*party, *code, row.more)).collect()
    }

    /// Counts a refusal, and records it unless that was done just now.
    pub(crate) async fn note(&self, handle: &Handle, party: PartyId, code: &'static str) {
        self.by_code.get_or_create(&RefusalLabels { code }).inc();
        if let Some(more) = self.count(Instant::now(), (party, code)) {
            record(handle, (party, code), more).await;
        }
    }

    /// The same for whoever cannot wait for the record.
    pub(crate) fn note_aside(&self, handle: &Handle, party: PartyId, code: &'static str) {
        self.by_code.get_or_create(&RefusalLabels { code }).inc();
        if let Some(more) = self.count(Instant::now(), (party, code)) {
            let handle = handle.clone();
            tokio::spawn(async move { record(&handle, (party, code), more).await });
        }
    }

    /// How many are to be recorded now; none when they wait.
    fn count(&self, now: Instant, key: (PartyId, &'static str)) -> Option<u32> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.since.is_none_or(|since| now >= since + RECORD_EVERY) {
            (waiting.since, waiting.records) = (Some(now), 0);
        }
        let is_late = |at: Option<Instant>| at.is_none_or(|at| now >= at + RECORD_EVERY);
        if waiting.rows.len() >= ROWS_MAX && !waiting.rows.contains_key(&key) {
            // What is not recorded by now stays in the counters by code.
            waiting.rows.retain(|_, row| !is_late(row.recorded));
            if waiting.rows.len() >= ROWS_MAX {
                return None;
            }
        }
        let free = waiting.records < RECORDS_MAX;
        let row = waiting.rows.entry(key).or_default();
        row.more = row.more.saturating_add(1);
        if !free || !is_late(row.recorded) {
            return None;
        }
        row.recorded = Some(now);
        let more = core::mem::take(&mut row.more);
        waiting.records += 1;
        Some(more)
    }
}

async fn record(handle: &Handle, (party, code): (PartyId, &'static str), more: u32) {
    let note = Command::NoteRefusal { party, code: code.to_owned(), more };
    if let Err(error) = handle.submit(Actor::Node, note).await {
        tracing::debug!(%party, code, %error, "a refusal was not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_seldom_recorded() {
        let refusals = Refusals::default();
        let (start, party) = (Instant::now(), PartyId::from_bytes([1; 32]));
        assert_eq!(refusals.count(start, (party, "order_price")), Some(1));
        for _ in 0..50 {
            assert_eq!(refusals.count(start, (party, "order_price")), None);
        }
        assert_eq!(refusals.waiting(), [(party, "order_price", 50)]);
        assert_eq!(refusals.count(start, (party, "order_model")), Some(1));
        let later = start + RECORD_EVERY;
        assert_eq!(refusals.count(later, (party, "order_price")), Some(51));
        let mut recorded = 0;
        for n in 0..5_000_u32 {
            let mut bytes = [2; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            let party = PartyId::from_bytes(bytes);
            recorded += refusals.count(later, (party, "order_price")).unwrap_or_default();
        }
        assert!(recorded < RECORDS_MAX && recorded > 50, "{recorded}");
        assert!(refusals.waiting.lock().unwrap().rows.len() <= ROWS_MAX);
    }
}
