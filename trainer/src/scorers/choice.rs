//! Which option an answer chooses.

use std::sync::LazyLock;

use regex::Regex;

use super::dates::western_digits;

/// Letters that stand beside an option without making a word of it: their scripts set no spaces, or hang particles on.
static UNSPACED: LazyLock<Regex> = LazyLock::new(|| {
    let scripts = r"^[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]$";
    Regex::new(scripts).expect("a pattern that is written here")
});

/// The paper's rule: the one option that the answer contains anywhere, in a word or a number too.
///
/// "(A) None" contains no other; "Answer: B" contains A as well, so it chooses nothing.
pub fn only_option<'o>(answer: &str, options: &[&'o str]) -> Option<&'o str> {
    the_only_one(options, |option| answer.contains(option))
}

/// The first option that stands alone, no digit and no letter of a spaced script beside it; digits of any script are read.
pub fn first_option<'o>(answer: &str, options: &[&'o str]) -> Option<&'o str> {
    let answer = western_digits(answer);
    let joins = |c: char| c.is_alphanumeric() && !UNSPACED.is_match(c.encode_utf8(&mut [0; 4]));
    let standing_alone = |&option: &&'o str| {
        let alone = |&(at, _): &(usize, &str)| {
            let before = answer[..at].chars().next_back();
            let after = answer[at + option.len()..].chars().next();
            !before.is_some_and(joins) && !after.is_some_and(joins)
        };
        answer.match_indices(option).find(alone).map(|(at, _)| (at, option))
    };
    options.iter().filter_map(standing_alone).min().map(|(_, option)| option)
}

/// The one option that the answer contains in parentheses, half- or full-width; digits of any script are read.
pub fn parenthesised<'o>(answer: &str, options: &[&'o str]) -> Option<&'o str> {
    let answer = western_digits(answer);
    the_only_one(options, |option| answer.contains(&format!("({option})")) || answer.contains(&format!("（{option}）")))
}

/// The number of the largest value, the first of equals, and by how much it is larger than the second.
pub fn likeliest(values: &[f64]) -> (usize, Option<f64>) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let gap = match order[..] {
        [best, second, ..] => Some(values[best] - values[second]),
        _ => None,
    };
    (order.first().copied().unwrap_or(0), gap)
}

fn the_only_one<'o>(options: &[&'o str], contained: impl Fn(&str) -> bool) -> Option<&'o str> {
    let mut found = options.iter().filter(|option| contained(option));
    match (found.next(), found.next()) {
        (Some(option), None) => Some(option),
        _ => None,
    }
}
