//! Proves that checkpoints, files and logs are whole or absent, whatever a killed process or a bad disk left behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use trainer::log::Log;
use trainer::run_folder::{hold, newest_valid, prune, sweep, verify, write_atomically, write_file_atomically};

fn save(dir: &Path, step: usize) -> PathBuf {
    write_atomically(dir, &format!("step-{step}"), |folder| {
        fs::create_dir(folder.join("model"))?;
        fs::write(folder.join("model/weights"), step.to_string().repeat(1000))?;
        fs::write(folder.join("state.json"), "{}")?;
        Ok(())
    })
    .unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_is_written_whole_and_lists_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = save(dir.path(), 7);
    assert_eq!(names(dir.path()), ["step-7"]);
    verify(&checkpoint).unwrap();
    let manifest = fs::read_to_string(checkpoint.join("MANIFEST.sha256")).unwrap();
    // sha256 of the two bytes {}.
    assert!(
        manifest.contains("44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a  state.json\n"),
        "{manifest}"
    );
    assert!(manifest.contains("  model/weights\n"), "{manifest}");
}

#[test]
fn a_write_that_fails_leaves_the_former_checkpoint_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = save(dir.path(), 1);
    let failed = write_atomically(dir.path(), "step-1", |folder| {
        fs::write(folder.join("state.json"), "half")?;
        anyhow::bail!("the disk is full")
    });
    assert!(format!("{:#}", failed.unwrap_err()).contains("the disk is full"));
    verify(&checkpoint).unwrap();
    assert_eq!(names(dir.path()), ["step-1"]);
}

#[test]
fn a_checkpoint_written_again_replaces_the_former() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1);
    fs::create_dir(dir.path().join(".replaced-step-1")).unwrap();
    fs::write(dir.path().join(".replaced-step-1/stale"), "of a killed run").unwrap();
    let again = write_atomically(dir.path(), "step-1", |folder| Ok(fs::write(folder.join("new"), "new")?)).unwrap();
    assert_eq!(names(&again), ["MANIFEST.sha256", "new"]);
    assert_eq!(names(dir.path()), ["step-1"]);
    verify(&again).unwrap();
}

#[test]
fn leftovers_of_killed_writes_are_swept_and_never_picked_up() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1);
    fs::rename(save(dir.path(), 2), dir.path().join(".writing-step-2")).unwrap();
    fs::rename(save(dir.path(), 3), dir.path().join(".deleting-step-3")).unwrap();
    fs::write(dir.path().join(".writing-log.jsonl"), "half").unwrap();
    assert_eq!(newest_valid(dir.path()).unwrap(), Some(dir.path().join("step-1")));
    sweep(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["step-1"]);
    sweep(&dir.path().join("not there")).unwrap();
}

#[test]
fn a_replacement_killed_between_its_renames_gives_the_former_back() {
    let dir = tempfile::tempdir().unwrap();
    fs::rename(save(dir.path(), 2), dir.path().join(".replaced-step-2")).unwrap();
    sweep(dir.path()).unwrap();
    assert_eq!(newest_valid(dir.path()).unwrap(), Some(dir.path().join("step-2")));
}

#[test]
fn steps_are_ordered_as_numbers() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(newest_valid(dir.path()).unwrap(), None);
    assert_eq!(newest_valid(&dir.path().join("not there")).unwrap(), None);
    for step in [9, 100, 10] {
        save(dir.path(), step);
    }
    assert_eq!(newest_valid(dir.path()).unwrap(), Some(dir.path().join("step-100")));
}

#[test]
fn any_damage_to_the_newest_checkpoint_falls_back_to_the_one_before() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("model/weights", |folder| fs::write(folder.join("model/weights"), "2".repeat(999)).unwrap()),
        ("state.json", |folder| fs::remove_file(folder.join("state.json")).unwrap()),
        ("added", |folder| fs::write(folder.join("added"), "").unwrap()),
        ("MANIFEST.sha256", |folder| fs::remove_file(folder.join("MANIFEST.sha256")).unwrap()),
        ("MANIFEST.sha256", |folder| fs::write(folder.join("MANIFEST.sha256"), "").unwrap()),
        ("MANIFEST.sha256:1", |folder| fs::write(folder.join("MANIFEST.sha256"), [0xc3, 0xa9, b'x']).unwrap()),
    ];
    for (named, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (save(dir.path(), 1), save(dir.path(), 2));
        damage(&bad);
        let fault = format!("{:#}", verify(&bad).unwrap_err());
        assert!(fault.contains(named), "expected {named:?} in: {fault}");
        assert_eq!(newest_valid(dir.path()).unwrap(), Some(good));
    }
}

#[test]
fn checkpoints_that_are_all_damaged_are_an_error_and_not_a_fresh_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::remove_file(save(dir.path(), 1).join("state.json")).unwrap();
    assert!(newest_valid(dir.path()).unwrap_err().to_string().contains("1 damaged"));
}

#[test]
fn pruning_keeps_the_newest_and_never_deletes_the_only_valid_one() {
    let dir = tempfile::tempdir().unwrap();
    for step in 1..=5 {
        save(dir.path(), step);
    }
    prune(dir.path(), 2).unwrap();
    assert_eq!(names(dir.path()), ["step-4", "step-5"]);
    for step in [5, 6, 7] {
        let damaged = save(dir.path(), step);
        fs::write(damaged.join("state.json"), "damaged").unwrap();
    }
    prune(dir.path(), 1).unwrap();
    assert_eq!(newest_valid(dir.path()).unwrap(), Some(dir.path().join("step-4")));
    prune(dir.path(), 0).unwrap();
    assert_eq!(newest_valid(dir.path()).unwrap(), Some(dir.path().join("step-4")));
}

#[test]
fn a_folder_is_held_by_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let held = hold(dir.path()).unwrap();
    let refused = format!("{:#}", hold(dir.path()).unwrap_err());
    assert!(refused.contains("another process"), "{refused}");
    drop(held);
    hold(dir.path()).unwrap();
}

#[test]
fn a_file_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("deep/recipe.toml");
    write_file_atomically(&file, b"a long first content").unwrap();
    write_file_atomically(&file, b"second").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"second");
    assert_eq!(names(file.parent().unwrap()), ["recipe.toml"]);
}

#[test]
fn a_resumed_log_is_one_clean_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.jsonl");
    let mut log = Log::open(&path, 0).unwrap();
    log.write(&serde_json::json!({"event": "start"})).unwrap();
    for step in 1..=12 {
        log.write(&serde_json::json!({"step": step, "loss": 0.5})).unwrap();
    }
    drop(log);
    let mut torn = fs::read(&path).unwrap();
    torn.extend(b"{\"step\":13,\"lo");
    fs::write(&path, torn).unwrap();

    let mut log = Log::open(&path, 9).unwrap();
    log.write(&serde_json::json!({"step": 10, "loss": 0.25})).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let steps: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].clone()).collect();
    assert_eq!(steps[1..], (1..=10).map(serde_json::Value::from).collect::<Vec<_>>());
    assert!(text.lines().last().unwrap().contains("0.25"), "{text}");

    Log::open(&path, 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
}
