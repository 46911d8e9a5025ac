//! The shipped parallel corpus: a small closed world of true facts in every language of `LANGUAGES`, asked in six families.
//! `generate` is a pure function of its seed. What is written by hand lives in `assets/corpus`; this module only joins
//! words, facts and phrasings. It knows nothing of tokenizers, templates of chat or models.

mod base_text;
pub mod family;
pub mod split;
pub mod text;
pub mod world;

use anyhow::{Context, Result};
use family::{Family, HELD_PHRASING, PHRASINGS, Unit, World};
use serde::Serialize;
use split::{HeldOut, balanced, hash};
use std::collections::HashMap;
use std::fmt::Write;

/// One language of the corpus: a file of text.
pub struct Language {
    pub code: &'static str,
    pub name: &'static str,
    pub endonym: &'static str,
    pub right_to_left: bool,
}

const fn language(code: &'static str, name: &'static str, endonym: &'static str) -> Language {
    Language { code, name, endonym, right_to_left: false }
}

const fn right_to_left(code: &'static str, name: &'static str, endonym: &'static str) -> Language {
    Language { code, name, endonym, right_to_left: true }
}

/// The languages of the paper; English comes first.
pub const LANGUAGES: [Language; 22] = [
    language("en", "English", "English"),
    right_to_left("ar", "Arabic", "العربية"),
    language("bn", "Bengali", "বাংলা"),
    language("de", "German", "Deutsch"),
    language("el", "Greek", "Ελληνικά"),
    language("es", "Spanish", "Español"),
    language("eu", "Basque", "Euskara"),
    language("fr", "French", "Français"),
    language("hi", "Hindi", "हिन्दी"),
    language("id", "Indonesian", "Bahasa Indonesia"),
    language("ja", "Japanese", "日本語"),
    language("ko", "Korean", "한국어"),
    language("pt", "Portuguese", "Português"),
    language("ru", "Russian", "Русский"),
    language("sw", "Swahili", "Kiswahili"),
    language("te", "Telugu", "తెలుగు"),
    language("th", "Thai", "ไทย"),
    language("tr", "Turkish", "Türkçe"),
    right_to_left("ur", "Urdu", "اردو"),
    language("vi", "Vietnamese", "Tiếng Việt"),
    language("yo", "Yoruba", "Yorùbá"),
    language("zh", "Chinese", "中文"),
];
const ENGLISH: usize = 0;

/// How many of each family, in the order of `Family::ALL`, per language.
const TRAIN: [usize; 6] = [70, 40, 30, 24, 24, 12];
const PAIRS: [usize; 6] = [40, 15, 15, 10, 12, 8];
/// Held-out facts in seen phrasings; English holds out no fact.
const TEST_FACTS: usize = 9;
const VALIDATION_FACTS: usize = 3;
/// Seen facts in the held-out phrasing.
const TEST_PHRASINGS: usize = 3;
const VALIDATION_PHRASINGS: usize = 1;

/// A question and its answer in one language, with the English twin of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    pub id: String,
    /// The name of its family.
    pub task: String,
    pub lang: String,
    pub instruction: String,
    pub instruction_en: String,
    pub output: String,
    pub output_en: String,
}

/// One line of the text the base model is pretrained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum BaseText {
    Sentence { lang: String, text: String },
    Exchange(Item),
}

impl BaseText {
    pub fn lang(&self) -> &str {
        match self {
            BaseText::Sentence { lang, .. } => lang,
            BaseText::Exchange(item) => &item.lang,
        }
    }

    fn characters(&self) -> usize {
        match self {
            BaseText::Sentence { text, .. } => text.chars().count(),
            BaseText::Exchange(item) => item.instruction.chars().count() + item.output.chars().count(),
        }
    }
}

/// What fine-tuning and evaluation read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// Fine-tuning triples.
    pub train: Vec<Item>,
    pub validation: Vec<Item>,
    pub test: Vec<Item>,
    /// Parallel prompts from training facts and phrasings, for fitting the Transform Matrix.
    pub pairs: Vec<Item>,
}

impl Item {
    /// What its id says before language and suffix: the same in every language.
    pub fn unit(&self) -> &str {
        self.id.rsplitn(3, '/').nth(2).unwrap_or(&self.id)
    }
}

/// By [`Item::unit`] what is held out together, across families: `capital/eg` for `choice/country/cairo`.
///
/// # Errors
/// As [`generate`].
pub fn keys() -> Result<HashMap<String, String>> {
    Ok(World::load()?.units.into_iter().map(|unit| (unit.id, unit.key)).collect())
}

/// What the base model of a corpus reads: English of every family; other languages' words, sentences and some of their
/// tasks. `seed` is that of [`generate`].
///
/// # Errors
/// As [`generate`].
pub fn base_text(corpus: &Corpus, seed: u64) -> Result<Vec<BaseText>> {
    let world = World::load()?;
    let held = HeldOut::choose(&world.units, seed);
    Ok(base_text::base_text(&world, &held, corpus, seed))
}

/// Builds the corpus.
///
/// # Errors
/// A table in `assets/corpus` with a missing cell, an unknown word or a malformed line.
pub fn generate(seed: u64) -> Result<Corpus> {
    let world = World::load()?;
    let held = HeldOut::choose(&world.units, seed);
    let mut corpus = Corpus { train: vec![], validation: vec![], test: vec![], pairs: vec![] };
    for (lang, language) in LANGUAGES.iter().enumerate() {
        let code = language.code;
        for (at, family) in Family::ALL.into_iter().enumerate() {
            let order = |salt: &str, keep: &dyn Fn(&Unit) -> bool| {
                let units = world.units.iter().filter(|unit| unit.family == family && keep(unit));
                balanced(units, seed, &format!("{code}/{salt}"))
            };
            let seen = |unit: &Unit| !held.contains(lang, unit);
            for (part, target, count) in [
                (&held.test, &mut corpus.test, TEST_FACTS),
                (&held.validation, &mut corpus.validation, VALIDATION_FACTS),
            ] {
                for unit in order("fact", &|unit| part[lang].contains(&unit.key)).into_iter().take(count) {
                    let phrasing = hash(seed, &[code, &unit.id, "phrasing"]) as usize % HELD_PHRASING;
                    target.push(world.item(unit, lang, phrasing, code, "fact"));
                }
            }
            let mut rephrased = order("phrasing", &seen).into_iter();
            for (target, count) in [(&mut corpus.test, TEST_PHRASINGS), (&mut corpus.validation, VALIDATION_PHRASINGS)]
            {
                let units = rephrased.by_ref().take(count);
                target.extend(units.map(|unit| world.item(unit, lang, HELD_PHRASING, code, "phrasing")));
            }

            // Every seen unit in one phrasing, then in a second, then in a third.
            let units = order("train", &seen);
            let turns: Vec<(usize, &Unit)> =
                (0..HELD_PHRASING).flat_map(|turn| units.iter().map(move |&unit| (turn, unit))).collect();
            let item = |&(turn, unit): &(usize, &Unit)| {
                let phrasing = (hash(seed, &[code, &unit.id, "first"]) as usize + turn) % HELD_PHRASING;
                world.item(unit, lang, phrasing, &format!("{code}/{turn}"), PHRASINGS[phrasing])
            };
            if lang != ENGLISH {
                // The pairs start from the far end: what fine-tuning leaves over comes first.
                corpus.pairs.extend(turns.iter().rev().take(PAIRS[at]).map(item));
            }
            corpus.train.extend(turns.iter().take(TRAIN[at]).map(item));
        }
    }
    shuffle(&mut corpus.train, seed, "train");
    shuffle(&mut corpus.pairs, seed, "pairs");
    Ok(corpus)
}

/// The same prompts in some languages, so many of each family, in the phrasing that is held out; language by language, in
/// the same order.
///
/// # Errors
/// As [`generate`], or a code that is no language of the corpus.
pub fn parallel(codes: &[&str], per_family: usize, seed: u64) -> Result<Vec<Item>> {
    let world = World::load()?;
    let mut items = vec![];
    for code in codes {
        let lang = LANGUAGES.iter().position(|language| language.code == *code);
        let lang = lang.with_context(|| format!("{code:?} is no language of the corpus"))?;
        for family in Family::ALL {
            let units = balanced(world.units.iter().filter(|unit| unit.family == family), seed, "parallel");
            let some = units.into_iter().take(per_family);
            items.extend(some.map(|unit| world.item(unit, lang, HELD_PHRASING, "parallel", "parallel")));
        }
    }
    Ok(items)
}

fn shuffle<T>(rows: &mut Vec<T>, seed: u64, salt: &str) {
    let mut keyed: Vec<_> =
        rows.drain(..).enumerate().map(|(i, row)| (hash(seed, &[salt, &i.to_string()]), row)).collect();
    keyed.sort_by_key(|&(order, _)| order);
    rows.extend(keyed.into_iter().map(|(_, row)| row));
}

/// Rows per language and split, then per family, as a printed table.
///
/// # Errors
/// As [`generate`].
pub fn stats(seed: u64) -> Result<String> {
    let corpus = generate(seed)?;
    let text = base_text(&corpus, seed)?;
    let mut table = format!(
        "{:<12}{:>8}{:>10}{:>8}{:>12}{:>8}{:>8}  script\n",
        "language", "base", "thereof %", "train", "validation", "test", "pairs"
    );
    let everything: usize = text.iter().map(BaseText::characters).sum();
    let mut line = |name: &str, note: &str, base: Option<&dyn Fn(&BaseText) -> bool>, keep: &dyn Fn(&Item) -> bool| {
        let lines: Vec<_> = text.iter().filter(|line| base.is_none_or(|keep| keep(line))).collect();
        let share: usize = lines.iter().map(|text| text.characters()).sum();
        let [train, validation, test, pairs] = [&corpus.train, &corpus.validation, &corpus.test, &corpus.pairs]
            .map(|rows| rows.iter().filter(|item| keep(item)).count());
        let share = 100.0 * share as f64 / everything.max(1) as f64;
        let row = format!("{:>8}{share:>10.1}{train:>8}{validation:>12}{test:>8}{pairs:>8}  {note}", lines.len());
        writeln!(table, "{name:<12}{row}").expect("writing to a string");
    };
    for language in &LANGUAGES {
        let direction = if language.right_to_left { "right to left" } else { "left to right" };
        let note = format!("{direction}, {}", language.endonym);
        let own = |text: &BaseText| text.lang() == language.code;
        line(language.name, &note, Some(&own), &|item| item.lang == language.code);
    }
    for family in Family::ALL {
        let own = |text: &BaseText| matches!(text, BaseText::Exchange(item) if item.task == family.name());
        line(family.name(), "", Some(&own), &|item| item.task == family.name());
    }
    line("all", "", None, &|_| true);
    Ok(table)
}
