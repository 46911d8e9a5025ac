//! One optimizer step's forward and backward passes: loss and gradients of a global batch.
//!
//! The global batch is cut into micro-batches of similar length; every loss is divided by the answer tokens of the
//! *global* batch, so the sum of gradients does not depend on the cut. One English pass serves the whole window.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use cctuning::anchor::{Anchor, index};
use cctuning::decision_maker::gumbel_noise;
use cctuning::model::CcModel;
use cctuning::tap::{Injection, Site, Taps};
use clap::ValueEnum;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::answers::{self, answer_row_numbers, answer_rows, main_ids};
use crate::backward::Pass;
use crate::batches::micro_batches;
use crate::deep_supervision::{DeepSupervision, Dft};
use crate::embedding_rows::EmbeddingRows;
use crate::english::{Connected, English};
use crate::optim::Gradients;
use crate::parallel::{cores, in_order};
use crate::precision::Precision;
use crate::recipe::{Cc, Optim, Recipe};
use crate::sample::Sample;

/// What is trained.
#[derive(Clone, Copy)]
pub enum Method<'a> {
    /// Plain supervised fine-tuning.
    Sft,
    /// CC-Tuning.
    Cc(&'a Cc),
    /// Deep supervision by the English twin.
    Dft(&'a Dft),
}

/// A method by the name that a person gives it.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum MethodName {
    /// Plain supervised fine-tuning
    Sft,
    /// CC-Tuning: `[cc]` of the recipe
    Cc,
    /// Deep supervision by the English twin (arXiv 2503.01275): `[dft]` of the recipe
    Dft,
}

impl MethodName {
    /// The method with a recipe's settings.
    pub fn of(self, recipe: &Recipe) -> Method<'_> {
        match self {
            Self::Sft => Method::Sft,
            Self::Cc => Method::Cc(&recipe.cc),
            Self::Dft => Method::Dft(&recipe.dft),
        }
    }
}

/// How a step saves memory. It decides how fast a step is; of its result only `precision` decides more than rounding.
#[derive(Clone, Copy, Debug)]
pub struct Economy {
    /// Padded tokens in one micro-batch.
    pub micro_tokens: usize,
    /// Keep a layer's input instead of its graph, and run it again on the way back.
    pub recompute: bool,
    pub precision: Precision,
}

/// Loss and gradients of a global batch, and what the connection did.
pub struct StepResult {
    /// Mean cross-entropy per answer token.
    pub loss: f64,
    pub gradients: Gradients,
    /// Tokens of the main passes, padding aside.
    pub tokens: usize,
    pub connection: Option<ConnectionStats>,
    /// Mean cosine distance to the English twin at the supervised layers, not part of `loss`.
    pub distances: Option<[f64; 2]>,
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
    /// Mean length of the stream it was added to; absent when that is the last block's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_norm: Option<f64>,
    /// Distinct English prompts over all rows.
    pub english_share: f64,
}

impl Economy {
    /// Layers that are run together without a graph: all, or in bf16, whose rounded weights are not to be held all at
    /// once, one by one.
    pub(crate) fn runs(&self, layers: Range<usize>) -> Vec<Range<usize>> {
        match self.precision {
            Precision::F32 => vec![layers],
            Precision::Bf16 => layers.map(|layer| layer..layer + 1).collect(),
        }
    }

    /// Micro-batches computed at once. Whoever recomputes has a model whose gradients are not to be held twice.
    pub(crate) fn threads(&self, model: &CcModel) -> usize {
        if self.recompute { 1 } else { cores(&model.device()) }
    }
}

impl From<&Optim> for Economy {
    fn from(optim: &Optim) -> Self {
        Self { micro_tokens: optim.micro_tokens, recompute: optim.recompute, precision: optim.precision }
    }
}

/// Loss and gradients of `batch` at step number `step`, which with the recipe's seed decides the Gumbel noise.
pub fn step(model: &CcModel, batch: &[&Sample], method: Method, economy: Economy, step: usize) -> StepResult {
    let seed = match method {
        Method::Sft | Method::Dft(_) => 0,
        Method::Cc(cc) => cc.seed,
    };
    let noise = gumbel_noise(batch.len(), model.model.n_layers(), &mut noise_rng(seed, step), &model.device());
    step_with_noise(model, batch, method, economy, noise)
}

/// [`step`] over given Gumbel noise `[batch, n_layers]`, which only [`Method::Cc`] looks at.
pub fn step_with_noise(
    model: &CcModel,
    batch: &[&Sample],
    method: Method,
    economy: Economy,
    noise: Tensor<2>,
) -> StepResult {
    let answer_tokens: usize = batch.iter().map(|sample| sample.answer.len()).sum();
    let model = &model.valid();
    let mut window = Window { english: None, supervision: None, economy, scale: answer_tokens as f64 };
    match method {
        Method::Sft => {}
        Method::Cc(cc) => window.english = Some(English::read(model, batch, cc, economy, noise)),
        Method::Dft(dft) => window.supervision = Some(DeepSupervision::read(model, batch, dft, economy)),
    }
    let lengths: Vec<usize> = batch.iter().map(|sample| sample.len()).collect();
    let mut result = StepResult {
        loss: 0.0,
        gradients: Gradients::default(),
        tokens: lengths.iter().sum(),
        connection: window.english.as_ref().map(|e| ConnectionStats {
            selected: vec![0; model.model.n_layers()],
            entropy: 0.0,
            vector_norm: 0.0,
            stream_norm: None,
            english_share: e.distinct as f64 / batch.len() as f64,
        }),
        distances: window.supervision.as_ref().map(|_| [0.0; 2]),
    };
    let micro = |rows: &[usize], gradients: &mut Gradients| {
        let samples: Vec<&Sample> = rows.iter().map(|&row| batch[row]).collect();
        micro_step(model, &samples, rows, &window, gradients)
    };
    let micro_batches = micro_batches(&lengths, economy.micro_tokens);
    let mut add = |Told { loss, connection, distances }: Told| {
        result.loss += loss;
        if let (Some(stats), Some(connection)) = (&mut result.connection, connection) {
            connection.add_to(stats, batch.len());
        }
        if let (Some(all), Some(some)) = (&mut result.distances, distances) {
            *all = [all[0] + some[0], all[1] + some[1]];
        }
    };
    let gradients = &mut result.gradients;
    if economy.recompute {
        // No room for two sets of gradients.
        micro_batches.iter().for_each(|rows| add(micro(rows, gradients)));
    } else {
        // However many cores there are, a micro-batch's own sum comes first, so that the result is the same.
        let own = |rows: &Vec<usize>| {
            let mut gradients = Gradients::default();
            (micro(rows, &mut gradients), gradients)
        };
        in_order(economy.threads(model), &micro_batches, own, |(told, own)| {
            add(told);
            gradients.add(own);
            true
        });
    }
    result
}

/// What all micro-batches of a step have before them.
struct Window<'a> {
    english: Option<English<'a>>,
    supervision: Option<DeepSupervision>,
    economy: Economy,
    /// Answer tokens of the global batch.
    scale: f64,
}

/// What a micro-batch says of itself: its part of the loss, and of the distances.
struct Told {
    loss: f64,
    connection: Option<Connection>,
    distances: Option<[f64; 2]>,
}

/// What a micro-batch says of its connection.
struct Connection {
    connected: Connected,
    /// The stream that the vectors were added to: `[batch, d_model]`.
    stream: Option<Tensor<2>>,
}

/// A pass of some rows and back; their gradients are added to `gradients`.
fn micro_step(
    whole: &CcModel,
    samples: &[&Sample],
    rows: &[usize],
    window: &Window,
    gradients: &mut Gradients,
) -> Told {
    let Window { english, supervision, economy, scale } = window;
    let read = EmbeddingRows::of(whole, samples);
    let model = &read.model(whole);
    let tokens = read.tokens(model, &main_ids(samples));
    let twins = english.as_ref().map(|english| english.twins(model, samples, rows, &read));
    let connected =
        english.as_ref().zip(twins.as_ref()).map(|(e, twins)| e.connect(model, samples, rows, &tokens, twins));
    // The way back stops at the vector and goes on from it once the main pass is done.
    let injection = connected.as_ref().map(|Connected { injection, .. }| Injection {
        vector: injection.vector.clone().detach().require_grad(),
        ..injection.clone()
    });
    let embedded = model.model.embed(tokens.ids.clone());
    let last = model.model.n_layers() - 1;
    let anchor = Anchor::new(samples.iter().map(|sample| sample.prompt.anchor).collect());
    let probed = (injection.is_some() || supervision.is_some()).then_some((Site::Block, anchor));
    let Economy { recompute, precision, .. } = *economy;
    let pass =
        Pass::forward(model, embedded.clone().inner(), 0..last, recompute, precision, injection.as_ref(), probed);

    let hidden = Tensor::from_inner(pass.output()).require_grad();
    let final_block = precision.blocks(model, last..last + 1);
    let wanted = match &injection {
        // What is written into the last block needs the whole of it.
        Some(injection) if injection.layer == last => {
            let taps = Taps { probe: None, injection: Some(injection) };
            answer_rows(final_block.model.forward(hidden.clone(), last..last + 1, None, taps), samples)
        }
        _ => {
            let rows = index(answer_row_numbers(samples, hidden.dims()[1]), &model.device());
            let [stream, ..] = final_block.model.last_rows(hidden.clone(), rows, None);
            stream
        }
    };
    let targets: Vec<u32> = answers::targets(samples).collect();
    let (loss, cotangent) =
        answers::backward(model, whole.head(), precision, wanted.clone().inner(), &targets, *scale, gradients);
    let mut tape = (wanted * Tensor::from_inner(cotangent)).sum().backward();
    let cotangent = hidden.grad_remove(&mut tape).expect("the stream is a leaf of this graph");
    let in_last = injection.as_ref().and_then(|injection| injection.vector.grad_remove(&mut tape));
    gradients.take(model, tape);

    let stream = injection.as_ref().and_then(|injection| pass.read().get(injection.layer).cloned());
    let (distances, of_read) = supervision.as_ref().map(|supervision| supervision.judge(pass.read(), rows)).unzip();
    let (cotangent, vector) = pass.backward(Some(cotangent), &of_read.unwrap_or_default(), gradients);
    let mut objective = (embedded * Tensor::from_inner(cotangent)).sum();
    if let (Some(connected), Some(vector)) = (&connected, vector.or(in_last)) {
        objective = objective + (connected.injection.vector.clone() * Tensor::from_inner(vector)).sum();
    }
    let mut tape = objective.backward();
    let of_english = twins.and_then(|twins| twins.backward(&mut tape, gradients));
    read.take(model, tape, gradients);
    if let Some(objective) = of_english {
        read.take(model, objective.backward(), gradients);
    }
    Told { loss, connection: connected.map(|connected| Connection { connected, stream }), distances }
}

impl Connection {
    fn add_to(self, stats: &mut ConnectionStats, batch: usize) {
        let Connected { injection, logits, weights } = self.connected;
        let n_layers = stats.selected.len();
        let weights: Vec<f32> = weights.inner().into_data().iter::<f32>().collect();
        for row in weights.chunks(n_layers) {
            let layer = (0..n_layers).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
            stats.selected[layer] += 1;
        }
        let soft: Vec<f32> = softmax(logits.inner(), 1).into_data().iter::<f32>().collect();
        let entropy: f64 = soft.iter().filter(|&&p| p > 0.0).map(|&p| -f64::from(p) * f64::from(p).ln()).sum();
        let lengths = |rows: Tensor<2>| f64::from(rows.square().sum_dim(1).sqrt().sum().into_scalar::<f32>());
        stats.entropy += entropy / batch as f64;
        stats.vector_norm += lengths(injection.vector.inner()) / batch as f64;
        if let Some(stream) = self.stream {
            *stats.stream_norm.get_or_insert(0.0) += lengths(stream) / batch as f64;
        }
    }
}

/// The noise of a step is a pure function of seed and step, so a resumed run draws what an uninterrupted one would.
fn noise_rng(seed: u64, step: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step as u64 + 1);
    rng
}
