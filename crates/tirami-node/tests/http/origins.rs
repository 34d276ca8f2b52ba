//! Pages of other origins in a browser: those that the owner lists may call with an API key.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tirami_infer::fake::FakeEngine;
use tirami_sdk::types::{Limits, Scope};

use crate::support::{Raw, TestNode, script};

const PATH: &str = "/v1/chat/completions";
const LISTED: &str = "https://app.example";
const ALLOWED: &str = "access-control-allow-origin";

async fn node() -> TestNode {
    let engine = FakeEngine::new(script(1, Duration::ZERO));
    TestNode::within(engine, |http| http.cors_origins = [LISTED.to_owned()].into()).await
}

async fn call(
    node: &TestNode,
    (method, path): (Method, &str),
    headers: &[(&str, &str)],
    body: String,
) -> Raw {
    let mut call = node.http.request(method, format!("{}{path}", node.url)).body(body);
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    Raw::of(call.send().await.unwrap()).await
}

#[tokio::test]
async fn a_browser_may_send_what_a_listed_origin_asks_for_and_nothing_of_another() {
    let node = node().await;
    let wanted = "authorization, content-type, x-stainless-os";
    let asking = |origin: &'static str| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", wanted),
        ]
    };
    let ask = |origin| {
        let (node, headers) = (&node, asking(origin));
        async move { call(node, (Method::OPTIONS, PATH), &headers, String::new()).await }
    };
    let raw = ask(LISTED).await;
    assert_eq!((raw.status, raw.text.as_str()), (204, ""), "{raw:?}");
    assert_eq!(raw.header(ALLOWED), LISTED);
    assert_eq!(raw.header("access-control-allow-headers"), wanted);
    assert!(raw.header("access-control-allow-methods").contains("POST"), "{raw:?}");
    assert_eq!(raw.header("vary"), "origin");
    assert_eq!(raw.header("access-control-allow-credentials"), "");
    for origin in ["https://app.example.evil", "https://app.example:8443", "null"] {
        let raw = ask(origin).await;
        assert_eq!((raw.status, raw.code().as_str()), (405, "method_not_allowed"), "{raw:?}");
        assert_eq!(raw.header(ALLOWED), "", "{origin}");
    }
}

#[tokio::test]
async fn a_page_of_a_listed_origin_reads_answers_to_its_key_and_refusals_without_one() {
    let node = node().await;
    let agent = node.agent("page", "10").await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await.key;
    let key = format!("Bearer {key}");
    let body = json!({"model": "fake", "messages": [{"role": "user", "content": "hi"}]});
    let kind = ("content-type", "application/json");
    let ask = |headers: Vec<(&'static str, String)>| {
        let (node, body) = (&node, body.to_string());
        async move {
            let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
            let headers: Vec<_> = headers.chain([kind]).collect();
            call(node, (Method::POST, PATH), &headers, body).await
        }
    };
    let origin = |origin: &str| ("origin", origin.to_owned());
    let raw = ask(vec![origin(LISTED), ("authorization", key.clone())]).await;
    assert_eq!((raw.status, raw.header(ALLOWED)), (200, LISTED), "{raw:?}");
    assert!(raw.header("access-control-expose-headers").contains("x-request-id"), "{raw:?}");
    // It is not this machine's own page, so without a key it is nobody.
    let raw = ask(vec![origin(LISTED)]).await;
    assert_eq!((raw.status, raw.code().as_str()), (403, "forbidden_origin"), "{raw:?}");
    assert_eq!(raw.header(ALLOWED), LISTED, "it may read why");
    // Another origin's browser shows its page nothing.
    let raw = ask(vec![origin("https://evil.example"), ("authorization", key)]).await;
    assert_eq!((raw.status, raw.header(ALLOWED)), (200, ""), "{raw:?}");
}
