//! `cargo xtask`: demonstrates, tests, measures and tidies Tirami, each with one command.
//!
//! It depends on nothing but the standard library, so that it is built in seconds on a machine
//! that has only a Rust toolchain, and can then fetch what else is needed.

#![expect(clippy::print_stdout, reason = "this is a command for people; it talks to the terminal")]

mod bench;
mod clients;
mod codegen;
mod conformance;
mod demo;
mod fuzz;
mod growth;
mod http;
mod json;
mod model;
mod node;
mod process;
mod programs;
mod rust_source;
mod setup;
mod soak;
mod suite;
mod tidy;
mod workspace;

use std::fmt;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  demo               build, start a node, ask it, kill it, and show that its accounts are right
  test               everything that must pass, from layout to outside clients
  test --relay       builds iroh's relay and runs the tests that need one, which `test` leaves out
  ci                 `test`, and no tracked file may have changed by it
  tidy               layout, layers, sizes, words
  conformance [--json]
                     clients that others wrote, every call against a real node; writes
                     docs/reference/conformance.md
  bench              measure, and write docs/reference/bench.md
  bench mesh         measure the mesh, and write docs/reference/bench-mesh.md
  bench mesh PART…   only hop, trades, garbage, sync or resume; writes nothing
  bench serve [PART…] [--rounds N] [--json]
                     compare serving with other servers, and write docs/reference/bench-serve.md;
                     parts: decode edit prompt turn streams stall http accounting memory; with
                     parts or --json it writes nothing. TIRAMI_BENCH_NODE names the node that
                     runs node-llama-cpp: else the system's, from 20 on, else one of a wheel
  soak --minutes N   ten nodes at full load for so long; 10080 are a week. From 10 on it writes
                     docs/reference/soak.md
  sim [--nodes N] [--seed N] [--seeds K] [--seconds S] [--jobs J] [--calm]
                     whole nodes in one thread, as many as asked; a seed replays its run;
                     further flags as `tirami-sim` says
  growth [NODES…]    what a mesh costs as it grows, by simulation: table and picture of
                     docs/reference/mesh-simulation.md; `growth page` only writes them
  fuzz --seeds       write inputs for the fuzz targets into fuzz/corpus, from the golden files
  fuzz --check       do the fuzz targets compile? `test` asks it, too
  codegen [--check]  write the reference pages from the code, or fail when they are stale
";

/// Why a command stopped: one or more sentences for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure(String);

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What every part of this tool answers with.
type Outcome<T> = Result<T, Failure>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["demo"] => demo::demo(),
        ["test"] => suite::test(),
        ["test", "--relay"] => suite::relay(),
        ["ci"] => suite::ci(),
        ["tidy"] => tidy::tidy(),
        ["bench"] => bench::bench(),
        ["bench", "mesh", parts @ ..] => bench::bench_mesh(parts),
        ["bench", "serve", rest @ ..] => bench::bench_serve(rest),
        ["soak", "--minutes", minutes] => soak::soak(minutes),
        ["sim", rest @ ..] => suite::sim(rest),
        ["growth", sizes @ ..] => growth::growth(sizes),
        ["conformance"] => conformance::conformance(false),
        ["conformance", "--json"] => conformance::conformance(true),
        ["fuzz", "--check"] => fuzz::check(),
        ["fuzz", "--seeds"] => fuzz::seeds(),
        ["codegen"] => codegen::codegen(codegen::Mode::Write),
        ["codegen", "--check"] => codegen::codegen(codegen::Mode::Check),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            print!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("\nFAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}
