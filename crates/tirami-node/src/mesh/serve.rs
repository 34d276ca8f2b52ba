//! Jobs that other nodes order here: from the stream that brings an order to the receipt.
//!
//! The engine works no further than one window beyond what the consumer signed for. Whatever ends
//! a stream frees the engine at once; what is owed then is what the highest voucher says.

mod crowd;
mod running;
mod vectors;

use core::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tirami_core::{
    Checked, Digest, DocumentId, JobId, ModelDigest, ModelShape, PartyId, PublicKey, Signature,
    Timestamp, decode_body,
};
use tirami_infer::engine::{Generation, Prompt, Sampling, StartError};
use tirami_kernel::Kernel;
use tirami_kernel::mesh::MeshInput;
use tirami_ledger::Rejection;
use tirami_ledger::command::{AcceptOrder, Actor, Command, Outcome};
use tirami_ledger::documents::{Order, SignedBytes};
use tirami_ledger::refusal::OrderRefusal;
use tirami_proto::{Fault, InvalidRequest, JobRequest, ToConsumer, ToProvider, WireDocument};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::frames::{FrameReceiver, Pace, StreamError, frames};
use super::intake::{Intake, Room};
use super::retold::{Retelling, Retold};
use super::{FrameSender, IncomingJob};
use crate::handle::{Handle, SubmitError};
use crate::http::{ApiError, Asked, Kind, understand, understand_at_once};
use crate::models::{Lease, Model, Models};
use crate::store::{StoreReader, TradeRow};
use crowd::{Crowd, Place};
use running::{Begun, Serving};

/// Streams of jobs served at the same time, whatever the ledger would take.
pub const SERVED_STREAMS_MAX: usize = 256;
pub(crate) use vectors::EMBEDDINGS_PATH;

/// Tokens sent ahead of the vouchers at most, however far away the consumer is.
pub const WINDOW_TOKENS_MAX: u32 = 256;
/// How long a new stream may take to send its request.
pub(super) const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// A sender gives up before that: whoever withholds for longer what it began or was to begin is at
/// fault.
const WITHHELD_AFTER: Duration = REQUEST_WITHIN.saturating_add(Duration::from_secs(2));
/// How long a consumer may take to sign for what it received, or to read what is sent.
const VOUCHER_WITHIN: Duration = Duration::from_secs(60);
/// A stream without news says so often that it is alive.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// Vouchers of a job that may be refused before the job ends.
const VOUCHERS_REFUSED_MAX: u32 = 8;
/// How long a consumer that has to go elsewhere may take to sign for what it received.
const LAST_VOUCHER_WITHIN: Duration = Duration::from_secs(4);
/// How long the last frame may take to arrive.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// How long a refusal of a stream that is one too many may take to send.
const TURN_AWAY_WITHIN: Duration = Duration::from_millis(100);
/// How long a consumer whose chain is not kept may wait until it is known, and how often that is
/// looked at.
pub(super) const MEET_WITHIN: Duration = Duration::from_secs(3);
const MEET_LOOK: Duration = Duration::from_millis(20);
/// When a consumer that was refused for now may ask again.
const RETRY_AFTER_MS: u64 = 1_000;

/// Serves what other nodes order.
pub(crate) struct Server {
    pub(crate) handle: Handle,
    pub(crate) reader: StoreReader,
    pub(crate) models: Models,
    /// Whether the owner wants nobody served: paused, or the kill switch.
    pub(crate) halted: watch::Receiver<bool>,
    /// Cancelled when the node stops.
    pub(crate) stop: CancellationToken,
    /// One task for each job.
    pub(crate) tasks: TaskTracker,
    /// Room for requests.
    pub(super) intake: Intake,
    /// Places for jobs whose texts are read into vectors.
    pub(crate) readers: Arc<Semaphore>,
    /// Places for requests that are made into prompts or texts to read.
    pub(crate) understanding: Arc<Semaphore>,
    /// Who waits for a place for a job.
    pub(crate) crowd: Arc<Crowd>,
}

/// The model's shape, and the completion tokens of the shortest job that a path asks it for.
type Least = fn(ModelShape) -> (ModelShape, u32);

/// Places for requests that are made into prompts at the same time, which keeps a core busy for a
/// while: half of the cores are left to the engines.
pub(crate) fn understanding_max() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

impl Server {
    /// Takes streams until the node stops.
    pub(crate) async fn run(self, mut incoming: mpsc::Receiver<IncomingJob>) {
        let server = Arc::new(self);
        let places = Arc::new(Semaphore::new(SERVED_STREAMS_MAX));
        let stop = server.stop.clone();
        while let Some(Some(job)) = stop.run_until_cancelled(incoming.recv()).await {
            let (server_of_job, places) = (Arc::clone(&server), Arc::clone(&places));
            server.tasks.spawn(async move { server_of_job.serve(job, &places).await });
        }
    }

    async fn serve(&self, job: IncomingJob, places: &Semaphore) {
        let IncomingJob { peer, rtt, mut send, mut receive } = job;
        let Ok(mut room) = timeout(REQUEST_WITHIN, self.intake.room(peer)).await else {
            return send.abort();
        };
        let request = match timeout(WITHHELD_AFTER, receive.next_through(&mut room)).await {
            Ok(Ok(Some(ToProvider::Request(request)))) => request,
            other => {
                let is_fault = match other {
                    Ok(Ok(frame)) => frame.is_some(),
                    Ok(Err(error)) => matches!(error, StreamError::Frame(_)),
                    Err(_) => room.is_withheld(),
                };
                if is_fault {
                    self.offended(peer, Fault::Malformed).await;
                }
                return send.abort();
            }
        };
        // Only who says what it wants takes a place.
        let Ok(_place) = places.try_acquire() else {
            let full = refused("busy", "the node serves as many streams as it may", true).told;
            // One that does not take even this sees its stream end.
            return drop(timeout(TURN_AWAY_WITHIN, send.send(&full)).await);
        };
        let order = decode_body::<Order>(&request.order.bytes).ok();
        let known = order.map(|order| (order.consumer, order.job));
        if request.path == EMBEDDINGS_PATH {
            let begun = self.begin_reading(request).await;
            drop(room);
            let frames = pin!(self.frames(peer, receive));
            return match begun {
                Ok((begun, accepted)) => {
                    self.deliver_vectors((peer, &accepted), begun, send, frames).await;
                }
                Err(refusal) => self.refuse((peer, known), send, refusal).await,
            };
        }
        let begun = self.begin(request, room).await;
        let frames = pin!(self.frames(peer, receive));
        match begun {
            Ok(begun) => {
                let accepted = begun.accepted();
                let mut serving = Serving::new((self, peer), begun, send, rtt);
                if serving.say(&accepted).await.is_err() {
                    return serving.abandon().await;
                }
                serving.run(frames).await;
            }
            Err(refusal) => self.refuse((peer, known), send, refusal).await,
        }
    }

    /// What comes on the stream of a job that runs, until its end. What is no message ends it and
    /// counts against the peer.
    fn frames(
        &self,
        peer: PartyId,
        receive: FrameReceiver<ToProvider>,
    ) -> impl Stream<Item = ToProvider> + Send {
        frames(receive, Pace::of_job()).filter_map(move |frame| async move {
            if matches!(frame, Err(StreamError::Frame(_))) {
                self.offended(peer, Fault::Malformed).await;
            }
            frame.ok()
        })
    }

    /// `known` is who orders which job, where the order can be read.
    async fn refuse(
        &self,
        (peer, known): (PartyId, Option<(PartyId, JobId)>),
        mut send: FrameSender<ToConsumer>,
        refusal: Refusal,
    ) {
        let Refusal { code, mut told, fault, first, waits } = refusal;
        if let ToConsumer::Refused { receipt, .. } = &mut *told {
            *receipt = self.receipt(known.map(|(_, job)| job), first).await;
        }
        if let Some((consumer, _)) = known.filter(|_| waits) {
            self.crowd.turned_away(consumer);
        }
        tracing::debug!(%peer, ?told, "an order was refused");
        if let Some(fault) = fault {
            self.offended(peer, fault).await;
        }
        self.handle.owner().refusals().note(&self.handle, peer, code).await;
        drop(send.send(&told).await);
        send.finish();
        drop(timeout(FLUSH_WITHIN, send.flushed()).await);
    }

    /// Understands the request, has the ledger take the order, and starts the engine. The request
    /// has its `room` until it is a prompt.
    async fn begin(&self, request: JobRequest, room: Room) -> Result<Begun, Refusal> {
        let JobRequest { order: wire, body, path, resumed, .. } = request;
        let Some(kind) = Kind::at(&path) else {
            let message = format!("nothing is served at {}", path.escape_debug());
            return Err(refused("unknown_path", &message, false));
        };
        let least: Least = match kind {
            Kind::Chat => |shape| (shape, 1),
            // A text may only be read, to say how likely it is.
            Kind::Raw => |shape| (shape, 0),
        };
        let (order, signer) = self.proven(&wire, &body, least).await?;
        let Signer { checked, head_at, contributes, place } = signer;
        let engine = self.engine_of(order.model)?;
        let Asked { mut prompt, mut sampling, completion_max, retold } =
            self.understood(&engine, kind, body).await?;
        // The next request is looked at while the order of this one is synced.
        drop(room);
        let resumed_tokens = count(&resumed);
        // Who goes on with an answer tells nothing of its prompt.
        let retold = if resumed.is_empty() { retold } else { Retold::default() };
        sampling.scores_prompt = retold.likelihoods;
        if completion_max <= resumed_tokens && !retold.likelihoods {
            let message = "the answer is complete: it has as many tokens as were asked for";
            return Err(refused("answer_complete", message, false));
        }
        let prompt_tokens = count(&prompt.tokens).saturating_add(resumed_tokens);
        let model = engine.model();
        let accept = AcceptOrder {
            order: wire.bytes,
            signature: wire.signature,
            checked: Some(checked),
            model: model.digest,
            shape: model.shape,
            prompt_tokens,
            completion_max: completion_max - resumed_tokens,
            head_at,
        };
        let (job, completion_max, window) = self.accepted(accept).await?;
        let retelling = Retelling::new(retold, &prompt.tokens);
        prompt.resumed = resumed;
        prompt.scope = scope(order.consumer);
        prompt.contributes = contributes;
        sampling.seed = order.seed;
        sampling.completion_max = completion_max.saturating_add(resumed_tokens);
        let build = engine.model().build.clone();
        let generation = self.started(&engine, job, (prompt, sampling)).await?;
        let start_by = order.start_by;
        let counts = (prompt_tokens, completion_max, window);
        Ok(Begun { job, counts, build, start_by, generation, retelling, engine, place })
    }

    /// The request as the engine runs it.
    async fn understood(
        &self,
        engine: &Lease,
        kind: Kind,
        body: Vec<u8>,
    ) -> Result<Asked, Refusal> {
        // What is short takes a turn too, and waits with the rest where none is free.
        if let Ok(_turn) = self.understanding.try_acquire()
            && let Some(understood) = understand_at_once(&**engine, kind, &body)
        {
            return understood.map_err(|error| not_understood(&error));
        }
        let engine = engine.clone();
        let understood = self.busily(move || understand(&*engine, kind, &body)).await;
        understood
            .ok_or_else(|| refused("prepare_failed", "the prompt could not be prepared", false))?
            .map_err(|error| not_understood(&error))
    }

    /// Does what keeps a core busy for a while when it is its turn: no other job may wait for it.
    async fn busily<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turn = Arc::clone(&self.understanding).acquire_owned().await.ok()?;
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        working.await.ok()
    }

    /// The order of a request, and what is known of its signer. Nothing reads the request before.
    async fn proven(
        &self,
        wire: &WireDocument,
        body: &[u8],
        least: Least,
    ) -> Result<(Order, Signer), Refusal> {
        let order: Order = decode_body(&wire.bytes).map_err(|_| OrderRefusal::Malformed)?;
        if *self.halted.borrow() {
            return Err(OrderRefusal::Paused.into());
        }
        let signer = self.check_signer(&order, wire, least).await?;
        if Digest::of(body) != order.request {
            let message = "the request is not the one that was ordered";
            return Err(refused("order_other_request", message, false));
        }
        Ok((order, signer))
    }

    /// Waits for a reason to serve nobody any more.
    fn halt(&self) -> impl Future<Output = &'static str> + use<> {
        let (mut halted, stop) = (self.halted.clone(), self.stop.clone());
        async move {
            tokio::select! {
                () = stop.cancelled() => "the node is stopping",
                // The owner's word that never comes is no word.
                Ok(_) = halted.wait_for(|halted| *halted) => "the node's owner paused serving",
            }
        }
    }

    /// Whether the order is signed as it has to be, by a consumer that is served here, and can pay
    /// for anything, before its request costs any work; and what is known of the consumer.
    async fn check_signer(
        &self,
        order: &Order,
        wire: &WireDocument,
        least: Least,
    ) -> Result<Signer, Refusal> {
        let consumer = order.consumer;
        let asked = order.clone();
        let least = self.offered(order.model).map(|model| least(model.info().shape));
        let known = move |kernel: &Kernel, now| {
            let ledger = kernel.ledger();
            let key = ledger.lattice().chain(consumer).map(|chain| chain.key());
            let head_at = kernel.head_at(consumer).unwrap_or_default();
            let refused = ledger.check_consumer(now, &asked, head_at, least);
            let refused = refused.map_err(|refusal| {
                // One that ends would not be for this consumer either.
                let is_kept = refusal.waits_for_a_place() && kernel.keeps_places_from(consumer);
                if is_kept { OrderRefusal::Reserved } else { refusal }
            });
            let contributes = kernel.has_served_us(consumer);
            let places = ledger.book().serving().jobs_max;
            (kernel.knows_consumer(consumer), (key, head_at, contributes, places, refused))
        };
        let signed_by = |key: PublicKey| {
            let (bytes, signature): (Vec<u8>, Signature) = (wire.bytes.clone(), wire.signature);
            Checked::verify::<Order>(self.handle.mesh(), key, bytes, signature)
        };
        let checked_by = |key: Option<PublicKey>| {
            let key = key.ok_or(OrderRefusal::UnknownConsumer { consumer })?;
            signed_by(key).map_err(|_| OrderRefusal::BadSignature)
        };
        let (mut is_known, mut found) = self.handle.glance(known.clone()).await?;
        let is_served = is_known && found.4.is_ok();
        let glanced = is_served.then(|| checked_by(found.0)).and_then(Result::ok);
        if glanced.is_none() {
            // What is refused is told, so all that it rests on has to be synced.
            (is_known, found) = self.handle.read(known.clone()).await?;
        }
        // Whoever cannot sign for the consumer makes nobody look for its chain.
        if !is_known && signed_by(consumer.into()).is_ok() {
            self.meet(consumer).await?;
            (_, found) = self.handle.read(known).await?;
        }
        let (key, head_at, contributes, places, refused) = found;
        let checked = glanced.map_or_else(|| checked_by(key), Ok)?;
        // Only who signed the order learns what came of it.
        if let Err(OrderRefusal::Expired { .. } | OrderRefusal::JobTaken) = refused
            && let Some(replayed) = self.replayed(order).await
        {
            return Err(replayed.into());
        }
        refused?;
        let place = self.crowd.place(consumer, places)?;
        Ok(Signer { checked, head_at, contributes, place })
    }

    /// What came of a job when its consumer ordered it first. The ledger forgets a paid job when
    /// its order is late; the store does not (MONEY §8).
    async fn replayed(&self, order: &Order) -> Option<OrderRefusal> {
        let read = self.reader.first_trade(order.job, order.consumer).await;
        let first = read.inspect_err(|error| tracing::warn!(%error, "a trade cannot be read"));
        let TradeRow { receipt, amount: due, .. } = first.ok()??;
        Some(OrderRefusal::Replayed { receipt, due })
    }

    /// Writes down that a voucher of `peer` for `job` was refused.
    async fn voucher_refused(&self, (peer, job): (PartyId, JobId), error: &SubmitError) {
        tracing::debug!(%job, %error, "a voucher was refused");
        if let SubmitError::Rejected(rejection) = error {
            self.handle.owner().refusals().note(&self.handle, peer, rejection.code()).await;
            if let Rejection::Voucher(refusal) = rejection
                && refusal.is_peer_fault()
            {
                self.offended(peer, Fault::Invalid).await;
            }
        }
    }

    /// The receipt of a job that was ordered before.
    async fn receipt(&self, job: Option<JobId>, first: Option<DocumentId>) -> Option<WireDocument> {
        let read = self.reader.document(job?, first?).await;
        let found = read.inspect_err(|error| tracing::warn!(%error, "a receipt cannot be read"));
        let SignedBytes { bytes, signature } = found.ok()??;
        Some(WireDocument { bytes, signature })
    }

    /// Counts against a peer what no honest one sends; too much of it ends its connection.
    async fn offended(&self, peer: PartyId, fault: Fault) {
        // A kernel that has stopped counts nothing.
        drop(self.handle.mesh_input(MeshInput::Offended { peer, fault }).await);
    }

    /// Learns where the consumer's chain stands, for a node that does not keep all of them: what
    /// is not known by then is refused.
    async fn meet(&self, consumer: PartyId) -> Result<(), Refusal> {
        let knows = move |kernel: &Kernel, _| kernel.knows_consumer(consumer);
        let until = Instant::now() + MEET_WITHIN;
        self.handle.mesh_input(MeshInput::FirstContact(consumer)).await?;
        while Instant::now() < until && !self.handle.read(knows).await? {
            tokio::time::sleep(MEET_LOOK).await;
        }
        Ok(())
    }

    fn offered(&self, model: ModelDigest) -> Option<Model> {
        self.models.by_digest(model).filter(Model::is_offered)
    }

    /// The engine of the model that is ordered. An order loads nothing: see [`crate::models`].
    fn engine_of(&self, model: ModelDigest) -> Result<Lease, Refusal> {
        self.offered(model).ok_or(OrderRefusal::Model)?.lease().ok_or_else(|| {
            let message = "the model is not in memory at this time";
            refused("model_not_loaded", message, true)
        })
    }

    async fn accepted(&self, accept: AcceptOrder) -> Result<(JobId, u32, u32), Refusal> {
        match self.handle.submit(Actor::Node, Command::AcceptOrder(accept)).await? {
            Outcome::OrderAccepted { job, completion_max, window_tokens, .. } => {
                Ok((job, completion_max, window_tokens))
            }
            _ => Err(refused("internal_error", "the order was not taken", false)),
        }
    }

    async fn started(
        &self,
        engine: &Lease,
        job: JobId,
        (prompt, sampling): (Prompt, Sampling),
    ) -> Result<Generation, Refusal> {
        let is_begun = !prompt.resumed.is_empty();
        let error = match engine.start(prompt, sampling).await {
            Ok(generation) => return Ok(generation),
            Err(error) => error,
        };
        self.end(Command::AbandonServed { job, sent: 0 }).await;
        Err(match error {
            // That another one began the answer is no fault of the request.
            StartError::Unsupported { .. } if is_begun => {
                refused("unsupported", &error.to_string(), false)
            }
            StartError::Unsupported { .. } => not_understood(&ApiError::from(error)),
            StartError::Busy { .. } | StartError::Stopped => {
                refused("engine_busy", &error.to_string(), true)
            }
        })
    }

    /// Ends a served job, whatever the queue; what cannot be ended is ended by the next start.
    async fn end(&self, command: Command) -> Option<Outcome> {
        match self.handle.insist(Actor::Node, command).await {
            Ok(outcome) => Some(outcome),
            Err(error) => {
                tracing::warn!(%error, "a served job was not ended");
                None
            }
        }
    }
}

impl core::fmt::Debug for Server {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// An order's signature, and what is known of who signed it.
struct Signer {
    checked: Checked,
    /// Since when the consumer's head is known here.
    head_at: Timestamp,
    /// Whether the consumer has answered for this node.
    contributes: bool,
    place: Place,
}

/// Comes back when somebody wants what may be kept until `from`.
async fn wanted_from(from: Instant, is_wanted: impl Fn() -> bool) {
    sleep_until(from).await;
    while !is_wanted() {
        sleep(BEAT).await;
    }
}

/// Whose cached prompts a job may use: its consumer's own.
fn scope(consumer: PartyId) -> u64 {
    let bytes = consumer.as_bytes().iter().take(8);
    bytes.fold(0, |scope, byte| (scope << 8) | u64::from(*byte))
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

/// Why an order is not served; nothing is owed.
struct Refusal {
    /// Text of the program, never of a peer.
    code: &'static str,
    told: Box<ToConsumer>,
    /// What the sender did that no honest one does.
    fault: Option<Fault>,
    /// The receipt of the first time, where the job was ordered before.
    first: Option<DocumentId>,
    /// Whether the consumer waits for a place now.
    waits: bool,
}

/// What a caller by HTTP would be told.
fn not_understood(error: &ApiError) -> Refusal {
    let at_fault = error.status().is_client_error();
    let error = &error.body().error;
    let mut refusal = refused("invalid_request", &error.message, false);
    if let ToConsumer::Refused { code, invalid, .. } = &mut *refusal.told {
        if let Some(known) = &error.code {
            code.clone_from(known);
        }
        *invalid = at_fault.then(|| InvalidRequest { param: error.param.clone() });
    }
    refusal
}

/// As much of a text as a frame may have.
fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(tirami_proto::REASON_BYTES_MAX)].to_owned()
}

fn refused(code: &'static str, message: &str, is_transient: bool) -> Refusal {
    let message = shortened(message);
    let retry_after_ms = is_transient.then_some(RETRY_AFTER_MS);
    let told = ToConsumer::Refused {
        code: code.to_owned(),
        message,
        retry_after_ms,
        invalid: None,
        receipt: None,
    };
    Refusal { code, told: Box::new(told), fault: None, first: None, waits: false }
}

impl From<OrderRefusal> for Refusal {
    fn from(refusal: OrderRefusal) -> Self {
        let fault = refusal.is_peer_fault().then_some(Fault::Invalid);
        let refused = refused(refusal.code(), &refusal.to_string(), refusal.is_transient());
        let waits = refusal.waits_for_a_place();
        let first = match refusal {
            OrderRefusal::Replayed { receipt, .. } => receipt,
            _ => None,
        };
        Self { fault, first, waits, ..refused }
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        match &error {
            SubmitError::Rejected(Rejection::Order(refusal)) => refusal.clone().into(),
            SubmitError::Rejected(rejection) => {
                refused(rejection.code(), &rejection.to_string(), rejection.is_transient())
            }
            SubmitError::Busy | SubmitError::Stopped { .. } => {
                refused("busy", "the node cannot take the order at this time", true)
            }
        }
    }
}
