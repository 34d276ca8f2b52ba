//! One attacker with 10 000 keys and 500 addresses against a whole node: its faucet, its witness,
//! its provider. What the keys gain is at most what the faucet locked, and what the provider does
//! for nothing is at most what its owner lets strangers owe.

use std::collections::BTreeMap;

use tirami_core::{
    Digest, HOUR_MS, JobId, MINUTE_MS, ModelDigest, ModelShape, PartyId, Ppm, SecretKey, Signed,
    Timestamp, Trm,
};
use tirami_kernel::book::ServingPolicy;
use tirami_kernel::command::{AcceptOrder, Actor, Command, FaucetBounds, Outcome};
use tirami_kernel::documents::Order;
use tirami_kernel::lattice::{Charter, EntryKind, Lattice, Open, Pay, PayItem, Transfer};
use tirami_kernel::mesh::{FREE_OPENS, Faucet, MeshInput, MeshSettings, PeerEvent};
use tirami_kernel::{Effects, Input, Kernel, Keyring, Ledger, Rejection, RequestId};
use tirami_proto::{Hello, Message, PROTOCOL, PROTOCOL_MIN, Welcome, WireEntry, Work};

const KEYS: u64 = 10_000;
const KEYS_PER_ADDRESS: u64 = 20;
const DAYS: u64 = 4;
const GIFT: u64 = 1_000;
const DAY_MAX: u64 = 50_000;
const UNKNOWN_DAY: u64 = 500;
const BITS: u8 = 4;
const MODEL: ModelDigest = ModelDigest::from_bytes([9; 32]);
/// One token is 1 TRM at the price of one.
const SHAPE: ModelShape = ModelShape {
    parameters_active: 500_000_000,
    layers: 0,
    attention_width: 0,
    context_max: 1_024,
};

fn trm(amount: u64) -> Trm {
    Trm::from_trm(amount).unwrap()
}

fn sybil(number: u64) -> SecretKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed(seed)
}

fn party(key: &SecretKey) -> PartyId {
    key.public().party()
}

/// The node that is attacked: founder, witness, clerk, provider, with an open faucet.
struct Node {
    kernel: Kernel,
    now: Timestamp,
    hashes: u64,
}

impl Node {
    fn new() -> Self {
        let key = SecretKey::from_seed([1; 32]);
        let charter = Charter::founder("sybil", key.public(), trm(10_000_000));
        let charter = Signed::sign(Charter::founding_mesh(), &key, charter).unwrap();
        let ledger = Ledger::new(Lattice::found(&charter).unwrap(), party(&key));
        let now = Timestamp::from_ms(1_700_000_000_000);
        let mut node = Self { kernel: Kernel::new(ledger, Keyring::new(key)), now, hashes: 0 };
        let bounds = FaucetBounds { day_max: trm(DAY_MAX), source_max: 2 };
        let faucet = Faucet { amount: trm(GIFT), work_bits: BITS, bounds };
        let settings =
            MeshSettings { public: true, faucet: Some(faucet), ..MeshSettings::default() };
        node.give(Input::Mesh(MeshInput::Settings(settings)));
        node.command(Command::OpenChain { line: trm(1_000_000) }).unwrap();
        let policy = ServingPolicy {
            exposure_start: trm(400),
            exposure_max: trm(400),
            exposure_unknown_day: trm(UNKNOWN_DAY),
            jobs_max: 4_096,
            paused: false,
            ..ServingPolicy::default()
        };
        node.command(Command::SetServing(policy)).unwrap();
        node
    }

    fn give(&mut self, input: Input) -> Effects {
        self.kernel.handle(self.now, input)
    }

    fn command(&mut self, command: Command) -> Result<Outcome, Rejection> {
        let request = RequestId::new(1);
        let effects = self.give(Input::Command { request, actor: Actor::Node, command });
        effects.reply.unwrap().1
    }

    fn lattice(&self) -> &Lattice {
        self.kernel.ledger().lattice()
    }

    /// Lets time pass, with a checkpoint at its end.
    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for _ in 0..3 {
            let _ = self.give(Input::Tick);
            self.now = self.now.plus_ms(1_000);
        }
    }

    fn hear(&mut self, peer: PartyId, message: Message) -> Effects {
        self.give(Input::Peer { peer, event: PeerEvent::Message(Box::new(message)) })
    }

    fn connect(&mut self, key: &SecretKey, address: &str) {
        let peer = party(key);
        let address = Some(address.to_owned());
        self.give(Input::Peer { peer, event: PeerEvent::Connected { outgoing: false, address } });
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol: PROTOCOL,
            features: 0,
            mesh: self.lattice().mesh(),
            charter_version: 1,
            admission: None,
            addresses: Vec::new(),
            agent: "sybil".to_owned(),
        };
        let welcome =
            Welcome { protocol: PROTOCOL, features: 0, charters: Vec::new(), your_address: None };
        self.hear(peer, Message::Hello(hello));
        self.hear(peer, Message::Welcome(welcome));
    }

    fn disconnect(&mut self, key: &SecretKey) {
        self.give(Input::Peer { peer: party(key), event: PeerEvent::Disconnected });
    }

    /// Asks the faucet as a newcomer does; the refusal's code when there is one.
    fn ask(&mut self, key: &SecretKey, address: &str) -> Result<(), String> {
        self.now = self.now.plus_ms(1);
        self.connect(key, address);
        let answer = self.hear(party(key), Message::WantSponsor);
        let told = answer.send.into_iter().find_map(|(_, message)| match message {
            Message::SponsorTask { challenge, bits } => Some(Ok((challenge, bits))),
            Message::SponsorRefused { code, .. } => Some(Err(code)),
            _ => None,
        });
        let asked = told.unwrap().and_then(|(challenge, bits)| {
            let (mesh, sponsor) = (self.lattice().mesh(), self.kernel.ledger().party());
            let work = Work { mesh, sponsor, newcomer: party(key), challenge, bits };
            let nonce = work.search(0, 1 << 16).unwrap();
            self.hashes += nonce + 1;
            let answer = self.hear(party(key), Message::SponsorProof { challenge, nonce });
            let refused = answer.send.into_iter().find_map(|(_, message)| match message {
                Message::SponsorRefused { code, .. } => Some(code),
                _ => None,
            });
            refused.map_or(Ok(()), Err)
        });
        self.disconnect(key);
        asked
    }

    /// Signs an entry with an attacker's key and has it acknowledged, if it can be.
    fn write(&mut self, key: &SecretKey, kind: EntryKind) -> Result<(), String> {
        let entry = self.lattice().draft(party(key), self.now, kind).map_err(|e| e.to_string())?;
        let entry = Signed::sign(self.lattice().mesh(), key, entry).unwrap();
        let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
        let received = self.command(Command::ReceiveEntry { bytes, signature });
        received.map_err(|e| e.to_string())?;
        let signed = self.command(Command::Acknowledge { entry: entry.id() });
        signed.map(|_| ()).map_err(|e| e.to_string())
    }

    fn open(&mut self, key: &SecretKey) {
        let sponsor = self.lattice().grants(party(key)).next().map(|(id, _)| id);
        self.write(key, Open { sponsor, enrol: None, recovery: None }.into()).unwrap();
    }

    /// Orders a job, takes it all and signs for nothing; what it would have cost.
    fn rob(&mut self, key: &SecretKey, number: u64) -> Result<Trm, Rejection> {
        let mut job = [3; 16];
        job[..8].copy_from_slice(&number.to_le_bytes());
        let job = JobId::from_bytes(job);
        let order = Order {
            consumer: party(key),
            provider: self.kernel.ledger().party(),
            job,
            model: MODEL,
            request: Digest::of(b"request"),
            seed: 0,
            price: Ppm::ONE,
            cached_price: Ppm::ONE,
            prompt_max: 3,
            max_amount: trm(100),
            start_by: self.now.plus_ms(60_000),
            claim_by: self.now.plus_ms(HOUR_MS),
        };
        let order = Signed::sign(self.lattice().mesh(), key, order).unwrap();
        self.command(Command::AcceptOrder(AcceptOrder {
            checked: None,
            order: order.bytes().to_vec(),
            signature: order.signature(),
            model: MODEL,
            shape: SHAPE,
            prompt_tokens: 3,
            completion_max: 97,
            head_at: self.now,
        }))?;
        self.command(Command::AbandonServed { job, sent: 97 })?;
        Ok(trm(100))
    }
}

#[test]
fn ten_thousand_keys_gain_at_most_what_the_faucet_locked() {
    let mut node = Node::new();
    node.pass(1_000);
    let before = node.kernel.ledger().own_balance();
    // All money of the attack ends on one chain, which nobody sponsors.
    let mule = SecretKey::from_seed([8; 32]);
    node.open(&mule);
    let (mut given, mut robbed) = (0_u64, Trm::ZERO);
    let mut refusals: BTreeMap<String, u64> = BTreeMap::new();
    let mut sponsored = vec![false; KEYS as usize];
    for day in 0..DAYS {
        let mut lucky = Vec::new();
        for number in (0..KEYS).filter(|number| !sponsored[*number as usize]) {
            let address = number / KEYS_PER_ADDRESS;
            let address = format!("10.1.{}.{}:{}", address / 250, address % 250, 1_024 + number);
            match node.ask(&sybil(number), &address) {
                Ok(()) => lucky.push(number),
                Err(code) => *refusals.entry(code).or_default() += 1,
            }
        }
        given += lucky.len() as u64;
        lucky.iter().for_each(|number| sponsored[*number as usize] = true);
        lucky.iter().for_each(|number| node.open(&sybil(*number)));
        node.pass(11 * MINUTE_MS);
        for number in &lucky {
            let key = sybil(*number);
            // Given away it may not be; for jobs it may be paid, to a friend too.
            let gift = Transfer { payee: party(&mule), amount: Trm::from_micro(1) };
            assert!(node.write(&key, gift.into()).is_err());
            match node.rob(&key, day * KEYS + number) {
                Ok(worth) => robbed = robbed.saturating_add(worth),
                Err(rejection) => *refusals.entry(rejection.code().to_owned()).or_default() += 1,
            }
            let items = vec![PayItem { job: JobId::from_bytes([1; 16]), amount: trm(GIFT) }];
            let more = vec![PayItem { job: JobId::from_bytes([2; 16]), amount: trm(1) }];
            node.write(&key, Pay::new(party(&mule), items, Ppm::ZERO).into()).unwrap();
            let more = node.write(&key, Pay::new(party(&mule), more, Ppm::ZERO).into());
            assert!(more.is_err(), "beyond the welcome line");
        }
        node.pass(11 * MINUTE_MS);
        while let Some(collect) = node.lattice().next_collect(party(&mule)) {
            node.write(&mule, collect.into()).unwrap();
        }
        node.pass(24 * HOUR_MS - 22 * MINUTE_MS);
    }
    // Three days later none has settled.
    for _ in 0..4 {
        node.pass(24 * HOUR_MS);
    }

    // A flood of chains that nobody granted anything, over one connection.
    node.connect(&mule, "10.9.9.9:1");
    let mesh = node.lattice().mesh();
    let mut opened = 0;
    for number in (0..KEYS).filter(|number| !sponsored[*number as usize]).take(2_000) {
        let key = sybil(number);
        let open = Open { sponsor: None, enrol: None, recovery: None };
        let entry = node.lattice().draft(party(&key), node.now, open.into()).unwrap();
        let entry = Signed::sign(mesh, &key, entry).unwrap();
        let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
        let answer = node.hear(party(&mule), Message::Entry(WireEntry { bytes, signature }));
        let is_ack =
            |(_, message): &(PartyId, Message)| matches!(message, Message::Acknowledgement(_));
        opened += u32::from(answer.send.iter().any(is_ack));
    }

    let locked = trm(given * GIFT);
    let gained = node.lattice().signed_balance(party(&mule));
    let lost = before - node.kernel.ledger().own_balance();
    println!(
        "{KEYS} keys from {} addresses, {DAYS} days: {given} sponsored with {locked} TRM, \
         {gained} uTRM gained, {lost} uTRM lost by the sponsor, {robbed} TRM of work unpaid, \
         {opened} of 2000 chains opened at once, {} hashes of {BITS} bits; refused: {refusals:?}",
        KEYS / KEYS_PER_ADDRESS,
        node.hashes,
    );
    assert_eq!(given, DAYS * DAY_MAX / GIFT, "the day's limit holds");
    assert!(i128::from(gained) <= locked.signed(), "more than was locked");
    assert_eq!(lost, i128::from(gained), "nobody else lost anything");
    assert!(robbed <= trm(UNKNOWN_DAY * DAYS), "more than strangers may owe");
    assert!(refusals["faucet_day"] > KEYS, "{refusals:?}");
    assert!(opened <= FREE_OPENS.1, "{opened}");
    assert_eq!(node.kernel.ledger().check_invariants(), Ok(()));
}
