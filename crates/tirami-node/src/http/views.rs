//! The ledger's words in JSON's, and back.

use std::time::{SystemTime, UNIX_EPOCH};

use tirami_core::{AgentId, ModelShape, Ppm, Timestamp, Trm};
use tirami_ledger::book::{Limits, Scope, Usage, answer_cost};
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::{self, LimitAmount, LimitsReport, Spending};

use super::AppState;
use crate::store::TradeRow;

/// Milliseconds since the Unix epoch, for what is shown and not decided by.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) const fn ledger_scope(scope: types::Scope) -> Scope {
    match scope {
        types::Scope::Read => Scope::Read,
        types::Scope::Inference => Scope::Inference,
        types::Scope::Economy => Scope::Economy,
        types::Scope::Admin => Scope::Admin,
    }
}

pub(super) const fn sdk_scope(scope: Scope) -> types::Scope {
    match scope {
        Scope::Read => types::Scope::Read,
        Scope::Inference => types::Scope::Inference,
        Scope::Economy => types::Scope::Economy,
        Scope::Admin => types::Scope::Admin,
    }
}

/// What one answer of 1 000 tokens costs on this node; the measure of figures in answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnswerCost(Trm);

impl AnswerCost {
    pub(super) fn new(shape: &ModelShape, price: Ppm) -> Self {
        Self(answer_cost(shape, price).max(Trm::from_micro(1)))
    }

    pub(super) fn of(app: &AppState, price: Ppm) -> Self {
        Self::new(&app.shape(), price)
    }

    pub(super) const fn trm(self) -> Trm {
        self.0
    }

    /// How many answers `amount` pays for, rounded down.
    pub(super) fn answers(self, amount: Trm) -> u64 {
        amount.micro() / self.0.micro()
    }

    /// How many answers `amount` is, to three places, rounded up. For people; nothing is decided
    /// by it.
    pub(super) fn fraction(self, amount: Trm) -> f64 {
        let thousandths = (u128::from(amount.micro()) * 1_000).div_ceil(u128::from(self.0.micro()));
        thousandths as f64 / 1_000.0
    }

    fn limit(self, amount: Option<Trm>) -> Option<LimitAmount> {
        amount.map(|trm| LimitAmount { trm: trm.into(), answers: self.answers(trm) })
    }

    pub(super) fn limits(self, limits: &Limits) -> LimitsReport {
        LimitsReport {
            request_max: self.limit(limits.request_max),
            minute_max: self.limit(limits.minute_max),
            hour_max: self.limit(limits.hour_max),
            day_max: self.limit(limits.day_max),
            lifetime_max: self.limit(limits.lifetime_max),
            approval_above: self.limit(limits.approval_above),
            breaker_errors: limits.breaker_errors,
            breaker_spends_per_minute: limits.breaker_spends_per_minute,
            breaker_open_ms: limits.breaker_open_ms,
        }
    }
}

pub(super) fn ledger_limits(limits: &types::Limits) -> Limits {
    let trm = |amount: Option<tirami_sdk::Amount>| amount.map(tirami_sdk::Amount::trm);
    Limits {
        request_max: trm(limits.request_max_trm),
        minute_max: trm(limits.minute_max_trm),
        hour_max: trm(limits.hour_max_trm),
        day_max: trm(limits.day_max_trm),
        lifetime_max: trm(limits.lifetime_max_trm),
        approval_above: trm(limits.approval_above_trm),
        breaker_errors: limits.breaker_errors,
        breaker_spends_per_minute: limits.breaker_spends_per_minute,
        breaker_open_ms: limits.breaker_open_ms,
    }
}

pub(super) fn spending(usage: &Usage) -> Spending {
    Spending {
        minute_trm: usage.minute.into(),
        hour_trm: usage.hour.into(),
        day_trm: usage.day.into(),
        lifetime_trm: usage.lifetime.into(),
    }
}

pub(super) fn trade(row: &TradeRow) -> types::Trade {
    types::Trade {
        trade_id: row.trade.to_string(),
        job_id: row.job.to_string(),
        consumer: AgentId::from_bytes(*row.consumer.as_bytes()).did(),
        provider: row.provider.to_string(),
        model_id: row.model.to_string(),
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
        flops: row.flop.get(),
        trm_amount: row.amount.into(),
        trm_paid: row.paid.map(Into::into),
        finish: match row.finish {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Failed => "failed",
        }
        .to_owned(),
        receipt_id: row.receipt.map(|id| id.to_string()),
        at_ms: row.at.ms(),
    }
}

pub(super) fn ms(at: Option<Timestamp>) -> Option<u64> {
    at.map(Timestamp::ms)
}
