//! Which option an answer chooses.

/// The paper's rule: the one option that the answer contains anywhere, in a word or a number too.
///
/// "(A) None" contains no other; "Answer: B" contains A as well, so it chooses nothing.
pub fn only_option<'o>(answer: &str, options: &[&'o str]) -> Option<&'o str> {
    the_only_one(options, |option| answer.contains(option))
}

/// The first option that stands alone: no letter and no digit beside it.
pub fn first_option<'o>(answer: &str, options: &[&'o str]) -> Option<&'o str> {
    let standing_alone = |&option: &&'o str| {
        let alone = |&(at, _): &(usize, &str)| {
            let before = answer[..at].chars().next_back();
            let after = answer[at + option.len()..].chars().next();
            !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
        };
        answer.match_indices(option).find(alone).map(|(at, _)| (at, option))
    };
    options.iter().filter_map(standing_alone).min().map(|(_, option)| option)
}

/// The one option that the answer contains in parentheses, half- or full-width.
pub fn parenthesised<'o>(answer: &str, options: &[&'o str]) -> Option<&'o str> {
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
