//! `ModelConfig`: what a Hugging Face `config.json` says of a Llama or Qwen2 decoder. Knows nothing of tensors.

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
    pub original_max_positions: f64,
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

#[derive(Deserialize)]
struct HfConfig {
    #[serde(default)]
    architectures: Vec<String>,
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
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
    eos_token_id: Option<Value>,
}

impl ModelConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// Malformed JSON, a missing key, an architecture or option that is not computed here, or sizes that contradict each other.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let hf: HfConfig = serde_json::from_slice(bytes).map_err(|e| Error::Config(e.to_string()))?;
        let unsupported = |key: &str, found: &dyn core::fmt::Debug, expected: &str| {
            Err(Error::Config(format!("`{key}` is {found:?}; supported here: {expected}")))
        };
        let named = hf.architectures.first().cloned().or(hf.model_type.clone()).unwrap_or_default();
        let family = match named.as_str() {
            "LlamaForCausalLM" | "llama" => Family::Llama,
            "Qwen2ForCausalLM" | "qwen2" => Family::Qwen2,
            other => return unsupported("architectures", &other, "LlamaForCausalLM, Qwen2ForCausalLM"),
        };
        if hf.hidden_act.as_deref().is_some_and(|act| act != "silu") {
            return unsupported("hidden_act", &hf.hidden_act, "silu");
        }
        if hf.mlp_bias {
            return unsupported("mlp_bias", &true, "false");
        }
        if hf.attention_bias && family == Family::Llama {
            return unsupported("attention_bias", &true, "false for Llama");
        }
        if hf.use_sliding_window {
            return unsupported("use_sliding_window", &true, "false");
        }
        let n_kv_heads = hf.num_key_value_heads.unwrap_or(hf.num_attention_heads);
        let sizes = [
            ("hidden_size", hf.hidden_size),
            ("intermediate_size", hf.intermediate_size),
            ("num_hidden_layers", hf.num_hidden_layers),
            ("num_attention_heads", hf.num_attention_heads),
            ("num_key_value_heads", n_kv_heads),
            ("vocab_size", hf.vocab_size),
            ("max_position_embeddings", hf.max_position_embeddings),
            ("head_dim", hf.head_dim.unwrap_or(1)),
        ];
        for (key, value) in sizes {
            if value == 0 || value > 1 << 24 {
                return Err(Error::Config(format!("`{key}` is {value}; expected 1 to {}", 1 << 24)));
            }
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
        // Since version 5, transformers writes `rope_theta` and `rope_scaling` as one `rope_parameters`.
        let rope = hf.rope_parameters.or(hf.rope_scaling).filter(|value| !value.is_null());
        let rope_theta = rope.as_ref().and_then(|rope| rope.get("rope_theta")?.as_f64()).or(hf.rope_theta);
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
            tie_word_embeddings: hf.tie_word_embeddings,
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
        if let Some(scaling) = &self.rope_scaling {
            json["rope_scaling"] = serde_json::to_value(scaling).expect("plain numbers serialise");
            json["rope_scaling"]["rope_type"] = "llama3".into();
        }
        json
    }
}

fn read_rope_scaling(value: Value) -> Result<Option<RopeScaling>> {
    match value.get("rope_type").or(value.get("type")).and_then(Value::as_str).unwrap_or("") {
        "default" => Ok(None),
        "llama3" => serde_json::from_value(value).map_err(|e| Error::Config(format!("`rope_scaling`: {e}"))),
        other => Err(Error::Config(format!("`rope_scaling.rope_type` is {other:?}; supported here: default, llama3"))),
    }
}
