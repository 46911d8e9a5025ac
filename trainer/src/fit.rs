//! Fitting the Transform Matrix (Eq. 6-8) from parallel prompts, and judging it on pairs it has not seen.
//!
//! Pairs are read once and taken into Gram sums. What the judgement needs again, their activations, goes through a
//! temporary file, so that memory does not grow with the number of pairs.

pub mod verb;

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, Write};

use anyhow::{Context, Result, bail};
use burn::tensor::Tensor;
use cctuning::anchor::Anchor;
use cctuning::chat::Prompt;
use cctuning::least_squares::{Fit, Judge, Moments};
use cctuning::model::{CcModel, TokenBatch};
use cctuning::tap::Site;
use cctuning::transform_matrix::TransformMatrix;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::batches::micro_batches;
use crate::fit_report::{Fitted, Point, System};
use crate::interrupt::Interrupt;
use crate::memory;
use crate::parallel::{cores, in_order};
use crate::progress::Progress;
use crate::recipe::Transform;
use crate::sample::Sample;

/// The smallest number of pairs on the curve.
const CURVE_FROM: usize = 8;
/// Rows that are judged at once.
const JUDGED_AT_ONCE: usize = 8192;

/// What is read of the model, and how.
#[derive(Clone, Copy)]
pub struct Reading<'m> {
    pub model: &'m CcModel,
    /// Where the model was trained to read.
    pub site: Site,
    /// Padded tokens of one pass.
    pub token_budget: usize,
}

/// Reads both sides of every pair, solves for the matrix and judges it; with `curve` for growing numbers of pairs too.
/// None when a person stopped it.
pub fn fit(
    reading: Reading,
    samples: &[Sample],
    recipe: &Transform,
    curve: bool,
    interrupt: &Interrupt,
) -> Result<Option<Fitted>> {
    let samples = chosen_languages(samples, &recipe.languages)?;
    fits_context(reading.model, &samples)?;
    let (used, held) = split(&samples, recipe)?;
    let n_layers = reading.model.model.n_layers();
    let d_model = reading.model.model.embedding().dims()[1];
    let matrices = if recipe.per_layer { n_layers } else { 1 };
    fits_memory(matrices, d_model)?;

    let mut progress = Progress::new("W_T", used.len() + held.len(), 0);
    let mut done = 0;
    let mut told = |pairs: usize| {
        done += pairs;
        progress.count(done, "pairs");
        !interrupt.requested()
    };
    let mut heldout = Spill::new(d_model)?;
    let mut means: Vec<Vec<f64>> = vec![vec![0.0f64; d_model]; n_layers];
    if !read(reading, &held, &mut heldout, &mut told, |_, _| Ok(()))? {
        return Ok(None);
    }
    let mut sums = vec![Moments::new(d_model); matrices];
    let mut train = Spill::new(d_model)?;
    let mut points = Vec::new();
    let mut from = 0;
    for to in stages(used.len(), curve) {
        let add = |a: &[f32], b: &[f32]| {
            add_by_layer(&mut sums, a, b, n_layers, d_model)?;
            add_means(&mut means, b, d_model);
            Ok(())
        };
        if !read(reading, &used[from..to], &mut train, &mut told, add)? {
            return Ok(None);
        }
        from = to;
        if curve {
            let fits = solve(&mut sums, recipe)?;
            let [own, unseen] = [&mut train, &mut heldout].map(|rows| judge(&fits, &means, to, rows));
            points.push(Point {
                pairs: to,
                rows: to * n_layers,
                train: own?.0.fitted.mse,
                heldout: unseen?.0.fitted.mse,
            });
        }
    }
    drop(progress);
    let fits = solve(&mut sums, recipe)?;
    let (train, train_layers) = judge(&fits, &means, used.len(), &mut train)?;
    let (heldout, heldout_layers) = judge(&fits, &means, used.len(), &mut heldout)?;
    let values = |of: fn(&Fit) -> &[f64]| fits.iter().flat_map(|fit| of(fit)).map(|&x| x as f32).collect::<Vec<f32>>();
    let intercept = recipe.affine.then(|| values(|fit| fit.intercept.as_deref().unwrap_or_default()));
    let mut languages: Vec<String> = samples.iter().map(|sample| sample.lang.clone()).collect();
    languages.sort();
    languages.dedup();
    let mut warnings: Vec<String> = fits.iter().flat_map(|fit| fit.warnings.clone()).collect();
    warnings.dedup();
    Ok(Some(Fitted {
        transform: TransformMatrix::from_values(
            values(|fit| &fit.matrix),
            intercept,
            d_model,
            &reading.model.device(),
        )?,
        pairs: used.len(),
        heldout_pairs: held.len(),
        rows: fits[0].rows,
        d_model,
        languages,
        ridge: recipe.ridge,
        affine: recipe.affine,
        per_layer: recipe.per_layer,
        rank: fits.iter().map(|fit| fit.rank).min().unwrap_or(0),
        condition: fits.iter().map(|fit| fit.condition).fold(0.0, f64::max),
        systems: match &fits[..] {
            [_] => Vec::new(),
            fits => fits.iter().map(|&Fit { rank, condition, .. }| System { rank, condition }).collect(),
        },
        train,
        heldout,
        train_layers,
        heldout_layers,
        curve: points,
        warnings,
    }))
}

fn chosen_languages<'s>(samples: &'s [Sample], languages: &[String]) -> Result<Vec<&'s Sample>> {
    if let Some(unknown) = languages.iter().find(|lang| !samples.iter().any(|sample| sample.lang == **lang)) {
        bail!("transform.languages names {unknown:?}, and no pair is in that language");
    }
    Ok(samples.iter().filter(|sample| languages.is_empty() || languages.contains(&sample.lang)).collect())
}

fn fits_context(model: &CcModel, samples: &[&Sample]) -> Result<()> {
    let context = model.model.context();
    let longest = samples.iter().map(|s| s.prompt.ids.len().max(s.english.ids.len())).max().unwrap_or(0);
    if longest > context {
        bail!(
            "a prompt has {longest} tokens and the model reads {context}; set data.cutoff and data.english_cutoff to {context}"
        );
    }
    Ok(())
}

/// The Gram sums of every matrix stay in memory; better said before hours of reading than after.
fn fits_memory(matrices: usize, d_model: usize) -> Result<()> {
    let needed = matrices as u64 * Moments::bytes(d_model);
    match memory::available() {
        Some(available) if needed > available => bail!(
            "fitting {matrices} matrices of width {d_model} needs {:.1} GB and {:.1} GB are free; set transform.per_layer = false",
            needed as f64 / 1e9,
            available as f64 / 1e9
        ),
        _ => Ok(()),
    }
}

/// Draws the pairs: those to fit on and those to judge by.
///
/// Several languages share an English twin: a twin is held out with all of them, or the judgement would know it.
fn split<'s>(samples: &[&'s Sample], recipe: &Transform) -> Result<(Vec<&'s Sample>, Vec<&'s Sample>)> {
    let mut drawn = samples.to_vec();
    drawn.shuffle(&mut ChaCha8Rng::seed_from_u64(recipe.seed));
    drawn.truncate(recipe.pairs);
    let mut seen = HashSet::new();
    let twins: Vec<&[u32]> =
        drawn.iter().map(|sample| &sample.english.ids[..]).filter(|twin| seen.insert(*twin)).collect();
    let share = (twins.len() as f64 * recipe.holdout).ceil() as usize;
    let held: HashSet<&[u32]> = twins.into_iter().take(share).collect();
    let total = drawn.len();
    let (held, used): (Vec<_>, Vec<_>) = drawn.into_iter().partition(|sample| held.contains(&sample.english.ids[..]));
    if used.len() < 2 || held.is_empty() {
        bail!("{total} pairs with transform.holdout {} leave too few to fit and to judge", recipe.holdout);
    }
    Ok((used, held))
}

/// Numbers of pairs after which a curve has a point: doubling, and all.
fn stages(pairs: usize, curve: bool) -> Vec<usize> {
    let growing = std::iter::successors(Some(CURVE_FROM), |n| Some(n * 2)).take_while(|&n| curve && n < pairs);
    growing.chain([pairs]).collect()
}

/// Reads some pairs into `rows`, and hands them to `add`. False when `told` says to stop.
fn read(
    reading: Reading,
    samples: &[&Sample],
    rows: &mut Spill,
    told: &mut impl FnMut(usize) -> bool,
    mut add: impl FnMut(&[f32], &[f32]) -> Result<()>,
) -> Result<bool> {
    reading.pairs(samples, |group, own, english| {
        for (side, values) in [("own", own), ("English", english)] {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let of_sample = values.len() / group.len();
                let layer = at % of_sample / (of_sample / reading.model.model.n_layers());
                bail!(
                    "row {:?}: its {side} prompt leaves {} in layer {}; the weights are damaged or overflow",
                    samples[group[at / of_sample]].id,
                    values[at],
                    layer + 1
                );
            }
        }
        add(own, english)?;
        rows.write(own, english)?;
        Ok(told(group.len()))
    })
}

impl Reading<'_> {
    /// What the anchors of both sides of some pairs hold, in micro-batches: `take` gets the numbers of the pairs, their own
    /// side and the English one, each row-major `[pairs * n_layers, d_model]`. False as soon as it says so.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn pairs(
        &self,
        samples: &[&Sample],
        mut take: impl FnMut(&[usize], &[f32], &[f32]) -> Result<bool>,
    ) -> Result<bool> {
        let lengths: Vec<usize> = samples.iter().map(|s| s.prompt.ids.len().max(s.english.ids.len())).collect();
        let groups = micro_batches(&lengths, self.token_budget);
        let read = |group: &Vec<usize>| {
            let side = |pick: fn(&Sample) -> &Prompt| {
                self.activations(&group.iter().map(|&row| pick(samples[row])).collect::<Vec<_>>())
            };
            (side(|sample| &sample.prompt), side(|sample| &sample.english))
        };
        let (mut group, mut outcome) = (groups.iter(), Ok(true));
        in_order(cores(&self.model.device()), &groups, read, |(own, english)| {
            outcome = take(group.next().expect("one for each result"), &own, &english);
            matches!(outcome, Ok(true))
        });
        outcome
    }

    /// What the anchors of some prompts hold, row-major `[prompts * n_layers, d_model]`.
    pub fn activations(&self, prompts: &[&Prompt]) -> Vec<f32> {
        let tokens = TokenBatch::new(&prompts.iter().map(|p| &p.ids).collect::<Vec<_>>(), &self.model.device());
        let anchor = Anchor::new(prompts.iter().map(|p| p.anchor).collect());
        let read: Tensor<3> = self.model.activations(&tokens, &anchor, self.site).0;
        read.into_data().iter::<f32>().collect()
    }
}

/// Into one sum for all layers, or each layer into its own.
fn add_by_layer(sums: &mut [Moments], a: &[f32], b: &[f32], n_layers: usize, d: usize) -> cctuning::Result<()> {
    if let [one] = sums {
        return one.add(a, b);
    }
    for (layer, sums) in sums.iter_mut().enumerate() {
        let rows = |values: &[f32]| -> Vec<f32> {
            values.chunks_exact(d).skip(layer).step_by(n_layers).flatten().copied().collect()
        };
        sums.add(&rows(a), &rows(b))?;
    }
    Ok(())
}

/// Sums of each layer's right sides.
fn add_means(means: &mut [Vec<f64>], b: &[f32], d: usize) {
    let n_layers = means.len();
    for (row, values) in b.chunks_exact(d).enumerate() {
        means[row % n_layers].iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value));
    }
}

fn solve(sums: &mut [Moments], recipe: &Transform) -> cctuning::Result<Vec<Fit>> {
    sums.iter_mut().map(|sums| sums.fit(recipe.ridge, recipe.affine)).collect()
}

type Judged = (cctuning::least_squares::Judgement, Vec<cctuning::least_squares::Judgement>);

/// `means` holds sums over `pairs`.
fn judge(fits: &[Fit], means: &[Vec<f64>], pairs: usize, rows: &mut Spill) -> Result<Judged> {
    let mean = |sums: &Vec<f64>| sums.iter().map(|sum| sum / pairs as f64).collect();
    let mut judge = Judge::new(fits, means.iter().map(mean).collect());
    rows.read(means.len(), |a, b| judge.add(a, b))?;
    Ok(judge.finish())
}

/// Pairs of rows in a temporary file.
struct Spill {
    file: File,
    d_model: usize,
    /// Rows of each block.
    blocks: Vec<usize>,
}

impl Spill {
    fn new(d_model: usize) -> Result<Self> {
        let file = tempfile::tempfile().context("cannot make a temporary file for activations")?;
        Ok(Self { file, d_model, blocks: Vec::new() })
    }

    fn write(&mut self, a: &[f32], b: &[f32]) -> Result<()> {
        let mut write = |values| self.file.write_all(bytemuck::cast_slice(values));
        write(a).and_then(|()| write(b)).context("cannot write activations to a temporary file; is the disk full?")?;
        self.blocks.push(a.len() / self.d_model);
        Ok(())
    }

    /// Hands out all rows in order, in blocks that begin with the first layer.
    fn read(&mut self, n_layers: usize, mut take: impl FnMut(&[f32], &[f32])) -> Result<()> {
        self.file.rewind()?;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (at, &rows) in self.blocks.iter().enumerate() {
            for side in [&mut a, &mut b] {
                let start = side.len();
                side.resize(start + rows * self.d_model, 0.0f32);
                self.file
                    .read_exact(bytemuck::cast_slice_mut(&mut side[start..]))
                    .context("cannot read activations back from a temporary file")?;
            }
            debug_assert!(rows.is_multiple_of(n_layers), "whole pairs are written");
            if a.len() >= JUDGED_AT_ONCE * self.d_model || at + 1 == self.blocks.len() {
                take(&a, &b);
                a.clear();
                b.clear();
            }
        }
        // Whoever goes on writing writes behind all.
        self.file.seek(std::io::SeekFrom::End(0))?;
        Ok(())
    }
}
