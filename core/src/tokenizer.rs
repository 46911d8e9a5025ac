//! Text to token ids and back, by the `tokenizers` library from a `tokenizer.json`.

use crate::byte_bpe::ByteBpe;
use crate::error::{Error, Result};
use core::ops::Range;
use core::panic::AssertUnwindSafe;
use std::collections::BTreeSet;
use tokenizers::AddedToken;
use unicode_segmentation::UnicodeSegmentation;

/// A tokenizer whose control tokens can only be named by us, never typed by a user.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The fast way, where there is one.
    words: Option<ByteBpe>,
    /// Ids that leave no trace in decoded text.
    silent: BTreeSet<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The bytes are not one, or one whose tokens depend on chance.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let unusable = |e: &dyn core::fmt::Display| Error::Tokenizer(format!("tokenizer.json: {e}"));
        // The library panics on a file that is cut inside its decoder section.
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|e| unusable(&e))?;
        let inner = contained(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(|e| unusable(&e))?;
        Self::guarded(inner).map_err(|e| unusable(&e))
    }

    fn guarded(mut inner: tokenizers::Tokenizer) -> core::result::Result<Self, String> {
        if let tokenizers::ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|dropout| dropout > 0.0)
        {
            return Err("BPE dropout: the same text would get other tokens each time; set it to null".into());
        }
        // How long a prompt may be is ours to say, and a padding length in the file could ask for any memory.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        let added = inner.get_added_tokens_decoder();
        let silent = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        // Qwen's `<tool_call>` and its like are control tokens too, though the file does not call them special. An added
        // word of an extended vocabulary is not.
        let enclosed = |text: &str| text.len() > 2 && text.starts_with(['<', '[']) && text.ends_with(['>', ']']);
        let mut control: Vec<(u32, AddedToken)> =
            added.into_iter().filter(|(_, token)| !token.special && enclosed(&token.content)).collect();
        control.sort_by_key(|(id, _)| *id);
        let control = control.into_iter().map(|(_, token)| token.special(true));
        contained(AssertUnwindSafe(|| inner.add_special_tokens(control)))?;
        // A user's "<|end|>" is text: control tokens enter through `id` alone.
        inner.set_encode_special_tokens(true);
        // After encoding it adds control tokens, which only we name, and takes white space out of spans.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        // Each thread would remember the words of every tokenizer that it ever met, also of those that are gone.
        if let tokenizers::ModelWrapper::BPE(bpe) = inner.get_model() {
            let mut forgetful = bpe.clone();
            forgetful.resize_cache(0);
            inner.with_model(forgetful);
        }
        let words = ByteBpe::of(&inner);
        Ok(Self { inner, words, silent })
    }

    /// Ids of a text, without any control token.
    ///
    /// # Errors
    /// The tokenizer's model has no id for a piece of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        match self.by_words(text, |id, _| ids.push(id))? {
            Some(()) => Ok(ids),
            None => Ok(self.by_library(text)?.0),
        }
    }

    /// Ids of a text and the byte range that each stands for.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_spans(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let (mut ids, mut spans) = (Vec::with_capacity(text.len() / 3), Vec::with_capacity(text.len() / 3));
        let token = |id, span| {
            ids.push(id);
            spans.push(span);
        };
        match self.by_words(text, token)? {
            Some(()) => Ok((ids, spans)),
            None => self.by_library(text),
        }
    }

    /// None where only the library knows the ids.
    fn by_words(&self, text: &str, token: impl FnMut(u32, Range<usize>)) -> Result<Option<()>> {
        let Some(words) = &self.words else { return Ok(None) };
        let encode = || Ok::<_, Error>(words.encode(&self.inner, text, token));
        contained(AssertUnwindSafe(encode)).map_err(|e| unencoded(text, &e))
    }

    fn by_library(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encode = || self.inner.encode(text, false);
        let encoding = contained(AssertUnwindSafe(encode)).map_err(|e| unencoded(text, &e))?;
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), spans))
    }

    /// The text of some ids; control tokens vanish.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let spoken: Vec<u32> = ids.iter().copied().filter(|id| !self.silent.contains(id)).collect();
        contained(AssertUnwindSafe(|| self.inner.decode(&spoken, false))).map_err(Error::Tokenizer)
    }

    /// Id of a token by its exact name.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Names of the control tokens, which no text encodes to.
    pub fn control_tokens(&self) -> Vec<String> {
        let added = self.inner.get_added_tokens_decoder();
        let mut control: Vec<(u32, String)> =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();
        control.sort();
        control.into_iter().map(|(_, name)| name).collect()
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

fn unencoded(text: &str, error: &str) -> Error {
    Error::Tokenizer(format!("cannot encode {text:?}: {error}"))
}

/// The library's own word for a failure, also where it panics over a file that contradicts itself. In the browser a panic
/// still ends the worker, which the page reports.
fn contained<T, E: core::fmt::Display>(
    work: impl FnOnce() -> core::result::Result<T, E> + core::panic::UnwindSafe,
) -> core::result::Result<T, String> {
    match std::panic::catch_unwind(work) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it cannot be used");
            Err(format!("the tokenizer library gave up: {said}"))
        }
    }
}

/// What the library writes for bytes that are no character.
const REPLACEMENT: char = '\u{FFFD}';
/// Tokens that may wait for the rest of a character: none has more than four bytes.
const LONGEST_WAIT: usize = 4;
/// Bytes of a cluster that is shown before it is complete: no script has one as long.
const LONGEST_CLUSTER: usize = 1024;

/// Turns a stream of ids into whole grapheme clusters: what a reader takes for one character is never shown in parts,
/// and bytes that make no character are never shown at all.
///
/// The last cluster waits until the next begins, since a mark may still follow; [`Self::finish`] hands it out. Each id is
/// decoded with the few before it, so a long answer costs as much per token as a short one.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The ids whose text was complete last, for decoders that look back, then those after them.
    window: Vec<u32>,
    /// How many of the window are complete.
    complete: usize,
    /// Bytes of the window's text that were taken already.
    taken: usize,
    /// Characters that may go on.
    pending: String,
}

impl<'t> TextStream<'t> {
    /// A stream that has seen nothing.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), complete: 0, taken: 0, pending: String::new() }
    }

    /// The clusters that `id` completes, if any.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.tokenizer.silent.contains(&id) {
            return Ok(None);
        }
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        let sound = text.trim_end_matches(REPLACEMENT);
        // Where a decoder took back what was taken, as over bytes that make no character, nothing is shown twice.
        let fresh = &sound[sound.floor_char_boundary(self.taken.min(sound.len()))..];
        self.pending.extend(fresh.chars().filter(|&c| c != REPLACEMENT));
        if sound.len() == text.len() && !fresh.is_empty() {
            self.window.drain(..self.complete);
            self.complete = self.window.len();
            self.taken = self.tokenizer.decode(&self.window)?.len();
        } else if self.window.len() - self.complete >= 2 * LONGEST_WAIT {
            self.window.drain(..self.window.len() - LONGEST_WAIT);
            self.complete = 0;
            self.taken = self.tokenizer.decode(&self.window)?.trim_end_matches(REPLACEMENT).len();
        } else {
            self.taken = self.taken.max(sound.len());
        }
        Ok(self.whole())
    }

    /// What was held back; half a character at the end of the answer is left out.
    pub fn finish(self) -> String {
        self.pending
    }

    /// The clusters that another has followed.
    fn whole(&mut self) -> Option<String> {
        let last = self.pending.grapheme_indices(true).next_back().map_or(0, |(at, _)| at);
        let end = if self.pending.len() - last > LONGEST_CLUSTER { self.pending.len() } else { last };
        (end > 0).then(|| self.pending.drain(..end).collect())
    }
}
