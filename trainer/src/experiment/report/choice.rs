//! Figure 8: which layer is taken, and how much the choice and the vector weigh.

use super::Section;
use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, decimals, interval, seeds, within};
use crate::experiment::cell::{Asked, Chosen, Measured};
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::plot::{Bar, Bars, Series};
use crate::statistics::{Estimate, over_runs};

/// Families whose answer is one of some options; the others write.
const UNDERSTANDING: [&str; 3] = ["entailment", "story", "choice"];

/// What is asked of understanding, and of generation.
const KINDS: [&str; 2] = ["understanding", "generation"];

fn kind(family: &str) -> usize {
    usize::from(!UNDERSTANDING.contains(&family))
}

/// How often a layer is taken for some prompts, over all seeds.
pub fn taken(cells: &[&Measured], reading: Reading, layer: usize, keep: impl Fn(&Asked) -> bool) -> Scores {
    let values = |cell: &Measured| {
        let layers = &cell.test.readings.get(&reading)?.layers;
        (!layers.is_empty()).then(|| layers.iter().map(|&taken| f64::from(taken == layer)).collect())
    };
    Scores::by(cells, values, keep)
}

/// With the matrix and with the twin.
fn by_family(evidence: &Evidence, cells: &[&Measured], layers: usize) -> String {
    let mut rows = Vec::new();
    for family in evidence.families() {
        for reading in [Reading::Transform, Reading::Parallel] {
            let keep = |asked: &Asked| asked.foreign() && asked.family == family;
            let shares: Vec<Scores> = (0..layers).map(|layer| taken(cells, reading, layer, keep)).collect();
            if shares[0].seeds() > 0 {
                let name = vec![family.clone(), reading.name().to_string()];
                let numbers = shares.iter().map(|share| interval(&share.estimate())).collect();
                rows.push([name, numbers, vec![shares[0].items().to_string()]].concat());
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
    let layers = cells.first().map_or(0, |cell| cell.model.n_layers);
    let share = |of: usize, layer: usize| {
        taken(&cells, Reading::Transform, layer, |asked| asked.foreign() && kind(&asked.family) == of)
    };
    let shares = [0, 1].map(|of| (0..layers).map(|layer| share(of, layer)).collect::<Vec<Scores>>());
    if shares.iter().flatten().all(|share| share.seeds() == 0) {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    }
    let estimates = shares.each_ref().map(|of| of.iter().map(Scores::estimate).collect::<Vec<Estimate>>());
    let bar = |estimate: &Estimate| {
        let interval = Some((100.0 * estimate.low, 100.0 * estimate.high));
        estimate.mean.is_finite().then_some(Bar { value: 100.0 * estimate.mean, interval })
    };
    let chart = Bars {
        title: "The layer whose activation is passed across".into(),
        subtitle: format!("share of test prompts in other languages than English, W_T, {}", seeds(cells.len())),
        y: "%".into(),
        groups: (1..=layers).map(|layer| format!("layer {layer}")).collect(),
        series: [0, 1]
            .map(|of| Series { name: KINDS[of].into(), bars: estimates[of].iter().map(bar).collect() })
            .into(),
    };
    let row = |(of, layer): (usize, usize)| {
        let Estimate { mean, low, high, .. } = estimates[of][layer];
        let numbers = [mean, low, high].map(|share| share.to_string());
        let counts = [shares[of][layer].items(), shares[of][layer].seeds()].map(|count| count.to_string());
        [vec![KINDS[of].to_string(), (layer + 1).to_string()], numbers.to_vec(), counts.to_vec()].concat()
    };
    let rows: Vec<Vec<String>> =
        [0, 1].into_iter().flat_map(|of| (0..layers).map(move |layer| (of, layer))).map(row).collect();
    let most = |of: usize| {
        let mean = |layer: &usize| estimates[of][*layer].mean;
        // Of equally frequent layers the first.
        let layer = (0..layers).rev().max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap_or(0);
        let share = interval(&estimates[of][layer]);
        format!("for {} layer {} ({share} %, n = {})", KINDS[of], layer + 1, shares[of][layer].items())
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
    let data = markdown::csv(&["kind", "layer", "share", "low", "high", "items", "seeds"], &rows);
    Section { title, text, files: vec![("figure-8.svg".into(), chart.svg()), ("figure-8.csv".into(), data)] }
}

/// How decided the Decision Maker is, and how long the vector is against the stream.
pub fn connection(evidence: &Evidence) -> Section {
    // In the order of the plan, whose seeds stand apart.
    let mut ways: Vec<(String, Vec<(&Measured, &Chosen)>)> = Vec::new();
    for cell in &evidence.cells {
        let Some(chosen) = cell.trained.as_ref().and_then(|trained| trained.choice.as_ref()) else { continue };
        let way = cell.cell.way();
        match ways.iter_mut().find(|(known, _)| *known == way) {
            Some((_, runs)) => runs.push((cell, chosen)),
            None => ways.push((way, vec![(cell, chosen)])),
        }
    }
    let row = |(way, runs): (String, Vec<(&Measured, &Chosen)>)| {
        let over = |value: &dyn Fn(&Measured, &Chosen) -> f64| {
            over_runs(&runs.iter().map(|(cell, chosen)| value(cell, chosen)).collect::<Vec<_>>())
        };
        let number = |value: &dyn Fn(&Measured, &Chosen) -> f64| within(&over(value), decimals(3));
        let layers = runs.iter().map(|(_, chosen)| chosen.selected.len()).min().unwrap_or(0);
        let share = |layer: usize| {
            let of = |_: &Measured, chosen: &Chosen| {
                chosen.selected[layer] as f64 / chosen.selected.iter().sum::<usize>().max(1) as f64
            };
            format!("{:.0}", 100.0 * over(&of).mean)
        };
        // A mean of all layers takes none.
        let taken = if way.ends_with("pool = mean") {
            "–".into()
        } else {
            (0..layers).map(share).collect::<Vec<_>>().join(" ")
        };
        vec![
            way,
            runs.len().to_string(),
            number(&|_, chosen| chosen.entropy_first),
            number(&|_, chosen| chosen.entropy_last),
            format!("{:.3}", (runs[0].0.model.n_layers as f64).ln()),
            number(&|_, chosen| chosen.vector_norm / chosen.stream_norm.max(1e-12)),
            number(&|cell, _| {
                let answers = cell.test.readings.get(&Reading::Transform);
                answers.map_or(f64::NAN, |answers| answers.vector_norm / answers.stream_norm.max(1e-12))
            }),
            taken,
        ]
    };
    let rows: Vec<Vec<String>> = ways.into_iter().map(row).collect();
    let head = [
        "cell",
        "seeds",
        "entropy, first tenth",
        "last tenth",
        "undecided",
        "v over stream, training",
        "with W_T",
        "layers taken in training, %",
    ];
    let text = format!(
        "Entropy of the Decision Maker in nats over the first and last tenth of the steps, beside that of an even choice; \
         length of the added vector against the stream it is added to. Intervals are over seeds, where there are several.\n\n{}",
        markdown::table(&head, &rows)
    );
    Section {
        title: "How much the connection carries".into(),
        text,
        files: vec![("connection.csv".into(), markdown::csv(&head, &rows))],
    }
}
