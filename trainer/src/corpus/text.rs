//! What is said, and how: one file per language in `assets/corpus/text`, a line `KEY<TAB>TEXT` for each word, question,
//! sentence and frame. English comes first and says which keys there are. A word is `base` or `base|inflected` (genitive,
//! oblique, with article: whatever that language's templates ask for with `{x~}`). Knows nothing of facts or families.

use super::{ENGLISH, LANGUAGES};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

macro_rules! tables {
    ($folder:literal: $($name:literal)*) => { &[$(($name, include_str!(concat!("../../../assets/corpus/", $folder, "/", $name, ".tsv")))),*] };
}
pub(super) use tables;

const FILES: &[(&str, &str)] = tables!("text": "en" "ar" "bn" "de" "el" "es" "eu" "fr" "hi" "id" "ja" "ko" "pt" "ru" "sw" "te" "th" "tr" "ur" "vi" "yo" "zh");

pub struct Text {
    languages: Vec<HashMap<&'static str, &'static str>>,
    /// The keys of all words, in the order of the English file.
    words: Vec<&'static str>,
    namespaces: HashMap<&'static str, Vec<&'static str>>,
}

impl Text {
    /// # Errors
    /// A key that is missing, unknown or there twice; an empty text; slots that are not those of the English text.
    pub fn load() -> Result<Self> {
        let mut languages: Vec<HashMap<&str, &str>> = vec![];
        let mut words = vec![];
        ensure!(FILES.len() == LANGUAGES.len(), "{} files of text for {} languages", FILES.len(), LANGUAGES.len());
        for (language, &(code, file)) in LANGUAGES.iter().zip(FILES) {
            ensure!(language.code == code, "the text of `{code}` stands where that of `{}` should", language.code);
            let mut texts = HashMap::new();
            for (line, cells) in rows(file) {
                let place = || format!("assets/corpus/text/{code}.tsv line {line}");
                let &[key, text] = cells.as_slice() else {
                    bail!("{}: expected KEY<TAB>TEXT, found {cells:?}", place())
                };
                ensure!(!text.is_empty() && text.trim() == text, "{}: `{key}` is empty or padded", place());
                let english = if code == "en" { Some(text) } else { languages[ENGLISH].get(key).copied() };
                let english = english.with_context(|| format!("{}: English has no key `{key}`", place()))?;
                ensure!(
                    key.starts_with("word/") || slots(text) == slots(english),
                    "{}: `{key}` has the slots {:?}, English has {:?}",
                    place(),
                    slots(text),
                    slots(english)
                );
                ensure!(texts.insert(key, text).is_none(), "{}: `{key}` stands there twice", place());
                if code == "en" && key.starts_with("word/") {
                    words.push(key);
                }
            }
            if let Some(english) = languages.first() {
                let mut missing = english.keys().filter(|key| !texts.contains_key(*key) && !is_further(key));
                if let Some(key) = missing.next() {
                    bail!("assets/corpus/text/{code}.tsv: `{key}` is missing, and {} more", missing.count());
                }
            }
            languages.push(texts);
        }
        let mut namespaces: HashMap<_, Vec<_>> = HashMap::new();
        for &word in &words {
            namespaces.entry(word.split('/').nth(1).unwrap_or_default()).or_default().push(word);
        }
        Ok(Text { languages, words, namespaces })
    }

    /// The text under a key that every language has; empty for an unknown one.
    pub fn get(&self, lang: usize, key: &str) -> &'static str {
        self.languages[lang].get(key).copied().unwrap_or_default()
    }

    /// A word as it stands alone: what an answer is.
    pub fn base(&self, lang: usize, word: &str) -> &'static str {
        self.get(lang, word).split('|').next().unwrap_or_default()
    }

    /// The form that stands inside a sentence; the word itself where the language needs no other.
    pub fn inflected(&self, lang: usize, word: &str) -> &'static str {
        self.get(lang, word).rsplit('|').next().unwrap_or_default()
    }

    /// All words, or those of one namespace: `word/country/eg` for `country`.
    pub fn words(&self) -> &[&'static str] {
        &self.words
    }

    pub fn namespace(&self, namespace: &str) -> &[&'static str] {
        self.namespaces.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// What stands between the first and the last part of the keys of a section: the stories of `story/ID/start`.
    pub fn part(&self, section: &str) -> Vec<&'static str> {
        let of = |key: &&'static str| key.strip_prefix(section)?.strip_prefix('/')?.rsplit_once('/').map(|(id, _)| id);
        let mut ids: Vec<_> = self.languages[ENGLISH].keys().filter_map(of).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The word of an id in a table of facts.
    pub(super) fn find(&self, namespace: &str, id: &str) -> Result<&'static str> {
        let key = format!("word/{namespace}/{id}");
        let found = self.languages[ENGLISH].get_key_value(key.as_str());
        Ok(found.with_context(|| format!("no `{key}` in assets/corpus/text/en.tsv"))?.0)
    }
}

/// Further sentences for a fact, which a language may have or not.
fn is_further(key: &str) -> bool {
    key.starts_with("task/") && (key.ends_with("/say2") || key.ends_with("/say3"))
}

/// The letters of the slots `{x}` and `{x~}`, sorted, each once.
fn slots(text: &str) -> Vec<char> {
    let mut slots: Vec<char> = text.split('{').skip(1).filter_map(|rest| rest.chars().next()).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

/// The lines of a table with their numbers, split at tabs.
pub(super) fn rows(text: &'static str) -> impl Iterator<Item = (usize, Vec<&'static str>)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line.split('\t').collect()))
}
