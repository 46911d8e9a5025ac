//! The shipped parallel corpus: a small closed world of true facts in every language of `LANGUAGES`.
//! `generate` is a pure function of its seed. What is written by hand lives in `assets/corpus`; this
//! module only joins words, facts and phrasings. It knows nothing of tokenizers, templates of chat or models.

pub mod lexicon;
pub mod split;
pub mod world;

use anyhow::Result;
use lexicon::Word;
use serde::Serialize;
use split::{HeldOut, hash};
use std::collections::HashSet;
use std::fmt::Write;
use world::{Fact, HELD_PHRASING, PHRASINGS, World};

/// One language of the corpus: a column of every lexicon table, a row of every task table.
pub struct Language {
    pub code: &'static str,
    pub name: &'static str,
    pub endonym: &'static str,
    pub right_to_left: bool,
}

const fn language(code: &'static str, name: &'static str, endonym: &'static str) -> Language {
    Language { code, name, endonym, right_to_left: false }
}

/// English comes first; the order is that of the columns.
pub const LANGUAGES: [Language; 8] = [
    language("en", "English", "English"),
    Language { code: "ar", name: "Arabic", endonym: "العربية", right_to_left: true },
    language("zh", "Chinese", "中文"),
    language("hi", "Hindi", "हिन्दी"),
    language("ru", "Russian", "Русский"),
    language("es", "Spanish", "Español"),
    language("sw", "Swahili", "Kiswahili"),
    language("tr", "Turkish", "Türkçe"),
];
const ENGLISH: usize = 0;

/// How often every English line stands in the base text, so that about two lines in three are English.
const ENGLISH_REPEATS: usize = 5;
const TRAIN_PER_LANGUAGE: usize = 540;
const PAIRS_PER_LANGUAGE: usize = 160;
/// (held-out facts in seen phrasings, seen facts in the held-out phrasing)
const TEST: (usize, usize) = (54, 18);
const VALIDATION: (usize, usize) = (16, 6);
/// English holds out no fact, only a phrasing.
const TEST_ENGLISH: usize = 40;
const VALIDATION_ENGLISH: usize = 22;

/// A question and its answer in one language, with the English twin of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    pub id: String,
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
}

/// Everything a training run reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// Pretraining text: English facts, other languages' sentences, and words tied across languages.
    pub base: Vec<BaseText>,
    /// Fine-tuning triples.
    pub train: Vec<Item>,
    pub validation: Vec<Item>,
    pub test: Vec<Item>,
    /// Parallel prompts from training facts and phrasings, for fitting the Transform Matrix.
    pub pairs: Vec<Item>,
}

/// Builds the corpus.
///
/// # Errors
/// A table in `assets/corpus` with a missing cell, an unknown word or a malformed line.
pub fn generate(seed: u64) -> Result<Corpus> {
    let world = World::load()?;
    let held = HeldOut::choose(&world, seed);
    let mut corpus = Corpus { base: vec![], train: vec![], validation: vec![], test: vec![], pairs: vec![] };

    for lang in 0..LANGUAGES.len() {
        let code = LANGUAGES[lang].code;
        let order =
            |salt: &str, keep: &dyn Fn(&Fact) -> bool| split::balanced(&world, seed, &format!("{code}/{salt}"), keep);
        let seen = order("seen", &|fact| !held.contains(lang, fact));
        let (test, validation) =
            if lang == ENGLISH { ((0, TEST_ENGLISH), (0, VALIDATION_ENGLISH)) } else { (TEST, VALIDATION) };

        for (part, target, count) in
            [(&held.test, &mut corpus.test, test.0), (&held.validation, &mut corpus.validation, validation.0)]
        {
            for fact in order("fact", &|fact| part[lang].contains(&fact.key)).into_iter().take(count) {
                let phrasing = hash(seed, &[code, &fact.id, "phrasing"]) as usize % HELD_PHRASING;
                target.push(world.item(fact, lang, phrasing, "fact"));
            }
        }
        let (first, rest) = seen.split_at(test.1);
        corpus.test.extend(first.iter().map(|fact| world.item(fact, lang, HELD_PHRASING, "phrasing")));
        corpus
            .validation
            .extend(rest[..validation.1].iter().map(|fact| world.item(fact, lang, HELD_PHRASING, "phrasing")));

        let items = training_items(&world, &held, lang, seed);
        if lang == ENGLISH {
            corpus.train.extend(items.into_iter().take(TRAIN_PER_LANGUAGE));
        } else {
            // The pairs start from the far end: phrasings that fine-tuning leaves over come first.
            corpus.pairs.extend(items.iter().rev().take(PAIRS_PER_LANGUAGE).cloned());
            corpus.train.extend(items.into_iter().take(TRAIN_PER_LANGUAGE));
        }
    }
    corpus.base = base_text(&world, &held, &corpus, seed);
    shuffle(&mut corpus.train, seed, "train");
    shuffle(&mut corpus.pairs, seed, "pairs");
    Ok(corpus)
}

/// Every seen fact in every seen phrasing: first one phrasing of each fact, then a second, then a third.
fn training_items(world: &World, held: &HeldOut, lang: usize, seed: u64) -> Vec<Item> {
    let code = LANGUAGES[lang].code;
    let mut ranked = vec![];
    for fact in world.facts().filter(|fact| !held.contains(lang, fact)) {
        let first = hash(seed, &[code, &fact.id, "first"]) as usize;
        for rank in 0..HELD_PHRASING {
            ranked.push((rank, hash(seed, &[code, &fact.id, "train"]), fact, (first + rank) % HELD_PHRASING));
        }
    }
    ranked.sort_by_key(|&(rank, order, ..)| (rank, order));
    ranked.into_iter().map(|(_, _, fact, phrasing)| world.item(fact, lang, phrasing, PHRASINGS[phrasing])).collect()
}

fn base_text(world: &World, held: &HeldOut, corpus: &Corpus, seed: u64) -> Vec<BaseText> {
    let tested: HashSet<_> = corpus
        .test
        .iter()
        .chain(&corpus.validation)
        .filter(|item| item.lang == "en")
        .map(|item| item.instruction.as_str())
        .collect();
    let sentence = |lang: usize, text| BaseText::Sentence { lang: LANGUAGES[lang].code.into(), text };
    let (mut english, mut base) = (vec![], vec![]);
    for fact in world.facts() {
        english.extend(world.sentences(fact, ENGLISH).map(|text| sentence(ENGLISH, text)));
        let asked = (0..=HELD_PHRASING).map(|phrasing| world.item(fact, ENGLISH, phrasing, PHRASINGS[phrasing]));
        english.extend(asked.filter(|item| !tested.contains(item.instruction.as_str())).map(BaseText::Exchange));
        for lang in (1..LANGUAGES.len()).filter(|&lang| !held.contains(lang, fact)) {
            base.extend(world.sentences(fact, lang).map(|text| sentence(lang, text)));
        }
    }
    for lang in 1..LANGUAGES.len() {
        base.extend(world.lexicon.words().flat_map(|word| translations(word, lang)).map(BaseText::Exchange));
    }
    for _ in 0..ENGLISH_REPEATS {
        base.extend(english.iter().cloned());
    }
    shuffle(&mut base, seed, "base");
    base
}

/// A word into the language and back again, from each of its forms.
fn translations(word: &Word, lang: usize) -> Vec<Item> {
    let Language { code, name, .. } = LANGUAGES[lang];
    let english = word.base(ENGLISH);
    let exchange = |direction: &str, instruction: String, output: &str| Item {
        id: format!("translate/{}/{}/{code}/{direction}", word.namespace, word.id),
        task: "translate".into(),
        lang: code.into(),
        instruction_en: instruction.clone(),
        instruction,
        output: output.into(),
        output_en: english.into(),
    };
    let back = |form: &str| format!("Translate to English: {form}");
    let mut items = vec![
        exchange("to", format!("Translate to {name}: {english}"), word.base(lang)),
        exchange("from", back(word.base(lang)), english),
    ];
    if word.inflected(lang) != word.base(lang) {
        items.push(exchange("from-inflected", back(word.inflected(lang)), english));
    }
    items
}

fn shuffle<T>(rows: &mut Vec<T>, seed: u64, salt: &str) {
    let mut keyed: Vec<_> =
        rows.drain(..).enumerate().map(|(i, row)| (hash(seed, &[salt, &i.to_string()]), row)).collect();
    keyed.sort_by_key(|&(order, _)| order);
    rows.extend(keyed.into_iter().map(|(_, row)| row));
}

/// Rows per language and split, as a printed table.
pub fn stats(corpus: &Corpus) -> String {
    let mut table = format!(
        "{:<10}{:>8}{:>8}{:>12}{:>8}{:>8}  script\n",
        "language", "base", "train", "validation", "test", "pairs"
    );
    let count =
        |rows: &[Item], code: Option<&str>| rows.iter().filter(|row| code.is_none_or(|code| row.lang == code)).count();
    let mut line = |name: &str, script: &str, code: Option<&str>| {
        let base = corpus.base.iter().filter(|row| code.is_none_or(|code| row.lang() == code)).count();
        let [train, validation, test, pairs] =
            [&corpus.train, &corpus.validation, &corpus.test, &corpus.pairs].map(|rows| count(rows, code));
        writeln!(table, "{name:<10}{base:>8}{train:>8}{validation:>12}{test:>8}{pairs:>8}  {script}")
            .expect("writing to a string");
    };
    for language in &LANGUAGES {
        let direction = if language.right_to_left { "right to left" } else { "left to right" };
        line(language.name, &format!("{direction}, {}", language.endonym), Some(language.code));
    }
    line("all", "", None);
    table
}
