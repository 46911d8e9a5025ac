//! What most verbs start from, as the recipe names it: a device, a model, rows as tokens.

use anyhow::Result;
use burn::tensor::Device;
use cctuning::tokenizer::Tokenizer;

use crate::data::Row;
use crate::model_folder::{ModelFolder, Settings, shipped};
use crate::recipe::{Data, Place, Recipe};
use crate::sample::{Renderer, Sample};
use crate::{corpus, device, token_cache};

/// The shipped base checkpoint knows the held-out facts of this corpus in English only.
pub const CORPUS_SEED: u64 = 2506;

/// Chooses the device and says which.
pub fn announce() -> Device {
    let (device, name) = device::choose();
    println!("device: {name}");
    device
}

/// The model that a recipe starts from.
pub fn model(recipe: &Recipe, device: &Device) -> Result<ModelFolder> {
    let path = match &recipe.model.path {
        Place::Builtin => shipped("base"),
        Place::Path(path) => path.clone(),
    };
    ModelFolder::load(&path, recipe.model.template.named(), recipe.optim.seed, device)
}

/// How the recipe turns rows into tokens of a model.
pub fn renderer<'a>(recipe: &Recipe, tokenizer: &'a Tokenizer, settings: &Settings) -> Renderer<'a> {
    Renderer {
        tokenizer,
        template: settings.template.clone(),
        anchor: settings.anchor,
        cutoff: recipe.data.cutoff,
        english_cutoff: recipe.data.english_cutoff,
    }
}

/// Rows as tokens; what did not fit is said.
pub fn samples(recipe: &Recipe, folder: &ModelFolder, rows: &[Row]) -> Result<Vec<Sample>> {
    let (samples, rendered) = renderer(recipe, &folder.tokenizer, &folder.settings).samples(rows)?;
    rendered.report();
    Ok(samples)
}

/// Rows that are asked or read, not trained on: a prompt may have all that the model reads beside `answer` tokens, however
/// long its gold answer is, and no more than the recipe says.
pub fn prompts(recipe: &Recipe, folder: &ModelFolder, rows: &[Row], answer: usize) -> Result<Vec<Sample>> {
    let context = folder.model.model.context();
    let mut renderer = renderer(recipe, &folder.tokenizer, &folder.settings);
    renderer.cutoff = renderer.cutoff.min(context.saturating_sub(answer));
    renderer.english_cutoff = renderer.english_cutoff.min(context);
    let (samples, rendered) = renderer.prompts(rows)?;
    rendered.report();
    Ok(samples)
}

/// The rows to train on, from the token cache where they were tokenised before.
pub fn training_samples(recipe: &Recipe, renderer: &Renderer, tokenizer_json: &[u8]) -> Result<Vec<Sample>> {
    let Data { train, cache, .. } = &recipe.data;
    let (samples, rendered) = match train {
        Place::Builtin => {
            let rows: Vec<Row> = corpus::generate(CORPUS_SEED)?.train.iter().map(Row::from).collect();
            renderer.samples(&rows)?
        }
        Place::Path(file) => token_cache::samples(cache, file, &recipe.data.reading(), renderer, tokenizer_json)?,
    };
    rendered.report();
    Ok(samples)
}
