//! Kernels, stores and a network in one thread.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{PartyId, SecretKey, Signed, Timestamp, Trm};
use tirami_kernel::command::{Actor, Command, Outcome};
use tirami_kernel::event::Event;
use tirami_kernel::lattice::{Charter, Keep, Lattice, LatticeEvent, Transfer};
use tirami_kernel::mesh::{Admission, MeshInput, MeshSettings, PeerEvent, Serve};
use tirami_kernel::{Effects, Input, Kernel, Keyring, Ledger, Rejection, RequestId};
use tirami_proto::{
    CONTROL_FRAME_BYTES_MAX, FinalEntry, Frames, Goodbye, Head, Message, PeerAddress, Via, encode,
};

pub(crate) const START_MS: u64 = 1_700_000_000_000;
pub(crate) const SECRET: [u8; 32] = [42; 32];
/// An owner who invited as many as will come.
pub(crate) const EVERYBODY: Admission =
    Admission { enrolled_max: u64::MAX, expires_at: Timestamp::from_ms(u64::MAX) };
/// One way through the network.
const DELAY_MS: u64 = 5;
/// Recent entries that a node keeps as records: few, so that a test sees old ones.
const RECENT: u32 = 8;

pub(crate) fn trm(amount: u64) -> Trm {
    Trm::from_trm(amount).unwrap()
}

pub(crate) struct Node {
    pub(crate) kernel: Kernel,
    pub(crate) key: SecretKey,
    genesis: Ledger,
    pub(crate) store: Vec<Event>,
    archive: BTreeMap<PartyId, Vec<(u64, FinalEntry)>>,
    pub(crate) settings: MeshSettings,
    wake_at: Option<Timestamp>,
    pub(crate) up: bool,
    reply: Option<Result<Outcome, Rejection>>,
    pub(crate) goodbyes: Vec<(PartyId, Goodbye)>,
}

impl Node {
    fn new(key: SecretKey, lattice: Lattice) -> Self {
        let genesis = Ledger::new(lattice, key.public().party());
        let settings = MeshSettings {
            secret: Some(SECRET),
            admission: Some(EVERYBODY),
            agent: "test/1".to_owned(),
            ..MeshSettings::default()
        };
        Self {
            kernel: Kernel::new(genesis.clone(), Keyring::new(key.clone())),
            key,
            genesis,
            store: Vec::new(),
            archive: BTreeMap::new(),
            settings,
            wake_at: None,
            up: true,
            reply: None,
            goodbyes: Vec::new(),
        }
    }

    pub(crate) fn party(&self) -> PartyId {
        self.key.public().party()
    }

    pub(crate) fn lattice(&self) -> &Lattice {
        self.kernel.ledger().lattice()
    }

    fn keep(&mut self, events: Vec<Event>) {
        for event in &events {
            if let Event::Lattice(event) = event
                && let LatticeEvent::EntryFinal { entry, certificate, .. } = &**event
            {
                let certificate = certificate.as_ref().map(|c| minicbor::to_vec(c).unwrap());
                let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
                let last = FinalEntry { bytes, signature, certificate };
                let entry = entry.entry();
                self.archive.entry(entry.chain).or_default().push((entry.seq, last));
            }
        }
        self.store.extend(events);
    }

    /// What a store answers: a run that ends with a certificate and fits a frame.
    fn read(&self, serve: &Serve) -> Message {
        let none = Vec::new();
        let all = self.archive.get(&serve.chain).unwrap_or(&none);
        let from: Vec<_> = all.iter().filter(|(seq, _)| *seq >= serve.from_seq).collect();
        let (mut end, mut bytes) = (0, 0);
        for (index, (_, entry)) in from.iter().enumerate() {
            bytes += entry.wire_bytes();
            let is_full = index >= serve.max as usize || bytes > CONTROL_FRAME_BYTES_MAX - 1_024;
            if end > 0 && is_full {
                break;
            }
            if entry.certificate.is_some() {
                end = index + 1;
            }
        }
        let entries = from[..end].iter().map(|(_, entry)| entry.clone()).collect();
        Message::Finals { chain: serve.chain, entries, more: end < from.len() }
    }
}

/// What the network does to messages, in percent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) drop: u64,
    pub(crate) duplicate: u64,
    pub(crate) reorder: u64,
}

/// A range of final entries that a node asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) by: usize,
    pub(crate) chain: PartyId,
    pub(crate) from_seq: u64,
    /// What was final at the node then.
    pub(crate) next_seq: u64,
}

enum Delivery {
    Lost(usize, PartyId),
    Message { from: usize, to: usize, connection: u64, bytes: Vec<u8> },
    Dial { from: usize, to: usize },
}

pub(crate) struct Net {
    pub(crate) nodes: Vec<Node>,
    pub(crate) now_ms: u64,
    pub(crate) faults: Faults,
    queue: BTreeMap<(u64, u64), Delivery>,
    numbered: u64,
    /// Open connections by pair, lower number first.
    connections: BTreeMap<(usize, usize), u64>,
    /// When the last message of a direction arrives.
    last: BTreeMap<(usize, usize), u64>,
    /// Groups that cannot reach each other; nobody is cut off when empty.
    groups: Vec<BTreeSet<usize>>,
    dice: u64,
    pub(crate) sent: BTreeMap<&'static str, u64>,
    /// Ranges that were asked for.
    pub(crate) ranges: Vec<Range>,
    /// Final entries that arrived in pages and pushes, by node.
    pub(crate) arrived: BTreeMap<usize, u64>,
    /// Nodes that announce a million entries more than they hold, and serve none.
    pub(crate) boasters: BTreeSet<usize>,
}

impl Net {
    /// A founder, which is witness, clerk and registrar, with an open chain.
    pub(crate) fn found(witnesses: usize) -> Self {
        Self::found_with(witnesses, |_| {})
    }

    pub(crate) fn found_with(witnesses: usize, change: impl Fn(&mut Charter)) -> Self {
        let keys: Vec<SecretKey> = (1..=witnesses as u8).map(key).collect();
        let mut charter = Charter::founder("test", keys[0].public(), trm(1_000_000_000));
        charter.params.line_default = trm(1_000);
        change(&mut charter);
        let charter = Signed::sign(Charter::founding_mesh(), &keys[0], charter).unwrap();
        let lattice = Lattice::found(&charter).unwrap().with_recent(RECENT);
        let mut net = Self {
            nodes: Vec::new(),
            now_ms: START_MS,
            faults: Faults::default(),
            queue: BTreeMap::new(),
            numbered: 0,
            connections: BTreeMap::new(),
            last: BTreeMap::new(),
            groups: Vec::new(),
            dice: 7,
            sent: BTreeMap::new(),
            ranges: Vec::new(),
            arrived: BTreeMap::new(),
            boasters: BTreeSet::new(),
        };
        net.nodes.push(Node::new(keys[0].clone(), lattice));
        net.settings(0);
        net.ok(0, Command::OpenChain { line: trm(1_000) });
        net
    }

    /// A mesh of `count` nodes that joined by invite and opened their chains.
    pub(crate) fn of(count: usize) -> Self {
        let mut net = Self::found(1);
        for _ in 1..count {
            net.join(&[0]);
        }
        net.run_ms(3_000);
        for node in &net.nodes {
            assert!(node.lattice().chain(node.party()).is_some(), "a node has no chain");
        }
        net
    }

    /// A newcomer with an invite that names `peers`.
    pub(crate) fn join(&mut self, peers: &[usize]) -> usize {
        self.newcomer(peers, Some(SECRET))
    }

    /// A newcomer to a public mesh.
    pub(crate) fn stranger(&mut self, peers: &[usize]) -> usize {
        self.newcomer(peers, None)
    }

    fn newcomer(&mut self, peers: &[usize], secret: Option<[u8; 32]>) -> usize {
        let number = self.nodes.len();
        let history: Vec<_> = self.nodes[0].lattice().charters(0).collect();
        let mesh = self.nodes[0].lattice().mesh();
        let lattice = Lattice::from_history(mesh, &history).unwrap().with_recent(RECENT);
        let mut node = Node::new(key(number as u8 + 1), lattice);
        node.settings.secret = secret;
        node.settings.bootstrap = peers.iter().map(|peer| self.address(*peer)).collect();
        node.settings.addresses = vec![via(number).to_string()];
        self.nodes.push(node);
        self.settings(number);
        number
    }

    /// A newcomer that the registrar does not enrol: the mesh lets everybody in.
    pub(crate) fn join_without_secret(&mut self, peers: &[usize]) -> usize {
        self.nodes[0].settings.public = true;
        self.settings(0);
        let number = self.join(peers);
        self.nodes[number].settings.secret = None;
        self.settings(number);
        number
    }

    /// A newcomer that keeps only the chains it has to do with.
    pub(crate) fn join_light(&mut self, peers: &[usize]) -> usize {
        let number = self.join(peers);
        self.nodes[number].settings.keep = Keep::Own;
        self.settings(number);
        number
    }

    pub(crate) fn address(&self, node: usize) -> PeerAddress {
        PeerAddress { key: self.nodes[node].key.public(), via: vec![via(node)] }
    }

    pub(crate) fn settings(&mut self, node: usize) {
        if self.nodes[node].settings.addresses.is_empty() {
            self.nodes[node].settings.addresses = vec![via(node).to_string()];
        }
        let settings = self.nodes[node].settings.clone();
        self.give(node, Input::Mesh(MeshInput::Settings(settings)));
    }

    pub(crate) fn party(&self, node: usize) -> PartyId {
        self.nodes[node].party()
    }

    fn number_of(&self, party: PartyId) -> Option<usize> {
        self.nodes.iter().position(|node| node.party() == party)
    }

    pub(crate) fn command(&mut self, node: usize, command: Command) -> Result<Outcome, Rejection> {
        self.ask(node, Actor::Node, command)
    }

    pub(crate) fn ask(
        &mut self,
        node: usize,
        actor: Actor,
        command: Command,
    ) -> Result<Outcome, Rejection> {
        let request = RequestId::new(1);
        self.give(node, Input::Command { request, actor, command });
        self.nodes[node].reply.take().expect("a command is answered")
    }

    pub(crate) fn ok(&mut self, node: usize, command: Command) -> Outcome {
        self.command(node, command).unwrap()
    }

    pub(crate) fn transfer(&mut self, from: usize, to: usize, amount: u64) {
        let payee = self.party(to);
        let kind = Transfer { payee, amount: trm(amount) }.into();
        self.ok(from, Command::SignEntry { kind });
    }

    /// Gives an input now and carries out what it leads to.
    pub(crate) fn give(&mut self, node: usize, input: Input) {
        if !self.nodes[node].up {
            return;
        }
        let now = Timestamp::from_ms(self.now_ms);
        let effects = self.nodes[node].kernel.handle(now, input);
        self.carry_out(node, effects);
    }

    fn carry_out(&mut self, node: usize, effects: Effects) {
        let Effects { append, reply, send, serve, disconnect, connect, work, wake_at, .. } =
            effects;
        self.nodes[node].keep(append);
        self.nodes[node].wake_at = wake_at;
        assert!(wake_at.is_none_or(|at| at.ms() > self.now_ms), "woken in the past: {wake_at:?}");
        if let Some((_, reply)) = reply {
            self.nodes[node].reply = Some(reply);
        }
        for (to, message) in send {
            self.send(node, to, &message);
        }
        for serve in serve {
            let message = self.nodes[node].read(&serve);
            self.send(node, serve.peer, &message);
        }
        for (to, goodbye) in disconnect {
            self.nodes[node].goodbyes.push((to, goodbye.clone()));
            self.send(node, to, &Message::Goodbye(goodbye));
            if let Some(to) = self.number_of(to) {
                self.close(node, to, 2 * DELAY_MS);
            }
        }
        if let Some(work) = work {
            let nonce = work.search(0, 1 << 20);
            let (sponsor, challenge) = (work.sponsor, work.challenge);
            self.give(node, Input::Mesh(MeshInput::Worked { sponsor, challenge, nonce }));
        }
        for address in connect {
            let via = address.via.first();
            let to = self.number_of(address.party()).filter(|_| via.is_some());
            let peer = address.party();
            match to {
                Some(to) => self.plan(DELAY_MS, Delivery::Dial { from: node, to }),
                None => self.plan(DELAY_MS, Delivery::Lost(node, peer)),
            }
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: PartyId, message: &Message) {
        let Some(to) = self.number_of(to) else { return };
        let Some(connection) = self.connections.get(&pair(from, to)).copied() else { return };
        *self.sent.entry(kind(message)).or_default() += 1;
        if let Message::WantRange { chain, from_seq, .. } = message {
            let (by, chain, from_seq) = (from, *chain, *from_seq);
            let next_seq = self.nodes[by].lattice().chain(chain).map_or(0, |c| c.next_seq());
            self.ranges.push(Range { by, chain, from_seq, next_seq });
        }
        let boast = self.boasters.contains(&from).then(|| boasted(message));
        let message = match &boast {
            Some(None) => return,
            Some(Some(boast)) => boast,
            None => message,
        };
        let final_word = matches!(message, Message::Goodbye(_));
        if !final_word && self.roll() < self.faults.drop {
            return;
        }
        let copies = 1 + u64::from(self.roll() < self.faults.duplicate);
        let bytes = encode(message);
        assert!(bytes.len() <= CONTROL_FRAME_BYTES_MAX + 4, "a message does not fit its frame");
        for _ in 0..copies {
            let mut at = self.now_ms + DELAY_MS;
            if self.roll() < self.faults.reorder {
                at += self.roll();
            } else {
                let last = self.last.entry((from, to)).or_default();
                at = at.max(*last);
                *last = at;
            }
            let bytes = bytes.clone();
            self.plan_at(at, Delivery::Message { from, to, connection, bytes });
        }
    }

    fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.dice >> 33) % 100
    }

    fn plan(&mut self, in_ms: u64, delivery: Delivery) {
        self.plan_at(self.now_ms + in_ms, delivery);
    }

    fn plan_at(&mut self, at_ms: u64, delivery: Delivery) {
        self.numbered += 1;
        self.queue.insert((at_ms, self.numbered), delivery);
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        let both_up = self.nodes[one].up && self.nodes[other].up;
        let group = |node| self.groups.iter().position(|group| group.contains(&node));
        both_up && group(one) == group(other)
    }

    pub(crate) fn is_connected(&self, one: usize, other: usize) -> bool {
        self.connections.contains_key(&pair(one, other))
    }

    pub(crate) fn connect(&mut self, from: usize, to: usize) {
        self.plan(0, Delivery::Dial { from, to });
    }

    fn dial(&mut self, from: usize, to: usize) {
        let peer = self.party(to);
        if !self.reaches(from, to) {
            self.give(from, Input::Peer { peer, event: PeerEvent::Disconnected });
            return;
        }
        if self.is_connected(from, to) {
            return;
        }
        self.numbered += 1;
        self.connections.insert(pair(from, to), self.numbered);
        for (node, other, outgoing) in [(to, from, false), (from, to, true)] {
            let address = Some(via(other).to_string());
            let event = PeerEvent::Connected { outgoing, address };
            let peer = self.party(other);
            self.give(node, Input::Peer { peer, event });
        }
    }

    fn close(&mut self, one: usize, other: usize, in_ms: u64) {
        if self.connections.contains_key(&pair(one, other)) {
            if in_ms == 0 {
                self.connections.remove(&pair(one, other));
            } else {
                let connection = self.connections[&pair(one, other)];
                let bytes = Vec::new();
                let delivery = Delivery::Message { from: one, to: other, connection, bytes };
                self.plan(in_ms, delivery);
                return;
            }
            for (node, peer) in [(one, other), (other, one)] {
                let peer = self.party(peer);
                self.give(node, Input::Peer { peer, event: PeerEvent::Disconnected });
            }
        }
    }

    /// Cuts the network into groups; heals it with none.
    pub(crate) fn split(&mut self, groups: &[&[usize]]) {
        self.groups = groups.iter().map(|group| group.iter().copied().collect()).collect();
        let open: Vec<(usize, usize)> = self.connections.keys().copied().collect();
        for (one, other) in open {
            if !self.reaches(one, other) {
                self.close(one, other, 0);
            }
        }
    }

    /// The process ends; what it did not store is gone.
    pub(crate) fn stop(&mut self, node: usize) {
        let open: Vec<(usize, usize)> = self.connections.keys().copied().collect();
        for (one, other) in open.into_iter().filter(|(a, b)| *a == node || *b == node) {
            self.close(one, other, 0);
        }
        self.nodes[node].up = false;
        self.nodes[node].wake_at = None;
    }

    /// The process starts with the first `keep` events of its store, or with all.
    pub(crate) fn start(&mut self, number: usize, keep: Option<usize>) {
        let node = &mut self.nodes[number];
        if let Some(keep) = keep {
            let kept: Vec<Event> = node.store.drain(..).take(keep).collect();
            node.archive.clear();
            node.keep(kept);
        }
        let keys = Keyring::new(node.key.clone());
        node.kernel = Kernel::replay(node.genesis.clone(), keys, node.store.clone());
        node.up = true;
        self.settings(number);
    }

    pub(crate) fn run_ms(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while let Some(at) = self.next_at().filter(|at| *at <= end) {
            self.now_ms = self.now_ms.max(at);
            self.step();
        }
        self.now_ms = end;
    }

    fn next_at(&self) -> Option<u64> {
        let woken = self.nodes.iter().filter_map(|node| node.wake_at.map(Timestamp::ms));
        let first = self.queue.keys().next().map(|(at, _)| *at);
        woken.chain(first).min()
    }

    fn step(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].wake_at.is_some_and(|at| at.ms() <= self.now_ms) {
                self.give(node, Input::Tick);
            }
        }
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= self.now_ms) {
            match entry.remove() {
                Delivery::Lost(node, peer) => {
                    self.give(node, Input::Peer { peer, event: PeerEvent::Disconnected });
                }
                Delivery::Dial { from, to } => self.dial(from, to),
                Delivery::Message { from, to, connection, bytes } => {
                    if self.connections.get(&pair(from, to)) == Some(&connection) {
                        self.arrive(from, to, &bytes);
                    }
                }
            }
        }
    }

    fn arrive(&mut self, from: usize, to: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            self.close(from, to, 0);
            return;
        }
        let mut frames = Frames::new(CONTROL_FRAME_BYTES_MAX);
        frames.push(bytes);
        let message = frames.next::<Message>().unwrap().expect("a known message");
        if let Message::Finals { entries, .. } = &message {
            *self.arrived.entry(to).or_default() += entries.len() as u64;
        }
        if let (true, Message::WantRange { chain, from_seq, .. }) =
            (self.boasters.contains(&to), &message)
        {
            let head = tirami_core::DocumentId::from_bytes([9; 32]);
            let heads = vec![Head { chain: *chain, next_seq: *from_seq, head }];
            let bucket = tirami_core::bucket_of(*chain);
            self.send(to, self.party(from), &Message::Heads { bucket, heads });
        }
        let event = PeerEvent::Message(Box::new(message));
        let peer = self.party(from);
        self.give(to, Input::Peer { peer, event });
    }

    /// Runs until all nodes that are up have the same shared state, for at most `ms`.
    pub(crate) fn converge_ms(&mut self, ms: u64) -> u64 {
        let begin = self.now_ms;
        while !self.agree() {
            assert!(self.now_ms < begin + ms, "no agreement after {ms} ms: {:#?}", self.heads());
            self.run_ms(50);
        }
        self.check();
        self.now_ms - begin
    }

    pub(crate) fn agree(&self) -> bool {
        let up = self.nodes.iter().filter(|node| node.up);
        let mut hashes = up.map(|node| node.lattice().state_hash());
        let first = hashes.next();
        hashes.all(|hash| Some(hash) == first)
    }

    pub(crate) fn check(&self) {
        for node in self.nodes.iter().filter(|node| node.up) {
            assert_eq!(node.kernel.ledger().check_invariants(), Ok(()));
        }
    }

    pub(crate) fn heads(&self) -> Vec<Vec<(PartyId, u64)>> {
        let heads = self.nodes.iter().map(|node| {
            node.lattice().chains().map(|(party, chain)| (party, chain.next_seq())).collect()
        });
        heads.collect()
    }

    /// Collects everything that `node` was paid and has not collected by itself.
    pub(crate) fn collect(&mut self, node: usize) {
        let party = self.party(node);
        let lattice = self.nodes[node].lattice();
        let ids: Vec<_> = lattice.collectable(party).map(|(id, _)| id).take(200).collect();
        if ids.is_empty() {
            return;
        }
        let collect = tirami_kernel::lattice::Collect { ids, checkpoint: None };
        self.ok(node, Command::SignEntry { kind: collect.into() });
    }
}

/// What a node says instead that announces what it never serves; nothing in place of a page.
fn boasted(message: &Message) -> Option<Message> {
    match message {
        Message::Finals { .. } => None,
        Message::Heads { bucket, heads } => {
            let more = |head: &Head| Head { next_seq: head.next_seq + 1_000_000, ..*head };
            Some(Message::Heads { bucket: *bucket, heads: heads.iter().map(more).collect() })
        }
        other => Some(other.clone()),
    }
}

pub(crate) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

fn via(node: usize) -> Via {
    format!("10.0.0.{}:3001", node + 1).parse().unwrap()
}

fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

fn kind(message: &Message) -> &'static str {
    match message {
        Message::Entry(_) => "entry",
        Message::Finals { .. } => "finals",
        Message::Heads { .. } => "heads",
        Message::Summary { .. } => "summary",
        Message::WantRange { .. } => "want_range",
        Message::Announce(_) => "announce",
        Message::Claim(_) => "claim",
        Message::Kept { .. } => "kept",
        Message::Beyond { .. } => "beyond",
        _ => "other",
    }
}
