//! Reads a request to continue texts as they stand: OpenAI's older completions.

use serde_json::{Map, Value};
use tirami_infer::engine::RawPrompt;

use super::request::{Ask, CHOICES_MAX, Subject, flag, is_neutral, number, present};
use super::variables;
use crate::http::error::ApiError;

/// Completion tokens where the request names no maximum, as OpenAI has it: a text that is no chat
/// has no end of its own.
const COMPLETION_TOKENS: u32 = 16;
/// Likeliest tokens that a log-probability comes with at most.
const LOGPROBS_MAX: u32 = 5;

pub(super) fn read(fields: &Map<String, Value>) -> Result<Ask, ApiError> {
    let echo = flag(fields, "echo")?.unwrap_or(false);
    let top_logprobs = number(fields, "logprobs", 0, LOGPROBS_MAX)?;
    // Who wants to know how likely a text is may want nothing after it.
    let scores_prompt = echo && top_logprobs.is_some();
    let mut ask = Ask::common(fields, u32::from(!scores_prompt))?;
    ask.subjects = prompts(fields)?;
    ask.echo = echo;
    (ask.sampling.top_logprobs, ask.sampling.scores_prompt) = (top_logprobs, scores_prompt);
    ask.completion_max = ask.completion_max.or(Some(COMPLETION_TOKENS));
    if number(fields, "best_of", 1, CHOICES_MAX)?.is_some_and(|best_of| best_of != ask.choices) {
        let message = "best_of must be the same as n: every answer that is made is given out";
        return Err(ApiError::unsupported("best_of", message));
    }
    for name in ["tools", variables::FIELD] {
        if fields.get(name).is_some_and(|value| !is_neutral(value)) {
            let message =
                format!("{name} are for chats; ask at /v1/chat/completions, or leave them out");
            return Err(ApiError::unsupported(name, message));
        }
    }
    let answers = ask.subjects.len().saturating_mul(ask.choices as usize);
    if answers > CHOICES_MAX as usize {
        let message = format!(
            "prompt asks for {answers} answers, n to each of its texts, and one request has at \
             most {CHOICES_MAX}; send several requests"
        );
        return Err(ApiError::invalid("prompt", message));
    }
    if scores_prompt && ask.stream {
        let message = "a prompt's own log-probabilities are not told piece by piece; leave out \
                       stream, echo or logprobs";
        return Err(ApiError::unsupported("stream", message));
    }
    let is_infill = |subject: &Subject| matches!(subject, Subject::Raw(RawPrompt::Infill { .. }));
    if ask.echo && ask.subjects.iter().any(is_infill) {
        let message = "echo and suffix together are not supported here; leave one out";
        return Err(ApiError::unsupported("echo", message));
    }
    Ok(ask)
}

const SHAPE: &str = "prompt must be a text, a list of texts, a list of tokens, or a list of lists \
                     of tokens";

fn prompts(fields: &Map<String, Value>) -> Result<Vec<Subject>, ApiError> {
    let wrong = |message: &str| ApiError::invalid("prompt", message);
    let suffix = match present(fields, "suffix") {
        None => None,
        Some(Value::String(suffix)) => Some(suffix.as_str()).filter(|suffix| !suffix.is_empty()),
        Some(_) => return Err(ApiError::invalid("suffix", "suffix must be text")),
    };
    let prompts = match present(fields, "prompt") {
        None => return Err(wrong("prompt is missing; send the text to continue")),
        Some(Value::String(text)) => vec![text_prompt(text, suffix)],
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(wrong("prompt is an empty list; send at least one text or token"));
        }
        Some(Value::Array(list)) => match tokens(list) {
            Some(tokens) => vec![RawPrompt::Tokens(tokens)],
            None => list.iter().map(|one| prompt(one, suffix)).collect::<Result<_, _>>()?,
        },
        Some(_) => return Err(wrong(SHAPE)),
    };
    if suffix.is_some() && prompts.iter().any(|one| matches!(one, RawPrompt::Tokens(_))) {
        let message = "suffix is only for a prompt of text; send the tokens of the whole prompt";
        return Err(ApiError::invalid("suffix", message));
    }
    Ok(prompts.into_iter().map(Subject::Raw).collect())
}

/// One of a list.
fn prompt(value: &Value, suffix: Option<&str>) -> Result<RawPrompt, ApiError> {
    let read = match value {
        Value::String(text) => Some(text_prompt(text, suffix)),
        Value::Array(list) if !list.is_empty() => tokens(list).map(RawPrompt::Tokens),
        _ => None,
    };
    read.ok_or_else(|| ApiError::invalid("prompt", SHAPE))
}

fn text_prompt(text: &str, suffix: Option<&str>) -> RawPrompt {
    let text = text.to_owned();
    match suffix {
        None => RawPrompt::Text(text),
        Some(after) => RawPrompt::Infill { before: text, after: after.to_owned() },
    }
}

fn tokens(list: &[Value]) -> Option<Vec<u32>> {
    list.iter().map(|token| u32::try_from(token.as_u64()?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: Value) -> Result<Ask, String> {
        let mut request = json!({"model": "m"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        super::read(request.as_object().unwrap())
            .map_err(|error| error.body().error.param.clone().unwrap_or_default())
    }

    #[test]
    fn every_shape_of_a_prompt_is_understood() {
        let text = |text: &str| RawPrompt::Text(text.to_owned());
        let infill = RawPrompt::Infill { before: "a".to_owned(), after: "b".to_owned() };
        for (more, prompts) in [
            (json!({"prompt": "a"}), vec![text("a")]),
            (json!({"prompt": ""}), vec![text("")]),
            (json!({"prompt": ["a", "b"]}), vec![text("a"), text("b")]),
            (json!({"prompt": [1, 2]}), vec![RawPrompt::Tokens(vec![1, 2])]),
            (
                json!({"prompt": [[1], [2, 3]]}),
                vec![RawPrompt::Tokens(vec![1]), RawPrompt::Tokens(vec![2, 3])],
            ),
            (json!({"prompt": "a", "suffix": "b"}), vec![infill]),
            (json!({"prompt": "a", "suffix": "", "tools": null}), vec![text("a")]),
            (json!({"prompt": "a", "tools": []}), vec![text("a")]),
        ] {
            let ask = read(more.clone()).unwrap();
            let prompts: Vec<_> = prompts.into_iter().map(Subject::Raw).collect();
            assert_eq!((ask.subjects, ask.choices), (prompts, 1), "{more}");
        }
        let ask = read(json!({"prompt": "a", "n": 2, "best_of": 2, "logprobs": 0})).unwrap();
        assert_eq!((ask.choices, ask.sampling.top_logprobs), (2, Some(0)));
        assert_eq!(ask.completion_max, Some(COMPLETION_TOKENS));
        let scored = json!({"prompt": "a", "echo": true, "logprobs": 1, "max_tokens": 0});
        let scored = read(scored).unwrap();
        assert_eq!((scored.completion_max, scored.sampling.scores_prompt), (Some(0), true));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (more, param) in [
            (json!({}), "prompt"),
            (json!({"prompt": 7}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [[]]}), "prompt"),
            (json!({"prompt": ["a", 1]}), "prompt"),
            (json!({"prompt": [-1]}), "prompt"),
            (json!({"prompt": vec!["a"; 9], "n": 2}), "prompt"),
            (json!({"prompt": [1], "suffix": "b"}), "suffix"),
            (json!({"prompt": "a", "suffix": 1}), "suffix"),
            (json!({"prompt": "a", "suffix": "b", "echo": true}), "echo"),
            (json!({"prompt": "a", "echo": true, "logprobs": 1, "stream": true}), "stream"),
            (json!({"prompt": "a", "best_of": 3}), "best_of"),
            (json!({"prompt": "a", "logprobs": 6}), "logprobs"),
            (json!({"prompt": "a", "logprobs": true}), "logprobs"),
            (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
            (json!({"prompt": "a", "tools": [{}]}), "tools"),
            (
                json!({"prompt": "a", "chat_template_kwargs": {"enable_thinking": false}}),
                "chat_template_kwargs",
            ),
        ] {
            assert_eq!(read(more.clone()).unwrap_err(), param, "{more}");
        }
    }
}
