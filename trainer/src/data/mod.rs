//! Training rows: files of several formats in, `Row`s out, each with its place, and every fault of a file at once.
//!
//! A row is a triple: an instruction, its English twin, the answer in the instruction's language. Bytes become records
//! (`source`, `records`, `table`), records become rows (`format`); `check` reports on a file, `build` derives the paper's
//! settings from one. Only `check` and `build` know tokens.

pub mod build;
pub mod check;
pub mod distill;
mod format;
mod json_place;
pub mod lengths;
pub mod lexicon;
pub mod overlap;
mod records;
pub mod settings;
mod source;
mod table;
mod turns;
pub mod verb;

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};
use cctuning::chat::History;
use serde::Serialize;

pub use format::{Columns, Format, Reading, RowParser};
pub use records::{Record, Records};

/// Faults reported before reading stops.
const MAX_FAULTS: usize = 50;
/// Characters of a faulty line shown.
const PREVIEW: usize = 80;

/// One training sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    pub id: String,
    pub task: String,
    /// ISO 639 code.
    pub lang: String,
    pub instruction: String,
    /// The instruction in English; an English row is its own twin.
    pub instruction_en: String,
    pub output: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_en: Option<String>,
    /// What the model is told beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The same in English; where it is absent, the same text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_en: Option<String>,
    /// Questions and answers before the instruction, the oldest first: read, not learnt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<[String; 2]>,
    /// The same in English.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history_en: Vec<[String; 2]>,
}

impl Row {
    /// What was said before the instruction.
    pub fn before(&self) -> History<'_> {
        History { system: self.system.as_deref(), exchanges: &self.history }
    }

    /// What was said before the English instruction.
    pub fn before_en(&self) -> History<'_> {
        History { system: self.system_en.as_deref().or(self.system.as_deref()), exchanges: &self.history_en }
    }
}

/// What is wrong at one place of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// From 1; the row of a table.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Inside the record, as `messages[1].content`; empty where the record itself is meant.
    pub path: String,
    pub expected: String,
    pub found: String,
    pub preview: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { line, column, path, expected, found, preview } = self;
        write!(f, "{line}:{column}: ")?;
        if !path.is_empty() {
            write!(f, "`{path}`: ")?;
        }
        write!(f, "expected {expected}, found {found}")?;
        if !preview.is_empty() {
            write!(f, " | {preview}")?;
        }
        Ok(())
    }
}

/// The rows of a file, one after the other; memory stays that of one record.
pub struct Rows {
    records: Records,
    reading: Reading,
    /// Made when the first record says what format it is.
    parser: Option<RowParser>,
    /// Rows of the last record that were not handed out.
    waiting: std::vec::IntoIter<Row>,
}

impl Rows {
    /// # Errors
    /// When the file cannot be opened, or is no table though its name says so.
    pub fn open(path: &Path, reading: &Reading) -> Result<Self> {
        Ok(Self {
            records: Records::open(path)?,
            reading: reading.clone(),
            parser: None,
            waiting: Vec::new().into_iter(),
        })
    }
}

impl Iterator for Rows {
    /// A row, or the faults of a record.
    type Item = std::result::Result<Row, Vec<Fault>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.waiting.next() {
                return Some(Ok(row));
            }
            let record = match self.records.next()? {
                Ok(record) => record,
                Err(fault) => return Some(Err(vec![fault])),
            };
            let parser = self.parser.get_or_insert_with(|| RowParser::new(&self.reading, &record));
            match parser.rows(&record) {
                Ok(rows) => self.waiting = rows.into_iter(),
                Err(faults) => return Some(Err(faults)),
            }
        }
    }
}

/// Reads a file whose format its first record tells.
///
/// # Errors
/// As [`read_rows_as`].
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    read_rows_as(path, &Reading::default())
}

/// Reads a whole file into memory.
///
/// # Errors
/// Every fault found in one pass (50 at most) as `file:line:column`, what was expected, what was found, and a preview.
pub fn read_rows_as(path: &Path, reading: &Reading) -> Result<Vec<Row>> {
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for found in Rows::open(path, reading)? {
        match found {
            Ok(row) => rows.push(row),
            Err(found) => faults.extend(found),
        }
        if faults.len() >= MAX_FAULTS {
            break;
        }
    }
    let mut shown: Vec<String> =
        faults.iter().take(MAX_FAULTS).map(|fault| format!("{}:{fault}", path.display())).collect();
    if let (true, Some(last)) = (faults.len() >= MAX_FAULTS, faults.last()) {
        shown.push(format!("stopped at line {} after {MAX_FAULTS} faults; `trainer data check` counts all", last.line));
    }
    if !shown.is_empty() {
        bail!("the rows cannot be used; correct or remove these lines:\n  {}", shown.join("\n  "));
    }
    if rows.is_empty() {
        bail!("{}: expected at least one row, found none", path.display());
    }
    Ok(rows)
}
