//! Which models are in memory, and the owner's word about it.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde_json::{Map, Value};
use tirami_sdk::types::{LoadModel, ModelState, ModelStateList};

use super::error::ApiError;
use super::query::Segment;
use super::{AppState, chat, json};
use crate::models::{KeepAlive, LeaseError, Model};

pub(super) async fn states(State(app): State<AppState>) -> Response {
    json::ok(&ModelStateList {
        models: states_of(&app),
        memory_bytes: app.models.memory_bytes(),
        memory_budget_bytes: app.models.memory_budget(),
    })
}

/// All models this node can load.
pub(super) fn states_of(app: &AppState) -> Vec<ModelState> {
    app.models.all().iter().map(state).collect()
}

/// Loads a model. One that is new in the models folder is found by this.
pub(super) async fn load(
    State(app): State<AppState>,
    Segment(id): Segment,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let fields: Map<String, Value> = match request.headers().contains_key(CONTENT_TYPE) {
        true => json::read(request, &app).await?,
        false => Map::new(),
    };
    let keep = keep_alive(&fields)?;
    let LoadModel { .. } = json::value(Value::Object(fields))?;
    if app.models.find(&id).is_none() {
        app.models.look().await;
    }
    let model = chat::own(&app, &id)?;
    drop(app.models.lease(&model, keep).await?);
    Ok(json::ok(&state(&model)))
}

pub(super) async fn unload(
    State(app): State<AppState>,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let model = chat::own(&app, &id)?;
    if !app.models.unload(&model).await {
        return Err(LeaseError::InUse { model: model.info().name.clone() }.into());
    }
    Ok(json::ok(&state(&model)))
}

/// How long a request wants its model to stay in memory afterwards: a number of seconds, or a
/// text such as `5m`.
pub(super) fn keep_alive(fields: &Map<String, Value>) -> Result<Option<KeepAlive>, ApiError> {
    let wrong = || {
        let message = "keep_alive must be a number of seconds, or a time such as \"5m\"; 0 unloads \
                       the model at once, -1 keeps it";
        ApiError::invalid("keep_alive", message)
    };
    match fields.get("keep_alive") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(seconds)) => {
            seconds.as_i64().map(|seconds| Some(KeepAlive::seconds(seconds))).ok_or_else(wrong)
        }
        Some(Value::String(text)) => text.parse().map(Some).map_err(|()| wrong()),
        Some(_) => Err(wrong()),
    }
}

fn state(model: &Model) -> ModelState {
    let (info, load) = (model.info(), model.load());
    let is_loaded = model.is_loaded();
    let state = match (is_loaded, model.is_loading()) {
        (true, _) => "loaded",
        (false, true) => "loading",
        (false, false) => "on_disk",
    };
    let idle = model.idle().as_millis();
    ModelState {
        name: info.name.clone(),
        digest: info.digest.to_string(),
        state: state.to_owned(),
        offered: model.is_offered(),
        size_bytes: info.size_bytes,
        memory_bytes: model.memory_bytes(),
        idle_ms: is_loaded.then(|| u64::try_from(idle).unwrap_or(u64::MAX)),
        running: load.running,
        queued: load.queued,
        completion_tokens_total: load.completion_tokens_total,
        prompt_tokens_total: load.prompt_tokens_total,
    }
}
