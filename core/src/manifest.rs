//! `manifest.json` of a web bundle and the small files beside it: what they say, and whether it can be so. Must not know
//! of tensors.

use crate::chat::{AnchorRule, ChatTemplate};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::generate::ConnectionOptions;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// The value of `format` that this code reads.
pub const FORMAT: &str = "cctuning-bundle/2";
/// Most bytes of a file.
pub const LARGEST_FILE: u64 = 32 << 20;
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

/// Which file holds what. Shards are safetensors named by their sha256; a row of a tensor is in one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Shards of the vanilla model; those of both models are here and there.
    pub vanilla: Vec<String>,
    /// Shards of the CC-Tuned model.
    pub cc: Vec<String>,
    /// Safetensors with the Transform Matrix, f32, all its rows one below the other.
    pub transform: Vec<String>,
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
        let mut known = BTreeSet::new();
        for FileEntry { path, bytes, .. } in &manifest.files {
            let strange =
                |part: &str| part.is_empty() || part.starts_with('.') || part.contains(['\\', ':', '?', '#', '%']);
            let fault = if path.split('/').any(strange) {
                "is not a plain path inside the bundle".into()
            } else if *bytes > LARGEST_FILE {
                format!("has {bytes} bytes; at most {LARGEST_FILE} are allowed")
            } else if !known.insert(path) {
                "is listed twice".into()
            } else {
                continue;
            };
            return Err(Error::Manifest(format!("`files` names {path:?}, which {fault}")));
        }
        let Parts { vanilla, cc, transform, tokenizer, examples, golden } = &manifest.parts;
        let named = [vanilla, cc, transform].into_iter().flatten().chain([tokenizer, examples, golden]);
        for path in named {
            if !known.contains(path) {
                return Err(Error::Manifest(format!("`parts` names {path:?}, which `files` does not list")));
            }
        }
        Ok(manifest)
    }

    /// The shape of both models.
    ///
    /// # Errors
    /// The configuration is of no model that is known here.
    pub fn config(&self) -> Result<ModelConfig> {
        ModelConfig::from_json(self.config.to_string().as_bytes())
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
