//! `tirami-sim`: runs seeds until an invariant breaks or all have passed.

use std::process::ExitCode;
use std::time::Instant;

use tirami_ledger::lattice::Keep;
use tirami_sim::{Config, Counts, Failure, NodesConfig, NodesCounts, Report, run, run_nodes};

const USAGE: &str = "tirami-sim [--seed N] [--seeds K] [--events N] [--parties P] \
[--witnesses 1|3|4|7] [--liars K] [--json]
tirami-sim --nodes N [--seed N] [--seeds K] [--seconds S] [--pause MS] [--calm] [--keep-own]";

/// Seeds of whole nodes when nobody says how many.
const NODES_SEEDS: u64 = 1;

/// What the command line asks for.
struct Options {
    first: u64,
    seeds: u64,
    config: Config,
    json: bool,
    /// Whole nodes instead of ledgers.
    nodes: Option<NodesConfig>,
}

impl Default for Options {
    fn default() -> Self {
        let config = Config { events: 25_000, ..Config::default() };
        Self { first: 1, seeds: 40, config, json: false, nodes: None }
    }
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => {
            say(&format!("{what}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let outcome = match &options.nodes {
        Some(config) => run_all_nodes(&options, config),
        None => run_all(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if options.json => {
            let what = failure.what.replace(['"', '\\'], "'");
            let (seed, event) = (failure.seed, failure.event);
            say(&format!(r#"{{"seed":{seed},"event":{event},"failure":"{what}"}}"#));
            ExitCode::FAILURE
        }
        Err(failure) => {
            say(&format!("FAILED {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn run_all(options: &Options) -> Result<(), Failure> {
    let began = Instant::now();
    let mut total = Counts::default();
    for seed in options.first..options.first.saturating_add(options.seeds) {
        if !options.json {
            say(&format!("seed {seed}"));
        }
        let start = Instant::now();
        let report = run(&Config { seed, ..options.config })?;
        let wall_ms = start.elapsed().as_millis();
        total.add(&report.counts);
        say(&match options.json {
            true => json(&report, wall_ms),
            false => format!("{report}, {wall_ms} ms"),
        });
    }
    if !options.json {
        say(&summary(&total, began.elapsed().as_millis()));
    }
    Ok(())
}

fn run_all_nodes(options: &Options, config: &NodesConfig) -> Result<(), Failure> {
    let began = Instant::now();
    let mut total = NodesCounts::default();
    for seed in options.first..options.first.saturating_add(options.seeds) {
        say(&format!("seed {seed}"));
        let start = Instant::now();
        let report = run_nodes(&NodesConfig { seed, ..*config })?;
        let wall_ms = start.elapsed().as_millis().max(1);
        let rate = u128::from(report.counts.events) * 1_000 / wall_ms;
        say(&format!("{report}, {wall_ms} ms, {rate} events/s"));
        total.add(&report.counts);
    }
    say(&nodes_summary(&total, began.elapsed().as_millis()));
    Ok(())
}

fn nodes_summary(total: &NodesCounts, wall_ms: u128) -> String {
    let mut lines = vec![format!(
        "{} events without a broken invariant, {} crashes, {} splits, {} messages lost, {} jobs \
         ({} of 10 000 answered), {} failovers, {} paid, at most {} ms to converge, {} audits, \
         {wall_ms} ms",
        total.events,
        total.crashes,
        total.splits,
        total.lost,
        total.jobs,
        total.completion(),
        total.failovers,
        total.paid,
        total.converged_ms,
        total.audits,
    )];
    for (name, (messages, bytes)) in &total.sent {
        lines.push(format!("  {name:<24} {messages:>9} messages {bytes:>12} bytes"));
    }
    for (name, times) in &total.lies {
        lines.push(format!("  lie: {name:<24} {times:>8}"));
    }
    for (code, times) in &total.refusals {
        lines.push(format!("  refused: {code:<24} {times:>8}"));
    }
    lines.join("\n")
}

fn summary(total: &Counts, wall_ms: u128) -> String {
    let mut lines = vec![format!(
        "{} events without a broken invariant, {} crashes ({} torn, {} from a snapshot), \
         {} messages lost, {} rivals, {} forgeries, {} jobs, {} audits, {} ms",
        total.events,
        total.crashes,
        total.torn,
        total.from_snapshot,
        total.lost,
        total.rivals,
        total.forged,
        total.jobs,
        total.audits,
        wall_ms,
    )];
    for (name, (accepted, refused)) in &total.commands {
        lines.push(format!("  {name:<24} {accepted:>9} accepted {refused:>8} refused"));
    }
    for (code, times) in &total.refusals {
        lines.push(format!("  refused: {code:<24} {times:>8}"));
    }
    lines.join("\n")
}

fn json(report: &Report, wall_ms: u128) -> String {
    let counts = &report.counts;
    format!(
        r#"{{"seed":{},"parties":{},"witnesses":{},"quorum":{},"liars":{},"within":{},"virtual_ms":{},"events":{},"crashes":{},"torn":{},"finals":{},"checkpoints":{},"rivals":{},"contradictions":{},"loss_micro":"{}","jobs":{},"audits":{},"state":"{}","wall_ms":{wall_ms}}}"#,
        report.seed,
        report.parties,
        report.witnesses,
        report.quorum,
        report.liars,
        report.within,
        report.virtual_ms,
        counts.events,
        counts.crashes,
        counts.torn,
        report.finals,
        report.checkpoints,
        counts.rivals,
        report.contradictions,
        report.loss,
        counts.jobs,
        counts.audits,
        report.state,
    )
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(name) = args.next() {
        if name == "--json" {
            options.json = true;
            continue;
        }
        if name == "--calm" {
            options.nodes.get_or_insert_default().calm = true;
            continue;
        }
        if name == "--keep-own" {
            options.nodes.get_or_insert_default().keep = Keep::Own;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a number"))?;
        let number: u64 = value.parse().map_err(|_| format!("{value} is not a number"))?;
        let size = usize::try_from(number).map_err(|_| format!("{value} is too large"))?;
        match name.as_str() {
            "--seed" => (options.first, options.seeds) = (number, 1),
            "--seeds" => options.seeds = number,
            "--events" => options.config.events = number,
            "--parties" => options.config.parties = Some(size),
            "--witnesses" => options.config.witnesses = Some(size),
            "--nodes" => {
                options.nodes.get_or_insert_default().nodes = size;
                options.seeds = options.seeds.min(NODES_SEEDS);
            }
            "--seconds" => options.nodes.get_or_insert_default().seconds = number,
            "--pause" => options.nodes.get_or_insert_default().pause_ms = number,
            "--liars" => options.config.liars = Some(size),
            _ => return Err(format!("{name} is not known")),
        }
    }
    Ok(options)
}

#[expect(clippy::print_stdout, reason = "what the simulator finds goes to standard output")]
fn say(text: &str) {
    println!("{text}");
}
