//! Answers: prefill, then decode token by token, several prompts of any length side by side.
//!
//! What a prompt is answered does not depend on the prompts beside it.

use crate::cache::KvCache;
use crate::chat::Prompt;
use crate::config::ModelConfig;
use crate::connection::Prefill;
use crate::error::{Error, Result};
use crate::model::{CcModel, TokenBatch};
use crate::sampling::{Nucleus, Sampling, row_rng};
use crate::tap::Taps;
use crate::transform_matrix::FoldedTransform;
use burn::tensor::activation::log_softmax;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

pub use crate::connection::{Choice, Connection, ConnectionOptions, Source, TwoPass};

/// Which ids end an answer.
///
/// # Departures
/// The released code stops at what the base model's configuration says, which is not the end of a turn: its answers run
/// on to the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The chat template's.
    #[default]
    Template,
    /// The `eos_token_id` of the model's `config.json`.
    Config,
    /// Either.
    Both,
}

impl Stop {
    /// Those of the template, of the configuration, or of both.
    pub fn ids(self, template: &[u32], config: &ModelConfig) -> Vec<u32> {
        match self {
            Self::Template => template.to_vec(),
            Self::Config => config.eos_token_ids.clone(),
            Self::Both => [template, &config.eos_token_ids].concat(),
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

/// One or more prompts being answered together, token by token.
pub struct Decoding<'m> {
    model: &'m CcModel,
    cache: KvCache,
    options: GenerateOptions,
    /// One per prompt, none when greedy.
    nuclei: Vec<Nucleus>,
    state: State,
    logits: Tensor<2>,
    /// By prompt.
    ended: Vec<bool>,
    /// The prompts that the rows of the cache belong to.
    running: Vec<usize>,
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
    /// Prefill, with the connection that `options.source` asks for. `others` holds, for every prompt, its English twin for
    /// [`Source::Parallel`] or the prompt whose activations it is given for [`Source::Shuffled`].
    ///
    /// # Errors
    /// The prompts do not fit the context beside the answer, or lack what the source needs.
    pub fn start(
        model: &'m CcModel,
        config: &ModelConfig,
        transform: Option<&FoldedTransform>,
        prompts: &[&Prompt],
        others: &[&Prompt],
        options: GenerateOptions,
    ) -> Result<Self> {
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().ok_or(Error::EmptyPrompt)?;
        let limit = model.model.context().saturating_sub(options.max_new_tokens);
        if longest > limit {
            return Err(Error::PromptTooLong { found: longest, limit });
        }
        options.connection.check(config.n_layers)?;
        let prefill = Prefill::new(model, prompts, &options.connection);
        let mut cache = KvCache::left_padded(config, prefill.pads(), longest + options.max_new_tokens, &model.device());
        let (hidden, report) = match options.source {
            Source::None => (prefill.plain(&mut cache, None), None),
            source => {
                let (hidden, report) = prefill.connected(source, transform, others, &mut cache)?;
                (hidden, Some(report))
            }
        };
        let last = hidden.dims()[1] - 1;
        let logits = model.logits(hidden.narrow(1, last, 1).squeeze_dim(1));
        let nuclei = match options.sampling {
            Sampling::Greedy => Vec::new(),
            Sampling::TopP { temperature, top_p, seed } => {
                let nucleus = |prompt: &&Prompt| Nucleus::new(temperature, top_p, row_rng(seed, &prompt.ids));
                prompts.iter().map(nucleus).collect()
            }
        };
        let (ended, running) = (vec![false; prompts.len()], (0..prompts.len()).collect());
        Ok(Self { model, cache, options, nuclei, state: State::Ready, logits, ended, running, produced: 0, report })
    }

    /// Logits of the next token of every row: `[batch, vocab_size]`. Rows that have ended leave in time.
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

    /// What the model holds of given answers before it gives its own: the sum of the log-probabilities of their tokens.
    /// Every row has its continuations; rows may have fewer than others, down to none, and an empty one costs nothing.
    ///
    /// The prompts are run once for all: the cache is rewound behind every continuation.
    ///
    /// # Shapes
    /// - returns: `[batch, continuations]`, zero where a row has fewer than the most
    ///
    /// # Errors
    /// A continuation is longer than the answer may be.
    ///
    /// # Panics
    /// An answer has begun already.
    pub fn log_probabilities(&mut self, continuations: &[&[Vec<u32>]]) -> Result<Tensor<2>> {
        assert_eq!(self.produced, 0, "continuations are judged before an answer begins");
        // The last token is only predicted.
        let limit = self.options.max_new_tokens + 1;
        let found = continuations.iter().flat_map(|row| row.iter().map(Vec::len)).max().unwrap_or(0);
        if found > limit {
            return Err(Error::ContinuationTooLong { found, limit });
        }
        let first = log_softmax(self.logits().cast(FloatDType::F32), 1).unsqueeze_dim(1);
        let most = continuations.iter().map(|row| row.len()).max().unwrap_or(0);
        let columns = (0..most).map(|at| {
            let rows = continuations.iter().map(|row| row.get(at).map_or(&[][..], Vec::as_slice));
            self.log_probabilities_of_one(first.clone(), &rows.collect::<Vec<_>>())
        });
        let columns: Vec<Tensor<2>> = columns.collect();
        Ok(if columns.is_empty() {
            Tensor::zeros([continuations.len(), 0], &first.device())
        } else {
            Tensor::cat(columns, 1)
        })
    }

    /// # Shapes
    /// - `first`: of all first tokens, `[batch, 1, vocab_size]`
    /// - returns: `[batch, 1]`
    fn log_probabilities_of_one(&mut self, first: Tensor<3>, rows: &[&[u32]]) -> Tensor<2> {
        let ([batch, _, vocab_size], device) = (first.dims(), first.device());
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(1);
        let mut all = first;
        if longest > 1 {
            let read: Vec<&[u32]> = rows.iter().map(|row| &row[..row.len().saturating_sub(1)]).collect();
            let embedded = self.model.model.embed(TokenBatch::new(&read, &device).ids);
            let (held, layers) = (self.cache.len(), 0..self.model.model.n_layers());
            let hidden = self.model.model.forward(embedded, layers, Some(&mut self.cache), Taps::default());
            self.cache.rewind(held);
            let logits = self.model.logits(hidden.flatten(0, 1)).cast(FloatDType::F32);
            all = Tensor::cat(vec![all, log_softmax(logits, 1).reshape([batch, longest - 1, vocab_size])], 1);
        }
        let mut ids = vec![0i32; batch * longest];
        let mut counts = vec![0.0f32; batch * longest];
        for (row, tokens) in rows.iter().enumerate() {
            for (at, &id) in tokens.iter().enumerate() {
                ids[row * longest + at] = id as i32;
                counts[row * longest + at] = 1.0;
            }
        }
        let ids: Tensor<3, Int> = Tensor::from_data(TensorData::new(ids, [batch, longest, 1]), &device);
        let counts: Tensor<2> = Tensor::from_data(TensorData::new(counts, [batch, longest]), &device);
        (all.gather(2, ids).squeeze_dim::<2>(2) * counts).sum_dim(1)
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
        let chosen: Vec<u32> = if self.nuclei.is_empty() {
            read(logits.argmax(1)).await?.iter::<i64>().map(|id| id as u32).collect()
        } else {
            let vocab_size = logits.dims()[1];
            let logits: Vec<f32> = read(logits).await?.iter::<f32>().collect();
            let rows = logits.chunks(vocab_size).zip(&self.running);
            rows.map(|(logits, &row)| self.nuclei[row].draw(logits) as u32).collect()
        };
        self.produced += 1;
        let mut shown = vec![None; self.ended.len()];
        for (&row, &token) in self.running.iter().zip(&chosen) {
            self.ended[row] |= self.options.stop_ids.contains(&token);
            shown[row] = (!self.ended[row]).then_some(token);
        }
        self.state = State::Chosen(self.drop_ended(chosen));
        Ok(shown.iter().any(Option::is_some).then_some(shown))
    }

    /// Once half of the rows have ended, only the others go on: one long answer does not cost a whole batch.
    fn drop_ended(&mut self, chosen: Vec<u32>) -> Vec<u32> {
        let alive: Vec<usize> = (0..chosen.len()).filter(|&at| !self.ended[self.running[at]]).collect();
        if alive.is_empty() || 2 * alive.len() > chosen.len() {
            return chosen;
        }
        self.cache.keep(&alive);
        self.running = alive.iter().map(|&at| self.running[at]).collect();
        alive.into_iter().map(|at| chosen[at]).collect()
    }

    /// What the connection did, one entry per row; `None` without a connection.
    ///
    /// # Errors
    /// The device failed.
    pub async fn connections(&self) -> Result<Option<Vec<Connection>>> {
        let Some(report) = &self.report else { return Ok(None) };
        let columns = report.dims()[1];
        let values: Vec<f32> = read(report.clone()).await?.iter::<f32>().collect();
        Ok(Some(values.chunks(columns).map(Connection::from_report).collect()))
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

async fn read<const D: usize, K: burn::tensor::kind::Basic>(tensor: Tensor<D, K>) -> Result<TensorData> {
    tensor.into_data_async().await.map_err(|e| Error::Device(format!("{e:?}")))
}
