//! The pure crates: no clock, no file, no socket, no thread, no order that depends on a hash.

use super::{Finding, Tree};

/// The crates that decide and must be replayable from their inputs.
const PURE: [&str; 4] = ["tirami-core", "tirami-ledger", "tirami-proto", "tirami-kernel"];

/// What their shipped code may not name. `clippy.toml` bans the same by path; this list also
/// holds where a path is spelled in pieces.
const BANNED: [(&str, &str); 12] = [
    ("HashMap", "BTreeMap"),
    ("HashSet", "BTreeSet"),
    ("std::time", "the Timestamp passed in"),
    ("SystemTime", "the Timestamp passed in"),
    ("Instant", "the Timestamp passed in"),
    ("std::fs", "bytes passed in"),
    ("std::net", "an effect"),
    ("std::thread", "an effect"),
    ("std::env", "a parameter"),
    ("std::process", "an effect"),
    ("tokio", "an effect"),
    ("tracing", "an event"),
];

/// What a pure crate's `clippy.toml` must ban.
const CLIPPY_BANS: [&str; 4] = [
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::time::SystemTime",
    "std::time::Instant",
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in PURE {
        let package = format!("crates/{name}");
        if !tree.packages.contains(&package) {
            continue;
        }
        let clippy = format!("{package}/clippy.toml");
        for path in CLIPPY_BANS {
            if !tree.text(&clippy).contains(path) {
                findings.push(Finding::new(&clippy, 0, format!("ban {path}: this crate is pure")));
            }
        }
        let shipped = format!("{package}/src/");
        for (path, source) in &tree.sources {
            if path.starts_with(&shipped) && !path.ends_with("tests.rs") {
                findings.extend(check_code(path, &source.code));
            }
        }
    }
    findings
}

fn check_code(path: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, text) in (1..).zip(code.lines()) {
        // Tests stand last in a file and may use what they like.
        if text.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        for (banned, instead) in BANNED {
            let named = text.match_indices(banned).any(|(at, _)| {
                let edge = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                edge(text[..at].chars().next_back())
                    && edge(text[at + banned.len()..].chars().next())
            });
            if named {
                let message = format!("this crate is pure: not `{banned}` but {instead}");
                findings.push(Finding::new(path, line, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn a_clock_or_a_hash_map_in_a_pure_crate_is_found() {
        let code = "use std::time::SystemTime;\nstruct InstantPrice;\n// HashMap\n\
                    #[cfg(test)]\nmod tests { use std::collections::HashMap; }\n";
        let tree = tree(&[
            ("crates/tirami-ledger/Cargo.toml", ""),
            ("crates/tirami-ledger/clippy.toml", &CLIPPY_BANS.join("\n")),
            ("crates/tirami-ledger/src/lib.rs", code),
            ("crates/tirami-node/src/lib.rs", code),
        ]);
        let mut found = places(&check(&tree));
        found.dedup();
        assert_eq!(found, ["crates/tirami-ledger/src/lib.rs:1"]);
    }
}
