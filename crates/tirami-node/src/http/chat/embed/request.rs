//! Reads a request for embeddings, each wrong value with a sentence that says what to change.

use serde_json::{Map, Value};
use tirami_proto::VECTOR_WIDTH_MAX;

use super::super::request::{number, present};
use crate::http::error::ApiError;

/// Texts of one request at most.
pub(super) const INPUTS_MAX: usize = 2_048;

/// A text to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// A request that is understood; the model is not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) model: String,
    /// At least one, none of them empty.
    pub(super) inputs: Vec<Input>,
    /// Numbers of each vector, where the request names them.
    pub(super) dimensions: Option<u32>,
    pub(super) is_base64: bool,
}

impl Ask {
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Self, ApiError> {
        let model = match present(fields, "model") {
            Some(Value::String(model)) if !model.is_empty() => model.clone(),
            _ => {
                let message = "model must be a name as text; GET /v1/models lists what there is";
                return Err(ApiError::invalid("model", message));
            }
        };
        if present(fields, "user").is_some_and(|user| !user.is_string()) {
            return Err(ApiError::invalid("user", "user must be text"));
        }
        let is_base64 = match present(fields, "encoding_format").map(Value::as_str) {
            None | Some(Some("float")) => false,
            Some(Some("base64")) => true,
            Some(_) => {
                let message = "encoding_format must be float or base64";
                return Err(ApiError::invalid("encoding_format", message));
            }
        };
        let widest = u32::try_from(VECTOR_WIDTH_MAX).unwrap_or(u32::MAX);
        let dimensions = number(fields, "dimensions", 1, widest)?;
        Ok(Self { model, inputs: inputs(fields)?, dimensions, is_base64 })
    }
}

fn inputs(fields: &Map<String, Value>) -> Result<Vec<Input>, ApiError> {
    let wrong = |message: String| ApiError::invalid("input", message);
    let list = match present(fields, "input") {
        Some(Value::String(text)) => return Ok(vec![Input::Text(full("input", text)?)]),
        Some(Value::Array(list)) => list,
        _ => {
            let message = "input must be a text, a list of texts, a list of token ids, or a list \
                           of such lists";
            return Err(wrong(message.to_owned()));
        }
    };
    if list.first().is_some_and(Value::is_number) {
        return Ok(vec![Input::Tokens(tokens("input", list)?)]);
    }
    if list.is_empty() || list.len() > INPUTS_MAX {
        return Err(wrong(format!("input must have 1 to {INPUTS_MAX} texts; send them in parts")));
    }
    let one = |(index, value): (usize, &Value)| {
        let at = format!("input[{index}]");
        match value {
            Value::String(text) => full(&at, text).map(Input::Text),
            Value::Array(list) => tokens(&at, list).map(Input::Tokens),
            _ => Err(ApiError::invalid(&at, format!("{at} must be text or a list of token ids"))),
        }
    };
    list.iter().enumerate().map(one).collect()
}

fn full(at: &str, text: &str) -> Result<String, ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid(
            at,
            format!("{at} is empty; leave it out or give it a text"),
        ));
    }
    Ok(text.to_owned())
}

fn tokens(at: &str, list: &[Value]) -> Result<Vec<u32>, ApiError> {
    if list.is_empty() {
        return Err(ApiError::invalid(at, format!("{at} has no tokens; leave it out")));
    }
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    let all = list.iter().map(token).collect::<Option<_>>();
    all.ok_or_else(|| ApiError::invalid(at, format!("{at} must have token ids, whole numbers")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Ask, String> {
        Ask::read(&serde_json::from_str(json).unwrap()).map_err(|error| {
            let detail = &error.body().error;
            format!("{}: {}", detail.param.clone().unwrap_or_default(), detail.message)
        })
    }

    #[test]
    fn all_four_forms_of_input_are_understood() {
        let text = |text: &str| Input::Text(text.to_owned());
        for (input, inputs) in [
            (r#""a""#, vec![text("a")]),
            (r#"["a","b"]"#, vec![text("a"), text("b")]),
            ("[1,2]", vec![Input::Tokens(vec![1, 2])]),
            ("[[1],[2,3]]", vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]),
        ] {
            let json = format!(
                r#"{{"model":"m","input":{input},"user":"u","dimensions":4,
                "encoding_format":"base64"}}"#
            );
            let ask = read(&json).unwrap();
            assert_eq!((ask.inputs, ask.dimensions, ask.is_base64), (inputs, Some(4), true));
        }
        let plain = read(r#"{"model":"m","input":"a","dimensions":null}"#).unwrap();
        assert_eq!((plain.dimensions, plain.is_base64), (None, false));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_change() {
        let many = format!("[{}\"a\"]", "\"a\",".repeat(INPUTS_MAX));
        for (fields, start) in [
            (r#""input":"a""#.to_owned(), "model: model must be"),
            (r#""model":"m""#.to_owned(), "input: input must be a text"),
            (r#""model":"m","input":"""#.to_owned(), "input: input is empty"),
            (r#""model":"m","input":[]"#.to_owned(), "input: input must have 1 to 2048"),
            (format!(r#""model":"m","input":{many}"#), "input: input must have 1 to 2048"),
            (r#""model":"m","input":["a",""]"#.to_owned(), "input[1]: "),
            (r#""model":"m","input":["a",7]"#.to_owned(), "input[1]: "),
            (r#""model":"m","input":[[1],[]]"#.to_owned(), "input[1]: "),
            (r#""model":"m","input":[1,-2]"#.to_owned(), "input: "),
            (r#""model":"m","input":[[4294967296]]"#.to_owned(), "input[0]: "),
            (r#""model":"m","input":"a","encoding_format":"hex""#.to_owned(), "encoding_format: "),
            (r#""model":"m","input":"a","dimensions":0"#.to_owned(), "dimensions: "),
            (r#""model":"m","input":"a","user":7"#.to_owned(), "user: "),
        ] {
            let error = read(&format!("{{{fields}}}")).unwrap_err();
            assert!(error.starts_with(start), "{fields}: {error}");
        }
    }
}
