//! Which crate may import which: `layers.toml` against the manifests.

use std::collections::BTreeMap;

use super::{Finding, Tree};

const LAYERS: &str = "layers.toml";

/// Only what a crate ships with is bound by `layers.toml`; its tests may also use what
/// stands behind this prefix, as in `dev.tirami-node = ["tirami-sim"]`.
const DEV_PREFIX: &str = "dev.";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let allowed = read(tree.text(LAYERS));
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    for package in &tree.packages {
        let path = format!("{package}/Cargo.toml");
        let manifest = tree.text(&path);
        let Some(name) = package.rsplit('/').next() else {
            continue;
        };
        seen.push(name.to_owned());
        let Some(edges) = allowed.get(name) else {
            findings.push(Finding::new(LAYERS, 0, format!("{name} has no line; add one")));
            continue;
        };
        let dev_edges = allowed.get(&format!("{DEV_PREFIX}{name}"));
        for (line, dependency, dev) in dependencies(manifest) {
            let in_dev = dev && dev_edges.is_some_and(|edges| edges.contains(&dependency));
            if !edges.contains(&dependency) && !in_dev {
                let message = format!("{name} may not import {dependency}; see {LAYERS}");
                findings.push(Finding::new(&path, line, message));
            }
        }
    }
    for name in allowed.keys() {
        let package = name.strip_prefix(DEV_PREFIX).unwrap_or(name);
        if !seen.iter().any(|seen| seen == package) {
            findings.push(Finding::new(LAYERS, 0, format!("{package} does not exist; remove it")));
        }
    }
    findings
}

/// Lines of the form `name = ["a", "b"]`.
fn read(text: &str) -> BTreeMap<String, Vec<String>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, list)| {
            let edges = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
            (name.trim().to_owned(), edges)
        })
        .collect()
}

/// The dependencies on crates of this workspace: line, name, and whether only tests have it.
fn dependencies(manifest: &str) -> Vec<(usize, String, bool)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for (line, text) in (1..).zip(manifest.lines()) {
        let text = text.trim();
        if let Some(header) = text.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
            // `[dependencies.tirami-core]` names the dependency in the header.
            if let Some((kind, name)) = section.split_once("dependencies.") {
                push(&mut found, line, name, kind);
            }
        } else if let Some(kind) = section.strip_suffix("dependencies") {
            let name = text.split(['.', '=', ' ']).next().unwrap_or("");
            push(&mut found, line, name, kind);
        }
    }
    found
}

fn push(found: &mut Vec<(usize, String, bool)>, line: usize, name: &str, kind: &str) {
    let name = name.trim_matches('"');
    if name.starts_with("tirami-") || name == "xtask" {
        found.push((line, name.to_owned(), kind.ends_with("dev-")));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn an_edge_that_is_not_listed_is_found() {
        let layers = "tirami-a = []\ntirami-b = [\"tirami-a\"]\ndev.tirami-a = [\"tirami-b\"]\n";
        let upward = "[dependencies]\ntirami-b.workspace = true\n";
        let in_tests = "[dev-dependencies]\ntirami-b = { path = \"../b\" }\n";
        let downward = "[dependencies.tirami-a]\nworkspace = true\n";
        for (a, b, expected) in [
            (upward, "", vec!["crates/tirami-a/Cargo.toml:2"]),
            (in_tests, downward, vec![]),
            (
                "",
                "[target.'cfg(unix)'.dependencies]\ntirami-c = \"1\"\n",
                vec!["crates/tirami-b/Cargo.toml:2"],
            ),
        ] {
            let tree = tree(&[
                (LAYERS, layers),
                ("crates/tirami-a/Cargo.toml", a),
                ("crates/tirami-b/Cargo.toml", b),
            ]);
            assert_eq!(places(&check(&tree)), expected);
        }
    }

    #[test]
    fn every_crate_has_a_line_and_every_line_a_crate() {
        let tree = tree(&[(LAYERS, "tirami-gone = []\n"), ("crates/tirami-new/Cargo.toml", "")]);
        let messages: Vec<String> = check(&tree).into_iter().map(|f| f.message).collect();
        assert_eq!(
            messages,
            ["tirami-new has no line; add one", "tirami-gone does not exist; remove it"]
        );
    }
}
