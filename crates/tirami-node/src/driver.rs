//! The one task that owns the kernel: it feeds it requests and the time, hands what it decided to
//! the store, and lets answers out only after the sync.
//!
//! While the store syncs one batch the kernel decides the next. Answers ride with their batch
//! through the store's queue, so they come in order and never before their batch is durable. Where
//! all is durable and a batch changes nothing, its answers need not ride at all. What nobody waits
//! for is not synced alone: it rides with what comes next. Whoever only glances at the kernel, to
//! know what to ask of it, waits for no sync.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tirami_core::{JobId, PartyId, Timestamp};
use tirami_kernel::mesh::PeerEvent;
use tirami_kernel::{Effects, Input, Kernel, RequestId};
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::event::Event;
use tirami_ledger::{Ledger, Rejection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::handle::{
    Handle, INPUT_QUEUE_MAX, JobTokens, News, PEER_QUEUE_MAX, Reply, Request, SubmitError, Tell,
};
use crate::mesh::{Outgoing, Peers};
use crate::store::{Done, Store, StoreError};

#[cfg(test)]
mod tests;

/// Events after which a snapshot is taken, at least.
pub const SNAPSHOT_EVERY_EVENTS: usize = 20_000;
/// Events after which one is taken, however large it is: a start replays no more.
const SNAPSHOT_EVENTS_MAX: usize = 200_000;
/// Bytes of the last snapshot for each event before the next one: a quarter of what the journal
/// writes for an event, so that snapshots of a large state never cost more than the journal.
const SNAPSHOT_BYTES_PER_EVENT: usize = 64;
/// Requests decided before their events are handed to the store. Small, so that the store begins
/// early; it writes several batches with one sync.
const BATCH_REQUESTS_MAX: usize = 128;
/// News of the mesh decided in one batch. They cost more than most requests, and the owner's
/// requests come first.
const BATCH_NEWS_MAX: usize = 64;
/// The least and the most time between two looks at the clock when nothing else happens. The most
/// bounds what a clock that was set back can delay.
const WAKE_WITHIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));
/// How long what nobody waits for waits for company: a hold, until its answer is charged. A crash
/// meanwhile forgets both, and nobody was told of either.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the kernel's task measures.
#[derive(Debug, Clone)]
pub struct DriverStats {
    /// Seconds of one decision, applying it included, without any sync.
    pub decision_seconds: Histogram,
    /// Seconds it took to write a snapshot's bytes; nothing is decided meanwhile.
    pub snapshot_seconds: Histogram,
}

impl Default for DriverStats {
    fn default() -> Self {
        Self {
            decision_seconds: Histogram::new(exponential_buckets(0.000_001, 2.0, 22)),
            snapshot_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
        }
    }
}

/// The task and what stops it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) failure: watch::Receiver<Option<String>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), StoreError>>,
}

impl Running {
    /// Decides what is still queued, takes a snapshot, closes the store.
    pub(crate) async fn stop(self) -> Result<(), StoreError> {
        self.stop.cancel();
        self.task.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// Starts the task. What the kernel wants sent goes to `peers`.
pub(crate) fn start(
    kernel: Kernel,
    store: Store,
    peers: Arc<Peers>,
    stats: DriverStats,
    clock: Clock,
) -> Running {
    start_with(kernel, store, peers, stats, (clock, PATIENCE))
}

fn start_with(
    kernel: Kernel,
    store: Store,
    peers: Arc<Peers>,
    stats: DriverStats,
    (clock, patience): (Clock, Duration),
) -> Running {
    let (sender, requests) = mpsc::channel(INPUT_QUEUE_MAX);
    let (news_sender, news) = mpsc::channel(PEER_QUEUE_MAX);
    let (failed, failure) = watch::channel(None);
    let (jobs, stop) = (JobTokens::default(), CancellationToken::new());
    let names = (kernel.ledger().party(), kernel.ledger().lattice().mesh());
    let handle = Handle::new((sender, news_sender), jobs.clone(), failure.clone(), names);
    let driver = Driver {
        handle: handle.clone(),
        kernel,
        store,
        requests,
        news,
        peers,
        connections: BTreeMap::new(),
        jobs,
        stats,
        clock,
        patience,
        waiting: None,
        failed: Failed(failed),
        stop: stop.clone(),
        wake_at: Some(Timestamp::default()),
        undurable: Arc::default(),
        requests_taken: 0,
        events_since_snapshot: 0,
        snapshot_bytes: 0,
    };
    Running { handle, failure, stop, task: tokio::spawn(driver.run()) }
}

struct Driver {
    /// Its own queue, for what is not urgent.
    handle: Handle,
    kernel: Kernel,
    store: Store,
    requests: mpsc::Receiver<Request>,
    news: mpsc::Receiver<News>,
    peers: Arc<Peers>,
    /// The connection that the kernel knows of each peer. What is meant for an earlier one is not
    /// sent on a later one, whose other side knows nothing yet.
    connections: BTreeMap<PartyId, u64>,
    jobs: JobTokens,
    stats: DriverStats,
    clock: Clock,
    patience: Duration,
    /// What was decided and is not handed to the store yet, since nobody waits for its sync.
    waiting: Option<Batch>,
    failed: Failed,
    stop: CancellationToken,
    wake_at: Option<Timestamp>,
    /// Batches that the store has not made durable and told of.
    undurable: Arc<AtomicUsize>,
    requests_taken: u64,
    events_since_snapshot: usize,
    /// Bytes of the last one since the start.
    snapshot_bytes: usize,
}

/// Says why the node cannot go on, once. Dropped without a word (a defect ended the task), it
/// says that.
struct Failed(watch::Sender<Option<String>>);

impl Failed {
    fn say(sender: &watch::Sender<Option<String>>, reason: String) {
        sender.send_if_modified(|said| {
            let first = said.is_none();
            said.get_or_insert(reason);
            first
        });
    }
}

impl Drop for Failed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "the node met a defect in itself and stopped; what was acknowledged is \
                          kept; start it again";
            Self::say(&self.0, reason.to_owned());
        }
    }
}

/// What several requests led to, to be made durable together.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    cancel: Vec<JobId>,
    tell: Vec<Tell>,
    outgoing: Outgoing,
    requests: usize,
    /// Whether somebody waits for its sync, or something happens after it.
    hurries: bool,
    /// When it is written though nobody waits, once it was held back.
    due_at: Option<Instant>,
}

impl Batch {
    /// Whether there is nothing to write, to do or to tell.
    fn is_empty(&self) -> bool {
        let is_silent = self.tell.is_empty() && self.outgoing.is_empty();
        self.events.is_empty() && self.cancel.is_empty() && is_silent
    }
}

/// Who asked for a command: who hears of its success at once, if any, and who hears of it when it
/// is durable.
type Asker = (Option<oneshot::Sender<Outcome>>, Reply);

/// What wakes the task.
enum First {
    Request(Request),
    News(News),
    Time,
}

impl Driver {
    async fn run(mut self) -> Result<(), StoreError> {
        let mut failure = self.failed.0.subscribe();
        loop {
            let sleep = self.sleep();
            let first = tokio::select! {
                biased;
                _ = failure.wait_for(Option::is_some) => break,
                () = self.stop.cancelled() => break,
                request = self.requests.recv() => match request {
                    Some(request) => First::Request(request),
                    None => break,
                },
                Some(news) = self.news.recv() => First::News(news),
                () = tokio::time::sleep(sleep) => First::Time,
            };
            let mut batch = self.decide(first);
            let now = Instant::now();
            let due_at = *batch.due_at.get_or_insert_with(|| now + self.patience);
            let may_wait = !batch.hurries && !batch.is_empty() && now < due_at;
            if may_wait && batch.events.len() < BATCH_REQUESTS_MAX {
                self.waiting = Some(batch);
            } else if self.write(batch).await.is_err() {
                break;
            }
        }
        self.end().await
    }

    /// How long nothing falls due.
    fn sleep(&self) -> Duration {
        let (least, most) = WAKE_WITHIN;
        let due =
            self.wake_at.map_or(most, |at| Duration::from_millis(at.since_ms(self.clock.now())));
        let due_at = self.waiting.as_ref().and_then(|waiting| waiting.due_at);
        let written = due_at.map_or(most, |at| at.saturating_duration_since(Instant::now()));
        due.clamp(least, most).min(written)
    }

    /// Decides `first`, or what fell due, and what else waits, after what was decided before and
    /// not written.
    fn decide(&mut self, first: First) -> Batch {
        let waiting = self.waiting.take();
        let mut batch =
            waiting.map_or_else(Batch::default, |waiting| Batch { requests: 0, ..waiting });
        match first {
            First::Request(request) => self.take(request, &mut batch),
            First::News(news) => self.hear(news, &mut batch),
            First::Time => {
                batch.hurries = true;
                self.handle(Input::Tick, None, &mut batch);
            }
        }
        while batch.requests < BATCH_REQUESTS_MAX
            && let Ok(request) = self.requests.try_recv()
        {
            self.take(request, &mut batch);
        }
        // After the owner's requests, and never in place of them.
        for _ in 0..BATCH_NEWS_MAX {
            match self.news.try_recv() {
                Ok(news) => self.hear(news, &mut batch),
                Err(_) => break,
            }
        }
        batch
    }

    /// Hands on what happened on the connection that the kernel knows, and the news of others.
    fn hear(&mut self, news: News, batch: &mut Batch) {
        let input = match news {
            News::Mesh(input) => Input::Mesh(input),
            News::Peer { peer, number, event } => {
                let known = self.connections.get(&peer).copied();
                match &event {
                    PeerEvent::Connected { .. } => {
                        self.connections.insert(peer, number);
                    }
                    PeerEvent::Disconnected if known == Some(number) => {
                        self.connections.remove(&peer);
                    }
                    // Dialling failed.
                    PeerEvent::Disconnected if known.is_none() => {}
                    _ if known == Some(number) => {}
                    _ => return,
                }
                Input::Peer { peer, event }
            }
        };
        let known = batch.events.len();
        self.handle(input, None, batch);
        // Most news change nothing that is stored.
        batch.hurries |= batch.events.len() > known;
    }

    fn take(&mut self, request: Request, batch: &mut Batch) {
        batch.requests += 1;
        match request {
            Request::Command { actor, command, decided, reply } => {
                self.requests_taken += 1;
                let request = RequestId::new(self.requests_taken);
                let command: Command = *command;
                batch.hurries |= decided.is_none();
                let asker = Some((decided, reply));
                self.handle(Input::Command { request, actor, command }, asker, batch);
            }
            Request::AddAgentKey { key, tell } => {
                batch.hurries = true;
                self.handle(Input::AddAgentKey(key), None, batch);
                batch.tell.push(tell);
            }
            Request::Read(read) => {
                batch.hurries = true;
                batch.tell.push(read(&self.kernel, self.clock.now()));
            }
            Request::Glance(look) => look(&self.kernel, self.clock.now()),
        }
    }

    fn handle(&mut self, input: Input, asker: Option<Asker>, batch: &mut Batch) {
        let started = Instant::now();
        let effects = self.kernel.handle(self.clock.now(), input);
        self.stats.decision_seconds.observe(started.elapsed().as_secs_f64());
        self.wake_at = effects.wake_at;
        let Effects {
            append,
            reply: decided,
            cancel,
            send,
            connect,
            disconnect,
            serve,
            work,
            refused,
            ..
        } = effects;
        for (party, code) in refused {
            self.handle.owner().refusals().note_aside(&self.handle, party, code);
        }
        // What is told or ended has to wait for the sync, so the sync must not wait.
        batch.hurries |=
            !cancel.is_empty() || decided.as_ref().is_some_and(|(_, decided)| decided.is_err());
        batch.events.extend(append);
        batch.cancel.extend(cancel);
        let number = |peer: &PartyId| self.connections.get(peer).copied();
        let Outgoing {
            send: sends,
            connect: connects,
            disconnect: ends,
            serve: serves,
            work: works,
        } = &mut batch.outgoing;
        sends.extend(send.into_iter().filter_map(|(to, what)| Some((to, number(&to)?, what))));
        ends.extend(disconnect.into_iter().filter_map(|(to, why)| Some((to, number(&to)?, why))));
        serves.extend(serve.into_iter().filter_map(|one| Some((number(&one.peer)?, one))));
        connects.extend(connect);
        works.extend(work);
        batch.hurries |= !batch.outgoing.is_empty();
        if let (Some((early, reply)), Some((_, decided))) = (asker, decided) {
            if let (Some(early), Ok(outcome)) = (early, &decided) {
                // Whoever does not wait any more does not need it.
                drop(early.send(outcome.clone()));
            }
            batch.tell.push(Box::new(move |durable| answer(reply, decided, durable)));
        }
    }

    /// Hands a batch to the store, and a snapshot when one is due.
    async fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let Batch { events, cancel, tell, outgoing, .. } = batch;
        self.events_since_snapshot += events.len();
        // A store that failed has said so before the last of its batches was counted off.
        let is_durable = events.is_empty()
            && outgoing.is_empty()
            && self.undurable.load(Ordering::Acquire) == 0
            && self.failed.0.borrow().is_none();
        let (jobs, failed) = (self.jobs.clone(), self.failed.0.clone());
        let (peers, undurable) = (Arc::clone(&self.peers), Arc::clone(&self.undurable));
        undurable.fetch_add(1, Ordering::Relaxed);
        let done: Done = Box::new(move |result: Result<(), StoreError>| {
            let reason = result.err().map(|error| error.to_string());
            match &reason {
                None => {
                    jobs.cancel(&cancel);
                    peers.carry(outgoing);
                }
                Some(reason) => Failed::say(&failed, reason.clone()),
            }
            for tell in tell {
                tell(reason.as_deref().map_or(Ok(()), Err));
            }
            undurable.fetch_sub(1, Ordering::Release);
        });
        if is_durable {
            done(Ok(()));
            return Ok(());
        }
        self.store.append(events, done).await?;
        let due = self.snapshot_bytes / SNAPSHOT_BYTES_PER_EVENT;
        if self.events_since_snapshot >= due.clamp(SNAPSHOT_EVERY_EVENTS, SNAPSHOT_EVENTS_MAX) {
            self.snapshot().await?;
        }
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<(), StoreError> {
        self.events_since_snapshot = 0;
        let started = Instant::now();
        let body = self.kernel.snapshot();
        self.snapshot_bytes = body.len();
        let state_hash = Ledger::hash_of_snapshot(&body);
        self.stats.snapshot_seconds.observe(started.elapsed().as_secs_f64());
        let failed = self.failed.0.clone();
        let done = Box::new(move |result: Result<(), StoreError>| {
            if let Err(error) = result {
                Failed::say(&failed, error.to_string());
            }
        });
        self.store.snapshot(self.clock.now(), state_hash, body, done).await
    }

    /// Decides what was queued before the end, takes a last snapshot, and closes the store. After
    /// a failure nothing more is decided: who waits hears why.
    async fn end(mut self) -> Result<(), StoreError> {
        self.requests.close();
        self.news.close();
        if self.failed.0.borrow().is_none() {
            while let Some(request) = self.requests.recv().await {
                let batch = self.decide(First::Request(request));
                self.write(batch).await?;
            }
            if let Some(waiting) = self.waiting.take() {
                self.write(waiting).await?;
            }
            if self.events_since_snapshot > 0 {
                self.snapshot().await?;
            }
        }
        let (store, failed) = (self.store, self.failed);
        let closed = tokio::task::spawn_blocking(move || store.close());
        let closed = closed.await.unwrap_or(Err(StoreError::Closed));
        if let Err(error) = &closed {
            Failed::say(&failed.0, error.to_string());
        }
        closed
    }
}

fn answer(reply: Reply, decided: Result<Outcome, Rejection>, durable: Result<(), &str>) {
    let answer = match durable {
        Ok(()) => decided.map_err(SubmitError::Rejected),
        Err(reason) => Err(SubmitError::Stopped { reason: reason.to_owned() }),
    };
    // Whoever does not wait for the answer any more does not need it.
    drop(reply.send(answer));
}
