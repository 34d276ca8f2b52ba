//! Calls of tools at the edge, as clients put them together.

use serde_json::{Value, json};
use tirami_infer::fake::FakeEngine;

use crate::support::{TestNode, saying};

const PATH: &str = "/v1/chat/completions";
const TWO: &str = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                   {\"city\": \"K\u{f6}ln \\\"}\\\"\", \"days\": [1, 2]}}\n</tool_call>\n\
                   <tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>";

async fn start(engine: FakeEngine) -> TestNode {
    TestNode::within(engine, |_| ()).await
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

fn request(more: Value) -> Value {
    let mut request = json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}],
        "tools": [tool("weather"), tool("now")],
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// What a strict client makes of a stream: of each choice the text, the calls and why it ended.
pub(crate) fn put_together(text: &str) -> Vec<(String, Vec<Value>, String)> {
    let mut choices: Vec<(String, Vec<Value>, String)> = Vec::new();
    for event in text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        let Ok(chunk) = serde_json::from_str::<Value>(event) else {
            assert_eq!(event, "[DONE]");
            continue;
        };
        let Some(piece) = chunk["choices"].get(0) else {
            assert!(chunk["usage"].is_object(), "{chunk}");
            continue;
        };
        let index = usize::try_from(piece["index"].as_u64().unwrap()).unwrap();
        if choices.len() <= index {
            choices.resize(index + 1, (String::new(), Vec::new(), String::new()));
        }
        let choice = &mut choices[index];
        choice.0 += piece["delta"]["content"].as_str().unwrap_or_default();
        for delta in piece["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let call = usize::try_from(delta["index"].as_u64().unwrap()).unwrap();
            if call == choice.1.len() {
                assert_eq!(delta["type"], "function");
                assert!(delta["id"].as_str().unwrap().starts_with("call_"), "{delta}");
                let name = delta["function"]["name"].as_str().unwrap();
                choice.1.push(json!({"id": delta["id"], "type": "function",
                                     "function": {"name": name, "arguments": ""}}));
            } else {
                assert_eq!(call + 1, choice.1.len(), "calls come one after the other");
                assert!(delta.get("id").is_none() && delta["function"].get("name").is_none());
            }
            let arguments = &mut choice.1[call]["function"]["arguments"];
            let more = delta["function"]["arguments"].as_str().unwrap();
            *arguments = (arguments.as_str().unwrap().to_owned() + more).into();
        }
        match piece["finish_reason"].as_str() {
            Some(finish) => choice.2 = finish.to_owned(),
            None => assert!(piece["finish_reason"].is_null()),
        }
    }
    choices
}

#[tokio::test]
async fn calls_are_the_same_whole_and_streamed() {
    let node = start(saying(TWO)).await;
    let whole = node.post(PATH, None, request(json!({})).to_string()).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["content"], "Let me see.");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    let functions: Vec<_> = calls.iter().map(|call| call["function"].clone()).collect();
    let arguments = "{\"city\": \"K\u{f6}ln \\\"}\\\"\", \"days\": [1, 2]}";
    assert_eq!(functions[0], json!({"name": "weather", "arguments": arguments}));
    assert_eq!(functions[1], json!({"name": "now", "arguments": "{}"}));
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let stream = request(json!({"stream": true, "n": 2}));
    let streamed = put_together(&node.post(PATH, None, stream.to_string()).await.text);
    assert_eq!(streamed.len(), 2);
    for (text, calls, finish) in &streamed {
        assert_eq!((text.as_str(), finish.as_str()), ("Let me see.", "tool_calls"));
        let read: Vec<_> = calls.iter().map(|call| call["function"].clone()).collect();
        assert_eq!(read, functions);
    }
    assert_ne!(streamed[0].1[0]["id"], streamed[1].1[0]["id"]);

    // Cut off, an answer says so, and has the beginning of what it was to be.
    let cut = request(json!({"max_tokens": 25}));
    let cut = node.post(PATH, None, cut.to_string()).await.json();
    let choice = &cut["choices"][0];
    assert_eq!(choice["finish_reason"], "length", "{cut}");
    let begun = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert!(arguments.starts_with(begun) && !begun.is_empty(), "{begun}");
    // A stop text within a call leaves one that nobody can make.
    for stream in [false, true] {
        let stopped = request(json!({"stop": ["K"], "stream": stream}));
        let text = node.post(PATH, None, stopped.to_string()).await.text;
        let finish = match stream {
            true => put_together(&text)[0].2.clone(),
            false => {
                let whole: Value = serde_json::from_str(&text).unwrap();
                whole["choices"][0]["finish_reason"].as_str().unwrap().to_owned()
            }
        };
        assert_eq!(finish, "stop", "{text}");
    }
    let none = request(json!({"tool_choice": "none"}));
    let none = node.post(PATH, None, none.to_string()).await.json();
    assert_eq!(none["choices"][0]["message"]["content"], TWO);
    assert_eq!(none["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn an_answer_of_calls_alone_has_no_content_and_its_results_are_taken() {
    let alone = &TWO[TWO.find('<').unwrap()..];
    let node = start(saying(alone)).await;
    let answer = node.post(PATH, None, request(json!({})).to_string()).await.json();
    let mut message = answer["choices"][0]["message"].clone();
    assert!(message["content"].is_null() && message.as_object().unwrap().contains_key("content"));
    let results = message["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| json!({"role": "tool", "tool_call_id": call["id"], "content": "rain"}));
    let results: Vec<Value> = results.collect();
    let mut messages = vec![json!({"role": "user", "content": "hi"}), message.take()];
    messages.extend(results);
    let next = request(json!({"messages": messages}));
    assert_eq!(node.post(PATH, None, next.to_string()).await.status, 200);
    for (more, code, param) in [
        (json!({"tool_choice": "some"}), "invalid_value", "tool_choice"),
        (json!({"tools": [{"type": "web_search"}]}), "unsupported_parameter", "tools[0].type"),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "invalid_value",
            "messages[0].tool_call_id",
        ),
    ] {
        let raw = node.post(PATH, None, request(more).to_string()).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, code), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], param);
    }
}

#[tokio::test]
async fn tools_that_are_not_among_the_allowed_ones_are_not_called() {
    let call = |name: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{}}}}\n</tool_call>")
    };
    let chat = |mode: &str, names: &[&str]| {
        let tools =
            names.iter().map(|name| json!({"type": "function", "function": {"name": name}}));
        let tools = tools.collect::<Vec<_>>();
        let allowed = json!({"mode": mode, "tools": tools});
        request(json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}))
    };
    let response = |mode: &str, names: &[&str]| {
        let function = |name: &&str| json!({"type": "function", "name": name});
        let (tools, among) = (["weather", "now"].iter(), names.iter());
        json!({
            "model": "fake", "input": "hi", "store": false,
            "tools": tools.map(function).collect::<Vec<_>>(),
            "tool_choice": {"type": "allowed_tools", "mode": mode,
                            "tools": among.map(function).collect::<Vec<_>>()},
        })
    };
    for (said, names, called) in [
        ("now", vec!["now"], true),
        ("now", vec!["weather", "now"], true),
        ("weather", vec!["now"], false),
    ] {
        let node = start(saying(&call(said))).await;
        for mode in ["auto", "required"] {
            let answer = node.post(PATH, None, chat(mode, &names).to_string()).await.json();
            let message = &answer["choices"][0]["message"];
            let function = &message["tool_calls"][0]["function"]["name"];
            assert_eq!(function == said, called, "{answer}");
            let told = response(mode, &names);
            let answer = node.post("/v1/responses", None, told.to_string()).await.json();
            assert_eq!(answer["output"][0]["name"] == said, called, "{answer}");
        }
    }
    let node = start(saying("Well.")).await;
    for (mode, names) in [("auto", vec!["rain"]), ("auto", vec![]), ("none", vec!["now"])] {
        for (path, asked) in [(PATH, chat(mode, &names)), ("/v1/responses", response(mode, &names))]
        {
            let raw = node.post(path, None, asked.to_string()).await;
            assert_eq!((raw.status, raw.code().as_str()), (400, "invalid_value"), "{raw:?}");
            assert_eq!(raw.json()["error"]["param"], "tool_choice");
        }
    }
}

#[tokio::test]
async fn an_answer_with_tools_and_a_format_is_one_or_the_other() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let schema = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    // What looks like a call within a text of JSON is none.
    let json = r#"{"a": "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>"}"#;
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    for (said, text, calls, finish) in [(json, json, 0, "stop"), (call, "", 1, "tool_calls")] {
        let node = start(saying(said)).await;
        for format in [json!({"type": "json_object"}), schema.clone()] {
            let whole = request(json!({"response_format": format}));
            let whole = node.post(PATH, None, whole.to_string()).await.json();
            let choice = &whole["choices"][0];
            let called = choice["message"]["tool_calls"].as_array().map_or(0, Vec::len);
            assert_eq!(choice["finish_reason"], finish, "{whole}");
            assert_eq!(choice["message"]["content"].as_str().unwrap_or_default(), text, "{whole}");
            assert_eq!(called, calls, "{whole}");
            let stream = request(json!({"response_format": format, "stream": true}));
            let streamed = put_together(&node.post(PATH, None, stream.to_string()).await.text);
            let (said, called, ended) = &streamed[0];
            assert_eq!((said.as_str(), called.len(), ended.as_str()), (text, calls, finish));
        }
    }
}

#[tokio::test]
async fn an_agents_many_tools_are_taken_with_all_that_describes_them() {
    let node = start(saying("Well.")).await;
    let property = json!({"type": "string", "title": "T", "description": "what it is for"});
    let tools = |count: usize| {
        let tool = |n: usize| {
            // 57 values, of which 30 bind an answer.
            let properties: serde_json::Map<String, Value> =
                (0..12).map(|n| (format!("p{n}"), property.clone())).collect();
            let parameters = json!({
                "type": "object", "title": "T", "description": "D", "$comment": "C",
                "properties": properties, "required": ["p0", "p1"],
            });
            json!({"type": "function",
                   "function": {"name": format!("tool_{n}"), "parameters": parameters}})
        };
        request(json!({"tools": (0..count).map(tool).collect::<Vec<_>>()})).to_string()
    };
    let many = node.post(PATH, None, tools(40)).await;
    assert_eq!(many.status, 200, "{many:?}");
    // 39 for each: what is refused is the first that has no room.
    let refused = node.post(PATH, None, tools(60)).await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "invalid_value"));
    assert_eq!(refused.json()["error"]["param"], "tools[51].function.parameters");
}

#[tokio::test]
async fn a_call_that_was_cut_goes_back_as_it_came() {
    let node = start(saying("Well.")).await;
    for arguments in ["{\"city\": \"Pa", "", "not JSON", "{}"] {
        let call = json!({"id": "1", "type": "function",
                          "function": {"name": "weather", "arguments": arguments}});
        let messages = json!([
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "the call was cut off"},
        ]);
        let raw = node.post(PATH, None, request(json!({"messages": messages})).to_string()).await;
        assert_eq!(raw.status, 200, "{arguments}: {raw:?}");
    }
}

#[tokio::test]
async fn a_tool_that_refers_to_itself_is_taken_strict_or_not() {
    let node = start(saying("Well.")).await;
    let parameters = json!({
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/Node"}},
        "$defs": {"Node": {"type": "object", "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
        }}},
    });
    for strict in [json!(null), json!(false), json!(true)] {
        let function = json!({"name": "plant", "parameters": parameters, "strict": strict});
        let tools = json!([tool("now"), {"type": "function", "function": function}]);
        let raw = node.post(PATH, None, request(json!({"tools": tools})).to_string()).await;
        assert_eq!(raw.status, 200, "{strict}: {raw:?}");
        let tool = json!({"type": "function", "name": "plant", "parameters": parameters,
                          "strict": strict});
        let asked = json!({"model": "fake", "input": "hi", "tools": [tool], "store": false});
        let raw = node.post("/v1/responses", None, asked.to_string()).await;
        assert_eq!(raw.status, 200, "{strict}: {raw:?}");
    }
}
