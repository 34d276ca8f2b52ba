//! `cargo xtask test` and `ci`: everything that must pass, in one command.
//!
//! All of it uses one cargo profile and one output folder, so that llama.cpp is compiled once, and
//! one build makes every program and every test; that what ships also compiles without the features
//! that only tests turn on is checked with the lints.
//! A step that fails stops the run and names the command that repeats it alone.

use std::process::Command;

use crate::process::{Steps, TestCount, cargo, output, run_watched};
use crate::setup::{Scope, setup};
use crate::{Failure, Outcome, clients, codegen, demo, fuzz, model, programs, tidy, workspace};

/// A simulation of 40 worlds with 25 000 events each: a million in all.
const SIMULATION: [&str; 4] = ["--seeds", "40", "--events", "25000"];

/// Simulations of whole nodes, all with liars, faults of disks and networks, and as many dishonest
/// witnesses as the seed draws: many small meshes and a few large ones, none with a broken
/// invariant. Where members keep few chains memory holds a thousand nodes, twice.
const SIMULATIONS_OF_NODES: [&[&str]; 4] = [
    &["--nodes", "50", "--seeds", "100", "--seconds", "60", "--pause", "8000"],
    &["--nodes", "50", "--seeds", "25", "--seconds", "60", "--pause", "8000", "--keep-own"],
    &["--nodes", "300", "--seeds", "2", "--seconds", "40", "--pause", "30000"],
    &[
        "--nodes",
        "1000",
        "--seeds",
        "2",
        "--seconds",
        "30",
        "--pause",
        "100000",
        "--keep-own",
        "--least-events",
        "1000000",
    ],
];

/// Runs everything.
pub(crate) fn test() -> Outcome<()> {
    let mut steps = Steps::new(12);
    steps.step("what this machine needs", || setup(Scope::Test))?;
    steps.step("tidy", tidy::tidy)?;
    steps.step("formatting", || run_watched(&mut cargo(["fmt", "--all", "--check"])))?;
    let tests = steps.step("build", programs::build)?;
    let model = steps.step("fetch the default model", model::fetch)?;
    steps.step("reference pages", || codegen::pages(codegen::Mode::Check))?;
    steps.step("outside clients", clients::clients)?;
    steps.step("demonstration", demo::walk_through)?;
    steps.step("simulation", simulate)?;
    steps.step("lints and documentation", lints_and_documentation)?;
    steps.step("type check of the fuzz targets", fuzz::check)?;
    let results = steps.step("tests", || programs::run(tests, &model))?;
    steps.summary();
    let TestCount { passed, failed } = results.count;
    println!("\ntests: {passed} passed, {failed} failed");
    if !results.skipped.is_empty() {
        println!("of those that passed, skipped on this machine: {}", results.skipped.len());
        results.skipped.iter().for_each(|notice| println!("  {notice}"));
    }
    Ok(())
}

/// Builds iroh's relay and runs the tests that need one. It is some 270 crates more, a minute and a
/// half of two processors, so [`test`] leaves it out.
pub(crate) fn relay() -> Outcome<()> {
    let mut steps = Steps::new(2);
    let root = workspace::target_dir().join("relay");
    steps.step("build the relay", || {
        let version = iroh_version()?;
        let mut install = cargo(["install", "iroh-relay", "--locked", "--debug", "--version"]);
        install.arg(version).args(["--features", "server", "--config", "profile.dev.debug=0"]);
        crate::process::run(install.arg("--root").arg(&root))
    })?;
    let program = format!("iroh-relay{}", std::env::consts::EXE_SUFFIX);
    let count = steps.step("tests", || {
        let relayed = ["--test", "mesh", "relay", "--", "--ignored"];
        let mut command = cargo(["test", "--release", "--workspace"]);
        command.args(relayed);
        run_watched(command.env("TIRAMI_TEST_RELAY", root.join("bin").join(program)))
    })?;
    steps.summary();
    println!("\ntests: {} passed, {} failed", count.passed, count.failed);
    Ok(())
}

/// The version of iroh that nodes are built with: a relay of the same one is tested.
fn iroh_version() -> Outcome<String> {
    let manifest = workspace::read(&workspace::root().join("Cargo.toml"))?;
    let line = manifest.lines().find_map(|line| line.strip_prefix("iroh = { version = \""));
    let version = line.and_then(|rest| rest.split('"').next());
    version.map(str::to_owned).ok_or_else(|| Failure::new("Cargo.toml does not pin iroh"))
}

/// Runs everything, and fails when it left the tree different from what is committed.
pub(crate) fn ci() -> Outcome<()> {
    let before = tracked_changes()?;
    test()?;
    let after = tracked_changes()?;
    if before == after {
        return Ok(());
    }
    Err(Failure::new(format!("the run changed tracked files:\n{after}")))
}

fn tracked_changes() -> Outcome<String> {
    let root = workspace::root();
    output(Command::new("git").args(["diff", "--stat"]).current_dir(root))
}

/// Builds what ships, without the features that only tests turn on.
pub(crate) fn build() -> Outcome<TestCount> {
    run_watched(&mut cargo(["build", "--release", "--workspace", "--bins"]))
}

fn lints_and_documentation() -> Outcome<()> {
    run_watched(&mut cargo(["check", "--release", "--workspace", "--bins"]))?;
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run_watched(&mut cargo(clippy))?;
    let mut doc = cargo(["doc", "--release", "--workspace", "--no-deps", "--lib"]);
    run_watched(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(())
}

/// Drives the real kernel through faults; a seed that breaks an invariant is printed.
fn simulate() -> Outcome<()> {
    let simulator = workspace::release_binary("tirami-sim");
    crate::process::run(Command::new(&simulator).args(SIMULATION))?;
    for arguments in SIMULATIONS_OF_NODES {
        crate::process::run(Command::new(&simulator).args(arguments))?;
    }
    Ok(())
}

/// Runs the simulator with whole nodes, as many and as long as asked.
pub(crate) fn sim(arguments: &[&str]) -> Outcome<()> {
    run_watched(&mut cargo(["build", "--release", "-p", "tirami-sim"]))?;
    let nodes = if arguments.contains(&"--nodes") { &[][..] } else { &["--nodes", "30"][..] };
    let simulator = workspace::release_binary("tirami-sim");
    crate::process::run(Command::new(simulator).args(nodes).args(arguments))
}
