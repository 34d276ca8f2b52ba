//! What a kept answer was asked with, and what that went on from: items, out of the chat that is
//! kept of it.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use tirami_sdk::types::ResponseItemList;

use super::{find, unknown};
use crate::http::error::ApiError;
use crate::http::guard::Caller;
use crate::http::query::{Parameters, Segment};
use crate::http::{AppState, json};

/// Items of a page where no number is asked for, and at most: OpenAI's figures, which its clients
/// count on.
const PAGE: usize = 20;
const PAGE_MAX: usize = 100;

/// Answers `GET /v1/responses/{id}/input_items`.
pub(in crate::http) async fn input_items(
    State(app): State<AppState>,
    caller: Caller,
    Segment(id): Segment,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let kept = find(&app, caller.agent(), &id).await?.ok_or_else(unknown)?;
    let mut chat: Vec<Value> = serde_json::from_slice(&kept.conversation).map_err(|_| unknown())?;
    // The last message is the answer itself.
    chat.pop();
    page(items(&id, &chat), &parameters).map(|page| json::ok(&page))
}

/// The items of a chat. Their ids are their own: none of them is the id of an answer's item.
fn items(answer: &str, chat: &[Value]) -> Vec<Value> {
    let job = answer.rsplit('_').next().unwrap_or_default();
    let mut items = Vec::new();
    let mut add = |kind: &str, mut item: Value| {
        item["id"] = format!("{kind}_{job}i{:02}", items.len()).into();
        item["status"] = "completed".into();
        items.push(item);
    };
    for message in chat {
        let (role, content) = (&message["role"], &message["content"]);
        if role == "tool" {
            let call = &message["tool_call_id"];
            let result =
                json!({"type": "function_call_output", "call_id": call, "output": content});
            add("fco", result);
            continue;
        }
        let calls = message["tool_calls"].as_array();
        if calls.is_none() || content.as_str().is_some_and(|text| !text.is_empty()) {
            let parts = parts(content, role == "assistant");
            add("msg", json!({"type": "message", "role": role, "content": parts}));
        }
        for call in calls.into_iter().flatten() {
            let (id, function) = (&call["id"], &call["function"]);
            let (name, arguments) = (&function["name"], &function["arguments"]);
            let call = json!({
                "type": "function_call", "call_id": id, "name": name, "arguments": arguments,
            });
            add("fc", call);
        }
    }
    items
}

/// What a message says, part by part.
fn parts(content: &Value, is_answer: bool) -> Vec<Value> {
    let text = |text: &Value| match is_answer {
        true => json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}),
        false => json!({"type": "input_text", "text": text}),
    };
    let part = |part: &Value| match part["image_url"]["url"].as_str() {
        Some(url) => json!({"type": "input_image", "image_url": url, "detail": "auto"}),
        None => text(&part["text"]),
    };
    match content {
        Value::Array(parts) => parts.iter().map(part).collect(),
        whole => vec![text(whole)],
    }
}

/// The page that is asked for.
fn page(mut items: Vec<Value>, parameters: &Parameters) -> Result<ResponseItemList, ApiError> {
    let limit = parameters.number::<usize>("limit")?.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        let message = format!("limit must be a whole number from 1 to {PAGE_MAX}");
        return Err(ApiError::invalid("limit", message));
    }
    if parameters.choice("order", ["asc", "desc"])? != Some("asc") {
        items.reverse();
    }
    if let Some(after) = parameters.text("after") {
        let place = items.iter().position(|item| item["id"] == after).ok_or_else(|| {
            ApiError::invalid("after", "after must be the last_id of a page of these items")
        })?;
        items.drain(..=place);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.and_then(|item| item["id"].as_str()).map(str::to_owned);
    let (first_id, last_id) = (id(items.first()), id(items.last()));
    Ok(ResponseItemList { object: "list".to_owned(), data: items, first_id, last_id, has_more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_calls_without_words_are_items_too() {
        let call = json!({"id": "1", "type": "function",
                          "function": {"name": "f", "arguments": "{}"}});
        let chat = [
            json!({"role": "user", "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "data:,"}},
            ]}),
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "assistant", "content": ""}),
        ];
        let said = json!([{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]);
        let expected = json!([
            {"id": "msg_0ai00", "status": "completed", "type": "message", "role": "user",
             "content": [{"type": "input_text", "text": "a"},
                         {"type": "input_image", "image_url": "data:,", "detail": "auto"}]},
            {"id": "fc_0ai01", "status": "completed", "type": "function_call", "call_id": "1",
             "name": "f", "arguments": "{}"},
            {"id": "msg_0ai02", "status": "completed", "type": "message", "role": "assistant",
             "content": said},
        ]);
        assert_eq!(Value::from(items("resp_0a", &chat)), expected);
    }
}
