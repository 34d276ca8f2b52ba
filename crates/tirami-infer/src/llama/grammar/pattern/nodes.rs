//! What a pattern says, as nodes that lead to each other; a character may lead several ways.

use std::collections::BTreeMap;

use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassBracketed, ClassPerl, ClassPerlKind, ClassSet, ClassSetItem,
    ClassUnicode as Property, HexLiteralKind, Literal, LiteralKind, Repetition, RepetitionKind,
    RepetitionRange, SpecialLiteralKind,
};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};

use super::{SCHEMA_PATTERN_DEPTH_MAX, SCHEMA_PATTERN_SIZE_MAX, too_large};

/// The node where a pattern is met, and anything may follow.
pub(super) const REST: usize = 0;

const FLAGS: &str = "it may have no flags";

/// Characters of a text of JSON, escaped or not.
const WRITABLE: [(char, char); 4] =
    [('\u{8}', '\n'), ('\u{c}', '\r'), (' ', '~'), ('\u{80}', char::MAX)];

// What ECMA-262 means by its sets.
const LINE_ENDS: [(char, char); 3] = [('\n', '\n'), ('\r', '\r'), ('\u{2028}', '\u{2029}')];
const DIGITS: [(char, char); 1] = [('0', '9')];
const WORD: [(char, char); 4] = [('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
const SPACES: [(char, char); 10] = [
    ('\t', '\r'),
    (' ', ' '),
    ('\u{a0}', '\u{a0}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{2000}', '\u{200a}'),
    ('\u{2028}', '\u{2029}'),
    ('\u{202f}', '\u{202f}'),
    ('\u{205f}', '\u{205f}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{feff}', '\u{feff}'),
];

#[derive(Debug)]
enum Node {
    /// Anything may follow.
    Rest,
    /// A character of the set, and then another node.
    Char(ClassUnicode, usize),
    /// Any of these nodes.
    Any(Vec<usize>),
    /// Another node, if the text begins here.
    Begin(usize),
    /// Another node, if the text ends here.
    End(usize),
}

/// The nodes of a pattern.
#[derive(Debug)]
pub(super) struct Nodes<'p> {
    pattern: &'p str,
    all: Vec<Node>,
    /// Where a text begins.
    pub(super) first: usize,
    /// Parts there may still be.
    left: usize,
    /// The sets that were read, by where they stand: one that is repeated is read once.
    sets: BTreeMap<usize, ClassUnicode>,
}

impl<'p> Nodes<'p> {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as a part of a sentence.
    pub(super) fn read(pattern: &'p str) -> Result<Self, String> {
        let mut parser = ParserBuilder::new().nest_limit(SCHEMA_PATTERN_DEPTH_MAX).build();
        let ast = parser.parse(pattern).map_err(|error| error.kind().to_string())?;
        let left = SCHEMA_PATTERN_SIZE_MAX;
        let (all, sets) = (vec![Node::Rest], BTreeMap::new());
        let mut nodes = Self { pattern, all, first: REST, left, sets };
        let pattern = nodes.add(&ast, REST)?;
        let is_last = |at: &usize| matches!(nodes.all[*at], Node::Rest | Node::Char(..));
        let is_met_later = nodes.reached(&[pattern], (false, true)).iter().any(is_last);
        nodes.first = match is_met_later {
            true => {
                let first = nodes.all.len();
                nodes.push(Node::Any(vec![pattern, first + 1]));
                nodes.push(Node::Char(set(&WRITABLE), first));
                first
            }
            false => pattern,
        };
        Ok(nodes)
    }

    /// The nodes that are reached from `from` without a character, where the text begins or ends
    /// if so, in no order.
    pub(super) fn reached(&self, from: &[usize], (begins, ends): (bool, bool)) -> Vec<usize> {
        let (mut todo, mut reached) = (from.to_vec(), Vec::new());
        let mut is_known = vec![false; self.all.len()];
        while let Some(at) = todo.pop() {
            if std::mem::replace(&mut is_known[at], true) {
                continue;
            }
            reached.push(at);
            match &self.all[at] {
                Node::Any(nodes) => todo.extend(nodes),
                Node::Begin(next) if begins => todo.push(*next),
                Node::End(next) if ends => todo.push(*next),
                _ => {}
            }
        }
        reached
    }

    /// The ranges of characters that a text may go on with, and the node each leads to.
    pub(super) fn ranges(&self, from: &[usize], begins: bool) -> Vec<(u32, u32, usize)> {
        let reached = self.reached(from, (begins, false));
        let rest = set(&WRITABLE);
        let sets: Vec<(&ClassUnicode, usize)> = if reached.contains(&REST) {
            // Whatever else could be met makes no difference any more.
            vec![(&rest, REST)]
        } else {
            let of = |at: &usize| match &self.all[*at] {
                Node::Char(set, next) => Some((set, *next)),
                _ => None,
            };
            reached.iter().filter_map(of).collect()
        };
        let mut ranges = Vec::new();
        for (set, next) in sets {
            let of = |range: &ClassUnicodeRange| {
                (u32::from(range.start()), u32::from(range.end()), next)
            };
            ranges.extend(set.ranges().iter().map(of));
        }
        ranges
    }

    fn push(&mut self, node: Node) -> usize {
        self.all.push(node);
        self.all.len() - 1
    }

    fn take(&mut self, count: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(count).ok_or_else(too_large)?;
        Ok(())
    }

    /// Adds what `ast` says and `next` follows; gives the node it begins with.
    fn add(&mut self, ast: &Ast, next: usize) -> Result<usize, String> {
        self.take(1)?;
        match ast {
            Ast::Empty(_) => Ok(next),
            Ast::Literal(literal) => self.add_set(one(literal)?, next),
            Ast::Dot(_) => self.add_set(negated(set(&LINE_ENDS)), next),
            Ast::ClassPerl(class) => self.add_set(perl(class), next),
            Ast::ClassUnicode(property) => self.add_set(self.property(property)?, next),
            Ast::ClassBracketed(class) => {
                let at = class.span.start.offset;
                let set = match self.sets.get(&at) {
                    Some(set) => set.clone(),
                    None => self.bracketed(class)?,
                };
                self.sets.insert(at, set.clone());
                self.add_set(set, next)
            }
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine => Ok(self.push(Node::Begin(next))),
                AssertionKind::EndLine => Ok(self.push(Node::End(next))),
                _ => Err("of what matches no character it may have only ^ and $".to_owned()),
            },
            Ast::Flags(_) => Err(FLAGS.to_owned()),
            Ast::Group(group) => match group.flags() {
                Some(flags) if !flags.items.is_empty() => Err(FLAGS.to_owned()),
                _ => self.add(&group.ast, next),
            },
            Ast::Concat(all) => {
                all.asts.iter().rev().try_fold(next, |next, one| self.add(one, next))
            }
            Ast::Alternation(all) => {
                let all = all.asts.iter().map(|one| self.add(one, next));
                let all = all.collect::<Result<Vec<_>, _>>()?;
                Ok(self.push(Node::Any(all)))
            }
            Ast::Repetition(repetition) => self.repeat(repetition, next),
        }
    }

    fn repeat(&mut self, repetition: &Repetition, next: usize) -> Result<usize, String> {
        let (min, max) = match &repetition.op.kind {
            RepetitionKind::ZeroOrOne => (0, Some(1)),
            RepetitionKind::ZeroOrMore => (0, None),
            RepetitionKind::OneOrMore => (1, None),
            RepetitionKind::Range(RepetitionRange::Exactly(count)) => (*count, Some(*count)),
            RepetitionKind::Range(RepetitionRange::AtLeast(min)) => (*min, None),
            RepetitionKind::Range(RepetitionRange::Bounded(min, max)) => (*min, Some(*max)),
        };
        let ast = &repetition.ast;
        let mut first = next;
        match max {
            None => {
                first = self.push(Node::Any(Vec::new()));
                let again = self.add(ast, first)?;
                self.all[first] = Node::Any(vec![again, next]);
            }
            Some(max) => {
                for _ in min..max {
                    let more = self.add(ast, first)?;
                    first = self.push(Node::Any(vec![more, next]));
                }
            }
        }
        (0..min).try_fold(first, |first, _| self.add(ast, first))
    }

    /// Adds a character of `set`; one that cannot stand in a text of JSON is never met.
    fn add_set(&mut self, mut set: ClassUnicode, next: usize) -> Result<usize, String> {
        set.intersect(&self::set(&WRITABLE));
        self.take(set.ranges().len().saturating_sub(1))?;
        Ok(self.push(Node::Char(set, next)))
    }

    fn bracketed(&mut self, class: &ClassBracketed) -> Result<ClassUnicode, String> {
        let ClassSet::Item(item) = &class.kind else {
            return Err(
                "&&, -- and ~~ in a set of characters are written with backslashes".to_owned()
            );
        };
        let set = self.item(item)?;
        Ok(if class.negated { negated(set) } else { set })
    }

    /// What is in a set. Each thing in it is a part: to read it takes time, whatever comes of it.
    fn item(&mut self, item: &ClassSetItem) -> Result<ClassUnicode, String> {
        self.take(1)?;
        match item {
            ClassSetItem::Empty(_) => Ok(ClassUnicode::empty()),
            ClassSetItem::Literal(literal) => one(in_set(literal)?),
            ClassSetItem::Range(range) => {
                Ok(set(&[(character(in_set(&range.start)?)?, character(in_set(&range.end)?)?)]))
            }
            ClassSetItem::Perl(class) => Ok(perl(class)),
            ClassSetItem::Unicode(property) => self.property(property),
            ClassSetItem::Union(union) => {
                let mut all = Vec::new();
                for item in &union.items {
                    all.extend_from_slice(self.item(item)?.ranges());
                }
                Ok(ClassUnicode::new(all))
            }
            ClassSetItem::Ascii(_) | ClassSetItem::Bracketed(_) => {
                Err("a [ in a set of characters is written \\[".to_owned())
            }
        }
    }

    fn property(&self, property: &Property) -> Result<ClassUnicode, String> {
        let (start, end) = (property.span.start.offset, property.span.end.offset);
        let text = self.pattern.get(start..end).unwrap_or_default();
        match regex_syntax::parse(text).map(Hir::into_kind) {
            Ok(HirKind::Class(Class::Unicode(set))) => Ok(set),
            _ => Err(format!("{text:.50} is no set of characters that is known here")),
        }
    }
}

/// A literal in a set, where ECMA-262 reads a `]` at the beginning as the end of it.
fn in_set(literal: &Literal) -> Result<&Literal, String> {
    match (&literal.kind, literal.c) {
        (LiteralKind::Verbatim, ']') => Err("a ] in a set of characters is written \\]".to_owned()),
        _ => Ok(literal),
    }
}

fn one(literal: &Literal) -> Result<ClassUnicode, String> {
    let c = character(literal)?;
    Ok(set(&[(c, c)]))
}

/// The character a literal means, where ECMA-262 has the same escape.
fn character(literal: &Literal) -> Result<char, String> {
    use HexLiteralKind::{UnicodeShort, X};
    use SpecialLiteralKind::{CarriageReturn, FormFeed, LineFeed, Tab, VerticalTab};
    match &literal.kind {
        LiteralKind::Verbatim
        | LiteralKind::Meta
        | LiteralKind::Superfluous
        | LiteralKind::HexFixed(X | UnicodeShort)
        | LiteralKind::HexBrace(UnicodeShort)
        | LiteralKind::Special(FormFeed | Tab | LineFeed | CarriageReturn | VerticalTab) => {
            Ok(literal.c)
        }
        _ => Err("it has an escape that JSON schema does not know".to_owned()),
    }
}

fn perl(class: &ClassPerl) -> ClassUnicode {
    let set = match class.kind {
        ClassPerlKind::Digit => set(&DIGITS),
        ClassPerlKind::Space => set(&SPACES),
        ClassPerlKind::Word => set(&WORD),
    };
    if class.negated { negated(set) } else { set }
}

fn negated(mut set: ClassUnicode) -> ClassUnicode {
    set.negate();
    set
}

fn set(ranges: &[(char, char)]) -> ClassUnicode {
    ClassUnicode::new(ranges.iter().map(|(from, to)| ClassUnicodeRange::new(*from, *to)))
}
