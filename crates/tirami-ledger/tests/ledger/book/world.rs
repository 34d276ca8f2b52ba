//! A ledger of a lone node for tests, which checks after every command that nothing was lost:
//! sums, invariants, documents, replay and snapshot.

use tirami_core::{
    Digest, Document, JobId, MeshId, ModelDigest, ModelShape, PartyId, PublicKey, SecretKey,
    Signed, Timestamp, Trm,
};
use tirami_ledger::command::{Actor, Command, Outcome, StartJob};
use tirami_ledger::documents::{Order, Receipt, Voucher};
use tirami_ledger::event::{BookEvent, DocumentKind, DocumentRecord, Event};
use tirami_ledger::lattice::{Charter, Lattice};
use tirami_ledger::{Context, Keyring, Ledger, Rejection};

/// A model whose every token costs 1 TRM at par: 10⁹ FLOP and no attention.
pub(crate) const TOKEN_IS_ONE_TRM: ModelShape = ModelShape {
    parameters_active: 500_000_000,
    layers: 0,
    attention_width: 0,
    context_max: 1 << 20,
};

pub(crate) const SMOLLM2: ModelShape = ModelShape {
    parameters_active: 134_515_008,
    layers: 30,
    attention_width: 576,
    context_max: 8_192,
};

/// How far the node of these tests may overdraw, in TRM.
pub(crate) const LINE_TRM: u64 = 1_000_000;

pub(crate) fn agent_key(name: &str) -> SecretKey {
    SecretKey::from_seed(*Digest::of(name.as_bytes()).as_bytes())
}

/// What moved in the book, counted from the events alone.
#[derive(Debug, Default)]
struct Tally {
    funded: u128,
    defunded: u128,
    posted: u128,
}

/// A chat of three tokens that may have seven more.
pub(crate) fn a_job(job: JobId) -> StartJob {
    StartJob {
        job,
        model: ModelDigest::from_bytes([9; 32]),
        shape: TOKEN_IS_ONE_TRM,
        request: Digest::of(b"request"),
        seed: 7,
        prompt_tokens: 3,
        completion_max: 7,
        continues: None,
    }
}

/// A ledger, its keys, its clock, and all that ever happened to it.
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    pub(crate) keys: Keyring,
    pub(crate) now_ms: u64,
    pub(crate) log: Vec<Event>,
    genesis: Ledger,
    tally: Tally,
    /// Whether every step is also replayed from the start and restored from a snapshot.
    thorough: bool,
}

impl World {
    /// A node alone in its mesh, with a line of [`LINE_TRM`].
    pub(crate) fn new() -> Self {
        let node = SecretKey::from_seed([1; 32]);
        let line = Trm::from_trm(LINE_TRM).unwrap();
        let genesis = founded(&node, line);
        let mut world = Self {
            ledger: genesis.clone(),
            keys: Keyring::new(node),
            now_ms: 1_700_000_000_000,
            log: Vec::new(),
            genesis,
            tally: Tally::default(),
            thorough: true,
        };
        world.run(&Actor::Node, &Command::OpenChain { line }).unwrap();
        world
    }

    /// Without replay and snapshot at every step, for long runs.
    pub(crate) fn quick() -> Self {
        Self { thorough: false, ..Self::new() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.now_ms)
    }

    /// Decides a command and applies it, checking everything that must hold.
    pub(crate) fn run(&mut self, actor: &Actor, command: &Command) -> Result<Outcome, Rejection> {
        let before = self.ledger.snapshot();
        let context = Context { now: self.now(), keys: &self.keys };
        let decision = self.ledger.decide(&context, actor, command);
        assert_eq!(self.ledger.snapshot(), before, "deciding {command:?} changed something");
        let decision = decision?;
        let again = self.ledger.decide(&context, actor, command);
        assert_eq!(again.as_ref(), Ok(&decision), "deciding twice differs");
        let context = Context { now: self.now(), keys: &self.keys };
        for event in self.ledger.absorb(&context, decision.events) {
            self.count(&event);
            if let Event::Document(record) = &event {
                self.verify(record);
            }
            self.log.push(event);
        }
        self.check();
        Ok(decision.outcome)
    }

    fn count(&mut self, event: &Event) {
        let micro = |amount: &Trm| u128::from(amount.micro());
        match event {
            Event::Book(BookEvent::AgentFunded { amount, .. }) => {
                self.tally.funded += micro(amount);
            }
            Event::Book(BookEvent::AgentDefunded { amount, .. }) => {
                self.tally.defunded += micro(amount);
            }
            Event::Book(BookEvent::HoldPosted(posted)) => {
                self.tally.posted += micro(&posted.amount);
            }
            _ => {}
        }
    }

    fn check(&self) {
        assert_eq!(self.ledger.check_invariants(), Ok(()));
        let book = self.ledger.book();
        let sum: i128 = book.agents().values().map(|account| account.balance().signed()).sum();
        let Tally { funded, defunded, posted } = self.tally;
        assert_eq!(sum as u128 + posted + defunded, funded, "agents lost or gained money");
        let chain = i128::from(self.ledger.lattice().signed_balance(self.ledger.party()));
        let uncollected = self.ledger.lattice().uncollected_sum(self.ledger.party());
        assert_eq!(self.ledger.own_balance() + sum, chain + uncollected, "book and chain differ");
        let line = self.ledger.lattice().line(self.ledger.party()).signed();
        assert!(self.ledger.own_balance() >= -line, "the node overdrew its line");
        if self.thorough {
            crate::replay::check(&self.genesis, &self.log, &self.ledger);
        }
    }

    /// Checks a document as a stranger would: from its bytes, with the signer's public key.
    fn verify(&self, record: &DocumentRecord) {
        match record.kind {
            DocumentKind::Order => {
                let order: Order = tirami_core::decode_body(&record.bytes).unwrap();
                self.verified::<Order>(record, order.consumer.into());
                assert_eq!(order.provider, self.ledger.party());
            }
            DocumentKind::Voucher => {
                let voucher =
                    self.verified::<Voucher>(record, self.order_of(record).consumer.into());
                assert!(voucher.body().amount <= self.order_of(record).max_amount);
            }
            DocumentKind::Claim => panic!("a lone node has nobody to claim from"),
            DocumentKind::Receipt => {
                let receipt = self.verified::<Receipt>(record, self.keys.node.public());
                let order = self.order_of(record);
                assert_eq!(receipt.body().flop.cost_ceil(order.price), receipt.body().amount);
                assert!(receipt.body().amount <= order.max_amount);
            }
        }
    }

    fn verified<T: Document>(&self, record: &DocumentRecord, key: PublicKey) -> Signed<T> {
        let signed =
            Signed::verify(self.mesh(), key, record.bytes.clone(), record.signature).unwrap();
        assert_eq!(signed.id(), record.id);
        signed
    }

    fn order_of(&self, record: &DocumentRecord) -> Order {
        let of_job = |event: &&Event| match event {
            Event::Document(other) => other.job == record.job && other.kind == DocumentKind::Order,
            _ => false,
        };
        match self.log.iter().rev().find(of_job) {
            Some(Event::Document(order)) => tirami_core::decode_body(&order.bytes).unwrap(),
            _ => panic!("a {:?} without an order", record.kind),
        }
    }

    pub(crate) fn mesh(&self) -> MeshId {
        self.ledger.lattice().mesh()
    }

    pub(crate) fn party(&self) -> PartyId {
        self.ledger.party()
    }
}

/// The ledger of a founder whose chain is not opened.
pub(crate) fn founded(node: &SecretKey, line_total: Trm) -> Ledger {
    let mut charter = Charter::founder("test", node.public(), line_total);
    // As charters were before they named it: their meshes keep their ids, and documents theirs.
    charter.params.welcome = Trm::ZERO;
    let charter = Signed::sign(Charter::founding_mesh(), node, charter).unwrap();
    let lattice = Lattice::found(&charter).unwrap();
    Ledger::new(lattice, node.public().party())
}
