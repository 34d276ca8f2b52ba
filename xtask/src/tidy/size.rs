//! Sizes of files and functions, as a ratchet: `xtask/ratchet.txt` names the exceptions with
//! their size, and an entry may shrink or go, never grow or appear.

use std::collections::BTreeMap;

use super::{Finding, Tree};

/// Lines a file may have.
const FILE_LINES_MAX: usize = 800;

/// Lines of code a function may have, its signature included.
const FUNCTION_LINES_MAX: usize = 90;

const RATCHET: &str = "xtask/ratchet.txt";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut listed = read(tree.text(RATCHET));
    let mut findings = Vec::new();
    for (path, source) in &tree.sources {
        let lines = tree.text(path).lines().count();
        findings.extend(compare(path, 0, path, lines, FILE_LINES_MAX, &mut listed));
        for function in source.functions() {
            let name = format!("{path}::{}", function.name);
            let size = function.code_lines;
            let limit = FUNCTION_LINES_MAX;
            findings.extend(compare(path, function.line, &name, size, limit, &mut listed));
        }
    }
    for name in listed.keys() {
        let message = format!("`{name}` is small enough or gone: remove its line");
        findings.push(Finding::new(RATCHET, 0, message));
    }
    findings
}

fn compare(
    path: &str,
    line: usize,
    name: &str,
    size: usize,
    limit: usize,
    listed: &mut BTreeMap<String, usize>,
) -> Option<Finding> {
    if size <= limit {
        return None;
    }
    match listed.remove(name) {
        Some(known) if known == size => None,
        Some(known) if known > size => {
            Some(Finding::new(RATCHET, 0, format!("`{name}` shrank: write {size} for {known}")))
        }
        _ => Some(Finding::new(path, line, format!("{size} lines; {limit} are allowed: split it"))),
    }
}

/// Lines of the form `name size`.
fn read(text: &str) -> BTreeMap<String, usize> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, size)| Some((name.to_owned(), size.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn sizes_may_only_shrink() {
        let long = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(98));
        for (ratchet, expected) in [
            ("", Some("100 lines; 90 are allowed: split it")),
            ("a.rs::long 100\n", None),
            ("a.rs::long 99\n", Some("100 lines; 90 are allowed: split it")),
            ("a.rs::long 120\n", Some("`a.rs::long` shrank: write 100 for 120")),
            ("a.rs::long 100\nb.rs 900\n", Some("`b.rs` is small enough or gone: remove its line")),
        ] {
            let tree = tree(&[("a.rs", &long), (RATCHET, ratchet)]);
            let messages: Vec<String> = check(&tree).into_iter().map(|f| f.message).collect();
            assert_eq!(messages.first().map(String::as_str), expected, "{ratchet}");
        }
    }
}
