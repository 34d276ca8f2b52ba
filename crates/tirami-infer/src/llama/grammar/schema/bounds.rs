//! The bounds of numbers as rules of a grammar: the native engine follows those of whole numbers
//! alone, and where one side is open not exactly. A bound is followed where it is a whole number
//! itself, and the number is written without an exponent then.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::Part;
use super::kind::Kind;

/// What a bound is at most, above or below zero: so large a one leaves [`DIGITS`] some behind the
/// point.
const BOUND_MAX: u64 = 9_999_999_999_999;
/// What a bound of whole numbers is at most: the largest of [`PLACES_MAX`] digits.
const WHOLE_BOUND_MAX: u64 = 9_999_999_999_999_999;
/// Digits of a number that is not taken for another one where it is read as one of 64 bits.
const DIGITS: usize = 15;
/// Digits of a number before the point and behind it, as the native engine has it without bounds.
const PLACES_MAX: usize = 16;

/// Whether `word`, which is one of the bounds of a number in `fields`, is followed. The number may
/// be one of [`Kind::Whole`].
pub(super) fn follows(word: &str, fields: &Map<String, Value>, kind: Kind) -> bool {
    let most = bound_max(kind);
    fields.get(word).is_some_and(|bound| whole(bound, most).is_some())
        && Range::of(fields, kind).is_some()
}

const fn bound_max(kind: Kind) -> u64 {
    match kind {
        Kind::Whole => WHOLE_BOUND_MAX,
        _ => BOUND_MAX,
    }
}

/// The rules of numbers that have bounds.
#[derive(Debug)]
pub(super) struct Numbers {
    /// What the names of the rules begin with.
    begin: String,
    names: BTreeMap<Range, String>,
}

impl Numbers {
    pub(super) fn new(begin: &str) -> Self {
        Self { begin: format!("{begin}number-"), names: BTreeMap::new() }
    }

    /// Puts texts in place of the numbers in a schema that have bounds. The native engine makes
    /// literals of the rules' names of these.
    pub(super) fn mark(&mut self, node: &mut Value, part: Part) {
        match node {
            Value::Array(items) => items.iter_mut().for_each(|item| self.mark(item, part)),
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    self.mark(value, part.under(name));
                }
                let kinds = Kind::of(fields);
                // Every whole number is a number.
                let kind = [Kind::Number, Kind::Whole].into_iter().find(|one| kinds.contains(one));
                let kind = kind.filter(|_| part == Part::Schema);
                if let Some(range) = kind.and_then(|kind| Range::of(fields, kind)) {
                    let marked = self.marked(range, fields);
                    *node = marked;
                }
            }
            _ => {}
        }
    }

    /// What stands in place of a number, and of its other types.
    fn marked(&mut self, range: Range, fields: &Map<String, Value>) -> Value {
        let next = format!("{}{}", self.begin, self.names.len());
        let name = self.names.entry(range).or_insert(next);
        let number = json!({"type": "string", "pattern": super::marked(name)});
        let types = fields.get("type").and_then(Value::as_array).into_iter().flatten();
        let is_other = |kind: &&Value| !matches!(kind.as_str(), Some("number" | "integer"));
        let others: Vec<Value> = types.filter(is_other).cloned().collect();
        if others.is_empty() {
            return number;
        }
        let mut rest = fields.clone();
        rest.insert("type".to_owned(), others.into());
        json!({"anyOf": [number, rest]})
    }

    pub(super) fn is_rule(&self, name: &str) -> bool {
        name.starts_with(&self.begin) && self.names.values().any(|known| known == name)
    }

    /// A line for each of the rules.
    pub(super) fn rules(&self) -> String {
        let mut rules = String::new();
        for (range, name) in &self.names {
            let _ = writeln!(rules, "{name} ::= {}", range.ways().join(" | "));
        }
        rules
    }
}

/// Numbers between bounds, of which there are some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    /// Whether they have no fractions.
    is_whole: bool,
    low: Option<Bound>,
    high: Option<Bound>,
}

/// Where numbers begin or end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Bound {
    of: i64,
    /// Whether this number is none of them.
    is_open: bool,
}

impl Bound {
    const fn mirrored(self) -> Self {
        Self { of: -self.of, ..self }
    }

    fn digits(self) -> usize {
        self.of.to_string().len()
    }
}

impl Range {
    /// What the bounds in a schema that can be followed say together, if they leave any number.
    fn of(fields: &Map<String, Value>, kind: Kind) -> Option<Self> {
        let most = bound_max(kind);
        let bound =
            |word: &str, is_open| Some(Bound { of: whole(fields.get(word)?, most)?, is_open });
        let low = [bound("minimum", false), bound("exclusiveMinimum", true)];
        let high = [bound("maximum", false), bound("exclusiveMaximum", true)];
        let low = low.into_iter().flatten().max();
        let high = high.into_iter().flatten().min_by_key(|bound| (bound.of, !bound.is_open));
        let range = Self { is_whole: kind == Kind::Whole, low, high };
        let has_bound = low.is_some() || high.is_some();
        (has_bound && !range.ways().is_empty()).then_some(range)
    }

    /// The alternatives that its numbers are. Zero has no sign.
    fn ways(self) -> Vec<String> {
        let is_below = |bound: &Bound| bound.of < 0;
        let zero = |is_open| Bound { of: 0, is_open };
        let mut ways = Vec::new();
        if !self.high.as_ref().is_some_and(is_below) {
            let low = self.low.filter(|low| !is_below(low));
            ways = self.sizes(low.unwrap_or(zero(false)), self.high);
        }
        if self.low.as_ref().is_none_or(is_below) {
            let least = self.high.filter(is_below).map(Bound::mirrored);
            let below = self.sizes(least.unwrap_or(zero(true)), self.low.map(Bound::mirrored));
            if !below.is_empty() {
                ways.push(format!("\"-\" ({})", below.join(" | ")));
            }
        }
        ways
    }

    /// Those of its numbers between bounds of which none is below zero, as alternatives.
    fn sizes(self, low: Bound, high: Option<Bound>) -> Vec<String> {
        if !self.is_whole {
            return fractions(low, high);
        }
        let to = high.map(|high| high.of - i64::from(high.is_open));
        whole_numbers(low.of + i64::from(low.is_open), to)
    }
}

/// Numbers with fractions between bounds of which none is below zero, as alternatives.
fn fractions(low: Bound, high: Option<Bound>) -> Vec<String> {
    let open = [Some(low), high].into_iter().flatten().filter(|bound| bound.is_open);
    // A fraction with more places could be read as the bound itself.
    let places = open.map(|bound| DIGITS.saturating_sub(bound.digits())).min();
    let places = places.unwrap_or(PLACES_MAX);
    let from = low.of + i64::from(low.is_open);
    let mut ways = Vec::new();
    if low.is_open && high.is_none_or(|high| low.of < high.of) {
        let more = places - 1;
        ways.push(format!("\"{}.\" [0]{{0,{more}}} [1-9] [0-9]{{0,{more}}}", low.of));
    }
    let wholes = whole_numbers(from, high.map(|high| high.of - 1));
    if !wholes.is_empty() {
        ways.push(format!("({}) (\".\" [0-9]{{1,{places}}})?", wholes.join(" | ")));
    }
    if let Some(high) = high.filter(|high| !high.is_open && from <= high.of) {
        ways.push(format!("\"{}\" (\".\" [0]{{1,{places}}})?", high.of));
    }
    ways
}

/// The whole numbers from one through another, or from one on, as alternatives of their digits.
fn whole_numbers(from: i64, to: Option<i64>) -> Vec<String> {
    if let Some(to) = to {
        return whole_numbers_to(from, to);
    }
    let digits = from.to_string();
    let nines = digits.bytes().fold(0, |nines, _| 10 * nines + 9);
    let mut all = whole_numbers_to(from, nines);
    if digits.len() < PLACES_MAX {
        all.push(format!("[1-9] [0-9]{{{},{}}}", digits.len(), PLACES_MAX - 1));
    }
    all
}

fn whole_numbers_to(mut from: i64, to: i64) -> Vec<String> {
    let mut all = Vec::new();
    while from <= to {
        // The last digits that may be any; the first one is never zero then.
        let (mut power, mut free) = (1, 0);
        while from >= 10 * power && from % (10 * power) == 0 && from + 10 * power - 1 <= to {
            power *= 10;
            free += 1;
        }
        let (before, digit) = (from / power / 10, from / power % 10);
        let last = (digit + (to - from + 1) / power - 1).min(9);
        let before = if before > 0 { format!("\"{before}\" ") } else { String::new() };
        let after = if free > 0 { format!(" [0-9]{{{free}}}") } else { String::new() };
        all.push(format!("{before}[{digit}-{last}]{after}"));
        from += (last - digit + 1) * power;
    }
    all
}

/// A bound that can be followed, of at most `most`.
fn whole(bound: &Value, most: u64) -> Option<i64> {
    let written = bound.is_number().then(|| bound.to_string())?;
    let whole: i64 = written.strip_suffix(".0").unwrap_or(&written).parse().ok()?;
    (whole.unsigned_abs() <= most).then_some(whole)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    type Ends = BTreeSet<usize>;

    fn range(fields: &str, kind: Kind) -> Option<Range> {
        Range::of(&serde_json::from_str(fields).unwrap(), kind)
    }

    fn takes(range: Range, text: &str) -> bool {
        let rule = range.ways().join(" | ");
        let mut rest = &*rule;
        let ends = alternatives(&mut rest, text, &[0].into());
        assert!(rest.is_empty(), "{rule}");
        ends.contains(&text.len())
    }

    /// Where alternatives of a rule end in `text` that begin in these places.
    fn alternatives(rule: &mut &str, text: &str, from: &Ends) -> Ends {
        let (mut all, mut at) = (Ends::new(), from.clone());
        loop {
            *rule = rule.trim_start();
            if rule.is_empty() || rule.starts_with(')') {
                all.append(&mut at);
                return all;
            }
            if let Some(rest) = rule.strip_prefix('|') {
                *rule = rest;
                all.append(&mut at);
                at = from.clone();
            } else {
                at = repeated(rule, text, &at);
            }
        }
    }

    fn repeated(rule: &mut &str, text: &str, from: &Ends) -> Ends {
        let begin = *rule;
        let mut at = one(rule, text, from);
        let (mut least, mut most) = (1_usize, 1_usize);
        if let Some(rest) = rule.strip_prefix('?') {
            *rule = rest;
            least = 0;
        } else if let Some((times, rest)) = rule.strip_prefix('{').and_then(|r| r.split_once('}')) {
            *rule = rest;
            let (few, many) = times.split_once(',').unwrap_or((times, times));
            (least, most) = (few.parse().unwrap(), many.parse().unwrap());
        }
        let mut all = if least == 0 { from.clone() } else { Ends::new() };
        for times in 1..=most {
            if times >= least {
                all.extend(&at);
            }
            if at.is_empty() {
                break;
            }
            at = one(&mut { begin }, text, &at);
        }
        all
    }

    /// A literal, a digit or a group.
    fn one(rule: &mut &str, text: &str, from: &Ends) -> Ends {
        let (first, rest) = rule.split_at(1);
        *rule = rest;
        match first {
            "\"" => {
                let (literal, rest) = rule.split_once('"').unwrap();
                *rule = rest;
                let begun = from.iter().filter(|at| text[**at..].starts_with(literal));
                begun.map(|at| at + literal.len()).collect()
            }
            "[" => {
                let (digits, rest) = rule.split_once(']').unwrap();
                *rule = rest;
                let (first, last) = digits.split_once('-').unwrap_or((digits, digits));
                let is_one = |at: &&usize| {
                    let digit = text.get(**at..**at + 1);
                    digit.is_some_and(|digit| (first..=last).contains(&digit))
                };
                from.iter().filter(is_one).map(|at| at + 1).collect()
            }
            "(" => {
                let ends = alternatives(rule, text, from);
                *rule = rule.strip_prefix(')').unwrap();
                ends
            }
            other => panic!("{other} {rule}"),
        }
    }

    fn takes_just(fields: &str, kind: Kind, taken: &[&str], others: &[&str]) {
        let range = range(fields, kind).unwrap();
        for (texts, is_taken) in [(taken, true), (others, false)] {
            for text in texts {
                assert_eq!(takes(range, text), is_taken, "{fields}: {text}");
            }
        }
    }

    #[test]
    fn a_number_is_taken_where_it_keeps_its_bounds() {
        for (fields, taken, others) in [
            (
                r#"{"minimum":0,"maximum":1.0}"#,
                &["0", "0.0", "0.9999999999999999", "1", "1.00"][..],
                &["", "-0", "-0.5", "1.01", "2", "00", "01", ".5", "0.", "1.", "1e0", "0.5e1"][..],
            ),
            (
                r#"{"exclusiveMinimum":0}"#,
                &["0.1", "0.00000000000001", "1", "1234567890123456.5"],
                &["0", "0.0", "0.000000000000001", "-1", "12345678901234567"],
            ),
            // More places and it would be read as the bound.
            (
                r#"{"minimum":4,"exclusiveMaximum":5}"#,
                &["4", "4.99999999999999"],
                &["4.999999999999999", "5", "5.0"],
            ),
            (
                r#"{"exclusiveMinimum":9999999999998,"exclusiveMaximum":9999999999999}"#,
                &["9999999999998.01", "9999999999998.9"],
                &["9999999999998", "9999999999998.001", "9999999999999"],
            ),
            (r#"{"minimum":-2,"maximum":-2}"#, &["-2", "-2.0"], &["2", "-2.1", "-1.9"]),
            (r#"{"maximum":0}"#, &["0", "0.0", "-0.5", "-77"], &["-0", "-0.0", "0.5", "1"]),
            // The closer ones hold.
            (
                r#"{"minimum":3,"exclusiveMinimum":3,"maximum":9,"exclusiveMaximum":5}"#,
                &["3.5", "4"],
                &["3", "5"],
            ),
            (r#"{"minimum":0,"exclusiveMinimum":false}"#, &["0"], &["-1"]),
            (r#"{"minimum":0.5,"maximum":1}"#, &["0", "-3", "1"], &["1.5"]),
        ] {
            takes_just(fields, Kind::Number, taken, others);
        }
    }

    #[test]
    fn a_whole_number_is_taken_where_it_keeps_its_bounds() {
        for (fields, taken, others) in [
            (
                r#"{"minimum":100}"#,
                &["100", "101", "199", "1000", "9999999999999999"][..],
                &["10", "19", "99", "0", "-100", "0100", "100.0", "10000000000000000"][..],
            ),
            (r#"{"maximum":-5}"#, &["-5", "-6", "-10", "-100"], &["-4", "-01", "-05", "5", "0"]),
            (r#"{"exclusiveMinimum":0}"#, &["1", "10"], &["0", "-1", "-0"]),
            (r#"{"exclusiveMinimum":-1,"exclusiveMaximum":1}"#, &["0"], &["-0", "1", "-1"]),
            (
                r#"{"minimum":-9007199254740991,"maximum":9007199254740991}"#,
                &["0", "9007199254740991", "-9007199254740991", "42"],
                &["9007199254740992", "-9007199254740992", "9999999999999999"],
            ),
        ] {
            takes_just(fields, Kind::Whole, taken, others);
        }
    }

    #[test]
    fn numbers_keep_all_bounds_there_are() {
        let mut texts = Vec::new();
        for size in [0, 1, 2, 8, 9, 10, 11, 18, 19, 20, 99, 100, 101, 119, 120, 200, 304, 305, 306]
        {
            for (sign, minus) in [(1, ""), (-1, "-")] {
                // Zero has no sign.
                let is_one = size > 0 || sign > 0;
                texts.push((sign * size * 10, is_one, format!("{minus}{size}")));
                texts.push((sign * size * 10, is_one, format!("{minus}{size}.0")));
                texts.push((sign * (size * 10 + 5), true, format!("{minus}{size}.5")));
            }
        }
        let bounds = [-120, -11, -10, -1, 0, 1, 9, 10, 19, 100, 305];
        let bounds =
            bounds.into_iter().flat_map(|of| [false, true].map(|is_open| Bound { of, is_open }));
        let bounds: Vec<_> = bounds.map(Some).chain([None]).collect();
        for low in &bounds {
            for high in &bounds {
                let range = Range { is_whole: false, low: *low, high: *high };
                let of_wholes = Range { is_whole: true, ..range };
                for (tenths, is_one, text) in &texts {
                    let is_above = low.is_none_or(|low| {
                        *tenths > 10 * low.of || *tenths == 10 * low.of && !low.is_open
                    });
                    let is_below = high.is_none_or(|high| {
                        *tenths < 10 * high.of || *tenths == 10 * high.of && !high.is_open
                    });
                    let is_taken = *is_one && is_above && is_below;
                    assert_eq!(takes(range, text), is_taken, "{range:?}: {text}");
                    let is_taken = is_taken && !text.contains('.');
                    assert_eq!(takes(of_wholes, text), is_taken, "{of_wholes:?}: {text}");
                }
            }
        }
    }

    #[test]
    fn bounds_that_are_not_whole_or_too_large_or_leave_nothing_are_not_followed() {
        for (fields, word, followed) in [
            (r#"{"minimum":0,"maximum":1}"#, "maximum", true),
            (r#"{"minimum":-0.0}"#, "minimum", true),
            (r#"{"minimum":1e3}"#, "minimum", true),
            (r#"{"minimum":0.5}"#, "minimum", false),
            (r#"{"minimum":0.5,"maximum":1}"#, "minimum", false),
            (r#"{"minimum":0.5,"maximum":1}"#, "maximum", true),
            (r#"{"maximum":9999999999999}"#, "maximum", true),
            (r#"{"maximum":10000000000000}"#, "maximum", false),
            (r#"{"minimum":-1e300}"#, "minimum", false),
            (r#"{"minimum":-99999999999999999999}"#, "minimum", false),
            (r#"{"minimum":2,"maximum":1}"#, "minimum", false),
            (r#"{"minimum":1,"exclusiveMaximum":1}"#, "exclusiveMaximum", false),
            (r#"{"minimum":0,"exclusiveMinimum":true}"#, "exclusiveMinimum", false),
            (r#"{"minimum":"0"}"#, "minimum", false),
            ("{}", "minimum", false),
        ] {
            let fields: Map<String, Value> = serde_json::from_str(fields).unwrap();
            assert_eq!(follows(word, &fields, Kind::Number), followed, "{fields:?}");
        }
        let fields =
            json!({"minimum": 10_000_000_000_000_u64, "maximum": 10_000_000_000_000_000_u64});
        let fields = fields.as_object().unwrap();
        assert!(follows("minimum", fields, Kind::Whole), "{fields:?}");
        assert!(!follows("maximum", fields, Kind::Whole), "{fields:?}");
    }
}
