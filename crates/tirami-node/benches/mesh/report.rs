//! The table the bench prints, and the middle of what was measured.

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

/// All measured lines.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a line and shows it at once on the error stream, for whoever waits.
    pub(crate) fn push(&mut self, row: Row) {
        eprintln!("{}: {}; {}", row.what, row.measured, row.limit);
        self.rows.push(row);
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| what | measured (median) | limit beside it | ratio | target | met |\n\
             |---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
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
