//! Limits on the command line: the flags that set them and how they are shown.

use std::str::FromStr;

use clap::Args;
use tirami_core::Trm;
use tirami_sdk::Amount;
use tirami_sdk::types::{LimitAmount, Limits, LimitsReport};

use crate::output::{self, duration};

/// A limit as given: an amount, or that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given<T> {
    /// This limit.
    Some(T),
    /// No limit.
    None,
}

impl<T> FromStr for Given<T>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        text.parse().map(Self::Some).map_err(|error| format!("{error}; `none` removes the limit"))
    }
}

/// The flags that set limits. What is not given stays as it is.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitFlags {
    /// TRM one request may cost, or `none`.
    #[arg(long, value_name = "TRM")]
    request_max: Option<Given<Amount>>,
    /// TRM in 60 seconds, or `none`.
    #[arg(long, value_name = "TRM")]
    minute_max: Option<Given<Amount>>,
    /// TRM in 60 minutes, or `none`.
    #[arg(long, value_name = "TRM")]
    hour_max: Option<Given<Amount>>,
    /// TRM in 24 hours, or `none`.
    #[arg(long, value_name = "TRM")]
    day_max: Option<Given<Amount>>,
    /// TRM for ever, or `none`.
    #[arg(long, value_name = "TRM")]
    lifetime_max: Option<Given<Amount>>,
    /// A request that may cost more TRM waits for a person; or `none`.
    #[arg(long, value_name = "TRM")]
    approval_above: Option<Given<Amount>>,
    /// So many failed jobs in a row open the agent's circuit breaker; or `none`.
    #[arg(long, value_name = "N")]
    breaker_errors: Option<Given<u32>>,
    /// So many jobs in a minute open it; or `none`.
    #[arg(long, value_name = "N")]
    breaker_spends_per_minute: Option<Given<u32>>,
    /// How long it stays open, in milliseconds; or `none`.
    #[arg(long, value_name = "MS")]
    breaker_open_ms: Option<Given<u64>>,
}

impl LimitFlags {
    /// Whether no flag was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.over(Limits::default()) == Limits::default() && !self.removes()
    }

    /// `old` with what was given put over it.
    pub(crate) fn over(&self, old: Limits) -> Limits {
        Limits {
            request_max_trm: pick(self.request_max, old.request_max_trm),
            minute_max_trm: pick(self.minute_max, old.minute_max_trm),
            hour_max_trm: pick(self.hour_max, old.hour_max_trm),
            day_max_trm: pick(self.day_max, old.day_max_trm),
            lifetime_max_trm: pick(self.lifetime_max, old.lifetime_max_trm),
            approval_above_trm: pick(self.approval_above, old.approval_above_trm),
            breaker_errors: pick(self.breaker_errors, old.breaker_errors),
            breaker_spends_per_minute: pick(
                self.breaker_spends_per_minute,
                old.breaker_spends_per_minute,
            ),
            breaker_open_ms: pick(self.breaker_open_ms, old.breaker_open_ms),
        }
    }

    fn removes(&self) -> bool {
        let amounts = [
            self.request_max,
            self.minute_max,
            self.hour_max,
            self.day_max,
            self.lifetime_max,
            self.approval_above,
        ];
        let counts = [self.breaker_errors, self.breaker_spends_per_minute];
        amounts.contains(&Some(Given::None))
            || counts.contains(&Some(Given::None))
            || self.breaker_open_ms == Some(Given::None)
    }
}

fn pick<T>(given: Option<Given<T>>, old: Option<T>) -> Option<T> {
    match given {
        None => old,
        Some(Given::None) => None,
        Some(Given::Some(value)) => Some(value),
    }
}

/// The limits a report shows, to be set again.
pub(crate) fn of_report(report: &LimitsReport) -> Limits {
    let amount = |limit: Option<LimitAmount>| limit.map(|limit| limit.trm);
    Limits {
        request_max_trm: amount(report.request_max),
        minute_max_trm: amount(report.minute_max),
        hour_max_trm: amount(report.hour_max),
        day_max_trm: amount(report.day_max),
        lifetime_max_trm: amount(report.lifetime_max),
        approval_above_trm: amount(report.approval_above),
        breaker_errors: report.breaker_errors,
        breaker_spends_per_minute: report.breaker_spends_per_minute,
        breaker_open_ms: report.breaker_open_ms,
    }
}

/// Every limit with its name, in TRM and in answers of which one costs `answer`.
pub(crate) fn rows(report: &LimitsReport, answer: Trm) -> Vec<(&'static str, String)> {
    let number = |number: Option<u32>| number.map_or("none".to_owned(), |n| n.to_string());
    vec![
        ("one request", output::limit(report.request_max, answer)),
        ("a minute", output::limit(report.minute_max, answer)),
        ("an hour", output::limit(report.hour_max, answer)),
        ("a day", output::limit(report.day_max, answer)),
        ("for ever", output::limit(report.lifetime_max, answer)),
        ("approval above", output::limit(report.approval_above, answer)),
        ("breaker: failures", number(report.breaker_errors)),
        ("breaker: jobs a minute", number(report.breaker_spends_per_minute)),
        ("breaker: open for", report.breaker_open_ms.map_or("none set".to_owned(), duration)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_and_none_removes() {
        let old = Limits {
            request_max_trm: "5".parse().ok(),
            day_max_trm: "7".parse().ok(),
            ..Limits::default()
        };
        let flags = LimitFlags {
            request_max: Some("none".parse().unwrap()),
            hour_max: Some("1.5".parse().unwrap()),
            ..LimitFlags::default()
        };
        let limits = flags.over(old);
        assert_eq!(limits.request_max_trm, None);
        assert_eq!(limits.hour_max_trm, "1.5".parse().ok());
        assert_eq!(limits.day_max_trm, old.day_max_trm);
        assert!(!flags.is_empty() && LimitFlags::default().is_empty());
        assert!("-1".parse::<Given<Amount>>().unwrap_err().contains("none"));
    }
}
