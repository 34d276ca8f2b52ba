//! `cargo xtask fuzz`: whether the fuzz targets compile, and inputs for them to begin with.
//!
//! The targets are a workspace of their own, which no other command builds; fuzzing itself needs a
//! nightly toolchain, and CONTRIBUTING.md says how.

use crate::process::{cargo, run_watched};
use crate::{Failure, Outcome, workspace};

/// Into this workspace's output and with its profile, so that what others wrote is not checked
/// again where both workspaces ask for the same of it.
const CHECK: [&str; 11] = [
    "check",
    "--release",
    "--locked",
    "--manifest-path",
    "fuzz/Cargo.toml",
    "--config",
    "profile.release.debug-assertions=false",
    "--config",
    "profile.release.split-debuginfo=\"off\"",
    "--config",
    "profile.release.package.\"*\".debug=false",
];

/// Files with a line `name value …` for each golden message, and the target that reads the values.
const GOLDEN: [(&str, &str); 6] = [
    ("crates/tirami-proto/tests/golden/control.hex", "control"),
    ("crates/tirami-proto/tests/golden/to-provider.hex", "to_provider"),
    ("crates/tirami-proto/tests/golden/to-consumer.hex", "to_consumer"),
    ("crates/tirami-proto/tests/golden/texts.txt", "peer_texts"),
    ("crates/tirami-ledger/tests/golden/entries.txt", "entry"),
    ("crates/tirami-ledger/tests/golden/documents.txt", "documents"),
];

/// The first byte that a stream's target reads: chunks as large as they get.
const WHOLE_CHUNKS: u8 = 0xff;

/// Type-checks the targets, all but the one that needs the whole node.
pub(crate) fn check() -> Outcome<()> {
    let mut command = cargo(CHECK);
    run_watched(command.arg("--target-dir").arg(workspace::target_dir()))?;
    Ok(())
}

/// Writes one input for each golden message where cargo-fuzz looks for them.
pub(crate) fn seeds() -> Outcome<()> {
    let corpus = workspace::root().join("fuzz/corpus");
    let seeds = golden()?;
    for seed in &seeds {
        workspace::write_bytes(&corpus.join(seed.target).join(&seed.name), &seed.bytes)?;
    }
    println!("wrote {} inputs into fuzz/corpus", seeds.len());
    Ok(())
}

/// An input of a target.
struct Seed {
    target: &'static str,
    name: String,
    bytes: Vec<u8>,
}

fn golden() -> Outcome<Vec<Seed>> {
    let mut seeds = Vec::new();
    for (file, target) in GOLDEN {
        let text = workspace::read(&workspace::root().join(file))?;
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let (Some(name), Some(value)) = (words.next(), words.next()) else {
                return Err(Failure::new(format!("{file}:{number}: no `name value`")));
            };
            let target = if name == "price-signal" { "price_signal" } else { target };
            let mut bytes = bytes(value);
            if file.ends_with(".hex") {
                bytes.insert(0, WHOLE_CHUNKS);
            }
            seeds.push(Seed { target, name: format!("golden-{number}-{name}"), bytes });
        }
    }
    Ok(seeds)
}

/// The bytes that hexadecimal digits stand for; of any other text its own.
fn bytes(value: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(value.get(at..at + 2)?, 16).ok();
    let pairs: Option<Vec<u8>> = (0..value.len()).step_by(2).map(pair).collect();
    pairs.unwrap_or_else(|| value.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_golden_message_is_an_input_of_a_target_that_is_there() -> Outcome<()> {
        let manifest = workspace::read(&workspace::root().join("fuzz/Cargo.toml"))?;
        let seeds = golden()?;
        for (file, target) in GOLDEN {
            assert!(seeds.iter().any(|seed| seed.target == target), "{file}");
        }
        for seed in seeds {
            assert!(manifest.contains(&format!("name = \"{}\"\n", seed.target)), "{}", seed.name);
        }
        Ok(())
    }

    #[test]
    fn digits_are_bytes_and_texts_are_themselves() {
        assert_eq!(bytes("00ff"), [0, 0xff]);
        assert_eq!(bytes("ab@1"), b"ab@1");
        assert_eq!(bytes("abc"), b"abc");
    }
}
