//! The request of another node's job, understood by the same rules as one that came by HTTP.

use serde_json::{Map, Value};
use tirami_infer::engine::{Engine, Format, PrepareError, Prompt, RawPrompt, Sampling};

use super::request::{Ask, Kind, Subject};
use crate::http::error::ApiError;
use crate::http::{json, length};

/// A request that the engine can run.
pub(crate) struct Asked {
    pub(crate) prompt: Prompt,
    /// Its seed is the order's to say.
    pub(crate) sampling: Sampling,
    /// Completion tokens of the whole answer at most.
    pub(crate) completion_max: u32,
}

/// Reads the body of a request for `engine`. The model's name in it does not count: the order
/// names the digest. It takes long for a long text.
///
/// # Errors
///
/// What a caller by HTTP would be told; and a job has one subject.
pub(crate) fn understand(engine: &dyn Engine, kind: Kind, body: &[u8]) -> Result<Asked, ApiError> {
    let fields: Map<String, Value> = json::parse(body)?;
    let ask = Ask::read(kind, &fields)?;
    if ask.sampling.scores_prompt {
        return Err(unscored());
    }
    check_format(engine, &ask.sampling.format)?;
    let [subject] = ask.subjects.as_slice() else {
        let message = "a job of another node continues one text; order one for each";
        return Err(ApiError::invalid(kind.field(), message));
    };
    let (prompt, completion_max) = prepare(engine, subject, ask.completion_max)
        .map_err(|error| length::called(error, length::field(kind, &fields)))?;
    let sampling = Sampling { completion_max, ..ask.sampling };
    Ok(Asked { prompt, sampling, completion_max })
}

/// A prompt is scored by the node that is asked, or not at all.
pub(super) fn unscored() -> ApiError {
    let message = "a prompt's own log-probabilities are told only by a node that has the model \
                   itself; leave out echo or logprobs";
    ApiError::unsupported("echo", message)
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
        Subject::Chat(conversation) => engine.prepare(conversation)?,
        Subject::Raw(raw) => engine.prepare_raw(raw).map_err(|error| match &error {
            PrepareError::Unsupported { .. } if matches!(raw, RawPrompt::Infill { .. }) => {
                ApiError::unsupported("suffix", format!("{error}; leave suffix out"))
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
