//! What a caller puts in an order is in that order where the engine reads it, whatever the path.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Finish, Format, Generation, ModelInfo, Piece, PrepareError,
    Prompt, Sampling, StartError,
};
use tirami_infer::fake::FakeEngine;
use tirami_node::models::Models;
use tokio::sync::mpsc;

use crate::support::{TestNode, script};

/// Says what it was given: the tools, the calls of the chat, and the schemas of its answer.
struct Tells(FakeEngine);

impl Tells {
    async fn node() -> TestNode {
        let tells = Self(FakeEngine::new(script(1, Duration::ZERO)));
        TestNode::serving(Models::from_iter([Arc::new(tells) as Arc<dyn Engine>])).await
    }
}

impl Engine for Tells {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        let calls = conversation.messages.iter().flat_map(|message| &message.calls);
        let given = conversation.tools.iter().chain(calls.map(|call| &call.arguments));
        let given: String = given.flat_map(|text| [text, "\n"]).collect();
        Ok(Prompt::from(format!("{given}.").chars().map(u32::from).collect::<Vec<_>>()))
    }

    fn check_format(&self, _: &Format) -> Result<(), PrepareError> {
        Ok(())
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        let (sender, pieces) = mpsc::channel(4);
        let mut text: String = prompt.tokens.into_iter().filter_map(char::from_u32).collect();
        if let Format::Calls(calls) = &sampling.format {
            text.extend(calls.tools.iter().map(|tool| tool.arguments.text.as_str()));
        }
        if let Some(Format::JsonSchema(schema)) = sampling.format.without_calls() {
            text += &schema.text;
        }
        let delta = Piece::Delta { tokens: vec![0], text, logprobs: Vec::new() };
        let end = Piece::End { text: String::new(), finish: Finish::Stop };
        for piece in [delta, end] {
            sender.try_send(piece).unwrap();
        }
        Ok(Generation::new(pieces, Arc::default()))
    }

    fn load(&self) -> EngineLoad {
        self.0.load()
    }
}

const ZEBRA_FIRST: &str = r#""properties":{"zebra":{"type":"string"},"apple":{"type":"integer"}}"#;
const CALLED: &str = r#"{"zebra":"z","mid":{"y":1,"b":2},"apple":1}"#;

fn schema() -> Value {
    serde_json::from_str(&format!(r#"{{"type":"object",{ZEBRA_FIRST}}}"#)).unwrap()
}

/// The texts of an answer, whatever its form.
fn said(answer: &Value) -> String {
    let texts = ["/choices/0/message/content", "/content/0/text", "/output/0/content/0/text"];
    let text = texts.iter().find_map(|place| answer.pointer(place)?.as_str());
    text.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test]
async fn schemas_and_calls_keep_the_order_of_their_keys() {
    let node = Tells::node().await;
    let function = json!({"name": "f", "parameters": schema()});
    let call = json!({"id": "1", "type": "function",
                      "function": {"name": "f", "arguments": CALLED}});
    let called = |result: Value| {
        json!([{"role": "user", "content": "hi"},
               {"role": "assistant", "content": null, "tool_calls": [call]}, result])
    };
    let input: Value = serde_json::from_str(CALLED).unwrap();
    for (path, more, schemas) in [
        (
            "/v1/chat/completions",
            json!({
                "messages": [{"role": "user", "content": "hi"}],
                "response_format": {"type": "json_schema",
                                    "json_schema": {"name": "s", "schema": schema()}},
            }),
            1,
        ),
        (
            "/v1/chat/completions",
            json!({
                "messages": called(json!({"role": "tool", "tool_call_id": "1", "content": "x"})),
                "tools": [{"type": "function", "function": function}],
            }),
            2,
        ),
        (
            "/v1/messages",
            json!({
                "max_tokens": 9, "tools": [{"name": "f", "input_schema": schema()}],
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": [
                        {"type": "tool_use", "id": "1", "name": "f", "input": input}]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": "x"}]},
                ],
            }),
            2,
        ),
        (
            "/v1/responses",
            json!({
                "input": [
                    {"role": "user", "content": "hi"},
                    {"type": "function_call", "call_id": "1", "name": "f", "arguments": CALLED},
                    {"type": "function_call_output", "call_id": "1", "output": "x"},
                ],
                "tools": [{"type": "function", "name": "f", "parameters": schema()}],
            }),
            2,
        ),
        (
            "/v1/responses",
            json!({
                "input": "hi",
                "text": {"format": {"type": "json_schema", "name": "s", "schema": schema()}},
            }),
            1,
        ),
    ] {
        let mut body = json!({"model": "fake"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let raw = node.post(path, None, body.to_string()).await;
        assert_eq!(raw.status, 200, "{raw:?}");
        let said = said(&raw.json());
        assert_eq!(said.matches(ZEBRA_FIRST).count(), schemas, "{path}: {said}");
        assert_eq!(said.matches(CALLED).count(), schemas - 1, "{path}: {said}");
    }
}

#[tokio::test]
async fn a_format_beside_tools_comes_to_the_engine_with_theirs() {
    let node = Tells::node().await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema()}});
    let function = json!({"name": "f", "parameters": schema()});
    let chat = json!({
        "model": "fake", "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": function}], "response_format": format,
    });
    let response = json!({
        "model": "fake", "input": "hi",
        "tools": [{"type": "function", "name": "f", "parameters": schema()}],
        "text": {"format": {"type": "json_schema", "name": "s", "schema": schema()}},
    });
    // The tool, its call, and the answer without one, where there may be such.
    for (choice, schemas) in [("auto", 3), ("required", 2), ("none", 1)] {
        for (path, body) in [("/v1/chat/completions", &chat), ("/v1/responses", &response)] {
            let mut body = body.clone();
            body["tool_choice"] = choice.into();
            let raw = node.post(path, None, body.to_string()).await;
            assert_eq!(raw.status, 200, "{raw:?}");
            let said = said(&raw.json());
            assert_eq!(said.matches(ZEBRA_FIRST).count(), schemas, "{path} {choice}: {said}");
        }
    }
}
