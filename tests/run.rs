//! Proves of the default run, cut short: everything it promises is there, and the same seed prints the same table.

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::tensor::{Device, read_sync};
use trainer::export;

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
