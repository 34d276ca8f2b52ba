//! A real node as a child process: started, asked, stopped, or killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::http::Api;
use crate::{Failure, Outcome, model, workspace};

/// How long a node may take from its start to `ready`, the model's loading included.
const READY_MAX: Duration = Duration::from_secs(60);

/// How long a node may take to drain and exit.
const STOP_MAX: Duration = Duration::from_secs(30);

/// A running node. Dropping it kills it.
pub(crate) struct Node {
    child: Child,
    /// Its API, called as the admin.
    pub(crate) admin: Api,
    /// From the start of the process to `ready`.
    pub(crate) ready_after: Duration,
}

/// A folder for one node and everything it writes, below cargo's output.
pub(crate) struct NodeDir {
    folder: PathBuf,
}

impl NodeDir {
    /// An empty folder of this name; what an earlier run left is removed.
    pub(crate) fn empty(name: &str) -> Outcome<Self> {
        Self::with_config(name, "# Every setting at its default.\n")
    }

    /// The same with this config file.
    pub(crate) fn with_config(name: &str, config: &str) -> Outcome<Self> {
        let folder = workspace::target_dir().join("nodes").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| {
                Failure::new(format!("cannot empty {}: {error}", folder.display()))
            })?;
        }
        workspace::write(&folder.join("config.toml"), config)?;
        Ok(Self { folder })
    }

    /// The node's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The `tirami` command, deaf to the settings of whoever runs this.
    pub(crate) fn tirami(&self) -> Command {
        let mut command = Command::new(workspace::release_binary("tirami"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("TIRAMI_") && name != "TIRAMI_MODELS_DIR" {
                command.env_remove(name.as_ref());
            }
        }
        command.env("TIRAMI_CONFIG", self.folder.join("config.toml"));
        command.env("TIRAMI_DATA_DIR", self.data());
        // Nothing outside this machine takes part.
        command.env("TIRAMI_MESH_BIND", "127.0.0.1");
        command
    }

    /// Starts a node with the default model on a free port and waits until it is ready.
    pub(crate) fn start(&self) -> Outcome<Node> {
        self.start_with(&["--model", model::DEFAULT])
    }

    /// The same with other arguments.
    pub(crate) fn start_with(&self, arguments: &[&str]) -> Outcome<Node> {
        let log = self.folder.join("node.log");
        let stderr =
            File::options().create(true).append(true).open(&log).map_err(|error| {
                Failure::new(format!("cannot write {}: {error}", log.display()))
            })?;
        let begun = Instant::now();
        let mut child = self
            .tirami()
            .args(["start", "--port", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| Failure::new(format!("cannot start the node: {error}")))?;
        let lines = child.stdout.take().map(lines_of);
        // From here on the node is killed when anything fails.
        let mut node = Node {
            child,
            admin: Api { address: String::new(), key: None },
            ready_after: Duration::ZERO,
        };
        let banner = lines.map_or_else(Vec::new, |lines| banner(&lines));
        if banner.last().is_none_or(|line| line != "ready") {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(Failure::new(format!(
                "the node did not become ready; it printed\n{}\n{said}",
                banner.join("\n")
            )));
        }
        node.ready_after = begun.elapsed();
        node.admin = Api { address: after(&banner, "API: http://")?, key: None };
        node.admin.key =
            Some(workspace::read(Path::new(&after(&banner, "API key: ")?))?.trim().into());
        Ok(node)
    }
}

impl Node {
    /// The API as a program on the same machine sees it: no key.
    pub(crate) fn loopback(&self) -> Api {
        Api { key: None, ..self.admin.clone() }
    }

    /// Ends the process as a power cut would.
    pub(crate) fn kill(&mut self) -> Outcome<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(|_| ())
            .map_err(|error| Failure::new(format!("cannot kill the node: {error}")))
    }

    /// Interrupts the node and waits for it to exit with 0.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        let pid = self.child.id().to_string();
        crate::process::output(Command::new("kill").args(["-INT", &pid]))?;
        let begun = Instant::now();
        while begun.elapsed() < STOP_MAX {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(Failure::new(format!("the node stopped with {status}, not 0")));
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
        Err(Failure::new(format!("the node did not stop within {} s", STOP_MAX.as_secs())))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the node's output in the background for as long as it lives, so that it never blocks.
fn lines_of(pipe: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// The lines up to `ready`, or what came before the node stopped or the time was up.
fn banner(lines: &Receiver<String>) -> Vec<String> {
    let mut banner = Vec::new();
    let begun = Instant::now();
    while let Ok(line) = lines.recv_timeout(READY_MAX.saturating_sub(begun.elapsed())) {
        let ready = line == "ready";
        banner.push(line);
        if ready {
            break;
        }
    }
    banner
}

fn after(banner: &[String], prefix: &str) -> Outcome<String> {
    banner
        .iter()
        .find_map(|line| line.strip_prefix(prefix))
        .map(|rest| rest.trim_end_matches('/').to_owned())
        .ok_or_else(|| Failure::new(format!("the node printed no line with `{prefix}`")))
}
