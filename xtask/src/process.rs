//! Running other programs: shown before they start, watched for warnings, timed.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::workspace::root;
use crate::{Failure, Outcome};

/// What cargo tells the programs it runs; a cargo run from here must not inherit it.
const FROM_CARGO_RUN: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

/// A cargo command in the workspace's root.
///
/// Build scripts watch their environment; without the variables of the cargo that started this
/// tool they see the same as in a cargo started by hand, and nothing is built twice.
pub(crate) fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    for (name, _) in std::env::vars_os() {
        if FROM_CARGO_RUN.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    if io::stderr().is_terminal() {
        command
            .env("CARGO_TERM_COLOR", "always")
            .env("CARGO_TERM_PROGRESS_WHEN", "always")
            .env("CARGO_TERM_PROGRESS_WIDTH", "90");
    }
    command
}

/// The command as a person would type it, with the variables set on top.
pub(crate) fn shown(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter(|(name, _)| !name.to_string_lossy().starts_with("CARGO_TERM_"))
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))))
        .collect();
    let program = std::path::Path::new(command.get_program());
    words.push(match program.file_name() {
        Some(name) if name == "cargo" => "cargo".to_owned(),
        _ => program.display().to_string(),
    });
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains([' ', '"', '*']) { format!("'{word}'") } else { word.into_owned() }
}

/// Runs a program that must succeed, its output going to the terminal.
pub(crate) fn run(command: &mut Command) -> Outcome<()> {
    println!("  $ {}", shown(command));
    run_unshown(command)
}

/// The same, for a command that was shown in another form.
pub(crate) fn run_unshown(command: &mut Command) -> Outcome<()> {
    let status = command
        .status()
        .map_err(|error| Failure::new(format!("cannot run `{}`: {error}", shown(command))))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "this command failed ({status}); repeat it with:\n  {}",
        shown(command)
    )))
}

/// Runs a program that must succeed and returns what it wrote to stdout.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::new(format!("cannot run `{}`: {error}", shown(command))))?;
    if !out.status.success() {
        return Err(Failure::new(format!(
            "this command failed ({}); repeat it with:\n  {}\n{}",
            out.status,
            shown(command),
            String::from_utf8_lossy(&out.stdout)
        )));
    }
    String::from_utf8(out.stdout)
        .map_err(|_| Failure::new(format!("`{}` wrote text that is not UTF-8", shown(command))))
}

/// Whether a program runs and succeeds; its output is thrown away.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// How many tests a watched run reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TestCount {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl TestCount {
    /// Adds what another run counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Adds what a line of a test program's output says.
    pub(crate) fn read(&mut self, line: &str) {
        let Some(counts) = line.trim().strip_prefix("test result: ") else {
            return;
        };
        let number_before = |word: &str| {
            counts
                .split(&[';', '.'][..])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        self.passed += number_before("passed");
        self.failed += number_before("failed");
    }
}

/// Runs a cargo command that must succeed without a single warning, and counts its tests.
pub(crate) fn run_watched(command: &mut Command) -> Outcome<TestCount> {
    let mut count = TestCount::default();
    watch(command, |line| {
        println!("{line}");
        count.read(line);
    })?;
    Ok(count)
}

/// Runs a cargo command that must succeed without a single warning, and hands on each line of its
/// stdout.
pub(crate) fn watch(command: &mut Command, mut each: impl FnMut(&str)) -> Outcome<()> {
    println!("  $ {}", shown(command));
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(format!("cannot run `{}`: {error}", shown(command))))?;
    let warnings =
        child.stderr.take().map(|pipe| thread::spawn(move || pass_stderr(pipe, io::stderr())));
    if let Some(pipe) = child.stdout.take() {
        BufReader::new(pipe).lines().map_while(Result::ok).for_each(|line| each(&line));
    }
    let warnings = warnings.and_then(|reader| reader.join().ok()).unwrap_or_default();
    let status = wait(&mut child, command)?;
    if !status {
        return Err(Failure::new(format!(
            "this command failed; repeat it with:\n  {}",
            shown(command)
        )));
    }
    match warnings.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(format!(
            "{} warning(s), and none is allowed; the first is:\n  {first}\nrepeat it with:\n  {}",
            warnings.len(),
            shown(command)
        ))),
    }
}

fn wait(child: &mut Child, command: &Command) -> Outcome<bool> {
    child
        .wait()
        .map(|status| status.success())
        .map_err(|error| Failure::new(format!("lost `{}`: {error}", shown(command))))
}

/// Copies bytes as they come, so that progress bars stay alive, and keeps the warning lines.
fn pass_stderr(mut pipe: impl Read, mut terminal: impl Write) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut line = Vec::new();
    let mut bytes = [0_u8; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut bytes) {
        let _ = terminal.write_all(&bytes[..read]);
        for &byte in &bytes[..read] {
            if byte != b'\n' && byte != b'\r' {
                line.push(byte);
                continue;
            }
            let text = without_colours(&String::from_utf8_lossy(&line));
            if text.trim_start().starts_with("warning") {
                warnings.push(text);
            }
            line.clear();
        }
    }
    warnings
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            for code in characters.by_ref() {
                if code.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            plain.push(character);
        }
    }
    plain
}

/// Steps of a long command: each is announced, timed, and listed at the end.
pub(crate) struct Steps {
    total: usize,
    begun: Instant,
    done: Vec<(String, f64)>,
}

impl Steps {
    /// Begins a run of `total` steps.
    pub(crate) fn new(total: usize) -> Self {
        Self { total, begun: Instant::now(), done: Vec::new() }
    }

    /// Runs one step; its failure names the step.
    pub(crate) fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        println!("\n[{}/{}] {name}", self.done.len() + 1, self.total);
        let begun = Instant::now();
        let value =
            work().map_err(|failure| Failure::new(format!("step \"{name}\": {failure}")))?;
        let seconds = begun.elapsed().as_secs_f64();
        println!("  done in {seconds:.1} s");
        self.done.push((name.to_owned(), seconds));
        Ok(value)
    }

    /// Prints all steps with their times.
    pub(crate) fn summary(&self) {
        println!("\n{:>9}  step", "seconds");
        for (name, seconds) in &self.done {
            println!("{seconds:>9.1}  {name}");
        }
        println!("{:>9.1}  all", self.begun.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_results_are_summed_over_binaries() {
        let mut count = TestCount::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; finished in 0.02s",
        ] {
            count.read(line);
        }
        assert_eq!(count, TestCount { passed: 7, failed: 2 });
    }

    #[test]
    fn warnings_are_found_between_progress_lines_and_colours() {
        let text = b"Building [=>  ]\r\x1b[33mwarning\x1b[0m: unused import\n  --> src/lib.rs\n";
        assert_eq!(pass_stderr(&text[..], io::sink()), ["warning: unused import"]);
    }

    #[test]
    fn commands_are_shown_as_they_would_be_typed() {
        let mut command = Command::new("/opt/bin/cargo");
        command.args(["doc", "-p", "a b"]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(shown(&command), "RUSTDOCFLAGS='-D warnings' cargo doc -p 'a b'");
    }
}
