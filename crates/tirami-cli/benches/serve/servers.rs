//! The contenders: the `tirami` binary, llama.cpp's own server, and servers around llama.cpp that
//! others wrote.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tirami_sdk::Client;
use tirami_sdk::types::PolicyRequest;

use crate::bench::{model_path, threads};

/// How long a server may take to answer its first request.
const READY_MAX: Duration = Duration::from_secs(60);

/// A running server; it is ended with its last user.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    /// Host and port.
    pub(crate) address: String,
    /// The name its model is asked for by.
    pub(crate) model: String,
    /// Whether it answers several requests at the same time.
    pub(crate) batches: bool,
    /// Whether it is a server of others, by which the node is judged.
    pub(crate) is_peer: bool,
    process: Arc<Process>,
}

struct Process {
    child: Child,
    _dir: Option<tempfile::TempDir>,
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    /// Resident memory in MiB, as the system counts it; NaN where it does not say.
    pub(crate) fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib / 1_024.0)
    }
}

/// A node with its ledger, limits that are never reached, and no mesh.
pub(crate) fn tirami(sequences: u32, context_tokens: u32, reproducible: bool) -> Server {
    let binary = std::env::var_os("TIRAMI_TEST_BINARY").expect("TIRAMI_TEST_BINARY is set");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIRAMI_") {
            command.env_remove(name);
        }
    }
    command
        .args(["start", "--port", "0", "--mesh-enabled", "false", "--log", "warn"])
        .args(["--personal-agent-answers", "1000000", "--model"])
        .arg(model_path())
        .args(["--sequences", &sequences.to_string()])
        .args(["--context-tokens", &context_tokens.to_string()])
        .args(["--threads", &threads().to_string()])
        .args(["--reproducible", if reproducible { "true" } else { "false" }])
        .arg("--data-dir")
        .arg(dir.path())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut url = None;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("text");
        url = line.strip_prefix("API: ").map(str::to_owned).or(url);
        if line == "ready" {
            break;
        }
    }
    let url = url.expect("the node says where its API is");
    let model = without_limits(&url, dir.path());
    let address = url.trim_start_matches("http://").to_owned();
    let process = Arc::new(Process { child, _dir: Some(dir) });
    let name = if reproducible { "Tirami" } else { "Tirami, not reproducible" };
    Server { name, address, model, batches: true, is_peer: false, process }
}

/// Lifts the limits that guard people against programs that ask as fast as this one; gives the
/// model's name.
fn without_limits(url: &str, data_dir: &Path) -> String {
    let key = std::fs::read_to_string(data_dir.join("api_token")).expect("the admin's API key");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = Client::new(url, Some(key.trim())).expect("a client");
        let agent = client.status().await.expect("the status").personal_agent;
        for target in ["node".to_owned(), agent] {
            let limits = serde_json::from_str("{}").expect("limits");
            client.set_policy(&PolicyRequest { target, limits }).await.expect("no limits");
        }
        client.models().await.expect("the models").data[0].id.clone()
    })
}

/// The servers of others, or why one of them is not here.
pub(crate) fn peers(sequences: u32, context_tokens: u32) -> [Result<Server, String>; 3] {
    [
        llama_server(sequences, context_tokens),
        node_llama_cpp(sequences, context_tokens),
        llama_cpp_python(context_tokens),
    ]
}

/// llama.cpp's own server, as `tests/peers` starts it.
pub(crate) fn llama_server(sequences: u32, context_tokens: u32) -> Result<Server, String> {
    let Some(python) = std::env::var_os("TIRAMI_BENCH_LLAMA_SERVER_PYTHON") else {
        return Err("llama-server could not be installed and is not here".to_owned());
    };
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/llama-server/server.py");
    let mut command = Command::new(python);
    command.arg(script).stdin(Stdio::piped()).stderr(Stdio::null());
    Ok(listening("llama-server", command, [threads(), sequences, context_tokens]))
}

/// Starts a server of `tests/peers`, which says where it listens.
fn listening(name: &'static str, mut command: Command, numbers: [u32; 3]) -> Server {
    command.arg(model_path()).args(numbers.map(|number| number.to_string())).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the server runs");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let port = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("listening ").map(|port| port.trim().to_owned()))
        .expect("the server listens");
    Server {
        name,
        address: format!("127.0.0.1:{port}"),
        model: "model".to_owned(),
        batches: true,
        is_peer: true,
        process: Arc::new(Process { child, _dir: None }),
    }
}

/// `node-llama-cpp` behind the server of `tests/peers`.
pub(crate) fn node_llama_cpp(sequences: u32, context_tokens: u32) -> Result<Server, String> {
    let Some(folder) = std::env::var_os("TIRAMI_BENCH_NODE_LLAMA_CPP").map(PathBuf::from) else {
        return Err("node-llama-cpp could not be installed and is not here".to_owned());
    };
    let program = std::env::var_os("TIRAMI_BENCH_NODE").unwrap_or_else(|| "node".into());
    let mut command = Command::new(program);
    command.arg(folder.join("server.mjs"));
    Ok(listening("node-llama-cpp", command, [threads(), sequences, context_tokens]))
}

/// The server of `llama-cpp-python`, which answers one request after another.
fn llama_cpp_python(context_tokens: u32) -> Result<Server, String> {
    let Some(python) = std::env::var_os("TIRAMI_BENCH_LLAMA_CPP_PYTHON") else {
        let why = "llama-cpp-python, which has to be built for twenty minutes, is here only where \
                   TIRAMI_BENCH_LLAMA_CPP_PYTHON names a Python that has it";
        return Err(why.to_owned());
    };
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("an address").port()
    };
    let threads = threads().to_string();
    let mut command = Command::new(python);
    command
        .args(["-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", &port.to_string()])
        .args(["--n_ctx", &context_tokens.to_string(), "--interrupt_requests", "False"])
        .args(["--n_threads", &threads, "--n_threads_batch", &threads, "--verbose", "False"])
        .arg("--model")
        .arg(model_path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().expect("python runs");
    let address = format!("127.0.0.1:{port}");
    let process = Arc::new(Process { child, _dir: None });
    let started = Instant::now();
    while TcpStream::connect(&address).is_err() {
        if started.elapsed() > READY_MAX {
            return Err("the server of llama-cpp-python did not listen and is not here".to_owned());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let model = "model".to_owned();
    let name = "llama-cpp-python";
    Ok(Server { name, address, model, batches: false, is_peer: true, process })
}
