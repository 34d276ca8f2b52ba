//! Nodes of one mesh for tests: `w` is founder, witness, clerk and registrar, `c` orders jobs, `p`
//! and `q` do them, `x` is a party that nobody enrolled. Each has its own ledger; messages go only
//! where a test sends them. After every command everything that must hold is checked on the node
//! that took it.

use std::collections::BTreeMap;

use tirami_core::{
    AgentId, Digest, JobId, MeshId, ModelShape, PartyId, SecretKey, Signed, Timestamp, Trm,
};
use tirami_ledger::book::{Scope, ServingPolicy};
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::event::{BookEvent, DocumentKind, Event};
use tirami_ledger::lattice::{Charter, Enrol, Lattice, LatticeEvent};
use tirami_ledger::{Context, Keyring, Ledger, Rejection};

/// A model whose every token costs 1 TRM at par.
pub(crate) const SHAPE: ModelShape = ModelShape {
    parameters_active: 500_000_000,
    layers: 0,
    attention_width: 0,
    context_max: 1 << 20,
};
/// How far each node may overdraw, in TRM.
pub(crate) const LINE_TRM: u64 = 10_000;
/// What `c` gives its agent `alice`, in TRM.
pub(crate) const FUND_TRM: u64 = 5_000;
pub(crate) const START_MS: u64 = 1_700_000_000_000;

pub(crate) fn trm(amount: u64) -> Trm {
    Trm::from_trm(amount).unwrap()
}

pub(crate) fn key_of(name: &str) -> SecretKey {
    SecretKey::from_seed(*Digest::of(name.as_bytes()).as_bytes())
}

pub(crate) fn party_of(name: &str) -> PartyId {
    key_of(name).public().party()
}

pub(crate) fn alice() -> AgentId {
    key_of("alice").public().agent()
}

pub(crate) fn by_alice() -> Actor {
    Actor::Caller { key: None, agent: Some(alice()), scope: Scope::Inference }
}

pub(crate) fn job_of(name: &str) -> JobId {
    let digest = Digest::of(name.as_bytes());
    JobId::from_bytes(digest.as_bytes()[..16].try_into().unwrap())
}

/// The digest of the first `tokens` tokens of every answer of these tests.
pub(crate) fn stream(tokens: u32) -> Digest {
    let bytes: Vec<u8> = (0..tokens).flat_map(u32::to_le_bytes).collect();
    Digest::of(&bytes)
}

/// One node: its ledger, its keys, and all that ever happened to it.
pub(crate) struct Node {
    pub(crate) ledger: Ledger,
    pub(crate) keys: Keyring,
    pub(crate) log: Vec<Event>,
    genesis: Ledger,
    funded: i128,
    /// Whether every step is also replayed from the start and restored from a snapshot.
    thorough: bool,
}

impl Node {
    fn new(name: &str, lattice: Lattice) -> Self {
        let genesis = Ledger::new(lattice, party_of(name));
        Self {
            ledger: genesis.clone(),
            keys: Keyring::new(key_of(name)),
            log: Vec::new(),
            genesis,
            funded: 0,
            thorough: true,
        }
    }

    fn run(
        &mut self,
        now: Timestamp,
        actor: &Actor,
        command: &Command,
    ) -> Result<Outcome, Rejection> {
        let before = self.ledger.snapshot();
        let context = Context { now, keys: &self.keys };
        let decision = self.ledger.decide(&context, actor, command);
        assert_eq!(self.ledger.snapshot(), before, "deciding {command:?} changed something");
        let decision = decision?;
        for event in self.ledger.absorb(&context, decision.events) {
            match &event {
                Event::Book(BookEvent::AgentFunded { amount, .. }) => {
                    self.funded += amount.signed();
                }
                Event::Book(BookEvent::HoldPosted(posted)) => {
                    self.funded -= posted.amount.signed();
                    self.funded -= posted.fee.unwrap_or_default().signed();
                }
                _ => {}
            }
            self.log.push(event);
        }
        self.check(now, matches!(command, Command::Tick));
        Ok(decision.outcome)
    }

    /// MONEY §12.7 with debts, and what this node risks.
    fn check(&self, now: Timestamp, ticked: bool) {
        let ledger = &self.ledger;
        assert_eq!(ledger.check_invariants(), Ok(()));
        let book = ledger.book();
        let agents: i128 = book.agents().values().map(|account| account.balance().signed()).sum();
        assert_eq!(agents, self.funded, "agents lost or gained money");
        let chain = i128::from(ledger.lattice().signed_balance(ledger.party()));
        let uncollected = ledger.lattice().uncollected_sum(ledger.party());
        let debts = book.debts_open().signed();
        assert_eq!(ledger.own_balance() + agents + debts, chain + uncollected, "book ≠ chain");
        let line = ledger.lattice().line(ledger.party()).signed();
        assert!(chain + line >= agents + debts, "the chain cannot pay what the book owes");
        for (consumer, known) in book.consumers() {
            assert!(known.owed <= book.exposure_of(*consumer), "more is risked than may be");
        }
        if ticked {
            let late = book.holds().values().filter(|hold| hold.claim_by <= now).count();
            assert_eq!(late, 0, "a hold outlived its claim time");
        }
        if self.thorough {
            crate::replay::check(&self.genesis, &self.log, &self.ledger);
        }
    }
}

/// Nodes of one mesh, their clock, and what the witness refused last.
pub(crate) struct Mesh {
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) now_ms: u64,
    /// How many events of `w` each other node was told of.
    told: BTreeMap<String, usize>,
    pub(crate) refused: Option<Rejection>,
}

impl Mesh {
    /// `w`, `c`, `p` and `q`, enrolled; `c` has the agent `alice`; `p` and `q` serve.
    pub(crate) fn new(fee_ppm: u32) -> Self {
        let founder = key_of("w");
        let mut charter = Charter::founder("test", founder.public(), trm(10 * LINE_TRM));
        charter.params.fee_ppm = tirami_core::Ppm::new(fee_ppm);
        let charter = Signed::sign(Charter::founding_mesh(), &founder, charter).unwrap();
        let lattice = Lattice::found(&charter).unwrap();
        let node = |name: &str| (name.to_owned(), Node::new(name, lattice.clone()));
        let mut mesh = Self {
            nodes: ["w", "c", "p", "q", "x"].map(node).into(),
            now_ms: START_MS,
            told: BTreeMap::new(),
            refused: None,
        };
        mesh.run("w", &Command::OpenChain { line: trm(LINE_TRM) }).unwrap();
        for name in ["c", "p", "q"] {
            mesh.enrol(name, LINE_TRM);
        }
        mesh.run("x", &Command::Join { enrol: None, sponsor: None }).unwrap();
        mesh.sync();
        let c = mesh.nodes.get_mut("c").unwrap();
        c.keys.add_agent(key_of("alice"));
        mesh.run("c", &Command::CreateAgent { agent: alice(), name: "alice".into() }).unwrap();
        mesh.run("c", &Command::FundAgent { agent: alice(), amount: trm(FUND_TRM) }).unwrap();
        for name in ["p", "q"] {
            mesh.run(name, &Command::SetServing(policy())).unwrap();
        }
        mesh
    }

    /// Without replay and snapshot at every step, for long runs.
    pub(crate) fn quick(fee_ppm: u32) -> Self {
        let mut mesh = Self::new(fee_ppm);
        mesh.nodes.values_mut().for_each(|node| node.thorough = false);
        mesh
    }

    fn enrol(&mut self, name: &str, line: u64) {
        let party = party_of(name);
        let kind = Enrol { party, owner: name.to_owned(), line: trm(line) }.into();
        let outcome = self.run("w", &Command::SignEntry { kind }).unwrap();
        let Outcome::Entry { entry, .. } = outcome else { panic!("{outcome:?}") };
        self.sync();
        let join = Command::Join { enrol: Some(entry), sponsor: None };
        self.run(name, &join).unwrap();
        self.sync();
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.now_ms)
    }

    pub(crate) fn mesh_id(&self) -> MeshId {
        self.nodes["w"].ledger.lattice().mesh()
    }

    pub(crate) fn ledger(&self, name: &str) -> &Ledger {
        &self.nodes[name].ledger
    }

    pub(crate) fn run(&mut self, name: &str, command: &Command) -> Result<Outcome, Rejection> {
        self.run_as(name, &Actor::Node, command)
    }

    pub(crate) fn run_as(
        &mut self,
        name: &str,
        actor: &Actor,
        command: &Command,
    ) -> Result<Outcome, Rejection> {
        let now = self.now();
        self.nodes.get_mut(name).unwrap().run(now, actor, command)
    }

    /// The node stops without warning and starts again from what it stored.
    pub(crate) fn crash(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).unwrap();
        let mut replayed = node.genesis.clone();
        node.log.iter().for_each(|event| replayed.apply(event));
        assert_eq!(replayed.state_hash(), node.ledger.state_hash(), "replay differs");
        node.ledger = replayed;
        self.run(name, &Command::Recover).unwrap();
    }

    /// Every entry goes to the witness, and what is final to everybody, until nothing is new.
    pub(crate) fn sync(&mut self) {
        for name in ["c", "p", "q", "x"] {
            self.send_entries(name);
        }
        for name in ["c", "p", "q", "x"] {
            self.tell(name);
        }
    }

    /// A node's pending entries go to the witness.
    pub(crate) fn send_entries(&mut self, name: &str) {
        let ledger = self.ledger(name);
        let pending = ledger.lattice().pending_of(ledger.party());
        let entries: Vec<_> = pending
            .map(|pending| {
                let entry = pending.entry();
                (entry.id(), entry.bytes().to_vec(), entry.signature())
            })
            .collect();
        for (_, bytes, signature) in &entries {
            let receive = Command::ReceiveEntry { bytes: bytes.clone(), signature: *signature };
            self.run("w", &receive).unwrap();
        }
        for (entry, ..) in entries {
            if let Err(refused) = self.run("w", &Command::Acknowledge { entry }) {
                self.refused = Some(refused);
            }
        }
    }

    /// What became final at the witness goes to a node.
    pub(crate) fn tell(&mut self, name: &str) {
        let from = self.told.get(name).copied().unwrap_or_default();
        let log = &self.nodes["w"].log;
        let to = log.len();
        let finals: Vec<Command> = log[from..]
            .iter()
            .filter_map(|event| match event {
                Event::Lattice(event) => match &**event {
                    LatticeEvent::EntryFinal { entry, certificate: Some(certificate), .. } => {
                        Some(Command::ReceiveCertified {
                            bytes: entry.bytes().to_vec(),
                            signature: entry.signature(),
                            certificate: certificate.clone(),
                        })
                    }
                    _ => None,
                },
                _ => None,
            })
            .collect();
        for command in &finals {
            self.run(name, command).unwrap();
        }
        self.told.insert(name.to_owned(), to);
    }

    /// The claims a provider made go to the witness and to its fellow provider.
    pub(crate) fn send_claims(&mut self, name: &str) -> Vec<Result<Outcome, Rejection>> {
        let claims: Vec<Command> = self.nodes[name]
            .log
            .iter()
            .filter_map(|event| match event {
                Event::Document(record) if record.kind == DocumentKind::Claim => {
                    let claim: tirami_ledger::documents::Claim =
                        tirami_core::decode_body(&record.bytes).unwrap();
                    Some(Command::ReceiveClaim { order: claim.order, voucher: claim.voucher })
                }
                _ => None,
            })
            .collect();
        claims.iter().map(|claim| self.run("w", claim)).collect()
    }
}

/// What `p` and `q` risk when a test says nothing else.
pub(crate) fn policy() -> ServingPolicy {
    ServingPolicy {
        exposure_start: trm(100),
        exposure_max: trm(1_000),
        exposure_unknown_day: trm(50),
        jobs_max: 64,
        paused: false,
        ..ServingPolicy::default()
    }
}
