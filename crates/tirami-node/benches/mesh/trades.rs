//! Trades per second between two nodes: order, vouchers and receipt signed and checked, and
//! durable on both sides before anybody is told, beside the bare signatures of as many trades.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tirami_core::{SecretKey, Trm};
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::report::{Row, Table, cpu_seconds, median};

const IN_FLIGHT: usize = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
/// Until as many are in flight as the round is about.
const WARM_UP: Duration = Duration::from_millis(300);
const TRADES_MIN: f64 = 2_000.0;
/// Documents of a trade of one token: order, first voucher, receipt.
const DOCUMENTS: u32 = 3;

/// Row (d).
pub(crate) fn between_two(table: &Table) {
    let mesh = Mesh::of(&[script(1, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    serve_widely(provider);
    let agent = user.peer.node.personal_agent();
    let amount = Trm::from_micro(10_000_000_000);
    user.submit(Actor::Node, Command::FundAgent { agent, amount });
    let (mut trades, mut cpu_ms) = (Vec::new(), Vec::new());
    let (mut bare, mut bare_ms, mut refused) = (Vec::new(), Vec::new(), 0);
    for round in 0..=ROUNDS {
        let (signatures, signature_ms) = signature_rate();
        let load = Load::start(user);
        std::thread::sleep(WARM_UP);
        let (counted, worked_ms) = load.rate(ROUND);
        refused += load.stop();
        if round > 0 {
            bare.push(signatures / f64::from(DOCUMENTS));
            bare_ms.extend(signature_ms.map(|ms| ms * f64::from(DOCUMENTS)));
            trades.push(counted);
            cpu_ms.extend(worked_ms);
        }
    }
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
    if cpu_ms.is_empty() || bare_ms.is_empty() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (cpu_ms, bare_ms) = (median(&mut cpu_ms), median(&mut bare_ms));
    table.push(Row {
        what: "(d′) processor time of such a trade: client, HTTP, both nodes, both stores".into(),
        measured: format!("{cpu_ms:.3} ms, so at most {:.0} /s", cores as f64 * 1e3 / cpu_ms),
        limit: format!("its signatures alone: {bare_ms:.3} ms"),
        ratio: Some(cpu_ms / bare_ms),
        target: None,
    });
}

/// The provider takes as many jobs as come, and lends what is owed until payments are final.
pub(crate) fn serve_widely(provider: &TestNode) {
    let policy = provider.peer.read(|kernel| kernel.ledger().book().serving().clone());
    let exposure = Trm::from_micro(policy.exposure_max.micro().saturating_mul(64));
    let policy = ServingPolicy {
        jobs_max: 1_024,
        exposure_start: exposure,
        exposure_max: exposure,
        ..policy
    };
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
        let address = user.url.strip_prefix("http://").unwrap();
        let request: Arc<str> = request(address).into();
        let mut tasks = Vec::new();
        for _ in 0..IN_FLIGHT {
            let (stop, done, refused) =
                (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&refused));
            let (address, request) = (address.to_owned(), Arc::clone(&request));
            tasks.push(runtime.spawn(async move {
                let mut socket = TcpStream::connect(&address).await.unwrap();
                socket.set_nodelay(true).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let (status, body) = call(&mut socket, &request).await;
                    if status == 200 {
                        done.fetch_add(1, Ordering::Relaxed);
                    } else if refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        let error: Value = serde_json::from_slice(&body).unwrap_or_default();
                        eprintln!("refused first with {status}: {error}");
                    }
                }
            }));
        }
        Self { runtime, stop, done, refused, tasks }
    }

    /// Answers per second from now on for so long, and the processor's milliseconds for each.
    fn rate(&self, round: Duration) -> (f64, Option<f64>) {
        let (begun, worked) = (Instant::now(), cpu_seconds());
        let before = self.done.load(Ordering::Relaxed);
        std::thread::sleep(round);
        let answers = (self.done.load(Ordering::Relaxed) - before) as f64;
        let worked_ms = cpu_seconds().zip(worked).map(|(now, then)| (now - then) * 1e3 / answers);
        (answers / begun.elapsed().as_secs_f64(), worked_ms)
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

/// A chat for one token, as it goes over the wire.
fn request(address: &str) -> String {
    let body = ask(1, false).to_string();
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Asks on a connection that is kept; gives status and body. A client that does hardly anything
/// itself: it shares the processor with the nodes that are measured.
async fn call(socket: &mut TcpStream, request: &str) -> (u16, Vec<u8>) {
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::with_capacity(4_096);
    loop {
        let read = socket.read_buf(&mut answer).await.unwrap();
        assert!(read > 0, "the node ended the connection");
        let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&answer[..head]).unwrap();
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
        });
        let body = answer.len() - head - 4;
        if body >= length.expect("an answer in one piece says how long it is") {
            let status = text.split(' ').nth(1).unwrap().parse().unwrap();
            return (status, answer.split_off(head + 4));
        }
    }
}

/// Documents of 300 bytes signed and verified per second, on all cores together, and the
/// processor's milliseconds for each.
fn signature_rate() -> (f64, Option<f64>) {
    const PER_THREAD: u32 = 4_000;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (begun, worked) = (Instant::now(), cpu_seconds());
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
    let documents = f64::from(PER_THREAD) * threads as f64;
    let worked_ms = cpu_seconds().zip(worked).map(|(now, then)| (now - then) * 1e3 / documents);
    (documents / begun.elapsed().as_secs_f64(), worked_ms)
}
