//! Texts as tokens, tokens as text, and what is told of models.

use std::time::Duration;

use crate::support::{TestNode, script};
use serde_json::{Value, json};
use tirami_sdk::types::{DetokenizeRequest, TokenizeRequest};

async fn node() -> TestNode {
    TestNode::start(script(3, Duration::ZERO)).await
}

#[tokio::test]
async fn a_text_becomes_tokens_and_text_again_free_of_charge() {
    let node = node().await;
    let before = node.personal().balance(None).await.unwrap().effective_balance;
    let text = "Grüße, 日本!";
    let request = TokenizeRequest {
        prompt: Some(text.to_owned()),
        return_token_strs: Some(true),
        ..TokenizeRequest::default()
    };
    let told = node.personal().tokenize(&request).await.unwrap();
    assert_eq!(told.count as usize, text.len(), "the scripted engine has a token for each byte");
    assert_eq!((told.tokens.len(), told.max_model_len), (text.len(), 4_096));
    assert_eq!(told.token_strs.unwrap()[..2], ["G", "r"]);
    let request = DetokenizeRequest { model: Some("fake".to_owned()), tokens: told.tokens };
    let back = node.personal().detokenize(&request).await.unwrap();
    assert_eq!((back.prompt.as_str(), back.content.as_str()), (text, text));
    // A part of a character has a replacement, and no bytes are no text.
    for (tokens, text) in [(vec![0xc3], "\u{fffd}"), (vec![], "")] {
        let request = DetokenizeRequest { model: None, tokens };
        assert_eq!(node.personal().detokenize(&request).await.unwrap().prompt, text);
    }
    // A chat is cut as a prompt is.
    let raw = node
        .post(
            "/tokenize",
            None,
            r#"{"model":"fake","messages":[{"role":"user","content":"12345"}]}"#,
        )
        .await;
    assert_eq!((raw.status, &raw.json()["count"]), (200, &json!(2)), "{raw:?}");
    assert_eq!(raw.json()["token_strs"], Value::Null);
    let raw = node.post("/tokenize", None, r#"{"content":"ab","add_special":true}"#).await;
    assert_eq!(raw.json()["tokens"], json!([97, 98]), "llama-server's name is understood");
    let after = node.personal().balance(None).await.unwrap().effective_balance;
    assert_eq!(before, after);
    assert_eq!(node.admin.status().await.unwrap().total_trades, 0);
}

#[tokio::test]
async fn what_cannot_be_cut_or_read_is_named() {
    let node = node().await;
    let many = format!(r#"{{"tokens":[{}7]}}"#, "7,".repeat(131_072));
    for (path, body, status, param) in [
        ("/tokenize", "{}", 400, "prompt"),
        ("/tokenize", r#"{"prompt":7}"#, 400, "prompt"),
        ("/tokenize", r#"{"content":["a"]}"#, 400, "content"),
        ("/tokenize", r#"{"prompt":"a","messages":[]}"#, 400, "messages"),
        ("/tokenize", r#"{"messages":[]}"#, 400, "messages"),
        ("/tokenize", r#"{"prompt":"a","add_special_tokens":1}"#, 400, "add_special_tokens"),
        ("/tokenize", r#"{"prompt":"a","model":7}"#, 400, "model"),
        ("/tokenize", r#"{"prompt":"a","model":"gpt"}"#, 404, "model"),
        (
            "/tokenize",
            r#"{"messages":[],"add_generation_prompt":false}"#,
            400,
            "add_generation_prompt",
        ),
        ("/detokenize", "{}", 400, "tokens"),
        ("/detokenize", r#"{"tokens":"a"}"#, 400, "tokens"),
        ("/detokenize", r#"{"tokens":[97,-1]}"#, 400, "tokens[1]"),
        ("/detokenize", r#"{"tokens":[4294967296]}"#, 400, "tokens[0]"),
        ("/detokenize", r#"{"tokens":[97,98,256]}"#, 400, "tokens[2]"),
        ("/detokenize", many.as_str(), 400, "tokens"),
    ] {
        let raw = node.post(path, None, body.to_owned()).await;
        let short: String = body.chars().take(80).collect();
        assert_eq!(raw.status, status, "{path} {short} {raw:?}");
        assert_eq!(raw.json()["error"]["param"], param, "{path} {short}");
    }
}

#[tokio::test]
async fn a_model_says_what_it_is_what_it_can_and_what_it_costs() {
    let node = node().await;
    let list = node.personal().models().await.unwrap();
    let (model, status) = (&list.data[0], node.admin.status().await.unwrap());
    assert_eq!((list.data.len(), model.id.as_str(), model.max_model_len), (1, "fake", 4_096));
    assert_eq!(model.owned_by, status.node_id);
    let detail = &model.x_tirami;
    assert_eq!(detail.served_by, std::slice::from_ref(&status.node_id));
    assert_eq!((detail.providers, detail.loaded), (1, true));
    assert_eq!((detail.context_tokens, detail.context_max), (4_096, 4_096));
    assert_eq!(detail.modalities, ["text"]);
    assert_eq!(detail.capabilities, ["chat", "tools", "embeddings", "tokenize"]);
    assert_eq!((detail.embedding_width, detail.price_trm.to_string().as_str()), (8, "1"));
    assert_eq!((detail.quantisation.as_str(), detail.architecture.as_str()), ("F32", "fake"));
    for id in [&model.id, &detail.digest] {
        assert_eq!(node.personal().model(id).await.unwrap(), *model);
    }
    let error = node.personal().model("gpt").await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(404), Some("model_not_found")));
}
