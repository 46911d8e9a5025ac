//! `trainer compare`: two evaluations side by side, over the items that both have answered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;

use crate::benchmarks::Benchmark;
use crate::results::{ITEMS_FILE, Record, read_records};
use crate::scorers;
use crate::statistics::{Comparison, Pair, compare};

/// Of the bootstrap.
const SEED: u64 = 2506;

#[derive(Args)]
pub struct CompareArgs {
    /// The folder of an evaluation
    a: PathBuf,
    /// The folder of another
    b: PathBuf,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Prints, for every benchmark and metric, what B has over A.
///
/// # Errors
/// A folder holds no results, or the two share no item.
pub fn run(args: &CompareArgs) -> Result<()> {
    let found = comparisons(&args.a, &args.b)?;
    if args.json {
        let named: Vec<_> = found
            .iter()
            .map(|(name, comparison)| serde_json::json!({"metric": name, "comparison": comparison}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&named)?);
        return Ok(());
    }
    let shown = |value: f64| format!("{:.1}", 100.0 * value);
    println!(
        "{:<34}{:>7}{:>10}{:>8}{:>8}{:>9}  {:<17}{:>8}{:>8}{:>10}",
        "metric", "n", "questions", "A", "B", "B - A", "95 % interval", "for A", "for B", "exact p"
    );
    for (name, Comparison { n, clusters, a, b, difference, mcnemar }) in &found {
        let interval = format!("[{:+.1}, {:+.1}]", 100.0 * difference.low, 100.0 * difference.high);
        let [only_a, only_b, p] = match mcnemar {
            Some(test) => [test.only_a.to_string(), test.only_b.to_string(), format!("{:.4}", test.p)],
            None => ["-", "-", "-"].map(String::from),
        };
        let difference = format!("{:+.1}", 100.0 * difference.mean);
        println!(
            "{name:<34}{n:>7}{clusters:>10}{:>8}{:>8}{difference:>9}  {interval:<17}{only_a:>8}{only_b:>8}{p:>10}",
            shown(*a),
            shown(*b)
        );
    }
    println!(
        "\nIntervals are of a bootstrap over questions; one question in many languages is drawn with all of them. For A and for \
         B: questions of which A, or B, has more right, and the two-sided exact p of as many (where a question is one item, \
         McNemar's)."
    );
    Ok(())
}

/// By `benchmark metric` over all languages, then by `benchmark/language metric`.
///
/// # Errors
/// A folder holds no results, or the two share no item.
pub fn comparisons(a: &Path, b: &Path) -> Result<Vec<(String, Comparison)>> {
    let (of_a, of_b) = (read_records(&a.join(ITEMS_FILE))?, read_records(&b.join(ITEMS_FILE))?);
    // Under one id two folders of benchmarks may hold two questions; only equal ones are compared.
    let by_question: BTreeMap<(&str, &str), &Record> =
        of_b.iter().map(|record| ((record.id.as_str(), record.prompt_sha256.as_str()), record)).collect();
    let shared: Vec<(&Record, &Record)> = of_a
        .iter()
        .filter_map(|record| Some((record, *by_question.get(&(record.id.as_str(), record.prompt_sha256.as_str()))?)))
        .collect();
    ensure!(!shared.is_empty(), "{} and {} have no item in common", a.display(), b.display());
    let mut scores: BTreeMap<(bool, String), Vec<Pair>> = BTreeMap::new();
    let mut questions: BTreeMap<String, usize> = BTreeMap::new();
    for (one, other) in shared {
        let benchmark = Benchmark::named(&one.benchmark)?;
        let next = questions.len();
        let cluster = *questions.entry(benchmark.question(&one.lang, &one.id)).or_insert(next);
        for (rule, judgement) in &one.scores {
            let Some(against) = other.scores.get(rule) else { continue };
            let metric = scorers::metric(benchmark, rule);
            let pair = Pair { a: judgement.score, b: against.score, cluster };
            scores.entry((false, format!("{} {metric}", one.benchmark))).or_default().push(pair);
            scores.entry((true, format!("{}/{} {metric}", one.benchmark, one.lang))).or_default().push(pair);
        }
    }
    Ok(scores.into_iter().map(|((_, name), pairs)| (name, compare(&pairs, SEED))).collect())
}
