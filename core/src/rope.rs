//! Rotary position embedding in the half-split layout of Hugging Face checkpoints, with Llama-3 frequency scaling.
//!
//! Burn's `RotaryEncoding` rotates adjacent pairs (Meta's layout), so this one is ours.

use crate::anchor::index;
use crate::config::{ModelConfig, RopeScaling};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use core::f64::consts::PI;
use core::ops::Range;

/// Longest context for which tables are made, in tokens; checkpoints that announce more are read up to here.
pub const MAX_CONTEXT: usize = 8192;

/// `cos` and `sin` of every position up to the context length, each `[context, head_dim]`.
#[derive(Module, Debug)]
pub struct Rope {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rope {
    /// Tables for `config`, computed in float64.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let context = config.max_positions.min(MAX_CONTEXT);
        let half = config.head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| config.rope_theta.powf(-(2.0 * i as f64) / config.head_dim as f64))
            .map(|frequency| config.rope_scaling.as_ref().map_or(frequency, |s| scale(frequency, s)))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..context)
                .flat_map(|position| {
                    let row = frequencies.iter().map(move |w| f(position as f64 * w) as f32);
                    row.clone().chain(row)
                })
                .collect();
            Tensor::from_data(TensorData::new(values, [context, config.head_dim]), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Tokens that the tables reach.
    pub fn context(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The rotation of the tokens in `slots`. A row that is padded on the left by `pad` tokens has its position 0 in
    /// slot `pad`; no pads at all stand for none in any row.
    pub fn rotation(&self, slots: Range<usize>, pads: &[usize]) -> Rotation {
        let rows = |table: &Tensor<2>| {
            if pads.is_empty() {
                return table.clone().slice([slots.clone()]).unsqueeze::<4>();
            }
            let positions = pads.iter().flat_map(|&pad| slots.clone().map(move |slot| slot.saturating_sub(pad)));
            let rows = table.clone().select(0, index(positions, &table.device()));
            rows.reshape([pads.len(), 1, slots.len(), table.dims()[1]])
        };
        Rotation { cos: rows(&self.cos), sin: rows(&self.sin) }
    }
}

/// `cos` and `sin` of the tokens of one pass, each `[batch or 1, 1, seq, head_dim]`.
pub struct Rotation {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotation {
    /// Rotates queries or keys.
    ///
    /// # Shapes
    /// - `x`: `[batch, heads, seq, head_dim]`
    /// - returns: the same
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.clone().narrow(3, half, half);
        x * self.cos.clone() + Tensor::cat(vec![second.neg(), first], 3) * self.sin.clone()
    }
}

/// Llama-3.1's piecewise scaling: high frequencies kept, low ones divided, the band between blended.
fn scale(frequency: f64, s: &RopeScaling) -> f64 {
    let (wavelength, original) = (2.0 * PI / frequency, s.original_max_positions as f64);
    if wavelength < original / s.high_freq_factor {
        frequency
    } else if wavelength > original / s.low_freq_factor {
        frequency / s.factor
    } else {
        let smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        (1.0 - smooth) * frequency / s.factor + smooth * frequency
    }
}
