//! Short runs of whole nodes: same seed, same hash; planted bugs are found; a sybil gains nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use tirami_core::{PartyId, Ppm, SecretKey, Signed, Timestamp, Trm};
use tirami_ledger::lattice::{
    Acknowledgement, Charter, Enrol, EntryKind, Lattice, Open, Sponsor, Transfer,
};
use tirami_sim::{Bug, NodesConfig, run_nodes};

fn config(seed: u64) -> NodesConfig {
    NodesConfig { seed, nodes: 16, seconds: 70, ..NodesConfig::default() }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let once = run_nodes(&config(7)).unwrap();
    assert_eq!(once, run_nodes(&config(7)).unwrap());
    assert!(once.counts.completed > 20, "{once}");
}

#[test]
fn planted_bugs_are_found() {
    for (bug, said) in [
        (Bug::ToldBeforeSync, "not true any more"),
        (Bug::LosesSynced, "not true any more"),
        (Bug::PaysAhead, "tokens that cost"),
        (Bug::ServesNothing, "after the"),
        (Bug::ServesRefused, "of work unpaid"),
        (Bug::ForgetsWork, "of work unpaid"),
        (Bug::LeavesHolds, "holds TRM for jobs that are over"),
        (Bug::NeverBegins, "were not answered"),
        (Bug::AnswersWrongly, "with another text"),
        (Bug::VouchersFall, "a voucher that falls"),
        (Bug::AcceptsForged, "a forged order"),
    ] {
        // What a consumer takes for nothing adds up slowly.
        let seconds = if said == "of work unpaid" { 240 } else { 40 };
        let planted = |seed| NodesConfig { bug, seconds, nodes: 24, ..config(seed) };
        let found = (1..12).find_map(|seed| run_nodes(&planted(seed)).err());
        let failure = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        assert!(failure.what.contains(said), "{bug:?}: {failure}");
    }
}

#[test]
fn as_many_dishonest_witnesses_as_the_charter_tolerates_change_nothing() {
    for (seed, witnesses, dishonest) in [(1, 1, 0), (2, 3, 0), (3, 4, 0), (4, 4, 1), (5, 7, 2)] {
        let config = NodesConfig {
            witnesses: Some(witnesses),
            dishonest: Some(dishonest),
            nodes: 24,
            ..config(seed)
        };
        let report = run_nodes(&config).unwrap();
        assert_eq!((report.witnesses, report.dishonest), (witnesses, dishonest), "{report}");
        assert!(report.counts.completed > 20, "{report}");
    }
}

#[test]
fn more_dishonest_witnesses_than_the_charter_tolerates_are_noticed() {
    let (witnesses, dishonest) = (Some(4), Some(2));
    let found = (1..8).find_map(|seed| {
        let seed = NodesConfig { nodes: 40, seconds: 40, ..config(seed) };
        run_nodes(&NodesConfig { witnesses, dishonest, bug: Bug::Conspire, ..seed }).err()
    });
    let failure = found.unwrap();
    assert!(failure.what.contains("final in one slot"), "{failure}");
    // As many as it tolerates can do the same and change nothing.
    let dishonest = Some(1);
    let seed = NodesConfig { nodes: 40, seconds: 40, ..config(failure.seed) };
    run_nodes(&NodesConfig { witnesses, dishonest, bug: Bug::Conspire, ..seed }).unwrap();
}

/// Ten thousand keys of one attacker: their chains can hold nothing that others did not give
/// them, and what sponsors lock for them bounds all they can ever take.
#[test]
fn ten_thousand_keys_gain_nothing() {
    let mut mesh = Attacked::new();
    let checkpoint = mesh.checkpoint();
    let welcome = mesh.lattice.charter().params.welcome;
    let sponsored = 50_u64;
    let mut grants = Vec::new();
    for number in 0..sponsored {
        let newcomer = sybil(number).public().party();
        let kind = Sponsor { newcomer, amount: welcome, checkpoint };
        grants.push(mesh.write(&member(), kind.into()).unwrap());
    }
    let before = mesh.lattice.chain(member().public().party()).unwrap().balance();
    for number in 0..10_000 {
        let sponsor = grants.get(number as usize).copied();
        let open = Open { sponsor, enrol: None, recovery: None };
        mesh.write(&sybil(number), open.into()).unwrap();
    }
    let (mut floors, mut refused) = (0_u128, 0);
    for number in 0..10_000 {
        let key = sybil(number);
        let party: PartyId = key.public().party();
        floors += u128::from(mesh.lattice.floor(party).micro());
        let payee = sybil((number + 1) % 10_000).public().party();
        let transfer = Transfer { payee, amount: Trm::from_micro(1) };
        refused += u32::from(mesh.write(&key, transfer.into()).is_err());
    }
    assert_eq!(refused, 10_000, "a key without money gave some away");
    assert!(floors <= u128::from(welcome.micro() * sponsored), "{floors}");
    let after = mesh.lattice.chain(member().public().party()).unwrap().balance();
    assert_eq!(before, after);
    assert_eq!(mesh.lattice.check_invariants(), Ok(()));
}

fn member() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn sybil(number: u64) -> SecretKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed(seed)
}

struct Attacked {
    lattice: Lattice,
    now: Timestamp,
}

impl Attacked {
    fn new() -> Self {
        let trm = |trm: u64| Trm::from_micro(trm * 1_000_000);
        let mut charter = Charter::founder("sybil", member().public(), trm(1_000_000));
        charter.params.checkpoint_ms = 1;
        charter.params.fee_ppm = Ppm::ZERO;
        let charter = Signed::sign(Charter::founding_mesh(), &member(), charter).unwrap();
        let mut mesh =
            Self { lattice: Lattice::found(&charter).unwrap(), now: Timestamp::from_ms(1_000) };
        let nobody = Open { sponsor: None, enrol: None, recovery: None };
        mesh.write(&member(), nobody.into()).unwrap();
        let party = member().public().party();
        let enrol = Enrol { party, owner: "member".to_owned(), line: trm(1_000_000) };
        let enrol = mesh.write(&member(), enrol.into()).unwrap();
        mesh.write(&member(), tirami_ledger::lattice::Line { enrol }.into()).unwrap();
        mesh
    }

    fn checkpoint(&mut self) -> tirami_core::DocumentId {
        self.now = self.now.plus_ms(10);
        let entry = self.lattice.draft_checkpoint(self.now).unwrap();
        self.sign(&member(), entry).unwrap()
    }

    fn write(
        &mut self,
        key: &SecretKey,
        kind: EntryKind,
    ) -> Result<tirami_core::DocumentId, String> {
        let chain = key.public().party();
        let entry = self.lattice.draft(chain, self.now, kind).map_err(|e| e.to_string())?;
        self.sign(key, entry)
    }

    fn sign(
        &mut self,
        key: &SecretKey,
        entry: tirami_ledger::lattice::Entry,
    ) -> Result<tirami_core::DocumentId, String> {
        let mesh = self.lattice.mesh();
        let signed = Signed::sign(mesh, key, entry).map_err(|e| e.to_string())?;
        let events = self.lattice.receive_entry(signed.bytes(), signed.signature());
        let _ = self.lattice.absorb(events.map_err(|e| e.to_string())?);
        let ack = Acknowledgement::sign(mesh, 1, signed.id(), &member());
        let events = self.lattice.receive_acknowledgement(&ack);
        let _ = self.lattice.absorb(events.map_err(|e| e.to_string())?);
        self.lattice.final_entry(signed.id()).map(|_| signed.id()).ok_or("not final".to_owned())
    }
}
