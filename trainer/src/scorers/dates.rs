//! Containment that knows numbers and dates: MKQA writes them as `3.0` and `2019-06-30`, which no model answers.

use std::sync::LazyLock;

use regex::Regex;

use super::{composed, containment};

/// Beginnings of the months' names, January first, each list in one language.
const MONTHS: [(&str, [&str; 12]); 8] = [
    ("en", ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("de", ["jan", "feb", "mär", "apr", "mai", "jun", "jul", "aug", "sep", "okt", "nov", "dez"]),
    ("pt", ["jan", "fev", "mar", "abr", "mai", "jun", "jul", "ago", "set", "out", "nov", "dez"]),
    ("tr", ["oca", "şub", "mar", "nis", "may", "haz", "tem", "ağu", "eyl", "eki", "kas", "ara"]),
    ("ru", ["янв", "фев", "мар", "апр", "ма", "июн", "июл", "авг", "сен", "окт", "ноя", "дек"]),
    (
        "ar",
        ["يناير", "فبراير", "مارس", "أبريل", "مايو", "يونيو", "يوليو", "أغسطس", "سبتمبر", "أكتوبر", "نوفمبر", "ديسمبر"],
    ),
    // The names of the Levant.
    (
        "ar",
        [
            "كانون الثاني",
            "شباط",
            "آذار",
            "نيسان",
            "أيار",
            "حزيران",
            "تموز",
            "آب",
            "أيلول",
            "تشرين الأول",
            "تشرين الثاني",
            "كانون الأول",
        ],
    ),
    // Vietnamese may write them out; its digits, and those of Chinese, Japanese and Korean, are read as numbers.
    (
        "vi",
        [
            "tháng một",
            "tháng hai",
            "tháng ba",
            "tháng tư",
            "tháng năm",
            "tháng sáu",
            "tháng bảy",
            "tháng tám",
            "tháng chín",
            "tháng mười",
            "tháng mười một",
            "tháng mười hai",
        ],
    ),
];

static ISO: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(\d{4})-(\d{2})-(\d{2})$"));
static LEADING: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(-?\d+(?:\.\d+)?)(?:\s|$)"));
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\d+(?:[.,\u{a0}\u{202f} ]\d{3}\b)+(?:[.,]\d+)?|\d+(?:[.,]\d+)?"));
static WHOLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\d+"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern that is written here")
}

/// True when a gold answer is contained, or an equal number, or the same day written in the language's way.
pub fn contains(lang: &str, gold: &[String], answer: &str) -> bool {
    if containment::contains_composed(gold, answer) {
        return true;
    }
    let answer = western_digits(&composed(answer)).to_lowercase();
    gold.iter().any(|gold| {
        if let Some(day) = ISO.captures(gold) {
            let part = |at: usize| day[at].parse().unwrap_or(0);
            return dates(lang, &answer).contains(&(part(1), part(2), part(3)));
        }
        let number = LEADING.captures(gold).and_then(|found| found[1].parse::<f64>().ok());
        number.is_some_and(|number| numbers(&answer).any(|found| found == number))
    })
}

/// Arabic, Persian, Devanagari, Bengali, Thai and full-width digits as ASCII ones, Arabic separators too.
pub(super) fn western_digits(text: &str) -> String {
    let zeros = [0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10];
    let western = |c: char| match c {
        '٫' => '.',
        '٬' => ',',
        _ => {
            let digit = zeros.iter().find_map(|zero| u32::from(c).checked_sub(*zero).filter(|digit| *digit < 10));
            digit.and_then(|digit| char::from_digit(digit, 10)).unwrap_or(c)
        }
    };
    text.chars().map(western).collect()
}

/// Every number of a text; `1,234`, `1.234` and `1 234` may be 1234, and `1,234` and `1,5` may be decimal: each reading
/// counts. What separates twice separates groups.
fn numbers(text: &str) -> impl Iterator<Item = f64> + '_ {
    NUMBER.find_iter(text).flat_map(|found| {
        let text = found.as_str();
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        let last = text.rfind(['.', ',']).filter(|&at| !text[..at].contains(&text[at..=at]));
        let decimal = last.map(|at| format!("{}.{}", digits(&text[..at]), &text[at + 1..]));
        let grouped = text.split(|c: char| !c.is_ascii_digit()).skip(1).all(|group| group.len() == 3);
        [grouped.then(|| digits(text)), decimal].into_iter().flatten().filter_map(|number| number.parse().ok())
    })
}

/// One part of a date.
enum Part {
    Number(u32),
    Month(u32),
}

/// Every (year, month, day) in the text, which is in lower case: three parts that follow one another.
fn dates(lang: &str, text: &str) -> Vec<(u32, u32, u32)> {
    let mut parts: Vec<(usize, usize, Part)> = WHOLE
        .find_iter(text)
        .filter_map(|found| Some((found.start(), found.len(), Part::Number(found.as_str().parse().ok()?))))
        .collect();
    // Answers drift into English, whose months are known everywhere.
    for (_, names) in MONTHS.iter().filter(|(of, _)| *of == lang || *of == "en") {
        for (month, name) in (1..).zip(names) {
            let starts_a_word = |at: usize| !text[..at].chars().next_back().is_some_and(char::is_alphabetic);
            let found = text.match_indices(name).filter(|&(at, _)| starts_a_word(at));
            parts.extend(found.map(|(at, _)| (at, name.len(), Part::Month(month))));
        }
    }
    // Of two names at one place the longer one is meant.
    parts.sort_by_key(|&(at, length, _)| (at, std::cmp::Reverse(length)));
    parts.dedup_by_key(|&mut (at, ..)| at);
    let mut found = Vec::new();
    for window in parts.windows(3) {
        let [(_, _, a), (_, _, b), (_, _, c)] = window else { continue };
        match (a, b, c) {
            (&Part::Number(day), &Part::Month(month), &Part::Number(year)) if year > 31 => {
                found.push((year, month, day))
            }
            (&Part::Number(year), &Part::Month(month), &Part::Number(day)) => found.push((year, month, day)),
            (&Part::Month(month), &Part::Number(day), &Part::Number(year)) => found.push((year, month, day)),
            (&Part::Number(a), &Part::Number(b), &Part::Number(c)) if a > 31 => found.push((a, b, c)),
            // Only English, of these languages, puts the month first.
            (&Part::Number(a), &Part::Number(b), &Part::Number(c)) if lang == "en" => found.push((c, a, b)),
            (&Part::Number(a), &Part::Number(b), &Part::Number(c)) => found.push((c, b, a)),
            _ => {}
        }
    }
    found
}
