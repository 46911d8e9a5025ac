//! What the answers cost: the cross-entropy of their tokens (Eq. 1), forward for judging and back for training.
//!
//! Only the rows that predict an answer token meet the output head.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Tensor};
use cctuning::anchor::index;
use cctuning::checkpoint::{EMBEDDING, OUTPUT_HEAD};
use cctuning::model::{CcModel, TokenBatch};
use cctuning::tap::Injection;

use crate::optim::Gradients;
use crate::precision::Precision;
use crate::sample::Sample;

/// Most logits that are held at once. Each chunk of rows costs one product with the whole head.
pub const CHUNK: usize = 1 << 26;
/// Columns of a vocabulary whose exponentials are added in one go.
const SOFTMAX_PIECE: usize = 1 << 14;

/// The token batch of the main pass: prompt and answer, the last token only being predicted.
pub fn main_tokens(model: &CcModel, samples: &[&Sample]) -> TokenBatch {
    TokenBatch::new(&main_ids(samples), &model.device())
}

/// Its ids, row by row.
pub fn main_ids(samples: &[&Sample]) -> Vec<Vec<u32>> {
    let ids = |sample: &&Sample| [&sample.prompt.ids, &sample.answer[..sample.answer.len() - 1]].concat();
    samples.iter().map(ids).collect()
}

/// Sum of the cross-entropy over all answer tokens (Eq. 1).
pub fn answer_loss(
    model: &CcModel,
    samples: &[&Sample],
    tokens: &TokenBatch,
    injection: Option<&Injection>,
) -> Tensor<1> {
    answer_log_probabilities(model, samples, tokens, injection).sum().neg()
}

/// Log-probability of every answer token, all rows in order: `[answer tokens]`.
pub fn answer_log_probabilities(
    model: &CcModel,
    samples: &[&Sample],
    tokens: &TokenBatch,
    injection: Option<&Injection>,
) -> Tensor<1> {
    let logits = answer_logits(model, samples, tokens, injection);
    let targets = targets(samples).map(|id| id as usize);
    let targets: Tensor<2, Int> = index(targets, &logits.device()).unsqueeze_dim(1);
    log_softmax(logits, 1).gather(1, targets).squeeze_dim(1)
}

/// Logits at the positions that predict answer tokens, all rows in order: `[answer tokens, vocab_size]`.
pub fn answer_logits(
    model: &CcModel,
    samples: &[&Sample],
    tokens: &TokenBatch,
    injection: Option<&Injection>,
) -> Tensor<2> {
    model.logits(answer_rows(model.forward(tokens, injection), samples))
}

/// The rows of the stream that predict answer tokens.
///
/// # Shapes
/// - `hidden`: `[batch, seq, d_model]`
/// - returns: `[answer tokens, d_model]`
pub fn answer_rows(hidden: Tensor<3>, samples: &[&Sample]) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    let rows = index(answer_row_numbers(samples, seq), &hidden.device());
    hidden.reshape([batch * seq, d_model]).select(0, rows)
}

/// The numbers of those rows, counted over `batch * seq`.
pub fn answer_row_numbers<'a>(samples: &'a [&Sample], seq: usize) -> impl Iterator<Item = usize> + 'a {
    samples.iter().enumerate().flat_map(move |(row, sample)| {
        let first = row * seq + sample.prompt.ids.len() - 1;
        first..first + sample.answer.len()
    })
}

/// Ids of all answer tokens, rows in order.
pub fn targets<'a>(samples: &'a [&Sample]) -> impl Iterator<Item = u32> + 'a {
    samples.iter().flat_map(|sample| sample.answer.iter().copied())
}

/// Softmax over the vocabulary, and `ln sum exp` of every row.
///
/// burn-flex adds the exponentials of a row one after the other in f32, which is 1e-4 off at 128,000 of them; so those of a
/// large vocabulary are added in pieces of [`SOFTMAX_PIECE`].
///
/// # Shapes
/// - `logits`: `[answer tokens, vocab_size]`
/// - returns: the same, and `[answer tokens, 1]`
fn softmax_and_log_sum(logits: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let of_piece = |logits: Tensor<2>| {
        let probabilities = softmax(logits.clone(), 1);
        // From the largest probability, which is at least one in `vocab_size`: the logits are exponentiated once, and a
        // target of vanishing probability still has its logit.
        let log_sum = logits.max_dim(1) - probabilities.clone().max_dim(1).log();
        (probabilities, log_sum)
    };
    let vocab_size = logits.dims()[1];
    if vocab_size <= SOFTMAX_PIECE {
        return of_piece(logits);
    }
    let ends = (0..vocab_size).step_by(SOFTMAX_PIECE).map(|from| (from, vocab_size.min(from + SOFTMAX_PIECE)));
    let sums = ends.map(|(from, to)| of_piece(logits.clone().narrow(1, from, to - from)).1).collect();
    let sums = Tensor::cat(sums, 1);
    let largest = sums.clone().max_dim(1);
    let log_sum = (sums - largest.clone()).exp().sum_dim(1).log() + largest;
    ((logits - log_sum.clone()).exp(), log_sum)
}

/// Summed cross-entropy over `scale`, and its gradient with respect to the rows.
///
/// The gradient of softmax with cross-entropy is `softmax - one_hot`, so no graph is built over the logits, which are
/// the largest tensor of a pass; rows are taken in chunks. Gradients of norm and head are added to `gradients`.
///
/// # Shapes
/// - `head`: `[d_model, vocab_size]`, without a graph, as are the
/// - `rows`: `[answer tokens, d_model]`, before the final norm
/// - returns: the loss, and `[answer tokens, d_model]`
pub fn backward(
    model: &CcModel,
    head: Tensor<2>,
    precision: Precision,
    rows: Tensor<2>,
    targets: &[u32],
    scale: f64,
    gradients: &mut Gradients,
) -> (f64, Tensor<2>) {
    let leaf = Tensor::from_inner(rows).require_grad();
    let normed = model.model.normed(leaf.clone());
    let head = precision.round(head);
    let [d_model, vocab_size] = head.dims();
    let chunk = (CHUNK / vocab_size).max(1);
    let (mut loss, mut cotangents, mut of_head) = (0.0, Vec::new(), None);
    for (rows, targets) in normed.clone().inner().split(chunk, 0).into_iter().zip(targets.chunks(chunk)) {
        let (device, n) = (rows.device(), targets.len());
        let rows = precision.round(rows);
        let logits = rows.clone().matmul(head.clone()).cast(FloatDType::F32);
        let (probabilities, log_sum) = softmax_and_log_sum(logits.clone());
        let chosen: Tensor<2, Int> = index(targets.iter().map(|&id| id as usize), &device).unsqueeze_dim(1);
        let of_targets = logits.gather(1, chosen.clone()) - log_sum;
        loss -= of_targets.into_data().iter::<f32>().map(f64::from).sum::<f64>() / scale;
        let minus_one = Tensor::<2>::full([n, 1], -1.0, &device);
        let cotangent = probabilities.scatter(1, chosen, minus_one, IndexingUpdateOp::Add) / scale;
        let cotangent = precision.round(cotangent);
        cotangents.push(cotangent.clone().matmul(head.clone().transpose()).cast(FloatDType::F32));
        // In the layout of the parameter it belongs to.
        let product = match model.is_tied() {
            true => cotangent.transpose().matmul(rows),
            false => rows.transpose().matmul(cotangent),
        };
        let product = product.cast(FloatDType::F32).reshape([d_model * vocab_size]);
        of_head = Some(match of_head {
            None => product,
            Some(sum) => sum + product,
        });
    }
    if let Some(gradient) = of_head {
        gradients.add_one(if model.is_tied() { EMBEDDING } else { OUTPUT_HEAD }, gradient);
    }
    let mut tape = (normed * Tensor::from_inner(Tensor::cat(cotangents, 0))).sum().backward();
    let rows = leaf.grad_remove(&mut tape).expect("the rows are a leaf of this graph");
    gradients.take(model, tape);
    (loss, rows)
}
