//! The demonstration's second act: three nodes become a mesh. One of them has no model; another
//! one answers for it and is paid, is killed in the middle of its next answer, and the third one
//! finishes it.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::{Accounts, Checks, LONG_QUESTION, QUESTION, accounts, client};
use crate::json::{Json, literal, trm};
use crate::node::{Node, NodeDir};
use crate::process::output;
use crate::{Failure, Outcome, model};

/// How long nodes may take to find each other, to pay, and to agree.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tokens the long answer may have.
const LONG_ANSWER_TOKENS_MAX: u32 = 120;

/// Pieces after which the serving node is killed.
const PIECES_BEFORE_KILL: u64 = 40;

/// Three nodes on this machine, from the invitation to the paid trade and the failover.
pub(super) fn walk_through(checks: &mut Checks) -> Outcome<()> {
    println!("\n  Three nodes, one of them without a model.");
    let places = [NodeDir::empty("mesh-a")?, NodeDir::empty("mesh-b")?, NodeDir::empty("mesh-c")?];
    let [place_a, place_b, place_c] = &places;
    let a = place_a.start()?;
    let invite = output(client(place_a, &a).args(["mesh", "invite"]))?;
    let invite = invite.lines().last().unwrap_or_default().trim().to_owned();
    println!("  $ tirami mesh invite\n  {invite:.60}…");
    let mut b = place_b.start_with(&["--join", &invite, "--model", model::DEFAULT])?;
    let c = place_c.start_with(&["--join", &invite, "--no-model"])?;
    until("the node without a model sees both others and has TRM", || {
        let providers = c.admin.get("/v1/tirami/providers")?;
        Ok(providers.list("providers")?.len() >= 2 && accounts(&c)?.available > 0)
    })?;
    checks.that("the node without a model knows two providers and has TRM", true)?;

    let parties = [party(&a)?, party(&b)?];
    paid_answer(&c, [(&a, &parties[0]), (&b, &parties[1])], checks)?;
    let undisturbed = long_answer(&c, &parties[0], || Ok(()))?;
    let cut = long_answer(&c, &parties[1], || b.kill())?;
    drop(b);
    check_failover(&undisturbed, &cut, &parties, checks)?;

    let b = place_b.start_with(&["--model", model::DEFAULT])?;
    settled(&[&a, &b, &c], checks)?;
    for node in [a, b, c] {
        node.stop()?;
    }
    checks.that("all three settle and exit with 0 on an interrupt", true)
}

/// A question to the node without a model: answered by another one, for TRM.
fn paid_answer(c: &Node, serving: [(&Node, &String); 2], checks: &mut Checks) -> Outcome<()> {
    let before = accounts(c)?;
    let body = format!(
        r#"{{"model": {}, "max_tokens": 60, "temperature": 0,
            "messages": [{{"role": "user", "content": {}}}]}}"#,
        literal(model::DEFAULT),
        literal(QUESTION)
    );
    println!("\n  > {QUESTION}   (asked at the node without a model)\n");
    let answer = c.loopback().post("/v1/chat/completions", &body)?;
    println!("{}\n", answer.text("choices.0.message.content")?);
    let provider = answer.text("x_tirami.route.provider")?;
    let cost = answer.micro_trm("x_tirami.trm_cost")?;
    let trade = answer.text("x_tirami.trade_id")?;
    println!("  answered by {provider:.12}…, {}", answer.text("x_tirami.route.reason")?);
    println!("  cost        {} TRM", trm(cost));
    checks.that("another node answered", answer.text("x_tirami.route.kind")? == "mesh")?;
    let after = accounts(c)?;
    checks.that("the balance fell by the cost", before.available - after.available == cost)?;
    let server = serving.iter().find(|(_, party)| *party == provider).map(|(node, _)| *node);
    let Some(server) = server else {
        return Err(Failure::new(format!("{provider} is neither of the two that serve")));
    };
    until("the provider lists the same trade", || Ok(lists(&accounts(server)?, trade, cost)))?;
    checks.that("both ledgers show the same trade for the same amount", lists(&after, trade, cost))
}

fn lists(accounts: &Accounts, trade: &str, amount: i128) -> bool {
    accounts.trades.iter().any(|row| row.id == trade && row.amount == amount)
}

/// A long answer as the client saw it.
struct Answer {
    text: String,
    last: Json,
}

/// Streams a long answer through the node without a model; `provider` is tried first, and `act`
/// happens in the middle. The answer is drawn, so it is the same again only if the seed and the
/// place in it reach whoever goes on.
fn long_answer(c: &Node, provider: &str, mut act: impl FnMut() -> Outcome<()>) -> Outcome<Answer> {
    let body = format!(
        r#"{{"model": {}, "stream": true, "max_completion_tokens": {LONG_ANSWER_TOKENS_MAX},
            "temperature": 0.8, "seed": 7, "provider": {{"order": [{}]}},
            "messages": [{{"role": "user", "content": {}}}]}}"#,
        literal(model::DEFAULT),
        literal(provider),
        literal(LONG_QUESTION)
    );
    println!("\n  > {LONG_QUESTION}\n");
    let (mut pieces, mut text, mut last) = (0, String::new(), None);
    c.loopback().post_events("/v1/chat/completions", &body, |data| {
        if data == "[DONE]" {
            return Ok(());
        }
        let chunk = Json::parse(data)?;
        if let Ok(piece) = chunk.text("choices.0.delta.content")
            && !piece.is_empty()
        {
            print!("{piece}");
            let _ = io::stdout().flush();
            text.push_str(piece);
            pieces += 1;
            if pieces == PIECES_BEFORE_KILL {
                act()?;
            }
        }
        if chunk.at("x_tirami").is_some() || chunk.at("error").is_some() {
            last = Some(chunk);
        }
        Ok(())
    })?;
    println!();
    match last {
        Some(last) if last.at("error").is_none() => Ok(Answer { text, last }),
        other => Err(Failure::new(format!("the answer did not end well: {other:?}"))),
    }
}

fn check_failover(
    undisturbed: &Answer,
    cut: &Answer,
    parties: &[String; 2],
    checks: &mut Checks,
) -> Outcome<()> {
    let attempts = cut.last.list("x_tirami.route.attempts")?;
    println!("\n  The second node was killed in the middle:");
    for attempt in attempts {
        println!(
            "  {:.12}…  {} tokens, {} TRM ({})",
            attempt.text("provider")?,
            attempt.whole("completion_tokens")?,
            trm(attempt.micro_trm("trm_cost")?),
            attempt.text("ended")?
        );
    }
    let order: Vec<&str> =
        attempts.iter().map(|attempt| attempt.text("provider")).collect::<Outcome<_>>()?;
    let expected = [parties[1].as_str(), parties[0].as_str()];
    checks.that("the killed node began and another one went on", order == expected)?;
    checks.that("the text is that of an undisturbed answer", cut.text == undisturbed.text)?;
    let costs: Vec<i128> =
        attempts.iter().map(|attempt| attempt.micro_trm("trm_cost")).collect::<Outcome<_>>()?;
    let whole = cut.last.micro_trm("x_tirami.trm_cost")?;
    checks.that("the parts' costs are the whole cost", costs.iter().sum::<i128>() == whole)
}

/// Waits until every job is paid and all nodes agree about all chains.
fn settled(nodes: &[&Node], checks: &mut Checks) -> Outcome<()> {
    let mut states = Vec::new();
    let agreed = until("all nodes reach the same state of all chains", || {
        states.clear();
        for node in nodes {
            let network = node.admin.get("/v1/tirami/network")?;
            states.push(network.text("lattice_state_hash")?.to_owned());
        }
        let is_paid = |node: &&Node| -> Outcome<bool> {
            let serving = node.admin.get("/v1/tirami/serving")?;
            Ok(serving.micro_trm("owed_trm")? == 0)
        };
        let paid = nodes.iter().map(is_paid).collect::<Outcome<Vec<_>>>()?;
        Ok(states.windows(2).all(|pair| pair[0] == pair[1]) && paid.iter().all(|paid| *paid))
    });
    if agreed.is_err() {
        println!("  states: {states:?}");
    }
    agreed?;
    checks.that("the killed node was paid when it came back, and all nodes agree", true)
}

fn party(node: &Node) -> Outcome<String> {
    Ok(node.admin.get("/v1/tirami/status")?.text("node_id")?.to_owned())
}

/// Asks again until something holds.
fn until(what: &str, mut holds: impl FnMut() -> Outcome<bool>) -> Outcome<()> {
    let begun = Instant::now();
    loop {
        if holds()? {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            let patience = PATIENCE.as_secs();
            return Err(Failure::new(format!("within {patience} s this did not come: {what}")));
        }
        thread::sleep(Duration::from_millis(200));
    }
}
