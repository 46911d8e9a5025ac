//! A pass through the decoder and back, cut into segments of layers.
//!
//! Burn recomputes single operations, not layers. Here the forward pass keeps nothing but the input of each segment;
//! on the way back a segment is run again with a graph. The last segment's graph is kept from the start, so one segment
//! over all layers is the ordinary pass. Gradients leave a segment's tape as soon as it is done and are added up.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;
use cctuning::anchor::Anchor;
use cctuning::model::CcModel;
use cctuning::tap::{Injection, Probe, Site, Taps};

use crate::optim::Gradients;
use crate::precision::Precision;

/// A pass whose way back is still open.
pub struct Pass<'m> {
    /// With leaves of its own: Burn joins graphs that share any.
    model: &'m CcModel,
    precision: Precision,
    injection: Option<&'m Injection>,
    probed: Option<(Site, Anchor)>,
    /// Segments and what entered them, without a graph; the last one is `open`.
    done: Vec<(Range<usize>, Tensor<3>)>,
    open: Segment,
    read: Vec<Tensor<2>>,
}

/// A segment with its graph.
struct Segment {
    input: Tensor<3>,
    output: Tensor<3>,
    read: Vec<Tensor<2>>,
}

impl<'m> Pass<'m> {
    /// Runs `layers` over `hidden`. `injection` may hold a leaf, whose gradient is then found after [`Self::backward`].
    /// `probed` is read in every layer.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, d_model]`, without a graph
    pub fn forward(
        model: &'m CcModel,
        hidden: Tensor<3>,
        layers: Range<usize>,
        recompute: bool,
        precision: Precision,
        injection: Option<&'m Injection>,
        probed: Option<(Site, Anchor)>,
    ) -> Self {
        let mut segments: Vec<Range<usize>> = match recompute {
            true => layers.map(|layer| layer..layer + 1).collect(),
            false => vec![layers],
        };
        let last = segments.pop().unwrap_or(0..0);
        let without_graph = model.valid();
        let bare = injection.map(Injection::without_graph);
        let (mut hidden, mut done, mut read) = (hidden, Vec::new(), Vec::new());
        for layers in segments {
            done.push((layers.clone(), hidden.clone()));
            let fresh;
            (hidden, fresh) = run(&without_graph, precision, hidden, layers, bare.as_ref(), probed.as_ref());
            read.extend(fresh);
        }
        let open = Segment::run(model, precision, hidden, last, injection, probed.as_ref());
        read.extend(open.read.iter().map(|read| read.clone().inner()));
        Self { model, precision, injection, probed, done, open, read }
    }

    /// What left the last layer: `[batch, seq, d_model]`, without a graph.
    pub fn output(&self) -> Tensor<3> {
        self.open.output.clone().inner()
    }

    /// What the probe read in each layer: `[batch, d_model]`, without a graph.
    pub fn read(&self) -> &[Tensor<2>] {
        &self.read
    }

    /// Takes cotangents of the output and of what was read back through all segments. Returns those of the input and of
    /// the injected vector; gradients of weights are added to `gradients`.
    ///
    /// # Shapes
    /// - `output`, the returned first: `[batch, seq, d_model]`
    /// - `read`, the returned second: `[batch, d_model]`
    pub fn backward(
        self,
        output: Option<Tensor<3>>,
        read: &[Tensor<2>],
        gradients: &mut Gradients,
    ) -> (Tensor<3>, Option<Tensor<2>>) {
        let mut end = read.len();
        let mut vector = None;
        let mut back = |segment: Segment, cotangent: Option<Tensor<3>>| {
            let start = end - segment.read.len().min(end);
            let of_read = segment.read.into_iter().zip(&read[start..end]);
            let parts = of_read.map(|(read, cotangent)| (read * Tensor::from_inner(cotangent.clone())).sum());
            let through = cotangent.map(|cotangent| (segment.output * Tensor::from_inner(cotangent)).sum());
            end = start;
            let objective = parts.chain(through).reduce(|a, b| a + b).expect("something depends on this segment");
            let mut tape = objective.backward();
            if let Some(injection) = self.injection {
                vector = vector.take().or(injection.vector.grad_remove(&mut tape));
            }
            let input = segment.input.grad_remove(&mut tape).expect("the input is a leaf of its segment");
            gradients.take(self.model, tape);
            input
        };
        let mut cotangent = back(self.open, output);
        for (layers, input) in self.done.into_iter().rev() {
            let again = Segment::run(self.model, self.precision, input, layers, self.injection, self.probed.as_ref());
            cotangent = back(again, Some(cotangent));
        }
        (cotangent, vector)
    }
}

impl Segment {
    fn run(
        model: &CcModel,
        precision: Precision,
        input: Tensor<3>,
        layers: Range<usize>,
        injection: Option<&Injection>,
        probed: Option<&(Site, Anchor)>,
    ) -> Self {
        let input = Tensor::from_inner(input).require_grad();
        let (output, read) = run(model, precision, input.clone(), layers, injection, probed);
        Self { input, output, read }
    }
}

fn run(
    model: &CcModel,
    precision: Precision,
    hidden: Tensor<3>,
    layers: Range<usize>,
    injection: Option<&Injection>,
    probed: Option<&(Site, Anchor)>,
) -> (Tensor<3>, Vec<Tensor<2>>) {
    let mut probe = probed.map(|(site, anchor)| Probe::new(*site, anchor.clone()));
    let taps = Taps { probe: probe.as_mut(), injection };
    let hidden = precision.blocks(model, layers.clone()).model.forward(hidden, layers, None, taps);
    (hidden, probe.map_or_else(Vec::new, Probe::into_layers))
}
