//! What the method reads from a pass and what it writes into one, as plain values handed to the decoder's only loop.

use crate::anchor::Anchor;
use burn::tensor::Tensor;
use core::ops::Range;
use serde::{Deserialize, Serialize};

/// Which output of a block is read (CC-Tuning reads the feed-forward network; the others are the paper's Figure 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// Output of `down_proj`, before the residual; written `ffn`.
    #[default]
    #[serde(rename = "ffn", alias = "feed_forward")]
    FeedForward,
    /// Output of `o_proj`, before the residual.
    Attention,
    /// The stream after both residuals.
    Block,
}

impl Site {
    /// Its part of [`crate::decoder::Decoder::last_rows`].
    pub fn of<T>(self, [block, attention, feed_forward]: [T; 3]) -> T {
        match self {
            Self::FeedForward => feed_forward,
            Self::Attention => attention,
            Self::Block => block,
        }
    }
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

/// How an injected vector meets the block's feed-forward output `f` at the anchor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// `f + vector` (CC-Tuning Eq. 5).
    #[default]
    Add,
    /// `vector` (XTransplant, arXiv 2412.12686).
    Replace,
    /// `(1 - share) f + share vector`.
    Interpolate(f32),
}

/// What a pass writes: a vector into `f` of one block at the anchors. Because of the residual that is an addition to
/// the stream after the block.
#[derive(Clone)]
pub struct Injection {
    /// Where in a row.
    pub anchor: Anchor,
    /// What: `[batch, d_model]`.
    pub vector: Tensor<2>,
    /// In which block, counted from 0.
    pub layer: usize,
    /// How.
    pub write: Write,
}

impl Injection {
    /// CC-Tuning's (Eq. 5): added in the first block.
    pub fn new(anchor: Anchor, vector: Tensor<2>) -> Self {
        Self { anchor, vector, layer: 0, write: Write::Add }
    }

    /// The same for a pass that keeps no graph.
    pub fn without_graph(&self) -> Self {
        Self { vector: self.vector.clone().inner(), ..self.clone() }
    }

    /// The same for some rows of a batch that is trained on; the vector is a leaf of its own.
    pub fn of_rows(&self, rows: Range<usize>) -> Self {
        let vector = self.vector.clone().inner().slice([rows.clone()]);
        Self { anchor: self.anchor.of_rows(rows), vector: Tensor::from_inner(vector).require_grad(), ..self.clone() }
    }

    /// `fed` is the feed-forward output that the stream has in it already.
    pub(crate) fn apply(&self, stream: Tensor<3>, fed: Tensor<3>) -> Tensor<3> {
        let vector = self.vector.clone();
        let change = match self.write {
            Write::Add => vector,
            Write::Replace => vector - self.anchor.read(fed),
            Write::Interpolate(share) => (vector - self.anchor.read(fed)) * share,
        };
        self.anchor.add(stream, change)
    }
}

/// The two openings of a pass. `Taps::default()` is the vanilla model.
#[derive(Default)]
pub struct Taps<'a> {
    /// Reads while the pass runs.
    pub probe: Option<&'a mut Probe>,
    /// Writes into one block.
    pub injection: Option<&'a Injection>,
}
