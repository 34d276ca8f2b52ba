//! Defaults that follow from the model served: how much an answer costs, and limits counted in
//! answers (MONEY §14).

use tirami_core::{ModelShape, Ppm, Trm};

use super::Limits;

/// Tokens of the answer that defaults are counted in.
pub const ANSWER_TOKENS: u32 = 1_000;
/// Answers one request may cost.
pub const REQUEST_ANSWERS: u64 = 100;
/// Answers within a sliding minute.
pub const MINUTE_ANSWERS: u64 = 200;
/// Answers within a sliding hour.
pub const HOUR_ANSWERS: u64 = 1_000;
/// Answers within a sliding day.
pub const DAY_ANSWERS: u64 = 5_000;
/// A request that may cost more answers waits for a person.
pub const APPROVAL_ANSWERS: u64 = 50;
/// Failed jobs in a row that open an agent's circuit breaker.
pub const BREAKER_ERRORS: u32 = 5;
/// Jobs within a sliding minute that open an agent's circuit breaker. Each text of a list of
/// embeddings is a job: two full lists of 2 048 and what runs beside them stay below it, a loop
/// that starts a hundred cheap jobs a second does not. What is spent, other limits bound.
pub const BREAKER_SPENDS_PER_MINUTE: u32 = 6_000;
/// How long a circuit breaker stays open when nothing else is set, in milliseconds.
pub const BREAKER_OPEN_MS: u64 = 300_000;
/// Answers the founder of a mesh may overdraw at least.
pub const LINE_ANSWERS: u64 = 10_000;
/// TRM the founder of a mesh may overdraw at least.
pub const LINE_MIN: Trm = Trm::from_micro(1_000_000_000_000);

/// What an answer of [`ANSWER_TOKENS`] tokens costs at `price`, rounded up.
///
/// # Examples
///
/// ```
/// use tirami_core::{ModelShape, Ppm};
/// let smollm2 = ModelShape {
///     parameters_active: 134_515_008, layers: 30, attention_width: 576, context_max: 8_192,
/// };
/// assert_eq!(tirami_ledger::book::answer_cost(&smollm2, Ppm::ONE).to_string(), "303.624576");
/// ```
pub fn answer_cost(shape: &ModelShape, price: Ppm) -> Trm {
    shape.work(0, ANSWER_TOKENS).cost_ceil(price)
}

/// The limits a node or an agent begins with. There is no lifetime limit.
pub fn default_limits(shape: &ModelShape, price: Ppm) -> Limits {
    let answers = |count: u64| Some(times(answer_cost(shape, price), count));
    Limits {
        request_max: answers(REQUEST_ANSWERS),
        minute_max: answers(MINUTE_ANSWERS),
        hour_max: answers(HOUR_ANSWERS),
        day_max: answers(DAY_ANSWERS),
        lifetime_max: None,
        approval_above: answers(APPROVAL_ANSWERS),
        breaker_errors: Some(BREAKER_ERRORS),
        breaker_spends_per_minute: Some(BREAKER_SPENDS_PER_MINUTE),
        breaker_open_ms: Some(BREAKER_OPEN_MS),
    }
}

/// How far the founder of a mesh may overdraw: the larger of [`LINE_MIN`] and [`LINE_ANSWERS`].
pub fn founder_line(shape: &ModelShape, price: Ppm) -> Trm {
    LINE_MIN.max(times(answer_cost(shape, price), LINE_ANSWERS))
}

fn times(amount: Trm, count: u64) -> Trm {
    Trm::from_micro(amount.micro().saturating_mul(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ModelShape = ModelShape {
        parameters_active: 134_515_008,
        layers: 30,
        attention_width: 576,
        context_max: 8_192,
    };

    #[test]
    fn defaults_are_counted_in_answers_of_the_model_served() {
        let answer = answer_cost(&SHAPE, Ppm::ONE).micro();
        let limits = default_limits(&SHAPE, Ppm::ONE);
        assert_eq!(limits.request_max, Some(Trm::from_micro(answer * 100)));
        assert_eq!(limits.day_max, Some(Trm::from_micro(answer * 5_000)));
        assert_eq!(limits.lifetime_max, None);
        let texts = limits.breaker_spends_per_minute.unwrap();
        assert!(texts > 2 * 2_048, "two full lists of texts within a minute pass: {texts}");
        assert_eq!(founder_line(&SHAPE, Ppm::ONE).micro(), answer * 10_000);
        assert_eq!(founder_line(&SHAPE, Ppm::new(1_000)), LINE_MIN);
    }
}
