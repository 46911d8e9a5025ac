//! Least squares in float64 over Gram matrices (Eq. 6-8): `argmin ||A W - B||²` from rows that are seen once and not kept.
//!
//! Knows neither models nor files; behind the feature `fit`, which a browser does without.

use crate::error::{Error, Result};
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatRef, Par, Side};

/// Rows that are multiplied at once: enough to keep all cores busy.
const BLOCK: usize = 1024;
/// Columns of the symmetric sum that are computed together.
const PANEL: usize = 512;
/// The most steps of the power iterations that estimate a condition number, and the change that ends them.
const POWER_STEPS: usize = 60;
const SETTLED: f64 = 1e-4;

/// Sums over rows `(a, b)` of parallel activations: all that fitting and judging a matrix needs.
#[derive(Clone)]
pub struct Moments {
    /// `AᵀA`, right in its lower triangle.
    aa: Mat<f64>,
    ab: Mat<f64>,
    bb: f64,
    a: Vec<f64>,
    b: Vec<f64>,
    rows: usize,
    /// Rows still to be multiplied, row-major.
    waiting: (Vec<f64>, Vec<f64>),
}

/// A fitted matrix and how trustworthy the system was.
#[derive(Clone, Debug)]
pub struct Fit {
    /// `W`, row-major `[d_model, d_model]`.
    pub matrix: Vec<f64>,
    /// What is added to `a W` in an affine fit: `[d_model]`.
    pub intercept: Option<Vec<f64>>,
    /// Rows of the system.
    pub rows: usize,
    /// Independent directions among them; with a ridge, of the Gram matrix that it has lifted.
    pub rank: usize,
    /// Condition number of `A` (square root of that of the Gram matrix that was solved, ridge included), estimated by
    /// power iteration.
    pub condition: f64,
    /// Sentences a person should read: too few rows, rank-deficient.
    pub warnings: Vec<String>,
}

/// How well a prediction meets one set of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct FitReport {
    /// Mean over rows and dimensions of `(b - prediction)²`.
    pub mse: f64,
    /// `1 - sum (b - prediction)² / sum (b - mean b)²`.
    pub r2: f64,
    /// The same against zero instead of the mean.
    pub r2_uncentered: f64,
}

impl Moments {
    /// Nothing accumulated yet.
    pub fn new(d_model: usize) -> Self {
        let zeros = || Mat::zeros(d_model, d_model);
        let sums = || vec![0.0; d_model];
        Self { aa: zeros(), ab: zeros(), bb: 0.0, a: sums(), b: sums(), rows: 0, waiting: Default::default() }
    }

    /// Bytes that fitting needs at its peak.
    pub fn bytes(d_model: usize) -> u64 {
        // Two sums, what is solved, its factor and the solution.
        5 * 8 * (d_model as u64).pow(2)
    }

    /// Rows accumulated so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows. `a` and `b` are row-major `[rows, d_model]`.
    ///
    /// # Errors
    /// A number is not finite; nothing of this call is added then.
    ///
    /// # Panics
    /// The slices do not hold equally many whole rows.
    pub fn add<T: Copy + Into<f64>>(&mut self, a: &[T], b: &[T]) -> Result<()> {
        let d = self.b.len();
        assert!(a.len() == b.len() && a.len().is_multiple_of(d), "rows of {d} numbers, in pairs");
        for (side, values) in [("its own", a), ("the English", b)] {
            if let Some(at) = values.iter().position(|&value| !value.into().is_finite()) {
                let (row, value) = (self.rows + at / d, values[at].into());
                return Err(Error::Transform(format!(
                    "row {row}, dimension {} of {side} activations is {value}; the model's weights are damaged or its numbers overflow",
                    at % d
                )));
            }
        }
        for (a, b) in a.chunks(BLOCK * d).zip(b.chunks(BLOCK * d)) {
            self.waiting.0.extend(a.iter().map(|&value| value.into()));
            self.waiting.1.extend(b.iter().map(|&value| value.into()));
            if self.waiting.0.len() >= BLOCK * d {
                self.multiply();
            }
        }
        self.rows += a.len() / d;
        Ok(())
    }

    /// Takes the waiting rows into the sums.
    fn multiply(&mut self) {
        let d = self.b.len();
        let (a, b) = std::mem::take(&mut self.waiting);
        let rows = a.len() / d;
        if rows == 0 {
            return;
        }
        // Row-major rows are the columns of the transpose.
        let at = MatRef::from_column_major_slice(&a, d, rows);
        let bt = MatRef::from_column_major_slice(&b, d, rows);
        let par = Par::rayon(0);
        for start in (0..d).step_by(PANEL) {
            // From the diagonal down: the rest is its mirror.
            let (below, width) = (d - start, PANEL.min(d - start));
            let panel = self.aa.submatrix_mut(start, start, below, width);
            matmul(panel, Accum::Add, at.subrows(start, below), at.subrows(start, width).transpose(), 1.0, par);
        }
        matmul(self.ab.as_mut(), Accum::Add, at, bt.transpose(), 1.0, par);
        self.bb += b.iter().map(|value| value * value).sum::<f64>();
        for (sums, values) in [(&mut self.a, &a), (&mut self.b, &b)] {
            for row in values.chunks_exact(d) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
    }

    /// Adds what another has accumulated.
    pub fn merge(&mut self, mut other: Self) {
        self.multiply();
        other.multiply();
        self.aa += &other.aa;
        self.ab += &other.ab;
        self.bb += other.bb;
        self.a.iter_mut().zip(other.a).for_each(|(sum, value)| *sum += value);
        self.b.iter_mut().zip(other.b).for_each(|(sum, value)| *sum += value);
        self.rows += other.rows;
    }

    /// Mean of the right sides: `[d_model]`.
    pub fn mean_b(&mut self) -> Vec<f64> {
        self.multiply();
        self.b.iter().map(|sum| sum / self.rows.max(1) as f64).collect()
    }

    /// `argmin ||A W + c - B||² + ridge · tr(AᵀA)/d · ||W||²`, `c` being zero unless `affine`, in which case the trace is
    /// that of the centred rows. By Cholesky; by an eigenvalue pseudo-inverse when the rows do not determine `W`.
    ///
    /// # Errors
    /// The eigenvalues of a system without full rank are not found.
    pub fn fit(&mut self, ridge: f64, affine: bool) -> Result<Fit> {
        self.multiply();
        let (d, n) = (self.b.len(), self.rows.max(1) as f64);
        let about = |sums: &[f64], i: usize| if affine { sums[i] / n } else { 0.0 };
        let mut gram = self.aa.clone();
        for j in 0..d {
            for i in j..d {
                let entry = gram[(i, j)] - n * about(&self.a, i) * about(&self.a, j);
                (gram[(i, j)], gram[(j, i)]) = (entry, entry);
            }
        }
        let right = match affine {
            true => Mat::from_fn(d, d, |i, j| self.ab[(i, j)] - n * about(&self.a, i) * about(&self.b, j)),
            false => self.ab.clone(),
        };
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
        let negligible = d as f64 * f64::EPSILON;
        let cholesky = gram.llt(Side::Lower).ok().map(|factor| {
            let largest = power(d, |x| &gram * x);
            let smallest = 1.0 / power(d, |x| factor.solve(&x));
            (factor, largest, smallest)
        });
        let (matrix, rank, condition) = match cholesky {
            Some((factor, largest, smallest)) if smallest > largest * negligible => {
                (factor.solve(&right), d, (largest / smallest).sqrt())
            }
            _ => {
                let eigen = gram
                    .self_adjoint_eigen(Side::Lower)
                    .map_err(|e| Error::Transform(format!("no eigenvalues of the rank-deficient system: {e:?}")))?;
                let values: Vec<f64> = (0..d).map(|i| eigen.S()[i]).collect();
                let floor = values[d - 1] * negligible;
                let rank = values.iter().filter(|&&value| value > floor).count();
                warnings
                    .push(format!("rank {rank} of {d}: the least-norm solution was taken; add pairs or set a ridge"));
                let inverse =
                    Mat::from_fn(d, d, |i, j| if i == j && values[i] > floor { 1.0 / values[i] } else { 0.0 });
                let solution = eigen.U() * inverse * (eigen.U().transpose() * &right);
                (solution, rank, f64::INFINITY)
            }
        };
        let intercept = affine.then(|| {
            let predicted = |j: usize| (0..d).map(|i| about(&self.a, i) * matrix[(i, j)]).sum::<f64>();
            (0..d).map(|j| about(&self.b, j) - predicted(j)).collect()
        });
        let matrix = (0..d * d).map(|i| matrix[(i / d, i % d)]).collect();
        Ok(Fit { matrix, intercept, rows: self.rows, rank, condition, warnings })
    }

    /// Judges a row-major `[d_model, d_model]` matrix, and what is added behind it, on the accumulated rows.
    pub fn judge(&mut self, matrix: &[f64], intercept: Option<&[f64]>) -> FitReport {
        self.multiply();
        let d = self.b.len();
        let w = MatRef::from_row_major_slice(matrix, d, d);
        let aa = Mat::from_fn(d, d, |i, j| self.aa[(i.max(j), i.min(j))]);
        let aw = aa * w;
        let dot = |x: MatRef<f64>, y: MatRef<f64>| {
            (0..d).map(|j| (0..d).map(|i| x[(i, j)] * y[(i, j)]).sum::<f64>()).sum::<f64>()
        };
        let mut residual = self.bb - 2.0 * dot(w, self.ab.as_ref()) + dot(w, aw.as_ref());
        for (j, c) in intercept.into_iter().flatten().enumerate() {
            let predicted = (0..d).map(|i| self.a[i] * w[(i, j)]).sum::<f64>();
            residual += 2.0 * c * (predicted - self.b[j]) + self.rows as f64 * c * c;
        }
        let spread = self.bb - self.b.iter().map(|sum| sum * sum).sum::<f64>() / self.rows as f64;
        FitReport::of(residual.max(0.0), spread, self.bb, self.rows * d)
    }
}

impl FitReport {
    /// From sums of squares: of what remains, around the mean, and around zero, over so many numbers.
    fn of(residual: f64, spread: f64, size: f64, numbers: usize) -> Self {
        Self { mse: residual / numbers as f64, r2: 1.0 - residual / spread, r2_uncentered: 1.0 - residual / size }
    }
}

/// The largest eigenvalue of a symmetric positive map, by power iteration from a fixed start.
fn power(d: usize, apply: impl Fn(Mat<f64>) -> Mat<f64>) -> f64 {
    // Any start that is not orthogonal to the eigenvector; these signs are in no special direction.
    let mut x = Mat::from_fn(d, 1, |i, _| if i.wrapping_mul(2_654_435_761) >> 7 & 1 == 0 { 1.0 } else { -0.7 });
    let mut value = 0.0;
    for _ in 0..POWER_STEPS {
        let length: f64 = x.norm_l2();
        if length == 0.0 || !length.is_finite() {
            break;
        }
        x /= faer::Scale(length);
        x = apply(x);
        let before = std::mem::replace(&mut value, x.norm_l2());
        if (value - before).abs() < SETTLED * value {
            break;
        }
    }
    value
}

/// Judges predictions of every layer row by row, so that no product of whole Gram matrices is needed.
pub struct Judge<'f> {
    /// One fit for all layers, or one each.
    fits: Vec<(MatRef<'f, f64>, Option<&'f [f64]>)>,
    /// Mean of the right sides in training, by layer.
    means: Vec<Vec<f64>>,
    layers: Vec<Sums>,
}

/// Sums of squares over the rows of one layer.
#[derive(Clone)]
struct Sums {
    rows: usize,
    fitted: f64,
    identity: f64,
    mean: f64,
    size: f64,
    b: Vec<f64>,
}

/// Reports for one set of rows.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Judgement {
    /// The fitted matrix.
    pub fitted: FitReport,
    /// Nothing at all predicted.
    pub zero: FitReport,
    /// A row predicts itself.
    pub identity: FitReport,
    /// The layer's mean over the training rows predicts every row.
    pub layer_mean: FitReport,
}

impl<'f> Judge<'f> {
    /// `fits` holds one fit for all layers or one for each; `means` the layers' means of `b` in training.
    pub fn new(fits: &'f [Fit], means: Vec<Vec<f64>>) -> Self {
        let d = means.first().map_or(0, Vec::len);
        let sums = Sums { rows: 0, fitted: 0.0, identity: 0.0, mean: 0.0, size: 0.0, b: vec![0.0; d] };
        let fits = fits.iter().map(|fit| (MatRef::from_row_major_slice(&fit.matrix, d, d), fit.intercept.as_deref()));
        Self { fits: fits.collect(), layers: vec![sums; means.len()], means }
    }

    /// Adds rows that go through all layers in turn, row-major `[pairs * n_layers, d_model]`.
    pub fn add(&mut self, a: &[f32], b: &[f32]) {
        let (n_layers, d, n) = (self.layers.len(), self.means[0].len(), self.fits.len());
        // What shares a matrix is multiplied together.
        for (group, &(w, intercept)) in self.fits.iter().enumerate() {
            let rows = |values: &[f32]| -> Vec<f64> {
                values.chunks_exact(d).skip(group).step_by(n).flatten().map(|&value| f64::from(value)).collect()
            };
            let (a, b) = (rows(a), rows(b));
            let mut predicted = Mat::<f64>::zeros(d, a.len() / d);
            let at = MatRef::from_column_major_slice(&a, d, a.len() / d);
            matmul(predicted.as_mut(), Accum::Replace, w.transpose(), at, 1.0, Par::rayon(0));
            for (row, (a, b)) in a.chunks_exact(d).zip(b.chunks_exact(d)).enumerate() {
                let layer = (group + row * n) % n_layers;
                let (sums, mean, predicted) = (&mut self.layers[layer], &self.means[layer], predicted.col(row));
                sums.rows += 1;
                for j in 0..d {
                    let predicted = predicted[j] + intercept.map_or(0.0, |c| c[j]);
                    sums.fitted += (b[j] - predicted).powi(2);
                    sums.identity += (b[j] - a[j]).powi(2);
                    sums.mean += (b[j] - mean[j]).powi(2);
                    sums.size += b[j] * b[j];
                    sums.b[j] += b[j];
                }
            }
        }
    }

    /// Over all rows, and layer by layer.
    pub fn finish(self) -> (Judgement, Vec<Judgement>) {
        let layers: Vec<Judgement> = self.layers.iter().map(Sums::judgement).collect();
        let whole = self.layers.into_iter().reduce(|mut all, one| {
            all.rows += one.rows;
            all.fitted += one.fitted;
            all.identity += one.identity;
            all.mean += one.mean;
            all.size += one.size;
            all.b.iter_mut().zip(one.b).for_each(|(sum, value)| *sum += value);
            all
        });
        (whole.as_ref().map_or_else(Judgement::default, Sums::judgement), layers)
    }
}

impl Sums {
    fn judgement(&self) -> Judgement {
        let spread = self.size - self.b.iter().map(|sum| sum * sum).sum::<f64>() / self.rows as f64;
        let report = |residual| FitReport::of(residual, spread, self.size, self.rows * self.b.len());
        Judgement {
            fitted: report(self.fitted),
            zero: report(self.size),
            identity: report(self.identity),
            layer_mean: report(self.mean),
        }
    }
}
