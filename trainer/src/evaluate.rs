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
use crate::scorers::rouge::rouge_l;

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

/// The first `limit` samples of each language and family; 0 keeps all.
pub fn at_most(limit: usize, mut samples: Vec<Sample>) -> Vec<Sample> {
    let mut asked: BTreeMap<(String, &str), usize> = BTreeMap::new();
    samples.retain(|sample| {
        let asked = asked.entry((sample.lang.clone(), sample.family())).or_default();
        *asked += 1;
        limit == 0 || *asked <= limit
    });
    samples
}

/// What each answer is worth, in the order of the samples; the family stands first in a sample's id.
pub fn credits(samples: &[Sample], answers: &[Vec<u32>], tokenizer: &Tokenizer) -> Result<Vec<f64>> {
    let of = |(sample, answer): (&Sample, &Vec<u32>)| {
        let gold = tokenizer.decode(&sample.answer)?;
        Ok(credit(sample.family(), &sample.lang, &tokenizer.decode(answer)?, &gold))
    };
    samples.iter().zip(answers).map(of).collect()
}

/// Mean in per cent over the samples that `keep` keeps, and their number. Every language weighs the same.
pub fn percent(samples: &[Sample], credits: &[f64], keep: impl Fn(&Sample) -> bool) -> (f64, usize) {
    let mut languages: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for (sample, credit) in samples.iter().zip(credits).filter(|(sample, _)| keep(sample)) {
        let (sum, asked) = languages.entry(&sample.lang).or_default();
        (*sum, *asked) = (*sum + credit, *asked + 1);
    }
    let means = languages.values().map(|&(sum, asked)| 100.0 * sum / asked as f64).sum::<f64>();
    (means / languages.len() as f64, languages.values().map(|&(_, asked)| asked).sum())
}

/// What an answer is worth, from 0 to 1: it must be the gold answer, in reading contain it as in the paper; a summary is
/// worth its ROUGE-L.
pub fn credit(family: &str, lang: &str, answer: &str, gold: &str) -> f64 {
    let (answer, gold) = (answer.trim(), gold.trim());
    match family {
        // Between words these scripts set no space.
        "summary" if ["ja", "th", "zh"].contains(&lang) => rouge_l("char", lang, gold, answer),
        "summary" => rouge_l("unicode", lang, gold, answer),
        "reading" => f64::from(answer.contains(gold)),
        _ => f64::from(answer == gold),
    }
}
