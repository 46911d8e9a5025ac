//! From logits to the next token.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// The likeliest token.
    #[default]
    Greedy,
    /// Nucleus sampling; equal seeds give equal answers.
    TopP {
        /// Divides the logits; above 0.
        temperature: f32,
        /// Probability mass that is drawn from, in (0, 1].
        top_p: f32,
        /// Seed of the draw.
        seed: u64,
    },
}

/// Random numbers of one prompt: of nothing but the seed and its ids, so that neighbours in a batch have no part in them.
pub fn row_rng(seed: u64, ids: &[u32]) -> ChaCha8Rng {
    let mut hash = Sha256::new_with_prefix(seed.to_le_bytes());
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// Draws from the smallest set of likeliest tokens that holds `top_p` of the mass.
pub struct Nucleus {
    rng: ChaCha8Rng,
    temperature: f32,
    top_p: f32,
}

impl Nucleus {
    /// A seeded sampler.
    pub fn new(temperature: f32, top_p: f32, rng: ChaCha8Rng) -> Self {
        Self { rng, temperature: temperature.max(1e-4), top_p }
    }

    /// Index of the drawn token among `logits`.
    pub fn draw(&mut self, logits: &[f32]) -> usize {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut ranked: Vec<(usize, f32)> =
            logits.iter().map(|logit| ((logit - largest) / self.temperature).exp()).enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f32 = ranked.iter().map(|(_, weight)| weight).sum();
        let mut mass = 0.0;
        let cut = ranked.iter().position(|(_, weight)| {
            mass += weight / total;
            mass >= self.top_p
        });
        ranked.truncate(cut.map_or(ranked.len(), |last| last + 1));
        let kept: f32 = ranked.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.random_range(0.0..1.0f32) * kept;
        for &(token, weight) in &ranked {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        ranked.last().expect("a vocabulary has tokens").0
    }
}
