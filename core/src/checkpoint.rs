//! Hugging Face safetensors in and out. Knows bytes and names, not files: the caller reads and writes those.
//!
//! The modules' fields carry the checkpoint's names, so no key map is needed; only Burn's `gamma` is called `weight`
//! on disk, and linear weights are `[d_output, d_input]` there.
//!
//! Web bundles hold large matrices as 8-bit blocks: `name` as I8 beside `name.scale`, one F16 per [`BLOCK`] weights of a row.

use crate::error::{Error, Result};
use crate::model::CcModel;
use crate::transform_matrix::{INTERCEPT_TENSOR, TRANSFORM_TENSOR, TransformMatrix};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, BTreeSet};

/// Weights that share one scale in a block-quantized tensor.
pub const BLOCK: usize = 32;
/// The Decision Maker's name on disk, as in the authors' checkpoints.
pub const DECISION_MAKER: &str = "model.source_select.weight";
/// The embedding's name on disk; a tied head is this tensor too.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name on disk of an output head of its own.
pub const OUTPUT_HEAD: &str = "lm_head.weight";
const SCALE: &str = ".scale";

/// How tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Large matrices in 8-bit blocks, the rest in f32.
    Q8,
}

/// The tensors of one or more safetensors files, by name.
#[derive(Default)]
pub struct Checkpoint<'a> {
    tensors: BTreeMap<String, TensorView<'a>>,
}

impl<'a> Checkpoint<'a> {
    /// Adds the tensors of one file.
    ///
    /// # Errors
    /// The bytes are not a complete safetensors file.
    pub fn add(&mut self, file: &str, bytes: &'a [u8]) -> Result<()> {
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|e| Error::Safetensors { file: file.into(), reason: e.to_string() })?;
        self.tensors.extend(tensors.tensors());
        Ok(())
    }

    /// Names of all tensors, scales of quantized ones aside.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str).filter(|name| !name.ends_with(SCALE))
    }

    /// One tensor as f32, with its shape.
    ///
    /// # Errors
    /// It is absent, or stored in a type that is not read.
    pub fn read(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let view = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::MissingTensor { name: name.into(), found: self.tensors.len() })?;
        let values = match view.dtype() {
            Dtype::F32 => chunks(view.data()).map(f32::from_le_bytes).collect(),
            Dtype::F64 => chunks(view.data()).map(|b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::BF16 => chunks(view.data()).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            Dtype::F16 => chunks(view.data()).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::I8 => self.dequantize(name, view)?,
            other => return Err(Error::DType { name: name.into(), found: format!("{other:?}") }),
        };
        Ok((view.shape().to_vec(), values))
    }

    /// The Transform Matrix, with its intercept if there is one.
    ///
    /// # Errors
    /// It is absent, or not of this width.
    pub fn transform_matrix(&self, d_model: usize, device: &Device) -> Result<TransformMatrix> {
        let intercept = match self.tensors.contains_key(INTERCEPT_TENSOR) {
            true => Some(self.read(INTERCEPT_TENSOR)?.1),
            false => None,
        };
        TransformMatrix::from_values(self.read(TRANSFORM_TENSOR)?.1, intercept, d_model, device)
    }

    fn dequantize(&self, name: &str, view: &TensorView) -> Result<Vec<f32>> {
        let name = format!("{name}{SCALE}");
        let scale = self
            .tensors
            .get(&name)
            .ok_or_else(|| Error::MissingTensor { name: name.clone(), found: self.tensors.len() })?;
        let expected = vec![view.data().len() / BLOCK];
        if scale.shape() != expected || scale.dtype() != Dtype::F16 || !view.data().len().is_multiple_of(BLOCK) {
            return Err(Error::Shape { name, expected, found: scale.shape().to_vec() });
        }
        let scales = chunks(scale.data()).map(|b| f16::from_le_bytes(b).to_f32());
        let blocks = view.data().chunks_exact(BLOCK).zip(scales);
        Ok(blocks.flat_map(|(block, scale)| block.iter().map(move |&q| q as i8 as f32 * scale)).collect())
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("exact chunks"))
}

/// Loads every parameter of `model` from a checkpoint. A checkpoint without a Decision Maker (a plain Hugging Face
/// one) leaves the fresh one in place.
///
/// # Errors
/// A tensor is missing, has another shape or type, or has no place in the model.
pub fn load(model: CcModel, checkpoint: &Checkpoint) -> Result<CcModel> {
    let mut loader = Loader { checkpoint, path: Path::default(), seen: BTreeSet::new(), error: None };
    let model = model.map(&mut loader);
    if let Some(error) = loader.error {
        return Err(error);
    }
    // Some exporters store the tied head again, and old ones the rotary tables.
    let ignored = |name: &str| name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq");
    match checkpoint.names().find(|name| !loader.seen.contains(*name) && !ignored(name)) {
        Some(name) => Err(Error::UnexpectedTensor { name: name.into() }),
        None => Ok(model),
    }
}

/// Writes a model as one safetensors file with Hugging Face names.
///
/// # Errors
/// The serialiser refuses, which finite shapes never cause.
pub fn save(model: &CcModel, storage: Storage) -> Result<Vec<u8>> {
    let mut collector = Collector { path: Path::default(), tensors: Vec::new() };
    model.visit(&mut collector);
    save_tensors(collector.tensors, storage)
}

/// Writes named f32 tensors as one safetensors file.
///
/// # Errors
/// As [`save`].
pub fn save_tensors(tensors: Vec<(String, Vec<usize>, Vec<f32>)>, storage: Storage) -> Result<Vec<u8>> {
    let mut stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, shape, values) in tensors {
        match storage {
            Storage::Q8 if shape.len() == 2 && shape[1].is_multiple_of(BLOCK) && name != DECISION_MAKER => {
                let (weights, scales) = quantize(&values);
                stored.push((format!("{name}{SCALE}"), Dtype::F16, vec![values.len() / BLOCK], scales));
                stored.push((name, Dtype::I8, shape, weights));
            }
            Storage::F32 | Storage::Q8 => {
                stored.push((name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            }
            Storage::Bf16 => stored.push((
                name,
                Dtype::BF16,
                shape,
                values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            )),
            Storage::F16 => stored.push((
                name,
                Dtype::F16,
                shape,
                values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            )),
        }
    }
    let fail = |e: safetensors::SafeTensorError| Error::Safetensors {
        file: "model.safetensors".into(),
        reason: e.to_string(),
    };
    let views = stored
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)));
    let views = views.collect::<core::result::Result<Vec<_>, _>>().map_err(fail)?;
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize(views, Some(metadata)).map_err(fail)
}

/// Symmetric 8-bit blocks: `weight = q * scale`, the scale rounded to f16 before `q` is chosen.
fn quantize(values: &[f32]) -> (Vec<u8>, Vec<u8>) {
    let mut weights = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(values.len() / BLOCK * 2);
    for block in values.chunks_exact(BLOCK) {
        let largest = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
        let scale = f16::from_f32(largest / 127.0);
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        weights.extend(block.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
        scales.extend(scale.to_le_bytes());
    }
    (weights, scales)
}

/// The name on disk of the parameter a module traversal stands at, and whether it is stored transposed.
#[derive(Default)]
pub struct Path {
    names: Vec<String>,
    containers: Vec<String>,
}

impl Path {
    /// To be called from `enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.into());
        self.containers.push(container.into());
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    /// Hugging Face name.
    pub fn name(&self) -> String {
        self.names.join(".").replace("norm.gamma", "norm.weight")
    }

    fn transposed(&self, rank: usize) -> bool {
        rank == 2 && self.containers.last().is_some_and(|container| container == "Struct:Linear")
    }
}

struct Loader<'c, 'a> {
    checkpoint: &'c Checkpoint<'a>,
    path: Path,
    seen: BTreeSet<String>,
    error: Option<Error>,
}

impl Loader<'_, '_> {
    fn read<const D: usize>(&mut self, current: &Tensor<D>) -> Result<Option<Tensor<D>>> {
        let name = self.path.name();
        if name == DECISION_MAKER && !self.checkpoint.tensors.contains_key(&name) {
            return Ok(None);
        }
        let (found, values) = self.checkpoint.read(&name)?;
        let transposed = self.path.transposed(D);
        let mut expected = current.dims().to_vec();
        if transposed {
            expected.reverse();
        }
        if found != expected {
            return Err(Error::Shape { name, expected, found });
        }
        let values = if transposed { transpose(&values, found[0], found[1]) } else { values };
        self.seen.insert(name);
        Ok(Some(Tensor::from_data(TensorData::new(values, current.dims()), &current.device())))
    }
}

impl ModuleMapper for Loader<'_, '_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        match self.read(&param.val()) {
            Ok(Some(tensor)) => Param::initialized(param.id, tensor).set_require_grad(true),
            Ok(None) => param,
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}

struct Collector {
    path: Path,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let mut shape = tensor.dims().to_vec();
        let mut values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
        if self.path.transposed(D) {
            values = transpose(&values, shape[0], shape[1]);
            shape.reverse();
        }
        self.tensors.push((self.path.name(), shape, values));
    }
}

fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect()
}
