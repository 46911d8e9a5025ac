//! Lays `section.key = value` assignments over a value that serializes to TOML, and says where a fault was written.
//!
//! The default value is the schema: a key that it does not have is unknown. Each assignment is checked alone.
//! This room knows no key by name.

use anyhow::{Result, anyhow, bail};
use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

/// One `section.key = value` and where it was written.
pub struct Assignment {
    place: String,
    key: String,
    value: Value,
}

/// Reads a TOML document as assignments, each with `name:line:column`.
pub fn document(text: &str, name: &str) -> Result<Vec<Assignment>> {
    let place = |offset: usize| {
        let before = &text[..text.floor_char_boundary(offset)];
        let line = before.rsplit('\n').next().unwrap_or_default();
        format!("{name}:{}:{}", before.matches('\n').count() + 1, line.chars().count() + 1)
    };
    let document = toml::de::DeTable::parse(text)
        .map_err(|error| anyhow!("{}: {}", place(error.span().map_or(0, |span| span.start)), error.message().trim()))?;
    let mut found = Vec::new();
    for (section, keys) in document.get_ref() {
        // An empty section, or a key outside any, is passed on as it is for `assign` to judge.
        let Some(table) = keys.get_ref().as_table().filter(|table| !table.is_empty()) else {
            found.push(Assignment {
                place: place(section.span().start),
                key: section.get_ref().to_string(),
                value: match keys.get_ref().is_table() {
                    true => Value::Table(Table::new()),
                    false => bare(&text[keys.span()]),
                },
            });
            continue;
        };
        for (key, value) in table {
            found.push(Assignment {
                place: place(key.span().start),
                key: format!("{}.{}", section.get_ref(), key.get_ref()),
                value: plain(value, text),
            });
        }
    }
    Ok(found)
}

/// A value as it was written; a table of its own, under a header or in braces, key by key.
fn plain(value: &toml::Spanned<toml::de::DeValue>, text: &str) -> Value {
    match value.get_ref().as_table() {
        Some(table) => {
            Value::Table(table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value, text))).collect())
        }
        None => bare(&text[value.span()]),
    }
}

/// Reads one `section.key=value` of a command line.
pub fn argument(text: &str) -> Result<Assignment> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("--set {text}: expected section.key=value, for example --set optim.lr=1e-4");
    };
    Ok(Assignment { place: format!("--set {text}"), key: key.trim().into(), value: bare(value) })
}

/// Applies all assignments in order; `range_fault` says what was expected of a key's value if it is out of range.
///
/// # Errors
/// Every unknown key, wrong type and value out of range at once, each with its place.
pub fn apply<T: Default + Serialize + DeserializeOwned>(
    target: &mut T,
    assignments: &[Assignment],
    range_fault: impl Fn(&T, &str) -> Option<&'static str>,
) -> Result<()> {
    let mut faults = Vec::new();
    for assignment in assignments {
        match assign(target, assignment, &range_fault) {
            Ok(next) => *target = next,
            Err(fault) => faults.push(format!("{}: {fault:#}", assignment.place)),
        }
    }
    if !faults.is_empty() {
        bail!("{} fault(s) in the configuration:\n  {}", faults.len(), faults.join("\n  "));
    }
    Ok(())
}

/// `current` with one key set.
fn assign<T: Default + Serialize + DeserializeOwned>(
    current: &T,
    Assignment { key, value, .. }: &Assignment,
    range_fault: impl Fn(&T, &str) -> Option<&'static str>,
) -> Result<T> {
    let mut next = Table::try_from(current)?;
    let defaults = Table::try_from(T::default())?;
    let known: Vec<String> = defaults
        .iter()
        .filter_map(|(section, keys)| Some((section, keys.as_table()?)))
        .flat_map(|(section, keys)| keys.keys().map(move |key| format!("{section}.{key}")))
        .collect();
    if next.contains_key(key) && value.as_table().is_some_and(Table::is_empty) {
        // A section without keys.
        return Ok(next.try_into()?);
    }
    // A key that is a table has keys of its own, which its type knows.
    let table = key.rsplit_once('.').filter(|(table, _)| !known.contains(key) && known.iter().any(|k| k == table));
    let (whole, inner) = table.map_or((key.as_str(), None), |(table, inner)| (table, Some(inner)));
    let Some((section, name)) = whole.split_once('.').filter(|_| known.iter().any(|known| known == whole)) else {
        bail!("unknown key `{key}`; {}", suggestion(key, &known));
    };
    let fault = |problem: &str| {
        let default = &defaults[section][name];
        anyhow!("`{key}` = {value}: {problem}; set another value or leave the key out for {default}")
    };
    match inner {
        None => next[section][name] = value.clone(),
        Some(inner) => match next[section][name].as_table_mut() {
            Some(table) => drop(table.insert(inner.into(), value.clone())),
            None => bail!("unknown key `{key}`; {}", suggestion(key, &known)),
        },
    }
    let next: T = next.try_into().map_err(|error: toml::de::Error| fault(error.message().trim()))?;
    match range_fault(&next, key) {
        Some(expected) => Err(fault(&format!("expected {expected}"))),
        None => Ok(next),
    }
}

/// A TOML value, or the text itself: nobody quotes a word on a command line.
fn bare(text: &str) -> Value {
    text.trim().parse().unwrap_or_else(|_| Value::String(text.trim().into()))
}

/// The nearest known key: by the key alone if only the section is wrong, else by the whole name.
fn suggestion(key: &str, known: &[String]) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    let likeness = |candidate: &String| {
        let by_last = strsim::jaro_winkler(&last(key), &last(candidate));
        strsim::jaro_winkler(key, candidate).max(0.99 * by_last)
    };
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    if let Some(best) = best.filter(|best| likeness(best) > 0.8) {
        return format!("did you mean `{best}`?");
    }
    let mut sections: Vec<&str> = known.iter().filter_map(|key| key.split('.').next()).collect();
    sections.dedup();
    format!("the sections are {}", sections.join(", "))
}
