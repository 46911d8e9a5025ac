//! Causal grouped-query attention with rotary positions.

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::rope::Rope;
use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};

/// Standard deviation of freshly initialised weights, the field's usual one.
const INIT_STD: f64 = 0.02;

/// A projection `[d_input, d_output]`, freshly initialised; on disk it is `[d_output, d_input]`.
pub(crate) fn linear(d_input: usize, d_output: usize, bias: bool, device: &Device) -> Linear {
    let initializer = Initializer::Normal { mean: 0.0, std: INIT_STD };
    let mut linear = LinearConfig::new(d_input, d_output).with_bias(false).with_initializer(initializer).init(device);
    if bias {
        linear.bias = Some(Initializer::Zeros.init([d_output], device));
    }
    linear
}

/// `x W + b`. The product is computed in the weight's precision, which training may lower; the result has `x`'s.
///
/// # Shapes
/// - `x`: `[batch, seq, d_input]`
/// - returns: `[batch, seq, d_output]`
pub(crate) fn project(linear: &Linear, x: Tensor<3>) -> Tensor<3> {
    let (weight, precision) = (linear.weight.val(), x.dtype());
    if weight.dtype() == precision {
        return linear.forward(x);
    }
    let [batch, seq, d_input] = x.dims();
    let product = x.reshape([batch * seq, d_input]).cast(weight.dtype()).matmul(weight).cast(precision);
    let product = match &linear.bias {
        Some(bias) => product + bias.val().unsqueeze(),
        None => product,
    };
    let d_output = product.dims()[1];
    product.reshape([batch, seq, d_output])
}

/// Self-attention of one block. Field names are the checkpoint's.
#[derive(Module, Debug)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    #[module(skip)]
    n_heads: usize,
    #[module(skip)]
    n_kv_heads: usize,
    #[module(skip)]
    head_dim: usize,
}

impl Attention {
    /// Fresh weights.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        Self {
            q_proj: linear(config.d_model, q, config.attention_bias, device),
            k_proj: linear(config.d_model, kv, config.attention_bias, device),
            v_proj: linear(config.d_model, kv, config.attention_bias, device),
            o_proj: linear(q, config.d_model, false, device),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Attends from the given tokens to themselves and to what the cache holds of `layer`.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, d_model]`, normed
    /// - returns: `[batch, seq, d_model]`, before the residual
    pub fn forward(&self, x: Tensor<3>, rope: &Rope, layer: usize, cache: Option<&mut KvCache>) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let heads = |x: Tensor<3>, n| x.reshape([batch, seq, n, self.head_dim]).swap_dims(1, 2);
        let query = rope.apply(heads(project(&self.q_proj, x.clone()), self.n_heads), start);
        let key = rope.apply(heads(project(&self.k_proj, x.clone()), self.n_kv_heads), start);
        let value = heads(project(&self.v_proj, x), self.n_kv_heads);
        let (key, value) = match cache {
            Some(cache) => cache.write(layer, key, value),
            None => (key, value),
        };

        // The query heads that share a key/value head are stacked along the sequence: keys are never repeated.
        let group = self.n_heads / self.n_kv_heads;
        let keys = start + seq;
        let scale = (self.head_dim as f64).powf(-0.5);
        let query = query.reshape([batch, self.n_kv_heads, group * seq, self.head_dim]) * scale;
        let scores = query.matmul(key.swap_dims(2, 3));
        let scores = if seq > 1 {
            let mask = causal_mask(seq, start, &scores.device());
            let scores = scores.reshape([batch, self.n_heads, seq, keys]) + mask;
            scores.reshape([batch, self.n_kv_heads, group * seq, keys])
        } else {
            scores
        };
        let mixed = softmax(scores, 3).matmul(value);
        let mixed = mixed.reshape([batch, self.n_heads, seq, self.head_dim]).swap_dims(1, 2);
        project(&self.o_proj, mixed.reshape([batch, seq, self.n_heads * self.head_dim]))
    }
}

/// Zero where a token may look, a large negative number where it may not: `[1, 1, seq, start + seq]`.
fn causal_mask(seq: usize, start: usize, device: &Device) -> Tensor<4> {
    let keys = start + seq;
    let values: Vec<f32> = (0..seq * keys).map(|i| if i % keys > start + i / keys { -1e30 } else { 0.0 }).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, seq, keys]), device)
}
