//! Proves that the report tells what the connection carries as it is: known layers, errors, times and losses in, the sentences
//! about them out.

use std::fs;
use std::path::Path;

use trainer::experiment::cell::{Asked, Error, Fit, LayerError, Measured, Miss, Timed, Trained};
use trainer::experiment::matrix::{Group, Reading, Training};
use trainer::experiment::plan::Plan;
use trainer::experiment::report::{self, Scores};
use trainer::recipe::Recipe;

/// The report of cells as `super::written` makes them, each changed.
pub fn reported(dir: &Path, change: impl Fn(&mut Measured)) -> String {
    changed(dir, super::written(dir, credit), change)
}

pub fn credit(training: Training, _: u64, at: usize, _: &Asked) -> f64 {
    f64::from(training == Training::Cc || at.is_multiple_of(2))
}

/// The report of a plan's cells, each changed.
pub fn changed(dir: &Path, plan: Plan, change: impl Fn(&mut Measured)) -> String {
    let recipe = Recipe::default().with(&["optim.epochs=2".into()]).unwrap().to_toml().unwrap();
    Plan { recipe, ..plan.clone() }.write(dir).unwrap();
    for planned in &plan.cells {
        let mut cell = Measured::read(&dir.join("cells"), &planned.id).unwrap().unwrap();
        change(&mut cell);
        cell.write(&dir.join("cells")).unwrap();
    }
    report::write(dir).unwrap();
    fs::read_to_string(dir.join(report::RESULTS_FILE)).unwrap()
}

#[track_caller]
pub fn says(results: &str, row: &str) {
    assert!(results.contains(row), "{row} is missing from\n{results}");
}

#[test]
fn differences_between_ways_of_asking_stand_with_their_families() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |_| {});
    says(&results, "| ML-SFT | CC-Tuning with the English twin − ML-SFT | 5 | +50.0 [");
    says(&results, "- W_T − no connection: +0.0 [+0.0, +0.0] points, which cannot be told from zero.");
    let data = fs::read_to_string(dir.path().join("figures/why.csv")).unwrap();
    says(&data, "ML-SFT,CC-Tuning without a connection − ML-SFT,5,choice,0.5,");
}

#[test]
fn several_ways_are_averaged_over_the_seeds_that_all_have() {
    let prompts = super::prompts(4);
    let way = |seed, credit| Scores::of_prompts(seed, &prompts, vec![credit; prompts.len()]);
    let both = Scores::mean_of(&[way(3, 1.0), way(3, 0.0)]);
    assert_eq!((both.centre(), both.seeds(), both.items()), (0.5, 1, prompts.len()));
    assert_eq!(Scores::mean_of(&[way(3, 1.0), way(4, 0.0)]).seeds(), 0);
    // What has no seed of its own is paired with any.
    let difference = way(4, 1.0).minus(&way(0, 0.25).beside(&way(4, 1.0)));
    assert_eq!((difference.estimate.mean, difference.seeds), (0.75, 1));
}

#[test]
fn a_layer_that_goes_with_the_answer_is_told_from_one_that_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        let golds: Vec<usize> = cell.test.prompts.iter().map(|asked| usize::from(asked.gold == "B")).collect();
        // The twin's layer is the answer, that of W_T is always the same.
        if let Some(twin) = cell.test.readings.get_mut(&Reading::Parallel) {
            twin.layers = golds;
        }
        if let Some(matrix) = cell.test.readings.get_mut(&Reading::Transform) {
            matrix.layers = vec![3; matrix.credits.len()];
        }
    });
    // Of 16 prompts in two languages 12 have the answer A.
    says(&results, "| choice | 5 | 100.0 [100.0, 100.0] | 7");
    // One layer for all: shuffled golds are told as often.
    says(&results, "] | 75.0 (75.0) | 16 |");
}

#[test]
fn what_is_passed_on_is_judged_by_the_layers_that_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        if cell.cell.training == Training::Cc {
            // Layer 1 is missed by a fifth of its spread, layer 3 wholly; layer 3 is taken, but for one prompt in four.
            let layers = [Miss(0.8, 4.0), Miss(0.0, 0.0), Miss(4.0, 4.0), Miss(0.0, 8.0)].to_vec();
            let prompts = &cell.test.prompts;
            let misses = prompts.iter().map(|asked| if asked.foreign() { layers.clone() } else { Vec::new() });
            let misses = misses.collect();
            let heldout = Error { mse: 1.0, r2: 0.8 };
            let layers = vec![LayerError { own: heldout, heldout }; 4];
            let fit = Fit { heldout, misses, layers, ..Fit::default() };
            cell.fits.insert(Reading::Transform, fit);
            let layers = cell.test.prompts.iter().map(|asked| if asked.gold == "B" { 0 } else { 2 }).collect();
            cell.test.readings.get_mut(&Reading::Transform).unwrap().layers = layers;
        }
    });
    // All: 1 - 4.8 / 16. Passed on: 1 - (0.25 * 0.8 + 0.75 * 4) / 4.
    says(&results, "| ML-SFT | 5 | 0.80 [0.80, 0.80] | 0.70 [0.70, 0.70] | 0.20 [");
    // The same by family: 4.8 over 4 layers and 8 dimensions.
    says(&results, "| ML-SFT | choice | 1.50e-1 [1.50e-1, 1.50e-1] | 0.700 [0.700, 0.700] |");
    // By layer: the share of 16, how well it is imitated, how often it is taken.
    says(&results, "| 1 | 25.0 [25.0, 25.0] | 0.800 [0.800, 0.800] | 25.0 [");
    says(&results, "| 2 | 0.0 [0.0, 0.0] | – | 0.0 [");
    says(&results, "| 3 | 25.0 [25.0, 25.0] | 0.000 [0.000, 0.000] | 75.0 [");
    says(&results, "| 4 | 50.0 [50.0, 50.0] | 1.000 [1.000, 1.000] | 0.0 [");
    says(&results, "| choice | W_T | 25.0 [");
    says(&results, "for understanding layer 3 (75.0 [");
}

#[test]
fn times_are_ratios_of_what_was_done_in_turn_and_losses_show_what_is_learnt_by_heart() {
    let dir = tempfile::tempdir().unwrap();
    let results = reported(dir.path(), |cell| {
        if (cell.cell.group, cell.cell.training) == (Group::Main, Training::Cc) {
            let (steps, answers) = (vec![[1.0, 1.5], [2.0, 3.0]], vec![[4.0, 5.0]]);
            cell.timed = Some(Timed { steps, answers });
        }
        if cell.cell.training == Training::Sft {
            let losses = (0..40).map(|step| if step < 20 { 2.5 } else { 1.25 }).collect();
            cell.trained = Some(Trained { losses, ..Trained::default() });
        }
    });
    says(&results, "| CC-Tuning | 5 | 10 | 1.500 | 2.250 | 1.50 [1.50, 1.50] |");
    says(&results, "| CC-Tuning | 5 | 5 | 4.000 | 5.000 | 1.25 [1.25, 1.25] |");
    says(&results, "| ML-SFT SFT | 5 | 2 | 2.50 [2.50, 2.50] | 1.25 [1.25, 1.25] |");
}
