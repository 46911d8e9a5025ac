//! Words: one row per concept, one column per language, read from `assets/corpus/lexicon`.
//! A cell is `base` or `base|inflected` (genitive, oblique, with article: whatever that language's
//! templates ask for with `{x~}`). Knows nothing of facts or phrasings.

use super::LANGUAGES;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;

macro_rules! tables {
    ($folder:literal: $($name:literal)*) => { &[$(($name, include_str!(concat!("../../../assets/corpus/", $folder, "/", $name, ".tsv")))),*] };
}
pub(super) use tables;

/// A table's name is the namespace of its words: `country/eg`.
const TABLES: &[(&str, &str)] = tables!("lexicon": "animal" "city" "class" "colour" "continent" "country" "day" "habitat" "language" "month" "number" "thing" "word");

pub struct Word {
    pub namespace: &'static str,
    pub id: &'static str,
    cells: Vec<&'static str>,
}

impl Word {
    /// The name itself: what an answer is.
    pub fn base(&self, lang: usize) -> &'static str {
        self.cells[lang].split('|').next().unwrap_or_default()
    }

    /// The form that stands inside a sentence; the name itself where the language needs no other.
    pub fn inflected(&self, lang: usize) -> &'static str {
        self.cells[lang].rsplit('|').next().unwrap_or_default()
    }
}

pub struct Lexicon {
    words: Vec<Word>,
    index: HashMap<(&'static str, &'static str), usize>,
}

impl Lexicon {
    pub fn load() -> Result<Self> {
        let mut lexicon = Lexicon { words: vec![], index: HashMap::new() };
        for &(namespace, text) in TABLES {
            let codes: Vec<_> = std::iter::once("id").chain(LANGUAGES.iter().map(|language| language.code)).collect();
            let mut rows = rows(text);
            let (_, header) = rows.next().unwrap_or_default();
            ensure!(
                header == codes,
                "assets/corpus/lexicon/{namespace}.tsv line 1: expected the columns {codes:?}, found {header:?}"
            );
            for (line, cells) in rows {
                let place = || format!("assets/corpus/lexicon/{namespace}.tsv line {line}");
                ensure!(
                    cells.len() == codes.len(),
                    "{}: expected {} cells, found {}",
                    place(),
                    codes.len(),
                    cells.len()
                );
                ensure!(
                    cells.iter().all(|cell| !cell.is_empty()),
                    "{}: an empty cell; every language needs its word",
                    place()
                );
                let known = lexicon.index.insert((namespace, cells[0]), lexicon.words.len());
                ensure!(known.is_none(), "{}: the id `{}` stands there twice", place(), cells[0]);
                lexicon.words.push(Word { namespace, id: cells[0], cells: cells[1..].to_vec() });
            }
        }
        Ok(lexicon)
    }

    pub fn words(&self) -> impl Iterator<Item = &Word> {
        self.words.iter()
    }

    pub fn word(&self, index: usize) -> &Word {
        &self.words[index]
    }

    pub(super) fn find(&self, namespace: &'static str, id: &'static str) -> Result<usize> {
        let found = self.index.get(&(namespace, id)).copied();
        found.with_context(|| format!("no word `{id}` in assets/corpus/lexicon/{namespace}.tsv; add its row"))
    }
}

/// The lines of a table with their numbers, split at tabs.
pub(super) fn rows(text: &'static str) -> impl Iterator<Item = (usize, Vec<&'static str>)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line.split('\t').collect()))
}
