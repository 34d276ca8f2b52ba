//! Rules about lines: how a file begins, how wide it is, which words it uses.

use super::{Finding, Tree};

/// Characters a line of Rust may have.
const COLUMNS_MAX: usize = 100;

/// The banned words, one a line: `kind<tab>pattern<tab>what to write instead`.
const BANNED: &str = "xtask/banned.txt";

/// Files that must name banned words: the list itself, the glossary that explains it, and
/// what cargo writes.
const MAY_NAME_THEM: [&str; 3] = [BANNED, "GLOSSARY.md", "Cargo.lock"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let banned = Ban::read(tree.text(BANNED));
    let mut findings = Vec::new();
    for (path, text) in &tree.texts {
        if !MAY_NAME_THEM.contains(&path.as_str()) {
            for (line, text) in (1..).zip(text.lines()) {
                findings.extend(banned.iter().filter(|ban| ban.is_in(text)).map(|ban| {
                    Finding::new(path, line, format!("`{}`: {}", ban.pattern, ban.instead))
                }));
            }
        }
        findings.extend(check_space(path, text));
    }
    for (path, source) in &tree.sources {
        findings.extend(check_rust(path, tree.text(path)));
        findings.extend(check_comments(path, &source.comments));
        findings.extend(check_attributes(path, &source.code, tree.text(path)));
    }
    findings
}

fn check_space(path: &str, text: &str) -> Vec<Finding> {
    let mut findings: Vec<Finding> = (1..)
        .zip(text.lines())
        .filter(|(_, text)| text.ends_with([' ', '\t', '\r']) && !path.ends_with(".md"))
        .map(|(line, _)| Finding::new(path, line, "space at the end of the line"))
        .collect();
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push(Finding::new(path, 0, "no newline at the end of the file"));
    }
    findings
}

fn check_rust(path: &str, text: &str) -> Vec<Finding> {
    let mut findings: Vec<Finding> = (1..)
        .zip(text.lines())
        // What rustfmt leaves wide is a text, an attribute or a macro: none reads better broken.
        .filter(|(_, text)| text.chars().count() > COLUMNS_MAX && !is_left_wide(text))
        .map(|(line, _)| Finding::new(path, line, format!("wider than {COLUMNS_MAX} columns")))
        .collect();
    if !text.starts_with("//! ") {
        findings.push(Finding::new(path, 1, "open with `//!`: what this file answers for"));
    }
    findings
}

fn is_left_wide(line: &str) -> bool {
    let line = line.trim_start();
    line.contains(['"', '\''])
        || ["#[", "(", "{"].iter().any(|start| line.starts_with(start))
        || line.contains("=> ")
}

/// Comments say why; the number of an issue says it to nobody.
fn check_comments(path: &str, comments: &str) -> Vec<Finding> {
    let names_issue = |text: &str| {
        text.match_indices('#').any(|(at, _)| {
            let before = text[..at].chars().next_back().unwrap_or(' ');
            let digits = text[at + 1..].chars().take_while(char::is_ascii_digit).count();
            let after = text[at + 1 + digits..].chars().next().unwrap_or(' ');
            digits > 0
                && (before.is_whitespace() || "([,".contains(before))
                && !after.is_alphanumeric()
        })
    };
    (1..)
        .zip(comments.lines())
        .filter(|(_, text)| names_issue(text))
        .map(|(line, _)| Finding::new(path, line, "say why instead of naming an issue's number"))
        .collect()
}

/// `text` is the file, `code` the same lines without comments and strings.
fn check_attributes(path: &str, code: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for start in ["#[", "#!["] {
        for (at, _) in code.match_indices(start) {
            let body = &code[at + start.len()..];
            let name = body.trim_start();
            let line = 1 + code[..at].matches('\n').count();
            let runs_elsewhere =
                || text.lines().nth(line - 1).is_some_and(|text| text.contains("cargo xtask "));
            if name.starts_with("ignore") && !runs_elsewhere() {
                findings.push(Finding::new(path, line, "say which `cargo xtask` runs this test"));
            }
            let silences = name.starts_with("allow(") || name.starts_with("expect(");
            let end = body.find(")]").unwrap_or(body.len());
            if silences && !body[..end].contains("reason") {
                findings.push(Finding::new(path, line, "give the `reason` of this exception"));
            }
        }
    }
    findings
}

/// A banned word.
struct Ban {
    kind: Kind,
    pattern: String,
    instead: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A whole word in any case.
    Word,
    /// A whole word in exactly this case.
    Exact,
    /// A whole word followed by a number.
    Numbered,
    /// These characters anywhere.
    Text,
}

impl Ban {
    fn read(text: &str) -> Vec<Self> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let mut parts = line.split('\t');
                let kind = match parts.next()? {
                    "word" => Kind::Word,
                    "exact" => Kind::Exact,
                    "numbered" => Kind::Numbered,
                    "text" => Kind::Text,
                    _ => return None,
                };
                let pattern = parts.next()?.to_owned();
                Some(Self { kind, pattern, instead: parts.next()?.to_owned() })
            })
            .collect()
    }

    fn is_in(&self, line: &str) -> bool {
        let lower;
        let (line, pattern) = match self.kind {
            Kind::Text => return line.contains(&self.pattern),
            Kind::Exact | Kind::Numbered => (line, self.pattern.clone()),
            Kind::Word => {
                lower = line.to_lowercase();
                (lower.as_str(), self.pattern.to_lowercase())
            }
        };
        line.match_indices(&pattern).any(|(at, _)| {
            let rest = &line[at + pattern.len()..];
            let edge = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            let whole = edge(line[..at].chars().next_back()) && edge(rest.chars().next());
            let number = rest.trim_start().starts_with(|c: char| c.is_ascii_digit());
            whole && (self.kind != Kind::Numbered || number)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn banned_words_are_found_as_words() {
        let bans =
            "word\tplum\tfig\nexact\tXU\tTRM\nnumbered\tEra\ta reason\ntext\t/srv/\ta path\n";
        for (line, expected) in [
            ("a Plum.", true),
            ("a plumber", false),
            ("10 XU", true),
            ("xu", false),
            ("Era 3", true),
            ("An Era of peace", false),
            ("see /srv/x", true),
        ] {
            let tree = tree(&[(BANNED, bans), ("a.md", &format!("{line}\n"))]);
            assert_eq!(!check(&tree).is_empty(), expected, "{line}");
        }
    }

    #[test]
    fn files_open_with_what_they_answer_for() {
        let tree = tree(&[("a.rs", "//! Prices.\n"), ("b.rs", "use std::fmt;\n")]);
        assert_eq!(places(&check(&tree)), ["b.rs:1"]);
    }

    #[test]
    fn exceptions_need_a_reason_and_what_leaves_a_test_out_names_what_runs_it() {
        for (code, findings) in [
            ("#[expect(dead_code, reason = \"shown to clients\")]\n", 0),
            ("#[expect(\n    dead_code,\n    reason = \"x\"\n)]\n", 0),
            ("#![allow(dead_code)]\n", 1),
            ("#[ignore]\n", 1),
            ("#[ignore = \"slow\"]\n", 1),
            ("#[ignore = \"needs a relay: cargo xtask test --relay\"]\n", 0),
            ("// see #12\n", 1),
            ("// the colour &#35; and a#1\n", 0),
            ("let s = \"#12\";\n", 0),
        ] {
            let tree = tree(&[("a.rs", &format!("//! A.\n{code}"))]);
            assert_eq!(check(&tree).len(), findings, "{code}");
        }
    }
}
