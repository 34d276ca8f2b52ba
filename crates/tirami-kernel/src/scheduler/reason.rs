//! The sentences of the scheduler: why a provider was chosen, why none could be.

use core::fmt;
use std::collections::BTreeMap;

use tirami_core::{Ppm, Trm};

use super::Sort;

/// Why a candidate stands where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The requester named it in `provider.order`.
    Ordered {
        /// Its place there, from 1.
        place: usize,
    },
    /// It was not measured lately and gets a job to learn how it does.
    Explored,
    /// The requester asked for this first.
    Sorted(Sort),
    /// It answered the beginning of this prompt and has it cached.
    Prefix,
    /// What this node measured.
    Measured {
        /// Time to the first token.
        first_token_ms: u32,
        /// Tokens per 1 000 s.
        tokens_per_second_milli: u32,
        /// How many jobs were measured.
        jobs: u32,
    },
    /// This node has not measured it yet.
    Unmeasured,
    /// This node has not measured it yet; nodes it trades with told of it.
    Heard {
        /// How many.
        nodes: u32,
    },
    /// It failed lately.
    Fails {
        /// Its failure rate.
        ppm: u64,
    },
    /// It has room.
    Free {
        /// Jobs that could start at once.
        free: u16,
        /// Jobs that can run at the same time.
        slots: u16,
    },
    /// It has no room at present.
    Busy {
        /// Jobs that wait there.
        queue: u16,
    },
    /// What it asks for.
    Price {
        /// µTRM for 10⁹ FLOP.
        price: Ppm,
    },
    /// It buys from this node too.
    Reciprocal,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordered { place } => write!(f, "named as number {place} in provider.order"),
            Self::Explored => f.write_str("not measured lately, tried to learn how it does"),
            Self::Sorted(Sort::Price) => f.write_str("sorted by price as asked"),
            Self::Sorted(Sort::Throughput) => f.write_str("sorted by measured speed as asked"),
            Self::Sorted(Sort::Latency) => f.write_str("sorted by time to first token as asked"),
            Self::Prefix => f.write_str("has the beginning of this prompt cached"),
            Self::Measured { first_token_ms, tokens_per_second_milli, jobs } => {
                let (whole, tenth) = tenths(u64::from(*tokens_per_second_milli), 1_000);
                let jobs_text = if *jobs == 1 { "job" } else { "jobs" };
                write!(
                    f,
                    "first token after {first_token_ms} ms and {whole}.{tenth} tokens/s, measured \
                     over {jobs} {jobs_text}"
                )
            }
            Self::Unmeasured => f.write_str("not measured yet"),
            Self::Heard { nodes } => {
                let nodes_text = if *nodes == 1 { "node" } else { "nodes" };
                write!(f, "told of by {nodes} {nodes_text} this one trades with")
            }
            Self::Fails { ppm } => {
                let (whole, tenth) = tenths(*ppm, 10_000);
                write!(f, "failed lately, counted as {whole}.{tenth} % of jobs")
            }
            Self::Free { free, slots } => write!(f, "{free} of {slots} places free"),
            Self::Busy { queue } => write!(f, "no place free, {queue} waiting"),
            Self::Price { price } => {
                write!(f, "asks {} TRM for 10^9 FLOP", Trm::from_micro(u64::from(price.get())))
            }
            Self::Reciprocal => f.write_str("buys from this node too"),
        }
    }
}

/// Why a provider was left out, in order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exclusion {
    /// It already failed or refused this job.
    Tried,
    /// There is no live connection to it.
    Unreachable,
    /// Its owner takes no jobs at present.
    Paused,
    /// It does not serve the model.
    Model,
    /// It names another shape of the model than the model's file has.
    Shape,
    /// The prompt is longer than the context it serves.
    Context,
    /// The requester does not want it.
    Ignored,
    /// The requester wants others only.
    NotInOnly,
    /// The requester allows no fallback beyond its order.
    Fallback,
    /// Its model has another quantisation.
    Quantisation,
    /// It is not on the owner's list of trusted peers.
    Untrusted,
    /// It is slower than the requester accepts.
    Throughput,
    /// It asked to be left alone for now.
    Waiting,
    /// The job would cost more there than at the price that the requester pays.
    Price,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tried => "already tried for this request",
            Self::Unreachable => "not connected",
            Self::Paused => "takes no jobs at present",
            Self::Model => "does not serve this model",
            Self::Shape => "names another shape of the model than its file has",
            Self::Context => "prompt longer than its context",
            Self::Ignored => "named in provider.ignore",
            Self::NotInOnly => "not in provider.only",
            Self::Fallback => "not the first choice while provider.allow_fallbacks is false",
            Self::Quantisation => "quantisation not in provider.quantizations",
            Self::Untrusted => "not trusted while provider.data is trusted",
            Self::Throughput => "slower than provider.min_throughput",
            Self::Waiting => "asked to wait",
            Self::Price => "price above provider.max_price",
        })
    }
}

/// The sentence for a request that no provider can take.
pub(super) fn refusal(asked: u32, excluded: &BTreeMap<Exclusion, u32>) -> String {
    if asked == 0 {
        return "no provider: none is known to this node; nothing was charged; serve the model \
                here, or join a mesh with: tirami join TOKEN"
            .to_owned();
    }
    let count: u32 = excluded.values().sum();
    let reasons: Vec<String> =
        excluded.iter().map(|(why, count)| format!("{why} ({count})")).collect();
    let reasons = reasons.join(", ");
    format!("no provider: {asked} asked, {count} excluded because: {reasons}; nothing was charged")
}

/// `value ÷ unit` with one decimal place, rounded down.
const fn tenths(value: u64, unit: u64) -> (u64, u64) {
    (value / unit, value % unit * 10 / unit)
}
