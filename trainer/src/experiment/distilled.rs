//! The base's own English answers, which +SDRRL adds to the rows: kept for all cells whose rows ask for them, in one file
//! whose name says all that decides an answer but the instruction. Seeds only decide who is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cctuning::bundle::hex;
use cctuning::generate::{ConnectionOptions, GenerateOptions, Source};
use sha2::{Digest, Sha256};

use crate::data::distill;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::recipe::Recipe;
use crate::run;
use crate::run_folder::write_file_atomically;

/// Raised when the same name would mean other answers.
const MEANING: u32 = 1;

/// Where answers are kept, and of which base.
pub struct Kept<'a> {
    pub dir: &'a Path,
    pub base_sha256: &'a str,
}

impl Kept<'_> {
    /// The answers of the base in `folder`, in the order of the instructions, none where one did not end. It is asked what
    /// is not kept yet, each instruction once; None altogether when a person stopped it.
    ///
    /// # Errors
    /// An instruction cannot be rendered, or the answers cannot be written.
    pub fn answers(
        &self,
        folder: &ModelFolder,
        instructions: &[&str],
        recipe: &Recipe,
        interrupt: &Interrupt,
    ) -> Result<Option<Vec<Option<String>>>> {
        // Without a connection its settings decide nothing, and they hold a seed.
        let options =
            GenerateOptions { connection: ConnectionOptions::default(), ..run::options(recipe, folder, Source::None)? };
        let cutoff = recipe.data.english_cutoff;
        let path = self.path(folder, &options, cutoff)?;
        let mut kept = read(&path);
        let missing: BTreeSet<&str> = instructions.iter().copied().filter(|asked| !kept.contains_key(*asked)).collect();
        let missing: Vec<&str> = missing.into_iter().collect();
        if !missing.is_empty() {
            let Some(found) = distill::answers(folder, &missing, &options, cutoff, interrupt)? else { return Ok(None) };
            kept.extend(missing.into_iter().map(String::from).zip(found));
            write_file_atomically(&path, &serde_json::to_vec_pretty(&kept)?)?;
        }
        Ok(Some(instructions.iter().map(|&asked| kept[asked].clone()).collect()))
    }

    fn path(&self, folder: &ModelFolder, options: &GenerateOptions, cutoff: usize) -> Result<PathBuf> {
        let settings = (&folder.settings.template, folder.settings.anchor);
        let all = (MEANING, self.base_sha256, settings, format!("{options:?}"), cutoff);
        let key = hex(&Sha256::digest(serde_json::to_vec(&all)?));
        Ok(self.dir.join(format!("{}.json", &key[..12])))
    }
}

/// By instruction; nothing where there is no file, or one that was damaged.
fn read(path: &Path) -> BTreeMap<String, Option<String>> {
    let Ok(bytes) = fs::read(path) else { return BTreeMap::new() };
    serde_json::from_slice(&bytes).unwrap_or_else(|fault| {
        eprintln!("warning: {} is damaged ({fault}) and made again", path.display());
        BTreeMap::new()
    })
}
