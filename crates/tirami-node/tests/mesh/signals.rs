//! A peer that tells what others said of themselves: too late, too early, or what they never said.

use iroh::Endpoint;
use serde_json::json;
use tirami_core::{MINUTE_MS, MeshId, PartyId, Ppm, SecretKey, Signed, Timestamp, decode_body};
use tirami_kernel::Kernel;
use tirami_node::mesh::{Invite, MeshOptions};
use tirami_proto::{Message, PriceSignal, SIGNAL_AHEAD_MS_MAX, SIGNAL_LIFE_MS_MAX, WireDocument};

use crate::engines::Odd;
use crate::jobs_support::{Mesh, TestNode};
use crate::orders::{key_of, wire};
use crate::raw::{Control, connect, endpoint, let_in};
use crate::support::{Peer, SOON, joining, until};

/// Whether `node` lists the party among the providers or its peers.
fn lists(node: &TestNode, party: PartyId) -> bool {
    let party = json!(party.to_string());
    ["providers", "peers"].into_iter().any(|list| {
        let all = node.get(&format!("/v1/tirami/{list}"));
        all[list].as_array().unwrap().iter().any(|one| one["node_id"] == party)
    })
}

/// What the owner of `key` might say at `now`.
fn signal(key: &SecretKey, now: Timestamp) -> PriceSignal {
    PriceSignal {
        provider: key.public().party(),
        issued_at: now,
        expires_at: now.plus_ms(45_000),
        price: Ppm::ONE,
        cached_price: Ppm::ONE,
        slots_free: 1,
        slots: 1,
        queue: 0,
        models: Vec::new(),
        region: String::new(),
        features: 0,
        addresses: Vec::new(),
        http_endpoint: None,
        serving: true,
    }
}

/// Peers that are let in, each with a key that nobody had, and tell what they are given.
struct Tellers<'a> {
    runtime: &'a Peer,
    mesh: MeshId,
    invite: Invite,
    keys: u8,
}

impl Tellers<'_> {
    fn key(&mut self) -> SecretKey {
        self.keys += 1;
        SecretKey::from_seed([self.keys; 32])
    }

    /// Another one, which has said `message`.
    fn saying(&mut self, message: &Message) -> (Endpoint, Control) {
        let key = self.key();
        self.runtime.block_on(async {
            let endpoint = endpoint(&key, "127.0.0.1:0").await;
            let connection = connect(&endpoint, &self.invite).await.unwrap();
            let mut control = let_in(connection, &key, &self.invite).await.unwrap();
            assert!(control.send(message).await);
            (endpoint, control)
        })
    }

    /// The signal of `provider` as the node gives it to whoever asks.
    fn ask_for(&mut self, provider: PartyId) -> WireDocument {
        let (endpoint, mut control) = self.saying(&Message::WantPeers);
        let is_its = |document: &WireDocument| {
            let signal = decode_body::<PriceSignal>(&document.bytes);
            signal.is_ok_and(|signal| signal.provider == provider)
        };
        let told = control.wait_for(|message| match message {
            Message::Announce(documents) => documents.into_iter().find(is_its),
            _ => None,
        });
        let told = self.runtime.block_on(told).expect("all signals are told");
        self.runtime.block_on(endpoint.close());
        told
    }

    /// Tells the node of signals and then of one that is good, and waits until all `nodes` list
    /// that one: what was told before was looked at by then.
    fn tell(&mut self, mut documents: Vec<WireDocument>, now: Timestamp, nodes: &[&TestNode]) {
        let good = self.key();
        let last = Signed::sign(self.mesh, &good, signal(&good, now)).unwrap();
        documents.push(wire(&last));
        let (party, told) = (good.public().party(), Message::Announce(documents));
        let mut open = self.saying(&told);
        until("the good one is everywhere", SOON, || {
            // On a machine that does other things a connection may be lost.
            if open.1.connection.close_reason().is_some() {
                open = self.saying(&told);
            }
            nodes.iter().all(|node| lists(node, party))
        });
        // A node with many peers passes news on to some of them only.
        self.runtime.block_on(open.0.close());
    }
}

#[test]
fn providers_that_one_peer_makes_up_hide_none_that_another_tells_of() {
    let mesh = Mesh::with(Vec::new());
    let third = mesh.add_user();
    let (node, now) = (mesh.user(), mesh.clock.now());
    let invite = node.peer.node.invite().unwrap();
    let id = node.peer.node.handle().mesh();
    let mut tellers = Tellers { runtime: &third.peer, mesh: id, invite, keys: 120 };
    let made_up = |n: u16| {
        let mut seed = [9; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        let key = SecretKey::from_seed(seed);
        let long = PriceSignal { expires_at: now.plus_ms(SIGNAL_LIFE_MS_MAX), ..signal(&key, now) };
        let signed = Signed::sign(id, &key, long).unwrap();
        wire(&signed)
    };
    let frame = |first: u16| Message::Announce((first..first + 64).map(made_up).collect());
    let (_endpoint, mut liar) = tellers.saying(&frame(0));
    third.peer.block_on(async {
        for first in 1..6 {
            assert!(liar.send(&frame(64 * first)).await);
        }
    });
    let listed =
        || node.peer.read(|kernel: &Kernel| kernel.mesh().providers(kernel.clock()).count());
    until("what it made up is listed", SOON, || listed() >= 256);
    tellers.tell(Vec::new(), mesh.clock.now(), &[node, &third]);
}

type Change = fn(&mut PriceSignal, Timestamp);

/// What is no word of its provider for now, and whether the provider signed it.
const NO_WORD: [(&str, Change, bool); 5] = [
    (
        "it ran out a second ago",
        |signal, now| {
            signal.issued_at = Timestamp::from_ms(now.ms() - 40_000);
            signal.expires_at = Timestamp::from_ms(now.ms() - 1_000);
        },
        true,
    ),
    (
        "it is of a time to come",
        |signal, now| {
            signal.issued_at = now.plus_ms(SIGNAL_AHEAD_MS_MAX + MINUTE_MS);
            signal.expires_at = signal.issued_at.plus_ms(45_000);
        },
        true,
    ),
    (
        "it ends before it begins",
        |signal, now| {
            signal.issued_at = now.plus_ms(8_000);
            signal.expires_at = now.plus_ms(7_000);
        },
        true,
    ),
    (
        "it lives longer than any may",
        |signal, now| signal.expires_at = now.plus_ms(SIGNAL_LIFE_MS_MAX + MINUTE_MS),
        true,
    ),
    ("somebody else signed it", |_, _| (), false),
];

#[test]
fn a_provider_that_is_gone_is_not_brought_back_by_what_others_tell_of_it() {
    let mesh = Mesh::with(Vec::new());
    let third = mesh.add_user();
    let (nodes, clock) = ([mesh.user(), &third], &mesh.clock);
    let invite = nodes[0].peer.node.invite().unwrap();
    let options = MeshOptions { clock: clock.clock(), ..joining(invite.clone()) };
    let provider = TestNode::start(options, Some(Odd::new(3, 0)));
    let (party, key) = (provider.party(), key_of(&provider));
    let id = provider.peer.node.handle().mesh();
    let everybody_lists = || nodes.iter().all(|node| lists(node, party));
    let somebody_knows = || {
        let signal = move |kernel: &Kernel| kernel.mesh().signal(party).is_some();
        nodes.iter().any(|node| lists(node, party) || node.peer.read(signal))
    };
    until("it is listed", SOON, everybody_lists);
    let mut tellers = Tellers { runtime: &third.peer, mesh: id, invite, keys: 120 };
    let said = tellers.ask_for(party);
    provider.kill();
    until("it is gone", SOON, || {
        let connected = move |kernel: &Kernel| kernel.mesh().is_open(party);
        !nodes.iter().any(|node| node.peer.read(connected))
    });
    clock.pass_ms(MINUTE_MS);
    until("its last word has run out", SOON, || !somebody_knows());

    let signed = |key: &SecretKey, signal: PriceSignal| {
        let signal = Signed::sign(id, key, signal).unwrap();
        wire(&signal)
    };
    tellers.tell(vec![said.clone()], clock.now(), &nodes);
    assert!(!somebody_knows(), "its last word was believed again");
    for (what, change, by_it) in NO_WORD {
        let mut false_word = signal(&key, clock.now());
        change(&mut false_word, clock.now());
        let signer = if by_it { key.clone() } else { tellers.key() };
        tellers.tell(vec![signed(&signer, false_word)], clock.now(), &nodes);
        assert!(!somebody_knows(), "{what}");
    }
    // By then nobody remembers when it said something last.
    clock.pass_ms(SIGNAL_LIFE_MS_MAX + SIGNAL_AHEAD_MS_MAX + MINUTE_MS);
    tellers.tell(vec![said], clock.now(), &nodes);
    assert!(!somebody_knows(), "its last word was believed much later");

    // What it says now brings it back, until it says something else for the same time.
    let word = signal(&key, clock.now());
    let rival = PriceSignal { queue: 9, ..word.clone() };
    let (word, rival) = (signed(&key, word), signed(&key, rival));
    tellers.tell(vec![word.clone()], clock.now(), &nodes);
    assert!(everybody_lists(), "its own word was not believed");
    tellers.tell(vec![rival.clone()], clock.now(), &nodes);
    until("neither is believed", SOON, || !somebody_knows());
    tellers.tell(vec![word, rival], clock.now(), &nodes);
    assert!(!somebody_knows(), "one of them was believed later");
}
