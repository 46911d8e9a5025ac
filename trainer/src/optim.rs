//! AdamW with global-norm clipping over named gradients.
//!
//! Burn's own clips per tensor and keeps its state by parameter id; here the norm is global (as in
//! `torch.nn.utils.clip_grad_norm_`), the Decision Maker can have its own learning rate, and the state is saved by
//! Hugging Face name.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;
use std::io::{self, Write};
use std::ops::Range;

use anyhow::Result;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Distribution, FloatDType, Gradients as Tape, IndexingUpdateOp, Int, Tensor, TensorData};
use cctuning::checkpoint::{Checkpoint, DECISION_MAKER, Path, Storage};
use cctuning::model::CcModel;
use cctuning::saving::{self, Outgoing};

use crate::device::is_cpu;
use crate::mapped::Mapped;
use crate::parallel::{cores, in_parallel};
use crate::precision::Precision;
use crate::recipe::Optim;

/// Elements of a tensor that a card updates at once: what lies in its memory between old and new is this large.
pub const PIECE: usize = 1 << 24;
/// The same for one core of a CPU: what lies between old and new stays in its cache.
const PART: usize = 1 << 16;
/// Such parts that are updated before they are put in place.
const PARTS: usize = 16;
/// Elements whose squares the device adds at once. From 4 Mi on, burn-flex adds on all cores in an order that differs from run
/// to run, and a norm in its last bits, then the clipped gradient, and then the weights would.
const NORM_PIECE: usize = 1 << 21;

/// Gradients by Hugging Face name, each flattened, without a graph.
#[derive(Default)]
pub struct Gradients(BTreeMap<String, Tensor<1>>);

impl Gradients {
    /// Adds what a backward pass left for the parameters of `model`.
    pub fn take(&mut self, model: &CcModel, mut tape: Tape) {
        model.visit(&mut Collect { path: Path::default(), tape: &mut tape, gradients: self });
    }

    /// Adds another batch's.
    pub fn add(&mut self, other: Self) {
        for (name, gradient) in other.0 {
            self.add_one(&name, gradient);
        }
    }

    /// Adds the gradient of one parameter, flattened as the module holds it.
    pub fn add_one(&mut self, name: &str, gradient: Tensor<1>) {
        let sum = match self.0.remove(name) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.0.insert(name.into(), sum);
    }

    /// Adds to some rows of the gradient of a parameter of `n` rows.
    ///
    /// # Shapes
    /// - `rows`: `[k]`, each once
    /// - `values`: `[k, width]`
    pub fn add_rows(&mut self, name: &str, n: usize, rows: Tensor<1, Int>, values: Tensor<2>) {
        let width = values.dims()[1];
        let all = self.0.remove(name).unwrap_or_else(|| Tensor::zeros([n * width], &values.device()));
        let all = all.reshape([n, width]).select_assign(0, rows, values, IndexingUpdateOp::Add);
        self.0.insert(name.into(), all.flatten(0, 1));
    }

    /// The global L2 norm.
    pub fn norm(&self) -> f64 {
        let pieces = self.0.values().flat_map(|gradient| gradient.clone().split(NORM_PIECE, 0));
        let pieces: Vec<Tensor<1>> = pieces.collect();
        let Some(first) = pieces.first() else { return 0.0 };
        let squares = in_parallel(cores(&first.device()), &pieces, |piece| piece.clone().square().sum());
        Tensor::cat(squares, 0).into_data().iter::<f32>().map(f64::from).sum::<f64>().sqrt()
    }

    /// The gradient of one tensor, flattened as the module holds it.
    pub fn get(&self, name: &str) -> Option<Tensor<1>> {
        self.0.get(name).cloned()
    }
}

struct Collect<'a> {
    path: Path,
    tape: &'a mut Tape,
    gradients: &'a mut Gradients,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.tape) {
            self.gradients.add_one(&self.path.name(), gradient.flatten::<1>(0, D - 1));
        }
    }
}

/// First and second moments by name.
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip: f64,
    decision_lr_mult: f64,
    precision: Precision,
    /// What the moments are kept in.
    moments_in: Precision,
    seed: u64,
    steps: i32,
    moments: BTreeMap<String, (Tensor<1>, Tensor<1>)>,
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct Stepped {
    /// Of the gradient, before clipping.
    pub grad_norm: f64,
    /// Share of the weights that moved, as the next pass sees them: in bf16 only those that crossed a rounding step.
    pub moved: f64,
}

impl AdamW {
    /// An optimizer that has taken no step. `decision_lr_mult` multiplies the Decision Maker's learning rate.
    pub fn new(optim: &Optim, decision_lr_mult: f64) -> Self {
        let Optim { beta1, beta2, eps, weight_decay, clip, precision, moments: moments_in, seed, .. } = *optim;
        let moments = BTreeMap::new();
        Self { beta1, beta2, eps, weight_decay, clip, decision_lr_mult, precision, moments_in, seed, steps: 0, moments }
    }

    /// One step with gradients already normalised by the tokens of the global batch. Returns the new model, without a
    /// graph.
    pub fn step(&mut self, model: CcModel, gradients: Gradients, lr: f64) -> (CcModel, Stepped) {
        let grad_norm = gradients.norm();
        let scale = if self.clip > 0.0 { (self.clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        if self.moments_in == Precision::Bf16 {
            // The noise of the rounding is a function of the step, so that a resumed run draws the same.
            model.device().inner().seed(self.seed.wrapping_add(self.steps as u64));
        }
        let (mut moved, mut weights) = (Vec::new(), 0);
        let mut update = Update {
            path: Path::default(),
            optimizer: self,
            gradients,
            lr,
            scale,
            moved: &mut moved,
            weights: &mut weights,
        };
        let model = model.map(&mut update);
        let moved = match moved.is_empty() {
            true => 0.0,
            false => Tensor::cat(moved, 0).into_data().iter::<f32>().map(f64::from).sum::<f64>() / weights as f64,
        };
        (model, Stepped { grad_norm, moved })
    }

    /// The new weights, and how many of them moved.
    fn update(
        &mut self,
        name: &str,
        mut weight: Tensor<1>,
        gradient: Tensor<1>,
        scale: f64,
        lr: f64,
        decay: f64,
    ) -> (Tensor<1>, Vec<Tensor<1>>) {
        let (mut m, mut v) = self.moments.remove(name).unwrap_or_else(|| {
            let zero = self.moments_in.round(gradient.zeros_like());
            (zero.clone(), zero)
        });
        let (correction1, correction2) = (1.0 - self.beta1.powi(self.steps), 1.0 - self.beta2.powi(self.steps));
        let updated = |[weight, gradient, m, v]: [&Tensor<1>; 4], part: &Range<usize>| {
            let at = |tensor: &Tensor<1>| tensor.clone().slice([part.clone()]).cast(FloatDType::F32);
            let (old, gradient) = (at(weight), at(gradient) * scale);
            let m = at(m) * self.beta1 + gradient.clone() * (1.0 - self.beta1);
            let v = at(v) * self.beta2 + gradient.square() * (1.0 - self.beta2);
            let denominator = (v.clone() / correction2).sqrt() + self.eps;
            let kept = if decay > 0.0 { old.clone() * (1.0 - lr * decay) } else { old.clone() };
            let fresh = kept - m.clone() / denominator * (lr / correction1);
            let seen = |weight: &Tensor<1>| self.precision.round(weight.clone());
            let moved = seen(&fresh).not_equal(seen(&old)).float().sum();
            [fresh, self.moments_in.round(m), self.rounded(v), moved]
        };
        let device = weight.device();
        let (part, at_once) = if is_cpu(&device) { (PART, PARTS) } else { (PIECE, 1) };
        // Chance is drawn in order.
        let threads = if self.moments_in == Precision::F32 { cores(&device) } else { 1 };
        let n = weight.dims()[0];
        let parts: Vec<_> = (0..n).step_by(part).map(|start| start..n.min(start + part)).collect();
        let mut all_moved = Vec::new();
        for parts in parts.chunks(at_once) {
            let fresh = in_parallel(threads, parts, |part| updated([&weight, &gradient, &m, &v], part));
            for (part, [fresh, fresh_m, fresh_v, moved]) in parts.iter().zip(fresh) {
                let put = |into: Tensor<1>, fresh| match part.len() == n {
                    true => fresh,
                    false => into.slice_assign([part.clone()], fresh),
                };
                weight = put(weight, fresh);
                m = put(m, fresh_m);
                v = put(v, fresh_v);
                all_moved.push(moved);
            }
        }
        self.moments.insert(name.into(), (m, v));
        (weight, all_moved)
    }

    /// The second moment as it is kept. It moves by a thousandth of itself in a step, less than bf16 can tell apart, so
    /// it is rounded up or down by chance, right on average.
    fn rounded(&self, v: Tensor<1>) -> Tensor<1> {
        match self.moments_in {
            Precision::F32 => v,
            Precision::Bf16 => {
                // From half a step below to half a step above, a step being that of bf16 at this size.
                let noise = v.random_like(Distribution::Uniform(-0.5, 0.5));
                let spacing = ((v.clone().log() / LN_2).floor() * LN_2).exp() * 0.5f64.powi(7);
                self.moments_in.round(v + spacing * noise)
            }
        }
    }

    /// Writes the moments as a safetensors file, names behind `m.` and `v.`, in the precision they are kept in.
    ///
    /// # Errors
    /// `out` fails.
    pub fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        let storage = match self.moments_in {
            Precision::F32 => Storage::F32,
            Precision::Bf16 => Storage::Bf16,
        };
        let outgoing = |name: String, moment: &Tensor<1>| Outgoing::on_device(&name, moment.clone(), false);
        let tensors = self.moments.iter();
        let tensors: Vec<Outgoing> = tensors
            .flat_map(|(name, (m, v))| [outgoing(format!("m.{name}"), m), outgoing(format!("v.{name}"), v)])
            .collect();
        saving::write(&tensors, storage, out)
    }

    /// Takes up the moments of [`Self::save`] after `steps` steps.
    pub fn resume(&mut self, file: &std::path::Path, steps: usize, device: &Device) -> Result<()> {
        let mapped = Mapped::open(file)?;
        let mut checkpoint = Checkpoint::default();
        checkpoint.add(&file.display().to_string(), &mapped)?;
        let tensor = |name: String| -> Result<Tensor<1>> {
            let (shape, values) = checkpoint.read(&name)?;
            checkpoint.bytes(&name).into_iter().for_each(|used| mapped.release(used));
            Ok(self.moments_in.round(Tensor::from_data(TensorData::new(values, shape), device)))
        };
        let mut moments = BTreeMap::new();
        for name in checkpoint.names().filter_map(|name| name.strip_prefix("m.")) {
            moments.insert(name.into(), (tensor(format!("m.{name}"))?, tensor(format!("v.{name}"))?));
        }
        self.moments = moments;
        self.steps = steps as i32;
        Ok(())
    }
}

struct Update<'a> {
    path: Path,
    optimizer: &'a mut AdamW,
    gradients: Gradients,
    lr: f64,
    scale: f64,
    moved: &'a mut Vec<Tensor<1>>,
    weights: &'a mut usize,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        // Taken, so that it is gone before the next tensor's turn.
        let Some(gradient) = self.gradients.0.remove(&name) else { return param };
        let lr = if name == DECISION_MAKER { self.lr * self.optimizer.decision_lr_mult } else { self.lr };
        param.map(|weight| {
            let shape = weight.dims();
            *self.weights += shape.iter().product::<usize>();
            let weight = weight.inner().flatten::<1>(0, D - 1);
            // Norms and biases are not drawn to zero, as by other trainers.
            let decay = if D > 1 { self.optimizer.weight_decay } else { 0.0 };
            let (weight, moved) = self.optimizer.update(&name, weight, gradient, self.scale, lr, decay);
            self.moved.extend(moved);
            weight.reshape(shape)
        })
    }
}
