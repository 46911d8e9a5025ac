//! Deep supervision (DFT): its gradient, what it leaves alone, and that it draws the two streams together.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use cctuning::anchor::Anchor;
use cctuning::chat::Prompt;
use cctuning::model::{CcModel, TokenBatch};
use cctuning::tap::Site;
use trainer::answers::{answer_loss, main_tokens};
use trainer::optim::{AdamW, Gradients};
use trainer::precision::Precision;
use trainer::recipe::{Dft, Optim, Recipe};
use trainer::sample::Sample;
use trainer::step::{Economy, Method, step};
use trainer::train;

use crate::small_model::{config, folder, values};
use crate::training_step::{ONE_BATCH, assert_same, gradients, rows, sample, trainable};

/// The first and the second of three blocks.
const DFT: Dft = Dft { bottom: 0.2, middle: 0.5, weight: 3.0 };

#[derive(Clone)]
struct Found {
    loss: f64,
    distances: Option<[f64; 2]>,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn run(model: &CcModel, rows: &[Sample], method: Method, economy: Economy) -> Found {
    let rows: Vec<&Sample> = rows.iter().collect();
    let result = step(model, &rows, method, economy, 0);
    Found { loss: result.loss, distances: result.distances, gradients: gradients(model, &result) }
}

/// What the prompts hold after every block: `[batch, n_layers, d_model]`.
fn streams<'s>(model: &CcModel, prompts: impl Iterator<Item = &'s Prompt>) -> Tensor<3> {
    let (ids, anchors): (Vec<&Vec<u32>>, Vec<usize>) = prompts.map(|prompt| (&prompt.ids, prompt.anchor)).unzip();
    model.activations(&TokenBatch::new(&ids, &model.device()), &Anchor::new(anchors), Site::Block).0
}

/// Mean cosine distance of a layer: a graph from the definition alone.
fn distance(own: &Tensor<3>, goal: &Tensor<3>, layer: usize) -> Tensor<1> {
    let [own, goal] = [own, goal].map(|all| all.clone().narrow(1, layer, 1).squeeze_dim::<2>(1));
    let dot = |a: &Tensor<2>, b: &Tensor<2>| (a.clone() * b.clone()).sum_dim(1);
    let lengths = (dot(&own, &own) * dot(&goal, &goal)).sqrt();
    (dot(&own, &goal) / lengths).mean().neg() + 1.0
}

#[test]
fn the_gradient_is_that_of_the_answers_loss_and_both_distances_to_the_detached_twin() {
    let rows = rows();
    let batch: Vec<&Sample> = rows.iter().collect();
    for tied in [true, false] {
        let model = trainable(tied);
        let goal = streams(&model.valid(), batch.iter().map(|sample| &sample.english));
        let own = streams(&model, batch.iter().map(|sample| &sample.prompt));
        let distances = [0, 1].map(|layer| distance(&own, &Tensor::from_inner(goal.clone()), layer));
        let tokens: usize = rows.iter().map(|row| row.answer.len()).sum();
        let answers = answer_loss(&model, &batch, &main_tokens(&model, &batch), None) / tokens as f64;
        let objective = answers.clone() + (distances[0].clone() + distances[1].clone()) * DFT.weight;
        let mut expected = Gradients::default();
        expected.take(&model, objective.backward());

        let found = run(&model, &rows, Method::Dft(&DFT), ONE_BATCH);
        let answers = f64::from(answers.into_scalar::<f32>());
        assert!((found.loss - answers).abs() < 1e-5 * answers, "{} for {answers}", found.loss);
        for (found, expected) in found.distances.unwrap().into_iter().zip(distances) {
            let expected = f64::from(expected.into_scalar::<f32>());
            assert!(expected > 0.05 && (found - expected).abs() < 1e-5, "{found} for {expected}");
        }
        let expected: BTreeMap<String, Vec<f32>> =
            found.gradients.keys().map(|name| (name.clone(), values(&expected.get(name).unwrap()))).collect();
        assert_same(&found.gradients, &expected, 1e-5, &format!("by hand, head tied: {tied}"));
        let sft = run(&model, &rows, Method::Sft, ONE_BATCH).gradients;
        let name = "model.layers.0.mlp.down_proj.weight";
        assert_ne!(found.gradients[name], sft[name], "the supervision adds nothing");
        let name = "model.layers.2.mlp.down_proj.weight";
        assert_eq!(found.gradients[name], sft[name], "behind the middle layer there is no supervision");
    }
}

#[test]
fn a_step_with_weight_0_is_one_of_plain_fine_tuning_bit_for_bit() {
    let rows = rows();
    for recompute in [false, true] {
        let model = trainable(true);
        let economy = Economy { recompute, micro_tokens: 60, ..ONE_BATCH };
        let sft = run(&model, &rows, Method::Sft, economy);
        let none = run(&model, &rows, Method::Dft(&Dft { weight: 0.0, ..DFT }), economy);
        assert_eq!((none.loss, none.gradients), (sft.loss, sft.gradients));
        assert!(none.distances.unwrap().iter().all(|&distance| distance > 0.0) && sft.distances.is_none());
    }
}

#[test]
fn english_rows_and_rows_that_ask_in_english_are_not_supervised() {
    let model = trainable(true);
    let mut own_twin = sample(9, "es", 1, 1);
    own_twin.english = own_twin.prompt.clone();
    let without = [sample(12, "en", 2, 2), own_twin];
    let sft = run(&model, &without, Method::Sft, ONE_BATCH);
    let dft = run(&model, &without, Method::Dft(&DFT), ONE_BATCH);
    assert_eq!(dft.gradients, sft.gradients);
    assert_eq!(dft.distances, Some([0.0; 2]));

    let alone = run(&model, &rows(), Method::Dft(&DFT), ONE_BATCH).distances.unwrap();
    let beside = run(&model, &[&rows()[..], &without].concat(), Method::Dft(&DFT), ONE_BATCH).distances.unwrap();
    for (alone, beside) in alone.into_iter().zip(beside) {
        assert!((alone - beside).abs() < 1e-6, "a mean over the rows that have a twin: {alone} {beside}");
    }
}

#[test]
fn neither_the_cut_into_micro_batches_nor_computing_layers_again_changes_the_gradient() {
    let rows = rows();
    for tied in [true, false] {
        let model = trainable(tied);
        let whole = run(&model, &rows, Method::Dft(&DFT), ONE_BATCH);
        for (micro_tokens, recompute) in [(1, false), (60, false), (60, true), (1 << 20, true)] {
            let economy = Economy { micro_tokens, recompute, ..ONE_BATCH };
            let found = run(&model, &rows, Method::Dft(&DFT), economy);
            assert_same(&found.gradients, &whole.gradients, 5e-6, &format!("{economy:?}, head tied: {tied}"));
            let [a, b] = [found, whole.clone()].map(|found| found.distances.unwrap());
            assert!((a[0] - b[0]).abs() + (a[1] - b[1]).abs() < 1e-6, "{a:?} {b:?}");
        }
        let rounded = run(&model, &rows, Method::Dft(&DFT), Economy { precision: Precision::Bf16, ..ONE_BATCH });
        assert_same(&rounded.gradients, &whole.gradients, 6e-2, "bf16 beside f32");
    }
}

#[test]
fn some_steps_draw_the_streams_together_which_plain_fine_tuning_does_not() {
    let rows = rows();
    let batch: Vec<&Sample> = rows.iter().collect();
    let after = |method: Method| {
        let mut model = trainable(true);
        let mut optimizer = AdamW::new(&Optim::default(), 1.0);
        let mut losses = Vec::new();
        for at in 0..20 {
            let result = step(&model, &batch, method, ONE_BATCH, at);
            losses.push(result.loss);
            (model, _) = optimizer.step(model, result.gradients, 1e-3);
        }
        let model = model.valid();
        let own = streams(&model, batch.iter().map(|sample| &sample.prompt));
        let goal = streams(&model, batch.iter().map(|sample| &sample.english));
        assert!(losses[19] < losses[0], "the answers are learned beside: {losses:?}");
        [0, 1].map(|layer| distance(&own, &goal, layer).into_scalar::<f32>())
    };
    let (sft, dft) = (after(Method::Sft), after(Method::Dft(&DFT)));
    for (sft, dft) in sft.into_iter().zip(dft) {
        assert!(dft < 0.7 * sft, "the distance is {dft} with supervision and {sft} without");
    }
}

#[test]
fn the_layers_grow_with_the_depth_and_the_last_block_is_refused_as_one() {
    let layers = |n_layers| Dft::default().layers(n_layers);
    assert_eq!([6, 24, 32].map(layers), [[1, 3], [4, 12], [6, 16]]);

    let out = tempfile::tempdir().unwrap();
    let folder = folder(config(cctuning::config::Family::Llama, true), cctuning::chat::ChatTemplate::PLAIN, 1);
    let recipe = Recipe { dft: Dft { middle: 0.9, ..DFT }, ..Recipe::default() };
    let interrupt = trainer::interrupt::Interrupt::install().unwrap();
    let ended = train::train("train", folder, &rows(), Method::Dft(&recipe.dft), &recipe, out.path(), &interrupt).err();
    let message = format!("{:#}", ended.expect("the last block must be refused"));
    assert!(message.contains("`dft.middle` = 0.9") && message.contains("3 of 3"), "{message}");
}
