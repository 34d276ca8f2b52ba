//! Clients that others wrote, against a real node with the real model.
//!
//! Both are installed with exact versions into folders below cargo's output, once for each
//! change of the pins.

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
const FOLDER: &str = "tests/clients";

/// Starts a node and lets each client do what its users do.
pub(crate) fn clients() -> Outcome<()> {
    let programs = install_python()?;
    let node_folder = install_node(&programs)?;
    let node = NodeDir::empty("clients")?.start()?;
    let key = inference_key(&node)?;
    let script = workspace::root().join(FOLDER).join("python/client.py");
    let mut python = Command::new(programs.join("python"));
    run(for_client(&mut python, &node.admin, &key).arg(script))?;
    let script = node_folder.join("client.mjs");
    let mut javascript = Command::new(programs.join("node"));
    run(for_client(&mut javascript, &node.admin, &key).arg(script))?;
    node.stop()
}

/// An API key that pays from the personal agent, as an owner would hand it to a program.
fn inference_key(node: &Node) -> Outcome<String> {
    let status = node.admin.get("/v1/tirami/status")?;
    let agent = status.text("personal_agent")?;
    // The defaults guard people against programs that ask as fast as these do.
    for target in ["node", agent] {
        let body = format!(r#"{{"target": {}, "limits": {{}}}}"#, literal(target));
        node.admin.post("/v1/tirami/policy", &body)?;
    }
    let body =
        format!(r#"{{"label": "clients", "scope": "inference", "agent": {}}}"#, literal(agent));
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
    let pins = workspace::root().join(FOLDER).join("python/requirements.txt");
    let venv = workspace::target_dir().join("clients").join("python");
    let programs = venv.join("bin");
    once(&venv, &pins, || {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run(Command::new(programs.join("python")).args(install).arg(&pins))
    })?;
    Ok(programs)
}

fn install_node(programs: &Path) -> Outcome<PathBuf> {
    let source = workspace::root().join(FOLDER).join("node");
    install_node_package(programs, &source, "client.mjs")
}

/// Installs what the `package.json` of `source` names below cargo's output, and puts the script
/// there.
pub(crate) fn install_node_package(
    programs: &Path,
    source: &Path,
    script: &str,
) -> Outcome<PathBuf> {
    let name = source.file_name().unwrap_or_default();
    let folder = workspace::target_dir().join("clients").join(name);
    once(&folder, &source.join("package.json"), || {
        copy(source, &folder, "package.json")?;
        let quiet = ["install", "--no-package-lock", "--no-audit", "--no-fund"];
        let mut npm = Command::new(programs.join("npm"));
        run(npm.args(quiet).current_dir(&folder).env("PATH", path_with(programs)))
    })?;
    // The script stands beside node_modules, because node looks for packages from there.
    copy(source, &folder, script)?;
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

fn copy(from: &Path, to: &Path, name: &str) -> Outcome<()> {
    workspace::write(&to.join(name), &workspace::read(&from.join(name))?)
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
