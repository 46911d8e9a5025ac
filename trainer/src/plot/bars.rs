//! Bars side by side in groups, each with its interval.

use std::fmt::Write as _;

use super::{Axis, BOTTOM, COLOURS, LEFT, TOP, escaped, key, opened};

const HEIGHT: f64 = 380.0;
const RIGHT: f64 = 170.0;
/// Of a group, and the least of a bar.
const GROUP: f64 = 84.0;
const BAR: f64 = 10.0;

/// A value with the ends of its interval.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub value: f64,
    /// Not drawn where there is none.
    pub interval: Option<(f64, f64)>,
}

pub struct Series {
    pub name: String,
    /// By group; none where nothing was measured.
    pub bars: Vec<Option<Bar>>,
}

pub struct Bars {
    pub title: String,
    pub subtitle: String,
    pub y: String,
    pub groups: Vec<String>,
    pub series: Vec<Series>,
}

impl Bars {
    /// The whole picture.
    pub fn svg(&self) -> String {
        let group = GROUP.max((self.series.len() + 1) as f64 * BAR);
        let width = LEFT + RIGHT + group * self.groups.len() as f64;
        let right = width - RIGHT;
        let drawn = || self.series.iter().flat_map(|series| series.bars.iter().flatten());
        let ends = drawn().flat_map(|bar| {
            let (low, high) = bar.interval.unwrap_or((bar.value, bar.value));
            [0.0, bar.value, low, high]
        });
        let y = Axis::new(ends, false, None, HEIGHT - BOTTOM, TOP);
        let mut svg = opened(width, HEIGHT, &self.title, &self.subtitle);
        y.draw(&mut svg, right);
        let _ = writeln!(svg, "<text x=\"12\" y=\"{:.1}\">{}</text>", TOP - 8.0, escaped(&self.y));
        let bar_width = group * 0.8 / self.series.len().max(1) as f64;
        let zero = y.at(0.0).unwrap_or(HEIGHT - BOTTOM);
        for (at, name) in self.groups.iter().enumerate() {
            let left = LEFT + group * at as f64 + group * 0.1;
            for (colour, series) in self.series.iter().enumerate() {
                let Some(bar) = series.bars.get(at).copied().flatten() else { continue };
                let Some(end) = y.at(bar.value) else { continue };
                let x = left + bar_width * colour as f64;
                let _ = writeln!(
                    svg,
                    "<rect class=\"c{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}, {}: {:.1}</title></rect>",
                    colour % COLOURS,
                    x + 0.5,
                    end.min(zero),
                    bar_width - 1.0,
                    (end - zero).abs(),
                    escaped(name),
                    escaped(&series.name),
                    bar.value
                );
                if let Some((Some(low), Some(high))) = bar.interval.map(|(low, high)| (y.at(low), y.at(high))) {
                    let middle = x + bar_width / 2.0;
                    let _ = writeln!(
                        svg,
                        "<line class=\"i\" x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
                    );
                }
            }
            let _ = writeln!(
                svg,
                "<text class=\"m\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left + group * 0.4,
                HEIGHT - BOTTOM + 18.0,
                escaped(name)
            );
        }
        for (colour, series) in self.series.iter().enumerate() {
            key(&mut svg, right + 16.0, TOP + 8.0 + 18.0 * colour as f64, colour, &series.name);
        }
        svg + "</svg>\n"
    }
}
