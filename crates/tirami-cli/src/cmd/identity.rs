//! `tirami identity`: who the node and its personal agent are.

use serde_json::json;

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::settings::Global;

/// Runs the command.
pub(crate) async fn run(global: &Global, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Personal).await?;
    let status = client.status().await?;
    let answer = json!({
        "node_id": status.node_id,
        "mesh_id": status.mesh_id,
        "personal_agent": status.personal_agent,
        "scope": status.scope,
    });
    out.answer(&answer, |out| {
        out.pairs(&[
            ("node", status.node_id.clone()),
            ("mesh", status.mesh_id.clone()),
            ("personal agent", status.personal_agent.clone()),
            ("you may", status.scope.to_string()),
        ]);
    });
    Ok(Exit::Done)
}
