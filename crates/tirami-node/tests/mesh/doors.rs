//! Who gets in, and who hears why not.

use std::time::Duration;

use tirami_core::SecretKey;
use tirami_kernel::mesh::STRANGERS_MAX;
use tirami_ledger::lattice::Keep;
use tirami_node::mesh::{INTRODUCING_MAX, INTRODUCING_PER_SOURCE_MAX, MeshOptions};
use tirami_proto::{Goodbye, GoodbyeCode, Hello, Message, PROTOCOL, Welcome};
use tirami_sdk::types::{Farewell, PeerList};

use crate::raw::{Control, connect, endpoint, hello, introduced};
use crate::support::{Peer, SOON, joining, on_loopback, until};

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed([n; 32])
}

fn goodbye(message: Message) -> Option<Goodbye> {
    match message {
        Message::Goodbye(goodbye) => Some(goodbye),
        _ => None,
    }
}

fn welcome(message: Message) -> Option<()> {
    matches!(message, Message::Welcome(_)).then_some(())
}

fn peers(node: &Peer) -> PeerList {
    node.block_on(async { node.client().peers().await.unwrap() })
}

fn said(node: &Peer, code: &str, by_peer: bool) -> Option<Farewell> {
    peers(node).farewells.into_iter().find(|one| one.code == code && one.by_peer == by_peer)
}

#[test]
fn who_shares_no_version_hears_why_and_the_owner_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let one = Peer::start(dir.path(), on_loopback());
    let invite = one.node.invite().unwrap();
    one.block_on(async {
        let endpoint = endpoint(&key(40), "127.0.0.1:0").await;
        let newer = Hello { protocol_min: 7, protocol: 9, ..hello(&key(40), &invite) };
        let mut control = introduced(&endpoint, &invite, newer).await.unwrap();
        let goodbye = control.wait_for(goodbye).await.unwrap();
        assert_eq!(goodbye.code, GoodbyeCode::Version);
        assert!(goodbye.reason.contains("the peer 7 to 9; upgrade the older one"), "{goodbye:?}");
        let closed = control.connection.closed().await.to_string();
        assert!(closed.contains("goodbye"), "{closed}");
    });
    let farewell = said(&one, "version", false).unwrap();
    assert_eq!(farewell.node_id, key(40).public().party().to_string());
    assert!(farewell.reason.contains("7 to 9") && farewell.times == 1 && farewell.at_ms > 0);

    // The other way round: this node is the one that is too old.
    one.block_on(async {
        let endpoint = endpoint(&key(41), "127.0.0.1:0").await;
        let connection = connect(&endpoint, &invite).await.unwrap();
        let mut control = Control::open(connection).await.unwrap();
        let reason = "this node speaks 7 to 9".to_owned();
        let bye = Goodbye { code: GoodbyeCode::Version, reason, retry_after_ms: 0 };
        assert!(control.send(&Message::Goodbye(bye)).await);
        control.connection.closed().await;
    });
    until("the owner reads what the peer said", SOON, || said(&one, "version", true).is_some());
    assert_eq!(said(&one, "version", true).unwrap().reason, "this node speaks 7 to 9");
    let metrics = one.block_on(async { one.client().metrics().await.unwrap() });
    assert!(metrics.contains("tirami_farewells 2"), "{metrics}");
    one.stop();
}

#[test]
fn a_newcomer_that_came_for_the_charter_and_starts_with_it_is_no_farewell() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::start(dirs[0].path(), on_loopback());
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    let is_open = |node: &Peer| peers(node).peers.iter().any(|peer| peer.state == "open");
    until("both are connected", SOON, || is_open(&one) && is_open(&two));
    assert!(said(&one, "stopping", true).is_none(), "{:?}", peers(&one).farewells);
    // One that was connected and stops is.
    two.stop();
    until("the owner reads that it stopped", SOON, || said(&one, "stopping", true).is_some());
    one.stop();
}

#[test]
fn what_cannot_be_read_is_counted_and_its_sender_refused_for_a_growing_time() {
    let dir = tempfile::tempdir().unwrap();
    let one = Peer::start(dir.path(), on_loopback());
    let invite = one.node.invite().unwrap();
    let mut malformed = 40_u32.to_be_bytes().to_vec();
    malformed.extend_from_slice(&[0xff; 40]);
    let waits: Vec<u64> = one.block_on(async {
        let endpoint = endpoint(&key(42), "127.0.0.1:0").await;
        let mut waits = Vec::new();
        while waits.len() < 3 {
            let hello = hello(&key(42), &invite);
            let Some(mut control) = introduced(&endpoint, &invite, hello).await else { continue };
            if control.wait_for(welcome).await.is_none() {
                // Still refused: the connection ends before a word is read.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            for _ in 0..4 {
                control.send_raw(&malformed).await;
            }
            let goodbye = control.wait_for(goodbye).await.unwrap();
            assert_eq!(goodbye.code, GoodbyeCode::Misbehaved);
            waits.push(goodbye.retry_after_ms);
            // Whoever comes back at once is not listened to.
            if let Some(mut early) =
                introduced(&endpoint, &invite, self::hello(&key(42), &invite)).await
            {
                assert!(early.wait_for(welcome).await.is_none(), "let in too early");
            }
        }
        waits
    });
    assert!(waits.windows(2).all(|two| two[1] > two[0]), "{waits:?}");
    assert!(waits[0] <= 1_000 && waits[2] > 2_000, "{waits:?}");
    assert_eq!(said(&one, "misbehaved", false).unwrap().times, 3);
    one.stop();
}

#[test]
fn a_public_mesh_takes_strangers_up_to_its_bound_and_gives_them_no_line() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::start(dirs[0].path(), MeshOptions { public: true, ..on_loopback() });
    let invite = one.node.invite().unwrap();
    assert_eq!(invite.secret, None);
    let two = Peer::start(dirs[1].path(), joining(invite.clone()));
    until("the stranger is let in", SOON, || one.sees(&two) && two.sees(&one));
    let strangers = one.block_on(async {
        let mut held = Vec::new();
        loop {
            let key = key(50 + held.len() as u8);
            let endpoint = endpoint(&key, "127.0.0.1:0").await;
            let hello = hello(&key, &invite);
            let mut control = introduced(&endpoint, &invite, hello).await.unwrap();
            let answer = control.wait_for(|message| match message {
                Message::Welcome(_) => Some(None),
                Message::Goodbye(goodbye) => Some(Some(goodbye)),
                _ => None,
            });
            match answer.await.unwrap() {
                None => {
                    // Whoever does not say welcome in time is sent away again.
                    let welcome = Welcome {
                        protocol: PROTOCOL,
                        features: 0,
                        charters: Vec::new(),
                        your_address: None,
                    };
                    assert!(control.send(&Message::Welcome(welcome)).await);
                    held.push((endpoint, control));
                }
                Some(goodbye) => {
                    assert_eq!(goodbye.code, GoodbyeCode::TooMany);
                    assert!(goodbye.retry_after_ms > 0);
                    break held.len();
                }
            }
        }
    });
    // Node two is a stranger as well.
    assert_eq!(strangers, STRANGERS_MAX - 1);
    assert!(one.line_of(two.party()).is_zero() && two.line_of(two.party()).is_zero());
    assert!(one.sees(&two), "those that were there stay");
    two.stop();
    one.stop();
}

#[test]
fn silent_strangers_push_out_each_other_and_a_member_always_gets_in() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::start(dirs[0].path(), on_loopback());
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("the second is a member", SOON, || two.is_member() && one.sees(&two));
    let invite = one.node.invite().unwrap();
    two.stop();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _silent = runtime.block_on(async {
        let mut silent = Vec::new();
        // More than there is room for, from more addresses than there is room for at once.
        for host in 1..=7_u8 {
            for n in 0..INTRODUCING_PER_SOURCE_MAX as u8 + 2 {
                let endpoint = endpoint(&key(host * 32 + n), &format!("127.0.0.{host}:0")).await;
                if let Some(connection) = connect(&endpoint, &invite).await {
                    // The stream is open, and then nothing is said.
                    silent
                        .extend(Control::open(connection).await.map(|control| (endpoint, control)));
                }
            }
        }
        silent
    });
    let introducing = one.read(|kernel| kernel.mesh().peers().count());
    // Those that are being sent away still count for a moment.
    let most = INTRODUCING_MAX + INTRODUCING_PER_SOURCE_MAX;
    assert!(introducing <= most, "{introducing} strangers in the door");
    assert!(introducing > INTRODUCING_PER_SOURCE_MAX, "{introducing}: the flood did not come");
    let two = Peer::start(dirs[1].path(), on_loopback());
    let took = until("the member is in", Duration::from_secs(10), || one.sees(&two));
    println!("the member was in after {took:?}, {introducing} strangers in the door");
    two.stop();
    one.stop();
}

#[test]
fn what_a_provider_says_of_itself_is_shown() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::start(dirs[0].path(), on_loopback());
    let mesh = MeshOptions { keep: Some(Keep::Own), ..joining(one.node.invite().unwrap()) };
    let two = Peer::with_config(dirs[1].path(), mesh, |config| {
        config.mesh_region = "eu-north".to_owned();
        config.mesh_http_endpoint = Some("https://box.example".to_owned());
    });
    let party = two.party().to_string();
    let shown = || {
        let list = one.block_on(async { one.client().providers().await.unwrap() });
        list.providers.into_iter().find(|provider| provider.node_id == party)
    };
    until("the second one's signal is here", SOON, || shown().is_some_and(|one| one.serving));
    let provider = shown().unwrap();
    assert_eq!(provider.region, "eu-north");
    assert_eq!(provider.http_endpoint.as_deref(), Some("https://box.example"));
    assert_eq!(provider.features, ["keeps_own"]);
    assert_eq!(peers(&one).peers[0].features, ["keeps_own"]);
    two.stop();
    one.stop();
}
