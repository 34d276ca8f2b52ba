//! A real relay on loopback: nodes that cannot reach each other directly trade over it, and those
//! that can do not need it.

use std::net::SocketAddr;
use std::time::Duration;

use iroh_relay::server::{RelayConfig, Server, ServerConfig};
use tirami_node::mesh::{Finding, MeshOptions};
use tirami_proto::{PeerAddress, Via};

use crate::jobs_support::{TestNode, ask, script};
use crate::support::{Peer, SOON, joining, until};
use tirami_infer::fake::FakeEngine;

struct Relay {
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    address: SocketAddr,
}

impl Relay {
    fn start(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut config = ServerConfig::default();
        config.relay = Some(RelayConfig::new(address));
        let server = runtime.block_on(Server::spawn(config)).unwrap();
        let address = server.http_addr().unwrap();
        Self { runtime, server: Some(server), address }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn stop(mut self) -> SocketAddr {
        self.runtime.block_on(self.server.take().unwrap().shutdown()).unwrap();
        self.runtime.shutdown_timeout(Duration::from_secs(2));
        self.address
    }
}

fn relayed(node: &Peer) -> Option<PeerAddress> {
    let mut address = node.node.peer_address()?;
    address.via.retain(|via| matches!(via, Via::Relay(_)));
    (!address.via.is_empty()).then_some(address)
}

#[test]
fn nodes_without_a_direct_way_trade_over_a_relay_and_its_loss_kills_nobody() {
    let relay = Relay::start(([127, 0, 0, 1], 0).into());
    let finding = Finding { relay_urls: vec![relay.url()], ..Finding::default() };
    let bound = |bind: [u16; 8]| MeshOptions {
        bind: Some((bind, 0).into()),
        finding: finding.clone(),
        ..MeshOptions::default()
    };
    let v4 = || MeshOptions { bind: Some(([127, 0, 0, 1], 0).into()), ..bound([0; 8]) };
    let fake = || Some(std::sync::Arc::new(FakeEngine::new(script(5, Duration::ZERO))) as _);
    let one = TestNode::start(v4(), fake());
    until("the first is at the relay", SOON, || relayed(&one.peer).is_some());
    // A node that speaks IPv6 only has no way to one that speaks IPv4 only but the relay.
    let mut invite = one.peer.node.invite().unwrap();
    invite.peers = vec![relayed(&one.peer).unwrap()];
    assert!(invite.peers[0].to_string().contains("@http://127.0.0.1:"), "{:?}", invite.peers);
    let join = Some(invite.clone());
    let far = TestNode::start(MeshOptions { join, ..bound([0, 0, 0, 0, 0, 0, 0, 1]) }, None);
    until("they are connected", SOON, || far.peer.sees(&one.peer) && one.peer.sees(&far.peer));
    until("the far one is a member", SOON, || far.peer.is_member());
    let near = TestNode::start(
        MeshOptions { finding: finding.clone(), ..joining(one.peer.node.invite().unwrap()) },
        None,
    );
    until("the near one is a member", SOON, || near.peer.is_member());

    let answers = |node: &TestNode| node.raw(&ask(5, false)).0 == 200;
    until("the far one is answered", SOON, || answers(&far));
    let answer = far.post(&ask(5, false));
    assert_eq!(answer["x_tirami"]["route"]["kind"], "mesh", "{answer}");
    let peers = far.get("/v1/tirami/peers");
    let way = |peer: &&serde_json::Value| peer["node_id"] == one.party().to_string().as_str();
    let address = peers["peers"].as_array().unwrap().iter().find(way).unwrap()["address"].clone();
    assert_eq!(address, relay.url().as_str(), "over the relay, and nothing else");
    until("both books show it", SOON, || one.trades().len() == far.trades().len());
    until("the near one is answered", SOON, || answers(&near));

    // Without the relay the far one is cut off. The others do not believe that anybody died.
    let at = relay.stop();
    until("the far one is cut off", SOON, || !far.peer.sees(&one.peer));
    assert!(near.peer.sees(&one.peer) && one.peer.sees(&near.peer));
    let party = one.party();
    let lost = near.peer.read(move |kernel| {
        kernel
            .mesh()
            .providers(kernel.clock())
            .any(|known| known.signal.provider == party && known.lost)
    });
    assert!(!lost, "what the far one lost is nothing to the near one");
    assert_eq!(near.raw(&ask(5, false)).0, 200);

    let relay = Relay::start(at);
    let took = until("the far one is back", SOON, || answers(&far));
    println!("usable {took:?} after the relay came back");
    relay.stop();
    for node in [far, near, one] {
        node.kill();
    }
}
