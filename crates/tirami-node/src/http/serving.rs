//! To whom and how far this node serves: the owner's word, the owner's rules, and what they come
//! to now.

use std::collections::BTreeSet;

use axum::extract::{Request, State};
use axum::response::Response;
use tirami_core::{PartyId, Timestamp, Trm};
use tirami_kernel::Kernel;
use tirami_ledger::book::{SERVING_LIST_MAX, ServingPolicy};
use tirami_sdk::Amount;
use tirami_sdk::types::{Serving, ServingChange, ServingRules};

use super::error::ApiError;
use super::guard::Caller;
use super::{AppState, json, mesh, wish};
use crate::owner::Seen;

pub(super) async fn serving(State(app): State<AppState>) -> Result<Response, ApiError> {
    Ok(json::ok(&shown(&app).await?))
}

pub(super) async fn pause(
    State(app): State<AppState>,
    caller: Caller,
) -> Result<Response, ApiError> {
    changed(&app, caller, |policy| {
        policy.paused_by_owner = true;
        policy.paused = true;
    })
    .await
}

pub(super) async fn resume(
    State(app): State<AppState>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let seen = app.handle.owner().seen();
    let rest = app.handle.read(move |_, now| !seen.reasons(now).is_empty()).await?;
    changed(&app, caller, move |policy| {
        policy.paused_by_owner = false;
        policy.paused = rest;
    })
    .await
}

pub(super) async fn change(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: ServingChange = json::read(request, &app).await?;
    let blocked = asked.blocked.as_deref().map(|texts| list("blocked", texts)).transpose()?;
    let trusted = asked.trusted.as_deref().map(|texts| list("trusted", texts)).transpose()?;
    changed(&app, caller, move |policy| {
        let set = |field: &mut Trm, asked: Option<Amount>| {
            *field = asked.map_or(*field, Amount::trm);
        };
        set(&mut policy.exposure_start, asked.exposure_start_trm);
        set(&mut policy.exposure_max, asked.exposure_max_trm);
        set(&mut policy.exposure_unknown_day, asked.exposure_unknown_day_trm);
        policy.jobs_max = asked.jobs_max.unwrap_or(policy.jobs_max);
        policy.fresh_ms = asked.fresh_ms.unwrap_or(policy.fresh_ms);
        policy.contributors_above = asked.contributors_above.unwrap_or(policy.contributors_above);
        if let Some(blocked) = blocked {
            policy.blocked = blocked;
        }
        if let Some(trusted) = trusted {
            policy.trusted = trusted;
        }
    })
    .await
}

fn list(param: &str, texts: &[String]) -> Result<BTreeSet<PartyId>, ApiError> {
    if texts.len() > SERVING_LIST_MAX {
        let message = format!("{param} must be a list of at most {SERVING_LIST_MAX} nodes");
        return Err(ApiError::invalid(param, message));
    }
    texts.iter().map(|text| wish::party(param, text)).collect()
}

async fn changed(
    app: &AppState,
    caller: Caller,
    change: impl FnOnce(&mut ServingPolicy),
) -> Result<Response, ApiError> {
    app.handle.owner().change(&app.handle, caller.actor(), change).await?;
    Ok(json::ok(&shown(app).await?))
}

async fn shown(app: &AppState) -> Result<Serving, ApiError> {
    let seen = app.handle.owner().seen();
    let (has_model, has_mesh) = (!app.models.is_empty(), app.mesh.is_some());
    let read = move |kernel: &Kernel, now| {
        let reasons = reasons(kernel, &seen, now, (has_model, has_mesh));
        view(kernel, &seen, reasons)
    };
    Ok(app.handle.read(read).await?)
}

/// Why nobody else is served now.
fn reasons(
    kernel: &Kernel,
    seen: &Seen,
    now: Timestamp,
    (has_model, has_mesh): (bool, bool),
) -> Vec<String> {
    let (ledger, book) = (kernel.ledger(), kernel.ledger().book());
    let mut reasons = Vec::new();
    let mut when = |yes: bool, reason: &str| {
        if yes {
            reasons.push(reason.to_owned());
        }
    };
    when(!has_mesh, "this node is in no mesh with others");
    when(!has_model, "this node has no model");
    when(
        ledger.lattice().chain(ledger.party()).is_none(),
        "this node is no member of its mesh yet",
    );
    when(book.kill().is_some(), "the kill switch is on; `tirami kill off` lifts it");
    when(book.serving().paused_by_owner, "its owner paused it; `tirami resume` lifts that");
    when(book.serving().jobs_max == 0, "jobs_max is 0");
    reasons.extend(seen.reasons(now));
    if reasons.is_empty() && book.serving().paused {
        reasons.push("it is about to begin".to_owned());
    }
    reasons
}

fn view(kernel: &Kernel, seen: &Seen, reasons: Vec<String>) -> Serving {
    let book = kernel.ledger().book();
    let policy = book.serving();
    let names = |parties: &BTreeSet<PartyId>| parties.iter().map(ToString::to_string).collect();
    Serving {
        serving: reasons.is_empty(),
        reasons,
        paused_by_owner: policy.paused_by_owner,
        jobs_max: policy.jobs_max,
        jobs_running: u32::try_from(book.served_running()).unwrap_or(u32::MAX),
        price_trm: mesh::price(book.price()),
        exposure_start_trm: policy.exposure_start.into(),
        exposure_max_trm: policy.exposure_max.into(),
        exposure_unknown_day_trm: policy.exposure_unknown_day.into(),
        fresh_ms: policy.fresh_ms,
        owed_trm: owed(kernel).into(),
        earned_trm: book.earned_total().into(),
        blocked: names(&policy.blocked),
        trusted: names(&policy.trusted),
        contributors_above: policy.contributors_above,
        rules: ServingRules {
            hours: seen.hours.map(|hours| hours.to_string()).unwrap_or_default(),
            idle_percent: seen.idle_percent,
            busy_percent: seen.busy_percent,
            price_floor_trm: seen.floor.map(mesh::price),
            megaflops: seen.megaflops,
        },
    }
}

/// What other nodes owe this one, running jobs at their maximum.
pub(super) fn owed(kernel: &Kernel) -> Trm {
    let consumers = kernel.ledger().book().consumers().values();
    consumers.fold(Trm::ZERO, |sum, consumer| sum.saturating_add(consumer.owed))
}
