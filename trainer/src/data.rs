//! Training rows: JSON lines in, `Row`s out, and every fault of a file at once.
//!
//! A row is a triple: an instruction, its English twin, the answer in the instruction's language.
//! This room knows neither tokens nor templates.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::Value;

/// Faults reported before reading stops.
const MAX_FAULTS: usize = 50;
/// Longer lines are faults: they are files without line breaks, not instructions.
const MAX_LINE_BYTES: usize = 4 << 20;
/// Characters of a faulty line shown.
const PREVIEW: usize = 80;

/// One training sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub id: String,
    pub task: String,
    /// ISO 639 code.
    pub lang: String,
    pub instruction: String,
    /// The instruction in English; an English row is its own twin.
    pub instruction_en: String,
    pub output: String,
    pub output_en: Option<String>,
}

/// A line as written: any type in any field, so that one look finds all its faults. Other keys are allowed.
#[derive(Deserialize)]
struct Written {
    id: Option<Value>,
    task: Option<Value>,
    lang: Option<Value>,
    instruction: Option<Value>,
    instruction_en: Option<Value>,
    output: Option<Value>,
    output_en: Option<Value>,
}

/// What is wrong, and the byte of the line where it is.
struct Fault {
    byte: usize,
    problem: String,
}

/// Reads a `.jsonl` or `.jsonl.gz` file.
///
/// # Errors
/// Every fault found in one pass (50 at most) as `file:line:column`, what was expected, what was found, and a preview.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let file = File::open(path).with_context(|| format!("cannot open the rows {}", path.display()))?;
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    let bytes: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut lines = BufReader::with_capacity(1 << 16, bytes);

    let (mut rows, mut faults, mut line) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1.. {
        let found = match read_line(&mut lines, &mut line) {
            Ok(false) => break,
            Ok(true) => parse_line(&line),
            Err(error) => {
                // Nothing after an unreadable byte can be trusted.
                let cure = if zipped { "; the gzip file is damaged or cut short, fetch it again" } else { "" };
                faults.push(format!("{}:{number}:1: cannot read on: {error}{cure}", path.display()));
                break;
            }
        };
        match found {
            Ok(row) => rows.extend(row.map(|row| match row.id.is_empty() {
                true => Row { id: format!("line {number}"), ..row },
                false => row,
            })),
            Err(found) => faults.extend(found.iter().map(|fault| describe(path, number, &line, fault))),
        }
        if faults.len() >= MAX_FAULTS {
            faults.truncate(MAX_FAULTS);
            faults.push(format!("stopped at line {number} after {MAX_FAULTS} faults"));
            break;
        }
    }
    if !faults.is_empty() {
        bail!("the rows cannot be used; correct or remove these lines:\n  {}", faults.join("\n  "));
    }
    if rows.is_empty() {
        bail!("{}: expected at least one row, found none", path.display());
    }
    Ok(rows)
}

/// Reads one line without its line break; keeps one byte more than allowed of a longer line and skips the rest.
fn read_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    lines.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', line)?;
    if line.len() > MAX_LINE_BYTES && line.last() != Some(&b'\n') {
        lines.skip_until(b'\n')?;
    }
    let any = !line.is_empty();
    line.pop_if(|byte| *byte == b'\n');
    line.pop_if(|byte| *byte == b'\r');
    Ok(any)
}

/// One line to a row, nothing (a blank line), or its faults.
fn parse_line(line: &[u8]) -> std::result::Result<Option<Row>, Vec<Fault>> {
    let fault = |byte, problem: String| vec![Fault { byte, problem }];
    if line.len() > MAX_LINE_BYTES {
        return Err(fault(
            0,
            format!("expected one JSON object of at most {MAX_LINE_BYTES} bytes per line, found a longer line"),
        ));
    }
    let text = std::str::from_utf8(line)
        .map_err(|error| fault(error.valid_up_to(), "expected UTF-8, found another byte".into()))?;
    let json = text.trim_start_matches('\u{feff}').trim_start();
    if json.is_empty() {
        return Ok(None);
    }
    let start = text.len() - json.len();
    if !json.starts_with('{') {
        return Err(fault(
            start,
            format!("expected one JSON object per line, found {:?}", json.chars().next().unwrap_or_default()),
        ));
    }
    let written: Written = serde_json::from_str(json).map_err(|error| {
        // The line is known already, and serde_json counts lines inside this one.
        let message = error.to_string();
        let problem = message.rsplit_once(" at line ").map_or(message.as_str(), |(problem, _)| problem);
        fault(start + error.column().saturating_sub(1), format!("expected one JSON object: {problem}"))
    })?;

    let mut faults = Vec::new();
    let mut take = |field: &str, value: Option<Value>| match value {
        Some(Value::String(text)) if !text.trim().is_empty() => text,
        other => {
            let found = match other {
                None => "nothing",
                Some(Value::String(_)) => "an empty one",
                Some(Value::Null) => "null",
                Some(Value::Bool(_)) => "a boolean",
                Some(Value::Number(_)) => "a number",
                Some(Value::Array(_)) => "a list",
                Some(Value::Object(_)) => "an object",
            };
            let byte = start + value_offset(json, field).unwrap_or(0);
            let problem = match (field, found) {
                ("instruction_en", "nothing" | "an empty one") => {
                    format!("`{field}`: expected the English twin of a non-English instruction, found {found}")
                }
                _ => format!("`{field}`: expected a non-empty string, found {found}"),
            };
            faults.push(Fault { byte, problem });
            String::new()
        }
    };
    let mut take_if_given =
        |field: &str, value: Option<Value>| value.map_or_else(String::new, |value| take(field, Some(value)));
    let id = take_if_given("id", written.id);
    let task = take_if_given("task", written.task);
    let lang = take("lang", written.lang);
    let instruction = take("instruction", written.instruction);
    let instruction_en = match written.instruction_en {
        None if lang == "en" => instruction.clone(),
        value => take("instruction_en", value),
    };
    let output = take("output", written.output);
    let output_en = written.output_en.map(|value| take("output_en", Some(value)));
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Some(Row { id, task, lang, instruction, instruction_en, output, output_en }))
}

/// Where the value of a top-level key begins; serde_json does not keep it.
fn value_offset(json: &str, field: &str) -> Option<usize> {
    let (mut depth, mut string_start, mut escaped) = (0usize, None, false);
    for (at, byte) in json.bytes().enumerate() {
        match (string_start, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(start), b'"') => {
                string_start = None;
                let value = json[at + 1..].trim_start().strip_prefix(':').map(str::trim_start);
                if let (1, Some(value), true) = (depth, value, &json[start..at] == field) {
                    return Some(json.len() - value.len());
                }
            }
            (None, b'"') => string_start = Some(at + 1),
            (None, b'{' | b'[') => depth += 1,
            (None, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// `file:line:column: problem | preview`, columns counted in characters from 1.
fn describe(path: &Path, number: usize, line: &[u8], fault: &Fault) -> String {
    let before = String::from_utf8_lossy(&line[..fault.byte.min(line.len())]);
    let column = before.chars().count() + 1;
    // Starts far enough left to show the key.
    let first_byte = fault.byte.saturating_sub(PREVIEW / 2).min(line.len());
    let window = &line[first_byte..line.len().min(first_byte + 4 * PREVIEW)];
    let preview: String = String::from_utf8_lossy(window).chars().take(PREVIEW).collect();
    format!("{}:{number}:{column}: {} | {}", path.display(), fault.problem, preview.trim())
}
