//! Tensors as they lie in safetensors files: found by name, read as f32 in whole or by rows. Knows bytes and names, not
//! files: the caller reads those, maps them or fetches them. What lies where in a file, [`crate::saving`] tells.

use crate::error::{Error, Result};
use crate::saving::{BLOCK, SCALE};
use crate::transform_matrix::{INTERCEPT_TENSOR, TRANSFORM_TENSOR, TransformMatrix};
use burn::tensor::Device;
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

    /// A tensor of a type that is read.
    pub(crate) fn stored(&self, name: &str) -> Result<Stored<'_, 'a>> {
        let get = |name: &str| self.tensors.get(name).ok_or_else(|| self.missing(name));
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
pub(crate) struct Stored<'c, 'a> {
    view: &'c TensorView<'a>,
    scales: Option<&'c TensorView<'a>>,
}

impl Stored<'_, '_> {
    pub(crate) fn shape(&self) -> &[usize] {
        self.view.shape()
    }

    /// Its bytes, scales aside.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.view.data()
    }

    pub(crate) fn is_quantized(&self) -> bool {
        self.scales.is_some()
    }

    pub(crate) fn rows(&self) -> usize {
        self.view.shape().first().copied().unwrap_or(1)
    }

    /// Some rows as f32, or the transpose of them.
    pub(crate) fn values(&self, rows: Range<usize>, transposed: bool) -> Vec<f32> {
        let columns: usize = self.view.shape().iter().skip(1).product();
        let place = Place { rows: rows.len(), columns, transposed };
        let data = |size: usize| &self.view.data()[rows.start * columns * size..rows.end * columns * size];
        match self.view.dtype() {
            Dtype::F32 => place.each(data(4), |_, b| f32::from_le_bytes(b)),
            Dtype::F64 => place.each(data(8), |_, b| f64::from_le_bytes(b) as f32),
            Dtype::BF16 => place.each(data(2), |_, b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => place.each(data(2), |_, b| f16::from_le_bytes(b).to_f32()),
            _ => {
                let scales = self.scales.map_or(&[][..], |scales| scales.data());
                let scales = scales[rows.start * columns / BLOCK * 2..].as_chunks().0;
                let scales: Vec<f32> = scales.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect();
                place.each(data(1), |at, [q]| f32::from(q as i8) * scales[at / BLOCK])
            }
        }
    }
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

    /// Reads every element, told how many come before it.
    fn each<const N: usize>(&self, bytes: &[u8], read: impl Fn(usize, [u8; N]) -> f32) -> Vec<f32> {
        let Self { rows, columns, transposed } = *self;
        let elements = bytes.as_chunks().0;
        if !transposed {
            return elements.iter().enumerate().map(|(at, &element)| read(at, element)).collect();
        }
        let mut values = vec![0.0; rows * columns];
        let mut square = [0.0; Self::SIDE * Self::SIDE];
        for top in (0..rows).step_by(Self::SIDE) {
            for left in (0..columns).step_by(Self::SIDE) {
                let (high, wide) = (Self::SIDE.min(rows - top), Self::SIDE.min(columns - left));
                for row in 0..high {
                    let start = (top + row) * columns + left;
                    for (column, &element) in elements[start..start + wide].iter().enumerate() {
                        square[column * Self::SIDE + row] = read(start + column, element);
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
