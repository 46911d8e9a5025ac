//! A pass through the decoder and back, cut into segments of layers.
//!
//! Burn recomputes single operations, not layers. Here the forward pass keeps nothing but the input of each segment;
//! on the way back a segment is run again with a graph. The last segment's graph is kept from the start, so one segment
//! over all layers is the ordinary pass. Gradients leave a segment's tape as soon as it is done and are added up.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Gradients as Tape, Tensor};
use cctuning::anchor::Anchor;
use cctuning::model::CcModel;
use cctuning::tap::{Injection, Probe, Site, Taps};

use crate::device::is_cpu;
use crate::optim::Gradients;
use crate::parallel::{cores, in_order, in_parallel};
use crate::precision::Precision;

/// Tokens of the rows that go through a segmented pass together. On the CPU as many of these lanes as there are cores go side
/// by side; their gradients are added in order, so that the result does not depend on the number of cores.
pub const LANE_TOKENS: usize = 256;

/// A pass whose way back is still open.
pub struct Pass {
    precision: Precision,
    segments: Vec<Range<usize>>,
    lanes: Vec<Lane>,
    read: Vec<Tensor<2>>,
}

/// Some rows of a pass.
struct Lane {
    rows: Range<usize>,
    /// With leaves of its own: Burn joins graphs that share any, and threads working on a joined graph lock each other out.
    model: CcModel,
    injection: Option<Injection>,
    probed: Option<(Site, Anchor)>,
    /// What entered each segment, without a graph.
    inputs: Vec<Tensor<3>>,
    /// The last segment, until the way back has passed it.
    open: Option<Segment>,
    read: Vec<Tensor<2>>,
}

/// A segment with its graph.
#[derive(Clone)]
struct Segment {
    input: Tensor<3>,
    output: Tensor<3>,
    read: Vec<Tensor<2>>,
}

impl Pass {
    /// Runs `layers` over `hidden`. `injection` may hold a leaf, whose gradient is then found after [`Self::backward`].
    /// `probed` is read in every layer.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, d_model]`, without a graph
    pub fn forward(
        model: &CcModel,
        hidden: Tensor<3>,
        layers: Range<usize>,
        recompute: bool,
        precision: Precision,
        injection: Option<&Injection>,
        probed: Option<(Site, Anchor)>,
    ) -> Self {
        let ([batch, seq, _], device) = (hidden.dims(), hidden.device());
        let of_lane = if recompute && is_cpu(&device) { (LANE_TOKENS / seq).max(1) } else { batch };
        let segments = match recompute && !layers.is_empty() {
            true => layers.map(|layer| layer..layer + 1).collect(),
            false => vec![layers],
        };
        let last = segments.len() - 1;
        let rows: Vec<_> = (0..batch).step_by(of_lane).map(|start| start..batch.min(start + of_lane)).collect();
        let without_graph = model.valid();
        let lane = |rows: &Range<usize>| {
            let alone = rows.len() == batch;
            let mut lane = Lane {
                rows: rows.clone(),
                model: if alone { model.clone() } else { without_graph.clone().train() },
                injection: injection.map(|whole| if alone { whole.clone() } else { whole.of_rows(rows.clone()) }),
                probed: probed.as_ref().map(|(site, anchor)| (*site, anchor.of_rows(rows.clone()))),
                inputs: Vec::new(),
                open: None,
                read: Vec::new(),
            };
            let bare = lane.injection.as_ref().map(Injection::without_graph);
            let mut hidden = hidden.clone().narrow(0, rows.start, rows.len());
            for (at, layers) in segments.iter().enumerate() {
                lane.inputs.push(hidden.clone());
                if at < last {
                    let fresh;
                    (hidden, fresh) =
                        run(&without_graph, precision, hidden, layers.clone(), bare.as_ref(), lane.probed.as_ref());
                    lane.read.extend(fresh);
                }
            }
            let open = lane.segment(precision, last, segments[last].clone());
            lane.read.extend(open.read.iter().map(|read| read.clone().inner()));
            lane.open = Some(open);
            lane
        };
        let mut lanes = in_parallel(cores(&device), &rows, lane);
        let reads: Vec<_> = lanes.iter_mut().map(|lane| std::mem::take(&mut lane.read)).collect();
        let read =
            (0..reads[0].len()).map(|layer| joined(reads.iter().map(|read| read[layer].clone()).collect())).collect();
        Self { precision, segments, lanes, read }
    }

    /// What left the last layer: `[batch, seq, d_model]`, without a graph.
    pub fn output(&self) -> Tensor<3> {
        joined(self.lanes.iter().flat_map(|lane| &lane.open).map(|open| open.output.clone().inner()).collect())
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
        mut self,
        output: Option<Tensor<3>>,
        read: &[Tensor<2>],
        gradients: &mut Gradients,
    ) -> (Tensor<3>, Option<Tensor<2>>) {
        let mut end = read.len();
        let mut cotangent = output;
        let mut vector = None;
        for (at, layers) in self.segments.iter().enumerate().rev() {
            let start = end.saturating_sub(layers.len());
            let back =
                |lane: &Lane| lane.back(self.precision, at, layers.clone(), cotangent.as_ref(), &read[start..end]);
            let (mut inputs, mut vectors, mut lanes) = (Vec::new(), Vec::new(), self.lanes.iter());
            let cores = cores(&self.lanes[0].model.device());
            in_order(cores, &self.lanes, back, |(input, of_vector, tape)| {
                gradients.take(&lanes.next().expect("one for each result").model, tape);
                inputs.push(input);
                vectors.extend(of_vector);
                true
            });
            self.lanes.iter_mut().for_each(|lane| lane.open = None);
            vector = vector.or((!vectors.is_empty()).then(|| joined(vectors)));
            cotangent = Some(joined(inputs));
            end = start;
        }
        (cotangent.expect("there is a segment"), vector)
    }
}

/// The rows of all lanes.
fn joined<const D: usize>(mut parts: Vec<Tensor<D>>) -> Tensor<D> {
    if parts.len() > 1 { Tensor::cat(parts, 0) } else { parts.remove(0) }
}

impl Lane {
    fn segment(&self, precision: Precision, at: usize, layers: Range<usize>) -> Segment {
        let Self { model, injection, probed, .. } = self;
        Segment::run(model, precision, self.inputs[at].clone(), layers, injection.as_ref(), probed.as_ref())
    }

    /// Cotangents of a segment's input and of the injected vector, and the tape that holds those of the weights.
    fn back(
        &self,
        precision: Precision,
        at: usize,
        layers: Range<usize>,
        cotangent: Option<&Tensor<3>>,
        read: &[Tensor<2>],
    ) -> (Tensor<3>, Option<Tensor<2>>, Tape) {
        let segment = self.open.clone().unwrap_or_else(|| self.segment(precision, at, layers));
        let rows = [self.rows.clone()];
        let of_read = segment.read.into_iter().zip(read);
        let parts =
            of_read.map(|(read, cotangent)| (read * Tensor::from_inner(cotangent.clone().slice(rows.clone()))).sum());
        let through = cotangent
            .map(|cotangent| (segment.output * Tensor::from_inner(cotangent.clone().slice(rows.clone()))).sum());
        let objective = parts.chain(through).reduce(|a, b| a + b).expect("something depends on this segment");
        let mut tape = objective.backward();
        let vector = self.injection.as_ref().and_then(|injection| injection.vector.grad_remove(&mut tape));
        let input = segment.input.grad_remove(&mut tape).expect("the input is a leaf of its segment");
        (input, vector, tape)
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
