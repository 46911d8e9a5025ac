//! How sure a score is: bootstrap intervals, and the comparison of two runs on the same items.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

/// Draws of a bootstrap: the ends of an interval then lie within a hundredth of its width or two, whatever the seed.
const DRAWS: usize = 4000;

/// A mean and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub mean: f64,
    /// Of the mean, from the same draws.
    pub stderr: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Of nothing.
    const NONE: Self = Self { mean: f64::NAN, stderr: f64::NAN, low: f64::NAN, high: f64::NAN };
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean of values that know nothing of each other, as [`crossed`] estimates it. No values give NaN.
pub fn estimate(values: &[f64], seed: u64) -> Estimate {
    let alone = |cluster| Weighed { block: 0, cluster, weight: 1.0 };
    crossed(&[values.to_vec()], &(0..values.len()).map(alone).collect::<Vec<_>>(), seed)
}

/// The mean of one value of each run, and Student's interval: of a few runs draws would know no more than their range. NaN
/// where there is but one.
pub fn over_runs(values: &[f64]) -> Estimate {
    /// 97.5 % quantiles for 1 to 15 degrees of freedom; beyond, 2.1 is an interval that is at most a twelfth too wide.
    const T: [f64; 15] =
        [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131];
    let mean = mean(values);
    let Some(freedom) = values.len().checked_sub(1).filter(|&freedom| freedom > 0) else {
        return Estimate { mean, ..Estimate::NONE };
    };
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom as f64;
    let stderr = (variance / values.len() as f64).sqrt();
    let half = T.get(freedom - 1).unwrap_or(&2.1) * stderr;
    Estimate { mean, stderr, low: mean - half, high: mean + half }
}

/// An item of [`crossed`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighed {
    /// The mean is made of the means of the blocks; a block may be the items of one task.
    pub block: usize,
    /// Items that are right or wrong together, in whatever block: one fact in many languages.
    pub cluster: usize,
    pub weight: f64,
}

/// The items of one cluster in one block.
struct Part {
    block: usize,
    weight: f64,
    /// Weighed sum of each run.
    sums: Vec<f64>,
}

/// The weighed mean of the items' means over all runs that answered them, and its percentile interval from draws with
/// replacement of runs and of clusters; the same seed draws the same. A drawn cluster brings all of its items: items that
/// are alike are no further evidence. Every run answers the same items, so one draw of clusters serves all runs: the
/// bootstrap is crossed, not nested. Of `n` runs or clusters `n - 1` are drawn, which makes the variance of few unbiased
/// (Rao and Wu 1988). Each block keeps its share of the whole, whichever clusters are drawn; one of which nothing was drawn
/// keeps its mean too.
///
/// # Panics
/// A run has not a value for every item.
pub fn crossed(runs: &[Vec<f64>], items: &[Weighed], seed: u64) -> Estimate {
    assert!(runs.iter().all(|run| run.len() == items.len()), "every run has a value for every item");
    let all: f64 = items.iter().map(|item| item.weight).sum();
    if runs.is_empty() || all <= 0.0 {
        return Estimate::NONE;
    }
    let clusters = clusters(runs, items);
    let mut blocks = vec![(0.0, vec![0.0; runs.len()]); items.iter().map(|item| item.block + 1).max().unwrap_or(0)];
    for part in clusters.iter().flatten() {
        add(&mut blocks[part.block], 1.0, part);
    }
    let weighed = |times: &[usize], runs: &[f64]| {
        let mut sums = vec![(0.0, vec![0.0; runs.len()]); blocks.len()];
        for (cluster, &times) in clusters.iter().zip(times).filter(|(_, times)| **times > 0) {
            cluster.iter().for_each(|part| add(&mut sums[part.block], times as f64, part));
        }
        let block = |(whole, drawn): (&(f64, Vec<f64>), &(f64, Vec<f64>))| {
            let (weight, sums) = if drawn.0 > 0.0 { drawn } else { whole };
            let sum: f64 = sums.iter().zip(runs).map(|(sum, run)| sum * run).sum();
            if whole.0 > 0.0 { whole.0 / all * sum / weight } else { 0.0 }
        };
        blocks.iter().zip(&sums).map(block).sum::<f64>()
    };
    resampled(runs.len(), clusters.len(), seed, weighed)
}

/// The sum of some values over the sum of others, of the same items and runs, with its interval as [`crossed`] draws it. No
/// values give NaN.
///
/// # Panics
/// A run has not a value for every item.
pub fn ratio(above: &[Vec<f64>], below: &[Vec<f64>], items: &[Weighed], seed: u64) -> Estimate {
    assert!(above.iter().chain(below).all(|run| run.len() == items.len()), "every run has a value for every item");
    assert_eq!(above.len(), below.len(), "every run has both values");
    if above.is_empty() || items.is_empty() {
        return Estimate::NONE;
    }
    let [above, below] = [above, below].map(|runs| clusters(runs, items));
    let sum = |clusters: &[Vec<Part>], times: &[usize], runs: &[f64]| {
        let of = |part: &Part| part.sums.iter().zip(runs).map(|(sum, run)| sum * run).sum::<f64>();
        let parts = clusters.iter().zip(times).filter(|(_, times)| **times > 0);
        parts.map(|(parts, &times)| times as f64 * parts.iter().map(of).sum::<f64>()).sum::<f64>()
    };
    let runs = above[0][0].sums.len();
    resampled(runs, above.len(), seed, |times, runs| sum(&above, times, runs) / sum(&below, times, runs))
}

/// A statistic of how often each cluster was drawn and of the runs' weights, and its interval over draws of both.
fn resampled(runs: usize, clusters: usize, seed: u64, statistic: impl Fn(&[usize], &[f64]) -> f64 + Sync) -> Estimate {
    let centre = statistic(&vec![1; clusters], &vec![1.0 / runs as f64; runs]);
    let fewer = |n: usize| n.saturating_sub(1).max(1);
    let mut draws: Vec<f64> = (0..DRAWS as u64)
        .into_par_iter()
        .map(|draw| {
            // Of its own, so that cores may draw in any order.
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(draw);
            let (mut of_runs, mut times) = (vec![0.0; runs], vec![0; clusters]);
            let drawn = fewer(runs);
            (0..drawn).for_each(|_| of_runs[rng.random_range(0..runs)] += 1.0 / drawn as f64);
            (0..fewer(clusters)).for_each(|_| times[rng.random_range(0..clusters)] += 1);
            statistic(&times, &of_runs)
        })
        .collect();
    draws.sort_by(f64::total_cmp);
    let middle = mean(&draws);
    let variance = draws.iter().map(|draw| (draw - middle).powi(2)).sum::<f64>() / (DRAWS - 1) as f64;
    Estimate { mean: centre, stderr: variance.sqrt(), low: quantile(&draws, 0.025), high: quantile(&draws, 0.975) }
}

fn add((weight, sums): &mut (f64, Vec<f64>), times: f64, part: &Part) {
    *weight += times * part.weight;
    sums.iter_mut().zip(&part.sums).for_each(|(sum, own)| *sum += times * own);
}

/// The clusters in order of their numbers, each as its parts in order of the blocks.
fn clusters(runs: &[Vec<f64>], items: &[Weighed]) -> Vec<Vec<Part>> {
    let mut clusters: BTreeMap<usize, BTreeMap<usize, Part>> = BTreeMap::new();
    for (at, &Weighed { block, cluster, weight }) in items.iter().enumerate() {
        let empty = || Part { block, weight: 0.0, sums: vec![0.0; runs.len()] };
        let part = clusters.entry(cluster).or_default().entry(block).or_insert_with(empty);
        part.weight += weight;
        part.sums.iter_mut().zip(runs).for_each(|(sum, run)| *sum += weight * run[at]);
    }
    clusters.into_values().map(|parts| parts.into_values().collect()).collect()
}

/// Two runs on the same items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub n: usize,
    /// Clusters that the items are of.
    pub clusters: usize,
    pub a: f64,
    pub b: f64,
    /// `b - a` with its paired bootstrap interval.
    pub difference: Estimate,
    /// Only where scores are 0 or 1.
    pub mcnemar: Option<McNemar>,
}

/// The two-sided exact test of clusters, where items stand alone McNemar's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Clusters in which A, or B, has more right than the other.
    pub only_a: usize,
    pub only_b: usize,
    pub p: f64,
}

/// One item as two runs scored it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub a: f64,
    pub b: f64,
    pub cluster: usize,
}

/// Compares the scores of two runs, item by item.
pub fn compare(pairs: &[Pair], seed: u64) -> Comparison {
    let differences: Vec<f64> = pairs.iter().map(|pair| pair.b - pair.a).collect();
    let items: Vec<Weighed> =
        pairs.iter().map(|pair| Weighed { block: 0, cluster: pair.cluster, weight: 1.0 }).collect();
    let side = |pick: fn(&Pair) -> f64| mean(&pairs.iter().map(pick).collect::<Vec<f64>>());
    let is_count = pairs.iter().all(|pair| [pair.a, pair.b].iter().all(|score| *score == 0.0 || *score == 1.0));
    let runs = [differences];
    let clusters = clusters(&runs, &items).len();
    let mcnemar = is_count.then(|| signs(&runs, &items));
    let (a, b) = (side(|pair| pair.a), side(|pair| pair.b));
    Comparison { n: pairs.len(), clusters, a, b, difference: crossed(&runs, &items, seed), mcnemar }
}

/// Differences `b - a` of runs by items, summed within each cluster: how many sums are below and above zero.
pub fn signs(runs: &[Vec<f64>], items: &[Weighed]) -> McNemar {
    let of_cluster = |parts: &Vec<Part>| parts.iter().flat_map(|part| &part.sums).sum::<f64>();
    let sums: Vec<f64> = clusters(runs, items).iter().map(of_cluster).collect();
    let beyond = |is: fn(f64) -> bool| sums.iter().filter(|sum| is(**sum)).count();
    // Equal sums of weighed numbers may differ in the last place.
    mcnemar(beyond(|sum| sum < -1e-9), beyond(|sum| sum > 1e-9))
}

/// Two-sided exact binomial test of what two runs differ on.
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

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}
