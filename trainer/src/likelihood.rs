//! What a model holds for likely among the options of a question, beside what it says.
//!
//! Knows the model and the options; which of them is right, the scorers know.

use std::collections::BTreeMap;

use anyhow::Result;
use cctuning::generate::Decoding;

use crate::benchmarks::Benchmark;
use crate::model_folder::ModelFolder;

/// The options of the benchmarks that have any, in tokens.
pub struct Options(BTreeMap<Benchmark, Vec<Vec<u32>>>);

impl Options {
    /// # Errors
    /// The tokenizer cannot read an option.
    pub fn of(folder: &ModelFolder, benchmarks: impl Iterator<Item = Benchmark>) -> Result<Self> {
        let encode = |benchmark: Benchmark| -> Result<_> {
            let ids = benchmark.options().iter().map(|option| folder.tokenizer.encode(option));
            Ok((benchmark, ids.collect::<cctuning::Result<_>>()?))
        };
        Ok(Self(benchmarks.filter(|benchmark| !benchmark.options().is_empty()).map(encode).collect::<Result<_>>()?))
    }

    /// For every row the log-probabilities of its benchmark's options, none where it has none.
    ///
    /// # Errors
    /// An option does not fit behind the prompt, or the device failed.
    pub fn log_probabilities(&self, decoding: &mut Decoding, rows: &[Benchmark]) -> Result<Vec<Vec<f64>>> {
        let options: Vec<&[Vec<u32>]> =
            rows.iter().map(|benchmark| self.0.get(benchmark).map_or(&[][..], Vec::as_slice)).collect();
        if options.iter().all(|options| options.is_empty()) {
            return Ok(vec![Vec::new(); rows.len()]);
        }
        let found = decoding.log_probabilities(&options)?;
        let columns = found.dims()[1];
        let values: Vec<f64> = found.into_data().iter::<f64>().collect();
        let of_row = |(values, options): (&[f64], &&[Vec<u32>])| values[..options.len()].to_vec();
        Ok(values.chunks(columns).zip(&options).map(of_row).collect())
    }
}
