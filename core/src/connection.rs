//! The connection at inference: where `G` comes from, and the prefill that reads it and writes the vector (Eq. 3-5).
//!
//! Adding `v` after a block at the anchor changes nothing before the anchor and nothing in the keys and values of that
//! block and those below. So a connected prefill is one pass that reads `F`, and a re-run of the positions from the
//! anchor on through the blocks above over the same cache, about one decode step.

use crate::anchor::Anchor;
use crate::cache::KvCache;
use crate::chat::Prompt;
use crate::decision_maker::{Decision, Pool, Selection, gumbel_noise};
use crate::error::{Error, Result};
use crate::model::{CcModel, InputEmbedding, TokenBatch};
use crate::sampling::row_rng;
use crate::tap::{FfnActivations, Injection, Probe, Site, Taps};
use crate::transform_matrix::FoldedTransform;
use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData};
use core::ops::Range;
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Where `G` comes from at inference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// No connection: the vanilla pass.
    None,
    /// The English twin of the prompt, as in training.
    Parallel,
    /// `F W_T`: the prompt's own activations through the Transform Matrix.
    #[default]
    Transform,
    /// `F`: control without the matrix.
    Identity,
    /// A vector of zeros: control.
    Zero,
    /// A random direction as long as the vector of `Transform`: control.
    Random,
    /// `F' W_T`, `F'` read from another prompt that the caller names: control for what belongs to this prompt.
    Shuffled,
}

impl Source {
    /// Whether every prompt comes with another one: its English twin, or the one whose activations it is given.
    pub fn needs_other(self) -> bool {
        matches!(self, Self::Parallel | Self::Shuffled)
    }
}

/// How the layer is taken at inference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The largest logit.
    #[default]
    Argmax,
    /// Gumbel noise as in training; the released code does this, unseeded.
    Gumbel,
    /// All layers in their softmax proportion.
    Expectation,
}

/// How the vector gets into a prefill that has to be read first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TwoPass {
    /// The positions from the anchor on are run again over the same cache.
    #[default]
    Reuse,
    /// The whole prompt is run again, as the released code does: the same answer for twice the work.
    Full,
}

/// The open choices of the connection. They belong to a trained model: what trained it should run it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionOptions {
    /// The `e` of Eq. 3.
    pub e: InputEmbedding,
    /// Who chooses the layer.
    pub pool: Pool,
    /// How, if it is the Decision Maker.
    pub choice: Choice,
    /// Which output of every block is read.
    pub site: Site,
    /// The block after which the vector is added, counted from 0.
    pub layer: usize,
    /// Factor on the vector.
    pub alpha: f32,
    /// How the vector gets in.
    pub two_pass: TwoPass,
    /// Seeds whatever of these is drawn, for each prompt by itself: its neighbours in a batch have no part in it.
    pub seed: u64,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            e: InputEmbedding::default(),
            pool: Pool::default(),
            choice: Choice::default(),
            site: Site::default(),
            layer: 0,
            alpha: 1.0,
            two_pass: TwoPass::default(),
            seed: 0,
        }
    }
}

impl ConnectionOptions {
    /// Refuses layers that a model of `n_layers` blocks does not have.
    ///
    /// # Errors
    /// `pool` or `layer` names one.
    pub fn check(&self, n_layers: usize) -> Result<()> {
        let known = |what: String, layer| match layer < n_layers {
            true => Ok(()),
            false => Err(Error::Connection(format!("{what} and this model has layers 0 to {}", n_layers - 1))),
        };
        if let Pool::Fixed(layer) = self.pool {
            known(format!("the pool is fixed({layer})"), layer)?;
        }
        known(format!("the vector is added after layer {}", self.layer), self.layer)
    }
}

/// What the connection did to one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// The layer with the largest weight, counted from 0.
    pub layer: usize,
    /// `softmax(H)`, one number per layer.
    pub probabilities: Vec<f32>,
    /// Length of the added vector.
    pub vector_norm: f32,
    /// Length of the stream it was added to.
    pub stream_norm: f32,
}

impl Connection {
    /// From one row of what [`Prefill::connected`] reports: weights, probabilities, two lengths.
    pub(crate) fn from_report(row: &[f32]) -> Self {
        let n_layers = (row.len() - 2) / 2;
        Self {
            layer: (0..n_layers).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0),
            probabilities: row[n_layers..2 * n_layers].to_vec(),
            vector_norm: row[2 * n_layers],
            stream_norm: row[2 * n_layers + 1],
        }
    }
}

/// The pass over prompts padded on the left, before the first token.
pub(crate) struct Prefill<'a> {
    model: &'a CcModel,
    prompts: &'a [&'a Prompt],
    options: &'a ConnectionOptions,
    pads: Vec<usize>,
    tokens: TokenBatch,
    /// Slots of the anchors.
    anchors: Vec<usize>,
}

impl<'a> Prefill<'a> {
    pub(crate) fn new(model: &'a CcModel, prompts: &'a [&'a Prompt], options: &'a ConnectionOptions) -> Self {
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let pads: Vec<usize> = prompts.iter().map(|prompt| longest - prompt.ids.len()).collect();
        // Any id serves as padding: nothing looks at it.
        let rows = prompts.iter().zip(&pads).map(|(prompt, &pad)| [&vec![0; pad][..], &prompt.ids].concat());
        let tokens = TokenBatch::new(&rows.collect::<Vec<_>>(), &model.device());
        let anchors = prompts.iter().zip(&pads).map(|(prompt, pad)| prompt.anchor + pad).collect();
        Self { model, prompts, options, pads, tokens, anchors }
    }

    /// Pads at the head of every row.
    pub(crate) fn pads(&self) -> &[usize] {
        &self.pads
    }

    /// Returns the stream, its last token that of every prompt.
    pub(crate) fn plain(&self, cache: &mut KvCache, injection: Option<&Injection>) -> Tensor<3> {
        let decoder = &self.model.model;
        let taps = Taps { probe: None, injection };
        decoder.forward(decoder.embed(self.tokens.ids.clone()), 0..decoder.n_layers(), Some(cache), taps)
    }

    /// Returns the end of the stream, its last token that of every prompt, and one row per prompt for
    /// [`Connection::from_report`]. `others` holds what [`Source::needs_other`].
    pub(crate) fn connected(
        &self,
        source: Source,
        transform: Option<&FoldedTransform>,
        others: &[&Prompt],
        cache: &mut KvCache,
    ) -> Result<(Tensor<3>, Tensor<2>)> {
        let (decoder, layer) = (&self.model.model, self.options.layer);
        let (below, above) = (0..layer + 1, layer + 1..decoder.n_layers());
        let anchor = Anchor::new(self.anchors.clone());

        let mut probe = Probe::new(self.options.site, anchor.clone());
        let embedded = decoder.embed(self.tokens.ids.clone());
        let first = decoder.forward(embedded, below, Some(cache), Taps { probe: Some(&mut probe), injection: None });
        cache.rewind(0);
        decoder.forward(first.clone(), above.clone(), Some(cache), Taps { probe: Some(&mut probe), injection: None });
        let own = probe.into_activations();

        let content: Vec<Range<usize>> =
            self.prompts.iter().zip(&self.pads).map(|(p, pad)| p.content.start + pad..p.content.end + pad).collect();
        let e = self.model.input_embedding(self.options.e, &self.tokens, &anchor, &content);
        let (vector, decision) = self.vector(source, own, e, transform, others)?;
        let norm = |x: &Tensor<2>| x.clone().square().sum_dim(1).sqrt();
        let norms = [norm(&vector), norm(&anchor.read(first.clone()))];
        let [vector_norm, stream_norm] = norms;
        let report = Tensor::cat(vec![decision.weights, softmax(decision.logits, 1), vector_norm, stream_norm], 1);

        let hidden = match self.options.two_pass {
            TwoPass::Reuse => {
                // With one template all anchors are in one slot; others are reached by starting at the first of them.
                let from = self.anchors.iter().copied().min().unwrap_or(0);
                let tail = first.clone().narrow(1, from, first.dims()[1] - from);
                let in_tail = Anchor::new(self.anchors.iter().map(|slot| slot - from).collect());
                cache.rewind(from);
                decoder.forward(in_tail.add(tail, vector), above, Some(cache), Taps::default())
            }
            TwoPass::Full => {
                cache.rewind(0);
                self.plain(cache, Some(&Injection { layer, ..Injection::new(anchor, vector) }))
            }
        };
        Ok((hidden, report))
    }

    /// The vector of every row, and how its layer was chosen.
    fn vector(
        &self,
        source: Source,
        own: FfnActivations,
        e: Tensor<2>,
        transform: Option<&FoldedTransform>,
        others: &[&Prompt],
    ) -> Result<(Tensor<2>, Decision)> {
        let (options, decision_maker) = (self.options, self.model.model.decision_maker());
        let folded =
            || transform.ok_or_else(|| Error::Transform("none was loaded; fit one first (`trainer fit`)".into()));
        let (activations, transform) = match source {
            Source::None => unreachable!("the vanilla pass has no connection"),
            Source::Parallel => {
                (self.read(others, "the parallel source needs the English twin of every prompt")?, None)
            }
            Source::Identity => (own, None),
            Source::Transform | Source::Zero | Source::Random => (own, Some(folded()?)),
            Source::Shuffled => {
                (self.read(others, "the shuffled source needs another prompt for every prompt")?, Some(folded()?))
            }
        };
        let logits = match transform {
            Some(transform) => transform.logits(&activations, e, decision_maker),
            None => decision_maker.logits(&activations, e),
        };
        let decision = self.model.decide(options.pool, &self.selection(&logits), logits);
        let weights = decision.weights.clone();
        let vector = match transform {
            Some(transform) => transform.vector(&activations, weights),
            None => activations.mix(weights),
        } * options.alpha;
        let vector = match source {
            Source::Zero => vector.zeros_like(),
            Source::Random => self.random_directions(&vector) * vector.square().sum_dim(1).sqrt(),
            _ => vector,
        };
        Ok((vector, decision))
    }

    /// Activations of other prompts, one per row.
    fn read(&self, others: &[&Prompt], need: &str) -> Result<FfnActivations> {
        if others.len() != self.prompts.len() {
            return Err(Error::Connection(need.into()));
        }
        let (longest, limit) = (others.iter().map(|p| p.ids.len()).max().unwrap_or(0), self.model.model.context());
        if longest > limit {
            return Err(Error::PromptTooLong { found: longest, limit });
        }
        let tokens = TokenBatch::new(&others.iter().map(|p| &p.ids).collect::<Vec<_>>(), &self.model.device());
        let anchor = Anchor::new(others.iter().map(|p| p.anchor).collect());
        Ok(self.model.activations(&tokens, &anchor, self.options.site))
    }

    /// How one layer is taken; what is drawn for it is drawn for each prompt by itself.
    fn selection(&self, logits: &Tensor<2>) -> Selection {
        match (self.options.pool, self.options.choice) {
            (Pool::Random, _) | (_, Choice::Gumbel) => {
                let (n_layers, device) = (logits.dims()[1], logits.device());
                let row =
                    |prompt: &&Prompt| gumbel_noise(1, n_layers, &mut row_rng(self.options.seed, &prompt.ids), &device);
                Selection::Gumbel { noise: Tensor::cat(self.prompts.iter().map(row).collect(), 0), tau: 1.0 }
            }
            (_, Choice::Argmax) => Selection::Argmax,
            (_, Choice::Expectation) => Selection::Expectation,
        }
    }

    /// Unit rows, drawn on the host so that every device draws the same.
    fn random_directions(&self, like: &Tensor<2>) -> Tensor<2> {
        let [batch, d_model] = like.dims();
        let values: Vec<f32> = self
            .prompts
            .iter()
            .flat_map(|prompt| {
                let mut rng = row_rng(self.options.seed, &prompt.ids);
                // The sum of twelve uniform numbers is near enough to a normal one for a direction.
                let mut normal = move || (0..12).map(|_| rng.random_range(-0.5..0.5f32)).sum::<f32>();
                (0..d_model).map(move |_| normal())
            })
            .collect();
        let rows = Tensor::<2>::from_data(TensorData::new(values, [batch, d_model]), &like.device());
        rows.clone() / rows.square().sum_dim(1).sqrt()
    }
}
