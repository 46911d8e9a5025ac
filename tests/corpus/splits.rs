//! Nothing held out is seen; every row is asked and answered rightly.

use crate::{SEED, all_items, base, corpus, held, seen_texts, world};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use trainer::corpus::family::{Family, HELD_PHRASING, PHRASINGS, Unit};
use trainer::corpus::{BaseText, Item, LANGUAGES, base_text, generate};

#[test]
fn no_held_out_fact_of_a_language_is_seen_in_that_language_under_any_phrasing() {
    let (corpus, world, held) = (corpus(), world(), held());
    for (lang, language) in LANGUAGES.iter().enumerate().skip(1) {
        // A translation holds its text in the answer, or in the prompt after the name of the language.
        let parts = |text: &'static str, answer| [text, text.split_once(": ").map_or("", |(_, text)| text), answer];
        let seen: HashSet<&str> =
            seen_texts(corpus, language.code).flat_map(|(_, text, answer)| parts(text, answer)).collect();
        let hidden: Vec<_> = world.units.iter().filter(|unit| held.contains(lang, unit)).collect();
        let share = hidden.len() as f64 / world.units.len() as f64;
        assert!((0.2..0.33).contains(&share), "{}: {share} of the units are held out", language.name);
        for unit in hidden {
            let salts = ["", "/0", "/1", "/2"].map(|turn| format!("{}{turn}", language.code));
            let asked = salts.iter().flat_map(|salt| {
                (0..=HELD_PHRASING).map(move |phrasing| world.item(unit, lang, phrasing, salt, "").instruction)
            });
            for text in asked.chain(world.sentences(unit, lang, language.code).into_iter().map(|[text, _]| text)) {
                assert!(
                    !seen.contains(text.as_str()),
                    "{} is held out in {} but training sees `{text}`",
                    unit.id,
                    language.name
                );
            }
        }
    }
}

/// Other drawn names and orders are other texts, so what is seen is known by its id too.
#[test]
fn nothing_seen_in_a_language_is_of_a_unit_that_is_held_out_there() {
    let (corpus, world, held) = (corpus(), world(), held());
    let units: HashMap<&str, &Unit> = world.units.iter().map(|unit| (unit.id.as_str(), unit)).collect();
    let exchanges = base().iter().filter_map(|row| match row {
        BaseText::Exchange(item) => Some(item),
        BaseText::Sentence { .. } => None,
    });
    let (mut asked, mut translated) = (BTreeSet::new(), BTreeSet::new());
    for (lang, language) in LANGUAGES.iter().enumerate().skip(1) {
        let own = |item: &&Item| item.lang == language.code;
        for item in corpus.train.iter().chain(&corpus.pairs).filter(own) {
            assert!(!held.contains(lang, units[item.unit()]), "{} is trained on but held out", item.id);
        }
        for item in exchanges.clone().filter(own).filter(|item| !item.id.starts_with("translate/word/")) {
            // A translated sentence: `translate/UNIT/NUMBER/to/LANGUAGE`.
            let (unit, families) = match item.id.strip_prefix("translate/") {
                Some(id) => (id.rsplitn(4, '/').nth(3).expect("its id names a unit"), &mut translated),
                None => (item.unit(), &mut asked),
            };
            assert!(!held.contains(lang, units[unit]), "{} is base text but held out", item.id);
            families.insert(units[unit].family);
        }
    }
    assert_eq!(asked.len(), Family::ALL.len(), "base text asks tasks of every family: {asked:?}");
    assert!(translated.len() > 2, "base text has sentences of several families to translate: {translated:?}");
}

#[test]
fn a_held_out_capital_never_stands_in_one_line_with_its_country() {
    let (corpus, world, held) = (corpus(), world(), held());
    for (lang, language) in LANGUAGES.iter().enumerate().skip(1) {
        // A translated word states no fact: Mexique is Mexico in English, and Mexico is Mexico City in French. Of a
        // translated sentence only the language's own side is looked at. A text about a person draws what it says by lot, and
        // a language may be called as its country is.
        let lines: Vec<String> = seen_texts(corpus, language.code)
            .filter(|(id, ..)| !id.starts_with("translate/word/") && !id.starts_with("reading/"))
            .map(|(id, text, answer)| match id.starts_with("translate/") {
                true if id.contains("/to/") => answer.to_owned(),
                true => text.to_owned(),
                false => format!("{text} {answer}"),
            })
            .collect();
        let hidden = |key: &String| held.test[lang].contains(key) || held.validation[lang].contains(key);
        for fact in world.facts.iter().filter(|fact| fact.task == "capital" && hidden(&fact.key)) {
            let city = world.text.base(lang, fact.answer());
            let country = [world.text.base(lang, fact.subject()), world.text.inflected(lang, fact.subject())];
            for line in lines.iter().filter(|line| line.contains(city)) {
                // Some capitals carry their country's letters: 巴西 stands in 巴西利亚. What a choice offers states nothing.
                let rest = line.replace(city, "");
                let offered = line.contains("A: ") || line.contains("A:");
                let named = country.iter().any(|form| rest.contains(form));
                assert!(offered || !named, "{} is held out in {} but training sees `{line}`", fact.id, language.name);
            }
        }
    }
}

#[test]
fn test_and_validation_share_no_prompt_with_training_and_no_fact_with_each_other() {
    let corpus = corpus();
    let fact = |item: &Item| item.id.rsplit_once('/').expect("an id has parts").0.to_owned();
    let seen: HashSet<_> =
        LANGUAGES.iter().flat_map(|language| seen_texts(corpus, language.code)).map(|(_, text, _)| text).collect();
    let validation: HashSet<_> = corpus.validation.iter().map(fact).collect();
    for item in corpus.test.iter().chain(&corpus.validation) {
        assert!(!seen.contains(item.instruction.as_str()), "training sees the prompt of {}", item.id);
    }
    for item in &corpus.test {
        assert!(!validation.contains(&fact(item)), "{} is in test and in validation", item.id);
    }
}

#[test]
fn fine_tuning_pairs_and_other_languages_base_text_use_only_the_three_seen_phrasings() {
    let corpus = corpus();
    let tasks = base().iter().filter_map(|text| match text {
        BaseText::Exchange(item) if item.lang != "en" && item.task != "translate" => Some(item),
        _ => None,
    });
    assert!(LANGUAGES[1..].iter().all(|language| tasks.clone().any(|item| item.lang == language.code)));
    for item in corpus.train.iter().chain(&corpus.pairs).chain(tasks) {
        assert!(
            PHRASINGS[..HELD_PHRASING].iter().any(|phrasing| item.id.ends_with(&format!("/{phrasing}"))),
            "{}",
            item.id
        );
    }
}

#[test]
fn a_choice_offers_four_different_answers_of_which_one_is_right() {
    let (corpus, world) = (corpus(), world());
    let answers: HashMap<_, _> = world.facts.iter().map(|fact| (fact.id.as_str(), fact.answer())).collect();
    for item in all_items(corpus).filter(|item| item.task == "choice") {
        let offered = &item.instruction_en[item.instruction_en.find("A: ").unwrap()..];
        let offered = offered.split(". Which is right").next().unwrap().trim_end_matches('.');
        let offered: Vec<_> = offered.split("; ").map(|option| &option[3..]).collect();
        assert_eq!(offered.iter().collect::<HashSet<_>>().len(), 4, "{}: {offered:?}", item.id);
        let fact = item.id.split('/').skip(1).take(2).collect::<Vec<_>>().join("/");
        let right = offered[usize::from(item.output.as_bytes()[0] - b'A')];
        assert_eq!(right, world.text.base(0, answers[fact.as_str()]), "{}: {offered:?}", item.id);
    }
}

/// How many rows of a family have each gold answer.
fn golds<'c>(items: impl Iterator<Item = &'c Item>, family: &str) -> BTreeMap<&'c str, usize> {
    let mut golds = BTreeMap::new();
    for item in items.filter(|item| item.task == family) {
        *golds.entry(item.output.as_str()).or_default() += 1;
    }
    golds
}

#[test]
fn gold_positions_are_balanced() {
    let corpus = corpus();
    for (family, options) in [("choice", 4), ("entailment", 3), ("story", 2)] {
        for rows in [&corpus.train, &corpus.test] {
            let golds = golds(rows.iter(), family);
            let all: usize = golds.values().sum();
            assert_eq!(golds.len(), options, "{family}: {golds:?}");
            for (gold, count) in golds {
                let share = count as f64 / all as f64 * options as f64;
                assert!((0.7..1.3).contains(&share), "{family}: {gold} is right in {count} of {all}");
            }
        }
    }
}

#[test]
fn the_same_prompt_never_has_two_answers() {
    let corpus = corpus();
    let mut known = BTreeMap::new();
    for item in corpus.train.iter().chain(&corpus.validation).chain(&corpus.test) {
        let answer = known.entry(&item.instruction).or_insert(&item.output);
        assert_eq!(*answer, &item.output, "two answers to `{}`", item.instruction);
    }
}

#[test]
fn every_item_has_its_english_twin_and_the_answer_is_the_same_concept() {
    let world = world();
    let units: HashMap<_, _> = world.units.iter().map(|unit| (unit.id.as_str(), unit)).collect();
    let mut words = 0;
    for item in all_items(corpus()) {
        let lang = LANGUAGES.iter().position(|language| language.code == item.lang).unwrap();
        assert_eq!(item.lang == "en", item.instruction == item.instruction_en, "{}", item.id);
        let unit = item.id.rsplitn(3, '/').nth(2).unwrap();
        assert_eq!(units[unit].family.name(), item.task);
        match item.task.as_str() {
            "choice" | "entailment" | "story" => assert_eq!(item.output, item.output_en, "{}", item.id),
            "summary" => assert!(!item.output.is_empty() && !item.output_en.is_empty()),
            _ => {
                let answers = |word: &&&str| {
                    (world.text.base(lang, word), world.text.base(0, word)) == (&item.output, &item.output_en)
                };
                assert!(world.text.words().iter().any(|word| answers(&word)), "{}: {}", item.id, item.output);
                words += 1;
            }
        }
    }
    assert!(words > 2_000);
}

#[test]
fn the_answer_to_a_question_on_a_text_stands_in_the_text() {
    for item in all_items(corpus()).filter(|item| item.task == "reading" && item.lang == "en") {
        assert!(item.instruction.contains(&item.output), "{}: {}", item.id, item.instruction);
    }
}

#[test]
fn every_word_is_tied_to_english_in_every_language() {
    let ids: HashSet<_> = base()
        .iter()
        .filter_map(|row| if let BaseText::Exchange(item) = row { Some(item.id.as_str()) } else { None })
        .collect();
    for word in world().text.words() {
        for language in &LANGUAGES[1..] {
            for direction in ["to", "from"] {
                let id = format!("translate/{word}/{direction}/{}", language.code);
                assert!(ids.contains(id.as_str()), "{id} is missing");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_corpus_and_another_seed_another() {
    assert!(*corpus() == generate(SEED).unwrap() && base() == base_text(corpus(), SEED).unwrap());
    assert!(corpus().test != generate(SEED + 1).unwrap().test);
}

#[test]
fn the_base_is_nine_tenths_english_and_every_language_and_family_has_its_rows() {
    let corpus = corpus();
    let length = |row: &BaseText| match row {
        BaseText::Sentence { text, .. } => text.chars().count(),
        BaseText::Exchange(item) => item.instruction.chars().count() + item.output.chars().count(),
    };
    let all: usize = base().iter().map(length).sum();
    let english: usize = base().iter().filter(|row| row.lang() == "en").map(length).sum();
    let share = english as f64 / all as f64;
    assert!((0.895..0.91).contains(&share), "English share {share}");
    for language in &LANGUAGES {
        let count = |rows: &[Item], family: Family| {
            rows.iter().filter(|item| item.lang == language.code && item.task == family.name()).count()
        };
        for family in Family::ALL {
            assert!(count(&corpus.train, family) >= 12, "{} {}", language.name, family.name());
            let tests = count(&corpus.test, family);
            assert!(
                tests >= if language.code == "en" { 3 } else { 12 },
                "{} {}: {tests}",
                language.name,
                family.name()
            );
        }
    }
    assert!(corpus.pairs.len() >= 2_000);
    let unique: HashSet<_> = corpus.train.iter().map(|item| &item.id).collect();
    assert_eq!(unique.len(), corpus.train.len());
}
