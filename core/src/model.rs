//! `CcModel`: decoder, output head and Decision Maker; the three modes differ only in the [`Injection`] they pass.

use crate::anchor::{Anchor, index};
use crate::config::ModelConfig;
use crate::decision_maker::{Decision, Pool, Selection, one_hot};
use crate::decoder::Decoder;
use crate::product::{product, product_transposed};
use crate::tap::{FfnActivations, Injection, Probe, Site, Taps};
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use core::ops::Range;
use serde::{Deserialize, Serialize};

/// A causal language model that can be connected.
#[derive(Module, Debug)]
pub struct CcModel {
    /// Embedding, blocks, final norm, Decision Maker.
    pub model: Decoder,
    lm_head: Option<Linear>,
}

/// The embedding vector of the non-English input that joins the decision (Eq. 3).
///
/// # Departures
/// The released code takes the embedding of the anchor token, a constant of the template; the paper's text intends
/// the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputEmbedding {
    /// Mean over the user's own tokens.
    #[default]
    ContentMean,
    /// The anchor token's.
    Anchor,
    /// Zero.
    None,
}

/// Right-padded token rows.
#[derive(Clone, Debug)]
pub struct TokenBatch {
    /// `[batch, seq]`.
    pub ids: Tensor<2, Int>,
}

impl TokenBatch {
    /// Pads rows of ids on the right; padding is never read, so any id serves.
    pub fn new<R: AsRef<[u32]>>(rows: &[R], device: &Device) -> Self {
        let seq = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * seq);
        for row in rows {
            ids.extend(row.as_ref().iter().map(|&id| id as i32));
            ids.resize(ids.len() + seq - row.as_ref().len(), 0);
        }
        Self { ids: Tensor::from_data(TensorData::new(ids, [rows.len(), seq]), device) }
    }
}

impl CcModel {
    /// Fresh weights.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let lm_head = (!config.tie_word_embeddings)
            .then(|| crate::attention::linear(config.d_model, config.vocab_size, false, device));
        Self { model: Decoder::new(config, device), lm_head }
    }

    /// The device the weights live on.
    pub fn device(&self) -> Device {
        self.model.embedding().device()
    }

    /// Output logits of some rows of the stream, final norm included.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, d_model]`, before the final norm
    /// - returns: `[rows, vocab_size]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let rows = self.model.normed(hidden);
        match &self.lm_head {
            Some(head) => product(rows, head.weight.val()),
            None => product_transposed(rows, self.model.embedding()),
        }
    }

    /// The output head: `[d_model, vocab_size]`.
    pub fn head(&self) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.model.embedding().transpose(),
        }
    }

    /// The same model with some rows of its embedding alone, in this order: an id that it reads is the number of one. An
    /// output head that is the embedding has only these rows too.
    pub fn with_embedding_rows(self, rows: Tensor<1, Int>) -> Self {
        Self { model: self.model.with_embedding_rows(rows), ..self }
    }

    /// Whether the output head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.lm_head.is_none()
    }

    /// One whole pass without a cache.
    ///
    /// # Shapes
    /// - returns: `[batch, seq, d_model]`, before the final norm
    pub fn forward(&self, batch: &TokenBatch, injection: Option<&Injection>) -> Tensor<3> {
        let taps = Taps { probe: None, injection };
        self.model.forward(self.model.embed(batch.ids.clone()), 0..self.model.n_layers(), None, taps)
    }

    /// One vanilla pass that only reads: no output head, no final norm.
    ///
    /// # Shapes
    /// - `batch`: `[batch, seq]`, one anchor per row
    /// - returns: `[batch, n_layers, d_model]`
    pub fn activations(&self, batch: &TokenBatch, anchor: &Anchor, site: Site) -> FfnActivations {
        let mut probe = Probe::new(site, anchor.clone());
        let taps = Taps { probe: Some(&mut probe), injection: None };
        let hidden = self.model.forward(self.model.embed(batch.ids.clone()), 0..self.model.n_layers() - 1, None, taps);
        let rows = anchor.rows(&hidden);
        let mut layers = probe.into_layers();
        layers.push(site.of(self.model.last_rows(hidden, rows, None)));
        FfnActivations(Tensor::stack(layers, 1))
    }

    /// The `e` of Eq. 3.
    ///
    /// # Shapes
    /// - `content`: for each row, the positions of the user's own tokens
    /// - returns: `[batch, d_model]`
    pub fn input_embedding(
        &self,
        kind: InputEmbedding,
        batch: &TokenBatch,
        anchor: &Anchor,
        content: &[Range<usize>],
    ) -> Tensor<2> {
        let embedded = self.model.embed(batch.ids.clone());
        let [rows, seq, d_model] = embedded.dims();
        match kind {
            InputEmbedding::ContentMean => {
                let mut weights = vec![0.0f32; rows * seq];
                for (row, range) in content.iter().enumerate() {
                    let share = 1.0 / range.len() as f32;
                    weights[row * seq..][range.clone()].fill(share);
                }
                let weights = Tensor::from_data(TensorData::new(weights, [rows, seq, 1]), &embedded.device());
                (embedded * weights).sum_dim(1).squeeze_dim(1)
            }
            InputEmbedding::Anchor => anchor.read(embedded),
            InputEmbedding::None => Tensor::zeros([rows, d_model], &embedded.device()),
        }
    }

    /// Weight of each layer, from the Decision Maker's logits or from the ablation that replaces it.
    ///
    /// # Shapes
    /// - `logits`: `[batch, n_layers]`
    /// - returns: logits and weights, `[batch, n_layers]` each
    ///
    /// # Panics
    /// [`Pool::Random`] without the noise of [`Selection::Gumbel`], which is drawn row by row outside: so neither the cut
    /// into micro-batches nor a neighbour in a batch has a part in it.
    pub fn decide(&self, pool: Pool, selection: &Selection, logits: Tensor<2>) -> Decision {
        let [batch, n_layers] = logits.dims();
        let device = logits.device();
        let chosen = |layers: Vec<usize>| one_hot(index(layers, &device).unsqueeze_dim(1), n_layers);
        let weights = match pool {
            Pool::DecisionMaker => return selection.decide(logits),
            Pool::Mean => Tensor::full([batch, n_layers], 1.0 / n_layers as f64, &device),
            Pool::Random => match selection {
                // The largest of a row of noise is a layer at random.
                Selection::Gumbel { noise, .. } => Selection::Argmax.decide(noise.clone()).weights,
                _ => panic!("a random layer is taken from noise that was drawn for each row"),
            },
            Pool::Fixed(layer) => chosen(vec![layer; batch]),
        };
        Decision { logits, weights }
    }
}
