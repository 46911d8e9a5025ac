//! Forward passes: logits, losses, what a pass reads at the anchors, the decision and the connected pass (Eq. 1, 3-5).

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use cctuning::anchor::{Anchor, index};
use cctuning::decision_maker::{Pool, Selection, gumbel_softmax};
use cctuning::model::{CcModel, InputEmbedding, TokenBatch};
use cctuning::tap::{Injection, Site};

use super::fixture::{Fixture, Kind, choices, layers_first, values};
use super::report::{CAPTURE, DECISION, LOGITS, MEAN_LOSS, Report, SUM_LOSS, Within};
use crate::answers::{answer_log_probabilities, answer_logits, answer_loss, main_tokens};
use crate::english::{Connected, connect, english_activations};
use crate::recipe::Cc;
use crate::sample::Sample;

/// `batch.*`, where it is held: the rows of case.json, told a second time. What stands in the padding is of no account.
pub fn batch(fixture: &Fixture, report: &mut Report) {
    let (samples, expected) = (&fixture.samples, &fixture.expected);
    let mut rows = |name: &str, row: fn(&Sample) -> Vec<f64>| {
        let Ok((shape, stored)) = expected.entry(name) else { return };
        let told: Vec<Vec<f64>> = samples.iter().map(row).collect();
        let stored = stored.chunks(shape.last().map_or(1, |&width| width.max(1)));
        let stored = stored.zip(&told).flat_map(|(stored, told)| &stored[..told.len().min(stored.len())]);
        report.compare_with(name, &told.concat(), &stored.copied().collect::<Vec<f64>>(), Within::Equal);
    };
    rows("batch.input_ids", |row| numbers(row.prompt.ids.iter().chain(&row.answer)));
    rows("batch.attention_mask", |row| vec![1.0; row.len() + 1]);
    rows("batch.labels", |row| [vec![-100.0; row.prompt.ids.len()], numbers(&row.answer)].concat());
    if fixture.case.kind == Kind::Full {
        rows("batch.en_ids", |row| numbers(&row.english.ids));
    }
    let mut each = |name: &str, number: fn(&Sample) -> usize| {
        let told: Vec<f64> = samples.iter().map(|row| number(row) as f64).collect();
        if expected.holds(name) {
            report.compare(expected, name, &told, Within::Equal);
        }
    };
    each("batch.lengths", |row| row.len() + 1);
    each("batch.prompt_lengths", |row| row.prompt.ids.len());
    each("batch.anchors", |row| row.prompt.anchor);
    if fixture.case.kind == Kind::Full {
        each("batch.en_lengths", |row| row.english.ids.len());
        each("batch.en_anchors", |row| row.english.anchor);
    }
}

fn numbers<'a>(ids: impl IntoIterator<Item = &'a u32>) -> Vec<f64> {
    ids.into_iter().map(|&id| f64::from(id)).collect()
}

/// `vanilla.*`
pub fn vanilla(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let (model, expected) = (&fixture.model, &fixture.expected);
    let hidden = model.forward(&whole_rows(fixture), None);
    let [batch, seq, d_model] = hidden.dims();
    let (rows, columns) = (expected.indices("vanilla.logit_rows")?, expected.indices("vanilla.logit_cols")?);
    let within = |(&row, &column): (&usize, &usize)| row < batch && column <= fixture.samples[row].len();
    ensure!(
        rows.iter().zip(&columns).all(within),
        "`vanilla.logit_rows` and `vanilla.logit_cols`: outside of the rows"
    );
    let at = rows.iter().zip(columns).map(|(row, column)| row * seq + column);
    let hidden = hidden.reshape([batch * seq, d_model]).select(0, index(at, &fixture.device));
    report.compare(expected, "vanilla.logits", &values(model.logits(hidden)), LOGITS);

    let counts: Vec<f64> = fixture.samples.iter().map(|sample| sample.answer.len() as f64).collect();
    report.compare(expected, "vanilla.row_count", &counts, Within::Equal);
    let (mean, rows) = losses(fixture, None);
    report.compare(expected, "vanilla.loss", &[mean], MEAN_LOSS);
    report.compare(expected, "vanilla.row_sum_loss", &rows, SUM_LOSS);
    Ok(())
}

/// `capture.*`
pub fn captures(fixture: &Fixture, report: &mut Report) {
    let (model, expected) = (&fixture.model, &fixture.expected);
    let english: Vec<_> = fixture.samples.iter().map(|sample| &sample.english.ids).collect();
    let english = TokenBatch::new(&english, &fixture.device);
    let english_anchor = Anchor::new(fixture.samples.iter().map(|sample| sample.english.anchor).collect());
    let (main, anchor) = (whole_rows(fixture), main_anchor(fixture));
    for (name, site) in [("ffn", Site::FeedForward), ("attn", Site::Attention), ("block", Site::Block)] {
        let read = model.activations(&english, &english_anchor, site);
        report.compare(expected, &format!("capture.{name}_en"), &layers_first(read.0), CAPTURE);
        let read = model.activations(&main, &anchor, site);
        report.compare(expected, &format!("capture.{name}_main"), &layers_first(read.0), CAPTURE);
    }
    let content: Vec<_> = fixture.samples.iter().map(|sample| sample.prompt.content.clone()).collect();
    let e = |kind| values(model.input_embedding(kind, &main, &anchor, &content));
    report.compare(expected, "capture.e", &e(InputEmbedding::Anchor), Within::Equal);
    report.compare(expected, "capture.e_mean_prompt", &e(InputEmbedding::ContentMean), CAPTURE);
}

/// `dm.*` and `fused.*`
pub fn connected(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let (model, expected, cc) = (&fixture.model, &fixture.expected, fixture.cc());
    let noise = fixture.input("dm.g")?;
    let gumbel = Selection::Gumbel { noise: noise.clone(), tau: 1.0 };

    let noisy = decide(fixture, model, &cc, &gumbel);
    report.compare(expected, "dm.H", &values(noisy.logits.clone()), DECISION);
    let by_mean = decide(fixture, model, &Cc { e: InputEmbedding::ContentMean, ..cc.clone() }, &gumbel);
    report.compare(expected, "dm.H_e_mean_prompt", &values(by_mean.logits), DECISION);
    for (name, tau) in [("dm.y_soft", 1.0), ("dm.y_soft_tau0.5", 0.5)] {
        let soft = gumbel_softmax(noisy.logits.clone(), noise.clone(), tau);
        report.compare(expected, name, &values(soft), DECISION);
    }
    report.compare(expected, "dm.onehot", &values(noisy.weights.clone()), DECISION);
    report.compare(expected, "dm.choice", &choices(noisy.weights.clone()), Within::Equal);
    report.compare(expected, "dm.v", &values(noisy.injection.vector.clone()), CAPTURE);
    let argmax = decide(fixture, model, &cc, &Selection::Argmax);
    report.compare(expected, "dm.choice_argmax", &choices(argmax.weights.clone()), Within::Equal);
    report.compare(expected, "dm.v_argmax", &values(argmax.injection.vector.clone()), CAPTURE);

    predicted_positions(fixture, report);
    for (name, decided) in [("noisy", &noisy), ("argmax", &argmax)] {
        let (samples, tokens) = (fixture.batch(), main_tokens(model, &fixture.batch()));
        let logits = answer_logits(model, &samples, &tokens, Some(&decided.injection));
        report.compare(expected, &format!("fused.{name}.logits"), &values(logits), LOGITS);
        let (mean, rows) = losses(fixture, Some(&decided.injection));
        report.compare(expected, &format!("fused.{name}.loss"), &[mean], MEAN_LOSS);
        report.compare(expected, &format!("fused.{name}.row_sum_loss"), &rows, SUM_LOSS);
    }
    let pooled = |pool, selection: &Selection| {
        let decided = decide(fixture, model, &Cc { pool, ..cc.clone() }, selection);
        losses(fixture, Some(&decided.injection))
    };
    let forced: Vec<_> = (0..fixture.config.n_layers).map(|layer| pooled(Pool::Fixed(layer), &gumbel)).collect();
    let means: Vec<f64> = forced.iter().map(|(mean, _)| *mean).collect();
    let rows: Vec<f64> = forced.into_iter().flat_map(|(_, rows)| rows).collect();
    report.compare(expected, "fused.forced.loss", &means, MEAN_LOSS);
    report.compare(expected, "fused.forced.row_sum_loss", &rows, SUM_LOSS);
    report.compare(expected, "fused.mean_pool.loss", &[pooled(Pool::Mean, &gumbel).0], MEAN_LOSS);
    let expectation = pooled(Pool::DecisionMaker, &Selection::Expectation);
    report.compare(expected, "fused.expectation.loss", &[expectation.0], MEAN_LOSS);
    Ok(())
}

/// The decision that training makes with `model`'s weights for the folder's batch.
pub fn decide(fixture: &Fixture, model: &CcModel, cc: &Cc, selection: &Selection) -> Connected {
    let samples = fixture.batch();
    let english = english_activations(model, &samples, cc);
    connect(model, &samples, &main_tokens(model, &samples), &english, cc, selection)
}

/// Mean loss per answer token and the sum of every row.
fn losses(fixture: &Fixture, injection: Option<&Injection>) -> (f64, Vec<f64>) {
    let (model, samples) = (&fixture.model, fixture.batch());
    let tokens = main_tokens(model, &samples);
    let answers: usize = samples.iter().map(|sample| sample.answer.len()).sum();
    let mean: Tensor<1> = answer_loss(model, &samples, &tokens, injection) / answers as f64;
    let each = values(answer_log_probabilities(model, &samples, &tokens, injection));
    let mut left = each.as_slice();
    let rows = samples.iter().map(|sample| {
        let (row, rest) = left.split_at(sample.answer.len());
        left = rest;
        -row.iter().sum::<f64>()
    });
    (values(mean)[0], rows.collect())
}

/// Which positions predict which answer tokens: what the loss looks at.
fn predicted_positions(fixture: &Fixture, report: &mut Report) {
    let (mut rows, mut columns, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for (row, sample) in fixture.samples.iter().enumerate() {
        for (at, &token) in sample.answer.iter().enumerate() {
            rows.push(row as f64);
            columns.push((sample.prompt.ids.len() - 1 + at) as f64);
            targets.push(f64::from(token));
        }
    }
    report.compare(&fixture.expected, "fused.pos_rows", &rows, Within::Equal);
    report.compare(&fixture.expected, "fused.pos_cols", &columns, Within::Equal);
    report.compare(&fixture.expected, "fused.targets", &targets, Within::Equal);
}

/// Prompt and answer to the last token, which training only predicts.
fn whole_rows(fixture: &Fixture) -> TokenBatch {
    let rows: Vec<Vec<u32>> =
        fixture.samples.iter().map(|sample| [&sample.prompt.ids[..], &sample.answer].concat()).collect();
    TokenBatch::new(&rows, &fixture.device)
}

fn main_anchor(fixture: &Fixture) -> Anchor {
    Anchor::new(fixture.samples.iter().map(|sample| sample.prompt.anchor).collect())
}
