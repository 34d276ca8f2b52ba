//! Giving TRM to another node: once for each idempotency key, whatever happens in between.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::lattice::{EntryKind, Transfer};
use tirami_sdk::types::TransferRequest;

use super::charter::{conflict, entry_view, unexpected};
use super::error::ApiError;
use super::guard::Caller;
use super::wish::party;
use super::{AppState, json};
use crate::owner::TransferError;

/// Characters of an idempotency key at most.
const KEY_CHARS_MAX: usize = 64;

pub(super) async fn transfer(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: TransferRequest = json::read(request, &app).await?;
    let payee = party("to", &asked.to)?;
    let key = asked.idempotency_key;
    if !(1..=KEY_CHARS_MAX).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic())
    {
        let message = "idempotency_key must be 1 to 64 visible characters without blanks";
        return Err(ApiError::invalid("idempotency_key", message));
    }
    let amount = asked.amount_trm.trm();
    // Another amount or payee under the same key is another transfer, and an error of the caller.
    let mark = mark(&asked.to, amount.micro());
    let (handle, actor) = (app.handle.clone(), caller.actor());
    let sign = async move {
        let kind = EntryKind::from(Transfer { payee, amount });
        match handle.submit(actor, Command::SignEntry { kind }).await {
            Ok(Outcome::Entry { entry, .. }) => Ok(entry),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(ApiError::from(error)),
        }
    };
    let owner = Arc::clone(app.handle.owner());
    // A caller that goes away must not leave the transfer half written down.
    let done = tokio::spawn(async move {
        match owner.transfers() {
            Some(transfers) => transfers.once((&key, &mark), sign).await,
            None => Err(TransferError::Refused(unexpected())),
        }
    });
    match done.await.unwrap_or(Err(TransferError::Uncertain)) {
        Ok((entry, repeated)) => Ok(json::ok(&entry_view(&app, entry, repeated).await?)),
        Err(TransferError::Refused(error)) => Err(error),
        Err(TransferError::Other) => Err(conflict(
            "idempotency_key_used",
            "this idempotency key was used for another transfer, and nothing was paid; choose a \
             new one",
        )),
        Err(TransferError::Uncertain) => Err(conflict(
            "transfer_uncertain",
            "the node stopped in the middle of this transfer, so it may have been made; compare \
             the receiver's balance; only if it was not, send it with a new idempotency key",
        )),
        Err(TransferError::Unwritten(error)) => Err(ApiError::server(
            StatusCode::SERVICE_UNAVAILABLE,
            "transfer_unwritten",
            format!("the transfer could not be written down ({error}), so nothing was paid"),
        )),
    }
}

/// What a key is for, so that it is used for one transfer only.
fn mark(to: &str, micro: u64) -> String {
    let digest = tirami_core::Digest::of(format!("{to} {micro}").as_bytes());
    digest.to_string().chars().take(16).collect()
}
