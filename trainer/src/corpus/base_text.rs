//! What the base model reads: English of every family, nine tenths of it all; the other languages' words, sentences and
//! some of their tasks. Knows nothing of how rows are fine-tuned on.

use super::family::{Family, HELD_PHRASING, PHRASINGS, Unit, World};
use super::split::{HeldOut, hash};
use super::{BaseText, Corpus, ENGLISH, Item, LANGUAGES, shuffle};
use std::collections::HashSet;

/// Share of the base text that is English, in characters.
const ENGLISH_SHARE: f64 = 0.9;

/// The other languages once, then passes of English until it has its share.
pub fn base_text(world: &World, held: &HeldOut, corpus: &Corpus, seed: u64) -> Vec<BaseText> {
    let mut base = vec![];
    for (lang, language) in LANGUAGES.iter().enumerate().skip(1) {
        let code = language.code;
        for unit in world.units.iter().filter(|unit| !held.contains(lang, unit)) {
            if drawn(unit, seed, code, 2 * rarely(unit.family)) {
                let sentences = world.sentences(unit, lang, code).into_iter().enumerate();
                base.extend(sentences.map(|(at, sentence)| said(&format!("{}/{at}", unit.id), lang, sentence, seed)));
            }
            let salt = format!("{code}/base");
            if drawn(unit, seed, &salt, 4 * rarely(unit.family)) {
                base.push(asked(world, unit, lang, HELD_PHRASING, seed, &salt));
            }
        }
        base.extend(world.text.words().iter().flat_map(|word| translations(world, word, lang)));
    }
    let judged = corpus.test.iter().chain(&corpus.validation);
    let twins = judged.clone().map(|item| &item.instruction_en);
    let kept: HashSet<_> = judged.chain(&corpus.train).map(|item| &item.instruction).chain(twins).collect();
    let fresh = |text: &BaseText| !matches!(text, BaseText::Exchange(item) if kept.contains(&item.instruction));
    base.retain(fresh);
    let characters = |base: &[BaseText]| base.iter().map(BaseText::characters).sum::<usize>() as f64;
    let mut missing = characters(&base) * ENGLISH_SHARE / (1.0 - ENGLISH_SHARE);
    for pass in 0.. {
        let mut english = english_pass(world, pass, seed);
        english.retain(fresh);
        missing -= characters(&english);
        base.extend(english);
        if missing <= 0.0 {
            break;
        }
    }
    shuffle(&mut base, seed, "base");
    base
}

/// A sentence of another language: alone, or to be said in it, or to be said in English.
fn said(id: &str, lang: usize, [text, english]: [String; 2], seed: u64) -> BaseText {
    let code = LANGUAGES[lang].code;
    match hash(seed, &[code, id, "direction"]) % 3 {
        0 => BaseText::Sentence { lang: code.into(), text },
        1 => into_language(id, lang, &english, &text),
        _ => into_english(id, lang, &text, &english),
    }
}

/// Something of every family, each pass in other words. Choices and texts come more often, and as drills too: to find
/// something in the prompt takes far more practice than facts, which are soon known by heart.
fn english_pass(world: &World, pass: usize, seed: u64) -> Vec<BaseText> {
    let mut english = vec![];
    for unit in &world.units {
        let (times, one_of) = match unit.family {
            Family::Choice => (1, 1),
            Family::Reading => (2, 1),
            family => (1, rarely(family).max(2)),
        };
        for time in 0..times {
            let salt = format!("base {pass}/{time}");
            if !drawn(unit, seed, &salt, one_of) {
                continue;
            }
            english.push(asked(world, unit, ENGLISH, PHRASINGS.len(), seed, &salt));
            if unit.family == Family::Question {
                let sentences = world.sentences(unit, ENGLISH, &salt).into_iter();
                english.extend(sentences.map(|[text, _]| BaseText::Sentence { lang: "en".into(), text }));
            }
        }
        let drill = world.drill(unit, &format!("base {pass}/drill"));
        english.extend(drill.map(|(text, found)| exchange("drill", &unit.id, ENGLISH, &text, &found, &found)));
    }
    english
}

/// One in how many units of a family stands in a pass of base text: people and cities make many of some.
fn rarely(family: Family) -> u64 {
    match family {
        Family::Summary => 16,
        Family::Story => 2,
        _ => 1,
    }
}

/// A unit in one of the first phrasings.
fn asked(world: &World, unit: &Unit, lang: usize, phrasings: usize, seed: u64, salt: &str) -> BaseText {
    let phrasing = hash(seed, &[salt, &unit.id, "phrasing"]) as usize % phrasings;
    BaseText::Exchange(world.item(unit, lang, phrasing, salt, PHRASINGS[phrasing]))
}

fn drawn(unit: &Unit, seed: u64, salt: &str, one_of: u64) -> bool {
    hash(seed, &[salt, &unit.id, "base"]).is_multiple_of(one_of)
}

/// A word into the language and back again, from each of its forms.
fn translations(world: &World, word: &str, lang: usize) -> Vec<BaseText> {
    let (english, base, inflected) =
        (world.text.base(ENGLISH, word), world.text.base(lang, word), world.text.inflected(lang, word));
    let mut items = vec![into_language(word, lang, english, base), into_english(word, lang, base, english)];
    if inflected != base {
        items.push(into_english(&format!("{word}/inflected"), lang, inflected, english));
    }
    items
}

fn into_language(id: &str, lang: usize, english: &str, text: &str) -> BaseText {
    let asked = format!("In {}: {english}", LANGUAGES[lang].name);
    exchange("translate", &format!("{id}/to"), lang, &asked, text, english)
}

fn into_english(id: &str, lang: usize, text: &str, english: &str) -> BaseText {
    exchange("translate", &format!("{id}/from"), lang, &format!("In English: {text}"), english, english)
}

/// An exchange that is of no family.
fn exchange(task: &str, id: &str, lang: usize, instruction: &str, output: &str, output_en: &str) -> BaseText {
    BaseText::Exchange(Item {
        id: format!("{task}/{id}/{}", LANGUAGES[lang].code),
        task: task.into(),
        lang: LANGUAGES[lang].code.into(),
        instruction: instruction.into(),
        instruction_en: instruction.into(),
        output: output.into(),
        output_en: output_en.into(),
    })
}
