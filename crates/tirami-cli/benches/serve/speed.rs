//! One stream: tokens written and read per second, and the second turn of a chat.

use tirami_infer::llama::BareSetting;

use crate::bench::{BARE, Bench};
use crate::client::ask;
use crate::report::{Row, median};

const DECODE_TOKENS: u32 = 96;
const PROMPTS: [usize; 2] = [512, 2_048];
const HISTORY_TOKENS: usize = 1_000;

/// Tokens per second of one stream.
pub(crate) fn decode(bench: &mut Bench) {
    let servers = bench.servers();
    let mut bare = [Vec::new(), Vec::new()];
    let mut rates = vec![Vec::new(); servers.len()];
    for _ in 0..bench.rounds {
        let question = bench.question();
        let prompts = [bench.prompt(&question)];
        bench.run_bare((&prompts, DECODE_TOKENS), &mut bare, |run| {
            f64::from(DECODE_TOKENS - 1) / run.decode.as_secs_f64()
        });
        for (server, rates) in servers.iter().zip(&mut rates) {
            rates.push(ask(server, &[("user", &question)], DECODE_TOKENS).rate());
        }
    }
    let rates: Vec<f64> = rates.iter().map(|rates| median(rates)).collect();
    let (mut beside, best) = loops(&bare);
    let met = rates[0] >= 0.98 * best && rates[1..].iter().all(|rate| rates[0] >= *rate);
    beside.extend(servers.iter().zip(&rates).skip(1).map(|(s, rate)| (s.name.to_owned(), *rate)));
    bench.table.push(Row {
        what: format!("decode over HTTP, one stream of {DECODE_TOKENS} tokens"),
        unit: "tokens/s",
        measured: rates[0],
        beside,
        target: Some(("≥ 0.98 × better loop, ≥ 1 × each peer".to_owned(), met)),
        why: "one thread computes a token after the other, and between two of them it also \
              samples, makes text and tells the streams, which a bare loop does not; keys and \
              values of two types, which keep answers the same bits, cost what the loop in \
              llama.cpp's usual setting is quicker by, and `reproducible = false` is for who does \
              not need that",
    });
}

/// What the bare loops did, to be shown, and the better of the figures.
fn loops(rates: &[Vec<f64>; BARE.len()]) -> (Vec<(String, f64)>, f64) {
    let shown: Vec<_> = BARE
        .iter()
        .zip(rates)
        .map(|((_, name), rates)| ((*name).to_owned(), median(rates)))
        .collect();
    let best = shown.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    (shown, best)
}

/// Tokens per second of an answer that repeats its question.
pub(crate) fn edit(bench: &mut Bench) {
    let servers = bench.servers();
    let mut bare = Vec::new();
    let mut rates = vec![Vec::new(); servers.len()];
    for round in 0..bench.rounds {
        let line =
            |fruit| format!("- red {fruit} from the north\n- green {fruit} from the south\n");
        let lines: String = ["apples", "pears", "plums", "grapes"].map(line).concat();
        let text = format!("Copy list {round} and write nothing else:\n{lines}");
        let prompts = [bench.prompt(&text)];
        let run = bench.engine.run_bare(&prompts, DECODE_TOKENS, BareSetting::Engine);
        bare.push(f64::from(DECODE_TOKENS - 1) / run.expect("a bare run").decode.as_secs_f64());
        for (server, rates) in servers.iter().zip(&mut rates) {
            rates.push(ask(server, &[("user", &text)], DECODE_TOKENS).rate());
        }
    }
    let rates: Vec<f64> = rates.iter().map(|rates| median(rates)).collect();
    let mut beside = vec![("bare loop, one token a pass".to_owned(), median(&bare))];
    beside.extend(servers.iter().zip(&rates).skip(1).map(|(s, rate)| (s.name.to_owned(), *rate)));
    let met = beside.iter().all(|(_, rate)| rates[0] >= *rate);
    bench.table.push(Row {
        what: "an answer that copies a list out of its question".to_owned(),
        unit: "tokens/s",
        measured: rates[0],
        beside,
        target: Some(("≥ all".to_owned(), met)),
        why: "guesses are made only where reading them costs less than they save, which few \
              processors gain by with so small a model",
    });
}

/// Prompt tokens per second until the first token is there.
pub(crate) fn prompt(bench: &mut Bench) {
    let servers = bench.contenders();
    for tokens in PROMPTS {
        let mut bare = [Vec::new(), Vec::new()];
        let mut rates = vec![Vec::new(); servers.len()];
        for _ in 0..bench.rounds {
            let text = bench.text(tokens);
            let prompts = [bench.prompt(&text)];
            let count = prompts[0].tokens.len() as f64;
            bench.run_bare((&prompts, 1), &mut bare, |run| count / run.prefill.as_secs_f64());
            for (server, rates) in servers.iter().zip(&mut rates) {
                let answer = ask(server, &[("user", &text)], 1);
                rates.push(count / (answer.first_ms() / 1e3));
            }
        }
        let rates: Vec<f64> = rates.iter().map(|rates| median(rates)).collect();
        let (mut beside, best) = loops(&bare);
        let met = rates[0] >= 0.98 * best;
        let others = servers.iter().zip(&rates).skip(1);
        beside.extend(others.map(|(server, rate)| (server.name.to_owned(), *rate)));
        bench.table.push(Row {
            what: format!("prompt of {tokens} tokens over HTTP, until its first answer token"),
            unit: "tokens/s",
            measured: rates[0],
            beside,
            target: Some(("≥ 0.98 × better loop".to_owned(), met)),
            why: "passes of 32 tokens, and keys and values of two types, keep answers the same \
                  bits and cost what the loop in llama.cpp's usual setting is quicker by; \
                  `reproducible = false` is for who does not need that",
        });
    }
}

/// The first token of a chat's second turn, its history in the cache and not.
pub(crate) fn second_turn(bench: &mut Bench) {
    let servers = bench.servers();
    let Some(server) = servers.first() else { return };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        let (told, untold) = (bench.text(HISTORY_TOKENS), bench.text(HISTORY_TOKENS));
        let first = ask(server, &[("user", &told)], 8).text;
        let turn = |text: &str| {
            let next = "Go on, and tell me more of it.";
            ask(server, &[("user", text), ("assistant", &first), ("user", next)], 4).first_ms()
        };
        with.push(turn(&told));
        without.push(turn(&untold));
    }
    let (with, without) = (median(&with), median(&without));
    bench.table.push(Row {
        what: format!("first token of a second turn after {HISTORY_TOKENS} tokens of history"),
        unit: "ms",
        measured: with,
        beside: vec![("the same without the first turn".to_owned(), without)],
        target: Some(("≥ 5 × faster".to_owned(), with * 5.0 <= without)),
        why: "the history is not found",
    });
}
