//! Every text is there, in its script, and says one thing.

use crate::world;
use std::collections::{HashMap, HashSet};
use trainer::corpus::LANGUAGES;
use trainer::corpus::family::{Family, HELD_PHRASING, PHRASINGS};

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

#[test]
fn no_question_sentence_or_frame_was_left_in_english() {
    let world = world();
    for (lang, language) in LANGUAGES.iter().enumerate().skip(1) {
        for unit in world.units.iter().filter(|unit| unit.family != Family::Story) {
            for phrasing in 0..=HELD_PHRASING {
                let item = world.item(unit, lang, phrasing, "", "");
                assert_ne!(item.instruction, item.instruction_en, "{} in {}", unit.id, language.name);
            }
        }
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
