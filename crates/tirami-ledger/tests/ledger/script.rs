//! Reads scenario files: one step a line, `verb arg… key=value… -> expectation`.
//!
//! `#` begins a comment, blank lines mean nothing. Words are separated by white space; the text
//! after `->` is the expectation, one piece, trimmed. The file says nothing about what a verb
//! means: each test brings its own meaning.

use std::collections::BTreeMap;

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
