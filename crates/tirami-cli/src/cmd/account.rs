//! The node's own account, which agents are funded from.

use tirami_sdk::types::Balance;

use crate::client::{Need, connect};
use crate::output::trm;
use crate::settings::Global;

/// Where TRM comes from, in one line.
pub(crate) const ORIGIN: &str = "TRM is work: the node's account takes in what its answers cost, \
                                 may go below zero by its line, and gives to agents with `tirami \
                                 agents fund`";

/// The node's own account; `None` for a caller who may not see it.
pub(crate) async fn of_node(global: &Global) -> Option<Balance> {
    connect(global, Need::Owner).await.ok()?.balance(Some("node")).await.ok()
}

/// What the node has and what it can still give.
pub(crate) fn summary(node: &Balance) -> String {
    let left = trm(node.effective_balance, node.effective_balance_answers);
    format!("{} TRM; can still give {left}", node.net_balance)
}
