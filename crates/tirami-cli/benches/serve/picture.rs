//! The picture of aggregate tokens per second by streams.

/// Between two names below each other.
const LABEL_HEIGHT: f64 = 14.0;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Room around the plot: left, top, right, bottom.
const MARGINS: [f64; 4] = [56.0, 44.0, 166.0, 44.0];
/// Colours of lines in [`STYLE`].
const COLOURS: usize = 6;

/// Colours of light, and of dark for readers that ask for it.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#333}\
.title{font-size:13px;font-weight:600;fill:#111}\
.ground{fill:#fff}\
.grid{stroke:#ddd;stroke-width:1}\
.c0{stroke:#888;fill:#888}.c1{stroke:#0b66c3;fill:#0b66c3}\
.c2{stroke:#c4520a;fill:#c4520a}.c3{stroke:#2f8f46;fill:#2f8f46}\
.c4{stroke:#8a4fc0;fill:#8a4fc0}.c5{stroke:#b8326e;fill:#b8326e}\
polyline{fill:none!important;stroke-width:2}\
text.c0,text.c1,text.c2,text.c3,text.c4,text.c5{stroke:none}\
@media(prefers-color-scheme:dark){\
text{fill:#c8ccd2}.title{fill:#f0f2f5}.ground{fill:#15181d}.grid{stroke:#343a43}\
.c0{stroke:#aaa;fill:#aaa}.c1{stroke:#6db3f8;fill:#6db3f8}\
.c2{stroke:#f2a36a;fill:#f2a36a}.c3{stroke:#7fd394;fill:#7fd394}\
.c4{stroke:#c39be8;fill:#c39be8}\
.c5{stroke:#ec8ab5;fill:#ec8ab5}}";

/// A contender's figures.
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Streams, and tokens per second of all of them.
    pub(crate) points: Vec<(usize, f64)>,
}

/// The picture as SVG; none where nothing was measured.
pub(crate) fn draw(curves: &[Curve]) -> Option<String> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let most = points().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let streams = points().map(|(streams, _)| *streams).max()?;
    let [left, top, right, bottom] = MARGINS;
    let step =
        [10.0, 20.0, 50.0, 100.0, 200.0, 500.0].into_iter().find(|step| most / step < 7.0)?;
    let high = (most / step).ceil() * step;
    let x = |count: usize| {
        left + (count as f64).log2() / (streams as f64).log2() * (WIDTH - left - right)
    };
    let y = |rate: f64| HEIGHT - bottom - rate / high * (HEIGHT - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
         aria-label=\"Tokens per second of all streams together, by the number of streams\">\n\
         <style>{STYLE}</style>\n<rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
         <text class=\"title\" x=\"{left}\" y=\"24\">tokens/s of all streams together, prompts \
         included, by streams</text>\n"
    );
    for tick in 0..=(high / step) as usize {
        let rate = tick as f64 * step;
        out += &format!(
            "<line class=\"grid\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{rate:.0}</text>\n",
            WIDTH - right,
            y(rate),
            y(rate),
            left - 7.0,
            y(rate) + 4.0
        );
    }
    let longest = curves.iter().max_by_key(|curve| curve.points.len())?;
    for (count, _) in &longest.points {
        out += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{count}</text>\n",
            x(*count),
            HEIGHT - bottom + 18.0
        );
    }
    // Where each curve ends, its class and its name.
    let mut labels: Vec<(usize, f64, String, &str)> = Vec::new();
    for (number, curve) in curves.iter().enumerate() {
        let class = format!("c{}", number % COLOURS);
        let line: Vec<_> =
            curve.points.iter().map(|(n, rate)| format!("{:.1},{:.1}", x(*n), y(*rate))).collect();
        out += &format!("<polyline class=\"{class}\" points=\"{}\"/>\n", line.join(" "));
        for (n, rate) in &curve.points {
            let (x, y) = (x(*n), y(*rate));
            out += &format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        }
        if let Some((n, rate)) = curve.points.last() {
            labels.push((*n, y(*rate) + 4.0, class, &curve.name));
        }
    }
    // Those that end together stand below each other, in the order of their curves' ends.
    labels.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
    let mut before: Option<(usize, f64)> = None;
    for (n, end, class, name) in labels {
        let at = match before {
            Some((other, at)) if other == n => end.max(at + LABEL_HEIGHT),
            _ => end,
        };
        before = Some((n, at));
        out += &format!(
            "<text class=\"{class}\" x=\"{:.1}\" y=\"{at:.1}\">{name}</text>\n",
            x(n) + 8.0
        );
    }
    Some(out + "</svg>\n")
}
