//! `ModelConfig`: what a Hugging Face `config.json` says of a Llama, Qwen2 or Mistral decoder. Knows nothing of tensors.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The architectures whose checkpoints are read. They differ in config values only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `LlamaForCausalLM` (Llama 2, 3, 3.1).
    Llama,
    /// `Qwen2ForCausalLM` (Qwen2, Qwen2.5): biases on q, k and v.
    Qwen2,
    /// `MistralForCausalLM` (v0.3): no sliding window.
    Mistral,
}

/// Llama-3 frequency scaling (`rope_scaling` with `rope_type = "llama3"`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are divided by `factor`.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context length before scaling, in tokens.
    #[serde(rename = "original_max_position_embeddings")]
    pub original_max_positions: usize,
}

/// Sizes and switches of a decoder. Axis names are those of the crate's legend.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Architecture.
    pub family: Family,
    /// Width of the residual stream (`hidden_size`).
    pub d_model: usize,
    /// Width of the feed-forward network (`intermediate_size`).
    pub d_ff: usize,
    /// Number of decoder blocks (`num_hidden_layers`).
    pub n_layers: usize,
    /// Query heads (`num_attention_heads`).
    pub n_heads: usize,
    /// Key/value heads (`num_key_value_heads`).
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence, in tokens (`max_position_embeddings`).
    pub max_positions: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama-3 scaling of the rotary frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v carry a bias.
    pub attention_bias: bool,
    /// End-of-sequence ids that the configuration names.
    pub eos_token_ids: Vec<u32>,
}

/// The keys that are read. Those that may be absent may be null as well.
#[derive(Deserialize)]
struct HfConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    rms_norm_eps: f64,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<Value>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    eos_token_id: Option<Value>,
}

impl ModelConfig {
    /// Numbers in the weights of a model, its Decision Maker's among them. On 32 bits, which a browser has, a large model's
    /// would not fit into a `usize`.
    pub fn parameters(&self) -> u64 {
        let Self { d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, .. } = *self;
        let [d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, vocab_size] =
            [d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, vocab_size].map(|size| size as u64);
        let attention = 2 * d_model * head_dim * (n_heads + n_kv_heads);
        let biases = if self.attention_bias { head_dim * (n_heads + 2 * n_kv_heads) } else { 0 };
        let layer = attention + biases + 3 * d_model * d_ff + 2 * d_model;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * vocab_size * d_model + n_layers * layer + d_model + n_layers * d_model
    }

    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// Malformed JSON, a missing key, an architecture or option that is not computed here, or sizes that contradict each other.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let hf: HfConfig = serde_json::from_slice(bytes).map_err(|e| Error::Config(e.to_string()))?;
        let unsupported = |key: &str, found: &dyn core::fmt::Debug, expected: &str| {
            Err(Error::Config(format!("`{key}` is {found:?}; supported here: {expected}")))
        };
        let named = hf.architectures.iter().flatten().next().or(hf.model_type.as_ref()).cloned().unwrap_or_default();
        let family = match named.as_str() {
            "LlamaForCausalLM" | "llama" => Family::Llama,
            "Qwen2ForCausalLM" | "qwen2" => Family::Qwen2,
            "MistralForCausalLM" | "mistral" => Family::Mistral,
            other => {
                let known = "LlamaForCausalLM, Qwen2ForCausalLM, MistralForCausalLM";
                return unsupported("architectures", &other, known);
            }
        };
        if hf.hidden_act.as_deref().is_some_and(|act| act != "silu") {
            return unsupported("hidden_act", &hf.hidden_act, "silu");
        }
        if hf.mlp_bias == Some(true) {
            return unsupported("mlp_bias", &true, "false");
        }
        if hf.attention_bias == Some(true) && family != Family::Qwen2 {
            return unsupported("attention_bias", &true, "false but for Qwen2");
        }
        if let Some(scheme) = hf.quantization_config.filter(|scheme| !scheme.is_null()) {
            return unsupported("quantization_config", &scheme.to_string(), "none; take the unquantized weights");
        }
        if hf.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return unsupported("partial_rotary_factor", &hf.partial_rotary_factor, "1");
        }
        if let Some(other) = hf.layer_types.iter().flatten().find(|kind| *kind != "full_attention") {
            return unsupported("layer_types", other, "full_attention");
        }
        if hf.use_sliding_window == Some(true) {
            return unsupported("use_sliding_window", &true, "false");
        }
        // Of the others' configurations only Mistral's means it without a switch; as wide as the context it hides nothing.
        let window = hf.sliding_window.filter(|window| family == Family::Mistral && !window.is_null());
        if let Some(window) = window.filter(|w| w.as_u64().is_none_or(|w| w < hf.max_position_embeddings as u64)) {
            return unsupported("sliding_window", &window, "null, as in Mistral v0.3");
        }
        let n_kv_heads = hf.num_key_value_heads.unwrap_or(hf.num_attention_heads);
        // Far above what exists, and small enough that a damaged file cannot ask for all memory.
        let sizes = [
            ("hidden_size", hf.hidden_size, 1 << 16),
            ("intermediate_size", hf.intermediate_size, 1 << 20),
            ("num_hidden_layers", hf.num_hidden_layers, 1 << 10),
            ("num_attention_heads", hf.num_attention_heads, 1 << 10),
            ("num_key_value_heads", n_kv_heads, 1 << 10),
            ("vocab_size", hf.vocab_size, 1 << 22),
            ("max_position_embeddings", hf.max_position_embeddings, 1 << 28),
            ("head_dim", hf.head_dim.unwrap_or(1), 1 << 12),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return Err(Error::Config(format!("`{key}` is {value}; expected 1 to {most}")));
            }
        }
        if !(hf.rms_norm_eps.is_finite() && hf.rms_norm_eps > 0.0) {
            return Err(Error::Config(format!("`rms_norm_eps` is {}; expected more than 0", hf.rms_norm_eps)));
        }
        if hf.head_dim.is_none() && hf.hidden_size % hf.num_attention_heads != 0 {
            return Err(Error::Config(format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {} and `head_dim` is not given",
                hf.hidden_size, hf.num_attention_heads
            )));
        }
        if hf.num_attention_heads % n_kv_heads != 0 {
            return Err(Error::Config(format!(
                "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {n_kv_heads}",
                hf.num_attention_heads
            )));
        }
        let head_dim = hf.head_dim.unwrap_or(hf.hidden_size / hf.num_attention_heads);
        if head_dim % 2 != 0 {
            return Err(Error::Config(format!("`head_dim` is {head_dim}; rotary embedding needs an even one")));
        }
        if head_dim > 1 << 12 {
            return Err(Error::Config(format!("`head_dim` is {head_dim}; expected 2 to {}", 1 << 12)));
        }
        // Since version 5, transformers writes `rope_theta` and `rope_scaling` as one `rope_parameters`.
        let rope = hf.rope_parameters.or(hf.rope_scaling).filter(|value| !value.is_null());
        let rope_theta = rope.as_ref().and_then(|rope| rope.get("rope_theta")?.as_f64()).or(hf.rope_theta);
        if let Some(theta) = rope_theta.filter(|theta| !(theta.is_finite() && *theta > 0.0)) {
            return Err(Error::Config(format!("`rope_theta` is {theta}; expected more than 0")));
        }
        let rope_scaling = rope.map(read_rope_scaling).transpose()?.flatten();
        Ok(Self {
            family,
            d_model: hf.hidden_size,
            d_ff: hf.intermediate_size,
            n_layers: hf.num_hidden_layers,
            n_heads: hf.num_attention_heads,
            n_kv_heads,
            head_dim,
            vocab_size: hf.vocab_size,
            max_positions: hf.max_position_embeddings,
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rope_scaling,
            rms_norm_eps: hf.rms_norm_eps,
            tie_word_embeddings: hf.tie_word_embeddings.unwrap_or(false),
            attention_bias: family == Family::Qwen2,
            eos_token_ids: match hf.eos_token_id {
                Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
                Some(id) => id.as_u64().map(|id| id as u32).into_iter().collect(),
                None => Vec::new(),
            },
        })
    }

    /// The Hugging Face `config.json` of this model, as `transformers` reads it.
    pub fn to_json(&self, dtype: &str) -> Value {
        let (architecture, model_type) = match self.family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Family::Mistral => ("MistralForCausalLM", "mistral"),
        };
        let mut json = serde_json::json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "hidden_act": "silu",
            "eos_token_id": self.eos_token_ids,
            "torch_dtype": dtype,
        });
        if self.family == Family::Mistral {
            json["sliding_window"] = Value::Null;
        }
        if let Some(scaling) = &self.rope_scaling {
            json["rope_scaling"] = serde_json::to_value(scaling).expect("plain numbers serialise");
            json["rope_scaling"]["rope_type"] = "llama3".into();
        }
        json
    }
}

fn read_rope_scaling(value: Value) -> Result<Option<RopeScaling>> {
    let unsupported = |key: &str, found: &dyn core::fmt::Display, expected: &str| {
        Err(Error::Config(format!("`rope_scaling.{key}` is {found}; supported here: {expected}")))
    };
    let Some(object) = value.as_object() else { return unsupported("rope_type", &value, "default, llama3") };
    if let Some(factor) = object.get("partial_rotary_factor").filter(|factor| factor.as_f64() != Some(1.0)) {
        return unsupported("partial_rotary_factor", factor, "1");
    }
    match object.get("rope_type").or(object.get("type")) {
        None if object.keys().all(|key| key == "rope_theta" || key == "partial_rotary_factor") => Ok(None),
        Some(kind) if kind == "default" => Ok(None),
        Some(kind) if kind == "llama3" => {
            let scaling: RopeScaling =
                serde_json::from_value(value).map_err(|e| Error::Config(format!("`rope_scaling`: {e}")))?;
            let RopeScaling { factor, low_freq_factor, high_freq_factor, original_max_positions } = scaling;
            let positive = [factor, low_freq_factor, high_freq_factor, original_max_positions as f64];
            if positive.iter().any(|value| !(value.is_finite() && *value > 0.0)) || high_freq_factor <= low_freq_factor
            {
                return Err(Error::Config(format!(
                    "`rope_scaling`: expected numbers above 0 and low_freq_factor below high_freq_factor, found {scaling:?}"
                )));
            }
            Ok(Some(scaling))
        }
        other => unsupported("rope_type", other.unwrap_or(&Value::Null), "default, llama3"),
    }
}
