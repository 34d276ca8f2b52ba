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
pub(crate) fn events(text: &str) -> Vec<Value> {
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
    for field in ["id", "created_at", "completed_at", "x_tirami"] {
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
        (json!({"max_tool_calls": 1}), "unsupported_parameter", "max_tool_calls"),
        (json!({"top_logprobs": 21}), "invalid_value", "top_logprobs"),
        (json!({"presence_penalty": 3}), "invalid_value", "presence_penalty"),
        (tool("a b", json!({})), "invalid_value", "tools[0].name"),
        (tool("f", json!({"type": "array"})), "invalid_value", "tools[0].parameters"),
        (json!({"input": long}), "context_length_exceeded", "input"),
        (json!({"input": long, "truncation": "auto"}), "context_length_exceeded", "input"),
        (json!({"input": [{"role": "king", "content": "x"}]}), "invalid_value", "input[0].role"),
    ] {
        let raw = node.post(PATH, None, request(more)).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, code), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], param, "{raw:?}");
        let message = raw.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(!message.contains(".function"), "{message}");
    }
}

#[tokio::test]
async fn every_answer_has_what_strict_clients_require() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    let unset = json!({
        "background": false, "error": null, "frequency_penalty": 0.0, "incomplete_details": null,
        "instructions": null, "max_output_tokens": null, "max_tool_calls": null, "metadata": {},
        "object": "response", "parallel_tool_calls": true, "presence_penalty": 0.0,
        "previous_response_id": null, "prompt_cache_key": null, "reasoning": null,
        "safety_identifier": null, "service_tier": "default", "store": true, "temperature": 1.0,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
        "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled", "user": null,
    });
    let asked = json!({
        "frequency_penalty": 0.5, "presence_penalty": -0.5, "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": null}, "safety_identifier": "s",
        "temperature": 0.5, "top_logprobs": 1, "top_p": 0.5, "user": "u",
    });
    for asked in [json!({}), asked] {
        let mut expected = unset.clone();
        expected.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
        let whole = node.post(PATH, None, request(asked.clone())).await.json();
        let mut stream = asked;
        stream["stream"] = true.into();
        let told = events(&node.post(PATH, None, request(stream)).await.text);
        let (begun, ended) = (&told[0]["response"], &told.last().unwrap()["response"]);
        for (answer, status) in
            [(begun, "in_progress"), (&whole, "completed"), (ended, "completed")]
        {
            assert_eq!(answer["status"], status);
            for (field, value) in expected.as_object().unwrap() {
                assert_eq!(answer.get(field), Some(value), "{field}: {answer}");
            }
            let (from, to) = (answer["created_at"].as_u64(), answer.get("completed_at").unwrap());
            assert_eq!(to.as_u64().is_some_and(|to| Some(to) >= from), status == "completed");
            assert_eq!(to.is_null(), status != "completed");
        }
    }
    let cut = node.post(PATH, None, request(json!({"max_output_tokens": 1}))).await.json();
    assert_eq!(
        (&cut["status"], cut.get("completed_at")),
        (&json!("incomplete"), Some(&json!(null)))
    );
}

#[tokio::test]
async fn log_probabilities_are_told_of_the_text() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    let top = json!({"token": "word ", "logprob": -0.5, "bytes": b"word "});
    let token = |count: usize| {
        let mut token = top.clone();
        token["top_logprobs"] = vec![top.clone(); count].into();
        token
    };
    let included = json!(["message.output_text.logprobs"]);
    for (asked, count) in [
        (json!({"include": included}), 0),
        (json!({"include": included, "top_logprobs": 2}), 2),
        (json!({"top_logprobs": 2}), 2),
    ] {
        let whole = node.post(PATH, None, request(asked.clone())).await.json();
        let both = json!([token(count), token(count)]);
        assert_eq!(whole["output"][0]["content"][0]["logprobs"], both, "{asked}: {whole}");
        let kept = node.personal().response(whole["id"].as_str().unwrap()).await.unwrap();
        let mut without = whole["output"].clone();
        without[0]["content"][0]["logprobs"] = json!([]);
        assert_eq!(serde_json::to_value(kept.output).unwrap(), without);
        let mut stream = asked;
        stream["stream"] = true.into();
        let told = events(&node.post(PATH, None, request(stream)).await.text);
        let of = |kind: &str| {
            let kind = format!("response.{kind}");
            told.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>()
        };
        for delta in of("output_text.delta") {
            assert_eq!(delta["logprobs"], json!([token(count)]));
        }
        assert_eq!(of("output_text.delta").len(), 2);
        assert_eq!(of("output_text.done")[0]["logprobs"], both);
        assert_eq!(of("content_part.done")[0]["part"]["logprobs"], both);
        assert_eq!(shape(&of("completed")[0]["response"]), shape(&whole));
    }
    // Beside calls they are told of the text alone.
    let node = TestNode::within(saying(CALLS), |_| ()).await;
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let answer = request(json!({"tools": [tool], "include": included}));
    let answer = node.post(PATH, None, answer).await.json();
    let told = answer["output"][0]["content"][0]["logprobs"].as_array().unwrap().clone();
    let text: String = told.iter().map(|one| one["token"].as_str().unwrap()).collect();
    assert!(text.starts_with("So.") && !text.contains("name"), "{answer}");
    assert_eq!(answer["output"][1]["name"], "f");
}

#[tokio::test]
async fn the_end_of_a_long_stream_tells_the_first_log_probabilities_again_and_no_more() {
    let (tokens, again) = (600, 512);
    let node = TestNode::start(script(600, Duration::ZERO)).await;
    let asked = json!({"top_logprobs": 1});
    let whole = node.post(PATH, None, request(asked)).await.json();
    let all = whole["output"][0]["content"][0]["logprobs"].as_array().unwrap().clone();
    assert_eq!(all.len(), tokens);
    let asked = json!({"top_logprobs": 1, "stream": true});
    let told = events(&node.post(PATH, None, request(asked)).await.text);
    let deltas = told.iter().filter(|event| event["type"] == "response.output_text.delta");
    let deltas: Vec<_> = deltas.flat_map(|one| one["logprobs"].as_array().unwrap()).collect();
    assert!(deltas.into_iter().eq(&all));
    for (kind, at) in [
        ("output_text.done", "/logprobs"),
        ("content_part.done", "/part/logprobs"),
        ("output_item.done", "/item/content/0/logprobs"),
        ("completed", "/response/output/0/content/0/logprobs"),
    ] {
        let is_it = |event: &&Value| event["type"] == format!("response.{kind}");
        let event = told.iter().find(is_it).unwrap();
        assert_eq!(event.pointer(at), Some(&json!(all[..again])), "{kind}");
    }
    let id = told.last().unwrap()["response"]["id"].as_str().unwrap();
    let kept = node.personal().response(id).await.unwrap();
    let kept = serde_json::to_value(kept.output).unwrap();
    let text = &kept[0]["content"][0];
    assert_eq!((&text["text"], &text["logprobs"]), (&json!("word ".repeat(tokens)), &json!([])));
}

#[tokio::test]
async fn what_an_answer_was_asked_with_is_listed_page_by_page() {
    let node = TestNode::within(saying(CALLS), |_| ()).await;
    let agents = [node.agent("a", "10").await, node.agent("b", "10").await];
    let mut keys = Vec::new();
    for agent in &agents {
        keys.push(node.key(Scope::Inference, Some(&agent.did), Limits::default()).await);
    }
    let (mine, theirs) = (node.with(&keys[0]), node.with(&keys[1]));
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let user = json!([{"type": "input_text", "text": "hi"}]);
    let input = json!([{"role": "developer", "content": "d"}, {"role": "user", "content": user}]);
    let asked = json!({"tools": [tool], "input": input, "instructions": "Be brief."});
    let first = node.post(PATH, Some(&keys[0].key), request(asked)).await.json();
    let call = &first["output"][1]["call_id"];
    let result = json!({"type": "function_call_output", "call_id": call, "output": "x"});
    let next = json!({"input": [result], "previous_response_id": first["id"], "tools": [tool]});
    let next = node.post(PATH, Some(&keys[0].key), request(next)).await.json();
    let id = next["id"].as_str().unwrap();

    let all = mine.response_input_items(id, Some("asc"), None, None).await.unwrap();
    let bare = |item: &Value| {
        let mut item = item.clone();
        let fields = item.as_object_mut().unwrap();
        let id = fields.remove("id").unwrap();
        assert_eq!(fields.remove("status").unwrap(), "completed");
        assert!(!next["output"].to_string().contains(id.as_str().unwrap()));
        item
    };
    let said = json!([{"type": "output_text", "text": "So.", "annotations": [], "logprobs": []}]);
    let expected = [
        json!({"type": "message", "role": "developer",
               "content": [{"type": "input_text", "text": "d"}]}),
        json!({"type": "message", "role": "user", "content": user}),
        json!({"type": "message", "role": "assistant", "content": said}),
        json!({"type": "function_call", "call_id": call, "name": "f", "arguments": "{\"a\": 1}"}),
        result,
    ];
    assert_eq!(all.data.iter().map(bare).collect::<Vec<_>>(), expected);
    assert_eq!((all.object.as_str(), all.has_more), ("list", false));
    let before = mine.response_input_items(first["id"].as_str().unwrap(), None, None, None).await;
    assert_eq!(before.unwrap().data.len(), 2);

    // The last come first, two at a time.
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = mine.response_input_items(id, None, Some(2), after.as_deref()).await.unwrap();
        assert_eq!(page.has_more, seen.len() + 2 < expected.len());
        assert_eq!(page.first_id.as_deref(), page.data[0]["id"].as_str());
        assert_eq!(page.last_id.as_deref(), page.data.last().unwrap()["id"].as_str());
        seen.extend(page.data);
        after = page.last_id;
        if !page.has_more {
            break;
        }
    }
    let behind = mine.response_input_items(id, None, None, after.as_deref()).await.unwrap();
    assert_eq!((behind.data.len(), behind.first_id, behind.last_id), (0, None, None));
    seen.reverse();
    assert_eq!(seen, all.data);

    let code = |error: tirami_sdk::ClientError| {
        (error.status().unwrap_or_default(), error.code().unwrap_or_default().to_owned())
    };
    let strange = theirs.response_input_items(id, None, None, None).await.unwrap_err();
    assert_eq!(code(strange), (404, "unknown_response".to_owned()));
    for (order, limit, after) in [
        (Some("up"), None, None),
        (None, Some(0), None),
        (None, Some(101), None),
        (None, None, Some("msg_1")),
    ] {
        let error = mine.response_input_items(id, order, limit, after).await.unwrap_err();
        assert_eq!(code(error), (400, "invalid_value".to_owned()), "{order:?} {limit:?} {after:?}");
    }
}

#[tokio::test]
async fn an_answer_is_gone_on_from_until_its_time_is_over() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    let mine = node.personal();
    let first = mine.respond(&ResponsesRequest::new("fake", "hi")).await.unwrap();
    let mut next = ResponsesRequest::new("fake", "hi");
    next.previous_response_id = Some(first.id.clone());
    mine.respond(&next).await.unwrap();

    let db = rusqlite::Connection::open(node.dir.path().join("data/responses.sqlite")).unwrap();
    let is_over = "UPDATE responses SET expires_at_ms = 1 WHERE id = ?1";
    assert_eq!(db.execute(is_over, [&first.id]).unwrap(), 1);
    drop(db);

    let error = mine.respond(&next).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(400), Some("previous_response_not_found")));
    let error = mine.response(&first.id).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(404), Some("unknown_response")));
    let error = mine.response_input_items(&first.id, None, None, None).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(404), Some("unknown_response")));
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
