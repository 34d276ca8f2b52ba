//! Clients that others wrote, against a real node with the real model.
//!
//! They are installed with exact versions into a cache outside the tree, once for each change of
//! the pins. `cargo xtask test` runs openai-python and openai-node; `cargo xtask conformance` has
//! the whole matrix.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::http::Api;
use crate::json::literal;
use crate::node::{Node, NodeDir};
use crate::process::run;
use crate::{Failure, Outcome, model, workspace};

/// The scripts and pins.
pub(crate) const FOLDER: &str = "tests/clients";

/// Starts a node and lets each client do what its users do.
pub(crate) fn clients() -> Outcome<()> {
    let programs = install_python()?;
    let node_folder = install_node(&programs)?;
    let node = NodeDir::empty("clients")?.start()?;
    unlimited(&node)?;
    let key = key_with(&node, "{}")?;
    for script in ["python/client.py", "python/surface.py"] {
        let script = workspace::root().join(FOLDER).join(script);
        let mut python = Command::new(programs.join("python"));
        run(for_client(&mut python, &node.admin, &key).arg(script))?;
    }
    let script = node_folder.join("client.mjs");
    let mut javascript = Command::new(programs.join("node"));
    run(for_client(&mut javascript, &node.admin, &key).arg(script))?;
    node.stop()
}

/// Takes away the limits that guard people against programs that ask as fast as these do.
pub(crate) fn unlimited(node: &Node) -> Outcome<()> {
    let status = node.admin.get("/v1/tirami/status")?;
    for target in ["node", status.text("personal_agent")?] {
        let body = format!(r#"{{"target": {}, "limits": {{}}}}"#, literal(target));
        node.admin.post("/v1/tirami/policy", &body)?;
    }
    Ok(())
}

/// An API key that pays from the personal agent, as an owner would hand it to a program, with
/// these limits of its own.
pub(crate) fn key_with(node: &Node, limits: &str) -> Outcome<String> {
    let status = node.admin.get("/v1/tirami/status")?;
    let agent = literal(status.text("personal_agent")?);
    let body = format!(
        r#"{{"label": "clients", "scope": "inference", "agent": {agent}, "limits": {limits}}}"#
    );
    Ok(node.admin.post("/v1/tirami/keys", &body)?.text("key")?.to_owned())
}

fn for_client<'a>(command: &'a mut Command, api: &Api, key: &str) -> &'a mut Command {
    command
        .env("OPENAI_BASE_URL", format!("http://{}/v1", api.address))
        .env("OPENAI_API_KEY", key)
        .env("CLIENT_MODEL", model::DEFAULT)
}

/// A virtual environment with openai-python, and with node and npm from a wheel: the version
/// that openai-node asks for, whatever the system has.
pub(crate) fn install_python() -> Outcome<PathBuf> {
    venv("python", &workspace::root().join(FOLDER).join("python/requirements.txt"))
}

/// A virtual environment of this name with what `pins` says; gives the folder of its programs.
pub(crate) fn venv(name: &str, pins: &Path) -> Outcome<PathBuf> {
    let venv = cache().join(name);
    let programs = venv.join("bin");
    once(&venv, pins, || {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run(Command::new(programs.join("python")).args(install).arg(pins))
    })?;
    Ok(programs)
}

/// Where clients are installed: the user's cache, or cargo's output where there is none.
fn cache() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty());
    let home = || of("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = of("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(workspace::target_dir).join("tirami-clients")
}

pub(crate) fn install_node(programs: &Path) -> Outcome<PathBuf> {
    let source = workspace::root().join(FOLDER).join("node");
    install_node_package(programs, &source, "client.mjs")
}

/// Installs what the `package.json` of `source` names in the user's cache, and puts the script
/// there.
pub(crate) fn install_node_package(
    programs: &Path,
    source: &Path,
    script: &str,
) -> Outcome<PathBuf> {
    let folder = cache().join(source.file_name().unwrap_or_default());
    once(&folder, &source.join("package.json"), || {
        workspace::copy_text(source, &folder, "package.json")?;
        let quiet = ["install", "--no-package-lock", "--no-audit", "--no-fund"];
        let mut npm = Command::new(programs.join("npm"));
        run(npm.args(quiet).current_dir(&folder).env("PATH", path_with(programs)))
    })?;
    // The script stands beside node_modules, because node looks for packages from there.
    workspace::copy_text(source, &folder, script)?;
    Ok(folder)
}

/// `PATH` with `programs` in front: npm is a script that looks for node.
fn path_with(programs: &Path) -> OsString {
    let mut path = programs.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

/// Runs `install` unless it succeeded before with the same pins.
fn once(folder: &Path, pins: &Path, install: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let wanted = workspace::read(pins)?;
    let mark = folder.join("installed-pins");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    install().map_err(|failure| {
        Failure::new(format!("a client could not be installed; is there a network?\n{failure}"))
    })?;
    workspace::write(&mark, &wanted)
}
