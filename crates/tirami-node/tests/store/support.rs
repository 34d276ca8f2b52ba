//! A small but real life of a node for tests of the store: a founded mesh, an agent with money,
//! and jobs with their signed documents.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::mpsc;

use tirami_core::{
    Digest, JobId, MeshId, ModelDigest, ModelShape, SecretKey, Signed, Timestamp, Trm,
};
use tirami_ledger::book::Scope;
use tirami_ledger::command::{Actor, Command, FinishJob, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_ledger::event::Event;
use tirami_ledger::lattice::{Charter, EntryKind, Lattice, Transfer};
use tirami_ledger::{Context, Keyring, Ledger};
use tirami_node::keys::KeyDir;
use tirami_node::store::{
    DirLock, Found, Genesis, Opening, Store, StoreError, StoreReader, StoreStats,
};

const SHAPE: ModelShape =
    ModelShape { parameters_active: 1_000_000, layers: 2, attention_width: 64, context_max: 2_048 };

/// The ledger of a node and what it needs to go on.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) ledger: Ledger,
    pub(crate) genesis: Genesis,
    keys: Keyring,
    now: Timestamp,
    jobs: u64,
}

impl Life {
    /// The same life for the same seed.
    pub(crate) fn new(seed: u8) -> Self {
        let node = SecretKey::from_seed([seed; 32]);
        let agent = SecretKey::from_seed([seed ^ 0x80; 32]);
        let charter = Charter::founder("test", node.public(), Trm::from_micro(1 << 50));
        let charter = Signed::sign(Charter::founding_mesh(), &node, charter).unwrap();
        let party = node.public().party();
        let genesis = Genesis {
            mesh: MeshId::from_bytes(*charter.id().as_bytes()),
            party,
            personal: agent.public().agent(),
            charter: charter.bytes().to_vec(),
            charter_signature: charter.signature(),
            created_at: Timestamp::from_ms(1_000),
        };
        let mut keys = Keyring::new(node);
        keys.add_agent(agent);
        let ledger = Ledger::new(Lattice::found(&charter).unwrap(), party);
        Self { ledger, genesis, keys, now: Timestamp::from_ms(1_000_000), jobs: 0 }
    }

    /// What a restart begins with.
    pub(crate) fn empty_ledger(genesis: &Genesis) -> Ledger {
        let charter = Signed::from_store(
            Charter::founding_mesh(),
            genesis.charter.clone(),
            genesis.charter_signature,
        );
        Ledger::new(Lattice::found(&charter.unwrap()).unwrap(), genesis.party)
    }

    fn decide(&mut self, actor: &Actor, command: &Command) -> Vec<Event> {
        self.now = self.now.plus_ms(10);
        let context = Context { now: self.now, keys: &self.keys };
        let decision = self.ledger.decide(&context, actor, command).unwrap();
        for event in &decision.events {
            self.ledger.apply(event);
        }
        decision.events
    }

    /// The first steps: a chain, an agent, its money.
    pub(crate) fn begin(&mut self) -> Vec<Event> {
        let agent = self.genesis.personal;
        let amount = Trm::from_micro(1 << 45);
        let mut events = Vec::new();
        for command in [
            Command::OpenChain { line: Trm::from_micro(1 << 46) },
            Command::CreateAgent { agent, name: "personal".into() },
            Command::FundAgent { agent, amount },
        ] {
            events.extend(self.decide(&Actor::Node, &command));
        }
        events
    }

    /// A gift to somebody, which is final at once: the node is its own witness.
    pub(crate) fn gift(&mut self) -> Vec<Event> {
        let payee = SecretKey::from_seed([99; 32]).public().party();
        let gift = Transfer { payee, amount: Trm::from_micro(1) };
        let command = Command::SignEntry { kind: EntryKind::Transfer(gift) };
        self.now = self.now.plus_ms(10);
        let context = Context { now: self.now, keys: &self.keys };
        let decision = self.ledger.decide(&context, &Actor::Node, &command).unwrap();
        self.ledger.absorb(&context, decision.events)
    }

    /// One job from order to receipt.
    pub(crate) fn job(&mut self) -> Vec<Event> {
        self.jobs += 1;
        let mut job = [0; 16];
        job.copy_from_slice(&Digest::of(&self.jobs.to_le_bytes()).as_bytes()[..16]);
        let job = JobId::from_bytes(job);
        let agent = Some(self.genesis.personal);
        let actor = Actor::Caller { key: None, agent, scope: Scope::Inference };
        let start = Command::StartJob(StartJob {
            job,
            model: ModelDigest::from_bytes([5; 32]),
            shape: SHAPE,
            request: Digest::of(&self.jobs.to_be_bytes()),
            seed: 1,
            prompt_tokens: 20,
            completion_max: 100,
            continues: None,
        });
        let mut events = self.decide(&actor, &start);
        let deliver = Command::Deliver {
            job,
            completion_tokens: 32,
            stream: Digest::of(b"stream"),
            prompt_tokens: None,
        };
        events.extend(self.decide(&Actor::Node, &deliver));
        let finish = Command::FinishJob(FinishJob {
            job,
            cached_tokens: 0,
            completion_tokens: 40,
            output: Digest::of(b"output"),
            build: "test".into(),
            finish: FinishReason::Stop,
        });
        events.extend(self.decide(&Actor::Node, &finish));
        events
    }
}

/// Opens the book of `dir`, which must be there.
pub(crate) fn open(dir: &Path) -> Result<Opening, StoreError> {
    match Opening::open(dir, DirLock::take(dir)?)? {
        Found::Book(opening) => Ok(*opening),
        Found::Nothing(_) => panic!("there is no book in {}", dir.display()),
    }
}

/// Begins a book in `dir`.
/// Puts the key files beside a book, as a node does.
pub(crate) fn keep_keys(dir: &Path, genesis: &Genesis) {
    let keys = KeyDir::open(dir).unwrap();
    keys.node_key().unwrap();
    let seeds = (0..=u8::MAX).map(|seed| SecretKey::from_seed([seed; 32]));
    let mut agents = seeds.filter(|key| key.public().agent() == genesis.personal);
    keys.keep_agent(&agents.next().unwrap()).unwrap();
}

pub(crate) fn create(dir: &Path, genesis: &Genesis) -> Opening {
    keep_keys(dir, genesis);
    Opening::create(dir, genesis, DirLock::take(dir).unwrap()).unwrap()
}

pub(crate) fn start(opening: Opening) -> (Store, StoreReader) {
    opening.start(StoreStats::default()).unwrap()
}

/// The ledger that the book's newest snapshot and the events after it give.
pub(crate) fn ledger_of(opening: &Opening) -> Ledger {
    let mut ledger = match opening.snapshot() {
        Some(snapshot) => {
            let ledger = Ledger::restore(&snapshot.body).unwrap();
            assert_eq!(ledger.state_hash(), snapshot.state_hash);
            ledger
        }
        None => Life::empty_ledger(opening.genesis()),
    };
    opening.replay(|event| ledger.apply(&event)).unwrap();
    ledger
}

/// Writes and waits until it is durable.
pub(crate) fn append(store: &Store, events: Vec<Event>) -> Result<(), StoreError> {
    let (sender, done) = mpsc::channel();
    let sent = store.append(events, Box::new(move |result| drop(sender.send(result))));
    futures_executor(sent)?;
    done.recv().unwrap()
}

pub(crate) fn snapshot(store: &Store, ledger: &Ledger) -> Result<(), StoreError> {
    let (sender, done) = mpsc::channel();
    let sent = store.snapshot(
        Timestamp::from_ms(7),
        ledger.state_hash(),
        ledger.snapshot(),
        Box::new(move |result| drop(sender.send(result))),
    );
    futures_executor(sent)?;
    done.recv().unwrap()
}

/// Runs a future to its end on this thread.
pub(crate) fn futures_executor<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A number generator for tests: the same numbers for the same seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
