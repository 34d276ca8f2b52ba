//! Welcome lines under every interleaving a hostile newcomer and a hostile sponsor come up with:
//! conservation, one end for each lock, and one state for one set of entries in any order.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tirami_core::{DocumentId, JobId, PartyId, Ppm, Timestamp, Trm};
use tirami_ledger::lattice::{
    Change, Collect, Ending, Enrol, EntryKind, Lattice, Line, Open, Pay, PayItem, Settle, Sponsor,
    Transfer, Unsponsor,
};

use super::world::partial::agrees;
use super::world::{World, certificate, charter, found, key, party, sign, trm};

const HOUR_MS: u64 = 3_600_000;
const WELCOME: &str = "0.001";

/// What happens next; numbers are taken modulo what there is.
type Step = (u8, u8, u8, u16);

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_makes_trm_or_ends_a_lock_twice(
        steps in prop::collection::vec(any::<Step>(), 20..120),
        seed in any::<u64>(),
    ) {
        let mut play = Play::begin();
        for step in &steps {
            play.step(*step);
            play.check();
        }
        play.check_ends();
        prop_assert_eq!(play.world.lattice.totals().loss, 0);
        in_any_order(&play.world, seed)?;
    }

    /// Three lying witnesses certify rivals too: whatever counts then is a function of the set.
    #[test]
    fn contradictions_anywhere_leave_one_state_for_one_set(
        steps in prop::collection::vec(any::<Step>(), 20..80),
        rivals in prop::collection::vec(any::<(u8, u8)>(), 1..4),
        seed in any::<u64>(),
    ) {
        let mut play = Play::of(&steps);
        for (who, back) in rivals {
            play.rival(who, back);
            play.check();
        }
        in_any_order(&play.world, seed)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Sponsors, newcomers or payers are not held; some chains contradict themselves.
    #[test]
    fn whoever_holds_some_chains_agrees_with_all_others_on_them(
        steps in prop::collection::vec(any::<Step>(), 20..120),
        rivals in prop::collection::vec(any::<(u8, u8)>(), 0..3),
        held in any::<u8>(),
        seed in any::<u64>(),
    ) {
        let mut play = Play::of(&steps);
        for (who, back) in rivals {
            play.rival(who, back);
        }
        let certified = play.world.certified().into_iter();
        let finals: Vec<_> = certified.map(|(b, s, proof)| (b, s, proof.unwrap())).collect();
        let names = ["ann", "bob", "new", "eve", "cat"].into_iter().enumerate();
        let held = names.filter(|(bit, _)| held >> bit & 1 == 1).map(|(_, name)| party(name));
        // What everybody holds: the clerk's and the registrar's.
        let held = held.chain([party("w1")]).collect();
        agrees((&play.world.first, &play.world.lattice), &finals, &held, seed);
    }
}

/// What it needs to be worth anything: lines settle, default, lapse, and are taken back.
#[test]
fn the_random_interleavings_reach_every_end() {
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    let mut ends = BTreeMap::<&str, u32>::new();
    for _ in 0..90 {
        let mut play = Play::begin();
        for _ in 0..110 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let bytes = dice.to_le_bytes();
            play.step((bytes[1], bytes[2], bytes[3], u16::from_le_bytes([bytes[4], bytes[5]])));
        }
        for name in play.ends() {
            *ends.entry(name).or_default() += 1;
        }
    }
    for wanted in ["settled", "returned", "owed", "nothing owed", "collected by a checkpoint"] {
        assert!(ends.get(wanted).is_some_and(|count| *count >= 3), "{wanted}: {ends:?}");
    }
}

#[test]
fn more_defaults_than_fit_one_checkpoint_are_listed_by_the_next() {
    let mut play = Play::begin();
    let (_, checkpoint, _) = play.world.lattice.last_checkpoint().unwrap();
    let amount = Trm::from_micro(10);
    for number in 0..300 {
        let newcomer = party(&format!("newcomer {number}"));
        play.sign("ann", Sponsor { newcomer, amount, checkpoint }.into()).unwrap();
    }
    let mut listed = Vec::new();
    for hours in [1, 0, 80, 0, 0] {
        play.world.now = play.world.now.plus_ms(hours * HOUR_MS + 1);
        play.checkpoint();
        let (_, last, _) = play.world.lattice.last_checkpoint().unwrap();
        listed.push(play.world.lattice.final_entry(last).unwrap().effect.decisions().len());
        play.check();
    }
    assert_eq!(listed, [256, 44, 256, 44, 44], "the last one was not due");
    assert_eq!(play.world.lattice.totals().locked, 0);
    let ann = party("ann");
    assert_eq!(play.world.lattice.uncollected_sum(ann), 3_000);
    play.check_ends();
}

struct Play {
    world: World,
    job: u8,
}

impl Play {
    /// After these steps.
    fn of(steps: &[Step]) -> Self {
        let mut play = Self::begin();
        for step in steps {
            play.step(*step);
        }
        play
    }

    fn begin() -> Self {
        let mut charter = charter(1, 1, trm("1"));
        charter.params.welcome = trm(WELCOME);
        charter.params.checkpoint_ms = 1;
        charter.params.fee_ppm = Ppm::new(10_000);
        let mut play = Self { world: World::new(found(charter)), job: 0 };
        play.sign("w1", Open { sponsor: None, enrol: None, recovery: None }.into());
        let enrol = Enrol { party: party("ann"), owner: String::new(), line: trm("0.005") };
        let enrol = play.sign("w1", enrol.into()).unwrap();
        play.sign("ann", Open { sponsor: None, enrol: Some(enrol), recovery: None }.into());
        play.sign("bob", Open { sponsor: None, enrol: None, recovery: None }.into());
        play.checkpoint();
        play
    }

    /// Writes, receives and acknowledges an entry, if it is valid.
    fn sign(&mut self, who: &str, kind: EntryKind) -> Option<DocumentId> {
        let chain = party(who);
        let entry = self.world.lattice.draft(chain, self.world.now, kind.clone()).ok()?;
        assert_eq!(entry, self.world.write(chain, kind), "the balance is the test's own sum");
        let sent = sign(&self.world.lattice, &entry, &key(who));
        let events = self.world.lattice.receive_entry(&sent.bytes, sent.signature).unwrap();
        self.world.absorb(events);
        let acknowledged = self.world.lattice.acknowledge(self.world.now, &key("w1"), sent.id);
        self.world.absorb(acknowledged.unwrap().0);
        Some(sent.id)
    }

    fn checkpoint(&mut self) {
        let now = self.world.now;
        if let Some(entry) = self.world.lattice.draft_checkpoint(now) {
            self.sign("w1", entry.kind);
        }
    }

    fn step(&mut self, (what, who, other, amount): Step) {
        let names = ["ann", "bob", "new", "eve"];
        let newcomers = ["new", "eve", "cat"];
        let name = names[usize::from(who) % names.len()];
        let newcomer = newcomers[usize::from(other) % newcomers.len()];
        let payee = party(names[usize::from(other) % names.len()]);
        let some = Trm::from_micro(u64::from(amount % 700) + 1);
        match what % 16 {
            0 | 1 => {
                let (_, checkpoint, _) = self.world.lattice.last_checkpoint().unwrap();
                let sponsor = Sponsor { newcomer: party(newcomer), amount: some, checkpoint };
                self.sign(name, sponsor.into());
            }
            2 | 3 => {
                let grants: Vec<_> = self.world.lattice.grants(party(newcomer)).collect();
                let sponsor = grants.get(usize::from(amount) % grants.len().max(1));
                let sponsor = sponsor.map(|(id, _)| *id);
                self.sign(newcomer, Open { sponsor, enrol: None, recovery: None }.into());
            }
            4..=6 => {
                self.job = self.job.wrapping_add(1);
                let item = PayItem { job: JobId::from_bytes([self.job; 16]), amount: some };
                let name = if what % 16 == 4 { name } else { newcomer };
                self.sign(name, Pay::new(payee, vec![item], Ppm::new(10_000)).into());
            }
            7 => {
                self.sign(name, Transfer { payee, amount: some }.into());
            }
            8 | 9 => {
                if let Some(collect) = self.world.lattice.next_collect(party(name)) {
                    self.sign(name, collect.into()).unwrap();
                }
            }
            10 => {
                let all = self.world.lattice.uncollected(party(name));
                let ids = all.map(|(id, _)| id).take(3).collect();
                let checkpoint = self.world.lattice.last_checkpoint().map(|(_, id, _)| id);
                self.sign(name, Collect { ids, checkpoint }.into());
            }
            11 => {
                self.sign(newcomer, Settle {}.into());
            }
            12 => self.unsponsor(other),
            13 => {
                let line = Trm::from_micro(u64::from(amount % 300));
                let enrol = Enrol { party: payee, owner: String::new(), line };
                if let Some(enrol) = self.sign("w1", enrol.into()) {
                    self.sign(names[usize::from(other) % names.len()], Line { enrol }.into());
                }
            }
            _ => {
                let hours = u64::from(amount) % 30;
                self.world.now = self.world.now.plus_ms(hours * HOUR_MS + 1);
                self.checkpoint();
            }
        }
    }

    /// Tries every checkpoint there is.
    fn unsponsor(&mut self, other: u8) {
        let sponsors = ["ann", "bob", "new", "eve"];
        let name = sponsors[usize::from(other) % sponsors.len()];
        let locks: Vec<_> = self.world.lattice.sponsored(party(name)).collect();
        for welcome in locks {
            let Some(settle) = welcome.settle else { continue };
            let checkpoints: Vec<DocumentId> = self
                .finals()
                .into_iter()
                .filter(|(_, change)| matches!(change, Change::Checkpoint { .. }))
                .map(|(id, _)| id)
                .collect();
            for checkpoint in checkpoints {
                self.sign(name, Unsponsor { lock: welcome.lock, settle, checkpoint }.into());
            }
        }
    }

    /// A certified entry in a slot that is final.
    fn rival(&mut self, who: u8, back: u8) {
        let names = ["w1", "ann", "bob", "new"];
        let name = names[usize::from(who) % names.len()];
        let Some(length) = self.world.lattice.chain(party(name)).map(|chain| chain.next_seq())
        else {
            return;
        };
        if length < 2 {
            return;
        }
        let seq = length - 1 - u64::from(back) % (length - 1);
        let slot = |seq| tirami_ledger::lattice::Slot { chain: party(name), seq };
        let lattice = &self.world.lattice;
        let prev = lattice.final_at(slot(seq - 1)).unwrap();
        let balance = lattice.final_entry(prev).unwrap().balance;
        let kind = EntryKind::Rekey(tirami_ledger::lattice::Rekey { key: key(name).public() });
        let entry = tirami_ledger::lattice::Entry {
            chain: party(name),
            seq,
            prev: Some(prev),
            time_ms: Timestamp::from_ms(u64::from(back)),
            kind,
            balance,
        };
        let sent = sign(lattice, &entry, &key(name));
        let proof = certificate(lattice, 1, sent.id, &["w1"]);
        let events = lattice.receive_certified(&sent.bytes, sent.signature, &proof).unwrap();
        self.world.absorb(events);
    }

    fn check(&self) {
        self.world.lattice.check_invariants().unwrap();
    }

    fn finals(&self) -> Vec<(DocumentId, Change)> {
        let ids = self.world.certified().into_iter().map(|(bytes, ..)| {
            let message = tirami_core::signing_message("entry", self.world.lattice.mesh(), &bytes);
            DocumentId::from_bytes(*blake3::hash(&message).as_bytes())
        });
        ids.map(|id| (id, self.world.lattice.final_entry(id).unwrap().effect.change)).collect()
    }

    /// No lock is listed with two ends, and none that defaulted was taken back.
    fn check_ends(&self) {
        let mut ends = BTreeMap::<DocumentId, Vec<Ending>>::new();
        let mut returned = BTreeMap::<DocumentId, u32>::new();
        for (id, change) in self.finals() {
            let record = self.world.lattice.final_entry(id).unwrap();
            for decision in record.effect.decisions() {
                ends.entry(decision.lock).or_default().extend(decision.end);
            }
            if let Change::Unsponsored { lock, .. } = change {
                *returned.entry(lock).or_default() += 1;
            }
        }
        for (lock, ends) in &ends {
            assert!(ends.len() <= 1, "{lock} has the ends {ends:?}");
            let back = returned.get(lock).copied().unwrap_or_default();
            assert!(back <= 1 && (back == 0 || ends == &[Ending::Settled]), "{lock}: {ends:?}");
        }
    }

    fn ends(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (id, change) in self.finals() {
            let record = self.world.lattice.final_entry(id).unwrap();
            for decision in record.effect.decisions() {
                names.extend(decision.end.map(|end| match end {
                    Ending::Settled => "settled",
                    Ending::Defaulted { owed } if owed.is_zero() => "nothing owed",
                    Ending::Defaulted { .. } => "owed",
                }));
            }
            if matches!(change, Change::Unsponsored { .. }) {
                names.push("returned");
            }
            let welcome = |item: &DocumentId| {
                let paid = self.world.lattice.final_entry(*item);
                paid.is_some_and(|r| matches!(r.effect.change, Change::OutOfWelcome { .. }))
            };
            if record.effect.collected.iter().any(welcome) {
                names.push("collected by a checkpoint");
            }
        }
        names
    }
}

/// The same final entries in a shuffled order, replayed and restored, come to the same.
fn in_any_order(world: &World, seed: u64) -> Result<(), TestCaseError> {
    let mut entries = world.certified();
    let mut dice = seed | 1;
    for index in (1..entries.len()).rev() {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        entries.swap(index, usize::try_from(dice >> 33).unwrap() % (index + 1));
    }
    let mut shuffled = world.first.clone();
    for (bytes, signature, proof) in &entries {
        let events = match proof {
            Some(proof) => shuffled.receive_certified(bytes, *signature, proof),
            None => shuffled.receive_entry(bytes, *signature),
        };
        shuffled.absorb(events.unwrap());
    }
    prop_assert_eq!(shuffled.held().1, 0);
    prop_assert_eq!(shuffled.state_hash(), world.lattice.state_hash());
    prop_assert_eq!(shuffled.totals(), world.lattice.totals());
    prop_assert_eq!(shuffled.summary(), world.lattice.summary());
    shuffled.check_invariants().map_err(TestCaseError::fail)?;
    let parties = ["ann", "bob", "new", "eve", "cat"].map(party);
    for party in parties {
        prop_assert_eq!(payable(&shuffled, party), payable(&world.lattice, party));
    }
    Ok(())
}

fn payable(lattice: &Lattice, party: PartyId) -> Vec<(DocumentId, Trm)> {
    lattice.uncollected(party).collect()
}
