//! Agents, keys, quotes, probes and the API's description, over real HTTP.

use std::time::{Duration, Instant};

use crate::support::{TestNode, chat, cost, script};
use tirami_infer::fake::FakeScript;
use tirami_sdk::types::{CreateAgent, EstimateRequest, ImportAgent, Limits, Scope};
use tirami_sdk::{Amount, SignedAmount};

fn quick() -> FakeScript {
    script(3, Duration::ZERO)
}

#[tokio::test]
async fn a_quote_is_what_is_set_aside_and_counts_in_answers_too() {
    let node = TestNode::start(quick()).await;
    let request = EstimateRequest {
        messages: chat(1).messages,
        max_completion_tokens: Some(50),
        ..EstimateRequest::default()
    };
    let quote = node.personal().estimate(&request).await.unwrap();
    assert_eq!((quote.prompt_tokens, quote.completion_max, quote.n), (1, 50, 1));
    assert_eq!(quote.max_cost_trm, cost(50));
    assert!(quote.affordable);
    // 51 of the 1 000 tokens of an answer, rounded up; attention is cheaper at the beginning.
    assert!((0.03..0.06).contains(&quote.max_cost_answers), "{quote:?}");
    let limits = Limits { request_max_trm: Some(cost(50)), ..Limits::default() };
    let agent = node.personal().status().await.unwrap().personal_agent;
    node.limit(&agent, limits).await;
    node.personal().chat(&chat(50)).await.unwrap();
    assert_eq!(node.personal().chat(&chat(51)).await.unwrap_err().code(), Some("request_limit"));
    assert_eq!(node.settled().await.total_trades, 1);

    let pricing = node.personal().pricing().await.unwrap();
    assert_eq!(pricing.price_ppm, 1_000_000);
    assert_eq!(pricing.trm_per_token.to_string(), "0.002");
    let safety = node.personal().safety(None).await.unwrap();
    let shown = safety.policy.unwrap().request_max.unwrap();
    assert_eq!((shown.trm, shown.answers), (cost(50), 0));
    assert_eq!(safety.answer_trm, pricing.estimated_cost_1000_tokens);
}

#[tokio::test]
async fn money_moves_between_accounts_and_nothing_is_made_of_nothing() {
    let node = TestNode::start(quick()).await;
    let own = || async { node.admin.balance(Some("node")).await.unwrap().net_balance.micro() };
    let start = own().await;
    let agent = node.agent("ann", "12.5").await;
    assert_eq!(agent.balance_trm.to_string(), "12.5");
    assert_eq!(own().await, start - 12_500_000);
    let back = "-2.25".parse::<SignedAmount>().unwrap();
    let agent = node.admin.fund_agent(&agent.did, back).await.unwrap();
    assert_eq!(agent.balance_trm.to_string(), "10.25");
    let too_much = "-10.250001".parse::<SignedAmount>().unwrap();
    let error = node.admin.fund_agent(&agent.did, too_much).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(402), Some("insufficient_balance")));
    let said = error.to_string();
    assert!(said.contains("-10.250001 TRM were asked back"), "{said}");
    assert!(said.contains("at least -10.25"), "{said}");
    let absurd = "9000000000000".parse::<SignedAmount>().unwrap();
    let error = node.admin.fund_agent(&agent.did, absurd).await.unwrap_err();
    assert_eq!(error.status(), Some(402));
    assert!(error.to_string().contains("amount_trm must be at most "), "{error}");
    let did = format!("did:tirami:{}", "00".repeat(32));
    let error = node.admin.fund_agent(&did, back).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(404), Some("unknown_agent")));
    let path = format!("/v1/tirami/agents/{}/fund", agent.did);
    let raw = node.post(&path, Some(&node.admin_key), r#"{"amount_trm":0}"#).await;
    assert_eq!((raw.status, raw.json()["error"]["param"].as_str()), (400, Some("amount_trm")));
    assert!(raw.text.contains("below 0"), "{raw:?}");
    for amount in ["1e3", "0.0000001", "\"abc\"", "null"] {
        let body = format!("{{\"amount_trm\":{amount}}}");
        let raw = node.post(&path, Some(&node.admin_key), body).await;
        assert_eq!(raw.status, 400, "{amount} {raw:?}");
    }
    assert!(node.admin.network().await.unwrap().conserved);
    assert_eq!(own().await, start - 10_250_000);
}

#[tokio::test]
async fn an_agent_moves_to_another_node_under_a_passphrase() {
    let (here, there) = (TestNode::start(quick()).await, TestNode::start(quick()).await);
    let agent = here.agent("ann", "1").await;
    let bundle = here.admin.export_agent(&agent.did, "correct horse").await.unwrap();
    let import = |passphrase: &str, name: Option<&str>| ImportAgent {
        passphrase: passphrase.to_owned(),
        bundle: bundle.clone(),
        name: name.map(str::to_owned),
    };
    let error = there.admin.import_agent(&import("wrong horse", None)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(400), Some("invalid_value")));
    let moved = there.admin.import_agent(&import("correct horse", None)).await.unwrap();
    assert_eq!((moved.did.clone(), moved.name.as_str()), (agent.did.clone(), "ann"));
    assert_eq!(moved.balance_trm, Amount::default(), "a key moves, money does not");
    let error = there.admin.import_agent(&import("correct horse", Some("x"))).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(409), Some("exists")));
    let error = here.admin.export_agent(&agent.did, "short").await.unwrap_err();
    assert_eq!(error.refusal().unwrap().param.as_deref(), Some("passphrase"));

    let funds = SignedAmount::from_micro(1_000_000);
    there.admin.fund_agent(&moved.did, funds).await.unwrap();
    let key = there.key(Scope::Inference, Some(&moved.did), Limits::default()).await;
    let answer = there.with(&key).chat(&chat(3)).await.unwrap();
    let trade = there.admin.trade(&answer.x_tirami.unwrap().trade_id).await.unwrap();
    assert!(trade.verified, "{:?}", trade.problem);
    assert_eq!(trade.trade.consumer, agent.did);
}

#[tokio::test]
async fn an_import_gives_an_agent_its_lost_key_back() {
    let node = TestNode::start(quick()).await;
    let agent = node.agent("ann", "1").await;
    let bundle = node.admin.export_agent(&agent.did, "correct horse").await.unwrap();
    let hex = agent.did.rsplit(':').next().unwrap();
    let file = node.dir.path().join(format!("data/keys/agent-{hex}.key"));
    std::fs::remove_file(&file).unwrap();
    let passphrase = "correct horse".to_owned();
    let import = ImportAgent { passphrase, bundle, name: None };
    let back = node.admin.import_agent(&import).await.unwrap();
    assert_eq!((back.did, back.balance_trm.to_string()), (agent.did, "1".to_owned()));
    assert!(file.exists());
    assert_eq!(node.admin.import_agent(&import).await.unwrap_err().code(), Some("exists"));
}

#[tokio::test]
async fn the_state_hash_follows_every_change() {
    let node = TestNode::start(quick()).await;
    let ledgers = || async {
        let read = |kernel: &tirami_kernel::Kernel, _| kernel.ledger().state_hash().to_string();
        node.node.handle().read(read).await.unwrap()
    };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let network = node.admin.network().await.unwrap();
        assert!(network.conserved);
        assert_eq!(network.state_hash, ledgers().await);
        assert_eq!(node.admin.network().await.unwrap(), network, "nothing happened in between");
        assert!(seen.insert(network.state_hash));
        node.personal().chat(&chat(3)).await.unwrap();
    }
}

#[tokio::test]
async fn wrong_names_and_fields_are_refused_with_their_sentence() {
    let node = TestNode::start(quick()).await;
    for name in ["", &"x".repeat(65)] {
        let request = CreateAgent { name: name.to_owned(), ..CreateAgent::default() };
        assert_eq!(node.admin.create_agent(&request).await.unwrap_err().status(), Some(400));
    }
    let key = Some(node.admin_key.as_str());
    for (path, body) in [
        ("/v1/tirami/keys", r#"{"label":"x","scope":"king"}"#),
        ("/v1/tirami/keys", r#"{"label":"","scope":"read"}"#),
        ("/v1/tirami/keys", r#"{"label":"x","scope":"read","agent":"ann"}"#),
        ("/v1/tirami/policy", r#"{"target":"everybody","limits":{}}"#),
        ("/v1/tirami/policy", r#"{"target":"node","limits":{"hourly":5}}"#),
        ("/v1/tirami/kill", r#"{"activate":"yes"}"#),
        ("/v1/tirami/agents/nobody/fund", r#"{"amount_trm":1}"#),
    ] {
        let raw = node.post(path, key, body).await;
        assert_eq!(raw.status, 400, "{path} {body} {raw:?}");
        assert!(raw.json()["error"]["message"].as_str().unwrap().len() > 10);
    }
    let personal = node.personal();
    assert_eq!(personal.trades(None, Some(0), None).await.unwrap_err().status(), Some(400));
    assert_eq!(personal.trades(None, Some(1_001), None).await.unwrap_err().status(), Some(400));
    assert_eq!(personal.trade("xyz").await.unwrap_err().status(), Some(404));
    assert_eq!(node.admin.revoke_key("00000000").await.unwrap_err().status(), Some(404));
}

#[tokio::test]
async fn trades_come_in_pages_and_none_is_lost_or_shown_twice() {
    let node = TestNode::start(quick()).await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(node.personal().chat(&chat(1)).await.unwrap().x_tirami.unwrap().trade_id);
    }
    made.reverse();
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = node.personal().trades(None, Some(3), before).await.unwrap();
        assert_eq!(page.count as usize, page.trades.len());
        seen.extend(page.trades.into_iter().map(|trade| trade.trade_id));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen, made);
}

#[tokio::test]
async fn probes_answer_at_once_while_the_engine_is_busy() {
    let node = TestNode::start(script(5, Duration::from_secs(3_600))).await;
    let _stream = node.personal().chat_stream(&chat(5)).await.unwrap();
    let started = Instant::now();
    let client = node.personal();
    assert_eq!(client.health().await.unwrap().status, "ok");
    assert_eq!(client.healthz().await.unwrap(), "ok");
    assert!(client.ready().await.unwrap().ready);
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let node = TestNode::start(quick()).await;
    node.personal().chat(&chat(3)).await.unwrap();
    assert!(node.personal().model("other").await.is_err());
    let text = node.personal().metrics().await.unwrap();
    for line in [
        "tirami_http_requests_total{route=\"createChatCompletion\",status=\"2xx\"} 1",
        "tirami_http_requests_total{route=\"getModel\",status=\"4xx\"} 1",
        "tirami_http_refusals_total{code=\"model_not_found\"} 1",
        "tirami_completion_tokens_total 3",
        "tirami_first_token_seconds_count 1",
        "tirami_trades 1",
        "tirami_holds_open 0",
        "tirami_kill_switch 0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_document_and_its_page_are_served_from_the_node_alone() {
    let node = TestNode::start(quick()).await;
    let text = node.personal().openapi().await.unwrap();
    assert_eq!(text, tirami_sdk::openapi::document().to_json().unwrap());
    let get = |path: &str| {
        let call = node.http.get(format!("{}{path}", node.url));
        async move { crate::support::Raw::of(call.send().await.unwrap()).await }
    };
    let page = get("/docs").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    for part in page.text.split(['"', '\'']).filter(|part| part.starts_with("./")) {
        let file = get(&format!("/docs/{}", &part[2..])).await;
        assert_eq!(file.status, 200, "{part}");
    }
    assert!(!page.text.contains("//cdn"), "the page works without the internet");
    assert!(get("/docs/swagger-initializer.js").await.text.contains("/openapi.json"));
    assert_eq!(get("/docs/nothing.js").await.status, 404);
}
