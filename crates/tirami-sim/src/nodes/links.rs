//! Connections between nodes, and what happens to the messages on them.

use std::collections::BTreeMap;
use std::rc::Rc;

use tirami_core::PartyId;
use tirami_kernel::Input;
use tirami_kernel::mesh::PeerEvent;
use tirami_proto::{CONTROL_FRAME_BYTES_MAX, Frames, Message, encode};

use super::traffic::{Group, Kind, kind_of};
use super::world::{Task, World};

/// Of 1 000 messages, so many are lost, doubled and overtaken in a storm.
const LOST: u64 = 15;
const DOUBLED: u64 = 15;
const OVERTAKEN: u64 = 40;
/// How long a node dials in vain.
const DIAL_MS: u64 = 1_000;
/// How long a connection may be dead before its ends notice.
const IDLE_MS: u64 = 4_000;

pub(super) type Pair = (usize, usize);

#[derive(Debug)]
struct Link {
    id: u64,
    delay_ms: u64,
    /// When the last message of each direction arrives: a stream keeps its order.
    last: [u64; 2],
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    open: BTreeMap<Pair, Link>,
    /// Connections that are dead and whose ends do not know it.
    stale: BTreeMap<Pair, u64>,
    numbered: u64,
    /// On which side of the split a node is; empty while there is none.
    pub(super) far: Vec<bool>,
    /// Whether messages are lost, doubled and overtaken.
    pub(super) storm: bool,
}

impl Links {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_open(&self, one: usize, other: usize) -> bool {
        self.open.contains_key(&pair(one, other))
    }

    pub(super) fn reaches(&self, one: usize, other: usize) -> bool {
        self.far.get(one) == self.far.get(other)
    }
}

pub(super) fn pair(one: usize, other: usize) -> Pair {
    (one.min(other), one.max(other))
}

impl World {
    /// Sends a message on a control stream; counts its bytes.
    pub(super) fn send(
        &mut self,
        from: usize,
        to: PartyId,
        message: &Message,
    ) -> Result<(), String> {
        let Some(to) = self.by_party.get(&to).copied() else { return Ok(()) };
        if !self.links.is_open(from, to) {
            return Ok(());
        }
        let (bytes, kind) = (encode(message), kind_of(message));
        if bytes.len() > CONTROL_FRAME_BYTES_MAX + 4 {
            return Err(format!("node {from} sends a {} that fits no frame", kind.1));
        }
        self.count_sent(kind, bytes.len());
        let storm = self.links.storm;
        let roll = if storm { self.dice.below(1_000) } else { 1_000 };
        if roll < LOST || !self.links.reaches(from, to) {
            self.counts.lost += 1;
            return Ok(());
        }
        let copies = if storm && self.dice.below(1_000) < DOUBLED { 2 } else { 1 };
        let bytes: Rc<[u8]> = bytes.into();
        for _ in 0..copies {
            let jitter = self.dice.below(8);
            let overtaken = storm && self.dice.below(1_000) < OVERTAKEN;
            let late = if overtaken { self.dice.below(300) } else { 0 };
            let Some(link) = self.links.open.get_mut(&pair(from, to)) else { break };
            let last = &mut link.last[usize::from(from > to)];
            let mut at = self.now + link.delay_ms + jitter;
            if overtaken {
                at += late;
            } else {
                at = at.max(*last);
                *last = at;
            }
            let task = Task::Message { from, to, connection: link.id, bytes: Rc::clone(&bytes) };
            self.plan_at(at, task);
        }
        Ok(())
    }

    /// Counts a frame of a job.
    pub(super) fn count_job_frame(&mut self, bytes: usize) {
        self.count_sent((Group::Trade, "job"), bytes);
    }

    fn count_sent(&mut self, kind: Kind, bytes: usize) {
        let (messages, sum) = self.counts.sent.entry(kind).or_default();
        *messages += 1;
        *sum += bytes as u64;
    }

    pub(super) fn arrive(
        &mut self,
        (from, to): Pair,
        connection: u64,
        bytes: &[u8],
    ) -> Result<(), String> {
        if self.links.open.get(&pair(from, to)).is_none_or(|link| link.id != connection) {
            return Ok(());
        }
        let mut frames = Frames::new(CONTROL_FRAME_BYTES_MAX);
        frames.push(bytes);
        let Ok(Some(message)) = frames.next::<Message>() else {
            return Err(format!("node {from} sent what its own code cannot read"));
        };
        if let Message::Entry(entry) = &message {
            self.false_witness(from, to, &entry.bytes)?;
        }
        if let Message::Acknowledgement(bytes) = &message {
            self.gather(to, bytes)?;
        }
        let event = PeerEvent::Message(Box::new(message));
        self.give(to, Input::Peer { peer: self.nodes[from].party, event })
    }

    /// A node dials another.
    pub(super) fn dial(&mut self, from: usize, to: usize) -> Result<(), String> {
        let up = |node: usize| self.nodes[node].kernel.is_some();
        if !up(from) {
            return Ok(());
        }
        if !up(to) || !self.links.reaches(from, to) {
            let life = self.nodes[from].life;
            self.plan(DIAL_MS, Task::Unreached { node: from, peer: self.nodes[to].party, life });
            return Ok(());
        }
        if self.links.is_open(from, to) {
            return Ok(());
        }
        if let Some(id) = self.links.stale.get(&pair(from, to)).copied() {
            self.noticed(pair(from, to), id)?;
        }
        let delay_ms = self.dice.between(3, 60);
        self.links.numbered += 1;
        let id = self.links.numbered;
        self.links.open.insert(pair(from, to), Link { id, delay_ms, last: [0; 2] });
        for (node, other, outgoing) in [(to, from, false), (from, to, true)] {
            let address = Some(via(other));
            let event = PeerEvent::Connected { outgoing, address };
            self.give(node, Input::Peer { peer: self.nodes[other].party, event })?;
        }
        Ok(())
    }

    /// A node dialled in vain. If the peer has come by itself meanwhile, nothing ended.
    pub(super) fn unreached(
        &mut self,
        node: usize,
        peer: PartyId,
        life: u64,
    ) -> Result<(), String> {
        let connected = self.by_party.get(&peer).is_some_and(|other| {
            let between = pair(node, *other);
            self.links.open.contains_key(&between) || self.links.stale.contains_key(&between)
        });
        if connected || self.nodes[node].life != life {
            return Ok(());
        }
        self.give(node, Input::Peer { peer, event: PeerEvent::Disconnected })
    }

    /// A node ends a connection: both ends know at once.
    pub(super) fn close(&mut self, one: usize, other: usize) -> Result<(), String> {
        match self.links.open.remove(&pair(one, other)) {
            Some(_) => self.gone(pair(one, other)),
            None => Ok(()),
        }
    }

    /// A connection dies; its ends notice a little later.
    pub(super) fn kill_link(&mut self, between: Pair) {
        if let Some(link) = self.links.open.remove(&between) {
            self.links.stale.insert(between, link.id);
            let notice = self.dice.between(100, IDLE_MS);
            self.plan(notice, Task::Noticed { between, id: link.id });
        }
    }

    pub(super) fn noticed(&mut self, between: Pair, id: u64) -> Result<(), String> {
        if self.links.stale.get(&between) != Some(&id) {
            return Ok(());
        }
        self.links.stale.remove(&between);
        self.gone(between)
    }

    fn gone(&mut self, between: Pair) -> Result<(), String> {
        for (node, other) in [between, (between.1, between.0)] {
            let peer = self.nodes[other].party;
            self.give(node, Input::Peer { peer, event: PeerEvent::Disconnected })?;
        }
        self.streams_broken(between)
    }

    pub(super) fn links_of(&self, node: usize) -> Vec<Pair> {
        let all = self.links.open.keys();
        all.filter(|(one, other)| *one == node || *other == node).copied().collect()
    }

    /// The network splits in two, or heals.
    pub(super) fn split(&mut self, heal: bool) {
        if heal {
            self.links.far.clear();
            return;
        }
        self.counts.splits += 1;
        self.links.far = (0..self.nodes.len()).map(|_| self.dice.percent(40)).collect();
        let all: Vec<Pair> = self.links.open.keys().copied().collect();
        for between in all {
            if !self.links.reaches(between.0, between.1) {
                self.kill_link(between);
            }
        }
    }
}

/// Where a node can be reached.
pub(super) fn via(node: usize) -> String {
    format!("10.{}.{}.{}:3001", node / 65_536, node / 256 % 256, node % 256)
}
