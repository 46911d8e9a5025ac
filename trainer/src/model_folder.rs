//! Model folders in Hugging Face layout, in and out.
//!
//! Beside what `transformers` reads there is `cctuning.json`: template, anchor and the connection's choices that the
//! model was trained with, and in a CC-Tuned model `transform_matrix.safetensors`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use cctuning::chat::{AnchorRule, ChatTemplate};
use cctuning::checkpoint::{Checkpoint, Storage, save_tensors};
use cctuning::config::ModelConfig;
use cctuning::generate::ConnectionOptions;
use cctuning::model::CcModel;
use cctuning::tokenizer::Tokenizer;
use cctuning::transform_matrix::{FoldedTransform, TransformMatrix};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::run_folder::read_if_there;
use crate::weight_files;
pub use crate::weight_files::{Layout, load_weights};
use crate::{hub, jinja};

pub const TRANSFORM_FILE: &str = "transform_matrix.safetensors";
/// All that a fit leaves in a folder.
const TRANSFORM_FILES: [&str; 7] = [
    TRANSFORM_FILE,
    "transform.json",
    "transform.txt",
    "transform.svg",
    "transform-mse.svg",
    "transform-curve.csv",
    "transform-curve.svg",
];
const SETTINGS_FILE: &str = "cctuning.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Where `transformers` looks first for what we write into [`TOKENIZER_CONFIG_FILE`].
const OLDER_TEXT_FILES: [&str; 4] =
    ["chat_template.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json"];
/// Keys of a generation_config.json about answers that are drawn.
const SAMPLING: [&str; 6] = ["do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"];

/// What `cctuning.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub template: ChatTemplate,
    pub anchor: AnchorRule,
    pub connection: ConnectionOptions,
}

/// A model with everything needed to use it.
pub struct ModelFolder {
    pub config: ModelConfig,
    pub source: Source,
    pub model: CcModel,
    pub tokenizer: Tokenizer,
    pub tokenizer_json: Vec<u8>,
    pub settings: Settings,
    pub transform: Option<TransformMatrix>,
}

/// The files around the weights as they were read, with what we do not use; null where there was none.
#[derive(Clone, Default)]
pub struct Source {
    pub config: Value,
    pub generation_config: Value,
    /// Its `chat_template` is the Jinja text that the settings' template was derived from, wherever that stood.
    pub tokenizer_config: Value,
}

/// The folder of the checkpoint that is shipped with the source.
pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets").join(name)
}

impl ModelFolder {
    /// The folder's Transform Matrix, if it has one, folded with its Decision Maker.
    pub fn folded_transform(&self) -> Option<FoldedTransform> {
        self.transform.as_ref().map(|transform| transform.fold(self.model.model.decision_maker()))
    }

    /// Loads a folder, or a model of the Hub by its name, onto `device`. `template` overrides what the folder or its tokenizer says.
    pub fn load(path: &Path, template: Option<ChatTemplate>, seed: u64, device: &Device) -> Result<Self> {
        let path = &hub::resolve(path)?;
        let config = load_config(path)?;
        let Speech { tokenizer, tokenizer_json, settings, tokenizer_config } = speech(path, template)?;
        let source = Source {
            config: serde_json::from_slice(&read(path, "config.json")?)?,
            generation_config: json_if_there(&path.join(GENERATION_CONFIG_FILE))?,
            tokenizer_config,
        };
        if tokenizer.vocab_size() > config.vocab_size {
            bail!(
                "{}: tokenizer.json has {} tokens and config.json says vocab_size {}; they belong to different models",
                path.display(),
                tokenizer.vocab_size(),
                config.vocab_size
            );
        }
        let model = load_weights(path, &config, seed, device)?;
        let transform = match path.join(TRANSFORM_FILE).exists() {
            true => Some(load_transform(path, &config, device)?),
            false => None,
        };
        Ok(Self { config, source, model, tokenizer, tokenizer_json, settings, transform })
    }

    /// The same folder around another model of the same shape.
    pub fn with_model(&self, model: CcModel) -> Result<Self> {
        Ok(Self {
            config: self.config.clone(),
            source: self.source.clone(),
            model,
            tokenizer: Tokenizer::from_json(&self.tokenizer_json)?,
            tokenizer_json: self.tokenizer_json.clone(),
            settings: self.settings.clone(),
            transform: self.transform.clone(),
        })
    }

    /// Writes `model`, of this folder's shape, with this folder's tokenizer and settings into `path`.
    pub fn save_model(&self, model: &CcModel, path: &Path, storage: Storage) -> Result<()> {
        self.save_as(model, path, Layout::of(storage))
    }

    /// As [`Self::save_model`], in another layout.
    pub fn save_as(&self, model: &CcModel, path: &Path, layout: Layout) -> Result<()> {
        let dtype = match layout.storage {
            Storage::F32 | Storage::Q8 => "float32",
            Storage::Bf16 => "bfloat16",
            Storage::F16 => "float16",
        };
        let stop = self.settings.template.stop_ids(&self.tokenizer)?;
        let mut config = self.config.clone();
        // What else the model was taught to end on stays known (`cc.stop`); whoever generates reads generation_config.json.
        if config.eos_token_ids.is_empty() {
            config.eos_token_ids.clone_from(&stop);
        }
        // What belongs to the model that stood here must not be taken for a part of this one.
        for former in TRANSFORM_FILES.into_iter().chain(OLDER_TEXT_FILES) {
            weight_files::remove(&path.join(former))?;
        }
        weight_files::save_weights(model, path, layout)?;
        write_json(path, "config.json", &merged(&self.source.config, config.to_json(dtype), dtype))?;
        write_json(path, GENERATION_CONFIG_FILE, &greedy(&self.source.generation_config, &stop))?;
        if layout.connection {
            write_json(path, SETTINGS_FILE, &serde_json::to_value(&self.settings)?)?;
        } else {
            weight_files::remove(&path.join(SETTINGS_FILE))?;
        }
        write(path, "tokenizer.json", &self.tokenizer_json)?;
        write_json(path, TOKENIZER_CONFIG_FILE, &self.tokenizer_config())
    }

    /// What `transformers` is to know of the text: what the source said, and over it how a turn begins and ends.
    fn tokenizer_config(&self) -> Value {
        let template = &self.settings.template;
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.config.max_positions,
            // Its own default has a third, which these models do not take.
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": false,
            "pad_token": template.stop_token(),
            "chat_template": template.to_jinja(),
        });
        for (key, value) in self.source.tokenizer_config.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config["eos_token"] = template.stop_token().into();
        if let Some(begin) = template.begin_token() {
            config["bos_token"] = begin.into();
        }
        config
    }

    /// Whether `path` holds all that [`Self::save_model`] writes; its last file is there once all others are.
    pub fn is_whole(path: &Path) -> bool {
        path.join(TOKENIZER_CONFIG_FILE).exists()
    }
}

/// What a model folder says of text: all that is read without its weights.
pub struct Speech {
    pub tokenizer: Tokenizer,
    pub tokenizer_json: Vec<u8>,
    pub settings: Settings,
    /// As [`Source`] has it.
    pub tokenizer_config: Value,
}

/// Reads the tokenizer, the template and the settings of a folder, or of a model of the Hub.
pub fn speech(path: &Path, template: Option<ChatTemplate>) -> Result<Speech> {
    let path = &hub::resolve_part(path, hub::Part::Text)?;
    let tokenizer_json = read(path, "tokenizer.json")?;
    let tokenizer = Tokenizer::from_json(&tokenizer_json).with_context(|| path.display().to_string())?;
    let mut settings = match read_if_there(&path.join(SETTINGS_FILE))? {
        Some(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| path.join(SETTINGS_FILE).display().to_string())?
        }
        None => Settings {
            template: match &template {
                Some(named) => named.clone(),
                None => jinja::of_folder(path, &tokenizer)?.or_else(|| ChatTemplate::detect(&tokenizer)).with_context(
                    || {
                        format!(
                            "{}: no chat template fits this tokenizer; name one with model.template",
                            path.display()
                        )
                    },
                )?,
            },
            anchor: AnchorRule::default(),
            connection: ConnectionOptions::default(),
        },
    };
    let mut tokenizer_config = json_if_there(&path.join(TOKENIZER_CONFIG_FILE))?;
    if let Some(config) = tokenizer_config.as_object_mut() {
        config.remove("chat_template");
        // Another template than the folder's has no text but ours.
        if let (None, Some(text)) = (&template, jinja::text_of_folder(path)?) {
            config.insert("chat_template".into(), text.into());
        }
    }
    settings.template = template.unwrap_or(settings.template);
    Ok(Speech { tokenizer, tokenizer_json, settings, tokenizer_config })
}

/// Reads `config.json` of a folder.
pub fn load_config(path: &Path) -> Result<ModelConfig> {
    ModelConfig::from_json(&read(path, "config.json")?).with_context(|| path.display().to_string())
}

/// What `source` said of generating, but greedily, and ending where this template does before all else.
fn greedy(source: &Value, stop: &[u32]) -> Value {
    let mut config = source.as_object().cloned().unwrap_or_default();
    config.retain(|key, _| !SAMPLING.contains(&key.as_str()));
    let mut ends: Vec<Value> = stop.iter().map(|&id| id.into()).collect();
    let others = match config.remove("eos_token_id").unwrap_or_default() {
        Value::Array(ids) => ids,
        id => vec![id],
    };
    for id in others {
        if id.is_u64() && !ends.contains(&id) {
            ends.push(id);
        }
    }
    config.extend([("eos_token_id".into(), ends.into()), ("do_sample".into(), false.into())]);
    config.into()
}

/// What `source` said, and over it what we know.
fn merged(source: &Value, ours: Value, dtype: &str) -> Value {
    let mut merged = source.as_object().cloned().unwrap_or_default();
    let Value::Object(mut ours) = ours else { return ours };
    if merged.contains_key("rope_parameters") {
        // The newer spelling of these two.
        for old in ["rope_theta", "rope_scaling"] {
            ours.remove(old);
        }
    }
    if merged.contains_key("dtype") {
        ours.remove("torch_dtype");
        ours.insert("dtype".into(), dtype.into());
    }
    merged.extend(ours);
    Value::Object(merged)
}

/// Writes the Transform Matrix of a folder.
pub fn save_transform(path: &Path, transform: &TransformMatrix) -> Result<()> {
    write(path, TRANSFORM_FILE, &save_tensors(transform.to_tensors(), Storage::F32)?)
}

/// Reads the Transform Matrix of a folder.
pub fn load_transform(path: &Path, config: &ModelConfig, device: &Device) -> Result<TransformMatrix> {
    let bytes = read(path, TRANSFORM_FILE)?;
    let mut checkpoint = Checkpoint::default();
    checkpoint.add(&path.join(TRANSFORM_FILE).display().to_string(), &bytes)?;
    let transform = checkpoint.transform_matrix(config.d_model, device);
    transform
        .and_then(|transform| transform.for_layers(config.n_layers))
        .with_context(|| path.join(TRANSFORM_FILE).display().to_string())
}

fn read(folder: &Path, file: &str) -> Result<Vec<u8>> {
    let path = folder.join(file);
    fs::read(&path).with_context(|| {
        format!(
            "cannot read {}: a model folder holds config.json, tokenizer.json and model.safetensors",
            path.display()
        )
    })
}

/// A file of JSON; null where there is none.
fn json_if_there(path: &Path) -> Result<Value> {
    let Some(bytes) = read_if_there(path)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

fn write(folder: &Path, file: &str, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    crate::run_folder::write_file_atomically(&folder.join(file), bytes)
}

fn write_json(folder: &Path, file: &str, json: &Value) -> Result<()> {
    write(folder, file, format!("{json:#}\n").as_bytes())
}
