//! Figures 5 to 7 and XTransplant: the matrix against pairs, the losses, where anchors lie, what a transplant gains.

use std::fmt::Write as _;

use super::Section;
use super::evidence::Evidence;
use super::markdown::{self, command, percent};
use crate::experiment::cell::Measured;
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::plot::{Chart, Line, Panel, Scatter};

/// Points of a loss curve.
const LOSS_POINTS: usize = 60;

/// Figure 5.
pub fn pairs(evidence: &Evidence) -> Section {
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let found = cells.iter().find_map(|cell| {
        let fit = cell.fits.get(&Reading::Transform).filter(|fit| !fit.curve.is_empty())?;
        Some((cell, fit))
    });
    let title = "Figure 5: error of W_T against the number of pairs".to_string();
    let Some((cell, fit)) = found else {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    };
    let rows: Vec<Vec<String>> = fit
        .curve
        .iter()
        .map(|p| vec![p.pairs.to_string(), p.rows.to_string(), p.own_mse.to_string(), p.heldout_mse.to_string()])
        .collect();
    let line = |name: &str, of: fn(&crate::experiment::cell::CurvePoint) -> f64| Line {
        name: name.into(),
        points: fit.curve.iter().map(|point| (point.pairs as f64, of(point))).collect(),
    };
    let d_model = cell.model.d_model;
    let chart = Chart {
        title: "Error of W_T against the number of pairs".into(),
        subtitle: format!("{}; the line marks rows = d_model = {d_model}", cell.cell.name()),
        x: "pairs".into(),
        y: "MSE".into(),
        logarithmic: (true, true),
        y_range: None,
        mark: Some((d_model as f64 / cell.model.n_layers as f64, "rows = d".into())),
        lines: vec![line("held out", |point| point.heldout_mse), line("its own pairs", |point| point.own_mse)],
    };
    let (first, last) = (&fit.curve[0], &fit.curve[fit.curve.len() - 1]);
    let worst = fit.curve.iter().max_by(|a, b| a.heldout_mse.total_cmp(&b.heldout_mse)).unwrap_or(last);
    let text = format!(
        "{}\n\n![Figure 5](figures/figure-5.svg)\n\nFrom {} to {} pairs the error on the fitted pairs goes from {:.1e} to {:.1e}, \
         on held-out pairs from {:.1e} to {:.1e}, at most {:.1e} with {} pairs. With fewer rows than d_model the matrix fits its \
         own pairs whatever they are, so an error near zero (the paper's 1e-36) says nothing of it.\n",
        command(&evidence.plan.command, "main"),
        first.pairs,
        last.pairs,
        first.own_mse,
        last.own_mse,
        first.heldout_mse,
        last.heldout_mse,
        worst.heldout_mse,
        worst.pairs
    );
    let head = ["pairs", "rows", "own_mse", "heldout_mse"];
    let files = vec![("figure-5.svg".into(), chart.svg()), ("figure-5.csv".into(), markdown::csv(&head, &rows))];
    Section { title, text, files }
}

/// Figure 6: seed 0 of every setting.
pub fn losses(evidence: &Evidence) -> Section {
    let mut text = format!("{}\n\n", command(&evidence.plan.command, "main"));
    let (mut files, mut data) = (Vec::new(), Vec::new());
    for setting in Setting::ALL {
        let lines: Vec<(Training, Vec<(f64, f64)>)> = [Training::Sft, Training::Cc, Training::Dft]
            .into_iter()
            .filter_map(|training| Some((training, smooth(evidence.of(setting, training, "").first()?))))
            .collect();
        if lines.is_empty() {
            continue;
        }
        for (training, points) in &lines {
            let row = |&(step, loss): &(f64, f64)| {
                vec![setting.name().into(), training.name().into(), step.to_string(), loss.to_string()]
            };
            data.extend(points.iter().map(row));
        }
        let ends: Vec<String> = lines
            .iter()
            .filter_map(|(training, points)| Some(format!("{} {:.3}", training.name(), points.last()?.1)))
            .collect();
        let name = format!("figure-6-{}.svg", setting.name().trim_start_matches('+').to_lowercase());
        let _ = writeln!(
            text,
            "![Loss, {}](figures/{name})\n\n{}: the last losses are {}.\n",
            setting.name(),
            setting.name(),
            ends.join(", ")
        );
        let chart = Chart {
            title: format!("Training loss, {}", setting.name()),
            subtitle: "mean per answer token, means of neighbouring steps, seed 0".into(),
            x: "step".into(),
            y: "loss".into(),
            logarithmic: (false, false),
            y_range: None,
            mark: None,
            lines: lines.into_iter().map(|(t, points)| Line { name: t.name().into(), points }).collect(),
        };
        files.push((name, chart.svg()));
    }
    files.push(("figure-6.csv".into(), markdown::csv(&["setting", "training", "step", "loss"], &data)));
    Section { title: "Figure 6: loss curves".into(), text, files }
}

/// Means of neighbouring steps.
fn smooth(cell: &&Measured) -> Vec<(f64, f64)> {
    let Some(trained) = &cell.trained else { return Vec::new() };
    let width = trained.losses.len().div_ceil(LOSS_POINTS).max(1);
    let mean = |(at, losses): (usize, &[f64])| {
        let middle = (at * width) as f64 + (losses.len() + 1) as f64 / 2.0;
        (middle, losses.iter().sum::<f64>() / losses.len() as f64)
    };
    trained.losses.chunks(width).enumerate().map(mean).collect()
}

/// Figure 7.
pub fn states(evidence: &Evidence) -> Section {
    let title = "Figure 7: where anchors lie".to_string();
    let arms = [(Training::Nothing, "before"), (Training::Sft, "after ML-SFT"), (Training::Cc, "after CC-Tuning")];
    let mut names: Vec<String> = Vec::new();
    let (mut panels, mut data) = (Vec::new(), Vec::new());
    for (training, name) in arms {
        let cells = evidence.of(Setting::MlSft, training, "");
        let Some(cell) = cells.iter().find(|cell| !cell.states.is_empty()) else { continue };
        let mut points = Vec::new();
        for state in &cell.states {
            let at = names.iter().position(|known| *known == state.lang).unwrap_or_else(|| {
                names.push(state.lang.clone());
                names.len() - 1
            });
            points.push((state.x, state.y, at));
            data.push(vec![name.into(), state.lang.clone(), state.x.to_string(), state.y.to_string()]);
        }
        panels.push(Panel { title: name.into(), points });
    }
    if panels.is_empty() {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    }
    let apart: Vec<String> =
        panels.iter().map(|panel| format!("{:.0} % {}", 100.0 * neighbours(panel), panel.title)).collect();
    let text = format!(
        "{}\n\n![Figure 7](figures/figure-7.svg)\n\nThe last block's output at the anchors of test prompts in three languages, \
         read without a connection, by exact t-SNE with a fixed seed. The share of prompts whose nearest neighbour in the picture \
         is of the same language is {}.\n",
        command(&evidence.plan.command, "main"),
        apart.join(", ")
    );
    let scatter = Scatter {
        title: "Anchor states of three languages".into(),
        subtitle: "t-SNE of the last block's output at the anchor; each panel is laid out by itself".into(),
        names,
        panels,
    };
    let head = ["model", "language", "x", "y"];
    let files = vec![("figure-7.svg".into(), scatter.svg()), ("figure-7.csv".into(), markdown::csv(&head, &data))];
    Section { title, text, files }
}

/// Share of points whose nearest neighbour has the same name.
fn neighbours(panel: &Panel) -> f64 {
    let same = |(at, &(x, y, name)): (usize, &(f64, f64, usize))| {
        let others = panel.points.iter().enumerate().filter(|(other, _)| *other != at);
        let nearest = others.min_by(|(_, a), (_, b)| {
            let distance = |p: &(f64, f64, usize)| (p.0 - x).powi(2) + (p.1 - y).powi(2);
            distance(a).total_cmp(&distance(b))
        });
        nearest.is_some_and(|(_, found)| found.2 == name)
    };
    panel.points.iter().enumerate().filter(|&point| same(point)).count() as f64 / panel.points.len() as f64
}

/// The probe before CC-Tuning, as a reference row.
pub fn transplants(evidence: &Evidence) -> Section {
    let title = "Reference: XTransplant".to_string();
    let Some((cell, found)) = evidence.cells.iter().find_map(|cell| Some((cell, cell.transplanted.as_ref()?))) else {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    };
    let mut rows = vec![vec!["no transplant".into(), String::new(), percent(found.vanilla), "–".into()]];
    rows.extend(found.donors.iter().map(|(donor, given)| {
        let layers = format!("{} → {}", given.source + 1, given.target + 1);
        vec![format!("from {donor}"), layers, percent(given.chosen), percent(given.any)]
    }));
    let head =
        ["feed-forward output at the last prompt token", "layers chosen on validation", "exact, %", "upper bound, %"];
    let text = format!(
        "{}\n\nIn the model {}, replaced in the prefill; {} test prompts in other languages than English, layers chosen on {} of \
         validation. Exact answers count in every family, so the numbers stand beside each other, not beside Table 1. The \
         upper bound takes the best pair of layers for every prompt anew, with the answer known.\n\n{}",
        command(&evidence.plan.command, "main"),
        cell.cell.name(),
        found.asked,
        found.validation,
        markdown::table(&head, &rows)
    );
    Section { title, text, files: vec![("xtransplant.csv".into(), markdown::csv(&head, &rows))] }
}
