//! Who may call what: the whole table of routes, keys in every state, and pages of strangers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Raw, TestNode, chat, script};
use tirami_sdk::endpoints::{Access, Method, Operation};
use tirami_sdk::types::{CreateKey, Limits, Scope};

fn quick() -> tirami_infer::fake::FakeScript {
    script(3, Duration::ZERO)
}

/// Calls a route with a body that changes nothing anywhere.
async fn call(node: &TestNode, operation: Operation, headers: &[(&str, &str)]) -> Raw {
    let row = operation.endpoint();
    let method = match row.method {
        Method::Get => reqwest::Method::GET,
        Method::Post => reqwest::Method::POST,
        Method::Delete => reqwest::Method::DELETE,
    };
    let url = format!("{}{}", node.url, operation.path_with(&["x"]));
    let mut call = node.http.request(method, url).header("content-type", "application/json");
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    let answer = if row.method == Method::Get { call } else { call.body("{}") };
    Raw::of(answer.send().await.unwrap()).await
}

/// Whether the gate let the call through, whatever the handler then said.
fn passed(raw: &Raw) -> bool {
    let at_the_gate = [
        "missing_api_key",
        "invalid_api_key",
        "insufficient_scope",
        "forbidden_host",
        "forbidden_origin",
        "too_many_failures",
    ];
    assert_ne!(raw.status, 405, "{raw:?}");
    assert_ne!(raw.code(), "unknown_path", "{raw:?}");
    !at_the_gate.contains(&raw.code().as_str())
}

#[tokio::test]
async fn every_route_lets_in_exactly_the_scopes_its_row_says() {
    let node = TestNode::start(quick()).await;
    let agent = node.agent("a", "1").await;
    let mut callers = vec![(Some(Scope::Inference), String::new())];
    for scope in Scope::ALL {
        let key = node.key(scope, Some(&agent.did), Limits::default()).await;
        callers.push((Some(scope), format!("Bearer {}", key.key)));
    }
    for operation in Operation::ALL {
        let row = operation.endpoint();
        for (held, authorization) in &callers {
            let headers: &[_] = match authorization.as_str() {
                "" => &[],
                text => &[("authorization", text)],
            };
            let raw = call(&node, *operation, headers).await;
            let expected = match row.access {
                Access::Public => true,
                Access::Scope(needed) => held.is_some_and(|held| held >= needed),
            };
            assert_eq!(passed(&raw), expected, "{} {held:?} {raw:?}", row.path);
            assert!(!raw.header("x-request-id").is_empty());
            if !expected {
                assert_eq!((raw.status, raw.code().as_str()), (403, "insufficient_scope"));
            }
        }
    }
}

#[tokio::test]
async fn no_private_route_answers_a_wrong_key_or_a_strangers_page() {
    let node = TestNode::start(quick()).await;
    for operation in Operation::ALL {
        let public = operation.endpoint().access == Access::Public;
        for headers in [
            &[("host", "evil.example:3000")][..],
            &[("origin", "http://evil.example")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("authorization", "Bearer tirami_00000000_guess")],
            &[("authorization", "Basic dXNlcjpwYXNz")],
            &[("x-api-key", "sk-123")],
        ] {
            let raw = call(&node, *operation, headers).await;
            assert_eq!(passed(&raw), public, "{operation:?} {headers:?} {raw:?}");
        }
    }
}

#[tokio::test]
async fn failures_are_throttled_for_their_source_and_the_wait_ends() {
    let node = TestNode::start(quick()).await;
    let wrong = [("authorization", "Bearer tirami_00000000_guess")];
    let mut statuses = Vec::new();
    for _ in 0..25 {
        statuses.push(call(&node, Operation::Status, &wrong).await.status);
    }
    assert_eq!(statuses[0], 401);
    assert_eq!(statuses[24], 429);
    // Right keys are not affected, nor is the same source without a key.
    assert!(node.admin.status().await.is_ok());
    assert!(node.personal().status().await.is_ok());
    let raw = call(&node, Operation::Status, &wrong).await;
    let wait: u64 = raw.header("retry-after").parse().unwrap();
    assert!((1..=3).contains(&wait));
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(call(&node, Operation::Status, &wrong).await.status, 401);
}

#[tokio::test]
async fn a_misspelt_budget_makes_no_key() {
    let node = TestNode::start(quick()).await;
    let before = node.admin.keys().await.unwrap().keys.len();
    let agent = node.agent("payer", "100").await.did;
    let body = format!(
        r#"{{"label":"x","scope":"inference","agent":"{agent}","limit":{{"day_max_trm":5}}}}"#
    );
    let key = node.admin_key.clone();
    let raw = node.post("/v1/tirami/keys", Some(&key), body).await;
    assert_eq!(raw.status, 400, "{}", raw.text);
    assert!(raw.text.contains("limit"), "{}", raw.text);
    assert_eq!(node.admin.keys().await.unwrap().keys.len(), before);
}

#[tokio::test]
async fn a_socket_others_can_reach_always_needs_a_key() {
    let node = TestNode::bound("0.0.0.0:0", quick()).await;
    for operation in Operation::ALL {
        let raw = call(&node, *operation, &[]).await;
        let public = operation.endpoint().access == Access::Public;
        assert_eq!(passed(&raw), public, "{operation:?}");
        if !public {
            assert_eq!(raw.status, 401);
            assert!(raw.header("www-authenticate").starts_with("Bearer"));
        }
    }
    assert!(node.admin.status().await.is_ok());
}

#[tokio::test]
async fn a_key_works_from_either_header_until_it_is_revoked() {
    let node = TestNode::start(quick()).await;
    let key = node.key(Scope::Economy, None, Limits::default()).await;
    let raw = call(&node, Operation::Keys, &[("x-api-key", node.admin_key.as_str())]).await;
    assert_eq!(raw.status, 200);
    assert!(!raw.text.contains(&key.key), "a list shows no key");
    assert!(node.with(&key).status().await.is_ok());
    node.admin.revoke_key(&key.info.id).await.unwrap();
    let error = node.with(&key).status().await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(401), Some("invalid_api_key")));
    let listed = node.admin.keys().await.unwrap().keys;
    assert!(listed.iter().any(|listed| listed.id == key.info.id && listed.state == "revoked"));
}

#[tokio::test]
async fn an_expired_key_is_refused() {
    let node = TestNode::start(quick()).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let request = CreateKey {
        label: "short".into(),
        scope: Scope::Read,
        agent: None,
        limits: None,
        expires_at_ms: Some(now + 400),
    };
    let key = node.admin.create_key(&request).await.unwrap();
    assert!(node.with(&key).status().await.is_ok());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.with(&key).status().await.unwrap_err().status(), Some(401));
}

#[tokio::test]
async fn a_rotated_key_works_for_its_grace_and_shares_its_budget() {
    let node = TestNode::start(quick()).await;
    let agent = node.agent("a", "10").await;
    let limits = Limits { lifetime_max_trm: Some(crate::support::cost(3)), ..Limits::default() };
    let old = node.key(Scope::Inference, Some(&agent.did), limits).await;
    node.with(&old).chat(&chat(3)).await.unwrap();
    let new = node.admin.rotate_key(&old.info.id, 300).await.unwrap();
    assert!(node.with(&old).status().await.is_ok());
    for key in [&old, &new] {
        let error = node.with(key).chat(&chat(3)).await.unwrap_err();
        assert_eq!(error.code(), Some("budget_limit"));
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(node.with(&old).status().await.unwrap_err().status(), Some(401));
    assert!(node.with(&new).status().await.is_ok());
}

#[tokio::test]
async fn below_economy_an_agent_sees_only_itself() {
    let node = TestNode::start(quick()).await;
    let (a, b) = (node.agent("a", "10").await, node.agent("b", "10").await);
    let key_a = node.key(Scope::Inference, Some(&a.did), Limits::default()).await;
    let key_b = node.key(Scope::Inference, Some(&b.did), Limits::default()).await;
    node.with(&key_a).chat(&chat(3)).await.unwrap();
    let theirs = node.with(&key_b).chat(&chat(3)).await.unwrap().x_tirami.unwrap().trade_id;
    let client = node.with(&key_a);
    assert_eq!(client.balance(None).await.unwrap().agent, Some(a.did.clone()));
    assert_eq!(client.agents().await.unwrap().agents.len(), 1);
    let trades = client.trades(None, None, None).await.unwrap().trades;
    assert!(trades.iter().all(|trade| trade.consumer == a.did) && trades.len() == 1);
    for error in [
        client.balance(Some(&b.did)).await.unwrap_err(),
        client.balance(Some("node")).await.unwrap_err(),
        client.trades(Some(&b.did), None, None).await.unwrap_err(),
        client.safety(Some(&b.did)).await.unwrap_err(),
    ] {
        assert_eq!(error.status(), Some(403));
    }
    assert_eq!(client.trade(&theirs).await.unwrap_err().status(), Some(404));
    assert!(node.admin.trade(&theirs).await.unwrap().verified);
    assert_eq!(node.admin.trades(None, None, None).await.unwrap().trades.len(), 2);
}
