//! The pattern of a schema's text as rules of a grammar.
//!
//! The native engine follows all ways through a grammar at once, and where a character leads
//! several ways their number has no bound. So a pattern becomes an automaton in which a character
//! leads one way from each state, and a state is a rule. What comes to too many states is refused.
//!
//! A pattern means what ECMA-262 says, as JSON schema has it; what the parser used here reads
//! otherwise is refused too. It is met anywhere in a text unless `^` and `$` say where.

mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use nodes::{Nodes, REST};

/// What the pattern of a text may come to: its parts, with its repetitions written out; and then
/// the states of the automaton that is made of it and of the bounds of the text's length, with the
/// ranges of characters that lead on from each. These count as values of the schema.
pub const SCHEMA_PATTERN_SIZE_MAX: usize = 2_000;
/// Depth of a pattern: groups, repetitions, alternatives and sets within each other.
pub const SCHEMA_PATTERN_DEPTH_MAX: u32 = 64;

/// Characters that stand in a text of JSON as a backslash and a letter, with that letter.
const ESCAPED: [(char, char); 7] = [
    ('\u{8}', 'b'),
    ('\t', 't'),
    ('\n', 'n'),
    ('\u{c}', 'f'),
    ('\r', 'r'),
    ('"', '"'),
    ('\\', '\\'),
];

/// Characters a text has: at least so many, and at most so many where there is a bound.
pub(super) type Lengths = (usize, Option<usize>);

/// A pattern as a grammar has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// Its rules, a line each. The one of the pattern's name gives what stands between the quotes
    /// of a text of JSON.
    pub(super) rules: String,
    /// What it counts, up to [`SCHEMA_PATTERN_SIZE_MAX`].
    pub(super) size: usize,
}

impl Pattern {
    /// The rules of texts of these lengths in which `pattern` is met. Their names are `name`, and
    /// `name` with a dash and a number.
    ///
    /// # Errors
    ///
    /// One sentence that names the pattern and says why it cannot be followed.
    pub(super) fn new(name: &str, pattern: &str, lengths: Lengths) -> Result<Self, String> {
        let automaton = Nodes::read(pattern).and_then(|nodes| Automaton::new(&nodes, lengths));
        let automaton = automaton
            .map_err(|reason| format!("the pattern {pattern:.100} cannot be followed: {reason}"))?;
        Ok(Self { rules: automaton.rules(name), size: automaton.size })
    }
}

/// Refuses what is too large.
fn too_large() -> String {
    format!(
        "with its repetitions written out and its text's length it comes to more than \
         {SCHEMA_PATTERN_SIZE_MAX} parts or ranges of characters"
    )
}

/// States of which the first is where a text begins.
#[derive(Debug)]
struct Automaton {
    states: Vec<State>,
    size: usize,
}

#[derive(Debug)]
struct State {
    /// Whether the text may end here.
    is_end: bool,
    /// What leads on, and to which state. No character leads two ways.
    ways: Vec<(Way, usize)>,
}

/// Characters that lead the same way.
#[derive(Debug, Default)]
struct Way {
    /// Ranges of characters that stand for themselves.
    plain: Vec<(u32, u32)>,
    /// The letters of those that are escaped.
    escaped: Vec<char>,
}

impl Automaton {
    /// The states in which a text of these lengths can be that meets the pattern.
    fn new(nodes: &Nodes<'_>, (min, max): Lengths) -> Result<Self, String> {
        // Longer ones are all alike.
        let counted = max.unwrap_or(min);
        let mut found = vec![(vec![nodes.first], 0)];
        let mut known = BTreeMap::new();
        let (mut states, mut left) = (Vec::new(), SCHEMA_PATTERN_SIZE_MAX);
        while let Some((at, length)) = found.get(states.len()).cloned() {
            let begins = states.is_empty();
            let is_met = nodes.reached(&at, (begins, true)).contains(&REST);
            let ranges = if max == Some(length) { Vec::new() } else { nodes.ranges(&at, begins) };
            left = left.checked_sub(1 + ranges.len()).ok_or_else(too_large)?;
            let mut ways = Vec::new();
            for (to, way) in told_apart(&ranges) {
                let state = (to, counted.min(length + 1));
                let number = known.entry(state.clone()).or_insert_with(|| {
                    found.push(state);
                    found.len() - 1
                });
                ways.push((way, *number));
            }
            states.push(State { is_end: is_met && length >= min, ways });
        }
        leave_out_dead_ends(&mut states);
        if states.first().is_none_or(|state| !state.is_end && state.ways.is_empty()) {
            return Err("no text meets it that has such a length and can stand in JSON".to_owned());
        }
        Ok(Self { states, size: SCHEMA_PATTERN_SIZE_MAX - left })
    }

    fn rules(&self, name: &str) -> String {
        let name_of = |number: usize| match number {
            0 => name.to_owned(),
            number => format!("{name}-{number}"),
        };
        let mut rules = String::new();
        for (number, state) in self.states.iter().enumerate() {
            // Nothing leads to a dead end, so it needs no rule.
            if !state.is_end && state.ways.is_empty() {
                continue;
            }
            let ways = state.ways.iter().flat_map(|(way, to)| way.written(&name_of(*to)));
            let end = state.is_end.then(|| "\"\"".to_owned());
            let all: Vec<String> = end.into_iter().chain(ways).collect();
            let _ = writeln!(rules, "{} ::= {}", name_of(number), all.join(" | "));
        }
        rules
    }
}

/// Where each character leads: to all nodes that one of the ranges with it leads to.
fn told_apart(ranges: &[(u32, u32, usize)]) -> BTreeMap<Vec<usize>, Way> {
    let escaped = ESCAPED.iter().map(|(c, _)| u32::from(*c));
    let mut bounds: BTreeSet<u32> = escaped.flat_map(|c| [c, c + 1]).collect();
    bounds.extend(ranges.iter().flat_map(|(from, to, _)| [*from, *to + 1]));
    let bounds: Vec<u32> = bounds.into_iter().collect();
    let mut ways = BTreeMap::<Vec<usize>, Way>::new();
    for pair in bounds.windows(2) {
        let (first, last) = (pair[0], pair[1] - 1);
        let with = ranges.iter().filter(|(from, to, _)| *from <= first && last <= *to);
        let nodes: BTreeSet<usize> = with.map(|(_, _, node)| *node).collect();
        if !nodes.is_empty() {
            ways.entry(nodes.into_iter().collect()).or_default().add(first, last);
        }
    }
    ways
}

/// Takes out what leads to states from which the pattern is never met: a grammar that goes there
/// would allow no token any more.
fn leave_out_dead_ends(states: &mut [State]) {
    let mut is_live: Vec<bool> = states.iter().map(|state| state.is_end).collect();
    let mut has_changed = true;
    while has_changed {
        has_changed = false;
        for (number, state) in states.iter().enumerate().rev() {
            if !is_live[number] && state.ways.iter().any(|(_, to)| is_live[*to]) {
                (is_live[number], has_changed) = (true, true);
            }
        }
    }
    for state in states {
        state.ways.retain(|(_, to)| is_live[*to]);
    }
}

impl Way {
    /// Adds a range behind those it has: a character that is escaped, or ones that are not.
    fn add(&mut self, first: u32, last: u32) {
        let escaped = ESCAPED.iter().find(|(c, _)| u32::from(*c) == first);
        match (escaped, self.plain.last_mut()) {
            (Some((_, letter)), _) => self.escaped.push(*letter),
            (None, Some((_, end))) if *end + 1 == first => *end = last,
            (None, _) => self.plain.push((first, last)),
        }
    }

    /// The alternatives of a rule that go on with the rule `to`.
    fn written(&self, to: &str) -> Vec<String> {
        let one = |c: u32| format!("\\U{c:08X}");
        let range = |(first, last): &(u32, u32)| match first == last {
            true => one(*first),
            false => format!("{}-{}", one(*first), one(*last)),
        };
        let plain: String = self.plain.iter().map(range).collect();
        let escaped: String = self.escaped.iter().map(|letter| one(u32::from(*letter))).collect();
        let plain = (!plain.is_empty()).then(|| format!("[{plain}] {to}"));
        let escaped = (!escaped.is_empty()).then(|| format!("\"\\\\\" [{escaped}] {to}"));
        plain.into_iter().chain(escaped).collect()
    }
}

#[cfg(test)]
mod tests;
