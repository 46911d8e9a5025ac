//! The web bundle, "cctuning-bundle/2": a folder whose `manifest.json` names every other file with its size and sha256.
//! One bundle holds both models, the Transform Matrix, tokenizer, examples, and golden answers to test a device with.
//!
//! No file is larger than [`LARGEST_FILE`], each is of use alone, and they are taken one at a time in any order: a shard
//! of weights holds whole tensors or rows of them. What both models have in common is stored once, in shards of both.

use crate::chat::Prompt;
use crate::checkpoint::{Checkpoint, Loading};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::generate::{Decoding, GenerateOptions, Source};
pub use crate::manifest::{
    Example, FORMAT, FileEntry, Golden, GoldenAnswer, LARGEST_FILE, Language, Manifest, Parts, hex,
};
use crate::model::CcModel;
use crate::sampling::Sampling;
use crate::saving::slice_of;
use crate::tokenizer::Tokenizer;
use crate::transform_matrix::{FoldedTransform, INTERCEPT_TENSOR, TRANSFORM_TENSOR, TransformMatrix};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest difference from the golden logits that a device may show (f32 arithmetic, 8-bit weights made exact).
pub const LOGIT_TOLERANCE: f32 = 2e-3;

/// Golden prompts in a bundle, one for each direction of writing: enough to catch a device that computes wrongly, few enough
/// to start quickly.
pub const GOLDEN_PROMPTS: usize = 2;

/// The verdict of a device about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Golden prompts that were answered.
    pub prompts: usize,
    /// Largest logit difference seen; the largest number there is where one was not finite.
    pub max_logit_error: f32,
    /// Largest that passes.
    pub tolerance: f32,
    /// All tokens and layers are the golden ones.
    pub tokens_equal: bool,
    /// Both hold.
    pub passed: bool,
}

/// A loaded bundle.
pub struct Bundle {
    /// Its description.
    pub manifest: Manifest,
    /// Sizes of both models.
    pub config: ModelConfig,
    /// Fine-tuned without connection.
    pub vanilla: CcModel,
    /// Fine-tuned with it.
    pub cc: CcModel,
    /// The Transform Matrix, folded with the CC-Tuned model's Decision Maker.
    pub transform: FoldedTransform,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Prompts to offer.
    pub examples: Vec<Example>,
    /// Answers to test a device with.
    pub golden: Vec<Golden>,
}

impl Bundle {
    /// Builds both models on `device` from the bundle's files, which are taken by path as the manifest names them.
    /// Every file is verified first.
    ///
    /// # Errors
    /// A file is absent or is not the one that the manifest means; its content cannot be used.
    pub fn load(manifest: Manifest, files: &BTreeMap<String, Vec<u8>>, device: &Device) -> Result<Self> {
        for entry in &manifest.files {
            entry.verify(file(files, &entry.path)?)?;
        }
        let mut loading = BundleLoading::new(manifest, device)?;
        for entry in loading.files() {
            loading.add(&entry.path, file(files, &entry.path)?)?;
        }
        loading.finish()
    }

    /// Renders a visitor's text with the bundle's template.
    ///
    /// # Errors
    /// It is empty or does not fit.
    pub fn prompt(&self, text: &str) -> Result<Prompt> {
        let prompt = self.manifest.template.render(&self.tokenizer, text, self.manifest.anchor)?;
        let limit = self.vanilla.model.context().saturating_sub(self.manifest.max_new_tokens);
        if prompt.ids.len() > limit {
            return Err(Error::PromptTooLong { found: prompt.ids.len(), limit });
        }
        Ok(prompt)
    }

    /// The bundle's options for one source, greedy.
    ///
    /// # Errors
    /// The tokenizer lacks the template's stop token.
    pub fn options(&self, source: Source) -> Result<GenerateOptions> {
        Ok(GenerateOptions {
            max_new_tokens: self.manifest.max_new_tokens,
            sampling: Sampling::Greedy,
            source,
            connection: self.manifest.connection,
            stop_ids: self.manifest.template.stop_ids(&self.tokenizer)?,
        })
    }

    /// Begins an answer: the vanilla model when `source` is none, else the CC-Tuned one.
    ///
    /// # Errors
    /// As [`Decoding::start`].
    pub fn answer(&self, prompt: &Prompt, options: GenerateOptions) -> Result<Decoding<'_>> {
        let model = if options.source == Source::None { &self.vanilla } else { &self.cc };
        Decoding::start(model, &self.config, Some(&self.transform), &[prompt], &[], options)
    }

    /// What one model answers, in the form of a golden answer.
    ///
    /// # Errors
    /// As [`Decoding::start`], or the device failed.
    pub async fn golden_answer(&self, prompt: &Prompt, source: Source) -> Result<GoldenAnswer> {
        let mut decoding = self.answer(prompt, self.options(source)?)?;
        let logits = decoding.logits().into_data_async().await.map_err(|e| Error::Device(format!("{e:?}")))?;
        let layer = decoding.connections().await?.map(|rows| rows[0].layer);
        let tokens = decoding.finish().await?.remove(0);
        Ok(GoldenAnswer { tokens, logits: logits.iter::<f32>().collect(), layer })
    }

    /// Answers up to `limit` golden prompts and compares, so that a device that computes wrongly is never shown.
    ///
    /// # Errors
    /// The device failed, or a golden prompt cannot be asked of these models; computing something else is a verdict, not an
    /// error.
    pub async fn self_test(&self, limit: usize) -> Result<SelfTest> {
        let mut test = SelfTest {
            prompts: 0,
            max_logit_error: 0.0,
            tolerance: LOGIT_TOLERANCE,
            tokens_equal: true,
            passed: false,
        };
        for golden in self.golden.iter().take(limit) {
            let prompt = self.prompt(&golden.prompt)?;
            for (expected, source) in [(&golden.vanilla, Source::None), (&golden.cc, Source::Transform)] {
                let found = self.golden_answer(&prompt, source).await?;
                test.tokens_equal &= found.tokens == expected.tokens && found.layer == expected.layer;
                if found.logits.len() != expected.logits.len() {
                    test.max_logit_error = f32::MAX;
                }
                for (a, b) in found.logits.iter().zip(&expected.logits) {
                    // NaN must not look like agreement, and JSON, which carries the verdict, has no infinity.
                    let error = (a - b).abs();
                    test.max_logit_error = test.max_logit_error.max(if error.is_finite() { error } else { f32::MAX });
                }
            }
            test.prompts += 1;
        }
        test.passed = test.prompts > 0 && test.tokens_equal && test.max_logit_error <= test.tolerance;
        Ok(test)
    }
}

/// A bundle that is loaded file by file, so that no more than one of them is in memory.
pub struct BundleLoading {
    manifest: Manifest,
    config: ModelConfig,
    device: Device,
    vanilla: Loading,
    cc: Loading,
    /// What the Transform Matrix is made of: values by tensor and first row.
    transform: BTreeMap<String, BTreeMap<usize, Vec<f32>>>,
    tokenizer: Option<Tokenizer>,
    examples: Option<Vec<Example>>,
    golden: Option<Vec<Golden>>,
}

impl BundleLoading {
    /// Begins with empty models on `device`.
    ///
    /// # Errors
    /// The manifest's configuration is of no known model.
    pub fn new(manifest: Manifest, device: &Device) -> Result<Self> {
        let config = manifest.config()?;
        let [vanilla, cc] = [(); 2].map(|()| Loading::new(CcModel::new(&config, device)));
        let (transform, tokenizer, examples, golden) = (BTreeMap::new(), None, None, None);
        Ok(Self { manifest, config, device: device.clone(), vanilla, cc, transform, tokenizer, examples, golden })
    }

    /// The files to add, in the order that shows the least memory and the first faults; any other order does too.
    pub fn files(&self) -> Vec<FileEntry> {
        self.manifest.files.clone()
    }

    /// Takes one file that the caller has verified; its bytes may be dropped then.
    ///
    /// # Errors
    /// Its content cannot be used.
    pub fn add(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let parts = &self.manifest.parts;
        let parse = |e: serde_json::Error| Error::BundleFile { path: path.into(), reason: e.to_string() };
        let holds = |shards: &[String]| shards.iter().any(|shard| shard == path);
        if holds(&parts.vanilla) {
            self.vanilla.add(path, bytes)?;
        }
        if holds(&parts.cc) {
            self.cc.add(path, bytes)?;
        }
        if holds(&parts.transform) {
            let mut checkpoint = Checkpoint::default();
            checkpoint.add(path, bytes)?;
            for name in checkpoint.names() {
                let (base, start) = slice_of(name);
                if ![TRANSFORM_TENSOR, INTERCEPT_TENSOR].contains(&base) {
                    return Err(Error::UnexpectedTensor { name: name.into() });
                }
                let (start, (shape, values)) = (start.unwrap_or(0), checkpoint.read(name)?);
                if self.transform.entry(base.into()).or_default().insert(start, values).is_some() {
                    let end = start.saturating_add(shape.first().copied().unwrap_or(0));
                    return Err(Error::Repeated { name: base.into(), start, end });
                }
            }
        }
        if parts.tokenizer == path {
            self.tokenizer = Some(Tokenizer::from_json(bytes)?);
        }
        if parts.examples == path {
            self.examples = Some(serde_json::from_slice(bytes).map_err(parse)?);
        }
        if parts.golden == path {
            self.golden = Some(serde_json::from_slice(bytes).map_err(parse)?);
        }
        Ok(())
    }

    /// The bundle, once all its files have been added.
    ///
    /// # Errors
    /// A file or a tensor is missing, or the parts are of different models.
    pub fn finish(self) -> Result<Bundle> {
        let missing = |path: &String| Error::BundleFile { path: path.clone(), reason: "missing".into() };
        let parts = &self.manifest.parts;
        let tokenizer = self.tokenizer.ok_or_else(|| missing(&parts.tokenizer))?;
        let (tokens, vocab_size) = (tokenizer.vocab_size(), self.config.vocab_size);
        if tokens > vocab_size {
            let reason = format!("has {tokens} tokens and the models' vocab_size is {vocab_size}");
            return Err(Error::BundleFile { path: parts.tokenizer.clone(), reason });
        }
        let examples = self.examples.ok_or_else(|| missing(&parts.examples))?;
        let golden = self.golden.ok_or_else(|| missing(&parts.golden))?;
        let d_model = self.config.d_model;
        let mut transform = self.transform;
        let mut values = |name: &str, width: usize| {
            let slices = transform.remove(name)?;
            // Grown step by step, it would be there twice.
            let mut values = Vec::with_capacity(slices.values().map(Vec::len).sum());
            for (start, mut slice) in slices {
                // A gap leaves too few values, which is found below.
                if values.len() == start.saturating_mul(width) {
                    values.append(&mut slice);
                }
            }
            Some(values)
        };
        let intercept = values(INTERCEPT_TENSOR, 1);
        let matrix = values(TRANSFORM_TENSOR, d_model).unwrap_or_default();
        let transform = TransformMatrix::from_values(matrix, intercept, d_model, &self.device)?;
        let transform = transform.for_layers(self.config.n_layers)?;
        let (vanilla, cc) = (self.vanilla.finish()?, self.cc.finish()?);
        Ok(Bundle {
            transform: transform.fold(cc.model.decision_maker()),
            tokenizer,
            examples,
            golden,
            config: self.config,
            vanilla,
            cc,
            manifest: self.manifest,
        })
    }
}

fn file<'f>(files: &'f BTreeMap<String, Vec<u8>>, path: &str) -> Result<&'f Vec<u8>> {
    files.get(path).ok_or_else(|| Error::BundleFile { path: path.into(), reason: "missing".into() })
}
