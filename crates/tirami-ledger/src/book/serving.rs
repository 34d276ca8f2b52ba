//! To whom and how far a node serves: its owner's choice, which never enters shared state
//! (MONEY §9).

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};
use tirami_core::{HOUR_MS, ModelShape, PartyId, Ppm, Trm};

use super::answer_cost;
use crate::Rejection;

/// Answers that a consumer may owe before its first job is paid.
pub const EXPOSURE_START_ANSWERS: u64 = 16;
/// Answers that a consumer may owe at most.
pub const EXPOSURE_ANSWERS: u64 = 1_024;
/// Answers that all consumers that are not enrolled may owe together for one day's jobs.
pub const EXPOSURE_UNKNOWN_ANSWERS: u64 = 64;
/// How old the last word on a consumer's head may be when nothing else is set, in milliseconds.
/// During a partition jobs go on for so long; what they may cost is bounded by the exposure.
pub const FRESH_MS: u64 = HOUR_MS;
/// Jobs of other nodes served at once at most, whatever the owner sets.
pub const SERVED_RUNNING_MAX: u32 = 4_096;
/// Parties in each list of a [`ServingPolicy`] at most.
pub const SERVING_LIST_MAX: usize = 4_096;

/// What a node risks with the consumers it serves.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServingPolicy {
    /// What a consumer may owe before its first job is paid. It doubles with each job paid.
    #[n(0)]
    pub exposure_start: Trm,
    /// What a consumer may owe at most. Also what a trusted one may owe from the beginning.
    #[n(1)]
    pub exposure_max: Trm,
    /// What all consumers that are not enrolled may owe together for the jobs of a sliding day.
    #[n(2)]
    pub exposure_unknown_day: Trm,
    /// How old the last word on a consumer's head may be, in milliseconds.
    #[n(3)]
    pub fresh_ms: u64,
    /// Jobs of other nodes served at once at most.
    #[n(4)]
    pub jobs_max: u32,
    /// Whether no new job is taken for now, for whatever reason.
    #[n(5)]
    pub paused: bool,
    /// Parties that are not served; at most [`SERVING_LIST_MAX`].
    #[n(6)]
    pub blocked: BTreeSet<PartyId>,
    /// Parties that need not earn their exposure; at most [`SERVING_LIST_MAX`].
    #[n(7)]
    pub trusted: BTreeSet<PartyId>,
    /// Whether the owner paused it: then the owner's rules of hours and idleness do not lift it.
    #[cbor(n(8), default, skip_if = "is_off")]
    pub paused_by_owner: bool,
    /// While other nodes' jobs take so many places or more, only nodes that served this one get
    /// the rest; 0 for no such rule.
    #[cbor(n(9), default, skip_if = "is_zero")]
    pub contributors_above: u32,
    /// Whom of `blocked` the settings added at the last start: the next one takes those off again.
    #[cbor(n(10), default, skip_if = "BTreeSet::is_empty")]
    pub blocked_by_settings: BTreeSet<PartyId>,
    /// The same of `trusted`.
    #[cbor(n(11), default, skip_if = "BTreeSet::is_empty")]
    pub trusted_by_settings: BTreeSet<PartyId>,
}

/// Left out of the bytes where it says nothing, so that equal records have equal bytes.
fn is_off(word: &bool) -> bool {
    !word
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Default for ServingPolicy {
    /// Serves nobody: what a node risks is for its owner to say.
    fn default() -> Self {
        Self {
            exposure_start: Trm::ZERO,
            exposure_max: Trm::ZERO,
            exposure_unknown_day: Trm::ZERO,
            fresh_ms: FRESH_MS,
            jobs_max: 0,
            paused: true,
            blocked: BTreeSet::new(),
            trusted: BTreeSet::new(),
            paused_by_owner: false,
            contributors_above: 0,
            blocked_by_settings: BTreeSet::new(),
            trusted_by_settings: BTreeSet::new(),
        }
    }
}

impl ServingPolicy {
    /// What a node that serves a model of `shape` at `price` risks when its owner says nothing
    /// else: limits counted in answers, and `jobs_max` jobs at once.
    pub fn for_model(shape: &ModelShape, price: Ppm, jobs_max: u32) -> Self {
        let answer = answer_cost(shape, price).micro();
        let answers = |count: u64| Trm::from_micro(answer.saturating_mul(count));
        Self {
            exposure_start: answers(EXPOSURE_START_ANSWERS),
            exposure_max: answers(EXPOSURE_ANSWERS),
            exposure_unknown_day: answers(EXPOSURE_UNKNOWN_ANSWERS),
            jobs_max: jobs_max.min(SERVED_RUNNING_MAX),
            paused: false,
            ..Self::default()
        }
    }

    pub(super) fn check(&self) -> Result<(), Rejection> {
        let named = [&self.blocked_by_settings, &self.trusted_by_settings];
        let mut lists = [&self.blocked, &self.trusted].into_iter().chain(named);
        if lists.any(|list| list.len() > SERVING_LIST_MAX) {
            let field = "blocked and trusted";
            return Err(Rejection::OutOfRange { field, range: "at most 4096 parties each" });
        }
        if self.jobs_max > SERVED_RUNNING_MAX {
            return Err(Rejection::OutOfRange { field: "jobs_max", range: "at most 4096" });
        }
        if self.exposure_start > self.exposure_max {
            let range = "at most exposure_max";
            return Err(Rejection::OutOfRange { field: "exposure_start", range });
        }
        Ok(())
    }

    /// What a consumer with `settled` paid jobs may owe.
    pub(super) fn exposure(&self, consumer: PartyId, settled: u32) -> Trm {
        if self.trusted.contains(&consumer) {
            return self.exposure_max;
        }
        let doubled = self.exposure_start.micro().checked_mul(1_u64 << settled.min(63));
        doubled.map_or(self.exposure_max, |micro| Trm::from_micro(micro).min(self.exposure_max))
    }
}
