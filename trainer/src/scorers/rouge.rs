//! ROUGE-L by four tokenizations, which differ more than models do where a script is not Latin.

use std::sync::LazyLock;

use super::stems::Stems;
use super::{bare, composed};
use regex::Regex;

/// F-measure of the longest common subsequence of tokens.
///
/// - `google`: `rouge-score` without stemmer; ASCII letters and digits only, so other scripts score next to nothing.
/// - `xlsum`: the `multilingual_rouge_scoring` of XL-Sum with its stemmers: words end at punctuation, symbols and where
///   letters meet digits, an ideograph is a word, and words of more than three characters are stemmed, see [`Stems::of`].
/// - `unicode`: words between spaces without punctuation, in Unicode's composed form.
/// - `char`: characters in that form, punctuation among them and white space not.
///
/// # Departures
/// Under `xlsum` the original cuts Chinese, Japanese and Thai into words by a dictionary (jieba, MeCab with UniDic,
/// newmm), which the six benchmarks need for none of their summaries; here Chinese counts by ideographs, and the other
/// two by what stands between spaces, digits, ideographs and punctuation.
pub fn rouge_l(rule: &str, lang: &str, gold: &str, answer: &str) -> f64 {
    let stems = Stems::of(if rule == "xlsum" { lang } else { "" });
    let tokens = |text: &str| match rule {
        "google" => google(text),
        "xlsum" => xlsum(&stems, text),
        "unicode" => bare(text).split_whitespace().map(String::from).collect(),
        _ => composed(text).to_lowercase().chars().filter(|c| !c.is_whitespace()).map(String::from).collect(),
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

/// Goes without leaving a gap: control and format signs, but for tab and line ends.
static NOTHING: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{C}\u{FFFD}--\t\n\r]").expect("a pattern that is written here"));
/// What ends a word: punctuation, and the symbols of ASCII.
static BETWEEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{P}[\p{S}&&\p{ascii}]]").expect("a pattern that is written here"));
/// An ideograph, letters, digits, or one symbol, with the marks upon them; or marks that begin a word.
static SEGMENT: LazyLock<Regex> = LazyLock::new(|| {
    const IDEOGRAPH: &str =
        r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}\x{2F800}-\x{2FA1F}";
    let segment = format!(
        r"[{IDEOGRAPH}]|[\p{{L}}--[{IDEOGRAPH}]][\p{{L}}\p{{M}}--[{IDEOGRAPH}]]*|\p{{N}}[\p{{N}}\p{{M}}]*|\p{{S}}\p{{M}}*|\p{{M}}+"
    );
    Regex::new(&segment).expect("a pattern that is written here")
});

fn xlsum(stems: &Stems, text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let text = BETWEEN.replace_all(&NOTHING.replace_all(&text, ""), " ").into_owned();
    SEGMENT.find_iter(&text).map(|found| stems.stem(found.as_str())).filter(|stem| !stem.is_empty()).collect()
}
