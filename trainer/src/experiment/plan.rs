//! The plan of one experiment: every cell with the name that all it depends on gives it. A cell that was measured under
//! another recipe, corpus or base has another name, and so is never taken for one of these.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cctuning::bundle::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::matrix::{Cell, Profile, cells};
use crate::corpus::Corpus;
use crate::model_folder::load_config;
use crate::recipe::{Recipe, Run};
use crate::run_folder::{file_sha256, write_file_atomically};

pub const PLAN_FILE: &str = "plan.json";
/// Raised when cells begin to mean something else.
const MEANING: u32 = 3;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub profile: Profile,
    /// What a person types to get it, without `--only`.
    pub command: String,
    pub recipe: String,
    pub corpus_sha256: String,
    pub base_sha256: String,
    /// By family and language the answer that most training rows have: what a constant answer earns is a baseline.
    pub constants: BTreeMap<String, BTreeMap<String, String>>,
    pub cells: Vec<Planned>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub id: String,
    pub cell: Cell,
}

impl Plan {
    /// Names every cell of a profile.
    ///
    /// # Errors
    /// The base cannot be read, or a cell changes a key that the recipe does not have.
    pub fn new(profile: Profile, command: String, recipe: &Recipe, corpus: &Corpus, base: &Path) -> Result<Self> {
        let (corpus_sha256, base_sha256) = (corpus_sha256(corpus)?, folder_sha256(base)?);
        let name = |cell: Cell| -> Result<Planned> {
            // Where and how often a run writes decides nothing.
            let recipe = Recipe { run: Run::default(), ..recipe.with(&cell.overrides)? };
            let all = (MEANING, &cell, recipe.to_toml()?, &corpus_sha256, &base_sha256);
            let key = hex(&Sha256::digest(serde_json::to_vec(&all)?));
            Ok(Planned { id: format!("{}-{}", cell.slug(), &key[..12]), cell })
        };
        let n_layers = load_config(base)?.n_layers;
        let cells = cells(profile, n_layers).into_iter().map(name).collect::<Result<_>>()?;
        let (recipe, constants) = (recipe.to_toml()?, constants(corpus));
        Ok(Self { profile, command, recipe, corpus_sha256, base_sha256, constants, cells })
    }

    /// How often a training sees every row; none where a number of steps decides.
    pub fn epochs(&self) -> Option<usize> {
        let recipe: Recipe = toml::from_str(&self.recipe).ok()?;
        (recipe.optim.max_steps == 0).then_some(recipe.optim.epochs)
    }

    pub fn write(&self, out: &Path) -> Result<()> {
        write_file_atomically(&out.join(PLAN_FILE), format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes())
    }

    /// # Errors
    /// There is none in `out`, or it is not readable.
    pub fn read(out: &Path) -> Result<Self> {
        let path = out.join(PLAN_FILE);
        let bytes = fs::read(&path).with_context(|| {
            format!("cannot read {}; `trainer experiment` writes it when it starts", path.display())
        })?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: expected the plan of an experiment", path.display()))
    }
}

/// The most frequent answers of the training rows; of equally frequent ones the first in order.
pub fn constants(corpus: &Corpus) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut counts: BTreeMap<(&str, &str), BTreeMap<&str, usize>> = BTreeMap::new();
    for item in &corpus.train {
        *counts.entry((&item.task, &item.lang)).or_default().entry(&item.output).or_default() += 1;
    }
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for ((family, lang), answers) in counts {
        let most = answers.iter().rev().max_by_key(|(_, count)| **count).map_or("", |(answer, _)| answer);
        found.entry(family.into()).or_default().insert(lang.into(), most.into());
    }
    found
}

fn corpus_sha256(corpus: &Corpus) -> Result<String> {
    let parts = [&corpus.train, &corpus.validation, &corpus.test, &corpus.pairs];
    Ok(hex(&Sha256::digest(serde_json::to_vec(&parts)?)))
}

/// The checksum of everything in a model folder that decides what it computes.
fn folder_sha256(folder: &Path) -> Result<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .with_context(|| format!("cannot list the base {}", folder.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.retain(|name| {
        let decides =
            ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "cctuning.json"];
        decides.contains(&name.as_str()) || name.ends_with(".safetensors")
    });
    names.sort();
    let mut all = Sha256::new();
    for name in names {
        all.update(format!("{} {name}\n", file_sha256(&folder.join(&name))?));
    }
    Ok(hex(&all.finalize()))
}
