//! The recipe's `data` section.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Columns, Format, Reading};
use crate::recipe::Place;

/// Which rows, and how much of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A `.jsonl`, `.json` (also `.gz`, `.zst`) or `.parquet` file, or the shipped corpus.
    pub train: Place,
    /// What the records look like: `auto`, `ours`, `alpaca`, `authors`, `messages` or `sharegpt`.
    pub format: Format,
    /// The language of rows that name none.
    pub lang: String,
    /// Where token samples of `train` are kept between runs; empty keeps none.
    pub cache: PathBuf,
    /// The most tokens of a prompt with its answer.
    pub cutoff: usize,
    /// The most tokens of the English prompt; its own budget.
    pub english_cutoff: usize,
    /// Seeds the order of the rows.
    pub seed: u64,
    /// Other names of the fields: `columns = { instruction = "question" }`.
    pub columns: Columns,
}

impl Data {
    /// How the file is to be read.
    pub fn reading(&self) -> Reading {
        Reading { format: self.format, lang: self.lang.clone(), columns: self.columns.clone() }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: Place::Builtin,
            format: Format::Auto,
            lang: String::new(),
            cache: PathBuf::from("runs/tokens"),
            cutoff: 256,
            english_cutoff: 256,
            seed: 0,
            columns: Columns::default(),
        }
    }
}
