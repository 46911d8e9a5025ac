//! A heat map of what a transplant gains, one panel per donor, as SVG that reads on light and dark pages.
//!
//! A cell's colour says the sign, its opacity the size: nothing gained is the page itself.

use std::fmt::Write as _;

use super::report::{best, in_order};
use super::{Grid, Transplants};

/// Side of a panel's grid, in pixels.
const SIDE: f64 = 240.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 74.0;
const GAP: f64 = 40.0;
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.m{fill:#59636e}.f{fill:none;stroke:#8c959f}\
    .u{fill:#0969da}.d{fill:#d1590a}.b{fill:none;stroke:#1f2328;stroke-width:1.5}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.m{fill:#9198a1}.u{fill:#4493f8}.d{fill:#f0883e}.b{stroke:#e6edf3}}";

/// Draws grids of one mode beside each other, on one scale.
pub fn heat_map(result: &Transplants, grids: &[&Grid]) -> String {
    let grids = in_order(grids);
    let n = grids.first().map_or(1, |grid| grid.cells.len()).max(1);
    let cell = SIDE / n as f64;
    let gain = |grid: &Grid, target: usize, source: usize| {
        grid.cells[target][source].log_probability - result.vanilla.log_probability
    };
    let all = grids.iter().flat_map(|grid| (0..n * n).map(|at| gain(grid, at / n, at % n)));
    let gains: Vec<f64> = all.filter(|gain| gain.is_finite()).map(f64::abs).collect();
    let scale = robust_largest(gains);
    let (width, height) = (LEFT + grids.len() as f64 * (SIDE + GAP), TOP + SIDE + 92.0);
    let mode = grids.first().map_or("", |grid| grid.mode.name());
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\"><title>Transplant, {mode}</title><style>{STYLE}</style>\n"
    );
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"22\" font-weight=\"600\">Transplant, {mode}: gain in log-probability of the answer</text>\
         <text class=\"m\" x=\"{LEFT}\" y=\"40\">{} prompts, {:.2} without a transplant; the outlined cell is the panel's best</text>",
        result.prompts, result.vanilla.log_probability
    );
    for (panel, grid) in grids.iter().enumerate() {
        let x = LEFT + panel as f64 * (SIDE + GAP);
        let _ = writeln!(svg, "<text x=\"{x:.0}\" y=\"{:.0}\">from {}</text>", TOP - 10.0, grid.donor.name());
        // The first target layer is at the bottom, where a model begins.
        let corner = |target: usize, source: usize| (x + source as f64 * cell, TOP + (n - 1 - target) as f64 * cell);
        for at in 0..n * n {
            let (target, source) = (at / n, at % n);
            let value = gain(grid, target, source);
            let (left, top) = corner(target, source);
            let class = if value >= 0.0 { "u" } else { "d" };
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{left:.2}\" y=\"{top:.2}\" width=\"{cell:.2}\" height=\"{cell:.2}\" \
                 fill-opacity=\"{:.3}\"><title>{} -> {}: {value:+.3}</title></rect>",
                (value.abs() / scale).clamp(0.0, 1.0),
                source + 1,
                target + 1
            );
        }
        let (target, source, _) = best(grid);
        let (left, top) = corner(target, source);
        let _ = writeln!(
            svg,
            "<rect class=\"f\" x=\"{x:.0}\" y=\"{TOP}\" width=\"{SIDE}\" height=\"{SIDE}\"/>\
             <rect class=\"b\" x=\"{left:.2}\" y=\"{top:.2}\" width=\"{cell:.2}\" height=\"{cell:.2}\"/>"
        );
        for layer in ticks(n) {
            let middle = (layer as f64 + 0.5) * cell;
            let _ = writeln!(
                svg,
                "<text class=\"m\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + middle,
                TOP + SIDE + 16.0,
                layer + 1
            );
            if panel == 0 {
                let _ = writeln!(
                    svg,
                    "<text class=\"m\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    LEFT - 6.0,
                    TOP + SIDE - middle + 4.0,
                    layer + 1
                );
            }
        }
        let _ = writeln!(
            svg,
            "<text class=\"m\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">source layer</text>",
            x + SIDE / 2.0,
            TOP + SIDE + 34.0
        );
    }
    let middle = TOP + SIDE / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"m\" text-anchor=\"middle\" transform=\"translate(16 {middle:.0}) rotate(-90)\">target layer</text>"
    );
    legend(&mut svg, scale, height - 30.0);
    svg.push_str("</svg>\n");
    svg
}

/// The 98th percentile, so that a few broken cells do not bleach the rest.
fn robust_largest(mut gains: Vec<f64>) -> f64 {
    gains.sort_by(f64::total_cmp);
    let at = (gains.len() * 98 / 100).min(gains.len().saturating_sub(1));
    gains.get(at).copied().unwrap_or(0.0).max(1e-9)
}

/// At most twelve layers get a number, the first and evenly spaced others.
fn ticks(n: usize) -> impl Iterator<Item = usize> {
    (0..n).step_by(n.div_ceil(12))
}

fn legend(svg: &mut String, scale: f64, y: f64) {
    const STEPS: usize = 11;
    for step in 0..STEPS {
        let value = 2.0 * step as f64 / (STEPS - 1) as f64 - 1.0;
        let class = if value >= 0.0 { "u" } else { "d" };
        let x = LEFT + 52.0 + step as f64 * 18.0;
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{x:.0}\" y=\"{y:.0}\" width=\"18\" height=\"12\" fill-opacity=\"{:.2}\"/>",
            value.abs()
        );
    }
    let right = LEFT + 52.0 + STEPS as f64 * 18.0;
    let _ = writeln!(
        svg,
        "<rect class=\"f\" x=\"{:.0}\" y=\"{y:.0}\" width=\"{}\" height=\"12\"/>\
         <text class=\"m\" text-anchor=\"end\" x=\"{:.0}\" y=\"{:.0}\">{:+.2}</text>\
         <text class=\"m\" x=\"{:.0}\" y=\"{:.0}\">{scale:+.2} and beyond</text>",
        LEFT + 52.0,
        STEPS * 18,
        LEFT + 46.0,
        y + 10.0,
        -scale,
        right + 6.0,
        y + 10.0
    );
}
