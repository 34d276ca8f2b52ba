//! From a request for a response to a chat's: what is wrong is named by the request's names.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tirami_infer::engine::TOP_LOGPROBS_MAX;
use tirami_sdk::types::{ResponseObject, ResponseReasoning, ResponseText, ResponseTool};

use crate::http::chat::{Said, check, flag, number, present};
use crate::http::error::ApiError;

/// Notes of one request at most, and bytes of a name and of a note at most.
const NOTES_MAX: usize = 16;
const NOTE_NAME_BYTES_MAX: usize = 64;
const NOTE_BYTES_MAX: usize = 512;

/// Fields that a chat has too, by the same name and with the same meaning.
const SAME: [&str; 13] = [
    "model",
    "stream",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "user",
    "provider",
    "keep_alive",
    "timeout_ms",
    "parallel_tool_calls",
    "seed",
    "chat_template_kwargs",
];

/// What the chat's other fields are called here.
pub(super) const NAMES: [(&str, &str); 7] = [
    ("logprobs", "include"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("reasoning_effort", "reasoning.effort"),
    ("response_format", "text.format"),
    ("tools[].function", "tools[]"),
];

/// Who may say something.
const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];

/// What `include` may ask for that an answer has.
const LIKELIHOODS: &str = "message.output_text.logprobs";

/// A request that is understood as far as it is not a chat's.
pub(super) struct Asked {
    pub(super) chat: Map<String, Value>,
    /// The answer before it begins; what only the job knows is empty.
    pub(super) base: ResponseObject,
    /// The chat's messages that the next answer goes on from.
    pub(super) conversation: Vec<Value>,
}

/// Reads the request; `before` is what came before its input.
pub(super) fn read(fields: &Map<String, Value>, before: Vec<Value>) -> Result<Asked, ApiError> {
    refuse_unsupported(fields)?;
    let mut chat = Map::new();
    for name in SAME {
        if let Some(value) = present(fields, name) {
            chat.insert(name.to_owned(), value.clone());
        }
    }
    let max_output_tokens = number(fields, "max_output_tokens", 1, u32::MAX)?;
    if let Some(most) = max_output_tokens {
        chat.insert("max_completion_tokens".to_owned(), most.into());
    }
    let reasoning = reasoning(fields, &mut chat)?;
    let top_logprobs = likelihoods(fields, &mut chat)?;
    let tools = tools(fields)?;
    if !tools.is_empty() {
        let tools = tools.iter().map(chat_tool).collect::<Vec<_>>();
        chat.insert("tools".to_owned(), tools.into());
    }
    let tool_choice = present(fields, "tool_choice").cloned();
    if let Some(choice) = &tool_choice {
        chat.insert("tool_choice".to_owned(), chat_choice(choice)?);
    }
    let format = format(fields)?;
    if let Some(format) = &format {
        chat.insert("response_format".to_owned(), chat_format(format)?);
    }
    let instructions = text(fields, "instructions")?;
    let mut conversation = before;
    input(fields, &mut conversation)?;
    let told = instructions.iter().map(|text| json!({"role": "system", "content": text}));
    let messages: Vec<Value> = told.chain(conversation.iter().cloned()).collect();
    chat.insert("messages".to_owned(), messages.into());
    // The chat refuses what is no number.
    let real = |name, unset| present(fields, name).and_then(Value::as_f64).unwrap_or(unset);
    let base = ResponseObject {
        id: String::new(),
        object: "response".to_owned(),
        created_at: 0,
        completed_at: None,
        status: "in_progress".to_owned(),
        error: None,
        incomplete_details: None,
        background: false,
        frequency_penalty: real("frequency_penalty", 0.0),
        instructions,
        max_output_tokens,
        max_tool_calls: None,
        metadata: metadata(fields)?,
        model: String::new(),
        output: Vec::new(),
        parallel_tool_calls: flag(fields, "parallel_tool_calls")?.unwrap_or(true),
        presence_penalty: real("presence_penalty", 0.0),
        previous_response_id: text(fields, "previous_response_id")?,
        prompt_cache_key: text(fields, "prompt_cache_key")?,
        reasoning,
        safety_identifier: text(fields, "safety_identifier")?,
        service_tier: "default".to_owned(),
        store: flag(fields, "store")?.unwrap_or(true),
        temperature: real("temperature", 1.0),
        text: ResponseText { format: Some(format.unwrap_or_else(|| json!({"type": "text"}))) },
        tool_choice: tool_choice.unwrap_or_else(|| "auto".into()),
        tools,
        top_logprobs,
        top_p: real("top_p", 1.0),
        truncation: "disabled".to_owned(),
        usage: None,
        user: text(fields, "user")?,
        x_tirami: None,
    };
    Ok(Asked { chat, base, conversation })
}

/// What would change the answer and is not built here.
fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), ApiError> {
    if present(fields, "truncation").is_some_and(|cut| cut != "auto" && cut != "disabled") {
        let message = "truncation must be auto or disabled; either way an input that is too long \
                       is refused";
        return Err(ApiError::invalid("truncation", message));
    }
    for name in ["background", "conversation", "max_tool_calls", "prompt"] {
        let is_off = |value: &Value| match value {
            Value::Bool(is_on) => !is_on,
            Value::Object(parts) => parts.values().all(Value::is_null),
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => false,
        };
        if present(fields, name).is_some_and(|value| !is_off(value)) {
            let message = format!("{name} is not supported here; leave it out");
            return Err(ApiError::unsupported(name, message));
        }
    }
    Ok(())
}

/// Tells the chat how much is to be thought.
fn reasoning(
    fields: &Map<String, Value>,
    chat: &mut Map<String, Value>,
) -> Result<Option<ResponseReasoning>, ApiError> {
    let of = match present(fields, "reasoning") {
        None => return Ok(None),
        Some(Value::Object(of)) => of,
        Some(_) => {
            let message = "reasoning must be an object, such as {\"effort\": \"low\"}";
            return Err(ApiError::invalid("reasoning", message));
        }
    };
    if let Some(effort) = of.get("effort") {
        chat.insert("reasoning_effort".to_owned(), effort.clone());
    }
    let word = |name| present(of, name).and_then(Value::as_str).map(str::to_owned);
    Ok(Some(ResponseReasoning { effort: word("effort"), summary: word("summary") }))
}

/// Asks the chat for log-probabilities where either of their two fields asks for some; of how many
/// of the likeliest tokens.
fn likelihoods(
    fields: &Map<String, Value>,
    chat: &mut Map<String, Value>,
) -> Result<u32, ApiError> {
    let top = number(fields, "top_logprobs", 0, TOP_LOGPROBS_MAX)?.unwrap_or(0);
    let mut included = present(fields, "include").and_then(Value::as_array).into_iter().flatten();
    if top > 0 || included.any(|one| one == LIKELIHOODS) {
        chat.insert("logprobs".to_owned(), true.into());
        chat.insert("top_logprobs".to_owned(), top.into());
    }
    Ok(top)
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match present(fields, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ApiError::invalid(name, format!("{name} must be text"))),
    }
}

fn metadata(fields: &Map<String, Value>) -> Result<BTreeMap<String, String>, ApiError> {
    let notes = match present(fields, "metadata") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(notes)) if notes.len() <= NOTES_MAX => Some(notes),
        Some(_) => None,
    };
    let note = |(name, note): (&String, &Value)| {
        let note = note.as_str()?;
        let fits = name.len() <= NOTE_NAME_BYTES_MAX && note.len() <= NOTE_BYTES_MAX;
        fits.then(|| (name.clone(), note.to_owned()))
    };
    notes.and_then(|notes| notes.iter().map(note).collect()).ok_or_else(|| {
        let message = format!(
            "metadata must be an object of at most {NOTES_MAX} texts, names up to \
             {NOTE_NAME_BYTES_MAX} and texts up to {NOTE_BYTES_MAX} bytes"
        );
        ApiError::invalid("metadata", message)
    })
}

/// Adds the chat's messages for the input.
fn input(fields: &Map<String, Value>, all: &mut Vec<Value>) -> Result<(), ApiError> {
    match present(fields, "input") {
        Some(Value::String(text)) => all.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                add(all, &format!("input[{index}]"), item)?;
            }
        }
        Some(_) => {
            let message = "input must be text or a list of items that is not empty";
            return Err(ApiError::invalid("input", message));
        }
        None => return Err(ApiError::invalid("input", "input is missing; send text or items")),
    }
    Ok(())
}

fn add(all: &mut Vec<Value>, at: &str, item: &Value) -> Result<(), ApiError> {
    let of = |name: &str| item.get(name).filter(|value| value.is_string());
    let missing = |name: &str| {
        let param = format!("{at}.{name}");
        let message = format!("{param} is missing or not text");
        ApiError::invalid(&param, message)
    };
    let need = |name: &str| of(name).ok_or_else(|| missing(name));
    match of("type").and_then(Value::as_str) {
        None | Some("message") => {
            let role = need("role")?;
            if !ROLES.iter().any(|one| role == one) {
                let param = format!("{at}.role");
                let message = format!("{param} must be {}", ROLES.join(", "));
                return Err(ApiError::invalid(&param, message));
            }
            let content = item.get("content").unwrap_or(&Value::Null);
            let content = match (role.as_str(), content) {
                (Some("user"), Value::Array(parts)) => {
                    content_parts(&format!("{at}.content"), parts)?
                }
                _ => content_text(&format!("{at}.content"), content)?.into(),
            };
            all.push(json!({"role": role, "content": content}));
        }
        Some("function_call") => {
            let (id, name) = (need("call_id")?, need("name")?);
            let function = json!({"name": name, "arguments": need("arguments")?});
            let call = json!({"id": id, "type": "function", "function": function});
            let last = all.last_mut().filter(|last| last["role"] == "assistant");
            match last.map(|last| &mut last["tool_calls"]) {
                Some(Value::Array(calls)) => calls.push(call),
                Some(none) => *none = json!([call]),
                None => all.push(json!({
                    "role": "assistant", "content": null, "tool_calls": [call],
                })),
            }
        }
        Some("function_call_output") => {
            let output = item.get("output").unwrap_or(&Value::Null);
            let output = content_text(&format!("{at}.output"), output)?;
            let id = need("call_id")?;
            all.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        // What was thought is no part of the chat.
        Some("reasoning") => {}
        Some(kind) => {
            let param = format!("{at}.type");
            let message = format!(
                "{param} is {kind:?}; message, function_call, function_call_output and \
                 item_reference are known here"
            );
            return Err(ApiError::unsupported(&param, message));
        }
    }
    Ok(())
}

/// Parts of text and pictures.
fn content_parts(at: &str, parts: &[Value]) -> Result<Value, ApiError> {
    let mut said = Said::default();
    for (index, part) in parts.iter().enumerate() {
        if part.get("type").is_none_or(|kind| kind != "input_image") {
            said.text(&part_text(&format!("{at}[{index}]"), part)?);
            continue;
        }
        let param = format!("{at}[{index}].image_url");
        let Some(url) = part.get("image_url").and_then(Value::as_str) else {
            let message = format!("{param} is missing; send the picture itself as a data: URL");
            return Err(ApiError::invalid(&param, message));
        };
        check(&param, url)?;
        said.picture(url);
    }
    Ok(said.content().unwrap_or_else(|| "".into()))
}

/// A text, or parts of text.
fn content_text(at: &str, content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts.iter().enumerate(),
        _ => return Err(ApiError::invalid(at, format!("{at} must be text or a list of parts"))),
    };
    parts.map(|(index, part)| part_text(&format!("{at}[{index}]"), part)).collect()
}

fn part_text(at: &str, part: &Value) -> Result<String, ApiError> {
    let kind = part.get("type").and_then(Value::as_str);
    // That an assistant would not answer is what it said.
    let text = part.get(if kind == Some("refusal") { "refusal" } else { "text" });
    match (kind, text) {
        (Some("input_text" | "output_text" | "text" | "refusal"), Some(Value::String(text))) => {
            Ok(text.clone())
        }
        (Some("input_text" | "output_text" | "text") | None, _) => {
            let message = format!("{at} must be {{\"type\": \"input_text\", \"text\": …}}");
            Err(ApiError::invalid(at, message))
        }
        (Some(kind), _) => {
            let message = format!(
                "{at} is of type {kind:?}; only text, and pictures of a user, are read here"
            );
            Err(ApiError::unsupported(at, message))
        }
    }
}

fn tools(fields: &Map<String, Value>) -> Result<Vec<ResponseTool>, ApiError> {
    let list = match present(fields, "tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::invalid("tools", "tools must be a list of functions")),
    };
    let tool = |(index, tool): (usize, &Value)| {
        let at = format!("tools[{index}]");
        let kind = tool.get("type").and_then(Value::as_str);
        if kind.is_some_and(|kind| kind != "function") {
            let param = format!("{at}.type");
            let message = format!("{param} must be function; no other tools are known here");
            return Err(ApiError::unsupported(&param, message));
        }
        serde_json::from_value(tool.clone()).map_err(|_| {
            let message =
                format!("{at} must be {{\"type\": \"function\", \"name\": …, \"parameters\": …}}");
            ApiError::invalid(&at, message)
        })
    };
    list.iter().enumerate().map(tool).collect()
}

fn chat_tool(tool: &ResponseTool) -> Value {
    json!({"type": "function", "function": {
        "name": tool.name, "description": tool.description, "parameters": tool.parameters,
        "strict": tool.strict,
    }})
}

fn chat_choice(choice: &Value) -> Result<Value, ApiError> {
    let name = choice.get("name").filter(|name| name.is_string());
    match (choice, name) {
        (Value::String(_), _) => Ok(choice.clone()),
        (Value::Object(_), Some(name)) if choice["type"] == "function" => {
            Ok(json!({"type": "function", "function": {"name": name}}))
        }
        (Value::Object(_), _) if choice["type"] == "allowed_tools" => {
            let function =
                |tool: &Value| json!({"type": tool["type"], "function": {"name": tool["name"]}});
            let tools = choice["tools"].as_array().into_iter().flatten().map(function);
            let allowed = json!({"mode": choice["mode"], "tools": tools.collect::<Vec<_>>()});
            Ok(json!({"type": "allowed_tools", "allowed_tools": allowed}))
        }
        _ => {
            let message = "tool_choice must be auto, none, required, {\"type\": \"function\", \
                           \"name\": …}, or of the type allowed_tools";
            Err(ApiError::invalid("tool_choice", message))
        }
    }
}

fn format(fields: &Map<String, Value>) -> Result<Option<Value>, ApiError> {
    match present(fields, "text") {
        None => Ok(None),
        Some(Value::Object(text)) => Ok(present(text, "format").cloned()),
        Some(_) => Err(ApiError::invalid("text", "text must be an object {format}")),
    }
}

fn chat_format(format: &Value) -> Result<Value, ApiError> {
    match format.get("type").and_then(Value::as_str) {
        Some("text" | "json_object") => Ok(format.clone()),
        Some("json_schema") if format.get("schema").is_some_and(Value::is_object) => {
            let (name, schema, strict) = (&format["name"], &format["schema"], &format["strict"]);
            let schema = json!({"name": name, "schema": schema, "strict": strict});
            Ok(json!({"type": "json_schema", "json_schema": schema}))
        }
        _ => {
            let message = "text.format must be {\"type\": \"text\"}, json_object, or json_schema \
                           with a schema";
            Err(ApiError::invalid("text.format", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(more: Value, before: Vec<Value>) -> Result<Asked, String> {
        let mut request = json!({"model": "m", "input": "hi"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(request.as_object().unwrap(), before)
            .map_err(|error| error.body().error.param.clone().unwrap_or_default())
    }

    #[test]
    fn items_become_a_chat_after_what_came_before() {
        let before = vec![json!({"role": "user", "content": "first"})];
        let schema = json!({"type": "object"});
        let asked = ask(
            json!({
                "instructions": "Be brief.",
                "input": [
                    {"role": "developer", "content": "d"},
                    {"type": "reasoning", "id": "rs_1", "summary": []},
                    {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                     "content": [{"type": "output_text", "text": "So.", "annotations": []},
                                 {"type": "refusal", "refusal": " No."}]},
                    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                    {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "1", "output": "x"},
                    {"type": "message", "role": "user",
                     "content": [{"type": "input_text", "text": "hi"}]},
                ],
                "tools": [{"type": "function", "name": "f", "parameters": schema, "strict": true}],
                "tool_choice": {"type": "function", "name": "f"}, "max_output_tokens": 7,
                "text": {"format": {"type": "json_schema", "name": "s", "schema": schema,
                                    "strict": true}},
                "reasoning": {"effort": "high"}, "truncation": "auto", "metadata": {"a": "b"},
                "store": false, "include": ["reasoning.encrypted_content"], "background": false,
            }),
            before,
        )
        .ok()
        .unwrap();
        let call = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
        let messages = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "first"},
            {"role": "developer", "content": "d"},
            {"role": "assistant", "content": "So. No.", "tool_calls": [call("1", "f"), call("2", "g")]},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            {"role": "user", "content": "hi"},
        ]);
        assert_eq!(asked.chat["messages"], messages);
        assert_eq!(asked.conversation, messages.as_array().unwrap()[1..]);
        assert_eq!(asked.chat["tool_choice"]["function"]["name"], "f");
        assert_eq!(asked.chat["tools"][0]["function"]["parameters"], schema);
        assert_eq!(asked.chat["tools"][0]["function"]["strict"], true);
        assert_eq!(asked.chat["response_format"]["json_schema"]["schema"], schema);
        assert_eq!(asked.chat["response_format"]["json_schema"]["strict"], true);
        assert_eq!(asked.chat["max_completion_tokens"], 7);
        assert_eq!(asked.chat["reasoning_effort"], "high");
        assert!(!asked.base.store && asked.base.metadata["a"] == "b");
    }

    #[test]
    fn either_field_asks_for_log_probabilities() {
        let included = json!(["message.output_text.logprobs"]);
        for (more, asked, top) in [
            (json!({}), json!(null), 0),
            (json!({"top_logprobs": 0, "include": []}), json!(null), 0),
            (json!({"top_logprobs": 2}), json!(true), 2),
            (json!({"include": included}), json!(true), 0),
            (json!({"include": included, "top_logprobs": 20}), json!(true), 20),
        ] {
            let read = ask(more.clone(), Vec::new()).ok().unwrap();
            let logprobs = read.chat.get("logprobs").cloned().unwrap_or_default();
            assert_eq!((&logprobs, read.base.top_logprobs), (&asked, top), "{more}");
            let told = read.chat.get("top_logprobs").cloned();
            assert_eq!(told, (asked == true).then(|| top.into()), "{more}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (more, param) in [
            (json!({"input": null}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": [{"type": "web_search_call"}]}), "input[0].type"),
            (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
            (json!({"input": [{"content": "x"}]}), "input[0].role"),
            (json!({"input": [{"role": "user"}]}), "input[0].content"),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
                "input[0].content[0].image_url",
            ),
            (json!({"input": [{"type": "function_call", "name": "f"}]}), "input[0].call_id"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0]"),
            (json!({"tool_choice": {"type": "mcp"}}), "tool_choice"),
            (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"metadata": {"a": 1}}), "metadata"),
            (json!({"background": true}), "background"),
            (json!({"truncation": "middle"}), "truncation"),
            (json!({"conversation": "c"}), "conversation"),
            (json!({"max_tool_calls": 0}), "max_tool_calls"),
            (json!({"top_logprobs": 21}), "top_logprobs"),
            (json!({"reasoning": "high"}), "reasoning"),
            (json!({"safety_identifier": 7}), "safety_identifier"),
        ] {
            assert_eq!(ask(more.clone(), Vec::new()).err().unwrap(), param, "{more}");
        }
    }
}
