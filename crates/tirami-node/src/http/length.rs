//! How long an answer may be has a name in each interface; a refusal says the one that was sent.

use serde_json::{Map, Value};

use super::chat::Kind;
use super::error::ApiError;
use super::names;

/// A chat's names for it, the older one first.
const OLDER: &str = "max_tokens";
const NEWER: &str = "max_completion_tokens";

/// The name by which a request says it, or would.
pub(super) fn field(kind: Kind, fields: &Map<String, Value>) -> &'static str {
    match (kind, fields.get(NEWER)) {
        (Kind::Raw, _) | (Kind::Chat, None | Some(Value::Null)) => OLDER,
        (Kind::Chat, Some(_)) => NEWER,
    }
}

/// The same refusal, in which the length is called `field`.
pub(super) fn called(error: ApiError, field: &str) -> ApiError {
    names::renamed(error, &[(OLDER, field), (NEWER, field)])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_calls_the_length_as_the_request_does() {
        let named = |kind, fields: Value| field(kind, fields.as_object().unwrap());
        assert_eq!(named(Kind::Chat, json!({"max_completion_tokens": 7, "max_tokens": 5})), NEWER);
        assert_eq!(named(Kind::Chat, json!({"max_completion_tokens": null})), OLDER);
        assert_eq!(named(Kind::Raw, json!({"max_completion_tokens": 7})), OLDER);
        let told = |param: &str, message: &str, field| {
            let error = called(ApiError::invalid(param, message), field);
            let detail = &error.body().error;
            (detail.param.clone().unwrap_or_default(), detail.message.clone())
        };
        let long = "max_tokens must be at most 9";
        for (param, message, field, expected) in [
            (OLDER, long, OLDER, (OLDER, long)),
            (OLDER, long, NEWER, (NEWER, "max_completion_tokens must be at most 9")),
            (NEWER, "less; set max_completion_tokens to 9", "max", ("max", "less; set max to 9")),
            ("tools", "max_tokens", NEWER, ("tools", "max_tokens")),
        ] {
            let (param, told) = told(param, message, field);
            assert_eq!((&*param, &*told), expected);
        }
    }
}
