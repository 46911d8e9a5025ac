//! The `experiment` verb: the paper's matrix of trainings at a size that a small machine can hold, and its evidence.
//!
//! `matrix` says which cells there are, `plan` names them, `run` measures what is missing through `measure`, `report`
//! writes RESULTS.md from whatever cells exist.

mod answering;
pub mod cell;
pub mod distilled;
mod inspect;
pub mod matrix;
mod measure;
pub mod plan;
pub mod report;
mod run;
mod transplanting;
pub mod tsne;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::{RecipeArgs, only_builtin};
use crate::inputs::CORPUS_SEED;
use crate::interrupt::Interrupt;
use crate::model_folder::shipped;
use crate::recipe::Place;
use crate::{corpus, device, hub};

use matrix::{Group, Profile};
use plan::Plan;

/// Which part of the matrix, and where to.
#[derive(Args)]
pub struct ExperimentArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[arg(long, value_enum, default_value = "quick", global = true)]
    profile: Profile,
    /// Only the cells of one group
    #[arg(long, value_enum)]
    only: Option<Group>,
    /// Folder for cells, figures and RESULTS.md; runs/experiment/PROFILE unless given
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeArgs,
}

#[derive(Subcommand)]
enum Action {
    /// Write RESULTS.md and the figures again, from the cells that are there
    Report,
}

impl ExperimentArgs {
    fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| PathBuf::from("runs/experiment").join(self.profile.name()))
    }
}

/// Runs the matrix, or writes its report. False when stopped.
///
/// # Errors
/// A base that cannot be read, or whatever a cell stumbles over.
pub fn experiment(args: &ExperimentArgs) -> Result<bool> {
    let out = args.out();
    if let Some(Action::Report) = args.action {
        report::write(&out)?;
        println!("{} written", out.join(report::RESULTS_FILE).display());
        return Ok(true);
    }
    // What a person sets goes over what the profile changes.
    let recipe = &args.recipe.load_over(args.profile.overrides().iter().map(|text| text.to_string()).collect())?;
    only_builtin("experiment", "data.train", &recipe.data.train)?;
    let base = match &recipe.model.path {
        Place::Builtin => shipped("base"),
        Place::Path(path) => hub::resolve(path)?,
    };
    let corpus = corpus::generate(CORPUS_SEED)?;
    let sets: String = args.recipe.set.iter().map(|set| format!(" --set {set}")).collect();
    let command = format!("cargo run --release -p trainer -- experiment --profile {}{sets}", args.profile.name());
    let plan = Plan::new(args.profile, command, recipe, &corpus, &base)?;
    let (device, device_name) = device::choose();
    println!("device: {device_name}");
    let place = measure::Place {
        recipe,
        corpus: &corpus,
        base_sha256: &plan.base_sha256,
        out: &out,
        device: &device,
        device_name: &device_name,
        interrupt: &Interrupt::install()?,
    };
    run::run(&place, &plan, args.only)
}
