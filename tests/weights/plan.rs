//! Proves that a training run holds about as much memory as `trainer plan` says of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use cctuning::chat::ChatTemplate;
use cctuning::checkpoint::Storage;
use cctuning::config::{Family, ModelConfig};
use serde_json::{Value, json};

use crate::shared_data::shared;
use crate::small_model::{config, folder};

/// How far the plan may be from what is held, and the cores that it is tried on.
const SHARE: f64 = 0.15;
const CORES: &str = "0,1";

/// A model of some 20 million parameters, most of them in its table as those of small real models are, and rows.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let small = config(Family::Llama, true);
    let shape = ModelConfig {
        d_model: 256,
        d_ff: 768,
        n_layers: 6,
        head_dim: 64,
        vocab_size: 60_000,
        max_positions: 256,
        ..small
    };
    let folder = folder(shape, ChatTemplate::PLAIN, 1);
    folder.save_model(&folder.model, &dir.path().join("model"), Storage::F32).unwrap();
    let row = |i: usize| {
        let (prompt, answer) = ("¿cuántos? ".repeat(4 + i % 5), "son tres ".repeat(2 + i % 3));
        json!({"id": format!("r{i}"), "lang": "es", "instruction": prompt,
               "instruction_en": "how many? ".repeat(4 + i % 5), "output": answer})
    };
    let rows: Vec<String> = (0..32).map(|i| row(i).to_string()).collect();
    fs::write(dir.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    dir
}

fn out(method: &str, more: &[&str]) -> String {
    format!("{method}-{}", more.len())
}

fn trainer(dir: &Path, verb: &str, method: &str, more: &[&str]) -> String {
    let mut command = Command::new("taskset");
    command.args(["-c", CORES, env!("CARGO_BIN_EXE_trainer"), verb, "--method", method]);
    command.current_dir(dir).env("BURN_DEVICE", "flex").stdin(Stdio::null());
    let out = format!("run.out={}", out(method, more));
    let fixed = ["model.path=model", "data.train=rows.jsonl", "optim.batch_size=16", "optim.max_steps=2", &out];
    for assignment in fixed.iter().chain(more) {
        // `plan --json` takes no further words.
        match assignment.strip_prefix("--") {
            Some(_) => command.arg(assignment),
            None => command.args(["--set", assignment]),
        };
    }
    let output = command.output().unwrap();
    let [said, told] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{told}");
    said + &told
}

/// In MiB, as `trainer` writes sizes.
fn size(text: &str, after: &str) -> f64 {
    let mut words = text.split(after).nth(1).unwrap_or_else(|| panic!("no {after:?} in {text}")).split_whitespace();
    let (number, unit) = (words.next().unwrap(), words.next().unwrap());
    number.parse::<f64>().unwrap() * if unit.starts_with("GiB") { 1024.0 } else { 1.0 }
}

#[test]
fn a_run_holds_what_the_plan_says_within_fifteen_percent() {
    let dir = workplace();
    let settings: [(&str, &[&str]); 4] = [
        ("sft", &[]),
        ("cc", &[]),
        ("cc", &["optim.recompute=true"]),
        ("cc", &["optim.recompute=true", "optim.moments=bf16"]),
    ];
    for (method, more) in settings {
        // How high micro-batches that run side by side pile up is decided by chance: the second of three.
        let mut runs: Vec<[f64; 2]> = (0..3)
            .map(|_| {
                let told = trainer(dir.path(), "train", method, more);
                fs::remove_dir_all(dir.path().join(out(method, more))).unwrap();
                ["held ", "at most, planned "].map(|words| size(&told, words))
            })
            .collect();
        runs.sort_by(|one, other| one[0].total_cmp(&other[0]));
        let [held, planned] = runs[1];
        eprintln!(
            "measured: {method} {more:?}: {planned} MiB planned, {:?} held, {:.2}",
            runs.iter().map(|run| run[0]).collect::<Vec<_>>(),
            planned / held
        );
        assert!((planned / held - 1.0).abs() < SHARE, "{method} {more:?}: {planned} MiB planned, {held} held");
        let plan: Value =
            serde_json::from_str(&trainer(dir.path(), "plan", method, &[more, &["--json"]].concat())).unwrap();
        let before = plan["peak_bytes"].as_f64().unwrap() / f64::from(1 << 20);
        assert!((before - planned).abs() < 0.006 * planned, "{method} {more:?}: {before} before, {planned} after");
    }
}

#[test]
fn full_fine_tuning_of_seven_and_eight_billion_is_planned_below_100_gib() {
    for (config, billions) in [("llama3.1/Llama-3.1-8B-Instruct", 8.03), ("qwen2.5/Qwen2.5-7B-Instruct", 7.62)] {
        let Some(config) = shared(&format!("data/models/{config}/config.json")) else { return };
        let plan = Command::new(env!("CARGO_BIN_EXE_trainer"))
            .args(["plan", "--gpu", "--json", "--preset", "paper-hparams", "--set", "optim.moments=bf16", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
        let gib = plan["peak_bytes"].as_f64().unwrap() / f64::from(1 << 30);
        assert!((plan["parameters"].as_f64().unwrap() / 1e9 - billions).abs() < 0.01, "{plan}");
        assert!(gib > 80.0 && gib < 100.0, "{gib} GiB for {}", config.display());
    }
}
