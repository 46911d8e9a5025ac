//! Proves that a limit chooses items that a constant answer gains nothing on, and that the base's own answers are kept for
//! all that they are the answers to, and for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cctuning::chat::ChatTemplate;
use cctuning::config::Family;
use trainer::corpus::{self, Item};
use trainer::data::Row;
use trainer::evaluate::at_most;
use trainer::experiment::distilled::Kept;
use trainer::interrupt::Interrupt;
use trainer::recipe::Recipe;

use crate::{item, small_model};

/// Items as rows.
fn rows(items: &[Item]) -> Vec<Row> {
    items.iter().map(Row::from).collect()
}

#[test]
fn a_limit_of_each_family_takes_both_kinds_in_turn() {
    let items: Vec<Item> =
        (0..8).flat_map(|at| ["choice", "story"].map(|family| item(family, "es", at, "A"))).collect();
    let taken: Vec<String> = at_most(3, rows(&items)).into_iter().map(|row| row.id).collect();
    let expected = [
        "choice/0/es/fact",
        "story/0/es/fact",
        "choice/1/es/phrasing",
        "story/1/es/phrasing",
        "choice/2/es/fact",
        "story/2/es/fact",
    ];
    assert_eq!(taken, expected);
    assert_eq!(at_most(0, rows(&items)).len(), items.len());
}

#[test]
fn a_limit_takes_every_option_about_as_often_so_that_a_constant_answer_earns_chance() {
    let corpus = corpus::generate(2506).unwrap();
    let first = |row: &Row, taken: &[Row]| {
        taken.iter().filter(|other| (&other.lang, &other.task) == (&row.lang, &row.task)).count() < 2
    };
    let mut as_they_come: Vec<Row> = Vec::new();
    for row in rows(&corpus.test) {
        if first(&row, &as_they_come) {
            as_they_come.push(row);
        }
    }
    let taken = at_most(2, rows(&corpus.test));
    assert_eq!(taken, at_most(2, rows(&corpus.test)));
    let spread = |rows: &[Row], family: &str| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.task == family && row.lang != "en") {
            *counts.entry(&row.output).or_default() += 1;
        }
        counts.values().max().unwrap() - counts.values().min().unwrap()
    };
    let mut unbalanced = 0;
    for family in ["entailment", "story", "choice"] {
        let (found, before) = (spread(&taken, family), spread(&as_they_come, family));
        assert!(found <= 2, "{family}: {found}");
        unbalanced += usize::from(before > 2);
    }
    assert!(unbalanced > 0, "the first items would have done as well, and nothing was shown");
}

#[test]
fn a_limit_counts_rows_that_are_in_no_family_by_their_language() {
    let row = |id: &str| Row { id: id.into(), ..Row::from(&item("choice", "es", 0, "A")) };
    let own = ["1", "2", "mine/3"].map(row).to_vec();
    assert_eq!(at_most(2, own.clone()), own[..2]);
    let families = ["story/1", "story/2", "choice/1"].map(row).to_vec();
    assert_eq!(at_most(1, families).len(), 2);
}

#[test]
fn answers_for_sdrrl_are_kept_for_every_seed_and_for_no_other_base_or_way_of_asking() {
    let dir = tempfile::tempdir().unwrap();
    let folder = small_model::folder(small_model::config(Family::Llama, true), ChatTemplate::PLAIN, 1);
    let recipe = |sets: &[&str]| {
        let sets: Vec<String> = ["eval.max_new_tokens=3"].iter().chain(sets).map(|text| text.to_string()).collect();
        Recipe::default().with(&sets).unwrap()
    };
    let ask = |base_sha256: &str, instructions: &[&str], recipe: &Recipe| {
        let kept = Kept { dir: dir.path(), base_sha256 };
        kept.answers(&folder, instructions, recipe, &Interrupt::default()).unwrap().unwrap()
    };
    let files = || {
        let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        files.collect::<BTreeSet<_>>()
    };
    let first = ask("one", &["Who is it?", "Where?", "Who is it?"], &recipe(&[]));
    assert_eq!(first[0], first[2]);
    let path = files().into_iter().next().unwrap();
    let mut kept: BTreeMap<String, Option<String>> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(kept.keys().collect::<Vec<_>>(), ["Where?", "Who is it?"]);

    // What the file says is taken, so the model was not asked again; another seed adds what it alone asks for.
    kept.insert("Where?".into(), Some("as it was kept".into()));
    fs::write(&path, serde_json::to_vec(&kept).unwrap()).unwrap();
    let seeds = ["optim.seed=7", "data.seed=7", "cc.seed=7", "transform.seed=7"];
    let second = ask("one", &["Where?", "Why?", "Who is it?"], &recipe(&seeds));
    assert_eq!((second[0].as_deref(), &second[2]), (Some("as it was kept"), &first[0]));
    assert_eq!(files().len(), 1);
    assert_eq!(ask("one", &["Why?"], &recipe(&[])), second[1..2]);

    for (base, sets) in [("two", &[][..]), ("one", &["eval.max_new_tokens=2"]), ("one", &["data.english_cutoff=30"])] {
        let before = files().len();
        assert_ne!(ask(base, &["Where?"], &recipe(sets))[0].as_deref(), Some("as it was kept"), "{base} {sets:?}");
        assert_eq!(files().len(), before + 1);
    }
    fs::write(&path, b"{ half").unwrap();
    assert_eq!(ask("one", &["Who is it?"], &recipe(&[])), first[..1], "a damaged file is made again");
}
