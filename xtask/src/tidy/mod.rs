//! `cargo xtask tidy`: the rules about the tree that no compiler checks.

mod layers;
mod links;
mod manifest;
mod modules;
mod purity;
mod size;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::rust_source::RustSource;
use crate::{Failure, Outcome, workspace};

/// One violation of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// From 1; 0 when the finding is about the whole file.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// The text files of the workspace, and the Rust ones taken apart.
struct Tree {
    /// Text by path relative to the root.
    texts: BTreeMap<String, String>,
    sources: BTreeMap<String, RustSource>,
    /// The folders of the packages.
    packages: Vec<String>,
}

/// Endings of files that hold text of ours.
const TEXT_ENDINGS: [&str; 14] = [
    "rs", "toml", "md", "txt", "py", "mjs", "json", "jsonl", "sh", "sql", "svg", "html", "css",
    "yml",
];

impl Tree {
    fn read(root: &Path) -> Outcome<Self> {
        let files = workspace::files(root)?;
        let packages = workspace::packages(&files);
        let mut texts = BTreeMap::new();
        for file in files {
            let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
            if TEXT_ENDINGS.contains(&ending) || file.starts_with(".ci/") {
                let text = workspace::read(&root.join(&file))?;
                texts.insert(file, text);
            }
        }
        Ok(Self::of(texts, packages))
    }

    fn of(texts: BTreeMap<String, String>, packages: Vec<String>) -> Self {
        let sources = texts
            .iter()
            .filter(|(path, _)| path.ends_with(".rs"))
            .map(|(path, text)| (path.clone(), RustSource::read(text)))
            .collect();
        Self { texts, sources, packages }
    }

    fn text(&self, path: &str) -> &str {
        self.texts.get(path).map_or("", String::as_str)
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(layers::check(self));
        findings.extend(links::check(self));
        findings.extend(manifest::check(self));
        findings.extend(modules::check(self));
        findings.extend(purity::check(self));
        findings.extend(size::check(self));
        findings.extend(text::check(self));
        findings.sort();
        findings
    }
}

/// `a/b/../c` as `a/c`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        if part == ".." {
            parts.pop();
        } else if !matches!(part, "" | ".") {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// Checks the whole tree and prints what is wrong, one line each.
pub(crate) fn tidy() -> Outcome<()> {
    let tree = Tree::read(&workspace::root())?;
    let findings = tree.findings();
    for finding in &findings {
        println!("  {finding}");
    }
    if findings.is_empty() {
        println!("  {} files are tidy", tree.texts.len());
        return Ok(());
    }
    Err(Failure::new(format!("{} finding(s); repeat with `cargo xtask tidy`", findings.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of a few files, for the tests of single rules.
    pub(super) fn tree(files: &[(&str, &str)]) -> Tree {
        let texts: BTreeMap<String, String> =
            files.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect();
        let names: Vec<String> = texts.keys().cloned().collect();
        let packages = workspace::packages(&names);
        Tree::of(texts, packages)
    }

    /// The findings as `path:line`.
    pub(super) fn places(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|finding| format!("{}:{}", finding.path, finding.line)).collect()
    }

    #[test]
    fn this_workspace_is_tidy() -> Outcome<()> {
        let findings = Tree::read(&workspace::root())?.findings();
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(lines, Vec::<String>::new());
        Ok(())
    }
}
