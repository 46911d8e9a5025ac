//! The Decision Maker (Eq. 3-4): which layer's activation is passed across.

use crate::tap::FfnActivations;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// How one layer is taken from the decision logits `H`.
#[derive(Clone, Debug)]
pub enum Selection {
    /// The largest logit: deterministic, our choice at inference. One-hot, no gradient.
    Argmax,
    /// Gumbel-Softmax with the straight-through estimator (Eq. 4) over the given noise `[batch, n_layers]` at `tau`.
    Gumbel {
        /// Gumbel noise, from [`gumbel_noise`].
        noise: Tensor<2>,
        /// Temperature.
        tau: f64,
    },
    /// `softmax(H)`: every layer in its proportion.
    Expectation,
}

/// What the Decision Maker said of a batch.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Logits `H`: `[batch, n_layers]`.
    pub logits: Tensor<2>,
    /// Weight of each layer, one-hot unless expectation was asked for: `[batch, n_layers]`.
    pub weights: Tensor<2>,
}

/// `W_DM: d_model -> n_layers`, no bias; on disk `model.source_select.weight`, `[n_layers, d_model]` here as there.
#[derive(Module, Debug)]
pub struct DecisionMaker {
    weight: Param<Tensor<2>>,
}

impl DecisionMaker {
    /// Fresh weights, normal(0, 0.02).
    pub fn new(d_model: usize, n_layers: usize, device: &Device) -> Self {
        Self { weight: Initializer::Normal { mean: 0.0, std: 0.02 }.init([n_layers, d_model], device) }
    }

    /// Makes fresh weights now, where they would be made when they are first read.
    pub fn draw(&self) {
        self.weight.val();
    }

    /// `x W_DM`.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_model]`
    /// - returns: `[rows, n_layers]`
    pub fn project(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.val().transpose())
    }

    /// `H = mean_l(G_l + e) W_DM` (Eq. 3).
    ///
    /// # Shapes
    /// - `activations`: `[batch, n_layers, d_model]`
    /// - `e`: `[batch, d_model]`
    /// - returns: `[batch, n_layers]`
    pub fn logits(&self, activations: &FfnActivations, e: Tensor<2>) -> Tensor<2> {
        self.project(activations.mean() + e)
    }
}

impl Selection {
    /// Turns logits into one weight per layer (Eq. 4).
    ///
    /// # Shapes
    /// - `logits`: `[batch, n_layers]`
    pub fn decide(&self, logits: Tensor<2>) -> Decision {
        let weights = match self {
            Self::Argmax => one_hot_max(logits.clone()),
            Self::Gumbel { noise, tau } => {
                let soft = gumbel_softmax(logits.clone(), noise.clone(), *tau);
                one_hot_max(soft.clone()) - soft.clone().detach() + soft
            }
            Self::Expectation => softmax(logits.clone(), 1),
        };
        Decision { logits, weights }
    }
}

/// `softmax((H + noise) / tau)`, the soft weights behind the straight-through ones (Eq. 4).
///
/// # Shapes
/// - `logits`, `noise`: `[batch, n_layers]`
/// - returns: the same
pub fn gumbel_softmax(logits: Tensor<2>, noise: Tensor<2>, tau: f64) -> Tensor<2> {
    softmax((logits + noise) / tau, 1)
}

fn one_hot_max(logits: Tensor<2>) -> Tensor<2> {
    let n_layers = logits.dims()[1];
    one_hot(logits.detach().argmax(1), n_layers)
}

/// One row of weights per chosen layer. Burn's own `one_hot` reads the choice back to the host and blocks on it, which a
/// browser forbids.
///
/// # Shapes
/// - `layers`: `[batch, 1]`
/// - returns: `[batch, n_layers]`
pub fn one_hot(layers: Tensor<2, Int>, n_layers: usize) -> Tensor<2> {
    let [batch, _] = layers.dims();
    let each = Tensor::<1, Int>::arange(0..n_layers as i64, &layers.device()).unsqueeze::<2>();
    layers.expand([batch, n_layers]).equal(each.expand([batch, n_layers])).float()
}

/// Which layers enter the connection: the Decision Maker's choice, or an ablation of it (the paper's Figure 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pool {
    /// The Decision Maker chooses.
    #[default]
    DecisionMaker,
    /// The mean of all layers.
    Mean,
    /// A layer drawn anew for every row.
    Random,
    /// Always this layer, counted from 0; written `fixed(3)`.
    Fixed(usize),
}

impl TryFrom<String> for Pool {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let layer = text.strip_prefix("fixed(").and_then(|rest| rest.strip_suffix(')'));
        match (text.as_str(), layer.map(str::parse)) {
            ("decision_maker", _) => Ok(Self::DecisionMaker),
            ("mean", _) => Ok(Self::Mean),
            ("random", _) => Ok(Self::Random),
            (_, Some(Ok(layer))) => Ok(Self::Fixed(layer)),
            _ => Err(format!("expected `decision_maker`, `mean`, `random` or `fixed(LAYER)`, found `{text}`")),
        }
    }
}

impl From<Pool> for String {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::DecisionMaker => "decision_maker".into(),
            Pool::Mean => "mean".into(),
            Pool::Random => "random".into(),
            Pool::Fixed(layer) => format!("fixed({layer})"),
        }
    }
}

/// `-ln(-ln u)` noise of shape `[batch, n_layers]`.
pub fn gumbel_noise(batch: usize, n_layers: usize, rng: &mut impl Rng, device: &Device) -> Tensor<2> {
    let draw = |_| -(-rng.random_range(f64::MIN_POSITIVE..1.0f64).ln()).ln() as f32;
    let noise: Vec<f32> = (0..batch * n_layers).map(draw).collect();
    Tensor::from_data(TensorData::new(noise, [batch, n_layers]), device)
}
