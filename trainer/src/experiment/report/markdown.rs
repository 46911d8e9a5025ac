//! Tables and numbers as text. It knows no cell.

use crate::statistics::Estimate;

/// A table of Markdown.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return "Not measured yet.\n".into();
    }
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|cell| cell.to_string()).collect();
    let rule: Vec<String> = (0..head.len()).map(|at| if at == 0 { "---".into() } else { "---:".into() }).collect();
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(&head) + &line(&rule) + &rows
}

/// The same as comma-separated values.
pub fn csv(head: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &str| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| cells.map(cell).collect::<Vec<_>>().join(",") + "\n";
    let rows: String = rows.iter().map(|row| line(&mut row.iter().map(String::as_str))).collect();
    line(&mut head.iter().copied()) + &rows
}

/// A share as percent.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}", 100.0 * share) } else { "–".into() }
}

/// Percent with its interval.
pub fn interval(estimate: &Estimate) -> String {
    within(estimate, percent)
}

/// A number in any unit with its interval, if it has one.
pub fn within(estimate: &Estimate, write: impl Fn(f64) -> String) -> String {
    match () {
        () if !estimate.mean.is_finite() => "–".into(),
        () if estimate.low.is_nan() => write(estimate.mean),
        () => format!("{} [{}, {}]", write(estimate.mean), write(estimate.low), write(estimate.high)),
    }
}

/// Writes a number with so many decimals.
pub fn decimals(n: usize) -> impl Fn(f64) -> String {
    move |value| format!("{value:.n$}")
}

/// Points with their sign and interval.
pub fn points(estimate: &Estimate) -> String {
    if !estimate.mean.is_finite() {
        return "–".into();
    }
    let [mean, low, high] = [estimate.mean, estimate.low, estimate.high].map(|share| 100.0 * share);
    format!("{mean:+.1} [{low:+.1}, {high:+.1}]")
}

/// What an interval of a difference says.
pub fn verdict(estimate: &Estimate) -> &'static str {
    match () {
        () if !estimate.mean.is_finite() => "is not measured",
        () if estimate.low > 0.0 => "is above zero",
        () if estimate.high < 0.0 => "is below zero",
        () => "cannot be told from zero",
    }
}

/// How many seeds, in words.
pub fn seeds(n: usize) -> String {
    if n == 1 { "1 seed".into() } else { format!("{n} seeds") }
}

/// The command of one part of the matrix.
pub fn command(command: &str, only: &str) -> String {
    format!("`{command} --only {only}`")
}
