//! Shared state is a pure function of the set of final entries: every order, rivals, liars.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tirami_core::{DocumentId, JobId, PartyId, Ppm, Timestamp, Trm};
use tirami_ledger::lattice::{
    Acknowledgement, Charter, Collect, Enrol, Entry, EntryKind, Lattice, LatticeEvent, Line, Open,
    Pay, PayItem, Transfer,
};

use super::model::{Model, Sums, payout};
use super::world::partial::agrees;
use super::world::{Sent, certificate, charter, encoded, found, key, party, sign, trm};

const NAMES: [&str; 4] = ["w1", "ann", "bob", "cat"];
const FEE_PPM: u32 = 25_000;
const LINE_TOTAL: &str = "0.002";

#[test]
fn all_orders_of_six_dependent_entries_end_in_one_state() {
    let empty = found(charter(1, 1, trm("1000")));
    let mut set = Written::default();
    let write = |set: &mut Written, chain: &str, kind: EntryKind, balance: i64| {
        set.write(&empty, party(chain), kind, balance)
    };
    write(&mut set, "w1", Open { sponsor: None, enrol: None, recovery: None }.into(), 0);
    let grant = Enrol { party: party("ann"), owner: String::new(), line: trm("100") };
    let grant = write(&mut set, "w1", grant.into(), 0);
    write(&mut set, "ann", Open { sponsor: None, enrol: Some(grant), recovery: None }.into(), 0);
    write(&mut set, "bob", Open { sponsor: None, enrol: None, recovery: None }.into(), 0);
    let gift = Transfer { payee: party("bob"), amount: trm("40") };
    let gift = write(&mut set, "ann", gift.into(), -40_000_000);
    write(&mut set, "bob", Collect { ids: vec![gift], checkpoint: None }.into(), 40_000_000);

    let mut hashes = BTreeSet::new();
    let mut orders = 0;
    permute(&mut set.sent.clone(), 0, &mut |order| {
        let mut lattice = empty.clone();
        for (_, sent) in order {
            let certificate = certificate(&lattice, 1, sent.id, &["w1"]);
            let events = lattice.receive_certified(&sent.bytes, sent.signature, &certificate);
            lattice.absorb(events.unwrap());
        }
        assert_eq!(lattice.held(), (0, 0));
        assert_eq!(lattice.final_count(), 6);
        hashes.insert(lattice.state_hash());
        orders += 1;
    });
    assert_eq!((orders, hashes.len()), (720, 1));
}

#[test]
fn an_old_entry_costs_as_much_as_its_step() {
    let mut set = Written::default();
    let mut lattice = mesh().with_recent(16);
    let open = || Open { sponsor: None, enrol: None, recovery: None }.into();
    let empty = lattice.clone();
    for name in ["w1", "ann", "bob"] {
        set.write(&empty, party(name), open(), 0);
    }
    let grant = Enrol { party: party("ann"), owner: String::new(), line: trm("0.002") };
    let enrol = set.write(&empty, party("w1"), grant.into(), 0);
    set.write(&empty, party("ann"), Line { enrol }.into(), 0);
    // Half of what is given comes back, so that both go on for ever.
    let (amount, mut ann, mut bob) = (Trm::from_micro(8), 0, 0);
    let mut sizes = Vec::new();
    for round in 0..400 {
        let (from, to) = if round % 2 == 0 { ("ann", "bob") } else { ("bob", "ann") };
        let (paid, got) = if round % 2 == 0 { (&mut ann, &mut bob) } else { (&mut bob, &mut ann) };
        (*paid, *got) = (*paid - 8, *got + 8);
        let gift = Transfer { payee: party(to), amount };
        let gift = set.write(&empty, party(from), gift.into(), *paid);
        let ids = vec![gift];
        set.write(&empty, party(to), Collect { ids, checkpoint: None }.into(), *got);
        for (_, sent) in set.sent.iter().skip(lattice.final_count()) {
            submit(&mut lattice, sent, &["w1", "w2", "w3"]);
        }
        assert_eq!(lattice.final_count(), set.sent.len());
        if round % 100 == 99 {
            sizes.push(encoded(&lattice).len());
        }
    }
    lattice.check_invariants().unwrap();
    let grown = sizes[3] - sizes[0];
    assert!(grown <= 600 * 62, "{grown} bytes for 600 entries");
    assert!(sizes[0] - grown / 3 < 16_384, "{sizes:?}");
    // A second signature for an old slot is known for one, and as a proof.
    let (entry, _) = &set.sent[10];
    let rival = Transfer { payee: party("w1"), amount: trm("0.000001") };
    let rival = Entry { kind: rival.into(), balance: entry.balance, ..entry.clone() };
    let author = if entry.chain == party("ann") { "ann" } else { "bob" };
    let rival = sign(&empty, &rival, &key(author));
    let events = lattice.receive_entry(&rival.bytes, rival.signature).unwrap();
    lattice.absorb(events);
    assert_eq!(lattice.double_sign_proofs().count(), 1);
    assert_eq!(lattice.final_count(), set.sent.len());
}

#[test]
fn the_random_sets_reach_contradictions_loss_and_invalid_entries() {
    let empty = mesh();
    let mut dice = Dice(7);
    let (mut frozen, mut lost, mut invalid, mut collected) = (0, 0, 0, 0);
    for _ in 0..40 {
        let mut byte = || u8::try_from(dice.below(256)).unwrap();
        let steps: Vec<Step> =
            (0..40).map(|_| (byte(), byte(), byte(), u16::from(byte()), byte())).collect();
        let set = Written::of(&empty, &steps, true);
        let model = set.model(&empty, |_| true);
        let sums = model.sums();
        frozen += usize::from(!sums.frozen.is_empty());
        lost += usize::from(sums.totals.loss > 0);
        invalid += usize::from(model.valid().len() < set.sent.len());
        collected += usize::from(sums.balances.values().any(|balance| *balance > 0));
    }
    let counts = [frozen, lost, invalid, collected];
    assert!(counts.iter().all(|count| *count >= 5), "too few interesting sets: {counts:?}");
}

fn permute<T>(items: &mut [T], from: usize, visit: &mut impl FnMut(&[T])) {
    if from == items.len() {
        return visit(items);
    }
    for other in from..items.len() {
        items.swap(from, other);
        permute(items, from + 1, visit);
        items.swap(from, other);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Rivals are certified too, as by too many liars, and some of what is certified is invalid.
    /// One node keeps only steps of all but a few entries.
    #[test]
    fn any_order_of_any_final_entries_agrees_with_the_naive_model(
        steps in prop::collection::vec(any::<Step>(), 8..48),
        seed in any::<u64>(),
        recent in 0..12_u32,
    ) {
        let empty = mesh();
        let set = Written::of(&empty, &steps, true);
        let first = play(&empty, &set, &mut Dice(seed | 1));
        let short = empty.clone().with_recent(recent);
        let second = play(&short, &set, &mut Dice(seed.rotate_left(17) | 1));
        prop_assert_eq!(first.state_hash(), second.state_hash());
        prop_assert_eq!(first.totals(), second.totals());
        let sums = set.model(&empty, |_| true).sums();
        prop_assert_eq!(sums_of(&first), sums);
        if first.contradictions().next().is_none() {
            prop_assert_eq!(first.totals().loss, 0);
        }
    }

    /// Rivals are certified too. Payers of what is collected are held, or not.
    #[test]
    fn whoever_holds_some_chains_agrees_with_all_others_on_them(
        steps in prop::collection::vec(any::<Step>(), 8..48),
        held in any::<u8>(),
        seed in any::<u64>(),
    ) {
        let empty = mesh();
        let set = Written::of(&empty, &steps, true);
        let full = play(&empty, &set, &mut Dice(seed | 1));
        let valid = set.sent.iter().filter(|(_, sent)| full.final_entry(sent.id).is_some());
        let finals: Vec<_> = valid
            .map(|(_, sent)| {
                let proof = certificate(&empty, 1, sent.id, &["w1", "w2", "w3"]);
                (sent.bytes.clone(), sent.signature, proof)
            })
            .collect();
        let names = NAMES[1..].iter().enumerate();
        let held = names.filter(|(bit, _)| held >> bit & 1 == 1).map(|(_, name)| party(name));
        // What everybody holds: the clerk's and the registrar's.
        let held = held.chain([party(NAMES[0])]).collect();
        agrees((&empty, &full), &finals, &held, seed);
    }

    /// Adding one final entry takes validity from no other and moves no other chain's balance
    /// but by its owner's own entries.
    #[test]
    fn a_further_final_entry_makes_no_other_invalid(
        steps in prop::collection::vec(any::<Step>(), 4..32),
    ) {
        let empty = mesh();
        let set = Written::of(&empty, &steps, true);
        let ids: Vec<DocumentId> = set.sent.iter().map(|(_, sent)| sent.id).collect();
        let mut before = BTreeSet::new();
        for known in 1..=ids.len() {
            let valid = set.model(&empty, |id| ids[..known].contains(id)).valid();
            prop_assert!(before.is_subset(&valid));
            before = valid;
        }
        let mut lattice = empty.clone();
        for (entry, sent) in &set.sent {
            let others: Vec<_> = lattice.chains().map(|(p, c)| (p, c.balance())).collect();
            submit(&mut lattice, sent, &["w1", "w2", "w3"]);
            for (party, balance) in others.into_iter().filter(|(p, _)| *p != entry.chain) {
                prop_assert_eq!(lattice.chain(party).map(|c| c.balance()), Some(balance));
            }
            lattice.check_invariants().map_err(TestCaseError::fail)?;
        }
        let finals: BTreeSet<_> =
            ids.iter().filter(|id| lattice.final_entry(**id).is_some()).copied().collect();
        prop_assert_eq!(finals, before);
    }

    /// One of four witnesses lies; each of the others has its own lattice and order of arrival.
    #[test]
    fn with_as_many_liars_as_the_quorum_bears_there_is_no_contradiction_and_no_loss(
        steps in prop::collection::vec(any::<Step>(), 8..40),
        seed in any::<u64>(),
    ) {
        let empty = mesh();
        let set = Written::of(&empty, &steps, false);
        let mut dice = Dice(seed | 1);
        let mut honest: Vec<(&str, Lattice)> =
            ["w1", "w2", "w3"].map(|name| (name, empty.clone())).into();
        let mut observer = empty.clone();
        let mut acks: Vec<Acknowledgement> = Vec::new();
        let mut order = set.sent.clone();
        // Neighbours swap, so that rivals reach the witnesses in different orders.
        for (name, lattice) in &mut honest {
            for index in 1..order.len() {
                if dice.below(4) == 0 {
                    order.swap(index - 1, index);
                }
            }
            for (_, sent) in &order {
                if let Ok(events) = lattice.receive_entry(&sent.bytes, sent.signature) {
                    lattice.absorb(events);
                }
            }
            acknowledge_all(lattice, name, &mut acks);
        }
        for _ in 0..set.sent.len() {
            for (name, lattice) in &mut honest {
                spread(lattice, &set, &acks);
                acknowledge_all(lattice, name, &mut acks);
            }
            let forged = set.sent.iter().map(|(_, sent)| {
                Acknowledgement::sign(empty.mesh(), 1, sent.id, &key("w4"))
            });
            let before = acks.len();
            acks.extend(forged);
            acks.sort_by_key(|ack| (ack.entry, ack.witness));
            acks.dedup();
            if acks.len() == before {
                break;
            }
        }
        spread(&mut observer, &set, &acks);
        prop_assert!(observer.contradictions().next().is_none());
        prop_assert_eq!(observer.totals().loss, 0);
        observer.check_invariants().map_err(TestCaseError::fail)?;
        for (_, lattice) in &mut honest {
            spread(lattice, &set, &acks);
            prop_assert_eq!(lattice.state_hash(), observer.state_hash());
        }
    }

    /// Bytes of strangers are refused or understood, and a refusal changes nothing.
    #[test]
    fn damaged_entries_are_refused_and_change_nothing(
        steps in prop::collection::vec(any::<Step>(), 2..8),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let empty = mesh();
        let set = Written::of(&empty, &steps, false);
        let (_, sent) = &set.sent[at.index(set.sent.len())];
        let mut bytes = sent.bytes.clone();
        let place = at.index(bytes.len());
        bytes[place] ^= flip;
        let before = encoded(&empty);
        for bytes in [&bytes[..], &sent.bytes[..cut.index(sent.bytes.len())]] {
            if let Ok(events) = empty.receive_entry(bytes, sent.signature) {
                // Only what rests on the unknown is not refused: it is parked, unchecked.
                let parked = |event: &LatticeEvent| matches!(event, LatticeEvent::Parked { .. });
                prop_assert!(events.iter().all(parked));
            }
        }
        prop_assert!(encoded(&empty) == before);
    }
}

/// One random choice of what happens next; numbers are taken modulo what there is.
type Step = (u8, u8, u8, u16, u8);

/// Entries of several chains in an order in which they could be written.
#[derive(Default)]
struct Written {
    sent: Vec<(Entry, Sent)>,
    tips: BTreeMap<PartyId, DocumentId>,
}

impl Written {
    fn write(
        &mut self,
        lattice: &Lattice,
        chain: PartyId,
        kind: EntryKind,
        balance: i64,
    ) -> DocumentId {
        let prev = self.tips.get(&chain).copied();
        let seq = prev.map_or(0, |prev| self.entry(prev).seq + 1);
        let entry = Entry { chain, seq, prev, time_ms: Timestamp::from_ms(seq), kind, balance };
        let author = NAMES.iter().find(|name| party(name) == chain).unwrap();
        let sent = sign(lattice, &entry, &key(author));
        let id = sent.id;
        if self.sent.iter().all(|(_, known)| known.id != id) {
            self.sent.push((entry, sent));
        }
        self.tips.insert(chain, id);
        id
    }

    fn entry(&self, id: DocumentId) -> &Entry {
        &self.sent.iter().find(|(_, sent)| sent.id == id).unwrap().0
    }

    fn model(&self, lattice: &Lattice, keep: impl Fn(&DocumentId) -> bool) -> Model<'_> {
        let all = self.sent.iter().map(|(entry, sent)| (sent.id, entry));
        Model {
            entries: all.filter(|(id, _)| keep(id)).collect(),
            registrar: lattice.charter().registrar,
            line_total: lattice.charter().line_total.signed(),
            fee_ppm: FEE_PPM.into(),
        }
    }

    /// Random entries; about one in eight goes back and writes a rival, and when `invalid` about
    /// one in sixteen has a wrong balance.
    fn of(lattice: &Lattice, steps: &[Step], invalid: bool) -> Self {
        let mut set = Self::default();
        for name in NAMES {
            set.write(
                lattice,
                party(name),
                Open { sponsor: None, enrol: None, recovery: None }.into(),
                0,
            );
        }
        for name in ["ann", "bob"] {
            let (line, owner) = (Trm::from_micro(600), name.to_owned());
            let grant = Enrol { party: party(name), owner, line }.into();
            let enrol = set.write(lattice, party("w1"), grant, 0);
            set.write(lattice, party(name), Line { enrol }.into(), 0);
        }
        for (number, step) in steps.iter().enumerate() {
            set.step(lattice, number, *step, invalid);
        }
        set
    }

    fn step(&mut self, lattice: &Lattice, number: usize, step: Step, invalid: bool) {
        let (what, who, other, amount, luck) = step;
        // Only the registrar enrols; now and then another tries.
        let who = if what % 8 == 0 && luck % 4 != 0 { 0 } else { who };
        let chain = party(NAMES[usize::from(who) % NAMES.len()]);
        let payee = party(NAMES[usize::from(other) % NAMES.len()]);
        if luck % 8 == 0 {
            // Back to an earlier entry of the chain: what follows is a rival.
            let back = self.entry(self.tips[&chain]).prev;
            if let Some(back) = back {
                self.tips.insert(chain, back);
            }
        }
        let before = self.entry(self.tips[&chain]).balance;
        let amount = Trm::from_micro(u64::from(amount % 400) + 1);
        let micro = i64::try_from(amount.micro()).unwrap();
        let (kind, delta): (EntryKind, i64) = match what % 8 {
            0 => {
                let owner = number.to_string();
                (Enrol { party: payee, owner, line: amount }.into(), 0)
            }
            1 => match self.pick(luck, |entry| matches!(entry.kind, EntryKind::Enrol(_))) {
                Some((enrol, _)) => (Line { enrol }.into(), 0),
                None => return,
            },
            2 | 3 => {
                let job = JobId::from_bytes([u8::try_from(number).unwrap(); 16]);
                let pay = Pay::new(payee, vec![PayItem { job, amount }], Ppm::new(FEE_PPM));
                let fee = i64::try_from(pay.fee.micro()).unwrap();
                (pay.into(), -micro - fee)
            }
            4 => (Transfer { payee, amount }.into(), -micro),
            _ => {
                let mine = |entry: &Entry| payout(&entry.kind).is_some_and(|(to, _)| to == chain);
                match self.pick(luck, mine) {
                    Some((id, paid)) => (Collect { ids: vec![id], checkpoint: None }.into(), paid),
                    None => return,
                }
            }
        };
        let wrong = i64::from(invalid && luck % 16 == 7);
        let tip = self.tips[&chain];
        let id = self.write(lattice, chain, kind, before + delta + wrong);
        // What is invalid stands in the set; the chain goes on before it, most of the time.
        if luck % 32 != 9 && !self.model(lattice, |_| true).valid().contains(&id) {
            self.tips.insert(chain, tip);
        }
    }

    fn pick(&self, luck: u8, wanted: impl Fn(&Entry) -> bool) -> Option<(DocumentId, i64)> {
        let found: Vec<_> = self.sent.iter().filter(|(entry, _)| wanted(entry)).collect();
        let (entry, sent) = found.get(usize::from(luck) % found.len().max(1))?;
        let paid = payout(&entry.kind).map_or(0, |(_, amount)| i64::try_from(amount).unwrap());
        Some((sent.id, paid))
    }
}

fn mesh() -> Lattice {
    let mut charter: Charter = charter(4, 3, trm(LINE_TOTAL));
    charter.params.fee_ppm = Ppm::new(FEE_PPM);
    found(charter)
}

/// Entries, acknowledgements and certificates arrive in a random order, some of them twice.
fn play(empty: &Lattice, set: &Written, dice: &mut Dice) -> Lattice {
    enum Arrival<'a> {
        Entry(&'a Sent),
        Ack(DocumentId, &'a str),
        Certified(&'a Sent, &'a [&'a str]),
    }
    let signers: [&[&str]; 3] =
        [&["w1", "w2", "w3"], &["w4", "w2", "w1"], &["w1", "w2", "w3", "w4"]];
    let mut arrivals = Vec::new();
    for (_, sent) in &set.sent {
        if dice.below(2) == 0 {
            arrivals.push(Arrival::Certified(sent, signers[dice.below(3)]));
        } else {
            arrivals.push(Arrival::Entry(sent));
            arrivals.extend(["w1", "w3", "w4"].map(|witness| Arrival::Ack(sent.id, witness)));
        }
        if dice.below(4) == 0 {
            arrivals.push(Arrival::Entry(sent));
        }
    }
    for index in (1..arrivals.len()).rev() {
        arrivals.swap(index, dice.below(index + 1));
    }
    let mut lattice = empty.clone();
    let mut finals = 0;
    for arrival in arrivals {
        let events = match arrival {
            Arrival::Entry(sent) => lattice.receive_entry(&sent.bytes, sent.signature),
            Arrival::Ack(entry, witness) => {
                let ack = Acknowledgement::sign(lattice.mesh(), 1, entry, &key(witness));
                lattice.receive_acknowledgement(&ack)
            }
            Arrival::Certified(sent, by) => {
                let certificate = certificate(&lattice, 1, sent.id, by);
                lattice.receive_certified(&sent.bytes, sent.signature, &certificate)
            }
        };
        if let Ok(events) = events {
            lattice.absorb(events);
        }
        assert!(lattice.final_count() >= finals, "what is final stays final");
        finals = lattice.final_count();
    }
    // Sync brings again what was refused while a rival's acknowledgements were on their way.
    for (_, sent) in &set.sent {
        submit(&mut lattice, sent, &["w1", "w2", "w3"]);
    }
    lattice.check_invariants().unwrap();
    assert_eq!(minicbor::decode::<Lattice>(&encoded(&lattice)).unwrap(), lattice);
    lattice
}

fn submit(lattice: &mut Lattice, sent: &Sent, by: &[&str]) {
    let certificate = certificate(lattice, 1, sent.id, by);
    if let Ok(events) = lattice.receive_certified(&sent.bytes, sent.signature, &certificate) {
        lattice.absorb(events);
    }
}

/// Everything that is known reaches a node: entries first, so that none is unknown.
fn spread(lattice: &mut Lattice, set: &Written, acks: &[Acknowledgement]) {
    for (_, sent) in &set.sent {
        if let Ok(events) = lattice.receive_entry(&sent.bytes, sent.signature) {
            lattice.absorb(events);
        }
    }
    // What an acknowledgement makes final may let in the entry of one before it.
    let mut finals = None;
    while finals != Some(lattice.final_count()) {
        finals = Some(lattice.final_count());
        for ack in acks {
            if let Ok(events) = lattice.receive_acknowledgement(ack) {
                lattice.absorb(events);
            }
        }
    }
}

fn acknowledge_all(lattice: &mut Lattice, name: &str, acks: &mut Vec<Acknowledgement>) {
    let parties = NAMES.map(party);
    loop {
        let pending: Vec<DocumentId> = parties
            .iter()
            .flat_map(|party| lattice.pending_of(*party).map(|pending| pending.entry().id()))
            .collect();
        let mut news = false;
        for id in pending {
            if let Ok((events, ack)) = lattice.acknowledge(Timestamp::from_ms(0), &key(name), id) {
                news |= !events.is_empty();
                lattice.absorb(events);
                acks.push(ack);
            }
        }
        if !news {
            return;
        }
    }
}

/// What a lattice says, in the model's words.
fn sums_of(lattice: &Lattice) -> Sums {
    let opened = lattice.chains().filter(|(_, chain)| chain.head().is_some());
    let payable = NAMES.map(party).into_iter().map(|party| (party, lattice.uncollected_sum(party)));
    Sums {
        balances: opened.map(|(party, chain)| (party, chain.balance())).collect(),
        payable: payable.filter(|(_, sum)| *sum != 0).collect(),
        frozen: lattice
            .contradictions()
            .map(|(party, frozen, _)| (party, (frozen.seq, frozen.entries.clone())))
            .collect(),
        totals: lattice.totals(),
    }
}

/// A small generator: the seed is proptest's, so a failure shrinks and repeats.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}
