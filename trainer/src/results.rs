//! What an evaluation leaves: one JSON line per item, and summaries as table, Markdown and CSV.
//!
//! Knows no model.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::benchmarks::{Benchmark, Item};
use crate::scorers::{self, Judgement};
use crate::statistics::{Estimate, estimate};

pub const ITEMS_FILE: &str = "items.jsonl";
/// Of the bootstrap.
const SEED: u64 = 2506;

/// One answered item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub lang: String,
    pub benchmark: String,
    pub prompt_sha256: String,
    pub tokens: Vec<u32>,
    pub text: String,
    /// True when the answer ended by itself, false when it was cut at the limit.
    pub stopped: bool,
    /// By rule.
    pub scores: BTreeMap<String, Judgement>,
}

/// Reads the records of a run; a half-written last line, which a killed run leaves, is not counted.
///
/// # Errors
/// Another line is no record.
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the results {}", path.display()))?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let mut records = Vec::new();
    for (number, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let record: Record = serde_json::from_slice(line).with_context(|| {
            format!("{}:{}: expected the result of one item; delete the line and run again", path.display(), number + 1)
        })?;
        records.push(record);
    }
    let distinct: HashSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
    ensure!(distinct.len() == records.len(), "{}: an item stands there twice; delete one of them", path.display());
    Ok(records)
}

/// One benchmark in one language.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub benchmark: String,
    pub lang: String,
    pub n: usize,
    /// Share of answers cut at the limit of new tokens.
    pub truncated: f64,
    /// What always answering the most frequent option would score; only for multiple choice.
    pub majority: Option<f64>,
    /// By metric, e.g. `acc_paper`.
    pub metrics: BTreeMap<String, Measured>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Share of answers in which the rule could read no option.
    pub unparsable: Option<f64>,
    /// Share of items whose two likeliest options lie within [`scorers::NEAR_TIE`].
    pub near_ties: Option<f64>,
}

impl Measured {
    /// What stands beside the number in a table, and its title there.
    fn beside(&self) -> Option<(&'static str, f64)> {
        self.unparsable.map(|share| ("unread", share)).or(self.near_ties.map(|share| ("ties", share)))
    }
}

/// Cells by benchmark and language, in the order of the items. Items without a record count as not asked.
pub fn cells(items: &[Item], records: &[Record]) -> Vec<Cell> {
    let by_id: BTreeMap<&str, &Record> = records.iter().map(|record| (record.id.as_str(), record)).collect();
    type Group<'a> = (Benchmark, &'a str, Vec<(&'a Item, &'a Record)>);
    let mut groups: Vec<Group> = Vec::new();
    for item in items {
        let Some(&record) = by_id.get(item.id.as_str()) else { continue };
        match groups.iter_mut().find(|(benchmark, lang, _)| *benchmark == item.benchmark && *lang == item.lang) {
            Some((.., group)) => group.push((item, record)),
            None => groups.push((item.benchmark, &item.lang, vec![(item, record)])),
        }
    }
    groups.into_iter().map(|(benchmark, lang, group)| cell(benchmark, lang, &group)).collect()
}

fn cell(benchmark: Benchmark, lang: &str, group: &[(&Item, &Record)]) -> Cell {
    let n = group.len();
    let share = |count: usize| count as f64 / n as f64;
    let mut metrics = BTreeMap::new();
    for rule in scorers::rules(benchmark).iter().copied().chain(scorers::LIKELIHOODS) {
        let judged: Vec<&Judgement> = group.iter().filter_map(|(_, record)| record.scores.get(rule)).collect();
        // A rule that could not be asked of every item has no score.
        if judged.len() < n {
            continue;
        }
        let scores: Vec<f64> = judged.iter().map(|judgement| judgement.score).collect();
        let unread = share(judged.iter().filter(|judgement| judgement.extracted.is_none()).count());
        let unparsable = scorers::reads_options(benchmark, rule).then_some(unread);
        let is_near = |judgement: &&&Judgement| judgement.gap.is_some_and(|gap| gap < scorers::NEAR_TIE);
        let near_ties = judged.iter().all(|judgement| judgement.gap.is_some());
        let near_ties = near_ties.then(|| share(judged.iter().filter(is_near).count()));
        let measured = Measured { estimate: estimate(&scores, SEED), unparsable, near_ties };
        metrics.insert(scorers::metric(benchmark, rule), measured);
    }
    let of_option = |option: &&str| group.iter().filter(|(item, _)| item.gold[0] == *option).count();
    let majority = benchmark.options().iter().map(of_option).max().map(share);
    let truncated = share(group.iter().filter(|(_, record)| !record.stopped).count());
    Cell { benchmark: benchmark.name().into(), lang: lang.into(), n, truncated, majority, metrics }
}

/// The metrics of a benchmark in the order of its rules.
fn metrics_of(cells: &[&Cell], benchmark: Benchmark) -> Vec<String> {
    let all = scorers::rules(benchmark).iter().copied().chain(scorers::LIKELIHOODS);
    let named = all.map(|rule| scorers::metric(benchmark, rule));
    named.filter(|metric| cells.iter().any(|cell| cell.metrics.contains_key(metric))).collect()
}

/// One table per benchmark: what it is called, its head, and its rows; percentages with their interval.
fn tables(cells: &[Cell]) -> Vec<(String, Vec<String>, Vec<Vec<String>>)> {
    let mut tables = Vec::new();
    for benchmark in Benchmark::ALL {
        let own: Vec<&Cell> = cells.iter().filter(|cell| cell.benchmark == benchmark.name()).collect();
        if own.is_empty() {
            continue;
        }
        let metrics = metrics_of(&own, benchmark);
        let (mut head, mut rows) = (vec!["language".to_string(), "n".into()], Vec::new());
        let choice = !benchmark.options().is_empty();
        for metric in &metrics {
            head.push(metric.clone());
            head.extend(title_beside(&own, metric).map(String::from));
        }
        head.extend(choice.then(|| "majority".to_string()));
        head.push("cut".into());
        for cell in &own {
            let mut row = vec![cell.lang.clone(), cell.n.to_string()];
            for metric in &metrics {
                let measured = cell.metrics.get(metric);
                row.push(measured.map_or(
                    "-".into(),
                    |Measured { estimate: Estimate { mean, low, high, .. }, .. }| {
                        format!("{} [{}, {}]", percent(*mean), percent(*low), percent(*high))
                    },
                ));
                if title_beside(&own, metric).is_some() {
                    row.push(measured.and_then(Measured::beside).map_or("-".into(), |(_, share)| percent(share)));
                }
            }
            row.extend(cell.majority.map(percent));
            row.push(percent(cell.truncated));
            rows.push(row);
        }
        rows.push(mean_row(&own, &metrics, choice));
        tables.push((benchmark.name().to_string(), head, rows));
    }
    tables
}

/// The title of what stands beside a metric, if anything does in any of the cells.
fn title_beside(cells: &[&Cell], metric: &str) -> Option<&'static str> {
    cells.iter().find_map(|cell| Some(cell.metrics.get(metric)?.beside()?.0))
}

/// Means over languages, each counted once.
fn mean_row(cells: &[&Cell], metrics: &[String], choice: bool) -> Vec<String> {
    let over = |pick: &dyn Fn(&Cell) -> Option<f64>| {
        let values: Vec<f64> = cells.iter().filter_map(|cell| pick(cell)).collect();
        if values.is_empty() { "-".into() } else { percent(crate::statistics::mean(&values)) }
    };
    let mut row = vec!["mean".to_string(), cells.iter().map(|cell| cell.n).sum::<usize>().to_string()];
    for metric in metrics {
        row.push(over(&|cell| cell.metrics.get(metric).map(|measured| measured.estimate.mean)));
        if title_beside(cells, metric).is_some() {
            row.push(over(&|cell| Some(cell.metrics.get(metric)?.beside()?.1)));
        }
    }
    row.extend(choice.then(|| over(&|cell| cell.majority)));
    row.push(over(&|cell| Some(cell.truncated)));
    row
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn legend() -> String {
    format!(
        "All numbers are percentages; in brackets 95 % bootstrap intervals. unread: no option could be read by the rule to \
         the left. ties: the two likeliest options lie within {} nats. majority: always the most frequent option. cut: \
         ended by the token limit.",
        scorers::NEAR_TIE
    )
}

/// For a terminal.
pub fn terminal(cells: &[Cell]) -> String {
    let mut text = String::new();
    for (title, head, rows) in tables(cells) {
        let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&rows).collect();
        let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        text += &format!("\n{title}\n");
        for row in all {
            let cells = row.iter().zip(&widths).enumerate();
            let line: Vec<String> = cells
                .map(|(at, (cell, &width))| if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
                .collect();
            text += &format!("{}\n", line.join("  ").trim_end());
        }
    }
    format!("{text}\n{}\n", legend())
}

pub fn markdown(cells: &[Cell], title: &str) -> String {
    let mut text = format!("# {title}\n");
    for (name, head, rows) in tables(cells) {
        let line = |row: &[String]| format!("| {} |\n", row.join(" | "));
        let rule: Vec<String> = (0..head.len()).map(|at| if at == 0 { "---" } else { "---:" }.to_string()).collect();
        text += &format!("\n## {name}\n\n{}{}", line(&head), line(&rule));
        rows.iter().for_each(|row| text += &line(row));
    }
    format!("{text}\n{}\n", legend())
}

/// One line per benchmark, language and metric, shares from 0 to 1.
pub fn csv(cells: &[Cell]) -> String {
    let mut text =
        "benchmark,language,n,metric,value,stderr,low,high,unparsable,near_ties,majority,truncated\n".to_string();
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.6}"));
    for cell in cells {
        for (metric, Measured { estimate, unparsable, near_ties }) in &cell.metrics {
            let Estimate { mean, stderr, low, high } = estimate;
            text += &format!(
                "{},{},{},{metric},{mean:.6},{stderr:.6},{low:.6},{high:.6},{},{},{},{:.6}\n",
                cell.benchmark,
                cell.lang,
                cell.n,
                optional(*unparsable),
                optional(*near_ties),
                optional(cell.majority),
                cell.truncated
            );
        }
    }
    text
}
