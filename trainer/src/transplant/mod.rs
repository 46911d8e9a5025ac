//! The `transplant` verb: XTransplant (arXiv 2412.12686), the training-free probe before CC-Tuning.
//!
//! In the prefill the feed-forward output of block `j` at the last prompt token is replaced by (or joined with) that of
//! block `i` from another prompt, for every source layer `i` and target layer `j`:  `f_j[last] <- f_i^other[last]`.
//! It is the probe and the injection of CC-Tuning with another way of writing, not a forward pass of its own.
//!
//! The other prompt is the English twin, and for comparison the prompt itself and somebody else's English prompt: only
//! what the twin gains over both is passed across languages.

mod heat_map;
mod report;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use cctuning::anchor::Anchor;
use cctuning::cache::KvCache;
use cctuning::config::ModelConfig;
use cctuning::model::{CcModel, TokenBatch};
use cctuning::tap::{FfnActivations, Injection, Site, Taps, Write};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::data::build::is_english;
use crate::data::{Row, read_rows_as};
use crate::evaluate;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::sample::Sample;

pub use heat_map::heat_map;
pub use report::text;

/// What is transplanted, and where the tables go.
#[derive(Args)]
pub struct TransplantArgs {
    /// The model folder
    pub folder: PathBuf,
    /// JSON-lines triples; English rows are left out
    #[arg(long)]
    pub data: PathBuf,
    /// Ways of writing; all three when none is named
    #[arg(long = "mode", value_enum)]
    pub modes: Vec<Mode>,
    /// How much of the other's value `interpolate` takes
    #[arg(long, default_value_t = 0.5)]
    pub share: f32,
    /// At most so many prompts per language; 0 takes all
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// Folder for `transplant.txt`, `transplant.json` and one `.svg` per mode
    #[arg(long, default_value = "transplant")]
    pub out: PathBuf,
}

/// How the other's value meets the prompt's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Replace,
    Add,
    Interpolate,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Replace, Self::Add, Self::Interpolate];

    pub fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Add => "add",
            Self::Interpolate => "interpolate",
        }
    }

    fn write(self, share: f32) -> Write {
        match self {
            Self::Replace => Write::Replace,
            Self::Add => Write::Add,
            Self::Interpolate => Write::Interpolate(share),
        }
    }
}

/// Whose activations are transplanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Donor {
    /// The English twin.
    English,
    /// Control: the prompt itself, from another layer.
    Itself,
    /// Control: another row's English prompt.
    Unrelated,
}

impl Donor {
    pub const ALL: [Self; 3] = [Self::English, Self::Itself, Self::Unrelated];

    pub fn name(self) -> &'static str {
        match self {
            Self::English => "English twin",
            Self::Itself => "itself",
            Self::Unrelated => "unrelated English prompt",
        }
    }
}

/// How well one prompt is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Log-probability of the expected answer with its end token.
    pub log_probability: f64,
    /// Whether greedy decoding gives exactly that answer.
    pub exact: f64,
}

/// Means over all prompts, by target and source layer.
#[derive(Clone, Debug, Serialize)]
pub struct Grid {
    pub mode: Mode,
    pub donor: Donor,
    /// `[target][source]`.
    pub cells: Vec<Vec<Score>>,
    /// Share of prompts that at least one cell answers exactly, the paper's upper bound.
    pub any_exact: f64,
}

/// The whole result.
#[derive(Clone, Debug, Serialize)]
pub struct Transplants {
    pub model: String,
    /// Prompts that the means are over, of those asked for.
    pub prompts: usize,
    pub asked: usize,
    pub share: f32,
    /// Without a transplant.
    pub vanilla: Score,
    pub grids: Vec<Grid>,
}

impl TransplantArgs {
    /// The rows whose prompts are patients: those in other languages than English.
    ///
    /// # Errors
    /// A row that cannot be read, or none in another language.
    pub fn rows(&self, recipe: &Recipe) -> Result<Vec<Row>> {
        let mut rows = read_rows_as(&self.data, &recipe.data.reading())?;
        rows.retain(|row| !is_english(&row.lang));
        ensure!(!rows.is_empty(), "{}: no row in another language than English", self.data.display());
        Ok(evaluate::at_most(self.limit, rows))
    }
}

/// Transplants between all layers and writes the tables. Returns whether all prompts were asked; a table over fewer says
/// so.
///
/// # Errors
/// The rows hold no pair, or a file cannot be written.
pub fn transplant(
    args: &TransplantArgs,
    folder: &ModelFolder,
    samples: Vec<Sample>,
    seed: u64,
    interrupt: &Interrupt,
) -> Result<bool> {
    ensure!(
        args.share.is_finite() && (0.0..=1.0).contains(&args.share),
        "--share {}: expected a number from 0 to 1",
        args.share
    );
    let modes = if args.modes.is_empty() { &Mode::ALL[..] } else { &args.modes };
    let unrelated = evaluate::others(samples.len(), seed)?;
    let mut sums = Sums::new(modes, folder.config.n_layers);
    let mut progress = Progress::new("transplant", samples.len(), 0);
    for (at, sample) in samples.iter().enumerate() {
        let unrelated = &samples[unrelated[at]];
        let mut patient = Patient::new(&folder.model, &folder.config, sample, unrelated)?;
        sums.add(&mut patient, args.share, &|| interrupt.requested());
        progress.count(sums.prompts, "prompts");
        if interrupt.requested() {
            break;
        }
    }
    drop(progress);
    if sums.prompts == 0 {
        eprintln!("stopped before the first prompt was done; nothing was written");
        return Ok(false);
    }
    let finished = sums.prompts == samples.len();
    let result = sums.means(args.folder.display().to_string(), samples.len(), args.share);
    report::write(&result, &args.out)?;
    println!("{}", report::summary(&result));
    println!("{} written", args.out.display());
    Ok(finished)
}

/// One prompt, prepared: what it can be given, and its prefix computed once.
pub struct Patient<'a> {
    model: &'a CcModel,
    answer: &'a [u32],
    /// All but the last prompt token, for as many rows as there are layers.
    prefix: KvCache,
    /// The last prompt token and the answer but its end: what a transplant can change.
    tail: Vec<u32>,
    /// By [`Donor`], `[n_layers, d_model]` each.
    given: [Tensor<2>; 3],
}

impl<'a> Patient<'a> {
    /// Reads the three donors and the prefix.
    ///
    /// # Errors
    /// Prompt and answer do not fit the context.
    pub fn new(model: &'a CcModel, config: &ModelConfig, sample: &'a Sample, unrelated: &Sample) -> Result<Self> {
        let (ids, answer) = (&sample.prompt.ids, &sample.answer);
        let (slots, context) = (ids.len() + answer.len(), model.model.context());
        let longest = slots.max(sample.english.ids.len()).max(unrelated.english.ids.len());
        ensure!(longest <= context, "row {:?}: {longest} tokens do not fit the context of {context}", sample.id);
        let device = model.device();
        let donors = [&sample.english.ids, ids, &unrelated.english.ids];
        let last = Anchor::new(donors.iter().map(|ids| ids.len() - 1).collect());
        let FfnActivations(read) = model.activations(&TokenBatch::new(&donors, &device), &last, Site::FeedForward);
        let given = [0, 1, 2].map(|row| read.clone().narrow(0, row, 1).squeeze_dim(0));

        let mut prefix = KvCache::new(config, 1, slots, &device);
        if let ([head @ .., _], true) = (&ids[..], ids.len() > 1) {
            let embedded = model.model.embed(TokenBatch::new(&[head], &device).ids);
            model.model.forward(embedded, 0..config.n_layers, Some(&mut prefix), Taps::default());
        }
        let tail = ids[ids.len() - 1..].iter().chain(&answer[..answer.len() - 1]).copied().collect();
        Ok(Self { model, answer, prefix: prefix.repeated(config.n_layers), tail, given })
    }

    /// The prompt as it is.
    pub fn vanilla(&mut self) -> Score {
        // All rows are alike then; the first speaks for them.
        self.scores(None)[0]
    }

    /// Scores by source layer, for one target layer.
    pub fn transplanted(&mut self, donor: Donor, target: usize, write: Write) -> Vec<Score> {
        let vector = self.given[donor as usize].clone();
        let anchor = Anchor::new(vec![0; vector.dims()[0]]);
        self.scores(Some(&Injection { anchor, vector, layer: target, write }))
    }

    fn scores(&mut self, injection: Option<&Injection>) -> Vec<Score> {
        let decoder = &self.model.model;
        let (rows, n) = (decoder.n_layers(), self.answer.len());
        let tokens = TokenBatch::new(&vec![&self.tail; rows], &self.model.device());
        let held = self.prefix.len();
        let taps = Taps { probe: None, injection };
        let hidden = decoder.forward(decoder.embed(tokens.ids), 0..rows, Some(&mut self.prefix), taps);
        self.prefix.rewind(held);
        let d_model = hidden.dims()[2];
        let logits = self.model.logits(hidden.reshape([rows * n, d_model]));
        let likeliest: Vec<i64> = logits.clone().argmax(1).into_data().iter::<i64>().collect();
        let gold: Vec<i32> = (0..rows).flat_map(|_| self.answer.iter().map(|&id| id as i32)).collect();
        let gold = Tensor::<2, Int>::from_data(TensorData::new(gold, [rows * n, 1]), &self.model.device());
        let said: Vec<f32> = log_softmax(logits, 1).gather(1, gold).into_data().iter::<f32>().collect();
        let exact = |found: &[i64]| found.iter().zip(self.answer).all(|(&found, &gold)| found == i64::from(gold));
        said.chunks(n)
            .zip(likeliest.chunks(n))
            .map(|(said, likeliest)| Score {
                log_probability: said.iter().map(|&p| f64::from(p)).sum(),
                exact: f64::from(u8::from(exact(likeliest))),
            })
            .collect()
    }
}

/// Sums over the prompts done so far.
struct Sums {
    prompts: usize,
    vanilla: Score,
    grids: Vec<Grid>,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.log_probability += other.log_probability;
        self.exact += other.exact;
    }

    fn over(self, n: usize) -> Self {
        Self { log_probability: self.log_probability / n as f64, exact: self.exact / n as f64 }
    }
}

impl Sums {
    fn new(modes: &[Mode], n_layers: usize) -> Self {
        let grid = |mode: Mode, donor| Grid {
            mode,
            donor,
            cells: vec![vec![Score::default(); n_layers]; n_layers],
            any_exact: 0.0,
        };
        let grids = modes.iter().flat_map(|&mode| Donor::ALL.map(|donor| grid(mode, donor))).collect();
        Self { prompts: 0, vanilla: Score::default(), grids }
    }

    /// Adds one prompt, whole or, when `stopped` meanwhile, not at all.
    fn add(&mut self, patient: &mut Patient, share: f32, stopped: &dyn Fn() -> bool) {
        let vanilla = patient.vanilla();
        let mut scores = Vec::new();
        for grid in &self.grids {
            for target in 0..grid.cells.len() {
                if stopped() {
                    return;
                }
                scores.push(patient.transplanted(grid.donor, target, grid.mode.write(share)));
            }
        }
        self.prompts += 1;
        self.vanilla.add(vanilla);
        let mut scores = scores.into_iter();
        for grid in &mut self.grids {
            let mut any = false;
            for row in &mut grid.cells {
                for (cell, score) in row.iter_mut().zip(scores.next().unwrap_or_default()) {
                    cell.add(score);
                    any |= score.exact > 0.0;
                }
            }
            grid.any_exact += f64::from(u8::from(any));
        }
    }

    fn means(mut self, model: String, asked: usize, share: f32) -> Transplants {
        let n = self.prompts;
        for grid in &mut self.grids {
            grid.cells.iter_mut().flatten().for_each(|cell| *cell = cell.over(n));
            grid.any_exact /= n as f64;
        }
        Transplants { model, prompts: n, asked, share, vanilla: self.vanilla.over(n), grids: self.grids }
    }
}
