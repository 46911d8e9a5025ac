//! Byte-level BPE word by word, each word merged once and remembered: what the `tokenizers` library does for such a
//! tokenizer, in a thirtieth of its time. A new word's tokens are the library's own. It knows nothing of control tokens.
//!
//! The library, too, splits a text into words and merges inside them alone, so that a word's tokens depend on nothing
//! else. It keeps, for each character of each text, where it came from; that is where its time goes.

use ahash::AHashMap;
use core::ops::Range;
use core::panic::{RefUnwindSafe, UnwindSafe};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::pool::Pool;
use regex_automata::{Anchored, Input, PatternID};
use tokenizers::normalizer::{NormalizedString, Range as Of};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{Model, Normalizer, SplitDelimiterBehavior};
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};
use unicode_normalization_alignments::is_nfc;

/// GPT-2's words, which a file may name without spelling them out.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// How all such patterns end: white space leaves its last character to the word after it. A DFA cannot look ahead, so
/// that `words` does this by hand.
const SPACE: &str = r"|\s+(?!\S)|\s+";
/// Matches when nothing before `SPACE` does.
const IS_SPACE: PatternID = PatternID::new_unchecked(1);
/// Words that one thread remembers before it begins anew, and the bytes of the longest.
const WORDS: usize = 1 << 17;
const LONGEST: usize = 64;

/// What splits and remembers words.
pub struct ByteBpe {
    words: DFA,
    /// One for each thread that encodes.
    memories: Pool<Memory, Box<dyn Fn() -> Memory + Send + Sync + UnwindSafe + RefUnwindSafe>>,
}

struct Memory {
    search: Cache,
    /// A word's tokens, by the word itself where it is short: nearly every word is found without another look into
    /// memory.
    short: AHashMap<u128, Known>,
    long: AHashMap<Box<str>, Known>,
    tokens: Vec<Token>,
    /// A word as the vocabulary spells it.
    spelled: String,
}

/// The one token of a word, or where in `tokens` they are.
#[derive(Clone, Copy)]
enum Known {
    One(u32),
    Many { start: u32, end: u32 },
}

#[derive(Clone, Copy)]
struct Token {
    id: u32,
    bytes: u32,
}

impl ByteBpe {
    /// None where the tokenizer is of another kind.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return None };
        let affixed = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
        if bpe.dropout.is_some() || affixed(&bpe.continuing_subword_prefix) || affixed(&bpe.end_of_word_suffix) {
            return None;
        }
        // Added words are looked for before the text is split.
        if tokenizer.get_added_tokens_decoder().values().any(|token| !token.special) {
            return None;
        }
        let others = pattern(tokenizer.get_pre_tokenizer()?)?.strip_suffix(SPACE)?;
        let words = DFA::builder().build_many(&[others, r"\s+"]).ok()?;
        let search = words.clone();
        let memory = move || Memory {
            search: search.create_cache(),
            short: AHashMap::new(),
            long: AHashMap::new(),
            tokens: Vec::new(),
            spelled: String::new(),
        };
        Some(Self { words, memories: Pool::new(Box::new(memory)) })
    }

    /// Hands out the ids of a text, each with the byte range that it stands for. None where only the library knows them,
    /// perhaps after some were handed out.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str, mut token: impl FnMut(u32, Range<usize>)) -> Option<()> {
        let model = tokenizer.get_model();
        match tokenizer.get_normalizer() {
            None => self.words(model, text, token),
            Some(NormalizerWrapper::NFC(_)) if text.is_ascii() || is_nfc(text) => self.words(model, text, token),
            Some(normalizer) => {
                let mut normalized = NormalizedString::from(text);
                normalizer.normalize(&mut normalized).ok()?;
                let mut outside = false;
                self.words(model, normalized.get(), |id, span| {
                    match normalized.convert_offsets(Of::Normalized(span)) {
                        Some(span) => token(id, span),
                        None => outside = true,
                    }
                })?;
                (!outside).then_some(())
            }
        }
    }

    fn words(&self, model: &ModelWrapper, text: &str, mut token: impl FnMut(u32, Range<usize>)) -> Option<()> {
        let mut memory = self.memories.get();
        let Memory { search, short, long, tokens, spelled } = &mut *memory;
        let mut at = 0;
        while at < text.len() {
            let input = Input::new(text).span(at..text.len()).anchored(Anchored::Yes);
            let found = self.words.try_search_fwd(search, &input).ok()??;
            let mut end = found.offset();
            if found.pattern() == IS_SPACE && end < text.len() {
                let last = text[at..end].char_indices().next_back().map_or(0, |(last, _)| last);
                end = if last > 0 { at + last } else { end };
            }
            let word = text.get(at..end).filter(|word| !word.is_empty())?;
            let packed = packed(word);
            let known = packed.map_or_else(|| long.get(word), |word| short.get(&word));
            let known = match known {
                Some(&known) => known,
                None => {
                    if short.len() + long.len() == WORDS {
                        short.clear();
                        long.clear();
                        tokens.clear();
                    }
                    let start = tokens.len();
                    tokens.extend(merged(model, word, spelled).ok()?);
                    let known = match tokens[start..] {
                        [Token { id, bytes }] if bytes as usize == word.len() => {
                            tokens.truncate(start);
                            Known::One(id)
                        }
                        _ => Known::Many { start: start as u32, end: tokens.len() as u32 },
                    };
                    match packed {
                        Some(packed) => drop(short.insert(packed, known)),
                        None if word.len() <= LONGEST => drop(long.insert(word.into(), known)),
                        None => {}
                    }
                    known
                }
            };
            match known {
                Known::One(id) => token(id, at..end),
                Known::Many { start, end: last } => {
                    let mut from = at;
                    for &Token { id, bytes } in &tokens[start as usize..last as usize] {
                        // A part of a character stands for all of it.
                        let to = from + bytes as usize;
                        token(id, text.floor_char_boundary(from)..text.ceil_char_boundary(to));
                        from = to;
                    }
                    if word.len() > LONGEST {
                        tokens.truncate(start as usize);
                    }
                    if from != end {
                        return None;
                    }
                }
            }
            at = end;
        }
        Some(())
    }
}

/// A word of at most 15 bytes, with its length.
fn packed(word: &str) -> Option<u128> {
    let mut bytes = [0; 16];
    bytes[15] = word.len() as u8;
    bytes[..15].get_mut(..word.len())?.copy_from_slice(word.as_bytes());
    Some(u128::from_le_bytes(bytes))
}

/// The library's tokens of one word.
fn merged(model: &ModelWrapper, word: &str, spelled: &mut String) -> tokenizers::Result<Vec<Token>> {
    spelled.clear();
    spelled.extend(word.bytes().map(spelling));
    let tokens = model.tokenize(spelled)?.into_iter();
    let bytes = |(start, end)| spelled.get(start..end).map_or(0, |text| text.chars().count() as u32);
    Ok(tokens.map(|token| Token { id: token.id, bytes: bytes(token.offsets) }).collect())
}

/// The pattern of a tokenizer that splits into words and then spells their bytes.
fn pattern(pre_tokenizer: &PreTokenizerWrapper) -> Option<&str> {
    use PreTokenizerWrapper as Step;
    const ISOLATED: SplitDelimiterBehavior = SplitDelimiterBehavior::Isolated;
    match pre_tokenizer {
        Step::ByteLevel(ByteLevel { add_prefix_space: false, use_regex: true, .. }) => Some(GPT2),
        Step::Sequence(steps) => match steps.as_ref() {
            [
                Step::Split(Split { pattern: SplitPattern::Regex(words), behavior: ISOLATED, invert: false, .. }),
                Step::ByteLevel(ByteLevel { add_prefix_space: false, use_regex: false, .. }),
            ] => Some(words),
            _ => None,
        },
        _ => None,
    }
}

/// The printable character that a byte-level vocabulary has for a byte.
fn spelling(byte: u8) -> char {
    let other = |at: u8| char::from_u32(256 + u32::from(at)).unwrap_or_default();
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=0x20 => other(byte),
        0x7f..=0xa0 => other(byte - 0x7f + 0x21),
        0xad => other(0x43),
    }
}
