//! The Transform Matrix (Eq. 6-8): turns a prompt's own feed-forward activations into an imitation of its English
//! twin's. One `d_model x d_model` matrix for all layers; as variants an intercept beside it, and a matrix per layer.

use crate::decision_maker::DecisionMaker;
use crate::error::{Error, Result};
use crate::tap::FfnActivations;
use burn::tensor::{Device, Tensor, TensorData};

/// Its name in a safetensors file: `[d_model, d_model]`, or `[n_layers, d_model, d_model]`.
pub const TRANSFORM_TENSOR: &str = "transform_matrix";
/// The name of an intercept: `[d_model]`, or `[n_layers, d_model]`.
pub const INTERCEPT_TENSOR: &str = "transform_matrix.intercept";

/// `W_T` in row-vector convention, `G ~ F W_T + c`.
#[derive(Clone, Debug)]
pub struct TransformMatrix {
    /// `[1 or n_layers, d_model, d_model]`
    matrices: Tensor<3>,
    /// `[1 or n_layers, 1, d_model]`
    intercepts: Option<Tensor<3>>,
}

impl TransformMatrix {
    /// From row-major values: one matrix, or one per layer, and an intercept for each if there is any.
    ///
    /// # Errors
    /// The values are no whole number of `d_model²` finite numbers, or the intercepts are not `d_model` for each matrix.
    pub fn from_values(matrix: Vec<f32>, intercept: Option<Vec<f32>>, d_model: usize, device: &Device) -> Result<Self> {
        let size = d_model * d_model;
        if matrix.is_empty() || !matrix.len().is_multiple_of(size) {
            return Err(Error::Transform(format!("expected {d_model} x {d_model} values, found {}", matrix.len())));
        }
        let n = matrix.len() / size;
        if let Some(found) = intercept.as_ref().map(Vec::len).filter(|&found| found != n * d_model) {
            return Err(Error::Transform(format!("expected an intercept of {n} x {d_model} values, found {found}")));
        }
        let numbers = matrix.iter().chain(intercept.iter().flatten());
        if let Some(at) = numbers.clone().position(|value| !value.is_finite()) {
            let value = numbers.clone().nth(at).copied().unwrap_or_default();
            return Err(Error::Transform(format!("row {} column {} is {value}", at / d_model, at % d_model)));
        }
        let tensor = |values: Vec<f32>, shape: [usize; 3]| Tensor::from_data(TensorData::new(values, shape), device);
        Ok(Self {
            matrices: tensor(matrix, [n, d_model, d_model]),
            intercepts: intercept.map(|values| tensor(values, [n, 1, d_model])),
        })
    }

    /// This one, if a model of `n_layers` can be connected by it.
    ///
    /// # Errors
    /// There is a matrix per layer, and not for as many layers as the model has.
    pub fn for_layers(self, n_layers: usize) -> Result<Self> {
        match self.matrices() {
            n if n == 1 || n == n_layers => Ok(self),
            n => Err(Error::Transform(format!("expected one matrix, or one for each of {n_layers} layers, found {n}"))),
        }
    }

    /// The identity: the prompt's own activations, untransformed. A control.
    pub fn identity(d_model: usize, device: &Device) -> Self {
        Self { matrices: Tensor::<2>::eye(d_model, device).unsqueeze(), intercepts: None }
    }

    /// Number of matrices: 1 for all layers, or one per layer.
    pub fn matrices(&self) -> usize {
        self.matrices.dims()[0]
    }

    /// What a safetensors file holds of it: name, shape and values.
    pub fn to_tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let [n, d, _] = self.matrices.dims();
        let shape = |of_one: &[usize]| if n == 1 { of_one.to_vec() } else { [&[n], of_one].concat() };
        let values = |tensor: &Tensor<3>| tensor.to_data().iter::<f32>().collect();
        let mut tensors = vec![(TRANSFORM_TENSOR.to_string(), shape(&[d, d]), values(&self.matrices))];
        if let Some(intercepts) = &self.intercepts {
            tensors.push((INTERCEPT_TENSOR.to_string(), shape(&[d]), values(intercepts)));
        }
        tensors
    }

    /// `F W_T + c` for every layer. [`FoldedTransform`] gives the same connection for two vector products.
    ///
    /// # Shapes
    /// - `activations`: `[batch, n_layers, d_model]`
    /// - returns: the same
    ///
    /// # Panics
    /// There is a matrix per layer, and not for as many layers as the activations have.
    pub fn apply(&self, activations: &FfnActivations) -> FfnActivations {
        let by_layer = activations.0.clone().swap_dims(0, 1);
        let product = through(by_layer, &self.matrices);
        let product = match &self.intercepts {
            Some(intercepts) => product + intercepts.clone(),
            None => product,
        };
        FfnActivations(product.swap_dims(0, 1))
    }

    /// Precomputes `W_T W_DM`.
    pub fn fold(&self, decision_maker: &DecisionMaker) -> FoldedTransform {
        let [n, d, _] = self.matrices.dims();
        let decision = decision_maker.project(self.matrices.clone().reshape([n * d, d]));
        let n_layers = decision.dims()[1];
        let mean = |intercepts: &Tensor<3>| intercepts.clone().mean_dim(0).squeeze_dim::<2>(0);
        FoldedTransform {
            decision: decision.reshape([n, d, n_layers]),
            of_intercepts: self.intercepts.as_ref().map(|intercepts| decision_maker.project(mean(intercepts))),
            transform: self.clone(),
        }
    }
}

/// `[n_layers, batch, d_model]` through one matrix, or each layer through its own.
fn through(by_layer: Tensor<3>, matrices: &Tensor<3>) -> Tensor<3> {
    let [n_layers, batch, d] = by_layer.dims();
    let [n, _, d_output] = matrices.dims();
    if n == 1 {
        let matrix = matrices.clone().reshape([d, d_output]);
        return by_layer.reshape([n_layers * batch, d]).matmul(matrix).reshape([n_layers, batch, d_output]);
    }
    assert_eq!(n, n_layers, "a Transform Matrix per layer, of another model");
    by_layer.matmul(matrices.clone())
}

/// `W_T` with `W_T W_DM` beside it. By linearity `mean_l(f_l W_T) = (mean_l f_l) W_T`, so the decision needs one
/// `[d_model, n_layers]` product and only the chosen layer's vector meets `W_T`. With a matrix per layer every layer
/// meets its own.
#[derive(Clone, Debug)]
pub struct FoldedTransform {
    transform: TransformMatrix,
    /// `[1 or n_layers, d_model, n_layers]`
    decision: Tensor<3>,
    /// `[1, n_layers]`
    of_intercepts: Option<Tensor<2>>,
}

impl FoldedTransform {
    /// `H = mean_l(f_l W_T + c) W_DM + e W_DM`.
    ///
    /// # Shapes
    /// - `own`: `[batch, n_layers, d_model]`
    /// - `e`: `[batch, d_model]`
    /// - returns: `[batch, n_layers]`
    pub fn logits(&self, own: &FfnActivations, e: Tensor<2>, decision_maker: &DecisionMaker) -> Tensor<2> {
        let mean = match self.decision.dims()[0] {
            1 => own.mean().matmul(self.decision.clone().squeeze_dim(0)),
            _ => through(own.0.clone().swap_dims(0, 1), &self.decision).mean_dim(0).squeeze_dim(0),
        };
        let mean = match &self.of_intercepts {
            Some(of_intercepts) => mean + of_intercepts.clone(),
            None => mean,
        };
        mean + decision_maker.project(e)
    }

    /// `sum_l weights_l (f_l W_T + c)`.
    ///
    /// # Shapes
    /// - `own`: `[batch, n_layers, d_model]`
    /// - `weights`: `[batch, n_layers]`
    /// - returns: `[batch, d_model]`
    pub fn vector(&self, own: &FfnActivations, weights: Tensor<2>) -> Tensor<2> {
        let TransformMatrix { matrices, intercepts } = &self.transform;
        match (intercepts, matrices.dims()[0]) {
            (None, 1) => own.mix(weights).matmul(matrices.clone().squeeze_dim(0)),
            _ => self.transform.apply(own).mix(weights),
        }
    }
}
