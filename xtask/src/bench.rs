//! `cargo xtask bench`: runs the measurements and writes them down with the machine they are of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Steps, cargo, output, run_watched};
use crate::setup::{Scope, setup};
use crate::{Failure, Outcome, clients, model, workspace};

const PAGE: &str = "docs/reference/bench.md";
const MESH_PAGE: &str = "docs/reference/bench-mesh.md";
const SERVE_PAGE: &str = "docs/reference/bench-serve.md";
const SERVE_CURVE: &str = "docs/reference/serve.svg";

/// The bench of the `tirami-cli` package that prints the table; its other output goes to stderr.
const BENCH: [&str; 4] = ["bench", "--workspace", "--bench", "node"];

/// The one of the `tirami-node` package, which needs no model.
const MESH_BENCH: [&str; 4] = ["bench", "--workspace", "--bench", "mesh"];

/// The one that compares serving with what a user would take instead.
const SERVE_BENCH: [&str; 4] = ["bench", "--workspace", "--bench", "serve"];

/// The oldest node that runs node-llama-cpp.
const NODE_MAJOR_MIN: u32 = 20;

/// Measures and writes the page. Nothing else should run on the machine meanwhile.
pub(crate) fn bench() -> Outcome<()> {
    let mut steps = Steps::new(4);
    steps.step("what this machine needs", || setup(Scope::Demo))?;
    steps.step("build", || {
        run_watched(&mut cargo(["build", "--release", "--workspace", "--bins"]))
    })?;
    let model = steps.step("fetch the default model", model::fetch)?;
    let table = steps.step("measure", || {
        let mut command = cargo(BENCH);
        command.env("TIRAMI_TEST_MODEL", &model);
        command.env("TIRAMI_TEST_BINARY", workspace::release_binary("tirami"));
        output(&mut command)
    })?;
    let intro = "# Measurements\n\nWritten by `cargo xtask bench`; medians, and ratios to what they \
                 are compared with in the same run.";
    publish(PAGE, intro, &table)
}

/// Measures what a mesh costs and writes its page, unless only some parts are asked for. Nothing
/// else should run meanwhile.
pub(crate) fn bench_mesh(parts: &[&str]) -> Outcome<()> {
    let mut steps = Steps::new(2);
    steps.step("build", || run_watched(cargo(MESH_BENCH).arg("--no-run")))?;
    let mut command = cargo(MESH_BENCH);
    if !parts.is_empty() {
        command.arg("--").args(parts);
    }
    let table = steps.step("measure", || output(&mut command))?;
    if !parts.is_empty() {
        print!("\n{table}");
        return Ok(());
    }
    let intro = "# Measurements of the mesh\n\nWritten by `cargo xtask bench mesh`: real nodes with \
                 scripted engines on loopback, clients and nodes in one process. Medians of \
                 alternating rounds, and ratios to what they are compared with in the same run.";
    publish(MESH_PAGE, intro, &table)
}

/// Compares serving with other servers and with bare loops, and writes its page and curve, unless
/// only some parts or JSON are asked for. Nothing else should run meanwhile.
pub(crate) fn bench_serve(arguments: &[&str]) -> Outcome<()> {
    let mut steps = Steps::new(5);
    steps.step("what this machine needs", || setup(Scope::Demo))?;
    steps.step("build", || {
        run_watched(&mut cargo(["build", "--release", "--workspace", "--bins"]))?;
        run_watched(cargo(SERVE_BENCH).arg("--no-run"))
    })?;
    let model = steps.step("fetch the default model", model::fetch)?;
    let peers = steps.step("install the peers", || Ok((llama_server(), node_llama_cpp())))?;
    let mut command = cargo(SERVE_BENCH);
    command.arg("--").args(arguments);
    command.env("TIRAMI_TEST_MODEL", &model);
    command.env("TIRAMI_TEST_BINARY", workspace::release_binary("tirami"));
    if let Some(python) = peers.0 {
        command.env("TIRAMI_BENCH_LLAMA_SERVER_PYTHON", python);
    }
    if let Some((node, folder)) = peers.1 {
        command.env("TIRAMI_BENCH_NODE", node).env("TIRAMI_BENCH_NODE_LLAMA_CPP", folder);
    }
    let takes_value = |at: usize| at > 0 && arguments[at - 1] == "--rounds";
    let is_part = |at: usize| !arguments[at].starts_with('-') && !takes_value(at);
    let is_whole = !arguments.contains(&"--json") && !(0..arguments.len()).any(is_part);
    if is_whole {
        command.arg("--curve").arg(workspace::root().join(SERVE_CURVE));
    }
    let table = steps.step("measure", || output(&mut command))?;
    if !is_whole {
        print!("{table}");
        return Ok(());
    }
    let intro = "# Measurements of serving\n\nWritten by `cargo xtask bench serve`: the `tirami` \
                 binary, llama.cpp's own server, servers that others wrote around llama.cpp, and \
                 bare loops without a server, with the same model file and the same number of \
                 threads, in alternating rounds; medians. In brackets is what Tirami has of each \
                 figure. No contender keeps prompts, and no two prompts begin alike, except where \
                 a line is about that. Tirami reads prompts 32 tokens a pass and keeps values as \
                 bf16, so that an answer is the same bits alone and among others (`reproducible`); \
                 llama.cpp's usual setting is not.\n\n\
                 ![Tokens per second by streams](serve.svg)";
    publish(SERVE_PAGE, intro, &table)
}

/// The Python that has llama.cpp's own server; none with a notice where it cannot be installed.
fn llama_server() -> Option<PathBuf> {
    let installed = clients::install_llama_server();
    installed.inspect_err(|failure| println!("skipped: {failure}")).ok()
}

/// Where node and the peer's server are; none with a notice where they cannot be installed.
fn node_llama_cpp() -> Option<(PathBuf, PathBuf)> {
    let source = workspace::root().join("tests/peers/node-llama-cpp");
    let installed = clients::install_python().and_then(|programs| {
        let folder = clients::install_node_package(&programs, &source, &["server.mjs"])?;
        Ok((peers_node(&programs), folder))
    });
    installed.inspect_err(|failure| println!("skipped: {failure}")).ok()
}

/// What runs node-llama-cpp: the node that `TIRAMI_BENCH_NODE` names, else the system's where it is
/// new enough, else the one beside npm. What the peer brings compiled is made for the node people
/// install; in one out of a Python wheel it may crash.
fn peers_node(programs: &Path) -> PathBuf {
    if let Some(named) = std::env::var_os("TIRAMI_BENCH_NODE").filter(|named| !named.is_empty()) {
        return named.into();
    }
    let version = output(Command::new("node").arg("--version")).unwrap_or_default();
    let is_new = major(&version).is_some_and(|major| major >= NODE_MAJOR_MIN);
    if is_new { "node".into() } else { programs.join("node") }
}

/// The first number of a version as node tells it, such as `v20.19.2`.
fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Shows a table, and writes it with `intro` and the machine.
pub(crate) fn publish(page: &str, intro: &str, table: &str) -> Outcome<()> {
    if !table.contains("\n|---") && !table.contains("\n| ---") {
        return Err(Failure::new(format!("the bench printed no table:\n{table}")));
    }
    print!("\n{table}");
    let text = format!("{intro}\n\nMachine: {}.\n\n{}\n", machine(), table.trim());
    workspace::write(&workspace::root().join(page), &text)?;
    println!("\nwrote {page}");
    Ok(())
}

/// The machine in one line: processor, cores, memory, file system, kernel.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut parts = Vec::new();
    parts.push(processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned()));
    parts.push(format!("{cores} cores"));
    parts.extend(memory());
    parts.extend(file_system(&workspace::target_dir()));
    let mut kernel = Command::new("uname");
    parts.extend(output(kernel.args(["-s", "-r"])).ok().map(|text| text.trim().to_owned()));
    parts.join(", ")
}

fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory() -> Option<String> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemTotal"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(format!("{} GiB of memory", kib.div_ceil(1024 * 1024)))
}

/// The type of the file system that holds `folder`: the longest mount point above it.
fn file_system(folder: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let kind = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(point, _)| folder.starts_with(point))
        .max_by_key(|(point, _)| point.len())?
        .1;
    Some(format!("{kind} file system"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_node_is_known_by_its_first_number() {
        for (told, expected) in [("v20.20.2\n", Some(20)), ("v9.1", Some(9)), ("", None)] {
            assert_eq!(major(told), expected, "{told}");
        }
    }
}
