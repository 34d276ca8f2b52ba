//! The table the bench prints, and the middle of what was measured.

use std::sync::{Arc, Mutex, PoisonError};

/// One measured line.
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// The figure, with its unit.
    pub(crate) measured: String,
    /// What it is to be read against, with its figure.
    pub(crate) limit: String,
    /// Measured ÷ limit, where both have one unit.
    pub(crate) ratio: Option<f64>,
    /// What it should be, and whether it is.
    pub(crate) target: Option<(&'static str, bool)>,
}

/// All measured lines. Cheap to clone: whoever gives up shows what was measured until then.
#[derive(Clone, Default)]
pub(crate) struct Table {
    rows: Arc<Mutex<Vec<Row>>>,
}

impl Table {
    /// Adds a line and shows it at once on the error stream, for whoever waits.
    pub(crate) fn push(&self, row: Row) {
        eprintln!("{}: {}; {}", row.what, row.measured, row.limit);
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }

    /// Adds a line that says why there is no figure.
    pub(crate) fn missing(&self, what: &str, why: &str) {
        self.push(Row {
            what: what.to_owned(),
            measured: "no figure".to_owned(),
            limit: why.lines().next().unwrap_or_default().replace('|', "/"),
            ratio: None,
            target: Some(("a figure", false)),
        });
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| what | measured (median) | limit beside it | ratio | target | met |\n\
             |---|---|---|---|---|---|\n",
        );
        for row in self.rows.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.3}"));
            let (target, met) = row
                .target
                .map_or(("", ""), |(target, met)| (target, if met { "yes" } else { "no" }));
            text.push_str(&format!(
                "| {} | {} | {} | {ratio} | {target} | {met} |\n",
                row.what, row.measured, row.limit
            ));
        }
        text
    }
}

/// The middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The value that so large a part of all is not above.
pub(crate) fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * part).ceil() as usize;
    values[place.clamp(1, values.len()) - 1]
}

/// Seconds that all cores have worked for this process; none where the system does not say.
pub(crate) fn cpu_seconds() -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything; user and system time are the 12th and 13th after it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}
