//! `cargo xtask growth`: what a mesh costs each of its nodes as it grows, by simulation.
//!
//! Each run is one line of a file beside the page, so that a size can be measured again alone;
//! the table and the picture are made of all lines.

mod picture;

use std::path::PathBuf;
use std::process::Command;

use crate::json::Json;
use crate::process::{cargo, output, run_watched};
use crate::{Failure, Outcome, workspace};

const PAGE: &str = "docs/reference/mesh-simulation.md";
const PICTURE: &str = "docs/reference/mesh-simulation.svg";
const RUNS: &str = "docs/reference/mesh-simulation.jsonl";
/// The table stands between these lines of the page.
const BEGIN: &str = "<!-- written by cargo xtask growth -->\n";
const END: &str = "<!-- end -->\n";

/// Which chains members keep.
struct Mode {
    /// As the simulator tells it.
    name: &'static str,
    title: &'static str,
}

const MODES: [Mode; 2] = [
    Mode { name: "all", title: "Every node keeps every chain" },
    Mode { name: "own", title: "Members keep few chains" },
];

/// A size that is measured.
struct Size {
    nodes: &'static str,
    /// The name of a [`Mode`].
    keep: &'static str,
    seeds: &'static str,
    seconds: &'static str,
    /// A client's mean pause in milliseconds: the mesh as a whole is asked about ten times a
    /// second, whatever its size.
    pause: &'static str,
    /// Seeds at the same time: as many as memory holds.
    jobs: &'static str,
}

impl Size {
    /// The names it is asked for by: as large as it is, or so and in one mode.
    fn is_named(&self, name: &str) -> bool {
        name == self.nodes || name == format!("{}-{}", self.nodes, self.keep)
    }
}

const fn size(
    [nodes, keep]: [&'static str; 2],
    [seeds, seconds, pause, jobs]: [&'static str; 4],
) -> Size {
    Size { nodes, keep, seeds, seconds, pause, jobs }
}

const SIZES: [Size; 8] = [
    size(["30", "all"], ["12", "60", "3000", "2"]),
    size(["100", "all"], ["4", "60", "10000", "2"]),
    size(["300", "all"], ["1", "40", "30000", "2"]),
    size(["1000", "all"], ["1", "40", "100000", "1"]),
    size(["100", "own"], ["4", "60", "10000", "2"]),
    size(["300", "own"], ["2", "60", "30000", "2"]),
    size(["1000", "own"], ["2", "40", "100000", "2"]),
    size(["3000", "own"], ["1", "30", "300000", "1"]),
];

/// A figure of each run that tells it.
struct Figure {
    field: &'static str,
    row: &'static str,
}

const FIGURES: [Figure; 6] = [
    Figure { field: "bytes_per_node_second", row: "bytes a node sends each second" },
    Figure {
        field: "gossip_bytes_per_node_second",
        row: "bytes of gossip a node sends each second",
    },
    Figure { field: "sync_bytes_per_node_second", row: "bytes of sync a node sends each second" },
    Figure { field: "messages_per_node_second", row: "messages a node sends each second" },
    Figure { field: "bytes_per_node_job", row: "bytes a node sends for one job answered" },
    Figure { field: "converged_ms", row: "ms from a heal to the same knowledge" },
];

/// One figure of all runs.
struct Series {
    title: &'static str,
    /// In each mode of [`MODES`]: nodes, and the figure of each run of that size, ascending. A
    /// size whose runs do not tell it is left out.
    modes: Vec<Vec<(u64, Vec<u64>)>>,
}

/// Measures the sizes asked for, all when none is, and writes page and picture of all runs known;
/// `page` measures nothing.
pub(crate) fn growth(sizes: &[&str]) -> Outcome<()> {
    let mut lines = known_runs()?;
    if sizes != ["page"] {
        measure(sizes, &mut lines)?;
    }
    publish(&lines)
}

fn measure(sizes: &[&str], lines: &mut Vec<String>) -> Outcome<()> {
    let unknown = sizes.iter().find(|asked| !SIZES.iter().any(|size| size.is_named(asked)));
    if let Some(unknown) = unknown {
        return Err(Failure::new(format!("{unknown} is not a size that is measured")));
    }
    run_watched(&mut cargo(["build", "--release", "-p", "tirami-sim"]))?;
    let is_asked = |size: &&Size| sizes.is_empty() || sizes.iter().any(|name| size.is_named(name));
    for size in SIZES.iter().filter(is_asked) {
        let mut command = Command::new(workspace::release_binary("tirami-sim"));
        command.args(arguments(size)).args(["--jobs", size.jobs, "--json"]);
        command.args((size.keep == "own").then_some("--keep-own"));
        println!("  $ {}", crate::process::shown(&command));
        let told = output(&mut command)?;
        let of_size = format!("\"nodes\":{},\"keep\":\"{}\",", size.nodes, size.keep);
        lines.retain(|line| !line.contains(&of_size));
        lines.extend(told.lines().map(str::to_owned));
        workspace::write(&at(RUNS), &(lines.join("\n") + "\n"))?;
    }
    Ok(())
}

fn at(file: &str) -> PathBuf {
    workspace::root().join(file)
}

fn known_runs() -> Outcome<Vec<String>> {
    let file = at(RUNS);
    if !file.exists() {
        return Ok(Vec::new());
    }
    Ok(workspace::read(&file)?.lines().map(str::to_owned).collect())
}

fn arguments(size: &Size) -> [&'static str; 14] {
    [
        "--nodes",
        size.nodes,
        "--seed",
        "1",
        "--seeds",
        size.seeds,
        "--seconds",
        size.seconds,
        "--pause",
        size.pause,
        "--witnesses",
        "4",
        "--dishonest",
        "1",
    ]
}

fn publish(lines: &[String]) -> Outcome<()> {
    let runs = lines.iter().map(|line| Json::parse(line)).collect::<Outcome<Vec<Json>>>()?;
    let all = FIGURES.iter().map(|figure| series(&runs, figure)).collect::<Outcome<Vec<_>>>()?;
    let page = workspace::read(&at(PAGE))?;
    let parts = page
        .split_once(BEGIN)
        .and_then(|(before, rest)| rest.split_once(END).map(|(_, after)| (before, after)));
    let (before, after) =
        parts.ok_or_else(|| Failure::new(format!("{PAGE} has no place for the table")))?;
    let mut tables = String::new();
    for mode in &MODES {
        let table = table(&runs, &all, mode)?;
        tables.push_str(&format!("\n{}:\n\n{table}\n", mode.title));
    }
    print!("{tables}");
    workspace::write(&at(PAGE), &format!("{before}{BEGIN}{tables}{END}{after}"))?;
    workspace::write(&at(PICTURE), &picture::draw(&all))?;
    println!("\nwrote {PAGE} and {PICTURE}");
    Ok(())
}

fn series(runs: &[Json], figure: &Figure) -> Outcome<Series> {
    let mut modes = Vec::new();
    for mode in &MODES {
        let mut sizes = Vec::new();
        for size in SIZES.iter().filter(|size| size.keep == mode.name) {
            let telling = runs.iter().filter(|run| run.at(figure.field).is_some());
            let mut figures = figures(telling, size, figure.field)?;
            figures.sort_unstable();
            let nodes = size.nodes.parse().unwrap_or_default();
            if !figures.is_empty() {
                sizes.push((nodes, figures));
            }
        }
        modes.push(sizes);
    }
    Ok(Series { title: figure.row, modes })
}

fn figures<'a>(
    runs: impl IntoIterator<Item = &'a Json>,
    size: &Size,
    field: &str,
) -> Outcome<Vec<u64>> {
    let mut figures = Vec::new();
    for run in runs {
        let is_of_size =
            run.whole("nodes")?.to_string() == size.nodes && run.text("keep")? == size.keep;
        if is_of_size {
            figures.push(u64::try_from(run.whole(field)?).unwrap_or_default());
        }
    }
    Ok(figures)
}

fn table(runs: &[Json], all: &[Series], mode: &Mode) -> Outcome<String> {
    let mut measured = Vec::new();
    for size in SIZES.iter().filter(|size| size.keep == mode.name) {
        if !figures(runs, size, "seed")?.is_empty() {
            measured.push(size);
        }
    }
    let mut rows = vec![cells("nodes", measured.iter().map(|size| thousands(size.nodes)))];
    rows.push(format!("|{}", "---|".repeat(measured.len() + 1)));
    let sums = |field| -> Outcome<Vec<u64>> {
        let sum = |size: &&Size| Ok(figures(runs, size, field)?.iter().sum());
        measured.iter().map(sum).collect()
    };
    let (jobs, completed, failed) = (sums("jobs")?, sums("completed")?, sums("failed")?);
    let count = |size: &&Size| Ok(figures(runs, size, "seed")?.len().to_string());
    let seeds = measured.iter().map(count).collect::<Outcome<Vec<_>>>()?;
    let numbers = |all: Vec<u64>| all.into_iter().map(|number| thousands(&number.to_string()));
    rows.push(cells("seeds", seeds));
    rows.push(cells("inputs handled", numbers(sums("events")?)));
    rows.push(cells("jobs asked for", numbers(jobs)));
    let answered = completed.iter().zip(failed);
    let answered = answered.map(|(done, failed)| match failed {
        0 => format!("all {}", thousands(&done.to_string())),
        _ => format!("{done} of {}", done + failed),
    });
    rows.push(cells("of those that could be answered, answered", answered));
    for series in all {
        let modes = MODES.iter().zip(&series.modes).find(|(known, _)| known.name == mode.name);
        let sizes = modes.map(|(_, sizes)| sizes.as_slice()).unwrap_or_default();
        let cell = |size: &&Size| {
            let of_size = sizes.iter().find(|(nodes, _)| nodes.to_string() == size.nodes);
            of_size.map_or_else(|| "–".to_owned(), |(_, figures)| told(figures))
        };
        rows.push(cells(series.title, measured.iter().map(cell)));
    }
    Ok(rows.join("\n") + "\n")
}

fn cells(title: &str, cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = cells.into_iter().collect();
    format!("| {title} | {} |", cells.join(" | "))
}

/// The median, and the range when there are several.
fn told(figures: &[u64]) -> String {
    let show = |figure: Option<&u64>| thousands(&figure.copied().unwrap_or_default().to_string());
    let middle = show(figures.get(figures.len() / 2));
    match figures {
        [] | [_] => middle,
        [first, .., last] => format!("{middle} ({}–{})", show(Some(first)), show(Some(last))),
    }
}

/// Digits in groups of three.
fn thousands(digits: &str) -> String {
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_its_median_and_range_in_groups_of_three() {
        assert_eq!(told(&[1_234]), "1\u{202f}234");
        assert_eq!(told(&[1, 20, 3_000_000]), "20 (1–3\u{202f}000\u{202f}000)");
        assert_eq!(thousands("999"), "999");
    }

    #[test]
    fn the_table_has_a_column_for_each_size_measured() {
        // The larger mesh was measured without what it sends for gossip and for sync.
        let line = |nodes: u64, seed: u64| {
            let parts = match nodes {
                100 => "\"gossip_bytes_per_node_second\":70,\"sync_bytes_per_node_second\":20,",
                _ => "",
            };
            let run = format!(
                "{{\"seed\":{seed},\"nodes\":{nodes},\"keep\":\"all\",\"events\":10,\
                 \"jobs\":3,\"completed\":2,{parts}\
                 \"failed\":{},\"bytes_per_node_second\":{},\"messages_per_node_second\":4,\
                 \"bytes_per_node_job\":5,\"converged_ms\":6}}",
                nodes / 300,
                100 * seed
            );
            Json::parse(&run).unwrap()
        };
        let runs = [line(100, 1), line(100, 2), line(300, 1)];
        let all: Vec<Series> =
            FIGURES.iter().map(|figure| series(&runs, figure).unwrap()).collect();
        let table = table(&runs, &all, &MODES[0]).unwrap();
        assert!(table.starts_with("| nodes | 100 | 300 |\n|---|---|---|\n"), "{table}");
        assert!(table.contains("| all 4 | 2 of 3 |"), "{table}");
        assert!(table.contains("each second | 200 (100–200) | 100 |"), "{table}");
        assert!(table.contains("gossip a node sends each second | 70 (70–70) | – |"), "{table}");
        assert!(table.contains("sync a node sends each second | 20 (20–20) | – |"), "{table}");
        let picture = picture::draw(&all);
        // Six panels with a line, and the key of two.
        assert_eq!(picture.matches("<polyline").count(), 8);
        assert!(SIZES.iter().any(|size| size.is_named("3000-own") && size.is_named("3000")));
    }
}
