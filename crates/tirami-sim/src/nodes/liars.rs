//! What dishonest owners send: rivals, used orders, false heads, signals from the future, garbage.

use std::rc::Rc;

use tirami_core::{
    Digest, Document, DocumentId, PartyId, Ppm, Signature, Signed, Timestamp, Trm, decode_body,
    signing_message,
};
use tirami_kernel::{Input, RequestId};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::event::Event;
use tirami_ledger::lattice::{Acknowledgement, Entry, EntryKind, LatticeEvent, Transfer};
use tirami_proto::{
    BUCKETS, FinalEntry, Head, JobRequest, Message, PriceSignal, ToProvider, WireClaim,
    WireDocument, WireEntry, bucket_of,
};

use super::node::{Role, local};
use super::world::{Task, Then, World};

/// Used orders that are kept to be tried again.
const USED_MAX: usize = 64;

/// An order that was used.
#[derive(Debug, Clone)]
pub(super) struct Used {
    consumer: usize,
    provider: usize,
    order: WireDocument,
}

impl World {
    /// A liar's turn.
    pub(super) fn lie(&mut self, at: usize) -> Result<(), String> {
        if self.nodes[at].kernel.is_none() {
            return Ok(());
        }
        match self.nodes[at].role {
            Role::DoubleSigns => self.double_sign(at),
            Role::Garbage => self.garbage(at),
            Role::FalseWitness => self.false_heads(at),
            Role::Replays => self.replay(at),
            _ => Ok(()),
        }
    }

    fn told(&mut self, lie: &'static str) {
        *self.counts.lies.entry(lie).or_default() += 1;
    }

    /// Two entries for one slot, each shown to other witnesses.
    fn double_sign(&mut self, at: usize) -> Result<(), String> {
        let clock = local(self.now, self.nodes[at].skew_ms);
        let Some(mut twin) = self.nodes[at].kernel.clone() else { return Ok(()) };
        let sign = |payee: PartyId, micro: u64| {
            let amount = Trm::from_micro(micro);
            Command::SignEntry { kind: EntryKind::from(Transfer { payee, amount }) }
        };
        let payee = self.nodes[(at + 1) % self.nodes.len()].party;
        let input = Input::Command {
            request: RequestId::new(0),
            actor: Actor::Node,
            command: sign(payee, 77_000_000),
        };
        let effects = twin.handle(clock, input);
        let rival = effects.append.iter().find_map(|event| match event {
            Event::Lattice(event) => match &**event {
                LatticeEvent::EntryPending { entry, .. } => Some(entry.clone()),
                _ => None,
            },
            _ => None,
        });
        let Some(rival) = rival else { return Ok(()) };
        self.told("rivals");
        self.ask(at, sign(payee, 5_000_000), Then::Nothing)?;
        let wire = WireEntry { bytes: rival.bytes().to_vec(), signature: rival.signature() };
        for witness in 0..4 {
            if self.dice.percent(60) {
                let to = self.nodes[witness].party;
                self.send(at, to, &Message::Entry(wire.clone()))?;
            }
        }
        Ok(())
    }

    /// A false witness acknowledges whatever it is shown.
    pub(super) fn false_witness(
        &mut self,
        from: usize,
        to: usize,
        bytes: &[u8],
    ) -> Result<(), String> {
        let node = &self.nodes[to];
        if node.role != Role::FalseWitness || node.kernel.is_none() {
            return Ok(());
        }
        let mesh = self.founding.lattice.mesh();
        let ack = Acknowledgement::sign(mesh, 1, entry_id(self, bytes), &node.key);
        let bytes = minicbor::to_vec(ack).map_err(|error| error.to_string())?;
        self.told("false acknowledgement");
        let party = self.nodes[from].party;
        self.send(to, party, &Message::Acknowledgement(bytes))
    }

    /// Whether a liar keeps a message to itself.
    pub(super) fn keeps_back(&mut self, at: usize, message: &Message) -> bool {
        let kept = match (self.nodes[at].role, message) {
            (Role::NoPay, Message::Entry(entry)) => decode_body::<Entry>(&entry.bytes)
                .is_ok_and(|body| matches!(body.kind, EntryKind::Pay(_))),
            (Role::FalseWitness, Message::Acknowledgement(_)) => self.dice.percent(30),
            _ => false,
        };
        if kept {
            self.told("kept back");
        }
        kept
    }

    /// Remembers what a liar can try again.
    pub(super) fn note_order(&mut self, stream: u64, order: &WireDocument) {
        let Some(known) = self.streams.get(&stream).copied() else { return };
        let (consumer, provider) = (known.consumer, known.provider);
        if self.nodes[consumer].role == Role::Replays {
            if self.used_orders.len() >= USED_MAX {
                self.used_orders.remove(0);
            }
            self.used_orders.push(Used { consumer, provider, order: order.clone() });
        }
    }

    /// A used order again, to its provider or to another.
    fn replay(&mut self, at: usize) -> Result<(), String> {
        let mine = self.used_orders.iter().filter(|used| used.consumer == at);
        let mine: Vec<Used> = mine.cloned().collect();
        if mine.is_empty() {
            return Ok(());
        }
        let used = &mine[self.dice.index(mine.len())];
        let mut provider = used.provider;
        if self.dice.percent(50) {
            let others = (0..self.nodes.len()).filter(|other| self.nodes[*other].serves);
            let others: Vec<usize> = others.filter(|other| *other != at).collect();
            provider = others[self.dice.index(others.len())];
        }
        if !self.links.is_open(at, provider) {
            return Ok(());
        }
        self.told("used order");
        let stream = self.foreign_stream(at, provider);
        let request = JobRequest {
            order: used.order.clone(),
            body: b"10 20 7".to_vec(),
            path: "/v1/chat/completions".to_owned(),
            resumed: Vec::new(),
            consumer_head: None,
        };
        let frame = Box::new(ToProvider::Request(request));
        self.plan(20, Task::ToProvider { stream, frame });
        Ok(())
    }

    fn false_heads(&mut self, at: usize) -> Result<(), String> {
        let chain = self.nodes[self.dice.index(self.nodes.len())].party;
        let next_seq = self.dice.between(1, 1 << 40);
        let head = DocumentId::from_bytes(self.dice.bytes());
        let heads = vec![Head { chain, next_seq, head }];
        self.tell_somebody(at, "false heads", Message::Heads { bucket: bucket_of(chain), heads })?;
        if self.dice.percent(30) {
            let highest = Message::Highest { chain, next_seq, entry: None };
            self.tell_somebody(at, "false highest", highest)?;
        }
        Ok(())
    }

    /// Something that no rule admits, to one of the peers.
    fn garbage(&mut self, at: usize) -> Result<(), String> {
        let signature = Signature::from_bytes([7; 64]);
        let bytes = self.dice.bytes::<90>().to_vec();
        let chain = self.nodes[self.dice.index(self.nodes.len())].party;
        let (lie, message) = match self.dice.below(9) {
            0 => ("forged entry", Message::Entry(self.forged(at)?)),
            1 => ("garbage", Message::Acknowledgement(bytes)),
            2 => return self.false_heads(at),
            3 => ("false signal", Message::Announce(self.false_signals(at)?)),
            4 => {
                let buckets = (0..BUCKETS).map(|_| Digest::from_bytes(self.dice.bytes()));
                let buckets = buckets.collect();
                ("false summary", Message::Summary { state: Digest::of(b"x"), buckets })
            }
            5 => {
                let entry = self.forged(at)?;
                let certificate = Some(bytes);
                let entry =
                    FinalEntry { bytes: entry.bytes, signature: entry.signature, certificate };
                ("forged final", Message::Finals { chain, entries: vec![entry], more: true })
            }
            6 => {
                let document = WireDocument { bytes, signature };
                let claim = WireClaim { order: document.clone(), voucher: document };
                ("false claim", Message::Claim(claim))
            }
            7 => ("question", Message::WantRange { chain, from_seq: 0, max: u32::MAX }),
            _ => ("garbage", Message::CharterApproval { bytes }),
        };
        self.tell_somebody(at, lie, message)
    }

    fn tell_somebody(
        &mut self,
        at: usize,
        lie: &'static str,
        message: Message,
    ) -> Result<(), String> {
        let links = self.links_of(at);
        if links.is_empty() {
            return Ok(());
        }
        let (one, other) = links[self.dice.index(links.len())];
        let to = self.nodes[if one == at { other } else { one }].party;
        self.told(lie);
        self.send(at, to, &message)
    }

    /// An entry that says the wrong balance, or is signed by nobody.
    fn forged(&mut self, at: usize) -> Result<WireEntry, String> {
        let node = &self.nodes[at];
        let payee = self.nodes[0].party;
        let entry = Entry {
            chain: node.party,
            seq: node.lattice().map_or(0, |lattice| lattice.next_signed_seq(node.party)),
            prev: None,
            time_ms: Timestamp::default(),
            kind: Transfer { payee, amount: Trm::from_micro(1 << 60) }.into(),
            balance: 1 << 60,
        };
        let key = if self.dice.percent(50) { node.key.clone() } else { node.agent.clone() };
        let mesh = self.founding.lattice.mesh();
        let signed = Signed::sign(mesh, &key, entry).map_err(|error| error.to_string())?;
        Ok(WireEntry { bytes: signed.bytes().to_vec(), signature: signed.signature() })
    }

    /// Price signals from the past, from the future, and two that contradict each other.
    fn false_signals(&mut self, at: usize) -> Result<Vec<WireDocument>, String> {
        let now = local(self.now, 0);
        let issued_at = match self.dice.below(3) {
            0 => Timestamp::from_ms(now.ms() - 3_600_000),
            1 => now.plus_ms(3_600_000),
            _ => now,
        };
        let signal = |price: u32| PriceSignal {
            provider: self.nodes[at].party,
            issued_at,
            expires_at: issued_at.plus_ms(45_000),
            price: Ppm::new(price),
            cached_price: Ppm::new(price),
            slots_free: 1,
            slots: 1,
            queue: 0,
            models: Vec::new(),
            region: String::new(),
            features: 0,
            addresses: Vec::new(),
            http_endpoint: None,
            serving: true,
        };
        let (mesh, key) = (self.founding.lattice.mesh(), &self.nodes[at].key);
        let both = [1, 2].map(|price| Signed::sign(mesh, key, signal(price)));
        let both = both.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        let wire = both.iter().map(|signed| WireDocument {
            bytes: signed.bytes().to_vec(),
            signature: signed.signature(),
        });
        Ok(wire.collect())
    }
}

/// The id that an entry's bytes have.
pub(super) fn entry_id(world: &World, bytes: &[u8]) -> DocumentId {
    let mesh = world.founding.lattice.mesh();
    let message = signing_message(Entry::KIND, mesh, bytes);
    DocumentId::from_bytes(*Digest::of(&message).as_bytes())
}

/// One copy for everybody.
pub(super) fn shared(entry: FinalEntry) -> Rc<FinalEntry> {
    Rc::new(entry)
}
