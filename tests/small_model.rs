//! Small random models, a byte tokenizer and model folders, made here so that tests depend on no checkpoint.

#![allow(dead_code, reason = "every test file takes what it needs")]

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use cctuning::chat::{AnchorRule, ChatTemplate, Prompt};
use cctuning::checkpoint::{Checkpoint, Storage, save};
use cctuning::config::{Family, ModelConfig, RopeScaling};
use cctuning::generate::ConnectionOptions;
use cctuning::model::CcModel;
use cctuning::tokenizer::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use trainer::model_folder::{ModelFolder, Settings};

/// The control tokens of all templates, after the 256 bytes.
pub const CONTROL: [&str; 13] = [
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
];
pub const VOCAB_SIZE: usize = 272;

/// Three layers, two query heads to a key/value head; Llama with all three frequency bands of its scaling.
pub fn config(family: Family, tied: bool) -> ModelConfig {
    let scaling = RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
    ModelConfig {
        family,
        d_model: 32,
        d_ff: 48,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        vocab_size: VOCAB_SIZE,
        max_positions: 192,
        rope_theta: 10_000.0,
        rope_scaling: (family == Family::Llama).then_some(scaling),
        rms_norm_eps: 1e-5,
        tie_word_embeddings: tied,
        attention_bias: family == Family::Qwen2,
        eos_token_ids: Vec::new(),
    }
}

/// A model whose every parameter is drawn from `seed`, large enough that each part of it matters.
pub fn model(config: &ModelConfig, seed: u64) -> CcModel {
    CcModel::new(config, &Device::flex()).map(&mut Draw(ChaCha8Rng::seed_from_u64(seed)))
}

struct Draw(ChaCha8Rng);

impl ModuleMapper for Draw {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.val().dims();
        let n = shape.iter().product();
        // Norms lie around 1, as trained ones do; of the biases, which start at zero, the spread matters alone.
        let centre = if D == 1 && param.val().sum().into_scalar::<f32>() > 0.0 { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..n).map(|_| centre + self.0.random_range(-0.4..0.4f32)).collect();
        let tensor = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        Param::initialized(param.id, tensor).set_require_grad(true)
    }
}

/// All tensors of a model by Hugging Face name.
pub fn tensors(model: &CcModel) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = save(model, Storage::F32).unwrap();
    let mut checkpoint = Checkpoint::default();
    checkpoint.add("model.safetensors", &bytes).unwrap();
    checkpoint.names().map(|name| (name.to_string(), checkpoint.read(name).unwrap())).collect()
}

/// `n` ids drawn from `ids`.
pub fn random_ids(n: usize, ids: std::ops::Range<u32>, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(ids.clone())).collect()
}

/// A prompt of `n` random byte tokens whose anchor stands `back` from its end.
pub fn prompt(n: usize, back: usize, seed: u64) -> Prompt {
    Prompt { ids: random_ids(n, 0..256, seed), anchor: n - back, content: 1..n - back }
}

/// One token per byte, and the control tokens of every template.
pub fn tokenizer_json() -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocab: BTreeMap<String, usize> = alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), id)).collect();
    let added: Vec<Value> = CONTROL
        .iter()
        .enumerate()
        .map(|(at, content)| {
            json!({"id": 256 + at, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    })
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(tokenizer_json().to_string().as_bytes()).unwrap()
}

/// A folder in memory around the model of `seed`.
pub fn folder(config: ModelConfig, template: ChatTemplate, seed: u64) -> ModelFolder {
    let tokenizer_json = tokenizer_json().to_string().into_bytes();
    ModelFolder {
        source: Default::default(),
        model: model(&config, seed),
        config,
        tokenizer: Tokenizer::from_json(&tokenizer_json).unwrap(),
        tokenizer_json,
        settings: Settings { template, anchor: AnchorRule::LastPrompt, connection: ConnectionOptions::default() },
        transform: None,
    }
}

/// Writes a model folder that `trainer --set model.path=...` takes: plain template, byte tokenizer.
pub fn write_folder(path: &Path, seed: u64) {
    let folder = folder(config(Family::Llama, true), ChatTemplate::PLAIN, seed);
    folder.save_model(&folder.model, path, Storage::F32).unwrap();
}

/// Values of a tensor.
pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, |m, e| if e <= m { m } else { e });
    assert!(worst <= tolerance, "{what}: differs by {worst}, {tolerance} is allowed");
}

/// A Transform Matrix as a file holds it.
pub fn transform_file(matrix: &[f32], d_model: usize) -> Vec<u8> {
    let tensor = ("transform_matrix".to_string(), vec![d_model, d_model], matrix.to_vec());
    cctuning::checkpoint::save_tensors(vec![tensor], cctuning::checkpoint::Storage::F32).unwrap()
}
