//! `cargo xtask soak`: loads ten nodes for as long as asked, and writes down what a long load told.

use std::fmt::Write as _;

use crate::bench::publish;
use crate::process::{cargo, run_watched, watch};
use crate::{Failure, Outcome, workspace};

const PAGE: &str = "docs/reference/soak.md";

/// A shorter load changes no file.
const PAGE_MINUTES_MIN: f64 = 10.0;

/// The test that is run for longer.
const SOAK: [&str; 5] = ["test", "--release", "--workspace", "--test", "mesh_soak"];

/// Its source, which names the limits that it judges by.
const SOURCE: &str = "crates/tirami-node/tests/mesh_soak.rs";

const INTRO: &str = "# Ten nodes at full load\n\nWritten by `cargo xtask soak --minutes N`, from \
                     10 minutes on: ten real nodes with scripted engines on loopback and four \
                     clients of each, all in one process. A client asks without a pause; seven of \
                     eight requests ask for an answer of another node, two of eight for a stream.";

/// Loads ten nodes for so many minutes, and fails on an error, on memory that is not flat, and on
/// books that do not agree at the end. The page says what was missed, too.
pub(crate) fn soak(minutes: &str) -> Outcome<()> {
    let length = minutes.parse::<f64>().ok().filter(|all| *all > 0.0 && all.is_finite());
    let Some(length) = length else {
        return Err(Failure::new(format!("{minutes} is not a number of minutes")));
    };
    run_watched(cargo(SOAK).arg("--no-run"))?;
    let mut told = String::new();
    let mut command = cargo(SOAK);
    command.args(["--", "--nocapture"]).env("TIRAMI_SOAK_MINUTES", minutes);
    let ran = watch(&mut command, |line| {
        println!("{line}");
        told.push_str(line);
        told.push('\n');
    });
    let source = workspace::read(&workspace::root().join(SOURCE))?;
    let table = table(&told, &source);
    match &table {
        Ok(table) if length >= PAGE_MINUTES_MIN => publish(PAGE, INTRO, table)?,
        _ => {}
    }
    ran.and(table.map(drop))
}

/// What a run told, beside the limits that the `source` of the test names. What a failed run did
/// not get to is missed.
fn table(told: &str, source: &str) -> Outcome<String> {
    let after = |begin: &str| told.lines().find_map(|line| line.strip_prefix(begin));
    let load = told.lines().find(|line| line.contains(" answers in ")).map(figures);
    let Some(&[answers, seconds, parts, entries]) = load.as_deref() else {
        return Err(Failure::new("the load told no figures"));
    };
    let mut table = Table::default();
    table.tell("answers", &format!("{answers} in {seconds} s, {:.0} /s", answers / seconds));
    table.tell("of them in parts of more than one node", &parts.to_string());
    table.tell("final entries", &entries.to_string());
    let settled = after("every job paid after ").map(rounded);
    let limit_s = |name| limit(source, name).map(|limit| format!("≤ {limit} s"));
    let what = "no error, and after the load until every job is paid and nothing is held";
    table.judge(what, settled, &limit_s("SETTLED_WITHIN")?, true);
    let agreed = after("all agree after ").map(rounded);
    let what = "then until all nodes hold the same and all balances sum to zero";
    table.judge(what, agreed, &limit_s("AGREED_WITHIN")?, true);
    let exact = after("every node was paid what its answers cost");
    let exact = exact.map(|_| "to the µTRM".to_owned());
    let what = "what a node was paid is what its answers cost those who got them";
    table.judge(what, exact, "to the µTRM", true);
    let memory = after("resident: ").map(figures);
    if let Some(&[full, end, growth]) = memory.as_deref() {
        let most = limit(source, "GROWTH_MAX")?;
        let what = "resident memory, in the seventh minute of the load and in its last";
        let measured = format!("{full:.1} and {end:.1} MiB: {growth:+.1} %");
        table.judge(what, Some(measured), &format!("±{most} %"), growth.abs() <= most);
    }
    let Table { rows, missed } = table;
    Ok(format!("| what | measured | limit | met |\n|---|---|---|---|\n{rows}\n{missed}"))
}

/// Rows of the table, and the lines after it.
#[derive(Default)]
struct Table {
    rows: String,
    missed: String,
}

impl Table {
    fn tell(&mut self, what: &str, measured: &str) {
        let _ = writeln!(self.rows, "| {what} | {measured} | | |");
    }

    fn judge(&mut self, what: &str, measured: Option<String>, limit: &str, is_within: bool) {
        let met = if measured.is_some() && is_within { "yes" } else { "no" };
        let measured = measured.as_deref().unwrap_or("not reached");
        let _ = writeln!(self.rows, "| {what} | {measured} | {limit} | {met} |");
        if met == "no" {
            let _ = writeln!(self.missed, "- Missed: {what}.");
        }
    }
}

/// All numbers in a text.
fn figures(text: &str) -> Vec<f64> {
    let words = text.split(|c: char| !c.is_ascii_digit() && !"+-.".contains(c));
    words.filter_map(|word| word.parse().ok()).collect()
}

/// A duration as Rust shows it, such as `1.234567s`, with one decimal place.
fn rounded(duration: &str) -> String {
    let unit = duration.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = figures(duration).first().copied().unwrap_or_default();
    format!("{number:.1} {unit}")
}

/// The number in the constant `name`.
fn limit(source: &str, name: &str) -> Outcome<f64> {
    let begin = format!("const {name}: ");
    let value = source.lines().find_map(|line| line.strip_prefix(&begin)?.split_once(" = "));
    let value = value.map(|(_, value)| figures(value)).unwrap_or_default();
    value.first().copied().ok_or_else(|| Failure::new(format!("{SOURCE} has no {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "after 0 s: 200.5 MiB resident\n\
                        60000 answers in 600 s, 3 of them in parts of more than one node; 900 \
                        entries are final\n\
                        every job paid after 1.26s\n\
                        all agree after 853.149ms\n\
                        every node was paid what its answers cost\n\
                        resident: 200.0 MiB when full, 210.0 at the end: +5.0 %\n";

    fn source() -> String {
        workspace::read(&workspace::root().join(SOURCE)).unwrap()
    }

    #[test]
    fn what_a_run_told_stands_beside_its_limits() {
        let page = table(TOLD, &source()).unwrap();
        for row in [
            "| answers | 60000 in 600 s, 100 /s | | |\n",
            "nothing is held | 1.3 s | ≤ 90 s | yes |\n",
            "sum to zero | 853.1 ms | ≤ 60 s | yes |\n",
            "got them | to the µTRM | to the µTRM | yes |\n",
            "in its last | 200.0 and 210.0 MiB: +5.0 % | ±5 % | yes |\n",
        ] {
            assert!(page.contains(row), "{row}{page}");
        }
        assert!(!page.contains("Missed"), "{page}");
    }

    #[test]
    fn what_a_failed_run_missed_is_said() {
        for growth in ["+5.1 %", "-5.1 %"] {
            let page = table(&TOLD.replace("+5.0 %", growth), &source()).unwrap();
            assert!(page.ends_with("in its last.\n"), "{page}");
            assert_eq!(page.matches("- Missed: ").count(), 1, "{page}");
        }
        let ended = TOLD.split_inclusive('\n').take(3).collect::<String>();
        let page = table(&ended, &source()).unwrap();
        assert!(page.contains("sum to zero | not reached | ≤ 60 s | no |\n"), "{page}");
        assert_eq!(page.matches("- Missed: ").count(), 2, "{page}");
        assert!(table("nothing was built\n", &source()).is_err());
    }

    #[test]
    fn the_test_tells_in_these_words() {
        for words in [
            " answers in ",
            "every job paid after ",
            "all agree after ",
            "every node was paid what its answers cost",
            "resident: ",
        ] {
            assert!(source().contains(words), "{words}");
        }
    }
}
