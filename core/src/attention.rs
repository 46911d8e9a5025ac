//! Causal grouped-query attention with rotary positions.

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::product::product;
use crate::rope::{Rope, Rotation};
use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};

/// Standard deviation of freshly initialised weights, the field's usual one.
const INIT_STD: f64 = 0.02;

/// What is added to the score of a token that must not be looked at.
const HIDDEN: f32 = -1e30;

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
    let (weight, precision, [batch, seq, d_input]) = (linear.weight.val(), x.dtype(), x.dims());
    if weight.dtype() == precision && batch * seq > 1 {
        return linear.forward(x);
    }
    let product = product(x.reshape([batch * seq, d_input]).cast(weight.dtype()), weight).cast(precision);
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

    /// Key/value heads and their width.
    pub(crate) fn kv_dims(&self) -> [usize; 2] {
        [self.n_kv_heads, self.head_dim]
    }

    /// Attends from the given tokens to themselves and to what the cache holds of `layer`.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, d_model]`, normed
    /// - returns: `[batch, seq, d_model]`, before the residual
    pub fn forward(&self, x: Tensor<3>, places: &Places, layer: usize, cache: Option<&mut KvCache>) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let heads = |x: Tensor<3>, n| x.reshape([batch, seq, n, self.head_dim]).swap_dims(1, 2);
        let query = places.rotation.apply(heads(project(&self.q_proj, x.clone()), self.n_heads));
        let key = places.rotation.apply(heads(project(&self.k_proj, x.clone()), self.n_kv_heads));
        let value = heads(project(&self.v_proj, x), self.n_kv_heads);
        let (key, value) = match cache {
            Some(cache) => cache.write(layer, key, value),
            None => (key, value),
        };

        // The query heads that share a key/value head are stacked along the sequence: keys are never repeated.
        let group = self.n_heads / self.n_kv_heads;
        let keys = key.dims()[2];
        let scale = (self.head_dim as f64).powf(-0.5);
        let query = query.reshape([batch, self.n_kv_heads, group * seq, self.head_dim]) * scale;
        let scores = query.matmul(key.swap_dims(2, 3));
        let scores = match &places.mask {
            Some(mask) => {
                let scores = scores.reshape([batch, self.n_heads, seq, keys]) + mask.clone();
                scores.reshape([batch, self.n_kv_heads, group * seq, keys])
            }
            None => scores,
        };
        let mixed = softmax(scores, 3).matmul(value);
        let mixed = mixed.reshape([batch, self.n_heads, seq, self.head_dim]).swap_dims(1, 2);
        project(&self.o_proj, mixed.reshape([batch, seq, self.n_heads * self.head_dim]))
    }
}

/// Where the tokens of one pass stand and where they may look: the same for every block.
pub struct Places {
    rotation: Rotation,
    /// Zero where a token may look, a large negative number where it may not: `[batch or 1, 1, seq, keys]`. Absent
    /// when each may look everywhere.
    mask: Option<Tensor<4>>,
}

impl Places {
    /// Places of `seq` tokens after those that the cache holds.
    pub fn new(rope: &Rope, seq: usize, cache: Option<&KvCache>, device: &Device) -> Self {
        let start = cache.map_or(0, KvCache::len);
        let pads = cache.map_or(&[][..], KvCache::pads);
        let rotation = rope.rotation(start..start + seq, pads);
        let mask = (seq > 1 || !pads.is_empty()).then(|| mask(start, seq, pads, device));
        Self { rotation, mask }
    }
}

/// Hides what comes later and, from real tokens, the pads. A pad may look at pads, so that no row of scores is hidden
/// altogether, which in half precision would be NaN and spread.
fn mask(start: usize, seq: usize, pads: &[usize], device: &Device) -> Tensor<4> {
    let keys = start + seq;
    let rows = if pads.is_empty() { &[0][..] } else { pads };
    let mut values = vec![0.0f32; rows.len() * seq * keys];
    for (at, line) in values.chunks_mut(keys).enumerate() {
        let (pad, slot) = (rows[at / seq], start + at % seq);
        if slot >= pad {
            line[..pad].fill(HIDDEN);
        }
        line[slot + 1..].fill(HIDDEN);
    }
    Tensor::from_data(TensorData::new(values, [rows.len(), 1, seq, keys]), device)
}
