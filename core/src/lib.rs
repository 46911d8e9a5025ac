//! CC-Tuning (arXiv 2506.00875) on a Llama / Qwen2 decoder: bytes in, tensors and text out.
//!
//! No files, no command line, no DOM and no particular device: the trainer runs this crate on CUDA or the CPU,
//! the web worker runs it in wasm on WebGPU or the CPU.
//!
//! # The method on one page
//!
//! While training on a non-English example the feed-forward activations of its English twin are read at one
//! position, the *anchor* `r` (the last prompt token), and one of them is added to the non-English pass:
//!
//! 1. English pass over the prompt alone: `G_l = f_l[r]` for every layer `l`, where `f_l` is the output of the
//!    feed-forward network of block `l` before its residual. No graph, no `lm_head`.
//! 2. Decision Maker (Eq. 3-4): `H = mean_l(G_l + e) W_DM`, `s = gumbel_softmax(H)` one-hot with the straight-through
//!    gradient, `v = sum_l s_l G_l`; `e` is an embedding vector of the non-English input.
//! 3. Connection (Eq. 5): after the first block, `hidden[r] += v`. Then plain next-token cross-entropy (Eq. 1).
//! 4. Transform Matrix (Eq. 6-8): `W_T = argmin ||A W_T - B||²` over rows `A = f_l` of a prompt and `B = f_l` of its
//!    English twin, all layers stacked. At inference `F W_T` takes the place of `G`, `F` read from the prompt itself.
//!
//! So the modes differ only in where `G` comes from: nowhere (vanilla), the English twin (training), `F W_T` (inference).
//!
//! # Symbols and axes
//!
//! `batch`, `seq` (tokens, padded on the right in training, on the left in decoding), `d_model` (width of the stream), `d_ff`, `n_layers` (L), `n_heads` query heads
//! sharing `n_kv_heads` key/value heads of `head_dim`, `vocab_size`. Right padding needs no mask: attention is causal. Left padding is
//! hidden by one, see `cache`.
//!
//! # Map
//!
//! A file imports only files declared above it here; a test keeps it so.

#![deny(missing_docs)]

pub mod error;
pub mod config;
pub mod anchor;
pub mod rope;
pub mod cache;
mod product;
pub mod attention;
pub mod feed_forward;
pub mod tap;
pub mod decision_maker;
pub mod decoder;
pub mod transform_matrix;
#[cfg(feature = "fit")]
pub mod least_squares;
pub mod model;
pub mod saving;
pub mod stored;
pub mod checkpoint;
mod byte_bpe;
pub mod tokenizer;
pub mod chat;
pub mod sampling;
pub mod connection;
pub mod generate;
pub mod manifest;
pub mod bundle;

pub use error::{Error, Result};
