//! Proves of the default run, cut short: everything it promises is there, the same seed prints the same table, the bundle is
//! held to the direction of what was measured in f32, and its page offers prompts that the connection helped and harmed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::{Device, read_sync};
use trainer::corpus::family::Family;
use trainer::corpus::{Item, LANGUAGES};
use trainer::data::Row;
use trainer::export;
use trainer::run::{Column, directions, telling};
use trainer::statistics::Weighed;

fn run(out: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_trainer"))
        .env("BURN_DEVICE", "flex")
        .args(["run", "--set", &format!("run.out={}", out.display())])
        .args(["--set", "optim.max_steps=4", "--set", "run.save_every=0", "--set", "transform.pairs=150"])
        .args(["--set", "eval.limit=1", "--set", "eval.max_new_tokens=4"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_default_run_leaves_all_it_promises_and_its_seed_decides_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("first");
    let printed = run(&out);
    let table = fs::read_to_string(out.join("table.txt")).unwrap();
    assert!(printed.contains(&table), "{printed}");
    for word in
        ["vanilla", "CC, English", "CC, W_T", "CC, identity", "CC, zero", "Arabic", "summary", "all without English"]
    {
        assert!(table.contains(word), "no {word:?} in\n{table}");
    }
    for file in [
        "recipe.toml",
        "cc/model/transform.json",
        "sft/log.jsonl",
        "sft/model/model.safetensors",
        "cc/log.jsonl",
        "cc/model/config.json",
        "cc/model/model.safetensors",
        "cc/model/tokenizer.json",
        "cc/model/transform_matrix.safetensors",
    ] {
        assert!(out.join(file).is_file(), "the run left no {file}");
    }
    let numbers = |label: &str| -> Vec<&str> {
        let row = table.lines().find_map(|line| line.strip_prefix(label));
        row.unwrap_or_else(|| panic!("no {label:?} in\n{table}")).split_whitespace().collect()
    };
    assert_eq!(numbers("f32 weights"), numbers("all without English ")[1..4], "the same means twice:\n{table}");
    assert_eq!(numbers("the bundle's, 8 bits").len(), 3);
    assert_eq!(table.matches("the direction is").count(), 2, "{table}");
    let hidden = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with('.');
    assert!(!fs::read_dir(&out).unwrap().any(|entry| hidden(entry.unwrap())), "the bundle on trial is gone");
    let bundle = export::load(&out.join("bundle"), &Device::flex()).unwrap();
    assert!(read_sync(bundle.self_test(1)).unwrap().passed);
    assert_eq!(bundle.manifest.languages.len(), 22);

    let again = dir.path().join("again");
    run(&again);
    assert_eq!(fs::read_to_string(again.join("table.txt")).unwrap(), table);
    assert_eq!(
        fs::read(again.join("bundle/manifest.json")).unwrap(),
        fs::read(out.join("bundle/manifest.json")).unwrap()
    );
}

/// Forty prompts, each about a fact of its own: the first `vanilla` are right without connection, the first `connected` with.
fn columns(vanilla: usize, connected: usize) -> Vec<Column> {
    let right = |n: usize| (0..40).map(|at| f64::from(at < n)).collect();
    vec![("vanilla", right(vanilla)), ("CC, W_T", right(connected))]
}

fn asked() -> Vec<Weighed> {
    (0..40).map(|cluster| Weighed { block: 0, cluster, weight: 1.0 }).collect()
}

#[test]
fn a_clear_difference_that_8_bits_turn_or_lose_is_an_error_and_one_within_noise_is_told() {
    let says = |exact: [usize; 2], stored: [usize; 2]| {
        directions(&columns(exact[0], exact[1]), &columns(stored[0], stored[1]), &asked())
    };
    let kept = says([10, 30], [12, 27]).unwrap();
    assert!(kept.contains("in f32, +37.5 in 8 bits: the direction is kept\n"), "{kept}");
    assert!(kept.contains("CC, W_T - vanilla: +50.0 ["), "{kept}");
    assert!(says([30, 10], [30, 29]).unwrap().ends_with("the direction is kept\n"), "below zero is a direction too");
    for stored in [[30, 10], [20, 20], [21, 20]] {
        let error = says([10, 30], stored).unwrap_err().to_string();
        assert!(error.contains("CC, W_T - vanilla: +50.0") && error.ends_with("lost its direction"), "{error}");
    }
    assert!(says([30, 10], [10, 11]).is_err());
    for (exact, stored) in [([20, 21], [21, 20]), ([21, 20], [20, 20]), ([20, 20], [20, 21])] {
        let told = says(exact, stored).unwrap();
        assert!(told.contains("the direction is not kept, but in f32 it could not be told from zero"), "{told}");
    }
    assert!(says([20, 21], [20, 22]).unwrap().contains("is kept, though in f32 it cannot be told from zero"));
}

#[test]
fn facts_are_the_evidence_for_a_direction_and_english_rows_are_none() {
    let (exact, stored) = (columns(10, 30), columns(30, 10));
    let few_facts: Vec<Weighed> =
        asked().into_iter().map(|item| Weighed { cluster: item.cluster / 30, ..item }).collect();
    let told = directions(&exact, &stored, &few_facts).unwrap();
    assert!(told.contains("not kept, but"), "a fact in twenty wordings is one fact:\n{told}");
    let mut foreign = asked();
    foreign[10..30].iter_mut().for_each(|item| item.weight = 0.0);
    let told = directions(&exact, &stored, &foreign).unwrap();
    assert!(told.starts_with("all without English, %   20 ") && told.contains(": +0.0 [+0.0, +0.0]"), "{told}");
}

/// Three rows of each family in one language.
fn rows_of(lang: &str) -> Vec<Item> {
    let ids = Family::ALL.into_iter().flat_map(|family| (0..3).map(move |at| (family.name(), at)));
    let item = |(task, at): (&str, i32)| Item {
        id: format!("{task}/{at}/{lang}/fact"),
        task: task.into(),
        lang: lang.into(),
        instruction: format!("{task} {at}"),
        instruction_en: "?".into(),
        output: "!".into(),
        output_en: "!".into(),
    };
    ids.map(item).collect()
}

#[test]
fn a_page_offers_of_each_language_what_the_connection_helped_most_and_harmed_most_and_every_family_once() {
    let cases: [(&[(&str, f64)], [&str; 2]); 6] = [
        (&[("choice 1", 1.0), ("entailment 2", -1.0)], ["choice 1", "entailment 2"]),
        (&[("summary 0", 0.2), ("story 1", 1.0), ("reading 2", -0.1), ("question 0", -1.0)], ["story 1", "question 0"]),
        // Both in one family: the page takes one row of it, so the other is looked for elsewhere.
        (&[("choice 0", 1.0), ("choice 1", -1.0), ("summary 2", 0.3)], ["summary 2", "choice 1"]),
        (&[("choice 0", 1.0), ("choice 1", -1.0), ("summary 2", -0.3)], ["choice 0", "summary 2"]),
        (&[("story 2", 1.0)], ["story 2", "question 0"]),
        (&[("question 2", -1.0)], ["choice 0", "question 2"]),
    ];
    let mut items = Vec::new();
    let mut gains = HashMap::new();
    for (language, (changed, _)) in LANGUAGES.iter().zip(&cases) {
        items.extend(rows_of(language.code));
        let id = |prompt: &str| format!("{}/{}/fact", prompt.replace(' ', "/"), language.code);
        gains.extend(changed.iter().map(|(prompt, gain)| (id(prompt), *gain)));
    }
    let ordered = telling(&items, &gains);
    assert_eq!(ordered.len(), items.len());
    let offered = export::examples(&ordered.into_iter().map(Row::from).collect::<Vec<_>>());
    for (language, (changed, expected)) in LANGUAGES.iter().zip(cases) {
        let own: Vec<&str> =
            offered.iter().filter(|example| example.lang == language.code).map(|example| &*example.prompt).collect();
        assert_eq!(own[..2], expected, "{changed:?}");
        let mut families: Vec<&str> = own.iter().filter_map(|prompt| prompt.split(' ').next()).collect();
        families.sort_unstable();
        let mut all = Family::ALL.map(Family::name);
        all.sort_unstable();
        assert_eq!(families, all, "{changed:?}");
    }
}
