//! Two nodes by their commands alone: joining, changing the charter, a restored backup, a welcome
//! line from the first overdraft to the lock's return.

use tirami_core::{DocumentId, JobId, PartyId, Ppm, SecretKey, Signed, Timestamp, Trm};
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::event::Event;
use tirami_ledger::lattice::{
    Certificate, Charter, CharterChange, CharterProof, Ending, Enrol, EntryKind, Grant, Lattice,
    LatticeEvent, Pay, PayItem, Sponsor, Transfer,
};
use tirami_ledger::{Context, Keyring, Ledger, Rejection};

const DAY_MS: u64 = 24 * 3_600_000;

fn trm(amount: u64) -> Trm {
    Trm::from_trm(amount).unwrap()
}

/// A node: its ledger, its key, and everything it stored.
struct Node {
    ledger: Ledger,
    keys: Keyring,
    log: Vec<Event>,
    first: Ledger,
}

impl Node {
    fn new(key: SecretKey, lattice: Lattice) -> Self {
        let ledger = Ledger::new(lattice, key.public().party());
        Self { first: ledger.clone(), ledger, keys: Keyring::new(key), log: Vec::new() }
    }

    fn run(&mut self, now: u64, command: &Command) -> Result<Outcome, Rejection> {
        let context = Context { now: Timestamp::from_ms(now), keys: &self.keys };
        let decision = self.ledger.decide(&context, &Actor::Node, command)?;
        self.log.extend(self.ledger.absorb(&context, decision.events));
        self.ledger.check_invariants().unwrap();
        Ok(decision.outcome)
    }

    fn sign(&mut self, now: u64, kind: impl Into<EntryKind>) -> Result<Outcome, Rejection> {
        self.run(now, &Command::SignEntry { kind: kind.into() })
    }

    fn party(&self) -> PartyId {
        self.ledger.party()
    }

    fn lattice(&self) -> &Lattice {
        self.ledger.lattice()
    }

    fn finals(&self) -> Vec<(Vec<u8>, tirami_core::Signature, Option<Certificate>)> {
        let lattice = self.log.iter().filter_map(|event| match event {
            Event::Lattice(event) => Some(&**event),
            _ => None,
        });
        lattice
            .filter_map(|event| match event {
                LatticeEvent::EntryFinal { entry, certificate, .. } => {
                    Some((entry.bytes().to_vec(), entry.signature(), certificate.clone()))
                }
                _ => None,
            })
            .collect()
    }

    /// Its pending entries reach `witness`, which acknowledges them; what is final comes back.
    fn meet(&mut self, now: u64, witness: &mut Self) {
        for _ in 0..2 {
            let pending: Vec<_> =
                self.lattice().pending_of(self.party()).map(|p| p.entry().clone()).collect();
            for entry in pending {
                let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
                witness.run(now, &Command::ReceiveEntry { bytes, signature }).unwrap();
                witness.run(now, &Command::Acknowledge { entry: entry.id() }).unwrap();
            }
            for (bytes, signature, certificate) in witness.finals() {
                let command = match certificate {
                    Some(certificate) => {
                        Command::ReceiveCertified { bytes, signature, certificate }
                    }
                    None => Command::ReceiveEntry { bytes, signature },
                };
                self.run(now, &command).unwrap();
            }
        }
        assert_eq!(self.lattice().state_hash(), witness.lattice().state_hash());
        assert_eq!(self.lattice().summary(), witness.lattice().summary());
    }

    fn check_replay(&self) {
        let mut replayed = self.first.clone();
        self.log.iter().for_each(|event| replayed.apply(event));
        assert!(replayed == self.ledger);
        assert!(Ledger::restore(&self.ledger.snapshot()).unwrap() == self.ledger);
    }
}

fn founder() -> Node {
    let key = SecretKey::from_seed([1; 32]);
    let charter = Charter::founder("test", key.public(), trm(10_000_000));
    let charter = Signed::sign(Charter::founding_mesh(), &key, charter).unwrap();
    let mut node = Node::new(key, Lattice::found(&charter).unwrap());
    node.run(1, &Command::OpenChain { line: trm(1_000_000) }).unwrap();
    node
}

/// A node that has the charters of `other` and nothing else.
fn newcomer(seed: u8, other: &Node) -> Node {
    let history: Vec<CharterProof> = other.lattice().charters(0).collect();
    let lattice = Lattice::from_history(other.lattice().mesh(), &history).unwrap();
    Node::new(SecretKey::from_seed([seed; 32]), lattice)
}

/// A founder and a member with a line of 1 000 TRM.
fn two() -> (Node, Node) {
    let mut founder = founder();
    let mut member = newcomer(2, &founder);
    let enrol = Enrol { party: member.party(), owner: "m".to_owned(), line: trm(1_000) };
    founder.sign(2, enrol).unwrap();
    member.meet(3, &mut founder);
    let (enrol, grant) = member.lattice().grants(member.party()).next().unwrap();
    assert_eq!(grant, Grant::Enrolment { line: trm(1_000) });
    member.run(4, &Command::Join { enrol: Some(enrol), sponsor: None }).unwrap();
    member.meet(5, &mut founder);
    (founder, member)
}

#[test]
fn a_newcomer_joins_with_its_grant_once() {
    let (founder, mut member) = two();
    assert_eq!(member.ledger.fundable(), trm(1_000));
    assert_eq!(founder.lattice().chain(member.party()).unwrap().line(), trm(1_000));
    let again = member.run(6, &Command::Join { enrol: None, sponsor: None });
    assert_eq!(again, Err(Rejection::Exists { what: "the chain" }));
    founder.check_replay();
    member.check_replay();
}

#[test]
fn a_second_witness_is_added_by_commands_with_entries_in_flight() {
    let (mut founder, mut member) = two();
    // In flight: acknowledged by nobody yet.
    member.sign(6, Transfer { payee: founder.party(), amount: trm(5) }).unwrap();
    let change = |witnesses: &[&Node]| CharterChange {
        witnesses: Some(witnesses.iter().map(|node| node.keys.node.public()).collect()),
        ..CharterChange::default()
    };
    let both = change(&[&founder, &member]);
    let asked = member.run(7, &Command::ProposeCharter(Box::new(both.clone()))).unwrap();
    let Outcome::Charter { bytes, approval: None } = asked else { panic!("{asked:?}") };
    assert_eq!(member.run(7, &Command::ApproveCharter { bytes: bytes.clone() }).map(|_| ()), {
        let witness = member.keys.node.public();
        Err(Rejection::Charter(tirami_ledger::lattice::CharterError::NotAWitness { witness }))
    });
    let done = founder.run(8, &Command::ApproveCharter { bytes: bytes.clone() }).unwrap();
    let Outcome::Charter { approval: Some(approval), .. } = done else { panic!("{done:?}") };
    assert_eq!(founder.lattice().charter().version, 2, "one witness is its own quorum");
    assert_eq!(founder.lattice().charter().quorum, 2);
    let learn = Command::ReceiveCharter { bytes, approvals: vec![*approval] };
    member.run(9, &learn).unwrap();
    member.run(9, &learn).unwrap();
    assert_eq!(member.lattice().charter_id(), founder.lattice().charter_id());
    // Each acknowledges its own entries by itself; the other's when it is asked.
    let entry = member.lattice().pending_of(member.party()).next().unwrap().entry().clone();
    let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
    founder.run(10, &Command::ReceiveEntry { bytes, signature }).unwrap();
    let entry = entry.id();
    let pending: Vec<DocumentId> =
        founder.lattice().unacknowledged(founder.keys.node.public()).collect();
    assert_eq!(pending, [entry]);
    let done = founder.run(10, &Command::Acknowledge { entry }).unwrap();
    let Outcome::Entry { acknowledgement: Some(ack), .. } = done else { panic!("{done:?}") };
    member.run(11, &Command::ReceiveAcknowledgement { acknowledgement: *ack }).unwrap();
    assert!(member.lattice().final_entry(entry).is_some());
    founder.check_replay();
    member.check_replay();
}

#[test]
fn a_restored_backup_signs_nothing_until_it_has_what_it_signed() {
    let (mut founder, mut member) = two();
    let backup = member.ledger.snapshot();
    let pay = Transfer { payee: founder.party(), amount: trm(5) };
    member.sign(6, pay.clone()).unwrap();
    member.meet(7, &mut founder);
    let (last, signature, _) = member.finals().pop().unwrap();

    member.ledger = Ledger::restore(&backup).unwrap();
    member.run(8, &Command::AskHighest).unwrap();
    assert_eq!(member.sign(8, pay.clone()), Err(Rejection::Unconfirmed));
    // Nobody lies it out of signing: the entry shown has to be its own.
    let mut forged = last.clone();
    *forged.last_mut().unwrap() ^= 1;
    let note = |bytes: Vec<u8>| Command::NoteHighest { bytes, signature };
    assert!(member.run(8, &note(forged)).is_err());
    member.run(8, &note(last)).unwrap();
    member.run(8, &Command::ConfirmHighest).unwrap();
    assert_eq!(member.sign(9, pay.clone()), Err(Rejection::RolledBack { missing: 1 }));
    member.meet(10, &mut founder);
    member.sign(11, pay).unwrap();
    member.meet(12, &mut founder);
    assert!(founder.lattice().double_sign_proofs().next().is_none());
    assert_eq!(founder.lattice().chain(member.party()).unwrap().balance(), -10_000_000);
}

#[test]
fn a_witness_that_asks_acknowledges_nothing() {
    let (mut founder, mut member) = two();
    member.sign(6, Transfer { payee: founder.party(), amount: trm(5) }).unwrap();
    let entry = member.lattice().pending_of(member.party()).next().unwrap().entry().clone();
    let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
    founder.run(7, &Command::AskHighest).unwrap();
    founder.run(7, &Command::ReceiveEntry { bytes, signature }).unwrap();
    let acknowledge = Command::Acknowledge { entry: entry.id() };
    assert_eq!(founder.run(7, &acknowledge), Err(Rejection::Unconfirmed));
    founder.run(8, &Command::ConfirmHighest).unwrap();
    founder.run(8, &acknowledge).unwrap();
}

#[test]
fn nodes_settle_and_take_back_locks_by_themselves() {
    let (mut founder, mut member) = two();
    founder.run(DAY_MS, &Command::Tick).unwrap();
    let (_, checkpoint, _) = founder.lattice().last_checkpoint().unwrap();
    member.meet(DAY_MS, &mut founder);
    let mut fresh = newcomer(3, &founder);
    let sponsor = Sponsor { newcomer: fresh.party(), amount: trm(100), checkpoint };
    member.sign(DAY_MS + 1, sponsor).unwrap();
    member.meet(DAY_MS + 2, &mut founder);
    fresh.meet(DAY_MS + 3, &mut founder);
    let (lock, grant) = fresh.lattice().grants(fresh.party()).next().unwrap();
    assert_eq!(grant, Grant::Welcome { amount: trm(100) });
    fresh.run(DAY_MS + 4, &Command::Join { enrol: None, sponsor: Some(lock) }).unwrap();
    fresh.meet(DAY_MS + 5, &mut founder);
    assert_eq!(fresh.ledger.fundable(), trm(100));
    let item = PayItem { job: JobId::from_bytes([1; 16]), amount: trm(60) };
    fresh.sign(DAY_MS + 6, Pay::new(founder.party(), vec![item], Ppm::ZERO)).unwrap();
    fresh.meet(DAY_MS + 7, &mut founder);
    // The founder collects it when a checkpoint covers it.
    assert!(founder.lattice().next_collect(founder.party()).is_none());
    founder.run(2 * DAY_MS, &Command::Tick).unwrap();
    let collect = founder.lattice().next_collect(founder.party()).unwrap();
    founder.sign(2 * DAY_MS, collect).unwrap();
    // The newcomer earns and settles by itself before its time is over.
    founder.sign(2 * DAY_MS, Transfer { payee: fresh.party(), amount: trm(70) }).unwrap();
    fresh.meet(2 * DAY_MS, &mut founder);
    let collect = fresh.lattice().next_collect(fresh.party()).unwrap();
    fresh.sign(2 * DAY_MS, collect).unwrap();
    fresh.meet(2 * DAY_MS, &mut founder);
    fresh.run(3 * DAY_MS, &Command::Tick).unwrap();
    assert_eq!(fresh.lattice().pending_of(fresh.party()).count(), 0, "too early");
    fresh.run(4 * DAY_MS + 1, &Command::Tick).unwrap();
    fresh.meet(4 * DAY_MS + 1, &mut founder);
    founder.run(4 * DAY_MS + 2, &Command::Tick).unwrap();
    member.meet(4 * DAY_MS + 3, &mut founder);
    let end = member.lattice().welcome_of(lock).unwrap().end;
    assert!(matches!(end, Some((Ending::Settled, _))), "{end:?}");
    member.run(4 * DAY_MS + 4, &Command::Tick).unwrap();
    member.meet(4 * DAY_MS + 5, &mut founder);
    assert_eq!(member.lattice().totals().locked, 0);
    assert!(member.lattice().sponsored(member.party()).next().is_none());
    assert_eq!(member.lattice().chain(member.party()).unwrap().balance(), 0);
    [founder, member, fresh].iter().for_each(Node::check_replay);
}
