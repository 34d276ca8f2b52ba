//! Reads what a request tells the model's chat template besides the messages.
//!
//! Only who renders the chat knows what the template reads, so names that it does not read are
//! refused there.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tirami_infer::engine::{VARIABLE_NAME_BYTES_MAX, Variables};
use tirami_infer::template::is_own;

use super::request::present;
use crate::http::error::ApiError;

/// The field with the variables by name.
pub(super) const FIELD: &str = "chat_template_kwargs";
/// The field that says how much is to be thought.
const EFFORT: &str = "reasoning_effort";
/// Variables of one request at most; templates read a handful.
const NAMED_MAX: usize = 32;
/// Bytes of their names and their values, as JSON, at most: what a template can walk through.
const BYTES_MAX: usize = 16_384;
/// Lists and objects within each other at most.
const DEPTH_MAX: usize = 16;
/// Bytes of the word for how much is to be thought at most.
const EFFORT_BYTES_MAX: usize = 32;

/// Reads `chat_template_kwargs`, `reasoning_effort` and `thinking`.
pub(super) fn read(fields: &Map<String, Value>) -> Result<Variables, ApiError> {
    Ok(Variables { named: named(fields)?, thinks: thinks(fields)?, effort: effort(fields)? })
}

fn named(fields: &Map<String, Value>) -> Result<BTreeMap<String, String>, ApiError> {
    let given = match present(fields, FIELD) {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(given)) if given.len() <= NAMED_MAX => given,
        Some(_) => {
            let message = format!("{FIELD} must be an object of at most {NAMED_MAX} variables");
            return Err(ApiError::invalid(FIELD, message));
        }
    };
    let named = given.iter().map(|(name, value)| variable(name, value));
    let named = named.collect::<Result<BTreeMap<_, _>, ApiError>>()?;
    let bytes = named.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    if bytes > BYTES_MAX {
        let message = format!("{FIELD} has more than {BYTES_MAX} bytes; shorten it");
        return Err(ApiError::invalid(FIELD, message));
    }
    Ok(named)
}

/// The value as JSON text.
fn variable(name: &str, value: &Value) -> Result<(String, String), ApiError> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.len() > VARIABLE_NAME_BYTES_MAX || !name.bytes().all(is_part) {
        let message = format!(
            "{FIELD} has a name that no template can read; a name is 1 to \
             {VARIABLE_NAME_BYTES_MAX} letters, digits and _"
        );
        return Err(ApiError::invalid(FIELD, message));
    }
    let param = format!("{FIELD}.{name}");
    if is_own(name) {
        let message = format!(
            "{param} cannot be set: the node gives it to every template, or servers take it for \
             something else; leave it out"
        );
        return Err(ApiError::unsupported(&param, message));
    }
    if !is_within(value, DEPTH_MAX) {
        let message = format!("{param} has more than {DEPTH_MAX} lists or objects in each other");
        return Err(ApiError::invalid(&param, message));
    }
    Ok((name.to_owned(), value.to_string()))
}

fn is_within(value: &Value, depth: usize) -> bool {
    let is_inner = |value: &Value| depth > 0 && is_within(value, depth - 1);
    match value {
        Value::Array(items) => items.iter().all(is_inner),
        Value::Object(fields) => fields.values().all(is_inner),
        _ => true,
    }
}

/// Whether the model is to think, in Anthropic's words, which other servers have in chats too.
/// `adaptive` leaves it to the model.
fn thinks(fields: &Map<String, Value>) -> Result<Option<bool>, ApiError> {
    let Some(thinking) = present(fields, "thinking") else {
        return Ok(None);
    };
    match thinking.get("type").and_then(Value::as_str) {
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        Some("adaptive") => Ok(None),
        _ => {
            let param = if thinking.is_object() { "thinking.type" } else { "thinking" };
            let message = "thinking must be an object with the type enabled, disabled or adaptive";
            Err(ApiError::invalid(param, message))
        }
    }
}

fn effort(fields: &Map<String, Value>) -> Result<Option<String>, ApiError> {
    match present(fields, EFFORT) {
        None => Ok(None),
        Some(Value::String(effort)) if effort.is_empty() => Ok(None),
        Some(Value::String(effort)) if effort.len() <= EFFORT_BYTES_MAX => Ok(Some(effort.clone())),
        Some(_) => {
            let message = format!("{EFFORT} must be text of at most {EFFORT_BYTES_MAX} bytes");
            Err(ApiError::invalid(EFFORT, message))
        }
    }
}
