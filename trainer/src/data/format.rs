//! One record to one `Row`: our format, alpaca, the authors', messages and sharegpt, and any flat one through named
//! columns. All faults of a record are found at once.

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
    /// instruction where there is one, as its `input_en` (or else itself) to the twin.
    Ours,
    /// Ours, where the first record has an `input`.
    Alpaca,
    /// The authors': `instruction`, `instruction_en`, `output`, and no language.
    Authors,
    /// `messages` of `role` and `content`: one user turn and one assistant turn.
    Messages,
    /// `conversations` of `from` and `value`: one `human` turn and one `gpt` turn.
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
const TURNS: usize = 9;
const N_FIELDS: usize = 10;

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
        let Columns { id, task, lang, instruction, instruction_en, output, output_en, input, input_en } =
            reading.columns.clone();
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
        let flat = |name: &str| if turns.is_empty() { name.to_string() } else { String::new() };
        let mut names = [
            id.unwrap_or("id".into()),
            task.unwrap_or("task".into()),
            lang.unwrap_or("lang".into()),
            instruction.unwrap_or(flat("instruction")),
            instruction_en.unwrap_or("instruction_en".into()),
            output.unwrap_or(flat("output")),
            output_en.unwrap_or("output_en".into()),
            input.clone().unwrap_or_default(),
            input_en.clone().unwrap_or_default(),
            turns.into(),
        ];
        for (at, name, given) in [(INPUT, "input", input), (INPUT_EN, "input_en", input_en)] {
            // A column that was named for another field is no input too.
            if given.is_none() && !names.iter().any(|taken| taken == name) {
                names[at] = flat(name);
            }
        }
        Self { format, lang: reading.lang.clone(), names }
    }

    /// What the records are taken for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// One record to a row, nothing (a blank line), or its faults.
    pub fn row(&self, record: &Record) -> std::result::Result<Option<Row>, Vec<Fault>> {
        if record.text.len() > MAX_RECORD_BYTES {
            let expected = format!("one JSON object of at most {MAX_RECORD_BYTES} bytes per line");
            return Err(vec![record.fault(0, "", &expected, "a longer line")]);
        }
        let text = std::str::from_utf8(&record.text)
            .map_err(|error| vec![record.fault(error.valid_up_to(), "", "UTF-8", "another byte")])?;
        let json = text.trim_start_matches('\u{feff}').trim_start();
        if json.is_empty() {
            return Ok(None);
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
        let row = reader.row(&self.lang);
        if reader.faults.is_empty() { Ok(Some(row)) } else { Err(reader.faults) }
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

fn kind(value: Option<&Value>) -> &'static str {
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
struct FieldReader<'r> {
    record: &'r Record,
    json: &'r str,
    /// Where `json` begins in the record.
    start: usize,
    names: &'r [String],
    values: Vec<Option<Value>>,
    faults: Vec<Fault>,
}

impl FieldReader<'_> {
    fn row(&mut self, default_lang: &str) -> Row {
        let id = self.label(ID).unwrap_or_else(|| format!("line {}", self.record.line));
        let task = self.label(TASK).unwrap_or_default();
        let lang = match &self.values[LANG] {
            None | Some(Value::Null) if !default_lang.is_empty() => default_lang.to_string(),
            _ => self.text(LANG, "a non-empty string (or set data.lang)"),
        };
        let (mut instruction, output) = if self.names[TURNS].is_empty() {
            (self.text(INSTRUCTION, STRING), self.text(OUTPUT, STRING))
        } else {
            self.turns()
        };
        let (input, input_en) = (self.input(INPUT), self.input(INPUT_EN));
        let with = |text: String, input: Option<&String>| match input {
            Some(input) => format!("{text}\n{input}"),
            None => text,
        };
        instruction = with(instruction, input.as_ref());
        let english = is_english(&lang);
        let instruction_en = match &self.values[INSTRUCTION_EN] {
            None | Some(Value::Null) if english => instruction.clone(),
            _ => {
                let twin = self.text(INSTRUCTION_EN, "the English twin of a non-English instruction");
                with(twin, input_en.as_ref().or(input.as_ref()))
            }
        };
        let output_en = self.text_if_given(OUTPUT_EN);
        Row { id, task, lang, instruction, instruction_en, output, output_en }
    }

    fn input(&mut self, field: usize) -> Option<String> {
        match &self.values[field] {
            // Alpaca's empty input means that there is none.
            Some(Value::String(text)) if text.trim().is_empty() => None,
            _ => self.text_if_given(field),
        }
    }

    /// As [`Self::text_if_given`], of what many datasets number.
    fn label(&mut self, field: usize) -> Option<String> {
        match &self.values[field] {
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => self.text_if_given(field),
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
                let name = self.names[field].clone();
                self.fault(&[Step::Key(&name)], &name, expected, kind(other.as_ref()));
                String::new()
            }
        }
    }

    fn fault(&mut self, steps: &[Step], path: &str, expected: &str, found: &str) {
        let byte = self.start + offset(self.json, steps).unwrap_or(0);
        self.faults.push(self.record.fault(byte, path, expected, found));
    }

    /// The user's and the assistant's text of a conversation.
    fn turns(&mut self) -> (String, String) {
        let name = self.names[TURNS].clone();
        let (role_key, text_key) = if name == "messages" { ("role", "content") } else { ("from", "value") };
        let turns = match self.values[TURNS].take() {
            Some(Value::Array(turns)) => turns,
            other => {
                let expected = "a list of one user turn and one assistant turn";
                self.fault(&[Step::Key(&name)], &name, expected, kind(other.as_ref()));
                return Default::default();
            }
        };
        if turns.len() != 2 {
            let found = if turns.len() == 1 { "1 turn".into() } else { format!("{} turns", turns.len()) };
            self.fault(&[Step::Key(&name)], &name, "one user turn and one assistant turn", &found);
            return Default::default();
        }
        let mut texts = [String::new(), String::new()];
        for (at, (turn, roles)) in turns.iter().zip([["user", "human"], ["assistant", "gpt"]]).enumerate() {
            let wanted = if name == "messages" { roles[0] } else { roles[1] };
            let role = turn.get(role_key);
            let role_fits = role.and_then(Value::as_str).is_some_and(|role| roles.contains(&role));
            if !role_fits {
                let found = role.map_or("nothing".to_string(), |role| role.to_string().chars().take(40).collect());
                let steps = [Step::Key(&name), Step::Index(at), Step::Key(role_key)];
                let here = if role.is_some() { &steps[..] } else { &steps[..2] };
                self.fault(here, &format!("{name}[{at}].{role_key}"), &format!("{wanted:?}"), &found);
            }
            match turn.get(text_key) {
                Some(Value::String(text)) if !text.trim().is_empty() => texts[at].clone_from(text),
                other => {
                    let steps = [Step::Key(&name), Step::Index(at), Step::Key(text_key)];
                    let here = if other.is_some() { &steps[..] } else { &steps[..2] };
                    self.fault(here, &format!("{name}[{at}].{text_key}"), STRING, kind(other));
                }
            }
        }
        texts.into()
    }
}

const STRING: &str = "a non-empty string";
