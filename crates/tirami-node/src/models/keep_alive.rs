//! How long a model stays in memory after its last use: `5m`, `0`, or `-1` for ever.

use core::fmt;
use core::str::FromStr;
use std::time::Duration;

/// The longest time that is not for ever, in seconds: a year.
const SECONDS_MAX: u64 = 366 * 86_400;

/// How long a model stays in memory after its last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive(Option<Duration>);

impl KeepAlive {
    /// Until its room is needed.
    pub const FOREVER: Self = Self(None);

    /// So many seconds; below 0 is for ever, and more than a year is a year.
    pub const fn seconds(seconds: i64) -> Self {
        match seconds {
            i64::MIN..=-1 => Self::FOREVER,
            #[expect(clippy::cast_sign_loss, reason = "it is not below 0")]
            0.. => {
                let seconds = seconds as u64;
                let seconds = if seconds < SECONDS_MAX { seconds } else { SECONDS_MAX };
                Self(Some(Duration::from_secs(seconds)))
            }
        }
    }

    /// Whether a model that nobody used for `idle` is to be unloaded.
    pub fn is_over(self, idle: Duration) -> bool {
        self.0.is_some_and(|keep| idle >= keep)
    }
}

/// Reads seconds, or numbers with a unit such as `90s`, `5m` and `1h30m`; a number below 0 is for
/// ever.
impl FromStr for KeepAlive {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<i64>() {
            return Ok(Self::seconds(seconds));
        }
        if let Some(rest) = text.strip_prefix('-') {
            return parts(rest).map(|_| Self::FOREVER);
        }
        let seconds = i64::try_from(parts(text)?).map_err(drop)?;
        Ok(Self::seconds(seconds))
    }
}

/// The seconds of numbers with units, rounded down.
fn parts(text: &str) -> Result<u64, ()> {
    let (mut rest, mut ms) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(())?;
        let number: u64 = rest[..digits].parse().map_err(drop)?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(()),
        };
        rest = &rest[letters..];
        ms = number.checked_mul(unit).and_then(|part| ms.checked_add(part)).ok_or(())?;
    }
    if text.is_empty() { Err(()) } else { Ok(ms / 1_000) }
}

impl fmt::Display for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("-1"),
            Some(keep) => write!(f, "{}s", keep.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_and_clients_write_them() {
        for (text, shown) in [
            ("0", "0s"),
            ("300", "300s"),
            ("5m", "300s"),
            ("1h30m", "5400s"),
            ("90s", "90s"),
            ("500ms", "0s"),
            ("-1", "-1"),
            ("-5m", "-1"),
            (" 10 ", "10s"),
            ("99999999999", "31622400s"),
        ] {
            let keep: KeepAlive = text.parse().unwrap();
            assert_eq!(keep.to_string(), shown, "{text}");
            assert_eq!(keep.to_string().parse(), Ok(keep));
        }
        for text in ["", "m", "5", "5 m", "5d", "1.5h", "-", "--1", "ewig"] {
            assert_eq!(text.parse::<KeepAlive>().is_ok(), text == "5", "{text}");
        }
    }

    #[test]
    fn only_a_time_that_is_over_unloads() {
        let second = Duration::from_secs(1);
        assert!(KeepAlive::seconds(0).is_over(Duration::ZERO));
        assert!(KeepAlive::seconds(1).is_over(second));
        assert!(!KeepAlive::seconds(2).is_over(second));
        assert!(!KeepAlive::FOREVER.is_over(Duration::MAX));
    }
}
