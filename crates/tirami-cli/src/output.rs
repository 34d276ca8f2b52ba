//! Everything that is printed: for people, or with `--json` for programs.
//!
//! Answers go to stdout, remarks and errors to stderr. A reader that has gone (`| head`) is no
//! error.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde::Serialize;
use tirami_core::{Timestamp, Trm};
use tirami_sdk::types::LimitAmount;

use crate::exit::Failure;

/// Where and how a command prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    colour: bool,
}

impl Output {
    /// Prints JSON when `json` is set. Colour only for a person at a terminal who did not
    /// object.
    pub(crate) fn new(json: bool) -> Self {
        let objected = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = !json && !objected && std::io::stdout().is_terminal();
        Self { json, colour }
    }

    /// Whether a program reads this.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// The answer of a command: `value` for programs, what `human` prints for people.
    pub(crate) fn answer(self, value: &impl Serialize, human: impl FnOnce(Self)) {
        if self.json {
            self.json(value);
        } else {
            human(self);
        }
    }

    /// One JSON value on its own line.
    pub(crate) fn json(self, value: &impl Serialize) {
        // Serialising our own types fails only on a map with keys that are no texts.
        if let Ok(text) = serde_json::to_string(value) {
            self.line(text);
        }
    }

    /// One line on stdout, at once.
    pub(crate) fn line(self, text: impl Display) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    /// A piece of an answer on stdout, at once.
    pub(crate) fn piece(self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }

    /// A remark on stderr.
    pub(crate) fn note(self, text: impl Display) {
        self.aside("note", &text.to_string(), "");
    }

    /// Something on stderr that is probably not as it was meant.
    pub(crate) fn warn(self, text: impl Display) {
        self.aside("warning", &text.to_string(), "warning: ");
    }

    fn aside(self, kind: &str, text: &str, prefix: &str) {
        if self.json {
            Self::on_stderr(serde_json::json!({ kind: text }));
        } else {
            Self::on_stderr(format_args!("{prefix}{text}"));
        }
    }

    fn on_stderr(text: impl Display) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// The reason why a command failed, on stderr.
    pub(crate) fn failure(self, failure: &Failure) {
        if self.json {
            let error = serde_json::json!({"error": {
                "message": failure.message,
                "code": failure.code,
                "exit_code": failure.exit.code(),
            }});
            Self::on_stderr(error);
        } else {
            Self::on_stderr(format_args!("error: {}", failure.message));
        }
    }

    /// Lines of `name  value`, the values under each other.
    pub(crate) fn pairs(self, pairs: &[(&str, String)]) {
        let width = pairs.iter().map(|(name, _)| columns(name)).max().unwrap_or(0);
        for (name, value) in pairs {
            let gap = " ".repeat(width - columns(name));
            self.line(format_args!("{}{gap}  {value}", self.dim(name)));
        }
    }

    /// A table; columns named in `right` are aligned to the right.
    pub(crate) fn table(self, head: &[&str], right: &[&str], rows: &[Vec<String>]) {
        let width = |index: usize, name: &str| {
            let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| columns(cell));
            cells.max().unwrap_or(0).max(columns(name))
        };
        let widths: Vec<usize> =
            head.iter().enumerate().map(|(index, name)| width(index, name)).collect();
        let render = |cells: &[String]| {
            let mut line = String::new();
            for ((cell, width), name) in cells.iter().zip(&widths).zip(head) {
                let gap = " ".repeat(width - columns(cell));
                let cell = if right.contains(name) {
                    format!("{gap}{cell}")
                } else {
                    format!("{cell}{gap}")
                };
                line.push_str(&cell);
                line.push_str("  ");
            }
            line.trim_end().to_owned()
        };
        let titles: Vec<String> = head.iter().map(|name| name.to_uppercase()).collect();
        self.line(self.dim(&render(&titles)));
        for row in rows {
            self.line(render(row));
        }
    }

    /// Text that stands back, at a terminal.
    pub(crate) fn dim(self, text: &str) -> String {
        if self.colour { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Text that stands out, at a terminal.
    pub(crate) fn bold(self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// An amount with the answers of 1 000 tokens it pays for.
pub(crate) fn trm(amount: impl Display, answers: u64) -> String {
    format!("{amount} TRM ({})", count(answers, "answer"))
}

/// A limit with the answers it pays for where one costs `answer`, a few of them with a decimal; or
/// that there is none.
pub(crate) fn limit(limit: Option<LimitAmount>, answer: Trm) -> String {
    let Some(LimitAmount { trm: amount, answers }) = limit else { return "none".to_owned() };
    let micro = amount.trm().micro();
    match micro.saturating_mul(10).checked_div(answer.micro()) {
        Some(0) if micro > 0 => format!("{amount} TRM (less than 0.1 answers)"),
        Some(tenths @ ..100) => format!("{amount} TRM ({}.{} answers)", tenths / 10, tenths % 10),
        _ => trm(amount, answers),
    }
}

/// A number with its noun in the right form.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// A size for people.
pub(crate) fn bytes(size_bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    for (unit, name) in UNITS {
        if size_bytes >= unit {
            let tenths = u128::from(size_bytes) * 10 / u128::from(unit);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{size_bytes} B")
}

/// A length of time for people, in its two largest units.
pub(crate) fn duration(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut seconds = ms / 1_000;
    let mut parts = Vec::new();
    for (unit, name) in UNITS {
        if seconds >= unit && parts.len() < 2 {
            parts.push(format!("{} {name}", seconds / unit));
            seconds %= unit;
        }
    }
    if parts.is_empty() { format!("{ms} ms") } else { parts.join(" ") }
}

/// A moment as `2026-01-31 12:00:00`, in UTC.
pub(crate) fn moment(at_ms: u64) -> String {
    let text = Timestamp::from_ms(at_ms).to_string();
    let seconds = text.split_once('.').map_or(&*text, |(seconds, _)| seconds);
    seconds.replace('T', " ")
}

/// The first characters of a long id, enough to tell it from others on one screen.
pub(crate) fn short(id: &str) -> String {
    const SHOWN: usize = 12;
    let tail = id.rsplit(':').next().unwrap_or(id);
    tail.chars().take(SHOWN).collect()
}

/// What another node says, without what would move the cursor or change colours.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_does_nothing_to_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc\u{9b}d é"), "a [2Jb c d é");
    }

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.3 MB");
        assert_eq!(duration(250), "250 ms");
        assert_eq!(duration(93_784_000), "1 d 2 h");
        assert_eq!(count(1, "answer"), "1 answer");
        assert_eq!(trm("0.5", 2), "0.5 TRM (2 answers)");
        assert_eq!(short("did:tirami:0123456789abcdef"), "0123456789ab");
    }

    #[test]
    fn limits_of_few_answers_have_a_decimal() {
        let shown = |text: &str, answers| {
            let trm = text.parse().unwrap();
            limit(Some(LimitAmount { trm, answers }), Trm::from_micro(300_000_000))
        };
        assert_eq!(shown("210", 0), "210 TRM (0.7 answers)");
        assert_eq!(shown("0", 0), "0 TRM (0.0 answers)");
        assert_eq!(shown("0.5", 0), "0.5 TRM (less than 0.1 answers)");
        assert_eq!(shown("2970", 9), "2970 TRM (9.9 answers)");
        assert_eq!(shown("3000", 10), "3000 TRM (10 answers)");
        assert_eq!(limit(None, Trm::ZERO), "none");
    }

    #[test]
    fn moments_follow_the_calendar() {
        for (at_ms, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_709_251_199_000, "2024-02-29 23:59:59"),
            (4_107_542_400_000, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(moment(at_ms), text);
        }
    }
}
