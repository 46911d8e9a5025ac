//! Tables 3 and 4: what CC-Tuning costs in time, beside plain fine-tuning, both measured in turn.

use super::Section;
use super::evidence::Evidence;
use super::main_table::label;
use super::markdown::{self, command, decimals, within};
use crate::experiment::cell::Timed;
use crate::experiment::matrix::{Setting, Training};
use crate::statistics::over_runs;

/// Table 3: loss and gradients of a step, without the optimizer's own part, which is the same for both.
pub fn training(evidence: &Evidence) -> Section {
    let head = ["setting", "seeds", "pairs", "ML-SFT, s per step", "CC-Tuning, s per step", "ratio"];
    table(
        evidence,
        "Table 3: time of training",
        "table-3.csv",
        &head,
        |timed| &timed.steps,
        "A step's loss and gradients on one batch, plain and with CC-Tuning in turn; the paper reports 1.12 to 1.16.",
    )
}

/// Table 4: the same prompts answered by the same model with and without the connection.
pub fn inference(evidence: &Evidence) -> Section {
    let head = ["model", "seeds", "pairs", "no connection, s", "W_T, s", "ratio"];
    table(
        evidence,
        "Table 4: time of inference",
        "table-4.csv",
        &head,
        |timed| &timed.answers,
        "The same test prompts, most of them with short answers, without a connection and with W_T in turn, by one model; the \
         paper reports 1.09 to 1.10.",
    )
}

fn table(
    evidence: &Evidence,
    title: &str,
    file: &str,
    head: &[&str],
    pick: fn(&Timed) -> &Vec<[f64; 2]>,
    said: &str,
) -> Section {
    let row = |setting: Setting| {
        let cells = evidence.of(setting, Training::Cc, "");
        let timed: Vec<&Timed> = cells.iter().filter_map(|cell| cell.timed.as_ref()).collect();
        let pairs: Vec<[f64; 2]> = timed.iter().flat_map(|timed| pick(timed)).copied().collect();
        let seconds = |at: usize| format!("{:.3}", median(pairs.iter().map(|pair| pair[at])));
        let of_cell = |timed: &&Timed| median(pick(timed).iter().map(|[plain, ours]| ours / plain));
        let ratio = within(&over_runs(&timed.iter().map(of_cell).collect::<Vec<_>>()), decimals(2));
        let counts = [timed.len(), pairs.len()].map(|count| count.to_string());
        let row = [vec![label(setting, Training::Cc)], counts.to_vec(), vec![seconds(0), seconds(1), ratio]].concat();
        (!pairs.is_empty()).then_some(row)
    };
    let rows: Vec<Vec<String>> = Setting::ALL.into_iter().filter_map(row).collect();
    let text = format!(
        "{}\n\n{said} Medians, the ratio's over seeds of each one's median. Whatever else the machine did at the time is in \
         the intervals.\n\n{}",
        command(&evidence.plan.command, "main"),
        markdown::table(head, &rows)
    );
    Section { title: title.into(), text, files: vec![(file.into(), markdown::csv(head, &rows))] }
}

/// The middle value; of an even number the mean of the two. NaN of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}
