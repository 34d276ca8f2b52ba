//! Hours of the day, such as `22:00-08:00` or `22:00-08:00 +02:00`.

use core::fmt;
use core::str::FromStr;

use tirami_core::Timestamp;

/// Minutes of a day.
const DAY_MIN: u16 = 24 * 60;
/// The farthest offset from UTC, in minutes.
const OFFSET_MIN_MAX: i16 = 14 * 60;

/// Hours of every day, from one time to another, which may be on the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// The first minute of the day.
    from: u16,
    /// The minute after the last.
    to: u16,
    /// How far the clock meant is ahead of UTC, in minutes.
    offset: i16,
}

impl Hours {
    /// Whether `now` is in these hours.
    pub fn contain(self, now: Timestamp) -> bool {
        let minutes = i64::try_from(now.ms() / 60_000).unwrap_or(i64::MAX);
        let local = minutes.saturating_add(self.offset.into()).rem_euclid(DAY_MIN.into());
        let (from, to) = (i64::from(self.from), i64::from(self.to));
        if from < to { (from..to).contains(&local) } else { local >= from || local < to }
    }
}

impl FromStr for Hours {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.trim();
        let (hours, zone) = text.split_once(' ').unwrap_or((text, "+00:00"));
        let (from, to) = hours.split_once('-').ok_or(())?;
        let (from, to) = (minute(from)?, minute(to)?);
        let (sign, zone) = match zone.trim() {
            "UTC" | "Z" => (1, "00:00"),
            zone => match zone.strip_prefix('-') {
                Some(rest) => (-1, rest),
                None => (1, zone.strip_prefix('+').ok_or(())?),
            },
        };
        let offset = i16::try_from(minute(zone)?).map_err(drop)? * sign;
        // From and to the same minute could mean never or always.
        let is_fine = from < DAY_MIN && from != to && offset.abs() <= OFFSET_MIN_MAX;
        if is_fine { Ok(Self { from, to, offset }) } else { Err(()) }
    }
}

/// The minute of the day of `HH:MM`; 24:00 is the day's end.
fn minute(text: &str) -> Result<u16, ()> {
    let (hour, minute) = text.split_once(':').ok_or(())?;
    let number = |text: &str| {
        let well_formed = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        if well_formed { text.parse::<u16>().map_err(drop) } else { Err(()) }
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let minutes = hour * 60 + minute;
    if minute < 60 && minutes <= DAY_MIN { Ok(minutes) } else { Err(()) }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let sign = if self.offset < 0 { '-' } else { '+' };
        let zone = clock(self.offset.unsigned_abs());
        write!(f, "{}-{} {sign}{zone}", clock(self.from), clock(self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_over_midnight_and_are_in_utc_unless_they_say_otherwise() {
        for (text, hour, minute, inside) in [
            ("22:00-08:00", 21, 59, false),
            ("22:00-08:00", 22, 0, true),
            ("22:00-08:00", 0, 0, true),
            ("22:00-08:00", 7, 59, true),
            ("22:00-08:00", 8, 0, false),
            ("09:30-17:00", 9, 29, false),
            ("09:30-17:00", 16, 59, true),
            ("00:00-24:00", 23, 59, true),
            ("22:00-08:00 +02:00", 20, 0, true),
            ("22:00-08:00 +02:00", 6, 0, false),
            ("22:00-08:00 -05:30", 3, 30, true),
            ("22:00-08:00 -05:30", 3, 29, false),
            ("22:00-08:00 UTC", 22, 0, true),
        ] {
            let hours: Hours = text.parse().unwrap();
            let day_ms = 20_000 * 86_400_000;
            let now = Timestamp::from_ms(day_ms + (hour * 60 + minute) * 60_000);
            assert_eq!(hours.contain(now), inside, "{text} {hour}:{minute}");
            assert_eq!(hours.to_string().parse(), Ok(hours));
        }
    }

    #[test]
    fn what_are_no_hours_is_refused() {
        for text in [
            "",
            "22:00",
            "22-08",
            "25:00-08:00",
            "22:60-08:00",
            "22:00-22:00",
            "24:00-08:00",
            "2:00-08:00",
            "22:00-08:00 02:00",
            "22:00-08:00 +15:00",
            "22:00-08:00 Berlin",
        ] {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
    }
}
