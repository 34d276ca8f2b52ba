//! Five real nodes on five machines: a slow wire between each two that loses packets, a partition,
//! restarts, and a machine that moves.
//!
//! The machines are network namespaces, so this needs root and `ip`, and VXLAN or netem for the
//! wire; without them it says so and does nothing.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]
#![allow(clippy::print_stdout, reason = "what was measured, for whoever runs it with --nocapture")]

mod common;
#[path = "netns/lab.rs"]
mod lab;
#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, TRIPS};
use serde_json::{Value, json};
use skipped::skipped;

/// The machine that founded the mesh, which is its witness and has the model.
const WITNESS: usize = 1;
/// The machine with the model on the other side when the network is in two parts.
const PROVIDER: usize = 4;
/// The machine whose first tokens are measured.
const CONSUMER: usize = 3;
const ALL: [usize; 5] = [1, 2, 3, 4, 5];
const TOKENS: u32 = 12;

/// A little less than twice what the wire delays.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(55);
/// Questions whose first token is measured, at each of two nodes.
const FIRST_TOKENS: usize = 15;
/// What a hop may add to the first token beside one round trip, and what a busy machine may.
const HOP_MAX: Duration = Duration::from_millis(5);
const BUSY_MAX: Duration = Duration::from_millis(40);
// A second round trip is more than both.
const _: () = assert!(HOP_MAX.as_millis() + BUSY_MAX.as_millis() < ROUND_TRIP_MIN.as_millis());
const READY_WITHIN: Duration = Duration::from_secs(60);
const JOINED_WITHIN: Duration = Duration::from_secs(60);
/// One answer, with a provider that turns out to be gone in between.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// From the mending of the wire to one state on all machines, payments of both sides included.
const HEALED_WITHIN: Duration = Duration::from_secs(45);
/// From a debt to its payment.
const PAID_WITHIN: Duration = Duration::from_secs(20);
/// From the change of an address until the machine is of use again.
const MOVED_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn inside_a_namespace() {
    // This binary is also the doors and the wire of the lab.
    lab::play_role();
}

#[test]
fn a_mesh_survives_a_slow_wire_a_partition_restarts_and_a_move() {
    if let Some(reason) = lab::refusal() {
        skipped(format_args!("network namespaces need root and `ip` ({reason})"));
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let doors = tempfile::tempdir().unwrap();
    let lab = match Lab::new(doors.path()) {
        Ok(lab) => lab,
        Err(reason) => {
            skipped(reason);
            return;
        }
    };
    let trip = [(WITNESS, PROVIDER), (WITNESS, 2), (CONSUMER, PROVIDER)].map(|(from, to)| {
        let trips = lab.trips(from, to);
        let (shortest, lost) = (trips.shortest, trips.lost);
        println!("from {from} to {to} and back: {shortest:.1?}, {lost} of {TRIPS} were lost");
        assert!(shortest >= ROUND_TRIP_MIN, "the wire is said to be slow: {shortest:?}");
        assert!(lost > 0, "the wire is said to lose packets");
        shortest
    });
    let mut mesh = Mesh::start(home.path(), lab);
    mesh.both_providers_answer();
    mesh.a_hop_costs_one_round_trip(trip[2]);
    mesh.same_state("after the first jobs");
    mesh.partition();
    mesh.rolling_restarts();
    mesh.move_provider();
    mesh.same_state("at the end");
}

/// Digest of all chains, own entries that are not final, conservation.
type State = (String, u64, bool);

/// The lab with a node in each machine. Nodes end before the lab does.
struct Mesh {
    nodes: Vec<Option<Machine>>,
    lab: Lab,
    home: PathBuf,
    model: String,
}

impl Mesh {
    fn start(home: &Path, lab: Lab) -> Self {
        let nodes = ALL.iter().map(|_| None).collect();
        let mut mesh = Self { nodes, lab, home: home.to_path_buf(), model: String::new() };
        mesh.start_node(WITNESS, &[]);
        let models = mesh.get(WITNESS, "/v1/models");
        mesh.model = models["data"][0]["id"].as_str().unwrap().to_owned();
        let invite = mesh.invite();
        for machine in &ALL[1..] {
            mesh.start_node(*machine, &["--join", &invite]);
        }
        for machine in [2, 3, 5] {
            mesh.until("it knows both providers and has money", JOINED_WITHIN, || {
                let list = mesh.get(machine, "/v1/tirami/providers");
                let serving = |one: &&Value| one["connected"] == true && one["serving"] == true;
                let known = list["providers"]
                    .as_array()
                    .map_or(0, |list| list.iter().filter(serving).count());
                known >= 2 && mesh.available(machine) > 0
            });
        }
        mesh
    }

    fn start_node(&mut self, machine: usize, more: &[&str]) {
        let node = Machine::start(&self.lab, &self.home, machine, more);
        self.nodes[machine - 1] = Some(node);
    }

    fn node(&self, machine: usize) -> &Machine {
        self.nodes[machine - 1].as_ref().unwrap()
    }

    fn invite(&self) -> String {
        let node = self.node(WITNESS);
        let mut command =
            self.lab.command(WITNESS, common::tirami(&self.home).get_program().to_str().unwrap());
        clean(&mut command, &self.home);
        command.arg("--data-dir").arg(&node.data_dir);
        command.args(["--url", &format!("http://127.0.0.1:{}", node.port), "mesh", "invite"]);
        let ran = common::Ran::of(command.output().unwrap());
        ran.succeeds();
        ran.stdout.lines().last().unwrap().trim().to_owned()
    }

    /// Each consumer gets an answer of each provider it asks for.
    fn both_providers_answer(&self) {
        let providers = [self.party(WITNESS), self.party(PROVIDER)];
        for machine in [2, 3, 5] {
            for provider in &providers {
                let (answer, took) = self.ask(machine, &json!({"only": [provider]}));
                assert_eq!(provider_of(&answer), provider.as_str(), "{answer}");
                println!("{machine} was answered by {provider:.8} within {took:.0?}");
            }
        }
        // The list of peers says how far they are: each is behind a slow wire.
        let (peers, witness) = (self.get(5, "/v1/tirami/peers"), self.party(WITNESS));
        let peers = peers["peers"].as_array().cloned().unwrap_or_default();
        let far = peers.iter().find(|peer| peer["node_id"] == witness.as_str());
        let rtt_us = far.and_then(|peer| peer["rtt_us"].as_u64()).unwrap_or_default();
        assert!(rtt_us >= 50_000, "{far:?}");
    }

    /// The first token of another machine's answer comes a round trip later than at that machine.
    fn a_hop_costs_one_round_trip(&self, trip: Duration) {
        let provider = json!({"only": [self.party(PROVIDER)]});
        let (mut here, mut there) = (Vec::new(), Vec::new());
        // In turns, so that a busy machine slows both; the first of each fills caches. It makes
        // nothing quicker, so the quickest of each are compared.
        for round in 0..=FIRST_TOKENS {
            let asked = [(PROVIDER, &mut here), (CONSUMER, &mut there)];
            for (machine, times) in asked {
                let took = self.first_token(machine, &provider);
                times.extend((round > 0).then_some(took));
            }
        }
        let (here, there) = (here.into_iter().min().unwrap(), there.into_iter().min().unwrap());
        println!("first token at the provider: {here:.1?}, over a wire of {trip:.1?}: {there:.1?}");
        assert!(there <= here + trip + HOP_MAX + BUSY_MAX, "{there:?}, {here:?} at the provider");
    }

    /// Three machines with the witness and two without: jobs go on, and all agree afterwards.
    fn partition(&self) {
        let (left, right) = (self.party(WITNESS), self.party(PROVIDER));
        let trades = [2, 3, 5].map(|machine| self.trades(machine));
        let known = self.network(WITNESS, "entries_final");
        self.lab.cut();
        for round in 0..3 {
            for (machine, provider) in [(2, &left), (3, &left), (5, &right)] {
                let (answer, took) = self.ask(machine, &json!({}));
                assert_eq!(provider_of(&answer), provider.as_str(), "{answer}");
                println!("in two parts, round {round}: {machine} was answered within {took:.0?}");
            }
        }
        let (status, refused) = self.raw_ask(5, &json!({"only": [left]}));
        assert_eq!(status, 503, "nobody reaches through a cut wire: {refused}");
        for (machine, before) in [2, 3, 5].into_iter().zip(trades) {
            assert!(self.trades(machine) >= before + 3, "trades went on at {machine}");
        }
        self.until("payments are final beside the witness", PAID_WITHIN, || {
            self.network(WITNESS, "entries_final") > known
        });
        self.until("payments wait where there is no witness", PAID_WITHIN, || {
            self.network(5, "entries_pending") > 0
        });
        assert!(!self.is_settled(), "the parts know of each other's payments");
        self.lab.mend();
        self.same_state("after the wire was mended");
    }

    /// One machine after the other, while another one is asked.
    fn rolling_restarts(&mut self) {
        for machine in ALL {
            self.nodes[machine - 1].take().unwrap().stop();
            let asked = if machine == 5 { 3 } else { 5 };
            let (_, took) = self.ask(asked, &json!({}));
            println!("without {machine}: {asked} was answered within {took:.0?}");
            self.start_node(machine, &[]);
        }
        self.same_state("after all were restarted");
    }

    /// The provider gets another address; it is of use again before long.
    fn move_provider(&self) {
        let provider = self.party(PROVIDER);
        self.ask(5, &json!({"only": [provider]}));
        self.lab.move_machine(PROVIDER);
        let moved = Instant::now();
        for machine in [5, 2] {
            loop {
                let (status, answer) = self.raw_ask(machine, &json!({"only": [provider]}));
                if status == 200 {
                    break;
                }
                assert!(moved.elapsed() < ANSWERED_WITHIN, "{answer}");
                std::thread::sleep(Duration::from_millis(100));
            }
            let took = moved.elapsed();
            println!("{machine} was answered {took:.1?} after the provider had moved");
            assert!(took < MOVED_WITHIN, "{took:?}");
        }
    }

    /// Waits until every job is paid and every machine holds the same.
    fn same_state(&self, when: &str) {
        let begun = Instant::now();
        while !self.is_settled() {
            assert!(begun.elapsed() < HEALED_WITHIN, "no agreement {when}: {:#?}", self.states());
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("all paid and one state on all five, {when}, {:.1?}", begun.elapsed());
    }

    /// Whether nobody owes anything, nothing is under way, and all know the same entries.
    fn is_settled(&self) -> bool {
        let states = self.states();
        let owes = |machine| {
            let owed = &self.get(machine, "/v1/tirami/serving")["owed_trm"];
            owed.as_f64().is_none_or(|owed| owed > 0.0)
        };
        states.windows(2).all(|two| two[0].0 == two[1].0)
            && states.iter().all(|(_, pending, conserved)| *pending == 0 && *conserved)
            && ![WITNESS, PROVIDER].into_iter().any(owes)
    }

    fn states(&self) -> Vec<State> {
        let state = |machine| {
            let network = self.get(machine, "/v1/tirami/network");
            (
                network["lattice_state_hash"].to_string(),
                network["entries_pending"].as_u64().unwrap(),
                network["conserved"] == true,
            )
        };
        ALL.map(state).to_vec()
    }

    fn network(&self, machine: usize, field: &str) -> u64 {
        self.get(machine, "/v1/tirami/network")[field].as_u64().unwrap()
    }

    fn ask(&self, machine: usize, provider: &Value) -> (Value, Duration) {
        let begun = Instant::now();
        let (status, answer) = self.raw_ask(machine, provider);
        assert_eq!(status, 200, "{machine} was not answered: {answer}");
        let took = begun.elapsed();
        assert!(took < ANSWERED_WITHIN, "{took:?}");
        (answer, took)
    }

    fn raw_ask(&self, machine: usize, provider: &Value) -> (u16, Value) {
        let request = self.request(TOKENS, provider);
        self.call(machine, "POST", "/v1/chat/completions", &request.to_string())
    }

    fn request(&self, tokens: u32, provider: &Value) -> Value {
        json!({
            "model": self.model,
            "messages": [{"role": "user", "content": "Name a colour."}],
            "max_tokens": tokens,
            "temperature": 0,
            "provider": provider,
        })
    }

    /// How long a stream of one token takes until that token's text.
    fn first_token(&self, machine: usize, provider: &Value) -> Duration {
        let mut request = self.request(1, provider);
        request["stream"] = json!(true);
        let begun = Instant::now();
        let stream = self.send(machine, "POST", "/v1/chat/completions", &request.to_string());
        let (mut first, mut said) = (None, String::new());
        for line in BufReader::new(stream).lines().map(Result::unwrap) {
            let chunk =
                line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok());
            let chunk: Value = chunk.unwrap_or_default();
            let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            if !text.is_empty() {
                first.get_or_insert_with(|| begun.elapsed());
            }
            said += &line;
        }
        first.unwrap_or_else(|| panic!("{machine} was told no token: {said}"))
    }

    fn get(&self, machine: usize, path: &str) -> Value {
        let (status, answer) = self.call(machine, "GET", path, "");
        assert_eq!(status, 200, "{path} at {machine}: {answer}");
        answer
    }

    /// One request to the node of a machine, from inside of that machine.
    fn call(&self, machine: usize, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut answer = String::new();
        self.send(machine, method, path, body).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{method} {path} at {machine}: {answer:?}"));
        (status, serde_json::from_str(body).unwrap_or_else(|_| json!(body)))
    }

    /// Sends a request; what can be read then is its answer.
    fn send(&self, machine: usize, method: &str, path: &str, body: &str) -> UnixStream {
        let mut stream = self.lab.connect(machine, self.node(machine).port).unwrap();
        stream.set_read_timeout(Some(ANSWERED_WITHIN * 2)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn party(&self, machine: usize) -> String {
        self.get(machine, "/v1/tirami/network")["node_id"].as_str().unwrap().to_owned()
    }

    /// What the personal agent of a machine may spend, in µTRM.
    fn available(&self, machine: usize) -> u64 {
        let balance = self.get(machine, "/v1/tirami/balance");
        balance["effective_balance_micro"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn trades(&self, machine: usize) -> usize {
        let list = self.get(machine, "/v1/tirami/trades?limit=1000");
        list["trades"].as_array().unwrap().len()
    }

    fn until(&self, what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < within, "not within {within:?}: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn provider_of(answer: &Value) -> &str {
    answer["x_tirami"]["route"]["provider"].as_str().unwrap_or_default()
}

/// A node in its machine. Dropping it kills it.
struct Machine {
    child: Child,
    port: u16,
    data_dir: PathBuf,
}

impl Machine {
    fn start(lab: &Lab, home: &Path, machine: usize, more: &[&str]) -> Self {
        let data_dir = home.join(format!("data-{machine}"));
        let log = home.join(format!("node-{machine}.log"));
        let binary = common::tirami(home).get_program().to_str().unwrap().to_owned();
        let mut command = lab.command(machine, &binary);
        clean(&mut command, home);
        command.args(["start", "--port", "0", "--mesh-port", "4001", "--data-dir"]).arg(&data_dir);
        if [WITNESS, PROVIDER].contains(&machine) {
            command.arg("--model").arg(common::model());
        } else {
            command.arg("--no-model");
        }
        let stderr = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap();
        let lines = lab::lines_of(child.stdout.take().unwrap());
        let mut node = Self { child, port: 0, data_dir };
        let begun = Instant::now();
        loop {
            let left = READY_WITHIN.saturating_sub(begun.elapsed());
            let Ok(line) = lines.recv_timeout(left) else {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("node {machine} is not ready:\n{}", lab::tail(&said, 20));
            };
            if let Some(port) = line.strip_prefix("API: ").and_then(|url| url.rsplit(':').next()) {
                node.port = port.trim_end_matches('/').parse().unwrap();
            }
            if line == "ready" {
                return node;
            }
        }
    }

    /// Ctrl-C, and waits for the end.
    fn stop(mut self) {
        common::signal(self.child.id(), "INT");
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return assert!(status.success(), "{status}"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
            assert!(begun.elapsed() < READY_WITHIN, "the node does not end");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command hears no setting from outside.
fn clean(command: &mut Command, home: &Path) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIRAMI_") {
            command.env_remove(&name);
        }
    }
    command.env("HOME", home).env("NO_COLOR", "1").stdin(Stdio::null());
}
