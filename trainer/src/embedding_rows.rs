//! The rows of the embedding that a micro-batch reads.
//!
//! All other rows of its gradient are zero. A tape over the whole embedding would make a table of the vocabulary's size for
//! each time that it is read.

use std::collections::BTreeSet;

use burn::module::Module;
use burn::tensor::{Device, Gradients as Tape, Int, Tensor};
use cctuning::anchor::index;
use cctuning::checkpoint::EMBEDDING;
use cctuning::model::{CcModel, TokenBatch};

use crate::optim::Gradients;
use crate::sample::Sample;

/// Token ids, each once and in order.
pub struct EmbeddingRows {
    ids: Vec<u32>,
    vocab_size: usize,
}

impl EmbeddingRows {
    /// Of all that these samples hold.
    pub fn of(model: &CcModel, samples: &[&Sample]) -> Self {
        let ids: BTreeSet<u32> =
            samples.iter().flat_map(|s| [&s.prompt.ids, &s.english.ids, &s.answer]).flatten().copied().collect();
        Self { ids: ids.into_iter().collect(), vocab_size: model.model.embedding().dims()[0] }
    }

    /// The model with these rows alone, and with leaves of its own: Burn joins graphs that share any, and two threads working
    /// on a joined graph lock each other out.
    pub fn model(&self, whole: &CcModel) -> CcModel {
        whole.clone().with_embedding_rows(self.index(&whole.device())).train()
    }

    /// Tokens as that model reads them.
    pub fn tokens<R: AsRef<[u32]>>(&self, model: &CcModel, rows: &[R]) -> TokenBatch {
        let number = |id: &u32| self.ids.binary_search(id).expect("a token of these samples") as u32;
        let rows: Vec<Vec<u32>> = rows.iter().map(|row| row.as_ref().iter().map(number).collect()).collect();
        TokenBatch::new(&rows, &model.device())
    }

    /// Adds what a backward pass left for the parameters of that model.
    pub fn take(&self, model: &CcModel, mut tape: Tape, gradients: &mut Gradients) {
        if let Some(of_rows) = model.model.embedding().grad_remove(&mut tape) {
            // Not the model's device: what it computes would have a graph, and so would the new weights.
            gradients.add_rows(EMBEDDING, self.vocab_size, self.index(&of_rows.device()), of_rows);
        }
        gradients.take(model, tape);
    }

    fn index(&self, device: &Device) -> Tensor<1, Int> {
        index(self.ids.iter().map(|&id| id as usize), device)
    }
}
