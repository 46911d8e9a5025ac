//! Questions of a split in tokens, and what a model answers to them under one reading.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use cctuning::chat::Prompt;
use cctuning::generate::{Connection, GenerateOptions};
use cctuning::model::CcModel;
use cctuning::transform_matrix::FoldedTransform;

use super::cell::{Answers, Asked};
use super::matrix::Reading;
use crate::corpus::{self, Item};
use crate::data::Row;
use crate::evaluate;
use crate::inputs;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::recipe::Recipe;
use crate::run;
use crate::sample::Sample;

/// Answers of each family that a cell keeps as text, for a person.
const SHOWN: usize = 2;

/// The prompts of one split.
pub struct Questions {
    pub samples: Vec<Sample>,
    pub asked: Vec<Asked>,
    /// The answers of their English twins.
    english: Vec<String>,
}

/// Who answers.
pub struct Answerer<'a> {
    /// Tokenizer, template and the choices of the connection.
    pub folder: &'a ModelFolder,
    pub model: &'a CcModel,
    pub recipe: &'a Recipe,
}

impl Questions {
    /// At most `eval.limit` of each language and family.
    ///
    /// # Errors
    /// A prompt that cannot be rendered.
    pub fn new(recipe: &Recipe, folder: &ModelFolder, items: &[Item]) -> Result<Self> {
        let rows = evaluate::at_most(recipe.eval.limit, items.iter().map(Row::from).collect());
        // A prompt may take what its answer leaves of the context.
        let mut roomy = recipe.clone();
        let room = folder.model.model.context().saturating_sub(recipe.eval.max_new_tokens);
        roomy.data.cutoff = roomy.data.cutoff.min(room);
        let samples = inputs::samples(&roomy, folder, &rows)?;
        let keys = corpus::keys()?;
        let items: BTreeMap<&str, &Item> = items.iter().map(|item| (item.id.as_str(), item)).collect();
        let asked = |sample: &Sample| {
            let item = items[sample.id.as_str()];
            let fact =
                keys.get(item.unit()).with_context(|| format!("{}: no such unit in the corpus", item.id))?.clone();
            let kind = Row::from(item).kind().into();
            let Item { id, lang, task: family, output: gold, .. } = item.clone();
            Ok(Asked { id, lang, family, kind, fact, gold })
        };
        let asked = samples.iter().map(asked).collect::<Result<_>>()?;
        let english = samples.iter().map(|sample| items[sample.id.as_str()].output_en.clone()).collect();
        Ok(Self { samples, asked, english })
    }

    /// The first so many.
    pub fn first(&self, n: usize) -> Self {
        let n = n.min(self.samples.len());
        let Self { samples, asked, english } = self;
        Self { samples: samples[..n].to_vec(), asked: asked[..n].to_vec(), english: english[..n].to_vec() }
    }
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
        let Questions { samples, asked, english } = questions;
        let mut prompts: Vec<(&Prompt, &Prompt)> =
            samples.iter().map(|sample| (&sample.prompt, &sample.english)).collect();
        if reading == Reading::Shuffled {
            let others = evaluate::others(samples.len(), self.recipe.cc.seed)?;
            prompts.iter_mut().zip(others).for_each(|(pair, other)| pair.1 = &samples[other].prompt);
        }
        let in_english = reading == Reading::English;
        if in_english {
            prompts.iter_mut().for_each(|pair| pair.0 = pair.1);
        }
        let options = self.options(reading)?;
        let (model, config, stopped) = (self.model, &self.folder.config, || interrupt.requested());
        let found = evaluate::answer_until(model, config, transform, &prompts, &options, &stopped)?;
        let Some(found) = found else { return Ok(None) };
        let mut answers = Answers::default();
        let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
        for ((asked, english), (tokens, connection)) in asked.iter().zip(english).zip(&found) {
            let text = self.folder.tokenizer.decode(tokens)?;
            let (lang, gold) = if in_english { ("en", english) } else { (asked.lang.as_str(), &asked.gold) };
            answers.credits.push(evaluate::credit(&asked.family, lang, &text, gold));
            if let Some(connection) = connection {
                answers.note(connection, samples.len());
            }
            let shown = shown.entry(&asked.family).or_default();
            if *shown < SHOWN && asked.foreign() {
                *shown += 1;
                answers.shown.push((asked.id.clone(), text));
            }
        }
        Ok(Some(answers))
    }

    fn options(&self, reading: Reading) -> Result<GenerateOptions> {
        let mut connection = self.folder.settings.connection;
        connection.choice = reading.choice().unwrap_or(connection.choice);
        Ok(GenerateOptions { connection, ..run::options(self.recipe, self.folder, reading.source())? })
    }
}

impl Answers {
    fn note(&mut self, connection: &Connection, prompts: usize) {
        self.vector_norm += f64::from(connection.vector_norm) / prompts as f64;
        self.stream_norm += f64::from(connection.stream_norm) / prompts as f64;
        self.layers.push(connection.layer);
    }
}
