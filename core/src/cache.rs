//! The key/value cache: allocated once for the whole answer, written in place, rewound for the re-run of the anchor.

use crate::config::ModelConfig;
use burn::tensor::{Device, Tensor};

/// Keys and values of every layer, each `[batch, n_kv_heads, capacity, head_dim]`, filled up to `len` tokens.
pub struct KvCache {
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache for `batch` sequences of at most `capacity` tokens.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let shape = [batch, config.n_kv_heads, capacity, config.head_dim];
        let layers =
            (0..config.n_layers).map(|_| Some((Tensor::zeros(shape, device), Tensor::zeros(shape, device)))).collect();
        Self { layers, len: 0, capacity }
    }

    /// Tokens already held; the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Marks `tokens` more as held, once every layer of a pass has written them.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Forgets everything from position `len` on. Layers that are not run again keep what they hold there, which is
    /// what makes the re-run from the second block exact.
    pub fn rewind(&mut self, len: usize) {
        assert!(len <= self.len, "KV cache: rewind to {len} of {}", self.len);
        self.len = len;
    }

    /// Writes the keys and values of the tokens after `len` for one layer and returns all that is held with them.
    ///
    /// # Shapes
    /// - `key`, `value`: `[batch, n_kv_heads, seq, head_dim]`
    /// - returns: two of `[batch, n_kv_heads, len + seq, head_dim]`
    ///
    /// # Panics
    /// The tokens do not fit the capacity.
    pub fn write(&mut self, layer: usize, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, heads, seq, width] = key.dims();
        assert!(self.len + seq <= self.capacity, "KV cache: {} tokens in room for {}", self.len + seq, self.capacity);
        let (keys, values) = self.layers[layer].take().expect("a layer is put back after every write");
        let place = [0..batch, 0..heads, self.len..self.len + seq, 0..width];
        let keys = keys.slice_assign(place.clone(), key);
        let values = values.slice_assign(place, value);
        let held = (keys.clone().narrow(2, 0, self.len + seq), values.clone().narrow(2, 0, self.len + seq));
        self.layers[layer] = Some((keys, values));
        held
    }
}
