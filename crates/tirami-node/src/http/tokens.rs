//! Texts as the model's tokens, and tokens as text. It costs nothing and moves nothing; the work
//! is done on a thread that may be kept waiting, and is bounded by the body and by names below.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};
use tirami_infer::engine::{Conversation, Engine, PrepareError};
use tirami_sdk::types::{Detokenized, Tokenized};

use super::error::ApiError;
use super::{AppState, chat, json, loaded};
use crate::models::Lease;

/// Tokens that one request may have turned into text at most.
const DETOKENIZED_MAX: usize = 131_072;

/// What is to be cut into tokens.
enum Given {
    Text { text: String, begins: bool },
    Chat(Conversation),
}

pub(super) async fn tokenize(
    State(app): State<AppState>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let fields: Map<String, Value> = json::read(request, &app).await?;
    let engine = engine(&app, &fields).await?;
    let given = given(&fields)?;
    let spelled = chat::flag(&fields, "return_token_strs")?.unwrap_or(false);
    let tokenized = on_a_thread(move || tokenized(&*engine, &given, spelled)).await?;
    Ok(json::ok(&tokenized))
}

pub(super) async fn detokenize(
    State(app): State<AppState>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let fields: Map<String, Value> = json::read(request, &app).await?;
    let engine = engine(&app, &fields).await?;
    let wrong = |message: &str| ApiError::invalid("tokens", message);
    let list = match chat::present(&fields, "tokens") {
        Some(Value::Array(list)) if list.len() <= DETOKENIZED_MAX => list,
        Some(Value::Array(_)) => {
            let message = format!("tokens has more than {DETOKENIZED_MAX} entries; send fewer");
            return Err(wrong(&message));
        }
        _ => return Err(wrong("tokens must be a list of the model's token ids")),
    };
    let tokens = list.iter().enumerate().map(|(index, value)| token(index, value));
    let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
    let prompt = on_a_thread(move || text_of(&*engine, &tokens)).await?;
    Ok(json::ok(&Detokenized { content: prompt.clone(), prompt }))
}

/// The model's engine, which has to be here: a name in `model`, or the one there is.
async fn engine(app: &AppState, fields: &Map<String, Value>) -> Result<Lease, ApiError> {
    let model = match chat::present(fields, "model") {
        None => app.models.first().ok_or_else(|| chat::unknown_model(app, ""))?,
        Some(Value::String(model)) => chat::at_hand(app, model).await?,
        Some(_) => return Err(ApiError::invalid("model", "model must be a name as text")),
    };
    if !model.has_vocabulary() {
        let message = "the model's file is not at hand, so what its tokens are cannot be said";
        return Err(ApiError::unsupported("model", message));
    }
    Ok(app.models.lease(&model, loaded::keep_alive(fields)?).await?)
}

fn given(fields: &Map<String, Value>) -> Result<Given, ApiError> {
    if chat::flag(fields, "add_generation_prompt")? == Some(false) {
        let message = "add_generation_prompt cannot be false here; leave it out";
        return Err(ApiError::unsupported("add_generation_prompt", message));
    }
    let begins = chat::flag(fields, "add_special_tokens")?.unwrap_or(true);
    let text = ["prompt", "content"].map(|name| (name, chat::present(fields, name)));
    match text.into_iter().find_map(|(name, value)| value.map(|value| (name, value))) {
        None if chat::present(fields, "messages").is_none() => {
            let message = "prompt is missing; send a text, or messages for a chat";
            Err(ApiError::invalid("prompt", message))
        }
        None => chat::conversation(fields).map(Given::Chat),
        Some(_) if chat::present(fields, "messages").is_some() => {
            let message = "a text and messages were sent; leave one of them out";
            Err(ApiError::invalid("messages", message))
        }
        Some((_, Value::String(text))) => Ok(Given::Text { text: text.clone(), begins }),
        Some((name, _)) => Err(ApiError::invalid(name, format!("{name} must be text"))),
    }
}

fn tokenized(engine: &dyn Engine, given: &Given, spelled: bool) -> Result<Tokenized, ApiError> {
    let tokens = match given {
        Given::Chat(conversation) => engine.prepare(conversation)?.tokens,
        Given::Text { text, begins } => {
            let begin = engine.begin_token().filter(|_| *begins);
            let text = engine.tokenize(text).map_err(refused)?;
            begin.into_iter().chain(text).collect()
        }
    };
    let spell = |token: &u32| spelling(engine, *token).map(lossy);
    let token_strs = spelled.then(|| tokens.iter().map(spell).collect::<Result<_, _>>());
    Ok(Tokenized {
        count: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
        max_model_len: engine.model().context_tokens,
        token_strs: token_strs.transpose()?,
        tokens,
    })
}

fn text_of(engine: &dyn Engine, tokens: &[u32]) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let spelled = engine.spelling(*token).map_err(refused)?;
        bytes.extend_from_slice(&spelled.ok_or_else(|| unknown(index, *token))?);
    }
    Ok(lossy(bytes))
}

/// What a token stands for; nothing for one that the model itself does not know.
fn spelling(engine: &dyn Engine, token: u32) -> Result<Vec<u8>, ApiError> {
    engine.spelling(token).map(Option::unwrap_or_default).map_err(refused)
}

fn token(index: usize, value: &Value) -> Result<u32, ApiError> {
    let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
    token.ok_or_else(|| {
        let param = format!("tokens[{index}]");
        ApiError::invalid(&param, format!("{param} must be the id of a token, a whole number"))
    })
}

fn unknown(index: usize, token: u32) -> ApiError {
    let param = format!("tokens[{index}]");
    ApiError::invalid(&param, format!("{param} is {token}; the model has no such token"))
}

/// Bytes that are no text become U+FFFD.
fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A text is named in the refusal, not the messages of a chat.
fn refused(error: PrepareError) -> ApiError {
    let message = match &error {
        PrepareError::ContextLength { context_tokens, .. } => {
            format!(
                "the text has more tokens than the {context_tokens} the model reads; shorten it"
            )
        }
        other => other.to_string(),
    };
    ApiError::from(error).reworded(message).param("prompt")
}

/// No other request waits for a long text.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        let message = "the text could not be read; the node's log says why";
        ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "prepare_failed", message)
    })?
}
