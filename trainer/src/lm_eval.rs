//! The results and samples of an evaluation as lm-eval (0.4.13) writes them, so that its tools read ours.
//!
//! `lm_eval/results_DATE.json` and `lm_eval/samples_TASK_DATE.jsonl`, tasks called `xnli_en`. Knows no model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cctuning::bundle::hex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::benchmarks::Item;
use crate::results::{Cell, Record};
use crate::run_folder::write_file_atomically;
use crate::scorers;

const FOLDER: &str = "lm_eval";

/// What the evaluation was told: its model, when it was begun, see [`now`], everything else, and all that could be asked.
pub struct Run<'r> {
    pub model: &'r str,
    pub started: &'r str,
    pub arguments: &'r Value,
    pub all: &'r [Item],
}

/// Writes both kinds of file. `items` and `records` in the same order.
///
/// # Errors
/// The disk fails.
pub fn write(out: &Path, items: &[Item], records: &[&Record], cells: &[Cell], run: &Run) -> Result<()> {
    let folder = out.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let (mut files, mut hashes) = (BTreeMap::<String, Vec<u8>>::new(), BTreeMap::<String, String>::new());
    for (item, record) in items.iter().zip(records) {
        let (task, sample) = (task(item.benchmark.name(), &item.lang), sample(item, record, run));
        let lines = files.entry(task.clone()).or_default();
        serde_json::to_writer(&mut *lines, &sample)?;
        lines.push(b'\n');
        let hash = hashes.entry(task).or_default();
        ["doc_hash", "prompt_hash", "target_hash"]
            .iter()
            .for_each(|key| *hash += sample[key].as_str().unwrap_or_default());
    }
    for (task, lines) in &files {
        write_file_atomically(&folder.join(format!("samples_{task}_{}.jsonl", run.started)), lines)?;
    }
    let hashes = hashes.into_iter().map(|(task, hashes)| (task, json!(sha256(&hashes)))).collect();
    let results = serde_json::to_string_pretty(&results(cells, run, hashes))?;
    write_file_atomically(&folder.join(format!("results_{}.json", run.started)), results.as_bytes())
}

fn task(benchmark: &str, lang: &str) -> String {
    format!("{}_{lang}", benchmark.to_lowercase())
}

fn results(cells: &[Cell], run: &Run, task_hashes: Map<String, Value>) -> Value {
    let (mut results, mut samples, mut better) = (Map::new(), Map::new(), Map::new());
    let (mut versions, mut shots, mut configs, mut subtasks) = (Map::new(), Map::new(), Map::new(), Map::new());
    for cell in cells {
        let task = task(&cell.benchmark, &cell.lang);
        let mut result = Map::new();
        let mut directions = Map::new();
        let mut put = |metric: String, value: f64, higher_is_better: Option<bool>| {
            result.insert(format!("{metric},none"), json!(value));
            directions.extend(higher_is_better.map(|better| (metric, json!(better))));
        };
        for (metric, measured) in &cell.metrics {
            put(metric.clone(), measured.estimate.mean, Some(true));
            put(format!("{metric}_stderr"), measured.estimate.stderr, None);
            if let Some(unparsable) = measured.unparsable {
                put(format!("{metric}_unparsable"), unparsable, Some(false));
            }
            if let Some(near_ties) = measured.near_ties {
                put(format!("{metric}_near_ties"), near_ties, Some(false));
            }
        }
        put("truncated".into(), cell.truncated, Some(false));
        if let Some(majority) = cell.majority {
            put("majority".into(), majority, None);
        }
        result.insert("alias".into(), json!(task));
        result.insert("name".into(), json!(task));
        result.insert("sample_len".into(), json!(cell.n));
        let means = cell.metrics.keys();
        let means = means.map(|metric| json!({"metric": metric, "aggregation": "mean", "higher_is_better": true}));
        let config = json!({
            "task": task, "num_fewshot": 0, "output_type": "generate_until", "repeats": 1,
            "generation_kwargs": generation(run), "metric_list": means.collect::<Vec<_>>(),
        });
        configs.insert(task.clone(), config);
        results.insert(task.clone(), result.into());
        let original =
            run.all.iter().filter(|item| (item.benchmark.name(), &*item.lang) == (&*cell.benchmark, &*cell.lang));
        samples.insert(task.clone(), json!({"original": original.count(), "effective": cell.n}));
        better.insert(task.clone(), directions.into());
        versions.insert(task.clone(), json!(1));
        subtasks.insert(task.clone(), json!([]));
        shots.insert(task, json!(0));
    }
    let limit = run.arguments["limit"].as_u64().filter(|&limit| limit > 0);
    json!({
        "results": results, "group_subtasks": subtasks, "configs": configs, "versions": versions, "n-shot": shots,
        "higher_is_better": better, "n-samples": samples, "task_hashes": task_hashes,
        "config": {"model": "cc-tuning", "model_args": run.arguments, "limit": limit, "bootstrap_iters": null},
        "model_source": "cc-tuning", "model_name": run.model,
    })
}

fn generation(run: &Run) -> Value {
    json!({"until": [], "max_gen_toks": run.arguments["max_new_tokens"], "do_sample": false})
}

/// The document holds no prompt: it stands among the arguments.
fn sample(item: &Item, record: &Record, run: &Run) -> Value {
    let document = json!({"id": item.id, "lang": item.lang, "gold": item.gold});
    let target = match &item.gold[..] {
        [one] => one.clone(),
        several => json!(several).to_string(),
    };
    let metrics: BTreeMap<String, f64> =
        record.scores.iter().map(|(rule, judged)| (scorers::metric(item.benchmark, rule), judged.score)).collect();
    let number = item.id.rsplit('/').next().and_then(|number| number.parse::<usize>().ok());
    let mut sample = json!({
        "doc_id": number,
        "doc_hash": sha256(&document.to_string()), "prompt_hash": record.prompt_sha256, "target_hash": sha256(&target),
        "doc": document, "target": target,
        "arguments": {"gen_args_0": {"arg_0": item.prompt, "arg_1": generation(run)}},
        "resps": [[record.text]], "filtered_resps": [record.text], "filter": "none",
        "metrics": metrics.keys().collect::<Vec<_>>(),
    });
    metrics.into_iter().for_each(|(metric, score)| sample[metric] = json!(score));
    sample
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// The time of day in UTC as it stands in file names, such as `2026-11-21T14-15-08`.
pub fn now() -> String {
    stamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Of so many seconds since 1970.
pub fn stamp(seconds: u64) -> String {
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}-{minute:02}-{second:02}", days + 1)
}
