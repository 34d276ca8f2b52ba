//! API keys: shown once, kept as digests.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tirami_core::{Digest, ModelShape, Timestamp};
use tirami_kernel::Kernel;
use tirami_ledger::Rejection;
use tirami_ledger::book::{KeyId, Target};
use tirami_ledger::command::{Actor, Command};
use tirami_sdk::types::{CreateKey, CreatedKey, Done, KeyInfo, KeyList, RotateKey};

use super::error::ApiError;
use super::guard::Caller;
use super::query::Segment;
use super::safety::key_id;
use super::views::{self, AnswerCost};
use super::{AppState, json, query};
use crate::handle::SubmitError;
use crate::keys::{ApiKeyText, new_api_key};

/// A drawn name may be taken; with 10 000 keys of 2³² names hardly twice in a row.
const NAMES_TRIED: u32 = 8;

pub(super) async fn list(State(app): State<AppState>) -> Result<Response, ApiError> {
    let shape = app.shape();
    let keys: Vec<KeyInfo> = app
        .handle
        .read(move |kernel, now| {
            let keys = kernel.ledger().book().keys().keys();
            keys.filter_map(|key| info(kernel, now, *key, &shape)).collect()
        })
        .await?;
    Ok(json::ok(&KeyList { count: keys.len() as u64, keys }))
}

pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: CreateKey = json::read(request, &app).await?;
    let agent = asked.agent.as_deref().map(|did| query::agent("agent", did)).transpose()?;
    let scope = views::ledger_scope(asked.scope);
    let limits = asked.limits.as_ref().map(views::ledger_limits).unwrap_or_default();
    let expires_at = asked.expires_at_ms.map(Timestamp::from_ms);
    issue(&app, caller.actor(), |key, secret| Command::CreateKey {
        key,
        secret,
        label: asked.label.clone(),
        scope,
        agent,
        limits,
        expires_at,
    })
    .await
}

pub(super) async fn rotate(
    State(app): State<AppState>,
    caller: Caller,
    Segment(id): Segment,
    request: Request,
) -> Result<Response, ApiError> {
    let old = key_id(&id)?;
    let asked: RotateKey = json::read(request, &app).await?;
    let grace_ms = asked.grace_ms;
    issue(&app, caller.actor(), |new, secret| Command::RotateKey { old, new, secret, grace_ms })
        .await
}

/// Draws a key, records its digest, and shows it this once.
async fn issue(
    app: &AppState,
    actor: Actor,
    command: impl Fn(KeyId, Digest) -> Command,
) -> Result<Response, ApiError> {
    let mut tried = 0;
    let ApiKeyText { key, text } = loop {
        let drawn = new_api_key().map_err(|error| {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            ApiError::server(status, "no_randomness", error.to_string())
        })?;
        let secret = Digest::of(drawn.text.as_bytes());
        match app.handle.submit(actor.clone(), command(drawn.key, secret)).await {
            Ok(_) => break drawn,
            Err(SubmitError::Rejected(Rejection::Exists { .. })) if tried < NAMES_TRIED => {
                tried += 1;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let shape = app.shape();
    let info = app.handle.read(move |kernel, now| info(kernel, now, key, &shape)).await?;
    let info = info.ok_or_else(|| ApiError::from(Rejection::UnknownKey))?;
    Ok(json::ok(&CreatedKey { key: text.to_string(), info }))
}

pub(super) async fn revoke(
    State(app): State<AppState>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let key = key_id(&id)?;
    app.handle.submit(caller.actor(), Command::RevokeKey { key }).await?;
    Ok(json::ok(&Done { ok: true }))
}

fn info(kernel: &Kernel, now: Timestamp, id: KeyId, shape: &ModelShape) -> Option<KeyInfo> {
    let book = kernel.ledger().book();
    let key = book.keys().get(&id)?;
    let answer = AnswerCost::new(shape, book.price());
    Some(KeyInfo {
        id: id.to_string(),
        label: key.label().to_owned(),
        scope: views::sdk_scope(key.scope()),
        agent: key.agent().map(|agent| agent.did()),
        limits: answer.limits(book.limits(Target::Key(id))?),
        spending: views::spending(&book.usage(Target::Key(id), now)?),
        expires_at_ms: views::ms(key.expires_at()),
        state: match (key.is_live(now), key.revoked_at()) {
            (true, _) => "active",
            (false, Some(_)) => "revoked",
            (false, None) => "expired",
        }
        .to_owned(),
    })
}
