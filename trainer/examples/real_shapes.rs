//! Times of a real model's shape beside `transformers`, all in one run: loading, prefill, decoding, training steps, and
//! the peak of each in memory. Every part runs in a process of its own, ours and theirs in turn.
//!
//! `cargo run --release -p trainer --no-default-features --example real_shapes -- FOLDER [--only PART] [--torch python3]`
//!
//! FOLDER is a Hugging Face folder; random weights do. PART is one of load, generate, answers, "sft f32", "cc f32",
//! "sft bf16" and "cc bf16".

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, read_sync};
use cctuning::chat::Prompt;
use cctuning::generate::{Decoding, GenerateOptions, Source};
use cctuning::sampling::Sampling;
use cctuning::transform_matrix::TransformMatrix;
use serde_json::{Value, json};
use trainer::evaluate::answer;
use trainer::memory;
use trainer::model_folder::ModelFolder;
use trainer::optim::AdamW;
use trainer::precision::Precision;
use trainer::recipe::Recipe;
use trainer::sample::Sample;
use trainer::step::{Economy, Method, step};

const PROMPT: usize = 256;
const NEW_TOKENS: usize = 16;
const ROUNDS: usize = 3;
/// Rows, tokens of a prompt, of its English twin and of an answer in a training step.
const BATCH: (usize, usize, usize, usize) = (4, 96, 80, 32);
/// Prompts of an evaluation, the shortest and the longest of them in tokens, and tokens of each answer.
const ANSWERS: (usize, usize, usize, usize) = (16, 24, 144, 12);
/// How often prompts are answered, ours and theirs in turn.
const TURNS: usize = 3;
const PARTS: [&str; 7] = ["load", "generate", "answers", "sft f32", "cc f32", "sft bf16", "cc bf16"];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value_of = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1);
    let folder = PathBuf::from(args.first().context("which folder?")?);
    if let Some(part) = value_of("--part") {
        println!("{}", measure(&folder, part)?);
        return Ok(());
    }
    println!("{:<10} {:>34} {:>34}", "", "ours", "transformers");
    let asked = PARTS.into_iter().filter(|part| value_of("--only").is_none_or(|only| only == part));
    for part in asked.flat_map(|part| [part].repeat(if part == "answers" { TURNS } else { 1 })) {
        let mut ours = Command::new(std::env::current_exe()?);
        let ours = json_of(ours.arg(&folder).args(["--part", part]))?;
        let theirs = match value_of("--torch") {
            Some(python) if !part.starts_with("cc") => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/real_shapes.py");
                Some(json_of(Command::new(python).arg(script).arg(&folder).arg(part))?)
            }
            _ => None,
        };
        for (what, value) in ours.as_object().context("a part prints one JSON object")? {
            let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
            // The connection is ours alone.
            let beside = theirs.as_ref().and_then(|theirs| theirs.get(what)).map_or(String::new(), |theirs| {
                format!("{:>12.2}   theirs / ours {:.2}", number(theirs), number(theirs) / number(value))
            });
            println!("{part:<10} {what:<24}{:>12.2} {beside}", number(value));
        }
    }
    Ok(())
}

fn json_of(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(serde_json::from_str(text.lines().last().context("nothing was printed")?)?)
}

fn measure(folder: &Path, part: &str) -> Result<Value> {
    let started = Instant::now();
    let folder = ModelFolder::load(folder, None, 0, &Device::flex())?;
    let load_s = started.elapsed().as_secs_f64();
    let mut found = match part.split_once(' ') {
        None if part == "load" => json!({ "load s": load_s }),
        None if part == "generate" => generate(&folder)?,
        None if part == "answers" => answers(&folder)?,
        Some((method, precision)) => train(folder, method, precision)?,
        _ => bail!("no such part: {part}"),
    };
    found["peak GB"] = json!(peak_gb()?);
    Ok(found)
}

fn generate(folder: &ModelFolder) -> Result<Value> {
    let prompt = prompt(PROMPT, 1);
    // Any matrix costs the same.
    let identity = TransformMatrix::identity(folder.config.d_model, &Device::flex());
    let transform = identity.fold(folder.model.model.decision_maker());
    // Seconds to the first token, and of those after it.
    let times = |source| -> Result<(f64, f64)> {
        let started = Instant::now();
        let options = GenerateOptions { source, ..greedy(folder, NEW_TOKENS) };
        let mut decoding = Decoding::start(&folder.model, &folder.config, Some(&transform), &[&prompt], &[], options)?;
        read_sync(decoding.next_tokens())?;
        let first = started.elapsed().as_secs_f64();
        while read_sync(decoding.next_tokens())?.is_some() {}
        Ok((first, started.elapsed().as_secs_f64() - first))
    };
    let (mut prefill, mut decode, mut overhead) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ((first, rest), connected) = (times(Source::None)?, times(Source::Transform)?);
        prefill.push(PROMPT as f64 / first);
        decode.push((NEW_TOKENS - 1) as f64 / rest);
        overhead.push((connected.0 + connected.1) / (first + rest));
    }
    Ok(json!({ "prefill tokens/s": median(prefill), "decode tokens/s": median(decode),
               "with W_T / without": median(overhead) }))
}

fn greedy(folder: &ModelFolder, max_new_tokens: usize) -> GenerateOptions {
    let connection = folder.settings.connection;
    GenerateOptions {
        max_new_tokens,
        sampling: Sampling::Greedy,
        source: Source::None,
        connection,
        stop_ids: Vec::new(),
    }
}

/// Prompts of an evaluation per second of processor time, all at once and one by one: on a busy machine the ratio of two
/// programs that take turns says more so, if each is given one thread (OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1).
fn answers(folder: &ModelFolder) -> Result<Value> {
    let (prompts, shortest, longest, tokens) = ANSWERS;
    let length = |at: usize| shortest + at * (longest - shortest) / (prompts - 1);
    let prompts: Vec<Prompt> = (0..prompts).map(|at| prompt(length(at), at)).collect();
    let pairs: Vec<(&Prompt, &Prompt)> = prompts.iter().map(|prompt| (prompt, prompt)).collect();
    let options = greedy(folder, tokens);
    let per_second = |pairs: &[&[(&Prompt, &Prompt)]]| -> Result<(f64, Vec<Vec<u32>>)> {
        let (started, mut answers) = (processor_s()?, Vec::new());
        for pairs in pairs {
            answers.extend(answer(&folder.model, &folder.config, None, pairs, &options)?);
        }
        Ok((prompts.len() as f64 / (processor_s()? - started), answers))
    };
    let (batched, answers) = per_second(&[&pairs])?;
    let (alone, expected) = per_second(&pairs.chunks(1).collect::<Vec<_>>())?;
    ensure!(answers == expected, "a batch changed an answer");
    Ok(json!({ "batched prompts/s": batched, "alone prompts/s": alone, "batched / alone": batched / alone }))
}

fn train(folder: ModelFolder, method: &str, precision: &str) -> Result<Value> {
    memory::keep_freed(folder.config.vocab_size * folder.config.d_model * size_of::<f32>());
    let (rows, own, english, answer) = BATCH;
    let sample = |row: usize| Sample {
        id: row.to_string(),
        lang: "xx".into(),
        prompt: prompt(own, row),
        english: prompt(english, 100 + row),
        answer: prompt(answer, 200 + row).ids,
    };
    let samples: Vec<Sample> = (0..rows).map(sample).collect();
    let batch: Vec<&Sample> = samples.iter().collect();
    let recipe = Recipe::default();
    let precision = if precision == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let economy = Economy { micro_tokens: 4096, recompute: true, precision };
    let method = if method == "cc" { Method::Cc(&recipe.cc) } else { Method::Sft };
    let mut optimizer = AdamW::new(&recipe.optim, 1.0);
    let mut model = folder.model;
    let mut times = Vec::new();
    for at in 0..=ROUNDS {
        let started = Instant::now();
        let result = step(&model, &batch, method, economy, at);
        (model, _) = optimizer.step(model, result.gradients, 1e-5);
        times.push(started.elapsed().as_secs_f64());
    }
    let tokens: usize = samples.iter().map(Sample::len).sum();
    let step_s = median(times.split_off(1));
    Ok(json!({ "step s": step_s, "tokens/s": tokens as f64 / step_s }))
}

/// Ids that differ from place to place and row to row.
fn prompt(n: usize, seed: usize) -> Prompt {
    let ids = (0..n).map(|at| ((at * 7919 + seed * 104_729) % 50_000) as u32).collect();
    Prompt { ids, anchor: n - 1, content: 1..n - 1 }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// What this process has computed so far, all threads together.
fn processor_s() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/stat").context("processor time is read from Linux's /proc")?;
    // Behind the name, which may hold anything: user and system time are the 12th and the 13th.
    let fields = status.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let hundredths: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(hundredths / 100.0)
}

/// The most memory this process has held.
fn peak_gb() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("peak memory is read from Linux's /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? * 1024.0 / 1e9)
}
