//! One record to its `Row`: our format, alpaca, the authors', and any flat one through named columns; messages and
//! sharegpt by `turns`. All faults of a record are found at once.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::build::is_english;
use super::json_place::{Step, offset};
use super::records::{MAX_RECORD_BYTES, Record};
use super::{Fault, Row};

/// What the records of a file look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// As the first record says.
    #[default]
    Auto,
    /// `instruction`, `instruction_en`, `output`, `lang` (and `id`, `task`, `output_en`), and an `input` that belongs to the
    /// instruction where there is one, as its `input_en` (or else itself) to the twin. What was said before: `system` (and
    /// `system_en`), and `history`, pairs of a question and its answer that are read and not learnt, with `history_en`.
    Ours,
    /// Ours, where the first record has an `input`.
    Alpaca,
    /// The authors': `instruction`, `instruction_en`, `output`, and no language.
    Authors,
    /// `messages` of `role` and `content`: turns of `user` and `assistant`, perhaps a `system` turn before them. Each answer
    /// is a row. The twin is `messages_en`, or `instruction_en` of a single question.
    Messages,
    /// The same as `conversations` of `from` and `value`: turns of `human` and `gpt`.
    Sharegpt,
}

/// The names that the fields have in a file; those not named keep ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lang: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction_en: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_en: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_en: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_en: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_en: Option<String>,
}

/// How a file is to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Reading {
    pub format: Format,
    /// The language of rows that name none; empty where every row does.
    pub lang: String,
    pub columns: Columns,
}

const ID: usize = 0;
const TASK: usize = 1;
const LANG: usize = 2;
const INSTRUCTION: usize = 3;
const INSTRUCTION_EN: usize = 4;
const OUTPUT: usize = 5;
const OUTPUT_EN: usize = 6;
const INPUT: usize = 7;
const INPUT_EN: usize = 8;
const SYSTEM: usize = 9;
const SYSTEM_EN: usize = 10;
const HISTORY: usize = 11;
const HISTORY_EN: usize = 12;
pub const TURNS: usize = 13;
pub const TURNS_EN: usize = 14;
const N_FIELDS: usize = 15;

/// Turns the records of one file into rows.
pub struct RowParser {
    format: Format,
    lang: String,
    /// What each field is called in the file; empty where the format has no such field.
    names: [String; N_FIELDS],
}

impl RowParser {
    /// The format named, or the one of the first record.
    pub fn new(reading: &Reading, first: &Record) -> Self {
        let mapped = reading.columns != Columns::default();
        let format = match reading.format {
            Format::Auto => detect(first, mapped),
            named => named,
        };
        let turns = match format {
            Format::Messages => "messages",
            Format::Sharegpt => "conversations",
            _ => "",
        };
        let flat = |name| if turns.is_empty() { name } else { "" };
        let twin = if turns.is_empty() { String::new() } else { format!("{turns}_en") };
        let c = reading.columns.clone();
        let fields: [(Option<String>, &str); N_FIELDS] = [
            (c.id, "id"),
            (c.task, "task"),
            (c.lang, "lang"),
            (c.instruction, flat("instruction")),
            (c.instruction_en, "instruction_en"),
            (c.output, flat("output")),
            (c.output_en, "output_en"),
            (c.input, flat("input")),
            (c.input_en, flat("input_en")),
            (c.system, "system"),
            (c.system_en, "system_en"),
            (c.history, flat("history")),
            (c.history_en, flat("history_en")),
            (None, turns),
            (None, &twin),
        ];
        let named = |name: &str| fields.iter().any(|(given, _)| given.as_deref() == Some(name));
        let names = std::array::from_fn(|at| match &fields[at] {
            (Some(given), _) => given.clone(),
            // A column that was named for another field is not this one too.
            (None, ours) if at >= INPUT && named(ours) => String::new(),
            (None, ours) => ours.to_string(),
        });
        Self { format, lang: reading.lang.clone(), names }
    }

    /// What the records are taken for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// One record to its row, to the rows of its answers, to none (a blank line), or to its faults.
    pub fn rows(&self, record: &Record) -> std::result::Result<Vec<Row>, Vec<Fault>> {
        if record.text.len() > MAX_RECORD_BYTES {
            let expected = format!("one JSON object of at most {MAX_RECORD_BYTES} bytes per line");
            return Err(vec![record.fault(0, "", &expected, "a longer line")]);
        }
        let text = std::str::from_utf8(&record.text)
            .map_err(|error| vec![record.fault(error.valid_up_to(), "", "UTF-8", "another byte")])?;
        let json = text.trim_start_matches('\u{feff}').trim_start();
        if json.is_empty() {
            return Ok(Vec::new());
        }
        let start = text.len() - json.len();
        if !json.starts_with('{') {
            let found = format!("{:?}", json.chars().next().unwrap_or_default());
            return Err(vec![record.fault(start, "", "one JSON object per line", found)]);
        }
        let mut parser = serde_json::Deserializer::from_str(json);
        let values = Fields(&self.names).deserialize(&mut parser).and_then(|values| parser.end().map(|()| values));
        let values = values.map_err(|error| {
            // The place is known already, and serde_json counts inside this record.
            let message = error.to_string();
            let problem = message.rsplit_once(" at line ").map_or(message.as_str(), |(problem, _)| problem);
            let lines: usize = json.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
            let byte = start + lines + error.column().saturating_sub(1);
            vec![record.fault(byte, "", "one JSON object", format!("broken JSON ({problem})"))]
        })?;
        let mut reader = FieldReader { record, json, start, names: &self.names, values, faults: Vec::new() };
        let rows = reader.rows(&self.lang);
        if reader.faults.is_empty() { Ok(rows) } else { Err(reader.faults) }
    }
}

fn detect(first: &Record, mapped: bool) -> Format {
    let marks = ["messages", "conversations", "lang", "input", "instruction_en"].map(str::to_string);
    let text = String::from_utf8_lossy(&first.text[..first.text.len().min(MAX_RECORD_BYTES)]);
    let mut parser = serde_json::Deserializer::from_str(text.trim_start_matches('\u{feff}'));
    let found = Fields(&marks).deserialize(&mut parser).unwrap_or_default();
    let [messages, conversations, lang, input, twin] =
        [0, 1, 2, 3, 4].map(|at| found.get(at).is_some_and(Option::is_some));
    match () {
        () if mapped => Format::Ours,
        () if messages => Format::Messages,
        () if conversations => Format::Sharegpt,
        () if input => Format::Alpaca,
        () if twin && !lang => Format::Authors,
        () => Format::Ours,
    }
}

/// Reads an object's values of these names, in any type, so that one look finds all faults. Other keys are allowed.
struct Fields<'n>(&'n [String]);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Vec<Option<Value>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Vec<Option<Value>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut values: Vec<Option<Value>> = self.0.iter().map(|_| None).collect();
        while let Some(key) = map.next_key::<std::borrow::Cow<str>>()? {
            let mut wanted = (0..self.0.len()).filter(|&at| self.0[at] == key && !key.is_empty());
            let Some(at) = wanted.next() else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if values[at].is_some() {
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
            let value = map.next_value::<Value>()?;
            // One column may serve two fields, as an English-only file does.
            wanted.for_each(|also| values[also] = Some(value.clone()));
            values[at] = Some(value);
        }
        Ok(values)
    }
}

/// What a person reads of a value that is not what was expected.
pub fn kind(value: Option<&Value>) -> &'static str {
    match value {
        None => "nothing",
        Some(Value::String(_)) => "an empty one",
        Some(Value::Null) => "null",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    }
}

/// Takes the fields of one record and notes what is wrong with them.
pub struct FieldReader<'r> {
    record: &'r Record,
    json: &'r str,
    /// Where `json` begins in the record.
    start: usize,
    pub names: &'r [String],
    values: Vec<Option<Value>>,
    faults: Vec<Fault>,
}

impl FieldReader<'_> {
    fn rows(&mut self, default_lang: &str) -> Vec<Row> {
        let id = self.label(ID).unwrap_or_else(|| format!("line {}", self.record.line));
        let task = self.label(TASK).unwrap_or_default();
        let lang = match &self.values[LANG] {
            None | Some(Value::Null) if !default_lang.is_empty() => default_lang.to_string(),
            _ => self.text(LANG, "a non-empty string (or set data.lang)"),
        };
        let (system, system_en) = (self.text_unless_empty(SYSTEM), self.text_unless_empty(SYSTEM_EN));
        let row = Row { id, task, lang, system, system_en, ..Row::default() };
        if self.names[TURNS].is_empty() { vec![self.flat(row)] } else { self.conversation(row) }
    }

    fn flat(&mut self, mut row: Row) -> Row {
        let (instruction, output) = (self.text(INSTRUCTION, STRING), self.text(OUTPUT, STRING));
        let (input, input_en) = (self.text_unless_empty(INPUT), self.text_unless_empty(INPUT_EN));
        let with = |text: String, input: Option<&String>| match input {
            Some(input) => format!("{text}\n{input}"),
            None => text,
        };
        row.instruction = with(instruction, input.as_ref());
        row.output = output;
        row.instruction_en = match self.twin(&row) {
            Some(twin) => with(twin, input_en.as_ref().or(input.as_ref())),
            None => row.instruction.clone(),
        };
        row.output_en = self.text_if_given(OUTPUT_EN);
        row.history = self.exchanges(HISTORY);
        row.history_en = self.exchanges(HISTORY_EN);
        if row.history_en.is_empty() && is_english(&row.lang) {
            row.history_en.clone_from(&row.history);
        }
        let (expected, found) = (row.history.len(), row.history_en.len());
        if expected != found && self.faults.is_empty() {
            let expected = format!("the English twin of the history, {expected} pairs");
            let found = if found == 0 { "nothing".into() } else { format!("{found} pairs") };
            self.fault_in(HISTORY_EN, &expected, &found);
        }
        row
    }

    /// The English instruction; none where an English row is its own twin.
    pub fn twin(&mut self, row: &Row) -> Option<String> {
        match &self.values[INSTRUCTION_EN] {
            None | Some(Value::Null) if is_english(&row.lang) => None,
            _ => Some(self.text(INSTRUCTION_EN, "the English twin of a non-English instruction")),
        }
    }

    /// The English answer.
    pub fn answer_en(&mut self) -> Option<String> {
        self.text_if_given(OUTPUT_EN)
    }

    /// The value of a field, whatever it is.
    pub fn take(&mut self, field: usize) -> Option<Value> {
        self.values[field].take().filter(|value| !value.is_null())
    }

    fn text_unless_empty(&mut self, field: usize) -> Option<String> {
        match &self.values[field] {
            // As Alpaca's input where there is none.
            Some(Value::String(text)) if text.trim().is_empty() => None,
            _ => self.text_if_given(field),
        }
    }

    /// As [`Self::text_unless_empty`], of what many datasets number.
    fn label(&mut self, field: usize) -> Option<String> {
        match &self.values[field] {
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => self.text_unless_empty(field),
        }
    }

    fn text_if_given(&mut self, field: usize) -> Option<String> {
        // A table has a value in every row, null where there is none.
        (!matches!(self.values[field], None | Some(Value::Null))).then(|| self.text(field, STRING))
    }

    fn text(&mut self, field: usize, expected: &str) -> String {
        match self.values[field].take() {
            Some(Value::String(text)) if !text.trim().is_empty() => text,
            other => {
                self.fault_in(field, expected, kind(other.as_ref()));
                String::new()
            }
        }
    }

    /// Notes a fault of a field, or of the record where there is no such field.
    pub fn fault_in(&mut self, field: usize, expected: &str, found: &str) {
        let name = &self.names[field];
        self.fault_at(&[Step::Key(name)], name, expected, found);
    }

    /// Notes a fault of the value at `steps`, or of the record where there is none.
    pub fn fault_at(&mut self, steps: &[Step], path: &str, expected: &str, found: &str) {
        let byte = self.start + offset(self.json, steps).unwrap_or(0);
        self.faults.push(self.record.fault(byte, path, expected, found));
    }
}

pub const STRING: &str = "a non-empty string";
