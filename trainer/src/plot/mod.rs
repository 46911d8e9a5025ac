//! Charts as SVG that reads on light and dark pages: lines here, `bars` and `scatter` beside them on the same axes and
//! colours.

mod bars;
mod scatter;

use std::fmt::Write as _;

pub use bars::{Bar, Bars, Series};
pub use scatter::{Panel, Scatter};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 136.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 52.0;
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.m{fill:#59636e}.g{stroke:#8c959f;stroke-opacity:.3}\
    .a{stroke:#8c959f;stroke-dasharray:4 3}.i{stroke:#1f2328;stroke-width:1.2}path{fill:none;stroke-width:2;stroke-linejoin:round}\
    .c0{stroke:#0969da}.c1{stroke:#d1590a}.c2{stroke:#1a7f37}.c3{stroke:#8250df}.c4{stroke:#59636e}.c5{stroke:#bf3989}.c6{stroke:#9a6700}\
    circle.c0,rect.c0{fill:#0969da}circle.c1,rect.c1{fill:#d1590a}circle.c2,rect.c2{fill:#1a7f37}circle.c3,rect.c3{fill:#8250df}circle.c4,rect.c4{fill:#59636e}circle.c5,rect.c5{fill:#bf3989}circle.c6,rect.c6{fill:#9a6700}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.m{fill:#9198a1}.i{stroke:#e6edf3}\
    .c0{stroke:#4493f8}.c1{stroke:#f0883e}.c2{stroke:#3fb950}.c3{stroke:#ab7df8}.c4{stroke:#9198a1}.c5{stroke:#db61a2}.c6{stroke:#d29922}\
    circle.c0,rect.c0{fill:#4493f8}circle.c1,rect.c1{fill:#f0883e}circle.c2,rect.c2{fill:#3fb950}circle.c3,rect.c3{fill:#ab7df8}circle.c4,rect.c4{fill:#9198a1}circle.c5,rect.c5{fill:#db61a2}circle.c6,rect.c6{fill:#d29922}}";
/// Labels on a logarithmic axis.
const MOST_TICKS: usize = 8;
/// Colours that the style has.
const COLOURS: usize = 7;

/// One line of a chart.
pub struct Line {
    pub name: String,
    /// Points that have no place on a logarithmic axis are left out.
    pub points: Vec<(f64, f64)>,
}

/// A chart of lines over a common axis.
pub struct Chart {
    pub title: String,
    pub subtitle: String,
    pub x: String,
    pub y: String,
    /// Whether x and y are logarithmic.
    pub logarithmic: (bool, bool),
    /// Fixed instead of found; what lies outside is drawn at its edge.
    pub y_range: Option<(f64, f64)>,
    /// A place on the x axis that matters, and its name.
    pub mark: Option<(f64, String)>,
    pub lines: Vec<Line>,
}

/// From values to pixels.
struct Axis {
    logarithmic: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(
        values: impl Iterator<Item = f64>,
        logarithmic: bool,
        fixed: Option<(f64, f64)>,
        from: f64,
        to: f64,
    ) -> Self {
        let scaled = values.filter(|&v| v.is_finite() && (!logarithmic || v > 0.0));
        let scale = |v: f64| if logarithmic { v.log10() } else { v };
        let fixed = fixed.map(|(low, high)| (scale(low), scale(high)));
        let (low, high) =
            fixed.unwrap_or_else(|| scaled.map(scale).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v))));
        let (low, high) = if low < high { (low, high) } else { (low.min(high) - 0.5, low.min(high) + 0.5) };
        Self { logarithmic, low, high, from, to }
    }

    fn at(&self, value: f64) -> Option<f64> {
        let value = if self.logarithmic { value.log10() } else { value };
        let share = (value.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        value.is_finite().then(|| self.from + share * (self.to - self.from))
    }

    /// Round values on the axis: powers of ten, or steps of 1, 2 or 5.
    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let powers = self.low.ceil() as i32..=self.high.floor() as i32;
            let step = powers.clone().count().div_ceil(MOST_TICKS).max(1);
            let whole: Vec<f64> = powers.step_by(step).map(|power| 10f64.powi(power)).collect();
            return if whole.len() > 1 { whole } else { vec![10f64.powf(self.low), 10f64.powf(self.high)] };
        }
        let rough = (self.high - self.low) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&step| step >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|n| n as f64 * step).take_while(|&value| value <= self.high + 1e-9 * step).collect()
    }
}

impl Axis {
    /// Lines across the picture with their values, for an axis that stands upright.
    fn draw(&self, svg: &mut String, right: f64) {
        for tick in self.ticks() {
            let Some(at) = self.at(tick) else { continue };
            let _ = writeln!(
                svg,
                "<line class=\"g\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"m\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                number(tick)
            );
        }
    }
}

impl Chart {
    /// The whole picture.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let xs = points().map(|point| point.0).chain(self.mark.iter().map(|mark| mark.0));
        let x = Axis::new(xs, self.logarithmic.0, None, LEFT, WIDTH - RIGHT);
        let y = Axis::new(points().map(|point| point.1), self.logarithmic.1, self.y_range, HEIGHT - BOTTOM, TOP);
        let mut svg = opened(WIDTH, HEIGHT, &self.title, &self.subtitle);
        y.draw(&mut svg, WIDTH - RIGHT);
        for tick in x.ticks() {
            let Some(at) = x.at(tick) else { continue };
            let bottom = HEIGHT - BOTTOM + 18.0;
            let _ = writeln!(
                svg,
                "<text class=\"m\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{bottom:.1}\">{}</text>",
                number(tick)
            );
        }
        let _ = writeln!(
            svg,
            "<text text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 12.0,
            escaped(&self.x),
            12.0,
            TOP - 8.0,
            escaped(&self.y)
        );
        if let Some((at, name)) = &self.mark
            && let Some(at) = x.at(*at)
        {
            let _ = writeln!(
                svg,
                "<line class=\"a\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
                 <text class=\"m\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                HEIGHT - BOTTOM,
                at + 5.0,
                HEIGHT - BOTTOM - 8.0,
                escaped(name)
            );
        }
        let mut labels: Vec<(f64, usize)> = Vec::new();
        for (colour, line) in self.lines.iter().enumerate() {
            let class = colour % COLOURS;
            let places: Vec<(f64, f64)> =
                line.points.iter().filter_map(|&(px, py)| Some((x.at(px)?, y.at(py)?))).collect();
            let path: Vec<String> = places.iter().map(|(px, py)| format!("{px:.1},{py:.1}")).collect();
            let Some(&(_, end)) = places.last() else { continue };
            let _ = writeln!(svg, "<path class=\"c{class}\" d=\"M{}\"/>", path.join("L"));
            for (px, py) in places {
                let _ = writeln!(svg, "<circle class=\"c{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.5\"/>");
            }
            labels.push((end, colour));
        }
        // Names stand at the ends of their lines, far enough from each other to be read.
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut lowest = f64::MIN;
        for (end, colour) in labels {
            let at = end.max(lowest + 16.0);
            lowest = at;
            key(&mut svg, WIDTH - RIGHT + 12.0, at, colour, &self.lines[colour].name);
        }
        svg + "</svg>\n"
    }
}

/// The beginning of a picture, with its title.
fn opened(width: f64, height: f64, title: &str, subtitle: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\"><title>{title}</title><style>{STYLE}</style>\n\
         <text x=\"{LEFT}\" y=\"22\" font-weight=\"600\">{title}</text><text class=\"m\" x=\"{LEFT}\" y=\"40\">{}</text>\n",
        escaped(subtitle),
        title = escaped(title),
    )
}

/// A colour and what it means.
fn key(svg: &mut String, left: f64, at: f64, colour: usize, name: &str) {
    let _ = writeln!(
        svg,
        "<circle class=\"c{}\" cx=\"{left:.1}\" cy=\"{at:.1}\" r=\"4\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        colour % COLOURS,
        left + 9.0,
        at + 4.0,
        escaped(name)
    );
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.0e}"),
        _ => format!("{}", (value * 1e4).round() / 1e4),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
