//! The picture of [`super::growth`]: one panel for each figure, both axes logarithmic.

use super::{MODES, Series};

const PANEL_WIDTH: f64 = 380.0;
const PANEL_HEIGHT: f64 = 250.0;
/// Room around the plot of a panel: left, top, right, bottom.
const MARGINS: [f64; 4] = [62.0, 40.0, 18.0, 36.0];
const COLUMNS: usize = 2;

/// Colours of light, and of dark for readers that ask for it.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#333}\
.title{font-size:13px;font-weight:600;fill:#111}\
.ground{fill:#fff}\
.grid{stroke:#ddd;stroke-width:1}\
.line{fill:none;stroke:#0b66c3;stroke-width:2}\
.dot{fill:#0b66c3}\
.own .line{stroke:#b3541e;stroke-dasharray:6 3}.own .dot{fill:#b3541e}\
@media(prefers-color-scheme:dark){\
text{fill:#c8ccd2}.title{fill:#f0f2f5}.ground{fill:#15181d}.grid{stroke:#343a43}\
.line{stroke:#6db3f8}.dot{fill:#6db3f8}\
.own .line{stroke:#f0a36d}.own .dot{fill:#f0a36d}}";
/// Height of the line under the panels that says which line is which mode.
const KEY_HEIGHT: f64 = 30.0;

/// The whole picture as SVG.
pub(super) fn draw(all: &[Series]) -> String {
    let rows = all.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL_WIDTH * COLUMNS as f64, PANEL_HEIGHT * rows as f64 + KEY_HEIGHT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"What a mesh costs each node, by the number of nodes\">\n\
         <style>{STYLE}</style>\n<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    for (place, series) in all.iter().enumerate() {
        let (x, y) = (place % COLUMNS, place / COLUMNS);
        let (x, y) = (x as f64 * PANEL_WIDTH, y as f64 * PANEL_HEIGHT);
        out.push_str(&format!("<g transform=\"translate({x} {y})\">\n{}</g>\n", panel(series)));
    }
    for (place, mode) in MODES.iter().enumerate() {
        let (x, y) = (MARGINS[0] + PANEL_WIDTH * place as f64, height - KEY_HEIGHT / 2.0);
        out.push_str(&format!(
            "<g class=\"{}\"><polyline class=\"line\" points=\"{x},{y} {},{y}\"/>\
             <text x=\"{}\" y=\"{}\">{}</text></g>\n",
            mode.name,
            x + 28.0,
            x + 36.0,
            y + 4.0,
            mode.title
        ));
    }
    out + "</svg>\n"
}

fn panel(series: &Series) -> String {
    let [left, top, right, bottom] = MARGINS;
    let sizes = || series.modes.iter().flatten();
    let figures = sizes().flat_map(|(_, figures)| figures).copied();
    let mut counts: Vec<u64> = sizes().map(|(nodes, _)| *nodes).collect();
    counts.sort_unstable();
    counts.dedup();
    let across = Axis::over(counts.iter().copied(), (left, PANEL_WIDTH - right));
    let up = Axis::over(figures, (PANEL_HEIGHT - bottom, top));
    let mut out = format!("<text class=\"title\" x=\"{left}\" y=\"22\">{}</text>\n", series.title);
    for tick in up.ticks() {
        let y = up.place(tick);
        out.push_str(&format!(
            "<line class=\"grid\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            PANEL_WIDTH - right,
            left - 7.0,
            y + 4.0,
            short(tick)
        ));
    }
    for nodes in &counts {
        let x = across.place(*nodes);
        out.push_str(&format!(
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{nodes}</text>\n",
            PANEL_HEIGHT - bottom,
            PANEL_HEIGHT - bottom + 18.0,
        ));
    }
    for (mode, sizes) in MODES.iter().zip(&series.modes).filter(|(_, sizes)| !sizes.is_empty()) {
        out.push_str(&format!("<g class=\"{}\">\n", mode.name));
        let mut line = Vec::new();
        for (nodes, figures) in sizes {
            let x = across.place(*nodes);
            for figure in figures {
                let y = up.place(*figure);
                let dot = format!("<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>");
                out.push_str(&dot);
            }
            let middle = figures.get(figures.len() / 2).copied().unwrap_or_default();
            line.push(format!("{x:.1},{:.1}", up.place(middle)));
        }
        let line = line.join(" ");
        out.push_str(&format!("\n<polyline class=\"line\" points=\"{line}\"/>\n</g>\n"));
    }
    out
}

/// From figures to places, logarithmic.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(figures: impl Iterator<Item = u64>, (from, to): (f64, f64)) -> Self {
        let figures: Vec<u64> = figures.map(|figure| figure.max(1)).collect();
        let low = figures.iter().min().copied().unwrap_or(1) as f64 / 1.3;
        let high = figures.iter().max().copied().unwrap_or(1) as f64 * 1.3;
        Self { low, high, from, to }
    }

    fn place(&self, figure: u64) -> f64 {
        let share = (figure.max(1) as f64 / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// 1, 2 and 5 times powers of ten within the axis; only powers when these are many.
    fn ticks(&self) -> Vec<u64> {
        let within = |tick: &u64| (self.low..=self.high).contains(&(*tick as f64));
        let powers = || (0..12).map(|power| 10_u64.pow(power));
        let fine: Vec<u64> = powers()
            .flat_map(|power| [1, 2, 5].map(|times| times * power))
            .filter(within)
            .collect();
        if fine.len() <= 6 { fine } else { powers().filter(within).collect() }
    }
}

fn short(figure: u64) -> String {
    match figure {
        0..1_000 => figure.to_string(),
        1_000..1_000_000 => format!("{} k", figure / 1_000),
        _ => format!("{} M", figure / 1_000_000),
    }
}
