//! The decoder: embedding, blocks, final norm, and the only layer loop. Llama and Qwen2 are values of one config.

use crate::attention::{Attention, Places};
use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::decision_maker::DecisionMaker;
use crate::feed_forward::FeedForward;
use crate::rope::Rope;
use crate::tap::{Site, Taps};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor};
use core::ops::Range;

/// One decoder block: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
#[derive(Module, Debug)]
pub struct Block {
    self_attn: Attention,
    mlp: FeedForward,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

impl Block {
    fn new(config: &ModelConfig, device: &Device) -> Self {
        let norm = RmsNormConfig::new(config.d_model).with_epsilon(config.rms_norm_eps);
        Self {
            self_attn: Attention::new(config, device),
            mlp: FeedForward::new(config, device),
            input_layernorm: norm.init(device),
            post_attention_layernorm: norm.init(device),
        }
    }

    /// What is added to the stream first: `[batch, seq, d_model]`, as `hidden`.
    fn attended(&self, hidden: Tensor<3>, places: &Places, layer: usize, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.self_attn.forward(self.input_layernorm.forward(hidden), places, layer, cache)
    }

    /// What is added to the stream second, the `f_l` of the method: `[batch, seq, d_model]`, as `hidden`.
    fn fed(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.mlp.forward(self.post_attention_layernorm.forward(hidden))
    }
}

/// The decoder without its output head. Field names are the checkpoint's (`model.*`); the Decision Maker lives here
/// because the authors' checkpoints store it as `model.source_select.weight`.
#[derive(Module, Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    source_select: DecisionMaker,
    rope: Rope,
}

impl Decoder {
    /// Fresh weights.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let initializer = Initializer::Normal { mean: 0.0, std: 0.02 };
        Self {
            embed_tokens: EmbeddingConfig::new(config.vocab_size, config.d_model)
                .with_initializer(initializer)
                .init(device),
            layers: (0..config.n_layers).map(|_| Block::new(config, device)).collect(),
            norm: RmsNormConfig::new(config.d_model).with_epsilon(config.rms_norm_eps).init(device),
            source_select: DecisionMaker::new(config.d_model, config.n_layers, device),
            rope: Rope::new(config, device),
        }
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Longest sequence, in tokens.
    pub fn context(&self) -> usize {
        self.rope.context()
    }

    /// An empty cache for `batch` sequences of at most `capacity` tokens.
    pub fn cache(&self, batch: usize, capacity: usize) -> KvCache {
        let [heads, width] = self.layers[0].self_attn.kv_dims();
        KvCache::of_shape(self.layers.len(), [batch, heads, capacity, width], &self.embedding().device())
    }

    /// The Decision Maker (Eq. 3-4).
    pub fn decision_maker(&self) -> &DecisionMaker {
        &self.source_select
    }

    /// Token ids to vectors.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`
    /// - returns: `[batch, seq, d_model]`
    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.embed_tokens.forward(ids)
    }

    /// The embedding as a tied output head: `[vocab_size, d_model]`.
    pub fn embedding(&self) -> Tensor<2> {
        self.embed_tokens.weight.val()
    }

    /// With some rows of the embedding alone.
    pub(crate) fn with_embedding_rows(mut self, rows: Tensor<1, Int>) -> Self {
        self.embed_tokens.weight = self.embed_tokens.weight.map(|weight| weight.select(0, rows));
        self
    }

    /// The final norm.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, d_model]`
    /// - returns: the same
    pub fn normed(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.norm.forward(hidden)
    }

    /// Runs the given blocks. The taps see only these; the injection acts when its block is among them.
    ///
    /// With a cache the tokens stand after what it holds, and its length is advanced once.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, d_model]`, the input of block `layers.start`
    /// - returns: `[batch, seq, d_model]`, the output of the last of them, before the final norm
    pub fn forward(
        &self,
        hidden: Tensor<3>,
        layers: Range<usize>,
        mut cache: Option<&mut KvCache>,
        taps: Taps,
    ) -> Tensor<3> {
        let seq = hidden.dims()[1];
        let Taps { mut probe, injection } = taps;
        let mut offer = |site, output: &Tensor<3>| {
            if let Some(probe) = probe.as_deref_mut() {
                probe.offer(site, output);
            }
        };
        let places = Places::new(&self.rope, seq, cache.as_deref(), &hidden.device());
        let mut hidden = hidden;
        for layer in layers {
            let block = &self.layers[layer];
            let attended = block.attended(hidden.clone(), &places, layer, cache.as_deref_mut());
            offer(Site::Attention, &attended);
            hidden = hidden + attended;
            let fed = block.fed(hidden.clone());
            offer(Site::FeedForward, &fed);
            hidden = hidden + fed.clone();
            offer(Site::Block, &hidden);
            if let Some(injection) = injection.filter(|injection| injection.layer == layer) {
                hidden = injection.apply(hidden, fed);
            }
        }
        if let Some(cache) = cache {
            cache.advance(seq);
        }
        hidden
    }

    /// Runs the last block where only some rows of its output are wanted: every position is attended to, the
    /// feed-forward network meets the wanted rows alone. A cache is written and not advanced.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, d_model]`, the input of the last block
    /// - `rows`: `[n]`, counted over `batch * seq`
    /// - returns: the stream, the attention's and the feed-forward network's output, each `[n, d_model]`
    pub fn last_rows(&self, hidden: Tensor<3>, rows: Tensor<1, Int>, cache: Option<&mut KvCache>) -> [Tensor<2>; 3] {
        let [batch, seq, d_model] = hidden.dims();
        let layer = self.layers.len() - 1;
        let block = &self.layers[layer];
        let places = Places::new(&self.rope, seq, cache.as_deref(), &hidden.device());
        let attended = block.attended(hidden.clone(), &places, layer, cache);
        let at_rows = |x: Tensor<3>| x.reshape([batch * seq, d_model]).select(0, rows.clone());
        let (hidden, attended) = (at_rows(hidden), at_rows(attended));
        let hidden = hidden + attended.clone();
        let fed = block.fed(hidden.clone().unsqueeze()).squeeze_dim(0);
        [hidden + fed.clone(), attended, fed]
    }
}
