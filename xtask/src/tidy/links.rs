//! Links between the pages lead somewhere.

use super::{Finding, Tree};

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.texts.iter().filter(|(path, _)| path.ends_with(".md")) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, text) in (1..).zip(text.lines()) {
            for target in targets(text) {
                let file = super::normal(&format!("{folder}/{target}"));
                if !exists(tree, &file) {
                    findings.push(Finding::new(path, line, format!("`{target}` is not there")));
                }
            }
        }
    }
    findings
}

/// The files that `[text](file)` names; links to elsewhere and within the page are left out.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
}

/// Text files are known by name, folders by what is in them.
fn exists(tree: &Tree, file: &str) -> bool {
    let folder = format!("{file}/");
    file == "LICENSE"
        || tree.texts.contains_key(file)
        || tree.texts.keys().any(|path| path.starts_with(&folder))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn a_link_to_a_page_that_is_not_there_is_found() {
        let page = "[a](../a.md) [b](#part) [c](other.md#part)\n[d](gone.md) [e](https://x.y)\n";
        let tree = tree(&[("a.md", ""), ("docs/other.md", ""), ("docs/page.md", page)]);
        assert_eq!(places(&check(&tree)), ["docs/page.md:2"]);
    }
}
