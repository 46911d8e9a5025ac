//! Table 2: the Transform Matrix against the English twin, its error where it was fitted and where it was not, and the
//! controls that the paper lacks.

use std::fmt::Write as _;

use super::Section;
use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, interval, percent, points, verdict};
use crate::experiment::cell::{Asked, Error, Fit};
use crate::experiment::matrix::{Reading, Setting, Training};

fn error(error: &Error) -> [String; 2] {
    [format!("{:.3e}", error.mse), format!("{:.3}", error.r2)]
}

/// Means over cells; none of them give nothing.
fn mean(errors: &[Error]) -> Option<Error> {
    let n = errors.len() as f64;
    let of = |pick: fn(&Error) -> f64| errors.iter().map(pick).sum::<f64>() / n;
    (!errors.is_empty()).then(|| Error { mse: of(|error| error.mse), r2: of(|error| error.r2) })
}

/// Table 2.
pub fn matrix_against_twin(evidence: &Evidence) -> Section {
    let mut text = format!("{}\n\n", command(&evidence.plan.command, "main"));
    let _ = writeln!(text, "{}", fits(evidence));
    let _ = writeln!(text, "{}", families(evidence));
    let (controls, file) = controls(evidence);
    let _ = writeln!(
        text,
        "What one CC-Tuned model (setting ML-SFT) answers when the connection is fed from elsewhere; every row is compared \
         with the English twin on the same items and seeds.\n\n{controls}"
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
            let of = |pick: fn(&Fit) -> Error| mean(&found.iter().map(|fit| pick(fit)).collect::<Vec<_>>());
            let (Some(own), Some(held), Some(first)) = (of(|fit| fit.own), of(|fit| fit.heldout), found.first()) else {
                continue;
            };
            let name = format!("{} {}", setting.name(), reading.name());
            let counts = [name, found.len().to_string(), first.pairs.to_string(), first.rows.to_string()];
            rows.push([counts.to_vec(), error(&own).to_vec(), error(&held).to_vec()].concat());
            if (setting, reading) == (Setting::MlSft, Reading::Transform) {
                for (at, name) in ["layer mean", "identity", "zero"].into_iter().enumerate() {
                    let base = mean(&found.iter().map(|fit| fit.baselines[at]).collect::<Vec<_>>()).unwrap_or_default();
                    let blank = vec![String::new(); 5];
                    rows.push([vec![format!("baseline: {name}")], blank, error(&base).to_vec()].concat());
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
            let errors =
                cells.iter().filter_map(|cell| cell.fits.get(&Reading::Transform)?.families.get(&family).copied());
            let Some(found) = mean(&errors.collect::<Vec<_>>()) else { continue };
            let keep = |asked: &Asked| asked.foreign() && asked.family == family;
            let matrix = Scores::of(&cells, Reading::Transform, keep);
            let lost = Scores::of(&cells, Reading::Parallel, keep).minus(&matrix);
            let [mse, r2] = error(&found);
            let tail = [mse, r2, points(&lost.estimate), lost.items.to_string()];
            rows.push([vec![setting.name().into(), family], tail.to_vec()].concat());
        }
    }
    markdown::table(&head, &rows)
}

/// Every source of the connection in one model.
fn controls(evidence: &Evidence) -> (String, (String, String)) {
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let twin = Scores::of(&cells, Reading::Parallel, Asked::foreign);
    let mut asked: Vec<Reading> = cells.iter().flat_map(|cell| cell.test.readings.keys().copied()).collect();
    asked.sort();
    asked.dedup();
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    for reading in asked {
        let scores = Scores::of(&cells, reading, Asked::foreign);
        let (estimate, against) = (scores.estimate(), scores.minus(&twin));
        let kinds = ["fact", "phrasing"]
            .map(|kind| percent(Scores::of(&cells, reading, |asked| asked.foreign() && asked.kind == kind).centre()));
        let head = [reading.name().into(), scores.seeds().to_string(), interval(&estimate)];
        let difference = match reading {
            Reading::Parallel => "–".into(),
            _ => points(&against.estimate),
        };
        rows.push([head.to_vec(), kinds.to_vec(), vec![difference]].concat());
        let numbers = [estimate.mean, estimate.low, estimate.high, against.estimate.mean];
        let numbers = numbers.iter().map(|value| value.to_string()).collect();
        data.push([vec![reading.name().into(), scores.seeds().to_string()], numbers].concat());
    }
    let head = ["connection fed from", "seeds", "score", "facts", "phrasings", "minus English twin"];
    let columns = ["source", "seeds", "mean", "low", "high", "minus_twin"];
    (markdown::table(&head, &rows), ("table-2-sources.csv".into(), markdown::csv(&columns, &data)))
}

/// The matrix layer by layer.
pub fn layers(evidence: &Evidence) -> Section {
    let head = ["layer", "own MSE", "own R2", "held-out MSE", "held-out R2"];
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let fits: Vec<&Fit> = cells.iter().filter_map(|cell| cell.fits.get(&Reading::Transform)).collect();
    let layers = fits.iter().map(|fit| fit.layers.len()).min().unwrap_or(0);
    let rows: Vec<Vec<String>> = (0..layers)
        .map(|layer| {
            let of = |pick: fn(&crate::experiment::cell::LayerError) -> Error| {
                mean(&fits.iter().map(|fit| pick(&fit.layers[layer])).collect::<Vec<_>>()).unwrap_or_default()
            };
            [vec![(layer + 1).to_string()], error(&of(|l| l.own)).to_vec(), error(&of(|l| l.heldout)).to_vec()].concat()
        })
        .collect();
    let text = format!("Setting ML-SFT, mean over {} seeds.\n\n{}", fits.len(), markdown::table(&head, &rows));
    Section { title: "Table 2, layer by layer".into(), text, files: Vec::new() }
}
