//! What was measured on one cell, and its file: whole or absent, and named by all that decides it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cctuning::least_squares::Judgement;
use serde::{Deserialize, Serialize};

use super::matrix::{Cell, Reading};
use crate::fit_report::Fitted;
use crate::run_folder::write_file_atomically;

/// What the file of every cell ends with.
pub const CELL_FILE: &str = ".json.zst";
/// Written once and kept in the repository.
const ZSTD_LEVEL: i32 = 19;

/// A finished cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub id: String,
    pub cell: Cell,
    pub device: String,
    pub model: Shape,
    /// None for the base as it is.
    pub trained: Option<Trained>,
    /// By the reading that it is for; the plain fit stands under `transform`.
    pub fits: BTreeMap<Reading, Fit>,
    pub validation: Answered,
    pub test: Answered,
    pub states: Vec<State>,
    pub transplanted: Option<Transplanted>,
    pub timed: Option<Timed>,
}

/// Seconds of the same work with and without CC-Tuning, in turn, so that whatever else the machine does slows both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// A step's loss and gradients on one batch: plain fine-tuning, CC-Tuning.
    pub steps: Vec<[f64; 2]>,
    /// Answers to the same prompts: without a connection, with W_T.
    pub answers: Vec<[f64; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub n_layers: usize,
    pub d_model: usize,
    pub parameters: usize,
}

/// What the training run did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    pub rows: usize,
    pub steps: usize,
    /// By step.
    pub losses: Vec<f64>,
    pub choice: Option<Chosen>,
    /// Mean cosine distance to the English twin over the first and the last tenth of the steps, at the bottom and the
    /// middle layer of deep supervision.
    pub distances: Option<[[f64; 2]; 2]>,
}

/// How the Decision Maker chose in training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Mean entropy of its softmax over the first and the last tenth of the steps, in nats.
    pub entropy_first: f64,
    pub entropy_last: f64,
    /// Lengths over the last tenth.
    pub vector_norm: f64,
    pub stream_norm: f64,
    /// How often each layer was taken in the last tenth.
    pub selected: Vec<usize>,
}

/// The Transform Matrix and how far it can be trusted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    pub pairs: usize,
    pub heldout_pairs: usize,
    pub rows: usize,
    pub rank: usize,
    /// None where the system is singular.
    pub condition: Option<f64>,
    pub own: Error,
    pub heldout: Error,
    /// Of the baselines on the held-out pairs: layer mean, identity, zero.
    pub baselines: [Error; 3],
    pub layers: Vec<LayerError>,
    /// By test prompt and layer; nothing for prompts in English, and nothing at all but for the plain fit.
    pub misses: Vec<Vec<Miss>>,
    pub curve: Vec<CurvePoint>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Error {
    pub mse: f64,
    pub r2: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerError {
    pub own: Error,
    pub heldout: Error,
}

/// How far one vector of `F W_T` is from the English one, squared; and how far that one is from the mean of its layer over
/// the test prompts in other languages. R2 is one minus the ratio of their sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Miss(pub f64, pub f64);

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    pub pairs: usize,
    pub rows: usize,
    pub own_mse: f64,
    pub heldout_mse: f64,
}

/// The prompts of a split and how each reading answered them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    pub prompts: Vec<Asked>,
    pub readings: BTreeMap<Reading, Answers>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub id: String,
    pub lang: String,
    pub family: String,
    /// `fact` where the fact was held out, `phrasing` where only its wording was.
    pub kind: String,
    /// What is held out together: prompts of one fact, in any language and family, are one piece of evidence.
    pub fact: String,
    pub gold: String,
}

impl Asked {
    pub fn foreign(&self) -> bool {
        self.lang != "en"
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// In the order of the prompts, from 0 to 1.
    pub credits: Vec<f64>,
    /// Mean length of the added vector, and of the stream it was added to.
    pub vector_norm: f64,
    pub stream_norm: f64,
    /// The layer that was taken for each prompt, from 0; none without a connection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<usize>,
    /// A few answers, for a person: id and text.
    pub shown: Vec<(String, String)>,
}

/// The state of one prompt's anchor in the plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub lang: String,
    /// The same prompt in another language has the same name.
    pub unit: String,
    pub x: f64,
    pub y: f64,
}

/// XTransplant: exact answers when another prompt's activations are put in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transplanted {
    /// Prompts that the layers were chosen on.
    pub validation: usize,
    /// The prompts that were asked then, and whether each is answered without a transplant.
    pub prompts: Vec<Asked>,
    pub vanilla: Vec<bool>,
    /// By donor.
    pub donors: BTreeMap<String, Donated>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Donated {
    /// From 0.
    pub source: usize,
    pub target: usize,
    /// By prompt, with those layers.
    pub chosen: Vec<bool>,
    /// With whichever pair of layers: the paper's upper bound.
    pub any: Vec<bool>,
}

impl Fit {
    pub fn new(fitted: &Fitted, misses: Vec<Vec<Miss>>) -> Self {
        let error = |pick: fn(&Judgement) -> cctuning::least_squares::FitReport, of: &Judgement| {
            let report = pick(of);
            Error { mse: report.mse, r2: report.r2 }
        };
        let ours = |of: &Judgement| error(|judged| judged.fitted, of);
        let layers = fitted.train_layers.iter().zip(&fitted.heldout_layers);
        let held = &fitted.heldout;
        Self {
            pairs: fitted.pairs,
            heldout_pairs: fitted.heldout_pairs,
            rows: fitted.rows,
            rank: fitted.rank,
            condition: fitted.condition.is_finite().then_some(fitted.condition),
            own: ours(&fitted.train),
            heldout: ours(held),
            baselines: [error(|j| j.layer_mean, held), error(|j| j.identity, held), error(|j| j.zero, held)],
            layers: layers.map(|(own, heldout)| LayerError { own: ours(own), heldout: ours(heldout) }).collect(),
            misses,
            curve: fitted
                .curve
                .iter()
                .map(|p| CurvePoint { pairs: p.pairs, rows: p.rows, own_mse: p.train, heldout_mse: p.heldout })
                .collect(),
            warnings: fitted.warnings.clone(),
        }
    }
}

impl Measured {
    /// Where the cell of an id stands.
    pub fn path(cells: &Path, id: &str) -> PathBuf {
        cells.join(format!("{id}{CELL_FILE}"))
    }

    pub fn write(&self, cells: &Path) -> Result<()> {
        let bytes = zstd::encode_all(&serde_json::to_vec(self)?[..], ZSTD_LEVEL)?;
        write_file_atomically(&Self::path(cells, &self.id), &bytes)
    }

    /// The finished cell of an id, if there is one.
    ///
    /// # Errors
    /// The file cannot be read or is no cell.
    pub fn read(cells: &Path, id: &str) -> Result<Option<Self>> {
        let path = Self::path(cells, id);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let fault = || format!("{}: expected a finished cell; remove the file to measure it again", path.display());
        let json = zstd::decode_all(&bytes[..]).with_context(fault)?;
        serde_json::from_slice(&json).map(Some).with_context(fault)
    }

    /// Without what a clock or the machine decides.
    pub fn timeless(mut self) -> Self {
        self.device.clear();
        self.timed = None;
        self
    }
}
