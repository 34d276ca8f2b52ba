//! `tirami-sim`: runs seeds until an invariant breaks or all have passed.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use tirami_ledger::lattice::Keep;
use tirami_sim::{
    Config, Counts, Failure, NodesConfig, NodesCounts, NodesReport, Report, run, run_nodes,
};

const USAGE: &str = "tirami-sim [--seed N] [--seeds K] [--events N] [--parties P] \
[--witnesses 1|3|4|7] [--liars K] [--jobs J] [--json]
tirami-sim --nodes N [--seed N] [--seeds K] [--seconds S] [--pause MS] [--witnesses 1|3|4|7] \
[--dishonest K] [--calm] [--keep-own] [--least-events N] [--jobs J] [--json]";

/// Seeds of whole nodes when nobody says how many.
const NODES_SEEDS: u64 = 1;

/// What the command line asks for.
struct Options {
    first: u64,
    seeds: u64,
    /// Seeds that run at the same time.
    jobs: usize,
    config: Config,
    json: bool,
    /// Whole nodes instead of ledgers.
    nodes: Option<NodesConfig>,
    /// Inputs that each run of whole nodes has to handle, with every fault among them.
    least_events: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        let config = Config { events: 25_000, ..Config::default() };
        let jobs = thread::available_parallelism().map_or(1, NonZero::get);
        Self { first: 1, seeds: 40, jobs, config, json: false, nodes: None, least_events: None }
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
    let run_seed = |seed| run(&Config { seed, ..options.config });
    in_order(options, run_seed, |report, wall_ms| {
        total.add(&report.counts);
        say(&match options.json {
            true => json(report, wall_ms),
            false => format!("{report}, {wall_ms} ms"),
        });
    })?;
    if !options.json {
        say(&summary(&total, began.elapsed().as_millis()));
    }
    Ok(())
}

fn run_all_nodes(options: &Options, config: &NodesConfig) -> Result<(), Failure> {
    let began = Instant::now();
    let mut total = NodesCounts::default();
    let run_seed = |seed| {
        let report = run_nodes(&NodesConfig { seed, ..*config })?;
        match options.least_events.and_then(|events| report.shortfall(events)) {
            Some(what) => Err(Failure { seed, event: report.counts.events, what }),
            None => Ok(report),
        }
    };
    in_order(options, run_seed, |report, wall_ms| {
        let rate = u128::from(report.counts.events) * 1_000 / wall_ms;
        say(&match options.json {
            true => nodes_json(report, wall_ms),
            false => format!("{report}, {wall_ms} ms, {rate} events/s"),
        });
        total.add(&report.counts);
    })?;
    if !options.json {
        say(&nodes_summary(&total, began.elapsed().as_millis()));
    }
    Ok(())
}

/// Runs the seeds, several at a time, and tells of each in the order of the seeds; stops telling
/// at the first that fails.
fn in_order<R: Send>(
    options: &Options,
    run: impl Fn(u64) -> Result<R, Failure> + Sync,
    mut tell: impl FnMut(&R, u128),
) -> Result<(), Failure> {
    let end = options.first.saturating_add(options.seeds);
    let next = AtomicU64::new(options.first);
    let (done, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            let (done, next, run) = (done.clone(), &next, &run);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let start = Instant::now();
                    // A panic has been printed by now; here it is a seed that failed.
                    let failed = |_| Err(Failure { seed, event: 0, what: "it panicked".into() });
                    let result =
                        panic::catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(failed);
                    if result.is_err() {
                        // The seeds before it still run to their end: one of them may fail first.
                        next.store(end, Ordering::Relaxed);
                    }
                    if done.send((seed, result, start.elapsed().as_millis().max(1))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(done);
        let mut waiting = BTreeMap::new();
        let mut turn = options.first;
        for (seed, result, wall_ms) in results {
            waiting.insert(seed, (result, wall_ms));
            while let Some((result, wall_ms)) = waiting.remove(&turn) {
                tell(&result?, wall_ms);
                turn += 1;
            }
        }
        Ok(())
    })
}

fn nodes_json(report: &NodesReport, wall_ms: u128) -> String {
    let counts = &report.counts;
    format!(
        r#"{{"seed":{},"nodes":{},"keep":"{}","liars":{},"witnesses":{},"dishonest":{},"events":{},"jobs":{},"completed":{},"failed":{},"excused":{},"paid":{},"converged_ms":{},"messages_per_node_second":{},"bytes_per_node_second":{},"gossip_bytes_per_node_second":{},"sync_bytes_per_node_second":{},"bytes_per_node_job":{},"state":"{}","wall_ms":{wall_ms}}}"#,
        report.seed,
        report.nodes,
        if report.keep == Keep::Own { "own" } else { "all" },
        report.liars,
        report.witnesses,
        report.dishonest,
        counts.events,
        counts.jobs,
        counts.completed,
        counts.failed,
        counts.excused,
        counts.paid,
        counts.converged_ms,
        report.messages_per_node_and_second(),
        report.bytes_per_node_and_second(),
        report.gossip_bytes_per_node_and_second(),
        report.sync_bytes_per_node_and_second(),
        report.bytes_per_node_and_job(),
        report.state,
    )
}

fn nodes_summary(total: &NodesCounts, wall_ms: u128) -> String {
    let mut lines = vec![format!(
        "{} events without a broken invariant, {} crashes ({} torn), {} snapshots, {} splits, \
         {} messages lost, {} jobs ({} of 10 000 answered, {} excused), {} failovers, {} paid, \
         at most {} ms to converge, {} audits, {wall_ms} ms",
        total.events,
        total.crashes,
        total.torn,
        total.snapshots,
        total.splits,
        total.lost,
        total.jobs,
        total.completion(),
        total.excused,
        total.failovers,
        total.paid,
        total.converged_ms,
        total.audits,
    )];
    for ((group, name), (messages, bytes)) in &total.sent {
        lines.push(format!("  {group:<9} {name:<24} {messages:>9} messages {bytes:>12} bytes"));
    }
    for (name, times) in &total.kinds {
        lines.push(format!("  final: {name:<24} {times:>8}"));
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
    let mut witnesses = None;
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
            "--jobs" => options.jobs = size,
            "--witnesses" => witnesses = Some(size),
            "--dishonest" => options.nodes.get_or_insert_default().dishonest = Some(size),
            "--nodes" => {
                options.nodes.get_or_insert_default().nodes = size;
                options.seeds = options.seeds.min(NODES_SEEDS);
            }
            "--seconds" => options.nodes.get_or_insert_default().seconds = number,
            "--least-events" => options.least_events = Some(number),
            "--pause" => options.nodes.get_or_insert_default().pause_ms = number,
            "--liars" => options.config.liars = Some(size),
            _ => return Err(format!("{name} is not known")),
        }
    }
    match &mut options.nodes {
        Some(nodes) => nodes.witnesses = witnesses,
        None if options.least_events.is_some() => {
            return Err("--least-events is for whole nodes, with --nodes".to_owned());
        }
        None => options.config.witnesses = witnesses,
    }
    Ok(options)
}

#[expect(clippy::print_stdout, reason = "what the simulator finds goes to standard output")]
fn say(text: &str) {
    println!("{text}");
}
