//! ROUGE-L by four tokenizations, which differ more than models do where a script is not Latin.

use std::sync::LazyLock;

use regex::Regex;
use rust_stemmers::{Algorithm, Stemmer};

use super::bare;

/// F-measure of the longest common subsequence of tokens.
///
/// - `google`: `rouge-score` without stemmer; ASCII letters and digits only, so other scripts score next to nothing.
/// - `xlsum`: after the `multilingual_rouge` of XL-Sum: words end at punctuation and where letters meet digits, an
///   ideograph is a word, words of more than three characters stemmed where a stemmer exists.
/// - `unicode`: words between spaces without punctuation.
/// - `char`: characters.
///
/// # Departures
/// `xlsum` uses the Snowball stemmers of English and Turkish where the original has Porter and the package TurkishStemmer.
pub fn rouge_l(rule: &str, lang: &str, gold: &str, answer: &str) -> f64 {
    let tokens = |text: &str| match rule {
        "google" => google(text),
        "xlsum" => xlsum(lang, text),
        "unicode" => bare(text).split_whitespace().map(String::from).collect(),
        _ => text.to_lowercase().chars().filter(|c| !c.is_whitespace()).map(String::from).collect(),
    };
    f_measure(&tokens(gold), &tokens(answer))
}

/// Of two token sequences.
fn f_measure(gold: &[String], answer: &[String]) -> f64 {
    let common = longest_common_subsequence(gold, answer) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / answer.len() as f64, common / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for one in a {
        let mut diagonal = 0;
        for (at, other) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if one == other { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

fn google(text: &str) -> Vec<String> {
    let kept: String = text.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { ' ' }).collect();
    kept.split_whitespace().map(String::from).collect()
}

/// What ends a word: punctuation, and the symbols of ASCII.
static BETWEEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{P}\p{Cc}[\p{S}&&\p{ascii}]]").expect("a pattern that is written here"));
static SEGMENT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\p{Han}|\p{N}+|[^\s\p{Han}\p{N}]+").expect("a pattern that is written here"));

fn xlsum(lang: &str, text: &str) -> Vec<String> {
    let stemmer = match lang {
        "ar" => Some(Algorithm::Arabic),
        "en" => Some(Algorithm::English),
        "fr" => Some(Algorithm::French),
        "ru" => Some(Algorithm::Russian),
        "tr" => Some(Algorithm::Turkish),
        _ => None,
    };
    let stemmer = stemmer.map(Stemmer::create);
    let stem = |word: &str| match &stemmer {
        _ if word.chars().count() <= 3 => word.to_string(),
        Some(stemmer) => stemmer.stem(word).into_owned(),
        None if lang == "hi" => hindi_stem(word).to_string(),
        None => word.to_string(),
    };
    let text = text.to_lowercase();
    SEGMENT.find_iter(&BETWEEN.replace_all(&text, " ")).map(|found| stem(found.as_str())).collect()
}

/// Suffixes of Hindi by their length in characters, the longest first (Ramanathan and Rao, 2003).
const HINDI: [(usize, &[&str]); 5] = [
    (5, &["ाएंगी", "ाएंगे", "ाऊंगी", "ाऊंगा"]),
    (
        4,
        &[
            "ाएगी",
            "ाएगा",
            "ाओगी",
            "ाओगे",
            "एंगी",
            "ेंगी",
            "एंगे",
            "ेंगे",
            "ूंगी",
            "ूंगा",
            "ातीं",
            "नाओं",
            "नाएं",
            "ताओं",
            "ताएं",
            "ियाँ",
            "ियों",
            "ियां",
        ],
    ),
    (
        3,
        &[
            "ाकर",
            "ाइए",
            "ाईं",
            "ाया",
            "ेगी",
            "ेगा",
            "ोगी",
            "ोगे",
            "ाने",
            "ाना",
            "ाते",
            "ाती",
            "ाता",
            "तीं",
            "ाओं",
            "ाएं",
            "ुओं",
            "ुएं",
            "ुआं",
        ],
    ),
    (2, &["कर", "ाओ", "िए", "ाई", "ाए", "ने", "नी", "ना", "ते", "ीं", "ती", "ता", "ाँ", "ां", "ों", "ें"]),
    (1, &["ो", "े", "ू", "ु", "ी", "ि", "ा"]),
];

fn hindi_stem(word: &str) -> &str {
    let length = word.chars().count();
    let mut found = HINDI.iter().filter(|(cut, _)| length > cut + 1).flat_map(|(_, suffixes)| suffixes.iter());
    found.find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(word)
}
