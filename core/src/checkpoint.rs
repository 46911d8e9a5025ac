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
use std::collections::BTreeMap;
use std::ops::Range;

/// Weights that share one scale in a block-quantized tensor.
pub const BLOCK: usize = 32;
/// The Decision Maker's name on disk, as in the authors' checkpoints.
pub const DECISION_MAKER: &str = "model.source_select.weight";
/// The embedding's name on disk; a tied head is this tensor too.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name on disk of an output head of its own.
pub const OUTPUT_HEAD: &str = "lm_head.weight";
const SCALE: &str = ".scale";
/// Quantized weights that are made f32 at once.
const PIECE: usize = 1 << 22;

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
        let shape = self.view(name)?.shape().to_vec();
        let values = self.values(name, 0..shape.iter().product())?;
        Ok((shape, values))
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

    fn view(&self, name: &str) -> Result<&TensorView<'a>> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor { name: name.into(), found: self.tensors.len() })
    }

    /// Some of a tensor's values; of a quantized one, whole blocks.
    fn values(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>> {
        let view = self.view(name)?;
        let bytes = |size: usize| &view.data()[range.start * size..range.end * size];
        Ok(match view.dtype() {
            Dtype::F32 => chunks(bytes(4)).map(f32::from_le_bytes).collect(),
            Dtype::F64 => chunks(bytes(8)).map(|b| f64::from_le_bytes(b) as f32).collect(),
            Dtype::BF16 => chunks(bytes(2)).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            Dtype::F16 => chunks(bytes(2)).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::I8 => self.dequantize(name, view, range)?,
            other => return Err(Error::DType { name: name.into(), found: format!("{other:?}") }),
        })
    }

    fn dequantize(&self, name: &str, view: &TensorView, range: Range<usize>) -> Result<Vec<f32>> {
        let name = format!("{name}{SCALE}");
        let scale = self.view(&name)?;
        let expected = vec![view.data().len() / BLOCK];
        if scale.shape() != expected || scale.dtype() != Dtype::F16 || !view.data().len().is_multiple_of(BLOCK) {
            return Err(Error::Shape { name, expected, found: scale.shape().to_vec() });
        }
        let scales = chunks(&scale.data()[range.start / BLOCK * 2..]).map(|b| f16::from_le_bytes(b).to_f32());
        let blocks = view.data()[range].chunks_exact(BLOCK).zip(scales);
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
    let mut loading = Loading::new(model);
    loading.add_tensors(checkpoint)?;
    loading.finish()
}

/// A model that is filled file by file: the bytes of one go to the device and may be dropped before the next.
pub struct Loading {
    /// `None` only while tensors are being replaced.
    model: Option<CcModel>,
    /// Names of all parameters, and whether each has been filled; known from the first file on.
    filled: BTreeMap<String, bool>,
}

impl Loading {
    /// Begins with a fresh model on the device that it shall stay on.
    pub fn new(model: CcModel) -> Self {
        Self { model: Some(model), filled: BTreeMap::new() }
    }

    /// Puts the tensors of one safetensors file in their places. A quantized tensor's scales are in the same file.
    ///
    /// # Errors
    /// The bytes are not a complete safetensors file; a tensor has another shape or type, or no place in the model.
    pub fn add(&mut self, file: &str, bytes: &[u8]) -> Result<()> {
        let mut checkpoint = Checkpoint::default();
        checkpoint.add(file, bytes)?;
        self.add_tensors(&checkpoint)
    }

    fn add_tensors(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let Some(model) = self.model.take() else { return Ok(()) };
        let mut loader = Loader { checkpoint, path: Path::default(), filled: &mut self.filled, error: None };
        self.model = Some(model.map(&mut loader));
        if let Some(error) = loader.error {
            return Err(error);
        }
        // Some exporters store the tied head again, and old ones the rotary tables.
        let ignored = |name: &str| name == OUTPUT_HEAD || name.ends_with("rotary_emb.inv_freq");
        match checkpoint.names().find(|name| !self.filled.contains_key(*name) && !ignored(name)) {
            Some(name) => Err(Error::UnexpectedTensor { name: name.into() }),
            None => Ok(()),
        }
    }

    /// The model, once every parameter has been filled; only a Decision Maker may stay as it was.
    ///
    /// # Errors
    /// A tensor is missing.
    pub fn finish(mut self) -> Result<CcModel> {
        let found = self.filled.values().filter(|filled| **filled).count();
        let missing = |(name, filled): (&String, &bool)| (!filled && name != DECISION_MAKER).then(|| name.clone());
        if let Some(name) = self.filled.iter().find_map(missing) {
            return Err(Error::MissingTensor { name, found });
        }
        match self.model.take() {
            Some(model) if found > 0 => Ok(model),
            _ => Err(Error::MissingTensor { name: EMBEDDING.into(), found }),
        }
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
    filled: &'c mut BTreeMap<String, bool>,
    error: Option<Error>,
}

impl Loader<'_, '_> {
    /// The parameter's tensor in this checkpoint, if it is there. A parameter that was never looked at has no values yet,
    /// and none are made for it.
    fn read<const D: usize>(&mut self, param: &Param<Tensor<D>>) -> Result<Option<Tensor<D>>> {
        let name = self.path.name();
        if !self.checkpoint.tensors.contains_key(&name) {
            if name == DECISION_MAKER {
                // It may be the only one to stay fresh, and its noise must not depend on who draws next.
                param.val();
            }
            self.filled.entry(name).or_insert(false);
            return Ok(None);
        }
        let view = self.checkpoint.view(&name)?;
        let found = view.shape().to_vec();
        let shape: [usize; D] = param.lazy_shape().dims();
        let device = param.lazy_device();
        let transposed = self.path.transposed(D);
        let mut expected = shape.to_vec();
        if transposed {
            expected.reverse();
        }
        if found != expected {
            return Err(Error::Shape { name, expected, found });
        }
        let n_values = found.iter().product();
        let columns = found.last().copied().unwrap_or(1).max(1);
        let tensor = |range: Range<usize>| {
            let rows = range.len() / columns;
            let mut dims = shape;
            let mut values = self.checkpoint.values(&name, range)?;
            if transposed {
                values = transpose(&values, rows, columns);
            }
            if D == 2 {
                dims[usize::from(transposed)] = rows;
            }
            let tensor = Tensor::from_data(TensorData::new(values, dims), &device);
            // A graphics device gathers what it is given, and the values would wait here for others.
            device.flush().map_err(|e| Error::Device(format!("{e:?}")))?;
            Ok(tensor)
        };
        // A quantized tensor is four times as large in f32: in pieces, so that the whole of it exists on the device only.
        let step = if D == 2 && view.dtype() == Dtype::I8 { (PIECE / columns).max(1) * columns } else { n_values };
        let tensor = if step >= n_values {
            tensor(0..n_values)?
        } else {
            let pieces = (0..n_values).step_by(step).map(|start| tensor(start..n_values.min(start + step)));
            Tensor::cat(pieces.collect::<Result<Vec<_>>>()?, usize::from(transposed))
        };
        self.filled.insert(name, true);
        Ok(Some(tensor))
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
        match self.read(&param) {
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
