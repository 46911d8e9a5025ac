//! Answering prompts in batches and judging the answers.

use anyhow::{Result, ensure};
use burn::tensor::read_sync;
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::generate::{Connection, Decoding, GenerateOptions};
use cctuning::model::CcModel;
use cctuning::tokenizer::Tokenizer;
use cctuning::transform_matrix::FoldedTransform;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

use crate::data::Row;
use crate::parallel::{batches_at_once, in_parallel};
use crate::sample::Sample;
use crate::scorers::rouge::rouge_l;

/// Slots of one batch, prompt and answer and padding together: a batch of a large model then fits beside its weights, and
/// a GPU has enough to do.
const BATCH_SLOTS: usize = 16_384;
/// Most rows of one batch: rows that have ended wait for the last one.
const BATCH_ROWS: usize = 128;

/// The tokens of an answer, and what the connection did.
pub type Answered = (Vec<u32>, Option<Connection>);

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
    let answers = answer_until(model, config, transform, prompts, options, &|| false)?.unwrap_or_default();
    Ok(answers.into_iter().map(|(tokens, _)| tokens).collect())
}

/// As [`answer`], and what the connection did to each prompt; None when `stopped`, which is asked before every batch, says
/// so.
pub fn answer_until(
    model: &CcModel,
    config: &ModelConfig,
    transform: Option<&FoldedTransform>,
    prompts: &[(&Prompt, &Prompt)],
    options: &GenerateOptions,
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Vec<Answered>>> {
    let lengths: Vec<usize> = prompts.iter().map(|(own, other)| slots(own, other, options.max_new_tokens)).collect();
    let batches = batches(&lengths);
    let one = |batch: &Vec<usize>| -> Result<Option<Vec<Answered>>> {
        if stopped() {
            return Ok(None);
        }
        let own: Vec<&Prompt> = batch.iter().map(|&at| prompts[at].0).collect();
        let others: Vec<&Prompt> = batch.iter().map(|&at| prompts[at].1).collect();
        let decoding = Decoding::start(model, config, transform, &own, &others, options.clone())?;
        let connections = read_sync(decoding.connections())?;
        let connections = connections.map_or(vec![None; batch.len()], |all| all.into_iter().map(Some).collect());
        Ok(Some(read_sync(decoding.finish())?.into_iter().zip(connections).collect()))
    };
    let mut answers: Vec<Answered> = vec![Default::default(); prompts.len()];
    for (batch, found) in batches.iter().zip(in_parallel(batches_at_once(model), &batches, one)) {
        let Some(found) = found? else { return Ok(None) };
        batch.iter().zip(found).for_each(|(&at, found)| answers[at] = found);
    }
    Ok(Some(answers))
}

/// What a row takes of its batch: its prompt and answer, or its other prompt, which is read in one batch with those of the
/// other rows.
pub fn slots(own: &Prompt, other: &Prompt, max_new_tokens: usize) -> usize {
    (own.ids.len() + max_new_tokens).max(other.ids.len())
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
    ensure!(n != 1, "expected at least two prompts, found 1: a shuffled or unrelated one is another prompt's");
    // Sattolo's shuffle: one cycle through all.
    let mut others: Vec<usize> = (0..n).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for at in (1..n).rev() {
        others.swap(at, rng.random_range(0..at));
    }
    Ok(others)
}

/// At most `limit` rows of each language and family, in their order; 0 keeps all. What a constant answer earns on them
/// should be what it earns on all: one row of every kind is taken before a second of any, and of a kind the row whose answer
/// was taken least often in the language, then in the family, where English, which most tables leave out, counts by itself.
/// Rows of no family are taken as they come.
pub fn at_most(limit: usize, rows: Vec<Row>) -> Vec<Row> {
    if limit == 0 {
        return rows;
    }
    let mut left: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        left.entry((row.family(), &row.lang)).or_default().push(at);
    }
    let mut taken = Vec::new();
    let mut of_kind: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    let mut of_language: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    let mut of_family: BTreeMap<(&str, bool, &str), usize> = BTreeMap::new();
    for _ in 0..limit.min(rows.len()) {
        for (&(family, lang), left) in left.iter_mut().filter(|(_, left)| !left.is_empty()) {
            if family.is_empty() {
                taken.push(left.remove(0));
                continue;
            }
            let english = lang == "en";
            let counts = |&place: &usize| {
                let row = &rows[left[place]];
                let count = |counts: &BTreeMap<_, usize>, last| counts.get(&(family, lang, last)).copied().unwrap_or(0);
                let in_family = of_family.get(&(family, english, row.output.as_str())).copied().unwrap_or(0);
                (count(&of_kind, row.kind()), count(&of_language, row.output.as_str()), in_family)
            };
            let best = left.remove((0..left.len()).min_by_key(counts).unwrap_or(0));
            let (kind, answer) = (rows[best].kind(), rows[best].output.as_str());
            *of_kind.entry((family, lang, kind)).or_default() += 1;
            *of_language.entry((family, lang, answer)).or_default() += 1;
            *of_family.entry((family, english, answer)).or_default() += 1;
            taken.push(best);
        }
    }
    taken.sort_unstable();
    let mut rows: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
    taken.into_iter().filter_map(|at| rows[at].take()).collect()
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
