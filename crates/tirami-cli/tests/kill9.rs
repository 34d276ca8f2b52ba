//! Two hundred `kill -9` at random moments under load, and what must be true after each.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::Node;
use futures_util::StreamExt as _;
use tirami_core::Trm;
use tirami_sdk::types::{ChatRequest, CreateAgent, CreateKey, Limits, PolicyRequest, Scope, Trade};
use tirami_sdk::{Client, ClientError, verify_trade};
use tokio::sync::Notify;

const KILLS: u32 = 200;
const DIRECTORIES: u32 = 4;
/// The seed of every choice in this test.
const SEED: u64 = 0x7a11_5eed;
/// A token whose text is still withheld (an unfinished character, the beginning of a stop text)
/// is delivered without a visible piece, and a voucher is signed when tokens are handed to the
/// connection, which is a moment before the client reads them.
const UNSEEN_TOKENS_MAX: u32 = 8;

/// So long the first text of an answer may take before a kill comes anyway.
const FLOW_MAX: Duration = Duration::from_secs(3);

/// What the clients of one data directory know.
#[derive(Default)]
struct Known {
    /// Answers whose last chunk came: trade and charge.
    acknowledged: BTreeMap<String, Trm>,
    /// Answers that were cut: job and pieces that came.
    cut: BTreeMap<String, u32>,
    /// Rings with every piece of text.
    flowing: Arc<Notify>,
}

/// What a check saw in the books, beside what the clients know.
#[derive(Default)]
struct Found {
    /// Cut answers with a trade.
    cut_charged: usize,
    /// Trades of which no client saw even the first piece.
    unread: usize,
}

#[derive(Default)]
struct Totals {
    acknowledged: usize,
    cut: usize,
    cut_charged: usize,
    unread: usize,
    slowest_start: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_kills_lose_nothing_that_was_acknowledged() {
    let begun = Instant::now();
    println!("seed {SEED:#x}");
    let home = tempfile::tempdir().unwrap();
    let mut random = SplitMix(SEED);
    let mut totals = Totals::default();
    for directory in 0..DIRECTORIES {
        let directory = format!("data-{directory}");
        let known = Arc::new(Mutex::new(Known::default()));
        let mut clients = Vec::new();
        let mut found = Found::default();
        for kill in 0..=KILLS / DIRECTORIES {
            let mut node = Node::start_with(home.path(), &directory, &[]);
            totals.slowest_start = totals.slowest_start.max(node.started_in);
            if clients.is_empty() {
                clients = keys(&node).await;
            } else {
                found = check(&node, &known).await;
            }
            // After the last kill of a directory there is only the check.
            if kill == KILLS / DIRECTORIES {
                break;
            }
            let running: Vec<_> = clients
                .iter()
                .map(|key| Client::new(&node.api, key.as_deref()).unwrap())
                .map(|client| tokio::spawn(ask(client, random.next(), Arc::clone(&known))))
                .collect();
            // One in four dies while the first prompts are read, the others while answers flow.
            if !random.next().is_multiple_of(4) {
                let flowing = Arc::clone(&known.lock().unwrap().flowing);
                let _ = tokio::time::timeout(FLOW_MAX, flowing.notified()).await;
            }
            tokio::time::sleep(Duration::from_millis(20 + random.next() % 581)).await;
            node.kill_9();
            for client in running {
                client.await.unwrap();
            }
        }
        let known = known.lock().unwrap();
        totals.acknowledged += known.acknowledged.len();
        totals.cut += known.cut.len();
        totals.cut_charged += found.cut_charged;
        totals.unread += found.unread;
    }
    println!(
        "{KILLS} kills in {:.0} s: {} acknowledged answers all there, {} cut answers of which {} \
         were charged for what was delivered, {} unread but settled, slowest start {:.0} ms",
        begun.elapsed().as_secs_f64(),
        totals.acknowledged,
        totals.cut,
        totals.cut_charged,
        totals.unread,
        totals.slowest_start.as_secs_f64() * 1e3,
    );
    let enough = totals.acknowledged > 50 && totals.cut_charged > 50;
    assert!(enough, "the load was too light to show much");
}

/// Three payers: the personal agent without a key, and two agents with one each.
async fn keys(node: &Node) -> Vec<Option<String>> {
    let admin = node.admin();
    // The load is far above what the circuit breaker takes for sane.
    let personal = admin.status().await.unwrap().personal_agent;
    for target in ["node".to_owned(), personal] {
        let request = PolicyRequest { target, limits: Limits::default() };
        admin.set_policy(&request).await.unwrap();
    }
    let mut keys = vec![None];
    for name in ["one", "two"] {
        let fund_trm = Some("10000".parse().unwrap());
        let request = CreateAgent { name: name.to_owned(), fund_trm, limits: None };
        let did = admin.create_agent(&request).await.unwrap().did;
        let request = CreateKey {
            label: name.to_owned(),
            scope: Scope::Inference,
            agent: Some(did),
            limits: None,
            expires_at_ms: None,
        };
        keys.push(Some(admin.create_key(&request).await.unwrap().key));
    }
    keys
}

/// Asks for short answers until the node is gone.
async fn ask(client: Client, seed: u64, known: Arc<Mutex<Known>>) {
    let mut random = SplitMix(seed);
    loop {
        let request = ChatRequest {
            // Half of the answers are very short, some are long enough for a second voucher.
            max_completion_tokens: Some(1 + (random.next() % [4, 40][random.index(2)]) as u32),
            seed: Some(random.next() as u32),
            temperature: Some(0.0),
            // A short prompt, so that most of the time goes into the answer.
            ..ChatRequest::new("").message("system", "").user(WORDS[random.index(WORDS.len())])
        };
        let model = client.models().await.map(|models| models.data[0].id.clone());
        let Ok(model) = model else { return };
        match answer(&client, &ChatRequest { model, ..request }, &known).await {
            Ok(()) => {}
            Err(ClientError::Unreachable { .. } | ClientError::Connection { .. }) => return,
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn answer(
    client: &Client,
    request: &ChatRequest,
    known: &Mutex<Known>,
) -> Result<(), ClientError> {
    let mut pieces = client.chat_stream(request).await?;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        let mut known = known.lock().unwrap();
        let job = piece.id.strip_prefix("chatcmpl-").unwrap().to_owned();
        match piece.x_tirami {
            Some(info) => {
                known.cut.remove(&job);
                known.acknowledged.insert(info.trade_id, info.trm_cost.trm());
                // Only a usage chunk without choices may follow.
            }
            None if piece.choices.is_empty() => {}
            None => {
                let text = !piece.text().is_empty();
                if text {
                    known.flowing.notify_waiters();
                }
                *known.cut.entry(job).or_default() += u32::from(text);
            }
        }
    }
    Ok(())
}

async fn check(node: &Node, known: &Mutex<Known>) -> Found {
    let admin = node.admin();
    assert_eq!(admin.status().await.unwrap().open_holds, 0, "a hold survived");

    let trades = all_trades(&admin).await;
    let found = compare(&trades, &known.lock().unwrap());
    // The newest trades with both signatures, as a stranger would check them.
    for trade in trades.iter().take(4) {
        let detail = admin.trade(&trade.trade_id).await.unwrap();
        verify_trade(&detail).unwrap_or_else(|error| panic!("{error}: {detail:?}"));
    }
    conserved(&admin).await;
    found
}

/// What the clients know against what is booked.
fn compare(trades: &[Trade], known: &Known) -> Found {
    let by_id: BTreeMap<&str, &Trade> =
        trades.iter().map(|trade| (trade.trade_id.as_str(), trade)).collect();
    for (id, amount) in &known.acknowledged {
        let trade = by_id.get(id.as_str());
        let trade = trade.unwrap_or_else(|| panic!("the acknowledged trade {id} is lost"));
        assert_eq!(trade.trm_amount.trm(), *amount, "{id}");
    }
    let by_job: BTreeMap<&str, &Trade> =
        trades.iter().map(|trade| (trade.job_id.as_str(), trade)).collect();
    let mut charged = 0;
    for (job, pieces) in &known.cut {
        let Some(trade) = by_job.get(job.as_str()) else {
            continue;
        };
        charged += 1;
        let most = pieces + UNSEEN_TOKENS_MAX;
        assert!(
            trade.completion_tokens <= most,
            "{} of {pieces}: {trade:?}",
            trade.completion_tokens
        );
    }
    let known_jobs = charged + known.acknowledged.len();
    Found { cut_charged: charged, unread: trades.len().saturating_sub(known_jobs) }
}

/// The chain's money is the sum of all accounts, to the last µTRM.
async fn conserved(admin: &Client) {
    let network = admin.network().await.unwrap();
    assert!(network.conserved, "{network:?}");
    let agents = admin.agents().await.unwrap().agents;
    let accounts: i128 = agents.iter().map(|agent| agent.balance_trm.trm().signed()).sum();
    let own = admin.balance(Some("node")).await.unwrap().net_balance.micro();
    let chain = network.free_trm.micro() + network.in_transit_trm.trm().signed();
    assert_eq!(accounts + own, chain, "{agents:?} {network:?}");
    assert!(agents.iter().all(|agent| agent.reserved_trm.trm().is_zero()), "{agents:?}");
}

async fn all_trades(admin: &Client) -> Vec<Trade> {
    let mut trades = Vec::new();
    let mut before = None;
    loop {
        let page = admin.trades(None, Some(1_000), before).await.unwrap();
        trades.extend(page.trades);
        before = page.next;
        if before.is_none() {
            return trades;
        }
    }
}

const WORDS: [&str; 8] = ["Rain?", "Sun?", "Sea?", "Fog?", "Snow?", "Wind?", "Ice?", "Hail?"];

/// A small generator: the same seed, the same choices.
struct SplitMix(u64);

impl SplitMix {
    fn index(&mut self, below: usize) -> usize {
        (self.next() % below as u64) as usize
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
