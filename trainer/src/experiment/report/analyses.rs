//! Figures 5 to 7 and XTransplant: the matrix against pairs, the losses, where anchors lie, what a transplant gains.

use std::fmt::Write as _;

use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, decimals, interval, percent, seeds, within};
use super::{SEED, Section};
use crate::experiment::cell::{CurvePoint, State};
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::plot::{Chart, Line, Panel, Scatter};
use crate::statistics::{Estimate, Weighed, crossed, mean, over_runs};

/// Points of a loss curve.
const LOSS_POINTS: usize = 60;

/// Figure 5.
pub fn pairs(evidence: &Evidence) -> Section {
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let curves = cells.iter().filter_map(|cell| Some(&cell.fits.get(&Reading::Transform)?.curve));
    let curves: Vec<&Vec<CurvePoint>> = curves.filter(|curve| !curve.is_empty()).collect();
    let title = "Figure 5: error of W_T against the number of pairs".to_string();
    let (Some(first), Some(cell)) = (curves.first(), cells.first()) else {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    };
    // Every seed draws as many pairs.
    let over = |at: usize, of: fn(&CurvePoint) -> f64| {
        over_runs(&curves.iter().filter_map(|curve| curve.get(at)).map(of).collect::<Vec<_>>())
    };
    let points: Vec<(&CurvePoint, Estimate, Estimate)> = (0..first.len())
        .map(|at| (&first[at], over(at, |point| point.own_mse), over(at, |point| point.heldout_mse)))
        .collect();
    let row = |(point, own, held): &(&CurvePoint, Estimate, Estimate)| {
        let numbers = [own, held].into_iter().flat_map(|error| [error.mean, error.low, error.high]);
        [point.pairs.to_string(), point.rows.to_string()].into_iter().chain(numbers.map(|x| x.to_string())).collect()
    };
    let rows: Vec<Vec<String>> = points.iter().map(row).collect();
    let line = |name: &str, of: fn(&(&CurvePoint, Estimate, Estimate)) -> f64| Line {
        name: name.into(),
        points: points.iter().map(|point| (point.0.pairs as f64, of(point))).collect(),
    };
    let d_model = cell.model.d_model;
    let chart = Chart {
        title: "Error of W_T against the number of pairs".into(),
        subtitle: format!(
            "mean over {}; the line marks rows = d_model = {d_model}; what is below the axis is drawn at its edge",
            seeds(curves.len())
        ),
        x: "pairs".into(),
        y: "MSE".into(),
        logarithmic: (true, true),
        // Below lies what is fitted with fewer rows than d_model: rounding, twenty decades down.
        y_range: Some(around(points.iter().map(|point| point.2.mean))),
        mark: Some((d_model as f64 / cell.model.n_layers as f64, "rows = d".into())),
        lines: vec![line("held out", |point| point.2.mean), line("its own pairs", |point| point.1.mean)],
    };
    let (first, last) = (&points[0], &points[points.len() - 1]);
    let worst = points.iter().max_by(|a, b| a.2.mean.total_cmp(&b.2.mean)).unwrap_or(last);
    let error = |estimate: &Estimate| within(estimate, |value| format!("{value:.1e}"));
    let text = format!(
        "{}\n\n![Figure 5](figures/figure-5.svg)\n\nFrom {} to {} pairs the error on the fitted pairs goes from {} to {}, \
         on held-out pairs from {} to {}, at most {} with {} pairs ({}). With fewer rows than d_model the matrix fits its \
         own pairs whatever they are, so an error near zero (the paper's 1e-36) says nothing of it.\n",
        command(&evidence.plan.command, "main"),
        first.0.pairs,
        last.0.pairs,
        error(&first.1),
        error(&last.1),
        error(&first.2),
        error(&last.2),
        error(&worst.2),
        worst.0.pairs,
        seeds(curves.len())
    );
    let head = ["pairs", "rows", "own_mse", "own_low", "own_high", "heldout_mse", "heldout_low", "heldout_high"];
    let files = vec![("figure-5.svg".into(), chart.svg()), ("figure-5.csv".into(), markdown::csv(&head, &rows))];
    Section { title, text, files }
}

/// An axis of decades that shows all of these well inside.
fn around(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let [low, high] = [values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max)];
    (10f64.powf((low / 10.0).log10().floor()), 10f64.powf((high * 2.0).log10().ceil()))
}

/// Figure 6.
pub fn losses(evidence: &Evidence) -> Section {
    let mut text = format!("{}\n\n", command(&evidence.plan.command, "main"));
    let (mut files, mut data) = (Vec::new(), Vec::new());
    for setting in Setting::ALL {
        let curves = [Training::Sft, Training::Cc, Training::Dft].map(|training| {
            let cells = evidence.of(setting, training, "");
            let losses = cells.iter().filter_map(|cell| Some(&cell.trained.as_ref()?.losses));
            (training, losses.filter(|losses| !losses.is_empty()).collect::<Vec<_>>())
        });
        let curves: Vec<_> = curves.into_iter().filter(|(_, runs)| !runs.is_empty()).collect();
        if curves.is_empty() {
            continue;
        }
        let (mut lines, mut ends) = (Vec::new(), Vec::new());
        for (training, runs) in &curves {
            let smooth: Vec<Vec<(f64, f64)>> = runs.iter().map(|losses| smooth(losses)).collect();
            // Seeds see as many rows; a drawn setting may lack a few of them.
            let shortest = smooth.iter().map(Vec::len).min().unwrap_or(0);
            let at = |at: usize| over_runs(&smooth.iter().map(|points| points[at].1).collect::<Vec<_>>());
            let points: Vec<(f64, Estimate)> = (0..shortest).map(|point| (smooth[0][point].0, at(point))).collect();
            data.extend(points.iter().map(|(step, loss)| {
                let numbers = [*step, loss.mean, loss.low, loss.high].map(|value| value.to_string());
                [vec![setting.name().to_string(), training.name().into()], numbers.to_vec()].concat()
            }));
            let last = runs.iter().map(|losses| mean(&losses[losses.len() - losses.len().div_ceil(20)..]));
            let last = within(&over_runs(&last.collect::<Vec<_>>()), decimals(3));
            ends.push(format!("{} {last} ({})", training.name(), seeds(runs.len())));
            let points = points.into_iter().map(|(step, loss)| (step, loss.mean)).collect();
            lines.push(Line { name: training.name().into(), points });
        }
        let name = format!("figure-6-{}.svg", setting.name().trim_start_matches('+').to_lowercase());
        let _ = writeln!(
            text,
            "![Loss, {}](figures/{name})\n\n{}: over the last twentieth of the steps the mean loss is {}.\n",
            setting.name(),
            setting.name(),
            ends.join(", ")
        );
        let chart = Chart {
            title: format!("Training loss, {}", setting.name()),
            subtitle: "mean per answer token, means of neighbouring steps and over seeds".into(),
            x: "step".into(),
            y: "loss".into(),
            logarithmic: (false, false),
            y_range: None,
            mark: None,
            lines,
        };
        files.push((name, chart.svg()));
    }
    let head = ["setting", "training", "step", "loss", "low", "high"];
    files.push(("figure-6.csv".into(), markdown::csv(&head, &data)));
    Section { title: "Figure 6: loss curves".into(), text, files }
}

/// The middle and the mean of neighbouring steps, as many to each point as can be.
fn smooth(losses: &[f64]) -> Vec<(f64, f64)> {
    let points = losses.len().min(LOSS_POINTS);
    let from = |point: usize| point * losses.len() / points;
    let point = |at: usize| ((from(at) + from(at + 1) + 1) as f64 / 2.0, mean(&losses[from(at)..from(at + 1)]));
    (0..points).map(point).collect()
}

/// Figure 7.
pub fn states(evidence: &Evidence) -> Section {
    let title = "Figure 7: where anchors lie".to_string();
    let arms = [(Training::Nothing, "before"), (Training::Sft, "after ML-SFT"), (Training::Cc, "after CC-Tuning")];
    let mut names: Vec<String> = Vec::new();
    let (mut panels, mut data, mut rows) = (Vec::new(), Vec::new(), Vec::new());
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
            let place = [state.x, state.y].map(|value| value.to_string());
            data.push([vec![name.into(), state.lang.clone(), state.unit.clone()], place.to_vec()].concat());
        }
        let shares = [same_language(&cell.states), same_prompt(&cell.states)].map(|share| interval(&share));
        rows.push([vec![name.into()], shares.to_vec(), vec![cell.states.len().to_string()]].concat());
        panels.push(Panel { title: name.into(), points });
    }
    if let Some(cell) = evidence.of(Setting::MlSft, arms[0].0, "").first() {
        rows.extend(by_chance(&cell.states));
    }
    if panels.is_empty() {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    }
    let head =
        ["model", "nearest is of the same language, %", "nearest of another language is the same prompt, %", "n"];
    let text = format!(
        "{}\n\n![Figure 7](figures/figure-7.svg)\n\nThe last block's output at the anchors of the same prompts in {} languages, \
         read without a connection, by exact t-SNE with a fixed seed, of one training each (seed 0). Neighbours in the picture, \
         which are not always those of the states; intervals over prompts:\n\n{}",
        command(&evidence.plan.command, "main"),
        names.len(),
        markdown::table(&head, &rows)
    );
    let scatter = Scatter {
        title: "Anchor states of the same prompts".into(),
        subtitle: "t-SNE of the last block's output at the anchor; each panel is laid out by itself".into(),
        names,
        panels,
    };
    let head = ["model", "language", "prompt", "x", "y"];
    let files = vec![("figure-7.svg".into(), scatter.svg()), ("figure-7.csv".into(), markdown::csv(&head, &data))];
    Section { title, text, files }
}

/// The row of a table that says how often any other state, or any of another language, is such a neighbour.
fn by_chance(states: &[State]) -> Option<Vec<String>> {
    let share = |among: fn(&State, &State) -> bool, such: fn(&State, &State) -> bool| {
        let of = |state: &State| {
            let among: Vec<&State> = states.iter().filter(|&o| !std::ptr::eq(o, state) && among(o, state)).collect();
            among.iter().filter(|other| such(other, state)).count() as f64 / among.len() as f64
        };
        mean(&states.iter().map(of).collect::<Vec<_>>())
    };
    let language = share(|_, _| true, |a, b| a.lang == b.lang);
    let prompt = share(|a, b| a.lang != b.lang, |a, b| a.unit == b.unit);
    let row = ["by chance".into(), percent(language), percent(prompt), states.len().to_string()];
    (!states.is_empty()).then(|| row.to_vec())
}

/// Share of states whose nearest neighbour is of the same language.
fn same_language(states: &[State]) -> Estimate {
    over_prompts(states, |state| nearest(states, state, |_| true).is_some_and(|found| found.lang == state.lang))
}

/// Share of states whose nearest neighbour in the other languages is the same prompt.
fn same_prompt(states: &[State]) -> Estimate {
    let other = |state: &State| nearest(states, state, |other| other.lang != state.lang);
    over_prompts(states, |state| other(state).is_some_and(|found| found.unit == state.unit))
}

fn nearest<'s>(states: &'s [State], state: &State, keep: impl Fn(&State) -> bool) -> Option<&'s State> {
    let distance = |other: &State| (other.x - state.x).powi(2) + (other.y - state.y).powi(2);
    let others = states.iter().filter(|&other| !std::ptr::eq(other, state) && keep(other));
    others.min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// The share of states of which something holds; a prompt is drawn with all its languages.
fn over_prompts(states: &[State], holds: impl Fn(&State) -> bool) -> Estimate {
    let mut units: Vec<&str> = states.iter().map(|state| state.unit.as_str()).collect();
    units.sort_unstable();
    units.dedup();
    let cluster = |state: &State| units.binary_search(&state.unit.as_str()).unwrap_or_default();
    let items: Vec<Weighed> =
        states.iter().map(|state| Weighed { block: 0, cluster: cluster(state), weight: 1.0 }).collect();
    crossed(&[states.iter().map(|state| f64::from(holds(state))).collect()], &items, SEED)
}

/// The probe before CC-Tuning, as a reference row.
pub fn transplants(evidence: &Evidence) -> Section {
    let title = "Reference: XTransplant".to_string();
    let Some((cell, found)) = evidence.cells.iter().find_map(|cell| Some((cell, cell.transplanted.as_ref()?))) else {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    };
    let share = |right: &[bool]| {
        let values = right.iter().map(|&right| f64::from(right)).collect();
        interval(&Scores::of_prompts(0, &found.prompts, values).estimate())
    };
    let mut rows = vec![vec!["no transplant".into(), String::new(), share(&found.vanilla), "–".into()]];
    rows.extend(found.donors.iter().map(|(donor, given)| {
        let layers = format!("{} → {}", given.source + 1, given.target + 1);
        vec![format!("from {donor}"), layers, share(&given.chosen), share(&given.any)]
    }));
    let head =
        ["feed-forward output at the last prompt token", "layers chosen on validation", "exact, %", "upper bound, %"];
    let text = format!(
        "{}\n\nIn the model {}, replaced in the prefill; {} test prompts in other languages than English, layers chosen on {} of \
         validation. Exact answers count in every family, so the numbers stand beside each other, not beside Table 1. The \
         upper bound takes the best pair of layers for every prompt anew, with the answer known.\n\n{}",
        command(&evidence.plan.command, "main"),
        cell.cell.name(),
        found.prompts.len(),
        found.validation,
        markdown::table(&head, &rows)
    );
    Section { title, text, files: vec![("xtransplant.csv".into(), markdown::csv(&head, &rows))] }
}
