//! Rows by a matrix, one row too on all cores of a CPU.
//!
//! One row reads the whole matrix for little arithmetic, and Burn's CPU backend reads it with one core. It is therefore
//! multiplied with parts of the matrix as a batch, which that backend spreads over all. The parts follow each other in
//! memory, and there are as many on every machine, so that the sums are the same.

use burn::tensor::Tensor;

/// Parts of a matrix that are multiplied as a batch.
const PARTS: usize = 8;

/// Numbers of a matrix from which on the CPU backend spreads the batch.
const LARGE: usize = 1 << 21;

/// `x W`.
///
/// # Shapes
/// - `x`: `[rows, d_input]`
/// - `matrix`: `[d_input, d_output]`
/// - returns: `[rows, d_output]`
pub(crate) fn product(x: Tensor<2>, matrix: Tensor<2>) -> Tensor<2> {
    let [d_input, d_output] = matrix.dims();
    if !in_parts(&x, &matrix) {
        return x.matmul(matrix);
    }
    let of_part = d_input / PARTS;
    let parts: Tensor<3> = matrix.reshape([PARTS, of_part, d_output]);
    x.reshape([PARTS, 1, of_part]).matmul(parts).sum_dim(0).reshape([1, d_output])
}

/// `x W`, of a `W` that is kept transposed.
///
/// # Shapes
/// - `x`: `[rows, d_input]`
/// - `transposed`: `[d_output, d_input]`
/// - returns: `[rows, d_output]`
pub(crate) fn product_transposed(x: Tensor<2>, transposed: Tensor<2>) -> Tensor<2> {
    let [d_output, d_input] = transposed.dims();
    if !in_parts(&x, &transposed) {
        return x.matmul(transposed.transpose());
    }
    let parts: Tensor<3> = transposed.reshape([PARTS, d_output / PARTS, d_input]).swap_dims(1, 2);
    x.unsqueeze::<3>().matmul(parts).reshape([1, d_output])
}

fn in_parts(x: &Tensor<2>, matrix: &Tensor<2>) -> bool {
    #[cfg(feature = "multicore")]
    let is_cpu = matrix.device() == burn::tensor::Device::flex();
    #[cfg(not(feature = "multicore"))]
    let is_cpu = false;
    let ([rows, _], [outer, inner]) = (x.dims(), matrix.dims());
    is_cpu && rows == 1 && outer % PARTS == 0 && outer * inner >= LARGE
}
