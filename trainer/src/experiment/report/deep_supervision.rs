//! Reference: deep supervision by the English twin (DFT), beside ML-SFT and CC-Tuning with the same rows and seeds.

use std::fmt::Write as _;

use super::Section;
use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, interval, points, verdict};
use crate::experiment::cell::{Asked, Measured};
use crate::experiment::matrix::{Reading, Setting, Training};

/// Each as it is asked.
const ARMS: [(&str, Training, Reading); 3] = [
    ("ML-SFT", Training::Sft, Reading::None),
    ("DFT", Training::Dft, Reading::None),
    ("CC-Tuning", Training::Cc, Reading::Transform),
];

/// DFT and what it is compared with, over the seeds that it was run with.
pub fn compared(evidence: &Evidence) -> Section {
    let title = "Reference: DFT, deep supervision by the English twin".to_string();
    let supervised = evidence.of(Setting::MlSft, Training::Dft, "");
    if supervised.is_empty() {
        return Section { title, text: "Not measured yet.\n".into(), files: Vec::new() };
    }
    let families = evidence.families();
    let mut columns: Vec<(&str, Box<dyn Fn(&Asked) -> bool + '_>)> = families
        .iter()
        .map(|family| {
            let keep: Box<dyn Fn(&Asked) -> bool + '_> =
                Box::new(move |asked| asked.foreign() && asked.family == *family);
            (family.as_str(), keep)
        })
        .collect();
    columns.push(("mean", Box::new(Asked::foreign)));
    let cells: Vec<Vec<&Measured>> = ARMS
        .iter()
        .map(|&(_, training, _)| {
            let mut cells = evidence.of(Setting::MlSft, training, "");
            cells.retain(|cell| supervised.iter().any(|other| other.cell.seed == cell.cell.seed));
            cells
        })
        .collect();
    let scores = |arm: usize, keep: &dyn Fn(&Asked) -> bool| Scores::of(&cells[arm], ARMS[arm].2, keep);
    let (mut rows, mut data, mut said) = (Vec::new(), Vec::new(), String::new());
    for (arm, (name, _, reading)) in ARMS.into_iter().enumerate() {
        let validation = interval(&Scores::validation(&cells[arm], reading, Asked::foreign).estimate());
        let mut row = vec![name.to_string(), cells[arm].len().to_string(), validation];
        for (column, keep) in &columns {
            let found = scores(arm, keep);
            let e = found.estimate();
            row.push(interval(&e));
            let numbers = [e.mean, e.low, e.high].map(|value| value.to_string());
            let counts = [found.items().to_string(), found.seeds().to_string()];
            data.push([vec![name.into(), column.to_string()], numbers.to_vec(), counts.to_vec()].concat());
        }
        rows.push(row);
    }
    for (arm, other) in [(1, 0), (2, 1)] {
        let name = format!("{} − {}", ARMS[arm].0, ARMS[other].0);
        let differences: Vec<_> =
            columns.iter().map(|(_, keep)| scores(arm, keep).minus(&scores(other, keep))).collect();
        let Some(all) = differences.last().filter(|all| all.seeds > 0) else { continue };
        let _ = writeln!(said, "- {name} is {} points and {}.", points(&all.estimate), verdict(&all.estimate));
        let cells = differences.iter().map(|d| points(&d.estimate));
        rows.push([vec![name, all.seeds.to_string(), String::new()], cells.collect()].concat());
    }
    if let Some([first, last]) = distances(&supervised) {
        let _ = writeln!(
            said,
            "- The mean cosine distance to the twin's stream goes from {:.4} to {:.4} at the bottom layer and from {:.4} to {:.4} \
             at the middle one (first and last tenth of the steps).",
            first[0], last[0], first[1], last[1]
        );
    }
    let mut head = vec!["", "seeds", "validation"];
    head.extend(columns.iter().map(|(name, _)| *name));
    let text = format!(
        "{}\n\nAfter arXiv 2503.01275, in its looser form: beside the answer's loss a prompt's stream at its last token is drawn \
         to that of its English twin, by the cosine distance, at a bottom and a middle layer (`[dft]` of the recipe; where \
         it departs from the paper stands in `deep_supervision.rs`). It is asked without a connection. Setting ML-SFT, over DFT's seeds; differences are paired.\n\n{}\n{said}",
        command(&evidence.plan.command, "reference"),
        markdown::table(&head, &rows)
    );
    let columns = ["training", "part", "mean", "low", "high", "items", "seeds"];
    Section { title, text, files: vec![("dft.csv".into(), markdown::csv(&columns, &data))] }
}

/// Means over cells.
fn distances(cells: &[&Measured]) -> Option<[[f64; 2]; 2]> {
    let all: Vec<_> = cells.iter().filter_map(|cell| cell.trained.as_ref()?.distances).collect();
    let mean = |tenth: usize, layer: usize| all.iter().map(|found| found[tenth][layer]).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| [0, 1].map(|tenth| [0, 1].map(|layer| mean(tenth, layer))))
}
