//! From Anthropic's request to a chat's: what is wrong is named by Anthropic's names.

use serde_json::{Map, Value, json};

use crate::http::chat::{Said, check, flag, present};
use crate::http::error::ApiError;

/// Fields that a chat has too, by the same name and with the same meaning.
const SAME: [&str; 10] = [
    "model",
    "stream",
    "top_p",
    "seed",
    "provider",
    "keep_alive",
    "timeout_ms",
    "max_tokens",
    "thinking",
    "chat_template_kwargs",
];

/// What the chat's other fields are called here.
pub(super) type Names = [(&'static str, &'static str); 5];

/// What this request calls them, or would.
pub(super) fn names(fields: &Map<String, Value>) -> Names {
    [
        ("response_format", asked_format(fields).map_or(FORMAT, |(param, _)| param)),
        ("stop", "stop_sequences"),
        ("user", "metadata.user_id"),
        ("tools[].function.parameters", "tools[].input_schema"),
        ("tools[].function", "tools[]"),
    ]
}

/// The newer name of the answer's schema; it counts where both are sent.
const FORMAT: &str = "output_config.format";
const FORMAT_OLDER: &str = "output_format";

/// The chat that a request asks for; `is_run` unless it is only to be counted.
pub(super) fn chat(
    fields: &Map<String, Value>,
    is_run: bool,
) -> Result<Map<String, Value>, ApiError> {
    refuse_unsupported(fields)?;
    if is_run && present(fields, "max_tokens").is_none() {
        let message = "max_tokens is missing; say how many tokens the answer may have";
        return Err(ApiError::invalid("max_tokens", message));
    }
    let mut chat = Map::new();
    for name in SAME {
        if let Some(value) = present(fields, name) {
            chat.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(temperature) = present(fields, "temperature") {
        if !temperature.as_f64().is_some_and(|value| (0.0..=1.0).contains(&value)) {
            let message = "temperature must be a number from 0 to 1";
            return Err(ApiError::invalid("temperature", message));
        }
        chat.insert("temperature".to_owned(), temperature.clone());
    }
    if let Some(top_k) = present(fields, "top_k") {
        chat.insert("top_k".to_owned(), top_k.clone());
    }
    let stops = stops(fields)?;
    if !stops.is_empty() {
        chat.insert("stop".to_owned(), stops.into());
    }
    if let Some(user) = present(fields, "metadata").and_then(|of| of.get("user_id")) {
        chat.insert("user".to_owned(), user.clone());
    }
    chat.insert("messages".to_owned(), messages(fields, is_run)?.into());
    if let Some(format) = format(fields)? {
        chat.insert("response_format".to_owned(), format);
    }
    tools(fields, &mut chat)?;
    Ok(chat)
}

/// The texts that end the answer.
pub(super) fn stops(fields: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let texts = match present(fields, "stop_sequences") {
        None => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|one| Some(one.as_str()?.to_owned())).collect(),
        Some(_) => None,
    };
    texts.filter(|texts| !texts.iter().any(String::is_empty)).ok_or_else(|| {
        let message = "stop_sequences must be a list of texts that are not empty";
        ApiError::invalid("stop_sequences", message)
    })
}

/// The format that counts, and the name by which it was sent.
fn asked_format(fields: &Map<String, Value>) -> Option<(&'static str, &Value)> {
    let config = present(fields, "output_config").and_then(Value::as_object);
    let newer = config.and_then(|config| present(config, "format"));
    let older = || present(fields, FORMAT_OLDER).map(|format| (FORMAT_OLDER, format));
    newer.map(|format| (FORMAT, format)).or_else(older)
}

/// The schema that the answer follows, as a chat has it. How much is thought before an answer,
/// which `output_config` asks for too, is up to the model.
fn format(fields: &Map<String, Value>) -> Result<Option<Value>, ApiError> {
    let Some((param, format)) = asked_format(fields) else { return Ok(None) };
    let is_schema = format.get("type").is_some_and(|kind| kind == "json_schema");
    let schema = format.get("schema").filter(|schema| is_schema && schema.is_object());
    let schema = schema.ok_or_else(|| {
        let message = format!("{param} must be {{\"type\": \"json_schema\", \"schema\": …}}");
        ApiError::invalid(param, message)
    })?;
    // Clients of this interface have no other word for it, and rely on all of their schema.
    let schema = json!({"schema": schema, "strict": true});
    Ok(Some(json!({"type": "json_schema", "json_schema": schema})))
}

/// What would change the answer and is not built here.
fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), ApiError> {
    for name in ["container", "mcp_servers"] {
        let is_off = |value: &Value| {
            value.get("type").is_some_and(|kind| kind == "disabled")
                || value.as_array().is_some_and(Vec::is_empty)
        };
        if present(fields, name).is_some_and(|value| !is_off(value)) {
            let message = format!("{name} is not supported here; leave it out");
            return Err(ApiError::unsupported(name, message));
        }
    }
    Ok(())
}

fn messages(fields: &Map<String, Value>, is_run: bool) -> Result<Vec<Value>, ApiError> {
    let wrong = |message: &str| ApiError::invalid("messages", message);
    let list = match present(fields, "messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(Value::Array(_)) => return Err(wrong("messages is empty; send at least one message")),
        Some(_) => return Err(wrong("messages must be a list of {role, content}")),
        None => return Err(wrong("messages is missing; send a list of {role, content}")),
    };
    let mut all = Vec::with_capacity(list.len() + 1);
    if let Some(system) = present(fields, "system") {
        all.push(json!({"role": "system", "content": text("system", system)?}));
    }
    for (index, message) in list.iter().enumerate() {
        add(&mut all, &format!("messages[{index}]"), message)?;
    }
    // The chat would take it for a finished turn, and begin another one.
    if is_run && list.last().is_some_and(|last| last["role"] == "assistant") {
        let at = format!("messages[{}]", list.len() - 1);
        let message = format!(
            "{at} is the assistant's, and an answer that is begun is not gone on with here; end \
             with a message of user"
        );
        return Err(ApiError::unsupported(&at, message));
    }
    Ok(all)
}

/// Adds the chat's messages for one of Anthropic's.
fn add(all: &mut Vec<Value>, at: &str, message: &Value) -> Result<(), ApiError> {
    let role = match message.get("role").and_then(Value::as_str) {
        Some(role @ ("user" | "assistant")) => role,
        _ => {
            let param = format!("{at}.role");
            let message =
                format!("{param} must be user or assistant; the system has its own field");
            return Err(ApiError::invalid(&param, message));
        }
    };
    let param = format!("{at}.content");
    let blocks = match message.get("content") {
        Some(Value::String(text)) => {
            all.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        Some(Value::Array(blocks)) => blocks,
        _ => {
            let message = format!("{param} must be text or a list of blocks");
            return Err(ApiError::invalid(&param, message));
        }
    };
    let (mut said, mut calls, mut shown) = (Said::default(), Vec::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate() {
        let at = format!("{param}[{index}]");
        let kind = block.get("type").and_then(Value::as_str);
        if kind != Some("tool_result") {
            shown.drain(..).for_each(|url: String| said.picture(&url));
        }
        match (kind, role) {
            // What was thought is no part of the chat.
            (Some("thinking" | "redacted_thinking"), "assistant") => {}
            (Some("text"), _) => said.text(&text_of(&at, block)?),
            (Some("image"), "user") => said.picture(&picture(&at, block)?),
            (Some("tool_use"), "assistant") => calls.push(call(&at, block)?),
            (Some("tool_result"), "user") => {
                // Results and texts stay in their order.
                if let Some(content) = std::mem::take(&mut said).content() {
                    all.push(json!({"role": "user", "content": content}));
                }
                // A chat's results have no pictures: the user shows them when all are told.
                all.push(result(&at, block, &mut shown)?);
            }
            (Some("image" | "document"), _) => {
                let message = format!("{at} is no text, nor a picture of the user's");
                return Err(ApiError::unsupported(&at, message));
            }
            (kind, _) => {
                let kind = kind.unwrap_or("no type");
                let message =
                    format!("{at} is of type {kind:?}, which a message of {role} cannot have");
                return Err(ApiError::unsupported(&at, message));
            }
        }
    }
    shown.iter().for_each(|url| said.picture(url));
    let said = said.content();
    if !calls.is_empty() {
        all.push(json!({"role": role, "content": said, "tool_calls": calls}));
    } else if let Some(content) = said {
        all.push(json!({"role": role, "content": content}));
    } else if blocks.is_empty() {
        let message = format!("{param} is empty; give it a block of text");
        return Err(ApiError::invalid(&param, message));
    }
    Ok(())
}

/// The picture of a block, as a URL.
fn picture(at: &str, block: &Value) -> Result<String, ApiError> {
    let source = block.get("source");
    let of = |name: &str| source.and_then(|source| source.get(name)).and_then(Value::as_str);
    let param = format!("{at}.source");
    let url = match (of("type"), of("media_type"), of("data"), of("url")) {
        (Some("base64"), Some(media_type), Some(data), _) => {
            format!("data:{media_type};base64,{data}")
        }
        (Some("url"), _, _, Some(url)) => url.to_owned(),
        _ => {
            let message = format!(
                "{param} must be {{\"type\": \"base64\", \"media_type\": \"image/png\", \"data\": …}}"
            );
            return Err(ApiError::invalid(&param, message));
        }
    };
    check(&param, &url)?;
    Ok(url)
}

fn call(at: &str, block: &Value) -> Result<Value, ApiError> {
    let (id, name) = (block.get("id"), block.get("name"));
    let named = id.is_some_and(Value::is_string) && name.is_some_and(Value::is_string);
    match block.get("input") {
        Some(input @ Value::Object(_)) if named => Ok(json!({
            "id": id, "type": "function",
            "function": {"name": name, "arguments": input.to_string()},
        })),
        _ => {
            Err(ApiError::invalid(at, format!("{at} must have an id, a name and an input object")))
        }
    }
}

/// The chat's message with a result; pictures in it are added to `shown`.
fn result(at: &str, block: &Value, shown: &mut Vec<String>) -> Result<Value, ApiError> {
    let Some(id @ Value::String(_)) = block.get("tool_use_id") else {
        let message = format!("{at}.tool_use_id is missing; name the call whose result this is");
        return Err(ApiError::invalid(&format!("{at}.tool_use_id"), message));
    };
    let text = match block.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::Array(blocks)) => {
            let mut text = String::new();
            for (index, block) in blocks.iter().enumerate() {
                let at = format!("{at}.content[{index}]");
                if block.get("type").is_some_and(|kind| kind == "image") {
                    shown.push(picture(&at, block)?);
                } else {
                    text += &text_of(&at, block)?;
                }
            }
            text
        }
        Some(content) => text(&format!("{at}.content"), content)?,
    };
    let failed = block.get("is_error").and_then(Value::as_bool).unwrap_or(false);
    // A chat has no other place to say so.
    let text = if failed { format!("Error: {text}") } else { text };
    Ok(json!({"role": "tool", "tool_call_id": id, "content": text}))
}

/// A text, or blocks of text.
fn text(at: &str, value: &Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let each = blocks.iter().enumerate();
            each.map(|(index, block)| text_of(&format!("{at}[{index}]"), block)).collect()
        }
        _ => Err(ApiError::invalid(at, format!("{at} must be text or a list of blocks of text"))),
    }
}

fn text_of(at: &str, block: &Value) -> Result<String, ApiError> {
    let is_text = block.get("type").is_some_and(|kind| kind == "text");
    match block.get("text") {
        Some(Value::String(text)) if is_text => Ok(text.clone()),
        _ if is_text => Err(ApiError::invalid(at, format!("{at}.text must be text"))),
        _ => {
            let message = format!("{at} is no text, nor a picture of the user's");
            Err(ApiError::unsupported(at, message))
        }
    }
}

fn tools(fields: &Map<String, Value>, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    match present(fields, "tools") {
        None => {}
        Some(Value::Array(list)) => {
            let tools = list.iter().enumerate();
            let tools = tools.map(|(index, one)| tool(&format!("tools[{index}]"), one));
            chat.insert("tools".to_owned(), tools.collect::<Result<Vec<_>, _>>()?.into());
        }
        Some(_) => return Err(ApiError::invalid("tools", "tools must be a list")),
    }
    let choice = match present(fields, "tool_choice") {
        None => return Ok(()),
        Some(Value::Object(choice)) => choice,
        Some(_) => return Err(wrong_choice()),
    };
    let chosen = match (choice.get("type").and_then(Value::as_str), choice.get("name")) {
        (Some("auto"), _) => json!("auto"),
        (Some("any"), _) => json!("required"),
        (Some("none"), _) => json!("none"),
        (Some("tool"), Some(name @ Value::String(_))) => {
            json!({"type": "function", "function": {"name": name}})
        }
        _ => return Err(wrong_choice()),
    };
    chat.insert("tool_choice".to_owned(), chosen);
    if let Some(disabled) = flag(choice, "disable_parallel_tool_use")? {
        chat.insert("parallel_tool_calls".to_owned(), (!disabled).into());
    }
    Ok(())
}

fn tool(at: &str, tool: &Value) -> Result<Value, ApiError> {
    if let Some(kind) = tool.get("type").filter(|kind| !kind.is_null() && *kind != "custom") {
        let param = format!("{at}.type");
        let message = format!("{param} is {kind}; only tools with an input_schema are known here");
        return Err(ApiError::unsupported(&param, message));
    }
    let parameters = tool.get("input_schema").filter(|schema| schema.is_object());
    let parameters = parameters.ok_or_else(|| {
        let param = format!("{at}.input_schema");
        let message = format!("{param} must be a JSON schema of an object");
        ApiError::invalid(&param, message)
    })?;
    let mut function = Map::new();
    function.insert("name".to_owned(), tool.get("name").cloned().unwrap_or_default());
    function.insert("parameters".to_owned(), parameters.clone());
    for name in ["description", "strict"] {
        if let Some(value) = tool.get(name) {
            function.insert(name.to_owned(), value.clone());
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

fn wrong_choice() -> ApiError {
    let message = "tool_choice must be {\"type\": \"auto\"}, any, none, or tool with a name";
    ApiError::invalid("tool_choice", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: Value) -> Result<Value, String> {
        let mut request = json!({
            "model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}],
        });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let read = chat(request.as_object().unwrap(), true).map(Value::from);
        read.map_err(|error| error.body().error.param.clone().unwrap_or_default())
    }

    #[test]
    fn a_conversation_with_tools_becomes_a_chat() {
        let chat = read(json!({
            "system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "d"},
                    {"type": "text", "text": "So."},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "x", "is_error": true},
                    {"type": "text", "text": "more"},
                ]},
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "stop_sequences": ["a"], "temperature": 1, "top_p": 0.5, "top_k": 3, "stream": true,
            "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 9},
            "output_config": {"effort": "high"},
        }));
        let call = json!({"id": "1", "type": "function",
                          "function": {"name": "f", "arguments": "{\"a\":1}"}});
        let function = json!({"name": "f", "description": "d", "parameters": {"type": "object"}});
        let expected = json!({
            "model": "m", "max_tokens": 5, "stop": ["a"], "temperature": 1, "top_p": 0.5,
            "top_k": 3, "stream": true, "user": "u",
            "thinking": {"type": "enabled", "budget_tokens": 9},
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "So.", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "Error: x"},
                {"role": "user", "content": "more"},
            ],
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "required", "parallel_tool_calls": false,
        });
        assert_eq!(chat, Ok(expected));
        let named = read(json!({"tool_choice": {"type": "tool", "name": "f"}})).unwrap();
        assert_eq!(named["tool_choice"]["function"]["name"], "f");
    }

    #[test]
    fn a_schema_of_the_answer_is_followed_in_all_by_its_newer_and_its_older_name() {
        let format = |schema: Value| json!({"type": "json_schema", "schema": schema});
        let (one, other) = (json!({"type": "object"}), json!({"type": "string"}));
        for (more, schema) in [
            (json!({"output_config": {"format": format(one.clone())}}), &one),
            (json!({"output_format": format(one.clone())}), &one),
            (
                json!({"output_config": {"format": format(one.clone()), "effort": "low"},
                       "output_format": format(other.clone())}),
                &one,
            ),
            (
                json!({"output_config": {"format": null}, "output_format": format(other.clone())}),
                &other,
            ),
        ] {
            let chat = read(more.clone()).unwrap();
            let expected = json!({"schema": schema, "strict": true});
            assert_eq!(chat["response_format"]["type"], "json_schema", "{more}");
            assert_eq!(chat["response_format"]["json_schema"], expected, "{more}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
        let result = json!([{"role": "user", "content": [{"type": "tool_result"}]}]);
        let called = json!([{"role": "user", "content": [{"type": "tool_use"}]}]);
        let begun = json!([{"role": "user", "content": "hi"},
                           {"role": "assistant", "content": "{"}]);
        for (more, param) in [
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"messages": null}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": []}]}), "messages[0].content"),
            (json!({"messages": image}), "messages[0].content[0].source"),
            (json!({"messages": result}), "messages[0].content[0].tool_use_id"),
            (json!({"messages": called}), "messages[0].content[0]"),
            (json!({"messages": begun}), "messages[1]"),
            (json!({"system": 7}), "system"),
            (json!({"system": [{"type": "image"}]}), "system[0]"),
            (json!({"temperature": 1.5}), "temperature"),
            (json!({"stop_sequences": "a"}), "stop_sequences"),
            (json!({"stop_sequences": [""]}), "stop_sequences"),
            (json!({"tools": [{"type": "web_search_20250305"}]}), "tools[0].type"),
            (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
            (json!({"tool_choice": "auto"}), "tool_choice"),
            (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format"),
            (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format"),
            (json!({"output_format": {"schema": {}}}), "output_format"),
        ] {
            assert_eq!(read(more.clone()).unwrap_err(), param, "{more}");
        }
    }
}
