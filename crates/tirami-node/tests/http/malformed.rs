//! Malformed requests on every route of the OpenAPI document: each is answered, and none by a
//! failure of the node.

use std::time::Duration;

use crate::support::{Raw, TestNode, script};
use serde_json::{Map, Value, json};
use tirami_sdk::types::KillRequest;

/// What no body may be, whatever the route.
const BODIES: [&[u8]; 12] = [
    b"",
    b"null",
    b"7",
    b"\"x\"",
    b"[]",
    b"{",
    b"{}}",
    b"{\"a\":}",
    b"\xff\xfe",
    b"{\"a\":\"\\ud800\"}",
    b"{\"a\":1e999}",
    b"{\"\\u0000\":[{}]}",
];

/// What may stand in a path in place of a name.
const SEGMENTS: [&str; 7] = ["x", "%00", "%ff", "..%2f..%2fetc", "%F0%9F%98%80", "-1", "0"];

/// What may stand in a query in place of a value.
const VALUES: [&str; 6] = ["", "-1", "99999999999999999999", "%ff", "x", "%00"];

/// Values of which at most one suits any field.
fn wrong_values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("x"),
        json!("\u{0}\u{202e}😀"),
        json!("x".repeat(70_000)),
        json!([]),
        json!([null]),
        json!([[[]]]),
        json!(vec![1; 5_000]),
        json!({}),
        json!({"a": {"b": [null]}}),
        nested(200),
    ]
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::Null, |inside, _| json!([inside]))
}

/// A value that suits a schema, as far as its types say.
fn suiting(document: &Value, schema: &Value, depth: usize) -> Value {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return suiting(document, &document["components"]["schemas"][name], depth);
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(first) = schema[several].as_array().and_then(|all| all.first()) {
            return suiting(document, first, depth);
        }
    }
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.first().cloned().unwrap_or_default(),
        kind => kind.clone(),
    };
    match kind.as_str() {
        Some("string") => "x".into(),
        Some("integer" | "number") => 1.into(),
        Some("boolean") => false.into(),
        Some("array") if depth > 0 => json!([suiting(document, &schema["items"], depth - 1)]),
        Some("array") => json!([]),
        _ => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let fields = required.iter().filter_map(Value::as_str).filter(|_| depth > 0);
            let field = |name: &str| {
                (name.to_owned(), suiting(document, &schema["properties"][name], depth - 1))
            };
            Value::Object(fields.map(field).collect::<Map<_, _>>())
        }
    }
}

fn properties(document: &Value, schema: &Value) -> Vec<String> {
    let schema = match schema["$ref"].as_str() {
        Some(name) => &document["components"]["schemas"][name.rsplit('/').next().unwrap()],
        None => schema,
    };
    schema["properties"].as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default()
}

async fn call(node: &TestNode, method: &str, path: &str, body: Option<Vec<u8>>) -> Option<Raw> {
    let method = method.to_uppercase().parse::<reqwest::Method>().unwrap();
    let call = node.http.request(method, format!("{}{path}", node.url));
    let mut call = call.bearer_auth(&node.admin_key).timeout(Duration::from_secs(20));
    if let Some(body) = body {
        call = call.header("content-type", "application/json").body(body);
    }
    Some(Raw::of(call.send().await.ok()?).await)
}

#[tokio::test]
async fn no_route_answers_malformed_input_with_a_failure_of_its_own() {
    let node = TestNode::start(script(2, Duration::ZERO)).await;
    let document: Value = serde_json::from_str(&node.admin.openapi().await.unwrap()).unwrap();
    let (mut asked, mut refused) = (0, 0);
    let lift = KillRequest { activate: false, reason: None };
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let mut calls: Vec<(String, Option<Vec<u8>>)> = Vec::new();
            let named = |value: &str| {
                let parts =
                    path.split('/').map(|part| if part.starts_with('{') { value } else { part });
                parts.collect::<Vec<_>>().join("/")
            };
            if path.contains('{') {
                calls.extend(SEGMENTS.map(|segment| (named(segment), None)));
                calls.push((named(&"x".repeat(4_000)), None));
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if parameter["in"] == "query" {
                    let name = parameter["name"].as_str().unwrap();
                    let with = |value| (format!("{}?{name}={value}", named("x")), None);
                    calls.extend(VALUES.map(with));
                }
            }
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if schema.is_object() {
                calls.extend(BODIES.map(|body| (named("x"), Some(body.to_vec()))));
                let mut base = suiting(&document, schema, 4);
                if base.get("model").is_some() {
                    base["model"] = "fake".into();
                }
                calls.push((named("x"), Some(base.to_string().into_bytes())));
                for name in properties(&document, schema) {
                    for value in wrong_values() {
                        let mut body = base.clone();
                        body[&name] = value;
                        calls.push((named("x"), Some(body.to_string().into_bytes())));
                    }
                }
            }
            for (path, body) in calls {
                let shown: Vec<u8> = body.iter().flatten().copied().take(300).collect();
                let shown = String::from_utf8_lossy(&shown).into_owned();
                let Some(raw) = call(&node, method, &path, body).await else {
                    panic!("{method} {path} {shown}: no answer");
                };
                asked += 1;
                refused += u32::from((400..500).contains(&raw.status));
                assert!(raw.status < 500, "{method} {path} {shown}: {raw:?}");
                if raw.status >= 400 && raw.header("content-type") == "application/json" {
                    let message = raw.json()["error"]["message"].as_str().map(str::to_owned);
                    assert!(message.is_some_and(|text| text.len() > 5), "{method} {path}: {raw:?}");
                }
            }
            node.admin.kill(&lift).await.unwrap();
        }
    }
    assert!(asked > 1_000 && refused > asked / 2, "{asked} were asked, {refused} refused");
    // Nothing is left behind, and the node answers as before.
    node.settled().await;
    node.personal().models().await.unwrap();
}
