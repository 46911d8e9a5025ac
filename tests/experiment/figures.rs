//! Proves that the figures and the tables without a figure say what is in their cells: known errors, losses, places and
//! transplants in, the numbers and their intervals out.

use std::fs;
use std::path::Path;

use trainer::experiment::cell::{
    Chosen, CurvePoint, Donated, Error, Fit, LayerError, Measured, State, Trained, Transplanted,
};
use trainer::experiment::matrix::{Cell, Group, Reading, Training};

use super::why::{changed, credit, reported, says};
use super::{prompts, written_where};

fn figure(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join("figures").join(name)).unwrap()
}

/// The numbers behind some words at the beginning of a line of a CSV file.
fn numbers(dir: &Path, name: &str, words: &str) -> Vec<f64> {
    let csv = figure(dir, name);
    let line = csv.lines().find_map(|line| line.strip_prefix(words));
    let line = line.unwrap_or_else(|| panic!("no line of {name} begins with {words}:\n{csv}"));
    line.split(',').filter(|cell| !cell.is_empty()).map(|cell| cell.parse().unwrap()).collect()
}

#[track_caller]
fn near(found: &[f64], expected: &[f64]) {
    let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9);
    assert!(close && found.len() >= expected.len(), "{found:?} begins not with {expected:?}");
}

/// Whether a cell is one of CC-Tuning in the main table, of which the tests' reports have five.
fn ours(cell: &Measured) -> bool {
    (cell.cell.group, cell.cell.training) == (Group::Main, Training::Cc)
}

#[test]
fn figure_5_and_table_2_are_means_over_seeds_with_their_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        if !ours(cell) {
            return;
        }
        // Seeds 0 to 4 differ by one hundredth each.
        let error = |mse: f64| Error { mse: mse + 0.01 * cell.cell.seed as f64, r2: 0.5 };
        let point =
            |pairs: usize, held: f64| CurvePoint { pairs, rows: 4 * pairs, own_mse: 0.1, heldout_mse: error(held).mse };
        let fit = Fit {
            pairs: 10,
            rows: 40,
            own: error(0.1),
            heldout: error(0.2),
            layers: vec![LayerError { own: error(0.3), heldout: error(0.4) }; 4],
            curve: vec![point(1, 0.5), point(2, 0.9), point(10, 0.2)],
            ..Fit::default()
        };
        cell.fits.insert(Reading::Transform, fit);
    });
    says(&results, "| ML-SFT W_T | 5 | 10 | 40 | 1.20e-1 [1.0");
    says(&results, "| 4 | 3.20e-1 [3.");
    says(&results, "on held-out pairs from 5.2e-1 [5.");
    says(&results, "at most 9.2e-1 [9.");
    says(&results, "with 2 pairs (5 seeds)");
    near(&numbers(dir.path(), "figure-5.csv", "2,8,"), &[0.1, 0.1, 0.1, 0.92]);
    says(&figure(dir.path(), "figure-5.svg"), "mean over 5 seeds");
}

#[test]
fn figure_6_is_the_mean_of_its_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        if cell.cell.training == Training::Sft {
            let losses = [3.0, 2.0, 1.0].map(|loss| loss + cell.cell.seed as f64).to_vec();
            cell.trained = Some(Trained { losses, ..Trained::default() });
        }
    });
    // Seeds 0 to 4 add 2 on average.
    says(&results, "ML-SFT: over the last twentieth of the steps the mean loss is SFT 3.000 [1.");
    says(&results, "] (5 seeds)");
    near(&numbers(dir.path(), "figure-6.csv", "ML-SFT,SFT,"), &[1.0, 5.0]);
}

#[test]
fn figure_7_tells_languages_that_lie_apart_from_prompts_that_lie_together() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        let together = cell.cell.training == Training::Sft;
        if cell.cell.seed > 0 || !(together || ours(cell)) {
            return;
        }
        let place = |(lang, code): (usize, &str), unit: usize| {
            let (x, y) = (1e3 * unit as f64, lang as f64);
            let (x, y) = if together { (x, y) } else { (unit as f64, 1e3 * y) };
            State { lang: code.into(), unit: format!("unit {unit}"), x, y }
        };
        let langs = ["en", "es", "sw"].into_iter().enumerate();
        cell.states = langs.flat_map(|lang| (0..10).map(move |unit| place(lang, unit))).collect();
    });
    says(&results, "| after ML-SFT | 0.0 [0.0, 0.0] | 100.0 [100.0, 100.0] | 30 |");
    // Each language on a line of its own, in the same order: the nearest of another line is the same prompt.
    says(&results, "| after CC-Tuning | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 30 |");
    says(&figure(dir.path(), "figure-7.csv"), "after ML-SFT,sw,unit 9,9000,2\n");
}

#[test]
fn how_much_the_connection_carries_is_said_over_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        if ours(cell) {
            let entropy_last = 0.1 * cell.cell.seed as f64;
            let selected = vec![1, 0, 3, 0];
            let choice = Chosen { entropy_first: 0.5, entropy_last, vector_norm: 1.0, stream_norm: 4.0, selected };
            cell.trained = Some(Trained { choice: Some(choice), ..Trained::default() });
        }
    });
    // Four layers, five seeds: ln 4, and 0.0 to 0.4.
    says(&results, "| ML-SFT CC-Tuning | 5 | 0.500 [0.500, 0.500] | 0.200 [0.");
    says(&results, "] | 1.386 | 0.250 [0.250, 0.250] |");
    says(&results, " | 25 0 75 0 |");
}

#[test]
fn transplants_are_shares_of_the_prompts_they_were_tried_on() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        if (cell.cell.training, cell.cell.seed, cell.cell.group) == (Training::Sft, 0, Group::Main) {
            let asked = prompts(8).into_iter().filter(|asked| asked.foreign()).collect::<Vec<_>>();
            let every = |n: usize| (0..asked.len()).map(|at| at % n == 0).collect::<Vec<_>>();
            let (vanilla, given) = (every(4), Donated { source: 2, target: 0, chosen: every(2), any: every(1) });
            let donors = [("the English twin".to_string(), given)].into();
            cell.transplanted = Some(Transplanted { validation: 7, prompts: asked.clone(), vanilla, donors });
        }
    });
    says(&results, "32 test prompts in other languages than English, layers chosen on 7 of");
    says(&results, "| no transplant |  | 25.0 [");
    says(&results, "| from the English twin | 3 → 1 | 50.0 [");
    says(&results, "] | 100.0 [100.0, 100.0] |");
}

#[test]
fn figure_4_and_the_ablations_compare_every_variant_with_the_main_table() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |cell: &Cell| matches!(cell.group, Group::Main | Group::Site | Group::E);
    let results = changed(dir.path(), written_where(dir.path(), shown, credit), |cell| {
        // The main table has everything right, attention half of it.
        if cell.cell.variant == "site = attention" {
            for answers in cell.test.readings.values_mut().chain(cell.validation.readings.values_mut()) {
                answers.credits.iter_mut().enumerate().for_each(|(at, credit)| *credit = (at % 2) as f64);
            }
        }
    });
    says(&results, "| site = attention | 3 | 50.0 [");
    says(&results, "- site = attention minus feed-forward is -50.0 [");
    says(&results, "] points and is below zero.");
    says(
        &results,
        "| site = block | 3 | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | – | +0.0 [",
    );
    says(&results, "- e = none minus e = content mean is +0.0 [+0.0, +0.0] points and cannot be told from zero.");
    near(&numbers(dir.path(), "figure-4.csv", "site = attention,choice,"), &[0.5]);
    says(&figure(dir.path(), "figure-4.svg"), "site = attention");
}
