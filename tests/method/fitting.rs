//! The Transform Matrix: what is planted is found, what cannot be found is said.

use cctuning::transform_matrix::Moments;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
    moments.add(a, b);
    moments
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_planted_matrix_is_recovered_from_its_products() {
    let (a, planted) = (random(60 * D, 1), random(D * D, 2));
    let fit = moments(&a, &times(&a, &planted)).fit(0.0);
    assert!(distance(&fit.matrix, &planted) < 1e-10, "{}", distance(&fit.matrix, &planted));
    assert_eq!((fit.rows, fit.warnings.len()), (60, 0), "{:?}", fit.warnings);
    assert!(fit.condition > 1.0 && fit.condition < 100.0, "{}", fit.condition);
}

#[test]
fn a_planted_matrix_is_recovered_through_noise_as_far_as_the_noise_allows() {
    let (a, planted) = (random(4000 * D, 3), random(D * D, 4));
    let noisy: Vec<f64> = times(&a, &planted).iter().zip(random(4000 * D, 5)).map(|(b, n)| b + 0.1 * n).collect();
    let moments = moments(&a, &noisy);
    let fit = moments.fit(0.0);
    assert!(distance(&fit.matrix, &planted) < 0.02, "{}", distance(&fit.matrix, &planted));
    let report = moments.judge(&fit.matrix);
    // Uniform noise of half-width 0.1 has variance 0.01 / 3.
    assert!((report.mse - 0.01 / 3.0).abs() < 2e-4, "{}", report.mse);
}

#[test]
fn equal_sides_give_the_identity() {
    let a = random(60 * D, 6);
    let identity: Vec<f64> = (0..D * D).map(|i| f64::from(i / D == i % D)).collect();
    let moments = moments(&a, &a);
    assert!(distance(&moments.fit(0.0).matrix, &identity) < 1e-12);
    assert!(moments.judge(&identity).mse < 1e-14);
}

#[test]
fn rows_that_hardly_outnumber_the_unknowns_are_warned_of() {
    for (rows, warned) in [(2 * D, true), (2 * D + 1, false)] {
        let a = random(rows * D, 7);
        let fit = moments(&a, &random(rows * D, 8)).fit(0.0);
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
    let moments = moments(&a, &b);
    let fit = moments.fit(0.0);
    assert!(fit.warnings.iter().any(|text| text.contains("rank 10 of 12")), "{:?}", fit.warnings);
    assert!(distance(&times(&a, &fit.matrix), &b) < 1e-7, "the solution does not solve the system");
    for column in 0..D {
        let entry = |row: usize| fit.matrix[row * D + column];
        assert!((entry(2) - entry(3)).abs() < 1e-7 && entry(4).abs() < 1e-7, "not the solution of least norm");
    }
    let ridged = moments.fit(1e-6);
    assert!(!ridged.warnings.iter().any(|text| text.contains("rank")), "{:?}", ridged.warnings);
    assert!(moments.fit(0.0).matrix.iter().chain(&Moments::new(D).fit(0.0).matrix).all(|x| x.is_finite()));
}

#[test]
fn a_ridge_solves_the_lifted_normal_equations() {
    let (a, b, ridge) = (random(40 * D, 11), random(40 * D, 12), 0.3);
    let w = moments(&a, &b).fit(ridge).matrix;
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
    let whole = moments(&a, &b);
    let mut pieces = Moments::new(D);
    for at in [0..7, 7..8, 8..50] {
        pieces.add(&a[at.start * D..at.end * D], &b[at.start * D..at.end * D]);
    }
    let w = whole.fit(0.0).matrix;
    assert!(distance(&pieces.fit(0.0).matrix, &w) < 1e-11);

    let report = pieces.judge(&w);
    let error: f64 = times(&a, &w).iter().zip(&b).map(|(p, b)| (p - b) * (p - b)).sum();
    let mean = |j: usize| b.iter().skip(j).step_by(D).sum::<f64>() / 50.0;
    let spread: f64 = b.iter().enumerate().map(|(i, x)| (x - mean(i % D)).powi(2)).sum();
    let size: f64 = b.iter().map(|x| x * x).sum();
    assert!((report.mse - error / (50 * D) as f64).abs() < 1e-12);
    assert!((report.r2 - (1.0 - error / spread)).abs() < 1e-12);
    assert!((report.r2_uncentered - (1.0 - error / size)).abs() < 1e-12);
}
