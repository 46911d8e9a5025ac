//! The Transform Matrix (Eq. 6-8): one `d_model x d_model` matrix that turns a prompt's own feed-forward activations
//! into an imitation of its English twin's.

use crate::decision_maker::DecisionMaker;
use crate::error::{Error, Result};
use crate::tap::FfnActivations;
use burn::tensor::{Device, Tensor, TensorData};

/// `W_T` in row-vector convention, `G ~ F W_T`: `[d_model, d_model]`.
#[derive(Clone, Debug)]
pub struct TransformMatrix(Tensor<2>);

impl TransformMatrix {
    /// From row-major values.
    ///
    /// # Errors
    /// The values are not `d_model²` finite numbers.
    pub fn from_rows(values: Vec<f32>, d_model: usize, device: &Device) -> Result<Self> {
        if values.len() != d_model * d_model {
            return Err(Error::Transform(format!("expected {d_model} x {d_model} values, found {}", values.len())));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::Transform(format!("row {} column {} is {}", at / d_model, at % d_model, values[at])));
        }
        Ok(Self(Tensor::from_data(TensorData::new(values, [d_model, d_model]), device)))
    }

    /// The identity: the prompt's own activations, untransformed. A control.
    pub fn identity(d_model: usize, device: &Device) -> Self {
        Self(Tensor::eye(d_model, device))
    }

    /// The matrix: `[d_model, d_model]`.
    pub fn tensor(&self) -> Tensor<2> {
        self.0.clone()
    }

    /// `F W_T` for every layer. [`FoldedTransform`] gives the same connection for two vector products.
    pub fn apply(&self, activations: &FfnActivations) -> FfnActivations {
        FfnActivations(activations.0.clone().matmul(self.0.clone().unsqueeze()))
    }

    /// Precomputes `W_T W_DM`.
    pub fn fold(&self, decision_maker: &DecisionMaker) -> FoldedTransform {
        FoldedTransform { matrix: self.0.clone(), decision: decision_maker.project(self.0.clone()) }
    }
}

/// `W_T` with `W_T W_DM` beside it. By linearity `mean_l(f_l W_T) = (mean_l f_l) W_T`, so the decision needs one
/// `[d_model, n_layers]` product and only the chosen layer's vector meets `W_T`.
#[derive(Clone, Debug)]
pub struct FoldedTransform {
    matrix: Tensor<2>,
    decision: Tensor<2>,
}

impl FoldedTransform {
    /// `H = mean_l(f_l) (W_T W_DM) + e W_DM`.
    ///
    /// # Shapes
    /// - `e`: `[batch, d_model]`
    /// - returns: `[batch, n_layers]`
    pub fn logits(&self, own: &FfnActivations, e: Tensor<2>, decision_maker: &DecisionMaker) -> Tensor<2> {
        own.mean().matmul(self.decision.clone()) + decision_maker.project(e)
    }

    /// `(sum_l weights_l f_l) W_T`.
    ///
    /// # Shapes
    /// - `weights`: `[batch, n_layers]`
    /// - returns: `[batch, d_model]`
    pub fn vector(&self, own: &FfnActivations, weights: Tensor<2>) -> Tensor<2> {
        own.mix(weights).matmul(self.matrix.clone())
    }
}

#[cfg(feature = "fit")]
pub use fit::{Fit, FitReport, Moments};

/// Least squares in float64 over Gram matrices that are accumulated as rows are produced.
#[cfg(feature = "fit")]
mod fit {
    use faer::linalg::solvers::Solve;
    use faer::{Mat, Side};

    /// Sums over rows `(a, b)` of parallel activations: all that fitting and judging a Transform Matrix needs.
    #[derive(Clone)]
    pub struct Moments {
        aa: Mat<f64>,
        ab: Mat<f64>,
        bb: f64,
        b: Vec<f64>,
        rows: usize,
    }

    /// A fitted matrix and how trustworthy the system was.
    pub struct Fit {
        /// `W_T`, row-major `[d_model, d_model]`.
        pub matrix: Vec<f64>,
        /// Rows of the system.
        pub rows: usize,
        /// Condition number of `A` (square root of that of the Gram matrix).
        pub condition: f64,
        /// Sentences a person should read: too few rows, rank-deficient.
        pub warnings: Vec<String>,
    }

    /// How well a matrix maps one set of rows.
    #[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
    pub struct FitReport {
        /// Mean over rows and dimensions of `(b - a W)²`.
        pub mse: f64,
        /// `1 - sum (b - a W)² / sum (b - mean b)²`.
        pub r2: f64,
        /// The same against zero instead of the mean.
        pub r2_uncentered: f64,
    }

    impl Moments {
        /// Nothing accumulated yet.
        pub fn new(d_model: usize) -> Self {
            Self {
                aa: Mat::zeros(d_model, d_model),
                ab: Mat::zeros(d_model, d_model),
                bb: 0.0,
                b: vec![0.0; d_model],
                rows: 0,
            }
        }

        /// Adds rows. `a` and `b` are row-major `[rows, d_model]`.
        pub fn add<T: Copy + Into<f64>>(&mut self, a: &[T], b: &[T]) {
            let d = self.b.len();
            assert!(a.len() == b.len() && a.len().is_multiple_of(d), "rows of {d} numbers, in pairs");
            let rows = a.len() / d;
            let a = Mat::from_fn(rows, d, |i, j| a[i * d + j].into());
            let b = Mat::from_fn(rows, d, |i, j| b[i * d + j].into());
            self.aa += a.transpose() * &a;
            self.ab += a.transpose() * &b;
            self.bb += b.squared_norm_l2();
            for (j, sum) in self.b.iter_mut().enumerate() {
                *sum += b.col(j).iter().sum::<f64>();
            }
            self.rows += rows;
        }

        /// `argmin ||A W - B||² + ridge · tr(AᵀA)/d · ||W||²` by Cholesky, by an eigenvalue pseudo-inverse when the rows
        /// do not determine `W`.
        pub fn fit(&self, ridge: f64) -> Fit {
            let d = self.b.len();
            let mut gram = self.aa.clone();
            let lift = ridge * (0..d).map(|i| gram[(i, i)]).sum::<f64>() / d as f64;
            for i in 0..d {
                gram[(i, i)] += lift;
            }
            let mut warnings = Vec::new();
            if self.rows <= 2 * d {
                warnings.push(format!(
                    "{} rows for {d} unknowns a column: the fit repeats its own pairs; use at least {} rows",
                    self.rows,
                    2 * d + 1
                ));
            }
            let eigen = gram.self_adjoint_eigen(Side::Lower).expect("a finite Gram matrix has eigenvalues");
            let values: Vec<f64> = (0..d).map(|i| eigen.S()[i]).collect();
            let (smallest, largest) = (values[0].max(0.0), values[d - 1]);
            let floor = largest * d as f64 * f64::EPSILON;
            let rank = values.iter().filter(|&&v| v > floor).count();
            let matrix = match gram.llt(Side::Lower) {
                Ok(cholesky) if rank == d => cholesky.solve(&self.ab),
                _ => {
                    warnings.push(format!(
                        "rank {rank} of {d}: the least-norm solution was taken; add pairs or set a ridge"
                    ));
                    let inverse =
                        Mat::from_fn(d, d, |i, j| if i == j && values[i] > floor { 1.0 / values[i] } else { 0.0 });
                    eigen.U() * inverse * (eigen.U().transpose() * &self.ab)
                }
            };
            Fit {
                matrix: (0..d * d).map(|i| matrix[(i / d, i % d)]).collect(),
                rows: self.rows,
                condition: (largest / smallest).sqrt(),
                warnings,
            }
        }

        /// Judges a row-major `[d_model, d_model]` matrix on the accumulated rows.
        pub fn judge(&self, matrix: &[f64]) -> FitReport {
            let d = self.b.len();
            let w = Mat::from_fn(d, d, |i, j| matrix[i * d + j]);
            let aw = &self.aa * &w;
            let dot = |x: &Mat<f64>, y: &Mat<f64>| {
                (0..d).map(|j| x.col(j).iter().zip(y.col(j).iter()).map(|(a, b)| a * b).sum::<f64>()).sum::<f64>()
            };
            let residual = (self.bb - 2.0 * dot(&w, &self.ab) + dot(&w, &aw)).max(0.0);
            let spread = self.bb - self.b.iter().map(|sum| sum * sum).sum::<f64>() / self.rows as f64;
            FitReport {
                mse: residual / (self.rows * d) as f64,
                r2: 1.0 - residual / spread,
                r2_uncentered: 1.0 - residual / self.bb,
            }
        }
    }
}
