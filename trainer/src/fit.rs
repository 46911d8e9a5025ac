//! Fitting the Transform Matrix (Eq. 6-8) from parallel prompts, and judging it on pairs it has not seen.

use std::collections::HashSet;

use anyhow::{Result, bail};
use burn::tensor::Tensor;
use cctuning::anchor::Anchor;
use cctuning::chat::Prompt;
use cctuning::model::{CcModel, TokenBatch};
use cctuning::tap::Site;
use cctuning::transform_matrix::{FitReport, Moments};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::batches::micro_batches;
use crate::recipe::Transform;

/// A fitted matrix with everything a person needs to trust it or not.
#[derive(Serialize)]
pub struct Fitted {
    /// Row-major, for `F W_T`.
    #[serde(skip)]
    pub matrix: Vec<f32>,
    pub pairs: usize,
    pub rows: usize,
    pub condition: f64,
    pub train: FitReport,
    pub heldout: FitReport,
    /// On the held-out pairs: a matrix of zeros, and none at all.
    pub heldout_zero: FitReport,
    pub heldout_identity: FitReport,
    pub warnings: Vec<String>,
}

/// Reads both sides of every pair and solves for the matrix. `pairs` are (prompt, English twin).
pub fn fit(model: &CcModel, pairs: &[(&Prompt, &Prompt)], recipe: &Transform, token_budget: usize) -> Result<Fitted> {
    let (longest, context) =
        (pairs.iter().map(|(a, b)| a.ids.len().max(b.ids.len())).max().unwrap_or(0), model.model.context());
    if longest > context {
        bail!(
            "a prompt has {longest} tokens and the model reads {context}; set data.cutoff and data.english_cutoff to {context}"
        );
    }
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(recipe.seed));
    order.truncate(recipe.pairs);
    // Several languages share an English twin: a twin is held out with all of them, or the judgement would know it.
    let mut twins: Vec<&[u32]> = Vec::new();
    let mut seen = HashSet::new();
    twins.extend(order.iter().map(|&row| &pairs[row].1.ids[..]).filter(|twin| seen.insert(*twin)));
    let held: HashSet<&[u32]> =
        twins.iter().copied().take((twins.len() as f64 * recipe.holdout).ceil() as usize).collect();
    let (held, used): (Vec<usize>, Vec<usize>) = order.iter().partition(|&&row| held.contains(&pairs[row].1.ids[..]));
    if used.len() < 2 || held.is_empty() {
        bail!("{} pairs with transform.holdout {} leave too few to fit and to judge", order.len(), recipe.holdout);
    }
    let gather = |rows: &[usize]| {
        let chosen: Vec<(&Prompt, &Prompt)> = rows.iter().map(|&row| pairs[row]).collect();
        moments(model, &chosen, token_budget)
    };
    let (train, heldout) = (gather(&used), gather(&held));
    let solved = train.fit(recipe.ridge);
    let d = model.model.embedding().dims()[1];
    let identity: Vec<f64> = (0..d * d).map(|i| f64::from(i / d == i % d)).collect();
    Ok(Fitted {
        matrix: solved.matrix.iter().map(|&value| value as f32).collect(),
        pairs: used.len(),
        rows: solved.rows,
        condition: solved.condition,
        train: train.judge(&solved.matrix),
        heldout: heldout.judge(&solved.matrix),
        heldout_zero: heldout.judge(&vec![0.0; d * d]),
        heldout_identity: heldout.judge(&identity),
        warnings: solved.warnings,
    })
}

/// Gram sums over all pairs, layers stacked.
pub fn moments(model: &CcModel, pairs: &[(&Prompt, &Prompt)], token_budget: usize) -> Moments {
    let mut moments = Moments::new(model.model.embedding().dims()[1]);
    let lengths: Vec<usize> = pairs.iter().map(|(prompt, english)| prompt.ids.len().max(english.ids.len())).collect();
    for rows in micro_batches(&lengths, token_budget) {
        let own: Vec<&Prompt> = rows.iter().map(|&row| pairs[row].0).collect();
        let english: Vec<&Prompt> = rows.iter().map(|&row| pairs[row].1).collect();
        moments.add(&activations(model, &own), &activations(model, &english));
    }
    moments
}

/// What the anchors of some prompts hold, row-major `[prompts * n_layers, d_model]`.
pub fn activations(model: &CcModel, prompts: &[&Prompt]) -> Vec<f32> {
    let tokens = TokenBatch::new(&prompts.iter().map(|p| &p.ids).collect::<Vec<_>>(), &model.device());
    let anchor = Anchor::new(prompts.iter().map(|p| p.anchor).collect());
    let read: Tensor<3> = model.activations(&tokens, &anchor, Site::FeedForward).0;
    read.into_data().iter::<f32>().collect()
}

impl Fitted {
    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let line = |name: &str, report: &FitReport| format!("  {name:<22} {:>10.3e} {:>8.3}\n", report.mse, report.r2);
        let mut text = format!(
            "Transform Matrix from {} pairs, {} rows, condition {:.1e}\n  {:<22} {:>10} {:>8}\n",
            self.pairs, self.rows, self.condition, "", "MSE", "R2"
        );
        text += &line("its own pairs", &self.train);
        text += &line("held-out pairs", &self.heldout);
        text += &line("held-out, zero", &self.heldout_zero);
        text += &line("held-out, identity", &self.heldout_identity);
        for warning in &self.warnings {
            text += &format!("  warning: {warning}\n");
        }
        text
    }
}
