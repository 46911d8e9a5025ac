//! `trainer fit`: the folder and the pairs that its arguments name, read as the model was trained; the matrix goes into that
//! folder.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::{Reading, fit};
use crate::cli::RecipeArgs;
use crate::corpus;
use crate::data::{Row, read_rows_as};
use crate::hub::Reference;
use crate::inputs::{CORPUS_SEED, announce, prompts};
use crate::interrupt::Interrupt;
use crate::model_folder::{ModelFolder, TRANSFORM_FILE};
use crate::recipe::{Cc, Place, Recipe};
use crate::sample::Sample;

#[derive(Args)]
pub struct FitArgs {
    /// The model folder; a model of the Hub is exported into one first
    folder: PathBuf,
    /// Also fit on growing numbers of pairs, and draw the error against them (Figure 5)
    #[arg(long)]
    curve: bool,
    #[command(flatten)]
    recipe: RecipeArgs,
}

/// Fits and writes; false when a person stopped it.
///
/// # Errors
/// No folder, a `cc` key other than the model was trained with, rows that cannot be used or fitted.
pub fn run(args: &FitArgs) -> Result<bool> {
    let FitArgs { folder: path, curve, recipe: given } = args;
    if !path.is_dir() {
        let Reference { id, revision } = Reference::parse(&path.to_string_lossy())?;
        bail!(
            "{id}@{revision}: the matrix is written into the model's folder, and the Hub's cache belongs to other programs \
             too; make a folder with `trainer export hf {} --out DIR --dtype f32`, then `trainer fit DIR`",
            path.display()
        );
    }
    // Before the weights are read: a wrong key should not cost a minute.
    let template = given.load()?.model.template.named();
    if let Some(key) = given.set.iter().map(|set| set.trim_start()).find(|set| set.starts_with("cc.")) {
        bail!("--set {key}: a fit reads the model as it was trained, which cctuning.json says; leave the key out");
    }
    let folder = ModelFolder::load(path, template, 0, &announce())?;
    let recipe = &given.load_for(&folder)?;
    as_trained(recipe, &folder)?;
    let rows: Vec<Row> = match &recipe.data.train {
        Place::Builtin => corpus::generate(CORPUS_SEED)?.pairs.iter().map(Row::from).collect(),
        Place::Path(path) => read_rows_as(path, &recipe.data.reading())?,
    };
    let mut samples = prompts(recipe, &folder, &rows, 0)?;
    // A prompt beside itself teaches the identity.
    samples.retain(Sample::has_twin);
    let (site, token_budget) = (folder.settings.connection.site, recipe.optim.micro_tokens);
    let reading = Reading { model: &folder.model, site, token_budget };
    let Some(fitted) = fit(reading, &samples, &recipe.transform, *curve, &Interrupt::install()?)? else {
        return Ok(false);
    };
    println!("{}\n{}", fitted.summary(), fitted.table());
    fitted.write(path)?;
    println!("{} written, transform.json, .txt and .svg beside it", path.join(TRANSFORM_FILE).display());
    Ok(true)
}

/// What a recipe file or a preset says of the trained model must be what its folder says. Keys of training alone may differ.
fn as_trained(recipe: &Recipe, folder: &ModelFolder) -> Result<()> {
    let trained = Cc { anchor: folder.settings.anchor, ..Cc::around(&folder.settings.connection) };
    let asked = Cc { anchor: recipe.cc.anchor, ..Cc::around(&recipe.cc.connection()) };
    let [trained, asked] = [trained, asked].map(|cc| serde_json::to_value(cc).unwrap_or_default());
    let keys = trained.as_object().into_iter().flatten().filter(|(key, value)| asked[key.as_str()] != **value);
    let keys: Vec<String> =
        keys.map(|(key, value)| format!("cc.{key} = {}, trained with {value}", asked[key])).collect();
    ensure!(
        keys.is_empty(),
        "the recipe says {}: a fit reads the model as it was trained; leave these keys out, or train with them",
        keys.join("; ")
    );
    Ok(())
}
