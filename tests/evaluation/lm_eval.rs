//! What an evaluation leaves in the shape of lm-eval is read by lm-eval's own tools, where they are installed:
//! `CCTUNING_LM_EVAL=/path/to/python cargo test --release -p trainer --no-default-features --test evaluation lm_eval`
//! (`pip install lm-eval datasets pytablewriter`; 0.4.13 was the last one tried).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use trainer::lm_eval::stamp;

use crate::{small_model, succeed, write_benchmarks};

#[test]
fn results_and_samples_have_the_names_and_the_keys_of_lm_eval() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model::write_folder(&dir.join("model"), 1);
    write_benchmarks(&dir.join("sets"));
    succeed(dir, "eval model --benchmarks sets --set eval.max_new_tokens=3 --out out");
    let described: Value = serde_json::from_slice(&fs::read(dir.join("out/eval.json")).unwrap()).unwrap();
    let started = described["started"].as_str().unwrap();
    let read = |name: String| fs::read_to_string(dir.join("out/lm_eval").join(name)).unwrap();
    let results: Value = serde_json::from_str(&read(format!("results_{started}.json"))).unwrap();
    let tasks: Vec<&String> = results["results"].as_object().unwrap().keys().collect();
    assert_eq!(tasks, ["mkqa_en", "xnli_en", "xnli_sw"]);
    assert_eq!(results["n-samples"]["xnli_sw"]["effective"], 4);
    for task in tasks {
        let lines = read(format!("samples_{task}_{started}.jsonl"));
        let samples: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(samples.iter().map(|sample| sample["doc_id"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        for metric in results["configs"][task]["metric_list"].as_array().unwrap() {
            let metric = metric["metric"].as_str().unwrap();
            let of_samples: f64 = samples.iter().map(|sample| sample[metric].as_f64().unwrap()).sum();
            assert_eq!(results["results"][task][format!("{metric},none")], of_samples / 4.0, "{task} {metric}");
            assert!(results["results"][task][format!("{metric}_stderr,none")].is_f64(), "{task} {metric}");
        }
        assert!(samples[0]["arguments"]["gen_args_0"]["arg_0"].is_string() && samples[0]["target"].is_string());
    }
    assert!(results["results"]["xnli_en"]["acc_loglik_near_ties,none"].is_f64());

    let Ok(python) = std::env::var("CCTUNING_LM_EVAL") else {
        eprintln!("skipped: set CCTUNING_LM_EVAL to a Python that has lm-eval, and its own readers are asked too");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/evaluation/lm_eval.py");
    let output = Command::new(python).arg(script).arg(dir.join("out")).env("HF_HOME", dir.join("hf")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: BTreeMap<String, usize> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found, [("mkqa_en", 4), ("xnli_en", 4), ("xnli_sw", 4)].map(|(task, n)| (task.into(), n)).into());
}

#[test]
fn the_time_of_day_counts_leap_years() {
    for (seconds, expected) in [
        (0, "1970-01-01T00-00-00"),
        (951_782_399, "2000-02-28T23-59-59"),
        (951_782_400, "2000-02-29T00-00-00"),
        (1_763_734_508, "2025-11-21T14-15-08"),
        (4_107_542_400, "2100-03-01T00-00-00"),
    ] {
        assert_eq!(stamp(seconds), expected);
    }
}
