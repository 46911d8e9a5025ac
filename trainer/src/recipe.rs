//! `Recipe`: one validated value that says everything a training run depends on.
//!
//! It is made of layers, each over the one before: defaults, a preset, one TOML file, `--set section.key=value`.
//! This room knows no tensor and reads no weight.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::decision_maker::Pool;
use cctuning::generate::{Choice, ConnectionOptions, Stop, TwoPass};
use cctuning::model::InputEmbedding;
use cctuning::tap::Site;
use serde::{Deserialize, Serialize};

pub use crate::data::settings::Data;
pub use crate::deep_supervision::Dft;
use crate::overlay;
use crate::precision::Precision;
pub use crate::preset::Preset;

/// Everything a training run depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub data: Data,
    pub model: Model,
    pub optim: Optim,
    pub cc: Cc,
    pub dft: Dft,
    pub transform: Transform,
    pub eval: Eval,
    pub run: Run,
}

/// Which weights to start from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A Hugging Face folder, org/name[@revision] on the Hub, or the shipped base checkpoint.
    pub path: Place,
    pub template: Template,
}

/// AdamW and its schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    /// Peak learning rate.
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Of matrices; norms and biases keep their size.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 leaves gradients as they are.
    pub clip: f64,
    pub schedule: Schedule,
    /// Share of all steps spent warming up.
    pub warmup_ratio: f64,
    pub epochs: usize,
    /// Stops earlier than `epochs` would; 0 sets no limit.
    pub max_steps: usize,
    /// Samples in one optimizer step.
    pub batch_size: usize,
    /// Padded tokens in one micro-batch. On the CPU micro-batches run side by side, one per core; a GPU wants large ones.
    pub micro_tokens: usize,
    /// Keep only each layer's input for the way back and compute the layer again: a third more work, a fraction of the
    /// memory.
    pub recompute: bool,
    /// What matrix products are computed in; weights and optimizer are f32.
    pub precision: Precision,
    /// What the optimizer's two moments are kept in; bf16 halves them, the second one rounded by chance.
    pub moments: Precision,
    /// Seeds fresh weights: a whole model's, or the Decision Maker's.
    pub seed: u64,
}

/// The connection itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cc {
    pub anchor: AnchorRule,
    pub e: InputEmbedding,
    pub english_grad: EnglishGrad,
    pub pool: Pool,
    /// Which output of every block is read: `ffn`, `attention` or `block`.
    pub site: Site,
    /// The block after which the vector is added, counted from 0.
    pub layer: usize,
    /// How the layer is chosen at inference.
    pub selection: Choice,
    /// Temperature of the Gumbel-Softmax.
    pub tau: f64,
    /// What the temperature has become at the last step, on a straight line; 0 leaves it at `tau`.
    pub tau_end: f64,
    /// Scale of the injected vector.
    pub alpha: f64,
    /// The Decision Maker's learning rate over the model's.
    pub decision_lr_mult: f64,
    /// How the vector gets into a prefill that has to be read first: `reuse` or `full`.
    pub two_pass: TwoPass,
    /// Which ids end an answer: `template`, `config` or `both`.
    pub stop: Stop,
    /// Train English rows without a connection. To ask in English without one is the caller's to choose (`--source none`).
    pub skip_english: bool,
    /// Seeds what the connection draws: Gumbel noise, and the layers of `pool = "random"`.
    pub seed: u64,
}

/// How the Transform Matrix is fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    pub pairs: usize,
    /// Relative to the mean diagonal of the Gram matrix.
    pub ridge: f64,
    /// Seeds which pairs are drawn.
    pub seed: u64,
    /// Share of the pairs kept out of the fit, for the held-out error.
    pub holdout: f64,
    /// Fit an intercept beside the matrix.
    pub affine: bool,
    /// One matrix for each layer instead of one for all.
    pub per_layer: bool,
    /// Languages that pairs are drawn from; none named means all.
    pub languages: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    pub max_new_tokens: usize,
    /// The most prompts per language and task family; 0 takes all.
    pub limit: usize,
}

/// Where a run writes, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub out: PathBuf,
    /// Steps between checkpoints; 0 saves only at the end.
    pub save_every: usize,
    /// Checkpoints kept.
    pub keep: usize,
    pub log_every: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self { path: Place::Builtin, template: Template::Auto }
    }
}

/// For the shipped base checkpoint; a large pretrained model starts from `--preset paper-hparams`.
impl Default for Optim {
    fn default() -> Self {
        Self {
            lr: 2e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.1,
            epochs: 2,
            max_steps: 0,
            batch_size: 32,
            micro_tokens: 128,
            recompute: false,
            precision: Precision::F32,
            moments: Precision::F32,
            seed: 0,
        }
    }
}

impl Default for Cc {
    fn default() -> Self {
        Self {
            anchor: AnchorRule::LastPrompt,
            e: InputEmbedding::ContentMean,
            english_grad: EnglishGrad::Detach,
            pool: Pool::DecisionMaker,
            site: Site::FeedForward,
            layer: 0,
            selection: Choice::Argmax,
            tau: 1.0,
            tau_end: 0.0,
            alpha: 1.0,
            decision_lr_mult: 1.0,
            two_pass: TwoPass::Reuse,
            stop: Stop::Template,
            skip_english: false,
            seed: 0,
        }
    }
}

impl Cc {
    /// The settings at step `at` of `total`, where the temperature has moved on.
    pub fn at(&self, at: usize, total: usize) -> Self {
        let progress = at as f64 / total.saturating_sub(1).max(1) as f64;
        let tau = if self.tau_end > 0.0 { self.tau + (self.tau_end - self.tau) * progress } else { self.tau };
        Self { tau, ..self.clone() }
    }

    /// The choices that belong to the trained model and are stored with it.
    pub fn connection(&self) -> ConnectionOptions {
        let Self { e, pool, site, layer, selection, alpha, two_pass, seed, .. } = *self;
        ConnectionOptions { e, pool, choice: selection, site, layer, alpha: alpha as f32, two_pass, seed }
    }

    /// The defaults around the choices of a trained model.
    pub fn around(connection: &ConnectionOptions) -> Self {
        let ConnectionOptions { e, pool, choice: selection, site, layer, alpha, two_pass, seed } = *connection;
        Self { e, pool, selection, site, layer, alpha: alpha.into(), two_pass, seed, ..Self::default() }
    }
}

impl Template {
    /// The template, unless it is to be detected.
    pub fn named(self) -> Option<ChatTemplate> {
        match self {
            Self::Auto => None,
            Self::Llama3 => Some(ChatTemplate::LLAMA3),
            Self::Qwen2 => Some(ChatTemplate::QWEN2),
            Self::Mistral => Some(ChatTemplate::MISTRAL),
            Self::Plain => Some(ChatTemplate::PLAIN),
        }
    }
}

impl Default for Transform {
    fn default() -> Self {
        Self { pairs: 1000, ridge: 0.0, seed: 0, holdout: 0.1, affine: false, per_layer: false, languages: Vec::new() }
    }
}

impl Default for Eval {
    fn default() -> Self {
        Self { max_new_tokens: 40, limit: 0 }
    }
}

impl Default for Run {
    fn default() -> Self {
        Self { out: PathBuf::from("runs/latest"), save_every: 100, keep: 2, log_every: 1 }
    }
}

/// Something shipped with the trainer, or a path (relative to the folder the trainer is started in).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Place {
    Builtin,
    Path(PathBuf),
}

impl From<String> for Place {
    fn from(text: String) -> Self {
        if text == "builtin" { Self::Builtin } else { Self::Path(text.into()) }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        match place {
            Place::Builtin => "builtin".into(),
            Place::Path(path) => path.to_string_lossy().into_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    /// As the model folder says, else its own Jinja template, else by the control tokens that its tokenizer has.
    Auto,
    Llama3,
    Qwen2,
    Mistral,
    Plain,
}

/// The learning rate after a linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine to zero.
    Cosine,
    /// A straight line to zero.
    Linear,
    Constant,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnglishGrad {
    Detach,
    Full,
}

impl Recipe {
    /// Layers defaults, preset, file and overrides into one value.
    ///
    /// # Errors
    /// Every unknown key, wrong type and value out of range at once, each with its place.
    pub fn load(preset: Preset, file: Option<&Path>, overrides: &[String]) -> Result<Self> {
        Self::load_over(Self::default(), preset, file, overrides)
    }

    /// The same over another start than the defaults.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_over(start: Self, preset: Preset, file: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let mut assignments = overlay::document(preset.toml(), "preset")?;
        if let Some(file) = file {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read the recipe {}", file.display()))?;
            assignments.extend(overlay::document(&text, &file.display().to_string())?);
        }
        for text in overrides {
            assignments.push(overlay::argument(text)?);
        }
        let mut recipe = start;
        overlay::apply(&mut recipe, &assignments, Self::range_fault)?;
        Ok(recipe)
    }

    /// This recipe with further `section.key=value` over it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn with(&self, overrides: &[String]) -> Result<Self> {
        Self::load_over(self.clone(), Preset::Default, None, overrides)
    }

    /// The resolved configuration, every value written out; `load` reads it back to the same recipe.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("a recipe value does not fit into TOML")
    }

    /// What the range of `key` is, if its value lies outside.
    fn range_fault(&self, key: &str) -> Option<&'static str> {
        let Self { data, optim, cc, dft, transform, eval, run, .. } = self;
        let above_0 = |value: f64| (value.is_finite() && value > 0.0, "a number above 0");
        let from_0 = |value: f64| (value.is_finite() && value >= 0.0, "a number of 0 or more");
        let below_1 = |value: f64| ((0.0..1.0).contains(&value), "a number from 0 to below 1");
        let from_1 = |value: usize| (value >= 1, "at least 1");
        let (valid, expected) = match key {
            "data.cutoff" => from_1(data.cutoff),
            "data.english_cutoff" => from_1(data.english_cutoff),
            "optim.lr" => above_0(optim.lr),
            "optim.beta1" => below_1(optim.beta1),
            "optim.beta2" => below_1(optim.beta2),
            "optim.eps" => above_0(optim.eps),
            "optim.weight_decay" => from_0(optim.weight_decay),
            "optim.clip" => from_0(optim.clip),
            "optim.warmup_ratio" => below_1(optim.warmup_ratio),
            "optim.epochs" => from_1(optim.epochs),
            "optim.batch_size" => from_1(optim.batch_size),
            "optim.micro_tokens" => from_1(optim.micro_tokens),
            "cc.tau" => above_0(cc.tau),
            "cc.tau_end" => from_0(cc.tau_end),
            "cc.alpha" => (cc.alpha.is_finite(), "a finite number"),
            "cc.decision_lr_mult" => from_0(cc.decision_lr_mult),
            "dft.bottom" => below_1(dft.bottom),
            "dft.middle" => below_1(dft.middle),
            "dft.weight" => from_0(dft.weight),
            "transform.pairs" => from_1(transform.pairs),
            "transform.ridge" => from_0(transform.ridge),
            "transform.holdout" => below_1(transform.holdout),
            "eval.max_new_tokens" => from_1(eval.max_new_tokens),
            "run.keep" => from_1(run.keep),
            "run.log_every" => from_1(run.log_every),
            _ => (true, ""),
        };
        (!valid).then_some(expected)
    }
}
