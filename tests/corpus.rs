//! Proves of the shipped corpus: nothing held out leaks, the tables are complete and in the right
//! script, every row has its English twin, the same seed gives the same rows, names agree with the shared tables.

mod shared_data;

use shared_data::shared;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::sync::LazyLock;
use trainer::corpus::split::HeldOut;
use trainer::corpus::world::{HELD_PHRASING, PHRASINGS, World};
use trainer::corpus::{BaseText, Corpus, Item, LANGUAGES, generate};

const SEED: u64 = 20250602;

fn corpus() -> &'static Corpus {
    static CORPUS: LazyLock<Corpus> = LazyLock::new(|| generate(SEED).expect("the shipped tables are sound"));
    &CORPUS
}

fn ours() -> (World, HeldOut) {
    let world = World::load().expect("the shipped tables are sound");
    let held = HeldOut::choose(&world, SEED);
    (world, held)
}

/// Every text of a language that training may see: base lines, fine-tuning rows and pairs.
fn seen_texts<'c>(corpus: &'c Corpus, code: &'c str) -> impl Iterator<Item = (&'c str, &'c str)> {
    let base = corpus.base.iter().filter(move |row| row.lang() == code).map(|row| match row {
        BaseText::Sentence { text, .. } => (text.as_str(), ""),
        BaseText::Exchange(item) => (item.instruction.as_str(), item.output.as_str()),
    });
    let rows = corpus.train.iter().chain(&corpus.pairs).filter(move |item| item.lang == code);
    base.chain(rows.map(|item| (item.instruction.as_str(), item.output.as_str())))
}

#[test]
fn no_held_out_fact_of_a_language_is_seen_in_that_language_under_any_phrasing() {
    let (corpus, (world, held)) = (corpus(), ours());
    for (lang, language) in LANGUAGES.iter().enumerate().skip(1) {
        let seen: HashSet<&str> = seen_texts(corpus, language.code).map(|(text, _)| text).collect();
        let hidden: Vec<_> = world.facts().filter(|fact| held.contains(lang, fact)).collect();
        let share = hidden.len() as f64 / world.facts().count() as f64;
        assert!((0.2..0.3).contains(&share), "{}: {share} of the facts are held out", language.name);
        for fact in hidden {
            let asked =
                (0..=HELD_PHRASING).map(|phrasing| world.item(fact, lang, phrasing, PHRASINGS[phrasing]).instruction);
            for text in asked.chain(world.sentences(fact, lang)) {
                assert!(
                    !seen.contains(text.as_str()),
                    "{} is held out in {} but training sees `{text}`",
                    fact.id,
                    language.name
                );
            }
        }
    }
}

#[test]
fn a_held_out_capital_never_stands_in_one_line_with_its_country() {
    let (corpus, (world, held)) = (corpus(), ours());
    for (lang, language) in LANGUAGES.iter().enumerate().skip(1) {
        let lines: Vec<String> =
            seen_texts(corpus, language.code).map(|(text, answer)| format!("{text} {answer}")).collect();
        for fact in world.facts().filter(|fact| held.contains(lang, fact) && fact.key.starts_with("capital/")) {
            let [country, city] = [fact.slots[0].1, fact.slots[1].1].map(|word| world.lexicon.word(word));
            for line in lines.iter().filter(|line| line.contains(city.base(lang))) {
                // Some capitals carry their country's letters: 巴西 stands in 巴西利亚.
                let rest = line.replace(city.base(lang), "");
                let named = [country.base(lang), country.inflected(lang)].iter().any(|form| rest.contains(form));
                assert!(!named, "{} is held out in {} but training sees `{line}`", fact.id, language.name);
            }
        }
    }
}

#[test]
fn test_and_validation_share_no_prompt_with_training_and_no_fact_with_each_other() {
    let corpus = corpus();
    let fact = |item: &Item| item.id.rsplit_once('/').expect("an id has parts").0.to_owned();
    let seen: HashSet<_> =
        LANGUAGES.iter().flat_map(|language| seen_texts(corpus, language.code)).map(|(text, _)| text).collect();
    let validation: HashSet<_> = corpus.validation.iter().map(fact).collect();
    for item in corpus.test.iter().chain(&corpus.validation) {
        assert!(!seen.contains(item.instruction.as_str()), "training sees the prompt of {}", item.id);
    }
    for item in &corpus.test {
        assert!(!validation.contains(&fact(item)), "{} is in test and in validation", item.id);
    }
}

#[test]
fn fine_tuning_and_pairs_use_only_the_three_seen_phrasings() {
    let corpus = corpus();
    for item in corpus.train.iter().chain(&corpus.pairs) {
        assert!(
            PHRASINGS[..HELD_PHRASING].iter().any(|phrasing| item.id.ends_with(&format!("/{phrasing}"))),
            "{}",
            item.id
        );
    }
}

fn in_script(text: &str, code: &str) -> bool {
    let letter = |c: char| match code {
        "ar" => ('\u{600}'..='\u{6ff}').contains(&c),
        "zh" => ('\u{4e00}'..='\u{9fff}').contains(&c),
        "hi" => ('\u{900}'..='\u{97f}').contains(&c),
        "ru" => ('\u{400}'..='\u{4ff}').contains(&c),
        _ => c < '\u{250}',
    };
    let mut letters = text.chars().filter(|c| c.is_alphabetic()).peekable();
    letters.peek().is_some() && letters.all(letter)
}

#[test]
fn every_cell_is_filled_in_the_script_of_its_language() {
    let world = World::load().unwrap();
    for (lang, language) in LANGUAGES.iter().enumerate() {
        for word in world.lexicon.words() {
            for form in [word.base(lang), word.inflected(lang)] {
                assert!(
                    in_script(form, language.code),
                    "{}/{} in {}: `{form}`",
                    word.namespace,
                    word.id,
                    language.name
                );
                assert_eq!(form, form.trim());
            }
        }
        for fact in world.facts() {
            let asked = (0..=HELD_PHRASING).map(|phrasing| world.item(fact, lang, phrasing, "").instruction);
            for text in asked.chain(world.sentences(fact, lang)) {
                assert!(in_script(&text, language.code), "{} in {}: `{text}`", fact.id, language.name);
                assert!(!text.contains(['{', '}', '~']), "an open slot in `{text}`");
            }
        }
    }
}

#[test]
fn one_word_means_one_thing_within_a_table() {
    let world = World::load().unwrap();
    for (lang, language) in LANGUAGES.iter().enumerate() {
        let mut known = HashMap::new();
        for word in world.lexicon.words() {
            if let Some(other) = known.insert((word.namespace, word.base(lang)), word.id) {
                panic!("{}: `{}` is both {other} and {}", language.name, word.base(lang), word.id);
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
    let (corpus, world) = (corpus(), World::load().unwrap());
    let english: HashMap<_, _> = world.lexicon.words().map(|word| (word.base(0), word)).collect();
    assert!(english.len() > 300);
    let answers: HashMap<_, _> = world.facts().map(|fact| (fact.id.as_str(), world.answer(fact))).collect();
    for item in corpus.train.iter().chain(&corpus.validation).chain(&corpus.test).chain(&corpus.pairs) {
        assert!(!item.instruction_en.is_empty() && !item.output_en.is_empty());
        let lang = LANGUAGES.iter().position(|language| language.code == item.lang).unwrap();
        let fact: Vec<_> = item.id.split('/').take(2).collect();
        let answer = answers[fact.join("/").as_str()];
        assert_eq!((item.output.as_str(), item.output_en.as_str()), (answer.base(lang), answer.base(0)), "{}", item.id);
        assert_eq!(item.lang == "en", item.instruction == item.instruction_en, "{}", item.id);
    }
}

#[test]
fn every_word_is_tied_to_english_in_every_language() {
    let (corpus, world) = (corpus(), World::load().unwrap());
    let ids: HashSet<_> = corpus
        .base
        .iter()
        .filter_map(|row| if let BaseText::Exchange(item) = row { Some(item.id.as_str()) } else { None })
        .collect();
    for word in world.lexicon.words() {
        for language in &LANGUAGES[1..] {
            for direction in ["to", "from"] {
                let id = format!("translate/{}/{}/{}/{direction}", word.namespace, word.id, language.code);
                assert!(ids.contains(id.as_str()), "{id} is missing");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_corpus_and_another_seed_another() {
    assert!(*corpus() == generate(SEED).unwrap());
    assert!(corpus().test != generate(SEED + 1).unwrap().test);
}

#[test]
fn the_base_is_english_heavy_and_the_splits_have_their_sizes() {
    let corpus = corpus();
    let english = corpus.base.iter().filter(|row| row.lang() == "en").count() as f64 / corpus.base.len() as f64;
    assert!((0.6..0.75).contains(&english), "English share {english}");
    let count = |rows: &[Item], code: &str| rows.iter().filter(|item| item.lang == code).count();
    for language in &LANGUAGES {
        assert!((500..=600).contains(&count(&corpus.train, language.code)));
        assert!((20..=24).contains(&count(&corpus.validation, language.code)));
        let tests = count(&corpus.test, language.code);
        assert!(
            if language.code == "en" { tests == 40 } else { (60..=80).contains(&tests) },
            "{}: {tests}",
            language.name
        );
    }
    assert!((4_000..=4_500).contains(&corpus.train.len()) && corpus.pairs.len() >= 1_000);
    let unique: HashSet<_> = corpus.train.iter().map(|item| &item.id).collect();
    assert_eq!(unique.len(), corpus.train.len());
}

#[test]
fn sums_and_differences_are_right() {
    let world = World::load().unwrap();
    for task in world.tasks.iter().filter(|task| ["sum", "difference"].contains(&task.name)) {
        for fact in &task.facts {
            let [a, b, result] =
                [0, 1, 2].map(|slot| world.lexicon.word(fact.slots[slot].1).id.parse::<i32>().unwrap());
            assert_eq!(result, if task.name == "sum" { a + b } else { a - b }, "{}", fact.id);
        }
    }
}

/// A table of the shared folder by its key, or nothing (with a message) where the folder is not there.
fn table(file: &str, key: &str) -> Option<HashMap<String, serde_json::Value>> {
    let path = shared(&format!("data/train/knowledge/{file}"))?;
    let file = std::fs::File::open(path).unwrap();
    let rows = BufReader::new(flate2::read::GzDecoder::new(file)).lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        (row[key].as_str().unwrap().to_owned(), row)
    });
    Some(rows.collect())
}

#[test]
fn names_of_countries_languages_continents_and_cities_agree_with_the_shared_tables() {
    let world = World::load().unwrap();
    let Some(territories) = table("cldr_territories.jsonl.gz", "key") else { return };
    let (Some(languages), Some(cities)) =
        (table("cldr_languages.jsonl.gz", "key"), table("cldr_cities.jsonl.gz", "key"))
    else {
        return;
    };
    let cities: HashMap<_, _> = cities.values().map(|row| (row["name"]["en"].as_str().unwrap(), row)).collect();
    let continent = |id| match id {
        "africa" => "002",
        "asia" => "142",
        "europe" => "150",
        "north_america" => "003",
        "south_america" => "005",
        _ => "009",
    };
    let mut checked = 0;
    for word in world.lexicon.words() {
        let row = match word.namespace {
            "country" => &territories[&word.id.to_uppercase()],
            "continent" => &territories[continent(word.id)],
            "language" => &languages[word.id],
            "city" if cities.contains_key(word.base(0)) => cities[word.base(0)],
            _ => continue,
        };
        for (lang, language) in LANGUAGES.iter().enumerate() {
            // A locale without a row of its own inherits the English name.
            let expected = row["name"][language.code].as_str().or(row["name"]["en"].as_str()).unwrap();
            assert_eq!(word.base(lang), expected, "{}/{} in {}", word.namespace, word.id, language.name);
            checked += 1;
        }
    }
    assert!(checked > 1_000, "only {checked} names were checked");
}

#[test]
fn capitals_continents_and_languages_of_countries_agree_with_the_shared_tables() {
    let world = World::load().unwrap();
    let Some(countries) = table("countries_mledoze.jsonl.gz", "cca2") else { return };
    // Two spellings of one name: ours follows CLDR.
    let spelling = |name: &str| match name {
        "Washington D.C." => "Washington".to_owned(),
        "Ulan Bator" => "Ulaanbaatar".to_owned(),
        "Bogotá" => "Bogota".to_owned(),
        "Bengali" => "Bangla".to_owned(),
        "Persian (Farsi)" => "Persian".to_owned(),
        "Norwegian Bokmål" => "Norwegian".to_owned(),
        "Swiss German" | "Austro-Bavarian German" => "German".to_owned(),
        name => name.to_owned(),
    };
    for fact in world
        .facts()
        .filter(|fact| ["capital/", "continent/", "language/"].iter().any(|task| fact.id.starts_with(task)))
    {
        let country = &countries[&world.lexicon.word(fact.slots[0].1).id.to_uppercase()];
        let answer = world.answer(fact);
        let agrees = match answer.namespace {
            "city" => spelling(country["capital"][0].as_str().unwrap()) == answer.base(0),
            "continent" => {
                answer.base(0).replace("North America", "Americas").replace("South America", "Americas")
                    == country["region"].as_str().unwrap()
            }
            _ => country["languages"]
                .as_object()
                .unwrap()
                .values()
                .any(|name| spelling(name.as_str().unwrap()) == answer.base(0)),
        };
        assert!(
            agrees,
            "{}: `{}` is not what the shared table says: {}",
            fact.id,
            answer.base(0),
            country["name"]["common"]
        );
    }
}
