//! Answers: prefill, connection, decode.
//!
//! Adding `v` after the first block at the anchor changes nothing before the anchor and nothing in the first block's
//! keys and values. So a connected answer is one prefill that reads `F`, and a re-run of the positions from the anchor
//! on through blocks 2..L over the same cache, about one decode step.

use crate::anchor::Anchor;
use crate::cache::KvCache;
use crate::chat::Prompt;
use crate::config::ModelConfig;
use crate::decision_maker::{Decision, Pool, Selection, gumbel_noise};
use crate::error::{Error, Result};
use crate::model::{CcModel, InputEmbedding, TokenBatch};
use crate::sampling::{Nucleus, Sampling};
use crate::tap::{FfnActivations, Injection, Probe, Site, Taps};
use crate::transform_matrix::{FoldedTransform, TransformMatrix};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
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
    /// Seeds whatever of these is drawn.
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
            seed: 0,
        }
    }
}

/// Everything that decides an answer besides model and prompt.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Where `G` comes from.
    pub source: Source,
    /// The connection's open choices.
    pub connection: ConnectionOptions,
    /// Ids that end the answer; they are not part of it.
    pub stop_ids: Vec<u32>,
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

/// One or more prompts of equal length being answered together, token by token.
pub struct Decoding<'m> {
    model: &'m CcModel,
    cache: KvCache,
    options: GenerateOptions,
    nucleus: Option<Nucleus>,
    state: State,
    logits: Tensor<2>,
    ended: Vec<bool>,
    produced: usize,
    report: Option<Tensor<2>>,
}

enum State {
    /// `logits` are those of the next token.
    Ready,
    /// These tokens have been handed out and not been run yet.
    Chosen(Vec<u32>),
}

impl<'m> Decoding<'m> {
    /// Prefill, with the connection that `options.source` asks for. `english` holds the twins for [`Source::Parallel`].
    ///
    /// # Errors
    /// The prompts do not fit the context beside the answer, or lack what the source needs.
    ///
    /// # Panics
    /// The prompts of one batch differ in length.
    pub fn start(
        model: &'m CcModel,
        config: &ModelConfig,
        transform: Option<&FoldedTransform>,
        prompts: &[&Prompt],
        english: &[&Prompt],
        options: GenerateOptions,
    ) -> Result<Self> {
        let Some(&first) = prompts.first() else { return Err(Error::EmptyPrompt) };
        let (seq, position) = (first.ids.len(), first.anchor);
        assert!(
            prompts.iter().all(|p| p.ids.len() == seq && p.anchor == position),
            "prompts of one batch are equally long"
        );
        let room = model.model.context();
        if seq > room.saturating_sub(options.max_new_tokens) {
            let limit = room.saturating_sub(options.max_new_tokens);
            return Err(Error::PromptTooLong { found: seq, limit });
        }
        if let Pool::Fixed(layer) = options.connection.pool
            && layer >= config.n_layers
        {
            return Err(Error::Config(format!(
                "the pool is fixed({layer}) and this model has layers 0 to {}",
                config.n_layers - 1
            )));
        }
        let batch = TokenBatch::new(&prompts.iter().map(|p| &p.ids).collect::<Vec<_>>(), &model.device());
        let mut cache = KvCache::new(config, prompts.len(), seq + options.max_new_tokens, &model.device());
        let prefill = Prefill { model, batch: &batch, prompts, position, options: &options };
        let (hidden, report) = match options.source {
            Source::None => (prefill.plain(&mut cache, None), None),
            source => prefill.connected(source, transform, english, &mut cache)?,
        };
        let last = hidden.dims()[1] - 1;
        let logits = model.logits(hidden.narrow(1, last, 1).squeeze_dim(1));
        let nucleus = match options.sampling {
            Sampling::Greedy => None,
            Sampling::TopP { temperature, top_p, seed } => Some(Nucleus::new(temperature, top_p, seed)),
        };
        let ended = vec![false; prompts.len()];
        Ok(Self { model, cache, options, nucleus, state: State::Ready, logits, ended, produced: 0, report })
    }

    /// Logits of the next token of every row: `[batch, vocab_size]`.
    pub fn logits(&mut self) -> Tensor<2> {
        if let State::Chosen(tokens) = core::mem::replace(&mut self.state, State::Ready) {
            let rows: Vec<[u32; 1]> = tokens.into_iter().map(|token| [token]).collect();
            let batch = TokenBatch::new(&rows, &self.model.device());
            let embedded = self.model.model.embed(batch.ids);
            let layers = 0..self.model.model.n_layers();
            let hidden = self.model.model.forward(embedded, layers, Some(&mut self.cache), Taps::default());
            self.logits = self.model.logits(hidden.squeeze_dim(1));
        }
        self.logits.clone()
    }

    /// The next token of every row, `None` for rows that have ended; `None` altogether once all have.
    ///
    /// # Errors
    /// The device failed.
    pub async fn next_tokens(&mut self) -> Result<Option<Vec<Option<u32>>>> {
        if self.produced == self.options.max_new_tokens || self.ended.iter().all(|&ended| ended) {
            return Ok(None);
        }
        let logits = self.logits();
        let chosen: Vec<u32> = match &mut self.nucleus {
            None => read(logits.argmax(1)).await?.iter::<i64>().map(|id| id as u32).collect(),
            Some(nucleus) => {
                let vocab_size = logits.dims()[1];
                let logits: Vec<f32> = read(logits).await?.iter::<f32>().collect();
                logits.chunks(vocab_size).map(|row| nucleus.draw(row) as u32).collect()
            }
        };
        self.produced += 1;
        for (ended, token) in self.ended.iter_mut().zip(&chosen) {
            *ended |= self.options.stop_ids.contains(token);
        }
        let shown: Vec<_> = chosen.iter().zip(&self.ended).map(|(&token, &ended)| (!ended).then_some(token)).collect();
        self.state = State::Chosen(chosen);
        Ok(shown.iter().any(Option::is_some).then_some(shown))
    }

    /// What the connection did, one entry per row; `None` without a connection.
    ///
    /// # Errors
    /// The device failed.
    pub async fn connections(&self) -> Result<Option<Vec<Connection>>> {
        let Some(report) = &self.report else { return Ok(None) };
        let n_layers = self.model.model.n_layers();
        let values: Vec<f32> = read(report.clone()).await?.iter::<f32>().collect();
        let connections = values.chunks(2 * n_layers + 2).map(|row| Connection {
            layer: (0..n_layers).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0),
            probabilities: row[n_layers..2 * n_layers].to_vec(),
            vector_norm: row[2 * n_layers],
            stream_norm: row[2 * n_layers + 1],
        });
        Ok(Some(connections.collect()))
    }

    /// All tokens of every row, to the end.
    ///
    /// # Errors
    /// The device failed.
    pub async fn finish(mut self) -> Result<Vec<Vec<u32>>> {
        let mut answers = vec![Vec::new(); self.ended.len()];
        while let Some(tokens) = self.next_tokens().await? {
            for (answer, token) in answers.iter_mut().zip(tokens) {
                answer.extend(token);
            }
        }
        Ok(answers)
    }
}

/// The pass over the prompts, before the first token.
struct Prefill<'a> {
    model: &'a CcModel,
    batch: &'a TokenBatch,
    prompts: &'a [&'a Prompt],
    position: usize,
    options: &'a GenerateOptions,
}

impl Prefill<'_> {
    fn plain(&self, cache: &mut KvCache, injection: Option<&Injection>) -> Tensor<3> {
        let decoder = &self.model.model;
        let taps = Taps { probe: None, injection };
        decoder.forward(decoder.embed(self.batch.ids.clone()), 0..decoder.n_layers(), Some(cache), taps)
    }

    /// Returns the stream from the anchor on, and the report of [`Decoding::connections`].
    fn connected(
        &self,
        source: Source,
        transform: Option<&FoldedTransform>,
        english: &[&Prompt],
        cache: &mut KvCache,
    ) -> Result<(Tensor<3>, Option<Tensor<2>>)> {
        let decoder = &self.model.model;
        let layers = decoder.n_layers();
        let anchor = Anchor::new(vec![self.position; self.prompts.len()]);

        let mut probe = Probe::new(Site::FeedForward, anchor.clone());
        let embedded = decoder.embed(self.batch.ids.clone());
        let first = decoder.forward(embedded, 0..1, Some(cache), Taps { probe: Some(&mut probe), injection: None });
        cache.rewind(0);
        decoder.forward(first.clone(), 1..layers, Some(cache), Taps { probe: Some(&mut probe), injection: None });
        let own = probe.into_activations();

        let content: Vec<_> = self.prompts.iter().map(|p| p.content.clone()).collect();
        let e = self.model.input_embedding(self.options.connection.e, self.batch, &anchor, &content);
        let (vector, decision) = self.vector(source, &own, e, transform, english)?;

        let seq = first.dims()[1];
        let tail = first.narrow(1, self.position, seq - self.position);
        let at_anchor = Anchor::new(vec![0; self.prompts.len()]);
        let stream = at_anchor.read(tail.clone());
        let norm = |x: &Tensor<2>| x.clone().square().sum_dim(1).sqrt();
        let report = vec![decision.weights, softmax(decision.logits, 1), norm(&vector), norm(&stream)];
        let tail = at_anchor.add(tail, vector);
        cache.rewind(self.position);
        let hidden = decoder.forward(tail, 1..layers, Some(cache), Taps::default());
        Ok((hidden, Some(Tensor::cat(report, 1))))
    }

    fn vector(
        &self,
        source: Source,
        own: &FfnActivations,
        e: Tensor<2>,
        transform: Option<&FoldedTransform>,
        english: &[&Prompt],
    ) -> Result<(Tensor<2>, Decision)> {
        let options = &self.options.connection;
        let [batch, n_layers, d_model] = own.dims();
        let device = own.0.device();
        let selection = match options.choice {
            Choice::Argmax => Selection::Argmax,
            Choice::Expectation => Selection::Expectation,
            Choice::Gumbel => {
                let noise = gumbel_noise(batch, n_layers, &mut ChaCha8Rng::seed_from_u64(options.seed), &device);
                Selection::Gumbel { noise, tau: 1.0 }
            }
        };
        let through = |transform: &FoldedTransform| {
            let logits = transform.logits(own, e.clone(), self.model.model.decision_maker());
            let decision = self.model.decide(options.pool, &selection, logits, options.seed);
            (transform.vector(own, decision.weights.clone()) * options.alpha, decision)
        };
        let folded =
            || transform.ok_or_else(|| Error::Transform("none was loaded; fit one first (`trainer fit`)".into()));
        match source {
            Source::None => unreachable!("the vanilla pass has no connection"),
            Source::Transform => Ok(through(folded()?)),
            Source::Identity => {
                Ok(through(&TransformMatrix::identity(d_model, &device).fold(self.model.model.decision_maker())))
            }
            Source::Zero => {
                let (vector, decision) = through(folded()?);
                Ok((vector.zeros_like(), decision))
            }
            Source::Random => {
                let (vector, decision) = through(folded()?);
                let direction = random_direction(batch, d_model, options.seed, &device);
                Ok((direction * vector.square().sum_dim(1).sqrt(), decision))
            }
            Source::Parallel => {
                if english.len() != batch {
                    return Err(Error::Transform("the parallel source needs the English twin of every prompt".into()));
                }
                let (longest, room) =
                    (english.iter().map(|p| p.ids.len()).max().unwrap_or(0), self.model.model.context());
                if longest > room {
                    return Err(Error::PromptTooLong { found: longest, limit: room });
                }
                let twins = TokenBatch::new(&english.iter().map(|p| &p.ids).collect::<Vec<_>>(), &device);
                let anchor = Anchor::new(english.iter().map(|p| p.anchor).collect());
                let activations = self.model.activations(&twins, &anchor, Site::FeedForward);
                let logits = self.model.model.decision_maker().logits(&activations, e.clone());
                let decision = self.model.decide(options.pool, &selection, logits, options.seed);
                Ok((activations.mix(decision.weights.clone()) * options.alpha, decision))
            }
        }
    }
}

/// Unit rows, drawn on the host so that every device draws the same.
fn random_direction(batch: usize, d_model: usize, seed: u64, device: &Device) -> Tensor<2> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // The sum of twelve uniform numbers is near enough to a normal one for a direction.
    let normal = |_| (0..12).map(|_| rng.random_range(-0.5..0.5f32)).sum::<f32>();
    let values: Vec<f32> = (0..batch * d_model).map(normal).collect();
    let rows = Tensor::<2>::from_data(TensorData::new(values, [batch, d_model]), device);
    rows.clone() / rows.square().sum_dim(1).sqrt()
}

async fn read<const D: usize, K: burn::tensor::kind::Basic>(tensor: Tensor<D, K>) -> Result<TensorData> {
    tensor.into_data_async().await.map_err(|e| Error::Device(format!("{e:?}")))
}
