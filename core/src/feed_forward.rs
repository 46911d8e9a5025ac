//! The SwiGLU feed-forward network: `down(silu(gate(x)) * up(x))`.

use crate::attention::{linear, project};
use crate::config::ModelConfig;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

/// Feed-forward network of one block. Field names are the checkpoint's (`mlp.*`).
#[derive(Module, Debug)]
pub struct FeedForward {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl FeedForward {
    /// Fresh weights.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            gate_proj: linear(config.d_model, config.d_ff, false, device),
            up_proj: linear(config.d_model, config.d_ff, false, device),
            down_proj: linear(config.d_ff, config.d_model, false, device),
        }
    }

    /// # Shapes
    /// - `x`: `[batch, seq, d_model]`, normed
    /// - returns: `[batch, seq, d_model]`, before the residual: the `f_l` of the method
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = silu(project(&self.gate_proj, x.clone()));
        project(&self.down_proj, gate * project(&self.up_proj, x))
    }
}
