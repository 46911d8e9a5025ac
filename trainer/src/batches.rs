//! Which rows a step sees: a pure function of the seed and the step, so that a resumed run is the same run.
//!
//! Also how one global batch is cut into micro-batches. This room knows rows only by their index.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// The order of the rows over all epochs. The last batch of an epoch holds what is left; no row is dropped.
pub struct Order {
    rows: usize,
    batch_size: usize,
    seed: u64,
    /// The epoch shuffled last; a cache, never state.
    shuffled: Option<(usize, Vec<usize>)>,
}

impl Order {
    /// # Panics
    /// With no rows or an empty batch.
    pub fn new(rows: usize, batch_size: usize, seed: u64) -> Self {
        assert!(
            rows > 0 && batch_size > 0,
            "an order needs rows and a batch size, found {rows} rows in batches of {batch_size}"
        );
        Self { rows, batch_size, seed, shuffled: None }
    }

    pub fn steps_per_epoch(&self) -> usize {
        self.rows.div_ceil(self.batch_size)
    }

    /// The row indices of global step `step`, counted from 0 over all epochs. Any step may be asked for, in any order.
    pub fn batch(&mut self, step: usize) -> &[usize] {
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if self.shuffled.as_ref().is_none_or(|(shuffled, _)| *shuffled != epoch) {
            self.shuffled = Some((epoch, shuffle(self.rows, self.seed, epoch as u64)));
        }
        let order = self.shuffled.as_ref().map_or(&[][..], |(_, order)| order);
        let start = within * self.batch_size;
        &order[start..self.rows.min(start + self.batch_size)]
    }
}

/// Fisher-Yates with one stream of random numbers per epoch.
fn shuffle(rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    let mut order: Vec<usize> = (0..rows).collect();
    for last in (1..rows).rev() {
        // The high half of a 128-bit product: the same number on every platform, biased by less than rows / 2^64.
        let chosen = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, chosen as usize);
    }
    order
}

/// Cuts one global batch into micro-batches of like lengths, longest first, so that memory peaks at once or never.
///
/// A micro-batch of `n` rows costs `n` times its longest row and stays within `token_budget`; a row over budget stands alone.
pub fn micro_batches(lengths: &[usize], token_budget: usize) -> Vec<Vec<usize>> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&row| (std::cmp::Reverse(lengths[row]), row));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for row in by_length {
        match batches.last_mut() {
            Some(batch) if lengths[batch[0]] * (batch.len() + 1) <= token_budget => batch.push(row),
            _ => batches.push(vec![row]),
        }
    }
    batches
}
