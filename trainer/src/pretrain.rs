//! The base checkpoint, made from nothing: tokenizer, then a small decoder on the shipped corpus' base text.

use std::path::Path;

use anyhow::{Result, anyhow};
use burn::tensor::Device;
use cctuning::chat::{AnchorRule, ChatTemplate, Prompt};
use cctuning::checkpoint::Storage;
use cctuning::config::{Family, ModelConfig};
use cctuning::generate::ConnectionOptions;
use cctuning::model::CcModel;
use cctuning::tokenizer::Tokenizer;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::Prepend;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{TokenizerBuilder, TokenizerImpl};

use crate::corpus::{self, BaseText, Corpus, Item, LANGUAGES};
use crate::inputs::CORPUS_SEED;
use crate::interrupt::Interrupt;
use crate::model_folder::{ModelFolder, Settings};
use crate::recipe::Recipe;
use crate::sample::Sample;
use crate::step::Method;
use crate::train::{Ended, train};

const VOCAB_SIZE: usize = 16_384;
/// Lines that a word weighs as much as when the vocabulary is made.
const WORD_WEIGHT: usize = 3;
/// What is one word to the tokenizer. Unlike GPT-2's, marks belong to their letters: Hindi, Bengali, Telugu and Thai write
/// their vowels with them.
const WORDS: &str = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+";
const CONTROL: [&str; 3] = ["<|user|>", "<|assistant|>", "<|end|>"];

/// Sizes of the shipped model: about 3.3 million parameters, two thirds of them the embeddings of its words.
fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        d_model: 128,
        d_ff: 384,
        n_layers: 6,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        vocab_size: VOCAB_SIZE,
        max_positions: 256,
        rope_theta: 10_000.0,
        rope_scaling: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        attention_bias: false,
        eos_token_ids: Vec::new(),
    }
}

/// Trains tokenizer and model and writes the checkpoint folder `out`. False if a person stopped it.
pub fn pretrain(corpus: &Corpus, recipe: &Recipe, out: &Path, device: &Device, interrupt: &Interrupt) -> Result<bool> {
    let base = corpus::base_text(corpus, CORPUS_SEED)?;
    let tokenizer_json = train_tokenizer(&base, &corpus.train)?;
    let tokenizer = Tokenizer::from_json(&tokenizer_json)?;
    let config = config();
    device.seed(recipe.optim.seed);
    let settings = Settings {
        template: ChatTemplate::PLAIN,
        anchor: AnchorRule::default(),
        connection: ConnectionOptions::default(),
    };
    let model = CcModel::new(&config, device);
    let folder =
        ModelFolder { config, source: Default::default(), model, tokenizer, tokenizer_json, settings, transform: None };
    let samples = base.iter().map(|text| sample(text, &folder.tokenizer)).collect::<Result<Vec<_>>>()?;
    let tokens: usize = samples.iter().map(Sample::len).sum();
    println!("{} lines of base text, {tokens} tokens", samples.len());
    match train("pretrain", folder, &samples, Method::Sft, recipe, &out.join("pretraining"), interrupt)? {
        Ended::Interrupted => Ok(false),
        Ended::Finished { folder, .. } => {
            folder.save_model(&folder.model, out, Storage::Bf16)?;
            crate::run_folder::write_file_atomically(&out.join("recipe.toml"), recipe.to_toml()?.as_bytes())?;
            Ok(true)
        }
    }
}

/// A line of base text. Of a sentence every token is predicted from those before it, of an exchange only the answer:
/// what a prompt draws by lot cannot be learnt.
fn sample(line: &BaseText, tokenizer: &Tokenizer) -> Result<Sample> {
    let control = |token: &str| tokenizer.id(token).ok_or_else(|| anyhow!("the tokenizer lacks {token}"));
    let [user, assistant, end] = CONTROL.map(control);
    let end = end?;
    let (ids, text, id) = match line {
        BaseText::Sentence { text, .. } => (vec![end], text, "sentence"),
        BaseText::Exchange(Item { id, instruction, output, .. }) => {
            let instruction = tokenizer.encode(instruction)?;
            ([vec![user?], instruction, vec![assistant?]].concat(), output, id.as_str())
        }
    };
    let answer = tokenizer.encode(text)?.into_iter().chain([end]).collect();
    let prompt = Prompt { ids, anchor: 0, content: 0..1 };
    Ok(Sample { id: id.into(), lang: line.lang().into(), english: prompt.clone(), prompt, answer })
}

/// Byte-level BPE in which every language has the same say: as much text, and its words more than once, so that they
/// become few tokens.
fn train_tokenizer(base: &[BaseText], rows: &[Item]) -> Result<Vec<u8>> {
    type Impl = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    let mut lines: Vec<&str> = Vec::new();
    let (english, others): (Vec<_>, Vec<_>) = base.iter().partition(|text| text.lang() == "en");
    let thinned = english.len() * (LANGUAGES.len() - 1) / others.len().max(1);
    for text in others.into_iter().chain(english.into_iter().step_by(thinned.max(1))) {
        match text {
            BaseText::Sentence { text, .. } => lines.push(text),
            BaseText::Exchange(Item { id, instruction, output, .. }) => {
                let times = if id.starts_with("translate/word/") { WORD_WEIGHT } else { 1 };
                lines.extend(std::iter::repeat_n([instruction.as_str(), output], times).flatten());
            }
        }
    }
    lines.extend(rows.iter().flat_map(|item| [item.instruction.as_str(), &item.output]));
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| anyhow!("training the tokenizer: {e}");
    let level = ByteLevel::new(false, false, false);
    let words =
        Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
    let mut tokenizer: Impl = TokenizerBuilder::new()
        .with_model(BPE::default())
        // A leading space makes a word the same token at the start of an answer as inside a sentence.
        .with_normalizer(Some(Prepend::new(" ".into()).into()))
        .with_pre_tokenizer(Some(Sequence::new(vec![words.into(), level.into()]).into()))
        .with_post_processor(None)
        .with_decoder(Some(DecoderWrapper::ByteLevel(level)))
        .build()
        .map_err(failed)?;
    let control: Vec<AddedToken> = CONTROL.iter().map(|&token| AddedToken::from(token, true)).collect();
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .special_tokens(control)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, lines.into_iter()).map_err(failed)?;
    Ok(tokenizer.to_string(false).map_err(failed)?.into_bytes())
}
