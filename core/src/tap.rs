//! What the method reads from a pass and what it writes into one, as plain values handed to the decoder's only loop.

use crate::anchor::Anchor;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Which output of a block is read (CC-Tuning reads the feed-forward network; the others are the paper's Figure 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// Output of `down_proj`, before the residual.
    #[default]
    FeedForward,
    /// Output of `o_proj`, before the residual.
    Attention,
    /// The stream after both residuals.
    Block,
}

/// Activations of every layer at the anchors: `G` of an English pass, `F` of the prompt's own.
#[derive(Clone, Debug)]
pub struct FfnActivations(pub Tensor<3>);

impl FfnActivations {
    /// `[batch, n_layers, d_model]`.
    pub fn dims(&self) -> [usize; 3] {
        self.0.dims()
    }

    /// Mean over the layers: `[batch, d_model]`.
    pub fn mean(&self) -> Tensor<2> {
        self.0.clone().mean_dim(1).squeeze_dim(1)
    }

    /// `sum_l weights_l G_l` per row.
    ///
    /// # Shapes
    /// - `weights`: `[batch, n_layers]`
    /// - returns: `[batch, d_model]`
    pub fn mix(&self, weights: Tensor<2>) -> Tensor<2> {
        (self.0.clone() * weights.unsqueeze_dim::<3>(2)).sum_dim(1).squeeze_dim(1)
    }
}

/// Reads one site of every layer at the anchors during a pass.
pub struct Probe {
    site: Site,
    anchor: Anchor,
    read: Vec<Tensor<2>>,
}

impl Probe {
    /// A probe that has read nothing yet.
    pub fn new(site: Site, anchor: Anchor) -> Self {
        Self { site, anchor, read: Vec::new() }
    }

    /// Called by the decoder with what a block computed; keeps it if it is the probed site.
    pub(crate) fn offer(&mut self, site: Site, output: &Tensor<3>) {
        if site == self.site {
            self.read.push(self.anchor.read(output.clone()));
        }
    }

    /// What was read, all layers stacked: `[batch, n_layers, d_model]`.
    pub fn into_activations(self) -> FfnActivations {
        FfnActivations(Tensor::stack(self.read, 1))
    }

    /// What was read, layer by layer: `[batch, d_model]` each.
    pub fn into_layers(self) -> Vec<Tensor<2>> {
        self.read
    }
}

/// `hidden[anchor] += vector` after the first block (CC-Tuning Eq. 5; equal to adding to `f_1` because of the residual).
#[derive(Clone)]
pub struct Injection {
    /// Where.
    pub anchor: Anchor,
    /// What: `[batch, d_model]`.
    pub vector: Tensor<2>,
}

impl Injection {
    /// The same for a pass that keeps no graph.
    pub fn without_graph(&self) -> Self {
        Self { vector: self.vector.clone().inner(), ..self.clone() }
    }

    pub(crate) fn apply(&self, stream: Tensor<3>) -> Tensor<3> {
        self.anchor.add(stream, self.vector.clone())
    }
}

/// The two openings of a pass. `Taps::default()` is the vanilla model.
#[derive(Default)]
pub struct Taps<'a> {
    /// Reads while the pass runs.
    pub probe: Option<&'a mut Probe>,
    /// Writes after the first block.
    pub injection: Option<&'a Injection>,
}
