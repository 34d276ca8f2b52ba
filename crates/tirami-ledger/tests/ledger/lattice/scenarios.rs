//! Runs every file of `tests/scenarios/lattice`: the rules of MONEY §1–6 and 12 as sentences.
//!
//! After each step TRM is conserved and every invariant holds; a refused step changed not one
//! byte. After the last one, the same events give the same lattice, and the same final entries
//! in the opposite order give the same shared state.

#![expect(clippy::disallowed_methods, reason = "the scenarios are files")]

use std::path::Path;

use tirami_core::{DocumentId, JobId, PartyId, Ppm, Timestamp, Trm};
use tirami_ledger::lattice::{
    Acknowledgement, Charter, Collect, Ending, Enrol, Entry, EntryKind, Lattice, Line, Open, Pay,
    PayItem, Rekey, Settle, Slot, Sponsor, Transfer, Unsponsor,
};

use super::world::{World, certificate, charter, encoded, found, key, party, sign, trm};
use crate::script::{self, Step};

#[test]
fn every_scenario_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/lattice");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 40, "{} scenarios", files.len());
    let broken: Vec<String> = files
        .into_iter()
        .filter_map(|file| {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).unwrap();
            std::panic::catch_unwind(|| run(&name, &text)).is_err().then_some(name)
        })
        .collect();
    assert!(broken.is_empty(), "these scenarios do not hold: {broken:#?}");
}

fn run(name: &str, text: &str) {
    let steps = script::read(text);
    let mut play = Play::begin(&steps[0]);
    for step in &steps[1..] {
        let place = format!("{name}, line {}", step.line);
        let before = (play.world.lattice.state_hash(), encoded(&play.world.lattice));
        let (outcome, refused) = play.step(step, &place);
        let wanted = step.expect.as_deref().unwrap_or("final");
        assert_eq!(outcome, wanted, "{place}");
        let lattice = &play.world.lattice;
        if refused {
            assert_eq!(lattice.state_hash(), before.0, "{place}: a refusal changed the hash");
            assert!(encoded(lattice) == before.1, "{place}: a refusal changed the state");
        }
        lattice.check_invariants().unwrap_or_else(|broken| panic!("{place}: {broken}"));
        let totals = lattice.totals();
        assert_eq!(
            totals.free + totals.locked + totals.transit,
            totals.minted - totals.burned + totals.loss,
            "{place}"
        );
    }
    check_replay(name, &play.world);
}

/// Events rebuild the lattice; a snapshot is the lattice; the order of final entries is nothing.
fn check_replay(name: &str, world: &World) {
    let mut replayed = world.first.clone();
    for event in &world.events {
        let stored = minicbor::to_vec(event).unwrap();
        replayed.apply(&minicbor::decode(&stored).unwrap());
    }
    assert!(replayed == world.lattice, "{name}: replaying gives another lattice");
    let snapshot: Lattice = minicbor::decode(&encoded(&world.lattice)).unwrap();
    assert!(snapshot == world.lattice, "{name}: a snapshot gives another lattice");
    if world.lattice.charter().version > 1 {
        return;
    }
    let mut backwards = world.first.clone();
    // What rests on too much that is unknown is not kept: it is sent again until nothing is new.
    let mut before = None;
    while before != Some(backwards.final_count()) {
        before = Some(backwards.final_count());
        for (bytes, signature, certificate) in world.certified().iter().rev() {
            let events = match certificate {
                Some(certificate) => backwards.receive_certified(bytes, *signature, certificate),
                None => backwards.receive_entry(bytes, *signature),
            };
            backwards.absorb(events.unwrap());
        }
    }
    assert_eq!(backwards.state_hash(), world.lattice.state_hash(), "{name}: order mattered");
    assert_eq!(backwards.totals(), world.lattice.totals(), "{name}");
    backwards.check_invariants().unwrap();
}

struct Play {
    world: World,
    charters: std::collections::BTreeMap<String, Charter>,
    remembered: Option<tirami_core::Digest>,
    last_job: u8,
}

/// What a step came to, and whether it was refused.
type Outcome = (String, bool);

impl Play {
    fn begin(step: &Step) -> Self {
        assert_eq!(step.verb, "mesh", "line {}: a scenario begins with mesh", step.line);
        let number = |name: &str, default: u8| {
            step.named.get(name).map_or(default, |text| text.parse().unwrap())
        };
        let witnesses = number("witnesses", 1);
        let quorum = number("quorum", Charter::default_quorum(witnesses));
        let total = step.named.get("line_total").map_or("1000", String::as_str);
        let mut charter = charter(witnesses, quorum, trm(total));
        if let Some(fee) = step.named.get("fee_ppm") {
            charter.params.fee_ppm = Ppm::new(fee.parse().unwrap());
        }
        if let Some(welcome) = step.named.get("welcome") {
            charter.params.welcome = trm(welcome);
        }
        let world = World::new(found(charter));
        Self { world, charters: Default::default(), remembered: None, last_job: 0 }
    }

    fn step(&mut self, step: &Step, place: &str) -> Outcome {
        let done = |text: &str| (text.to_owned(), false);
        match step.verb.as_str() {
            "open" | "enrol" | "line" | "pay" | "transfer" | "collect" | "rekey" | "sponsor"
            | "settle" | "unsponsor" => {
                let kind = self.kind(step);
                let chain = step.named.get("chain").map_or(&step.args[0], |chain| chain);
                let chain = if step.verb == "enrol" && !step.named.contains_key("chain") {
                    self.world.lattice.charter().registrar
                } else {
                    party(chain)
                };
                self.entry(step, chain, kind, place)
            }
            "send" => self.send(step),
            "ack" => self.ack(step),
            "forge" => self.forge(step),
            "checkpoint" => self.checkpoint(step),
            "cut" => self.cut(step),
            "time" => {
                self.world.now = Timestamp::from_ms(step.args[0].parse().unwrap());
                done("final")
            }
            "charter" => {
                self.write_charter(step);
                done("final")
            }
            "approve" | "adopt" => self.change_charter(step),
            "remember" => {
                self.remembered = Some(self.world.lattice.state_hash());
                done("final")
            }
            _ => (self.look(step, place), false),
        }
    }

    fn id(&self, name: &str) -> DocumentId {
        let known = self.world.entries.get(name);
        known.map_or_else(
            || DocumentId::from_bytes(*tirami_core::Digest::of(name.as_bytes()).as_bytes()),
            |sent| sent.id,
        )
    }

    fn kind(&mut self, step: &Step) -> EntryKind {
        let named = |name: &str| step.named.get(name);
        match step.verb.as_str() {
            "open" => Open {
                sponsor: named("sponsor").map(|name| self.id(name)),
                enrol: named("enrol").map(|name| self.id(name)),
                recovery: named("recovery").map(|name| key(name).public()),
            }
            .into(),
            "enrol" => Enrol {
                party: party(&step.args[0]),
                owner: named("owner").cloned().unwrap_or_default(),
                line: trm(&step.args[1]),
            }
            .into(),
            "line" => Line { enrol: self.id(&step.args[1]) }.into(),
            "pay" => self.pay(step),
            "transfer" => {
                Transfer { payee: party(&step.args[1]), amount: trm(&step.args[2]) }.into()
            }
            "collect" => {
                let mut ids: Vec<_> = step.args[1..].iter().map(|name| self.id(name)).collect();
                if let Some(count) = named("filler") {
                    let count: u32 = count.parse().unwrap();
                    ids.extend((0..count).map(|n| self.id(&format!("filler {n}"))));
                }
                if self.takes_all(step) {
                    let all = self.world.lattice.uncollected(party(&step.args[0]));
                    ids = all.map(|(id, _)| id).collect();
                }
                Collect { ids, checkpoint: named("via").map(|name| self.id(name)) }.into()
            }
            "sponsor" => Sponsor {
                newcomer: party(&step.args[1]),
                amount: trm(&step.args[2]),
                checkpoint: self.id(&step.named["at"]),
            }
            .into(),
            "settle" => Settle {}.into(),
            "unsponsor" => Unsponsor {
                lock: self.id(&step.args[1]),
                settle: self.id(&step.args[2]),
                checkpoint: self.id(&step.named["at"]),
            }
            .into(),
            _ => Rekey { key: key(&step.args[1]).public() }.into(),
        }
    }

    fn takes_all(&self, step: &Step) -> bool {
        step.args.get(1).is_some_and(|word| word == "all")
    }

    fn pay(&mut self, step: &Step) -> EntryKind {
        let items: Vec<PayItem> = step.args[2..]
            .iter()
            .map(|amount| {
                self.last_job += u8::from(!step.named.contains_key("same_job"));
                PayItem { job: JobId::from_bytes([self.last_job; 16]), amount: trm(amount) }
            })
            .collect();
        let items = match step.named.get("items") {
            None => items,
            Some(count) => (0..count.parse().unwrap())
                .map(|n: u8| PayItem { job: JobId::from_bytes([n; 16]), amount: items[0].amount })
                .collect(),
        };
        let fee_ppm = self.world.lattice.charter().params.fee_ppm;
        let mut pay = Pay::new(party(&step.args[1]), items, fee_ppm);
        if let Some(fee) = step.named.get("fee") {
            pay.fee = trm(fee);
        }
        pay.into()
    }

    /// Writes an entry, receives it unless `keep`, has every honest witness acknowledge it unless
    /// `pending`.
    fn entry(&mut self, step: &Step, chain: PartyId, kind: EntryKind, place: &str) -> Outcome {
        let mut entry = self.world.write(chain, kind);
        let drafted = self.world.lattice.draft(chain, entry.time_ms, entry.kind.clone());
        let by_hand = self.amend(step, &mut entry);
        let current = self.world.lattice.chain(chain).map_or(chain.into(), |chain| chain.key());
        let by = step.named.get("by").cloned().unwrap_or_else(|| self.world.name_of(current));
        let sent = sign(&self.world.lattice, &entry, &key(&by));
        let name = step.named.get("as").cloned().unwrap_or_else(|| format!("{}", sent.id));
        self.world.entries.insert(name.clone(), sent.clone());
        if step.args.iter().any(|arg| arg == "keep") || step.named.contains_key("keep") {
            return ("kept".to_owned(), false);
        }
        let received = self.world.lattice.receive_entry(&sent.bytes, sent.signature);
        if !by_hand {
            match (&drafted, &received) {
                (Ok(drafted), Ok(_)) => assert_eq!(*drafted, entry, "{place}"),
                (Err(drafted), Err(received)) => assert_eq!(drafted, received, "{place}"),
                (Err(_), Ok(_)) => {}
                (Ok(_), Err(received)) => panic!("{place}: drafted, then refused: {received}"),
            }
        }
        match received {
            Err(refused) => (short(&refused), true),
            Ok(events) => {
                self.world.absorb(events);
                if !step.named.contains_key("pending") {
                    self.everybody_acknowledges(sent.id);
                }
                (self.world.status(sent.id).to_owned(), false)
            }
        }
    }

    fn amend(&self, step: &Step, entry: &mut Entry) -> bool {
        let named = |name: &str| step.named.get(name);
        if let Some(seq) = named("seq") {
            entry.seq = seq.parse().unwrap();
        }
        if let Some(prev) = named("prev") {
            entry.prev = (prev != "none").then(|| self.id(prev));
        }
        if let Some(balance) = named("balance") {
            entry.balance = Trm::parse_signed(balance).unwrap();
        }
        if let Some(time) = named("time_ms") {
            entry.time_ms = Timestamp::from_ms(time.parse().unwrap());
        }
        ["seq", "prev", "balance", "time_ms", "by"].iter().any(|name| named(name).is_some())
    }

    fn everybody_acknowledges(&mut self, id: DocumentId) {
        for witness in self.world.witnesses() {
            if let Ok((events, _)) =
                self.world.lattice.acknowledge(self.world.now, &key(&witness), id)
            {
                self.world.absorb(events);
            }
        }
    }

    /// `send ENTRY` or `send ENTRY by=w1,w2,w3`: without or with a certificate.
    fn send(&mut self, step: &Step) -> Outcome {
        let sent = self.world.entries[&step.args[0]].clone();
        let lattice = &self.world.lattice;
        let named = |name: &str| step.named.get(name);
        let version = named("version").map_or(1, |version| version.parse().unwrap());
        let signature = match named("signed_by") {
            None => sent.signature,
            Some(name) => key(name).sign(b"something else"),
        };
        let events = match named("by") {
            None => lattice.receive_entry(&sent.bytes, signature),
            Some(by) => {
                let by: Vec<&str> = by.split(',').collect();
                let mut made = certificate(lattice, version, sent.id, &by);
                if let Some(other) = named("for") {
                    made = certificate(lattice, version, self.id(other), &by);
                }
                if named("broken").is_some() {
                    made.acknowledgements[0].signature = sent.signature;
                }
                lattice.receive_certified(&sent.bytes, signature, &made)
            }
        };
        match events {
            Err(refused) => (short(&refused), true),
            Ok(events) => {
                self.world.absorb(events);
                (self.world.status(sent.id).to_owned(), false)
            }
        }
    }

    fn ack(&mut self, step: &Step) -> Outcome {
        let id = self.id(&step.args[1]);
        match self.world.lattice.acknowledge(self.world.now, &key(&step.args[0]), id) {
            Err(refused) => (short(&refused), true),
            Ok((events, _)) => {
                self.world.absorb(events);
                (self.world.status(id).to_owned(), false)
            }
        }
    }

    /// `forge w1 ENTRY`: the witness signs whatever it promised before.
    fn forge(&mut self, step: &Step) -> Outcome {
        let id = self.id(&step.args[1]);
        let mesh = self.world.lattice.mesh();
        let version = step.named.get("version").map_or(1, |version| version.parse().unwrap());
        let mut ack = Acknowledgement::sign(mesh, version, id, &key(&step.args[0]));
        if step.named.contains_key("broken") {
            ack.charter_version = 1;
            ack.signature = key("eve").sign(b"nothing");
        }
        match self.world.lattice.receive_acknowledgement(&ack) {
            Err(refused) => (short(&refused), true),
            Ok(events) => {
                self.world.absorb(events);
                (self.world.status(id).to_owned(), false)
            }
        }
    }

    /// `checkpoint as=c1`: drafted by the clerk if due, changed by hand where the line says so.
    fn checkpoint(&mut self, step: &Step) -> Outcome {
        let Some(mut entry) = self.world.lattice.draft_checkpoint(self.world.now) else {
            return ("not due".to_owned(), false);
        };
        let named = |name: &str| step.named.get(name);
        if let EntryKind::Checkpoint(fields) = &mut entry.kind {
            if let Some(number) = named("number") {
                fields.number = number.parse().unwrap();
            }
            if let Some(time) = named("at") {
                fields.time = Timestamp::from_ms(time.parse().unwrap());
            }
            if let Some(burned) = named("burned") {
                fields.burned = trm(burned);
            }
            if let Some(minted) = named("minted") {
                fields.minted = trm(minted);
            }
            if let Some(previous) = named("previous") {
                fields.previous = (previous != "none").then(|| self.id(previous));
            }
            if named("cut").is_some() {
                fields.cut = tirami_core::Digest::of(b"other heads");
            }
        }
        if let Some(chain) = named("chain") {
            entry = self.world.write(party(chain), entry.kind);
        }
        let author = self.world.name_of(entry.chain.into());
        let sent = sign(&self.world.lattice, &entry, &key(&author));
        let name = named("as").cloned().unwrap_or_else(|| sent.id.to_string());
        self.world.entries.insert(name, sent.clone());
        match self.world.lattice.receive_entry(&sent.bytes, sent.signature) {
            Err(refused) => (short(&refused), true),
            Ok(events) => {
                self.world.absorb(events);
                if named("pending").is_none() {
                    self.everybody_acknowledges(sent.id);
                }
                (self.world.status(sent.id).to_owned(), false)
            }
        }
    }

    /// `cut CHECKPOINT PARTY:SEQ …`: the heads that a checkpoint covers arrive.
    fn cut(&mut self, step: &Step) -> Outcome {
        let mut heads: Vec<Slot> = step.args[1..].iter().map(|text| slot(text)).collect();
        heads.sort();
        let id = self.id(&step.args[0]);
        match self.world.lattice.receive_cut(id, &heads) {
            Err(refused) => (short(&refused), true),
            Ok(events) => {
                self.world.absorb(events);
                ("known".to_owned(), false)
            }
        }
    }

    fn write_charter(&mut self, step: &Step) {
        let lattice = &self.world.lattice;
        let mut next = lattice.charter().clone();
        next.version += 1;
        next.previous = Some(lattice.charter_id());
        next.reopens = Vec::new();
        for (name, value) in &step.named {
            match name.as_str() {
                "witnesses" => {
                    next.witnesses = value.split(',').map(|name| key(name).public()).collect();
                }
                "quorum" => next.quorum = value.parse().unwrap(),
                "version" => next.version = value.parse().unwrap(),
                "previous" => next.previous = None,
                "registrar" => next.registrar = party(value),
                "clerk" => next.clerk = party(value),
                "welcome" => next.params.welcome = trm(value),
                "fee_ppm" => next.params.fee_ppm = Ppm::new(value.parse().unwrap()),
                "line_total" => next.line_total = trm(value),
                "reopens" => next.reopens = value.split(',').map(slot).collect(),
                other => panic!("line {}: a charter has no {other}", step.line),
            }
        }
        self.charters.insert(step.args[0].clone(), next);
    }

    /// `approve w1 CHARTER` or `adopt CHARTER by=w1,w2`.
    fn change_charter(&mut self, step: &Step) -> Outcome {
        let charter = &self.charters[step.args.last().unwrap()];
        let lattice = &self.world.lattice;
        if step.verb == "approve" {
            return match lattice.propose_charter(&key(&step.args[0]), charter) {
                Err(refused) => (short(&refused), true),
                Ok((events, _)) => {
                    self.world.absorb(events);
                    ("approved".to_owned(), false)
                }
            };
        }
        let by = step.named["by"].split(',').map(key);
        let approvals: Result<Vec<_>, _> =
            by.map(|key| lattice.propose_charter(&key, charter)).collect();
        let adopted = approvals.and_then(|approvals| {
            let approvals: Vec<_> = approvals.into_iter().map(|(_, approval)| approval).collect();
            lattice.receive_charter(&Lattice::charter_bytes(charter)?, &approvals)
        });
        match adopted {
            Err(refused) => (short(&refused), true),
            Ok(events) => {
                self.world.absorb(events);
                ("adopted".to_owned(), false)
            }
        }
    }

    /// Looks at the lattice and changes nothing.
    fn look(&self, step: &Step, place: &str) -> String {
        let lattice = &self.world.lattice;
        let totals = lattice.totals();
        let who = || party(&step.args[0]);
        let chain = || lattice.chain(who());
        match step.verb.as_str() {
            "balance" => Trm::signed_text(chain().map_or(0, |c| c.balance()).into()),
            "signed" => Trm::signed_text(lattice.signed_balance(who()).into()),
            "line_of" => lattice.line(who()).to_string(),
            "payable" => Trm::signed_text(lattice.uncollected_sum(who())),
            "free" => Trm::signed_text(totals.free),
            "transit" => Trm::signed_text(totals.transit),
            "burned" => Trm::signed_text(totals.burned),
            "loss" => Trm::signed_text(totals.loss),
            "locked" => Trm::signed_text(totals.locked),
            "floor_of" => lattice.floor(who()).to_string(),
            "welcome_end" => match lattice.welcome_of(self.id(&step.args[0])).unwrap().end {
                None => "open".to_owned(),
                Some((Ending::Settled, _)) => "settled".to_owned(),
                Some((Ending::Defaulted { owed }, _)) => format!("{owed} owed"),
            },
            "defaulted" => yes(lattice.has_defaulted(who())),
            "next_collect" => match lattice.next_collect(who()) {
                None => "nothing".to_owned(),
                Some(collect) => {
                    let at = if collect.checkpoint.is_some() { " by a checkpoint" } else { "" };
                    format!("{}{at}", collect.ids.len())
                }
            },
            "length" => chain().map_or(0, |chain| chain.next_seq()).to_string(),
            "key_of" => chain().map_or("none".to_owned(), |c| self.world.name_of(c.key())),
            "frozen" => match chain().and_then(|chain| chain.frozen()) {
                Some(frozen) => format!("at {} by {}", frozen.seq, frozen.entries.len()),
                None => "no".to_owned(),
            },
            "guilty" => {
                let mut all = lattice.contradictions().filter(|(party, ..)| *party == who());
                let names = all.next().map(|(_, _, guilty)| guilty).unwrap_or_default();
                let mut names: Vec<_> = names.iter().map(|key| self.world.name_of(*key)).collect();
                names.sort();
                names.join(",")
            }
            "proof" => yes(lattice.double_sign_proof(who()).is_some()),
            "closed" => yes(lattice.is_closed(slot(&step.args[0]))),
            "status" => self.world.status(self.id(&step.args[0])).to_owned(),
            "held" => format!("{} pending {} parked", lattice.held().0, lattice.held().1),
            "hash" => match self.remembered == Some(lattice.state_hash()) {
                true => "same".to_owned(),
                false => "changed".to_owned(),
            },
            "clock" => match lattice.last_checkpoint() {
                Some((number, _, time)) => format!("{number} at {}", time.ms()),
                None => "none".to_owned(),
            },
            "version" => lattice.charter().version.to_string(),
            "tolerated" => format!(
                "{} dishonest, {} away",
                lattice.charter().witnesses_tolerated(),
                lattice.charter().away_tolerated()
            ),
            other => panic!("{place}: there is no step {other}"),
        }
    }
}

fn slot(text: &str) -> Slot {
    let (chain, seq) = text.split_once(':').unwrap();
    Slot { chain: party(chain), seq: seq.parse().unwrap() }
}

fn yes(answer: bool) -> String {
    if answer { "yes" } else { "no" }.to_owned()
}

/// The name of a refusal, without its numbers; what one refusal wraps stands alone.
fn short(refusal: &impl std::fmt::Debug) -> String {
    let text = format!("{refusal:?}");
    let text = text.trim_start_matches("Key(").trim_start_matches("Invalid(");
    text.chars().take_while(char::is_ascii_alphanumeric).collect()
}
