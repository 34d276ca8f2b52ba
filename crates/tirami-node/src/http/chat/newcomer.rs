//! A node that has just joined a mesh has not heard everything yet: what it refuses for that
//! reason passes some seconds later.

use axum::http::StatusCode;
use tirami_kernel::Kernel;

use crate::http::error::ApiError;
use crate::http::{AppState, views};

/// How long after its start a node may not have heard of its line and of others' models.
const HEARS_WITHIN_MS: u64 = 30_000;
/// When it is worth asking again.
const RETRY_AFTER_S: u64 = 2;

/// The same refusal; 503 where it only says that this node, in a mesh that others founded, has
/// not heard of its line, or of any model and has none, since it started.
pub(super) async fn told(app: &AppState, error: ApiError) -> ApiError {
    let (misses_models, misses_line) = match error.code() {
        "model_not_found" => (true, false),
        "insufficient_balance" => (false, true),
        _ => return error,
    };
    let up_ms = views::now_ms().saturating_sub(app.started_at_ms);
    if up_ms >= HEARS_WITHIN_MS || app.mesh.is_none() {
        return error;
    }
    let (personal, has_models) = (app.personal_agent, !app.models.all().is_empty());
    let read = move |kernel: &Kernel, now| {
        let (ledger, own) = (kernel.ledger(), kernel.ledger().party());
        if ledger.lattice().charter().registrar == own {
            return None;
        }
        let knows_others = || kernel.mesh().providers(now).any(|one| one.signal.provider != own);
        let knows_models = || has_models || knows_others();
        // The personal agent is filled a moment after the line came.
        let is_empty = || {
            let account = ledger.book().agents().get(&personal);
            account.is_some_and(|account| account.balance().is_zero())
        };
        let has_line = || ledger.lattice().chain(own).is_some() && !is_empty();
        if misses_models && !knows_models() {
            return Some("of models");
        }
        (misses_line && !has_line()).then_some("of its line")
    };
    let Ok(Some(what)) = app.handle.read(read).await else { return error };
    let message = format!(
        "this node started {} s ago and has not heard {what} yet; nothing was charged; ask again",
        up_ms / 1_000
    );
    ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "joining", message).retry_after(RETRY_AFTER_S)
}
