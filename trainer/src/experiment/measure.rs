//! One cell from beginning to end: rows, training, fit, answers. What a killed process leaves is the training's own
//! checkpoint; the rest is quick and done again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use cctuning::model::CcModel;
use cctuning::transform_matrix::FoldedTransform;
use serde_json::Value;

use super::answering::{Answerer, Questions};
use super::cell::{Answered, Chosen, Fit, Measured, Shape, Timed, Trained};
use super::matrix::{Group, Reading, Setting, Training};
use super::plan::Planned;
use super::{distilled, inspect, transplanting};
use crate::batches::Order;
use crate::corpus::Corpus;
use crate::data::Row;
use crate::data::build::{english, translation};
use crate::data::distill::Distill;
use crate::fit;
use crate::fit_report::Fitted;
use crate::inputs;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::recipe::Recipe;
use crate::sample::Sample;
use crate::step::{Method, step};
use crate::train::{Ended, train};

/// Rows of each kind that +SDRRL adds, over the rows given: with four kinds 1.6 N in all, the paper's most.
const SDRRL_SHARE: f64 = 0.15;

/// What all cells share.
pub struct Place<'a> {
    pub recipe: &'a Recipe,
    pub corpus: &'a Corpus,
    pub base_sha256: &'a str,
    pub out: &'a Path,
    pub device: &'a Device,
    pub device_name: &'a str,
    pub interrupt: &'a Interrupt,
}

/// Pairs of steps, and of answers to some prompts, that are timed in a cell.
const TURNS: usize = 6;
const TIMED_PROMPTS: usize = 128;

type Fits = BTreeMap<Reading, (Fit, FoldedTransform)>;

impl Place<'_> {
    /// Where a cell keeps its checkpoints while it is trained.
    pub fn work(&self, id: &str) -> std::path::PathBuf {
        self.out.join("work").join(id)
    }

    /// Where the answers of the base are kept that +SDRRL adds.
    pub fn answers(&self) -> std::path::PathBuf {
        self.out.join("answers")
    }

    /// Measures one cell; None when a person stopped it.
    ///
    /// # Errors
    /// Whatever training, fitting or answering stumbles over.
    pub fn measure(&self, Planned { id, cell }: &Planned) -> Result<Option<Measured>> {
        let mut recipe = self.recipe.with(&cell.overrides)?;
        // The log is what the cell's loss curve is read from.
        (recipe.run.log_every, recipe.run.keep) = (1, 1);
        let recipe = &recipe;
        let mut folder = inputs::model(recipe, self.device)?;
        folder.settings.anchor = recipe.cc.anchor;
        folder.settings.connection = recipe.cc.connection();
        let Some((model, trained)) = self.trained(recipe, &folder, cell.setting, cell.training, id)? else {
            return Ok(None);
        };
        let answerer = Answerer { folder: &folder, model: &model, recipe };
        let [validation, test] = [&self.corpus.validation, &self.corpus.test]
            .map(|items| Questions::new(recipe, &folder, items).context("the prompts of the corpus"));
        let (validation, test) = (validation?, test?);
        let Some(fits) = self.fits(&answerer, &cell.readings, cell.curve, &test)? else { return Ok(None) };
        // Validation decides between variants; the controls are for the test alone.
        let decisive = &cell.readings[..1];
        let Some(validated) = self.answered(&answerer, &validation, decisive, &fits)? else { return Ok(None) };
        let Some(tested) = self.answered(&answerer, &test, &cell.readings, &fits)? else { return Ok(None) };
        let states = if cell.states { inspect::states(&answerer)? } else { Vec::new() };
        let transplanted = match cell.transplants {
            true => match transplanting::transplanted(&answerer, self.corpus, self.interrupt)? {
                Some(found) => Some(found),
                None => return Ok(None),
            },
            false => None,
        };
        let timed = match (cell.group, cell.training) {
            (Group::Main, Training::Cc) => self.timed(&answerer, cell.setting, &test, &fits)?,
            _ => None,
        };
        Ok(Some(Measured {
            id: id.clone(),
            cell: cell.clone(),
            device: self.device_name.into(),
            model: Shape {
                n_layers: folder.config.n_layers,
                d_model: folder.config.d_model,
                parameters: model.num_params(),
            },
            trained,
            fits: fits.into_iter().map(|(reading, (fit, _))| (reading, fit)).collect(),
            validation: validated,
            test: tested,
            states,
            transplanted,
            timed,
        }))
    }

    fn trained(
        &self,
        recipe: &Recipe,
        folder: &ModelFolder,
        setting: Setting,
        training: Training,
        id: &str,
    ) -> Result<Option<(CcModel, Option<Trained>)>> {
        let method = match training {
            Training::Nothing => return Ok(Some((folder.model.clone(), None))),
            Training::Sft => Method::Sft,
            Training::Cc => Method::Cc(&recipe.cc),
            Training::Dft => Method::Dft(&recipe.dft),
        };
        let Some(rows) = self.rows(recipe, folder, setting)? else { return Ok(None) };
        let samples = inputs::samples(recipe, folder, &rows)?;
        let work = self.work(id);
        let start = folder.with_model(folder.model.clone())?;
        match train("  training", start, &samples, method, recipe, &work, self.interrupt)? {
            Ended::Interrupted => Ok(None),
            Ended::Finished { folder, .. } => {
                Ok(Some((folder.model, Some(Trained::read(&work.join("log.jsonl"), samples.len())?))))
            }
        }
    }

    /// The rows of a setting; None when a person stopped the model that answers for +SDRRL.
    fn rows(&self, recipe: &Recipe, folder: &ModelFolder, setting: Setting) -> Result<Option<Vec<Row>>> {
        let mut rows: Vec<Row> = self.corpus.train.iter().map(Row::from).collect();
        let added = match setting {
            Setting::MlSft => Vec::new(),
            Setting::En => english(&rows).rows,
            Setting::Mt => translation(&rows).rows,
            Setting::Sdrrl => {
                let distill = Distill { rows: &rows, share: SDRRL_SHARE, seed: recipe.data.seed };
                let prompts: Vec<&str> = distill.asked().iter().map(|row| row.instruction_en.as_str()).collect();
                let kept = distilled::Kept { dir: &self.answers(), base_sha256: self.base_sha256 };
                match kept.answers(folder, &prompts, recipe, self.interrupt)? {
                    Some(answers) => {
                        let added = distill.added(&answers);
                        added.tell_unended(recipe.eval.max_new_tokens);
                        added.rows
                    }
                    None => return Ok(None),
                }
            }
        };
        rows.extend(added);
        Ok(Some(rows))
    }

    /// A matrix for every reading that needs one of its own, judged on the test prompts too.
    fn fits(&self, answerer: &Answerer, readings: &[Reading], curve: bool, test: &Questions) -> Result<Option<Fits>> {
        let mut fits = Fits::new();
        let Answerer { folder, model, recipe } = *answerer;
        let needed = readings.iter().filter(|reading| reading.fit().is_some());
        let needed: Vec<Reading> = needed.map(|&reading| own_fit(reading)).collect();
        if needed.is_empty() {
            return Ok(Some(fits));
        }
        let rows: Vec<Row> = self.corpus.pairs.iter().map(Row::from).collect();
        let pairs = inputs::samples(recipe, folder, &rows)?;
        let read = fit::Reading { model, site: recipe.cc.site, token_budget: recipe.optim.micro_tokens };
        let mut fitted: BTreeMap<Reading, Fitted> = BTreeMap::new();
        for reading in needed {
            if fitted.contains_key(&reading) {
                continue;
            }
            let overrides: Vec<String> =
                reading.fit().unwrap_or_default().iter().map(|text| text.to_string()).collect();
            let settings = recipe.with(&overrides)?.transform;
            let drawn = curve && reading == Reading::Transform;
            let Some(found) = fit::fit(read, &pairs, &settings, drawn, self.interrupt)? else { return Ok(None) };
            fitted.insert(reading, found);
        }
        for (reading, found) in fitted {
            let misses = match reading {
                Reading::Transform => inspect::misses(&found.transform, read, test)?,
                _ => Vec::new(),
            };
            let folded = found.transform.fold(model.model.decision_maker());
            fits.insert(reading, (Fit::new(&found, misses), folded));
        }
        Ok(Some(fits))
    }

    fn answered(
        &self,
        answerer: &Answerer,
        questions: &Questions,
        readings: &[Reading],
        fits: &Fits,
    ) -> Result<Option<Answered>> {
        let mut found = Answered { prompts: questions.asked.clone(), ..Answered::default() };
        for &reading in readings {
            let folded = folded(fits, reading);
            let Some(answers) = answerer.answer(questions, reading, folded, self.interrupt)? else { return Ok(None) };
            found.readings.insert(reading, answers);
        }
        Ok(Some(found))
    }

    /// Tables 3 and 4; the first turn warms up.
    fn timed(&self, answerer: &Answerer, setting: Setting, test: &Questions, fits: &Fits) -> Result<Option<Timed>> {
        let Answerer { folder, model, recipe } = *answerer;
        let Some(rows) = self.rows(recipe, folder, setting)? else { return Ok(None) };
        let samples = inputs::samples(recipe, folder, &rows)?;
        let mut order = Order::new(samples.len(), recipe.optim.batch_size, recipe.data.seed);
        let some = test.first(TIMED_PROMPTS);
        let mut timed = Timed::default();
        for turn in 0..=TURNS {
            if self.interrupt.requested() {
                return Ok(None);
            }
            let batch: Vec<&Sample> = order.batch(turn).iter().map(|&row| &samples[row]).collect();
            let steps = in_turn(turn, |connected| {
                let method = if connected { Method::Cc(&recipe.cc) } else { Method::Sft };
                step(model, &batch, method, (&recipe.optim).into(), turn);
                Ok(())
            })?;
            let answers = in_turn(turn, |connected| {
                let reading = if connected { Reading::Transform } else { Reading::None };
                answerer.answer(&some, reading, folded(fits, reading), self.interrupt).map(|_| ())
            })?;
            if turn > 0 {
                timed.steps.push(steps);
                timed.answers.push(answers);
            }
        }
        Ok(Some(timed))
    }
}

/// Seconds without and with the connection; who comes first changes from turn to turn.
fn in_turn(turn: usize, work: impl Fn(bool) -> Result<()>) -> Result<[f64; 2]> {
    let mut seconds = [0.0; 2];
    for at in [turn % 2, (turn + 1) % 2] {
        let started = Instant::now();
        work(at == 1)?;
        seconds[at] = started.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

/// The matrix that a reading uses.
fn folded(fits: &Fits, reading: Reading) -> Option<&FoldedTransform> {
    reading.fit().and_then(|_| fits.get(&own_fit(reading))).map(|(_, folded)| folded)
}

/// The reading whose matrix this one uses: most use the plain one.
fn own_fit(reading: Reading) -> Reading {
    match reading.fit() {
        Some([]) => Reading::Transform,
        _ => reading,
    }
}

impl Trained {
    /// Reads the log that the training left.
    fn read(log: &Path, rows: usize) -> Result<Self> {
        let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
        let entries: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let number = |entry: &Value, key: &str| entry[key].as_f64().unwrap_or(0.0);
        let mut trained = Self { rows, steps: entries.len(), ..Self::default() };
        trained.losses = entries.iter().map(|entry| (number(entry, "loss") * 1e5).round() / 1e5).collect();
        let part = entries.len().div_ceil(10);
        let (first, last) = (&entries[..part], &entries[entries.len() - part..]);
        // A method says the same of itself at every step.
        let says = |key: &str| entries.first().is_some_and(|entry| entry.get(key).is_some());
        if says("distances") {
            let mean = |of: &[Value], layer: usize| {
                of.iter().filter_map(|entry| entry["distances"][layer].as_f64()).sum::<f64>() / part as f64
            };
            trained.distances = Some([first, last].map(|part| [mean(part, 0), mean(part, 1)]));
        }
        if !says("entropy") {
            return Ok(trained);
        }
        let mean = |of: &[Value], key: &str| of.iter().map(|entry| number(entry, key)).sum::<f64>() / part as f64;
        let mut selected: Vec<usize> = Vec::new();
        for counts in last.iter().filter_map(|entry| entry["selected"].as_array()) {
            selected.resize(counts.len(), 0);
            let counts = counts.iter().map(|count| count.as_u64().unwrap_or(0) as usize);
            selected.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        trained.choice = Some(Chosen {
            entropy_first: mean(first, "entropy"),
            entropy_last: mean(last, "entropy"),
            vector_norm: mean(last, "vector_norm"),
            stream_norm: mean(last, "stream_norm"),
            selected,
        });
        Ok(trained)
    }
}
