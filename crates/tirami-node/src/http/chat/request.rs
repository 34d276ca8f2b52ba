//! Reads a request for an answer: OpenAI's shapes, each wrong value with a sentence that says what
//! to change.
//!
//! The fields are read one by one rather than by a derived parser, so that a refusal can name the
//! field, and so that a field that would change the answer but is not built is refused instead of
//! silently dropped.

use serde_json::{Map, Value};
use tirami_infer::engine::{
    CallText, Conversation, Format, Message, Placed, RawPrompt, STOPS_MAX, Sampling,
};
use tirami_infer::image::IMAGES_MAX;
use tirami_sdk::endpoints::Operation;

use super::sampling::{self, sampling};
use super::{picture, raw, tools, variables};
use crate::http::error::ApiError;
use crate::mesh::Retold;

/// Messages of one request at most.
const MESSAGES_MAX: usize = 4_096;
/// Answers of one request at most.
pub(in crate::http) const CHOICES_MAX: u32 = 16;
/// Bytes of one stop text at most.
const STOP_BYTES_MAX: usize = 1_024;

/// What kind of request it is. A job of another node names it by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A chat is to be continued.
    Chat,
    /// Texts are to be continued as they stand.
    Raw,
}

impl Kind {
    /// The path at which it is asked for.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => Operation::Chat.endpoint().path,
            Self::Raw => Operation::Completions.endpoint().path,
        }
    }

    /// The kind of what is asked for at `path`.
    pub(crate) fn at(path: &str) -> Option<Self> {
        [Self::Chat, Self::Raw].into_iter().find(|kind| kind.path() == path)
    }

    /// The field that says what is to be continued.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Raw => "prompt",
        }
    }
}

/// What is to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) enum Subject {
    Chat(Conversation),
    Raw(RawPrompt),
}

impl Subject {
    /// Whether there are pictures in it.
    pub(super) fn has_images(&self) -> bool {
        match self {
            Self::Chat(conversation) => conversation.images().next().is_some(),
            Self::Raw(_) => false,
        }
    }
}

/// A request that is understood. Numbers are in range; the model is not checked yet.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::http) struct Ask {
    pub(super) model: String,
    /// Each is answered for itself; at least one.
    pub(super) subjects: Vec<Subject>,
    /// Completion tokens at most; `None` is what context, limits and TRM have room for.
    pub(super) completion_max: Option<u32>,
    /// How tokens are chosen; its length and seed are not set yet.
    pub(super) sampling: Sampling,
    pub(super) seed: Option<u32>,
    /// Names of the tools that may be called; empty when none may.
    pub(super) tools: Vec<String>,
    /// Answers that are wanted to each subject, each a job of its own.
    pub(super) choices: u32,
    /// Whether an answer begins with the text that it continues.
    pub(super) echo: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Ask {
    /// Reads the JSON object of a request.
    pub(super) fn read(kind: Kind, fields: &Map<String, Value>) -> Result<Self, ApiError> {
        match kind {
            Kind::Chat => Self::chat(fields),
            Kind::Raw => raw::read(fields),
        }
    }

    /// Whether there are pictures in it.
    pub(super) fn has_images(&self) -> bool {
        self.subjects.iter().any(Subject::has_images)
    }

    /// What whoever has the model is to tell of a subject besides the answer.
    pub(super) fn retold(&self, subject: &Subject) -> Retold {
        let are_tokens = matches!(subject, Subject::Raw(RawPrompt::Tokens(_)));
        Retold { text: self.echo && are_tokens, likelihoods: self.sampling.scores_prompt }
    }

    fn chat(fields: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut ask = Self::common(fields, 1)?;
        ask.sampling.top_logprobs = sampling::top_logprobs(fields)?;
        let newer = number(fields, "max_completion_tokens", 1, u32::MAX)?;
        ask.completion_max = newer.or(ask.completion_max);
        let tools = tools::read(fields)?;
        if let Some(mut calls) = tools.format {
            let format = std::mem::take(&mut ask.sampling.format);
            if calls.may_be_text() {
                calls.text = CallText::from(format);
            }
            ask.sampling.format = Format::Calls(calls);
        }
        ask.tools = tools.names;
        ask.subjects = vec![Subject::Chat(conversation(fields)?)];
        Ok(ask)
    }

    /// Reads what all kinds of requests have; the subjects are not among it. An answer has at least
    /// `completion_min` tokens where it is not over before.
    pub(super) fn common(
        fields: &Map<String, Value>,
        completion_min: u32,
    ) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let model = match present(fields, "model") {
            Some(Value::String(model)) if !model.is_empty() => model.clone(),
            Some(_) => return Err(ApiError::invalid("model", "model must be a name as text")),
            None => {
                return Err(ApiError::invalid(
                    "model",
                    "model is missing; GET /v1/models lists what there is",
                ));
            }
        };
        let stream = flag(fields, "stream")?.unwrap_or(false);
        if let Some(user) = present(fields, "user")
            && !user.is_string()
        {
            return Err(ApiError::invalid("user", "user must be text"));
        }
        Ok(Self {
            model,
            subjects: Vec::new(),
            completion_max: number(fields, "max_tokens", completion_min, u32::MAX)?,
            sampling: sampling(fields)?,
            tools: Vec::new(),
            seed: seed(fields)?,
            choices: number(fields, "n", 1, CHOICES_MAX)?.unwrap_or(1),
            echo: false,
            stream,
            include_usage: include_usage(fields, stream)?,
        })
    }
}

/// The messages of a chat or of an estimate.
pub(in crate::http) fn conversation(fields: &Map<String, Value>) -> Result<Conversation, ApiError> {
    let wrong = |reason: &str| ApiError::invalid("messages", reason);
    let list = match present(fields, "messages") {
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong("messages must be a list of {role, content}")),
        None => return Err(wrong("messages is missing; send a list of {role, content}")),
    };
    if list.is_empty() {
        return Err(wrong("messages is empty; send at least one message"));
    }
    if list.len() > MESSAGES_MAX {
        return Err(wrong(&format!("messages has more than {MESSAGES_MAX} entries; shorten it")));
    }
    let messages = list.iter().enumerate().map(|(index, value)| message(index, value));
    let mut messages = messages.collect::<Result<Vec<_>, _>>()?;
    tools::in_order(&mut messages);
    let (tools, variables) = (tools::read(fields)?.offered, variables::read(fields)?);
    let conversation = Conversation { messages, tools, variables };
    if conversation.images().count() > IMAGES_MAX {
        let message = format!("the messages have more than {IMAGES_MAX} pictures; leave some out");
        return Err(ApiError::bad_request("too_many_images", message).param("messages"));
    }
    Ok(conversation)
}

fn message(index: usize, value: &Value) -> Result<Message, ApiError> {
    let at = format!("messages[{index}]");
    let Value::Object(fields) = value else {
        return Err(ApiError::invalid(&at, format!("{at} must be an object {{role, content}}")));
    };
    let role = match present(fields, "role") {
        Some(Value::String(role)) => match role.as_str() {
            // The newer name of the same thing.
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            "tool" => "tool",
            _ => {
                return Err(ApiError::invalid(
                    &format!("{at}.role"),
                    format!("{at}.role must be system, developer, user, assistant or tool"),
                ));
            }
        },
        _ => {
            let param = format!("{at}.role");
            return Err(ApiError::invalid(&param, format!("{param} is missing or not text")));
        }
    };
    let calls = tools::calls(role, &at, fields)?;
    let param = format!("{at}.content");
    let may_refuse = role == "assistant";
    let mut images = Vec::new();
    let content = match present(fields, "content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let mut content = String::new();
            for (part, value) in parts.iter().enumerate() {
                let at = format!("{param}[{part}]");
                if role == "user" && value.get("type").is_some_and(|kind| kind == "image_url") {
                    let image = picture::part(&at, value)?;
                    images.push(Placed { at: content.len(), image });
                } else {
                    content += &text_part(&at, value, may_refuse)?;
                }
            }
            content
        }
        Some(_) => {
            return Err(ApiError::invalid(
                &param,
                format!("{param} must be text or a list of parts"),
            ));
        }
        // Calls may be all it said, or that it would not; and it may have said nothing.
        None if may_refuse => {
            present(fields, "refusal").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        None => {
            return Err(ApiError::invalid(&param, format!("{param} is missing; give it a text")));
        }
    };
    let result_of = present(fields, "tool_call_id").and_then(Value::as_str);
    let call_id = result_of.filter(|_| role == "tool").map(str::to_owned);
    let name = match present(fields, "name") {
        None => None,
        Some(Value::String(name)) => Some(name.clone()),
        Some(_) => {
            let param = format!("{at}.name");
            return Err(ApiError::invalid(&param, format!("{param} must be text")));
        }
    };
    Ok(Message { role: role.to_owned(), content, images, calls, call_id, name })
}

/// The text of a part; that an assistant would not answer is what it said.
fn text_part(param: &str, value: &Value, may_refuse: bool) -> Result<String, ApiError> {
    let kind = value.get("type").and_then(Value::as_str);
    let of = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    match (kind, of("text"), of("refusal").filter(|_| may_refuse)) {
        (Some("text"), Some(text), _) | (Some("refusal"), _, Some(text)) => Ok(text),
        (Some("text") | None, ..) => Err(ApiError::invalid(
            param,
            format!("{param} must be {{\"type\": \"text\", \"text\": …}}"),
        )),
        (Some(kind), ..) => Err(ApiError::unsupported(
            param,
            format!(
                "{param} is of type {kind:?}; only text, and pictures of a user, are read here"
            ),
        )),
    }
}

pub(super) fn stop(fields: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let wrong = |reason: String| ApiError::invalid("stop", reason);
    let texts = match present(fields, "stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|text| text.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong("stop must be a text or a list of texts".to_owned()))?,
        Some(_) => return Err(wrong("stop must be a text or a list of texts".to_owned())),
    };
    if texts.len() > STOPS_MAX {
        return Err(wrong(format!("stop has more than {STOPS_MAX} texts")));
    }
    if texts.iter().any(String::is_empty) {
        return Err(wrong("a stop text must not be empty".to_owned()));
    }
    if texts.iter().any(|text| text.len() > STOP_BYTES_MAX) {
        return Err(wrong(format!("a stop text has at most {STOP_BYTES_MAX} bytes")));
    }
    Ok(texts)
}

fn include_usage(fields: &Map<String, Value>, stream: bool) -> Result<bool, ApiError> {
    let options = match present(fields, "stream_options") {
        None => return Ok(false),
        Some(Value::Object(options)) => options,
        Some(_) => {
            return Err(ApiError::invalid("stream_options", "stream_options must be an object"));
        }
    };
    if !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "stream_options is only for streams; set stream to true or leave it out",
        ));
    }
    Ok(flag(options, "include_usage")?.unwrap_or(false))
}

/// Fields of OpenAI's, and of other servers', that would change the answer and are not built here,
/// unless they are set to what happens anyway.
fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, value) in fields {
        let harmless = match name.as_str() {
            "functions" | "grammar" | "guided_choice" | "guided_grammar" | "guided_json"
            | "guided_regex" | "ignore_eos" | "json_schema" | "min_tokens" | "stop_token_ids"
            | "structured_outputs" => is_neutral(value),
            "function_call" => value.is_null() || matches!(value.as_str(), Some("none" | "auto")),
            "modalities" => {
                value.is_null() || value.as_array().is_some_and(|kinds| *kinds == ["text"])
            }
            "audio" | "web_search_options" => value.is_null(),
            _ => true,
        };
        if !harmless {
            let message = format!("{name} is not supported here; leave it out");
            return Err(ApiError::unsupported(name, message));
        }
    }
    Ok(())
}

/// Whether a field so set asks for nothing.
pub(super) fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_on) => !is_on,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A field that is there and not null.
pub(in crate::http) fn present<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

pub(in crate::http) fn flag(
    fields: &Map<String, Value>,
    name: &str,
) -> Result<Option<bool>, ApiError> {
    match present(fields, name) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(ApiError::invalid(name, format!("{name} must be true or false"))),
    }
}

/// A whole number from `min` to `max`.
pub(in crate::http) fn number(
    fields: &Map<String, Value>,
    name: &str,
    min: u32,
    max: u32,
) -> Result<Option<u32>, ApiError> {
    let Some(value) = present(fields, name) else {
        return Ok(None);
    };
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    match number {
        Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
        _ => Err(ApiError::invalid(
            name,
            format!("{name} must be a whole number from {min} to {max}"),
        )),
    }
}

/// The sampler's seed: of a whole number of 64 bits, with a sign or without, the lowest 32. So a
/// number from 0 to 2³² − 1 is the seed itself, and −1 is 2³² − 1.
fn seed(fields: &Map<String, Value>) -> Result<Option<u32>, ApiError> {
    let Some(value) = present(fields, "seed") else {
        return Ok(None);
    };
    let number = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    let lowest = number.and_then(|number| u32::try_from(number & u64::from(u32::MAX)).ok());
    lowest
        .map(Some)
        .ok_or_else(|| ApiError::invalid("seed", "seed must be a whole number of at most 64 bits"))
}

pub(super) fn real(
    fields: &Map<String, Value>,
    name: &str,
    allowed: impl Fn(f64) -> bool,
    range: &str,
) -> Result<Option<f32>, ApiError> {
    let Some(value) = present(fields, name) else {
        return Ok(None);
    };
    match value.as_f64() {
        // The engine computes in single precision; a tiny positive number stays positive.
        Some(number) if allowed(number) => Ok(Some(if number > 0.0 {
            (number as f32).max(f32::MIN_POSITIVE)
        } else {
            number as f32
        })),
        _ => Err(ApiError::invalid(name, format!("{name} must be a number {range}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Ask, String> {
        let fields = serde_json::from_str(json).unwrap();
        Ask::read(Kind::Chat, &fields).map_err(|error| {
            let detail = &error.body().error;
            format!("{}: {}", detail.param.clone().unwrap_or_default(), detail.message)
        })
    }

    const HI: &str = r#""model":"m","messages":[{"role":"user","content":"hi"}]"#;

    #[test]
    fn what_openai_clients_send_is_understood() {
        let ask = read(&format!(
            r#"{{{HI},"max_tokens":5,"max_completion_tokens":7,"temperature":0,"top_p":0.5,
            "top_k":3,"seed":4294967295,"stop":["a","b"],"stream":true,
            "stream_options":{{"include_usage":true}},"n":1,"user":"u","tools":[],"logprobs":false,
            "response_format":{{"type":"text"}},"logit_bias":{{}},"presence_penalty":0,
            "metadata":{{"a":1}},"store":false,"service_tier":"auto","whatever":[1]}}"#
        ))
        .unwrap();
        assert_eq!(ask.completion_max, Some(7));
        let sampling = &ask.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.0, 0.5, 3));
        assert_eq!(ask.seed, Some(u32::MAX));
        assert_eq!(sampling.stop, ["a", "b"]);
        assert!(ask.stream && ask.include_usage);
        let plain =
            read(&format!(r#"{{{HI},"max_tokens":null,"stop":null,"seed":null}}"#)).unwrap();
        assert_eq!((plain.completion_max, plain.seed, plain.stream), (None, None, false));
        assert_eq!((ask.choices, ask.sampling.top_logprobs), (1, None));
        for (more, choices, top) in [
            (r#""n":3,"logprobs":true"#, 3, Some(0)),
            (r#""logprobs":true,"top_logprobs":5"#, 1, Some(5)),
            (r#""logprobs":false,"top_logprobs":0"#, 1, None),
        ] {
            let ask = read(&format!("{{{HI},{more}}}")).unwrap();
            assert_eq!((ask.choices, ask.sampling.top_logprobs), (choices, top), "{more}");
        }
    }

    #[test]
    fn every_seed_of_64_bits_is_one_and_those_of_32_are_themselves() {
        for (given, seed) in [
            ("0", 0),
            ("7", 7),
            ("4294967295", u32::MAX),
            ("4294967296", 0),
            ("4294967303", 7),
            ("-1", u32::MAX),
            ("-9223372036854775808", 0),
            ("9223372036854775807", u32::MAX),
            ("18446744073709551615", u32::MAX),
        ] {
            let ask = read(&format!(r#"{{{HI},"seed":{given}}}"#)).unwrap();
            assert_eq!(ask.seed, Some(seed), "{given}");
        }
    }

    #[test]
    fn an_answer_is_calls_or_what_its_format_says() {
        let tools = r#""tools":[{"type":"function","function":{"name":"f"}}]"#;
        let object = r#""response_format":{"type":"json_object"}"#;
        let schema = r#""response_format":{"type":"json_schema","json_schema":{"schema":{}}}"#;
        let text = || {
            let schema = tirami_infer::engine::JsonSchema::new("{}", false);
            Some(Format::JsonSchema(schema))
        };
        for (more, text) in [
            (r#""stream":true"#, Some(Format::Text)),
            (r#""response_format":{"type":"text"}"#, Some(Format::Text)),
            (object, Some(Format::JsonObject)),
            (schema, text()),
            (&*format!(r#""tool_choice":"auto",{schema}"#), text()),
            (&*format!(r#""tool_choice":"required",{schema}"#), None),
        ] {
            let ask = read(&format!("{{{HI},{tools},{more}}}")).unwrap();
            assert!(matches!(ask.sampling.format, Format::Calls(_)), "{more}");
            assert_eq!((ask.sampling.format.without_calls(), ask.tools.len()), (text, 1), "{more}");
        }
        let none = read(&format!(r#"{{{HI},{tools},{schema},"tool_choice":"none"}}"#)).unwrap();
        assert_eq!((Some(none.sampling.format), none.tools.len()), (text(), 0));
    }

    #[test]
    fn content_may_come_in_parts_and_developer_is_system() {
        let ask = read(
            r#"{"model":"m","messages":[{"role":"developer","content":[
            {"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#,
        )
        .unwrap();
        let message = Message::new("system", "ab");
        assert_eq!(ask.subjects, [Subject::Chat(vec![message].into())]);
    }

    #[test]
    fn what_an_assistant_would_not_say_is_what_it_said_and_it_may_have_said_nothing() {
        for (message, said) in [
            (r#"{"role":"assistant","content":null}"#, ""),
            (r#"{"role":"assistant","content":null,"refusal":"No."}"#, "No."),
            (r#"{"role":"assistant","content":[{"type":"refusal","refusal":"No."}]}"#, "No."),
        ] {
            let ask = read(&format!(r#"{{"model":"m","messages":[{message}]}}"#)).unwrap();
            let message = Message::new("assistant", said);
            assert_eq!(ask.subjects, [Subject::Chat(vec![message].into())], "{said}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_change() {
        let hi = HI;
        for (json, start) in [
            (r#"{"messages":[]}"#.to_owned(), "model: model is missing"),
            (r#"{"model":3,"messages":[]}"#.to_owned(), "model: model must be"),
            (r#"{"model":"m"}"#.to_owned(), "messages: messages is missing"),
            (r#"{"model":"m","messages":[]}"#.to_owned(), "messages: messages is empty"),
            (r#"{"model":"m","messages":"hi"}"#.to_owned(), "messages: messages must be"),
            (r#"{"model":"m","messages":["hi"]}"#.to_owned(), "messages[0]: "),
            (r#"{"model":"m","messages":[{"content":"x"}]}"#.to_owned(), "messages[0].role: "),
            (
                r#"{"model":"m","messages":[{"role":"king","content":"x"}]}"#.to_owned(),
                "messages[0].role: ",
            ),
            (r#"{"model":"m","messages":[{"role":"user"}]}"#.to_owned(), "messages[0].content: "),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x","name":7}]}"#.to_owned(),
                "messages[0].name: messages[0].name must be text",
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":[{"type":"refusal",
                "refusal":"No."}]}]}"#
                    .to_owned(),
                "messages[0].content[0]: ",
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":7}]}"#.to_owned(),
                "messages[0].content: ",
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#
                    .to_owned(),
                "messages[0].content[0]: ",
            ),
            (format!(r#"{{{hi},"max_tokens":0}}"#), "max_tokens: max_tokens must be"),
            (format!(r#"{{{hi},"max_tokens":-1}}"#), "max_tokens: "),
            (format!(r#"{{{hi},"max_tokens":1.5}}"#), "max_tokens: "),
            (format!(r#"{{{hi},"max_tokens":"9"}}"#), "max_tokens: "),
            (format!(r#"{{{hi},"max_tokens":99999999999999999999}}"#), "max_tokens: "),
            (format!(r#"{{{hi},"temperature":-0.1}}"#), "temperature: temperature must be"),
            (format!(r#"{{{hi},"temperature":2.1}}"#), "temperature: "),
            (format!(r#"{{{hi},"temperature":"hot"}}"#), "temperature: "),
            (format!(r#"{{{hi},"top_p":-0.1}}"#), "top_p: "),
            (format!(r#"{{{hi},"top_p":1.1}}"#), "top_p: "),
            (format!(r#"{{{hi},"seed":1.5}}"#), "seed: seed must be"),
            (format!(r#"{{{hi},"seed":"1"}}"#), "seed: "),
            (format!(r#"{{{hi},"seed":18446744073709551616}}"#), "seed: "),
            (format!(r#"{{{hi},"stop":7}}"#), "stop: "),
            (format!(r#"{{{hi},"stop":[""]}}"#), "stop: "),
            (format!(r#"{{{hi},"stop":{:?}}}"#, vec!["x"; 17]), "stop: "),
            (format!(r#"{{{hi},"stream":"yes"}}"#), "stream: "),
            (format!(r#"{{{hi},"stream_options":{{}}}}"#), "stream_options: "),
            (format!(r#"{{{hi},"user":7}}"#), "user: "),
            (format!(r#"{{{hi},"n":17}}"#), "n: n must be a whole number from 1 to 16"),
            (format!(r#"{{{hi},"n":0}}"#), "n: "),
            (format!(r#"{{{hi},"functions":[{{"name":"f"}}]}}"#), "functions: "),
            (format!(r#"{{{hi},"tool_choice":"required"}}"#), "tool_choice: "),
            (format!(r#"{{{hi},"logprobs":1}}"#), "logprobs: "),
            (format!(r#"{{{hi},"top_logprobs":2}}"#), "top_logprobs: "),
            (format!(r#"{{{hi},"logprobs":true,"top_logprobs":21}}"#), "top_logprobs: "),
            (format!(r#"{{{hi},"logit_bias":7}}"#), "logit_bias: "),
            (format!(r#"{{{hi},"modalities":["audio"]}}"#), "modalities: "),
            (format!(r#"{{{hi},"min_tokens":1}}"#), "min_tokens: min_tokens is not supported"),
        ] {
            let error = read(&json).unwrap_err();
            assert!(error.starts_with(start), "{json}: {error}");
        }
    }
}
