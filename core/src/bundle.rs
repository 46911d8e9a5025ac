//! The web bundle, "cctuning-bundle/1": a folder whose `manifest.json` names every other file with its size and sha256.
//! One bundle holds both models, the Transform Matrix, tokenizer, examples, and golden answers to test a device with.

use crate::chat::{AnchorRule, ChatTemplate, Prompt};
use crate::checkpoint::{Checkpoint, Loading};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::generate::{ConnectionOptions, Decoding, GenerateOptions, Source};
use crate::model::CcModel;
use crate::sampling::Sampling;
use crate::tokenizer::Tokenizer;
use crate::transform_matrix::{FoldedTransform, TransformMatrix};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The value of `format` that this code reads.
pub const FORMAT: &str = "cctuning-bundle/1";
/// Largest difference from the golden logits that a device may show (f32 arithmetic, 8-bit weights made exact).
pub const LOGIT_TOLERANCE: f32 = 2e-3;

/// `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// A name for people.
    pub title: String,
    /// Where the weights come from: command, seed, date-free.
    pub origin: String,
    /// The Hugging Face configuration of both models.
    pub config: Value,
    /// Chat template.
    pub template: ChatTemplate,
    /// Anchor rule the models were trained with.
    pub anchor: AnchorRule,
    /// The connection's choices the CC-Tuned model was trained with.
    pub connection: ConnectionOptions,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Languages: code, own name.
    pub languages: Vec<Language>,
    /// Files of each part.
    pub parts: Parts,
    /// Every file with size and hash.
    pub files: Vec<FileEntry>,
}

/// One language the bundle has examples for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Language {
    /// ISO 639-1.
    pub code: String,
    /// Its name in itself.
    pub name: String,
}

/// Which file holds what. Shards are safetensors; a tensor is in one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Shards of the vanilla model.
    pub vanilla: Vec<String>,
    /// Shards of the CC-Tuned model.
    pub cc: Vec<String>,
    /// Safetensors with `transform_matrix`, f32.
    pub transform: String,
    /// `tokenizer.json`.
    pub tokenizer: String,
    /// [`Example`]s.
    pub examples: String,
    /// [`Golden`] answers.
    pub golden: String,
}

/// One file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path inside the bundle.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// A held-out prompt with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// ISO 639-1.
    pub lang: String,
    /// What a visitor would type.
    pub prompt: String,
    /// Its English twin.
    pub english: String,
    /// The right answer.
    pub gold: String,
}

/// What both models must answer to a prompt, as computed by the exporter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// ISO 639-1.
    pub lang: String,
    /// The prompt.
    pub prompt: String,
    /// Without connection.
    pub vanilla: GoldenAnswer,
    /// With the Transform Matrix.
    pub cc: GoldenAnswer,
}

/// One model's answer to a golden prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenAnswer {
    /// Greedy tokens.
    pub tokens: Vec<u32>,
    /// Logits of the first token, whole vocabulary.
    pub logits: Vec<f32>,
    /// The layer the Decision Maker chose, counted from 0.
    pub layer: Option<usize>,
}

/// The verdict of a device about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Golden prompts that were answered.
    pub prompts: usize,
    /// Largest logit difference seen.
    pub max_logit_error: f32,
    /// Largest that passes.
    pub tolerance: f32,
    /// All tokens and layers are the golden ones.
    pub tokens_equal: bool,
    /// Both hold.
    pub passed: bool,
}

impl Manifest {
    /// Reads and checks a `manifest.json`.
    ///
    /// # Errors
    /// Not JSON, another format, a path that leaves the folder, or a part that is not among the files.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| Error::Manifest(e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(Error::Manifest(format!("`format` is {:?}; this version reads {FORMAT:?}", manifest.format)));
        }
        for file in &manifest.files {
            let strange =
                |part: &str| part.is_empty() || part.starts_with('.') || part.contains(['\\', ':', '?', '#', '%']);
            if file.path.split('/').any(strange) {
                return Err(Error::Manifest(format!(
                    "`files` names {:?}, which is not a plain path inside the bundle",
                    file.path
                )));
            }
        }
        let Parts { vanilla, cc, transform, tokenizer, examples, golden } = &manifest.parts;
        let named = vanilla.iter().chain(cc).chain([transform, tokenizer, examples, golden]);
        for path in named {
            if !manifest.files.iter().any(|file| file.path == *path) {
                return Err(Error::Manifest(format!("`parts` names {path:?}, which `files` does not list")));
            }
        }
        Ok(manifest)
    }
}

impl FileEntry {
    /// Describes a file.
    pub fn of(path: &str, data: &[u8]) -> Self {
        Self { path: path.into(), bytes: data.len() as u64, sha256: hex(&Sha256::digest(data)) }
    }

    /// Whether `data` is the file the manifest means.
    ///
    /// # Errors
    /// Its size or hash is another; the error names the file.
    pub fn verify(&self, data: &[u8]) -> Result<()> {
        let found = Self::of(&self.path, data);
        let reason = if found.bytes != self.bytes {
            format!("expected {} bytes, found {}", self.bytes, found.bytes)
        } else if found.sha256 != self.sha256 {
            format!("expected sha256 {}, found {}", self.sha256, found.sha256)
        } else {
            return Ok(());
        };
        Err(Error::BundleFile { path: self.path.clone(), reason })
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
        let mut loading = BundleLoading::new(manifest.clone(), device)?;
        for entry in &manifest.files {
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
    /// The device failed; computing something else is a verdict, not an error.
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
                    test.max_logit_error = f32::INFINITY;
                }
                for (a, b) in found.logits.iter().zip(&expected.logits) {
                    // NaN must not look like agreement.
                    let error = (a - b).abs();
                    test.max_logit_error = if error.is_nan() { f32::INFINITY } else { test.max_logit_error.max(error) };
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
    transform: Option<TransformMatrix>,
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
        let config = ModelConfig::from_json(manifest.config.to_string().as_bytes())?;
        let [vanilla, cc] = [(); 2].map(|()| Loading::new(CcModel::new(&config, device)));
        let (transform, tokenizer, examples, golden) = (None, None, None, None);
        Ok(Self { manifest, config, device: device.clone(), vanilla, cc, transform, tokenizer, examples, golden })
    }

    /// Takes one file that the caller has verified; its bytes may be dropped then.
    ///
    /// # Errors
    /// Its content cannot be used.
    pub fn add(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let parts = &self.manifest.parts;
        let parse = |e: serde_json::Error| Error::BundleFile { path: path.into(), reason: e.to_string() };
        if parts.vanilla.iter().any(|shard| shard == path) {
            self.vanilla.add(path, bytes)?;
        }
        if parts.cc.iter().any(|shard| shard == path) {
            self.cc.add(path, bytes)?;
        }
        if parts.transform == path {
            let mut checkpoint = Checkpoint::default();
            checkpoint.add(path, bytes)?;
            self.transform = Some(checkpoint.transform_matrix(self.config.d_model, &self.device)?);
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
    /// A file or a tensor is missing.
    pub fn finish(self) -> Result<Bundle> {
        let missing = |path: &String| Error::BundleFile { path: path.clone(), reason: "missing".into() };
        let parts = &self.manifest.parts;
        let transform = self.transform.ok_or_else(|| missing(&parts.transform))?;
        let tokenizer = self.tokenizer.ok_or_else(|| missing(&parts.tokenizer))?;
        let examples = self.examples.ok_or_else(|| missing(&parts.examples))?;
        let golden = self.golden.ok_or_else(|| missing(&parts.golden))?;
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
