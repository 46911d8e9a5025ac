//! Deep supervision fine-tuning (DFT, arXiv 2503.01275): beside the answer, a prompt's stream is asked to be where its
//! English twin's is, at a bottom layer (it has been turned into English) and at a middle one (it is thought about in
//! English). What a model trained so is asked with is the plain model; this room knows no connection.
//!
//! From the paper: the two layers' losses beside the answer's, added without weights (`L_TFT + L_LC + L_ET`), as logits
//! or, more loosely, as features.
//!
//! # Departures
//! Only the looser form is here, as features. The paper's formulas and code were not at hand, so these are our choices:
//! the anchor, where CC-Tuning reads too, as the one position that is compared; the block's output as what is read there;
//! the English pass, without gradient and by the weights of the same step, as the goal; the cosine distance, which needs
//! no scale of its own in any layer or model; the mean over rows; the layers, as shares of the depth.

use burn::tensor::Tensor;
use burn::tensor::TensorData;
use cctuning::anchor::index;
use cctuning::model::CcModel;
use cctuning::tap::Site;
use serde::{Deserialize, Serialize};

use crate::english::Distinct;
use crate::sample::Sample;
use crate::step::Economy;

/// Below this a stream has no direction.
const SHORTEST: f32 = 1e-12;

/// `[dft]` of the recipe, for `--method dft`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dft {
    /// The layer by which a prompt is to be English, as a share of the depth: 0 is the first block.
    pub bottom: f64,
    /// The layer at which it is to be thought about in English.
    pub middle: f64,
    /// Of the sum of both layers' losses, beside the answer's.
    pub weight: f64,
}

/// Blocks 2 and 4 of 6, 7 and 17 of 32.
impl Default for Dft {
    fn default() -> Self {
        Self { bottom: 0.2, middle: 0.5, weight: 1.0 }
    }
}

impl Dft {
    /// The bottom and the middle one of so many blocks, counted from 0.
    pub fn layers(&self, n_layers: usize) -> [usize; 2] {
        [self.bottom, self.middle].map(|share| (share * n_layers as f64) as usize)
    }
}

/// Where the rows of a global batch are pulled to.
pub struct DeepSupervision {
    /// The bottom layer and the middle one.
    layers: [usize; 2],
    /// The twins' streams there, as unit vectors: `[batch, d_model]`, without a graph.
    goals: [Tensor<2>; 2],
    /// For each row of the batch its share of the mean over all rows that have a twin; 0 where it has none.
    shares: Vec<f32>,
    weight: f64,
}

impl DeepSupervision {
    /// Reads the English prompts of a global batch, equal ones once.
    pub fn read(model: &CcModel, batch: &[&Sample], dft: &Dft, economy: Economy) -> Self {
        let layers = dft.layers(model.model.n_layers());
        let distinct = Distinct::of(batch);
        let activations = distinct.read(model, Site::Block, economy);
        let of_row = index(distinct.of_row.iter().copied(), &activations.device());
        let goals = layers.map(|layer| {
            let streams: Tensor<2> = activations.clone().narrow(1, layer, 1).squeeze_dim(1);
            unit(streams).0.select(0, of_row.clone())
        });
        let twins = batch.iter().filter(|sample| sample.has_twin()).count().max(1);
        let shares = batch.iter().map(|sample| if sample.has_twin() { 1.0 / twins as f32 } else { 0.0 }).collect();
        Self { layers, goals, shares, weight: dft.weight }
    }

    /// What some rows of the batch add to the mean cosine distance at either layer, and the cotangents of what was read
    /// in every layer, those of the weighted sum of both distances.
    ///
    /// # Shapes
    /// - `read`, the returned second: for each layer `[rows, d_model]`, without a graph
    pub fn judge(&self, read: &[Tensor<2>], rows: &[usize]) -> ([f64; 2], Vec<Tensor<2>>) {
        let mut cotangents: Vec<Tensor<2>> = read.iter().map(Tensor::zeros_like).collect();
        let mut distances = [0.0; 2];
        let shares: Vec<f32> = rows.iter().map(|&row| self.shares[row]).collect();
        for (at, (&layer, goals)) in self.layers.iter().zip(&self.goals).enumerate() {
            let device = goals.device();
            let goal = goals.clone().select(0, index(rows.iter().copied(), &device));
            let share = Tensor::<2>::from_data(TensorData::new(shares.clone(), [rows.len(), 1]), &device);
            let (own, length) = unit(read[layer].clone());
            let cosine = (own.clone() * goal.clone()).sum_dim(1);
            let distance = (cosine.clone().neg() + 1.0) * share.clone();
            distances[at] = distance.into_data().iter::<f32>().map(f64::from).sum();
            // The gradient of 1 - cos with respect to a vector lies across it.
            let cotangent = (own * cosine - goal) / length * share * self.weight;
            cotangents[layer] = cotangents[layer].clone() + cotangent;
        }
        (distances, cotangents)
    }
}

/// Rows of length 1, and the length they had: `[rows, 1]`.
fn unit(rows: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let length = rows.clone().square().sum_dim(1).sqrt().clamp_min(SHORTEST);
    (rows / length.clone(), length)
}
