//! What was said in turns: a conversation to a row for each answer, and the history of a flat record.
//!
//! Each answer of a conversation is learnt after all that was said before it, and has a twin of its own: the same beginning
//! of the conversation in English.

use serde_json::Value;

use super::Row;
use super::build::is_english;
use super::format::{FieldReader, STRING, TURNS, TURNS_EN, kind};
use super::json_place::Step;

/// A longer conversation is a fault: its rows, each with all before it, would be many times its size.
const MOST_EXCHANGES: usize = 64;

/// A conversation's texts.
#[derive(Clone, Default)]
struct Said {
    system: Option<String>,
    questions: Vec<String>,
    answers: Vec<String>,
}

impl Said {
    /// What was said before question `at`.
    fn history(&self, at: usize) -> Vec<[String; 2]> {
        self.questions.iter().cloned().zip(self.answers.iter().cloned()).map(Into::into).take(at).collect()
    }
}

impl FieldReader<'_> {
    /// The rows of a conversation, one for each answer, with what else is known in `row`.
    pub fn conversation(&mut self, mut row: Row) -> Vec<Row> {
        let expected = "a list of user and assistant turns, perhaps after a system turn";
        let Some(said) = self.take(TURNS) else {
            self.fault_in(TURNS, expected, "nothing");
            return Vec::new();
        };
        let Some(mut said) = self.said(TURNS, said, expected) else { return Vec::new() };
        let n = said.questions.len();
        if n == 0 || said.answers.len() != n {
            self.fault_in(
                TURNS,
                "an assistant turn after every user turn",
                &format!("{n} user and {} assistant turns", said.answers.len()),
            );
            return Vec::new();
        }
        let twin = match self.take(TURNS_EN) {
            Some(twin) => match self.said(TURNS_EN, twin, "the same turns in English") {
                Some(twin) => twin,
                None => return Vec::new(),
            },
            None if n == 1 => {
                let question = self.twin(&row).unwrap_or_else(|| said.questions[0].clone());
                Said { system: None, questions: vec![question], answers: self.answer_en().into_iter().collect() }
            }
            None if is_english(&row.lang) => said.clone(),
            None => {
                self.fault_in(TURNS_EN, &format!("the English twin of a conversation of {n} questions"), "nothing");
                return Vec::new();
            }
        };
        // The last answer is nobody's prompt.
        if twin.questions.len() != n || twin.answers.len() + 1 < n {
            let found = format!("{} questions and {} answers", twin.questions.len(), twin.answers.len());
            self.fault_in(TURNS_EN, &format!("the English twin of a conversation of {n} questions"), &found);
            return Vec::new();
        }
        row.system = said.system.take().or(row.system);
        row.system_en = twin.system.clone().or(row.system_en);
        let rows = (0..n).map(|at| Row {
            id: if n == 1 { row.id.clone() } else { format!("{} answer {}", row.id, at + 1) },
            instruction: said.questions[at].clone(),
            instruction_en: twin.questions[at].clone(),
            output: said.answers[at].clone(),
            output_en: twin.answers.get(at).cloned(),
            history: said.history(at),
            history_en: twin.history(at),
            ..row.clone()
        });
        rows.collect()
    }

    /// The texts of a list of turns; none after a fault.
    fn said(&mut self, field: usize, turns: Value, expected: &str) -> Option<Said> {
        let name = self.names[field].clone();
        let Value::Array(turns) = turns else {
            self.fault_in(field, expected, kind(Some(&turns)));
            return None;
        };
        let [role_key, text_key, user, assistant] = match &*name {
            "messages" | "messages_en" => ["role", "content", "user", "assistant"],
            _ => ["from", "value", "human", "gpt"],
        };
        if turns.len() > 2 * MOST_EXCHANGES + 1 {
            let expected = format!("at most {MOST_EXCHANGES} exchanges; divide it");
            self.fault_in(field, &expected, &format!("{} turns", turns.len()));
            return None;
        }
        let mut said = Said::default();
        let (mut wanted, mut sound) = (user, true);
        for (at, turn) in turns.iter().enumerate() {
            let found = turn.get(role_key);
            let role = match found.and_then(Value::as_str) {
                Some("user" | "human") => user,
                Some("assistant" | "gpt") => assistant,
                other => other.unwrap_or_default(),
            };
            let opens = at == 0 && role == "system";
            if role != wanted && !opens {
                let shown = found.map_or("nothing".to_string(), |role| role.to_string().chars().take(40).collect());
                self.fault_in_turn([&name, role_key], at, found, &format!("{wanted:?}"), &shown);
                sound = false;
            }
            let text = match turn.get(text_key) {
                Some(Value::String(text)) if !text.trim().is_empty() => text.clone(),
                other => {
                    self.fault_in_turn([&name, text_key], at, other, STRING, kind(other));
                    sound = false;
                    String::new()
                }
            };
            match () {
                () if opens => said.system = Some(text),
                () if wanted == user => said.questions.push(text),
                () => said.answers.push(text),
            }
            // After a turn out of turn it goes on from there: one fault, not one for each that follows.
            wanted = if role == user { assistant } else { user };
        }
        sound.then_some(said)
    }

    /// A fault of one value of a turn, or of the turn where it has no such value.
    fn fault_in_turn(&mut self, [list, key]: [&str; 2], at: usize, value: Option<&Value>, expected: &str, found: &str) {
        let steps = [Step::Key(list), Step::Index(at), Step::Key(key)];
        let here = if value.is_some() { &steps[..] } else { &steps[..2] };
        self.fault_at(here, &format!("{list}[{at}].{key}"), expected, found);
    }

    /// Pairs of a question and its answer.
    pub fn exchanges(&mut self, field: usize) -> Vec<[String; 2]> {
        let name = self.names[field].clone();
        let pairs = match self.take(field) {
            None => return Vec::new(),
            Some(Value::Array(pairs)) if pairs.len() <= MOST_EXCHANGES => pairs,
            other => {
                let expected = format!("a list of at most {MOST_EXCHANGES} pairs of a question and its answer");
                let found = if matches!(other, Some(Value::Array(_))) { "a longer list" } else { kind(other.as_ref()) };
                self.fault_in(field, &expected, found);
                return Vec::new();
            }
        };
        let mut exchanges = Vec::with_capacity(pairs.len());
        for (at, pair) in pairs.iter().enumerate() {
            let texts = pair.as_array().map(|pair| pair.iter().filter_map(Value::as_str).collect::<Vec<_>>());
            match texts.as_deref() {
                Some(&[question, answer]) if !question.trim().is_empty() && !answer.trim().is_empty() => {
                    exchanges.push([question.to_string(), answer.to_string()]);
                }
                _ => {
                    let found = if pair.is_array() { "another list" } else { kind(Some(pair)) };
                    let steps = [Step::Key(&name), Step::Index(at)];
                    self.fault_at(
                        &steps,
                        &format!("{name}[{at}]"),
                        "two non-empty strings: a question and its answer",
                        found,
                    );
                }
            }
        }
        exchanges
    }
}
