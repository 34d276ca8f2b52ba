//! Engines that do on purpose what real ones do by accident.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tirami_core::ModelDigest;
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Failure, Generation, ModelInfo, Piece, PrepareError,
    Progress, Prompt, Sampling, StartError,
};
use tirami_infer::fake::{FakeEngine, FakeScript};
use tokio::sync::mpsc;

/// Where an engine stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It gives up before its first token.
    GivesUp,
    /// It gives the job's place in its queue to others.
    GivesWay,
    /// It has read one token of the prompt and reads no more.
    Prefill,
    /// It keeps the job at one place of its queue.
    Queue,
    /// It has made so many tokens.
    Tokens(usize),
    /// It has made so many tokens, and finds the answer's format too costly.
    Costly(usize),
    /// It has made all tokens and does not say that they are all.
    End,
    /// None: it reads the prompt slowly, half a second for a token.
    SlowReader,
    /// None: its first tokens take three and a half seconds each.
    SlowWriter,
    /// It makes a token each second, and after the third one none.
    SlowThenStill,
}

/// Which trouble comes when: a prompt of `n` tokens meets the `n`th once, at whichever engine is
/// asked first.
#[derive(Clone)]
pub(crate) struct Troubles(Arc<(Vec<Trouble>, Mutex<BTreeSet<usize>>)>);

impl Troubles {
    pub(crate) fn new(all: &[Trouble]) -> Self {
        Self(Arc::new((all.to_vec(), Mutex::default())))
    }

    fn take(&self, prompt: &Prompt) -> Option<Trouble> {
        let (all, met) = &*self.0;
        let at = prompt.tokens.len();
        let trouble = *all.get(at.checked_sub(1)?)?;
        met.lock().unwrap().insert(at).then_some(trouble)
    }
}

/// A scripted engine whose pace, places and troubles can be set.
pub(crate) struct Odd {
    inner: FakeEngine,
    troubles: Troubles,
    /// Before each token.
    pub(crate) delay_ms: AtomicU64,
    /// 0 for as many as there are.
    pub(crate) places: AtomicU32,
    /// Jobs that it says wait for a place.
    pub(crate) queued: AtomicU32,
    /// Fails after so many tokens; 0 never.
    pub(crate) fail_after: AtomicU32,
    /// How often the text of a token is repeated.
    pub(crate) fat: AtomicU32,
    /// Answers under way: the engine inside is done long before its pauses are over.
    running: Arc<AtomicU32>,
}

impl Odd {
    pub(crate) fn new(tokens: u32, delay_ms: u64) -> Arc<Self> {
        Self::with(tokens, delay_ms, Troubles::new(&[]), |_| {})
    }

    pub(crate) fn with(
        tokens: u32,
        delay_ms: u64,
        troubles: Troubles,
        change: impl FnOnce(&mut ModelInfo),
    ) -> Arc<Self> {
        let script =
            FakeScript { tokens_per_answer: tokens, delay: Duration::ZERO, fail_after: None };
        let mut info = FakeEngine::new(script.clone()).model().clone();
        change(&mut info);
        Arc::new(Self {
            inner: FakeEngine::with_model(script, info),
            troubles,
            delay_ms: AtomicU64::new(delay_ms),
            places: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            fail_after: AtomicU32::new(0),
            fat: AtomicU32::new(1),
            running: Arc::default(),
        })
    }

    /// The same model in another quantisation, which is another file.
    pub(crate) fn quantised(tokens: u32, quantisation: &str) -> Arc<Self> {
        Self::with(tokens, 1, Troubles::new(&[]), |info| {
            info.quantisation = quantisation.to_owned();
            info.digest = ModelDigest::from_bytes([0xfb; 32]);
        })
    }
}

impl Engine for Odd {
    fn model(&self) -> &ModelInfo {
        self.inner.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.inner.prepare(conversation)
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        let trouble = self.troubles.take(&prompt);
        let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed));
        let (fail_after, fat) =
            (self.fail_after.load(Ordering::Relaxed), self.fat.load(Ordering::Relaxed));
        let mut inner = self.inner.start(prompt, sampling)?;
        // One at a time, so that a slow reader holds the work up.
        let (sender, pieces) = mpsc::channel(1);
        let progress = Arc::new(Progress::default());
        let told = Arc::clone(&progress);
        let running = Arc::clone(&self.running);
        running.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let answer = async {
                match trouble {
                    Some(Trouble::GivesUp) => {
                        let reason = "told to".to_owned();
                        let _ = sender.send(Piece::Failed { reason }).await;
                        return;
                    }
                    Some(Trouble::GivesWay) => {
                        told.failed(Failure::Full);
                        let reason = Failure::Full.to_string();
                        let _ = sender.send(Piece::Failed { reason }).await;
                        return;
                    }
                    Some(Trouble::Prefill) => {
                        told.read(1);
                        core::future::pending::<()>().await;
                    }
                    Some(Trouble::Queue) => {
                        told.queued(2);
                        core::future::pending::<()>().await;
                    }
                    Some(Trouble::SlowReader) => {
                        for read in 1..=10 {
                            told.read(read);
                            tokio::time::sleep(Duration::from_millis(500)).await;
                        }
                    }
                    _ => {}
                }
                let mut made = 0;
                while let Some(piece) = inner.pieces.recv().await {
                    let is_end = matches!(piece, Piece::End { .. });
                    if trouble == Some(Trouble::Tokens(made))
                        || (is_end && trouble == Some(Trouble::End))
                    {
                        core::future::pending::<()>().await;
                    }
                    if trouble == Some(Trouble::Costly(made)) {
                        told.failed(Failure::Costly);
                        let reason = Failure::Costly.to_string();
                        let _ = sender.send(Piece::Failed { reason }).await;
                        return;
                    }
                    if fail_after > 0 && made == fail_after as usize {
                        let reason = "told to".to_owned();
                        let _ = sender.send(Piece::Failed { reason }).await;
                        return;
                    }
                    tokio::time::sleep(match trouble {
                        Some(Trouble::SlowWriter) if (1..4).contains(&made) => {
                            Duration::from_millis(3_500)
                        }
                        Some(Trouble::SlowThenStill) if made == 3 => Duration::from_secs(3_600),
                        Some(Trouble::SlowThenStill) => Duration::from_secs(1),
                        _ => delay,
                    })
                    .await;
                    let piece = match piece {
                        Piece::Delta { tokens, text, logprobs } => {
                            made += tokens.len();
                            Piece::Delta { tokens, text: text.repeat(fat as usize), logprobs }
                        }
                        other => other,
                    };
                    if sender.send(piece).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = sender.closed() => {}
                () = answer => {}
            }
            running.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(Generation::new(pieces, progress))
    }

    fn load(&self) -> EngineLoad {
        let (places, running) =
            (self.places.load(Ordering::Relaxed), self.running.load(Ordering::Relaxed));
        let queued = self.queued.load(Ordering::Relaxed);
        EngineLoad { places, running, queued, ..self.inner.load() }
    }
}
