//! The page of parameters and bounds, read from the constants of the crates that ship.

use std::fmt::Write as _;

use crate::{Outcome, workspace};

/// Types of constants that are figures.
const FIGURES: [&str; 13] = [
    "u8", "u16", "u32", "u64", "u128", "usize", "i64", "i128", "f32", "f64", "Trm", "Ppm",
    "Duration",
];

/// What of the workspace never ships.
const NOT_SHIPPED: [&str; 1] = ["crates/tirami-sim"];

/// A documented constant.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parameter {
    name: String,
    value: String,
    meaning: String,
}

/// Writes the page from the sources as they are.
pub(super) fn page() -> Outcome<String> {
    let root = workspace::root();
    let files = workspace::files(&root)?;
    let mut page = String::from(
        "# Parameters and bounds\n\nEvery figure the code decides with, as it stands in the \
         source. Everything that grows has a bound here. Settings of an owner are in \
         [config.md](config.md).\n",
    );
    for package in workspace::packages(&files) {
        if !package.starts_with("crates/") || NOT_SHIPPED.contains(&package.as_str()) {
            continue;
        }
        let source = format!("{package}/src/");
        let mut rows = String::new();
        for file in files.iter().filter(|file| file.starts_with(&source)) {
            if !file.ends_with(".rs") || file.ends_with("tests.rs") {
                continue;
            }
            for parameter in parameters(&workspace::read(&root.join(file))?) {
                let Parameter { name, value, meaning } = parameter;
                let place = file.trim_start_matches(&source);
                let _ = writeln!(rows, "| `{name}` | `{value}` | {meaning} | `{place}` |");
            }
        }
        if !rows.is_empty() {
            let name = package.trim_start_matches("crates/");
            let head = "| name | value | meaning | file |\n|---|---|---|---|";
            let _ = write!(page, "\n## {name}\n\n{head}\n{rows}");
        }
    }
    Ok(page)
}

/// The documented constants at the top level of a file, up to its tests. A comment is about all
/// that follow it line by line.
fn parameters(source: &str) -> Vec<Parameter> {
    let mut found = Vec::new();
    let mut meaning: Vec<&str> = Vec::new();
    // Whether the comment before has a constant already, and may be about the next one as well.
    let mut is_shared = false;
    // Tests of a file of their own are declared above what is documented.
    let tests = source.find("#[cfg(test)]\nmod tests {").unwrap_or(source.len());
    for line in source[..tests].lines() {
        if let Some(doc) = line.strip_prefix("///") {
            if std::mem::take(&mut is_shared) {
                meaning.clear();
            }
            meaning.push(doc.trim());
            continue;
        }
        match constant(line).filter(|_| !meaning.is_empty()) {
            Some(mut parameter) => {
                parameter.meaning = meaning.join(" ").replace('|', "\\|");
                found.push(parameter);
                is_shared = true;
            }
            None => {
                meaning.clear();
                is_shared = false;
            }
        }
    }
    found
}

/// `const NAME: TYPE = VALUE;` on one line, whatever its visibility.
fn constant(line: &str) -> Option<Parameter> {
    let declaration = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let (name, rest) = declaration.strip_prefix("const ")?.split_once(": ")?;
    let (kind, value) = rest.strip_suffix(';')?.split_once(" = ")?;
    FIGURES.contains(&kind).then(|| Parameter {
        name: name.to_owned(),
        value: value.to_owned(),
        meaning: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_figures_are_listed_and_nothing_else() {
        let source = "\
#[cfg(test)]
mod tests;

/// Peers a node talks to,
/// at most.
pub(crate) const PEERS_MAX: usize = 64;
const BURST_MAX: f64 = 2.0;

const UNDOCUMENTED: u32 = 1;
/// A name.
pub const NAME: &str = \"x\";
/// How long.
pub const WAIT: Duration = Duration::from_secs(5);
#[cfg(test)]
mod tests {
/// Of tests.
const TEST_MAX: u32 = 1;
}
";
        let found = parameters(source);
        let names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["PEERS_MAX", "BURST_MAX", "WAIT"]);
        for one in &found[..2] {
            assert_eq!(one.meaning, "Peers a node talks to, at most.");
        }
        assert_eq!(found[2].value, "Duration::from_secs(5)");
    }
}
