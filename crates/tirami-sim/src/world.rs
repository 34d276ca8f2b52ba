//! The loop: virtual time, what is planned, and the way of a command from decision to reply.

use std::collections::BTreeMap;

use tirami_core::{Digest, DocumentId, Timestamp};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::event::Event;
use tirami_ledger::lattice::{Charter, CutRejection, Lattice, LatticeEvent, SignedEntry};

use crate::dice::Dice;
use crate::foes::Foes;
use crate::law::Law;
use crate::mesh::Mesh;
use crate::network::{Message, Network};
use crate::oracle::Fact;
use crate::party::{CrashPoint, Job, Waiting};
use crate::report::{Counts, Failure, Report};
use crate::{Config, Fault};

/// When a run begins, in milliseconds since the Unix epoch.
const EPOCH_MS: u64 = 1_800_000_000_000;
/// One command in so many ends with a power cut.
const CRASH_ONE_IN: u64 = 1_500;
/// One event in so many is followed by a check of everything at the node that handled it.
const AUDIT_ONE_IN: u64 = 3_000;
/// Jobs of a party whose repetition is tried.
const USED_MAX: usize = 200;
/// Batches between two snapshots.
const SNAPSHOT_BATCHES: u64 = 400;

/// Something planned.
#[derive(Debug)]
pub(crate) enum Task {
    /// A client or the owner of a party does something.
    Work { party: usize },
    /// A party's disk has synced.
    Sync { party: usize, life: u64 },
    /// A message arrives.
    Arrive { to: usize, message: Message },
    /// A witness looks at an entry.
    Acknowledge { party: usize, entry: DocumentId },
    /// A party starts again.
    Start { party: usize },
    /// A party's timer: what is due, and asking another for what is missing.
    Gossip { party: usize },
    /// A dishonest owner acts.
    Foe,
    /// The network splits or heals.
    Split { heal: bool },
}

/// A run.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) dice: Dice,
    /// Virtual milliseconds since the beginning.
    pub(crate) now: u64,
    queue: BTreeMap<(u64, u64), Task>,
    planned: u64,
    pub(crate) founded: Lattice,
    pub(crate) charter: Charter,
    pub(crate) parties: Vec<crate::party::Party>,
    pub(crate) network: Network,
    pub(crate) law: Law,
    pub(crate) foes: Foes,
    pub(crate) counts: Counts,
    /// No faults: while the mesh is founded and when it comes to rest.
    pub(crate) calm: bool,
}

impl World {
    pub(crate) fn new(config: &Config) -> Result<Self, Failure> {
        let mut dice = Dice::new(config.seed);
        let failure = |event, what| Failure { seed: config.seed, event, what };
        let mesh = Mesh::draw(config, &mut dice).map_err(|what| failure(0, what))?;
        let mut world = Self {
            config: *config,
            dice,
            now: 0,
            queue: BTreeMap::new(),
            planned: 0,
            founded: mesh.founded,
            charter: mesh.charter,
            parties: mesh.parties,
            network: Network::default(),
            law: mesh.law,
            foes: mesh.foes,
            counts: Counts::default(),
            calm: true,
        };
        world.boot().map_err(|what| failure(world.counts.events, what))?;
        world.calm = false;
        for party in 0..world.parties.len() {
            world.plan(1, Task::Work { party });
            world.plan(10, Task::Gossip { party });
        }
        world.plan(1_000, Task::Foe);
        world.plan(60_000, Task::Split { heal: false });
        Ok(world)
    }

    pub(crate) fn run(mut self) -> Result<Report, Failure> {
        let outcome = self.play();
        let (seed, event) = (self.config.seed, self.counts.events);
        outcome.map_err(|what| Failure { seed, event, what })
    }

    fn play(&mut self) -> Result<Report, String> {
        while self.counts.events < self.config.events {
            let Some(((at, _), task)) = self.queue.pop_first() else {
                break;
            };
            self.now = self.now.max(at);
            self.perform(task)?;
        }
        self.come_to_rest()?;
        self.report()
    }

    pub(crate) fn plan(&mut self, in_ms: u64, task: Task) {
        self.planned += 1;
        self.queue.insert((self.now + in_ms, self.planned), task);
    }

    fn perform(&mut self, task: Task) -> Result<(), String> {
        match task {
            Task::Work { party } => {
                let pause = self.dice.between(100, 2_300);
                self.plan(pause, Task::Work { party });
                self.work(party)
            }
            Task::Sync { party, life } if self.parties[party].life == life => self.sync(party),
            Task::Sync { .. } => Ok(()),
            Task::Arrive { to, message } => self.arrive(to, message),
            Task::Acknowledge { party, entry } => {
                self.by_node(party, &Command::Acknowledge { entry }).map(drop)
            }
            Task::Start { party } => self.start(party),
            Task::Gossip { party } => {
                let pause = self.dice.between(5_000, 30_000);
                self.plan(pause, Task::Gossip { party });
                self.gossip(party)
            }
            Task::Foe => {
                let pause = self.dice.between(5_000, 60_000);
                self.plan(pause, Task::Foe);
                self.foe_acts()
            }
            Task::Split { heal } => {
                if heal {
                    self.network.heal();
                } else {
                    self.network.split(&mut self.dice, self.parties.len());
                }
                let length = self.dice.between(20_000, 400_000);
                self.plan(length, Task::Split { heal: !heal });
                Ok(())
            }
        }
    }

    /// Performs what is on its way, and plans nothing new, until nothing is.
    pub(crate) fn drain(&mut self) -> Result<(), String> {
        while let Some((_, task)) = self.queue.pop_first() {
            match task {
                Task::Arrive { .. } | Task::Acknowledge { .. } | Task::Sync { .. } => {
                    self.perform(task)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn by_node(
        &mut self,
        party: usize,
        command: &Command,
    ) -> Result<Option<Result<Outcome, Rejection>>, String> {
        self.submit(party, &Actor::Node, command)
    }

    /// A command's way: decided, written, and, if the power lasts, synced and answered later.
    /// None when the node is down or goes down.
    pub(crate) fn submit(
        &mut self,
        party: usize,
        actor: &Actor,
        command: &Command,
    ) -> Result<Option<Result<Outcome, Rejection>>, String> {
        let jitter = self.dice.below(40);
        let node = &mut self.parties[party];
        let Some(machine) = node.machine.as_mut() else {
            return Ok(None);
        };
        self.counts.events += 1;
        // A clock that now and then goes back a little.
        let now = Timestamp::from_ms(EPOCH_MS + self.now + 40 - jitter);
        let (events, result) = machine.submit(now, actor, command)?;
        node.clock = machine.clock();
        self.count(command, &result);
        self.check_touched(party)?;
        let point = self.draw_crash();
        if point == Some(CrashPoint::BeforeAppend) {
            return self.crash(party, CrashPoint::BeforeAppend, &events).map(|()| None);
        }
        let fact = result.as_ref().ok().and_then(|outcome| Fact::of(command, outcome));
        self.write(party, events, fact);
        match point {
            Some(CrashPoint::BeforeSync) => {
                return self.crash(party, CrashPoint::BeforeSync, &[]).map(|()| None);
            }
            Some(later) if self.parties[party].sync_planned => {
                self.parties[party].doom = Some(later);
            }
            _ => {}
        }
        if self.calm {
            self.sync(party)?;
        } else if self.dice.one_in(AUDIT_ONE_IN) {
            self.audit(party)?;
        }
        Ok(Some(result))
    }

    fn write(&mut self, party: usize, events: Vec<Event>, fact: Option<Fact>) {
        if events.is_empty() {
            return;
        }
        let node = &mut self.parties[party];
        let batch = node.disk.append(&events);
        // What was done already is done, whatever else the input led to.
        let repeats = |fact: &Fact| {
            matches!(fact, Fact::Kill { .. } | Fact::KeyRevoked { .. } | Fact::Ended { .. })
        };
        let is_fact = |fact: &Fact| !repeats(fact) || fact.is_in(&events);
        let mut fact = fact.filter(is_fact);
        if self.config.fault == Fault::ReplyBeforeSync
            && let Some(fact) = fact.take()
        {
            node.oracle.told(batch, fact.clone());
            self.replied(party, &fact);
        }
        let node = &mut self.parties[party];
        node.waiting.push_back(Waiting { batch, fact, events });
        if !node.sync_planned && !self.calm {
            node.sync_planned = true;
            let life = node.life;
            let takes = self.dice.between(1, 8);
            self.plan(takes, Task::Sync { party, life });
        }
    }

    fn draw_crash(&mut self) -> Option<CrashPoint> {
        if self.calm || !self.dice.one_in(CRASH_ONE_IN) {
            return None;
        }
        let points = [
            CrashPoint::BeforeAppend,
            CrashPoint::BeforeSync,
            CrashPoint::DuringSync,
            CrashPoint::BeforeReply,
        ];
        Some(points[self.dice.index(points.len())])
    }

    /// The disk has synced: what waited for it leaves the node.
    fn sync(&mut self, party: usize) -> Result<(), String> {
        let node = &mut self.parties[party];
        node.sync_planned = false;
        let doom = node.doom.take();
        if doom == Some(CrashPoint::DuringSync) {
            return self.crash(party, CrashPoint::DuringSync, &[]);
        }
        node.disk.sync();
        if doom == Some(CrashPoint::BeforeReply) {
            return self.crash(party, CrashPoint::BeforeReply, &[]);
        }
        while let Some(Waiting { batch, fact, events }) = self.parties[party].waiting.pop_front() {
            let oracle = &mut self.parties[party].oracle;
            oracle.durable(batch, &events)?;
            if let Some(fact) = fact {
                oracle.told(batch, fact.clone());
                self.replied(party, &fact);
            }
            self.publish(party, &events)?;
        }
        if self.parties[party].disk.batches() > self.parties[party].staged_at + SNAPSHOT_BATCHES {
            self.stage_snapshot(party)?;
        }
        Ok(())
    }

    /// A client got its answer.
    fn replied(&mut self, party: usize, fact: &Fact) {
        let node = &mut self.parties[party];
        match fact {
            Fact::Started { job, start_by, .. } => {
                node.used.push_front((*job, *start_by));
                node.used.truncate(USED_MAX);
                node.jobs.push(Job { job: *job, tokens: 0 });
            }
            Fact::Finished { .. } => self.counts.jobs += 1,
            _ => {}
        }
    }

    /// Tells the others what has become durable.
    fn publish(&mut self, party: usize, events: &[Event]) -> Result<(), String> {
        self.learn(party, events)?;
        for event in events {
            let Event::Lattice(event) = event else {
                continue;
            };
            match &**event {
                LatticeEvent::EntryPending { entry, .. } => {
                    if entry.entry().chain == self.parties[party].id {
                        self.broadcast(party, &entry_message(entry));
                    } else if self.is_witness(party) {
                        let pause = self.dice.between(1, 50);
                        self.plan(pause, Task::Acknowledge { party, entry: entry.id() });
                    }
                }
                LatticeEvent::AcknowledgementMade { acknowledgement, .. } => {
                    self.broadcast(party, &Message::Acknowledgement(*acknowledgement));
                }
                LatticeEvent::CutKnown { checkpoint, heads } => {
                    let (entry, slots) = (*checkpoint, heads.clone());
                    if self.parties[party].id == self.charter.clerk {
                        self.broadcast(party, &Message::Cut { checkpoint: entry, slots });
                    } else if self.is_witness(party) {
                        let pause = self.dice.between(1, 50);
                        self.plan(pause, Task::Acknowledge { party, entry });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Enters what has become durable at a party into its archive and into the law.
    pub(crate) fn learn(&mut self, party: usize, events: &[Event]) -> Result<(), String> {
        let node = &mut self.parties[party];
        for event in events {
            let Event::Lattice(event) = event else {
                continue;
            };
            node.archive.add(event);
            match &**event {
                LatticeEvent::EntryPending { entry, .. } => {
                    if self.law.forged.contains(&entry.id()) {
                        return Err(format!("a forged entry was taken: {}", entry.id()));
                    }
                    if entry.entry().chain == node.id {
                        self.law.signed(entry.entry().slot(), entry.id())?;
                    }
                }
                LatticeEvent::AcknowledgementMade { acknowledgement, slot } => {
                    self.law.promised(node.key(), *slot, acknowledgement.entry)?;
                }
                LatticeEvent::EntryFinal { entry, .. } => {
                    self.law.is_final(entry.entry().slot(), entry.id())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn is_witness(&self, party: usize) -> bool {
        self.charter.witnesses.contains(&self.parties[party].key())
    }

    fn broadcast(&mut self, from: usize, message: &Message) {
        for to in (0..self.parties.len()).filter(|to| *to != from) {
            self.send(from, to, message);
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: &Message) {
        let delays = match self.calm {
            true => vec![1],
            false => self.network.delays(&mut self.dice, from, to),
        };
        self.counts.lost += u64::from(delays.is_empty());
        for delay in delays {
            self.plan(delay, Task::Arrive { to, message: message.clone() });
        }
    }

    fn arrive(&mut self, to: usize, message: Message) -> Result<(), String> {
        let mut commands = Vec::new();
        let receive = |acknowledgement| Command::ReceiveAcknowledgement { acknowledgement };
        match message {
            Message::Acknowledgement(ack) => commands.push(receive(ack)),
            Message::Entry { bytes, signature } => {
                commands.push(Command::ReceiveEntry { bytes, signature });
            }
            Message::Proof { acks, bytes, signature } => {
                commands.push(Command::ReceiveEntry { bytes, signature });
                commands.extend(acks.into_iter().map(receive));
            }
            Message::Certified { bytes, signature, certificate } => {
                commands.push(Command::ReceiveCertified { bytes, signature, certificate })
            }
            Message::Cut { checkpoint, slots } => {
                commands.push(Command::ReceiveCut { entry: checkpoint, slots })
            }
        }
        for command in &commands {
            match self.by_node(to, command)? {
                // Validity depends on an entry's past alone, so what one honest node took, no
                // other may call a fault of its sender.
                Some(Err(Rejection::Entry(rejection))) if rejection.is_peer_fault() => {
                    return Err(format!("an honest message was refused: {rejection}"));
                }
                // What is final in a slot is the same everywhere while few enough lie.
                Some(Err(Rejection::Cut(rejection @ CutRejection::WrongRoot)))
                    if self.law.within =>
                {
                    return Err(format!("an honest cut was refused: {rejection}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn report(&self) -> Result<Report, String> {
        let node = self.parties[0].machine.as_ref().ok_or("a party is down at the end")?;
        let mut state = Vec::new();
        for node in self.parties.iter().filter_map(|party| party.machine.as_ref()) {
            state.extend_from_slice(node.state_hash().as_bytes());
        }
        let lattice = node.ledger().lattice();
        Ok(Report {
            seed: self.config.seed,
            parties: self.parties.len(),
            witnesses: self.charter.witnesses.len(),
            quorum: self.charter.quorum,
            liars: self.law.liars.len(),
            within: self.law.within,
            virtual_ms: self.now,
            finals: lattice.final_count(),
            checkpoints: lattice.last_checkpoint().map_or(0, |(number, ..)| number),
            contradictions: self.law.contradictions(),
            loss: lattice.totals().loss,
            counts: self.counts.clone(),
            state: Digest::of(&state),
        })
    }
}

pub(crate) fn entry_message(entry: &SignedEntry) -> Message {
    Message::Entry { bytes: entry.bytes().to_vec(), signature: entry.signature() }
}
