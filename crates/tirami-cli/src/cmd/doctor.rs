//! `tirami doctor`: examines everything on this machine and says how to repair it.

use clap::Args;
use serde_json::json;
use tirami_node::store::doctor::{Report, doctor};

use crate::exit::{Exit, Failure};
use crate::model;
use crate::output::Output;
use crate::settings::{AllSettings, Global};

/// Which node's files to examine.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    settings: AllSettings,
}

/// Runs the command. Nothing is changed on the disk; a running node is not disturbed.
pub(crate) async fn run(global: &Global, args: DoctorArgs, out: Output) -> Result<Exit, Failure> {
    let resolved = global.resolve(&args.settings.0)?;
    let data_dir = resolved.config.data_dir.clone();
    let examined = data_dir.clone();
    let report = tokio::task::spawn_blocking(move || doctor(&examined))
        .await
        .map_err(|error| Failure::new(Exit::Unexpected, format_args!("{error}")))?;
    let model = model::examine(&resolved.config);

    let checks = || report.checks.iter().map(|check| (check.name, check.ok, check.detail.clone()));
    let last = match &model {
        Ok(detail) => ("model", true, detail.clone()),
        Err(failure) => ("model", false, failure.message.clone()),
    };
    let all: Vec<(&str, bool, String)> = checks().chain([last]).collect();
    let answer = json!({
        "data_dir": data_dir,
        "healthy": all.iter().all(|(_, ok, _)| *ok),
        "checks": all.iter().map(|(name, ok, detail)| {
            json!({"name": name, "ok": ok, "detail": detail})
        }).collect::<Vec<_>>(),
        "advice": report.advice,
    });
    out.answer(&answer, |out| {
        out.line(format_args!("examining {}", data_dir.display()));
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|(name, ok, detail)| {
                let verdict = if *ok { "ok" } else { "WRONG" };
                vec![verdict.to_owned(), (*name).to_owned(), detail.clone()]
            })
            .collect();
        out.table(&["", "what", "found"], &[], &rows);
        for advice in &report.advice {
            out.line(format_args!("→ {advice}"));
        }
    });
    verdict(&report, model.map(drop))
}

fn verdict(report: &Report, model: Result<(), Failure>) -> Result<Exit, Failure> {
    let wrong: Vec<&str> =
        report.checks.iter().filter(|check| !check.ok).map(|check| check.name).collect();
    if wrong.is_empty() {
        return model.map(|()| Exit::Done);
    }
    Err(Failure::new(
        Exit::Store,
        format_args!("not as it should be: {}; do what is said above", wrong.join(", ")),
    ))
}
