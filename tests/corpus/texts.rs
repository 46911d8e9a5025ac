//! Every text is there, in its script, and says one thing.

use crate::world;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use trainer::corpus::LANGUAGES;
use trainer::corpus::family::{HELD_PHRASING, PHRASINGS};

/// Whether all letters are of the language's script.
fn in_script(text: &str, code: &str) -> bool {
    let letter = |c: char| match code {
        "ar" | "ur" => ('\u{600}'..='\u{6ff}').contains(&c),
        "bn" => ('\u{980}'..='\u{9ff}').contains(&c),
        "el" => ('\u{370}'..='\u{3ff}').contains(&c),
        "hi" => ('\u{900}'..='\u{97f}').contains(&c),
        "ja" => ('\u{3005}'..='\u{30ff}').contains(&c) || ('\u{4e00}'..='\u{9fff}').contains(&c),
        "ko" => ('\u{ac00}'..='\u{d7a3}').contains(&c),
        "ru" => ('\u{400}'..='\u{4ff}').contains(&c),
        "te" => ('\u{c00}'..='\u{c7f}').contains(&c),
        "th" => ('\u{e00}'..='\u{e7f}').contains(&c),
        "zh" => ('\u{4e00}'..='\u{9fff}').contains(&c),
        _ => c < '\u{250}' || ('\u{1e00}'..='\u{1eff}').contains(&c),
    };
    let mut letters = text.chars().filter(|c| c.is_alphabetic()).peekable();
    letters.peek().is_some() && letters.all(letter)
}

#[test]
fn every_text_is_in_the_script_of_its_language_and_no_slot_stays_open() {
    let world = world();
    for (lang, language) in LANGUAGES.iter().enumerate() {
        for word in world.text.words() {
            for form in [world.text.base(lang, word), world.text.inflected(lang, word)] {
                assert!(in_script(form, language.code), "{word} in {}: `{form}`", language.name);
            }
        }
        for unit in &world.units {
            let asked = (0..=HELD_PHRASING).map(|phrasing| world.item(unit, lang, phrasing, "", "").instruction);
            for text in asked.chain(world.sentences(unit, lang, "").into_iter().map(|[text, _]| text)) {
                let unlabelled =
                    ["A:", "B:", "C:", "D:"].iter().fold(text.clone(), |text, label| text.replace(label, ""));
                assert!(in_script(&unlabelled, language.code), "{} in {}: `{text}`", unit.id, language.name);
                assert!(!text.contains(['{', '}', '~']), "an open slot in `{text}`");
            }
        }
    }
}

/// The cells of a language's table by key, as they were written.
fn cells(code: &str) -> HashMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../assets/corpus/text/{code}.tsv"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cell = |line: &str| line.split_once('\t').map(|(key, text)| (key.to_owned(), text.to_lowercase()));
    text.lines().map(|line| cell(line).expect("a line is KEY<TAB>TEXT")).collect()
}

/// Its words without the slots and the letters of options.
fn words(cell: &str) -> Vec<&str> {
    let outside = cell.split('{').map(|part| part.split_once('}').map_or(part, |(_, rest)| rest));
    let words = outside.flat_map(|part| part.split(|c: char| !c.is_alphabetic()));
    words.filter(|word| !word.is_empty() && !["a", "b", "c", "d"].contains(word)).collect()
}

#[test]
fn no_question_sentence_story_or_frame_was_left_in_english_nor_most_of_its_words() {
    let english = cells("en");
    for language in &LANGUAGES[1..] {
        let mut compared = 0;
        for (key, cell) in cells(language.code).iter().filter(|(key, _)| !key.starts_with("word/")) {
            // The one cell that is the same word in both languages.
            if (language.code, key.as_str()) == ("fr", "frame/read/ask1") {
                continue;
            }
            let (own, theirs) = (words(cell), words(&english[key]));
            let same = own.iter().filter(|word| theirs.contains(word)).count();
            assert!(2 * same <= own.len(), "{key} in {} has most of its words from English: `{cell}`", language.name);
            compared += usize::from(!own.is_empty());
        }
        assert!(compared > 200, "{}: only {compared} cells were compared", language.name);
    }
}

#[test]
fn few_words_that_are_no_names_are_spelled_as_in_english() {
    let names = ["city", "country", "currency", "language", "person"].map(|namespace| format!("word/{namespace}/"));
    let word = |key: &&String| key.starts_with("word/") && names.iter().all(|names| !key.starts_with(names));
    let english = cells("en");
    let base = |cell: &str| cell.split('|').next().unwrap_or_default().to_owned();
    for language in &LANGUAGES[1..] {
        let own = cells(language.code);
        let words: Vec<&String> = english.keys().filter(word).collect();
        let same: Vec<_> = words.iter().filter(|key| base(&own[**key]) == base(&english[**key])).collect();
        assert!(words.len() > 150 && same.len() * 12 < words.len(), "{}: {same:?}", language.name);
    }
}

#[test]
fn the_four_phrasings_of_a_unit_differ() {
    let world = world();
    for lang in 0..LANGUAGES.len() {
        for unit in &world.units {
            let asked: HashSet<_> =
                (0..=HELD_PHRASING).map(|phrasing| world.item(unit, lang, phrasing, "", "").instruction).collect();
            assert_eq!(asked.len(), PHRASINGS.len(), "{} in {}: {asked:?}", unit.id, LANGUAGES[lang].name);
        }
    }
}

#[test]
fn one_word_means_one_thing_within_a_namespace() {
    let world = world();
    for (lang, language) in LANGUAGES.iter().enumerate() {
        let mut known = HashMap::new();
        for word in world.text.words() {
            let namespace = word.split('/').nth(1);
            if let Some(other) = known.insert((namespace, world.text.base(lang, word)), word) {
                panic!("{}: `{}` is both {other} and {word}", language.name, world.text.base(lang, word));
            }
        }
    }
}
