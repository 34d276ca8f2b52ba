//! How long others wait while one peer sends a provider 10 000 messages each second that nobody
//! asked for, beside how long they wait without it.

use std::time::{Duration, Instant};

use tirami_core::{SecretKey, Trm};
use tirami_ledger::command::{Actor, Command};
use tirami_proto::{Message, encode};

use crate::flood::{flooding, malformed};
use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::report::{Row, Table, median, quantile};
use crate::trades::serve_widely;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(1_500);
const AT_ONCE: usize = 4;
/// What the flood may multiply.
const P99_MAX: f64 = 2.0;

/// Row (h).
pub(crate) fn beside_the_work(table: &Table) {
    let mesh = Mesh::of(&[script(1, Duration::ZERO)]);
    serve_widely(mesh.provider(0));
    let agent = mesh.user().peer.node.personal_agent();
    let amount = Trm::from_micro(10_000_000_000);
    mesh.user().submit(Actor::Node, Command::FundAgent { agent, amount });
    let garbage = [
        ("frames that are no messages", malformed()),
        ("questions that cost an answer", encode(&Message::WantHeads { bucket: 3 })),
        ("messages that say nothing new", encode(&Message::Peers(Vec::new()))),
    ];
    waits(&mesh, ROUND);
    for (n, (kind, frame)) in garbage.into_iter().enumerate() {
        flooded(table, &mesh, kind, (n as u8, &frame));
    }
}

fn flooded(table: &Table, mesh: &Mesh, kind: &str, (n, frame): (u8, &[u8])) {
    let (mut calm, mut loud, mut sent) = (Vec::new(), Vec::new(), 0);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    for round in 0..ROUNDS {
        calm.push(quantile(&mut waits(mesh, ROUND), 0.99));
        // Each time another party: one that was sent away is refused for longer and longer.
        let key = SecretKey::from_seed([100 + n * 20 + round as u8; 32]);
        let invite = mesh.provider(0).peer.node.invite().unwrap();
        let until = Instant::now() + ROUND;
        let flood = runtime.spawn(flooding(key, invite, frame.to_vec(), until.into()));
        loud.push(quantile(&mut waits(mesh, ROUND), 0.99));
        sent += runtime.block_on(flood).unwrap().0;
    }
    let (calm, loud) = (median(&mut calm), median(&mut loud));
    let per_second = sent as f64 / (ROUND.as_secs_f64() * ROUNDS as f64);
    table.push(Row {
        what: format!(
            "(h) p99 of others' answers while one peer sends {per_second:.0} /s: {kind}; \
             {AT_ONCE} asked for at once"
        ),
        measured: format!("{loud:.1} ms"),
        limit: format!("without it: {calm:.1} ms"),
        ratio: Some(loud / calm),
        target: Some(("≤ 2 × without", loud / calm <= P99_MAX)),
    });
}

/// Milliseconds until each answer that is asked for through the hop during `round`.
fn waits(mesh: &Mesh, round: Duration) -> Vec<f64> {
    let (user, request) = (mesh.user(), ask(1, false));
    let until = Instant::now() + round;
    let ask_until = |user: &TestNode| {
        let mut waits = Vec::new();
        while Instant::now() < until {
            let asked = Instant::now();
            drop(user.post(&request));
            waits.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        waits
    };
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| ask_until(user))).collect();
        askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect()
    })
}
