//! Trades per second between two nodes: order, vouchers and receipt signed and checked, and
//! durable on both sides before anybody is told, beside the bare signatures of as many trades.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tirami_core::{SecretKey, Trm};
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};

use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::report::{Row, Table, median};

const IN_FLIGHT: usize = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const TRADES_MIN: f64 = 2_000.0;
/// Documents of a trade of one token: order, first voucher, receipt.
const DOCUMENTS: u32 = 3;

/// Row (d).
pub(crate) fn between_two(table: &mut Table) {
    let mesh = Mesh::of(&[script(1, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    serve_widely(provider);
    let agent = user.peer.node.personal_agent();
    let amount = Trm::from_micro(10_000_000_000);
    user.submit(Actor::Node, Command::FundAgent { agent, amount });
    let load = Load::start(user);
    let (mut trades, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let signatures = signature_rate();
        let counted = load.rate(ROUND);
        if round > 0 {
            bare.push(signatures / f64::from(DOCUMENTS));
            trades.push(counted);
        }
    }
    let refused = load.stop();
    let (trades, bare) = (median(&mut trades), median(&mut bare));
    table.push(Row {
        what: format!(
            "(d) trades between two nodes, asked over HTTP, {IN_FLIGHT} in flight, durable on \
             both sides ({refused} refused)"
        ),
        measured: format!("{trades:.0} /s"),
        limit: format!(
            "{DOCUMENTS} documents signed and verified on all cores, nothing else: {bare:.0} /s"
        ),
        ratio: Some(trades / bare),
        target: Some(("≥ 2 000 /s", trades >= TRADES_MIN && refused == 0)),
    });
}

/// The provider takes as many jobs as come.
fn serve_widely(provider: &TestNode) {
    let policy = provider.peer.read(|kernel| kernel.ledger().book().serving().clone());
    let policy = ServingPolicy { jobs_max: 1_024, ..policy };
    provider.submit(Actor::Node, Command::SetServing(policy));
}

/// Requests that are always in flight.
struct Load {
    runtime: tokio::runtime::Runtime,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(user: &TestNode) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let (stop, done, refused) = (
            Arc::<AtomicBool>::default(),
            Arc::<AtomicU64>::default(),
            Arc::<AtomicU64>::default(),
        );
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/v1/chat/completions", user.url);
        let body = serde_json::to_vec(&ask(1, false)).unwrap();
        let mut tasks = Vec::new();
        for _ in 0..IN_FLIGHT {
            let (stop, done, refused) =
                (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&refused));
            let (http, url, body) = (http.clone(), url.clone(), body.clone());
            tasks.push(runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let call = http.post(&url).header("content-type", "application/json");
                    let answer = call.body(body.clone()).send().await.unwrap();
                    let status = answer.status().as_u16();
                    let text = answer.text().await.unwrap();
                    if status == 200 {
                        done.fetch_add(1, Ordering::Relaxed);
                    } else if refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        let error: Value = serde_json::from_str(&text).unwrap_or_default();
                        eprintln!("refused first with {status}: {error}");
                    }
                }
            }));
        }
        Self { runtime, stop, done, refused, tasks }
    }

    /// Answers per second from now on for so long.
    fn rate(&self, round: Duration) -> f64 {
        let (begun, before) = (Instant::now(), self.done.load(Ordering::Relaxed));
        std::thread::sleep(round);
        let answers = self.done.load(Ordering::Relaxed) - before;
        answers as f64 / begun.elapsed().as_secs_f64()
    }

    /// Ends it; gives how many were refused.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.runtime.block_on(async {
            for task in self.tasks {
                task.await.unwrap();
            }
        });
        self.refused.load(Ordering::Relaxed)
    }
}

/// Documents of 300 bytes signed and verified per second, on all cores together.
fn signature_rate() -> f64 {
    const PER_THREAD: u32 = 4_000;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..threads {
            scope.spawn(move || {
                let key = SecretKey::from_seed([u8::try_from(number % 256).unwrap(); 32]);
                let message = [7; 300];
                for _ in 0..PER_THREAD {
                    let signature = key.sign(&message);
                    key.public().verify(&message, &signature).unwrap();
                }
            });
        }
    });
    f64::from(PER_THREAD) * threads as f64 / begun.elapsed().as_secs_f64()
}
