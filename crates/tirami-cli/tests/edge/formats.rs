//! What answers follow of a schema, and what they do not.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::common::Node;
use super::post;

/// What is not followed in a schema may not make of a call what is none.
#[test]
fn a_call_has_an_object_of_arguments_whatever_its_schema_says() {
    let home = tempdir().unwrap();
    let node = Node::start(home.path());
    let model = node.banner[1].strip_prefix("model: ").unwrap().split(' ').next().unwrap();
    let ask = |parameters: &Value, strict: bool| {
        let function = json!({"name": "book", "parameters": parameters, "strict": strict});
        let body = json!({
            "model": model, "temperature": 0, "max_tokens": 200, "tool_choice": "required",
            "messages": [{"role": "user", "content": "Book a table for two."}],
            "tools": [{"type": "function", "function": function}],
        });
        post(&node, "/v1/chat/completions", &body)
    };
    for (parameters, needed, refused) in parameters() {
        let answer = ask(&parameters, false);
        let choice = &answer["choices"][0];
        for call in choice["message"]["tool_calls"].as_array().unwrap() {
            let arguments = call["function"]["arguments"].as_str().unwrap();
            // The last one of an answer may be cut.
            let Ok(value) = serde_json::from_str::<Value>(arguments) else {
                assert_eq!(choice["finish_reason"], "length", "{answer}");
                continue;
            };
            let has = |name: &str| value.get(name).is_some();
            assert!(value.is_object(), "{answer}");
            assert!(!needed || has("guests") || has("name"), "{answer}");
        }
        let strict = ask(&parameters, true);
        match refused {
            None => assert!(strict["choices"][0]["message"]["tool_calls"].is_array(), "{strict}"),
            Some(word) => {
                let message = strict["error"]["message"].as_str().unwrap();
                assert!(message.contains(word) && strict["error"]["param"] == "tools", "{strict}");
            }
        }
    }
}

/// Parameters of a tool; whether an argument is needed; what a strict tool is refused for.
fn parameters() -> Vec<(Value, bool, Option<&'static str>)> {
    let properties = json!({
        "guests": {"type": "integer", "minimum": 1, "maximum": 9}, "name": {"enum": ["a", "b"]},
    });
    let one_of_two = json!({
        "type": "object", "properties": properties, "additionalProperties": false,
        "anyOf": [{"required": ["guests"]}, {"required": ["name"]}],
    });
    vec![
        (one_of_two, true, None),
        (
            json!({
                "type": "object", "properties": properties, "required": ["guests"],
                "anyOf": [{"type": "null"}, {"type": "integer"}],
            }),
            true,
            Some("anyOf"),
        ),
        (
            json!({
                "type": "object", "required": ["guests", "mail"], "properties": {
                    "guests": properties["guests"],
                    "mail": {"type": "string", "maxLength": 9, "pattern": "^(?!\\.)[a-z.]+@x$"},
                },
            }),
            true,
            Some("look-around"),
        ),
        (json!({"const": 5}), false, Some("const")),
        (
            json!({
                "type": "object", "required": ["guests"], "properties": {
                    "guests": properties["guests"], "tip": {"type": "number", "minimum": 0.5},
                },
            }),
            true,
            Some("minimum cannot be followed where it stands in the schema, at #/properties/tip;"),
        ),
        (
            json!({
                "type": "object", "required": ["guests"], "properties": {
                    "guests": properties["guests"],
                    "more": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/More"}},
                },
                "$defs": {"More": {"type": "object", "properties": {
                    "next": {"$ref": "#/$defs/More"},
                }}},
            }),
            true,
            None,
        ),
        (
            json!({
                "type": "object", "properties": {"guests": properties["guests"],
                "next": {"$ref": "#"}}, "required": ["guests", "next"],
            }),
            true,
            Some("none ends"),
        ),
    ]
}
