//! Text to token ids and back, by the `tokenizers` library from a `tokenizer.json`.

use crate::error::{Error, Result};
use core::ops::Range;

/// A tokenizer whose control tokens can only be named by us, never typed by a user.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The bytes are not one.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let unusable = |e: &dyn core::fmt::Display| Error::Tokenizer(format!("tokenizer.json: {e}"));
        // The library panics on a file that is cut inside its decoder section.
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|e| unusable(&e))?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| unusable(&e))?;
        // A user's "<|end|>" is text: control tokens enter through `id` alone.
        tokenizer.set_encode_special_tokens(true);
        Ok(Self(tokenizer))
    }

    /// Ids of a text, without any control token.
    ///
    /// # Errors
    /// The tokenizer's model has no id for a piece of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_spans(text)?.0)
    }

    /// Ids of a text and the byte range that each stands for.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_spans(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding =
            self.0.encode(text, false).map_err(|e| Error::Tokenizer(format!("cannot encode {text:?}: {e}")))?;
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), spans))
    }

    /// The text of some ids; control tokens vanish.
    ///
    /// # Errors
    /// An id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids, true).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// Id of a token by its exact name.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }
}

/// Turns a stream of ids into whole characters: bytes of an unfinished character wait for the next id.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    shown: usize,
}

impl<'t> TextStream<'t> {
    /// A stream that has seen nothing.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), shown: 0 }
    }

    /// The text that `id` completes, if any.
    ///
    /// # Errors
    /// The id is not in the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        if text.ends_with('\u{FFFD}') || text.len() <= self.shown || !text.is_char_boundary(self.shown) {
            return Ok(None);
        }
        let fresh = text[self.shown..].to_string();
        self.shown = text.len();
        Ok(Some(fresh))
    }
}
