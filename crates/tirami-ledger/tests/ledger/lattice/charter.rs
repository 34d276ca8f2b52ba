//! A charter change in the middle of entries in flight: no certified entry is lost, no rival of
//! one is acknowledged, and a newcomer follows the history from the mesh's id.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tirami_core::{DocumentId, SecretKey, Timestamp};
use tirami_ledger::lattice::{
    Acknowledgement, Certificate, CharterApproval, CharterChange, CharterError, CharterProof,
    Enrol, Entry, EntryKind, Lattice, Open, Rekey, Slot, Transfer,
};

use super::world::{Sent, certificate, charter, found, key, party, sign, trm};

const OWNERS: [&str; 3] = ["ann", "bob", "cat"];
const AFTER: [&str; 4] = ["w3", "w4", "w5", "w6"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Four witnesses with a quorum of three, each with a lattice of its own; owners sign rivals;
    /// messages are lost and late; one witness forges. In the middle the witnesses change.
    #[test]
    fn entries_in_flight_survive_a_charter_change(
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 40..160),
        change_at in 5..60_usize,
    ) {
        let mut mesh = Mesh::begin();
        for (number, step) in steps.iter().enumerate() {
            if number == change_at {
                mesh.propose();
            }
            mesh.step(*step);
        }
        if change_at >= steps.len() {
            mesh.propose();
        }
        mesh.deliver_everything();
        mesh.check()?;
    }
}

#[test]
fn a_newcomer_follows_the_history_from_the_meshs_id() {
    let mut mesh = Mesh::begin();
    mesh.propose();
    mesh.deliver_everything();
    let known = &mesh.nodes["w3"];
    assert_eq!(known.charter().version, 2);
    let history: Vec<CharterProof> = known.charters(0).collect();
    let newcomer = Lattice::from_history(known.mesh(), &history).unwrap();
    assert_eq!(newcomer.charter_id(), known.charter_id());
    assert_eq!(known.charters(1).count(), 1);
    // Whatever is missing or changed in it is noticed.
    let unproved = |change: &dyn Fn(&mut Vec<CharterProof>)| {
        let mut history = history.clone();
        change(&mut history);
        Lattice::from_history(known.mesh(), &history).unwrap_err()
    };
    assert_eq!(unproved(&|history| history.clear()), CharterError::NotFirst);
    assert_eq!(unproved(&|history| drop(history.remove(0))), CharterError::NotFirst);
    assert!(matches!(
        unproved(&|history| drop(history[1].approvals.pop())),
        CharterError::TooFew { signed: 2, quorum: 3 }
    ));
    assert!(matches!(
        unproved(&|history| *history[1].bytes.last_mut().unwrap() ^= 1),
        CharterError::Approval { .. } | CharterError::Signed(_)
    ));
    let other = found(charter(1, 1, trm("7")));
    assert_eq!(Lattice::from_history(other.mesh(), &history), Err(CharterError::NotFirst));
}

#[test]
fn approvals_are_collected_until_they_are_a_quorum() {
    let mut mesh = Mesh::begin();
    let change = CharterChange { line_total: Some(trm("77")), ..CharterChange::default() };
    let bytes = mesh.nodes["w1"].draft_charter(&change).unwrap();
    let approve = |mesh: &mut Mesh, name: &str| {
        let node = mesh.nodes.get_mut(name).unwrap();
        let (events, approval) = node.approve_charter(&key(name), &bytes).unwrap();
        node.absorb(events);
        // Asked again, it is the same: a witness that stopped in between sends it again.
        let (none, again) = node.approve_charter(&key(name), &bytes).unwrap();
        assert!(none.is_empty() && again == approval);
        approval
    };
    let first = approve(&mut mesh, "w1");
    let ann = mesh.owner("ann").unwrap();
    let node = mesh.nodes.get_mut("w1").unwrap();
    let pending = node.receive_entry(&ann.bytes, ann.signature).unwrap();
    node.absorb(pending);
    let refused = node.acknowledge(Timestamp::from_ms(0), &key("w1"), ann.id).unwrap_err();
    assert_eq!(format!("{refused:?}"), "Retired");

    let observer = mesh.nodes.get_mut("seen").unwrap();
    assert!(matches!(observer.receive_proposal(&bytes, &[]), Err(CharterError::TooFew { .. })));
    let mut forged = first.clone();
    forged.witness = key("w2").public();
    assert!(observer.receive_proposal(&bytes, &[forged]).is_err());
    let learn = |node: &mut Lattice, approval: &CharterApproval| {
        let events = node.receive_proposal(&bytes, std::slice::from_ref(approval)).unwrap();
        node.absorb(events);
    };
    learn(observer, &first);
    learn(observer, &first);
    assert_eq!(observer.proposals().next().unwrap().2.count(), 1);
    // A second successor that the same witness signs is not kept beside the first.
    let other = CharterChange { line_total: Some(trm("78")), ..CharterChange::default() };
    let other = observer.draft_charter(&other).unwrap();
    let body = minicbor::decode(&other).unwrap();
    let fresh = mesh.empty.clone();
    let (_, second) = fresh.propose_charter(&key("w1"), &body).unwrap();
    let observer = mesh.nodes.get_mut("seen").unwrap();
    assert!(observer.receive_proposal(&other, &[second]).unwrap().is_empty());
    let second = approve(&mut mesh, "w2");
    let third = approve(&mut mesh, "w4");
    let observer = mesh.nodes.get_mut("seen").unwrap();
    learn(observer, &second);
    assert_eq!(observer.charter().version, 1);
    learn(observer, &third);
    assert_eq!((observer.charter().version, observer.charter().line_total), (2, trm("77")));
    assert_eq!(observer.proposals().count(), 0);
    let stored = minicbor::to_vec(&*observer).unwrap();
    assert!(minicbor::decode::<Lattice>(&stored).unwrap() == *observer);
}

#[test]
fn a_rival_that_only_the_certificate_of_a_later_entry_covers_finds_its_place() {
    let mut mesh = Mesh::begin();
    // Four rivals of ann fill the slot at one node; the witnesses took a fifth, and one after it.
    let chosen = mesh.write("ann", "w1", false).unwrap();
    mesh.give_entry("w1", 0);
    let after = mesh.write("ann", "w1", false).unwrap();
    for _ in 0..4 {
        let rival = mesh.write("ann", "w2", false).unwrap();
        mesh.give_entry("seen", mesh.entries.len() - 1);
        assert!(mesh.nodes["seen"].pending_entry(rival.id).is_some());
    }
    let seen = mesh.nodes.get_mut("seen").unwrap();
    let full = seen.receive_entry(&chosen.bytes, chosen.signature).unwrap_err();
    assert!(format!("{full:?}").starts_with("TooManyRivals"), "{full:?}");
    let taken = certificate(seen, 1, after.id, &["w1", "w2", "w3"]);
    let parked = seen.receive_certified(&after.bytes, after.signature, &taken).unwrap();
    seen.absorb(parked);
    let covered = seen.receive_entry(&chosen.bytes, chosen.signature).unwrap();
    seen.absorb(covered);
    assert!(seen.final_entry(chosen.id).is_some() && seen.final_entry(after.id).is_some());
}

#[test]
fn an_acknowledgement_of_an_unknown_entry_changes_nothing() {
    let mut mesh = Mesh::begin();
    let entry = mesh.write("ann", "w1", false).unwrap();
    let seen = &mesh.nodes["seen"];
    let ack = Acknowledgement::sign(seen.mesh(), 1, entry.id, &key("w1"));
    assert_eq!(seen.receive_acknowledgement(&ack), Ok(Vec::new()));
}

/// What the runs need to be worth anything: certificates under both charters, rivals that honest
/// witnesses acknowledged, and entries in flight that approvals carried over.
#[test]
fn the_random_runs_reach_entries_in_flight_and_rivals() {
    let mut dice = 0x2545_f491_4f6c_dd1d_u64;
    let (mut before, mut after, mut rivals, mut carried) = (0, 0, 0, 0);
    for _ in 0..30 {
        let mut mesh = Mesh::begin();
        for number in 0..120 {
            if number == 50 {
                mesh.propose();
            }
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let bytes = dice.to_le_bytes();
            mesh.step((bytes[1], bytes[2], bytes[3]));
        }
        carried += mesh.approvals.values().filter(|a| !a.acknowledged.is_empty()).count();
        mesh.deliver_everything();
        let certified = mesh.certified();
        let under = |version| {
            let acks = mesh.acks.iter().filter(move |ack| ack.charter_version == version);
            acks.map(|ack| ack.entry).filter(|id| certified.contains(id)).count()
        };
        (before, after) = (before + under(1), after + under(2));
        let liar = key("w4").public();
        let honest: BTreeSet<_> =
            mesh.acks.iter().filter(|ack| ack.witness != liar).map(|ack| ack.entry).collect();
        let slots = mesh.entries.iter().filter(|(_, sent)| honest.contains(&sent.id));
        let slots: Vec<Slot> = slots.map(|(entry, _)| entry.slot()).collect();
        rivals += slots.len() - slots.iter().collect::<BTreeSet<_>>().len();
    }
    let counts = [before, after, rivals, carried];
    assert!(counts.iter().all(|count| *count >= 10), "too little happened: {counts:?}");
}

/// Every node of a small mesh, what was sent, and what each witness ever signed.
struct Mesh {
    empty: Lattice,
    nodes: BTreeMap<&'static str, Lattice>,
    entries: Vec<(Entry, Sent)>,
    acks: Vec<Acknowledgement>,
    proposal: Option<Vec<u8>>,
    approvals: BTreeMap<&'static str, CharterApproval>,
    number: u64,
}

impl Mesh {
    fn begin() -> Self {
        let mut founded = found(charter(4, 3, trm("1000")));
        let mut first = Vec::new();
        let mut seat = |lattice: &mut Lattice, who: &str, kind: EntryKind| {
            let entry = lattice.draft(party(who), Timestamp::from_ms(0), kind).unwrap();
            let sent = sign(lattice, &entry, &key(who));
            let proof = certificate(lattice, 1, sent.id, &["w1", "w2", "w3"]);
            let events = lattice.receive_certified(&sent.bytes, sent.signature, &proof).unwrap();
            lattice.absorb(events);
            first.push((entry, sent.clone()));
            sent.id
        };
        let open = |enrol| Open { sponsor: None, enrol, recovery: None }.into();
        seat(&mut founded, "w1", open(None));
        for owner in OWNERS {
            let line = trm("100");
            let enrol = Enrol { party: party(owner), owner: String::new(), line };
            let enrol = seat(&mut founded, "w1", enrol.into());
            seat(&mut founded, owner, open(Some(enrol)));
        }
        let names = ["w1", "w2", "w3", "w4", "w5", "w6", "seen"];
        let nodes = names.map(|name| (name, founded.clone())).into();
        Self {
            empty: founded,
            nodes,
            entries: Vec::new(),
            acks: Vec::new(),
            proposal: None,
            approvals: BTreeMap::new(),
            number: 1,
        }
    }

    /// The owner's next entry as one node sees its chain.
    fn owner(&mut self, name: &str) -> Option<Sent> {
        self.write(name, "seen", false)
    }

    fn write(&mut self, owner: &str, seen_by: &str, rival: bool) -> Option<Sent> {
        let node = &self.nodes[seen_by];
        let chain = party(owner);
        self.number += 1;
        let payee = party(OWNERS[usize::try_from(self.number).unwrap() % 3]);
        let time = Timestamp::from_ms(self.number);
        let kind: EntryKind = match payee == chain {
            true => Rekey { key: key(owner).public() }.into(),
            false => {
                let amount = tirami_core::Trm::from_micro(self.number);
                Transfer { payee, amount }.into()
            }
        };
        let mut entry = node.draft(chain, time, kind).ok()?;
        if rival {
            let pending = node.pending_of(chain).last()?.entry().entry().clone();
            entry.seq = pending.seq;
            entry.prev = pending.prev;
            entry.kind = Rekey { key: key(owner).public() }.into();
            let before = pending.prev.and_then(|prev| {
                let settled = node.final_entry(prev).map(|record| record.balance);
                settled.or_else(|| Some(node.pending_entry(prev)?.entry().entry().balance))
            });
            entry.balance = before?;
        }
        let sent = sign(node, &entry, &key(owner));
        self.entries.push((entry, sent.clone()));
        Some(sent)
    }

    fn step(&mut self, (what, who, other): (u8, u8, u8)) {
        let names: Vec<&'static str> = self.nodes.keys().copied().collect();
        let name = names[usize::from(who) % names.len()];
        let owner = OWNERS[usize::from(other) % OWNERS.len()];
        match what % 12 {
            0 | 1 => drop(self.write(owner, name, false)),
            2 => drop(self.write(owner, name, true)),
            3..=6 => self.give_entry(name, usize::from(other)),
            7..=9 => self.acknowledge(name),
            10 => {
                let from = usize::from(other);
                for index in 0..4 {
                    self.give_ack(name, from.wrapping_mul(7).wrapping_add(index));
                }
                self.give_approvals(name);
            }
            _ => {
                self.approve(name);
                // The liar signs whatever there is, under either charter.
                if let Some((_, sent)) = self.entries.get(usize::from(other) % 64) {
                    let version = 1 + u32::from(other % 2);
                    let mesh = self.empty.mesh();
                    self.acks.push(Acknowledgement::sign(mesh, version, sent.id, &key("w4")));
                }
            }
        }
    }

    fn give_entry(&mut self, name: &str, index: usize) {
        let Some((_, sent)) = self.entries.get(index % self.entries.len().max(1)) else { return };
        let node = self.nodes.get_mut(name).unwrap();
        if let Ok(events) = node.receive_entry(&sent.bytes, sent.signature) {
            node.absorb(events);
        }
    }

    fn give_ack(&mut self, name: &str, index: usize) {
        let Some(ack) = self.acks.get(index % self.acks.len().max(1)) else { return };
        let node = self.nodes.get_mut(name).unwrap();
        if let Ok(events) = node.receive_acknowledgement(ack) {
            node.absorb(events);
        }
    }

    /// What sync brings: entries with the certificates that the acknowledgements are.
    fn give_certificates(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).unwrap();
        for (_, sent) in &self.entries {
            for version in [1, 2] {
                let of_entry =
                    |ack: &&Acknowledgement| (ack.entry, ack.charter_version) == (sent.id, version);
                let acknowledgements: Vec<_> = self.acks.iter().filter(of_entry).copied().collect();
                if acknowledgements.len() < 3 {
                    continue;
                }
                let certificate = Certificate { acknowledgements };
                let taken = node.receive_certified(&sent.bytes, sent.signature, &certificate);
                if let Ok(events) = taken {
                    node.absorb(events);
                }
            }
        }
    }

    fn acknowledge(&mut self, name: &'static str) {
        let node = self.nodes.get_mut(name).unwrap();
        let secret: SecretKey = key(name);
        let open: Vec<DocumentId> = node.unacknowledged(secret.public()).collect();
        for id in open {
            if let Ok((events, ack)) = node.acknowledge(Timestamp::from_ms(0), &secret, id) {
                node.absorb(events);
                self.acks.push(ack);
            }
        }
    }

    fn propose(&mut self) {
        let witnesses = AFTER.map(|name| key(name).public()).to_vec();
        let change = CharterChange { witnesses: Some(witnesses), ..CharterChange::default() };
        self.proposal = Some(self.empty.draft_charter(&change).unwrap());
        self.approve("w1");
    }

    fn approve(&mut self, name: &'static str) {
        let Some(bytes) = self.proposal.clone() else { return };
        let node = self.nodes.get_mut(name).unwrap();
        if let Ok((events, approval)) = node.approve_charter(&key(name), &bytes) {
            node.absorb(events);
            self.approvals.insert(name, approval);
        }
    }

    fn give_approvals(&mut self, name: &str) {
        let Some(bytes) = self.proposal.clone() else { return };
        let node = self.nodes.get_mut(name).unwrap();
        for approval in self.approvals.values() {
            if let Ok(events) = node.receive_proposal(&bytes, std::slice::from_ref(approval)) {
                node.absorb(events);
            }
        }
    }

    /// Everybody is reached again: approvals, entries and acknowledgements until nothing is new.
    fn deliver_everything(&mut self) {
        let names: Vec<&'static str> = self.nodes.keys().copied().collect();
        // An entry is offered once more after the acknowledgements that came last.
        let mut quiet = 0;
        while quiet < 2 {
            let before = (self.acks.len(), self.finals());
            for name in ["w1", "w2", "w3"] {
                self.approve(name);
            }
            for name in &names {
                self.give_approvals(name);
                let carried: Vec<_> = self.nodes[name].carried().cloned().collect();
                for entry in carried {
                    let node = self.nodes.get_mut(name).unwrap();
                    if let Ok(events) = node.receive_entry(entry.bytes(), entry.signature()) {
                        node.absorb(events);
                    }
                }
                (0..self.entries.len()).for_each(|index| self.give_entry(name, index));
                self.acks.sort_by_key(|ack| (ack.entry, ack.charter_version, ack.witness));
                self.acks.dedup();
                (0..self.acks.len()).for_each(|index| self.give_ack(name, index));
                self.give_certificates(name);
                self.acknowledge(name);
            }
            self.acks.sort_by_key(|ack| (ack.entry, ack.charter_version, ack.witness));
            self.acks.dedup();
            quiet = if before == (self.acks.len(), self.finals()) { quiet + 1 } else { 0 };
        }
    }

    fn finals(&self) -> usize {
        self.nodes.values().map(Lattice::final_count).sum()
    }

    /// Entries with a full certificate, by what the witnesses signed and nothing else.
    fn certified(&self) -> BTreeSet<DocumentId> {
        let mut signers = BTreeMap::<(DocumentId, u32), BTreeSet<_>>::new();
        for ack in &self.acks {
            let of = |names: &[&str]| names.iter().any(|name| key(name).public() == ack.witness);
            let witness = match ack.charter_version {
                1 => of(&["w1", "w2", "w3", "w4"]),
                _ => of(&AFTER),
            };
            if witness {
                signers.entry((ack.entry, ack.charter_version)).or_default().insert(ack.witness);
            }
        }
        let full = signers.into_iter().filter(|(_, signers)| signers.len() >= 3);
        full.map(|((entry, _), _)| entry).collect()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let certified = self.certified();
        let mut slots = BTreeMap::<Slot, DocumentId>::new();
        for (entry, sent) in self.entries.iter().filter(|(_, sent)| certified.contains(&sent.id)) {
            let other = slots.insert(entry.slot(), sent.id);
            prop_assert!(other.is_none_or(|other| other == sent.id), "two certified rivals");
        }
        let hash = self.nodes["seen"].state_hash();
        for (name, node) in &self.nodes {
            prop_assert_eq!(node.charter().version, 2, "{}", name);
            prop_assert!(node.contradictions().next().is_none());
            prop_assert_eq!(node.totals().loss, 0);
            node.check_invariants().map_err(TestCaseError::fail)?;
            for id in &certified {
                let known = self.entries.iter().any(|(_, sent)| sent.id == *id);
                prop_assert!(!known || node.final_entry(*id).is_some(), "{} lost {}", name, id);
            }
            prop_assert_eq!(node.state_hash(), hash);
            prop_assert_eq!(node.summary(), self.nodes["seen"].summary());
        }
        // What each honest witness signed in one slot under both charters is one entry.
        for name in ["w1", "w2", "w3", "w5", "w6"] {
            let mut promised = BTreeMap::<Slot, DocumentId>::new();
            for ack in self.acks.iter().filter(|ack| ack.witness == key(name).public()) {
                let Some((entry, _)) = self.entries.iter().find(|(_, sent)| sent.id == ack.entry)
                else {
                    continue;
                };
                let before = promised.insert(entry.slot(), ack.entry);
                prop_assert!(before.is_none_or(|before| before == ack.entry), "{} lied", name);
            }
        }
        Ok(())
    }
}
