//! Table 2: the Transform Matrix against the English twin, its error where it was fitted and where it was not, and the
//! controls that the paper lacks.

use std::fmt::Write as _;

use super::Section;
use super::choice::taken;
use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, decimals, interval, points, seeds, verdict, within};
use crate::experiment::cell::{Asked, Error, Fit, LayerError, Measured, Miss};
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::statistics::{Estimate, over_runs};

/// Mean squared error and R2 over seeds, with their intervals.
fn over_seeds(errors: impl Iterator<Item = Error>) -> [String; 2] {
    let (mse, r2): (Vec<f64>, Vec<f64>) = errors.map(|error| (error.mse, error.r2)).unzip();
    written([over_runs(&mse), over_runs(&r2)])
}

fn written([mse, r2]: [Estimate; 2]) -> [String; 2] {
    [within(&mse, |value| format!("{value:.2e}")), within(&r2, decimals(3))]
}

/// Vectors of `F W_T` at the anchors of test prompts.
#[derive(Clone, Copy)]
pub enum Vectors {
    /// Of all layers.
    All,
    /// Of this one, from 0.
    Layer(usize),
    /// Of the layer that is taken.
    Passed,
}

/// A sum over some vectors of what the plain matrix misses, by test prompt.
fn misses(cells: &[&Measured], vectors: Vectors, pick: fn(&Miss) -> f64, keep: impl Fn(&Asked) -> bool) -> Scores {
    let of_cell = |cell: &Measured| {
        let misses = &cell.fits.get(&Reading::Transform)?.misses;
        let taken = &cell.test.readings.get(&Reading::Transform)?.layers;
        let of_prompt = |(layers, &taken): (&Vec<Miss>, &usize)| match vectors {
            Vectors::All => layers.iter().map(pick).sum(),
            Vectors::Layer(layer) => layers.get(layer).map_or(0.0, pick),
            Vectors::Passed => layers.get(taken).map_or(0.0, pick),
        };
        (!misses.is_empty()).then(|| misses.iter().zip(taken).map(of_prompt).collect())
    };
    Scores::by(cells, of_cell, keep)
}

/// Mean squared error and R2 of the plain matrix against the English activations, on some test prompts.
pub fn imitation(cells: &[&Measured], vectors: Vectors, keep: impl Fn(&Asked) -> bool) -> [Estimate; 2] {
    let [errors, spreads] =
        [|miss: &Miss| miss.0, |miss: &Miss| miss.1].map(|pick| misses(cells, vectors, pick, &keep));
    let shape = cells.first().map_or((1, 1), |cell| (cell.model.n_layers, cell.model.d_model));
    let numbers = match vectors {
        Vectors::All => shape.0 * shape.1,
        Vectors::Layer(_) | Vectors::Passed => shape.1,
    };
    let mapped = |of: Estimate, map: &dyn Fn(f64) -> f64| Estimate {
        mean: map(of.mean),
        low: map(of.low).min(map(of.high)),
        high: map(of.low).max(map(of.high)),
        ..of
    };
    [mapped(errors.estimate(), &|sum| sum / numbers as f64), mapped(errors.over(&spreads), &|share| 1.0 - share)]
}

/// Table 2.
pub fn matrix_against_twin(evidence: &Evidence) -> Section {
    let mut text = format!("{}\n\n", command(&evidence.plan.command, "main"));
    let _ = writeln!(
        text,
        "{}\nPairs are held out by their English prompt: the same fact in other words may be among the fitted ones. Pairs and \
         rows are the first seed's.\n",
        fits(evidence)
    );
    let _ = writeln!(text, "{}", families(evidence));
    let (controls, file) = controls(evidence);
    let _ = writeln!(
        text,
        "What one CC-Tuned model (setting ML-SFT) answers when the connection is fed from elsewhere; every row is compared \
         with the English twin and with W_T on the same items and seeds.\n\n{controls}"
    );
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let twin = Scores::of(&cells, Reading::Parallel, Asked::foreign);
    for (reading, name) in
        [(Reading::Transform, "W_T"), (Reading::None, "no connection"), (Reading::Zero, "a zero vector")]
    {
        let difference = Scores::of(&cells, reading, Asked::foreign).minus(&twin);
        if difference.seeds > 0 {
            let _ = writeln!(
                text,
                "- {name} minus the English twin is {} points and {}.",
                points(&difference.estimate),
                verdict(&difference.estimate)
            );
        }
    }
    Section { title: "Table 2: W_T in place of the English twin".into(), text, files: vec![file] }
}

/// The error of every kind of matrix.
fn fits(evidence: &Evidence) -> String {
    let head = ["matrix", "seeds", "pairs", "rows", "own MSE", "own R2", "held-out MSE", "held-out R2"];
    let mut rows = Vec::new();
    for setting in Setting::ALL {
        let cells = evidence.of(setting, Training::Cc, "");
        for reading in [Reading::Transform, Reading::Affine, Reading::PerLayer, Reading::Ridge] {
            let found: Vec<&Fit> = cells.iter().filter_map(|cell| cell.fits.get(&reading)).collect();
            let Some(first) = found.first() else { continue };
            let of = |pick: &dyn Fn(&Fit) -> Error| over_seeds(found.iter().map(|fit| pick(fit))).to_vec();
            let name = format!("{} {}", setting.name(), reading.name());
            let counts = [name, found.len().to_string(), first.pairs.to_string(), first.rows.to_string()];
            rows.push([counts.to_vec(), of(&|fit| fit.own), of(&|fit| fit.heldout)].concat());
            // Seeds differ more than kinds of matrix do, and not all were fitted in every way.
            let both = cells.iter().filter(|cell| cell.fits.contains_key(&Reading::Affine));
            let both: Vec<&Fit> = both.filter_map(|cell| cell.fits.get(&reading)).collect();
            if reading == Reading::Transform && !both.is_empty() && both.len() < found.len() {
                let of = |pick: &dyn Fn(&Fit) -> Error| over_seeds(both.iter().map(|fit| pick(fit))).to_vec();
                let name = format!("{} {}, the seeds of its variants", setting.name(), reading.name());
                let counts = [name, both.len().to_string(), both[0].pairs.to_string(), both[0].rows.to_string()];
                rows.push([counts.to_vec(), of(&|fit| fit.own), of(&|fit| fit.heldout)].concat());
            }
            if (setting, reading) == (Setting::MlSft, Reading::Transform) {
                for (at, name) in ["layer mean", "identity", "zero"].into_iter().enumerate() {
                    let blank = vec![String::new(); 5];
                    rows.push([vec![format!("baseline: {name}")], blank, of(&|fit| fit.baselines[at])].concat());
                }
            }
        }
    }
    markdown::table(&head, &rows)
}

/// The error on the test prompts, and what the matrix loses against the twin, by family.
fn families(evidence: &Evidence) -> String {
    let head = ["setting", "family", "MSE on test prompts", "R2", "English twin − W_T", "n"];
    let mut rows = Vec::new();
    for setting in Setting::ALL {
        let cells = evidence.of(setting, Training::Cc, "");
        for family in evidence.families() {
            let keep = |asked: &Asked| asked.foreign() && asked.family == family;
            let matrix = Scores::of(&cells, Reading::Transform, keep);
            let lost = Scores::of(&cells, Reading::Parallel, keep).minus(&matrix);
            if lost.seeds == 0 {
                continue;
            }
            let [mse, r2] = written(imitation(&cells, Vectors::All, keep));
            let tail = [mse, r2, points(&lost.estimate), lost.items.to_string()];
            rows.push([vec![setting.name().into(), family], tail.to_vec()].concat());
        }
    }
    markdown::table(&head, &rows)
}

/// Every source of the connection in one model.
fn controls(evidence: &Evidence) -> (String, (String, String)) {
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let [twin, matrix] =
        [Reading::Parallel, Reading::Transform].map(|reading| Scores::of(&cells, reading, Asked::foreign));
    let mut asked: Vec<Reading> = cells.iter().flat_map(|cell| cell.test.readings.keys().copied()).collect();
    asked.sort();
    asked.dedup();
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    for reading in asked {
        let scores = Scores::of(&cells, reading, Asked::foreign);
        let estimate = scores.estimate();
        let [of_twin, of_matrix] = [&twin, &matrix].map(|other| scores.minus(other).estimate);
        let kinds = ["fact", "phrasing"]
            .map(|kind| Scores::of(&cells, reading, |asked| asked.foreign() && asked.kind == kind).estimate());
        let head = [reading.name().into(), scores.seeds().to_string(), interval(&estimate)];
        let against = |itself: Reading, of: &Estimate| if reading == itself { "–".into() } else { points(of) };
        let differences = vec![against(Reading::Parallel, &of_twin), against(Reading::Transform, &of_matrix)];
        rows.push([head.to_vec(), kinds.each_ref().map(interval).to_vec(), differences].concat());
        let numbers = [estimate, of_twin, of_matrix].into_iter().flat_map(|e| [e.mean, e.low, e.high]);
        let numbers = numbers.map(|value| value.to_string()).collect();
        data.push([vec![reading.name().into(), scores.seeds().to_string()], numbers].concat());
    }
    let head = ["connection fed from", "seeds", "score", "facts", "phrasings", "minus English twin", "minus W_T"];
    let of_twin = ["minus_twin", "minus_twin_low", "minus_twin_high"];
    let of_matrix = ["minus_w_t", "minus_w_t_low", "minus_w_t_high"];
    let columns = [&["source", "seeds", "mean", "low", "high"][..], &of_twin, &of_matrix].concat();
    (markdown::table(&head, &rows), ("table-2-sources.csv".into(), markdown::csv(&columns, &data)))
}

/// The matrix layer by layer, and what each layer weighs.
pub fn layers(evidence: &Evidence) -> Section {
    let head = ["layer", "own MSE", "own R2", "held-out MSE", "held-out R2"];
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let fits: Vec<&Fit> = cells.iter().filter_map(|cell| cell.fits.get(&Reading::Transform)).collect();
    let layers = fits.iter().map(|fit| fit.layers.len()).min().unwrap_or(0);
    let fitted = |layer: usize| {
        let of = |pick: fn(&LayerError) -> Error| over_seeds(fits.iter().map(|fit| pick(&fit.layers[layer]))).to_vec();
        [vec![(layer + 1).to_string()], of(|layer| layer.own), of(|layer| layer.heldout)].concat()
    };
    let spread = |vectors: Vectors| misses(&cells, vectors, |miss| miss.1, Asked::foreign);
    let all = spread(Vectors::All);
    let used = |layer: usize| {
        let [_, r2] = imitation(&cells, Vectors::Layer(layer), Asked::foreign);
        let taken = taken(&cells, Reading::Transform, layer, Asked::foreign);
        vec![
            (layer + 1).to_string(),
            interval(&spread(Vectors::Layer(layer)).over(&all)),
            within(&r2, decimals(3)),
            interval(&taken.estimate()),
        ]
    };
    let text = format!(
        "{}\n\nSetting ML-SFT, mean over {}.\n\n{}\nOn the test prompts in other languages than English: a layer's share of the \
         variance of the English activations, R2 of *F W*<sub>T</sub> there, and how often the Decision Maker takes that \
         layer from W_T.\n\n{}",
        command(&evidence.plan.command, "main"),
        seeds(fits.len()),
        markdown::table(&head, &(0..layers).map(fitted).collect::<Vec<_>>()),
        markdown::table(
            &["layer", "of the variance, %", "R2", "taken, %"],
            &(0..layers).filter(|_| all.seeds() > 0).map(used).collect::<Vec<_>>()
        ),
    );
    Section { title: "Table 2, layer by layer".into(), text, files: Vec::new() }
}
