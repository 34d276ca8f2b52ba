//! Reads how tokens are to be chosen: OpenAI's fields, and those other servers added to them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tirami_infer::engine::{Format, JsonSchema, LOGIT_BIAS_MAX, Sampling, TOP_LOGPROBS_MAX};

use super::request::{flag, number, present, real, stop};
use crate::http::error::ApiError;

/// What the request asks of the sampler; length, seed and log-probabilities are not decided here.
pub(super) fn sampling(fields: &Map<String, Value>) -> Result<Sampling, ApiError> {
    // The smallest share still has the likeliest token in it.
    let top_p = real(fields, "top_p", |value| (0.0..=1.0).contains(&value), "from 0 to 1")?
        .map_or(1.0, |share| share.max(f32::MIN_POSITIVE));
    let share = |value| value > 0.0 && value <= 1.0;
    let typical_p = real(fields, "typical_p", share, "above 0 and at most 1")?;
    let penalty = |name| {
        real(fields, name, |value| (-2.0..=2.0).contains(&value), "from -2 to 2")
            .map(Option::unwrap_or_default)
    };
    let temperature =
        real(fields, "temperature", |value| (0.0..=2.0).contains(&value), "from 0 to 2")?;
    let min_p = real(fields, "min_p", |value| (0.0..=1.0).contains(&value), "from 0 to 1")?;
    let repeat =
        |name| real(fields, name, |value| value > 0.0 && value <= 2.0, "above 0 and at most 2");
    // Two names of one thing, by two families of servers.
    let repeat_penalty = repeat("repeat_penalty")?.or(repeat("repetition_penalty")?);
    Ok(Sampling {
        temperature: temperature.unwrap_or(1.0),
        top_p,
        top_k: top_k(fields)?,
        min_p: min_p.unwrap_or_default(),
        typical_p: typical_p.unwrap_or(1.0),
        presence_penalty: penalty("presence_penalty")?,
        frequency_penalty: penalty("frequency_penalty")?,
        repeat_penalty: repeat_penalty.unwrap_or(1.0),
        logit_bias: logit_bias(fields)?,
        format: format(fields)?,
        stop: stop(fields)?,
        ..Sampling::default()
    })
}

/// Only so many of the likeliest tokens; 0 is all, and so is −1, as other servers have it.
fn top_k(fields: &Map<String, Value>) -> Result<u32, ApiError> {
    match present(fields, "top_k").and_then(Value::as_i64) {
        Some(-1) => Ok(0),
        _ => number(fields, "top_k", 0, u32::MAX).map(Option::unwrap_or_default),
    }
}

fn logit_bias(fields: &Map<String, Value>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let wrong = |reason: &str| ApiError::invalid("logit_bias", reason);
    let Some(value) = present(fields, "logit_bias") else {
        return Ok(BTreeMap::new());
    };
    let shape = "logit_bias must be an object of token ids and numbers from -100 to 100";
    let Value::Object(biases) = value else {
        return Err(wrong(shape));
    };
    if biases.len() > LOGIT_BIAS_MAX {
        return Err(wrong(&format!("logit_bias names more than {LOGIT_BIAS_MAX} tokens")));
    }
    let bias = |(token, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((token.parse().ok()?, bias as f32))
    };
    biases.iter().map(bias).collect::<Option<_>>().ok_or_else(|| wrong(shape))
}

/// How many of the likeliest tokens come beside each token; none for no log-probabilities.
pub(super) fn top_logprobs(fields: &Map<String, Value>) -> Result<Option<u32>, ApiError> {
    let top = number(fields, "top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    if flag(fields, "logprobs")?.unwrap_or(false) {
        return Ok(Some(top.unwrap_or(0)));
    }
    match top {
        None | Some(0) => Ok(None),
        Some(_) => Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs is only for requests with logprobs; set logprobs to true",
        )),
    }
}

fn format(fields: &Map<String, Value>) -> Result<Format, ApiError> {
    let Some(value) = present(fields, "response_format") else {
        return Ok(Format::Text);
    };
    let wrong = |reason| Err(ApiError::invalid("response_format", reason));
    match value.get("type").and_then(Value::as_str) {
        Some("text") => Ok(Format::Text),
        Some("json_object") => Ok(Format::JsonObject),
        Some("json_schema") => match value.pointer("/json_schema/schema") {
            Some(schema @ Value::Object(_)) => {
                let strict = value.pointer("/json_schema/strict") == Some(&Value::Bool(true));
                Ok(Format::JsonSchema(JsonSchema::new(schema.to_string(), strict)))
            }
            _ => wrong("response_format.json_schema.schema is missing; give it a JSON schema"),
        },
        _ => wrong("response_format.type must be text, json_object or json_schema"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Sampling, String> {
        let read = sampling(&serde_json::from_str(json).unwrap());
        read.map_err(|error| error.body().error.param.clone().unwrap_or_default())
    }

    #[test]
    fn what_is_left_out_changes_nothing() {
        let plain = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(read("{}"), Ok(plain.clone()));
        let nothing = r#"{"logit_bias":null,"response_format":{"type":"text"},"min_p":0,
            "presence_penalty":0,"frequency_penalty":null,"repeat_penalty":1,"typical_p":1,
            "top_k":-1,"repetition_penalty":1}"#;
        assert_eq!(read(nothing), Ok(plain));
    }

    #[test]
    fn a_penalty_for_what_was_said_has_two_names() {
        for (json, penalty) in [
            (r#"{"repeat_penalty":1.5}"#, 1.5),
            (r#"{"repetition_penalty":1.5}"#, 1.5),
            (r#"{"repeat_penalty":1.5,"repetition_penalty":1.2}"#, 1.5),
        ] {
            let read = read(json).unwrap().repeat_penalty;
            assert!((read - penalty).abs() < 1e-6, "{json}: {read}");
        }
    }

    #[test]
    fn a_share_of_nothing_is_the_likeliest_token() {
        let least = read(r#"{"top_p":0}"#).unwrap().top_p;
        assert!(least > 0.0 && least < 1e-30, "{least}");
    }

    #[test]
    fn a_schema_keeps_the_order_of_its_keys() {
        let schema = r#"{"type":"object","properties":{"zebra":{},"apple":{}}}"#;
        for (more, strict) in
            [("", false), (r#","strict":null"#, false), (r#","strict":true"#, true)]
        {
            let named = format!(r#"{{"schema":{schema}{more}}}"#);
            let format = format!(r#"{{"type":"json_schema","json_schema":{named}}}"#);
            let read = read(&format!(r#"{{"response_format":{format}}}"#));
            assert_eq!(read.unwrap().format, Format::JsonSchema(JsonSchema::new(schema, strict)));
        }
    }

    #[test]
    fn every_number_out_of_its_range_is_named() {
        for (json, param) in [
            (r#"{"presence_penalty":2.1}"#, "presence_penalty"),
            (r#"{"frequency_penalty":-2.1}"#, "frequency_penalty"),
            (r#"{"repeat_penalty":0}"#, "repeat_penalty"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty"),
            (r#"{"top_k":-2}"#, "top_k"),
            (r#"{"min_p":1.1}"#, "min_p"),
            (r#"{"top_p":-0.1}"#, "top_p"),
            (r#"{"typical_p":0}"#, "typical_p"),
            (r#"{"logit_bias":[]}"#, "logit_bias"),
            (r#"{"logit_bias":{"a":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"5":101}}"#, "logit_bias"),
            (r#"{"response_format":"json"}"#, "response_format"),
            (r#"{"response_format":{"type":"xml"}}"#, "response_format"),
            (r#"{"response_format":{"type":"json_schema"}}"#, "response_format"),
        ] {
            assert_eq!(read(json), Err(param.to_owned()), "{json}");
        }
    }
}
