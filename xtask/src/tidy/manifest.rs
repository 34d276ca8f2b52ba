//! What every package's manifest must say.

use super::{Finding, Tree};

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &tree.packages {
        let path = format!("{package}/Cargo.toml");
        let manifest = tree.text(&path);
        if section(manifest, "[lints]") != ["workspace = true"] {
            findings.push(Finding::new(&path, 0, "inherit the lints: `[lints] workspace = true`"));
        }
        for key in ["description = ", "license.workspace = true", "edition.workspace = true"] {
            if !manifest.lines().any(|line| line.starts_with(key)) {
                findings.push(Finding::new(&path, 0, format!("`{key}` is missing")));
            }
        }
        for (line, text) in (1..).zip(manifest.lines()) {
            if text.starts_with("path = \"..") || text.contains("{ path = \"..") {
                let message = "name crates of the workspace as `name.workspace = true`";
                findings.push(Finding::new(&path, line, message));
            }
        }
    }
    findings
}

/// The lines of a section that are neither empty nor comments.
fn section<'a>(manifest: &'a str, header: &str) -> Vec<&'a str> {
    manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != header)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn a_crate_that_does_not_inherit_the_lints_is_found() {
        let common = "description = \"x\"\nlicense.workspace = true\nedition.workspace = true\n";
        for (lints, expected) in [
            ("[lints]\nworkspace = true\n\n[dependencies]\n", 0),
            ("[lints.rust]\nmissing_docs = \"warn\"\n", 1),
            ("[lints]\n[dependencies]\nworkspace = true\n", 1),
        ] {
            let manifest = format!("{common}{lints}");
            let tree = tree(&[("crates/a/Cargo.toml", &manifest)]);
            assert_eq!(check(&tree).len(), expected, "{lints}");
        }
    }
}
