//! What a request tells the model's chat template, through the mesh: only the provider has the
//! template, and knows what it reads.

use std::time::Duration;

use serde_json::{Value, json};

use crate::jobs_support::{Mesh, ask, script};

fn asking(more: &Value) -> Value {
    let mut request = ask(3, false);
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

#[test]
fn a_peers_template_is_told_what_the_node_without_the_model_was_told() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    mesh.generous();
    let (user, provider) = (mesh.user(), mesh.provider(0));
    for (more, tokens) in [
        (json!({}), 1),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), 3),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), 1),
        (json!({"reasoning_effort": "none"}), 3),
        (json!({"thinking": {"type": "disabled"}}), 3),
    ] {
        let answer = user.post(&asking(&more));
        assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{more} {answer}");
        assert_eq!(answer["x_tirami"]["route"]["kind"], "mesh", "{more}");
    }
    let (mine, theirs) = (user.trades(), provider.trades());
    let is_theirs = |one: &Value| theirs.iter().any(|other| other["trade_id"] == one["trade_id"]);
    assert_eq!(mine.len(), 5);
    assert!(mine.iter().all(is_theirs), "{mine:?} {theirs:?}");

    // What the peer's template does not read is not dropped on the way.
    let (status, refused) = user.raw(&asking(&json!({"chat_template_kwargs": {"colour": "red"}})));
    let error = &refused["error"];
    assert_eq!((status, &error["code"]), (400, &json!("unsupported_parameter")), "{refused}");
    assert_eq!(error["param"], "chat_template_kwargs.colour", "{refused}");
    assert!(error["message"].as_str().unwrap().contains("it reads enable_thinking"), "{refused}");
    assert_eq!((user.trades().len(), user.open_holds()), (5, 0));
}
