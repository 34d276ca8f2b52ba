//! Every gate a request passes, at the HTTP edge: each test fails when its gate is unplugged.

use std::time::Duration;

use crate::support::{TestNode, chat, cost, micro, script, times};
use futures_util::StreamExt as _;
use tirami_infer::fake::FakeScript;
use tirami_sdk::types::{Agent, CreateAgent, KillRequest, Limits, Scope};
use tirami_sdk::{Amount, Client};

const TOKENS: u32 = 10;

fn quick() -> FakeScript {
    script(TOKENS, Duration::ZERO)
}

async fn payer(node: &TestNode, limits: Limits) -> (Agent, Client, String) {
    let agent = node.agent("payer", "100").await;
    let key = node.key(Scope::Inference, Some(&agent.did), limits).await;
    let client = node.with(&key);
    (agent, client, key.info.id)
}

fn limit(period: &str, max: Amount) -> Limits {
    let mut limits = Limits::default();
    let max = Some(max);
    match period {
        "request" => limits.request_max_trm = max,
        "minute" => limits.minute_max_trm = max,
        "hour" => limits.hour_max_trm = max,
        "day" => limits.day_max_trm = max,
        "lifetime" => limits.lifetime_max_trm = max,
        _ => unreachable!(),
    }
    limits
}

/// The status and the code of a refusal by this limit.
fn refusal(period: &str) -> (u16, &'static str) {
    match period {
        "request" => (403, "request_limit"),
        "minute" => (429, "velocity_limit"),
        "lifetime" => (403, "budget_limit"),
        _ => (429, "budget_limit"),
    }
}

#[tokio::test]
async fn each_budget_stops_at_each_level_and_not_a_micro_before() {
    for level in ["key", "agent", "node"] {
        for period in ["request", "minute", "hour", "day", "lifetime"] {
            let node = TestNode::start(quick()).await;
            let (agent, client, key) = payer(&node, Limits::default()).await;
            let target = match level {
                "key" => key,
                "agent" => agent.did.clone(),
                _ => "node".to_owned(),
            };
            let one = cost(TOKENS);
            let what = format!("{level} {period}");
            if period == "request" {
                node.limit(&target, limit(period, one)).await;
                client.chat(&chat(TOKENS)).await.expect(&what);
                node.limit(&target, limit(period, (micro(one) - 1).to_amount())).await;
            } else {
                node.limit(&target, limit(period, times(one, 2))).await;
                client.chat(&chat(TOKENS)).await.expect(&what);
                client.chat(&chat(TOKENS)).await.expect(&what);
            }
            let before = node.admin.balance(Some(&agent.did)).await.unwrap();
            let error = client.chat(&chat(TOKENS)).await.expect_err(&what);
            let (status, code) = refusal(period);
            assert_eq!((error.status(), error.code()), (Some(status), Some(code)), "{what}");
            if status == 429 {
                let wait = error.refusal().unwrap().retry_after_s.unwrap();
                let least = match period {
                    "hour" => 3_000,
                    "day" => 80_000,
                    _ => 1,
                };
                assert!(wait >= least, "{what}: {wait}");
                let raise = format!("--{period}-max TRM`");
                assert!(error.to_string().contains(&raise), "{what}: {error}");
            }
            assert_eq!(node.admin.balance(Some(&agent.did)).await.unwrap(), before, "{what}");
            node.limit(&target, Limits::default()).await;
            client.chat(&chat(TOKENS)).await.expect(&what);
        }
    }
}

trait ToAmount {
    fn to_amount(self) -> Amount;
}

impl ToAmount for u64 {
    fn to_amount(self) -> Amount {
        tirami_core::Trm::from_micro(self).into()
    }
}

#[tokio::test]
async fn an_agent_cannot_spend_what_it_has_not() {
    let node = TestNode::start(quick()).await;
    let agent = node.agent("poor", &cost(TOKENS).to_string()).await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await;
    node.with(&key).chat(&chat(TOKENS)).await.unwrap();
    let error = node.with(&key).chat(&chat(1)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(402), Some("insufficient_balance")));
    let balance = node.admin.balance(Some(&agent.did)).await.unwrap();
    assert_eq!(balance.net_balance.micro(), 0);
}

#[tokio::test]
async fn an_agent_that_gets_no_trm_or_no_limits_is_made_and_named() {
    let node = TestNode::start(quick()).await;
    let much: Amount = "9000000000000".parse().unwrap();
    let no_breaker = Limits { breaker_errors: Some(0), ..Limits::default() };
    for (name, fund_trm, limits, status, told) in [
        ("poor", Some(much), None, 402, "; the agent was made without TRM: "),
        ("free", None, Some(no_breaker), 400, "; the agent was made without limits and without"),
    ] {
        let request = CreateAgent { name: name.to_owned(), fund_trm, limits };
        let error = node.admin.create_agent(&request).await.unwrap_err();
        assert_eq!(error.status(), Some(status), "{error}");
        let agents = node.admin.agents().await.unwrap().agents;
        let made = agents.iter().find(|agent| agent.name == name).unwrap();
        let told = [told.to_owned(), format!("`tirami agents fund {} AMOUNT`", made.did)];
        let message = error.to_string();
        assert!(told.iter().all(|told| message.contains(told.as_str())), "{message}");
    }
}

#[tokio::test]
async fn a_key_without_an_agent_cannot_spend() {
    let node = TestNode::start(quick()).await;
    let key = node.key(Scope::Admin, None, Limits::default()).await;
    let error = node.with(&key).chat(&chat(1)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(403), Some("no_agent")));
}

#[tokio::test]
async fn the_kill_switch_stops_new_and_running_answers_and_can_be_lifted() {
    let node = TestNode::start(script(1_000, Duration::from_millis(5))).await;
    let client = node.personal();
    let mut stream = client.chat_stream(&chat(1_000)).await.unwrap();
    for _ in 0..5 {
        stream.next().await.unwrap().unwrap();
    }
    let on = KillRequest { activate: true, reason: Some("drill".into()) };
    node.admin.kill(&on).await.unwrap();
    let last = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the stream ended as if complete"),
        }
    };
    assert_eq!(last.code(), Some("job_cancelled"));
    let status = node.settled().await;
    assert!(status.kill_switch_active);
    let trade = &node.admin.trades(None, None, None).await.unwrap().trades[0];
    assert_eq!(trade.finish, "cancelled");
    assert!((4..1_000).contains(&trade.completion_tokens));

    let error = client.chat(&chat(1)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(403), Some("kill_switch")));
    assert!(error.to_string().contains("drill"));
    assert!(error.to_string().contains(&since(&node).await), "{error}");
    let error = node.admin.fund_agent(&status.personal_agent, one_trm()).await.unwrap_err();
    assert_eq!(error.code(), Some("kill_switch"));
    assert!(node.personal().balance(None).await.is_ok(), "looking is not spending");

    node.admin.kill(&KillRequest { activate: false, reason: None }).await.unwrap();
    client.chat(&chat(1)).await.unwrap();
}

/// When the kill switch was turned on, as people write it.
async fn since(node: &TestNode) -> String {
    let safety = node.admin.safety(None).await.unwrap();
    tirami_core::Timestamp::from_ms(safety.kill_switch_since_ms.unwrap()).to_string()
}

fn one_trm() -> tirami_sdk::SignedAmount {
    tirami_sdk::SignedAmount::from_micro(1_000_000)
}

#[tokio::test]
async fn failing_answers_open_the_breaker_and_a_person_closes_it() {
    let script = FakeScript { fail_after: Some(0), ..quick() };
    let node = TestNode::start(script).await;
    let (agent, client, _) = payer(&node, Limits::default()).await;
    let limits = Limits { breaker_errors: Some(3), ..Limits::default() };
    node.limit(&agent.did, limits).await;
    for _ in 0..3 {
        let error = client.chat(&chat(TOKENS)).await.unwrap_err();
        assert_eq!((error.status(), error.code()), (Some(500), Some("engine_failed")));
    }
    let error = client.chat(&chat(TOKENS)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(429), Some("breaker_open")));
    assert!(error.refusal().unwrap().retry_after_s.unwrap() > 1);
    assert!(error.to_string().contains("3 errors in a row"), "{error}");
    assert!(client.safety(None).await.unwrap().circuit_tripped);
    assert_eq!(node.personal().chat(&chat(1)).await.unwrap_err().code(), Some("engine_failed"));
    node.admin.reset_breaker(&agent.did).await.unwrap();
    let error = client.chat(&chat(TOKENS)).await.unwrap_err();
    assert_eq!(error.code(), Some("engine_failed"));
    let balance = node.admin.balance(Some(&agent.did)).await.unwrap();
    assert_eq!(balance.consumed, Amount::default(), "nothing delivered, nothing owed");
}

#[tokio::test]
async fn answers_that_break_off_are_paid_as_far_as_they_went_and_open_the_breaker() {
    let node = TestNode::start(FakeScript { fail_after: Some(4), ..quick() }).await;
    let (agent, client, _) = payer(&node, Limits::default()).await;
    let limits = Limits { breaker_errors: Some(3), ..Limits::default() };
    node.limit(&agent.did, limits).await;
    for _ in 0..3 {
        let items: Vec<_> = client.chat_stream(&chat(TOKENS)).await.unwrap().collect().await;
        let error = items.last().unwrap().as_ref().unwrap_err();
        assert_eq!(error.code(), Some("engine_failed"));
        assert!(error.to_string().contains("only what was delivered is charged"), "{error}");
        node.settled().await;
    }
    let balance = node.admin.balance(Some(&agent.did)).await.unwrap();
    assert_eq!((balance.consumed, balance.reserved), (times(cost(4), 3), Amount::default()));
    let trades = node.admin.trades(Some(&agent.did), None, None).await.unwrap().trades;
    assert!(trades.iter().all(|trade| trade.finish == "failed" && trade.completion_tokens == 4));
    assert!(node.admin.trade(&trades[0].trade_id).await.unwrap().verified);
    let error = client.chat_stream(&chat(TOKENS)).await.map(drop).unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(429), Some("breaker_open")));
    assert!(error.to_string().contains("Z;"), "the time is written out: {error}");
    assert!(node.admin.network().await.unwrap().conserved);
}

#[tokio::test]
async fn many_jobs_in_a_minute_open_the_breaker() {
    let node = TestNode::start(quick()).await;
    let (agent, client, _) = payer(&node, Limits::default()).await;
    let limits = Limits { breaker_spends_per_minute: Some(4), ..Limits::default() };
    node.limit(&agent.did, limits).await;
    let mut passed = 0;
    let error = loop {
        match client.chat(&chat(1)).await {
            Ok(_) => passed += 1,
            Err(error) => break error,
        }
        assert!(passed < 10);
    };
    assert_eq!((error.status(), error.code()), (Some(429), Some("breaker_open")));
    assert!((4..=5).contains(&passed), "{passed}");
    let message = error.to_string();
    for told in [
        "it started 4 jobs within a minute",
        "`tirami policy set 'payer' --breaker-spends-per-minute N`",
        "`tirami agents reset-breaker 'payer'`",
    ] {
        assert!(message.contains(told), "{told}: {message}");
    }
}

#[tokio::test]
async fn a_name_is_one_agents() {
    let node = TestNode::start(quick()).await;
    let first = node.agent("twin", "1").await;
    let again = CreateAgent { name: "twin".to_owned(), ..CreateAgent::default() };
    let error = node.admin.create_agent(&again).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(409), Some("exists")), "{error}");
    let agents = node.admin.agents().await.unwrap().agents;
    let twins: Vec<_> = agents.iter().filter(|agent| agent.name == "twin").collect();
    assert_eq!(twins.len(), 1);
    assert_eq!(twins[0].did, first.did);
}

#[tokio::test]
async fn an_expensive_request_waits_for_a_person_and_then_passes_once() {
    let node = TestNode::start(quick()).await;
    let (agent, client, _) = payer(&node, Limits::default()).await;
    let limits = Limits { approval_above_trm: Some(cost(5)), ..Limits::default() };
    node.limit(&agent.did, limits).await;
    client.chat(&chat(5)).await.unwrap();

    let error = client.chat(&chat(TOKENS)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(403), Some("approval_required")));
    let extra = error.refusal().unwrap().extra.clone().unwrap();
    assert_eq!(extra.max_amount_trm, cost(TOKENS));
    let waiting = node.admin.approvals().await.unwrap().approvals;
    assert_eq!((waiting.len(), waiting[0].id), (1, extra.approval_id));
    let again = client.chat(&chat(TOKENS)).await.unwrap_err();
    assert_eq!(again.refusal().unwrap().extra.as_ref().unwrap().approval_id, extra.approval_id);

    node.admin.decide_approval(extra.approval_id, true).await.unwrap();
    client.chat(&chat(TOKENS)).await.unwrap();
    let next = client.chat(&chat(TOKENS)).await.unwrap_err();
    let next = next.refusal().unwrap().extra.as_ref().unwrap().approval_id;
    assert_ne!(next, extra.approval_id, "an approval passes one request");

    node.admin.decide_approval(next, false).await.unwrap();
    let error = client.chat(&chat(TOKENS)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(403), Some("approval_denied")));
    assert!(error.to_string().contains("the node's owner"), "{error}");
    assert!(node.admin.approvals().await.unwrap().approvals.is_empty(), "nothing waits");
    let all = node.admin.all_approvals().await.unwrap().approvals;
    assert_eq!((all.len(), all[0].id, all[0].state.as_str()), (1, next, "denied"));
    let wrong = node.http.get(format!("{}/v1/tirami/approvals?state=old", node.url));
    let wrong =
        crate::support::Raw::of(wrong.bearer_auth(&node.admin_key).send().await.unwrap()).await;
    assert_eq!((wrong.status, wrong.json()["error"]["param"].as_str()), (400, Some("state")));
    let error = node.admin.decide_approval(999, true).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(404), Some("unknown_approval")));
}

#[tokio::test]
async fn a_revoked_key_ends_its_running_answer() {
    let node = TestNode::start(script(1_000, Duration::from_millis(5))).await;
    let (_, client, key) = payer(&node, Limits::default()).await;
    let mut stream = client.chat_stream(&chat(1_000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    node.admin.revoke_key(&key).await.unwrap();
    let mut last = None;
    while let Some(item) = stream.next().await {
        last = Some(item);
    }
    assert_eq!(last.unwrap().unwrap_err().code(), Some("job_cancelled"));
    node.settled().await;
}
