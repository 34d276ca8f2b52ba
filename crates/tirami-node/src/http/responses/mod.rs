//! OpenAI's responses: a translation into a chat and back, and what is kept of them.

mod form;
mod items;
mod reference;
mod request;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};
use tirami_core::AgentId;
use tirami_sdk::types::DeletedResponse;

use super::chat::form::{Form, written};
use super::chat::{self, Kind, present};
use super::error::ApiError;
use super::guard::Caller;
use super::query::Segment;
use super::{AppState, json, names, views};
use crate::responses::{Kept, ResponsesError};
use form::ResponsesForm;
use request::Asked;

pub(super) use items::input_items;

/// Answers `POST /v1/responses`.
pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields: Map<String, Value> = json::read(request, &app).await?;
    let before = match present(&fields, "previous_response_id") {
        None => Vec::new(),
        Some(Value::String(id)) => conversation(&app, caller.agent(), id).await?,
        Some(_) => return Err(unknown_previous()),
    };
    reference::resolve(&app, caller.agent(), &mut fields).await?;
    let Asked { chat, base, conversation } = request::read(&fields, before)?;
    let keeper = caller.agent().filter(|_| base.store);
    let form = |_: &chat::Ask, _| -> Box<dyn Form> {
        Box::new(ResponsesForm::new(base, conversation, keeper))
    };
    let answer = chat::answer(app, &caller, (Kind::Chat, written(&chat).into()), form).await;
    answer.map_err(|error| names::renamed(error, &request::NAMES))
}

/// The chat that an answer ended.
async fn conversation(
    app: &AppState,
    agent: Option<AgentId>,
    id: &str,
) -> Result<Vec<Value>, ApiError> {
    let kept = find(app, agent, id).await?.ok_or_else(unknown_previous)?;
    // What this node wrote down is what it reads.
    serde_json::from_slice(&kept.conversation).map_err(|_| unknown_previous())
}

async fn find(app: &AppState, agent: Option<AgentId>, id: &str) -> Result<Option<Kept>, ApiError> {
    let Some(agent) = agent else { return Ok(None) };
    Ok(app.responses.find(agent, id, views::now_ms()).await?)
}

/// Answers `GET /v1/responses/{id}`.
pub(super) async fn get(
    State(app): State<AppState>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let kept = find(&app, caller.agent(), &id).await?;
    kept.map(|kept| json::written(kept.response)).ok_or_else(unknown)
}

/// Answers `DELETE /v1/responses/{id}`.
pub(super) async fn delete(
    State(app): State<AppState>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let agent = caller.agent().ok_or_else(unknown)?;
    if !app.responses.forget(agent, &id, views::now_ms()).await? {
        return Err(unknown());
    }
    let object = "response.deleted".to_owned();
    Ok(json::ok(&DeletedResponse { id, object, deleted: true }))
}

const NONE: &str = "there is no such response of this caller's agent: it was not stored, or it was \
                    deleted, or its 30 days are over";

fn unknown() -> ApiError {
    ApiError::not_found("unknown_response", NONE)
}

fn unknown_previous() -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "invalid_request_error",
        "previous_response_not_found",
        format!("{NONE}; send the whole conversation as input"),
    )
    .param("previous_response_id")
}

impl From<ResponsesError> for ApiError {
    fn from(error: ResponsesError) -> Self {
        Self::server(StatusCode::SERVICE_UNAVAILABLE, "responses_unavailable", error.to_string())
    }
}
