//! The shipped bundle is small, and its page asks what was held out, in every language.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use cctuning::bundle::{Example, Manifest};
use trainer::corpus::LANGUAGES;
use trainer::model_folder::shipped;

use crate::{all_items, corpus};

/// For both models and all that belongs to them.
const LARGEST: u64 = 12_000_000;

#[test]
fn the_shipped_bundle_takes_at_most_12_megabytes_and_holds_nothing_else() {
    let manifest = Manifest::parse(&fs::read(shipped("bundle").join("manifest.json")).unwrap()).unwrap();
    let mut named: BTreeSet<String> = manifest.files.iter().map(|file| file.path.clone()).collect();
    named.insert("manifest.json".into());
    let files = fs::read_dir(shipped("bundle")).unwrap().map(|entry| entry.unwrap());
    let (found, bytes): (BTreeSet<String>, Vec<u64>) =
        files.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len())).unzip();
    assert_eq!(found, named);
    let bytes: u64 = bytes.iter().sum();
    assert!(bytes <= LARGEST, "{bytes} bytes are more than {LARGEST}");
}

#[test]
fn the_examples_of_the_shipped_bundle_are_test_rows_of_every_language_and_none_is_trained_on() {
    let examples = fs::read(shipped("bundle").join("examples.json")).unwrap();
    let examples: Vec<Example> = serde_json::from_slice(&examples).unwrap();
    let corpus = corpus();
    let held_out: HashSet<[&str; 4]> = corpus
        .test
        .iter()
        .map(|item| [&item.lang, &item.instruction, &item.instruction_en, &item.output].map(String::as_str))
        .collect();
    let tested: HashSet<&str> = corpus.test.iter().map(|item| item.id.as_str()).collect();
    let seen: HashSet<[&str; 2]> = all_items(corpus)
        .filter(|item| !tested.contains(item.id.as_str()))
        .map(|item| [&item.lang, &item.instruction].map(String::as_str))
        .collect();
    for Example { lang, prompt, english, gold } in &examples {
        assert!(held_out.contains(&[lang, prompt, english, gold].map(String::as_str)), "{lang}: {prompt:?}, {gold:?}");
        assert!(!seen.contains(&[lang, prompt].map(String::as_str)), "{lang}: {prompt:?} is seen outside the test");
    }
    let languages: BTreeSet<&str> = examples.iter().map(|example| example.lang.as_str()).collect();
    assert_eq!(languages, LANGUAGES.iter().map(|language| language.code).collect());
}
