//! What matrix products are computed in. Weights, stream, norms, softmax, loss and optimizer are f32 throughout.
//!
//! The weights are their own exact f32 master: in bf16 a segment's projections are rounded when it runs, and forgotten
//! after. That is the arithmetic of bf16 weights beside a master of f32, for the memory of the master alone.

use std::borrow::Cow;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use cctuning::checkpoint::Path;
use cctuning::model::CcModel;
use serde::{Deserialize, Serialize};

/// Number format of the matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    F32,
    /// bfloat16 factors; what they are multiplied into goes back to f32.
    Bf16,
}

impl Precision {
    /// The model with the projections of some blocks in this precision. Gradients reach the f32 weights.
    pub fn blocks<'m>(self, model: &'m CcModel, layers: Range<usize>) -> Cow<'m, CcModel> {
        match self {
            Self::F32 => Cow::Borrowed(model),
            Self::Bf16 => {
                let prefixes = layers.map(|layer| format!("model.layers.{layer}.")).collect();
                Cow::Owned(model.clone().map(&mut Round { path: Path::default(), prefixes }))
            }
        }
    }

    /// A tensor rounded to this precision.
    pub fn round<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => tensor,
            Self::Bf16 => tensor.cast(FloatDType::BF16),
        }
    }
}

struct Round {
    path: Path,
    prefixes: Vec<String>,
}

impl ModuleMapper for Round {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        if D == 2 && self.prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            let id = param.id;
            return Param::initialized(id, param.val().cast(FloatDType::BF16));
        }
        param
    }
}
