//! A file as a stream of JSON records with their places: lines, the elements of one array, the rows of a table.
//! It knows where a record ends, not what is in it.

use std::io::{self, BufRead, Read};
use std::path::Path;

use anyhow::Result;

use super::source::{self, Source};
use super::table::Table;
use super::{Fault, PREVIEW};

/// Longer records are faults: they are files without line breaks, not instructions.
pub const MAX_RECORD_BYTES: usize = 4 << 20;

/// One record as it was written, and where it begins.
#[derive(Debug, Default)]
pub struct Record {
    pub line: usize,
    pub column: usize,
    /// One byte more than allowed of a longer one.
    pub text: Vec<u8>,
}

impl Record {
    /// A fault at a byte of this record.
    pub fn fault(&self, byte: usize, path: &str, expected: &str, found: impl Into<String>) -> Fault {
        let before = &self.text[..byte.min(self.text.len())];
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let breaks = before.iter().filter(|&&byte| byte == b'\n').count();
        let column = String::from_utf8_lossy(&before[line_start..]).chars().count();
        // Starts far enough left to show the key.
        let first_byte = before.len().saturating_sub(PREVIEW / 2);
        let window = &self.text[first_byte..self.text.len().min(first_byte + 4 * PREVIEW)];
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let preview: String = String::from_utf8_lossy(window).chars().map(shown).take(PREVIEW).collect();
        Fault {
            line: self.line + breaks,
            column: column + if breaks == 0 { self.column } else { 1 },
            path: path.into(),
            expected: expected.into(),
            found: found.into(),
            preview: preview.trim().into(),
        }
    }
}

/// The records of a file. After a fault that leaves the rest without meaning it ends.
pub enum Records {
    Lines { bytes: Box<dyn BufRead>, cure: &'static str, line: usize },
    Array(Elements),
    Table(Table),
    Ended,
}

impl Records {
    /// # Errors
    /// When the file cannot be opened, or is no table though its name says so.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
            return Ok(Self::Table(Table::open(path)?));
        }
        let Source { mut bytes, cure, extension } = source::open(path)?;
        // Many a `.json` holds lines; only the first character tells. In `.jsonl` a list is a fault of its line.
        if extension == "json" {
            let mut elements = Elements::new(bytes, cure);
            if elements.enter() {
                return Ok(Self::Array(elements));
            }
            bytes = elements.bytes;
            return Ok(Self::Lines { bytes, cure, line: elements.line - 1 });
        }
        Ok(Self::Lines { bytes, cure, line: 0 })
    }
}

impl Iterator for Records {
    type Item = std::result::Result<Record, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let (found, goes_on) = match self {
            Self::Ended => (None, false),
            Self::Table(table) => match table.next() {
                Some(Ok(record)) => (Some(Ok(record)), true),
                end => (end, false),
            },
            Self::Array(elements) => match elements.next() {
                Some(Ok(record)) => (Some(Ok(record)), true),
                end => (end, false),
            },
            Self::Lines { bytes, cure, line } => {
                *line += 1;
                let mut record = Record { line: *line, column: 1, text: Vec::new() };
                match read_line(bytes, &mut record.text) {
                    Ok(true) => (Some(Ok(record)), true),
                    Ok(false) => (None, false),
                    // Nothing after an unreadable byte can be trusted.
                    Err(error) => (Some(Err(unreadable(*line, 1, &error, cure))), false),
                }
            }
        };
        if !goes_on {
            *self = Self::Ended;
        }
        found
    }
}

fn unreadable(line: usize, column: usize, error: &io::Error, cure: &str) -> Fault {
    Fault {
        line,
        column,
        path: String::new(),
        expected: "more of the file".into(),
        found: format!("an error: {error}{cure}"),
        preview: String::new(),
    }
}

/// Reads one line without its line break; keeps one byte more than allowed of a longer line and skips the rest.
fn read_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    lines.by_ref().take(MAX_RECORD_BYTES as u64 + 1).read_until(b'\n', line)?;
    if line.len() > MAX_RECORD_BYTES && line.last() != Some(&b'\n') {
        lines.skip_until(b'\n')?;
    }
    let any = !line.is_empty();
    line.pop_if(|byte| *byte == b'\n');
    line.pop_if(|byte| *byte == b'\r');
    Ok(any)
}

/// The elements of one JSON array, which may stand on any number of lines.
pub struct Elements {
    bytes: Box<dyn BufRead>,
    cure: &'static str,
    line: usize,
    column: usize,
    any: bool,
    /// Met on the way, told by `next`.
    error: Option<io::Error>,
}

impl Elements {
    fn new(bytes: Box<dyn BufRead>, cure: &'static str) -> Self {
        Self { bytes, cure, line: 1, column: 1, any: false, error: None }
    }

    /// Goes past an opening bracket, if the first character is one.
    fn enter(&mut self) -> bool {
        while let Some(byte) = self.peek() {
            match byte {
                b'[' => {
                    self.bump(byte);
                    return true;
                }
                // A byte order mark, too.
                byte if byte.is_ascii_whitespace() || [0xef, 0xbb, 0xbf].contains(&byte) => self.bump(byte),
                _ => return false,
            }
        }
        // The error is met again, and told, where the list would begin.
        self.error.is_some()
    }

    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.fill_buf() {
                Ok(buffer) => return buffer.first().copied(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.error = Some(error);
                    return None;
                }
            }
        }
    }

    fn bump(&mut self, byte: u8) {
        self.bytes.consume(1);
        if byte == b'\n' {
            (self.line, self.column) = (self.line + 1, 1);
        } else if byte & 0xc0 != 0x80 {
            self.column += 1;
        }
    }

    fn peek_text(&mut self) -> Option<u8> {
        while let Some(byte) = self.peek() {
            if !byte.is_ascii_whitespace() {
                return Some(byte);
            }
            self.bump(byte);
        }
        None
    }

    fn fault(&self, expected: &str, found: Option<u8>) -> Fault {
        if let Some(error) = &self.error {
            return unreadable(self.line, self.column, error, self.cure);
        }
        let found = found.map_or("the end of the file".to_string(), |byte| format!("{:?}", char::from(byte)));
        Record { line: self.line, column: self.column, text: Vec::new() }.fault(0, "", expected, found)
    }

    fn next(&mut self) -> Option<std::result::Result<Record, Fault>> {
        let mut next = self.peek_text();
        if next == Some(b']') {
            self.bump(b']');
            return match self.peek_text() {
                None if self.error.is_none() => None,
                more => Some(Err(self.fault("nothing after the list", more))),
            };
        }
        if self.any {
            if next != Some(b',') {
                return Some(Err(self.fault("`,` or `]` after an element of the list", next)));
            }
            self.bump(b',');
            next = self.peek_text();
        }
        self.any = true;
        if next.is_none_or(|byte| b",]}:".contains(&byte)) {
            return Some(Err(self.fault("an element of the list", next)));
        }
        let mut record = Record { line: self.line, column: self.column, text: Vec::new() };
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        while let Some(byte) = self.peek() {
            let scalar_ends = depth == 0 && !in_string && (b",]}".contains(&byte) || byte.is_ascii_whitespace());
            if scalar_ends {
                return Some(Ok(record));
            }
            self.bump(byte);
            record.text.push(byte);
            if record.text.len() > MAX_RECORD_BYTES {
                let expected = format!("elements of at most {MAX_RECORD_BYTES} bytes");
                return Some(Err(record.fault(0, "", &expected, "a longer one; or a bracket or quote is not closed")));
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 && !in_string && b"}]\"".contains(&byte) {
                return Some(Ok(record));
            }
        }
        if self.error.is_some() {
            return Some(Err(self.fault("", None)));
        }
        Some(Err(record.fault(0, "", "an element that is closed", "the end of the file inside it")))
    }
}
