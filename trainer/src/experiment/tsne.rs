//! t-SNE (van der Maaten and Hinton 2008), exact: for a few hundred points that is quick and has no knobs to trust.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Neighbours that a point has in effect.
const PERPLEXITY: f64 = 20.0;
const STEPS: usize = 600;
/// Steps in which attraction is exaggerated, and by how much.
const EARLY: (usize, f64) = (150, 12.0);
const RATE: f64 = 60.0;

/// Places for points in the plane; the same seed gives the same places.
pub fn tsne(points: &[Vec<f64>], seed: u64) -> Vec<[f64; 2]> {
    let n = points.len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut places: Vec<[f64; 2]> = (0..n).map(|_| [0, 1].map(|_| rng.random_range(-1e-2..1e-2))).collect();
    if n < 4 {
        return places;
    }
    let p = affinities(points);
    let (mut speed, mut gain) = (vec![[0.0f64; 2]; n], vec![[1.0f64; 2]; n]);
    for step in 0..STEPS {
        let (exaggeration, momentum) = if step < EARLY.0 { (EARLY.1, 0.5) } else { (1.0, 0.8) };
        let closeness = |i: usize, j: usize| {
            let [x, y] = [0, 1].map(|axis| places[i][axis] - places[j][axis]);
            1.0 / (1.0 + x * x + y * y)
        };
        let total: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| 2.0 * closeness(i, j)).sum();
        let gradient: Vec<[f64; 2]> = (0..n)
            .map(|i| {
                let mut sum = [0.0; 2];
                for j in (0..n).filter(|&j| j != i) {
                    let near = closeness(i, j);
                    let force = 4.0 * (exaggeration * p[i * n + j] - near / total) * near;
                    (0..2).for_each(|axis| sum[axis] += force * (places[i][axis] - places[j][axis]));
                }
                sum
            })
            .collect();
        for i in 0..n {
            for axis in 0..2 {
                let same = (gradient[i][axis] > 0.0) == (speed[i][axis] > 0.0);
                gain[i][axis] = if same { (gain[i][axis] * 0.8).max(0.01) } else { gain[i][axis] + 0.2 };
                speed[i][axis] = momentum * speed[i][axis] - RATE * gain[i][axis] * gradient[i][axis];
                places[i][axis] += speed[i][axis];
            }
        }
    }
    places
}

/// Symmetric probabilities of being neighbours, each point's width found by bisection.
fn affinities(points: &[Vec<f64>]) -> Vec<f64> {
    let n = points.len();
    let wanted = PERPLEXITY.min((n - 1) as f64 / 3.0).ln();
    let mut p = vec![0.0; n * n];
    for i in 0..n {
        let distance = |j: usize| points[i].iter().zip(&points[j]).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let distances: Vec<f64> = (0..n).map(distance).collect();
        let nearest = (0..n).filter(|&j| j != i).map(|j| distances[j]).fold(f64::MAX, f64::min);
        let (mut low, mut high, mut precision) = (0.0, f64::INFINITY, 1.0 / nearest.max(1e-12));
        for _ in 0..80 {
            let row: Vec<f64> =
                (0..n).map(|j| if j == i { 0.0 } else { (-(distances[j] - nearest) * precision).exp() }).collect();
            let sum: f64 = row.iter().sum();
            let entropy: f64 = row.iter().filter(|&&w| w > 0.0).map(|w| -(w / sum) * (w / sum).ln()).sum();
            p[i * n..(i + 1) * n].iter_mut().zip(row).for_each(|(p, w)| *p = w / sum);
            if (entropy - wanted).abs() < 1e-4 {
                break;
            }
            if entropy > wanted {
                low = precision
            } else {
                high = precision
            }
            precision = if high.is_finite() { (low + high) / 2.0 } else { precision * 2.0 };
        }
    }
    (0..n * n).map(|at| (p[at] + p[at % n * n + at / n]) / (2.0 * n as f64)).collect()
}
