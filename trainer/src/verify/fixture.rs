//! A fixture folder: a tiny checkpoint, inputs as token ids, and expected numbers.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::model::{CcModel, InputEmbedding};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::model_folder::{load_config, load_weights};
use crate::recipe::Cc;
use crate::sample::Sample;

/// `case.json`, as far as it is needed.
#[derive(Deserialize)]
pub struct Case {
    pub kind: Kind,
    pub param_names: Vec<String>,
    #[serde(default)]
    pub gradient_tensors: Vec<String>,
    pub clip2: Option<f64>,
    batch: Vec<Row>,
    transform: Option<Pairs>,
    inference: Inference,
}

/// How much a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Full,
    /// Nothing of CC-Tuning.
    Vanilla,
}

#[derive(Deserialize)]
struct Row {
    #[serde(flatten)]
    pair: Pair,
    prompt_len: usize,
}

#[derive(Deserialize)]
struct Pair {
    ids: Vec<u32>,
    anchor: usize,
    en_ids: Option<Vec<u32>>,
    en_anchor: Option<usize>,
}

#[derive(Deserialize)]
struct Pairs {
    pairs: Vec<Pair>,
    holdout: Vec<Pair>,
}

#[derive(Deserialize)]
struct Inference {
    n_new: usize,
    prompts: Vec<Pair>,
}

/// Expected numbers by name, and which of them were asked for.
pub struct Expected {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    read: RefCell<BTreeSet<String>>,
}

/// A prompt and its English twin.
pub type Twins = (Prompt, Prompt);

/// Everything of a folder.
pub struct Fixture {
    pub case: Case,
    pub config: ModelConfig,
    pub model: CcModel,
    pub expected: Expected,
    pub samples: Vec<Sample>,
    pub pairs: Vec<Twins>,
    pub holdout: Vec<Twins>,
    pub prompts: Vec<Twins>,
    pub max_new_tokens: usize,
    pub device: Device,
}

impl Fixture {
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let read = |file: &str| {
            let path = folder.join(file);
            let why = || {
                format!("cannot read {}: a fixture holds case.json, expected.safetensors and a model", path.display())
            };
            fs::read(&path).with_context(why)
        };
        let case: Case = serde_json::from_slice(&read("case.json")?)
            .with_context(|| folder.join("case.json").display().to_string())?;
        let expected = Expected::from_bytes(&read("expected.safetensors")?)
            .with_context(|| folder.join("expected.safetensors").display().to_string())?;
        let mut config = load_config(folder)?;
        let samples = case.batch.iter().enumerate().map(|(at, row)| row.sample(at)).collect::<Result<Vec<Sample>>>()?;
        // The reference goes past the positions that a configuration names.
        let rows = case.batch.iter().map(|row| &row.pair);
        let read = rows.chain(case.transform.iter().flat_map(|all| all.pairs.iter().chain(&all.holdout)));
        let asked = case.inference.prompts.iter().map(|pair| pair.longest() + case.inference.n_new);
        config.max_positions = read.map(Pair::longest).chain(asked).fold(config.max_positions, usize::max);
        let model = load_weights(folder, &config, 0, device)?;
        let twins = |pairs: &[Pair]| pairs.iter().map(Pair::twins).collect();
        Ok(Self {
            samples,
            pairs: case.transform.as_ref().map_or_else(Vec::new, |all| twins(&all.pairs)),
            holdout: case.transform.as_ref().map_or_else(Vec::new, |all| twins(&all.holdout)),
            prompts: twins(&case.inference.prompts),
            max_new_tokens: case.inference.n_new,
            device: device.clone(),
            case,
            config,
            model,
            expected,
        })
    }

    /// Whether the folder has to hold a quantity, or holds it of its own accord.
    pub fn promises(&self, quantity: &str) -> bool {
        self.case.kind == Kind::Full || self.expected.holds(quantity)
    }

    pub fn batch(&self) -> Vec<&Sample> {
        self.samples.iter().collect()
    }

    /// The fixtures follow the released code: `e` is the embedding of the anchor token.
    pub fn cc(&self) -> Cc {
        Cc { e: InputEmbedding::Anchor, ..Cc::default() }
    }

    /// An expected `[rows, columns]` tensor that serves as input, `[steps, rows, columns]` stacked along the rows.
    pub fn input(&self, name: &str) -> Result<Tensor<2>> {
        let (shape, values) = self.expected.entry(name)?;
        let columns = *shape.last().context("an input has axes")?;
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        let rows = values.len() / columns;
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), &self.device))
    }
}

impl Pair {
    fn longest(&self) -> usize {
        self.ids.len().max(self.en_ids.as_ref().map_or(0, Vec::len))
    }

    fn twins(&self) -> Twins {
        let prompt = |ids: &[u32], anchor| Prompt { ids: ids.to_vec(), anchor, content: 0..anchor };
        let own = prompt(&self.ids, self.anchor);
        let english = match (&self.en_ids, self.en_anchor) {
            (Some(ids), Some(anchor)) => prompt(ids, anchor),
            _ => own.clone(),
        };
        (own, english)
    }
}

impl Row {
    fn sample(&self, at: usize) -> Result<Sample> {
        let (mut prompt, english) = self.pair.twins();
        let (len, anchor) = (prompt.ids.len(), prompt.anchor);
        ensure!(
            anchor < self.prompt_len && self.prompt_len < len && english.anchor < english.ids.len(),
            "case.json: row {at}: expected an anchor in the prompt and an answer after it, found anchor {anchor}, \
             prompt_len {} and {len} ids, and anchor {} of {} English ids",
            self.prompt_len,
            english.anchor,
            english.ids.len()
        );
        let answer = prompt.ids.split_off(self.prompt_len);
        Ok(Sample { id: format!("row {at}"), lang: "und".into(), prompt, english, answer })
    }
}

impl Expected {
    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes)?.tensors() {
            let bytes = view.data();
            let values = match view.dtype() {
                Dtype::F32 => numbers(bytes, |b| f64::from(f32::from_le_bytes(b))),
                Dtype::F64 => numbers(bytes, f64::from_le_bytes),
                Dtype::I64 => numbers(bytes, |b| i64::from_le_bytes(b) as f64),
                other => bail!("`{name}`: stored as {other:?}, expected F32, F64 or I64"),
            };
            tensors.insert(name, (view.shape().to_vec(), values));
        }
        Ok(Self { tensors, read: RefCell::default() })
    }

    /// The shape of a tensor, and its numbers in stored order.
    pub fn entry(&self, name: &str) -> Result<&(Vec<usize>, Vec<f64>)> {
        self.read.borrow_mut().insert(name.into());
        self.tensors.get(name).ok_or_else(|| anyhow!("expected.safetensors has no `{name}`"))
    }

    /// The numbers of a tensor in stored order.
    pub fn get(&self, name: &str) -> Result<&[f64]> {
        Ok(&self.entry(name)?.1)
    }

    /// The same as indices.
    pub fn indices(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.get(name)?.iter().map(|&index| index as usize).collect())
    }

    pub fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Quantities nobody asked for. What stock bf16 arithmetic gives is there for orientation.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        let read = self.read.borrow().clone();
        let names = self.tensors.keys().filter(move |name| !read.contains(*name)).map(String::as_str);
        names.filter(|name| *name != "vanilla.logits_bf16_compute")
    }
}

fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.chunks_exact(N).map(|chunk| read(chunk.try_into().expect("exact chunks"))).collect()
}

/// A tensor's numbers in row-major order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// `[batch, n_layers, d_model]` as the folders store it, layers first.
pub fn layers_first(tensor: Tensor<3>) -> Vec<f64> {
    values(tensor.swap_dims(0, 1))
}

/// The largest weight of every row.
pub fn choices(weights: Tensor<2>) -> Vec<f64> {
    weights.argmax(1).into_data().iter::<f64>().collect()
}
