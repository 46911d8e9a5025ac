//! `trainer data check`: its arguments, and what of a report a person sees.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::check::Checks;
use super::lengths::Counter;
use super::overlap::Against;
use crate::interrupt::Interrupt;
use crate::model_folder::speech;
use crate::recipe::Recipe;
use crate::sample::Renderer;

#[derive(Args)]
pub struct CheckArgs {
    /// JSON lines, JSON, either in .gz or .zst, or Parquet
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Count tokens as this model folder (or org/name on the Hub) does; only its tokenizer is read
    #[arg(long)]
    model: Option<PathBuf>,
    /// Look for overlap with the evaluation sets of this folder: BENCHMARK/split*/LANGUAGE.json[.gz]
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Words in a row that count as overlap
    #[arg(long, default_value_t = 13)]
    words: usize,
    /// Faults printed; all are counted
    #[arg(long, default_value_t = 50)]
    show: usize,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// True when the files are faultless, false when a person stopped the check.
///
/// # Errors
/// When there is a fault; it is printed before.
pub fn check(args: &CheckArgs, recipe: &Recipe, interrupt: &Interrupt) -> Result<bool> {
    let speech = args.model.as_ref().map(|path| speech(path, recipe.model.template.named())).transpose()?;
    let renderer = speech.as_ref().map(|speech| Renderer {
        tokenizer: &speech.tokenizer,
        template: speech.settings.template.clone(),
        anchor: recipe.cc.anchor,
        cutoff: recipe.data.cutoff,
        english_cutoff: recipe.data.english_cutoff,
    });
    let counter = renderer.map(Counter::new).transpose()?;
    let against = args.against.as_ref().map(|folder| Against::load(folder, args.words)).transpose()?;
    let checks = Checks { reading: recipe.data.reading(), counter, against, show: args.show };
    let report = checks.run(&args.files, interrupt)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    anyhow::ensure!(report.faults == 0, "{} faults in the rows; correct or remove these records", report.faults);
    Ok(!report.interrupted)
}
