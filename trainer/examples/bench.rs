//! Side-by-side times on this machine, each a ratio within one run: CC step over vanilla step, W_T inference over
//! vanilla inference, and with `--torch PYTHON` our training step over PyTorch's on the same model and batch.
//!
//! `cargo run --release -p trainer --no-default-features --example bench -- [--torch python3]`

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::{Device, read_sync};
use cctuning::chat::AnchorRule;
use cctuning::generate::{Decoding, GenerateOptions, Source};
use cctuning::sampling::Sampling;
use cctuning::transform_matrix::TransformMatrix;
use serde_json::{Value, json};
use trainer::corpus;
use trainer::data::Row;
use trainer::model_folder::{ModelFolder, shipped};
use trainer::optim::AdamW;
use trainer::recipe::Recipe;
use trainer::sample::{Renderer, Sample};
use trainer::step::{Method, step};

const BATCH: usize = 32;
const ROUNDS: usize = 15;
const NEW_TOKENS: usize = 40;

fn main() -> Result<()> {
    let torch = std::env::args().skip_while(|arg| arg != "--torch").nth(1);
    let recipe = Recipe::default();
    let base = ModelFolder::load(&shipped("base"), None, 0, &Device::flex())?;
    let renderer = Renderer {
        tokenizer: &base.tokenizer,
        template: base.settings.template.clone(),
        anchor: AnchorRule::default(),
        cutoff: 256,
        english_cutoff: 256,
    };
    let rows: Vec<Row> =
        corpus::generate(1)?.train.iter().filter(|item| item.lang != "en").take(BATCH).map(Row::from).collect();
    let (samples, _) = renderer.samples(&rows)?;
    let batch: Vec<&Sample> = samples.iter().collect();
    let tokens: usize = samples.iter().map(Sample::len).sum();
    println!("{BATCH} rows, {tokens} tokens, {} layers of width {}", base.config.n_layers, base.config.d_model);

    let model = base.model.clone().train();
    let train = |method: Method, at: usize| {
        let mut optimizer = AdamW::new(&recipe.optim, 1.0);
        let result = step(&model, &batch, method, (&recipe.optim).into(), at);
        optimizer.step(model.clone(), result.gradients, 1e-4);
    };
    let (sft, cc) = side_by_side(|at| train(Method::Sft, at), |at| train(Method::Cc(&recipe.cc), at));
    report("training step", "vanilla", sft, "CC", cc);

    let folded =
        TransformMatrix::identity(base.config.d_model, &Device::flex()).fold(base.model.model.decision_maker());
    let answer = |source: Source| {
        let options = GenerateOptions {
            max_new_tokens: NEW_TOKENS,
            sampling: Sampling::Greedy,
            source,
            connection: base.settings.connection,
            stop_ids: Vec::new(),
        };
        let decoding = Decoding::start(&base.model, &base.config, Some(&folded), &[&samples[0].prompt], &[], options);
        let tokens = read_sync(decoding.expect("the prompt fits").finish()).expect("the CPU computes");
        assert_eq!(tokens[0].len(), NEW_TOKENS);
    };
    let (vanilla, connected) = side_by_side(|_| answer(Source::None), |_| answer(Source::Transform));
    report(&format!("{NEW_TOKENS} tokens, batch 1"), "vanilla", vanilla, "W_T", connected);

    match torch {
        Some(python) => torch_step(&python, &samples, sft),
        None => Ok(()),
    }
}

/// Medians of two things done in turn, in milliseconds, after one round each that is not counted.
fn side_by_side(mut a: impl FnMut(usize), mut b: impl FnMut(usize)) -> (f64, f64) {
    let time = |f: &mut dyn FnMut(usize), round| {
        let started = Instant::now();
        f(round);
        started.elapsed().as_secs_f64() * 1e3
    };
    let (mut times_a, mut times_b) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (ta, tb) = (time(&mut a, round), time(&mut b, round));
        if round > 0 {
            times_a.push(ta);
            times_b.push(tb);
        }
    }
    (median(times_a), median(times_b))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn report(what: &str, name_a: &str, a: f64, name_b: &str, b: f64) {
    println!("{what:<22} {name_a:>8} {a:8.1} ms   {name_b:>8} {b:8.1} ms   ratio {:.2}", b / a);
}

/// The same step in PyTorch, which gets the checkpoint folder and the tokens of the batch.
fn torch_step(python: &str, samples: &[Sample], ours: f64) -> Result<()> {
    let rows: Vec<Value> =
        samples.iter().map(|sample| json!({ "prompt": sample.prompt.ids, "answer": sample.answer })).collect();
    let file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(file.as_file(), &rows)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/torch_step.py");
    let output = Command::new(python)
        .args([script.as_path(), &shipped("base"), file.path()])
        .output()
        .with_context(|| format!("cannot start {python}"))?;
    ensure!(output.status.success(), "torch_step.py: {}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).context("torch_step.py prints one JSON object")?;
    let theirs = found["median_ms"].as_f64().context("median_ms")?;
    println!("{} threads, torch {}", found["threads"], found["torch"].as_str().unwrap_or("?"));
    report("training step, vanilla", "PyTorch", theirs, "ours", ours);
    Ok(())
}
