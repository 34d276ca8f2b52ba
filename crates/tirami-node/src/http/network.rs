//! The mesh's totals, with what can only be said over the whole state: its hash, and whether
//! every sum agrees.
//!
//! The kernel's task only writes the state down, and only after something has changed since it
//! was last asked to; hashing and checking happen elsewhere.

use std::sync::{Mutex, PoisonError};

use axum::extract::State;
use axum::response::Response;
use tirami_core::{Digest, Trm};
use tirami_kernel::Kernel;
use tirami_ledger::Ledger;
use tirami_sdk::SignedAmount;
use tirami_sdk::types::Network;
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::{AppState, json};

/// What was last computed over the whole state.
#[derive(Debug)]
pub(super) struct StateSeen {
    last: Mutex<Option<Seen>>,
    /// One computation at a time, however many ask.
    turn: Semaphore,
}

impl Default for StateSeen {
    fn default() -> Self {
        Self { last: Mutex::new(None), turn: Semaphore::new(1) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    revision: u64,
    state_hash: Digest,
    conserved: bool,
}

impl StateSeen {
    fn at(&self, revision: u64) -> Option<Seen> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|seen| seen.revision == revision)
    }

    fn keep(&self, seen: Seen) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }
}

pub(super) async fn network(State(app): State<AppState>) -> Result<Response, ApiError> {
    let (totals, revision) =
        app.handle.read(|kernel, _| (totals_of(kernel), kernel.revision())).await?;
    if let Some(seen) = app.state_seen.at(revision) {
        return Ok(json::ok(&with(totals, seen)));
    }
    // The semaphore is never closed.
    let _turn = app.state_seen.turn.acquire().await.map_err(|_| broken())?;
    let cache = app.state_seen.clone();
    let (totals, known) = app
        .handle
        .read(move |kernel, _| {
            let revision = kernel.revision();
            let known = cache.at(revision).ok_or_else(|| (revision, kernel.snapshot()));
            (totals_of(kernel), known)
        })
        .await?;
    let seen = match known {
        Ok(seen) => seen,
        Err((revision, snapshot)) => {
            let computed = tokio::task::spawn_blocking(move || examine(revision, &snapshot));
            let seen = computed.await.map_err(|_| broken())?;
            app.state_seen.keep(seen);
            seen
        }
    };
    Ok(json::ok(&with(totals, seen)))
}

fn examine(revision: u64, snapshot: &[u8]) -> Seen {
    let ledger = Ledger::restore(snapshot);
    Seen {
        revision,
        state_hash: Ledger::hash_of_snapshot(snapshot),
        conserved: ledger.is_ok_and(|ledger| ledger.check_invariants().is_ok()),
    }
}

fn with(totals: Network, seen: Seen) -> Network {
    let state_hash = seen.state_hash.to_string();
    Network { state_hash, conserved: seen.conserved, ..totals }
}

/// Everything that is kept up to date anyway.
fn totals_of(kernel: &Kernel) -> Network {
    let ledger = kernel.ledger();
    let totals = ledger.lattice().totals();
    let amount = |micro: i128| {
        let micro = u64::try_from(micro.max(0)).unwrap_or(u64::MAX);
        Trm::from_micro(micro).into()
    };
    Network {
        mesh_id: ledger.lattice().mesh().to_string(),
        node_id: ledger.party().to_string(),
        state_hash: String::new(),
        total_nodes: ledger.lattice().chains().count() as u64,
        total_trades: ledger.book().jobs_charged(),
        total_agents: ledger.book().agents().len() as u64,
        free_trm: SignedAmount::from_micro(totals.free),
        in_transit_trm: amount(totals.transit),
        minted_trm: amount(totals.minted),
        burned_trm: amount(totals.burned),
        loss_trm: SignedAmount::from_micro(totals.loss),
        conserved: false,
    }
}

fn broken() -> ApiError {
    let message = "the state could not be examined; the node's log says why";
    ApiError::server(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}
