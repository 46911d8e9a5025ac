//! Hugging Face safetensors in: headers first, then tensor by tensor to the device. Knows bytes and names, not files: the
//! caller reads those, maps them or fetches them. What lies where in a file, [`crate::saving`] tells.

use crate::error::{Error, Result};
use crate::model::CcModel;
use crate::saving::PIECE;
pub use crate::saving::{
    BLOCK, DECISION_MAKER, EMBEDDING, OUTPUT_HEAD, Path, ROWS, SCALE, Storage, save, save_tensors,
};
use crate::transform_matrix::{INTERCEPT_TENSOR, TRANSFORM_TENSOR, TransformMatrix};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::ops::Range;

/// The tensors of one or more safetensors files, by name.
#[derive(Default)]
pub struct Checkpoint<'a> {
    tensors: BTreeMap<String, TensorView<'a>>,
}

impl<'a> Checkpoint<'a> {
    /// Adds the tensors of one file. Only its header is read.
    ///
    /// # Errors
    /// The bytes are not a complete safetensors file.
    pub fn add(&mut self, file: &str, bytes: &'a [u8]) -> Result<()> {
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|e| Error::Safetensors { file: file.into(), reason: blame(bytes, &e.to_string()) })?;
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
        let stored = self.stored(name)?;
        Ok((stored.view.shape().to_vec(), stored.values(0..stored.rows(), false)))
    }

    /// The Transform Matrix that is here.
    ///
    /// # Errors
    /// It is absent, or its values are not those of one.
    pub fn transform_matrix(&self, d_model: usize, device: &Device) -> Result<TransformMatrix> {
        let intercept = match self.tensors.contains_key(INTERCEPT_TENSOR) {
            true => Some(self.read(INTERCEPT_TENSOR)?.1),
            false => None,
        };
        TransformMatrix::from_values(self.read(TRANSFORM_TENSOR)?.1, intercept, d_model, device)
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        self.tensors.get(name).map(TensorView::data)
    }

    fn stored(&self, name: &str) -> Result<Stored<'_, 'a>> {
        let get =
            |name: &str| self.tensors.get(name).ok_or_else(|| self.missing(name));
        let view = get(name)?;
        let scales = match view.dtype() {
            Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::F16 => None,
            Dtype::I8 => {
                let name = format!("{name}{SCALE}");
                let scales = get(&name)?;
                let expected = vec![view.data().len() / BLOCK];
                let columns = view.shape().last().copied().unwrap_or(1);
                if scales.shape() != expected || scales.dtype() != Dtype::F16 || !columns.is_multiple_of(BLOCK) {
                    return Err(Error::Shape { name, expected, found: scales.shape().to_vec() });
                }
                Some(scales)
            }
            other => return Err(Error::DType { name: name.into(), found: format!("{other:?}") }),
        };
        Ok(Stored { view, scales })
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor { name: name.into(), found: self.tensors.len() }
    }
}

/// What is wrong with a file, by the name of the tensor where there is one.
fn blame(bytes: &[u8], reason: &str) -> String {
    let header = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    let Some(header) = header.and_then(|length| bytes[8..].get(..usize::try_from(length).ok()?)) else {
        return format!("{reason}; the file has {} bytes", bytes.len());
    };
    let Ok(serde_json::Value::Object(entries)) = serde_json::from_slice(header) else { return reason.into() };
    let room = (bytes.len() - 8 - header.len()) as u64;
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |at: usize| entry["data_offsets"][at].as_u64();
        let fault = match (entry["dtype"].as_str(), entry["shape"].as_array(), offset(0), offset(1)) {
            (None, ..) => "has no dtype".into(),
            (_, None, ..) => "has no shape".into(),
            (.., None, _) | (.., None) => "has no data_offsets".into(),
            (.., Some(start), Some(end)) if start > end || end > room => {
                format!("lies at bytes {start} to {end} of {room}")
            }
            (Some(dtype), Some(shape), Some(start), Some(end)) => {
                let size = match dtype {
                    "F64" | "I64" | "U64" => 8,
                    "F32" | "I32" | "U32" => 4,
                    "F16" | "BF16" | "I16" | "U16" => 2,
                    "I8" | "U8" | "BOOL" => 1,
                    other => return format!("{reason}: `{name}` has the dtype {other:?}"),
                };
                let values = shape.iter().try_fold(1u64, |product, n| product.checked_mul(n.as_u64()?));
                match values.and_then(|values| values.checked_mul(size)) {
                    Some(needed) if needed == end - start => continue,
                    Some(needed) => format!("needs {needed} bytes and has {}", end - start),
                    None => "has a shape that cannot be".into(),
                }
            }
        };
        return format!("{reason}: `{name}` {fault}");
    }
    reason.into()
}

/// A tensor as it lies in a file.
struct Stored<'c, 'a> {
    view: &'c TensorView<'a>,
    scales: Option<&'c TensorView<'a>>,
}

impl Stored<'_, '_> {
    fn rows(&self) -> usize {
        self.view.shape().first().copied().unwrap_or(1)
    }

    /// Some rows as f32, or the transpose of them.
    fn values(&self, rows: Range<usize>, transposed: bool) -> Vec<f32> {
        let columns: usize = self.view.shape().iter().skip(1).product();
        let place = Place { rows: rows.len(), columns, transposed };
        let data = |size: usize| &self.view.data()[rows.start * columns * size..rows.end * columns * size];
        match self.view.dtype() {
            Dtype::F32 => place.each(data(4), f32::from_le_bytes),
            Dtype::F64 => place.each(data(8), |b| f64::from_le_bytes(b) as f32),
            Dtype::BF16 => place.each(data(2), |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => place.each(data(2), |b| f16::from_le_bytes(b).to_f32()),
            _ => {
                let scales = self.scales.map_or(&[][..], |scales| scales.data());
                let scales = &scales[rows.start * columns / BLOCK * 2..];
                let scales: Vec<f32> = elements(scales, |b| f16::from_le_bytes(b).to_f32()).collect();
                let mut values = place.each(data(1), |[q]| f32::from(q as i8));
                for (at, value) in values.iter_mut().enumerate() {
                    let at = if transposed { at % place.rows * columns + at / place.rows } else { at };
                    *value *= scales[at / BLOCK];
                }
                values
            }
        }
    }
}

fn elements<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(N).map(move |chunk| read(chunk.try_into().expect("exact chunks")))
}

/// Where the values of some rows go.
struct Place {
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl Place {
    /// Side of the squares in which a matrix is transposed, so that reading and writing both stay in the cache.
    const SIDE: usize = 64;

    fn each<const N: usize>(&self, bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let Self { rows, columns, transposed } = *self;
        if !transposed {
            return elements(bytes, read).collect();
        }
        let mut values = vec![0.0; rows * columns];
        let mut square = [0.0; Self::SIDE * Self::SIDE];
        for top in (0..rows).step_by(Self::SIDE) {
            for left in (0..columns).step_by(Self::SIDE) {
                let (high, wide) = (Self::SIDE.min(rows - top), Self::SIDE.min(columns - left));
                for row in 0..high {
                    let line = &bytes[((top + row) * columns + left) * N..][..wide * N];
                    for (column, value) in elements(line, &read).enumerate() {
                        square[column * Self::SIDE + row] = value;
                    }
                }
                for column in 0..wide {
                    let line = &square[column * Self::SIDE..][..high];
                    values[(left + column) * rows + top..][..high].copy_from_slice(line);
                }
            }
        }
        values
    }
}

/// Loads every parameter of `model` from a checkpoint. A checkpoint without a Decision Maker (a plain Hugging Face
/// one) leaves the fresh one in place.
///
/// # Errors
/// A tensor is missing, has another shape or type, or has no place in the model.
pub fn load(model: CcModel, checkpoint: &Checkpoint) -> Result<CcModel> {
    let mut loading = Loading::new(model);
    loading.check(checkpoint)?;
    loading.fill(checkpoint, &mut |_| ())?;
    loading.finish()
}

/// A model that is filled file by file: the tensors of one go to the device, and its bytes may be dropped before the
/// next. A tensor may come in slices of its rows, which are joined there.
pub struct Loading {
    /// `None` only while tensors are being replaced.
    model: Option<CcModel>,
    /// The shape on disk of every parameter.
    expected: BTreeMap<String, Vec<usize>>,
    filled: Filled,
}

/// Rows by tensor, each range as start and end.
type Filled = BTreeMap<String, BTreeMap<usize, usize>>;

impl Loading {
    /// Begins with a fresh model on the device that it shall stay on. Its parameters are not made up first.
    pub fn new(model: CcModel) -> Self {
        let mut shapes = Shapes::default();
        model.visit(&mut shapes);
        Self { model: Some(model), expected: shapes.found, filled: Filled::new() }
    }

    /// Whether these tensors, which are all there will be, fill the model. Nothing is loaded.
    ///
    /// # Errors
    /// A tensor is missing, has another shape or type, or has no place in the model.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let mut filled = self.filled.clone();
        self.places(checkpoint, &mut filled)?;
        self.complete(&filled)
    }

    /// Puts the tensors of one safetensors file in their places. A quantized tensor's scales are in the same file.
    ///
    /// # Errors
    /// The bytes are not a complete safetensors file; a tensor has another shape or type, comes again, or has no place in
    /// the model.
    pub fn add(&mut self, file: &str, bytes: &[u8]) -> Result<()> {
        self.add_telling(file, bytes, &mut |_| ())
    }

    /// As [`Self::add`], and tells which of the bytes are not needed any more.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_telling(&mut self, file: &str, bytes: &[u8], used: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut checkpoint = Checkpoint::default();
        checkpoint.add(file, bytes)?;
        self.fill(&checkpoint, used)
    }

    fn fill(&mut self, checkpoint: &Checkpoint, used: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut filled = self.filled.clone();
        let places = self.places(checkpoint, &mut filled)?;
        self.filled = filled;
        if let Some(model) = self.model.take() {
            let (path, filled) = (Path::default(), &self.filled);
            self.model = Some(model.map(&mut Filler { checkpoint, places, filled, path, used }));
        }
        Ok(())
    }

    /// The model, once every parameter has been filled; only a Decision Maker may stay as it was.
    ///
    /// # Errors
    /// A tensor, or some rows of one, are missing.
    pub fn finish(self) -> Result<CcModel> {
        self.complete(&self.filled)?;
        let model = self.model.expect("put back after every file");
        // Drawn now: what else draws from the device's noise later must not change it.
        model.model.decision_maker().draw();
        Ok(model)
    }

    /// For every parameter, which of the tensors hold it from which row on. `filled` learns of the rows.
    fn places(&self, checkpoint: &Checkpoint, filled: &mut Filled) -> Result<Places> {
        let mut places = Places::new();
        for name in checkpoint.names() {
            let slice = name.rsplit_once(ROWS).and_then(|(base, start)| Some((base, start.parse().ok()?)));
            let (base, start): (&str, usize) = slice.unwrap_or((name, 0));
            let Some(expected) = self.expected.get(base) else {
                // Some exporters store the tied head again, and old ones the rotary tables.
                if base == OUTPUT_HEAD || base.ends_with("rotary_emb.inv_freq") {
                    continue;
                }
                return Err(Error::UnexpectedTensor { name: name.into() });
            };
            let found = checkpoint.stored(name)?.view.shape();
            let rows = found.first().copied().unwrap_or(0);
            let end = start.saturating_add(rows);
            let fits = found.len() == expected.len() && found[1..] == expected[1..] && end <= expected[0];
            if !fits || rows == 0 || slice.is_none() && found != expected {
                return Err(Error::Shape { name: name.into(), expected: expected.clone(), found: found.to_vec() });
            }
            let ranges = filled.entry(base.into()).or_default();
            if let Some((&from, &to)) = ranges.range(..end).next_back().filter(|(_, to)| **to > start) {
                return Err(Error::Repeated { name: base.into(), start: start.max(from), end: end.min(to) });
            }
            ranges.insert(start, end);
            places.entry(base.into()).or_default().push((start, name.into()));
        }
        Ok(places)
    }

    fn complete(&self, filled: &Filled) -> Result<()> {
        for (name, shape) in &self.expected {
            let rows: usize = filled.get(name).into_iter().flatten().map(|(start, end)| end - start).sum();
            if rows != shape[0] && !(rows == 0 && name == DECISION_MAKER) {
                let name = if rows == 0 { name.clone() } else { format!("{name} ({rows} of {} rows found)", shape[0]) };
                return Err(Error::MissingTensor { name, found: filled.len() });
            }
        }
        Ok(())
    }
}

/// Tensors by parameter, with the row that each begins with.
type Places = BTreeMap<String, Vec<(usize, String)>>;

/// Shapes on disk by name, of parameters that have no values yet and get none.
#[derive(Default)]
struct Shapes {
    path: Path,
    found: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut shape = param.lazy_shape().to_vec();
        if self.path.transposed(D) {
            shape.reverse();
        }
        self.found.insert(self.path.name(), shape);
    }
}

struct Filler<'f, 'c, 'a> {
    checkpoint: &'c Checkpoint<'a>,
    places: Places,
    filled: &'f Filled,
    path: Path,
    used: &'f mut dyn FnMut(&[u8]),
}

impl ModuleMapper for Filler<'_, '_, '_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let Some(places) = self.places.remove(&name) else { return param };
        let (id, device, transposed) = (param.id, param.lazy_device(), self.path.transposed(D));
        let (shape, dim): ([usize; D], usize) = (param.lazy_shape().dims(), usize::from(transposed));
        let is_new = self.filled[&name].len() == places.len();
        let mut tensor = (!is_new).then(|| param.into_value());
        for (first, stored) in places {
            let stored = self.checkpoint.stored(&stored).expect("looked at before");
            let (rows, columns) = (stored.rows(), stored.view.shape().iter().skip(1).product::<usize>().max(1));
            // What is stored smaller comes in pieces, so that the whole of it in f32 exists on the device only.
            let is_whole = rows == shape[dim] && (stored.scales.is_none() || rows * columns <= PIECE);
            let at_once = if is_whole { rows } else { (PIECE / columns).max(1) };
            for start in (0..rows).step_by(at_once) {
                let end = rows.min(start + at_once);
                let mut dims = shape;
                dims[dim] = end - start;
                let values = stored.values(start..end, transposed);
                let piece = Tensor::from_data(TensorData::new(values, dims), &device);
                let size = stored.view.data().len() / rows;
                (self.used)(&stored.view.data()[start * size..end * size]);
                tensor = Some(match tensor {
                    None if is_whole => piece,
                    tensor => {
                        let mut place = shape.map(|n| 0..n);
                        place[dim] = first + start..first + end;
                        tensor.unwrap_or_else(|| Tensor::zeros(shape, &device)).slice_assign(place, piece)
                    }
                });
            }
        }
        let tensor = tensor.expect("a tensor has rows");
        let rows: usize = self.filled[&name].iter().map(|(start, end)| end - start).sum();
        // Half a tensor is no parameter yet: what is still written into it has no gradient.
        Param::initialized(id, tensor).set_require_grad(rows == shape[dim])
    }
}
