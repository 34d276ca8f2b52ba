//! Every form of an answer through the mesh: what a node without a model says is what the node
//! with the model says.

use std::time::Duration;

use serde_json::{Value, json};

use crate::jobs_support::{Mesh, Stream, script, words};

const FAST: Duration = Duration::ZERO;

fn completion(more: &Value) -> Value {
    let mut request = json!({"model": "fake", "prompt": "12345678", "max_tokens": 200});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

#[test]
fn a_continued_text_through_a_peer_is_the_text_of_the_peer() {
    let path = "/v1/completions";
    let mesh = Mesh::of(&[script(5, FAST)]);
    mesh.generous();
    let (user, provider) = (mesh.user(), mesh.provider(0));
    for more in [
        json!({}),
        json!({"prompt": ["1234", "12345678"], "n": 2, "logprobs": 2}),
        json!({"prompt": [[1, 2], [3]], "seed": 7}),
        json!({"prompt": "a", "echo": true, "stop": ["wo"]}),
        json!({"prompt": [104, 105], "echo": true}),
        json!({"prompt": "ab", "suffix": "cdefgh"}),
        json!({"prompt": "a", "echo": true, "logprobs": 1, "max_tokens": 0}),
        json!({"prompt": [104, 105], "echo": true, "logprobs": 0, "max_tokens": 2}),
        json!({"prompt": "abcd".repeat(1_000), "echo": true, "logprobs": 5, "max_tokens": 0}),
    ] {
        let request = completion(&more);
        let (through, direct) = (user.send(path, &request), provider.send(path, &request));
        assert_eq!((through.0, direct.0), (200, 200), "{through:?} {direct:?}");
        for field in ["object", "choices", "usage"] {
            assert_eq!(through.1[field], direct.1[field], "{field} of {more}");
        }
        assert_eq!(through.1["x_tirami"]["route"]["kind"], "mesh");
    }
    let streamed = completion(&json!({"prompt": [104, 105], "echo": true, "stream": true}));
    for node in [user, provider] {
        let answer = Stream::at(node, path, &streamed).rest();
        assert_eq!(answer.text, format!("hi{}", words(5)));
    }
    let (mine, theirs) = (user.trades(), provider.trades());
    let ids =
        |trades: &[Value]| trades.iter().map(|one| one["trade_id"].clone()).collect::<Vec<_>>();
    assert_eq!(mine.len(), 14);
    assert!(ids(&mine).iter().all(|id| ids(&theirs).contains(id)), "{mine:?} {theirs:?}");
    // What the provider refuses is told, and nothing is owed for it.
    let (status, refused) = user.send(path, &completion(&json!({"prompt": [70_000]})));
    assert_eq!(status, 400, "{refused}");
    assert!(refused.to_string().contains("tokens of the model"), "{refused}");
    assert_eq!((user.trades().len(), user.open_holds()), (14, 0));
    for (path, request) in [
        ("/tokenize", json!({"model": "fake", "prompt": "a"})),
        ("/detokenize", json!({"model": "fake", "tokens": [97]})),
        (
            "/v1/messages/count_tokens",
            json!({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}),
        ),
    ] {
        let (status, refused) = user.send(path, &request);
        assert_eq!((status, &refused["error"]["code"]), (404, &json!("model_not_here")));
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("its file is not at this node"), "{message}");
        assert_eq!(provider.send(path, &request).0, 200, "{path}");
    }
    assert_eq!((user.trades().len(), user.open_holds()), (14, 0));
}

#[test]
fn a_length_beyond_a_peers_context_is_what_there_is_room_for() {
    let mesh = Mesh::of(&[script(5, FAST)]);
    let request = json!({
        "model": "fake", "max_tokens": 32_000, "messages": [{"role": "user", "content": "hi"}],
    });
    let (status, answer) = mesh.user().send("/v1/messages", &request);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["x_tirami"]["route"]["kind"], "mesh");
    assert_eq!(
        (&answer["stop_reason"], &answer["usage"]["output_tokens"]),
        (&json!("end_turn"), &json!(5))
    );
}

#[test]
fn a_continued_text_goes_on_at_another_provider() {
    let slow = || script(60, Duration::from_millis(15));
    let mut mesh = Mesh::of(&[slow(), slow()]);
    let request = completion(&json!({"stream": true}));
    let mut stream = Stream::at(mesh.user(), "/v1/completions", &request);
    stream.until_words(10);
    mesh.kill_running();
    let answer = stream.rest();
    assert_eq!(answer.text, words(60));
    assert!(answer.done);
    let info = answer.info();
    let attempts = info["route"]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{info}");
    let made = attempts.iter().map(|one| one["completion_tokens"].as_u64().unwrap());
    assert_eq!(made.sum::<u64>(), 60, "{info}");
    assert_eq!((mesh.user().trades().len(), mesh.user().open_holds()), (2, 0));
}

#[test]
fn messages_and_responses_through_a_peer_are_those_of_the_peer() {
    let said =
        ["Hm. <tool", "_call>{\"name\": \"f\", \"argu", "ments\": {\"a\"", ": 1}}</tool_call>"];
    let mesh = Mesh::saying(said.map(str::to_owned).to_vec());
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let schema = json!({"type": "object"});
    let messages = json!({
        "model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "f", "input_schema": schema}],
    });
    let stopped = json!({
        "model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}],
        "stop_sequences": ["zebra", "<tool"],
    });
    let responses = json!({
        "model": "fake", "input": "hi",
        "tools": [{"type": "function", "name": "f", "parameters": schema}],
    });
    for (path, request, fields) in [
        ("/v1/messages", &messages, ["stop_reason", "stop_sequence", "usage"]),
        ("/v1/messages", &stopped, ["stop_reason", "stop_sequence", "usage"]),
        ("/v1/responses", &responses, ["status", "usage", "tools"]),
    ] {
        let (through, direct) = (user.send(path, request), provider.send(path, request));
        assert_eq!((through.0, direct.0), (200, 200), "{through:?} {direct:?}");
        for field in fields {
            assert_eq!(through.1[field], direct.1[field], "{field} of {path}");
        }
        assert_eq!(through.1["x_tirami"]["route"]["kind"], "mesh");
        let mut request = request.clone();
        request["stream"] = true.into();
        let streams = [user, provider].map(|node| Stream::at(node, path, &request).rest());
        let kinds = |answer: &crate::jobs_support::Answer| {
            let kind = |chunk: &Value| chunk["type"].as_str().unwrap().to_owned();
            answer.chunks.iter().map(kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&streams[0]), kinds(&streams[1]), "{path}");
    }
    let answer = user.send("/v1/messages", &messages).1;
    assert_eq!(answer["content"][1]["input"], json!({"a": 1}), "{answer}");
    assert_eq!(answer["stop_reason"], "tool_use");
    let answer = user.send("/v1/messages", &stopped).1;
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!("<tool"))
    );
    // What is kept is kept by the node that was asked, for who asked it.
    let first = user.send("/v1/responses", &responses).1;
    let next = json!({"model": "fake", "input": "on", "previous_response_id": first["id"]});
    assert_eq!(user.send("/v1/responses", &next).0, 200);
    assert_eq!(provider.send("/v1/responses", &next).0, 400);
    assert_eq!(user.open_holds(), 0);
}
