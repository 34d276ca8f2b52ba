//! The loop: virtual time, what is planned, and the way from an input to its effects.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tirami_core::{DocumentId, JobId, PartyId, Trm};
use tirami_kernel::mesh::MeshInput;
use tirami_kernel::{Effects, Input, RequestId};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_proto::{FinalEntry, JobRequest, Message, ToConsumer, ToProvider};

use super::consumer::Job;
use super::founding::Founding;
use super::links::{Links, Pair};
use super::node::{Doom, Held, Node, local};
use super::provider::Serving;
use super::report::{NodesCounts, NodesReport};
use super::tally::Tally;
use super::watch::Work;
use super::{Bug, NodesConfig};
use crate::Failure;
use crate::dice::Dice;
use crate::disk::Cut;
use crate::law::Law;

/// When a run begins, in milliseconds since the Unix epoch.
pub(super) const EPOCH_MS: u64 = 1_800_000_000_000;

/// Something planned.
pub(super) enum Task {
    /// A node's kernel asked to be woken.
    Wake {
        node: usize,
        at: u64,
    },
    /// A node's disk has synced.
    Sync {
        node: usize,
        life: u64,
    },
    /// A message arrives.
    Message {
        from: usize,
        to: usize,
        connection: u64,
        bytes: Rc<[u8]>,
    },
    /// A dialled node answers, or not.
    Dial {
        from: usize,
        to: usize,
    },
    Unreached {
        node: usize,
        peer: PartyId,
        life: u64,
    },
    /// A connection is ended.
    Close {
        one: usize,
        other: usize,
    },
    /// The ends of a dead connection notice.
    Noticed {
        between: Pair,
        id: u64,
    },
    /// A node starts: for the first time, or again.
    Start {
        node: usize,
    },
    /// Somewhere the power goes.
    PowerCut,
    /// The network splits or heals.
    Split {
        heal: bool,
    },
    /// Some node writes a snapshot beside its log.
    Snapshot,
    /// A client of a node asks something.
    Ask {
        node: usize,
    },
    /// A node says what it serves.
    Offer {
        node: usize,
    },
    /// A liar lies.
    Lie {
        node: usize,
    },
    /// A member welcomes a newcomer.
    Sponsor {
        newcomer: usize,
    },
    /// A frame of a job arrives.
    ToProvider {
        stream: u64,
        frame: Box<ToProvider>,
    },
    /// A request whose consumer was not known is looked at again.
    Requested {
        stream: u64,
        request: Box<JobRequest>,
        until: u64,
    },
    ToConsumer {
        stream: u64,
        frame: Box<ToConsumer>,
    },
    /// An engine has computed some tokens.
    Generate {
        stream: u64,
    },
    /// Somebody looks whether a job still goes on.
    LookAtAttempt {
        stream: u64,
    },
    LookAtServing {
        stream: u64,
    },
    /// A job looks for a provider again.
    Again {
        job: u64,
    },
}

/// What to do with the answer to a command.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    Nothing,
    Ordered { job: u64 },
    Vouched { stream: u64 },
    Settled { stream: u64 },
    Abandoned { stream: u64 },
    Accepted { stream: u64 },
    Taken { stream: u64, tokens: usize },
    Finished { stream: u64 },
}

/// A run.
pub(super) struct World {
    pub(super) config: NodesConfig,
    pub(super) dice: Dice,
    /// Virtual milliseconds since the beginning.
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64), Task>,
    planned: u64,
    pub(super) founding: Founding,
    pub(super) nodes: Vec<Node>,
    pub(super) by_party: BTreeMap<PartyId, usize>,
    pub(super) links: Links,
    pub(super) law: Law,
    pub(super) tally: Tally,
    /// One copy of each final entry for all archives.
    pub(super) entries: BTreeMap<(DocumentId, bool), Rc<FinalEntry>>,
    pub(super) slots: BTreeMap<DocumentId, tirami_ledger::lattice::Slot>,
    pub(super) jobs: BTreeMap<u64, Job>,
    pub(super) jobs_numbered: u64,
    /// Streams of jobs: who asked and who serves.
    pub(super) streams: BTreeMap<u64, super::consumer::Stream>,
    pub(super) serving: BTreeMap<u64, Serving>,
    pub(super) work: BTreeMap<JobId, Work>,
    pub(super) excused: BTreeMap<(usize, usize), Trm>,
    pub(super) counts: NodesCounts,
    /// Whether clients ask, liars lie and things fail.
    pub(super) trading: bool,
    pub(super) healed: Option<super::rest::Healed>,
    pub(super) used_orders: Vec<super::liars::Used>,
    /// Streams of jobs whose order no rule admits.
    pub(super) forged_orders: BTreeSet<u64>,
    /// Rivals that liars signed, and who acknowledged them.
    pub(super) rivals: BTreeMap<DocumentId, super::liars::Shown>,
    /// What dishonest witnesses were shown first in each slot.
    pub(super) shown: BTreeMap<(usize, tirami_ledger::lattice::Slot), DocumentId>,
}

impl World {
    pub(super) fn new(config: &NodesConfig) -> Result<Self, Failure> {
        let failure = |event, what| Failure { seed: config.seed, event, what };
        let mut dice = Dice::new(config.seed);
        let (founding, nodes, law) =
            super::members::draw(config, &mut dice).map_err(|what| failure(0, what))?;
        let by_party = nodes.iter().enumerate().map(|(at, node)| (node.party, at)).collect();
        let mut world = Self {
            config: *config,
            dice,
            now: 0,
            queue: BTreeMap::new(),
            planned: 0,
            founding,
            nodes,
            by_party,
            links: Links::default(),
            law,
            tally: Tally::default(),
            entries: BTreeMap::new(),
            slots: BTreeMap::new(),
            jobs: BTreeMap::new(),
            jobs_numbered: 0,
            streams: BTreeMap::new(),
            serving: BTreeMap::new(),
            work: BTreeMap::new(),
            excused: BTreeMap::new(),
            counts: NodesCounts::default(),
            trading: true,
            healed: None,
            used_orders: Vec::new(),
            forged_orders: BTreeSet::new(),
            rivals: BTreeMap::new(),
            shown: BTreeMap::new(),
        };
        world.begin().map_err(|what| failure(world.counts.events, what))?;
        Ok(world)
    }

    pub(super) fn run(mut self) -> Result<NodesReport, Failure> {
        let outcome = self.play();
        let (seed, event) = (self.config.seed, self.counts.events);
        outcome.map_err(|what| Failure { seed, event, what })
    }

    /// Performs everything planned until `end`.
    pub(super) fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now = self.now.max(entry.key().0);
            let task = entry.remove();
            self.perform(task)?;
            self.check_sometimes()?;
        }
        self.now = self.now.max(end);
        Ok(())
    }

    pub(super) fn plan(&mut self, in_ms: u64, task: Task) {
        self.plan_at(self.now + in_ms, task);
    }

    pub(super) fn plan_at(&mut self, at: u64, task: Task) {
        self.planned += 1;
        self.queue.insert((at, self.planned), task);
    }

    fn perform(&mut self, task: Task) -> Result<(), String> {
        match task {
            Task::Wake { node, at } if self.nodes[node].wake_planned == Some(at) => {
                self.nodes[node].wake_planned = None;
                self.give(node, Input::Tick)
            }
            Task::Wake { .. } => Ok(()),
            Task::Sync { node, life } => self.sync(node, life),
            Task::Message { from, to, connection, bytes } => {
                self.arrive((from, to), connection, &bytes)
            }
            Task::Dial { from, to } => self.dial(from, to),
            Task::Unreached { node, peer, life } => self.unreached(node, peer, life),
            Task::Close { one, other } => self.close(one, other),
            Task::Noticed { between, id } => self.noticed(between, id),
            Task::Start { node } => self.start(node),
            Task::ToProvider { stream, frame } => self.at_provider(stream, *frame),
            Task::Requested { stream, request, until } => self.requested(stream, *request, until),
            Task::ToConsumer { stream, frame } => self.at_consumer(stream, *frame),
            Task::Generate { stream } => self.generate(stream),
            Task::LookAtAttempt { stream } => self.look_at_attempt(stream),
            Task::LookAtServing { stream } => self.look_at_serving(stream),
            Task::Again { job } => self.order(job),
            Task::Sponsor { newcomer } => self.sponsor(newcomer),
            Task::Offer { node } => {
                self.plan(2_000, Task::Offer { node });
                self.offer(node)
            }
            task if self.trading => self.happen(task),
            _ => Ok(()),
        }
    }

    /// What happens only while there is trade.
    fn happen(&mut self, task: Task) -> Result<(), String> {
        match task {
            Task::Ask { node } => {
                let mean_ms = self.config.pause_ms.max(2);
                let pause = self.dice.between(mean_ms / 4, mean_ms + mean_ms * 3 / 4);
                let pause = if self.begin_job(node)? { pause } else { pause.min(1_000) };
                self.plan(pause, Task::Ask { node });
                Ok(())
            }
            Task::PowerCut => {
                let pause = self.dice.between(2_000, 400_000 / self.nodes.len() as u64 + 2_001);
                self.plan(pause, Task::PowerCut);
                let node = self.dice.index(self.nodes.len());
                let after = self.dice.below(6);
                let doom = [Doom::BeforeAppend, Doom::BeforeSync, Doom::After(after)];
                self.nodes[node].doom = Some(doom[self.dice.index(3)]);
                Ok(())
            }
            Task::Split { heal } => {
                self.split(heal);
                self.healed = if heal { self.note_heal() } else { None };
                let length = if heal { 45_000 } else { 15_000 } + self.dice.below(25_000);
                self.plan(length, Task::Split { heal: !heal });
                Ok(())
            }
            Task::Snapshot => {
                self.plan(super::members::SNAPSHOT_MS, Task::Snapshot);
                let at = self.dice.index(self.nodes.len());
                self.write_snapshot(at);
                Ok(())
            }
            Task::Lie { node } => {
                let pause = self.dice.between(1_000, 6_000);
                self.plan(pause, Task::Lie { node });
                self.lie(node)
            }
            _ => Ok(()),
        }
    }

    /// Asks a node's kernel in the node's own name.
    pub(super) fn ask(&mut self, at: usize, command: Command, then: Then) -> Result<(), String> {
        self.ask_as(at, Actor::Node, command, then)
    }

    pub(super) fn ask_as(
        &mut self,
        at: usize,
        actor: Actor,
        command: Command,
        then: Then,
    ) -> Result<(), String> {
        let node = &mut self.nodes[at];
        node.requested += 1;
        let request = RequestId::new(node.requested);
        node.requests.insert(request.get(), then);
        self.give(at, Input::Command { request, actor, command })
    }

    /// An input's way: decided, written, and, if the power lasts, synced and carried out.
    pub(super) fn give(&mut self, at: usize, input: Input) -> Result<(), String> {
        let now = local(self.now, self.nodes[at].skew_ms);
        let node = &mut self.nodes[at];
        let Some(kernel) = node.kernel.as_mut() else {
            return Ok(());
        };
        self.counts.events += 1;
        let mut effects = kernel.handle(now, input);
        let clock = kernel.clock();
        if effects.wake_at.is_some_and(|due| due <= clock) {
            return Err(format!(
                "at {clock:?} node {at} asks to be woken at {:?}",
                effects.wake_at
            ));
        }
        let append = core::mem::take(&mut effects.append);
        let doom = node.doom.filter(|_| !append.is_empty());
        if doom == Some(Doom::BeforeAppend) {
            return self.cut_power(at, Cut::Synced);
        }
        if !append.is_empty() {
            node.disk.append(&append);
            self.written(at, &append)?;
        }
        if doom == Some(Doom::BeforeSync) {
            return self.cut_power(at, Cut::Torn);
        }
        self.plan_wake(at, effects.wake_at);
        let node = &mut self.nodes[at];
        let told_early = self.config.bug == Bug::ToldBeforeSync;
        if (append.is_empty() && node.held.is_empty()) || told_early {
            node.told = node.told.max(node.disk.batches());
            self.carry_out(at, effects)?;
            if !told_early || append.is_empty() || self.nodes[at].kernel.is_none() {
                return Ok(());
            }
            effects = Effects::default();
        }
        let node = &mut self.nodes[at];
        node.held.push_back(Held { after: node.disk.batches(), effects });
        self.plan_sync(at);
        Ok(())
    }

    fn plan_sync(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if !node.sync_planned {
            node.sync_planned = true;
            let (life, pause) = (node.life, self.dice.between(1, 6));
            self.plan(pause, Task::Sync { node: at, life });
        }
    }

    /// A snapshot counts from the next sync on; a power cut before that loses it.
    fn write_snapshot(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(kernel) = &node.kernel {
            node.disk.stage(kernel.snapshot());
            self.counts.snapshots += 1;
            self.plan_sync(at);
        }
    }

    fn plan_wake(&mut self, at: usize, wake_at: Option<tirami_core::Timestamp>) {
        let node = &mut self.nodes[at];
        let due = wake_at.map(|due| due.ms().saturating_sub(EPOCH_MS + node.skew_ms));
        let due = due.map(|due| due.max(self.now + 1));
        if let Some(due) = due
            && node.wake_planned.is_none_or(|planned| planned > due)
        {
            node.wake_planned = Some(due);
            self.plan_at(due, Task::Wake { node: at, at: due });
        }
    }

    fn sync(&mut self, at: usize, life: u64) -> Result<(), String> {
        let node = &mut self.nodes[at];
        if node.life != life || node.kernel.is_none() {
            return Ok(());
        }
        node.disk.sync();
        node.sync_planned = false;
        let ready = core::mem::take(&mut node.held);
        for Held { after, effects } in ready {
            let node = &mut self.nodes[at];
            if node.life != life {
                break;
            }
            node.told = node.told.max(after);
            self.carry_out(at, effects)?;
        }
        Ok(())
    }

    /// Carries effects out, unless the power goes between two of them.
    fn carry_out(&mut self, at: usize, effects: Effects) -> Result<(), String> {
        let Effects { reply, send, serve, disconnect, connect, .. } = effects;
        if let Some((request, result)) = reply {
            if self.power_goes(at)? {
                return Ok(());
            }
            self.answered(at, request, result)?;
        }
        for (to, message) in send {
            if self.power_goes(at)? {
                return Ok(());
            }
            self.leaves(at, &message)?;
            if self.keeps_back(at, &message) {
                continue;
            }
            self.send(at, to, &message)?;
        }
        for serve in serve {
            let mut message = self.nodes[at].read(&serve);
            if self.config.bug == Bug::ServesNothing {
                message = Message::Finals { chain: serve.chain, entries: Vec::new(), more: false };
            }
            self.send(at, serve.peer, &message)?;
        }
        for (to, goodbye) in disconnect {
            self.send(at, to, &Message::Goodbye(goodbye))?;
            if let Some(other) = self.by_party.get(&to).copied() {
                self.plan(150, Task::Close { one: at, other });
            }
        }
        for address in connect {
            let known = self.by_party.get(&address.party()).copied();
            let pause = self.dice.between(5, 60);
            match known.filter(|_| !address.via.is_empty()) {
                Some(to) => self.plan(pause, Task::Dial { from: at, to }),
                None => {
                    let (peer, life) = (address.party(), self.nodes[at].life);
                    self.plan(1_000, Task::Unreached { node: at, peer, life });
                }
            }
        }
        Ok(())
    }

    fn power_goes(&mut self, at: usize) -> Result<bool, String> {
        match self.nodes[at].doom {
            _ if self.nodes[at].kernel.is_none() => Ok(true),
            Some(Doom::After(0)) => self.cut_power(at, Cut::Synced).map(|()| true),
            Some(Doom::After(left)) => {
                self.nodes[at].doom = Some(Doom::After(left - 1));
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn answered(
        &mut self,
        at: usize,
        request: RequestId,
        result: Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        let Some(then) = self.nodes[at].requests.remove(&request.get()) else {
            return Err(format!("node {at} answers a request that nobody made"));
        };
        if let Err(rejection) = &result {
            *self.counts.refusals.entry(rejection.code().to_owned()).or_default() += 1;
        }
        match then {
            Then::Nothing => Ok(()),
            Then::Ordered { job } => self.ordered(job, result),
            Then::Vouched { stream } => self.vouched(stream, result),
            Then::Settled { stream } => self.settled(stream, result),
            Then::Abandoned { stream } => self.abandoned(stream, result),
            Then::Accepted { stream } => self.accepted(stream, result),
            Then::Taken { stream, tokens } => self.taken(stream, tokens, &result),
            Then::Finished { stream } => self.finished(stream, result),
        }
    }

    /// A node loses power. What was told must be on its disk.
    fn cut_power(&mut self, at: usize, cut: Cut) -> Result<(), String> {
        let between = self.links_of(at);
        let node = &mut self.nodes[at];
        node.kernel = None;
        node.doom = None;
        node.held.clear();
        node.requests.clear();
        node.sync_planned = false;
        node.wake_planned = None;
        node.life += 1;
        self.counts.crashes += 1;
        let cut = if self.config.bug == Bug::LosesSynced { Cut::Broken } else { cut };
        self.counts.torn += u64::from(node.disk.cut(&mut self.dice, cut));
        if node.disk.batches() < node.told {
            return Err(format!("what node {at} told others is not true any more after a crash"));
        }
        for pair in between {
            self.kill_link(pair);
        }
        self.forget_streams(at);
        let down = self.dice.between(200, 12_000);
        self.plan(down, Task::Start { node: at });
        Ok(())
    }

    /// A node starts with what its disk holds.
    pub(super) fn start(&mut self, at: usize) -> Result<(), String> {
        let node = &mut self.nodes[at];
        if node.kernel.is_some() {
            return Ok(());
        }
        let is_first = !node.joined;
        node.joined = true;
        node.boot()?;
        let settings = node.settings.clone();
        self.give(at, Input::Mesh(MeshInput::Settings(settings)))?;
        if !is_first {
            self.ask(at, Command::Recover, Then::Nothing)?;
        }
        self.settle_in(at)
    }
}
