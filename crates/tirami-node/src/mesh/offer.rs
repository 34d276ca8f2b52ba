//! Tells the kernel every few seconds what this node serves: its models, how fast each is, how
//! many places are free, for how much, and whether the owner lets others use them now.

use std::collections::BTreeMap;
use std::time::Duration;

use tirami_core::{ModelDigest, Ppm};
use tirami_kernel::Kernel;
use tirami_kernel::mesh::{MeshInput, OwnOffer};
use tirami_ledger::book::ServingPolicy;
use tirami_proto::{OFFERS_MAX, Offer};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::handle::{Handle, SubmitError};
use crate::models::{Model, Models};

/// How often the owner's word is looked at: a pause reaches running jobs within this time.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The kernel hears of it after so many looks, and at once when the owner's word changed.
const LOOKS_PER_OFFER: u32 = 4;
/// How much a new measurement of the speed counts, in percent.
const NEW_PERCENT: u64 = 25;

/// What this node serves, and where to tell.
pub(crate) struct Offering {
    pub(crate) handle: Handle,
    pub(crate) models: Models,
    /// Generations that run at the same time.
    pub(crate) sequences: u32,
    pub(crate) region: String,
    /// Where people may reach its HTTP API.
    pub(crate) http_endpoint: Option<String>,
    pub(crate) halted: watch::Sender<bool>,
}

/// What the book says about serving.
struct Standing {
    price: Ppm,
    policy: ServingPolicy,
    killed: bool,
    served: u32,
    is_member: bool,
}

impl Offering {
    /// Tells until the kernel has stopped.
    pub(crate) async fn run(self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut speeds = BTreeMap::new();
        let mut count = 0_u32;
        let mut told = None;
        loop {
            looks.tick().await;
            let standing = match self.handle.read(standing).await {
                Ok(standing) => standing,
                Err(SubmitError::Busy) => continue,
                Err(_) => return,
            };
            let halted = standing.killed || standing.policy.paused;
            self.halted.send_replace(halted);
            let models = self.offered();
            for model in &models {
                let speed = speeds.entry(model.info().digest).or_insert_with(|| Speed::new(model));
                speed.look(model);
            }
            let offer = self.offer(&standing, &models, &speeds);
            let names: Vec<ModelDigest> = offer.models.iter().map(|offer| offer.model).collect();
            let terms = (offer.serving, offer.price, names);
            let changed = told.as_ref() != Some(&terms);
            if changed || count.is_multiple_of(LOOKS_PER_OFFER) {
                told = Some(terms);
                if self.handle.mesh_input(MeshInput::Offer(Some(offer))).await.is_err() {
                    return;
                }
            }
            count = count.wrapping_add(1);
        }
    }

    /// The models that others may have now, the first ones of those there are.
    fn offered(&self) -> Vec<Model> {
        let may = |model: &Model| model.is_offered() && model.is_loaded() && model.is_alive();
        self.models.all().into_iter().filter(may).take(OFFERS_MAX).collect()
    }

    fn offer(
        &self,
        standing: &Standing,
        models: &[Model],
        speeds: &BTreeMap<ModelDigest, Speed>,
    ) -> OwnOffer {
        let load = self.models.load();
        // Engines elsewhere have places of their own. A job for any model finds one free when as
        // many run as the model with the fewest can.
        let least = models.iter().map(|model| model.load().places).filter(|places| *places > 0);
        let places = least.min().unwrap_or(self.sequences);
        let slots = standing.policy.jobs_max.min(places);
        let taken = load.running.saturating_add(load.queued).max(standing.served);
        let is_halted = standing.killed || standing.policy.paused;
        let serving = !is_halted && slots > 0 && standing.is_member && !models.is_empty();
        let offered = |model: &Model| {
            let tokens_per_second_milli =
                speeds.get(&model.info().digest).map_or(0, |speed| speed.milli);
            let image_tokens_max = model.image_tokens_max();
            let model = model.info();
            Offer {
                model: model.digest,
                name: within(&model.name, tirami_proto::MODEL_NAME_BYTES_MAX),
                quantisation: within(&model.quantisation, 24),
                context_tokens: model.context_tokens,
                shape: model.shape,
                tokens_per_second_milli,
                build: within(&model.build, 64),
                embedding_width: model.embedding_width,
                image_tokens_max,
            }
        };
        OwnOffer {
            price: standing.price,
            cached_price: standing.price,
            slots_free: small(slots.saturating_sub(taken)),
            slots: small(slots),
            queue: small(load.queued),
            models: models.iter().map(offered).collect(),
            region: self.region.clone(),
            http_endpoint: self.http_endpoint.clone(),
            serving,
        }
    }
}

fn standing(kernel: &Kernel, _: tirami_core::Timestamp) -> Standing {
    let (ledger, book) = (kernel.ledger(), kernel.ledger().book());
    Standing {
        price: book.price(),
        policy: book.serving().clone(),
        killed: book.kill().is_some(),
        served: u32::try_from(book.served_running()).unwrap_or(u32::MAX),
        is_member: ledger.lattice().chain(ledger.party()).is_some(),
    }
}

/// How fast one generation is, as measured over those that ran.
struct Speed {
    tokens: u64,
    at: Instant,
    /// Tokens per 1 000 s; 0 before the first answer.
    milli: u32,
}

impl Speed {
    fn new(model: &Model) -> Self {
        Self { tokens: model.load().completion_tokens_total, at: Instant::now(), milli: 0 }
    }

    fn look(&mut self, model: &Model) {
        let load = model.load();
        let made = load.completion_tokens_total.saturating_sub(self.tokens);
        let elapsed_ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        (self.tokens, self.at) = (load.completion_tokens_total, Instant::now());
        // What began or ended in between would count as slow.
        if made < 2 || load.running == 0 {
            return;
        }
        let each = made.saturating_mul(1_000_000) / elapsed_ms / u64::from(load.running);
        let old = u64::from(self.milli);
        let mixed = match old {
            0 => each,
            old => (old * (100 - NEW_PERCENT) + each.saturating_mul(NEW_PERCENT)) / 100,
        };
        self.milli = u32::try_from(mixed).unwrap_or(u32::MAX);
    }
}

fn small(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// The beginning of `text`, at most `bytes` long.
fn within(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
