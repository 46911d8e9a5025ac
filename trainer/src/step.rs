//! One optimizer step's forward and backward passes: loss and gradients of a global batch.
//!
//! The global batch is cut into micro-batches of similar length; every loss is divided by the answer tokens of the
//! *global* batch, so the sum of gradients does not depend on the cut. One English pass serves the whole window.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use cctuning::anchor::{Anchor, index};
use cctuning::decision_maker::{Selection, gumbel_noise};
use cctuning::model::{CcModel, TokenBatch};
use cctuning::tap::{FfnActivations, Injection, Site};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::batches::micro_batches;
use crate::optim::Gradients;
use crate::recipe::{Cc, EnglishGrad};
use crate::sample::Sample;

/// What is trained.
#[derive(Clone, Copy)]
pub enum Method<'a> {
    /// Plain supervised fine-tuning.
    Sft,
    /// CC-Tuning.
    Cc(&'a Cc),
}

/// Loss and gradients of a global batch, and what the connection did.
pub struct StepResult {
    /// Mean loss per answer token.
    pub loss: f64,
    pub gradients: Gradients,
    /// Tokens of the main passes, padding aside.
    pub tokens: usize,
    pub connection: Option<ConnectionStats>,
}

/// How the Decision Maker chose in one step.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionStats {
    /// How often each layer was taken.
    pub selected: Vec<usize>,
    /// Mean entropy of `softmax(H)`, in nats; `ln(n_layers)` is undecided.
    pub entropy: f64,
    /// Mean length of the added vector.
    pub vector_norm: f64,
    /// Distinct English prompts over all rows.
    pub english_share: f64,
}

/// Loss and gradients of `batch` at step number `step`, which with the recipe's seed decides the Gumbel noise.
pub fn step(model: &CcModel, batch: &[&Sample], method: Method, micro_tokens: usize, step: usize) -> StepResult {
    let seed = match method {
        Method::Sft => 0,
        Method::Cc(cc) => cc.seed,
    };
    let noise = gumbel_noise(batch.len(), model.model.n_layers(), &mut noise_rng(seed, step), &model.device());
    step_with_noise(model, batch, method, micro_tokens, noise)
}

/// [`step`] over given Gumbel noise `[batch, n_layers]`, which [`Method::Sft`] does not look at.
pub fn step_with_noise(
    model: &CcModel,
    batch: &[&Sample],
    method: Method,
    micro_tokens: usize,
    noise: Tensor<2>,
) -> StepResult {
    let answer_tokens: usize = batch.iter().map(|sample| sample.answer.len()).sum();
    let model = &model.valid();
    let english = match method {
        Method::Sft => None,
        Method::Cc(cc) => Some(English::read(model, batch, cc, micro_tokens, noise)),
    };
    let lengths: Vec<usize> = batch.iter().map(|sample| sample.len()).collect();
    let mut result = StepResult {
        loss: 0.0,
        gradients: Gradients::default(),
        tokens: lengths.iter().sum(),
        connection: english.as_ref().map(|e| ConnectionStats {
            selected: vec![0; model.model.n_layers()],
            entropy: 0.0,
            vector_norm: 0.0,
            english_share: e.distinct as f64 / batch.len() as f64,
        }),
    };
    let micro = |rows: &Vec<usize>| {
        let samples: Vec<&Sample> = rows.iter().map(|&row| batch[row]).collect();
        // Every micro-batch has leaves of its own: Burn joins graphs that share any, and two threads working on a
        // joined graph lock each other out.
        let model = &model.clone().train();
        let tokens = main_tokens(model, &samples);
        let connected = english.as_ref().map(|english| english.connect(model, &samples, rows, &tokens));
        let injection = connected.as_ref().map(|connected| &connected.injection);
        let loss = answer_loss(model, &samples, &tokens, injection) / answer_tokens as f64;
        let gradients = Gradients::of(model, loss.backward());
        (f64::from(loss.into_scalar::<f32>()), gradients, connected)
    };
    let device = model.device();
    // Only so many gradients wait at once to be added as are computed at once.
    for some in micro_batches(&lengths, micro_tokens).chunks(threads(&device)) {
        for (loss, gradients, connected) in in_parallel(&device, some, &micro) {
            result.loss += loss;
            result.gradients.add(gradients);
            if let (Some(stats), Some(connected)) = (&mut result.connection, connected) {
                connected.add_to(stats, batch.len());
            }
        }
    }
    result
}

/// Micro-batches computed at once: on the CPU one per core, because most of Burn's operations use one core there.
fn threads(device: &Device) -> usize {
    let on_cpu = device.clone().inner() == Device::flex();
    if on_cpu { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 }
}

/// Maps micro-batches in order. Neither the cut nor the order of the sum depends on the number of cores.
fn in_parallel<T: Sync, R: Send>(device: &Device, items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = threads(device);
    let (f, next) = (&f, &AtomicUsize::new(0));
    let take = move || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, f(item)));
        }
    };
    let mut results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len())).map(|_| scope.spawn(take)).collect();
        let mut results = take();
        results.extend(others.into_iter().flat_map(|other| other.join().expect("a micro-batch panicked")));
        results
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The token batch of the main pass: prompt and answer, the last token only being predicted.
pub fn main_tokens(model: &CcModel, samples: &[&Sample]) -> TokenBatch {
    let rows: Vec<Vec<u32>> = samples
        .iter()
        .map(|sample| sample.prompt.ids.iter().chain(&sample.answer[..sample.answer.len() - 1]).copied().collect())
        .collect();
    TokenBatch::new(&rows, &model.device())
}

/// Sum of the cross-entropy over all answer tokens (Eq. 1): only their rows meet the output head.
pub fn answer_loss(
    model: &CcModel,
    samples: &[&Sample],
    tokens: &TokenBatch,
    injection: Option<&Injection>,
) -> Tensor<1> {
    answer_log_probabilities(model, samples, tokens, injection).sum().neg()
}

/// Log-probability of every answer token, all rows in order: `[answer tokens]`.
pub fn answer_log_probabilities(
    model: &CcModel,
    samples: &[&Sample],
    tokens: &TokenBatch,
    injection: Option<&Injection>,
) -> Tensor<1> {
    let logits = answer_logits(model, samples, tokens, injection);
    let targets: Vec<i32> = samples.iter().flat_map(|sample| &sample.answer).map(|&id| id as i32).collect();
    let n = targets.len();
    let targets: Tensor<2, Int> = Tensor::from_data(TensorData::new(targets, [n, 1]), &logits.device());
    log_softmax(logits, 1).gather(1, targets).squeeze_dim(1)
}

/// Logits at the positions that predict answer tokens, all rows in order: `[answer tokens, vocab_size]`.
pub fn answer_logits(
    model: &CcModel,
    samples: &[&Sample],
    tokens: &TokenBatch,
    injection: Option<&Injection>,
) -> Tensor<2> {
    let hidden = model.forward(tokens, injection);
    let [batch, seq, d_model] = hidden.dims();
    let device = hidden.device();
    let rows = samples.iter().enumerate().flat_map(|(row, sample)| {
        let first = row * seq + sample.prompt.ids.len() - 1;
        first..first + sample.answer.len()
    });
    model.logits(hidden.reshape([batch * seq, d_model]).select(0, index(rows, &device)))
}

/// The English side of a global batch.
struct English<'a> {
    cc: &'a Cc,
    /// `[distinct prompts, n_layers, d_model]`, without a graph; absent when gradients flow through the English pass.
    activations: Option<Tensor<3>>,
    /// For each row of the batch, its distinct prompt.
    prompt_of: Vec<usize>,
    distinct: usize,
    /// `[batch, n_layers]`.
    noise: Tensor<2>,
}

impl<'a> English<'a> {
    /// Weights are constant within an optimizer step, so equal prompts are read once.
    fn read(model: &CcModel, batch: &[&Sample], cc: &'a Cc, micro_tokens: usize, noise: Tensor<2>) -> Self {
        let mut distinct: Vec<&Sample> = Vec::new();
        let mut known: HashMap<&[u32], usize> = HashMap::new();
        let mut prompt_of = Vec::with_capacity(batch.len());
        for sample in batch {
            prompt_of.push(*known.entry(&sample.english.ids).or_insert_with(|| {
                distinct.push(sample);
                distinct.len() - 1
            }));
        }
        let activations = (cc.english_grad == EnglishGrad::Detach).then(|| {
            // No graph, no output head: only what the anchors hold is wanted.
            let lengths: Vec<usize> = distinct.iter().map(|sample| sample.english.ids.len()).collect();
            let groups = micro_batches(&lengths, micro_tokens);
            let read = in_parallel(&model.device(), &groups, |group| {
                let samples: Vec<&Sample> = group.iter().map(|&row| distinct[row]).collect();
                english_activations(model, &samples).0
            });
            // From the order of the groups back to that of the prompts.
            let mut place = vec![0; distinct.len()];
            for (at, &row) in groups.iter().flatten().enumerate() {
                place[row] = at;
            }
            Tensor::cat(read, 0).select(0, index(place, &model.device()))
        });
        Self { cc, activations, prompt_of, distinct: distinct.len(), noise: noise.inner() }
    }

    fn connect(&self, model: &CcModel, samples: &[&Sample], rows: &[usize], tokens: &TokenBatch) -> Connected {
        let activations = match &self.activations {
            Some(all) => {
                let prompts = index(rows.iter().map(|&row| self.prompt_of[row]), &all.device());
                FfnActivations(Tensor::from_inner(all.clone().select(0, prompts)))
            }
            None => english_activations(model, samples),
        };
        let noise = Tensor::from_inner(self.noise.clone().select(0, index(rows.iter().copied(), &self.noise.device())));
        let selection = Selection::Gumbel { noise, tau: self.cc.tau };
        connect(model, samples, tokens, &activations, self.cc, &selection)
    }
}

/// What enters a main pass, and how it was decided.
pub struct Connected {
    pub injection: Injection,
    pub logits: Tensor<2>,
    pub weights: Tensor<2>,
}

/// Eq. 3-5 for some rows: from the English activations to the vector at the anchor.
pub fn connect(
    model: &CcModel,
    samples: &[&Sample],
    tokens: &TokenBatch,
    activations: &FfnActivations,
    cc: &Cc,
    selection: &Selection,
) -> Connected {
    let anchor = Anchor::new(samples.iter().map(|sample| sample.prompt.anchor).collect());
    let content: Vec<_> = samples.iter().map(|sample| sample.prompt.content.clone()).collect();
    let e = model.input_embedding(cc.e, tokens, &anchor, &content);
    let logits = model.model.decision_maker().logits(activations, e);
    let decision = model.decide(cc.pool, selection, logits, cc.seed);
    let mut vector = activations.mix(decision.weights.clone()) * cc.alpha;
    if cc.skip_english {
        let keep: Vec<f32> = samples.iter().map(|sample| f32::from(sample.lang != "en")).collect();
        vector = vector * Tensor::<2>::from_data(TensorData::new(keep, [samples.len(), 1]), &model.device());
    }
    let injection = Injection { layer: cc.layer, ..Injection::new(anchor, vector) };
    Connected { injection, logits: decision.logits, weights: decision.weights }
}

impl Connected {
    fn add_to(self, stats: &mut ConnectionStats, batch: usize) {
        let n_layers = stats.selected.len();
        let weights: Vec<f32> = self.weights.inner().into_data().iter::<f32>().collect();
        for row in weights.chunks(n_layers) {
            let layer = (0..n_layers).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
            stats.selected[layer] += 1;
        }
        let soft: Vec<f32> = softmax(self.logits.inner(), 1).into_data().iter::<f32>().collect();
        let entropy: f64 = soft.iter().filter(|&&p| p > 0.0).map(|&p| -f64::from(p) * f64::from(p).ln()).sum();
        let norms = self.injection.vector.inner().square().sum_dim(1).sqrt().sum().into_scalar::<f32>();
        stats.entropy += entropy / batch as f64;
        stats.vector_norm += f64::from(norms) / batch as f64;
    }
}

/// `G`: what the English twins' prompts hold at their anchors.
pub fn english_activations(model: &CcModel, samples: &[&Sample]) -> FfnActivations {
    let device: Device = model.device();
    let tokens = TokenBatch::new(&samples.iter().map(|sample| &sample.english.ids).collect::<Vec<_>>(), &device);
    let anchor = Anchor::new(samples.iter().map(|sample| sample.english.anchor).collect());
    model.activations(&tokens, &anchor, Site::FeedForward)
}

/// The noise of a step is a pure function of seed and step, so a resumed run draws what an uninterrupted one would.
fn noise_rng(seed: u64, step: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step as u64 + 1);
    rng
}
