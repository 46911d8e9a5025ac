//! One training step: where gradients flow, and that no saving changes them.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use cctuning::chat::Prompt;
use cctuning::checkpoint::DECISION_MAKER;
use cctuning::config::{Family, ModelConfig};
use cctuning::decision_maker::{Pool, Selection, gumbel_noise};
use cctuning::model::{CcModel, InputEmbedding, TokenBatch};
use cctuning::tap::{Site, Taps};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use trainer::english::{connect, english_activations};
use trainer::optim::AdamW;
use trainer::precision::Precision;
use trainer::recipe::{Cc, EnglishGrad, Optim};
use trainer::sample::Sample;
use trainer::step::{Economy, Method, StepResult, step, step_with_noise};

use crate::small_model::{config, model, random_ids, tensors, values};

const EMBEDDING: &str = "model.embed_tokens.weight";
pub const ONE_BATCH: Economy = Economy { micro_tokens: 1 << 20, recompute: false, precision: Precision::F32 };

/// Main rows use ids below 100, English prompts ids from 100 on.
pub fn sample(n: usize, lang: &str, english: u64, seed: u64) -> Sample {
    let prompt = |n: usize, ids, seed| Prompt { ids: random_ids(n, ids, seed), anchor: n - 1, content: 1..n - 1 };
    Sample {
        id: format!("{lang}-{seed}"),
        lang: lang.into(),
        prompt: prompt(n, 0..100, seed),
        english: prompt(5 + english as usize % 4, 100..200, 1000 + english),
        answer: random_ids(2 + n % 3, 0..100, 2000 + seed),
    }
}

/// Seven rows of several lengths; three of them share one English twin.
pub fn rows() -> Vec<Sample> {
    let english = [1, 2, 1, 3, 4, 1, 5];
    (0..7).map(|i| sample(6 + 3 * (i % 4), "es", english[i], i as u64)).collect()
}

pub fn trainable(tied: bool) -> CcModel {
    model(&config(Family::Qwen2, tied), 11).train()
}

fn noise(rows: usize) -> Tensor<2> {
    gumbel_noise(rows, 3, &mut ChaCha8Rng::seed_from_u64(4), &Device::flex().autodiff())
}

pub fn gradients(model: &CcModel, result: &StepResult) -> BTreeMap<String, Vec<f32>> {
    let names = tensors(&model.valid()).into_keys();
    names.filter_map(|name| Some((name.clone(), values(&result.gradients.get(&name)?)))).collect()
}

fn run(model: &CcModel, rows: &[Sample], cc: &Cc, economy: Economy) -> (f64, BTreeMap<String, Vec<f32>>) {
    let rows: Vec<&Sample> = rows.iter().collect();
    let result = step(model, &rows, Method::Cc(cc), economy, 0);
    (result.loss, gradients(model, &result))
}

/// Largest relative L2 distance over all tensors.
#[track_caller]
pub fn assert_same(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>, tolerance: f64, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
    let square = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let whole = square(&mut b.values().flatten().map(|&x| f64::from(x)));
    for (name, b) in b {
        let distance = square(&mut a[name].iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        assert!(distance <= tolerance * whole, "{what}: {name} differs by {:e} of the gradient", distance / whole);
    }
}

fn embedding_rows(gradient: &BTreeMap<String, Vec<f32>>, ids: &[u32]) -> Vec<f32> {
    ids.iter().flat_map(|&id| gradient[EMBEDDING][id as usize * 32..][..32].to_vec()).collect()
}

#[test]
fn a_detached_english_pass_leaves_english_only_embedding_rows_without_gradient_and_full_gives_them_one() {
    let model = trainable(false);
    let rows = rows();
    let english: Vec<u32> = rows.iter().flat_map(|row| row.english.ids.clone()).collect();
    let detached = run(&model, &rows, &Cc::default(), ONE_BATCH).1;
    assert!(embedding_rows(&detached, &english).iter().all(|&x| x == 0.0));
    let full = run(&model, &rows, &Cc { english_grad: EnglishGrad::Full, ..Cc::default() }, ONE_BATCH).1;
    for row in embedding_rows(&full, &english).chunks(32) {
        assert!(row.iter().any(|&x| x != 0.0), "an English row has no gradient although the pass is not detached");
    }
}

#[test]
fn a_detached_pass_still_trains_the_decision_maker_and_the_embeddings_behind_e() {
    let model = trainable(false);
    let rows = rows();
    let batch: Vec<&Sample> = rows.iter().collect();
    // The noise makes every row take the second layer, so e changes nothing forward: its gradient is all that is left.
    let noise = Tensor::from_data(TensorData::new([0.0f32, 4.0, 0.0].repeat(7), [7, 3]), &model.device());
    let run = |e| {
        let cc = Cc { e, ..Cc::default() };
        let result = step_with_noise(&model, &batch, Method::Cc(&cc), ONE_BATCH, noise.clone());
        assert_eq!(result.connection.as_ref().unwrap().selected, [0, 7, 0]);
        (result.loss, gradients(&model, &result))
    };
    let (with, without) = (run(InputEmbedding::ContentMean), run(InputEmbedding::None));
    assert_eq!(with.0, without.0);
    assert!(without.1[DECISION_MAKER].iter().any(|&x| x != 0.0), "no straight-through gradient");
    let content: Vec<u32> = rows.iter().flat_map(|row| row.prompt.ids[row.prompt.content.clone()].to_vec()).collect();
    assert_ne!(embedding_rows(&with.1, &content), embedding_rows(&without.1, &content), "e is cut from the graph");
}

#[test]
fn a_zero_vector_gives_exactly_the_vanilla_loss() {
    let model = trainable(true);
    let rows = rows();
    let rows: Vec<&Sample> = rows.iter().collect();
    let sft = step(&model, &rows, Method::Sft, ONE_BATCH, 0).loss;
    let cc = |alpha| step(&model, &rows, Method::Cc(&Cc { alpha, ..Cc::default() }), ONE_BATCH, 0).loss;
    assert_eq!(cc(0.0), sft);
    assert_ne!(cc(1.0), sft);
}

#[test]
fn the_cut_into_micro_batches_does_not_change_the_gradient() {
    let rows = rows();
    let model = trainable(true);
    let variants = [
        Cc::default(),
        Cc { english_grad: EnglishGrad::Full, ..Cc::default() },
        Cc { e: InputEmbedding::Anchor, pool: Pool::Mean, ..Cc::default() },
        Cc { pool: Pool::Random, ..Cc::default() },
    ];
    for cc in variants {
        let (loss, whole) = run(&model, &rows, &cc, ONE_BATCH);
        for micro_tokens in [1, 30, 60] {
            let (cut_loss, cut) = run(&model, &rows, &cc, Economy { micro_tokens, ..ONE_BATCH });
            assert!((cut_loss - loss).abs() <= 1e-6 * loss, "{loss} became {cut_loss}");
            assert_same(&cut, &whole, 1e-6, &format!("{cc:?} in micro-batches of {micro_tokens}"));
        }
    }
}

#[test]
fn computing_layers_again_on_the_way_back_does_not_change_the_gradient() {
    let english = [1, 2, 1, 3, 4, 1, 5];
    // So long that they go side by side in several lanes.
    let long: Vec<Sample> = (0..7).map(|i| sample(40 + i, "es", english[i], i as u64)).collect();
    let one_layer = model(&ModelConfig { n_layers: 1, ..config(Family::Qwen2, true) }, 11).train();
    let rows = rows();
    for (model, rows) in
        [(trainable(true), &rows), (trainable(false), &rows), (trainable(true), &long), (one_layer, &rows)]
    {
        let last = model.model.n_layers() - 1;
        let variants = [
            Cc::default(),
            Cc { english_grad: EnglishGrad::Full, site: Site::Block, ..Cc::default() },
            Cc { layer: last.min(1), site: Site::Attention, ..Cc::default() },
            Cc { layer: last, english_grad: EnglishGrad::Full, ..Cc::default() },
        ];
        for cc in variants {
            let (loss, kept) = run(&model, rows, &cc, ONE_BATCH);
            let (again_loss, again) = run(&model, rows, &cc, Economy { recompute: true, ..ONE_BATCH });
            assert!((again_loss - loss).abs() <= 1e-6 * loss, "{loss} became {again_loss}");
            assert_same(&again, &kept, 5e-6, &format!("{cc:?}, {} layers, head tied: {}", last + 1, model.is_tied()));
        }
    }
}

#[test]
fn the_site_that_is_read_and_the_layer_that_is_written_change_the_loss() {
    let rows = rows();
    let model = trainable(true);
    let loss = |site, layer| run(&model, &rows, &Cc { site, layer, alpha: 50.0, ..Cc::default() }, ONE_BATCH).0;
    let losses = [
        loss(Site::FeedForward, 0),
        loss(Site::Attention, 0),
        loss(Site::Block, 0),
        loss(Site::FeedForward, 1),
        loss(Site::FeedForward, 2),
    ];
    for (at, one) in losses.iter().enumerate() {
        assert!(losses[..at].iter().all(|other| (other - one).abs() > 1e-6), "{losses:?}");
    }
}

#[test]
fn bf16_products_give_nearly_the_gradient_of_f32_and_the_weights_keep_all_their_bits() {
    let rows = rows();
    for recompute in [false, true] {
        let model = trainable(true);
        let before = tensors(&model.valid());
        let (loss, exact) = run(&model, &rows, &Cc::default(), ONE_BATCH);
        let (rounded_loss, rounded) =
            run(&model, &rows, &Cc::default(), Economy { precision: Precision::Bf16, recompute, ..ONE_BATCH });
        assert_ne!(rounded_loss, loss, "bf16 was asked for and f32 computed");
        assert!((rounded_loss - loss).abs() <= 1e-2 * loss, "{loss} became {rounded_loss}");
        assert_same(&rounded, &exact, 6e-2, "bf16 beside f32");
        assert_eq!(tensors(&model.valid()), before);
    }
}

#[test]
fn the_order_of_rows_in_a_batch_does_not_change_the_gradient() {
    let rows = rows();
    let model = trainable(false);
    let noise = noise(7);
    let run = |order: [usize; 7]| {
        let batch: Vec<&Sample> = order.iter().map(|&row| &rows[row]).collect();
        let noise = Tensor::cat(order.iter().map(|&row| noise.clone().narrow(0, row, 1)).collect(), 0);
        let result = step_with_noise(&model, &batch, Method::Cc(&Cc::default()), ONE_BATCH, noise);
        gradients(&model, &result)
    };
    assert_same(&run([6, 2, 4, 0, 5, 1, 3]), &run([0, 1, 2, 3, 4, 5, 6]), 1e-6, "another order");
}

#[test]
fn reading_equal_english_prompts_once_equals_reading_each_rows_own() {
    assert_together_equals_alone(&rows(), &Cc::default(), 5);
    // The same words, read at another one, are another prompt.
    let mut rows = rows();
    let equal = |at: usize| rows.iter().filter(|row| row.english.ids == rows[at].english.ids).count();
    let repeated = (0..rows.len()).find(|&at| equal(at) > 1).unwrap();
    rows[repeated].english.anchor -= 1;
    assert_together_equals_alone(&rows, &Cc::default(), 6);
}

#[test]
fn reading_the_common_head_of_the_english_prompts_once_equals_reading_each_whole() {
    let mut rows = rows();
    for row in &mut rows {
        let own = std::mem::take(&mut row.english.ids);
        row.english.ids = (100..112).chain(own).collect();
        row.english.anchor += 12;
    }
    for site in [Site::FeedForward, Site::Attention, Site::Block] {
        assert_together_equals_alone(&rows, &Cc { site, ..Cc::default() }, 5);
    }
}

/// A batch gives the loss and the gradient of its rows taken one at a time, where there is nothing to share.
fn assert_together_equals_alone(rows: &[Sample], cc: &Cc, distinct: usize) {
    let model = trainable(true);
    let noise = noise(7);
    let all: Vec<&Sample> = rows.iter().collect();
    let together = step_with_noise(&model, &all, Method::Cc(cc), ONE_BATCH, noise.clone());
    let share = together.connection.as_ref().unwrap().english_share;
    assert!(
        (share - distinct as f64 / 7.0).abs() < 1e-9,
        "{distinct} of 7 English prompts are distinct, found {share}"
    );

    let answers: usize = rows.iter().map(|row| row.answer.len()).sum();
    let (mut loss, mut sum) = (0.0, BTreeMap::<String, Vec<f32>>::new());
    for (at, row) in rows.iter().enumerate() {
        let alone = step_with_noise(&model, &[row], Method::Cc(cc), ONE_BATCH, noise.clone().narrow(0, at, 1));
        let weight = row.answer.len() as f32 / answers as f32;
        loss += alone.loss * f64::from(weight);
        for (name, gradient) in gradients(&model, &alone) {
            let sum = sum.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x * weight);
        }
    }
    assert!((together.loss - loss).abs() <= 1e-6 * loss, "{} {loss}", together.loss);
    assert_same(&gradients(&model, &together), &sum, 1e-6, "one row at a time");
}

#[test]
fn skipping_english_rows_trains_them_without_a_connection() {
    let model = trainable(true);
    let english = [sample(9, "en", 1, 1), sample(12, "en", 2, 2)];
    let batch: Vec<&Sample> = english.iter().collect();
    let sft = step(&model, &batch, Method::Sft, ONE_BATCH, 0).loss;
    let cc = |skip_english| step(&model, &batch, Method::Cc(&Cc { skip_english, ..Cc::default() }), ONE_BATCH, 0).loss;
    assert_eq!(cc(true), sft);
    assert_ne!(cc(false), sft);
}

#[test]
fn what_a_step_says_of_its_connection_is_what_its_rows_say_one_by_one() {
    let model = trainable(true);
    let (rows, noise, cc) = (rows(), noise(7), Cc::default());
    let batch: Vec<&Sample> = rows.iter().collect();
    let pieces = Economy { micro_tokens: 40, ..ONE_BATCH };
    let told = step_with_noise(&model, &batch, Method::Cc(&cc), pieces, noise.clone()).connection.unwrap();

    let plain = model.valid();
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let (mut selected, mut entropy, mut vector_norm, mut stream_norm) = (vec![0; 3], 0.0, 0.0, 0.0);
    for (at, row) in rows.iter().enumerate() {
        let tokens = TokenBatch::new(&[&row.prompt.ids], &plain.device());
        let selection = Selection::Gumbel { noise: noise.clone().inner().narrow(0, at, 1), tau: cc.tau };
        let activations = english_activations(&plain, &[row], &cc);
        let connected = connect(&plain, &[row], &tokens, &activations, &cc, &selection);
        selected[values(&connected.weights).iter().position(|&weight| weight > 0.5).unwrap()] += 1;
        let logits: Vec<f64> = values(&connected.logits).into_iter().map(f64::from).collect();
        let sum: f64 = logits.iter().map(|h| h.exp()).sum();
        entropy -= logits.iter().map(|h| h.exp() / sum * (h.exp() / sum).ln()).sum::<f64>() / 7.0;
        vector_norm += norm(&values(&connected.injection.vector)) / 7.0;
        let stream = plain.model.forward(plain.model.embed(tokens.ids), 0..1, None, Taps::default());
        stream_norm += norm(&values(&stream.narrow(1, row.prompt.anchor, 1))) / 7.0;
    }
    assert_eq!(told.selected, selected);
    for (told, expected) in
        [(told.entropy, entropy), (told.vector_norm, vector_norm), (told.stream_norm.unwrap(), stream_norm)]
    {
        assert!((told - expected).abs() < 1e-5 * expected, "{told}, expected {expected}");
    }
    assert_eq!(told.english_share, 5.0 / 7.0);
}

#[test]
fn the_noise_of_a_step_depends_on_its_number_and_on_the_seed() {
    let model = trainable(true);
    let rows: Vec<Sample> = (0..24).map(|i| sample(8, "es", i, i)).collect();
    let batch: Vec<&Sample> = rows.iter().collect();
    let run = |seed, at| {
        let result = step(&model, &batch, Method::Cc(&Cc { seed, ..Cc::default() }), ONE_BATCH, at);
        (result.loss, result.connection.unwrap().selected)
    };
    assert_eq!(run(1, 5), run(1, 5));
    assert_ne!(run(1, 5).0, run(1, 6).0);
    assert_ne!(run(1, 5).0, run(2, 5).0);
    assert_eq!(run(1, 5).1.iter().sum::<usize>(), 24);
}

/// One optimizer step after another from the same start; the length of every weight's way, and the share that moved.
fn moved_by(optim: &Optim, decision_lr_mult: f64, steps: usize) -> (BTreeMap<String, Vec<f32>>, Vec<f64>) {
    let rows = rows();
    let batch: Vec<&Sample> = rows.iter().collect();
    let mut model = trainable(true);
    let mut optimizer = AdamW::new(optim, decision_lr_mult);
    let mut shares = Vec::new();
    for at in 0..steps {
        let result = step(&model, &batch, Method::Cc(&Cc::default()), ONE_BATCH, at);
        let stepped;
        (model, stepped) = optimizer.step(model, result.gradients, 1e-3);
        assert_eq!(model.device(), Device::flex(), "weights with a graph are computed with in another way");
        shares.push(stepped.moved);
    }
    (tensors(&model).into_iter().map(|(name, (_, values))| (name, values)).collect(), shares)
}

#[test]
fn the_decision_maker_goes_as_far_as_its_learning_rate_is_multiplied() {
    let start = tensors(&trainable(true));
    let way = |decision_lr_mult: f64, name: &str| {
        let (moved, _) = moved_by(&Optim::default(), decision_lr_mult, 1);
        let steps = moved[name].iter().zip(&start[name].1).map(|(new, old)| f64::from(new - old).powi(2));
        steps.sum::<f64>().sqrt()
    };
    let (once, others) = (way(1.0, DECISION_MAKER), way(1.0, EMBEDDING));
    assert!(once > 0.0 && others > 0.0);
    assert_eq!(way(0.0, DECISION_MAKER), 0.0);
    assert!((way(10.0, DECISION_MAKER) / once - 10.0).abs() < 0.01);
    assert_eq!((way(0.0, EMBEDDING), way(10.0, EMBEDDING)), (others, others));
}

#[test]
fn the_temperature_changes_what_the_decision_maker_learns_and_not_what_it_chooses() {
    let (model, rows) = (trainable(true), rows());
    let at = |tau: f64| run(&model, &rows, &Cc { tau, ..Cc::default() }, ONE_BATCH);
    let ((loss, warm), (same, cold)) = (at(1.0), at(0.5));
    assert_eq!(loss, same);
    assert_ne!(warm[DECISION_MAKER], cold[DECISION_MAKER]);
}

#[test]
fn moments_in_bf16_go_nearly_the_same_way() {
    let (exact, _) = moved_by(&Optim::default(), 1.0, 6);
    let halved = Optim { moments: Precision::Bf16, ..Optim::default() };
    let (found, _) = moved_by(&halved, 1.0, 6);
    assert_ne!(found, exact, "bf16 was asked for and f32 kept");
    assert_same(&found, &exact, 1e-2, "moments in bf16");
}

#[test]
fn the_share_of_weights_that_moved_is_what_the_next_pass_sees() {
    let (_, exact) = moved_by(&Optim::default(), 1.0, 2);
    // The embedding is the output head too, so every row of it has a gradient.
    assert!(exact.iter().all(|&share| share > 0.99), "{exact:?}");
    let (_, rounded) = moved_by(&Optim { precision: Precision::Bf16, ..Optim::default() }, 1.0, 2);
    assert!(rounded[0] < exact[0], "steps below bf16's spacing are seen by nobody: {rounded:?} {exact:?}");
}
