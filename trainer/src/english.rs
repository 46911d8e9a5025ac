//! The English side of a step: what the twins' prompts hold at their anchors, and how it enters a main pass (Eq. 2-5).

use std::collections::HashMap;

use burn::tensor::Tensor;
use burn::tensor::TensorData;
use cctuning::anchor::{Anchor, index};
use cctuning::cache::KvCache;
use cctuning::decision_maker::Selection;
use cctuning::model::{CcModel, TokenBatch};
use cctuning::tap::{FfnActivations, Injection, Probe, Site, Taps};

use crate::backward::Pass;
use crate::batches::micro_batches;
use crate::data::build::is_english;
use crate::embedding_rows::EmbeddingRows;
use crate::optim::Gradients;
use crate::parallel::in_parallel;
use crate::recipe::{Cc, EnglishGrad};
use crate::sample::Sample;
use crate::step::Economy;

/// Tokens from which on a common prefix is worth a pass of its own.
const SHORTEST_PREFIX: usize = 8;

/// The distinct English prompts of a global batch: weights are constant within an optimizer step, so equal prompts are read
/// once, for all of its micro-batches.
pub struct Distinct<'s> {
    /// One row of the batch for each.
    samples: Vec<&'s Sample>,
    /// For each row of the batch, its distinct prompt.
    pub of_row: Vec<usize>,
}

/// The English side of a global batch.
pub struct English<'a> {
    cc: &'a Cc,
    economy: Economy,
    /// `[distinct prompts, n_layers, d_model]`, without a graph; absent when gradients flow through the English pass.
    activations: Option<Tensor<3>>,
    /// For each row of the batch, its distinct prompt.
    prompt_of: Vec<usize>,
    /// Distinct English prompts in the batch.
    pub distinct: usize,
    /// `[batch, n_layers]`.
    noise: Tensor<2>,
}

/// The activations of some rows' twins, and the way back through the pass that made them if gradients flow there.
pub struct Twins {
    activations: FfnActivations,
    pass: Option<(Pass, Tensor<3>)>,
}

impl<'s> Distinct<'s> {
    pub fn of(batch: &[&'s Sample]) -> Self {
        let mut samples: Vec<&Sample> = Vec::new();
        let mut known: HashMap<(&[u32], usize), usize> = HashMap::new();
        let mut of_row = Vec::with_capacity(batch.len());
        for &sample in batch {
            of_row.push(*known.entry((&sample.english.ids, sample.english.anchor)).or_insert_with(|| {
                samples.push(sample);
                samples.len() - 1
            }));
        }
        Self { samples, of_row }
    }

    /// What they hold at their anchors. No graph, no output head: nothing else is wanted of them.
    ///
    /// # Shapes
    /// - returns: `[distinct prompts, n_layers, d_model]`
    pub fn read(&self, model: &CcModel, site: Site, economy: Economy) -> Tensor<3> {
        let lengths: Vec<usize> = self.samples.iter().map(|sample| sample.english.ids.len()).collect();
        let groups = micro_batches(&lengths, economy.micro_tokens);
        let prefix = Prefix::read(model, &self.samples, economy);
        let read = in_parallel(economy.threads(model), &groups, |group| {
            let samples: Vec<&Sample> = group.iter().map(|&row| self.samples[row]).collect();
            activations_after(model, &samples, site, economy, prefix.as_ref())
        });
        // From the order of the groups back to that of the prompts.
        let mut place = vec![0; self.samples.len()];
        for (at, &row) in groups.iter().flatten().enumerate() {
            place[row] = at;
        }
        Tensor::cat(read, 0).select(0, index(place, &model.device()))
    }
}

impl<'a> English<'a> {
    pub fn read(model: &CcModel, batch: &[&Sample], cc: &'a Cc, economy: Economy, noise: Tensor<2>) -> Self {
        let prompts = Distinct::of(batch);
        let detached = cc.english_grad == EnglishGrad::Detach;
        let activations = detached.then(|| prompts.read(model, cc.site, economy));
        let (distinct, prompt_of) = (prompts.samples.len(), prompts.of_row);
        Self { cc, economy, activations, prompt_of, distinct, noise: noise.inner() }
    }

    /// The activations for some rows of the batch.
    pub fn twins(&self, model: &CcModel, samples: &[&Sample], rows: &[usize], read: &EmbeddingRows) -> Twins {
        if let Some(all) = &self.activations {
            let prompts = index(rows.iter().map(|&row| self.prompt_of[row]), &all.device());
            return Twins {
                activations: FfnActivations(Tensor::from_inner(all.clone().select(0, prompts))),
                pass: None,
            };
        }
        let embedded = model.model.embed(read.tokens(model, &english_ids(samples)).ids);
        let probed = Some((self.cc.site, english_anchor(samples)));
        let Economy { recompute, precision, .. } = self.economy;
        let layers = 0..model.model.n_layers();
        let pass = Pass::forward(model, embedded.clone().inner(), layers, recompute, precision, None, probed);
        let activations = Tensor::from_inner(Tensor::stack(pass.read().to_vec(), 1)).require_grad();
        Twins { activations: FfnActivations(activations), pass: Some((pass, embedded)) }
    }

    /// Eq. 3-5 for some rows of the batch.
    pub fn connect(
        &self,
        model: &CcModel,
        samples: &[&Sample],
        rows: &[usize],
        tokens: &TokenBatch,
        twins: &Twins,
    ) -> Connected {
        let noise = Tensor::from_inner(self.noise.clone().select(0, index(rows.iter().copied(), &self.noise.device())));
        let selection = Selection::Gumbel { noise, tau: self.cc.tau };
        connect(model, samples, tokens, &twins.activations, self.cc, &selection)
    }
}

impl Twins {
    /// Takes the gradient of `tape` back through the English pass, if it is open. Returns what the English embeddings
    /// still ask for: a scalar whose gradient is theirs.
    pub fn backward(self, tape: &mut burn::tensor::Gradients, gradients: &mut Gradients) -> Option<Tensor<1>> {
        let (pass, embedded) = self.pass?;
        let cotangent = self.activations.0.grad_remove(tape)?;
        let layers: Vec<Tensor<2>> =
            (0..cotangent.dims()[1]).map(|layer| cotangent.clone().narrow(1, layer, 1).squeeze_dim(1)).collect();
        let (input, _) = pass.backward(None, &layers, gradients);
        Some((embedded * Tensor::from_inner(input)).sum())
    }
}

/// What enters a main pass, and how it was decided.
///
/// # Shapes
/// `logits` and `weights` are `[rows, n_layers]`.
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
    let decision = model.decide(cc.pool, selection, logits);
    let mut vector = activations.mix(decision.weights.clone()) * cc.alpha;
    if cc.skip_english {
        let keep: Vec<f32> = samples.iter().map(|sample| f32::from(!is_english(&sample.lang))).collect();
        vector = vector * Tensor::<2>::from_data(TensorData::new(keep, [samples.len(), 1]), &model.device());
    }
    let injection = Injection { layer: cc.layer, ..Injection::new(anchor, vector) };
    Connected { injection, logits: decision.logits, weights: decision.weights }
}

/// `G`: what the English twins' prompts hold at their anchors, `[rows, n_layers, d_model]`.
pub fn english_activations(model: &CcModel, samples: &[&Sample], cc: &Cc) -> FfnActivations {
    model.activations(&TokenBatch::new(&english_ids(samples), &model.device()), &english_anchor(samples), cc.site)
}

/// What all English prompts of a step begin with: the head of the template, run once.
struct Prefix {
    len: usize,
    cache: KvCache,
}

impl Prefix {
    /// None where it is too short to be worth a pass of its own.
    fn read(model: &CcModel, samples: &[&Sample], economy: Economy) -> Option<Self> {
        let first = &samples.first()?.english;
        // The anchor stays outside: it is what is to be read.
        let len = samples.iter().fold(first.anchor, |len, sample| {
            let same = first.ids.iter().zip(&sample.english.ids).take_while(|(a, b)| a == b).count();
            len.min(same).min(sample.english.anchor)
        });
        if len < SHORTEST_PREFIX || samples.len() == 1 {
            return None;
        }
        let longest = samples.iter().map(|sample| sample.english.ids.len()).max()?;
        let mut cache = model.model.cache(1, longest);
        let mut hidden = model.model.embed(TokenBatch::new(&[&first.ids[..len]], &model.device()).ids);
        for layers in economy.runs(0..model.model.n_layers()) {
            cache.rewind(0);
            let blocks = economy.precision.blocks(model, layers.clone());
            hidden = blocks.model.forward(hidden, layers, Some(&mut cache), Taps::default());
        }
        Some(Self { len, cache })
    }
}

/// [`english_activations`] as training reads them: after the common prefix, in the step's precision.
///
/// # Shapes
/// - returns: `[batch, n_layers, d_model]`
fn activations_after(
    model: &CcModel,
    samples: &[&Sample],
    site: Site,
    economy: Economy,
    prefix: Option<&Prefix>,
) -> Tensor<3> {
    let start = prefix.map_or(0, |prefix| prefix.len);
    let rows: Vec<&[u32]> = samples.iter().map(|sample| &sample.english.ids[start..]).collect();
    let anchor = Anchor::new(samples.iter().map(|sample| sample.english.anchor - start).collect());
    let mut cache = prefix.map(|prefix| prefix.cache.repeated(samples.len()));
    let mut hidden = model.model.embed(TokenBatch::new(&rows, &model.device()).ids);
    let mut probe = Probe::new(site, anchor.clone());
    let last = model.model.n_layers() - 1;
    for layers in economy.runs(0..last) {
        let blocks = economy.precision.blocks(model, layers.clone());
        let taps = Taps { probe: Some(&mut probe), injection: None };
        hidden = blocks.model.forward(hidden, layers, cache.as_mut(), taps);
        if let Some(cache) = &mut cache {
            cache.rewind(start);
        }
    }
    let rows = anchor.rows(&hidden);
    let blocks = economy.precision.blocks(model, last..last + 1);
    let mut layers = probe.into_layers();
    layers.push(site.of(blocks.model.last_rows(hidden, rows, cache.as_mut())));
    Tensor::stack(layers, 1)
}

fn english_ids<'s>(samples: &[&'s Sample]) -> Vec<&'s Vec<u32>> {
    samples.iter().map(|sample| &sample.english.ids).collect()
}

fn english_anchor(samples: &[&Sample]) -> Anchor {
    Anchor::new(samples.iter().map(|sample| sample.english.anchor).collect())
}
