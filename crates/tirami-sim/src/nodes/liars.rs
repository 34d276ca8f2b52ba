//! What dishonest owners send: rivals, used and forged orders and entries, false heads, signals
//! from the future, garbage.

use std::rc::Rc;

use tirami_core::{
    BUCKETS, Digest, Document, DocumentId, JobId, MeshId, PartyId, Ppm, Signature, Signed,
    Timestamp, Trm, bucket_of, decode_body, signing_message,
};
use tirami_kernel::{Input, RequestId};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::documents::{Order, Voucher};
use tirami_ledger::event::Event;
use tirami_ledger::lattice::{
    Acknowledgement, Certificate, Collect, Enrol, Entry, EntryKind, LatticeEvent, Line, Transfer,
};
use tirami_proto::{
    FinalEntry, Head, JobRequest, Message, PriceSignal, ToProvider, WireClaim, WireDocument,
    WireEntry,
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

/// A rival that was shown to witnesses.
#[derive(Debug)]
pub(super) struct Shown {
    by: usize,
    entry: WireEntry,
    acknowledgements: Vec<Acknowledgement>,
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
            Role::AcknowledgesAll | Role::AcknowledgesRivals => self.false_heads(at),
            Role::Replays => self.replay(at),
            Role::Forges => self.forge_order(at),
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
        let (entry, acknowledgements) = (wire.clone(), Vec::new());
        self.rivals.insert(rival.id(), Shown { by: at, entry, acknowledgements });
        for witness in 0..self.founding.lattice.charter().witnesses.len() {
            if self.dice.percent(60) {
                let to = self.nodes[witness].party;
                self.send(at, to, &Message::Entry(wire.clone()))?;
            }
        }
        Ok(())
    }

    /// A liar gathers acknowledgements of its rival and shows everybody the certificate.
    pub(super) fn gather(&mut self, at: usize, bytes: &[u8]) -> Result<(), String> {
        let Ok(ack) = minicbor::decode::<Acknowledgement>(bytes) else { return Ok(()) };
        let Some(shown) = self.rivals.get_mut(&ack.entry).filter(|shown| shown.by == at) else {
            return Ok(());
        };
        if shown.acknowledgements.iter().all(|known| known.witness != ack.witness) {
            shown.acknowledgements.push(ack);
        }
        let quorum = usize::from(self.founding.lattice.charter().quorum);
        if shown.acknowledgements.len() < quorum {
            return Ok(());
        }
        let acknowledgements = core::mem::take(&mut shown.acknowledgements);
        let WireEntry { bytes, signature } = shown.entry.clone();
        let certificate = minicbor::to_vec(Certificate { acknowledgements });
        let certificate = Some(certificate.map_err(|error| error.to_string())?);
        let entries = vec![FinalEntry { bytes, signature, certificate }];
        let message = Message::Finals { chain: self.nodes[at].party, entries, more: false };
        self.told("certified rival");
        for (one, other) in self.links_of(at) {
            let to = self.nodes[if one == at { other } else { one }].party;
            self.send(at, to, &message)?;
        }
        Ok(())
    }

    /// A false witness acknowledges whatever it is shown, or the rivals among it.
    pub(super) fn false_witness(
        &mut self,
        from: usize,
        to: usize,
        bytes: &[u8],
    ) -> Result<(), String> {
        let (role, is_up) = (self.nodes[to].role, self.nodes[to].kernel.is_some());
        if !is_up || !matches!(role, Role::AcknowledgesAll | Role::AcknowledgesRivals) {
            return Ok(());
        }
        let id = entry_id(self, bytes);
        if role == Role::AcknowledgesRivals {
            let Ok(entry) = decode_body::<Entry>(bytes) else { return Ok(()) };
            if *self.shown.entry((to, entry.slot())).or_insert(id) == id {
                return Ok(());
            }
        }
        let mesh = self.founding.lattice.mesh();
        let ack = Acknowledgement::sign(mesh, 1, id, &self.nodes[to].key);
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
            (Role::AcknowledgesAll, Message::Acknowledgement(_)) => self.dice.percent(30),
            (Role::Refuses, Message::Acknowledgement(_)) => true,
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
        if matches!(self.nodes[consumer].role, Role::Replays | Role::Forges) {
            if self.used_orders.len() >= USED_MAX {
                self.used_orders.remove(0);
            }
            self.used_orders.push(Used { consumer, provider, order: order.clone() });
        }
    }

    /// One of a liar's used orders.
    fn some_used(&mut self, at: usize) -> Option<Used> {
        let mine = self.used_orders.iter().filter(|used| used.consumer == at);
        let mine: Vec<Used> = mine.cloned().collect();
        let place = self.dice.index(mine.len());
        mine.into_iter().nth(place)
    }

    /// A used order again, to its provider or to another.
    fn replay(&mut self, at: usize) -> Result<(), String> {
        let Some(used) = self.some_used(at) else { return Ok(()) };
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
        self.show_order((at, provider), used.order);
        Ok(())
    }

    /// A new order of which one thing is as no rule admits.
    fn forge_order(&mut self, at: usize) -> Result<(), String> {
        let Some(Used { provider, order, .. }) = self.some_used(at) else { return Ok(()) };
        let Ok(mut body) = decode_body::<Order>(&order.bytes) else { return Ok(()) };
        if !self.links.is_open(at, provider) {
            return Ok(());
        }
        body.job = JobId::from_bytes(self.dice.bytes());
        let now = local(self.now, self.nodes[at].skew_ms);
        (body.start_by, body.claim_by) = (now.plus_ms(60_000), now.plus_ms(3_600_000));
        let (mut mesh, mut key) = (self.founding.lattice.mesh(), self.nodes[at].key.clone());
        let lie = match self.dice.below(6) {
            0 => {
                body.price = Ppm::new(1);
                "order below the price"
            }
            1 => {
                body.start_by = Timestamp::from_ms(now.ms() - 3_600_000);
                "expired order"
            }
            2 => {
                body.claim_by = now.plus_ms(30 * 24 * 3_600_000);
                "order for a month"
            }
            3 => {
                body.provider = self.nodes[0].party;
                "order for another"
            }
            4 => {
                key = self.nodes[0].agent.clone();
                "order by a foreign key"
            }
            _ => {
                mesh = MeshId::from_bytes([3; 32]);
                "order of another mesh"
            }
        };
        if body.provider == self.nodes[provider].party || lie == "order for another" {
            self.told(lie);
            let signed = Signed::sign(mesh, &key, body).map_err(|error| error.to_string())?;
            let (bytes, signature) = (signed.bytes().to_vec(), signed.signature());
            let stream = self.show_order((at, provider), WireDocument { bytes, signature });
            self.forged_orders.insert(stream);
        }
        Ok(())
    }

    /// Asks for a job with an order as it is.
    fn show_order(&mut self, (at, provider): (usize, usize), order: WireDocument) -> u64 {
        let stream = self.foreign_stream(at, provider);
        let request = JobRequest {
            order,
            body: b"10 20 7".to_vec(),
            path: "/v1/chat/completions".to_owned(),
            resumed: Vec::new(),
        };
        let frame = Box::new(ToProvider::Request(request));
        self.plan(20, Task::ToProvider { stream, frame });
        stream
    }

    /// A voucher after the last one that says less.
    pub(super) fn fallen(
        &mut self,
        at: usize,
        voucher: &Signed<Voucher>,
    ) -> Result<Option<WireDocument>, String> {
        let mut body = voucher.body().clone();
        if self.nodes[at].role != Role::Forges || body.tokens < 2 || self.dice.percent(70) {
            return Ok(None);
        }
        self.told("voucher that falls");
        (body.n, body.tokens) = (body.n + 1, body.tokens / 2);
        body.amount = Trm::from_micro(body.amount.micro() / 2);
        let (mesh, key) = (self.founding.lattice.mesh(), &self.nodes[at].key);
        let signed = Signed::sign(mesh, key, body).map_err(|error| error.to_string())?;
        let (bytes, signature) = (signed.bytes().to_vec(), signed.signature());
        Ok(Some(WireDocument { bytes, signature }))
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
        let (lie, message) = match self.dice.below(10) {
            0 | 9 => return self.show_forged(at),
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

    /// Shows a forged entry to the witnesses.
    fn show_forged(&mut self, at: usize) -> Result<(), String> {
        let entry = self.forged(at)?;
        for witness in 0..self.founding.lattice.charter().witnesses.len() {
            let to = self.nodes[witness].party;
            self.send(at, to, &Message::Entry(entry.clone()))?;
        }
        Ok(())
    }

    /// The next entry of a liar's chain, and one thing about it is as no rule admits.
    fn forged(&mut self, at: usize) -> Result<WireEntry, String> {
        let (chain, honest) = (self.nodes[at].party, self.nodes[0].party);
        let known = self.nodes[at].lattice().and_then(|lattice| lattice.chain(chain));
        let Some(state) = known.map(|chain| chain.state().clone()) else {
            return Err(format!("node {at} lies and has no chain"));
        };
        let [collected, foreign] = self.tally.some_payments();
        let (seq, prev, mut balance) = (state.next, state.head, state.balance);
        let (mut mesh, mut key) = (self.founding.lattice.mesh(), self.nodes[at].key.clone());
        let transfer = |micro| Transfer { payee: honest, amount: Trm::from_micro(micro) }.into();
        let collect = |id| Collect { ids: vec![id], checkpoint: None }.into();
        let (lie, kind): (_, EntryKind) = match self.dice.below(8) {
            0 => ("entry with a wrong balance", transfer(1 << 40)),
            1 => {
                balance -= 1 << 40;
                ("entry beyond the line", transfer(1 << 40))
            }
            2 => {
                (key, balance) = (self.nodes[at].agent.clone(), balance - 5);
                ("entry by a foreign key", transfer(5))
            }
            3 => {
                (mesh, balance) = (MeshId::from_bytes([3; 32]), balance - 5);
                ("entry of another mesh", transfer(5))
            }
            4 => {
                let owner = String::new();
                ("line by nobody", Enrol { party: chain, owner, line: Trm::from_micro(9) }.into())
            }
            5 => ("line of another", Line { enrol: self.founding.entries[1].entry.id() }.into()),
            kind => {
                let (lie, item) = match kind {
                    6 => ("payment collected again", collected),
                    _ => ("payment of another collected", foreign),
                };
                let Some(item) = item else { return self.forged(at) };
                balance += 1_000;
                (lie, collect(item))
            }
        };
        self.told(lie);
        let entry = Entry { chain, seq, prev, time_ms: Timestamp::default(), kind, balance };
        let signed = Signed::sign(mesh, &key, entry).map_err(|error| error.to_string())?;
        let id = entry_id(self, signed.bytes());
        self.law.forged.insert(id);
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
