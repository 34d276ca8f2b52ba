//! The models this node serves: the one door to their engines for HTTP, for jobs of other nodes
//! and for the owner's rules.
//!
//! A model is known by its file before it is in memory. Whoever needs its engine takes a
//! [`Lease`], and while one lives the model stays. A model that is not loaded is loaded by the
//! first request of this node's own callers; one load runs at a time, and the least recently used
//! models that rest make room for it. Nothing a caller says names a file: only models that the
//! owner named, or has in the models folder, are known.
//!
//! Orders of other nodes load nothing. A load costs the machine seconds and its memory before
//! anything can be owed for it, so whoever could cause one could make the node work for nothing
//! and drive out what its owner uses. So only models in memory are offered to the mesh, and of
//! these only those that the owner named.

mod keep_alive;
mod lease;
mod memory;
mod model;
mod openai;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tirami_core::ModelDigest;
use tirami_infer::engine::{Engine, EngineLoad};
use tirami_infer::loader::Loader;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};

pub use keep_alive::KeepAlive;
pub use lease::{Lease, LeaseError};
pub use memory::machine_bytes;
pub use model::{Model, ModelState};
pub use openai::{BUILD as OPENAI_BUILD, OpenAiEngine, Server, Serves};

/// Why this node's own engine answers.
pub(crate) const SERVES_ITSELF: &str = "this node serves the model itself";
/// The same where the engine is a server elsewhere.
const SERVES_FROM_ELSEWHERE: &str =
    "a server elsewhere computes the model for this node, and is sent the text";

/// Why this node's own engine answers, which names this build in its receipts.
pub(crate) fn why_here(build: &str) -> &'static str {
    if build == OPENAI_BUILD { SERVES_FROM_ELSEWHERE } else { SERVES_ITSELF }
}

/// Models a node knows at most.
pub const MODELS_MAX: usize = 64;
/// Requests that wait for models to be loaded at most, all models together.
pub const LOADS_WAITING_MAX: usize = 256;
/// How often models that rest are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long models stay in memory and how much of it they may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes that all loaded models may take together; none for no bound.
    pub memory_bytes: Option<u64>,
    /// How long a model stays after its last use, unless a request says otherwise.
    pub keep_alive: KeepAlive,
}

/// The models of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Models(Arc<Shared>);

/// Looks for more models than those the owner named, and adds them with [`Models::know`].
pub type Finder = dyn Fn(&Models) + Send + Sync;

struct Shared {
    bounds: Bounds,
    all: RwLock<Vec<Model>>,
    /// Held by whoever loads or unloads.
    turn: Arc<Semaphore>,
    waiting: AtomicUsize,
    finder: OnceLock<Box<Finder>>,
    /// Held by whoever looks for models.
    finding: Arc<Semaphore>,
}

impl Models {
    /// No models yet.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Shared {
            bounds,
            all: RwLock::default(),
            turn: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
            finder: OnceLock::new(),
            finding: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Adds a model that the owner named: it is offered to other nodes while it is in memory.
    /// Whether it is new; a model that is known already, or one above [`MODELS_MAX`], is not.
    pub fn serve(&self, loader: Arc<dyn Loader>) -> bool {
        self.add(Model::of(loader, true))
    }

    /// As [`Models::serve`], for a model that only this node's own callers may use.
    pub fn know(&self, loader: Arc<dyn Loader>) -> bool {
        self.add(Model::of(loader, false))
    }

    /// Adds an engine that is always there.
    pub fn serve_engine(&self, engine: Arc<dyn Engine>) -> bool {
        self.add(Model::always(engine))
    }

    /// Says how more models are looked for; the first who says so counts.
    pub fn found_by(&self, finder: Box<Finder>) {
        drop(self.0.finder.set(finder));
    }

    /// Looks for more models. It takes long where large files are new.
    pub async fn look(&self) {
        let Ok(finding) = Arc::clone(&self.0.finding).acquire_owned().await else { return };
        let models = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let _finding = finding;
            if let Some(finder) = models.0.finder.get() {
                finder(&models);
            }
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "looking for models broke off");
        }
    }

    /// Requests that wait for models to be loaded.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Bytes that all loaded models may take together; none for no bound.
    pub fn memory_budget(&self) -> Option<u64> {
        self.0.bounds.memory_bytes
    }

    fn add(&self, model: Model) -> bool {
        let mut all = self.0.all.write().unwrap_or_else(PoisonError::into_inner);
        let is_known = |one: &Model| {
            let (one, new) = (one.info(), model.info());
            one.digest == new.digest || one.name == new.name
        };
        let is_new = all.len() < MODELS_MAX && !all.iter().any(is_known);
        if is_new {
            all.push(model);
        }
        is_new
    }

    /// All models, in the order in which they were named.
    pub fn all(&self) -> Vec<Model> {
        self.0.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first one, which figures are shown in and which is meant when none is named.
    pub fn first(&self) -> Option<Model> {
        self.0.all.read().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// The model of this name, or of this digest as text.
    pub fn find(&self, name: &str) -> Option<Model> {
        self.pick(|model| name == model.info().name)
            .or_else(|| self.by_digest(name.parse::<ModelDigest>().ok()?))
    }

    /// The model of this digest.
    pub fn by_digest(&self, digest: ModelDigest) -> Option<Model> {
        self.pick(|model| model.info().digest == digest)
    }

    fn pick(&self, is_it: impl Fn(&Model) -> bool) -> Option<Model> {
        let all = self.0.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|model| is_it(model)).cloned()
    }

    /// How busy all engines are together.
    pub fn load(&self) -> EngineLoad {
        self.all().iter().map(Model::load).fold(EngineLoad::default(), |sum, load| EngineLoad {
            places: sum.places.saturating_add(load.places),
            taken_by_others: sum.taken_by_others.saturating_add(load.taken_by_others),
            running: sum.running.saturating_add(load.running),
            queued: sum.queued.saturating_add(load.queued),
            completion_tokens_total: sum.completion_tokens_total + load.completion_tokens_total,
            prompt_tokens_total: sum.prompt_tokens_total + load.prompt_tokens_total,
            guessed_tokens_total: sum.guessed_tokens_total + load.guessed_tokens_total,
        })
    }

    /// Bytes that loaded models take together.
    pub fn memory_bytes(&self) -> u64 {
        let loaded = self.all().into_iter().filter(Model::is_loaded);
        loaded.fold(0, |sum, model| sum.saturating_add(model.memory_bytes()))
    }

    /// The engine of `model`, loaded first where it is not in memory, and again where it has ended.
    /// `keep` says how long the model then stays after its last use, in place of what the owner
    /// set.
    ///
    /// Waiting for it can be given up: a load that has begun goes on, and the model is there for
    /// the next request.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]; nothing was unloaded unless room was made for a load that then failed.
    pub async fn lease(&self, model: &Model, keep: Option<KeepAlive>) -> Result<Lease, LeaseError> {
        model.keep(keep);
        if let Some(lease) = model.lease() {
            return Ok(lease);
        }
        let _place = Waiting::enter(&self.0, model)?;
        let asked = model.attempts_ended();
        let stopped = |_| LeaseError::Failed {
            model: model.info().name.clone(),
            reason: "the node is stopping".to_owned(),
        };
        let turn = Arc::clone(&self.0.turn).acquire_owned().await.map_err(stopped)?;
        if let Some(lease) = model.lease() {
            return Ok(lease);
        }
        // Whoever waited behind a load of the same model that failed is told why; trying again at
        // once would fail again.
        if let Some(reason) = model.failed_since(asked) {
            return Err(LeaseError::Failed { model: model.info().name.clone(), reason });
        }
        model.unload_if(ModelState::is_dead).await;
        self.make_room(model).await?;
        let loading = model.clone();
        let task = tokio::spawn(async move {
            let _turn = turn;
            loading.read_in().await
        });
        match task.await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(reason)) => Err(LeaseError::Failed { model: model.info().name.clone(), reason }),
            Err(error) => {
                tracing::error!(%error, "a load broke off");
                let reason = "the load broke off; the node's log says why".to_owned();
                Err(LeaseError::Failed { model: model.info().name.clone(), reason })
            }
        }
    }

    /// Unloads the least recently used models that rest until `model` fits.
    async fn make_room(&self, model: &Model) -> Result<(), LeaseError> {
        let Some(budget) = self.0.bounds.memory_bytes else { return Ok(()) };
        let (name, needed) = (model.info().name.clone(), model.memory_bytes());
        let mut loaded: Vec<Model> = self.all().into_iter().filter(Model::is_loaded).collect();
        loaded.sort_by_key(Model::used_at);
        let sum = |models: &[Model], is_counted: fn(&Model) -> bool| {
            let counted = models.iter().filter(|model| is_counted(model));
            counted.fold(0_u64, |sum, model| sum.saturating_add(model.memory_bytes()))
        };
        if needed > budget.saturating_sub(sum(&loaded, Model::is_permanent)) {
            return Err(LeaseError::TooLarge { model: name, needed, budget });
        }
        if needed > budget.saturating_sub(sum(&loaded, Model::is_needed)) {
            return Err(LeaseError::NoRoom { model: name, needed, budget });
        }
        for one in loaded.iter().filter(|model| !model.is_needed()) {
            if needed <= budget.saturating_sub(self.memory_bytes()) {
                break;
            }
            // One that was taken into use meanwhile stays.
            one.unload_if(|state| state.users() == 0).await;
        }
        if needed > budget.saturating_sub(self.memory_bytes()) {
            return Err(LeaseError::NoRoom { model: name, needed, budget });
        }
        Ok(())
    }

    /// Unloads `model` unless somebody uses it. Whether it is out of memory now.
    pub async fn unload(&self, model: &Model) -> bool {
        let Ok(_turn) = self.0.turn.acquire().await else { return false };
        model.unload_if(|state| state.users() == 0).await;
        !model.is_loaded()
    }

    /// Looks for more models, then unloads those that nobody used for as long as they are kept, and
    /// loads again those whose engine has ended before that, for ever.
    pub(crate) async fn run(self) {
        self.look().await;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let usual = self.0.bounds.keep_alive;
            let is_over = move |state: &ModelState| {
                let keep = state.keep().unwrap_or(usual);
                state.users() == 0 && keep.is_over(state.idle(Instant::now()))
            };
            for model in self.all() {
                if !model.is(is_over) {
                    if model.is_to_be_revived() {
                        // What stands in the way is in the log, and said to who asks for it.
                        drop(self.lease(&model, None).await);
                    }
                    continue;
                }
                // A load in progress may need what is looked at here, or make it needless.
                let Ok(_turn) = self.0.turn.try_acquire() else { break };
                model.unload_if(is_over).await;
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_tuple("Models").field(&*all).finish()
    }
}

/// Engines that are always there, in no bounds.
impl FromIterator<Arc<dyn Engine>> for Models {
    fn from_iter<T: IntoIterator<Item = Arc<dyn Engine>>>(engines: T) -> Self {
        let models = Self::new(Bounds { memory_bytes: None, keep_alive: KeepAlive::FOREVER });
        for engine in engines {
            models.serve_engine(engine);
        }
        models
    }
}

/// A place among those who wait for a load.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(shared: &'a Shared, model: &Model) -> Result<Self, LeaseError> {
        let place = Self(&shared.waiting);
        if place.0.fetch_add(1, Ordering::Relaxed) >= LOADS_WAITING_MAX {
            return Err(LeaseError::Busy { model: model.info().name.clone() });
        }
        Ok(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
