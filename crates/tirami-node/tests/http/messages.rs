//! Anthropic's messages at the edge, as its clients read them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Generation, ModelInfo, PrepareError, Prompt, Sampling,
    StartError,
};
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_node::models::Models;
use tirami_sdk::types::{KillRequest, Limits, MessagesRequest, Scope};

use crate::support::{Raw, TestNode, saying, script};

const PATH: &str = "/v1/messages";
const CALLS: &str = "So.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"\u{f6}\"]}}\n\
                     </tool_call><tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>";

fn request(more: Value) -> String {
    let mut request = json!({
        "model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}],
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request.to_string()
}

fn tool(name: &str) -> Value {
    json!({"name": name, "input_schema": {"type": "object"}})
}

/// What a strict client makes of a stream: the message, put together.
pub(crate) fn put_together(text: &str) -> Value {
    let mut message = Value::Null;
    let mut partial: Vec<String> = Vec::new();
    let (mut open, mut is_over) = (None::<usize>, false);
    for event in text.split_terminator("\n\n") {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"], "{event}");
        assert!(!is_over, "{event} after the end");
        let index = data["index"].as_u64().and_then(|index| usize::try_from(index).ok());
        match data["type"].as_str().unwrap() {
            "message_start" => message = data["message"].clone(),
            "content_block_start" => {
                assert_eq!(open.replace(index.unwrap()), None, "{event}");
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(Some(content.len()), index);
                content.push(data["content_block"].clone());
                partial.push(String::new());
            }
            "content_block_delta" => {
                assert_eq!(open, index, "{event}");
                let block = &mut message["content"][index.unwrap()];
                match data["delta"]["type"].as_str().unwrap() {
                    "text_delta" => {
                        let more = data["delta"]["text"].as_str().unwrap();
                        block["text"] = (block["text"].as_str().unwrap().to_owned() + more).into();
                    }
                    "input_json_delta" => {
                        assert_eq!(block["type"], "tool_use");
                        partial[index.unwrap()] += data["delta"]["partial_json"].as_str().unwrap();
                    }
                    other => panic!("{other}"),
                }
            }
            "content_block_stop" => {
                assert_eq!(open.take(), index, "{event}");
                let block = &mut message["content"][index.unwrap()];
                if block["type"] == "tool_use" {
                    let partial = &partial[index.unwrap()];
                    // Of a call that was cut it is the text as far as it came.
                    let input = serde_json::from_str(partial);
                    block["input"] = input.unwrap_or_else(|_| partial.as_str().into());
                }
            }
            "message_delta" => {
                assert_eq!(open, None);
                for field in ["stop_reason", "stop_sequence"] {
                    message[field] = data["delta"][field].clone();
                }
                (message["usage"], message["x_tirami"]) =
                    (data["usage"].clone(), data["x_tirami"].clone());
            }
            "message_stop" => is_over = true,
            "ping" => {}
            _ => panic!("{event}"),
        }
    }
    assert!(is_over, "{text}");
    message
}

/// Without what differs from answer to answer.
fn shape(mut message: Value) -> Value {
    for field in ["id", "x_tirami"] {
        assert!(message.as_object_mut().unwrap().remove(field).is_some(), "{message}");
    }
    for block in message["content"].as_array_mut().unwrap() {
        if let Some(block) = block.as_object_mut().filter(|block| block.contains_key("id")) {
            assert!(block["id"].as_str().unwrap().starts_with("call_"));
            block.insert("id".to_owned(), Value::Null);
        }
    }
    message
}

#[tokio::test]
async fn every_reason_to_end_is_told_whole_and_streamed() {
    let node = TestNode::within(saying("one two three"), |_| ()).await;
    for (more, text, reason, stop, tokens) in [
        (json!({}), "one two three", "end_turn", Value::Null, 5),
        (json!({"max_tokens": 2}), "one tw", "max_tokens", Value::Null, 2),
        (json!({"stop_sequences": ["x", "tw"]}), "one ", "stop_sequence", json!("tw"), 2),
    ] {
        let whole = node.post(PATH, None, request(more.clone())).await;
        assert_eq!(whole.status, 200, "{whole:?}");
        let expected = json!({
            "type": "message", "role": "assistant", "model": "fake", "stop_reason": reason,
            "stop_sequence": stop, "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": 1, "cache_read_input_tokens": 0, "output_tokens": tokens},
        });
        assert!(whole.json()["id"].as_str().unwrap().starts_with("msg_"));
        let cost = whole.json()["x_tirami"]["trm_cost"].clone();
        assert_eq!(shape(whole.json()), expected);
        let mut streamed = more;
        streamed["stream"] = true.into();
        let streamed = node.post(PATH, None, request(streamed)).await;
        assert_eq!(streamed.header("content-type"), "text/event-stream; charset=utf-8");
        let streamed = put_together(&streamed.text);
        assert_eq!(streamed["x_tirami"]["trm_cost"], cost);
        assert_eq!(shape(streamed), expected);
    }
    assert_eq!(node.settled().await.total_trades, 6);
    let typed = MessagesRequest::new("fake", 9, "hi");
    let typed = node.personal().message(&typed).await.unwrap();
    assert_eq!(typed.stop_reason.as_deref(), Some("end_turn"));
}

#[tokio::test]
async fn calls_are_blocks_and_their_results_go_back() {
    let node = TestNode::within(saying(CALLS), |_| ()).await;
    let tools = json!({"tools": [tool("f"), tool("g")], "system": "Be brief."});
    let whole = node.post(PATH, None, request(tools.clone())).await.json();
    let content = json!([
        {"type": "text", "text": "So."},
        {"type": "tool_use", "id": null, "name": "f", "input": {"a": [1, "\u{f6}"]}},
        {"type": "tool_use", "id": null, "name": "g", "input": {}},
    ]);
    assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
    assert_eq!(shape(whole.clone())["content"], content);
    let mut stream = tools.clone();
    stream["stream"] = true.into();
    let streamed = put_together(&node.post(PATH, None, request(stream)).await.text);
    assert_eq!(shape(streamed), shape(whole.clone()));

    let results = whole["content"].as_array().unwrap()[1..].iter().map(|call| {
        json!({"type": "tool_result", "tool_use_id": call["id"],
               "content": [{"type": "text", "text": "rain"}]})
    });
    let mut next = tools;
    next["messages"] = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": whole["content"]},
        {"role": "user", "content": results.collect::<Vec<_>>()},
    ]);
    assert_eq!(node.post(PATH, None, request(next.clone())).await.status, 200);
    // "Be brief." "hi" "So." "rain" "rain", four bytes a token.
    let count = node.post("/v1/messages/count_tokens", None, request(next)).await;
    assert_eq!(count.json(), json!({"input_tokens": 6}), "{count:?}");
    let typed = MessagesRequest::new("fake", 9, "12345678");
    assert_eq!(node.personal().count_tokens(&typed).await.unwrap().input_tokens, 2);
}

#[tokio::test]
async fn an_answer_that_the_request_begins_is_refused_and_still_counted() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let begun = |content: Value| {
        let user = json!({"role": "user", "content": "hi"});
        request(json!({"messages": [user, {"role": "assistant", "content": content}]}))
    };
    for content in [json!("{"), json!([{"type": "text", "text": "{"}])] {
        let raw = node.post(PATH, None, begun(content.clone())).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, "unsupported_parameter"), "{raw:?}");
        assert!(
            raw.text.contains("messages[1]") && raw.text.contains("message of user"),
            "{raw:?}"
        );
        let count = node.post("/v1/messages/count_tokens", None, begun(content)).await;
        assert_eq!(count.json(), json!({"input_tokens": 1}), "{count:?}");
    }
    assert_eq!(node.settled().await.total_trades, 0);
}

fn result(id: &str, content: &Value) -> Value {
    json!({"type": "tool_result", "tool_use_id": id, "content": content})
}

/// Four red pixels.
const PICTURE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U\
                       1AAAAABJRU5ErkJggg==";
/// Tokens of a picture.
const PICTURE_TOKENS: u32 = 8;

#[tokio::test]
async fn what_its_clients_send_for_models_that_think_is_taken() {
    let node = TestNode::within(saying("one two three"), |_| ()).await;
    let thought = json!([
        {"role": "user", "content": "1234"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "12345678", "signature": "s"},
            {"type": "redacted_thinking", "data": "12345678"},
            {"type": "text", "text": "5678"},
        ]},
        {"role": "user", "content": "1234"},
    ]);
    for (more, tokens) in [
        (json!({"messages": thought}), 3),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1_024}}), 1),
        (json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}), 1),
        (json!({"output_config": {"format": null}}), 1),
    ] {
        let raw = node.post(PATH, None, request(more.clone())).await;
        assert_eq!(raw.status, 200, "{more}: {raw:?}");
        assert_eq!(raw.json()["usage"]["input_tokens"], tokens, "{more}");
    }
}

#[tokio::test]
async fn a_schema_of_the_answer_is_taken_whole_and_streamed() {
    let said = r#"{"city": "Paris"}"#;
    let node = TestNode::within(saying(said), |_| ()).await;
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}},
                        "required": ["city"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "schema": schema});
    for mut more in [json!({"output_config": {"format": format}}), json!({"output_format": format})]
    {
        let whole = node.post(PATH, None, request(more.clone())).await;
        assert_eq!(whole.status, 200, "{whole:?}");
        assert_eq!(whole.json()["content"], json!([{"type": "text", "text": said}]));
        let count = node.post("/v1/messages/count_tokens", None, request(more.clone())).await;
        assert_eq!(count.json(), json!({"input_tokens": 1}), "{count:?}");
        more["stream"] = true.into();
        let streamed = node.post(PATH, None, request(more)).await;
        assert_eq!(shape(put_together(&streamed.text)), shape(whole.json()));
    }
    for (more, param) in [
        (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format"),
        (json!({"output_format": {"type": "json_schema"}}), "output_format"),
    ] {
        let raw = node.post(PATH, None, request(more)).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, "invalid_value"), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], param);
    }
}

/// Follows no format.
struct Free(FakeEngine);

impl Engine for Free {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.0.prepare(conversation)
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        self.0.start(prompt, sampling)
    }

    fn load(&self) -> EngineLoad {
        self.0.load()
    }
}

#[tokio::test]
async fn a_schema_that_the_engine_refuses_is_called_as_it_was_sent() {
    let engine = Free(FakeEngine::new(script(1, Duration::ZERO)));
    let node = TestNode::serving(Models::from_iter([Arc::new(engine) as Arc<dyn Engine>])).await;
    let format = json!({"type": "json_schema", "schema": {"type": "object"}});
    for (more, param) in [
        (json!({"output_config": {"format": format}}), "output_config.format"),
        (json!({"output_format": format}), "output_format"),
        (
            json!({"output_config": {"format": format}, "output_format": format}),
            "output_config.format",
        ),
    ] {
        let raw = node.post(PATH, None, request(more)).await;
        assert_eq!((raw.status, raw.code().as_str()), (400, "invalid_value"), "{raw:?}");
        assert_eq!(raw.json()["error"]["param"], param, "{raw:?}");
    }
}

#[tokio::test]
async fn a_picture_in_a_result_is_shown_by_the_user_after_all_results() {
    let plain = FakeEngine::new(script(1, Duration::ZERO));
    let info = ModelInfo { image_tokens_max: PICTURE_TOKENS, ..plain.model().clone() };
    let seeing = FakeEngine::with_model(script(1, Duration::ZERO), info);
    let source = json!({"type": "base64", "media_type": "image/png", "data": PICTURE});
    let shown = json!([
        {"type": "text", "text": "12345678"},
        {"type": "image", "source": source},
    ]);
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "f", "input": {}});
    let asked = request(json!({"tools": [tool("f")], "messages": [
        {"role": "user", "content": "1234"},
        {"role": "assistant", "content": [call("1"), call("2")]},
        {"role": "user", "content": [result("1", &shown), result("2", &json!("5678"))]},
    ]}));
    let node = TestNode::within(seeing, |_| ()).await;
    let raw = node.post(PATH, None, asked.clone()).await;
    assert_eq!(raw.status, 200, "{raw:?}");
    assert_eq!(raw.json()["usage"]["input_tokens"], 4 + PICTURE_TOKENS, "{raw:?}");
    let count = node.post("/v1/messages/count_tokens", None, asked.clone()).await;
    assert_eq!(count.json(), json!({"input_tokens": 4 + PICTURE_TOKENS}));
    // A model that reads none says so.
    let node = TestNode::within(plain, |_| ()).await;
    let raw = node.post(PATH, None, asked).await;
    assert_eq!((raw.status, raw.code().as_str()), (400, "unsupported_parameter"), "{raw:?}");
    assert!(raw.text.contains("the model reads no pictures"), "{raw:?}");
}

#[tokio::test]
async fn a_length_beyond_the_context_is_what_there_is_room_for() {
    let node = TestNode::start(script(5_000, Duration::ZERO)).await;
    for stream in [false, true] {
        let long = request(json!({"max_tokens": 32_000, "stream": stream}));
        let raw = node.post(PATH, None, long).await;
        assert_eq!(raw.status, 200, "{raw:?}");
        let message = if stream { put_together(&raw.text) } else { raw.json() };
        assert_eq!(message["stop_reason"], "max_tokens");
        // One of the context's 4096 tokens is the question.
        assert_eq!(message["usage"]["output_tokens"], 4_095);
    }
    // What is within the context is what was asked for.
    let raw = node.post(PATH, None, request(json!({"max_tokens": 7}))).await;
    assert_eq!(raw.json()["usage"]["output_tokens"], 7);
}

#[tokio::test]
async fn refusals_of_what_becomes_a_chat_name_the_fields_that_were_sent() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let one =
        |name: &str, schema: Value| json!({"tools": [{"name": name, "input_schema": schema}]});
    let long = json!([{"role": "user", "content": "x".repeat(5_000 * 4)}]);
    for (more, param) in [
        (one("a b", json!({})), "tools[0].name"),
        (one("f", json!({"type": "array"})), "tools[0].input_schema"),
        (json!({"stop_sequences": vec!["x"; 17]}), "stop_sequences"),
        (json!({"metadata": {"user_id": 7}}), "metadata.user_id"),
        (json!({"messages": long}), "messages"),
    ] {
        let raw = node.post(PATH, None, request(more)).await;
        assert_eq!((raw.status, raw.json()["error"]["param"].as_str()), (400, Some(param)));
        let message = raw.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(!message.contains(".function") && !message.starts_with("stop "), "{message}");
    }
    let count = request(one("a b", json!({})));
    let count = node.post("/v1/messages/count_tokens", None, count).await;
    assert_eq!(count.json()["error"]["param"], "tools[0].name", "{count:?}");
}

#[tokio::test]
async fn a_request_is_named_as_anthropics_clients_read_it() {
    let node = TestNode::start(script(1, Duration::ZERO)).await;
    for (path, body) in [
        (PATH, request(json!({}))),
        (PATH, request(json!({"stream": true}))),
        (PATH, request(json!({"model": "gpt"}))),
        ("/v1/messages/count_tokens", request(json!({}))),
    ] {
        let raw = node.post(path, None, body).await;
        assert!(raw.header("request-id").starts_with("req-"), "{raw:?}");
        assert_eq!(raw.header("request-id"), raw.header("x-request-id"));
    }
    let other = node.post("/v1/completions", None, "{}").await;
    assert_eq!(other.header("request-id"), "");
}

#[tokio::test]
async fn every_refusal_has_anthropics_envelope() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let told = |raw: &Raw| {
        let body = raw.json();
        assert_eq!(body["type"], "error", "{raw:?}");
        assert!(body["error"]["message"].as_str().unwrap().len() > 10);
        (raw.status, body["error"]["type"].as_str().unwrap().to_owned(), raw.code())
    };
    let image = json!([{"role": "assistant", "content": [{"type": "image", "source": {}}]}]);
    for (more, status, kind, code) in [
        (json!({"max_tokens": null}), 400, "invalid_request_error", "invalid_value"),
        (json!({"messages": image}), 400, "invalid_request_error", "unsupported_parameter"),
        (json!({"temperature": 2}), 400, "invalid_request_error", "invalid_value"),
        (json!({"model": "gpt"}), 404, "not_found_error", "model_not_found"),
    ] {
        let raw = node.post(PATH, None, request(more.clone())).await;
        assert_eq!(told(&raw), (status, kind.to_owned(), code.to_owned()), "{more}");
    }
    let count =
        node.post("/v1/messages/count_tokens", None, request(json!({"model": "gpt"}))).await;
    assert_eq!(told(&count).0, 404);

    let call = |key: String| {
        let call = node.http.post(format!("{}{PATH}", node.url)).header("x-api-key", key);
        let call = call.header("anthropic-version", "2023-06-01");
        let call = call.header("content-type", "application/json").body(request(json!({})));
        async move { Raw::of(call.send().await.unwrap()).await }
    };
    let wrong = call("tirami_00000000_guess".to_owned()).await;
    let expected = (401, "authentication_error".to_owned(), "invalid_api_key".to_owned());
    assert_eq!(told(&wrong), expected);
    let agent = node.agent("poor", "0.000001").await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await.key;
    let poor = call(key).await;
    let expected = (402, "billing_error".to_owned(), "insufficient_balance".to_owned());
    assert_eq!(told(&poor), expected);
    let read = node.key(Scope::Read, Some(&agent.did), Limits::default()).await.key;
    assert_eq!(told(&call(read).await).1, "permission_error");
    let rich = node.agent("rich", "10").await;
    let rich = node.key(Scope::Inference, Some(&rich.did), Limits::default()).await.key;
    assert_eq!(call(rich.clone()).await.status, 200);
    let on = KillRequest { activate: true, reason: Some("test".to_owned()) };
    node.admin.kill(&on).await.unwrap();
    assert_eq!(told(&call(rich).await).0, 403);
    assert_eq!(node.settled().await.total_trades, 1);
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so_and_what_was_delivered_is_paid() {
    let script = FakeScript { fail_after: Some(2), ..script(9, Duration::ZERO) };
    let node = TestNode::start(script).await;
    let raw = node.post(PATH, None, request(json!({"stream": true}))).await;
    let last = raw.text.trim_end().rsplit("\n\n").next().unwrap();
    let (name, data) = last.split_once('\n').unwrap();
    assert_eq!(name, "event: error");
    let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&data["type"], &data["error"]["type"]), (&json!("error"), &json!("api_error")));
    assert_eq!(data["error"]["code"], "engine_failed");
    node.settled().await;
    let trades = node.admin.trades(None, None, None).await.unwrap().trades;
    assert_eq!((trades.len(), trades[0].completion_tokens), (1, 2));
}
