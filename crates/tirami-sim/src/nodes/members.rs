//! Who takes part: members, newcomers, providers, liars.

use std::rc::Rc;

use tirami_core::{ModelDigest, ModelShape, Ppm, SecretKey, Timestamp, Trm};
use tirami_kernel::Input;
use tirami_kernel::mesh::{Admission, MeshInput, MeshSettings, OwnOffer};
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::Command;
use tirami_ledger::lattice::{EntryKind, Keep, Slot, Sponsor, WITNESSES_MAX};
use tirami_proto::{Offer, PeerAddress, Via};

use super::founding::{Founded, Founding, WELCOME, found};
use super::links::via;
use super::node::{Archive, FALSE_WITNESSES, LIES, Node, Role, keep};
use super::world::{Task, Then, World};
use super::{Bug, NodesConfig};
use crate::dice::Dice;
use crate::law::Law;

/// The model that every provider serves.
pub(super) const MODEL: ModelDigest = ModelDigest::from_bytes([9; 32]);
/// One token costs 1 TRM at the price of one.
pub(super) const SHAPE: ModelShape = ModelShape {
    parameters_active: 500_000_000,
    layers: 0,
    attention_width: 0,
    context_max: 4_096,
};
/// Jobs of other nodes that a provider does at once.
pub(super) const SLOTS: u16 = 8;
/// How many members witness.
const WITNESSES: [usize; 4] = [1, 3, 4, 7];
/// Newcomers without an invite, which a member sponsors.
const SPONSORED: usize = 2;
/// When members look for newcomers to sponsor: there is a checkpoint by then.
const SPONSOR_MS: u64 = 62_000;
const SECRET: [u8; 32] = [42; 32];
/// How often some node writes a snapshot.
pub(super) const SNAPSHOT_MS: u64 = 3_000;
/// An owner who invited as many as come.
const EVERYBODY: Admission =
    Admission { enrolled_max: u64::MAX, expires_at: Timestamp::from_ms(u64::MAX) };

/// Draws a mesh that fits the configuration.
///
/// # Errors
///
/// When the founding breaks a rule.
pub(super) fn draw(
    config: &NodesConfig,
    dice: &mut Dice,
) -> Result<(Founding, Vec<Node>, Law), String> {
    let count = config.nodes.max(8);
    let newcomers = if config.calm { 0 } else { (count / 6).clamp(1, 8) + SPONSORED };
    let members = count - newcomers;
    let keys: Vec<SecretKey> = (0..count).map(|_| dice.key()).collect();
    let drawn = WITNESSES[dice.index(WITNESSES.len())];
    let witnesses = config.witnesses.unwrap_or(drawn).clamp(1, members.min(WITNESSES_MAX));
    let founding = found(dice, &keys[..members], (witnesses, count))?;
    let mut nodes = Vec::with_capacity(count);
    for (at, key) in keys.iter().enumerate() {
        let bootstrap = (0..3).filter_map(|_| address(&keys, dice.index(members))).collect();
        let is_sponsored = !config.calm && at + SPONSORED >= count;
        let settings = MeshSettings {
            secret: (!is_sponsored).then_some(SECRET),
            admission: Some(EVERYBODY),
            public: true,
            bootstrap,
            addresses: vec![via(at)],
            agent: "sim/1".to_owned(),
            faucet: None,
            keep: config.keep,
        };
        let is_member = at < members;
        let keeps_all = config.keep == Keep::All || at < witnesses;
        let start = match (is_member, keeps_all) {
            (true, true) => &founding.lattice,
            (true, false) => &founding.offices,
            (false, _) => &founding.bare,
        };
        let mut node = Node::new((key.clone(), dice.key()), Rc::clone(start), settings);
        node.serves = is_member && at % 4 == 1;
        node.flaky = !config.calm && node.serves && at % 40 == 5;
        node.skew_ms = dice.below(400);
        nodes.push(node);
    }
    let mut law = Law::default();
    law.within = true;
    if !config.calm {
        let drawn = dice.index(tolerated(&founding, witnesses) + 1);
        let dishonest = config.dishonest.unwrap_or(drawn).min(witnesses);
        let mut manners = (FALSE_WITNESSES.to_vec(), LIES.to_vec());
        if config.bug == Bug::Conspire {
            manners = (vec![Role::AcknowledgesAll], vec![Role::DoubleSigns]);
        }
        let false_witnesses = &mut nodes[witnesses - dishonest..witnesses];
        cast_witnesses(false_witnesses, &mut law, &manners.0, dice);
        cast_liars(&mut nodes[..members], &mut law, (witnesses, count / 10), &manners.1, dice);
    }
    Ok((founding, nodes, law))
}

/// How many dishonest witnesses change nothing (MONEY §2).
fn tolerated(founding: &Founding, witnesses: usize) -> usize {
    let quorum = usize::from(founding.lattice.charter().quorum);
    (2 * quorum).saturating_sub(witnesses + 1)
}

/// The founder, who is clerk and registrar too, is none of them unless all witnesses are.
fn cast_witnesses(dishonest: &mut [Node], law: &mut Law, manners: &[Role], dice: &mut Dice) {
    for witness in dishonest {
        witness.role = manners[dice.index(manners.len())];
        law.liars.insert(witness.key.public());
    }
}

fn cast_liars(
    members: &mut [Node],
    law: &mut Law,
    (witnesses, liars): (usize, usize),
    lies: &[Role],
    dice: &mut Dice,
) {
    let mut free: Vec<usize> = (witnesses..members.len()).collect();
    let first = dice.index(lies.len());
    for role in lies.iter().cycle().skip(first).take(liars.max(1)) {
        // Who over-counts has to serve; the others only have to be there.
        let fits = |at: &usize| {
            let node = &members[*at];
            if *role == Role::OverCounts { node.serves && !node.flaky } else { !node.serves }
        };
        let Some(place) = free.iter().position(fits) else { continue };
        let at = free.swap_remove(place);
        members[at].role = *role;
        if *role == Role::DoubleSigns {
            law.double_signers.insert(members[at].party);
        }
    }
}

fn address(keys: &[SecretKey], at: usize) -> Option<PeerAddress> {
    let via: Via = via(at).parse().ok()?;
    Some(PeerAddress { key: keys[at].public(), via: vec![via] })
}

/// What a provider risks.
fn policy() -> ServingPolicy {
    let trm = |trm: u64| Trm::from_micro(trm * 1_000_000);
    ServingPolicy {
        exposure_start: trm(400),
        exposure_max: trm(3_000),
        exposure_unknown_day: trm(2_000),
        jobs_max: u32::from(SLOTS),
        paused: false,
        ..ServingPolicy::default()
    }
}

impl World {
    /// Plans what happens by itself.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        let params = self.founding.lattice.charter().params;
        self.tally.params = Some((self.founding.lattice.charter().line_total, params.fee_ppm));
        for Founded { entry, wire } in &self.founding.entries {
            self.tally.add(entry.id(), entry.entry())?;
            let slot = entry.entry().slot();
            self.slots.insert(entry.id(), slot);
            let is_certified = wire.certificate.is_some();
            self.entries.insert((entry.id(), is_certified), Rc::clone(wire));
        }
        let members = self.founding.lattice.chains().count();
        let (witnesses, offices) =
            (self.founding.lattice.charter().witnesses.len(), self.founding.lattice.offices());
        let (mut all, mut some) = (Archive::new(), Archive::new());
        for Founded { entry, wire } in &self.founding.entries {
            let Slot { chain, seq } = entry.entry().slot();
            keep(&mut all, chain, seq, Rc::clone(wire));
            if offices.contains(&chain) {
                keep(&mut some, chain, seq, Rc::clone(wire));
            } else if self.config.keep == Keep::Own
                && let Some(at) = self.by_party.get(&chain).filter(|at| **at >= witnesses)
            {
                self.nodes[*at].founded.push(Rc::clone(wire));
                self.nodes[*at].keep(chain, seq, Rc::clone(wire));
            }
        }
        let (all, some) = (Rc::new(all), Rc::new(some));
        for at in 0..self.nodes.len() {
            let keeps_all = self.config.keep == Keep::All || at < witnesses;
            if at < members {
                self.nodes[at].founding = Rc::clone(if keeps_all { &all } else { &some });
            }
            let late = if at < members { 0 } else { self.dice.between(8_000, 40_000) };
            let pause = self.dice.below(800) + late;
            self.plan(pause, Task::Start { node: at });
            self.plan(pause + 1_500, Task::Offer { node: at });
            let first = self.dice.below(self.config.pause_ms.max(2));
            self.plan(pause + 4_000 + first, Task::Ask { node: at });
            if !self.nodes[at].is_honest() {
                self.plan(pause + 6_000, Task::Lie { node: at });
            }
            if self.nodes[at].settings.secret.is_none() {
                self.plan(SPONSOR_MS, Task::Sponsor { newcomer: at });
            }
        }
        if !self.config.calm {
            self.links.storm = true;
            // Early enough that a short run sees both.
            self.plan((self.config.seconds * 250).min(15_000), Task::PowerCut);
            self.plan((self.config.seconds * 400).min(25_000), Task::Split { heal: false });
            self.plan(SNAPSHOT_MS, Task::Snapshot);
        }
        Ok(())
    }

    /// What an owner sets up, as far as it is not there: a power cut may have taken it.
    pub(super) fn settle_in(&mut self, at: usize) -> Result<(), String> {
        let (agent, serves) = (self.nodes[at].agent.public().agent(), self.nodes[at].serves);
        let Some(ledger) = self.nodes[at].ledger() else { return Ok(()) };
        let book = ledger.book();
        let (known, set) = (book.agents().contains_key(&agent), *book.serving() == policy());
        if !known {
            let name = "agent".to_owned();
            self.ask(at, Command::CreateAgent { agent, name }, Then::Nothing)?;
        }
        if serves && !set {
            self.ask(at, Command::SetServing(policy()), Then::Nothing)?;
        }
        Ok(())
    }

    /// A provider says what it serves.
    pub(super) fn offer(&mut self, at: usize) -> Result<(), String> {
        if !self.nodes[at].serves {
            return Ok(());
        }
        self.settle_in(at)?;
        let Some(ledger) = self.nodes[at].ledger() else { return Ok(()) };
        let running = u16::try_from(ledger.book().served_running()).unwrap_or(u16::MAX);
        let offer = OwnOffer {
            price: ledger.book().price(),
            cached_price: ledger.book().price(),
            slots_free: SLOTS.saturating_sub(running),
            slots: SLOTS,
            queue: 0,
            models: vec![Offer {
                model: MODEL,
                name: "sim:1b".to_owned(),
                quantisation: "Q4_K_M".to_owned(),
                context_tokens: SHAPE.context_max,
                shape: SHAPE,
                tokens_per_second_milli: 40_000,
                embedding_width: 0,
                image_tokens_max: 0,
                build: "sim 1".to_owned(),
            }],
            region: "eu".to_owned(),
            http_endpoint: None,
            serving: true,
        };
        self.give(at, Input::Mesh(MeshInput::Offer(Some(offer))))
    }

    /// A member locks TRM for a newcomer, once there is a checkpoint to name.
    pub(super) fn sponsor(&mut self, newcomer: usize) -> Result<(), String> {
        let party = self.nodes[newcomer].party;
        let sponsor = (0..self.nodes.len())
            .find(|at| self.nodes[*at].is_honest() && self.nodes[*at].kernel.is_some());
        let known = sponsor.and_then(|at| self.nodes[at].lattice());
        let done = known.is_some_and(|lattice| lattice.grants(party).next().is_some());
        let checkpoint = known.and_then(|lattice| lattice.last_checkpoint());
        if done {
            return Ok(());
        }
        if let (Some(at), Some((_, checkpoint, _))) = (sponsor, checkpoint) {
            let kind = EntryKind::from(Sponsor { newcomer: party, amount: WELCOME, checkpoint });
            self.ask(at, Command::SignEntry { kind }, Then::Nothing)?;
        }
        self.plan(5_000, Task::Sponsor { newcomer });
        Ok(())
    }
}

/// What tokens cost at a price.
pub(super) fn cost(tokens: u32, price: Ppm) -> Trm {
    SHAPE.work(0, tokens).cost_ceil(price)
}
