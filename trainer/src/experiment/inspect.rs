//! A look inside a trained model: how well a matrix imitates English on the test prompts, and where anchors lie.

use anyhow::Result;
use burn::tensor::{Tensor, TensorData};
use cctuning::tap::{FfnActivations, Site};
use cctuning::transform_matrix::TransformMatrix;

use super::answering::{Answerer, Questions};
use super::cell::{Miss, State};
use super::tsne::tsne;
use crate::batches::micro_batches;
use crate::corpus::{self, Item};
use crate::data::Row;
use crate::fit::Reading;
use crate::inputs::{self, CORPUS_SEED};

/// The languages of Figure 7, and how many prompts of each family: the same in every language.
const LANGUAGES: [&str; 4] = ["en", "es", "sw", "zh"];
const PER_FAMILY: usize = 10;
/// Decimals of a place in the plane.
const GRID: f64 = 1e3;

/// How far `F W_T` is from the English activations, by prompt and layer; nothing for prompts in English.
///
/// # Errors
/// None of its own.
pub fn misses(transform: &TransformMatrix, reading: Reading, questions: &Questions) -> Result<Vec<Vec<Miss>>> {
    let foreign: Vec<usize> = (0..questions.asked.len()).filter(|&at| questions.asked[at].foreign()).collect();
    let samples: Vec<_> = foreign.iter().map(|&at| &questions.samples[at]).collect();
    let decoder = &reading.model.model;
    let (n_layers, d_model) = (decoder.n_layers(), decoder.embedding().dims()[1]);
    let size = n_layers * d_model;
    let mut twins = vec![Vec::new(); samples.len()];
    let mut found = vec![Vec::new(); questions.asked.len()];
    reading.pairs(&samples, |group, own, english| {
        let shape = [group.len(), n_layers, d_model];
        let own = FfnActivations(Tensor::from_data(TensorData::new(own.to_vec(), shape), &reading.model.device()));
        let imitated: Vec<f32> = transform.apply(&own).0.into_data().iter::<f32>().collect();
        for ((&row, imitated), english) in group.iter().zip(imitated.chunks(size)).zip(english.chunks(size)) {
            let layers = imitated.chunks(d_model).zip(english.chunks(d_model));
            found[foreign[row]] = layers.map(|(a, b)| Miss(squared(a, b), 0.0)).collect();
            twins[row] = english.to_vec();
        }
        Ok(true)
    })?;
    let mean = |at: usize| twins.iter().map(|twin: &Vec<f32>| f64::from(twin[at])).sum::<f64>() / twins.len() as f64;
    let means: Vec<f32> = (0..size).map(|at| mean(at) as f32).collect();
    for (twin, &at) in twins.iter().zip(&foreign) {
        for ((miss, own), mean) in found[at].iter_mut().zip(twin.chunks(d_model)).zip(means.chunks(d_model)) {
            miss.1 = squared(own, mean);
        }
    }
    Ok(found)
}

/// The squared distance, to four digits: there is one for every prompt and layer of a cell.
fn squared(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    format!("{sum:.3e}").parse().unwrap_or(sum)
}

/// Where the last block leaves the anchors of the same prompts in some languages, laid out in the plane by t-SNE.
///
/// # Errors
/// A prompt that cannot be rendered.
pub fn states(answerer: &Answerer) -> Result<Vec<State>> {
    let items = corpus::parallel(&LANGUAGES, PER_FAMILY, CORPUS_SEED)?;
    let rows: Vec<Row> = items.iter().map(Row::from).collect();
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
    let state = |(item, [x, y]): (Item, [f64; 2])| State {
        unit: item.unit().into(),
        lang: item.lang,
        x: round(x),
        y: round(y),
    };
    Ok(items.into_iter().zip(places).map(state).collect())
}
