//! OpenAI's responses at the edge: items, events, and answers that others go on from.

use std::time::Duration;

use serde_json::{Value, json};
use tirami_infer::fake::FakeScript;
use tirami_sdk::types::{Limits, ResponseObject, ResponsesRequest, Scope};

use crate::support::{TestNode, saying, script};

const PATH: &str = "/v1/responses";
const CALLS: &str = "So.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

fn request(more: Value) -> String {
    let mut request = json!({"model": "fake", "input": "hi"});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request.to_string()
}

/// The events of a stream, each checked as a strict client would.
fn events(text: &str) -> Vec<Value> {
    let read = |(at, event): (usize, &str)| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"], "{event}");
        assert_eq!(data["sequence_number"], at, "{event}");
        data
    };
    text.split_terminator("\n\n").enumerate().map(read).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = Vec::new();
    for event in events {
        let name = event["type"].as_str().unwrap().strip_prefix("response.").unwrap();
        // Many pieces of one thing are one here.
        if kinds.last() != Some(&name) {
            kinds.push(name);
        }
    }
    kinds
}

/// Without what differs from answer to answer.
fn shape(response: &Value) -> Value {
    let typed: ResponseObject = serde_json::from_value(response.clone()).unwrap();
    assert!(typed.id.starts_with("resp_") && typed.x_tirami.is_some(), "{response}");
    let mut response = response.clone();
    for field in ["id", "created_at", "x_tirami"] {
        response.as_object_mut().unwrap().remove(field);
    }
    for item in response["output"].as_array_mut().unwrap() {
        assert!(item["id"].is_string());
        (item["id"], item["call_id"]) = (Value::Null, Value::Null);
    }
    response
}

#[tokio::test]
async fn an_answer_is_the_same_whole_and_streamed() {
    let node = TestNode::within(saying(CALLS), |_| ()).await;
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let asked = json!({
        "tools": [tool], "instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5,
        "text": {"format": {"type": "text"}}, "max_output_tokens": 100,
    });
    let whole = node.post(PATH, None, request(asked.clone())).await;
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    let text = json!({"type": "output_text", "text": "So.", "annotations": [], "logprobs": []});
    let output = json!([
        {"type": "message", "id": null, "call_id": null, "role": "assistant",
         "status": "completed", "content": [text]},
        {"type": "function_call", "id": null, "call_id": null, "name": "f",
         "arguments": "{\"a\": 1}", "status": "completed"},
    ]);
    assert_eq!(shape(&whole)["output"], output);
    assert_eq!((&whole["status"], &whole["metadata"]), (&json!("completed"), &json!({"a": "b"})));
    assert_eq!(whole["usage"]["input_tokens"], 3, "{whole}");

    let mut stream = asked;
    stream["stream"] = true.into();
    let told = events(&node.post(PATH, None, request(stream)).await.text);
    assert_eq!(
        kinds(&told),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    let last = &told.last().unwrap()["response"];
    assert_eq!(shape(last), shape(&whole));
    let pieces = |kind: &str| -> String {
        let of = told.iter().filter(|event| event["type"] == kind);
        of.map(|event| event["delta"].as_str().unwrap()).collect()
    };
    assert_eq!(pieces("response.output_text.delta"), "So.");
    assert_eq!(pieces("response.function_call_arguments.delta"), "{\"a\": 1}");
    let items: Vec<_> =
        told.iter().filter(|one| one["type"] == "response.output_item.done").collect();
    assert_eq!(json!([items[0]["item"], items[1]["item"]]), last["output"]);

    let cut = json!({"max_output_tokens": 1, "stream": true});
    let told = events(&node.post(PATH, None, request(cut)).await.text);
    let last = told.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
}

#[tokio::test]
async fn an_answer_is_gone_on_from_by_its_agent_alone() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    let agents = [node.agent("a", "10").await, node.agent("b", "10").await];
    let mut keys = Vec::new();
    for agent in &agents {
        keys.push(node.key(Scope::Inference, Some(&agent.did), Limits::default()).await);
    }
    let (mine, theirs) = (node.with(&keys[0]), node.with(&keys[1]));
    let first = mine.respond(&ResponsesRequest::new("fake", "12345678")).await.unwrap();
    assert!(first.store && first.output_text() == "word word ");
    let mut next = ResponsesRequest::new("fake", "1234");
    next.previous_response_id = Some(first.id.clone());
    next.instructions = Some("1234".to_owned());
    let second = mine.respond(&next).await.unwrap();
    // "1234" "12345678" "word word " "1234", four bytes a token, all together.
    assert_eq!(second.usage.unwrap().input_tokens, 7);
    assert_eq!(second.previous_response_id.as_ref(), Some(&first.id));
    assert_eq!(mine.response(&first.id).await.unwrap(), first);
    assert_eq!(mine.response(&second.id).await.unwrap(), second);

    let code = |error: tirami_sdk::ClientError| {
        (error.status().unwrap_or_default(), error.code().unwrap_or_default().to_owned())
    };
    let unknown = (404, "unknown_response".to_owned());
    let unknown_before = (400, "previous_response_not_found".to_owned());
    assert_eq!(code(theirs.response(&first.id).await.unwrap_err()), unknown);
    assert_eq!(code(theirs.delete_response(&first.id).await.unwrap_err()), unknown);
    assert_eq!(code(theirs.respond(&next).await.unwrap_err()), unknown_before);
    assert!(mine.delete_response(&first.id).await.unwrap().deleted);
    assert_eq!(code(mine.respond(&next).await.unwrap_err()), unknown_before);
    // What went on from it goes on without it.
    next.previous_response_id = Some(second.id.clone());
    assert_eq!(mine.respond(&next).await.unwrap().usage.unwrap().input_tokens, 10);
    let aside = ResponsesRequest { store: Some(false), ..ResponsesRequest::new("fake", "hi") };
    let aside = mine.respond(&aside).await.unwrap();
    assert!(!aside.store);
    assert_eq!(code(mine.response(&aside.id).await.unwrap_err()), unknown);
}

#[tokio::test]
async fn what_was_said_before_may_be_named_instead_of_sent() {
    let node = TestNode::within(saying(CALLS), |_| ()).await;
    let agents = [node.agent("a", "10").await, node.agent("b", "10").await];
    let mut keys = Vec::new();
    for agent in &agents {
        keys.push(node.key(Scope::Inference, Some(&agent.did), Limits::default()).await.key);
    }
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let first = request(json!({"tools": [tool]}));
    let first = node.post(PATH, Some(&keys[0]), first).await.json();
    let (said, call) = (first["output"][0].clone(), first["output"][1].clone());
    let (user, thought) = (
        json!({"role": "user", "content": "1234"}),
        json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}),
    );
    let result = json!({"type": "function_call_output", "call_id": call["call_id"],
                        "output": "12345678"});
    let named = |item: &Value| json!({"type": "item_reference", "id": item["id"]});
    let next = |said: Value, call: Value| {
        let input = json!([user, thought, said, call, result]);
        request(json!({"input": input, "tools": [tool], "max_output_tokens": 1}))
    };
    let sent = node.post(PATH, Some(&keys[0]), next(said.clone(), call.clone())).await;
    let referred = node.post(PATH, Some(&keys[0]), next(named(&said), named(&call))).await;
    assert_eq!((sent.status, referred.status), (200, 200), "{sent:?} {referred:?}");
    let read = |raw: &crate::support::Raw| raw.json()["usage"]["input_tokens"].clone();
    assert_eq!(read(&sent), read(&referred));
    // "1234" "So." "12345678", four bytes a token, all together.
    assert_eq!(read(&referred), 4);
    // What another agent was told, or nobody, is not found.
    let strange = json!({"id": "msg_0000000000000000000000000000000000"});
    for (key, item) in [(&keys[1], &said), (&keys[0], &strange), (&keys[0], &thought)] {
        let raw = node.post(PATH, Some(key), next(named(item), call.clone())).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, "item_not_found"), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], "input[2].id");
        assert!(raw.text.contains("send the item itself"), "{raw:?}");
    }
}

#[tokio::test]
async fn items_that_are_named_have_the_room_of_a_body() {
    let engine = saying(&"1234567890".repeat(40));
    let node = TestNode::within(engine, |http| http.body_max_bytes = 8_192).await;
    let agent = node.agent("a", "100").await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await.key;
    let first = node.post(PATH, Some(&key), request(json!({"max_output_tokens": 500}))).await;
    assert_eq!(first.status, 200, "{first:?}");
    let said = first.json()["output"][0].clone();
    let named = |times: usize| {
        let one = json!({"type": "item_reference", "id": said["id"]});
        let mut input = vec![one; times];
        input.push(json!({"role": "user", "content": "hi"}));
        request(json!({"input": input, "max_output_tokens": 1}))
    };
    let few = node.post(PATH, Some(&key), named(4)).await;
    assert_eq!(few.status, 200, "{few:?}");
    // Their names alone are less than half of a body.
    let often = named(40);
    assert!(often.len() < 4_096);
    let often = node.post(PATH, Some(&key), often).await;
    assert_eq!((often.status, often.code().as_str()), (400, "invalid_value"), "{often:?}");
    assert_eq!(often.json()["error"]["param"], "input");
    assert!(often.text.contains("more than 8192 bytes"), "{often:?}");
}

#[tokio::test]
async fn what_its_clients_send_is_taken_and_refusals_name_their_fields() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    for more in [
        json!({"reasoning": {"effort": "high", "summary": "auto"}}),
        json!({"truncation": "auto"}),
        json!({"include": ["reasoning.encrypted_content"]}),
    ] {
        let raw = node.post(PATH, None, request(more.clone())).await;
        assert_eq!(raw.status, 200, "{more}: {raw:?}");
        assert_eq!(raw.json()["truncation"], "disabled", "{more}");
    }
    let tool = |name: &str, schema: Value| {
        let tool = json!({"type": "function", "name": name, "parameters": schema});
        json!({"tools": [tool]})
    };
    let long = "x".repeat(5_000 * 4);
    for (more, code, param) in [
        (json!({"include": ["message.output_text.logprobs"]}), "unsupported_parameter", "include"),
        (tool("a b", json!({})), "invalid_value", "tools[0].name"),
        (tool("f", json!({"type": "array"})), "invalid_value", "tools[0].parameters"),
        (json!({"input": long}), "context_length_exceeded", "input"),
        (json!({"input": long, "truncation": "auto"}), "context_length_exceeded", "input"),
        (json!({"input": [{"role": "king", "content": "x"}]}), "invalid_value", "input[0].role"),
    ] {
        let raw = node.post(PATH, None, request(more)).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, code), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], param);
        let message = raw.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(!message.contains(".function"), "{message}");
    }
}

#[tokio::test]
async fn an_answer_outlives_the_node() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    let first = node.personal().respond(&ResponsesRequest::new("fake", "hi")).await.unwrap();
    let node = node.restarted().await;
    assert_eq!(node.personal().response(&first.id).await.unwrap(), first);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_what_breaks_off_fails_in_its_form() {
    let script = FakeScript { fail_after: Some(2), ..script(9, Duration::ZERO) };
    let node = TestNode::start(script).await;
    for (more, status, code, param) in [
        (json!({"input": null}), 400, "invalid_value", "input"),
        (json!({"tools": [{"type": "web_search"}]}), 400, "unsupported_parameter", "tools[0].type"),
        (json!({"background": true}), 400, "unsupported_parameter", "background"),
        (json!({"model": "gpt"}), 404, "model_not_found", "model"),
        (
            json!({"previous_response_id": "resp_1"}),
            400,
            "previous_response_not_found",
            "previous_response_id",
        ),
    ] {
        let raw = node.post(PATH, None, request(more.clone())).await;
        assert_eq!((raw.status, raw.code().as_str()), (status, code), "{more} {raw:?}");
        assert_eq!(raw.json()["error"]["param"], param, "{more}");
    }
    assert_eq!(node.settled().await.total_trades, 0);
    let told = events(&node.post(PATH, None, request(json!({"stream": true}))).await.text);
    let last = told.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    let message = last["response"]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("engine_failed: "), "{message}");
    node.settled().await;
    let trades = node.admin.trades(None, None, None).await.unwrap().trades;
    assert_eq!((trades.len(), trades[0].completion_tokens), (1, 2));
}

#[tokio::test]
async fn a_length_beyond_the_context_is_named_as_the_request_names_it() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    for stream in [false, true] {
        let long = json!({"max_output_tokens": 5_000, "stream": stream});
        let raw = node.post(PATH, None, request(long)).await;
        let error = raw.json()["error"].clone();
        assert_eq!((raw.status, error["param"].as_str()), (400, Some("max_output_tokens")));
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("max_output_tokens must be at most 4096"), "{message}");
    }
    for field in ["max_tokens", "max_completion_tokens"] {
        let messages = json!([{"role": "user", "content": "hi"}]);
        let long = json!({"model": "fake", "messages": messages, field: 5_000});
        for path in ["/v1/tirami/estimate", "/v1/chat/completions"] {
            let raw = node.post(path, None, long.to_string()).await;
            assert_eq!((raw.status, raw.json()["error"]["param"].as_str()), (400, Some(field)));
        }
    }
    // What limits leave room for is named so too.
    let limits = Limits { request_max_trm: Some(crate::support::cost(20)), ..Limits::default() };
    let agent = node.agent("payer", "100").await;
    let key = node.key(Scope::Inference, Some(&agent.did), limits).await.key;
    let raw = node.post(PATH, Some(&key), request(json!({"max_output_tokens": 21}))).await;
    let error = raw.json()["error"].clone();
    assert_eq!(
        (raw.code().as_str(), error["param"].as_str()),
        ("request_limit", Some("max_output_tokens"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("set max_output_tokens to at most 20"), "{message}");
}
