//! Several streams at once: tokens per second together, first tokens, and the longest stall.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bench::{BARE, Bench};
use crate::client::{Answer, ask, ask_until};
use crate::picture::Curve;
use crate::report::{Row, median, quantile};
use crate::servers::Server;

const STREAMS: [usize; 5] = [1, 4, 8, 16, 32];
const TOKENS: u32 = 24;
/// Streams at which first tokens are compared.
const FIRST_AT: usize = 16;
/// More streams than this are not asked of a server that answers one after another: nothing new.
pub(crate) const ONE_BY_ONE_MAX: usize = 8;
const LONG_PROMPT: usize = 2_048;
const STALL_ROUNDS_MAX: usize = 3;

/// Aggregate tokens per second, prompts included, and the first tokens of 16 streams.
pub(crate) fn together(bench: &mut Bench) {
    let servers = bench.contenders();
    // By number of streams: of the bare loops, and of each contender.
    let mut bare = vec![[Vec::new(), Vec::new()]; STREAMS.len()];
    let mut rates = vec![vec![Vec::new(); servers.len()]; STREAMS.len()];
    let mut firsts = vec![Vec::new(); servers.len()];
    for _ in 0..bench.rounds {
        for (at, streams) in STREAMS.into_iter().enumerate() {
            let questions: Vec<_> = (0..streams).map(|_| bench.question()).collect();
            let prompts: Vec<_> = questions.iter().map(|text| bench.prompt(text)).collect();
            let tokens = streams as f64 * f64::from(TOKENS);
            bench.run_bare((&prompts, TOKENS), &mut bare[at], |run| {
                tokens / (run.prefill + run.decode).as_secs_f64()
            });
            let fit = |server: &&Server| server.batches || streams <= ONE_BY_ONE_MAX;
            for (place, server) in servers.iter().enumerate().filter(|(_, server)| fit(server)) {
                let answers = ask_together(server, &questions);
                rates[at][place].push(aggregate(&answers));
                if streams == FIRST_AT {
                    firsts[place].extend(answers.iter().map(Answer::first_ms));
                }
            }
        }
    }
    // Where a batch gains nothing, a loop is quicker that answers one after another.
    let alone = [0, 1].map(|setting| median(&bare[0][setting]));
    let of = |bare: &[Vec<f64>; 2]| [0, 1].map(|at| median(&bare[at]).max(alone[at]));
    let loops: Vec<[f64; 2]> = bare.iter().map(of).collect();
    for (at, streams) in STREAMS.into_iter().enumerate().skip(1) {
        push_rates(bench, (streams, loops[at]), &servers, &rates[at]);
    }
    let points =
        |figures: &mut dyn Iterator<Item = f64>| STREAMS.into_iter().zip(figures).collect();
    bench.curves.push(Curve {
        name: "best bare loop".to_owned(),
        points: points(&mut loops.iter().map(|[one, other]| one.max(*other))),
    });
    for (place, server) in servers.iter().enumerate() {
        let figures = rates.iter().map(|rates| &rates[place]).take_while(|rates| !rates.is_empty());
        let points = points(&mut figures.map(|rates| median(rates)));
        bench.curves.push(Curve { name: server.name.to_owned(), points });
    }
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let figures =
            firsts.iter().map(|firsts| (!firsts.is_empty()).then(|| quantile(firsts, part)));
        let figures: Vec<Option<f64>> = figures.collect();
        let Some(measured) = figures[0] else { continue };
        let others = servers.iter().zip(&figures).skip(1);
        let others: Vec<_> =
            others.filter_map(|(server, figure)| Some((server, (*figure)?))).collect();
        let met = others.iter().all(|(server, figure)| !server.is_peer || measured <= *figure);
        let has_peers = others.iter().any(|(server, _)| server.is_peer);
        let shown = |(server, figure): (&Server, f64)| (server.name.to_owned(), figure);
        let beside = others.into_iter().map(shown).collect();
        bench.table.push(Row {
            what: format!(
                "first token at {FIRST_AT} streams, {name} of {} requests",
                firsts[0].len()
            ),
            unit: "ms",
            measured,
            beside,
            target: has_peers.then(|| ("≤ peers".to_owned(), met)),
            why: "prompts are read 32 tokens a pass, so that answers stay the same bits, and take \
                  turns with running streams; `reproducible = false` is for who does not need the \
                  first",
        });
    }
}

fn push_rates(
    bench: &mut Bench,
    (streams, loops): (usize, [f64; BARE.len()]),
    servers: &[Server],
    rates: &[Vec<f64>],
) {
    let measured = median(&rates[0]);
    let best = loops.into_iter().fold(0.0, f64::max);
    let others = servers.iter().zip(rates).skip(1).filter(|(_, rates)| !rates.is_empty());
    let others: Vec<_> = others.map(|(server, rates)| (server, median(rates))).collect();
    let met = measured >= 0.95 * best
        && others.iter().all(|(server, rate)| !server.is_peer || measured >= *rate);
    let bare = BARE.into_iter().zip(loops).map(|((_, name), rate)| (format!("best {name}"), rate));
    let shown = |(server, rate): (&Server, f64)| (server.name.to_owned(), rate);
    let beside = bare.chain(others.into_iter().map(shown)).collect();
    bench.table.push(Row {
        what: format!("{streams} streams of {TOKENS} tokens at once, prompts included"),
        unit: "tokens/s",
        measured,
        beside,
        target: Some(("≥ best peer, ≥ 0.95 × better loop".to_owned(), met)),
        why: "passes of 32 tokens, and keys and values of two types, keep answers the same bits \
              and cost what the loop in llama.cpp's usual setting is quicker by; `reproducible = \
              false` is for who does not need that",
    });
}

/// Asks all questions at the same moment.
pub(crate) fn ask_together(server: &Server, questions: &[String]) -> Vec<Answer> {
    let barrier = Barrier::new(questions.len());
    let ask = |question: &str| {
        barrier.wait();
        ask(server, &[("user", question)], TOKENS)
    };
    std::thread::scope(|scope| {
        let streams: Vec<_> =
            questions.iter().map(|question| scope.spawn(move || ask(question))).collect();
        streams.into_iter().map(|stream| stream.join().expect("an answer")).collect()
    })
}

fn aggregate(answers: &[Answer]) -> f64 {
    let tokens = answers.iter().map(|answer| answer.tokens).sum::<usize>();
    let sent = answers.iter().map(|answer| answer.sent).min();
    let ended = answers.iter().map(|answer| answer.ended).max();
    let took = ended.zip(sent).map_or(Duration::ZERO, |(ended, sent)| ended - sent);
    tokens as f64 / took.as_secs_f64()
}

/// The longest pause of a running stream while another's long prompt is read.
pub(crate) fn longest_stall(bench: &mut Bench) {
    let servers: Vec<_> = bench.servers().into_iter().filter(|server| server.batches).collect();
    let mut stalls = vec![Vec::new(); servers.len()];
    for _ in 0..bench.rounds.min(STALL_ROUNDS_MAX) {
        let (question, long) = (bench.question(), bench.text(LONG_PROMPT));
        for (server, stalls) in servers.iter().zip(&mut stalls) {
            stalls.push(stall(server, &question, &long).as_secs_f64() * 1e3);
        }
    }
    let stalls: Vec<f64> = stalls.iter().map(|stalls| median(stalls)).collect();
    let beside: Vec<_> =
        servers.iter().zip(&stalls).skip(1).map(|(s, stall)| (s.name.to_owned(), *stall)).collect();
    let met = beside.iter().all(|(_, stall)| stalls[0] <= *stall);
    bench.table.push(Row {
        what: format!("longest stall of a stream while a prompt of {LONG_PROMPT} tokens is read"),
        unit: "ms",
        measured: stalls[0],
        beside,
        target: Some(("≤ peers".to_owned(), met)),
        why: "a pass of a prompt lies between two tokens of the stream",
    });
}

fn stall(server: &Server, question: &str, long: &str) -> Duration {
    let (runs, is_read) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            ask_until(server, &[("user", question)], 400, |pieces| {
                runs.store(pieces >= 5, Ordering::Relaxed);
                is_read.load(Ordering::Relaxed)
            })
        });
        while !runs.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let late = ask(server, &[("user", long)], 2);
        let read = Instant::now().min(late.ended);
        is_read.store(true, Ordering::Relaxed);
        running.join().expect("an answer").longest_gap(late.sent, read)
    })
}
