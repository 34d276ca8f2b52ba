//! The owner's rules: when this node serves others, on how much of the machine, at what price at
//! least. A timer looks at clock and machine; what it finds is written into the book's policy,
//! which every order is checked against.
//!
//! The owner's own word to pause is above all rules, and only the owner takes it back.

mod hours;
mod machine;
mod price;
mod refusals;
mod transfers;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tirami_core::{Ppm, Timestamp};
use tirami_kernel::Kernel;
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Config;
use crate::handle::{Handle, SubmitError};
use crate::models::Models;
use machine::Machine;
use price::{Electricity, Pace};

pub use hours::Hours;
pub use machine::OthersUse;
pub(crate) use refusals::Refusals;
pub(crate) use transfers::{TransferError, Transfers};

/// How often clock and machine are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How far the price may be from what it should be before it is changed, in ppm.
const PRICE_SLACK_PPM: u64 = 50_000;

/// What the owner's side of the node shares. One change of the policy at a time, so that none
/// takes back another.
#[derive(Debug, Default)]
pub(crate) struct Owner {
    turn: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
    transfers: OnceLock<Transfers>,
    refusals: Refusals,
}

/// What the rules are, and what was found out for them last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) hours: Option<Hours>,
    pub(crate) idle_percent: u32,
    /// What other programs use of the processors; `None` when it was not measured.
    pub(crate) busy_percent: Option<u32>,
    pub(crate) floor: Option<Ppm>,
    pub(crate) megaflops: Option<u64>,
}

impl Owner {
    pub(crate) fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// Where transfers are written down; the first who says so counts.
    pub(crate) fn keep_transfers(&self, path: PathBuf) {
        let _ = self.transfers.set(Transfers::new(path));
    }

    /// What other nodes tried here and was refused.
    pub(crate) const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(crate) fn transfers(&self) -> Option<&Transfers> {
        self.transfers.get()
    }

    /// Changes the policy as one step: nobody else changes it between reading and writing. The
    /// change says whether there is one.
    pub(crate) async fn change(
        &self,
        handle: &Handle,
        actor: Actor,
        change: impl FnOnce(&mut ServingPolicy),
    ) -> Result<(), SubmitError> {
        let _turn = self.turn.lock().await;
        let before = handle.read(|kernel, _| kernel.ledger().book().serving().clone()).await?;
        let mut policy = before.clone();
        change(&mut policy);
        if policy != before {
            handle.submit(actor, Command::SetServing(policy)).await?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Why the rules do not let the node serve at `now`; nothing when they do.
    pub(crate) fn reasons(&self, now: Timestamp) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(hours) = self.hours.filter(|hours| !hours.contain(now)) {
            reasons.push(format!("it is outside the hours of serve_hours, {hours}"));
        }
        if self.idle_percent > 0 {
            match self.busy_percent {
                Some(busy) if busy < self.idle_percent => {}
                Some(busy) => reasons.push(format!(
                    "other programs use {busy} % of the processors, serve_idle_percent allows {}",
                    self.idle_percent
                )),
                None => reasons.push(
                    "what other programs use of the processors is not known here, and \
                     serve_idle_percent is set"
                        .to_owned(),
                ),
            }
        }
        reasons
    }
}

/// Whether a price above the one in the settings may be what the electricity costs.
pub(crate) const fn has_price_floor(config: &Config) -> bool {
    Electricity::of(config).is_known()
}

/// The timer that keeps the rules.
pub(crate) struct Rules {
    owner: Arc<Owner>,
    handle: Handle,
    models: Models,
    base: Ppm,
    electricity: Electricity,
    jobs_max: u32,
    machine: Machine,
    pace: Pace,
}

impl Rules {
    /// The rules in the settings, for a node with these models.
    pub(crate) fn new(
        handle: Handle,
        models: Models,
        config: &Config,
        others_use: OthersUse,
    ) -> Self {
        let owner = Arc::clone(handle.owner());
        *owner.lock() = Seen {
            hours: config.serve_hours,
            idle_percent: config.serve_idle_percent,
            ..Seen::default()
        };
        Self {
            owner,
            handle,
            base: Ppm::new(config.price_ppm),
            electricity: Electricity::of(config),
            jobs_max: config.serve_jobs_max,
            machine: Machine::new(others_use),
            pace: Pace::new(&models),
            models,
        }
    }

    /// Keeps the rules until the kernel has stopped.
    pub(crate) async fn run(mut self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut jobs_max = Some(self.jobs_max).filter(|max| *max > 0);
        loop {
            ticks.tick().await;
            self.look();
            match self.keep(jobs_max).await {
                Ok(()) => jobs_max = None,
                Err(SubmitError::Stopped { .. }) => return,
                Err(error) => tracing::debug!(%error, "the owner's rules wait for a moment"),
            }
        }
    }

    /// Finds out what the rules need to know.
    fn look(&mut self) {
        self.pace.look(&self.models);
        let mut seen = self.owner.lock();
        if seen.idle_percent > 0 {
            seen.busy_percent = self.machine.look();
        }
        seen.megaflops = self.pace.megaflops();
        seen.floor = seen.megaflops.and_then(|pace| self.electricity.floor(pace));
    }

    async fn keep(&self, jobs_max: Option<u32>) -> Result<(), SubmitError> {
        let seen = self.owner.seen();
        let rules = seen.clone();
        let (rest, is_kept, price) = self
            .handle
            .read(move |kernel: &Kernel, now| {
                let rest = !rules.reasons(now).is_empty();
                let (book, policy) = (kernel.ledger().book(), kernel.ledger().book().serving());
                let is_kept = policy.paused == (policy.paused_by_owner || rest)
                    && jobs_max.is_none_or(|max| policy.jobs_max == max);
                (rest, is_kept, book.price())
            })
            .await?;
        if !is_kept {
            let change = |policy: &mut ServingPolicy| {
                policy.paused = policy.paused_by_owner || rest;
                policy.jobs_max = jobs_max.unwrap_or(policy.jobs_max);
            };
            self.owner.change(&self.handle, Actor::Node, change).await?;
        }
        let wanted = match seen.floor {
            Some(floor) => floor.max(self.base),
            // A price that an earlier start found stays until it is measured again.
            None if self.electricity.is_known() => price.max(self.base),
            None => self.base,
        };
        let apart = u64::from(wanted.get().abs_diff(price.get())) * 1_000_000;
        if apart > u64::from(price.get()) * PRICE_SLACK_PPM {
            self.handle.submit(Actor::Node, Command::SetPrice { price: wanted }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_that_is_broken_says_so() {
        let night: Hours = "22:00-08:00".parse().unwrap();
        let noon = Timestamp::from_ms(12 * 3_600_000);
        let midnight = Timestamp::from_ms(0);
        let seen = |hours, idle_percent, busy_percent| Seen {
            hours,
            idle_percent,
            busy_percent,
            ..Seen::default()
        };
        for (seen, at, count) in [
            (seen(None, 0, None), noon, 0),
            (seen(Some(night), 0, None), midnight, 0),
            (seen(Some(night), 0, None), noon, 1),
            (seen(None, 20, Some(19)), noon, 0),
            (seen(None, 20, Some(20)), noon, 1),
            (seen(None, 20, None), noon, 1),
            (seen(Some(night), 20, Some(90)), noon, 2),
        ] {
            assert_eq!(seen.reasons(at).len(), count, "{seen:?}");
        }
    }
}
