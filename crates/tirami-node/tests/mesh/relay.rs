//! A real relay on loopback: nodes that cannot reach each other directly trade over it, and those
//! that can do not need it.
//!
//! The relay is a program of its own. `TIRAMI_TEST_RELAY` names it, and `cargo xtask test --relay`
//! builds it and runs what is ignored without it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tirami_node::mesh::{Finding, MeshOptions};
use tirami_proto::{Invite, PeerAddress, Via};

use crate::jobs_support::{TestNode, ask, script};
use crate::support::{Peer, SOON, joining, on_loopback, until};
use tirami_infer::fake::FakeEngine;

const RELAY: &str = "TIRAMI_TEST_RELAY";
/// From the return of the relay until those it connects are of use to each other.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// A running relay. Dropping it kills it.
struct Relay {
    program: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Relay {
    /// Chooses a port, and starts there.
    fn start() -> Self {
        let program = std::env::var_os(RELAY).expect("TIRAMI_TEST_RELAY names a relay");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let mut relay = Self { program: program.into(), dir, port, child: None };
        relay.resume();
        relay
    }

    fn resume(&mut self) {
        let config = self.dir.path().join("relay.toml");
        let text =
            format!("http_bind_addr = \"127.0.0.1:{}\"\nenable_metrics = false\n", self.port);
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("--config-path").arg(config).stdin(Stdio::null());
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.child = Some(child.expect("the relay runs"));
        until("the relay listens", SOON, || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where a node is reached over a relay, as soon as it is connected to one.
fn relayed(node: &Peer) -> Option<PeerAddress> {
    let mut address = node.node.peer_address()?;
    address.via.retain(|via| matches!(via, Via::Relay(_)));
    (!address.via.is_empty()).then_some(address)
}

/// Speaks IPv6 only.
fn beyond() -> MeshOptions {
    MeshOptions { bind: Some(([0, 0, 0, 0, 0, 0, 0, 1], 0).into()), ..MeshOptions::default() }
}

/// How `node` is connected with `other`.
fn way(node: &TestNode, other: &TestNode) -> Value {
    let (peers, other) = (node.get("/v1/tirami/peers"), other.party().to_string());
    let list = peers["peers"].as_array().unwrap();
    let found = list.iter().find(|peer| peer["node_id"] == other.as_str());
    found.unwrap_or_else(|| panic!("{peers}"))["address"].clone()
}

fn answered(node: &TestNode) -> bool {
    node.raw(&ask(5, false)).0 == 200
}

#[test]
#[ignore = "it needs a relay: cargo xtask test --relay"]
fn nodes_without_a_direct_way_trade_over_a_relay_and_its_loss_harms_nobody_else() {
    let mut relay = Relay::start();
    let at_relay = || Finding { relay_urls: vec![relay.url()], ..Finding::default() };
    let fake = || Some(std::sync::Arc::new(FakeEngine::new(script(5, Duration::ZERO))) as _);
    let one = TestNode::start(MeshOptions { finding: at_relay(), ..on_loopback() }, fake());
    until("the first is at the relay", SOON, || relayed(&one.peer).is_some());
    let invite = one.peer.node.invite().unwrap();
    // The far one speaks IPv6 only, the first IPv4 only. It knows the relay by its invite.
    let known = relayed(&one.peer).unwrap();
    assert_eq!(known.to_string(), format!("{}@{}", known.key, relay.url()));
    let join = Some(Invite { peers: vec![known], ..invite.clone() });
    let far = TestNode::start(MeshOptions { join, ..beyond() }, None);
    until("the far one is a member", SOON, || far.peer.is_member() && one.peer.sees(&far.peer));
    let near = MeshOptions { finding: at_relay(), ..joining(invite) };
    let near = TestNode::start(near, None);
    until("the near one is a member", SOON, || near.peer.is_member());

    until("the far one is answered", SOON, || answered(&far));
    let answer = far.post(&ask(5, false));
    assert_eq!(answer["x_tirami"]["route"]["kind"], "mesh", "{answer}");
    assert_eq!(answer["x_tirami"]["route"]["provider"], one.party().to_string());
    assert_eq!(way(&far, &one), relay.url(), "over the relay, and nothing else");
    until("both books show it, and it is paid", SOON, || {
        let serving = one.get("/v1/tirami/serving");
        one.trades().len() == far.trades().len() && serving["owed_trm"].as_f64() == Some(0.0)
    });
    until("the near one is answered", SOON, || answered(&near));
    until("the near one needs no relay", SOON, || way(&near, &one) != relay.url());

    // Without the relay the far one is cut off. The others do not believe that anybody died.
    relay.stop();
    until("the far one is cut off", SOON, || !far.peer.sees(&one.peer));
    let trades = far.trades().len();
    let (status, refused) = far.raw(&ask(5, false));
    assert_eq!((status, &refused["error"]["type"]), (503, &"server_error".into()), "{refused}");
    assert_eq!((far.trades().len(), far.open_holds()), (trades, 0), "nothing was charged");
    let party = one.party();
    let lost = near.peer.read(move |kernel| {
        let mut known = kernel.mesh().providers(kernel.clock());
        known.any(|known| known.signal.provider == party && known.lost)
    });
    assert!(!lost, "what the far one lost is nothing to the near one");
    assert!(answered(&near) && near.peer.sees(&one.peer) && one.peer.sees(&near.peer));

    relay.resume();
    let took = until("the far one is answered again", SOON, || answered(&far));
    println!("of use {took:?} after the relay came back");
    assert!(took < BACK_WITHIN, "{took:?}");

    // Started again with neither invite nor setting it remembers the relay that led to its mesh.
    let far = TestNode::start_in(far.killed(), beyond(), None);
    until("the far one found back", SOON, || answered(&far));
    assert_eq!(way(&far, &one), relay.url());
    for node in [far, near, one] {
        node.kill();
    }
}
