//! The rows of a Parquet file as JSON records, so that one parser judges every format. A row's number is its line.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};

use super::Fault;
use super::records::{MAX_RECORD_BYTES, Record};

/// An open table.
pub struct Table {
    rows: RowIter<'static>,
    row: usize,
}

impl Table {
    /// # Errors
    /// When the file is no Parquet file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open the rows {}", path.display()))?;
        // The library panics on some damaged files.
        let opened = catch_unwind(|| SerializedFileReader::new(file).map(|reader| reader.into_iter()));
        let rows = opened
            .map_err(|_| anyhow!("the reader gave up"))
            .and_then(|rows| rows.map_err(anyhow::Error::from))
            .with_context(|| {
                format!("{}: expected a Parquet file, found a damaged or another one; fetch it again", path.display())
            })?;
        Ok(Self { rows, row: 0 })
    }

    pub fn next(&mut self) -> Option<std::result::Result<Record, Fault>> {
        self.row += 1;
        let mut record = Record { line: self.row, column: 1, text: Vec::new() };
        let read = catch_unwind(AssertUnwindSafe(|| self.rows.next()));
        let error = match read {
            Ok(None) => return None,
            Ok(Some(Ok(row))) => {
                record.text = serde_json::to_vec(&object(&row)).unwrap_or_default();
                record.text.truncate(MAX_RECORD_BYTES + 1);
                return Some(Ok(record));
            }
            Ok(Some(Err(error))) => error.to_string(),
            Err(_) => "the reader gave up".into(),
        };
        Some(Err(record.fault(
            0,
            "",
            "one more row",
            format!("a damaged file, or one not packed by snappy, gzip or zstd ({error}); fetch or pack it anew"),
        )))
    }
}

fn object(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect::<Map<_, _>>())
}

/// What is neither text, number, list nor object can be no part of a row: an object says what it is, where a text would be
/// trained on.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned().into(),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        other => json!({ "value": other.to_string() }),
    }
}
