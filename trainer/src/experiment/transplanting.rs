//! XTransplant (arXiv 2412.12686) as a reference row: the layers are chosen on validation and judged on test, beside the
//! paper's upper bound, which may choose them anew for every prompt. Only exact answers count here, in every family.

use std::collections::BTreeMap;

use anyhow::Result;

use super::answering::{Answerer, Questions};
use super::cell::{Asked, Donated, Transplanted};
use crate::corpus::{Corpus, Item};
use crate::evaluate;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::transplant::{Donor, Patient};

/// Prompts per language and family of each split, unless `eval.limit` allows fewer: every one costs as many passes as there are
/// pairs of layers.
const PER_FAMILY: usize = 1;

/// For every donor whether each prompt is answered exactly, by target and source layer.
struct Grids {
    asked: Vec<Asked>,
    vanilla: Vec<bool>,
    donors: BTreeMap<&'static str, Vec<Vec<bool>>>,
}

/// None when a person stopped it.
///
/// # Errors
/// A prompt that does not fit.
pub fn transplanted(answerer: &Answerer, corpus: &Corpus, interrupt: &Interrupt) -> Result<Option<Transplanted>> {
    let Some(validation) = grids(answerer, &corpus.validation, interrupt)? else { return Ok(None) };
    let Some(test) = grids(answerer, &corpus.test, interrupt)? else { return Ok(None) };
    let n = answerer.folder.config.n_layers;
    let donors = test.donors.iter().map(|(&donor, prompts)| {
        let chosen = &validation.donors[donor];
        let right = |at: usize| chosen.iter().filter(|cells| cells[at]).count();
        // Of equally good pairs the first.
        let best = (0..n * n).rev().max_by_key(|&at| right(at)).unwrap_or(0);
        let chosen = prompts.iter().map(|cells| cells[best]).collect();
        let any = prompts.iter().map(|cells| cells.contains(&true)).collect();
        (donor.to_string(), Donated { source: best % n, target: best / n, chosen, any })
    });
    let donors = donors.collect();
    let (validation, Grids { asked, vanilla, .. }) = (validation.vanilla.len(), test);
    Ok(Some(Transplanted { validation, prompts: asked, vanilla, donors }))
}

fn grids(answerer: &Answerer, items: &[Item], interrupt: &Interrupt) -> Result<Option<Grids>> {
    let mut recipe = answerer.recipe.clone();
    let limit = recipe.eval.limit;
    recipe.eval.limit = if limit == 0 { PER_FAMILY } else { limit.min(PER_FAMILY) };
    let foreign: Vec<Item> = items.iter().filter(|item| item.lang != "en").cloned().collect();
    let Questions { samples, asked, .. } = Questions::new(&recipe, answerer.folder, &foreign)?;
    let others = evaluate::others(samples.len(), recipe.cc.seed)?;
    let mut grids = Grids { asked, vanilla: Vec::new(), donors: BTreeMap::new() };
    let mut progress = Progress::new("  transplants", samples.len(), 0);
    for (at, sample) in samples.iter().enumerate() {
        let config = &answerer.folder.config;
        let mut patient = Patient::new(answerer.model, config, sample, &samples[others[at]])?;
        grids.vanilla.push(patient.vanilla().exact > 0.0);
        for donor in Donor::ALL {
            if interrupt.requested() {
                return Ok(None);
            }
            let targets = (0..config.n_layers)
                .flat_map(|target| patient.transplanted(donor, target, cctuning::tap::Write::Replace).into_iter());
            let cells = targets.map(|score| score.exact > 0.0).collect();
            grids.donors.entry(donor.name()).or_default().push(cells);
        }
        progress.count(at + 1, "prompts");
    }
    Ok(Some(grids))
}
