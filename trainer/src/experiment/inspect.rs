//! A look inside a trained model: how well a matrix imitates English on the test prompts, and where anchors lie.

use std::collections::BTreeMap;

use anyhow::Result;
use burn::tensor::{Tensor, TensorData};
use cctuning::tap::{FfnActivations, Site};
use cctuning::transform_matrix::TransformMatrix;

use super::answering::{Answerer, Questions};
use super::cell::{Error, State};
use super::tsne::tsne;
use crate::batches::micro_batches;
use crate::corpus::Item;
use crate::data::Row;
use crate::fit::Reading;
use crate::inputs;

/// The languages of Figure 7 and how many prompts of each.
const LANGUAGES: [&str; 3] = ["es", "sw", "zh"];
const PROMPTS: usize = 80;
/// Decimals of a place in the plane.
const GRID: f64 = 1e3;

/// Sums of one family: squared errors, and of the English activations the rows, squares and sums by dimension.
#[derive(Default)]
struct Sums {
    errors: f64,
    rows: usize,
    squares: f64,
    sums: Vec<f64>,
}

/// Mean squared error and R2 of `F W_T` against the English activations, for each matrix by family, on prompts in other
/// languages.
///
/// # Errors
/// None of its own.
pub fn errors(
    transforms: &[&TransformMatrix],
    reading: Reading,
    questions: &Questions,
) -> Result<Vec<BTreeMap<String, Error>>> {
    let chosen: Vec<usize> = (0..questions.asked.len()).filter(|&at| questions.asked[at].foreign()).collect();
    let samples: Vec<_> = chosen.iter().map(|&at| &questions.samples[at]).collect();
    let decoder = &reading.model.model;
    let (n_layers, d_model) = (decoder.n_layers(), decoder.embedding().dims()[1]);
    let size = n_layers * d_model;
    let mut found: Vec<BTreeMap<String, Sums>> = transforms.iter().map(|_| BTreeMap::new()).collect();
    reading.pairs(&samples, |group, own, english| {
        let shape = [group.len(), n_layers, d_model];
        let own = FfnActivations(Tensor::from_data(TensorData::new(own.to_vec(), shape), &reading.model.device()));
        for (transform, families) in transforms.iter().zip(&mut found) {
            let imitated: Vec<f32> = transform.apply(&own).0.into_data().iter::<f32>().collect();
            for (at, (imitated, english)) in imitated.chunks(size).zip(english.chunks(size)).enumerate() {
                let sums = families.entry(questions.asked[chosen[group[at]]].family.clone()).or_default();
                sums.add(imitated, english, d_model);
            }
        }
        Ok(true)
    })?;
    let judged = |mut families: BTreeMap<String, Sums>| {
        families.retain(|_, sums| sums.rows > n_layers);
        families.into_iter().map(|(family, sums)| (family, sums.error(d_model))).collect()
    };
    Ok(found.into_iter().map(judged).collect())
}

impl Sums {
    fn add(&mut self, imitated: &[f32], english: &[f32], d_model: usize) {
        self.sums.resize(d_model, 0.0);
        for (imitated, english) in imitated.chunks(d_model).zip(english.chunks(d_model)) {
            self.rows += 1;
            for (dimension, (&a, &b)) in imitated.iter().zip(english).enumerate() {
                let (a, b) = (f64::from(a), f64::from(b));
                self.errors += (a - b).powi(2);
                self.squares += b * b;
                self.sums[dimension] += b;
            }
        }
    }

    fn error(&self, d_model: usize) -> Error {
        let spread = self.squares - self.sums.iter().map(|sum| sum * sum).sum::<f64>() / self.rows as f64;
        Error { mse: self.errors / (self.rows * d_model) as f64, r2: 1.0 - self.errors / spread.max(1e-300) }
    }
}

/// Where the last block leaves the anchors of some prompts, laid out in the plane by t-SNE.
///
/// # Errors
/// A prompt that cannot be rendered.
pub fn states(answerer: &Answerer, items: &[Item]) -> Result<Vec<State>> {
    let of = |lang: &'static str| items.iter().filter(move |item| item.lang == lang).take(PROMPTS);
    let rows: Vec<Row> = LANGUAGES.iter().flat_map(|lang| of(lang)).map(Row::from).collect();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let samples = inputs::samples(answerer.recipe, answerer.folder, &rows)?;
    let token_budget = answerer.recipe.optim.micro_tokens;
    let reading = Reading { model: answerer.model, site: Site::Block, token_budget };
    let (n_layers, d_model) = (answerer.folder.config.n_layers, answerer.folder.config.d_model);
    let mut points = vec![Vec::new(); samples.len()];
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.prompt.ids.len()).collect();
    for group in micro_batches(&lengths, token_budget) {
        let read = reading.activations(&group.iter().map(|&row| &samples[row].prompt).collect::<Vec<_>>());
        for (&row, values) in group.iter().zip(read.chunks(n_layers * d_model)) {
            points[row] = values[(n_layers - 1) * d_model..].iter().map(|&value| f64::from(value)).collect();
        }
    }
    let round = |value: f64| (value * GRID).round() / GRID;
    let places = tsne(&points, answerer.recipe.cc.seed);
    Ok(samples
        .into_iter()
        .zip(places)
        .map(|(sample, [x, y])| State { lang: sample.lang, x: round(x), y: round(y) })
        .collect())
}
