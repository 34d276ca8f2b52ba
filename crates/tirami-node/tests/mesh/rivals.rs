//! A member that signs what it may not: it speaks the protocol with its own key, against real
//! nodes.

use std::time::Duration;

use iroh::Endpoint;
use tirami_core::{MINUTE_MS, PartyId, SecretKey, Signed, Trm};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{Collect, Entry, EntryKind, Lattice, Transfer};
use tirami_node::mesh::{Invite, MeshOptions};
use tirami_proto::{Message, PROTOCOL, WireEntry};

use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::orders::key_of;
use crate::raw::{self, Control};
use crate::support::{SOON, joining, until};

/// A connection on which whatever is wanted can be said.
struct Wire {
    _endpoint: Endpoint,
    control: Control,
}

impl Wire {
    async fn open(key: &SecretKey, invite: &Invite) -> Self {
        let endpoint = raw::endpoint(key, "127.0.0.1:0").await;
        let hello = raw::hello(key, invite);
        let control = raw::introduced(&endpoint, invite, hello).await.unwrap();
        let mut wire = Self { _endpoint: endpoint, control };
        wire.until(|message| matches!(message, Message::Welcome(_))).await;
        // The other side waits for a welcome too.
        let welcome = tirami_proto::Welcome {
            protocol: PROTOCOL,
            features: 0,
            charters: Vec::new(),
            your_address: None,
        };
        wire.say(&Message::Welcome(welcome)).await;
        wire
    }

    async fn say(&mut self, message: &Message) {
        assert!(self.control.send(message).await);
    }

    /// Reads until a message fits.
    async fn until(&mut self, fits: impl Fn(&Message) -> bool) -> Message {
        self.control.wait_for(|message| fits(&message).then_some(message)).await.expect("an answer")
    }

    /// Offers an entry to the witness; says whether it was acknowledged.
    async fn offer(&mut self, entry: &Signed<Entry>) -> Result<(), String> {
        let wire = WireEntry { bytes: entry.bytes().to_vec(), signature: entry.signature() };
        self.say(&Message::Entry(wire)).await;
        let id = entry.id();
        let answer = self.until(|message| match message {
            Message::Acknowledgement(_) => true,
            Message::EntryRefused { entry, .. } => *entry == id,
            _ => false,
        });
        match answer.await {
            Message::EntryRefused { code, reason, .. } => Err(format!("{code}: {reason}")),
            _ => Ok(()),
        }
    }
}

fn lattice_of<T: Send + 'static>(
    node: &TestNode,
    read: impl FnOnce(&Lattice) -> T + Send + 'static,
) -> T {
    node.peer.read(move |kernel| read(kernel.ledger().lattice()))
}

/// The next entry of a chain, as `node` would draft it.
fn draft(node: &TestNode, chain: PartyId, kind: EntryKind) -> Entry {
    let now = tirami_core::Timestamp::from_ms(1);
    lattice_of(node, move |lattice| lattice.draft(chain, now, kind)).unwrap()
}

#[test]
fn who_collects_twice_or_signs_rivals_is_refused_proven_everywhere_and_served_no_more() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (witness, provider) = (mesh.user(), mesh.provider(0));
    let cheat = mesh.add_user();
    let (party, key) = (cheat.party(), key_of(&cheat));
    let id = witness.peer.node.handle().mesh();
    let sign = |entry: Entry| Signed::sign(id, &key, entry).unwrap();

    // It is given something, and collects it as it should.
    let kind = Transfer { payee: party, amount: Trm::from_micro(7) }.into();
    witness.submit(Actor::Node, Command::SignEntry { kind });
    let gift = lattice_of(witness, move |lattice| lattice.uncollected(party).next()).unwrap().0;
    mesh.clock.pass_ms(2 * MINUTE_MS);
    until("it has collected", SOON, || {
        lattice_of(witness, move |lattice| lattice.uncollected_sum(party)) == 0
    });
    // After so long a pause it may have to hear of the provider again.
    until("it is answered", SOON, || {
        let (status, answer) = cheat.raw(&ask(3, false));
        status == 200 && answer["choices"][0]["finish_reason"] == "stop"
    });
    mesh.clock.pass_ms(15_000);
    until("its job is paid", SOON, || {
        lattice_of(witness, move |lattice| lattice.signed_balance(party)) < 7
    });
    let same = |one: &TestNode, other: &TestNode| one.peer.state() == other.peer.state();
    until("both know its chain", SOON, || same(&cheat, witness) && same(&cheat, provider));
    let dir = cheat.killed();
    until("it is gone", SOON, || !witness.peer.read(move |kernel| kernel.mesh().is_open(party)));

    // The same payment again, with the balance it would make.
    let kind = Transfer { payee: witness.party(), amount: Trm::from_micro(1) }.into();
    let mut twice = draft(witness, party, kind);
    twice.kind = EntryKind::from(Collect { ids: vec![gift], checkpoint: None });
    twice.balance += 1 + 7;
    // Two gifts in one place: one is acknowledged, the other is the proof.
    let to = |payee: PartyId| Transfer { payee, amount: Trm::from_micro(1) }.into();
    let one = sign(draft(witness, party, to(witness.party())));
    let other = sign(draft(witness, party, to(provider.party())));
    assert_eq!(one.body().seq, other.body().seq);
    let invite = witness.peer.node.invite().unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.unwrap().block_on(async {
        let mut wire = Wire::open(&key, &invite).await;
        let refused = wire.offer(&sign(twice)).await.unwrap_err();
        assert!(refused.starts_with("entry_refused"), "{refused}");

        wire.offer(&one).await.unwrap();
        // What the witness holds final is all that it knows of the place.
        let refused = wire.offer(&other).await.unwrap_err();
        assert!(refused.starts_with("acknowledge_refused"), "{refused}");
    });
    until("the owner reads what was tried", SOON, || witness.refused(party, "entry_refused") > 0);
    for node in [witness, provider] {
        until("everybody has the proof", SOON, || node.refused(party, "double_signed") == 1);
    }
    assert_eq!(lattice_of(witness, |lattice| lattice.totals().loss), 0);

    // Its node takes over the branch that is final; nobody serves it any more.
    let options = MeshOptions { clock: mesh.clock.clock(), ..joining(invite) };
    let cheat = TestNode::start_in(dir, options, None);
    until("it has the final branch", SOON, || same(&cheat, witness));
    until("its orders are refused", SOON, || {
        assert_ne!(cheat.raw(&ask(3, false)).0, 200);
        provider.refused(party, "order_double_signed") > 0
    });
    assert_eq!(witness.get("/v1/tirami/network")["conserved"], true);
}

#[test]
fn a_witness_comes_and_goes_with_entries_in_flight_and_jobs_go_on_while_it_is_away() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let second = mesh.add_user();
    let party = second.party();
    let founder = mesh.user();
    let owner = founder.owner();
    let change = |action| {
        let draft = founder.peer.block_on(owner.change_witnesses(action, &party.to_string()));
        draft.unwrap().in_force
    };
    let gift = |from: &TestNode, to: PartyId| {
        let kind = Transfer { payee: to, amount: Trm::from_micro(1) }.into();
        from.submit(Actor::Node, Command::SignEntry { kind });
    };
    let version = |node: &TestNode| lattice_of(node, |lattice| lattice.charter().version);
    let pending = |node: &TestNode| {
        let own = node.party();
        lattice_of(node, move |lattice| lattice.pending_of(own).count())
    };
    let provider = mesh.provider(0);

    // Entries are under way while the charter changes.
    gift(provider, founder.party());
    assert!(change(tirami_sdk::types::WitnessAction::Add));
    gift(provider, founder.party());
    gift(founder, provider.party());
    let all = [founder, provider, &second];
    until("everybody has the charter", SOON, || all.iter().all(|node| version(node) == 2));
    until("nothing is left open", SOON, || all.iter().all(|node| pending(node) == 0));

    // Both witnesses make the quorum. While one is away payments wait and answers do not.
    let dir = second.killed();
    until("it is gone", SOON, || !founder.peer.read(move |kernel| kernel.mesh().is_open(party)));
    gift(founder, provider.party());
    assert_eq!(founder.post(&ask(3, false))["choices"][0]["finish_reason"], "stop");
    std::thread::sleep(Duration::from_secs(2));
    assert!(pending(founder) > 0, "without a quorum nothing is final");
    assert_eq!(founder.post(&ask(3, false))["choices"][0]["finish_reason"], "stop");

    // Back again it acknowledges what waited, and is removed with entries under way.
    let options =
        MeshOptions { clock: mesh.clock.clock(), ..joining(founder.peer.node.invite().unwrap()) };
    let second = TestNode::start_in(dir, options, None);
    until("what waited is final", SOON, || pending(founder) == 0);
    gift(provider, founder.party());
    let draft = founder
        .peer
        .block_on(
            owner.change_witnesses(tirami_sdk::types::WitnessAction::Remove, &party.to_string()),
        )
        .unwrap();
    assert!(!draft.in_force, "the other witness has to approve too");
    let other = second.owner();
    let approve = || second.peer.block_on(other.approve_charter(&draft.draft));
    until("the draft has come and is approved", SOON, || approve().is_ok());
    let all = [founder, provider, &second];
    until("everybody has the charter", SOON, || all.iter().all(|node| version(node) == 3));
    until("nothing is left open", SOON, || all.iter().all(|node| pending(node) == 0));
    gift(founder, provider.party());
    until("one witness is enough again", SOON, || pending(founder) == 0);
}
