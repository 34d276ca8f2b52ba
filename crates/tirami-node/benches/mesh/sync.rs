//! How fast a newcomer fetches, verifies and keeps a long history, beside the bare verification
//! of the signatures it carries.

use std::time::{Duration, Instant};

use tirami_core::{PartyId, SecretKey, Trm};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{EntryKind, Transfer};
use tirami_node::handle::SubmitError;

use crate::jobs_support::TestNode;
use crate::report::{Row, Table, median};
use crate::support::{joining, on_loopback};

const ENTRIES: usize = 100_000;
const ROUNDS: usize = 2;
/// Entries that are signed at once while the history is made.
const AT_ONCE: usize = 256;
/// Signatures an entry carries: its own, and that of the one witness.
const SIGNATURES: f64 = 2.0;
const RATIO_MIN: f64 = 0.5;
const WITHIN: Duration = Duration::from_secs(100);

/// Rows (e) and (f).
pub(crate) fn of_a_newcomer(table: &Table) {
    let elder = TestNode::start(on_loopback(), None);
    let made = Instant::now();
    history(&elder, ENTRIES);
    let made = ENTRIES as f64 / made.elapsed().as_secs_f64();
    let (mut synced, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(verification_rate() / SIGNATURES);
        synced.push(sync_rate(&elder));
    }
    let (synced, bare) = (median(&mut synced), median(&mut bare));
    table.push(Row {
        what: format!(
            "(e) sync of {ENTRIES} entries to a newcomer, durable there, from its start on"
        ),
        measured: format!("{synced:.0} entries/s"),
        limit: format!(
            "their {SIGNATURES} signatures verified one by one, one core: {bare:.0} /s; the ratio \
             counts both"
        ),
        ratio: Some(synced / bare),
        target: Some(("≥ 0.5 × bare", synced / bare >= RATIO_MIN)),
    });
    let single = bare * SIGNATURES;
    table.push(Row {
        what: "(e) the same beside a single signature for an entry".into(),
        measured: format!("{synced:.0} entries/s"),
        limit: format!("single signatures verified one by one, one core: {single:.0} /s"),
        ratio: Some(synced / single),
        target: None,
    });
    table.push(Row {
        what: "(f) the same entries signed, acknowledged and durable, one by one".into(),
        measured: format!("{made:.0} entries/s"),
        limit: format!("the two signatures made and verified, one core: {:.0} /s", signing_rate()),
        ratio: None,
        target: None,
    });
}

/// A chain of so many transfers, each acknowledged by the node's own witness.
fn history(node: &TestNode, entries: usize) {
    let payee = PartyId::from_bytes(*SecretKey::from_seed([9; 32]).public().as_bytes());
    let handle = node.peer.node.handle();
    node.peer.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..entries {
            let handle = handle.clone();
            tasks.spawn(async move {
                let amount = Trm::from_micro(number as u64 % 1_000 + 1);
                let kind = EntryKind::Transfer(Transfer { payee, amount });
                let command = Command::SignEntry { kind };
                loop {
                    match handle.submit(Actor::Node, command.clone()).await {
                        Ok(_) => return,
                        Err(SubmitError::Busy) => {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            if tasks.len() >= AT_ONCE {
                tasks.join_next().await.unwrap().unwrap();
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
}

/// Entries per second from a newcomer's start until it holds all of them.
fn sync_rate(elder: &TestNode) -> f64 {
    let count = |node: &TestNode| node.peer.read(|kernel| kernel.ledger().lattice().final_count());
    let wanted = count(elder);
    let begun = Instant::now();
    let newcomer = TestNode::start(joining(elder.peer.node.invite().unwrap()), None);
    while count(&newcomer) < wanted {
        assert!(begun.elapsed() < WITHIN, "{} of {wanted} came", count(&newcomer));
        std::thread::sleep(Duration::from_millis(10));
    }
    let rate = wanted as f64 / begun.elapsed().as_secs_f64();
    newcomer.kill();
    rate
}

fn verification_rate() -> f64 {
    const COUNT: u32 = 20_000;
    let key = SecretKey::from_seed([1; 32]);
    let message = [9; 250];
    let signature = key.sign(&message);
    let begun = Instant::now();
    for _ in 0..COUNT {
        std::hint::black_box(key.public()).verify(&message, &signature).unwrap();
    }
    f64::from(COUNT) / begun.elapsed().as_secs_f64()
}

/// Pairs of two signatures made, and both verified, per second.
fn signing_rate() -> f64 {
    const COUNT: u32 = 5_000;
    let key = SecretKey::from_seed([1; 32]);
    let message = [9; 250];
    let begun = Instant::now();
    for _ in 0..COUNT {
        for _ in 0..2 {
            let signature = key.sign(&message);
            key.public().verify(&message, &signature).unwrap();
        }
    }
    f64::from(COUNT) / begun.elapsed().as_secs_f64()
}
