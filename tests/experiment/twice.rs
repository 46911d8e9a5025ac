//! Proves that the main table measured twice is the same: every setting with its added rows, the fits with their curve, the
//! states, all controls, and the figures' data.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use trainer::experiment::matrix::{Reading, Setting, Training};

use crate::{experiment, finished, measured, small_model};

/// What a clock decides.
const TIMED: [&str; 2] = ["table-3.csv", "table-4.csv"];

/// The figures' data by file name, without what a clock decides.
fn figures(out: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(out.join("figures")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    let data = files.filter(|path| path.extension().is_some_and(|kind| kind == "csv"));
    let untimed = data.filter(|path| !TIMED.contains(&name(path).as_str()));
    untimed.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn the_main_table_with_its_controls_curve_and_states_is_the_same_twice() {
    let dir = tempfile::tempdir().unwrap();
    small_model::write_folder(&dir.path().join("model"), 1);
    let [first, again] = ["first", "again"].map(|out| {
        // Long prompts are cut by their middle; two new tokens tell models apart.
        finished(experiment(
            dir.path(),
            "main",
            out,
            &["optim.max_steps=2", "data.cutoff=60", "data.english_cutoff=60"],
        ));
        (measured(&dir.path().join(out)), figures(&dir.path().join(out)))
    });
    let (cells, files) = &first;
    for (at, setting) in Setting::ALL.into_iter().enumerate() {
        let of = |training| {
            cells
                .values()
                .find(|found| (found.cell.setting, found.cell.training, found.cell.seed) == (setting, training, 0))
        };
        let [sft, cc] = [Training::Sft, Training::Cc].map(|training| of(training).unwrap());
        let plain = at == 0;
        assert!(!cc.fits.is_empty() && cc.fits[&Reading::Transform].curve.is_empty() != plain, "{}", setting.name());
        assert_eq!((cc.states.is_empty(), sft.states.is_empty()), (!plain, !plain), "{}", setting.name());
        assert_eq!(cc.test.readings.len(), if plain { 11 } else { 3 }, "{}", setting.name());
    }
    for name in ["table-1.csv", "table-2-sources.csv", "figure-5.csv", "figure-6.csv", "figure-7.csv", "everything.csv"]
    {
        assert!(files.contains_key(name), "{name} is not among {:?}", files.keys());
    }
    assert_eq!(first.0, again.0);
    assert_eq!(first.1, again.1);
}
