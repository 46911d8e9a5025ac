//! The base checkpoint, made from nothing: tokenizer, then a small decoder on the shipped corpus' base text.

use std::collections::BTreeSet;
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
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{TokenizerBuilder, TokenizerImpl};

use crate::corpus::{BaseText, Corpus, Item};
use crate::interrupt::Interrupt;
use crate::model_folder::{ModelFolder, Settings};
use crate::recipe::Recipe;
use crate::sample::Sample;
use crate::step::Method;
use crate::train::{Ended, train};

const VOCAB_SIZE: usize = 4096;
const CONTROL: [&str; 3] = ["<|user|>", "<|assistant|>", "<|end|>"];

/// Sizes of the shipped model: about 1.7 million parameters.
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
    let tokenizer_json = train_tokenizer(corpus)?;
    let tokenizer = Tokenizer::from_json(&tokenizer_json)?;
    let config = config();
    device.seed(recipe.optim.seed);
    let settings = Settings {
        template: ChatTemplate::PLAIN,
        anchor: AnchorRule::default(),
        connection: ConnectionOptions::default(),
    };
    let model = CcModel::new(&config, device);
    let folder = ModelFolder {
        config,
        source_config: Default::default(),
        model,
        tokenizer,
        tokenizer_json,
        settings,
        transform: None,
    };
    let samples = corpus.base.iter().map(|text| sample(text, &folder.tokenizer)).collect::<Result<Vec<_>>>()?;
    let tokens: usize = samples.iter().map(Sample::len).sum();
    println!("{} lines of base text, {tokens} tokens", samples.len());
    match train("pretrain", folder, &samples, Method::Sft, recipe, &out.join("pretraining"), interrupt)? {
        Ended::Interrupted => Ok(false),
        Ended::Finished(folder) => {
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

/// Byte-level BPE over the distinct lines of every language, so that English does not own all merges.
fn train_tokenizer(corpus: &Corpus) -> Result<Vec<u8>> {
    type Impl = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    let mut lines: BTreeSet<&str> = BTreeSet::new();
    for text in &corpus.base {
        match text {
            BaseText::Sentence { text, .. } => {
                lines.insert(text);
            }
            BaseText::Exchange(item) => lines.extend([item.instruction.as_str(), &item.output]),
        }
    }
    lines.extend(corpus.train.iter().flat_map(|item| [item.instruction.as_str(), &item.output]));
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| anyhow!("training the tokenizer: {e}");
    // A leading space makes a word the same token at the start of an answer as inside a sentence.
    let level = ByteLevel::new(true, false, true);
    let mut tokenizer: Impl = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(level)))
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
