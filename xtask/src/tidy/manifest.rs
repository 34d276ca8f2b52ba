//! What every package's manifest must say.

use super::{Finding, Tree};

/// The GPU back-ends, by the names of the features that build them.
const BACK_ENDS: [&str; 4] = ["cuda", "metal", "rocm", "vulkan"];
/// Who passes such a feature on, and what to.
const PASSED_ON: [(&str, &str); 2] = [
    ("crates/tirami-cli/Cargo.toml", "\"tirami-infer/"),
    ("crates/tirami-infer/Cargo.toml", "\"llama-cpp-2/"),
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = check_back_ends(tree);
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

/// A back-end must arrive at the engine from where the binary is built.
fn check_back_ends(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, onward) in PASSED_ON {
        let manifest = tree.text(path);
        for back_end in BACK_ENDS.iter().filter(|_| !manifest.is_empty()) {
            let begins = format!("{back_end} = [");
            let passes = format!("{onward}{back_end}\"]");
            let is_it = |line: &&str| line.starts_with(&begins) && line.ends_with(&passes);
            if !section(manifest, "[features]").iter().any(is_it) {
                let message = format!("the feature `{back_end}` does not reach llama.cpp");
                findings.push(Finding::new(path, 0, message));
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
    fn a_back_end_that_is_not_passed_on_is_found() {
        let all = BACK_ENDS.map(|name| format!("{name} = [\"tirami-infer/{name}\"]\n")).concat();
        for (features, expected) in [
            (all.clone(), 0),
            (all.replace("infer/rocm", "infer/cuda"), 1),
            (all.replace("metal = ", "metals = "), 1),
        ] {
            let manifest = format!("[features]\n{features}");
            let tree = tree(&[("crates/tirami-cli/Cargo.toml", &manifest)]);
            assert_eq!(check_back_ends(&tree).len(), expected, "{features}");
        }
    }

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
