//! Points in the plane, in panels beside each other that share their colours; places have no unit, so no axes.

use std::fmt::Write as _;

use super::{Axis, COLOURS, LEFT, TOP, escaped, key, opened};

/// Side of a panel.
const SIDE: f64 = 230.0;
const GAP: f64 = 24.0;
const RIGHT: f64 = 110.0;

pub struct Panel {
    pub title: String,
    /// Place, and which of the names it belongs to.
    pub points: Vec<(f64, f64, usize)>,
}

pub struct Scatter {
    pub title: String,
    pub subtitle: String,
    pub names: Vec<String>,
    pub panels: Vec<Panel>,
}

impl Scatter {
    /// The whole picture.
    pub fn svg(&self) -> String {
        let right = LEFT + self.panels.len() as f64 * (SIDE + GAP);
        let top = TOP + 14.0;
        let mut svg = opened(right + RIGHT, top + SIDE + GAP, &self.title, &self.subtitle);
        for (at, panel) in self.panels.iter().enumerate() {
            let left = LEFT + at as f64 * (SIDE + GAP);
            let x = Axis::new(panel.points.iter().map(|p| p.0), false, None, left + 8.0, left + SIDE - 8.0);
            let y = Axis::new(panel.points.iter().map(|p| p.1), false, None, top + SIDE - 8.0, top + 8.0);
            let _ = writeln!(
                svg,
                "<text x=\"{left:.1}\" y=\"{:.1}\">{}</text>\
                 <rect class=\"g\" fill=\"none\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{SIDE}\" height=\"{SIDE}\"/>",
                top - 8.0,
                escaped(&panel.title)
            );
            for &(px, py, name) in &panel.points {
                let (Some(px), Some(py)) = (x.at(px), y.at(py)) else { continue };
                let class = name % COLOURS;
                let _ = writeln!(svg, "<circle class=\"c{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.2\"/>");
            }
        }
        for (colour, name) in self.names.iter().enumerate() {
            key(&mut svg, right + 4.0, top + 8.0 + 18.0 * colour as f64, colour, name);
        }
        svg + "</svg>\n"
    }
}
