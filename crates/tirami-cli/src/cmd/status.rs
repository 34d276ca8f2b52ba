//! `tirami status`: the node at a glance.

use serde_json::json;

use tirami_sdk::types::Network;

use super::{account, serving};
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{self, Output, count, duration, trm};
use crate::settings::Global;

/// Runs the command.
pub(crate) async fn run(global: &Global, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Personal).await?;
    let status = client.status().await?;
    let answer_trm = client.pricing().await?.estimated_cost_1000_tokens.trm();
    let balance = client.balance(None).await?;
    let safety = client.safety(None).await?;
    let node = account::of_node(global).await;
    let (network, serving) = (client.network().await?, client.serving().await?);
    let answer = json!({"status": status, "balance": balance, "safety": safety, "node": node,
                       "network": network, "serving": serving});
    out.answer(&answer, |out| {
        let state = match &safety.kill_switch_reason {
            Some(reason) if safety.kill_switch_active => {
                format!("{}: all spending is frozen ({reason})", status.status)
            }
            _ => status.status.clone(),
        };
        let breaker = match safety.circuit_open_until_ms {
            Some(until_ms) => format!("open until {} UTC", output::moment(until_ms)),
            None => "closed".to_owned(),
        };
        let loaded = status.models.iter().filter(|model| model.state == "loaded").count();
        let more = match status.models.len() {
            0 | 1 => String::new(),
            all => format!(", {loaded} of {all} models in memory"),
        };
        let model = match status.model.as_str() {
            "" => "none; other nodes answer".to_owned(),
            name => format!("{name} ({}){more}", output::short(&status.model_digest)),
        };
        let mut rows = vec![
            ("API", client.base_url().to_owned()),
            ("state", state),
            ("version", status.version.clone()),
            ("up", duration(status.uptime_ms)),
            ("model", model),
            (
                "load",
                format!("{} running, {} waiting", status.engine.running, status.engine.queued),
            ),
            ("written", count(status.engine.completion_tokens_total, "token")),
            ("agent", balance.agent.clone().unwrap_or_else(|| "none; the node's own".to_owned())),
            ("available", trm(balance.effective_balance, balance.effective_balance_answers)),
            ("reserved", format!("{} TRM", balance.reserved)),
            ("spent", format!("{} TRM", balance.consumed)),
        ];
        if let Some(policy) = &safety.policy {
            rows.push(("request limit", output::limit(policy.request_max, answer_trm)));
            rows.push(("day limit", output::limit(policy.day_max, answer_trm)));
        }
        rows.push(("breaker", breaker));
        if let Some(node) = &node {
            rows.push(("node", account::summary(node)));
            rows.push(("agents paid", format!("{} TRM", node.contributed)));
        }
        rows.push(("trades", status.total_trades.to_string()));
        rows.push(("running jobs", status.open_holds.to_string()));
        rows.push(("waiting approvals", status.approvals_waiting.to_string()));
        rows.push(("mesh", mesh(&network)));
        rows.push(("serving", serving::summary(&serving)));
        out.pairs(&rows);
        out.note(out.dim(account::ORIGIN));
    });
    Ok(Exit::Done)
}

fn mesh(network: &Network) -> String {
    let others = network.total_nodes.saturating_sub(1);
    if others == 0 && network.peers == 0 {
        return "of one; `tirami mesh invite` lets others in".to_owned();
    }
    let members = count(others, "other member");
    let behind = match network.entries_behind {
        0 => "up to date".to_owned(),
        behind => format!("{behind} entries behind"),
    };
    format!("{members}, {} connected, {} serving, {behind}", network.peers, network.providers)
}
