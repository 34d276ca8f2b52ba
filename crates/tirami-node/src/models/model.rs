//! One model: what is known of it, and whether it is in memory.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tirami_infer::engine::{Engine, EngineLoad, ModelInfo};
use tirami_infer::loader::Loader;

use super::{KeepAlive, Lease};

/// Before an engine that ended by itself is loaded again unasked: at first, and at most. Each time
/// it ends or fails again soon the pause is twice as long.
const REVIVAL_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// A model that this node knows. Cheap to clone.
#[derive(Clone)]
pub struct Model(Arc<Known>);

struct Known {
    info: ModelInfo,
    memory_bytes: u64,
    /// Whether other nodes are offered it.
    is_offered: bool,
    /// None for an engine that is always there.
    loader: Option<Arc<dyn Loader>>,
    state: Mutex<ModelState>,
}

/// What changes about a model.
pub struct ModelState {
    engine: Option<Arc<dyn Engine>>,
    users: u32,
    used_at: Instant,
    keep: Option<KeepAlive>,
    is_loading: bool,
    loaded_at: Instant,
    /// Its engine ended by itself: when the next one is loaded unasked.
    revival: Option<Instant>,
    /// The pause before that.
    pause: Duration,
    attempts: u64,
    failed: Option<(u64, String)>,
    /// What engines that were unloaded had produced, read and guessed.
    past: (u64, u64, u64),
}

impl ModelState {
    fn new(engine: Option<Arc<dyn Engine>>) -> Self {
        Self {
            engine,
            users: 0,
            used_at: Instant::now(),
            keep: None,
            is_loading: false,
            loaded_at: Instant::now(),
            revival: None,
            pause: Duration::ZERO,
            attempts: 0,
            failed: None,
            past: (0, 0, 0),
        }
    }

    /// Leases that live.
    pub const fn users(&self) -> u32 {
        self.users
    }

    /// Since when nobody uses it; nothing while somebody does.
    pub fn idle(&self, now: Instant) -> Duration {
        if self.users > 0 { Duration::ZERO } else { now.saturating_duration_since(self.used_at) }
    }

    /// Whether its engine has ended by itself and nobody has to do with it any more: until then
    /// its memory is taken.
    pub(super) fn is_dead(&self) -> bool {
        self.users == 0 && self.engine.as_ref().is_some_and(|engine| !engine.is_alive())
    }

    /// Its engine has ended, or could not be loaded again.
    fn revive_later(&mut self) {
        let (least, most) = REVIVAL_PAUSE;
        let has_lived = self.engine.is_some() && self.loaded_at.elapsed() > most;
        let pause = if has_lived { least } else { 2 * self.pause };
        self.pause = pause.clamp(least, most);
        self.revival = Some(Instant::now() + self.pause);
    }

    /// How long the last request that said so wants it to stay.
    pub const fn keep(&self) -> Option<KeepAlive> {
        self.keep
    }
}

impl Model {
    pub(super) fn of(loader: Arc<dyn Loader>, is_offered: bool) -> Self {
        Self(Arc::new(Known {
            info: loader.model().clone(),
            memory_bytes: loader.memory_bytes(),
            is_offered,
            loader: Some(loader),
            state: Mutex::new(ModelState::new(None)),
        }))
    }

    pub(super) fn always(engine: Arc<dyn Engine>) -> Self {
        Self(Arc::new(Known {
            info: engine.model().clone(),
            memory_bytes: 0,
            is_offered: true,
            loader: None,
            state: Mutex::new(ModelState::new(Some(engine))),
        }))
    }

    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Tokens one picture takes at most, as measured where it is loaded; 0 where it reads none.
    pub fn image_tokens_max(&self) -> u32 {
        let engine = self.state().engine.clone();
        engine.map_or(self.0.info.image_tokens_max, |engine| engine.model().image_tokens_max)
    }

    /// Whether its tokens are the model's own, as [`Engine::has_vocabulary`] says.
    pub fn has_vocabulary(&self) -> bool {
        self.is(|state| state.engine.as_ref().is_none_or(|engine| engine.has_vocabulary()))
    }

    /// Whether it answers chats, as [`Engine::answers_chats`] says.
    pub fn answers_chats(&self) -> bool {
        self.is(|state| state.engine.as_ref().is_none_or(|engine| engine.answers_chats()))
    }

    /// Memory it takes while it is loaded, in bytes; 0 for an engine outside of this machine's
    /// budget.
    pub fn memory_bytes(&self) -> u64 {
        self.0.memory_bytes
    }

    /// Whether the owner named it, so that other nodes are offered it.
    pub fn is_offered(&self) -> bool {
        self.0.is_offered
    }

    /// Whether its engine is there.
    pub fn is_loaded(&self) -> bool {
        self.is(|state| state.engine.is_some())
    }

    /// Whether it is being loaded.
    pub fn is_loading(&self) -> bool {
        self.is(|state| state.is_loading)
    }

    /// Whether nothing can unload it.
    pub fn is_permanent(&self) -> bool {
        self.0.loader.is_none()
    }

    /// Whether it cannot be unloaded now.
    pub fn is_needed(&self) -> bool {
        self.is_permanent() || self.is(|state| state.users > 0)
    }

    /// Whether it can answer once it is loaded: its engine has not ended.
    pub fn is_alive(&self) -> bool {
        self.is(|state| state.engine.as_ref().is_none_or(|engine| engine.is_alive()))
    }

    /// Whether what `asks` says is so.
    pub fn is(&self, asks: impl FnOnce(&ModelState) -> bool) -> bool {
        asks(&self.state())
    }

    /// How long nobody has used it.
    pub fn idle(&self) -> Duration {
        self.state().idle(Instant::now())
    }

    /// How busy its engine is. Totals count since the node started.
    pub fn load(&self) -> EngineLoad {
        let state = self.state();
        let mut load = state.engine.as_ref().map(|engine| engine.load()).unwrap_or_default();
        load.completion_tokens_total += state.past.0;
        load.prompt_tokens_total += state.past.1;
        load.guessed_tokens_total += state.past.2;
        load
    }

    pub(super) fn used_at(&self) -> Instant {
        self.state().used_at
    }

    pub(super) fn keep(&self, keep: Option<KeepAlive>) {
        if keep.is_some() {
            self.state().keep = keep;
        }
    }

    /// How many loads of it have ended, well or not.
    pub(super) fn attempts_ended(&self) -> u64 {
        let state = self.state();
        state.attempts - u64::from(state.is_loading)
    }

    /// Why it could not be loaded, when that was found out after so many attempts.
    pub(super) fn failed_since(&self, attempts: u64) -> Option<String> {
        let state = self.state();
        let (at, reason) = state.failed.as_ref()?;
        (*at > attempts).then(|| reason.clone())
    }

    /// Whether its engine has ended by itself and it is time to load another.
    pub(super) fn is_to_be_revived(&self) -> bool {
        let mut state = self.state();
        if self.is_permanent() || state.is_loading {
            return false;
        }
        if state.is_dead() && state.revival.is_none() {
            tracing::error!(model = self.0.info.name, "an engine has ended");
            state.revive_later();
        }
        let is_missing = state.engine.is_none() || state.is_dead();
        is_missing && state.revival.is_some_and(|at| at <= Instant::now())
    }

    /// Its engine, where it is in memory and has not ended, or nothing could take its place.
    pub fn lease(&self) -> Option<Lease> {
        let mut state = self.state();
        if !self.is_permanent() && state.is_dead() {
            return None;
        }
        let engine = Arc::clone(state.engine.as_ref()?);
        state.users = state.users.saturating_add(1);
        Some(Lease::new(self.clone(), engine))
    }

    pub(super) fn used_again(&self) {
        let mut state = self.state();
        state.users = state.users.saturating_add(1);
    }

    pub(super) fn returned(&self) {
        let mut state = self.state();
        state.users = state.users.saturating_sub(1);
        state.used_at = Instant::now();
    }

    /// Loads it. The caller has the turn and has made room.
    pub(super) async fn read_in(&self) -> Result<Lease, String> {
        let Some(loader) = self.0.loader.clone() else {
            return Err("its engine has ended".to_owned());
        };
        {
            let mut state = self.state();
            state.is_loading = true;
            state.attempts += 1;
        }
        let name = &self.0.info.name;
        let begun = Instant::now();
        tracing::info!(model = name, "loading a model");
        let loaded = tokio::task::spawn_blocking(move || loader.load()).await;
        let loaded = loaded.unwrap_or_else(|error| Err(format!("the load broke off: {error}")));
        let mut state = self.state();
        state.is_loading = false;
        match loaded {
            Ok(engine) => {
                tracing::info!(model = name, ms = begun.elapsed().as_millis(), "loaded a model");
                state.engine = Some(Arc::clone(&engine));
                (state.loaded_at, state.revival) = (Instant::now(), None);
                state.failed = None;
                state.users = state.users.saturating_add(1);
                drop(state);
                Ok(Lease::new(self.clone(), engine))
            }
            Err(reason) => {
                tracing::warn!(model = name, reason, "a model could not be loaded");
                state.failed = Some((state.attempts, reason.clone()));
                if state.revival.is_some() {
                    state.revive_later();
                }
                Err(reason)
            }
        }
    }

    /// Takes it out of memory, where `may` says so and it can be loaded again.
    pub(super) async fn unload_if(&self, may: impl FnOnce(&ModelState) -> bool) {
        let engine = {
            let mut state = self.state();
            if self.is_permanent() || !may(&state) {
                return;
            }
            if !state.is_dead() {
                state.revival = None;
            } else if state.revival.is_none() {
                state.revive_later();
            }
            let Some(engine) = state.engine.take() else { return };
            let load = engine.load();
            state.past.0 += load.completion_tokens_total;
            state.past.1 += load.prompt_tokens_total;
            state.past.2 += load.guessed_tokens_total;
            state.keep = None;
            engine
        };
        tracing::info!(model = self.0.info.name, "unloading a model");
        // An engine waits for its thread when it ends, and memory is given back slowly.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(engine)).await {
            tracing::error!(%error, "an engine did not end well");
        }
    }

    fn state(&self) -> MutexGuard<'_, ModelState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Model").field(&self.0.info.name).finish()
    }
}

impl fmt::Debug for ModelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelState").field("users", &self.users).finish_non_exhaustive()
    }
}
