//! Ten nodes at full load: memory that stays flat, no error, and books that agree at the end.
//!
//! Twenty seconds by default; `TIRAMI_SOAK_MINUTES` says how long a real soak takes, as
//! `cargo xtask soak --minutes N` does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "what was measured, for whoever runs it with --nocapture")]

#[path = "mesh/jobs_support.rs"]
mod jobs_support;
#[path = "mesh/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_support::{TestNode, ask, script};
use serde_json::{Value, json};
use support::{SOON, joining, on_loopback, until};
use tirami_core::{PartyId, Trm};
use tirami_ledger::book::{ORDER_AHEAD_MAX_MS, START_WITHIN_MS, ServingPolicy};
use tirami_ledger::command::{Actor, Command};

const NODES: usize = 10;
/// Requests in flight at each node.
const CLIENTS_PER_NODE: usize = 4;
/// Jobs a node serves at once: the scripted engine has room for all.
const JOBS_MAX: u32 = 256;
/// Tokens of the longest answer.
const TOKENS_MAX: u32 = 48;
const SHORT: Duration = Duration::from_secs(20);
/// How long payments of the last jobs may take, and how long agreement after that.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
const AGREED_WITHIN: Duration = Duration::from_secs(60);
/// An agent's account is filled up to this, whenever it is below half of it.
const AGENT_FUNDS: Trm = Trm::from_micro(1_000_000_000);
/// Errors that are kept to be shown.
const ERRORS_SHOWN: usize = 10;
/// From then on the nodes forget as many jobs as they begin: what was ordered before is too late to
/// be started.
const FULL_AFTER: Duration = Duration::from_millis(START_WITHIN_MS + ORDER_AHEAD_MAX_MS);
/// The time over which resident memory is averaged, from [`FULL_AFTER`] on and at the end.
const WINDOW: Duration = Duration::from_secs(60);
/// A shorter load says nothing of memory: caches fill.
const JUDGED_FROM: Duration = Duration::from_secs(600);
/// How far resident memory at the end of a long load may be from that at [`FULL_AFTER`], up or
/// down, in percent.
const GROWTH_MAX: f64 = 5.0;

#[test]
fn ten_nodes_at_full_load_lose_nothing_and_agree_at_the_end() {
    let minutes = std::env::var("TIRAMI_SOAK_MINUTES").ok();
    let minutes = minutes.map(|text| text.parse::<f64>().expect("a number of minutes"));
    let load = minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(minutes * 60.0));
    // Whoever first builds a client of the SDK chooses who does TLS in this process.
    drop(tirami_sdk::Client::new("http://127.0.0.1", None).unwrap());
    let nodes = mesh();
    let tally = Arc::new(Tally::default());
    let resident = run_load(&nodes, &tally, load);

    let answers = tally.answers();
    let entries = nodes[0].peer.read(|kernel| kernel.ledger().lattice().final_count());
    println!(
        "{answers} answers in {:.0} s, {} of them in parts of more than one node; {entries} \
         entries are final",
        load.as_secs_f64(),
        *tally.in_parts.lock().unwrap(),
    );
    let errors = tally.errors.lock().unwrap();
    assert!(errors.is_empty(), "{} errors, the first: {errors:#?}", errors.len());
    drop(errors);
    assert!(answers > NODES as u64 * 10, "the load was too light to show much");

    settled(&nodes);
    agreed(&nodes);
    paid_exactly(&nodes, &tally);
    if load >= JUDGED_FROM {
        judge(&resident, load);
    }
}

/// Judges how resident memory, in MiB by the time of the load, changed since it was full.
fn judge(resident: &[(Duration, f64)], load: Duration) {
    let mean = |from: Duration, to: Duration| {
        let within = resident.iter().filter(|(at, _)| (from..to).contains(at));
        let all: Vec<f64> = within.map(|(_, mib)| *mib).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    let full = mean(FULL_AFTER, FULL_AFTER + WINDOW);
    let end = mean(load.saturating_sub(WINDOW), Duration::MAX);
    let (Some(full), Some(end)) = (full, end) else {
        return println!("this system does not tell resident memory; it was not looked at");
    };
    let growth = (end / full - 1.0) * 100.0;
    println!("resident: {full:.1} MiB when full, {end:.1} at the end: {growth:+.1} %");
    assert!(
        growth.abs() <= GROWTH_MAX,
        "resident memory changed by {growth:+.1} %, at most {GROWTH_MAX} % are allowed"
    );
}

/// Ten nodes that know each other, each with a scripted engine.
fn mesh() -> Vec<TestNode> {
    let engine = || {
        Some(Arc::new(tirami_infer::fake::FakeEngine::new(script(TOKENS_MAX, Duration::ZERO))) as _)
    };
    let mut nodes = vec![TestNode::start(on_loopback(), engine())];
    while nodes.len() < NODES {
        let invite = nodes[0].peer.node.invite().unwrap();
        nodes.push(TestNode::start(joining(invite), engine()));
    }
    for node in &nodes {
        until("it is a member with a line", SOON, || {
            node.peer.is_member() && !node.peer.line_of(node.party()).is_zero()
        });
        let policy = node.peer.read(|kernel| kernel.ledger().book().serving().clone());
        let policy = ServingPolicy { jobs_max: JOBS_MAX, ..policy };
        node.submit(Actor::Node, Command::SetServing(policy));
        fill_up(node);
    }
    for node in &nodes {
        until("all others are known", SOON, || {
            node.peer.read(|kernel| {
                let now = kernel.clock();
                let known = kernel.mesh().providers(now);
                known.filter(|one| one.connected && one.signal.serving).count()
            }) >= NODES - 1
        });
    }
    nodes
}

/// Money for the agent that pays at this node.
fn fill_up(node: &TestNode) {
    let agent = node.peer.node.personal_agent();
    let available = node.peer.read(move |kernel| {
        kernel.ledger().book().agents().get(&agent).map_or(Trm::ZERO, |one| one.available())
    });
    if available < Trm::from_micro(AGENT_FUNDS.micro() / 2) {
        let amount = AGENT_FUNDS.saturating_sub(available);
        node.submit(Actor::Node, Command::FundAgent { agent, amount });
    }
}

/// Loads all nodes for so long. Gives what was resident when, in MiB; nothing where the system does
/// not tell.
fn run_load(nodes: &[TestNode], tally: &Arc<Tally>, load: Duration) -> Vec<(Duration, f64)> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut clients = Vec::new();
    for node in nodes {
        for first in 0..CLIENTS_PER_NODE {
            let client = Client {
                http: http.clone(),
                url: format!("{}/v1/chat/completions", node.url),
                own: node.party(),
                tally: Arc::clone(tally),
            };
            clients.push(runtime.spawn(client.ask_until(Arc::clone(&stop), first)));
        }
    }
    let begun = Instant::now();
    let mut resident = Vec::new();
    let mut told_at = Duration::ZERO;
    while begun.elapsed() < load {
        std::thread::sleep(Duration::from_millis(500));
        if let Some(mib) = resident_mib() {
            let elapsed = begun.elapsed();
            resident.push((elapsed, mib));
            if elapsed >= told_at {
                println!("after {} s: {mib:.1} MiB resident", elapsed.as_secs());
                told_at += load / 10;
            }
        }
        nodes.iter().for_each(fill_up);
    }
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for client in clients {
            client.await.unwrap();
        }
    });
    resident
}

/// What came of the load.
#[derive(Default)]
struct Tally {
    errors: Mutex<Vec<String>>,
    in_parts: Mutex<u64>,
    /// Answers, and what they cost in µTRM, by who answered; the asker's own jobs are not paid.
    earned: Mutex<BTreeMap<PartyId, (u64, u64)>>,
    own: Mutex<u64>,
}

impl Tally {
    fn answers(&self) -> u64 {
        let parts: u64 = self.earned.lock().unwrap().values().map(|one| one.0).sum();
        parts + *self.own.lock().unwrap()
    }

    fn failed(&self, text: String) {
        let mut errors = self.errors.lock().unwrap();
        if errors.len() < ERRORS_SHOWN {
            errors.push(text);
        }
    }

    fn answered(&self, asker: PartyId, info: &Value) {
        let parts = info["route"]["attempts"].as_array().cloned().unwrap_or_default();
        let parts: Option<Vec<(PartyId, u64)>> = parts.iter().map(part).collect();
        let Some(parts) = parts else {
            return self.failed(format!("accounts that cannot be read: {info}"));
        };
        if parts.is_empty() {
            if info["route"]["provider"] != asker.to_string() {
                return self.failed(format!("nobody is named: {info}"));
            }
            *self.own.lock().unwrap() += 1;
        }
        *self.in_parts.lock().unwrap() += u64::from(parts.len() > 1);
        let mut earned = self.earned.lock().unwrap();
        for (party, cost) in parts {
            let (answers, sum) = earned.entry(party).or_default();
            *answers += 1;
            *sum += cost;
        }
    }
}

/// Who answered a part of an answer, and its cost in µTRM.
fn part(attempt: &Value) -> Option<(PartyId, u64)> {
    let cost: tirami_sdk::Amount = serde_json::from_value(attempt["trm_cost"].clone()).ok()?;
    Some((attempt["provider"].as_str()?.parse().ok()?, cost.trm().micro()))
}

/// One of those who ask.
struct Client {
    http: reqwest::Client,
    url: String,
    own: PartyId,
    tally: Arc<Tally>,
}

impl Client {
    /// One request after the other; of eight, one is for the node itself and two are streams.
    async fn ask_until(self, stop: Arc<AtomicBool>, first: usize) {
        for number in first.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let tokens = 1 + u32::try_from(number * 7 % TOKENS_MAX as usize).unwrap();
            let stream = number % 4 == 3;
            let mut request = ask(tokens, stream);
            if number % 8 != 0 {
                request["provider"] = json!({"ignore": [self.own.to_string()]});
            }
            match self.ask(&request, stream).await {
                Ok(info) => self.tally.answered(self.own, &info),
                Err(text) => self.tally.failed(text),
            }
        }
    }

    /// Asks; gives `x_tirami`.
    async fn ask(&self, request: &Value, stream: bool) -> Result<Value, String> {
        let call = self.http.post(&self.url).header("content-type", "application/json");
        let call = call.body(serde_json::to_vec(request).unwrap());
        let answer = call.send().await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| format!("{error:?}"))?;
        if status != 200 {
            return Err(format!("{status}: {text}"));
        }
        if !stream {
            let answer: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            return Ok(answer["x_tirami"].clone());
        }
        if !text.trim_end().ends_with("data: [DONE]") {
            return Err(format!("a stream without an end: {text}"));
        }
        let chunks = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let chunks = chunks.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let info = chunks.map(|chunk| chunk["x_tirami"].clone()).rfind(Value::is_object);
        info.ok_or_else(|| format!("a stream without accounts: {text}"))
    }
}

/// Waits until every job is paid and nothing is held.
fn settled(nodes: &[TestNode]) {
    let took = until("every job is paid", SETTLED_WITHIN, || {
        nodes.iter().all(|node| {
            node.peer.read(|kernel| {
                let book = kernel.ledger().book();
                let owed = book.consumers().values().any(|consumer| !consumer.owed.is_zero());
                book.debts().is_empty()
                    && book.served().is_empty()
                    && book.holds().is_empty()
                    && !owed
            })
        })
    });
    println!("every job paid after {took:?}");
}

/// All nodes hold the same, and it adds up.
fn agreed(nodes: &[TestNode]) {
    let took = until("all nodes agree", AGREED_WITHIN, || {
        nodes.windows(2).all(|two| two[0].peer.state() == two[1].peer.state())
    });
    println!("all agree after {took:?}");
    for node in nodes {
        node.peer.read(|kernel| kernel.ledger().lattice().check_invariants()).unwrap();
        let all: i128 = nodes.iter().map(|one| node.peer.worth_of(one.party())).sum();
        assert_eq!(all, 0, "nothing was minted or burned, so all balances sum to zero");
    }
}

/// Every node was paid what its answers cost those who got them, to the last µTRM.
fn paid_exactly(nodes: &[TestNode], tally: &Tally) {
    let expected = tally.earned.lock().unwrap();
    for node in nodes {
        let earned = node.peer.read(|kernel| kernel.ledger().book().earned_total());
        let (_, sum) = expected.get(&node.party()).copied().unwrap_or_default();
        assert_eq!(earned.micro(), sum, "what {} earned", node.party());
    }
    println!("every node was paid what its answers cost");
}

fn resident_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1_024.0)
}
