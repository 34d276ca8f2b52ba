//! The table the bench prints, and small statistics.

use serde_json::json;

/// One measured line.
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    /// The node's figure.
    pub(crate) measured: f64,
    /// What it is to be read against: limits and peers, with the same unit.
    pub(crate) beside: Vec<(String, f64)>,
    /// What it should be, and whether it is.
    pub(crate) target: Option<(String, bool)>,
    /// The likely cause, where it is not; no profile says so.
    pub(crate) why: &'static str,
}

impl Row {
    /// Whether it is what it should be; none where there was nothing to compare with.
    fn met(&self) -> Option<bool> {
        self.target.as_ref().filter(|_| !self.beside.is_empty()).map(|(_, met)| *met)
    }
}

/// All measured lines.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    missing: Vec<(String, String)>,
    notes: Vec<String>,
}

impl Table {
    /// Says what is to be known of all rows.
    pub(crate) fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// Adds a line and shows it at once on the error stream, for whoever waits.
    pub(crate) fn push(&mut self, row: Row) {
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    /// Says why a part has no figures.
    pub(crate) fn missing(&mut self, part: &str, why: &str) {
        eprintln!("{part}: {why}");
        self.missing.push((part.to_owned(), why.to_owned()));
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| what | Tirami | beside it (Tirami ÷ it) | target | met |\n|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            text += &line(row);
            text.push('\n');
        }
        for (part, why) in &self.missing {
            text += &format!("| {part} | no figure | {why} | a figure | no |\n");
        }
        for row in self.rows.iter().filter(|row| row.met() == Some(false)) {
            text += &format!("\n- Missed: {}. Likely cause: {}.", row.what, row.why);
        }
        for note in &self.notes {
            text += &format!("\n- {note}.");
        }
        text
    }

    /// The same as JSON.
    pub(crate) fn json(&self) -> String {
        let row = |row: &Row| {
            let beside = |(name, figure): &(String, f64)| json!({"name": name, "figure": figure});
            json!({
                "what": row.what,
                "unit": row.unit,
                "measured": row.measured,
                "beside": row.beside.iter().map(beside).collect::<Vec<_>>(),
                "target": row.target.as_ref().map(|(target, _)| target),
                "met": row.met(),
            })
        };
        let rows = self.rows.iter().map(row).collect::<Vec<_>>();
        let missing = self.missing.iter().map(|(part, why)| json!({"part": part, "why": why}));
        json!({"rows": rows, "missing": missing.collect::<Vec<_>>()}).to_string()
    }
}

fn line(row: &Row) -> String {
    let beside = row
        .beside
        .iter()
        .map(|(name, figure)| format!("{name} {} ({:.2})", short(*figure), row.measured / figure));
    let target = row.target.as_ref().map_or("", |(text, _)| text);
    let met = match row.met() {
        Some(true) => "yes",
        Some(false) => "no",
        None if target.is_empty() => "",
        None => "nothing to compare with",
    };
    format!(
        "| {} | {} {} | {} | {target} | {met} |",
        row.what,
        short(row.measured),
        row.unit,
        beside.collect::<Vec<_>>().join("; ")
    )
}

/// Three digits or more.
fn short(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that so large a part of all is not above; the mean of two values where the part ends
/// between them.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let end = values.len() as f64 * part;
    let at = |place: f64| values[(place as usize).clamp(1, values.len()) - 1];
    f64::midpoint(at(end.ceil()), at(end.floor() + 1.0))
}
