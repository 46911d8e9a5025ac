//! The anchor: the one position of each row that the method reads and writes.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use core::ops::Range;

/// One position per row of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor(Vec<usize>);

impl Anchor {
    /// Positions, one per row.
    pub fn new(positions: Vec<usize>) -> Self {
        Self(positions)
    }

    /// Those of some rows.
    pub fn of_rows(&self, rows: Range<usize>) -> Self {
        Self(self.0[rows].to_vec())
    }

    /// Reads the stream at the anchors.
    ///
    /// # Shapes
    /// - `stream`: `[batch, seq, d_model]`
    /// - returns: `[batch, d_model]`
    pub fn read(&self, stream: Tensor<3>) -> Tensor<2> {
        let rows = self.rows(&stream);
        let [batch, seq, d_model] = stream.dims();
        stream.reshape([batch * seq, d_model]).select(0, rows)
    }

    /// Adds one vector per row at the anchors and nowhere else.
    ///
    /// # Shapes
    /// - `stream`: `[batch, seq, d_model]`
    /// - `vectors`: `[batch, d_model]`
    /// - returns: `[batch, seq, d_model]`
    pub fn add(&self, stream: Tensor<3>, vectors: Tensor<2>) -> Tensor<3> {
        let rows = self.rows(&stream);
        let [batch, seq, d_model] = stream.dims();
        let flat = stream.reshape([batch * seq, d_model]);
        flat.select_assign(0, rows, vectors, IndexingUpdateOp::Add).reshape([batch, seq, d_model])
    }

    /// The anchors' row numbers in a stream `[batch, seq, d_model]`, counted over `batch * seq`: `[batch]`.
    pub fn rows(&self, stream: &Tensor<3>) -> Tensor<1, Int> {
        let [batch, seq, _] = stream.dims();
        assert_eq!(self.0.len(), batch, "one anchor per row");
        assert!(self.0.iter().all(|&r| r < seq), "anchors {:?} lie outside {seq} tokens", self.0);
        let rows = self.0.iter().enumerate().map(|(row, &r)| row * seq + r);
        index(rows, &stream.device())
    }
}

/// Row numbers as an index tensor `[n]`.
pub fn index(rows: impl IntoIterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.into_iter().map(|row| row as i32).collect();
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}
