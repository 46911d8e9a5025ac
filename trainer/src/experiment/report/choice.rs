//! Figure 8: which layer is taken, and how much the choice and the vector weigh.

use super::Section;
use super::evidence::Evidence;
use super::markdown::{self, command};
use crate::experiment::cell::Measured;
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::plot::{Bar, Bars, Series};

/// Families whose answer is one of some options; the others write.
const UNDERSTANDING: [&str; 3] = ["entailment", "story", "choice"];

/// How often each layer was taken with W_T, over all seeds, for understanding and for generation.
fn counts(cells: &[&Measured]) -> [Vec<usize>; 2] {
    let mut counts = [Vec::new(), Vec::new()];
    for answers in cells.iter().filter_map(|cell| cell.test.readings.get(&Reading::Transform)) {
        for (family, layers) in &answers.selected {
            let sums = &mut counts[usize::from(!UNDERSTANDING.contains(&family.as_str()))];
            sums.resize(layers.len().max(sums.len()), 0);
            sums.iter_mut().zip(layers).for_each(|(sum, count)| *sum += count);
        }
    }
    counts
}

/// With the matrix and with the twin, over all seeds.
fn by_family(evidence: &Evidence, cells: &[&Measured], layers: usize) -> String {
    let mut rows = Vec::new();
    for family in evidence.families() {
        for reading in [Reading::Transform, Reading::Parallel] {
            let mut counts = vec![0; layers];
            let answers = cells.iter().filter_map(|cell| cell.test.readings.get(&reading)?.selected.get(&family));
            answers.for_each(|found| counts.iter_mut().zip(found).for_each(|(sum, count)| *sum += count));
            let all: usize = counts.iter().sum();
            if all > 0 {
                let shares = counts.iter().map(|&count| format!("{:.0}", 100.0 * count as f64 / all as f64));
                let name = vec![family.clone(), reading.name().to_string()];
                rows.push([name, shares.collect(), vec![all.to_string()]].concat());
            }
        }
    }
    let numbers: Vec<String> = (1..=layers).map(|layer| layer.to_string()).collect();
    let mut head = vec!["family", "connection fed from"];
    head.extend(numbers.iter().map(String::as_str));
    head.push("n");
    markdown::table(&head, &rows)
}

/// Figure 8.
pub fn layers(evidence: &Evidence) -> Section {
    let title = "Figure 8: the layer that is taken".to_string();
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let counts = counts(&cells);
    let layers = counts.iter().map(Vec::len).max().unwrap_or(0);
    if layers == 0 {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    }
    let names = ["understanding", "generation"];
    let totals = [0, 1].map(|at: usize| counts[at].iter().sum::<usize>());
    let share = |at: usize, layer: usize| match totals[at] {
        0 => None,
        total => Some(counts[at].get(layer).copied().unwrap_or(0) as f64 / total as f64),
    };
    let series = [0, 1].map(|at| Series {
        name: names[at].into(),
        bars: (0..layers).map(|layer| Some(Bar { value: 100.0 * share(at, layer)?, interval: None })).collect(),
    });
    let chart = Bars {
        title: "The layer whose activation is passed across".into(),
        subtitle: format!("share of test prompts in other languages than English, W_T, {} seeds", cells.len()),
        y: "%".into(),
        groups: (1..=layers).map(|layer| format!("layer {layer}")).collect(),
        series: series.into(),
    };
    let rows: Vec<Vec<String>> = (0..2)
        .flat_map(|at| (0..layers).map(move |layer| (at, layer)))
        .map(|(at, layer)| {
            let count = counts[at].get(layer).copied().unwrap_or(0);
            vec![names[at].into(), (layer + 1).to_string(), count.to_string()]
        })
        .collect();
    let most = |at: usize| {
        let layer = (0..layers).rev().max_by_key(|&layer| counts[at].get(layer).copied().unwrap_or(0)).unwrap_or(0);
        match share(at, layer) {
            Some(share) => {
                format!("for {} layer {} ({:.0} %, n = {})", names[at], layer + 1, 100.0 * share, totals[at])
            }
            None => format!("for {} no layer was recorded", names[at]),
        }
    };
    let text = format!(
        "{}\n\n![Figure 8](figures/figure-8.svg)\n\nMost often taken is {}, and {}. Understanding is {}; generation the other families.\n\n\
         By family, how often each layer is taken, in percent:\n\n{}",
        command(&evidence.plan.command, "main"),
        most(0),
        most(1),
        UNDERSTANDING.join(", "),
        by_family(evidence, &cells, layers)
    );
    let data = markdown::csv(&["kind", "layer", "prompts"], &rows);
    Section { title, text, files: vec![("figure-8.svg".into(), chart.svg()), ("figure-8.csv".into(), data)] }
}

/// How decided the Decision Maker is, and how long the vector is against the stream.
pub fn connection(evidence: &Evidence) -> Section {
    let cells = evidence.cells.iter().filter(|cell| cell.trained.as_ref().is_some_and(|t| t.choice.is_some()));
    let rows: Vec<Vec<String>> = cells
        .map(|cell| {
            let choice = cell.trained.as_ref().and_then(|trained| trained.choice.clone()).unwrap_or_default();
            let answers = cell.test.readings.get(&Reading::Transform).cloned().unwrap_or_default();
            let total: usize = choice.selected.iter().sum();
            let selected: Vec<String> =
                choice.selected.iter().map(|n| format!("{:.0}", 100.0 * *n as f64 / total.max(1) as f64)).collect();
            vec![
                cell.cell.name(),
                format!("{:.3}", choice.entropy_first),
                format!("{:.3}", choice.entropy_last),
                format!("{:.3}", (cell.model.n_layers as f64).ln()),
                format!("{:.3}", choice.vector_norm / choice.stream_norm.max(1e-12)),
                format!("{:.3}", answers.vector_norm / answers.stream_norm.max(1e-12)),
                selected.join(" "),
            ]
        })
        .collect();
    let head = [
        "cell",
        "entropy, first tenth",
        "last tenth",
        "undecided",
        "v over stream, training",
        "with W_T",
        "layers taken in training, %",
    ];
    let text = format!(
        "Entropy of the Decision Maker in nats over the first and last tenth of the steps, beside that of an even choice; \
         length of the added vector against the stream it is added to.\n\n{}",
        markdown::table(&head, &rows)
    );
    Section {
        title: "How much the connection carries".into(),
        text,
        files: vec![("connection.csv".into(), markdown::csv(&head, &rows))],
    }
}
