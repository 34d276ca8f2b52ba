//! No file that is not compiled, and no module that nobody names.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Tree};
use crate::rust_source::words;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &tree.packages {
        let modules = reachable(tree, package);
        let inside = format!("{package}/");
        for path in tree.sources.keys().filter(|path| path.starts_with(&inside)) {
            if !modules.contains_key(path) {
                findings.push(Finding::new(path, 0, "no `mod` leads to this file"));
            }
        }
        for (path, module) in &modules {
            if let Some(declared) = module.as_ref().filter(|declared| !declared.for_tests) {
                findings.extend(unnamed(tree, path, declared));
            }
        }
    }
    findings
}

/// Where a module is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Declared {
    name: String,
    file: String,
    for_tests: bool,
}

/// All files that cargo compiles for a package, each with its declaration; roots have none.
fn reachable(tree: &Tree, package: &str) -> BTreeMap<String, Option<Declared>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<(String, Option<Declared>)> =
        roots(tree, package).into_iter().map(|root| (root, None)).collect();
    while let Some((path, declared)) = open.pop() {
        if found.contains_key(&path) {
            continue;
        }
        for (child, declaration) in children(tree, &path) {
            open.push((child, Some(declaration)));
        }
        found.insert(path, declared);
    }
    found
}

/// The files cargo starts from: libraries, programs, tests, benches, examples, build scripts.
fn roots(tree: &Tree, package: &str) -> BTreeSet<String> {
    let manifest = tree.text(&format!("{package}/Cargo.toml"));
    let mut roots: BTreeSet<String> = ["src/lib.rs", "src/main.rs", "build.rs"]
        .into_iter()
        .map(str::to_owned)
        .chain(manifest.lines().filter_map(|line| {
            Some(line.strip_prefix("path = \"")?.trim_end_matches('"').to_owned())
        }))
        .map(|file| format!("{package}/{file}"))
        .filter(|file| tree.sources.contains_key(file))
        .collect();
    for folder in ["src/bin", "tests", "benches", "examples"] {
        let prefix = format!("{package}/{folder}/");
        roots.extend(
            tree.sources
                .keys()
                .filter(|path| {
                    path.strip_prefix(&prefix)
                        .is_some_and(|rest| !rest.contains('/') || rest.ends_with("/main.rs"))
                })
                .cloned(),
        );
    }
    roots
}

/// The files that the `mod` lines of `path` lead to.
fn children(tree: &Tree, path: &str) -> Vec<(String, Declared)> {
    let Some(source) = tree.sources.get(path) else {
        return Vec::new();
    };
    let text = tree.text(path);
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    let is_root = matches!(stem, "lib" | "main" | "mod" | "build")
        || ["src/bin", "tests", "benches", "examples"].iter().any(|root| folder.ends_with(root));
    let base = if is_root { folder.to_owned() } else { format!("{folder}/{stem}") };
    let lines: Vec<&str> = text.lines().collect();
    let mut found = by_macro(tree, path, &source.code, &base);
    for (number, line) in source.code.lines().enumerate() {
        let Some(name) = declared_module(line) else {
            continue;
        };
        let above = lines[..number].iter().rev().take_while(|line| line.trim().starts_with("#["));
        let attributes: Vec<&str> = above.copied().collect();
        let chosen = attributes.iter().find_map(|line| {
            Some(line.trim().strip_prefix("#[path = \"")?.split('"').next()?.to_owned())
        });
        let candidates = match chosen {
            Some(file) => vec![super::normal(&format!("{folder}/{file}"))],
            None => vec![format!("{base}/{name}.rs"), format!("{base}/{name}/mod.rs")],
        };
        let for_tests =
            attributes.iter().any(|line| line.contains("cfg(test)")) || !path.contains("/src/");
        let declared = Declared { name: name.to_owned(), file: path.to_owned(), for_tests };
        found.extend(
            candidates
                .into_iter()
                .filter(|file| tree.sources.contains_key(file))
                .map(|file| (file, declared.clone())),
        );
    }
    found
}

/// The files that a macro with `mod $name;` declares: those named by a word of its arguments.
fn by_macro(tree: &Tree, path: &str, code: &str, base: &str) -> Vec<(String, Declared)> {
    if !code.contains("mod $") {
        return Vec::new();
    }
    words(code)
        .into_iter()
        .map(|word| (format!("{base}/{}.rs", word.text), word.text))
        .filter(|(file, _)| file != path && tree.sources.contains_key(file))
        .map(|(file, name)| {
            // The macro names each of them again, so they need no other mention.
            let declared =
                Declared { name: name.to_owned(), file: path.to_owned(), for_tests: true };
            (file, declared)
        })
        .collect()
}

/// The name in `mod name;`, with or without a visibility.
fn declared_module(line: &str) -> Option<&str> {
    let statement = line.trim().strip_suffix(';')?;
    let (before, name) = match statement.rsplit_once(' ') {
        Some((before, name)) => (before.trim(), name),
        None => return None,
    };
    let is_mod = before == "mod" || (before.starts_with("pub") && before.ends_with(" mod"));
    is_mod.then_some(name)
}

/// A module that declares items at its top level must be named by a path somewhere outside it.
///
/// Modules that only implement methods are reached through their types and need no name.
fn unnamed(tree: &Tree, path: &str, declared: &Declared) -> Option<Finding> {
    let source = tree.sources.get(path)?;
    let declares = source.code.lines().any(|line| {
        line.starts_with("pub ") || line.starts_with("pub(") || line.starts_with("macro_rules!")
    });
    let own = path.trim_end_matches(".rs").trim_end_matches("/mod");
    let named = tree.sources.iter().any(|(file, source)| {
        let outside = file != path && !file.starts_with(&format!("{own}/"));
        outside && names(&source.code, &declared.name)
    });
    (declares && !named).then(|| {
        let message = format!("nobody names this module, declared in {}", declared.file);
        Finding::new(path, 0, message)
    })
}

/// Whether a path goes through `name`: `name::x`, `x::name`, or a mention in a `use`.
fn names(code: &str, name: &str) -> bool {
    let mut imports_end = 0;
    for word in words(code) {
        if word.text == "use" {
            let rest = &code[word.at..];
            imports_end = word.at + rest.find(';').unwrap_or(rest.len());
        }
        if word.text == name {
            let before = code[..word.at].trim_end();
            let after = code[word.at + name.len()..].trim_start();
            if word.at < imports_end || after.starts_with("::") || before.ends_with("::") {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn a_file_that_no_mod_leads_to_is_found() {
        let tree = tree(&[
            ("crates/a/Cargo.toml", ""),
            ("crates/a/src/lib.rs", "mod one;\n#[cfg(test)]\nmod tests;\nuse one::two;\n"),
            ("crates/a/src/one.rs", "mod two;\n#[path = \"three.rs\"]\nmod three;\n"),
            ("crates/a/src/one/two.rs", ""),
            ("crates/a/src/three.rs", "impl X {}\n"),
            ("crates/a/src/tests.rs", ""),
            ("crates/a/src/forgotten.rs", ""),
            ("crates/a/tests/edge.rs", "mod support;\n"),
            ("crates/a/tests/support/mod.rs", "pub fn x() {}\n"),
            ("crates/a/tests/helper/stale.rs", ""),
        ]);
        assert_eq!(
            places(&check(&tree)),
            ["crates/a/src/forgotten.rs:0", "crates/a/tests/helper/stale.rs:0"]
        );
    }

    #[test]
    fn a_table_may_declare_modules() {
        let table = "macro_rules! t { ($($f:ident)+) => { $(mod $f;)+ }; }\nt! { one two }\n";
        let tree = tree(&[
            ("crates/a/Cargo.toml", ""),
            ("crates/a/src/lib.rs", table),
            ("crates/a/src/one.rs", "pub struct One;\n"),
            ("crates/a/src/two.rs", "pub struct Two;\n"),
            ("crates/a/src/six.rs", "pub struct Six;\n"),
        ]);
        assert_eq!(places(&check(&tree)), ["crates/a/src/six.rs:0"]);
    }

    #[test]
    fn a_module_that_nobody_names_is_found() {
        for (used, expected) in [("", 1), ("use crate::price::Price;\n", 0), ("// price::x\n", 1)] {
            let tree = tree(&[
                ("crates/a/Cargo.toml", ""),
                ("crates/a/src/lib.rs", &format!("pub mod price;\n{used}")),
                ("crates/a/src/price.rs", "pub struct Price;\n"),
            ]);
            assert_eq!(check(&tree).len(), expected, "{used}");
        }
    }
}
