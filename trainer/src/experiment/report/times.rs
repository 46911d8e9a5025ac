//! Tables 3 and 4: what CC-Tuning costs in time, beside plain fine-tuning on the same machine.

use super::Section;
use super::evidence::Evidence;
use super::main_table::label;
use super::markdown::{self, command};
use crate::experiment::cell::Measured;
use crate::experiment::matrix::{Reading, Setting, Training};

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Table 3: the optimizer steps alone, without loading, checkpoints and fitting.
pub fn training(evidence: &Evidence) -> Section {
    let (mut rows, mut ratios) = (Vec::new(), Vec::new());
    for setting in Setting::ALL {
        let [sft, cc] = [Training::Sft, Training::Cc].map(|training| {
            let cells = evidence.of(setting, training, "");
            let per_step = |cell: &&Measured| {
                let trained = cell.trained.as_ref()?;
                Some((cell.cell.seed, trained.seconds / trained.steps.max(1) as f64, trained.steps))
            };
            cells.iter().filter_map(per_step).collect::<Vec<_>>()
        });
        let pairs = cc.iter().filter_map(|cc| Some((cc, sft.iter().find(|sft| sft.0 == cc.0)?)));
        let found: Vec<f64> = pairs.map(|(cc, sft)| cc.1 / sft.1).collect();
        if found.is_empty() {
            continue;
        }
        let seconds = |runs: &[(u64, f64, usize)]| mean(&runs.iter().map(|run| run.1).collect::<Vec<_>>());
        let (low, high) = found.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
        rows.push(vec![
            label(setting, Training::Sft),
            found.len().to_string(),
            sft[0].2.to_string(),
            format!("{:.3}", seconds(&sft)),
            format!("{:.3}", seconds(&cc)),
            format!("{:.2}", mean(&found)),
            format!("{low:.2} to {high:.2}"),
        ]);
        ratios.extend(found);
    }
    let head = ["setting", "seeds", "steps", "ML-SFT, s per step", "CC-Tuning, s per step", "ratio", "over seeds"];
    let sentence = match ratios.is_empty() {
        true => String::new(),
        false => format!(
            "A step of CC-Tuning takes {:.2} times as long as one of ML-SFT in the mean of {} pairs; the paper reports 1.12 to 1.16.\n",
            mean(&ratios),
            ratios.len()
        ),
    };
    Section {
        title: "Table 3: time of training".into(),
        text: format!("{}\n\n{}\n{sentence}", command(&evidence.plan.command, "main"), markdown::table(&head, &rows)),
        files: vec![("table-3.csv".into(), markdown::csv(&head, &rows))],
    }
}

/// Table 4: the same prompts answered by the same model with and without the connection.
pub fn inference(evidence: &Evidence) -> Section {
    let seconds = |cell: &Measured, reading| cell.test.readings.get(&reading).map(|answers| answers.seconds);
    let (mut rows, mut ratios) = (Vec::new(), Vec::new());
    for setting in Setting::ALL {
        let cells = evidence.of(setting, Training::Cc, "");
        let pair = |cell: &&Measured| Some((seconds(cell, Reading::None)?, seconds(cell, Reading::Transform)?));
        let found: Vec<(f64, f64)> = cells.iter().filter_map(pair).collect();
        if found.is_empty() {
            continue;
        }
        let [plain, matrix] = [|pair: &(f64, f64)| pair.0, |pair: &(f64, f64)| pair.1]
            .map(|pick| mean(&found.iter().map(pick).collect::<Vec<_>>()));
        let each: Vec<f64> = found.iter().map(|(plain, matrix)| matrix / plain).collect();
        let ratio = mean(&each);
        rows.push(vec![
            label(setting, Training::Cc),
            found.len().to_string(),
            evidence.prompts().len().to_string(),
            format!("{plain:.2}"),
            format!("{matrix:.2}"),
            format!("{ratio:.2}"),
        ]);
        ratios.extend(each);
    }
    let head = ["model", "seeds", "prompts", "no connection, s", "W_T, s", "ratio"];
    let sentence = match ratios.is_empty() {
        true => String::new(),
        false => format!(
            "Answering with W_T takes {:.2} times as long as without a connection in the mean of {} models; the paper reports 1.09 to 1.10.\n",
            mean(&ratios),
            ratios.len()
        ),
    };
    Section {
        title: "Table 4: time of inference".into(),
        text: format!("{}\n\n{}\n{sentence}", command(&evidence.plan.command, "main"), markdown::table(&head, &rows)),
        files: vec![("table-4.csv".into(), markdown::csv(&head, &rows))],
    }
}
