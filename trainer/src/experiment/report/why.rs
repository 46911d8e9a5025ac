//! Where the points go between the base, fine-tuning, the English twin and W_T, and what the connection carries.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Section;
use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, percent, points, verdict};
use crate::experiment::cell::{Answers, Asked, Measured};
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::statistics::mean;

/// One way of training, and of asking.
type Arm = (Training, Reading);

const BASE: Arm = (Training::Nothing, Reading::None);
const SFT: Arm = (Training::Sft, Reading::None);
const ALONE: Arm = (Training::Cc, Reading::None);
const MATRIX: Arm = (Training::Cc, Reading::Transform);
const TWIN: Arm = (Training::Cc, Reading::Parallel);

/// What is subtracted from what, and how a person says it. The first three are of interest in every setting.
const STEPS: [(&str, Arm, Arm); 9] = [
    ("CC-Tuning with the English twin − ML-SFT", TWIN, SFT),
    ("CC-Tuning without a connection − ML-SFT", ALONE, SFT),
    ("W_T − no connection", MATRIX, ALONE),
    ("W_T − identity", MATRIX, (Training::Cc, Reading::Identity)),
    ("W_T − random direction", MATRIX, (Training::Cc, Reading::Random)),
    ("W_T − shuffled pair", MATRIX, (Training::Cc, Reading::Shuffled)),
    ("W_T − English twin", MATRIX, TWIN),
    ("ML-SFT − the base", SFT, BASE),
    ("ML-SFT asked in English − ML-SFT", (Training::Sft, Reading::English), SFT),
];

/// Why CC-Tuning stands where it stands.
pub fn points_go(evidence: &Evidence) -> Section {
    let mut text = format!("{}\n\n", command(&evidence.plan.command, "main"));
    let (steps, file) = differences(evidence);
    let _ = writeln!(
        text,
        "Differences in points, paired by item and seed. Without a connection and with a zero vector a model computes the same.\n\n{steps}"
    );
    let _ = writeln!(
        text,
        "How good W_T is where it is used: R2 on held-out pairs of all layers' vectors, and of those that are passed on, \
         by how often each layer is taken on the test prompts. A layer whose vectors are long and easily mapped makes the \
         first high, whether or not it is ever taken.\n\n{}",
        passed(evidence)
    );
    let _ = writeln!(
        text,
        "The layer as an answer: how often the gold answer is the one that goes with the layer taken, of those families that \
         answer by a symbol. Where the layer alone tells it, it is the Decision Maker that carries the answer across, not the \
         vector. Seeds whose layers are kept, and prompts in other languages than English.\n\n{}",
        told_by_layer(evidence)
    );
    let _ = writeln!(
        text,
        "Learnt by heart: mean training loss over the last and the first twentieth of the steps on both sides of the \
         beginning of an epoch, seed 0.\n\n{}",
        by_heart(evidence)
    );
    Section { title: "Why: where the points go".into(), text, files: vec![file] }
}

fn differences(evidence: &Evidence) -> (String, (String, String)) {
    let families = evidence.families();
    type Keep<'k> = Box<dyn Fn(&Asked) -> bool + 'k>;
    let mut columns: Vec<(&str, Keep)> = vec![
        ("mean", Box::new(Asked::foreign)),
        ("without story", Box::new(|asked| asked.foreign() && asked.family != "story")),
    ];
    for family in &families {
        columns.push((family, Box::new(move |asked| asked.foreign() && asked.family == *family)));
    }
    let (mut rows, mut data, mut said) = (Vec::new(), Vec::new(), String::new());
    for setting in Setting::ALL {
        let of = |(training, reading): Arm, keep: &Keep| Scores::of(&evidence.of(setting, training, ""), reading, keep);
        let steps = if setting == Setting::MlSft { &STEPS[..] } else { &STEPS[..3] };
        for (name, arm, other) in steps {
            let found: Vec<_> = columns.iter().map(|(_, keep)| of(*arm, keep).minus(&of(*other, keep))).collect();
            let all = &found[0];
            if all.seeds == 0 {
                continue;
            }
            if setting == Setting::MlSft {
                let _ = writeln!(said, "- {name}: {} points, which {}.", points(&all.estimate), verdict(&all.estimate));
            }
            let label = vec![setting.name().to_string(), name.to_string(), all.seeds.to_string()];
            for ((column, _), difference) in columns.iter().zip(&found) {
                let e = difference.estimate;
                let numbers = [e.mean, e.low, e.high].map(|value| value.to_string());
                let items = vec![difference.items.to_string()];
                data.push([label.clone(), vec![column.to_string()], numbers.to_vec(), items].concat());
            }
            rows.push([label, found.iter().map(|difference| points(&difference.estimate)).collect()].concat());
        }
    }
    let mut head = vec!["setting", "", "seeds"];
    head.extend(columns.iter().map(|(name, _)| *name));
    let file = ["setting", "difference", "seeds", "part", "mean", "low", "high", "items"];
    (format!("{}\n{said}", markdown::table(&head, &rows)), ("why.csv".into(), markdown::csv(&file, &data)))
}

/// Mean over cells, and the range.
fn over(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    format!("{:.2} ({low:.2} to {high:.2})", mean(values))
}

/// The layers' shares among the prompts that were asked in other languages than English.
fn shares(answers: &Answers) -> Vec<f64> {
    let mut counts: Vec<f64> = Vec::new();
    for layers in answers.selected.values() {
        counts.resize(layers.len().max(counts.len()), 0.0);
        counts.iter_mut().zip(layers).for_each(|(sum, count)| *sum += *count as f64);
    }
    let all: f64 = counts.iter().sum();
    counts.into_iter().map(|count| count / all.max(1.0)).collect()
}

fn passed(evidence: &Evidence) -> String {
    let row = |setting: Setting| {
        let cells = evidence.of(setting, Training::Cc, "");
        let fits: Vec<_> = cells
            .iter()
            .filter_map(|cell| {
                Some((cell.fits.get(&Reading::Transform)?, cell.test.readings.get(&Reading::Transform)?))
            })
            .collect();
        let all: Vec<f64> = fits.iter().map(|(fit, _)| fit.heldout.r2).collect();
        let taken = fits.iter().map(|(fit, answers)| {
            fit.layers.iter().zip(shares(answers)).map(|(layer, share)| share * layer.heldout.r2).sum::<f64>()
        });
        let taken: Vec<f64> = taken.collect();
        (!all.is_empty()).then(|| vec![setting.name().to_string(), all.len().to_string(), over(&all), over(&taken)])
    };
    let rows: Vec<Vec<String>> = Setting::ALL.into_iter().filter_map(row).collect();
    markdown::table(&["setting", "seeds", "R2 of all vectors (range)", "R2 of what is passed on (range)"], &rows)
}

/// The share of a family's prompts whose gold answer is the most frequent one of their layer.
fn told(cell: &Measured, reading: Reading, family: &str) -> Option<(usize, usize)> {
    let answers = cell.test.readings.get(&reading).filter(|answers| !answers.layers.is_empty())?;
    let asked = cell.test.prompts.iter().zip(&answers.layers);
    let mut golds: BTreeMap<usize, BTreeMap<&str, usize>> = BTreeMap::new();
    for (asked, &layer) in asked.filter(|(asked, _)| asked.foreign() && asked.family == family) {
        *golds.entry(layer).or_default().entry(&asked.gold).or_default() += 1;
    }
    let right = golds.values().filter_map(|golds| golds.values().max()).sum();
    Some((right, golds.values().flat_map(BTreeMap::values).sum()))
}

fn told_by_layer(evidence: &Evidence) -> String {
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let mut rows = Vec::new();
    for family in evidence.families() {
        let asked = || evidence.prompts().iter().filter(|asked| asked.foreign() && asked.family == family);
        let mut golds: BTreeMap<&str, usize> = BTreeMap::new();
        asked().for_each(|asked| *golds.entry(&asked.gold).or_default() += 1);
        // Symbols, not words.
        if golds.keys().any(|gold| gold.chars().count() > 1) {
            continue;
        }
        let share = |reading| {
            let found: Vec<_> = cells.iter().filter_map(|cell| told(cell, reading, &family)).collect();
            let (right, all) = found.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            (found.len(), percent(right as f64 / all as f64))
        };
        let ((seeds, twin), (_, matrix)) = (share(Reading::Parallel), share(Reading::Transform));
        let most = golds.values().max().copied().unwrap_or(0) as f64 / asked().count() as f64;
        if seeds > 0 {
            rows.push(vec![
                family.clone(),
                seeds.to_string(),
                twin,
                matrix,
                percent(most),
                asked().count().to_string(),
            ]);
        }
    }
    let head = ["family", "seeds", "English twin's layer, %", "W_T's layer, %", "most frequent gold answer, %", "n"];
    markdown::table(&head, &rows)
}

fn by_heart(evidence: &Evidence) -> String {
    let mut rows = Vec::new();
    for (setting, training) in Setting::ALL.into_iter().flat_map(|s| [(s, Training::Sft), (s, Training::Cc)]) {
        let Some(cell) = evidence.of(setting, training, "").first().copied() else { continue };
        let Some((trained, epochs)) = cell.trained.as_ref().zip(evidence.plan.epochs()) else { continue };
        let (losses, width) = (&trained.losses, trained.losses.len().div_ceil(20));
        for epoch in 1..epochs {
            let at = losses.len() * epoch / epochs;
            if at < width || at + width > losses.len() {
                continue;
            }
            let [before, after] = [&losses[at - width..at], &losses[at..at + width]].map(mean);
            let name = format!("{} {}", setting.name(), training.name());
            rows.push(vec![name, (epoch + 1).to_string(), format!("{before:.2}"), format!("{after:.2}")]);
        }
    }
    markdown::table(&["", "epoch that begins", "loss before", "loss after"], &rows)
}
