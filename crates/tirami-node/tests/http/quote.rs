//! How long an answer may be: what the request names, or what limits and TRM leave room for.

use std::time::Duration;

use crate::support::{TestNode, chat, cost, micro, script, times};
use futures_util::StreamExt as _;
use tirami_sdk::Client;
use tirami_sdk::types::{Agent, ChatRequest, EstimateRequest, Limits, Scope};

/// A request as most clients send it.
fn ordinary() -> ChatRequest {
    ChatRequest::new("fake").user("hi")
}

fn quote() -> EstimateRequest {
    let messages = ordinary().messages;
    EstimateRequest { messages, ..EstimateRequest::default() }
}

async fn payer(node: &TestNode, fund: &str, limits: Limits) -> (Agent, Client) {
    let others = node.admin.agents().await.unwrap().agents.len();
    let agent = node.agent(&format!("payer {others}"), fund).await;
    let key = node.key(Scope::Inference, Some(&agent.did), limits).await;
    let client = node.with(&key);
    (agent, client)
}

#[tokio::test]
async fn a_small_budget_answers_an_ordinary_call_as_far_as_it_reaches() {
    let small = cost(20);
    for limits in [
        Limits { request_max_trm: Some(small), ..Limits::default() },
        Limits { minute_max_trm: Some(small), ..Limits::default() },
        Limits { hour_max_trm: Some(small), ..Limits::default() },
        Limits { day_max_trm: Some(small), ..Limits::default() },
        Limits { lifetime_max_trm: Some(small), ..Limits::default() },
        Limits { approval_above_trm: Some(small), ..Limits::default() },
    ] {
        let node = TestNode::start(script(3_000, Duration::ZERO)).await;
        let (_, client) = payer(&node, "100", limits).await;
        let quote = client.estimate(&quote()).await.unwrap();
        assert_eq!((quote.completion_max, quote.max_cost_trm), (20, small), "{limits:?}");
        assert!(quote.affordable);
        let answer = client.chat(&ordinary()).await.unwrap();
        assert_eq!(answer.choices[0].finish_reason, "length", "{limits:?}");
        assert_eq!(answer.usage.completion_tokens, 20);
        assert_eq!(answer.x_tirami.unwrap().trm_cost, small);
    }
}

#[tokio::test]
async fn an_agent_with_little_money_gets_what_it_can_pay_for_and_then_a_refusal() {
    let node = TestNode::start(script(3_000, Duration::ZERO)).await;
    let (agent, client) = payer(&node, &cost(7).to_string(), Limits::default()).await;
    let items: Vec<_> = client.chat_stream(&ordinary()).await.unwrap().collect().await;
    assert!(items.iter().all(Result::is_ok), "{items:?}");
    node.settled().await;
    let balance = node.admin.balance(Some(&agent.did)).await.unwrap();
    assert_eq!((balance.net_balance.micro(), balance.consumed), (0, cost(7)));
    let error = client.chat(&ordinary()).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(402), Some("insufficient_balance")));
    assert!(!error.to_string().contains("max_tokens"), "no length would help: {error}");
    assert!(!client.estimate(&quote()).await.unwrap().affordable);
}

#[tokio::test]
async fn a_quote_is_exactly_what_is_held() {
    let node = TestNode::start(script(3_000, Duration::from_secs(3_600))).await;
    let limits = Limits { day_max_trm: Some(cost(123)), ..Limits::default() };
    let (agent, client) = payer(&node, "100", limits).await;
    for (limit, most) in [(None, 123), (Some(cost(45)), 45)] {
        let approval_above_trm = limit;
        node.limit(&agent.did, Limits { approval_above_trm, ..Limits::default() }).await;
        let quote = client.estimate(&quote()).await.unwrap();
        let stream = client.chat_stream(&ordinary()).await.unwrap();
        let held = node.admin.balance(Some(&agent.did)).await.unwrap().reserved;
        assert_eq!((quote.max_cost_trm, quote.completion_max), (held, most));
        drop(stream);
        node.settled().await;
    }
}

#[tokio::test]
async fn a_refused_length_is_told_which_one_would_pass() {
    let small = cost(20);
    for (limits, code) in [
        (Limits { request_max_trm: Some(small), ..Limits::default() }, "request_limit"),
        (Limits { day_max_trm: Some(small), ..Limits::default() }, "budget_limit"),
        (Limits { minute_max_trm: Some(small), ..Limits::default() }, "velocity_limit"),
        (Limits { approval_above_trm: Some(small), ..Limits::default() }, "approval_required"),
    ] {
        let node = TestNode::start(script(20, Duration::ZERO)).await;
        let (_, client) = payer(&node, "100", limits).await;
        let error = client.chat(&chat(21)).await.unwrap_err();
        assert_eq!(error.code(), Some(code));
        assert!(error.to_string().contains("set max_tokens to at most 20"), "{error}");
        assert_eq!(error.refusal().unwrap().param.as_deref(), Some("max_tokens"));
        client.chat(&chat(20)).await.unwrap();
    }
    let node = TestNode::start(script(20, Duration::ZERO)).await;
    let (_, client) = payer(&node, &small.to_string(), Limits::default()).await;
    let error = client.chat(&chat(21)).await.unwrap_err();
    assert_eq!(error.code(), Some("insufficient_balance"));
    assert!(error.to_string().contains("set max_tokens to at most 20"), "{error}");
    // Where not even one token passes there is nothing to advise.
    let none = Limits { request_max_trm: Some(times(cost(0), 1)), ..Limits::default() };
    let (_, client) = payer(&node, "100", none).await;
    let error = client.chat(&chat(5)).await.unwrap_err();
    assert!(!error.to_string().contains("max_tokens"), "{error}");
    assert_eq!(client.chat(&ordinary()).await.unwrap_err().code(), Some("request_limit"));
}

#[tokio::test]
async fn many_ordinary_calls_at_once_do_not_overrun_a_budget() {
    let node = TestNode::start(script(10, Duration::from_millis(1))).await;
    let budget = times(cost(10), 5);
    let limits = Limits { lifetime_max_trm: Some(budget), ..Limits::default() };
    let (agent, client) = payer(&node, "100", limits).await;
    let calls = (0..40).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.chat(&ordinary()).await })
    });
    let mut spent = 0;
    for call in calls.collect::<Vec<_>>() {
        if let Ok(answer) = call.await.unwrap() {
            spent += micro(answer.x_tirami.unwrap().trm_cost);
        }
    }
    node.settled().await;
    assert!(spent > 0 && spent <= micro(budget), "{spent}");
    let consumed = node.admin.balance(Some(&agent.did)).await.unwrap().consumed;
    assert_eq!(micro(consumed), spent);
}

#[tokio::test]
async fn a_prompt_above_the_threshold_waits_and_the_word_is_for_what_it_asked() {
    let node = TestNode::start(script(30, Duration::ZERO)).await;
    let (agent, client) = payer(&node, "100", Limits::default()).await;
    let approval_above_trm = Some(cost(0));
    node.limit(&agent.did, Limits { approval_above_trm, ..Limits::default() }).await;
    let error = client.chat(&ordinary()).await.unwrap_err();
    assert_eq!(error.code(), Some("approval_required"));
    let id = error.refusal().unwrap().extra.as_ref().unwrap().approval_id;
    node.admin.decide_approval(id, true).await.unwrap();
    let answer = client.chat(&ordinary()).await.unwrap();
    assert_eq!(answer.usage.completion_tokens, 30);
}

#[tokio::test]
async fn a_quote_for_several_answers_is_what_all_of_them_hold() {
    let node = TestNode::start(script(3_000, Duration::from_secs(3_600))).await;
    let (agent, client) = payer(&node, "100", Limits::default()).await;
    let named = EstimateRequest { max_completion_tokens: Some(50), n: Some(3), ..quote() };
    let told = client.estimate(&named).await.unwrap();
    assert_eq!((told.n, told.completion_max), (3, 50));
    assert_eq!(told.max_cost_trm, times(cost(50), 3));
    let request = ChatRequest { n: Some(3), max_completion_tokens: Some(50), ..ordinary() };
    let stream = client.chat_stream(&request).await.unwrap();
    let held = node.admin.balance(Some(&agent.did)).await.unwrap().reserved;
    assert_eq!(told.max_cost_trm, held);
    drop(stream);
    node.settled().await;

    // What is enough for two is not enough for three, and without a length they share it.
    let day = Limits { day_max_trm: Some(times(cost(50), 2)), ..Limits::default() };
    node.limit(&agent.did, day).await;
    for (n, affordable) in [(2, true), (3, false)] {
        let request = EstimateRequest { n: Some(n), ..named.clone() };
        assert_eq!(client.estimate(&request).await.unwrap().affordable, affordable, "{n}");
    }
    let shared = EstimateRequest { n: Some(2), ..quote() };
    let shared = client.estimate(&shared).await.unwrap();
    assert!((45..=50).contains(&shared.completion_max) && shared.affordable, "{shared:?}");
    let many = EstimateRequest { n: Some(17), ..quote() };
    assert_eq!(client.estimate(&many).await.unwrap_err().status(), Some(400));
}
