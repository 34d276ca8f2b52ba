//! How nodes find each other, and whom that cannot make them speak to.

#[path = "../../../../tests/skipped.rs"]
mod skipped;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::put;
use tirami_core::SecretKey;
use tirami_node::mesh::{Finding, MeshOptions};
use tirami_proto::{Message, PeerAddress};

use crate::raw::{endpoint, hello, introduced};
use crate::support::{Peer, SOON, joining, on_loopback, until};

/// Starts a member again, with nothing remembered of where others are.
fn forgetful(dir: &std::path::Path, mesh: MeshOptions) -> Peer {
    let _ = std::fs::remove_file(dir.join("peers"));
    Peer::start(dir, mesh)
}

#[test]
fn a_peer_is_found_by_its_name_and_by_its_key_in_the_owners_directory() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::start(dirs[0].path(), on_loopback());
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("the second is a member", SOON, || two.is_member() && one.sees(&two));
    two.stop();

    // By name, looked up when it is dialled.
    let address = one.node.peer_address().unwrap();
    let port = address.via[0].to_string().rsplit(':').next().unwrap().to_owned();
    let named = format!("{}@localhost:{port}", address.key).parse().unwrap();
    let two = forgetful(dirs[1].path(), MeshOptions { bootstrap: vec![named], ..on_loopback() });
    until("the name led there", SOON, || two.sees(&one) && one.sees(&two));
    two.stop();
    one.stop();

    // By the directory: the second knows only where the first one was.
    let (url, _server) = directory();
    let finding = Finding { pkarr_url: Some(url), ..Finding::default() };
    let with = || MeshOptions { finding: finding.clone(), ..on_loopback() };
    let two = Peer::start(dirs[1].path(), with());
    let one = forgetful(dirs[0].path(), with());
    assert_ne!(one.node.peer_address().unwrap().via, address.via, "it has moved");
    until("the directory led there", SOON, || two.sees(&one) && one.sees(&two));
    two.stop();
    one.stop();

    // The second knows nothing but the key of the first one, which knows nothing of the second.
    let one = forgetful(dirs[0].path(), with());
    let bare: PeerAddress = one.party().to_string().parse().unwrap();
    assert!(bare.via.is_empty(), "{bare}");
    let two = forgetful(dirs[1].path(), MeshOptions { bootstrap: vec![bare], ..with() });
    until("the key alone led there", SOON, || two.sees(&one) && one.sees(&two));
    two.stop();
    one.stop();
}

#[test]
fn a_moved_peer_is_looked_up_in_the_owners_domain() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::start(dirs[0].path(), on_loopback());
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("the second is a member", SOON, || two.is_member() && one.sees(&two));
    two.stop();
    one.stop();
    let one = forgetful(dirs[0].path(), on_loopback());
    let (server, _running) = name_server(&one.node.peer_address().unwrap());
    let dns = Some(format!("nodes.example@{server}").parse().unwrap());
    let finding = Finding { dns, ..Finding::default() };
    let two = Peer::start(dirs[1].path(), MeshOptions { finding, ..on_loopback() });
    until("the domain led there", SOON, || two.sees(&one) && one.sees(&two));
    two.stop();
    one.stop();
}

/// A DNS server that knows one node: its record stands below its key in `nodes.example`.
fn name_server(node: &PeerAddress) -> (SocketAddr, tokio::runtime::Runtime) {
    let key = iroh::PublicKey::from_bytes(node.key.as_bytes()).unwrap().to_z32();
    let labels = ["_iroh", &key, "nodes", "example"];
    let mut name: Vec<u8> =
        labels.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    name.push(0);
    let text = format!("addr={}", node.via[0]);
    // The name asked for, TXT, IN, for no time at all, one text.
    let mut record = vec![0xC0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0, text.len() as u8 + 1];
    record.push(text.len() as u8);
    record.extend_from_slice(text.as_bytes());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let socket = runtime.block_on(tokio::net::UdpSocket::bind("127.0.0.1:0")).unwrap();
    let address = socket.local_addr().unwrap();
    runtime.spawn(async move {
        let mut query = [0; 512];
        loop {
            let Ok((bytes, from)) = socket.recv_from(&mut query).await else { continue };
            let end = 12 + query[12..bytes].iter().position(|byte| *byte == 0).unwrap() + 1;
            let known = query[12..end].eq_ignore_ascii_case(&name);
            // A reply with authority: no error, or no such name.
            let (code, count) = if known { (0, 1) } else { (3, 0) };
            let header = [query[0], query[1], 0x84, code, 0, 1, 0, count, 0, 0, 0, 0];
            let mut reply = [&header, &query[12..end + 4]].concat();
            reply.extend_from_slice(if known { &record } else { &[] });
            let _ = socket.send_to(&reply, from).await;
        }
    });
    (address, runtime)
}

type Records = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// A pkarr server: what is put under a key is given to whoever asks for that key.
fn directory() -> (String, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let records = Records::default();
    let store = |State(all): State<Records>, Path(key): Path<String>, body: Bytes| async move {
        all.lock().unwrap().insert(key, body);
        StatusCode::NO_CONTENT
    };
    let load = |State(all): State<Records>, Path(key): Path<String>| async move {
        all.lock().unwrap().get(&key).cloned().ok_or(StatusCode::NOT_FOUND)
    };
    let app = Router::new().route("/pkarr/{key}", put(store).get(load)).with_state(records);
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/pkarr", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, runtime)
}

/// A member says that it is reached over a relay of its choice, which is no relay but a server
/// that nobody should make this node speak to.
#[test]
fn no_node_can_make_another_one_reach_for_a_relay_its_owner_did_not_name() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let finding = Finding {
        relay_urls: vec![format!("http://{}/", unused.local_addr().unwrap())],
        ..Finding::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let one = Peer::start(dir.path(), MeshOptions { finding, ..on_loopback() });
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let url = format!("http://{}/", trap.local_addr().unwrap());
    let (invite, key) = (one.node.invite().unwrap(), SecretKey::from_seed([77; 32]));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let endpoint = endpoint(&key, "127.0.0.1:0").await;
        let mut hello = hello(&key, &invite);
        let here = endpoint.bound_sockets()[0].to_string();
        hello.addresses = vec![url, here];
        let mut control = introduced(&endpoint, &invite, hello).await.unwrap();
        let welcome = |message| matches!(message, Message::Welcome(_)).then_some(());
        control.wait_for(welcome).await.unwrap();
        endpoint.set_alpns(vec![tirami_proto::ALPN.to_vec()]);
        control.connection.close(0u32.into(), b"");
        // The node dials all the ways that this peer told of, of which one leads here.
        let again = tokio::time::timeout(SOON, endpoint.accept()).await.unwrap().unwrap();
        again.await.unwrap();
    });
    assert_eq!(trap.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    one.stop();
}

/// Set in the process that runs in a network of its own.
const INSIDE: &str = "TIRAMI_TEST_LAN";

/// Two nodes that know nothing of each other's addresses, in a network without a way out.
fn find_each_other_in_the_local_network() -> Duration {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let lan = || MeshOptions {
        bind: Some(([10, 77, 0, 1], 0).into()),
        finding: Finding { lan: true, ..Finding::default() },
        ..MeshOptions::default()
    };
    let one = Peer::start(dirs[0].path(), lan());
    let join = Some(one.node.invite().unwrap());
    let two = Peer::start(dirs[1].path(), MeshOptions { join, ..lan() });
    until("the second is a member", SOON, || two.is_member() && one.sees(&two));
    two.stop();
    one.stop();
    // Both start on other ports, and neither remembers where the other one was.
    let one = forgetful(dirs[0].path(), lan());
    let two = forgetful(dirs[1].path(), lan());
    let took = until("they found each other", SOON, || one.sees(&two) && two.sees(&one));
    two.stop();
    one.stop();
    took
}

#[test]
fn members_in_one_local_network_find_each_other_by_themselves() {
    if std::env::var_os(INSIDE).is_some() {
        let took = find_each_other_in_the_local_network();
        println!("found in the local network after {took:?}");
        return;
    }
    // A network of its own, so that nothing is sent to anybody else's.
    let network = "ip link set lo up && ip link add lan0 type veth peer name lan1 \
                   && ip addr add 10.77.0.1/24 dev lan0 && ip link set lan0 up \
                   && ip link set lan1 up && ip route add 224.0.0.0/4 dev lan0";
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
        command
    };
    let possible = unshare(network).output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        skipped::skipped(format_args!("a network of its own needs unshare and ip: {possible:?}"));
        return;
    }
    let started = Instant::now();
    let name = "finding::members_in_one_local_network_find_each_other_by_themselves";
    let script = format!("{network} && exec \"$0\" --exact {name} --nocapture");
    let inside = unshare(&script).arg(std::env::current_exe().unwrap()).env(INSIDE, "1").output();
    let inside = inside.unwrap();
    let text = String::from_utf8_lossy(&inside.stdout);
    println!("{text}\n{}\nafter {:?}", String::from_utf8_lossy(&inside.stderr), started.elapsed());
    assert!(inside.status.success() && text.contains("1 passed"));
}
