//! A thousand requests at once on one budget: it is overspent by exactly nothing.

use std::time::Duration;

use crate::support::{TestNode, chat, cost, micro, script, times};
use tirami_infer::fake::FakeEngine;
use tirami_sdk::types::{Limits, Scope};

const REQUESTS: u64 = 1_000;
const AFFORDABLE: u64 = 137;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_at_once_overspend_a_budget_by_exactly_nothing() {
    let engine = FakeEngine::new(script(4, Duration::from_millis(1)));
    // One address has a quarter of them.
    let node = TestNode::within(engine, |http| http.connections_max = 8_192).await;
    let agent = node.agent("swarm", "1000").await;
    let budget = times(cost(4), AFFORDABLE);
    let limits = Limits { lifetime_max_trm: Some(budget), ..Limits::default() };
    node.limit(&agent.did, limits).await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await;
    let client = node.with(&key);
    let tasks: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                loop {
                    match client.chat(&chat(4)).await {
                        Ok(_) => return true,
                        Err(error) if error.code() == Some("busy") => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        Err(error) => {
                            assert_eq!(error.code(), Some("budget_limit"), "{error}");
                            return false;
                        }
                    }
                }
            })
        })
        .collect();
    let mut passed = 0;
    for task in tasks {
        passed += u64::from(task.await.unwrap());
    }
    node.settled().await;
    // Every answer costs its maximum here, so exactly so many fit.
    assert_eq!(passed, AFFORDABLE);
    let balance = node.admin.balance(Some(&agent.did)).await.unwrap();
    assert_eq!(micro(balance.consumed), micro(budget), "overspent by exactly 0");
    assert_eq!(balance.reserved.trm().micro(), 0);
    let network = node.admin.network().await.unwrap();
    assert!(network.conserved);
    assert_eq!(network.total_trades, AFFORDABLE);
}
