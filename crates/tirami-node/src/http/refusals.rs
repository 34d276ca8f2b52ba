//! What other nodes tried here and was refused.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use tirami_core::PartyId;
use tirami_kernel::Kernel;
use tirami_sdk::types::{Refusal, RefusalList};

use super::error::ApiError;
use super::{AppState, json};

/// Rows shown at most.
const SHOWN_MAX: usize = 1_000;

type Rows = BTreeMap<(PartyId, String), (u64, Option<u64>)>;

pub(super) async fn refusals(State(app): State<AppState>) -> Result<Response, ApiError> {
    let mut rows = app.handle.read(|kernel, _| recorded(kernel)).await?;
    for (party, code, more) in app.handle.owner().refusals().waiting() {
        rows.entry((party, code.to_owned())).or_default().0 += u64::from(more);
    }
    let count = rows.len() as u64;
    let mut refusals: Vec<Refusal> = rows
        .into_iter()
        .map(|((party, code), (times, last_at_ms))| {
            let node_id = party.to_string();
            Refusal { node_id, code, times, last_at_ms }
        })
        .collect();
    refusals.sort_by_key(|row| core::cmp::Reverse(row.last_at_ms));
    refusals.truncate(SHOWN_MAX);
    Ok(json::ok(&RefusalList { count, refusals }))
}

fn recorded(kernel: &Kernel) -> Rows {
    let (book, lattice) = (kernel.ledger().book(), kernel.ledger().lattice());
    let mut rows: Rows = book
        .refusals()
        .map(|(party, code, row)| ((party, code.to_owned()), (row.count, Some(row.last_at.ms()))))
        .collect();
    for (provider, times) in book.receipts_refused() {
        rows.insert((*provider, "receipts".to_owned()), ((*times).into(), None));
    }
    for proof in lattice.double_sign_proofs() {
        rows.insert((proof.slot.chain, "double_signed".to_owned()), (1, None));
    }
    rows
}
