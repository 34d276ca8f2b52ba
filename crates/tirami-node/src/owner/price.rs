//! The lowest price an owner can serve at without paying for it: what the electricity costs.

use std::time::Instant;

use tirami_core::Ppm;

use crate::config::Config;
use crate::models::{Model, Models};

/// How much a new measurement counts, in percent.
const NEW_PERCENT: u64 = 25;
/// Tokens below which an interval says nothing about the speed.
const TOKENS_MIN: u64 = 2;
/// The highest price there is, µTRM for 10⁹ FLOP.
const PRICE_MAX: u32 = 1_000_000_000;

/// What electricity costs the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Electricity {
    /// What the machine draws while it answers.
    pub(super) watts: u32,
    /// Thousandths of the owner's currency for a kilowatt-hour.
    pub(super) milli_per_kwh: u32,
    /// What one unit of that currency is worth to the owner, in TRM.
    pub(super) trm_per_currency: u64,
}

impl Electricity {
    pub(super) const fn of(config: &Config) -> Self {
        Self {
            watts: config.electricity_watts,
            milli_per_kwh: config.electricity_milli_per_kwh,
            trm_per_currency: config.electricity_trm_per_currency,
        }
    }

    /// Whether the owner said what it costs.
    pub(super) const fn is_known(&self) -> bool {
        self.watts > 0 && self.milli_per_kwh > 0 && self.trm_per_currency > 0
    }

    /// What the electricity for 10⁹ FLOP costs at this speed, in µTRM, rounded up; `None` when
    /// the owner did not say what it costs.
    ///
    /// At `m`·10⁶ FLOP/s they take 1 000/m s and `watts`·1 000/m J, of which a kilowatt-hour has
    /// 3 600 000. Each costs `milli`/1 000 of the currency, each of which is `rate`·10⁶ µTRM.
    pub(super) fn floor(&self, megaflops: u64) -> Option<Ppm> {
        if megaflops == 0 || !self.is_known() {
            return None;
        }
        let terms = [self.watts.into(), self.milli_per_kwh.into(), self.trm_per_currency];
        let product = terms
            .into_iter()
            .fold(1_000_000_u128, |product, term| product.saturating_mul(u128::from(term)));
        let floor = product.div_ceil(3_600_000 * u128::from(megaflops));
        let floor = u32::try_from(floor).unwrap_or(PRICE_MAX).clamp(1, PRICE_MAX);
        Some(Ppm::new(floor))
    }
}

/// How fast the engines work while they work.
#[derive(Debug)]
pub(super) struct Pace {
    done: Done,
    at: Instant,
    /// 10⁶ FLOP per second.
    megaflops: Option<u64>,
}

impl Pace {
    pub(super) fn new(models: &Models) -> Self {
        Self { done: Done::by(models), at: Instant::now(), megaflops: None }
    }

    pub(super) const fn megaflops(&self) -> Option<u64> {
        self.megaflops
    }

    pub(super) fn look(&mut self, models: &Models) {
        let (before, done) = (self.done, Done::by(models));
        let elapsed_ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        (self.done, self.at) = (done, Instant::now());
        let made = done.completion_tokens.saturating_sub(before.completion_tokens);
        // An interval in which the engines also rested would make them look slow.
        if before.running == 0 || done.running == 0 || made < TOKENS_MIN {
            return;
        }
        let flop = done.flop.saturating_sub(before.flop);
        let new = u64::try_from(flop / 1_000 / u128::from(elapsed_ms)).unwrap_or(u64::MAX);
        let old = self.megaflops.unwrap_or(new);
        let mixed = u128::from(old) * u128::from(100 - NEW_PERCENT)
            + u128::from(new) * u128::from(NEW_PERCENT);
        self.megaflops = Some(u64::try_from(mixed / 100).unwrap_or(u64::MAX).max(1));
    }
}

/// What the engines have done since the node started.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    running: u32,
    completion_tokens: u64,
    /// Of all tokens, without what attention adds.
    flop: u128,
}

impl Done {
    fn by(models: &Models) -> Self {
        models.all().iter().fold(Self::default(), |sum, model: &Model| {
            let load = model.load();
            let tokens = load.completion_tokens_total.saturating_add(load.prompt_tokens_total);
            let token_flop = model.info().shape.parameters_active.saturating_mul(2);
            Self {
                running: sum.running.saturating_add(load.running),
                completion_tokens: sum.completion_tokens + load.completion_tokens_total,
                flop: sum.flop + u128::from(tokens) * u128::from(token_flop),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_what_the_energy_costs() {
        let floor = |watts, milli_per_kwh, trm_per_currency, megaflops| {
            Electricity { watts, milli_per_kwh, trm_per_currency }.floor(megaflops).map(Ppm::get)
        };
        // At 10⁹ FLOP/s a kilowatt-hour is 3.6·10¹² FLOP, and costs 36 TRM.
        assert_eq!(floor(1_000, 1_000, 36, 1_000), Some(10_000));
        // 100 W at 16 GFLOP/s, 0.30 for a kilowatt-hour, 10⁶ TRM for one.
        assert_eq!(floor(100, 300, 1_000_000, 16_000), Some(520_834));
        // Rounded up, and never for nothing.
        assert_eq!(floor(1, 1, 1, 1_000_000), Some(1));
        assert_eq!(floor(u32::MAX, u32::MAX, u64::MAX, 1), Some(PRICE_MAX));
        for (watts, milli, rate, megaflops) in
            [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)]
        {
            assert_eq!(floor(watts, milli, rate, megaflops), None);
        }
    }
}
