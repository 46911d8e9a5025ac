//! Questions of a split in tokens, and what a model answers to them under one reading.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::read_sync;
use cctuning::chat::Prompt;
use cctuning::generate::{Connection, Decoding, GenerateOptions};
use cctuning::model::CcModel;
use cctuning::sampling::Sampling;
use cctuning::transform_matrix::FoldedTransform;

use super::cell::{Answers, Asked};
use super::matrix::Reading;
use crate::corpus::Item;
use crate::data::Row;
use crate::evaluate;
use crate::inputs;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::recipe::Recipe;
use crate::sample::Sample;

/// Answers of each family that a cell keeps as text, for a person.
const SHOWN: usize = 2;

/// The prompts of one split.
pub struct Questions {
    pub samples: Vec<Sample>,
    pub asked: Vec<Asked>,
}

/// Who answers.
pub struct Answerer<'a> {
    /// Tokenizer, template and the choices of the connection.
    pub folder: &'a ModelFolder,
    pub model: &'a CcModel,
    pub recipe: &'a Recipe,
}

impl Questions {
    /// The first `eval.limit` of each language and family, both kinds in turn.
    ///
    /// # Errors
    /// A prompt that cannot be rendered.
    pub fn new(recipe: &Recipe, folder: &ModelFolder, items: &[Item]) -> Result<Self> {
        let chosen = in_turn(items, recipe.eval.limit);
        let rows: Vec<Row> = chosen.iter().map(|&item| Row::from(item)).collect();
        // A prompt may take what its answer leaves of the context.
        let mut roomy = recipe.clone();
        let room = folder.model.model.context().saturating_sub(recipe.eval.max_new_tokens);
        roomy.data.cutoff = roomy.data.cutoff.min(room);
        let samples = inputs::samples(&roomy, folder, &rows)?;
        let items: BTreeMap<&str, &Item> = chosen.into_iter().map(|item| (item.id.as_str(), item)).collect();
        let asked = |sample: &Sample| {
            let item = items.get(sample.id.as_str()).with_context(|| format!("no item {:?}", sample.id))?;
            let (_, kind) = item.id.rsplit_once('/').unwrap_or_default();
            let (id, lang, family) = (item.id.clone(), item.lang.clone(), item.task.clone());
            Ok(Asked { id, lang, family, kind: kind.into(), gold: item.output.clone() })
        };
        let asked = samples.iter().map(asked).collect::<Result<_>>()?;
        Ok(Self { samples, asked })
    }
}

/// At most `limit` items per language and family (0: all), one of every kind before a second of any.
pub fn in_turn(items: &[Item], limit: usize) -> Vec<&Item> {
    let mut seen: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, usize, &Item)> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let kind = item.id.rsplit('/').next().unwrap_or_default();
        let round = seen.entry((&item.lang, &item.task, kind)).or_default();
        ranked.push((*round, at, item));
        *round += 1;
    }
    ranked.sort_by_key(|&(round, at, _)| (round, at));
    let mut asked: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    ranked.retain(|(_, _, item)| {
        let taken = asked.entry((&item.lang, &item.task)).or_default();
        *taken += 1;
        limit == 0 || *taken <= limit
    });
    ranked.sort_by_key(|&(_, at, _)| at);
    ranked.into_iter().map(|(_, _, item)| item).collect()
}

impl Answerer<'_> {
    /// None when a person stopped it.
    ///
    /// # Errors
    /// A prompt that does not fit, or a reading that lacks its matrix.
    pub fn answer(
        &self,
        questions: &Questions,
        reading: Reading,
        transform: Option<&FoldedTransform>,
        interrupt: &Interrupt,
    ) -> Result<Option<Answers>> {
        let Questions { samples, asked } = questions;
        let mut others: Vec<&Prompt> = samples.iter().map(|sample| &sample.english).collect();
        if reading == Reading::Shuffled {
            let shuffled = evaluate::others(samples.len(), self.recipe.cc.seed)?;
            others = shuffled.into_iter().map(|other| &samples[other].prompt).collect();
        }
        let options = self.options(reading)?;
        let lengths: Vec<usize> =
            samples.iter().map(|sample| sample.prompt.ids.len() + options.max_new_tokens).collect();
        let started = Instant::now();
        let mut found: Vec<(Vec<u32>, Option<Connection>)> = vec![Default::default(); samples.len()];
        for batch in evaluate::batches(&lengths) {
            if interrupt.requested() {
                return Ok(None);
            }
            let own: Vec<&Prompt> = batch.iter().map(|&at| &samples[at].prompt).collect();
            let others: Vec<&Prompt> = batch.iter().map(|&at| others[at]).collect();
            let config = &self.folder.config;
            let decoding = Decoding::start(self.model, config, transform, &own, &others, options.clone())?;
            let connections = read_sync(decoding.connections())?;
            let tokens = read_sync(decoding.finish())?;
            for (row, (&at, tokens)) in batch.iter().zip(tokens).enumerate() {
                found[at] = (tokens, connections.as_ref().map(|all| all[row].clone()));
            }
        }
        let mut answers = Answers { seconds: started.elapsed().as_secs_f64(), ..Answers::default() };
        let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
        for (asked, (tokens, connection)) in asked.iter().zip(&found) {
            let text = self.folder.tokenizer.decode(tokens)?;
            answers.credits.push(evaluate::credit(&asked.family, &asked.lang, &text, &asked.gold));
            if let Some(connection) = connection {
                answers.note(asked, connection, samples.len());
            }
            let shown = shown.entry(&asked.family).or_default();
            if *shown < SHOWN && asked.lang != "en" {
                *shown += 1;
                answers.shown.push((asked.id.clone(), text));
            }
        }
        Ok(Some(answers))
    }

    fn options(&self, reading: Reading) -> Result<GenerateOptions> {
        let settings = &self.folder.settings;
        let mut connection = settings.connection;
        connection.choice = reading.choice().unwrap_or(connection.choice);
        let stop = settings.template.stop_ids(&self.folder.tokenizer)?;
        Ok(GenerateOptions {
            max_new_tokens: self.recipe.eval.max_new_tokens,
            sampling: Sampling::Greedy,
            source: reading.source(),
            connection,
            stop_ids: self.recipe.cc.stop.ids(&stop, &self.folder.config),
        })
    }
}

impl Answers {
    fn note(&mut self, asked: &Asked, connection: &Connection, prompts: usize) {
        self.vector_norm += f64::from(connection.vector_norm) / prompts as f64;
        self.stream_norm += f64::from(connection.stream_norm) / prompts as f64;
        if asked.lang != "en" {
            let layers = self.selected.entry(asked.family.clone()).or_default();
            layers.resize(connection.probabilities.len(), 0);
            layers[connection.layer] += 1;
        }
    }
}
