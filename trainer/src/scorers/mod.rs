//! Rules that judge an answer, by name; all that fit a benchmark are reported beside each other.
//!
//! Text in, numbers out: no model, no files. The log-likelihood of the options is the only rule that needs a model, which
//! is asked elsewhere.

pub mod choice;
pub mod containment;
pub mod dates;
pub mod rouge;
mod stems;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use unicode_normalization_alignments::UnicodeNormalization;

use crate::benchmarks::{Benchmark, Item};

/// The rule that compares what the model holds for likely instead of what it says: sums over the tokens of an option.
pub const LOGLIK: &str = "loglik";
/// The same over the bytes of the option, so that a longer one is at no disadvantage; lm-eval's `acc_bytes`. It differs
/// only where the options of a question are of different lengths.
pub const LOGLIK_PER_BYTE: &str = "loglik_per_byte";
/// The rules that need no text.
pub const LIKELIHOODS: [&str; 2] = [LOGLIK, LOGLIK_PER_BYTE];
/// In nats: two options nearer than this may change places by rounding alone, being less apart than neighbouring bf16
/// logits between 8 and 16.
pub const NEAR_TIE: f64 = 0.0625;

/// What one rule says of one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// What the rule read in the answer; nothing when it could not read any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub extracted: Option<String>,
    /// From 0 to 1.
    pub score: f64,
    /// By how much the chosen option was likelier than the second; only of likelihoods.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gap: Option<f64>,
}

impl Judgement {
    fn of_option(extracted: Option<&str>, gold: &str) -> Self {
        Self { score: f64::from(extracted == Some(gold)), extracted: extracted.map(String::from), gap: None }
    }

    fn of_score(score: f64) -> Self {
        Self { extracted: None, score, gap: None }
    }
}

/// The rules of a benchmark that judge text, the one to be looked at first at the front.
pub fn rules(benchmark: Benchmark) -> &'static [&'static str] {
    match benchmark {
        Benchmark::Xnli | Benchmark::XStoryCloze | Benchmark::Mmmlu => &["paper", "first_option", "parenthesised"],
        Benchmark::Mkqa => &["paper", "numeric_date", "f1"],
        Benchmark::Xquad => &["paper", "nfc", "f1"],
        Benchmark::XlSum => &["xlsum", "google", "unicode", "char"],
    }
}

/// How a rule's number is called in results: the kind of number, then the rule.
pub fn metric(benchmark: Benchmark, rule: &str) -> String {
    match (benchmark, rule) {
        (_, "f1") => "f1".into(),
        (Benchmark::XlSum, _) => format!("rougeL_{rule}"),
        (Benchmark::Mkqa | Benchmark::Xquad, _) => format!("contains_{rule}"),
        _ => format!("acc_{rule}"),
    }
}

/// True when the rule reads an option, so that it can fail to.
pub fn reads_options(benchmark: Benchmark, rule: &str) -> bool {
    !benchmark.options().is_empty() && !LIKELIHOODS.contains(&rule)
}

/// The rules of likelihood on the log-probabilities of a question's options.
pub fn judge_likelihoods(options: &[&str], gold: &str, log_probabilities: &[f64]) -> [(String, Judgement); 2] {
    let per_byte: Vec<f64> =
        log_probabilities.iter().zip(options).map(|(value, option)| value / option.len() as f64).collect();
    let judge = |rule: &str, values: &[f64]| {
        let (best, gap) = choice::likeliest(values);
        let judgement = Judgement { gap, ..Judgement::of_option(options.get(best).copied(), gold) };
        (rule.to_string(), judgement)
    };
    [judge(LOGLIK, log_probabilities), judge(LOGLIK_PER_BYTE, &per_byte)]
}

/// Every rule of the item's benchmark on an answer.
pub fn judge(item: &Item, answer: &str) -> BTreeMap<String, Judgement> {
    let options = item.benchmark.options();
    let one = |rule: &str| match (item.benchmark, rule) {
        (Benchmark::Xnli | Benchmark::XStoryCloze | Benchmark::Mmmlu, _) => {
            let extracted = match rule {
                "paper" => choice::only_option(answer, options),
                "first_option" => choice::first_option(answer, options),
                _ => choice::parenthesised(answer, options),
            };
            Judgement::of_option(extracted, &item.gold[0])
        }
        (Benchmark::XlSum, _) => Judgement::of_score(rouge::rouge_l(rule, &item.lang, &item.gold[0], answer)),
        (_, "f1") => Judgement::of_score(containment::best_f1(&item.lang, &item.gold, answer)),
        (_, "numeric_date") => Judgement::of_score(f64::from(dates::contains(&item.lang, &item.gold, answer))),
        (_, "nfc") => Judgement::of_score(f64::from(containment::contains_composed(&item.gold, answer))),
        _ => Judgement::of_score(f64::from(containment::contains(&item.gold, answer))),
    };
    rules(item.benchmark).iter().map(|&rule| (rule.to_string(), one(rule))).collect()
}

/// The rules under which an item's own gold answer does not score 1, as the file writes it or as a model does whose tokenizer
/// composes all text (Qwen's).
pub fn unreachable(item: &Item) -> Vec<String> {
    let composed = judge(item, &composed(&item.gold[0]));
    let judged = judge(item, &item.gold[0]).into_iter();
    judged.filter(|(rule, judged)| judged.score.min(composed[rule].score) < 1.0).map(|(rule, _)| rule).collect()
}

static PUNCTUATION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\p{P}").expect("a pattern that is written here"));

/// The text composed and in lower case, without what Unicode calls punctuation.
pub(crate) fn bare(text: &str) -> String {
    PUNCTUATION.replace_all(&composed(text).to_lowercase(), "").into_owned()
}

/// The text in Unicode's form NFC: the same letters are the same characters, however a file or a tokenizer writes them.
pub(crate) fn composed(text: &str) -> String {
    text.nfc().map(|(character, _)| character).collect()
}
