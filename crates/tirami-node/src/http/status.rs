//! How the node is: probes, metrics, models, and the API's own description.
//!
//! The probes read what is in memory and wait for nothing: not for the engine, not for the
//! kernel's queue, not for the disk.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tirami_ledger::book::Target;
use tirami_sdk::endpoints::Operation;
use tirami_sdk::types::{EngineStatus, Health, Ready, ReadyComponents, Status};

use super::error::ApiError;
use super::guard::Caller;
use super::query::Segment;
use super::{AppState, json, loaded, network, safety, serving, views};
use crate::metrics::Readings;
use crate::models::Model;

pub(super) async fn health(State(app): State<AppState>) -> Response {
    json::ok(&Health {
        status: "ok".to_owned(),
        model_loaded: app.models.all().iter().any(Model::is_loaded),
    })
}

pub(super) async fn healthz() -> &'static str {
    "ok"
}

pub(super) async fn readyz(State(app): State<AppState>) -> Response {
    let ledger = app.handle.is_running();
    // Without a model of its own the node answers through others.
    let engine = app.models.all().iter().all(Model::is_alive);
    let ready = ledger && engine && !app.jobs.is_closed();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json::response(status, &Ready { ready, components: ReadyComponents { ledger, engine } })
}

pub(super) async fn status(
    State(app): State<AppState>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let (killed, trades, holds, waiting) = app
        .handle
        .read(|kernel, now| {
            let book = kernel.ledger().book();
            let waiting = safety::waiting(kernel, now);
            (book.kill().is_some(), book.jobs_charged(), book.holds().len() as u64, waiting)
        })
        .await?;
    let first = app.models.first();
    let model = first.as_ref().map(Model::info);
    let load = app.load();
    Ok(json::ok(&Status {
        status: if killed { "frozen" } else { "ok" }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_id: app.handle.party().to_string(),
        mesh_id: app.handle.mesh().to_string(),
        personal_agent: app.personal_agent.did(),
        model: model.map(|model| model.name.clone()).unwrap_or_default(),
        model_digest: model.map(|model| model.digest.to_string()).unwrap_or_default(),
        engine: EngineStatus {
            running: load.running,
            queued: load.queued,
            completion_tokens_total: load.completion_tokens_total,
            prompt_tokens_total: load.prompt_tokens_total,
        },
        models: loaded::states_of(&app),
        started_at_ms: app.started_at_ms,
        uptime_ms: views::now_ms().saturating_sub(app.started_at_ms),
        kill_switch_active: killed,
        total_trades: trades,
        open_holds: holds,
        approvals_waiting: waiting,
        scope: views::sdk_scope(caller.scope()),
    }))
}

/// A browser shows plain text and would only store the other kind.
const METRICS_KINDS: [&str; 2] =
    ["application/openmetrics-text; version=1.0.0; charset=utf-8", "text/plain; charset=utf-8"];

pub(super) async fn metrics(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let readings = app
        .handle
        .read(|kernel, now| {
            let ledger = kernel.ledger();
            let book = ledger.book();
            Readings {
                agents_balance: book.agents_total(),
                spent: book.charged_total(),
                spent_day: book.usage(Target::Node, now).map(|usage| usage.day).unwrap_or_default(),
                trades: book.jobs_charged(),
                holds: book.holds().len() as u64,
                approvals: safety::waiting(kernel, now),
                killed: book.kill().is_some(),
                peers: kernel.mesh().peers().filter(|(_, peer)| peer.is_open()).count() as u64,
                farewells: kernel.mesh().goodbyes(),
                peer_faults: kernel.mesh().faults(),
                providers: network::providers_serving(kernel),
                entries_behind: kernel.entries_behind(),
                lag_ms: kernel.lag_ms(now),
                entries_pending: ledger.lattice().pending_of(ledger.party()).count() as u64,
                served_running: book.served_running() as u64,
                served_jobs: book.jobs_served(),
                debts: book.debts_open(),
                owed: serving::owed(kernel),
            }
        })
        .await?;
    app.metrics.read(&readings, &app.models, app.handle.queued());
    let text = app.metrics.encode().map_err(|_| {
        let message = "the metrics could not be written";
        ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    })?;
    let accepted = headers.get(ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let is_browser = accepted.is_some_and(|accepted| accepted.contains("text/html"));
    let kind = METRICS_KINDS[usize::from(is_browser)];
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

pub(super) async fn openapi(State(app): State<AppState>) -> Response {
    ([(CONTENT_TYPE, "application/json")], app.openapi.to_string()).into_response()
}

/// The page's files are named relative to it, so it lives below `/docs/`.
pub(super) async fn docs() -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, "/docs/index.html")]).into_response()
}

pub(super) async fn docs_file(Segment(file): Segment) -> Result<Response, ApiError> {
    let config = utoipa_swagger_ui::Config::from(Operation::OpenApi.endpoint().path);
    match utoipa_swagger_ui::serve(&file, Arc::new(config)) {
        Ok(Some(file)) => {
            Ok(([(CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response())
        }
        _ => Err(ApiError::not_found("unknown_file", "the page has no such file")),
    }
}
