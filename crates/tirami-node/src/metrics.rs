//! What the node measures, for Prometheus: one table of metrics with bounded labels.

use core::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tirami_core::{TRM_MICRO, Trm};

use crate::driver::DriverStats;
use crate::models::Models;
use crate::owner::Refusals;
use crate::store::StoreStats;

/// How long an answer takes before there was one, and how long one counts at most.
const ANSWER_MS_NEUTRAL: u64 = 4_000;
const ANSWER_MS_MAX: u64 = 600_000;

/// The label of requests by route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// The operation's id, a row of the table of routes.
    route: &'static str,
    /// `2xx`, `4xx` and so on.
    status: &'static str,
}

/// The label of refusals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    /// The refusal's stable code: text of the program, never of a caller.
    pub(crate) code: &'static str,
}

/// The label of models: one for each that the node knows, of which there are few.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    /// The name its owner gave it.
    model: String,
}

/// A kind of metric.
trait Kind {
    /// Its type in OpenMetrics.
    const TYPE: &'static str;
    fn make() -> Self;
}

impl Kind for Counter {
    const TYPE: &'static str = "counter";
    fn make() -> Self {
        Self::default()
    }
}

impl Kind for Gauge {
    const TYPE: &'static str = "gauge";
    fn make() -> Self {
        Self::default()
    }
}

impl Kind for Gauge<f64, AtomicU64> {
    const TYPE: &'static str = "gauge";
    fn make() -> Self {
        Self::default()
    }
}

/// Times from 50 µs to 27 minutes, and rates from the same numbers: each bucket is twice the one
/// before.
impl Kind for Histogram {
    const TYPE: &'static str = "histogram";
    fn make() -> Self {
        Self::new(exponential_buckets(0.000_05, 2.0, 26))
    }
}

impl Kind for Family<RouteLabels, Counter> {
    const TYPE: &'static str = "counter";
    fn make() -> Self {
        Self::default()
    }
}

impl Kind for Family<RefusalLabels, Counter> {
    const TYPE: &'static str = "counter";
    fn make() -> Self {
        Self::default()
    }
}

impl Kind for Family<ModelLabels, Gauge> {
    const TYPE: &'static str = "gauge";
    fn make() -> Self {
        Self::default()
    }
}

/// A row of the table, for the reference page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricRow {
    /// The name as Prometheus shows it.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static str,
    /// What it counts.
    pub help: &'static str,
}

/// What other parts of the node keep themselves, and what it is made of.
pub(crate) struct Parts<'a> {
    /// Engine, version and back-end.
    pub(crate) build: &'a str,
    pub(crate) store: &'a StoreStats,
    pub(crate) driver: &'a DriverStats,
    pub(crate) refusals: &'a Refusals,
}

/// What every node is shown as: its version and engine.
const BUILD: MetricRow = MetricRow {
    name: "tirami_build_info",
    kind: "info",
    labels: "version, engine",
    help: "The node's version and engine",
};

/// What is made here has a field; behind it stands what other parts keep.
macro_rules! metrics {
    (
        $($field:ident: $kind:ty, $name:literal, $unit:expr,
            $shown:literal, $labels:literal, $help:literal;)+
        |$parts:ident|
        $($kept:expr => $its:ty, $its_name:literal, $its_unit:expr,
            $its_shown:literal, $its_labels:literal, $its_help:literal;)+
    ) => {
        /// The node's metrics. Writing to one takes nanoseconds and no lock another waits for.
        pub struct Metrics {
            registry: Registry,
            /// How long answers took lately, in milliseconds.
            answer_ms: AtomicU64,
            $($field: $kind,)+
        }

        /// All metrics, in the order in which they are shown.
        pub const METRICS: &[MetricRow] = &[
            BUILD,
            $(row::<$kind>($shown, $labels, $help),)+
            $(row::<$its>($its_shown, $its_labels, $its_help),)+
        ];

        impl Metrics {
            /// Metrics that count from zero, and those of other parts.
            pub(crate) fn new($parts: &Parts<'_>) -> Self {
                let mut registry = Registry::with_prefix("tirami");
                let info = vec![
                    ("version", env!("CARGO_PKG_VERSION").to_owned()),
                    ("engine", $parts.build.to_owned()),
                ];
                registry.register("build", BUILD.help, Info::new(info));
                $(
                    let $field = <$kind as Kind>::make();
                    register(&mut registry, $name, $help, $unit, $field.clone());
                )+
                $(register(&mut registry, $its_name, $its_help, $its_unit, $kept);)+
                let answer_ms = AtomicU64::new(ANSWER_MS_NEUTRAL);
                Self { registry, answer_ms, $($field,)+ }
            }
        }
    };
}

const fn row<K: Kind>(name: &'static str, labels: &'static str, help: &'static str) -> MetricRow {
    MetricRow { name, kind: K::TYPE, labels, help }
}

metrics! {
    requests: Family<RouteLabels, Counter>, "http_requests", None,
        "tirami_http_requests_total", "route, status", "Requests answered";
    refusals: Family<RefusalLabels, Counter>, "http_refusals", None,
        "tirami_http_refusals_total", "code", "Requests refused, by the refusal's code";
    request_seconds: Histogram, "http_request", Some(Unit::Seconds),
        "tirami_http_request_seconds", "",
        "From the request's head to the answer's head";
    first_token_seconds: Histogram, "first_token", Some(Unit::Seconds),
        "tirami_first_token_seconds", "", "From an admitted chat request to its first token";
    answer_seconds: Histogram, "answer", Some(Unit::Seconds),
        "tirami_answer_seconds", "", "From an admitted chat request to the end of its answer";
    answer_rate: Histogram, "answer_rate", Some(Unit::Other("tokens_per_second".to_owned())),
        "tirami_answer_rate_tokens_per_second", "", "Completion tokens per second of an answer";
    completion_tokens: Counter, "completion_tokens", None,
        "tirami_completion_tokens_total", "", "Completion tokens of ended answers";
    engine_running: Gauge, "engine_running", None,
        "tirami_engine_running", "", "Answers the engines work on";
    engine_queued: Gauge, "engine_queued", None,
        "tirami_engine_queued", "", "Requests that wait for a place in an engine";
    engine_completion_tokens: Gauge, "engine_completion_tokens", None,
        "tirami_engine_completion_tokens", "",
        "Completion tokens the engines produced since the node started";
    engine_prompt_tokens: Gauge, "engine_prompt_tokens", None,
        "tirami_engine_prompt_tokens", "",
        "Prompt tokens the engines processed since the node started";
    guessed_tokens: Counter, "guessed_tokens", None,
        "tirami_guessed_tokens_total", "",
        "Completion tokens that were guessed right, since the node started";
    model_loaded: Family<ModelLabels, Gauge>, "model_loaded", None,
        "tirami_model_loaded", "model", "1 while the model is in memory";
    model_memory: Family<ModelLabels, Gauge>, "model_memory", Some(Unit::Bytes),
        "tirami_model_memory_bytes", "model",
        "Memory the model takes now, counted from its file and shape";
    model_running: Family<ModelLabels, Gauge>, "model_running", None,
        "tirami_model_running", "model", "Answers the model's engine works on";
    model_queued: Family<ModelLabels, Gauge>, "model_queued", None,
        "tirami_model_queued", "model", "Requests that wait for a place in the model's engine";
    kernel_queued: Gauge, "kernel_queued", None,
        "tirami_kernel_queued", "", "Commands and reads that wait for the kernel";
    trades: Gauge, "trades", None, "tirami_trades", "", "Trades in the book";
    holds: Gauge, "holds_open", None, "tirami_holds_open", "", "Jobs for which TRM is set aside";
    approvals: Gauge, "approvals_waiting", None,
        "tirami_approvals_waiting", "", "Requests that wait for a person";
    killed: Gauge, "kill_switch", None,
        "tirami_kill_switch", "", "1 while all spending is frozen";
    peers: Gauge, "peers", None, "tirami_peers", "", "Other nodes this one is connected to";
    farewells: Gauge, "farewells", None,
        "tirami_farewells", "", "Connections that one side ended with a reason, since the start";
    peer_faults: Gauge, "peer_faults", None,
        "tirami_peer_faults", "", "Faults of other nodes that were counted, since the start";
    providers: Gauge, "providers", None,
        "tirami_providers", "", "Nodes that serve models now, this one included";
    entries_behind: Gauge, "entries_behind", None,
        "tirami_entries_behind", "",
        "Final entries that some peer is known to hold and this node lacks, at least";
    convergence_lag: Gauge<f64, AtomicU64>, "convergence_lag", Some(Unit::Seconds),
        "tirami_convergence_lag_seconds", "",
        "For how long this node has known of the oldest final entry of a peer that it still lacks";
    entries_pending: Gauge, "entries_pending", None,
        "tirami_entries_pending", "", "Entries of this node that are not final";
    served_running: Gauge, "served_running", None,
        "tirami_served_running", "", "Jobs of other nodes that run here";
    served_jobs: Gauge, "served_jobs", None,
        "tirami_served_jobs", "", "Jobs of other nodes that were served ever";
    debts: Gauge, "debts_micro_trm", None,
        "tirami_debts_micro_trm", "", "Owed to other nodes and not paid by a signed entry, in µTRM";
    owed: Gauge, "owed_micro_trm", None,
        "tirami_owed_micro_trm", "",
        "Owed by other nodes, running jobs at their maximum, in µTRM";
    balance_trm: Gauge<f64, AtomicU64>, "agents_balance", Some(Unit::Other("trm".to_owned())),
        "tirami_agents_balance_trm", "", "What all agents own";
    spent_trm: Gauge<f64, AtomicU64>, "spent", Some(Unit::Other("trm".to_owned())),
        "tirami_spent_trm", "", "Charged to agents ever";
    spent_day_trm: Gauge<f64, AtomicU64>, "spent_day", Some(Unit::Other("trm".to_owned())),
        "tirami_spent_day_trm", "", "Charged or set aside within the last day";
    |parts|
    parts.refusals.by_code() => Family<RefusalLabels, Counter>,
        "peer_refusals", None, "tirami_peer_refusals_total", "code",
        "What other nodes tried here and was refused, by the refusal's code";
    parts.store.sync_seconds.clone() => Histogram, "store_sync", Some(Unit::Seconds),
        "tirami_store_sync_seconds", "", "Syncs of the store";
    parts.store.write_seconds.clone() => Histogram, "store_write", Some(Unit::Seconds),
        "tirami_store_write_seconds", "", "From the beginning of a group of records to its sync";
    parts.store.group_records.clone() => Histogram, "store_group_records", None,
        "tirami_store_group_records", "", "Records made durable by one sync";
    parts.store.records.clone() => Counter, "store_records", None,
        "tirami_store_records_total", "", "Records written";
    parts.driver.decision_seconds.clone() => Histogram,
        "kernel_decision", Some(Unit::Seconds), "tirami_kernel_decision_seconds", "",
        "Decisions of the kernel, without any sync";
    parts.driver.snapshot_seconds.clone() => Histogram,
        "kernel_snapshot", Some(Unit::Seconds), "tirami_kernel_snapshot_seconds", "",
        "Snapshots of the ledger";
}

fn register(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    metric: impl prometheus_client::registry::Metric,
) {
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, metric),
        None => registry.register(name, help, metric),
    }
}

/// What is read from the ledger when somebody looks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readings {
    pub(crate) agents_balance: Trm,
    pub(crate) spent: Trm,
    pub(crate) spent_day: Trm,
    pub(crate) trades: u64,
    pub(crate) holds: u64,
    pub(crate) approvals: u64,
    pub(crate) killed: bool,
    pub(crate) peers: u64,
    pub(crate) farewells: u64,
    pub(crate) peer_faults: u64,
    pub(crate) providers: u64,
    pub(crate) entries_behind: u64,
    pub(crate) lag_ms: u64,
    pub(crate) entries_pending: u64,
    pub(crate) served_running: u64,
    pub(crate) served_jobs: u64,
    pub(crate) debts: Trm,
    pub(crate) owed: Trm,
}

impl Metrics {
    pub(crate) fn request(
        &self,
        route: &'static str,
        status: StatusCode,
        took: Duration,
        refusal: Option<&'static str>,
    ) {
        let status = match status.as_u16() {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&RouteLabels { route, status }).inc();
        self.request_seconds.observe(took.as_secs_f64());
        if let Some(code) = refusal {
            self.refusals.get_or_create(&RefusalLabels { code }).inc();
        }
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token_seconds.observe(after.as_secs_f64());
    }

    /// How long answers took lately, in milliseconds; some seconds before there was one.
    pub(crate) fn answer_ms(&self) -> u64 {
        self.answer_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn answered(&self, after: Duration, tokens: u32) {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).min(ANSWER_MS_MAX);
        // Two answers that end together may count as one.
        let mixed = (self.answer_ms() * 3 + ms) / 4;
        self.answer_ms.store(mixed, Ordering::Relaxed);
        self.answer_seconds.observe(after.as_secs_f64());
        self.completion_tokens.inc_by(u64::from(tokens));
        if tokens > 0 && !after.is_zero() {
            self.answer_rate.observe(f64::from(tokens) / after.as_secs_f64());
        }
    }

    pub(crate) fn read(&self, readings: &Readings, models: &Models, queued: usize) {
        self.read_models(models);
        let engine = models.load();
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.engine_running, engine.running.into());
        set(&self.engine_queued, engine.queued.into());
        set(&self.engine_completion_tokens, engine.completion_tokens_total);
        set(&self.engine_prompt_tokens, engine.prompt_tokens_total);
        // Two who look at the same time may have read the sum in either order.
        self.guessed_tokens.inner().fetch_max(engine.guessed_tokens_total, Ordering::Relaxed);
        set(&self.kernel_queued, queued as u64);
        set(&self.trades, readings.trades);
        set(&self.holds, readings.holds);
        set(&self.approvals, readings.approvals);
        set(&self.killed, readings.killed.into());
        set(&self.peers, readings.peers);
        set(&self.farewells, readings.farewells);
        set(&self.peer_faults, readings.peer_faults);
        set(&self.providers, readings.providers);
        set(&self.entries_behind, readings.entries_behind);
        self.convergence_lag.set(readings.lag_ms as f64 / 1e3);
        set(&self.entries_pending, readings.entries_pending);
        set(&self.served_running, readings.served_running);
        set(&self.served_jobs, readings.served_jobs);
        set(&self.debts, readings.debts.micro());
        set(&self.owed, readings.owed.micro());
        // A scraper's numbers are floats; the exact figures are in the JSON answers.
        let trm = |amount: Trm| amount.micro() as f64 / TRM_MICRO as f64;
        self.balance_trm.set(trm(readings.agents_balance));
        self.spent_trm.set(trm(readings.spent));
        self.spent_day_trm.set(trm(readings.spent_day));
    }

    fn read_models(&self, models: &Models) {
        for model in models.all() {
            let labels = ModelLabels { model: model.info().name.clone() };
            let (load, loaded) = (model.load(), model.is_loaded());
            let memory = if loaded { model.memory_bytes() } else { 0 };
            let rows = [
                (&self.model_loaded, u64::from(loaded)),
                (&self.model_memory, memory),
                (&self.model_running, load.running.into()),
                (&self.model_queued, load.queued.into()),
            ];
            for (family, value) in rows {
                family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    ///
    /// When a metric cannot be written, which none of these can cause.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tirami_infer::engine::Engine;
    use tirami_infer::fake::{FakeEngine, FakeScript};

    use super::*;

    #[test]
    fn every_row_of_the_table_is_shown_under_its_name() {
        let refusals = Refusals::default();
        refusals.by_code().get_or_create(&RefusalLabels { code: "busy" }).inc();
        let metrics = Metrics::new(&Parts {
            build: "test",
            store: &StoreStats::default(),
            driver: &DriverStats::default(),
            refusals: &refusals,
        });
        metrics.request("health", StatusCode::OK, Duration::from_millis(1), Some("busy"));
        metrics.answered(Duration::from_secs(1), 7);
        let script = FakeScript { tokens_per_answer: 1, delay: Duration::ZERO, fail_after: None };
        let engine: Arc<dyn Engine> = Arc::new(FakeEngine::new(script));
        metrics.read_models(&Models::from_iter([engine]));
        let text = metrics.encode().unwrap();
        for row in METRICS {
            let line = |line: &str| {
                let rest = line.strip_prefix(row.name)?;
                matches!(rest.chars().next(), Some(' ' | '{' | '_')).then_some(())
            };
            assert!(text.lines().any(|text| line(text).is_some()), "{}\n{text}", row.name);
        }
        // And nothing is shown that is not in the table.
        let kinds = text.lines().filter(|line| line.starts_with("# TYPE "));
        assert_eq!(kinds.count(), METRICS.len(), "{text}");
        assert!(text.contains("tirami_completion_tokens_total 7"));
        assert!(text.ends_with("# EOF\n"));
    }
}
