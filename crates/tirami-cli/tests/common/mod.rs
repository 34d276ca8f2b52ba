//! Real processes for the tests: the `tirami` binary in a home directory of its own, and a node
//! with the real model on a free port.

#![allow(dead_code, unreachable_pub, reason = "each test file uses the part it needs")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tirami_sdk::Client;

/// How long a node may take until it is ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long a process may take to end after it was told to.
const EXIT_MAX: Duration = Duration::from_secs(30);

/// The model's file: `TIRAMI_TEST_MODEL`, or the default model where `tirami models pull` puts it.
pub fn model() -> PathBuf {
    let path = std::env::var_os("TIRAMI_TEST_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::home_dir().expect("a home directory");
        home.join(".tirami/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    });
    assert!(
        path.is_file(),
        "{} is not there: run `tirami models pull smollm2:135m`, or name a GGUF file in \
         TIRAMI_TEST_MODEL",
        path.display()
    );
    path
}

/// The command in `home`, with no setting from outside.
pub fn tirami(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tirami"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIRAMI_") {
            command.env_remove(&name);
        }
    }
    command.env("HOME", home).env("NO_COLOR", "1").stdin(Stdio::null());
    // Nothing outside this machine takes part.
    command.env("TIRAMI_MESH_BIND", "127.0.0.1");
    command
}

/// What a finished command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The one JSON value on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not one JSON value ({error}): {self:?}"))
    }

    /// That it ended with `code`, saying `sentence` on stderr, and without a backtrace.
    #[track_caller]
    pub fn fails(&self, code: i32, sentence: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(sentence), "{sentence:?} not in {self:?}");
        assert!(!self.stderr.contains("backtrace"), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }

    #[track_caller]
    pub fn succeeds(&self) -> &Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// Runs the command to its end.
pub fn run(home: &Path, args: &[&str]) -> Ran {
    Ran::of(tirami(home).args(args).output().expect("the binary runs"))
}

/// A running node. Dropping it kills it.
pub struct Node {
    child: Child,
    /// The base URL the banner gave.
    pub api: String,
    pub data_dir: PathBuf,
    /// The banner, line by line.
    pub banner: Vec<String>,
    /// From spawning to `ready`.
    pub started_in: Duration,
    home: PathBuf,
}

impl Node {
    /// Starts a node with the data directory `home/data` on a free port and waits until it is
    /// ready.
    pub fn start(home: &Path) -> Self {
        Self::start_with(home, "data", &[])
    }

    /// The same with the data directory `home/<dir>` and more arguments; where the first of them is
    /// `--model`, they name all models.
    pub fn start_with(home: &Path, dir: &str, args: &[&str]) -> Self {
        Self::start_under(home, dir, args, &[])
    }

    /// The same with variables in its environment.
    pub fn start_under(home: &Path, dir: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let begun = Instant::now();
        let data_dir = home.join(dir);
        let mut command = command(home, &data_dir, args);
        command.envs(variables.iter().copied());
        let mut child = command.spawn().expect("the binary runs");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut banner: Vec<String> = Vec::new();
        while banner.last().is_none_or(|line| line != "ready") {
            let left = READY_MAX.saturating_sub(begun.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => banner.push(line),
                Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!("the node is not ready: {banner:?}\n{}", log.join().unwrap());
                }
            }
        }
        let api = banner.iter().find_map(|line| line.strip_prefix("API: "));
        let api = api.expect("the banner names the API").to_owned();
        let started_in = begun.elapsed();
        Self { child, api, data_dir, banner, started_in, home: home.to_path_buf() }
    }

    /// What a start that must fail leaves behind.
    pub fn refused(home: &Path, dir: &str, args: &[&str]) -> Ran {
        let output = command(home, &home.join(dir), args).output().expect("the binary runs");
        Ran::of(output)
    }

    /// Runs a command against this node.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("the binary runs"))
    }

    /// A command against this node, not run yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = tirami(&self.home);
        command.arg("--data-dir").arg(&self.data_dir).args(["--url", &self.api]).args(args);
        command
    }

    /// The admin API key.
    pub fn admin_key(&self) -> String {
        let path = self.data_dir.join("api_token");
        std::fs::read_to_string(path).expect("the admin key is there").trim().to_owned()
    }

    /// A client with the admin API key.
    pub fn admin(&self) -> Client {
        Client::new(&self.api, Some(&self.admin_key())).unwrap()
    }

    /// A client without an API key: the personal agent.
    pub fn personal(&self) -> Client {
        Client::new(&self.api, None).unwrap()
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill_9(&mut self) {
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("the process ends");
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        signal(self.pid(), "INT");
    }

    /// Waits until the process ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be waited for") {
                return status;
            }
            assert!(begun.elapsed() < EXIT_MAX, "the node does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process this test started.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

fn command(home: &Path, data_dir: &Path, args: &[&str]) -> Command {
    let mut command = tirami(home);
    command.args(["start", "--port", "0", "--data-dir"]).arg(data_dir);
    if !args.contains(&"--no-model") && args.first() != Some(&"--model") {
        command.arg("--model").arg(model());
    }
    command.args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
