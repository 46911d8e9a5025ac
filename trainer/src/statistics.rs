//! How sure a score is: bootstrap intervals, and the comparison of two runs on the same items.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Draws of a bootstrap.
const DRAWS: usize = 1000;

/// A mean and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub mean: f64,
    /// Of the mean, from the spread of the values.
    pub stderr: f64,
    pub low: f64,
    pub high: f64,
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean with a percentile bootstrap interval; the same seed gives the same interval. No values give NaN.
pub fn estimate(values: &[f64], seed: u64) -> Estimate {
    let n = values.len();
    if n == 0 {
        return Estimate { mean: f64::NAN, stderr: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let centre = mean(values);
    let variance = values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / n.saturating_sub(1).max(1) as f64;
    let means = resampled(n, seed, |draw| draw.iter().map(|&at| values[at]).sum::<f64>() / n as f64);
    let (low, high) = (quantile(&means, 0.025), quantile(&means, 0.975));
    Estimate { mean: centre, stderr: (variance / n as f64).sqrt(), low, high }
}

/// An item of [`crossed`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighed {
    /// Items are drawn among those of the same block.
    pub block: usize,
    pub weight: f64,
}

/// The weighed mean of the items' means over all runs that answered them, and its interval from draws with replacement
/// of runs and, within each block, of items. Every run answers the same items, so one draw of items serves all runs: the
/// bootstrap is crossed, not nested. Of `n` runs or items `n - 1` are drawn, which makes the variance of few unbiased
/// (Rao and Wu 1988).
///
/// # Panics
/// A run has not a value for every item.
pub fn crossed(runs: &[Vec<f64>], items: &[Weighed], seed: u64) -> Estimate {
    assert!(runs.iter().all(|run| run.len() == items.len()), "every run has a value for every item");
    let mut blocks: Vec<Vec<usize>> = vec![Vec::new(); items.iter().map(|item| item.block + 1).max().unwrap_or(0)];
    items.iter().enumerate().for_each(|(at, item)| blocks[item.block].push(at));
    let shares: Vec<f64> = blocks.iter().map(|block| block.iter().map(|&at| items[at].weight).sum()).collect();
    let all: f64 = shares.iter().sum();
    if runs.is_empty() || all <= 0.0 {
        return Estimate { mean: f64::NAN, stderr: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    // Each block keeps its share of the whole, whichever of its items are drawn.
    let block_mean = |drawn: &mut dyn Iterator<Item = usize>, run_weights: &[f64]| {
        let (mut sum, mut weights) = (0.0, 0.0);
        for at in drawn {
            weights += items[at].weight;
            sum += items[at].weight * runs.iter().zip(run_weights).map(|(run, weight)| run[at] * weight).sum::<f64>();
        }
        sum / weights
    };
    let even = vec![1.0 / runs.len() as f64; runs.len()];
    let means = blocks.iter().zip(&shares).filter(|(_, share)| **share > 0.0);
    let centre = means.map(|(block, share)| share / all * block_mean(&mut block.iter().copied(), &even)).sum::<f64>();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let fewer = |n: usize| n.saturating_sub(1).max(1);
    let mut draws: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let (mut run_weights, drawn) = (vec![0.0; runs.len()], fewer(runs.len()));
            (0..drawn).for_each(|_| run_weights[rng.random_range(0..runs.len())] += 1.0 / drawn as f64);
            let mut sum = 0.0;
            for (block, share) in blocks.iter().zip(&shares).filter(|(_, share)| **share > 0.0) {
                let mut drawn = (0..fewer(block.len())).map(|_| block[rng.random_range(0..block.len())]);
                sum += share / all * block_mean(&mut drawn, &run_weights);
            }
            sum
        })
        .collect();
    draws.sort_by(f64::total_cmp);
    let middle = mean(&draws);
    let variance = draws.iter().map(|draw| (draw - middle).powi(2)).sum::<f64>() / (DRAWS - 1) as f64;
    Estimate { mean: centre, stderr: variance.sqrt(), low: quantile(&draws, 0.025), high: quantile(&draws, 0.975) }
}

/// Two runs on the same items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub n: usize,
    pub a: f64,
    pub b: f64,
    /// `b - a` with its paired bootstrap interval.
    pub difference: Estimate,
    /// Items that only A, or only B, has right, and the two-sided exact p of McNemar; only where scores are 0 or 1.
    pub mcnemar: Option<McNemar>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    pub only_a: usize,
    pub only_b: usize,
    pub p: f64,
}

/// Compares the scores of two runs, item by item.
pub fn compare(pairs: &[(f64, f64)], seed: u64) -> Comparison {
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| b - a).collect();
    let side = |pick: fn(&(f64, f64)) -> f64| mean(&pairs.iter().map(pick).collect::<Vec<f64>>());
    let is_count = pairs.iter().all(|(a, b)| [a, b].iter().all(|score| **score == 0.0 || **score == 1.0));
    let only = |sign: f64| differences.iter().filter(|difference| **difference == sign).count();
    let mcnemar = is_count.then(|| mcnemar(only(-1.0), only(1.0)));
    let (a, b) = (side(|pair| pair.0), side(|pair| pair.1));
    Comparison { n: pairs.len(), a, b, difference: estimate(&differences, seed), mcnemar }
}

/// Two-sided exact binomial test of the items on which two runs differ.
pub fn mcnemar(only_a: usize, only_b: usize) -> McNemar {
    let n = only_a + only_b;
    // P(X <= the smaller) for X ~ B(n, 1/2), in logarithms: n may be thousands.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=only_a.min(only_b) {
        tail += term.exp();
        term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    McNemar { only_a, only_b, p: (2.0 * tail).min(1.0) }
}

/// A statistic over many draws with replacement, in order of size.
fn resampled(n: usize, seed: u64, statistic: impl Fn(&[usize]) -> f64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = vec![0; n];
    let mut found: Vec<f64> = (0..DRAWS)
        .map(|_| {
            draw.iter_mut().for_each(|at| *at = rng.random_range(0..n));
            statistic(&draw)
        })
        .collect();
    found.sort_by(f64::total_cmp);
    found
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}
