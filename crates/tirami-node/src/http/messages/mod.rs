//! Anthropic's messages: a translation into a chat and back.
//!
//! The translated chat is what is held for, ordered, forwarded and paid; a provider of the mesh
//! sees a chat like any other.

mod envelope;
mod form;
mod request;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value};
use tirami_sdk::types::MessageTokens;

use super::chat::{self, Kind, form::Form};
use super::error::ApiError;
use super::guard::Caller;
use super::{AppState, json};
use form::MessagesForm;

pub(super) use envelope::refused;

/// Answers `POST /v1/messages`.
pub(super) async fn messages(
    State(app): State<AppState>,
    caller: Caller,
    request: Request<Body>,
) -> Response {
    let answer = async {
        let fields: Map<String, Value> = json::read(request, &app.config).await?;
        let stops = request::stops(&fields)?;
        let chat = chat::form::written(&request::chat(&fields, true)?);
        let form = |_: &chat::Ask, _| -> Box<dyn Form> { Box::new(MessagesForm::new(stops)) };
        chat::answer(app, &caller, (Kind::Chat, &chat), form).await
    };
    answer.await.unwrap_or_else(refused)
}

/// Answers `POST /v1/messages/count_tokens`.
pub(super) async fn count_tokens(State(app): State<AppState>, request: Request<Body>) -> Response {
    let answer = async {
        let fields: Map<String, Value> = json::read(request, &app.config).await?;
        let chat = request::chat(&fields, false)?;
        let model = chat.get("model").and_then(Value::as_str).unwrap_or_default();
        let engine = app.models.lease(&chat::own(&app, model)?, None).await?;
        let (prompt, _) = chat::prepare_chat(&engine, chat::conversation(&chat)?, None).await?;
        let input_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
        Ok::<_, ApiError>(json::ok(&MessageTokens { input_tokens }))
    };
    answer.await.unwrap_or_else(refused)
}
