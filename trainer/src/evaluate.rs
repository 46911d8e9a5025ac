//! Answering prompts in batches and judging the answers.

use anyhow::Result;
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::generate::{Decoding, GenerateOptions};
use cctuning::model::CcModel;
use cctuning::tokenizer::Tokenizer;
use cctuning::transform_matrix::FoldedTransform;
use std::collections::BTreeMap;

use crate::sample::Sample;

/// Prompts answered at once; more gains nothing on a CPU.
const BATCH: usize = 32;

/// Greedy answers to prompts of any length: prompts of equal length share a batch, so nothing is padded and every
/// answer is the one it would get alone.
pub fn answer(
    model: &CcModel,
    config: &ModelConfig,
    transform: Option<&FoldedTransform>,
    prompts: &[(&Prompt, &Prompt)],
    options: &GenerateOptions,
) -> Result<Vec<Vec<u32>>> {
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (at, (prompt, _)) in prompts.iter().enumerate() {
        groups.entry((prompt.ids.len(), prompt.anchor)).or_default().push(at);
    }
    let mut answers = vec![Vec::new(); prompts.len()];
    for group in groups.values().flat_map(|group| group.chunks(BATCH)) {
        let own: Vec<&Prompt> = group.iter().map(|&at| prompts[at].0).collect();
        let english: Vec<&Prompt> = group.iter().map(|&at| prompts[at].1).collect();
        let decoding = Decoding::start(model, config, transform, &own, &english, options.clone())?;
        let tokens = burn::tensor::read_sync(decoding.finish())?;
        for (&at, tokens) in group.iter().zip(tokens) {
            answers[at] = tokens;
        }
    }
    Ok(answers)
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
