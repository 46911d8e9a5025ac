//! Proves that what is computed in pieces, because the whole would be too large to hold, is the whole: the cross-entropy of
//! more rows than fit into a chunk of logits, and the update of a table that is longer than a piece.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use cctuning::checkpoint::{Checkpoint, EMBEDDING, Storage, save};
use cctuning::config::{Family, ModelConfig};
use cctuning::model::CcModel;
use trainer::answers::{CHUNK, backward};
use trainer::optim::{AdamW, Gradients, PIECE};
use trainer::precision::Precision;
use trainer::recipe::Optim;

use crate::small_model::{assert_close, config, model, random_ids, values};

const NORM: &str = "model.norm.weight";
/// So many that a chunk is 63 rows.
const WORDS: usize = (1 << 20) + 5;

fn wide() -> CcModel {
    let one_block = ModelConfig { n_layers: 1, vocab_size: WORDS, ..config(Family::Llama, true) };
    model(&one_block, 1).train()
}

#[test]
fn a_loss_over_two_chunks_of_logits_is_the_sum_of_its_rows() {
    let model = wide();
    let (n, d_model) = (90, model.model.embedding().dims()[1]);
    assert!(CHUNK / WORDS < n && n < 2 * CHUNK / WORDS, "two chunks");
    let numbers: Vec<f32> = (0..n * d_model).map(|at| ((at * 7919) % 201) as f32 / 100.0 - 1.0).collect();
    let rows: Tensor<2> = Tensor::from_data(TensorData::new(numbers, [n, d_model]), &Device::flex());
    let targets = random_ids(n, 0..WORDS as u32, 2);
    let run = |from: usize, to: usize, gradients: &mut Gradients| {
        let rows = rows.clone().slice([from..to]);
        backward(&model, model.head().inner(), Precision::F32, rows, &targets[from..to], n as f64, gradients)
    };
    let (mut whole, mut halves) = (Gradients::default(), Gradients::default());
    let (loss, cotangents) = run(0, n, &mut whole);
    let [(first, head), (second, tail)] = [(0, 45), (45, n)].map(|(from, to)| run(from, to, &mut halves));
    assert!((loss - first - second).abs() < 1e-6 * loss, "{loss} is not {first} + {second}");
    assert_close(&values(&cotangents), &values(&Tensor::cat(vec![head, tail], 0)), 1e-7, "gradient of the rows");

    let of_table = |gradients: &Gradients| gradients.get(EMBEDDING).expect("the head is the table");
    let largest = of_table(&whole).abs().max().into_scalar::<f32>();
    let apart = (of_table(&whole) - of_table(&halves)).abs().max().into_scalar::<f32>();
    assert!(largest > 1e-3 && apart < 1e-5 * largest, "gradients of up to {largest} are {apart} apart");
}

#[test]
fn a_loss_over_a_large_vocabulary_is_as_near_as_over_a_small_one() {
    let model = wide();
    let (n, d_model) = (3, model.model.embedding().dims()[1]);
    let numbers: Vec<f32> = (0..n * d_model).map(|at| ((at * 7919) % 201) as f32 / 100.0 - 1.0).collect();
    let rows: Tensor<2> = Tensor::from_data(TensorData::new(numbers, [n, d_model]), &Device::flex());
    let targets = random_ids(n, 0..WORDS as u32, 2);
    let (loss, _) = backward(
        &model,
        model.head().inner(),
        Precision::F32,
        rows.clone(),
        &targets,
        n as f64,
        &mut Gradients::default(),
    );
    let logits = values(&model.logits(Tensor::from_inner(rows)));
    let of_row = |(logits, &target): (&[f32], &u32)| {
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(logits[target as usize])
    };
    let expected = logits.chunks(WORDS).zip(&targets).map(of_row).sum::<f64>() / n as f64;
    assert!((loss - expected).abs() < 1e-5, "{loss}, in float64 {expected}");
}

#[test]
fn a_norm_over_many_numbers_is_the_same_every_time() {
    let numbers: Vec<f32> = (0..3 << 21).map(|at: usize| ((at * 7919) % 10_007) as f32 / 1e4 - 0.5).collect();
    let expected = numbers.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
    let mut gradients = Gradients::default();
    let n = numbers.len();
    gradients.add_one(EMBEDDING, Tensor::from_data(TensorData::new(numbers, [n]), &Device::flex()));
    let first = gradients.norm();
    assert!((first / expected - 1.0).abs() < 1e-6, "{first}, in float64 {expected}");
    for _ in 0..40 {
        assert_eq!(gradients.norm(), first);
    }
}

#[test]
fn an_update_of_a_table_in_pieces_is_adamw_everywhere() {
    let start = wide();
    let table = values(&start.model.embedding().inner().flatten::<1>(0, 1));
    assert!(table.len() > PIECE && !table.len().is_multiple_of(PIECE), "a whole piece and a part");
    let norm = |model: &CcModel| {
        let bytes = save(model, Storage::F32).unwrap();
        let mut stored = Checkpoint::default();
        stored.add("the model", &bytes).unwrap();
        stored.read(NORM).unwrap().1
    };
    let start_norm = norm(&start);
    let optim = Optim { clip: 0.0, weight_decay: 0.1, ..Optim::default() };
    let (beta1, beta2, eps, lr) = (optim.beta1 as f32, optim.beta2 as f32, optim.eps as f32, 1e-2f32);
    // Neither length of the pattern divides a piece.
    let pattern = |step: usize, at: usize| ((at * (3 + step)) % 1009) as f32 / 1009.0 - 0.4;
    let (mut optimizer, mut model) = (AdamW::new(&optim, 1.0), start);
    for step in 0..2 {
        let gradient: Vec<f32> = (0..table.len()).map(|at| pattern(step, at)).collect();
        let gradient = Tensor::from_data(TensorData::new(gradient, [table.len()]), &Device::flex());
        let mut gradients = Gradients::default();
        gradients.add_one(EMBEDDING, gradient);
        gradients.add_one(NORM, Tensor::zeros([start_norm.len()], &Device::flex()));
        let stepped;
        (model, stepped) = optimizer.step(model, gradients, f64::from(lr));
        assert!(stepped.moved > 0.99, "{stepped:?}");
    }
    let found = values(&model.model.embedding().flatten::<1>(0, 1));
    let by_hand = |(at, &old): (usize, &f32)| {
        let (mut weight, mut m, mut v) = (old, 0.0, 0.0);
        for step in 0..2 {
            let g = pattern(step, at);
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let of = |beta: f32| 1.0 - beta.powi(step as i32 + 1);
            weight -= lr * 0.1 * weight + lr * (m / of(beta1)) / ((v / of(beta2)).sqrt() + eps);
        }
        weight
    };
    let expected: Vec<f32> = table.iter().enumerate().map(by_hand).collect();
    assert_close(&found, &expected, 2e-5, "the table after two steps");
    assert_eq!(norm(&model), start_norm, "norms do not decay");
}
