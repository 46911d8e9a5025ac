//! The key/value cache: allocated once for the whole answer, written in place, rewound for the re-run of the anchor.
//!
//! Rows of unequal length are padded on the *left*: so the ends of all prompts and all new tokens stand in the same
//! slots, and only two things differ by row, the pads that nobody may look at and the positions counted after them.

use crate::anchor::index;
use crate::config::ModelConfig;
use burn::tensor::{Device, Tensor};

/// Keys and values of every layer, each `[batch, n_kv_heads, capacity, head_dim]`, filled up to `len` slots.
#[derive(Clone)]
pub struct KvCache {
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    len: usize,
    capacity: usize,
    pads: Vec<usize>,
}

impl KvCache {
    /// An empty cache for `batch` sequences of at most `capacity` tokens.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        Self::of_shape(config.n_layers, [batch, config.n_kv_heads, capacity, config.head_dim], device)
    }

    /// An empty cache of `n_layers` times `[batch, n_kv_heads, capacity, head_dim]`.
    pub(crate) fn of_shape(n_layers: usize, shape: [usize; 4], device: &Device) -> Self {
        let layers =
            (0..n_layers).map(|_| Some((Tensor::zeros(shape, device), Tensor::zeros(shape, device)))).collect();
        Self { layers, len: 0, capacity: shape[2], pads: Vec::new() }
    }

    /// An empty cache for rows that begin with so many pads each, of at most `capacity` slots.
    pub fn left_padded(config: &ModelConfig, pads: &[usize], capacity: usize, device: &Device) -> Self {
        let pads_matter = pads.iter().any(|&pad| pad > 0);
        let pads_of_rows = if pads_matter { pads.to_vec() } else { Vec::new() };
        Self { pads: pads_of_rows, ..Self::new(config, pads.len(), capacity, device) }
    }

    /// The same content for `rows` rows, from a cache of one.
    pub fn repeated(&self, rows: usize) -> Self {
        let repeat = |tensor: &Tensor<4>| tensor.clone().repeat_dim(0, rows);
        let layers = self.layers.iter().map(|layer| layer.as_ref().map(|(k, v)| (repeat(k), repeat(v))));
        let pads = self.pads.iter().cycle().take(self.pads.len() * rows).copied();
        Self { layers: layers.collect(), pads: pads.collect(), ..*self }
    }

    /// Keeps these rows only, in this order.
    pub fn keep(&mut self, rows: &[usize]) {
        for (keys, values) in self.layers.iter_mut().flatten() {
            let rows = index(rows.iter().copied(), &keys.device());
            *keys = keys.clone().select(0, rows.clone());
            *values = values.clone().select(0, rows);
        }
        if !self.pads.is_empty() {
            self.pads = rows.iter().map(|&row| self.pads[row]).collect();
        }
    }

    /// Pads at the head of every row; empty when no row has any.
    pub fn pads(&self) -> &[usize] {
        &self.pads
    }

    /// Slots already held; the slot of the next token.
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
