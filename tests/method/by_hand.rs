//! The decoder once more in plain loops over float64, from the tensors as they lie on disk: slow, obvious, independent.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use cctuning::config::ModelConfig;
use cctuning::model::CcModel;

use crate::small_model::tensors;

pub struct ByHand<'a> {
    config: &'a ModelConfig,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

/// What one pass over one row computed, indexed `[layer][position]`, and the logits `[position]`.
#[derive(Default)]
pub struct Trace {
    pub attention: Vec<Vec<Vec<f64>>>,
    pub feed_forward: Vec<Vec<Vec<f64>>>,
    pub block: Vec<Vec<Vec<f64>>>,
    pub logits: Vec<Vec<f64>>,
}

impl<'a> ByHand<'a> {
    pub fn new(config: &'a ModelConfig, model: &CcModel) -> Self {
        Self { config, tensors: tensors(model) }
    }

    pub fn tensor(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    /// One row of tokens; `injection` is added to the output of the first block at its position.
    pub fn run(&self, ids: &[u32], injection: Option<(usize, &[f32])>) -> Trace {
        let d = self.config.d_model;
        let embedding = self.tensor("model.embed_tokens.weight");
        let row = |id: u32| embedding[id as usize * d..][..d].iter().map(|&x| f64::from(x)).collect();
        let mut hidden: Vec<Vec<f64>> = ids.iter().map(|&id| row(id)).collect();
        let mut trace = Trace::default();
        for layer in 0..self.config.n_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let normed: Vec<_> = hidden.iter().map(|x| self.norm(x, &name("input_layernorm.weight"))).collect();
            let attended = self.attend(&normed, &name("self_attn"));
            add(&mut hidden, &attended);
            let normed: Vec<_> =
                hidden.iter().map(|x| self.norm(x, &name("post_attention_layernorm.weight"))).collect();
            let fed: Vec<_> = normed
                .iter()
                .map(|x| {
                    let gate = self.linear(x, &name("mlp.gate_proj"));
                    let up = self.linear(x, &name("mlp.up_proj"));
                    let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                    self.linear(&inner, &name("mlp.down_proj"))
                })
                .collect();
            add(&mut hidden, &fed);
            trace.attention.push(attended);
            trace.feed_forward.push(fed);
            trace.block.push(hidden.clone());
            if let (0, Some((position, vector))) = (layer, injection) {
                hidden[position].iter_mut().zip(vector).for_each(|(x, &v)| *x += f64::from(v));
            }
        }
        let head = if self.config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
        trace.logits = hidden.iter().map(|x| self.linear(&self.norm(x, "model.norm.weight"), head)).collect();
        trace
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.config.rms_norm_eps).sqrt();
        x.iter().zip(self.tensor(name)).map(|(x, &w)| x * scale * f64::from(w)).collect()
    }

    /// `W x + b`, W stored `[d_output, d_input]`.
    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let rows = self.tensor(&format!("{name}.weight")).chunks(x.len());
        let mut y: Vec<f64> = rows.map(|w| w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect();
        if let Some((_, bias)) = self.tensors.get(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, &b)| *y += f64::from(b));
        }
        y
    }

    fn attend(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let c = self.config;
        let project = |part: &str, rotate: bool| -> Vec<Vec<f64>> {
            let project = |(position, x): (usize, &Vec<f64>)| {
                let mut y = self.linear(x, &format!("{name}.{part}"));
                if rotate {
                    y.chunks_mut(c.head_dim).for_each(|head| self.rotate(head, position));
                }
                y
            };
            x.iter().enumerate().map(project).collect()
        };
        let (query, key, value) = (project("q_proj", true), project("k_proj", true), project("v_proj", false));
        let mixed = |position: usize| {
            let mut out = Vec::new();
            for head in 0..c.n_heads {
                let shared = head / (c.n_heads / c.n_kv_heads);
                let own = |row: &[f64], head: usize| row[head * c.head_dim..][..c.head_dim].to_vec();
                let q = own(&query[position], head);
                let score = |past: usize| {
                    let k = own(&key[past], shared);
                    (q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (c.head_dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..=position).map(score).collect();
                let total: f64 = scores.iter().sum();
                for i in 0..c.head_dim {
                    out.push((0..=position).map(|past| scores[past] / total * own(&value[past], shared)[i]).sum());
                }
            }
            self.linear(&out, &format!("{name}.o_proj"))
        };
        (0..x.len()).map(mixed).collect()
    }

    /// Element `i` turns with element `i + head_dim / 2`.
    fn rotate(&self, head: &mut [f64], position: usize) {
        let half = head.len() / 2;
        for i in 0..half {
            let mut frequency = self.config.rope_theta.powf(-2.0 * i as f64 / head.len() as f64);
            if let Some(s) = &self.config.rope_scaling {
                let turns = s.original_max_positions as f64 * frequency / (2.0 * PI);
                let kept = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0.0, 1.0);
                frequency *= kept + (1.0 - kept) / s.factor;
            }
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[i], head[i + half]);
            (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }
}

fn add(stream: &mut [Vec<f64>], what: &[Vec<f64>]) {
    for (x, y) in stream.iter_mut().zip(what) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}
