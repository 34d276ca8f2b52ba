//! Items of the input that are only named: what an earlier answer to the same agent said.

use serde_json::{Map, Value};
use tirami_core::{AgentId, JobId};

use super::{NONE, find};
use crate::http::AppState;
use crate::http::error::ApiError;

/// Answers whose items one request may name at most: each of them is read from the disk.
const ANSWERS_MAX: usize = 256;
/// Characters of a job's id.
const JOB_CHARS: usize = 32;

/// Puts the items themselves in place of their names.
pub(super) async fn resolve(
    app: &AppState,
    agent: Option<AgentId>,
    fields: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let Some(Value::Array(items)) = fields.get_mut("input") else { return Ok(()) };
    // Answers that were read, each with what it said.
    let mut answers = Vec::<(String, Value)>::new();
    // A name is short, and one item may be named often: what is named has the room of a body.
    let max = app.config.body_max_bytes;
    let mut room = max;
    for (index, item) in items.iter_mut().enumerate() {
        if item.get("type").is_none_or(|kind| kind != "item_reference") {
            continue;
        }
        let at = format!("input[{index}].id");
        let id = item.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let answer = answer_of(&id).ok_or_else(|| unknown(&at))?;
        let place = match answers.iter().position(|(known, _)| *known == answer) {
            Some(place) => place,
            None if answers.len() == ANSWERS_MAX => return Err(too_many()),
            None => {
                let said = said(app, agent, &answer).await?.ok_or_else(|| unknown(&at))?;
                answers.push((answer, said));
                answers.len() - 1
            }
        };
        let mut said = answers[place].1.as_array().into_iter().flatten();
        let named = said.find(|one| one.get("id").is_some_and(|own| *own == id));
        let named = named.ok_or_else(|| unknown(&at))?;
        room = room.checked_sub(named.to_string().len()).ok_or_else(|| too_long(max))?;
        *item = named.clone();
    }
    Ok(())
}

/// The answer that an item is of: its id is a word, the answer's job, and a place.
fn answer_of(id: &str) -> Option<String> {
    let (_, rest) = id.split_once('_')?;
    let job: JobId = rest.get(..JOB_CHARS)?.parse().ok()?;
    Some(format!("resp_{job}"))
}

/// The items of a kept answer; none where it is not kept for this agent.
async fn said(
    app: &AppState,
    agent: Option<AgentId>,
    answer: &str,
) -> Result<Option<Value>, ApiError> {
    let Some(kept) = find(app, agent, answer).await? else { return Ok(None) };
    let told: Option<Value> = serde_json::from_slice(&kept.response).ok();
    Ok(told.and_then(|mut told| told.get_mut("output").map(Value::take)))
}

fn unknown(at: &str) -> ApiError {
    ApiError::bad_request("item_not_found", format!("{NONE}; send the item itself")).param(at)
}

fn too_long(max: usize) -> ApiError {
    let message = format!(
        "the items that input names have more than {max} bytes; name fewer or raise body_max_bytes"
    );
    ApiError::invalid("input", message)
}

fn too_many() -> ApiError {
    let message =
        format!("input names items of more than {ANSWERS_MAX} answers; send the items themselves");
    ApiError::invalid("input", message)
}
