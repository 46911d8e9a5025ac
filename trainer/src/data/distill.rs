//! +SDRRL: self-distillation from a resource-rich language, after arXiv 2402.12204.
//!
//! Four kinds of rows are added, each `share` of the rows given: English prompts with the model's own answers,
//! code-switched instructions, translations of which the beginning is given, and answers to be completed.
//!
//! # Departures
//! The source switches single words with a bilingual dictionary. Here the dictionary is learned from the rows themselves,
//! whose instructions and outputs stand beside their English (`lexicon`): each known word of the instruction becomes
//! English with probability 1/2. Where no word is known, as in a script without spaces, the instruction begins in its own
//! language and goes on in English. The source translates the model's English answers into the other language by a
//! translation system; the rows' own answers stand for these translations, since no such system is at hand. Its
//! translation and completion rows come from an outside parallel corpus; here from the rows, so that nothing else has to be
//! had. It leaves the share of each kind open; 0.15 of each makes the 1.6 N that the CC-Tuning paper reports as the most.
//! The model answers greedily.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use cctuning::chat::{History, Prompt};
use cctuning::generate::{GenerateOptions, Source};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Row;
use super::build::{Added, is_english, language_name, translation_prompt};
use super::lexicon::Lexicon;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::{device, evaluate, run};

/// Prompts answered between two looks at the progress.
const BATCH: usize = 256;

/// The stream of random numbers that chooses words, apart from those that draw rows.
const SWITCHES: u64 = 16;

/// What the rows are made from.
pub struct Distill<'r> {
    pub rows: &'r [Row],
    pub share: f64,
    pub seed: u64,
}

impl Distill<'_> {
    /// The rows of one kind: `share` of all rows, drawn among those of other languages that stand for themselves, in their
    /// order.
    fn drawn(&self, kind: u64) -> Vec<&Row> {
        let alone = |row: &Row| !is_english(&row.lang) && row.before() == History::default();
        let mut others: Vec<usize> = (0..self.rows.len()).filter(|&at| alone(&self.rows[at])).collect();
        let wanted = ((self.share * self.rows.len() as f64).round() as usize).clamp(1, others.len().max(1));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(kind);
        for at in 0..wanted.min(others.len()) {
            let other = rng.random_range(at..others.len());
            others.swap(at, other);
        }
        others.truncate(wanted);
        others.sort_unstable();
        others.into_iter().map(|at| &self.rows[at]).collect()
    }

    /// The words of each language that the rows themselves translate.
    fn lexicons(&self) -> HashMap<&str, Lexicon> {
        let mut of_language: HashMap<&str, Vec<&Row>> = HashMap::new();
        for row in self.rows.iter().filter(|row| !is_english(&row.lang)) {
            of_language.entry(&row.lang).or_default().push(row);
        }
        let pairs = |rows: &[&'_ Row]| {
            let pairs = rows.iter().flat_map(|row| {
                let outputs = row.output_en.as_deref().map(|english| (row.output.as_str(), english));
                outputs.into_iter().chain([(row.instruction.as_str(), row.instruction_en.as_str())])
            });
            Lexicon::of(pairs)
        };
        of_language.into_iter().map(|(lang, rows)| (lang, pairs(&rows))).collect()
    }

    /// The rows that the model is to answer in English.
    pub fn asked(&self) -> Vec<&Row> {
        self.drawn(0)
    }

    /// All added rows, given the model's answers to [`Self::asked`].
    ///
    /// An answer that did not end is none: it would be trained on as if its sentence ended where it was cut.
    pub fn added(&self, answers: &[Option<String>]) -> Added {
        let unended = answers.iter().filter(|answer| answer.is_none()).count();
        let mut added = Added { unended, ..Added::default() };
        let answered = self.asked().into_iter().zip(answers).filter_map(|(row, answer)| Some((row, answer.as_ref()?)));
        for (row, answer) in answered.filter(|(_, answer)| !answer.trim().is_empty()) {
            let english = row.instruction_en.clone();
            added.rows.push(Row { lang: "en".into(), ..derived(row, "self", english, answer.trim().into()) });
        }
        let lexicons = self.lexicons();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(SWITCHES);
        for row in self.drawn(1) {
            let words = lexicons.get(row.lang.as_str());
            let switched = words.and_then(|words| words.switch(&row.instruction, || rng.random_bool(0.5)));
            let instruction = switched.unwrap_or_else(|| {
                let (begin, end) = (halves(&row.instruction).0, halves(&row.instruction_en).1);
                format!("{} {}", begin.trim(), end.trim())
            });
            let switched = derived(row, "switched", instruction, row.output.clone());
            added.rows.push(Row { instruction_en: row.instruction_en.clone(), ..switched });
        }
        for row in self.drawn(2) {
            let (begin, end) = halves(&row.output);
            match (&row.output_en, language_name(&row.lang)) {
                (None, _) => added.without_english += 1,
                (_, None) => added.without_name += 1,
                _ if begin.trim().is_empty() || end.trim().is_empty() => {}
                (Some(english), Some(name)) => {
                    let instruction = format!("{}\n {}", translation_prompt(name, english), begin.trim());
                    added.rows.push(derived(row, "partial", instruction, end.trim().into()));
                }
            }
        }
        for row in self.drawn(3) {
            let (begin, end) = halves(&row.output);
            if !begin.trim().is_empty() && !end.trim().is_empty() {
                let instruction = format!("Complete the following text.\n {}", begin.trim());
                added.rows.push(derived(row, "completion", instruction, end.trim().into()));
            }
        }
        added
    }
}

/// A row whose instruction is its own twin.
fn derived(row: &Row, kind: &str, instruction: String, output: String) -> Row {
    Row {
        id: format!("{}-{kind}", row.id),
        task: kind.into(),
        lang: row.lang.clone(),
        instruction_en: instruction.clone(),
        instruction,
        output,
        ..Row::default()
    }
}

/// The two halves of a text, between two words, or two characters of a script without spaces.
pub fn halves(text: &str) -> (&str, &str) {
    let text = text.trim();
    let middle = text.floor_char_boundary(text.len() / 2);
    let space = text.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, _)| at);
    let near = space.min_by_key(|at| at.abs_diff(middle)).unwrap_or(middle);
    text.split_at(near)
}

/// Lets a model answer and adds all rows; None when a person stopped it.
///
/// # Errors
/// The model cannot be loaded, or a prompt cannot be rendered.
pub fn with_model(distill: &Distill, model: &Path, recipe: &Recipe, interrupt: &Interrupt) -> Result<Option<Added>> {
    let (device, name) = device::choose();
    println!("device: {name}");
    let folder = ModelFolder::load(model, recipe.model.template.named(), 0, &device)?;
    let asked: Vec<&str> = distill.asked().iter().map(|row| row.instruction_en.as_str()).collect();
    let options = run::options(recipe, &folder, Source::None)?;
    let answers = answers(&folder, &asked, &options, recipe.data.english_cutoff, interrupt)?;
    Ok(answers.map(|answers| distill.added(&answers)))
}

/// What a model answers to instructions of at most `cutoff` tokens, in their order, where its answer ended within the limit;
/// None altogether when a person stopped it.
///
/// # Errors
/// An instruction cannot be rendered.
pub fn answers(
    folder: &ModelFolder,
    instructions: &[&str],
    options: &GenerateOptions,
    cutoff: usize,
    interrupt: &Interrupt,
) -> Result<Option<Vec<Option<String>>>> {
    let mut answers = Vec::with_capacity(instructions.len());
    let mut progress = Progress::new("  English answers", instructions.len(), 0);
    for some in instructions.chunks(BATCH) {
        let render = |instruction: &&str| -> Result<Prompt> {
            let template = &folder.settings.template;
            let mut prompt = template.render(&folder.tokenizer, instruction, folder.settings.anchor)?;
            prompt.truncate(cutoff)?;
            Ok(prompt)
        };
        let prompts: Vec<Prompt> = some.iter().map(render).collect::<Result<_>>()?;
        let pairs: Vec<(&Prompt, &Prompt)> = prompts.iter().map(|prompt| (prompt, prompt)).collect();
        let stopped = || interrupt.requested();
        let found = evaluate::answer_until(&folder.model, &folder.config, None, &pairs, options, &stopped)?;
        let Some(found) = found else { return Ok(None) };
        for (tokens, _) in found {
            // The stop token is no part of the answer, but counts.
            let ended = tokens.len() < options.max_new_tokens;
            answers.push(ended.then(|| folder.tokenizer.decode(&tokens)).transpose()?);
        }
        progress.count(answers.len(), "answers");
    }
    Ok(Some(answers))
}
