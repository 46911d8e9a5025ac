//! Answering prompts in batches and judging the answers.

use anyhow::{Result, ensure};
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::generate::{Decoding, GenerateOptions};
use cctuning::model::CcModel;
use cctuning::tokenizer::Tokenizer;
use cctuning::transform_matrix::FoldedTransform;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

use crate::sample::Sample;

/// Slots of one batch, prompt and answer and padding together: a batch of a large model then fits beside its weights, and
/// a GPU has enough to do.
const BATCH_SLOTS: usize = 16_384;
/// Most rows of one batch: rows that have ended wait for the last one.
const BATCH_ROWS: usize = 128;

/// Greedy answers to prompts of any length, in the order of the prompts. Beside each prompt stands the other one that the
/// source needs: its English twin for `Source::Parallel`, see [`others`] for `Source::Shuffled`.
///
/// Prompts of similar length share a batch; every answer is the one that the prompt would get alone.
pub fn answer(
    model: &CcModel,
    config: &ModelConfig,
    transform: Option<&FoldedTransform>,
    prompts: &[(&Prompt, &Prompt)],
    options: &GenerateOptions,
) -> Result<Vec<Vec<u32>>> {
    let lengths: Vec<usize> = prompts.iter().map(|(prompt, _)| prompt.ids.len() + options.max_new_tokens).collect();
    let mut answers = vec![Vec::new(); prompts.len()];
    for batch in batches(&lengths) {
        let own: Vec<&Prompt> = batch.iter().map(|&at| prompts[at].0).collect();
        let others: Vec<&Prompt> = batch.iter().map(|&at| prompts[at].1).collect();
        let decoding = Decoding::start(model, config, transform, &own, &others, options.clone())?;
        let tokens = burn::tensor::read_sync(decoding.finish())?;
        for (at, tokens) in batch.into_iter().zip(tokens) {
            answers[at] = tokens;
        }
    }
    Ok(answers)
}

/// Cuts rows, the longest first, into batches of at most [`BATCH_SLOTS`]: what does not fit into memory shows at once.
pub fn batches(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(lengths[at]));
    let mut rest = &order[..];
    let mut batches = Vec::new();
    while let Some(&longest) = rest.first() {
        let rows = (BATCH_SLOTS / lengths[longest].max(1)).clamp(1, BATCH_ROWS).min(rest.len());
        let (batch, left) = rest.split_at(rows);
        batches.push(batch.to_vec());
        rest = left;
    }
    batches
}

/// For each of `n` prompts the one whose activations `Source::Shuffled` gives it: each gives once, none to itself.
///
/// # Errors
/// A single prompt has no other.
pub fn others(n: usize, seed: u64) -> Result<Vec<usize>> {
    ensure!(n != 1, "the shuffled source needs at least two prompts: a single one has no other to be confused with");
    // Sattolo's shuffle: one cycle through all.
    let mut others: Vec<usize> = (0..n).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for at in (1..n).rev() {
        others.swap(at, rng.random_range(0..at));
    }
    Ok(others)
}

/// The first `limit` samples of each language; 0 keeps all.
pub fn at_most(limit: usize, mut samples: Vec<Sample>) -> Vec<Sample> {
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    samples.retain(|sample| {
        let asked = asked.entry(sample.lang.clone()).or_default();
        *asked += 1;
        limit == 0 || *asked <= limit
    });
    samples
}

/// Share of right answers per language.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Score {
    /// Language to (right, asked).
    pub languages: BTreeMap<String, (usize, usize)>,
}

impl Score {
    /// Percentage for one language.
    pub fn percent(&self, lang: &str) -> f64 {
        self.languages.get(lang).map_or(f64::NAN, |&(right, asked)| 100.0 * right as f64 / asked as f64)
    }

    /// Mean of the percentages of all languages that `keep` keeps.
    pub fn mean(&self, keep: impl Fn(&str) -> bool) -> f64 {
        let kept: Vec<f64> = self.languages.keys().filter(|lang| keep(lang)).map(|lang| self.percent(lang)).collect();
        kept.iter().sum::<f64>() / kept.len() as f64
    }
}

/// Counts an answer as right when it is the expected text, white space aside.
pub fn score(samples: &[Sample], answers: &[Vec<u32>], tokenizer: &Tokenizer) -> Result<Score> {
    let mut score = Score::default();
    for (sample, answer) in samples.iter().zip(answers) {
        let expected = tokenizer.decode(&sample.answer)?;
        let found = tokenizer.decode(answer)?;
        let entry = score.languages.entry(sample.lang.clone()).or_default();
        entry.0 += usize::from(found.trim() == expected.trim());
        entry.1 += 1;
    }
    Ok(score)
}
