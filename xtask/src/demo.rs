//! `cargo xtask demo`: a node from nothing to an answer, a cut in the middle of the next one,
//! and the proof that its accounts are right after it. Then three nodes become a mesh.

mod mesh;

use std::io::{self, Write};
use std::process::Command;
use std::time::Instant;

use crate::json::{Json, literal, trm};
use crate::node::{Node, NodeDir};
use crate::process::{Steps, output, run_unshown};
use crate::setup::{Scope, setup};
use crate::{Failure, Outcome, model, suite};

const QUESTION: &str = "What is the capital of France? Answer in one sentence.";

/// A question whose answer is long enough to be cut.
const LONG_QUESTION: &str = "Tell me a long story about a lighthouse keeper and the sea.";

/// Tokens the long answer may have.
const LONG_ANSWER_TOKENS_MAX: u32 = 400;

/// Pieces after which the node is killed. More than one voucher's worth, so that something is
/// owed for the cut answer.
const PIECES_BEFORE_KILL: u64 = 50;

/// Sets up, builds, fetches the model, and walks through.
pub(crate) fn demo() -> Outcome<()> {
    let mut steps = Steps::new(4);
    steps.step("what this machine needs", || setup(Scope::Demo))?;
    steps.step("build", suite::build)?;
    steps.step("fetch the default model", model::fetch)?;
    steps.step("walk through", walk_through)?;
    steps.summary();
    Ok(())
}

/// What a node says of its accounts at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Accounts {
    /// Trades, newest first.
    trades: Vec<Trade>,
    /// What the personal agent may spend, in µTRM.
    available: i128,
    /// What is set aside for running jobs, in µTRM.
    reserved: i128,
    /// Jobs that run.
    open_holds: i128,
    state_hash: String,
    conserved: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Trade {
    id: String,
    amount: i128,
    flop: i128,
    completion_tokens: i128,
    prompt_tokens: i128,
}

/// The demonstration itself, with everything already built and fetched.
pub(crate) fn walk_through() -> Outcome<()> {
    let mut checks = Checks::default();
    let place = NodeDir::empty("demo")?;
    let mut node = place.start()?;
    println!(
        "\n  A node is up at http://{} after {:.2} s.",
        node.admin.address,
        node.ready_after.as_secs_f64()
    );
    let funded = accounts(&node)?;
    println!("  Its personal agent has {} TRM.", trm(funded.available));

    let answered = first_answer(&place, &node, &funded, &mut checks)?;
    let delivered = cut_answer(&mut node, &mut checks)?;
    drop(node);

    let node = place.start()?;
    println!(
        "\n  Started again on the same data: ready after {:.2} s.",
        node.ready_after.as_secs_f64()
    );
    let recovered = accounts(&node)?;
    check_recovery(&answered, &recovered, delivered, &mut checks)?;
    for trade in &recovered.trades {
        verify(&place, &node, &trade.id, &mut checks)?;
    }
    check_with_doctor(&place, &recovered, &mut checks)?;
    node.stop()?;
    checks.that("the node settles and exits with 0 on an interrupt", true)?;
    println!(
        "  First answer: {} TRM. Cut answer: {} TRM for what was delivered.",
        trm(funded.available - answered.available),
        trm(answered.available - recovered.available)
    );
    println!("  Left: {} TRM. State hash: {}", trm(recovered.available), recovered.state_hash);
    mesh::walk_through(&mut checks)?;
    println!("\n  {} checks passed.", checks.passed);
    Ok(())
}

/// Asks through the product's own command and shows what the answer cost.
fn first_answer(
    place: &NodeDir,
    node: &Node,
    funded: &Accounts,
    checks: &mut Checks,
) -> Outcome<Accounts> {
    println!("\n  $ tirami chat \"{QUESTION}\"\n");
    let begun = Instant::now();
    run_unshown(client(place, node).args(["chat", QUESTION]))?;
    println!("\n  in {:.2} s", begun.elapsed().as_secs_f64());
    let answered = accounts(node)?;
    let Some(trade) = answered.trades.first() else {
        return Err(Failure::new("the answer left no trade"));
    };
    println!("  tokens   {} prompt + {} completion", trade.prompt_tokens, trade.completion_tokens);
    println!("  work     {} FLOP", trade.flop);
    println!("  cost     {} TRM", trm(trade.amount));
    println!("  balance  {} TRM", trm(answered.available));
    println!("  trade    {}", trade.id);
    checks.that("the answer is one trade", answered.trades.len() == funded.trades.len() + 1)?;
    // Par is 1 TRM for 10⁹ FLOP, so 1 µTRM buys 1 000 FLOP and a part of it costs all of it.
    checks.that(
        "its cost is its work at par, rounded up",
        trade.amount == (trade.flop + 999) / 1000,
    )?;
    checks.that(
        "the balance fell by exactly the cost",
        funded.available - answered.available == trade.amount,
    )?;
    checks.that(
        "nothing is set aside any more",
        answered.reserved == 0 && answered.open_holds == 0,
    )?;
    checks.that("the accounts sum up", answered.conserved)?;
    verify(place, node, &trade.id, checks)?;
    Ok(answered)
}

/// Streams a second answer and kills the node in the middle of it; answers the pieces received.
fn cut_answer(node: &mut Node, checks: &mut Checks) -> Outcome<u64> {
    println!("\n  > {LONG_QUESTION}\n");
    let body = format!(
        r#"{{"model": {}, "stream": true, "max_completion_tokens": {LONG_ANSWER_TOKENS_MAX},
            "temperature": 0, "messages": [{{"role": "user", "content": {}}}]}}"#,
        literal(model::DEFAULT),
        literal(LONG_QUESTION)
    );
    let mut pieces = 0;
    let mut killed = false;
    let api = node.loopback();
    api.post_events("/v1/chat/completions", &body, |data| {
        if data == "[DONE]" {
            return Ok(());
        }
        let Ok(text) = Json::parse(data)
            .and_then(|chunk| chunk.text("choices.0.delta.content").map(str::to_owned))
        else {
            return Ok(());
        };
        if !text.is_empty() {
            pieces += 1;
            print!("{text}");
            let _ = io::stdout().flush();
        }
        if pieces == PIECES_BEFORE_KILL && !killed {
            killed = true;
            node.kill()?;
        }
        Ok(())
    })?;
    println!(" ... kill -9");
    checks.that("the node was killed in the middle of an answer", killed)?;
    println!("  {pieces} pieces were delivered before the end.");
    Ok(pieces)
}

fn check_recovery(
    answered: &Accounts,
    recovered: &Accounts,
    delivered: u64,
    checks: &mut Checks,
) -> Outcome<()> {
    let kept = recovered.trades.ends_with(&answered.trades);
    checks.that("every trade from before is there, unchanged", kept)?;
    let cut = &recovered.trades[..recovered.trades.len() - answered.trades.len()];
    let tokens: i128 = cut.iter().map(|trade| trade.completion_tokens).sum();
    let cost: i128 = cut.iter().map(|trade| trade.amount).sum();
    println!("  The cut answer was charged {tokens} of {delivered} tokens: {} TRM.", trm(cost));
    checks.that("the cut answer is at most one trade", cut.len() <= 1)?;
    checks.that("it cost at most what was delivered", tokens <= i128::from(delivered))?;
    checks.that(
        "the balance fell by exactly that",
        answered.available - recovered.available == cost,
    )?;
    checks.that("its hold is gone", recovered.reserved == 0 && recovered.open_holds == 0)?;
    checks.that("the accounts sum up", recovered.conserved)
}

/// Has the store verified from its first record on, and compares the state it leads to.
fn check_with_doctor(place: &NodeDir, recovered: &Accounts, checks: &mut Checks) -> Outcome<()> {
    let report = Json::parse(&output(place.tirami().args(["doctor", "--json"]))?)?;
    let healthy = report.at("healthy") == Some(&Json::Bool(true));
    checks.that("the doctor finds every signature, checksum and sum right", healthy)?;
    let replayed = report
        .list("checks")?
        .iter()
        .filter_map(|check| check.text("detail").ok())
        .any(|detail| detail.contains(&recovered.state_hash));
    checks.that("a replay from the first record reaches the same state hash", replayed)
}

/// The `tirami` command as a client of `node`.
fn client(place: &NodeDir, node: &Node) -> Command {
    let mut command = place.tirami();
    command.env("TIRAMI_URL", format!("http://{}", node.admin.address));
    command
}

/// Has the command check both signatures and all figures of a trade on the client's side.
fn verify(place: &NodeDir, node: &Node, trade: &str, checks: &mut Checks) -> Outcome<()> {
    let detail = output(client(place, node).args(["trades", "show", trade, "--json"]))?;
    let detail = Json::parse(&detail)?;
    let verified = detail.at("verified_here") == Some(&Json::Bool(true));
    checks.that(&format!("trade {:.12}…: both signatures verified", trade), verified)
}

fn accounts(node: &Node) -> Outcome<Accounts> {
    let api = node.loopback();
    let balance = api.get("/v1/tirami/balance")?;
    let network = api.get("/v1/tirami/network")?;
    let status = api.get("/v1/tirami/status")?;
    // The owner also sees what this node did for others.
    let trades = node.admin.get("/v1/tirami/trades?limit=100")?;
    let trades = trades.list("trades")?.iter().map(trade).collect::<Outcome<Vec<Trade>>>()?;
    Ok(Accounts {
        trades,
        available: balance.micro_trm("effective_balance")?,
        reserved: balance.micro_trm("reserved")?,
        open_holds: status.whole("open_holds")?,
        state_hash: network.text("state_hash")?.to_owned(),
        conserved: network.at("conserved") == Some(&Json::Bool(true)),
    })
}

fn trade(row: &Json) -> Outcome<Trade> {
    Ok(Trade {
        id: row.text("trade_id")?.to_owned(),
        amount: row.micro_trm("trm_amount")?,
        flop: row.whole("flops")?,
        completion_tokens: row.whole("completion_tokens")?,
        prompt_tokens: row.whole("prompt_tokens")?,
    })
}

/// Counts what was checked; the first check that fails ends the demonstration.
#[derive(Debug, Default)]
struct Checks {
    passed: u32,
}

impl Checks {
    fn that(&mut self, what: &str, holds: bool) -> Outcome<()> {
        if !holds {
            return Err(Failure::new(format!("this does not hold: {what}")));
        }
        println!("  ok       {what}");
        self.passed += 1;
        Ok(())
    }
}
