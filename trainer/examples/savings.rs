//! What each saving of a CC-Tuning step is worth: the same work with and without it, in turn. That none of them changes
//! a result is held by `tests/method/training_step.rs`.
//!
//! `cargo run --release -p trainer --no-default-features --example savings`
//!
//! The shape is Qwen2.5-0.5B's with six layers and a small vocabulary, the head of the template 24 tokens long.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Tensor};
use cctuning::anchor::index;
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::model::CcModel;
use cctuning::tap::Taps;
use trainer::answers::{answer_row_numbers, answer_rows, main_tokens};
use trainer::english::English;
use trainer::precision::Precision;
use trainer::recipe::Cc;
use trainer::sample::Sample;
use trainer::step::Economy;

const ROWS: usize = 16;
const HEAD: usize = 24;
const ROUNDS: usize = 5;
const CONFIG: &str = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 6,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 8192, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true}"#;

fn main() -> Result<()> {
    let model = CcModel::new(&ModelConfig::from_json(CONFIG.as_bytes())?, &Device::flex());
    let economy = Economy { micro_tokens: 4096, recompute: true, precision: Precision::F32 };
    let cc = Cc::default();
    let noise = || Tensor::<2>::zeros([ROWS, 6], &Device::flex().autodiff());
    let read = |samples: &[Sample]| {
        English::read(&model, &samples.iter().collect::<Vec<_>>(), &cc, economy, noise());
    };
    let (shared, own) = (samples(true, ROWS), samples(false, ROWS));
    compare("head of the template read once", || read(&shared), || read(&own));
    let repeated = samples(true, ROWS / 4);
    compare("four rows share each English twin", || read(&repeated), || read(&shared));
    let by_micro_batch = || shared.chunks(2).for_each(read);
    compare("one English pass for eight micro-batches", || read(&shared), by_micro_batch);

    let batch: Vec<&Sample> = shared.iter().collect();
    let tokens = main_tokens(&model, &batch);
    let before = model.model.forward(model.model.embed(tokens.ids.clone()), 0..5, None, Taps::default());
    let wanted = || {
        let rows = index(answer_row_numbers(&batch, before.dims()[1]), &before.device());
        let [stream, ..] = model.model.last_rows(before.clone(), rows, None);
        stream.into_data();
    };
    let whole = || {
        let hidden = model.model.forward(before.clone(), 5..6, None, Taps::default());
        answer_rows(hidden, &batch).into_data();
    };
    compare("last block where answers are predicted", wanted, whole);
    Ok(())
}

/// Sixteen rows with so many different English twins, whose heads are the same or differ in their first token.
fn samples(one_head: bool, twins: usize) -> Vec<Sample> {
    let ids = |n: usize, seed: usize| (0..n).map(|at| ((at * 7919 + seed * 1013) % 8000) as u32).collect::<Vec<u32>>();
    let prompt = |head: Vec<u32>, seed: usize| {
        let ids: Vec<u32> = head.into_iter().chain(ids(36, seed)).collect();
        Prompt { anchor: ids.len() - 1, content: HEAD..ids.len() - 1, ids }
    };
    let sample = |row: usize| {
        let twin = row % twins;
        let mut head = ids(HEAD, 1);
        head[0] = if one_head { 0 } else { twin as u32 };
        Sample {
            id: row.to_string(),
            lang: "xx".into(),
            prompt: prompt(ids(HEAD, 1), 100 + row),
            english: prompt(head, 200 + twin),
            answer: ids(20, 300 + row),
        }
    };
    (0..ROWS).map(sample).collect()
}

/// Medians of both, in turn, after a round that is not counted.
fn compare(what: &str, mut with: impl FnMut(), mut without: impl FnMut()) {
    let time = |f: &mut dyn FnMut()| {
        let started = Instant::now();
        f();
        started.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<(f64, f64)> = (0..=ROUNDS).map(|_| (time(&mut with), time(&mut without))).skip(1).collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let with = times[ROUNDS / 2].0;
    times.sort_by(|a, b| a.1.total_cmp(&b.1));
    let without = times[ROUNDS / 2].1;
    println!("{what:<42} with {with:8.1} ms   without {without:8.1} ms   {:.2} times", without / with);
}
