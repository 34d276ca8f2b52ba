//! Reads scenario files: one step a line, `verb arg… key=value… -> expectation`.
//!
//! `#` begins a comment, blank lines mean nothing. Words are separated by white space; the text
//! after `->` is the expectation, one piece, trimmed. The file says nothing about what a verb
//! means: each test brings its own meaning.

#![expect(clippy::disallowed_methods, reason = "the scenarios are files")]
#![expect(clippy::print_stdout, reason = "a failed scenario shows how far it came")]

use std::collections::BTreeMap;
use std::fs;
use std::panic::{self, RefUnwindSafe};
use std::path::{Path, PathBuf};

/// One line of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Line in the file, counted from 1, for messages.
    pub(crate) line: usize,
    /// What to do.
    pub(crate) verb: String,
    /// Words after the verb without `=`.
    pub(crate) args: Vec<String>,
    /// Words of the form `key=value`.
    pub(crate) named: BTreeMap<String, String>,
    /// What should come of it; `None` when the line says nothing.
    pub(crate) expect: Option<String>,
}

/// The steps of a scenario, in order.
///
/// # Panics
///
/// When a line has no verb, an empty expectation, or one key twice: a scenario that is not
/// understood must not pass.
pub(crate) fn read(text: &str) -> Vec<Step> {
    text.lines().enumerate().filter_map(|(index, line)| step(index + 1, line)).collect()
}

fn step(line: usize, text: &str) -> Option<Step> {
    let text = text.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return None;
    }
    let (action, expect) = match text.split_once("->") {
        Some((action, expect)) => (action, Some(expect.trim().to_owned())),
        None => (text, None),
    };
    assert_ne!(expect.as_deref(), Some(""), "line {line}: nothing stands after ->");
    let mut words = action.split_whitespace();
    let verb = words.next().unwrap_or_else(|| panic!("line {line}: there is no verb")).to_owned();
    let mut args = Vec::new();
    let mut named = BTreeMap::new();
    for word in words {
        match word.split_once('=') {
            None => args.push(word.to_owned()),
            Some((key, value)) => {
                let before = named.insert(key.to_owned(), value.to_owned());
                assert_eq!(before, None, "line {line}: {key} stands twice");
            }
        }
    }
    Some(Step { line, verb, args, named, expect })
}

/// Plays every scenario in `scenarios/<folder>`, of which there are at least `least`: fewer means
/// that some were lost. `begun` begins one by its first step, and gives what plays a step.
pub(crate) fn play_all<P: FnMut(&Step)>(
    (folder, least): (&str, usize),
    begun: impl Fn(&Step) -> P + RefUnwindSafe,
) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios").join(folder);
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= least, "only {} scenarios are left", files.len());
    let play = |file: &Path| {
        let steps = read(&fs::read_to_string(file).unwrap());
        assert!(steps.len() > 1, "{} tests nothing", file.display());
        let mut play = begun(&steps[0]);
        for step in &steps {
            println!("{}:{}: {}", file.display(), step.line, step.verb);
            play(step);
        }
    };
    let failed: Vec<&PathBuf> =
        files.iter().filter(|file| panic::catch_unwind(|| play(file)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// The milliseconds of a time such as `90s` or `2h`.
pub(crate) fn duration(text: &str) -> u64 {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap();
    let (count, unit) = text.split_at(split);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        unit => panic!("no unit {unit}"),
    };
    count.parse::<u64>().unwrap() * unit_ms
}
