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
use tirami_ledger::lattice::Keep;
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
    /// Of the lattice alone.
    lattice: Option<Digest>,
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
    let ledger = Ledger::restore(snapshot).ok();
    Seen {
        revision,
        lattice: ledger.as_ref().map(|ledger| ledger.lattice().state_hash()),
        state_hash: Ledger::hash_of_snapshot(snapshot),
        conserved: ledger.is_some_and(|ledger| ledger.check_invariants().is_ok()),
    }
}

fn with(totals: Network, seen: Seen) -> Network {
    let state_hash = seen.state_hash.to_string();
    let lattice_state_hash = seen.lattice.map(|hash| hash.to_string()).unwrap_or_default();
    Network { state_hash, lattice_state_hash, conserved: seen.conserved, ..totals }
}

/// Everything that is kept up to date anyway.
fn totals_of(kernel: &Kernel) -> Network {
    let ledger = kernel.ledger();
    let lattice = ledger.lattice();
    let (totals, charter) = (lattice.totals(), lattice.charter());
    let amount = |micro: i128| {
        let micro = u64::try_from(micro.max(0)).unwrap_or(u64::MAX);
        Trm::from_micro(micro).into()
    };
    Network {
        mesh_id: ledger.lattice().mesh().to_string(),
        node_id: ledger.party().to_string(),
        state_hash: String::new(),
        lattice_state_hash: String::new(),
        charter_version: charter.version,
        witnesses: u32::try_from(charter.witnesses.len()).unwrap_or(u32::MAX),
        quorum: charter.quorum.into(),
        witnesses_tolerated: charter.witnesses_tolerated() as u64,
        away_tolerated: charter.away_tolerated() as u64,
        peers: kernel.mesh().peers().filter(|(_, peer)| peer.is_open()).count() as u64,
        providers: providers_serving(kernel),
        entries_final: lattice.final_count() as u64,
        entries_pending: lattice.pending_of(ledger.party()).count() as u64,
        entries_behind: kernel.entries_behind(),
        lag_ms: kernel.lag_ms(kernel.clock()),
        checkpoint_at_ms: lattice.last_checkpoint().map(|(_, _, at)| at.ms()),
        total_nodes: lattice.chain_count() as u64,
        keeps: match kernel.keeps() {
            Keep::All => "all".to_owned(),
            Keep::Own => "own".to_owned(),
        },
        total_trades: ledger.book().jobs_charged(),
        charged_trm: ledger.book().charged_total().into(),
        earned_trm: ledger.book().earned_total().into(),
        total_agents: ledger.book().agents().len() as u64,
        free_trm: SignedAmount::from_micro(totals.free),
        in_transit_trm: amount(totals.transit),
        minted_trm: amount(totals.minted),
        burned_trm: amount(totals.burned),
        loss_trm: SignedAmount::from_micro(totals.loss),
        outside_trm: SignedAmount::from_micro(totals.outside),
        conserved: false,
    }
}

/// Nodes that serve now.
pub(super) fn providers_serving(kernel: &Kernel) -> u64 {
    let known = kernel.mesh().providers(kernel.clock());
    known.filter(|known| known.signal.serving && !known.lost).count() as u64
}

fn broken() -> ApiError {
    let message = "the state could not be examined; the node's log says why";
    ApiError::server(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}
