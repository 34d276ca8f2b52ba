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

use super::chat::{self, Kind, form::Form, present};
use super::error::ApiError;
use super::guard::Caller;
use super::{AppState, json, models, names};
use form::MessagesForm;

pub(super) use envelope::refused;

/// Answers `POST /v1/messages`.
pub(super) async fn messages(
    State(app): State<AppState>,
    caller: Caller,
    request: Request<Body>,
) -> Response {
    let answer = async {
        let body = json::body(request, &app).await?;
        let read = |fields: Map<String, Value>| {
            let (stops, named) = (request::stops(&fields)?, request::names(&fields));
            Ok::<_, ApiError>((stops, named, request::chat(&fields, true)?))
        };
        let (stops, named, mut translated) = json::understood(&app, body, read).await?;
        fit(&app, &mut translated).await?;
        let chat = chat::form::written(&translated).into();
        drop(translated);
        let form = |_: &chat::Ask, _| -> Box<dyn Form> { Box::new(MessagesForm::new(stops)) };
        let answer = chat::answer(app, &caller, (Kind::Chat, chat), form).await;
        answer.map_err(|error| names::renamed(error, &named))
    };
    answer.await.unwrap_or_else(refused)
}

/// Leaves out a length that no context of the model has, so that the answer may be as long as there
/// is room for: clients of this interface must name one, and name the same for every model.
async fn fit(app: &AppState, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let asked = present(chat, "max_tokens").and_then(Value::as_u64);
    let model = present(chat, "model").and_then(Value::as_str);
    let Some((asked, model)) = asked.zip(model) else { return Ok(()) };
    let context = models::context_tokens(app, model).await?;
    if context.is_some_and(|context| asked > u64::from(context)) {
        chat.remove("max_tokens");
    }
    Ok(())
}

/// Answers `POST /v1/messages/count_tokens`.
pub(super) async fn count_tokens(State(app): State<AppState>, request: Request<Body>) -> Response {
    let answer = async {
        let fields: Map<String, Value> = json::read(request, &app).await?;
        let counted = counted(&app, &request::chat(&fields, false)?).await;
        counted.map_err(|error| names::renamed(error, &request::names(&fields)))
    };
    answer.await.map_or_else(refused, |counted| json::ok(&counted))
}

async fn counted(app: &AppState, chat: &Map<String, Value>) -> Result<MessageTokens, ApiError> {
    let model = chat.get("model").and_then(Value::as_str).unwrap_or_default();
    let engine = app.models.lease(&chat::at_hand(app, model).await?, None).await?;
    let (prompt, _) = chat::prepare_chat(&engine, chat::conversation(chat)?, None).await?;
    let input_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
    Ok(MessageTokens { input_tokens })
}
