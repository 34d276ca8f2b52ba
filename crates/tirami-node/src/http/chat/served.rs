//! The request of another node's job, understood by the same rules as one that came by HTTP.

use serde_json::{Map, Value};
use tirami_infer::engine::{Engine, Format, PrepareError, Prompt, RawPrompt, Sampling};

use super::is_short;
use super::request::{Ask, Kind, Subject};
use crate::http::error::ApiError;
use crate::http::{json, length};
use crate::mesh::Retold;

/// A longer request is read on a thread that may be busy for a while, in bytes.
const AT_ONCE_BYTES_MAX: usize = 4_096;

/// A request that the engine can run.
pub(crate) struct Asked {
    pub(crate) prompt: Prompt,
    /// Its seed is the order's to say.
    pub(crate) sampling: Sampling,
    /// Completion tokens of the whole answer at most.
    pub(crate) completion_max: u32,
    /// What is to be told of the prompt.
    pub(crate) retold: Retold,
}

/// Reads the body of a request for `engine`. The model's name in it does not count: the order
/// names the digest. It takes long for a long text.
///
/// # Errors
///
/// What a caller by HTTP would be told; and a job has one subject.
pub(crate) fn understand(engine: &dyn Engine, kind: Kind, body: &[u8]) -> Result<Asked, ApiError> {
    read(kind, body)?.prepared(engine)
}

/// As [`understand`], where that takes less time than to wake another thread for it; none where it
/// may take longer.
pub(crate) fn understand_at_once(
    engine: &dyn Engine,
    kind: Kind,
    body: &[u8],
) -> Option<Result<Asked, ApiError>> {
    if body.len() > AT_ONCE_BYTES_MAX {
        return None;
    }
    match read(kind, body) {
        Ok(request) => request.is_short().then(|| request.prepared(engine)),
        Err(error) => Some(Err(error)),
    }
}

/// A request that is read and not prepared.
struct Request {
    kind: Kind,
    fields: Map<String, Value>,
    ask: Ask,
}

fn read(kind: Kind, body: &[u8]) -> Result<Request, ApiError> {
    let fields: Map<String, Value> = json::parse(body)?;
    let ask = Ask::read(kind, &fields)?;
    Ok(Request { kind, fields, ask })
}

impl Request {
    fn is_short(&self) -> bool {
        // What a grammar costs does not show in its length.
        self.ask.sampling.format == Format::Text && self.ask.subjects.iter().all(is_short)
    }

    fn prepared(self, engine: &dyn Engine) -> Result<Asked, ApiError> {
        let Self { kind, fields, ask } = self;
        check_format(engine, &ask.sampling.format)?;
        check_bias(engine, &ask.sampling)?;
        let [subject] = ask.subjects.as_slice() else {
            let message = "a job of another node continues one text; order one for each";
            return Err(ApiError::invalid(kind.field(), message));
        };
        let (prompt, completion_max) = prepare(engine, subject, ask.completion_max)
            .map_err(|error| length::called(error, length::field(kind, &fields)))?;
        let retold = ask.retold(subject);
        let sampling = Sampling { completion_max, ..ask.sampling };
        Ok(Asked { prompt, sampling, completion_max, retold })
    }
}

/// Refuses a form of answer the engine cannot follow.
pub(super) fn check_format(engine: &dyn Engine, format: &Format) -> Result<(), ApiError> {
    // What the answer is without calls is asked for by another field than the calls.
    if let Some(text) = format.without_calls() {
        engine.check_format(&text)?;
    }
    if !matches!(format, Format::Calls(_)) {
        return Ok(());
    }
    engine.check_format(format).map_err(|error| ApiError::from(error).param("tools"))
}

/// Refuses a bias on a token that the model does not have. Where its tokens are not known, nothing
/// can be said.
pub(super) fn check_bias(engine: &dyn Engine, sampling: &Sampling) -> Result<(), ApiError> {
    if !engine.has_vocabulary() {
        return Ok(());
    }
    let mut tokens = sampling.logit_bias.keys();
    match tokens.find(|token| matches!(engine.spelling(**token), Ok(None))) {
        None => Ok(()),
        Some(token) => {
            let message = format!("the model has no token {token}; logit_bias names ids it has");
            Err(ApiError::invalid("logit_bias", message))
        }
    }
}

/// Renders and tokenises, and says how many completion tokens there may be.
pub(super) fn prepare(
    engine: &dyn Engine,
    subject: &Subject,
    asked: Option<u32>,
) -> Result<(Prompt, u32), ApiError> {
    let context = engine.model().context_tokens;
    if asked.is_some_and(|asked| asked > context) {
        let message = format!("max_tokens must be at most {context}, the model's context");
        return Err(ApiError::invalid("max_tokens", message));
    }
    let prompt = match subject {
        Subject::Chat(conversation) => {
            engine.prepare(conversation).map_err(|error| match error {
                PrepareError::Unsupported { .. } => {
                    ApiError::unsupported("model", format!("{error}; ask another model"))
                }
                _ => ApiError::from(error),
            })?
        }
        Subject::Raw(raw) => engine.prepare_raw(raw).map_err(|error| match &error {
            PrepareError::Unsupported { .. } if matches!(raw, RawPrompt::Infill { .. }) => {
                ApiError::unsupported("suffix", format!("{error}; leave suffix out"))
            }
            PrepareError::Unsupported { .. } if matches!(raw, RawPrompt::Tokens(_)) => {
                ApiError::unsupported("prompt", format!("{error}; send a text, or ask a chat"))
            }
            PrepareError::Unsupported { .. } => {
                ApiError::unsupported("prompt", format!("{error}; ask it as a chat"))
            }
            _ => ApiError::from(error).param("prompt"),
        })?,
    };
    let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
    let room = context.saturating_sub(prompt_tokens).max(1);
    Ok((prompt, asked.map_or(room, |asked| asked.min(room))))
}
