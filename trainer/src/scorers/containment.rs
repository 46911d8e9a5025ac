//! Whether a gold answer stands in an answer, and how many words they share.

use std::collections::HashMap;

use super::{bare, composed};

/// The paper's rule: a gold answer is contained as it is written.
pub fn contains(gold: &[String], answer: &str) -> bool {
    gold.iter().any(|gold| !gold.trim().is_empty() && answer.contains(gold.trim()))
}

/// The same, however gold answer and answer write their letters.
pub fn contains_composed(gold: &[String], answer: &str) -> bool {
    contains(&gold.iter().map(|gold| composed(gold)).collect::<Vec<_>>(), &composed(answer))
}

/// The best F1 of shared words with any gold answer; characters where a language writes no spaces.
pub fn best_f1(lang: &str, gold: &[String], answer: &str) -> f64 {
    let answer = units(lang, answer);
    gold.iter().map(|gold| f1(&units(lang, gold), &answer)).fold(0.0, f64::max)
}

fn units(lang: &str, text: &str) -> Vec<String> {
    let text = bare(text);
    match lang {
        "zh" | "ja" | "th" => text.chars().filter(|c| !c.is_whitespace()).map(String::from).collect(),
        _ => text.split_whitespace().map(String::from).collect(),
    }
}

fn f1(gold: &[String], answer: &[String]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for unit in gold {
        *left.entry(unit).or_default() += 1;
    }
    let mut shared = 0;
    for unit in answer {
        if let Some(count) = left.get_mut(unit.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    match gold.len() + answer.len() {
        0 => 0.0,
        all => 2.0 * f64::from(shared) / all as f64,
    }
}
