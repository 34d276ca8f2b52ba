//! Runs the tests of the workspace, a few programs at a time: many of them wait for networks,
//! processes and clocks more than they compute.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::json::Json;
use crate::process::{TestCount, cargo, run_watched, watch};
use crate::{Failure, Outcome};

/// Programs that run at the same time.
const LANES: usize = 2;
/// Tests of a program that run at the same time.
const TESTS_AT_ONCE: &str = "--test-threads=3";
/// The programs that take longest begin first, so that none of them runs alone at the end.
const LONGEST: [&str; 4] = ["mesh", "real_model", "kill9", "serving"];
/// How often it is looked whether a program has ended.
const LOOKED_AT_EVERY: Duration = Duration::from_millis(20);
/// How long what a program wrote last may take to be read once it has ended.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);
/// A program that takes longer hangs: it is ended, and what it told is shown.
const PROGRAM_TAKES_AT_MOST: Duration = Duration::from_secs(20 * 60);
/// How the line begins that a test writes to stderr when it cannot run on this machine.
const SKIPPED: &str = "skipped: ";

/// A test program that cargo built.
pub(crate) struct Program {
    path: PathBuf,
    /// The folder of its package, where cargo runs it.
    folder: PathBuf,
    name: String,
}

/// What came of all programs.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) count: TestCount,
    /// The tests that count as passed and could not run on this machine, with the reason.
    pub(crate) skipped: Vec<String>,
    /// Lines that repeat the programs that failed.
    failed: Vec<String>,
}

/// Runs all `programs` with the model at `model`, then the examples in the documentation. All
/// programs run even when one fails; the failure names those that did.
pub(crate) fn run(mut programs: Vec<Program>, model: &Path) -> Outcome<Results> {
    let total = programs.len();
    println!("  {total} programs, {LANES} at a time");
    programs.sort_by_key(Program::rank);
    let queue = Mutex::new(VecDeque::from(programs));
    let results = Mutex::new(Results::default());
    thread::scope(|scope| {
        for _ in 0..LANES.min(total) {
            scope.spawn(|| {
                while let Some(program) = next(&queue) {
                    let ran = program.run(model);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    // Whole outputs, one after another.
                    println!("{}", ran.shown);
                    results.count.add(ran.count);
                    results.skipped.extend(ran.skipped);
                    if !ran.passed {
                        results.failed.push(program.repeated_by(model));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !results.failed.is_empty() {
        let list = results.failed.join("\n  ");
        return Err(Failure::new(format!("these failed; repeat each with its line:\n  {list}")));
    }
    let mut examples = cargo(["test", "--release", "--workspace", "--doc"]);
    results.count.add(run_watched(&mut examples)?);
    Ok(results)
}

fn next(queue: &Mutex<VecDeque<Program>>) -> Option<Program> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Builds every test and, because tests run them, the programs that ship.
pub(crate) fn build() -> Outcome<Vec<Program>> {
    let mut programs = Vec::new();
    let mut wrong = None;
    let format = "--message-format=json-render-diagnostics";
    let mut command = cargo(["test", "--release", "--workspace", "--no-run", format]);
    watch(&mut command, |line| match program(line) {
        Ok(found) => programs.extend(found),
        Err(failure) => wrong = Some(failure),
    })?;
    match wrong {
        Some(failure) => Err(failure),
        None if programs.is_empty() => Err(Failure::new("cargo built no test program")),
        None => Ok(programs),
    }
}

/// The test program that a line of cargo's messages tells of.
fn program(line: &str) -> Outcome<Option<Program>> {
    let message = Json::parse(line)?;
    let is_test = message.at("profile.test") == Some(&Json::Bool(true));
    let Some(Json::Text(path)) = message.at("executable").filter(|_| is_test) else {
        return Ok(None);
    };
    let manifest = Path::new(message.text("manifest_path")?);
    let folder = manifest.parent().unwrap_or(Path::new("/")).to_owned();
    let package = folder.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{package}: {}", message.text("target.name")?);
    Ok(Some(Program { path: path.into(), folder, name }))
}

/// What came of one program.
struct Ran {
    count: TestCount,
    passed: bool,
    skipped: Vec<String>,
    /// What is to be shown.
    shown: String,
}

impl Program {
    /// Its place among the programs that take longest; the others come after them.
    fn rank(&self) -> usize {
        let target = self.name.rsplit(": ").next();
        LONGEST.iter().position(|name| Some(*name) == target).unwrap_or(LONGEST.len())
    }

    fn command(&self, model: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).env("TIRAMI_TEST_MODEL", model).arg(TESTS_AT_ONCE);
        command
    }

    fn run(&self, model: &Path) -> Ran {
        let begun = Instant::now();
        let name = &self.name;
        match told(&mut self.command(model), PROGRAM_TAKES_AT_MOST) {
            Err(error) => Ran {
                count: TestCount::default(),
                passed: false,
                skipped: Vec::new(),
                shown: format!("{name}: cannot run: {error}"),
            },
            Ok(told) => {
                let said = String::from_utf8_lossy(&told.stdout);
                let count = said.lines().fold(TestCount::default(), |mut count, line| {
                    count.read(line);
                    count
                });
                let passed = told.success == Some(true);
                let errors = String::from_utf8_lossy(&told.stderr);
                let skipped = skipped(name, &errors);
                let errors = if passed { "" } else { errors.as_ref() };
                let seconds = begun.elapsed().as_secs_f64();
                let verdict = match told.success {
                    Some(true) => "",
                    Some(false) => ", FAILED",
                    None => ", FAILED: it hung and was ended",
                };
                let head = format!("{name}, {seconds:.1} s{verdict}");
                let shown = format!("{head}\n{}{errors}", said.trim_end());
                Ran { count, passed, skipped, shown }
            }
        }
    }

    fn repeated_by(&self, model: &Path) -> String {
        let (folder, model, path) = (self.folder.display(), model.display(), self.path.display());
        format!("(cd {folder} && TIRAMI_TEST_MODEL={model} {path})")
    }
}

/// What a program told.
struct Told {
    /// None when it was ended because it took too long.
    success: Option<bool>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs a program for at most `limit`. What it wrote until then is told in both cases.
fn told(command: &mut Command, limit: Duration) -> io::Result<Told> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let begun = Instant::now();
    let stdout = child.stdout.take().map(kept);
    let stderr = child.stderr.take().map(kept);
    let success = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status.success());
        }
        if begun.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(LOOKED_AT_EVERY);
    };
    Ok(Told { success, stdout: collected(stdout), stderr: collected(stderr) })
}

/// Reads a pipe on a thread of its own, so that its writer never waits.
fn kept(mut pipe: impl io::Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, parts) = mpsc::channel();
    thread::spawn(move || {
        let mut part = [0_u8; 1 << 13];
        while let Ok(read @ 1..) = pipe.read(&mut part) {
            if sender.send(part[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    parts
}

/// All that a program that has ended wrote to a pipe. Programs that it started may keep the pipe
/// open: they are not waited for.
fn collected(parts: Option<mpsc::Receiver<Vec<u8>>>) -> Vec<u8> {
    let Some(parts) = parts else { return Vec::new() };
    let next = || parts.recv_timeout(LAST_WORDS_WITHIN).ok();
    std::iter::from_fn(next).flatten().collect()
}

/// The notices among what the program `name` wrote to stderr.
fn skipped(name: &str, errors: &str) -> Vec<String> {
    let notices = errors.lines().filter_map(|line| line.strip_prefix(SKIPPED));
    notices.map(|notice| format!("{name}, {notice}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notices_of_skipped_tests_are_found_in_what_a_program_says() {
        let errors = "a log line\nskipped: disk::is_full: no mount here\nwas skipped: no\n";
        assert_eq!(skipped("a: store", errors), ["a: store, disk::is_full: no mount here"]);
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_what_it_told_is_shown() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let hung = told(&mut shell("echo begun; exec sleep 60"), Duration::from_secs(2)).unwrap();
        assert_eq!((hung.success, hung.stdout.as_slice()), (None, b"begun\n".as_slice()));
        let soon = Duration::from_secs(60);
        let failed = told(&mut shell("echo wrong >&2; exit 3"), soon).unwrap();
        assert_eq!(
            (failed.success, failed.stderr.as_slice()),
            (Some(false), b"wrong\n".as_slice())
        );
    }

    #[test]
    fn the_programs_that_take_longest_begin_first() {
        let program = |name: &str| {
            let (path, folder) = ("".into(), "".into());
            Program { path, folder, name: format!("crate: {name}") }
        };
        let mut programs = ["store", "real_model", "mesh_limits", "mesh"].map(program);
        programs.sort_by_key(Program::rank);
        let names = programs.map(|program| program.name);
        assert_eq!(
            names,
            ["crate: mesh", "crate: real_model", "crate: store", "crate: mesh_limits"]
        );
    }

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let artifact = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml",
                "target":{{"name":"http"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let found = program(&artifact(true, r#""/t/http-1""#)).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.path.to_str()), ("a: http", Some("/t/http-1")));
        assert_eq!(found.folder, Path::new("/w/crates/a"));
        for line in [
            artifact(false, r#""/t/tirami""#),
            artifact(true, "null"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ] {
            assert!(program(&line).unwrap().is_none(), "{line}");
        }
        assert!(program("no JSON").is_err());
    }
}
