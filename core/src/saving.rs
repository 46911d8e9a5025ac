//! Hugging Face safetensors out: tensors one by one into any `Write`, so that no second copy of a model is made. Knows
//! names and bytes, not files.
//!
//! The modules' fields carry the checkpoint's names, so no key map is needed; only Burn's `gamma` is called `weight`
//! on disk, and linear weights are `[d_output, d_input]` there.
//!
//! Web bundles hold large matrices as 8-bit blocks: `name` as I8 beside `name.scale`, one F16 per [`BLOCK`] weights of a
//! row. What is too large for one file of a bundle is cut into rows: `name.rows.N` begins with row N, and has a scale of
//! its own.

use crate::model::CcModel;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use std::io::{self, Write};
use std::ops::Range;
use std::rc::Rc;

/// Weights that share one scale in a block-quantized tensor.
pub const BLOCK: usize = 32;
/// The Decision Maker's name on disk, as in the authors' checkpoints.
pub const DECISION_MAKER: &str = "model.source_select.weight";
/// The embedding's name on disk; a tied head is this tensor too.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name on disk of an output head of its own.
pub const OUTPUT_HEAD: &str = "lm_head.weight";
/// What follows a quantized tensor's name in that of its scales.
pub const SCALE: &str = ".scale";
/// What stands between a tensor's name and the first row of a slice of it.
pub const ROWS: &str = ".rows.";
/// Values that are on the host at once.
pub(crate) const PIECE: usize = 1 << 22;

/// The tensor that a name on disk is of, and the first row if it is a slice of it.
pub fn slice_of(name: &str) -> (&str, Option<usize>) {
    let slice = name.rsplit_once(ROWS).and_then(|(base, start)| Some((base, start.parse().ok()?)));
    slice.map_or((name, None), |(base, start)| (base, Some(start)))
}

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

type Rows = Rc<dyn Fn(Range<usize>) -> Vec<f32>>;

/// A tensor, or some rows of one, on its way out. Its values stay where they are until their turn has come.
#[derive(Clone)]
pub struct Outgoing {
    /// The tensor's name on disk.
    pub name: String,
    /// Its shape on disk.
    pub shape: Vec<usize>,
    /// The rows that are meant.
    pub rows: Range<usize>,
    values: Rows,
}

impl Outgoing {
    /// A tensor of given values.
    pub fn new(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Self {
        let columns: usize = shape[1..].iter().product();
        let rows = 0..shape[0];
        let values = Rc::new(move |rows: Range<usize>| values[rows.start * columns..rows.end * columns].to_vec());
        Self { name: name.into(), shape, rows, values }
    }

    /// A tensor that lies on a device, where it is not copied.
    pub fn on_device<const D: usize>(name: &str, tensor: Tensor<D>, transposed: bool) -> Self {
        let mut shape = tensor.dims().to_vec();
        if transposed {
            shape.reverse();
        }
        let values = move |rows: Range<usize>| {
            let part = tensor.clone().slice_dim(usize::from(transposed), rows.start..rows.end);
            let part = if transposed { part.transpose() } else { part };
            let data = part.into_data();
            match data.as_slice::<f32>() {
                Ok(values) => values.to_vec(),
                Err(_) => data.iter::<f32>().collect(),
            }
        };
        Self { name: name.into(), rows: 0..shape[0], shape, values: Rc::new(values) }
    }

    /// Cuts the tensor into rows of at most `limit` bytes, if it is larger.
    pub fn slices(self, storage: Storage, limit: usize) -> Vec<Self> {
        let at_once = (limit * self.rows.len() / self.bytes(storage).max(1)).max(1);
        if at_once >= self.rows.len() {
            return vec![self];
        }
        let Range { start, end } = self.rows;
        (start..end).step_by(at_once).map(|at| Self { rows: at..end.min(at + at_once), ..self.clone() }).collect()
    }

    /// Whether two tensors of the same name and shape hold the same values.
    pub fn equals(&self, other: &Self) -> bool {
        (&self.name, &self.shape, &self.rows) == (&other.name, &other.shape, &other.rows)
            && self.pieces().all(|rows| (self.values)(rows.clone()) == (other.values)(rows))
    }

    /// Bytes of its values in a file.
    pub fn bytes(&self, storage: Storage) -> usize {
        self.parts(storage).iter().map(Part::bytes).sum()
    }

    fn columns(&self) -> usize {
        self.shape[1..].iter().product()
    }

    fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let (at_once, end) = ((PIECE / self.columns().max(1)).max(1), self.rows.end);
        self.rows.clone().step_by(at_once).map(move |start| start..end.min(start + at_once))
    }

    fn parts(&self, storage: Storage) -> Vec<Part<'_>> {
        let mut shape = self.shape.clone();
        shape[0] = self.rows.len();
        let name = match shape == self.shape {
            true => self.name.clone(),
            false => format!("{}{ROWS}{}", self.name, self.rows.start),
        };
        let columns = self.columns();
        let part = |name, shape, form| Part { name, shape, form, tensor: self };
        match storage {
            Storage::Q8 if shape.len() == 2 && columns.is_multiple_of(BLOCK) && self.name != DECISION_MAKER => vec![
                part(format!("{name}{SCALE}"), vec![self.rows.len() * columns / BLOCK], Form::Scales),
                part(name, shape, Form::Steps),
            ],
            Storage::F32 | Storage::Q8 => vec![part(name, shape, Form::F32)],
            Storage::Bf16 => vec![part(name, shape, Form::Bf16)],
            Storage::F16 => vec![part(name, shape, Form::F16)],
        }
    }
}

/// What values become.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    F32,
    Bf16,
    F16,
    /// The scales of 8-bit blocks.
    Scales,
    /// Their 8-bit weights.
    Steps,
}

/// An entry of a file.
struct Part<'a> {
    name: String,
    shape: Vec<usize>,
    form: Form,
    tensor: &'a Outgoing,
}

impl Part<'_> {
    fn dtype(&self) -> (Dtype, usize) {
        match self.form {
            Form::F32 => (Dtype::F32, 4),
            Form::Bf16 => (Dtype::BF16, 2),
            Form::F16 | Form::Scales => (Dtype::F16, 2),
            Form::Steps => (Dtype::I8, 1),
        }
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype().1
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for rows in self.tensor.pieces() {
            let values = (self.tensor.values)(rows);
            for values in values.chunks(1 << 16) {
                out.write_all(&self.form.encode(values))?;
            }
        }
        Ok(())
    }
}

impl Form {
    fn encode(self, values: &[f32]) -> Vec<u8> {
        let blocks = || values.chunks_exact(BLOCK).map(|block| (scale(block), block));
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::Scales => blocks().flat_map(|(scale, _)| scale.to_le_bytes()).collect(),
            Self::Steps => {
                let mut steps = Vec::with_capacity(values.len());
                for (scale, block) in blocks() {
                    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                    steps.extend(block.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
                }
                steps
            }
        }
    }
}

/// Symmetric 8-bit blocks: `weight = q * scale`, the scale rounded to f16 before `q` is chosen.
fn scale(block: &[f32]) -> f16 {
    f16::from_f32(block.iter().fold(0.0f32, |max, value| max.max(value.abs())) / 127.0)
}

/// A model's tensors by their Hugging Face names. Nothing is copied yet.
pub fn outgoing(model: &CcModel) -> Vec<Outgoing> {
    let mut collector = Collector { path: Path::default(), tensors: Vec::new() };
    model.visit(&mut collector);
    collector.tensors
}

/// Writes tensors as one safetensors file: names, types and shapes first, then the values as they come.
///
/// # Errors
/// `out` fails.
pub fn write(tensors: &[Outgoing], storage: Storage, out: &mut dyn Write) -> io::Result<()> {
    let (header, parts) = plan(tensors, storage);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    parts.iter().try_for_each(|part| part.write(out))
}

/// Bytes of the file that [`write()`] makes.
pub fn file_bytes(tensors: &[Outgoing], storage: Storage) -> usize {
    let (header, parts) = plan(tensors, storage);
    8 + header.len() + parts.iter().map(Part::bytes).sum::<usize>()
}

/// Shares tensors out among files of at most `limit` bytes, in their order. A larger tensor gets a file of its own.
pub fn shards(tensors: Vec<Outgoing>, storage: Storage, limit: usize) -> Vec<Vec<Outgoing>> {
    let mut shards: Vec<Vec<Outgoing>> = Vec::new();
    let mut bytes = 0;
    for tensor in tensors {
        // The header is the same for one tensor as for many, so the sum is a little more than the file has.
        let own = file_bytes(std::slice::from_ref(&tensor), storage);
        match shards.last_mut() {
            Some(shard) if bytes + own <= limit => shard.push(tensor),
            _ => {
                bytes = 0;
                shards.push(vec![tensor]);
            }
        }
        bytes += own;
    }
    shards
}

/// A model as one safetensors file in memory.
///
/// # Errors
/// As [`write()`], which memory never causes.
pub fn save(model: &CcModel, storage: Storage) -> io::Result<Vec<u8>> {
    bytes_of(&outgoing(model), storage)
}

/// Named f32 tensors as one safetensors file in memory.
///
/// # Errors
/// As [`save`].
pub fn save_tensors(tensors: Vec<(String, Vec<usize>, Vec<f32>)>, storage: Storage) -> io::Result<Vec<u8>> {
    let tensors: Vec<_> =
        tensors.into_iter().map(|(name, shape, values)| Outgoing::new(&name, shape, values)).collect();
    bytes_of(&tensors, storage)
}

fn bytes_of(tensors: &[Outgoing], storage: Storage) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(file_bytes(tensors, storage));
    write(tensors, storage, &mut bytes)?;
    Ok(bytes)
}

/// Header and entries in the order of the file: wide types first, so that everything is aligned.
fn plan(tensors: &[Outgoing], storage: Storage) -> (String, Vec<Part<'_>>) {
    let mut parts: Vec<Part> = tensors.iter().flat_map(|tensor| tensor.parts(storage)).collect();
    parts.sort_by_key(|part| part.form);
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut end = 0;
    for part in &parts {
        let start = end;
        end += part.bytes();
        let dtype = format!("{:?}", part.dtype().0);
        let entry = serde_json::json!({ "dtype": dtype, "shape": part.shape, "data_offsets": [start, end] });
        header.insert(part.name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    (header, parts)
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

    /// Whether a parameter of this rank lies on disk as its transpose.
    pub fn transposed(&self, rank: usize) -> bool {
        rank == 2 && self.containers.last().is_some_and(|container| container == "Struct:Linear")
    }
}

struct Collector {
    path: Path,
    tensors: Vec<Outgoing>,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.tensors.push(Outgoing::on_device(&self.path.name(), param.val(), self.path.transposed(D)));
    }
}
