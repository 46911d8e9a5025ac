//! A model from Hugging Face safetensors: headers first, then tensor by tensor to the device.

use crate::error::{Error, Result};
use crate::model::CcModel;
pub use crate::saving::{BLOCK, DECISION_MAKER, EMBEDDING, OUTPUT_HEAD, Path, SCALE, Storage, save, save_tensors};
use crate::saving::{PIECE, slice_of};
pub use crate::stored::Checkpoint;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;

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
        let Some(model) = self.model.take() else { return Ok(()) };
        let (path, filled) = (Path::default(), &self.filled);
        let mut filler = Filler { checkpoint, places, filled, path, used, failed: None };
        self.model = Some(model.map(&mut filler));
        filler.failed.map_or(Ok(()), Err)
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
            let (base, slice) = slice_of(name);
            let start = slice.unwrap_or(0);
            let Some(expected) = self.expected.get(base) else {
                // Some exporters store the tied head again, and old ones the rotary tables.
                if base == OUTPUT_HEAD || base.ends_with("rotary_emb.inv_freq") {
                    continue;
                }
                return Err(Error::UnexpectedTensor { name: name.into() });
            };
            let stored = checkpoint.stored(name)?;
            let found = stored.shape();
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
    failed: Option<Error>,
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
            let (rows, columns) = (stored.rows(), stored.shape().iter().skip(1).product::<usize>().max(1));
            // What is stored smaller comes in pieces, so that the whole of it in f32 exists on the device only.
            let is_whole = rows == shape[dim] && (!stored.is_quantized() || rows * columns <= PIECE);
            let at_once = if is_whole { rows } else { (PIECE / columns).max(1) };
            for start in (0..rows).step_by(at_once) {
                let end = rows.min(start + at_once);
                let mut dims = shape;
                dims[dim] = end - start;
                let values = stored.values(start..end, transposed);
                let piece = Tensor::from_data(TensorData::new(values, dims), &device);
                // A graphics device gathers what it is given, and the values would wait here for others.
                if let Err(error) = device.flush() {
                    self.failed = Some(Error::Device(format!("{error:?}")));
                }
                let size = stored.bytes().len() / rows;
                (self.used)(&stored.bytes()[start * size..end * size]);
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
