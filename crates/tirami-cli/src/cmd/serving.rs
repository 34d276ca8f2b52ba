//! `tirami pause` and `tirami resume`: whether other nodes are served.

use tirami_sdk::types::Serving;

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::settings::Global;

/// Takes no more jobs of other nodes.
pub(crate) async fn pause(global: &Global, out: Output) -> Result<Exit, Failure> {
    let serving = connect(global, Need::Owner).await?.pause().await?;
    out.answer(&serving, |out| {
        out.line(
            "other nodes are not served; running jobs go on elsewhere; `tirami resume` lifts it",
        );
    });
    Ok(Exit::Done)
}

/// Takes jobs of other nodes again.
pub(crate) async fn resume(global: &Global, out: Output) -> Result<Exit, Failure> {
    let serving = connect(global, Need::Owner).await?.resume().await?;
    out.answer(&serving, |out| out.line(summary(&serving)));
    Ok(Exit::Done)
}

/// Whether other nodes are served, and why not.
pub(super) fn summary(serving: &Serving) -> String {
    if serving.serving {
        format!("other nodes are served: {} of {} jobs", serving.jobs_running, serving.jobs_max)
    } else {
        format!("other nodes are not served: {}", serving.reasons.join("; "))
    }
}
