//! What the corpus says is true, and its names are those of the shared tables.

use crate::shared_data::shared;
use crate::world;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use trainer::corpus::LANGUAGES;

#[test]
fn sums_and_differences_are_right() {
    for fact in world().facts.iter().filter(|fact| ["sum", "difference"].contains(&fact.task)) {
        let [a, b, result] =
            [0, 1, 2].map(|slot| fact.slots[slot].1.rsplit('/').next().unwrap().parse::<i32>().unwrap());
        assert_eq!(result, if fact.task == "sum" { a + b } else { a - b }, "{}", fact.id);
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
    let world = world();
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
    let (mut checked, mut others) = (0, vec![]);
    for word in world.text.words() {
        let [_, namespace, id] = word.split('/').collect::<Vec<_>>()[..] else { panic!("{word}") };
        let row = match namespace {
            "country" => &territories[&id.to_uppercase()],
            "continent" => &territories[continent(id)],
            "language" => &languages[id],
            "city" if cities.contains_key(world.text.base(0, word)) => cities[world.text.base(0, word)],
            _ => continue,
        };
        for (lang, language) in LANGUAGES.iter().enumerate() {
            // A locale without a row of its own inherits the English name.
            let expected = row["name"][language.code].as_str().or(row["name"]["en"].as_str()).unwrap();
            // CLDR's Yoruba sets few tone marks and keeps many English names.
            if language.code == "yo" {
                continue;
            }
            checked += 1;
            // A Thai language is told from its country by the word for language.
            let ours = world.text.base(lang, word).to_lowercase();
            if ours.trim_start_matches("ภาษา") != expected.to_lowercase() {
                others.push(format!(
                    "{word} in {}: `{}`, CLDR `{expected}`",
                    language.code,
                    world.text.base(lang, word)
                ));
            }
        }
    }
    // Where CLDR is long-winded, or no name that a child would use, the corpus has the usual one.
    assert!(checked > 3_000, "only {checked} names were checked");
    let share = others.len() as f64 / checked as f64;
    assert!(share < 0.05, "{} of {checked} names differ:\n{}", others.len(), others.join("\n"));
}

#[test]
fn capitals_continents_and_languages_of_countries_agree_with_the_shared_tables() {
    let world = world();
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
    let tasks = ["capital", "continent", "language"];
    for fact in world.facts.iter().filter(|fact| tasks.contains(&fact.task)) {
        let country = &countries[&fact.subject().rsplit('/').next().unwrap().to_uppercase()];
        let answer = world.text.base(0, fact.answer());
        let agrees = match fact.task {
            "capital" => spelling(country["capital"][0].as_str().unwrap()) == answer,
            "continent" => {
                let americas = answer.replace("North America", "Americas").replace("South America", "Americas");
                americas == country["region"].as_str().unwrap()
            }
            _ => {
                let mut official = country["languages"].as_object().unwrap().values();
                official.any(|name| spelling(name.as_str().unwrap()) == answer)
            }
        };
        assert!(agrees, "{}: `{answer}` is not what the shared table says: {}", fact.id, country["name"]["common"]);
    }
}
