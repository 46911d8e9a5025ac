//! The Transform Matrix: what is planted is found, what cannot be found is said.

use burn::tensor::{Tensor, TensorData};
use cctuning::config::Family;
use cctuning::decision_maker::Selection;
use cctuning::least_squares::{Fit, Judge, Moments};
use cctuning::tap::{FfnActivations, Site};
use cctuning::transform_matrix::TransformMatrix;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trainer::fit::{Reading, fit};
use trainer::fit_report::Fitted;
use trainer::interrupt::Interrupt;
use trainer::model_folder::load_transform;
use trainer::recipe::Transform;
use trainer::sample::Sample;

use crate::small_model::{assert_close, config, model, prompt, values};

const D: usize = 12;

fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn times(a: &[f64], w: &[f64]) -> Vec<f64> {
    let entry = |row: &[f64], j: usize| (0..D).map(|k| row[k] * w[k * D + j]).sum();
    a.chunks(D).flat_map(|row| (0..D).map(|j| entry(row, j)).collect::<Vec<f64>>()).collect()
}

fn moments(a: &[f64], b: &[f64]) -> Moments {
    let mut moments = Moments::new(D);
    moments.add(a, b).unwrap();
    moments
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_planted_matrix_is_recovered_from_its_products() {
    let (a, planted) = (random(60 * D, 1), random(D * D, 2));
    let fit = moments(&a, &times(&a, &planted)).fit(0.0, false).unwrap();
    assert!(distance(&fit.matrix, &planted) < 1e-10, "{}", distance(&fit.matrix, &planted));
    assert_eq!((fit.rows, fit.warnings.len()), (60, 0), "{:?}", fit.warnings);
    assert!(fit.condition > 1.0 && fit.condition < 100.0, "{}", fit.condition);
}

#[test]
fn a_planted_matrix_is_recovered_through_noise_as_far_as_the_noise_allows() {
    let (a, planted) = (random(4000 * D, 3), random(D * D, 4));
    let noisy: Vec<f64> = times(&a, &planted).iter().zip(random(4000 * D, 5)).map(|(b, n)| b + 0.1 * n).collect();
    let mut moments = moments(&a, &noisy);
    let fit = moments.fit(0.0, false).unwrap();
    assert!(distance(&fit.matrix, &planted) < 0.02, "{}", distance(&fit.matrix, &planted));
    let report = moments.judge(&fit.matrix, None);
    // Uniform noise of half-width 0.1 has variance 0.01 / 3.
    assert!((report.mse - 0.01 / 3.0).abs() < 2e-4, "{}", report.mse);
}

#[test]
fn equal_sides_give_the_identity() {
    let a = random(60 * D, 6);
    let identity: Vec<f64> = (0..D * D).map(|i| f64::from(i / D == i % D)).collect();
    let mut moments = moments(&a, &a);
    assert!(distance(&moments.fit(0.0, false).unwrap().matrix, &identity) < 1e-12);
    assert!(moments.judge(&identity, None).mse < 1e-14);
}

#[test]
fn rows_that_hardly_outnumber_the_unknowns_are_warned_of() {
    for (rows, warned) in [(2 * D, true), (2 * D + 1, false)] {
        let a = random(rows * D, 7);
        let fit = moments(&a, &random(rows * D, 8)).fit(0.0, false).unwrap();
        assert_eq!(fit.warnings.iter().any(|text| text.contains("at least 25 rows")), warned, "{:?}", fit.warnings);
    }
}

#[test]
fn a_rank_deficient_system_takes_the_least_norm_solution_and_says_so() {
    let mut a = random(60 * D, 9);
    for row in a.chunks_mut(D) {
        row[3] = row[2];
        row[4] = 0.0;
    }
    let b = times(&a, &random(D * D, 10));
    let mut moments = moments(&a, &b);
    let fit = moments.fit(0.0, false).unwrap();
    assert!(fit.warnings.iter().any(|text| text.contains("rank 10 of 12")), "{:?}", fit.warnings);
    assert!(distance(&times(&a, &fit.matrix), &b) < 1e-7, "the solution does not solve the system");
    for column in 0..D {
        let entry = |row: usize| fit.matrix[row * D + column];
        assert!((entry(2) - entry(3)).abs() < 1e-7 && entry(4).abs() < 1e-7, "not the solution of least norm");
    }
    let ridged = moments.fit(1e-6, false).unwrap();
    assert!(!ridged.warnings.iter().any(|text| text.contains("rank")), "{:?}", ridged.warnings);
    assert!(
        moments
            .fit(0.0, false)
            .unwrap()
            .matrix
            .iter()
            .chain(&Moments::new(D).fit(0.0, false).unwrap().matrix)
            .all(|x| x.is_finite())
    );
}

#[test]
fn a_ridge_solves_the_lifted_normal_equations() {
    let (a, b, ridge) = (random(40 * D, 11), random(40 * D, 12), 0.3);
    let w = moments(&a, &b).fit(ridge, false).unwrap().matrix;
    let trace: f64 = a.iter().map(|x| x * x).sum();
    // Stationarity: Aᵀ(A W - B) + ridge · tr(AᵀA)/d · W = 0.
    let residual: Vec<f64> = times(&a, &w).iter().zip(&b).map(|(p, b)| p - b).collect();
    for (i, j) in (0..D).flat_map(|i| (0..D).map(move |j| (i, j))) {
        let gradient: f64 = (0..40).map(|row| a[row * D + i] * residual[row * D + j]).sum();
        assert!((gradient + ridge * trace / D as f64 * w[i * D + j]).abs() < 1e-9);
    }
}

#[test]
fn rows_added_in_pieces_give_the_same_fit_and_the_report_is_the_plain_formula() {
    let (a, b) = (random(50 * D, 13), random(50 * D, 14));
    let mut whole = moments(&a, &b);
    let mut pieces = Moments::new(D);
    for at in [0..7, 7..8, 8..50] {
        pieces.add(&a[at.start * D..at.end * D], &b[at.start * D..at.end * D]).unwrap();
    }
    let w = whole.fit(0.0, false).unwrap().matrix;
    assert!(distance(&pieces.fit(0.0, false).unwrap().matrix, &w) < 1e-11);

    let report = pieces.judge(&w, None);
    let error: f64 = times(&a, &w).iter().zip(&b).map(|(p, b)| (p - b) * (p - b)).sum();
    let mean = |j: usize| b.iter().skip(j).step_by(D).sum::<f64>() / 50.0;
    let spread: f64 = b.iter().enumerate().map(|(i, x)| (x - mean(i % D)).powi(2)).sum();
    let size: f64 = b.iter().map(|x| x * x).sum();
    assert!((report.mse - error / (50 * D) as f64).abs() < 1e-12);
    assert!((report.r2 - (1.0 - error / spread)).abs() < 1e-12);
    assert!((report.r2_uncentered - (1.0 - error / size)).abs() < 1e-12);
}

#[test]
fn an_affine_fit_finds_the_planted_shift_and_a_linear_one_cannot() {
    let (a, planted, shift) = (random(80 * D, 15), random(D * D, 16), random(D, 17));
    let b: Vec<f64> = times(&a, &planted).iter().enumerate().map(|(i, x)| x + 3.0 * shift[i % D]).collect();
    let mut moments = moments(&a, &b);
    let fit = moments.fit(0.0, true).unwrap();
    let intercept = fit.intercept.clone().unwrap();
    assert!(distance(&fit.matrix, &planted) < 1e-9);
    assert!(intercept.iter().zip(&shift).all(|(found, shift)| (found - 3.0 * shift).abs() < 1e-9));
    assert!(moments.judge(&fit.matrix, Some(&intercept)).mse < 1e-12);
    let linear = moments.fit(0.0, false).unwrap();
    assert!(linear.intercept.is_none());
    assert!(moments.judge(&linear.matrix, None).mse > 0.1);
}

#[test]
fn the_condition_without_eigenvalues_is_that_of_the_planted_spectrum() {
    // Rows along the axes, so that the singular values of A are known: 1, 2, ... 12.
    let a: Vec<f64> = (0..3 * D * D).map(|i| if i / D % D == i % D { (i % D + 1) as f64 } else { 0.0 }).collect();
    let fit = moments(&a, &a).fit(0.0, false).unwrap();
    assert!((fit.condition - 12.0).abs() < 0.05, "{}", fit.condition);
    assert_eq!(fit.rank, D);
}

#[test]
fn a_number_that_is_not_finite_is_refused_with_its_place_and_nothing_is_added() {
    let (mut a, b) = (random(20 * D, 18), random(20 * D, 19));
    let mut sums = moments(&a, &b);
    let before = sums.fit(0.0, false).unwrap().matrix;
    a[5 * D + 2] = f64::NAN;
    let said = sums.add(&a, &b).unwrap_err().to_string();
    assert!(said.contains("row 25") && said.contains("dimension 2") && said.contains("NaN"), "{said}");
    assert_eq!(sums.fit(0.0, false).unwrap().matrix, before);
}

#[test]
fn every_layer_is_judged_by_the_plain_formula_with_one_matrix_and_with_its_own() {
    const LAYERS: usize = 3;
    let rows = 10 * LAYERS;
    let float = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let (a, b) = (float(random(rows * D, 20)), float(random(rows * D, 21)));
    let fit = |seed| Fit {
        matrix: random(D * D, seed),
        intercept: Some(random(D, seed + 50)),
        rows,
        rank: D,
        condition: 1.0,
        warnings: Vec::new(),
    };
    let means: Vec<Vec<f64>> = (0..LAYERS as u64).map(|layer| random(D, 30 + layer)).collect();
    for fits in [vec![fit(22)], (0..LAYERS as u64).map(|layer| fit(23 + layer)).collect()] {
        let mut judge = Judge::new(&fits, means.clone());
        // In two pieces, each of whole pairs.
        let cut = 4 * LAYERS * D;
        judge.add(&a[..cut], &b[..cut]);
        judge.add(&a[cut..], &b[cut..]);
        let (_, layers) = judge.finish();
        for (layer, judged) in layers.iter().enumerate() {
            let own = &fits[layer.min(fits.len() - 1)];
            let of_layer = |values: &[f32]| -> Vec<f64> {
                values.chunks(D).skip(layer).step_by(LAYERS).flatten().map(|&x| f64::from(x)).collect()
            };
            let (a, b) = (of_layer(&a), of_layer(&b));
            let mse = |prediction: &dyn Fn(usize) -> f64| {
                b.iter().enumerate().map(|(i, b)| (b - prediction(i)).powi(2)).sum::<f64>() / b.len() as f64
            };
            let product = times(&a, &own.matrix);
            let shift = own.intercept.as_ref().unwrap();
            assert!((judged.fitted.mse - mse(&|i| product[i] + shift[i % D])).abs() < 1e-9, "layer {layer}");
            assert!((judged.identity.mse - mse(&|i| a[i])).abs() < 1e-9);
            assert!((judged.zero.mse - mse(&|_| 0.0)).abs() < 1e-9);
            assert!((judged.layer_mean.mse - mse(&|i| means[layer][i % D])).abs() < 1e-9);
        }
    }
}

fn samples() -> Vec<Sample> {
    let sample = |at: u64| Sample {
        id: format!("pair {at}"),
        lang: ["ar", "zh"][at as usize % 2].into(),
        prompt: prompt(6 + at as usize % 4, 1, at),
        english: prompt(5 + at as usize % 3, 1, 1000 + at / 2),
        answer: vec![1],
    };
    (0..120).map(sample).collect()
}

#[test]
fn every_switch_of_the_fit_does_what_it_says() {
    let model = model(&config(Family::Llama, true), 3);
    let reading = Reading { model: &model, site: Site::FeedForward, token_budget: 64 };
    let samples = samples();
    let fit = |recipe: Transform| fit(reading, &samples, &recipe, false, &Interrupt::default()).unwrap().unwrap();
    let default = || Transform { pairs: 120, ..Transform::default() };
    let matrix = |fitted: &Fitted| fitted.transform.to_tensors()[0].2.clone();
    let plain = fit(default());
    assert_eq!(matrix(&plain), matrix(&fit(default())), "the same seed, another matrix");
    assert_eq!((plain.pairs + plain.heldout_pairs, plain.rows), (120, plain.pairs * 3));
    assert_eq!(plain.languages, ["ar", "zh"]);
    assert!(plain.train.fitted.mse < plain.train.layer_mean.mse && plain.train.fitted.mse < plain.train.zero.mse);

    assert_ne!(matrix(&fit(Transform { seed: 1, ..default() })), matrix(&plain));
    assert_eq!(fit(Transform { pairs: 60, ..default() }).pairs, 54);
    assert!(fit(Transform { holdout: 0.5, ..default() }).heldout_pairs > plain.heldout_pairs);
    let length = |fitted: &Fitted| matrix(fitted).iter().map(|x| x * x).sum::<f32>();
    assert!(length(&fit(Transform { ridge: 10.0, ..default() })) < 0.5 * length(&plain), "a ridge shortens the matrix");
    let arabic = fit(Transform { languages: vec!["ar".into()], ..default() });
    assert_eq!((arabic.languages, arabic.pairs + arabic.heldout_pairs), (vec!["ar".to_string()], 60));
    let affine = fit(Transform { affine: true, ..default() });
    assert_eq!(affine.transform.to_tensors().len(), 2);
    assert!(affine.train.fitted.mse < plain.train.fitted.mse, "an intercept can only help on the fitted pairs");
    let per_layer = fit(Transform { per_layer: true, ..default() });
    assert_eq!((per_layer.transform.matrices(), per_layer.rows), (3, per_layer.pairs));
    assert_eq!(per_layer.systems.iter().map(|system| system.rank).min(), Some(per_layer.rank));
    assert_eq!(per_layer.systems.iter().map(|system| system.condition).fold(0.0, f64::max), per_layer.condition);
    for ((judged, system), line) in
        per_layer.heldout_layers.iter().zip(&per_layer.systems).zip(per_layer.table().lines().skip(1))
    {
        for baseline in [judged.layer_mean, judged.identity, judged.zero] {
            assert!(line.contains(&format!("{:.3e}", baseline.mse)), "{line}");
        }
        assert!(line.contains(&format!("{:.1e}", system.condition)), "{line}");
    }
    assert!(per_layer.train.fitted.mse < plain.train.fitted.mse, "three matrices can only help on the fitted pairs");
}

#[test]
fn the_curve_ends_where_the_fit_does_and_its_pictures_are_written() {
    let model = model(&config(Family::Llama, true), 3);
    let reading = Reading { model: &model, site: Site::Block, token_budget: 64 };
    let fitted = fit(reading, &samples(), &Transform::default(), true, &Interrupt::default()).unwrap().unwrap();
    let pairs: Vec<usize> = fitted.curve.iter().map(|point| point.pairs).collect();
    assert_eq!(pairs, [8, 16, 32, 64, fitted.pairs]);
    let last = fitted.curve.last().unwrap();
    assert!((last.train - fitted.train.fitted.mse).abs() < 1e-12 * last.train.max(1.0));
    assert!((last.heldout - fitted.heldout.fitted.mse).abs() < 1e-12 * last.heldout.max(1.0));
    let out = tempfile::tempdir().unwrap();
    fitted.write(out.path()).unwrap();
    for name in [
        "transform.json",
        "transform.txt",
        "transform.svg",
        "transform-mse.svg",
        "transform-curve.csv",
        "transform-curve.svg",
    ] {
        assert!(std::fs::read_to_string(out.path().join(name)).unwrap().len() > 100, "{name}");
    }
    let loaded = load_transform(out.path(), &config(Family::Llama, true), &model.device()).unwrap();
    assert_eq!(loaded.to_tensors(), fitted.transform.to_tensors());
}

#[test]
fn a_matrix_with_intercept_or_one_per_layer_connects_folded_as_it_does_plainly() {
    let model = model(&config(Family::Qwen2, true), 5);
    let device = model.device();
    let float = |n: usize, seed| random(n, seed).into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let (d, layers, rows) = (32, 3, 4);
    let tensor = |n: usize, seed| Tensor::<1>::from_data(TensorData::new(float(n, seed), [n]), &device);
    let own = FfnActivations(tensor(rows * layers * d, 40).reshape([rows, layers, d]));
    let e = tensor(rows * d, 41).reshape([rows, d]);
    let weights = tensor(rows * layers, 42).reshape([rows, layers]);
    for matrices in [1, layers] {
        for intercept in [None, Some(float(matrices * d, 44))] {
            let transform = TransformMatrix::from_values(float(matrices * d * d, 43), intercept, d, &device).unwrap();
            let decision_maker = model.model.decision_maker();
            let folded = transform.fold(decision_maker);
            let plain = transform.apply(&own);
            let logits = decision_maker.logits(&plain, e.clone());
            assert_close(&values(&folded.logits(&own, e.clone(), decision_maker)), &values(&logits), 1e-4, "H");
            let one_hot = Selection::Argmax.decide(weights.clone()).weights;
            assert_close(&values(&folded.vector(&own, one_hot.clone())), &values(&plain.mix(one_hot)), 1e-4, "v");
        }
    }
}
