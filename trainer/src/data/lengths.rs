//! How long the rows of a check are in tokens, and what the cutoffs would do to them. The arithmetic of cutting is that
//! of `Prompt::truncate`, on counts alone.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use cctuning::chat::{AnchorRule, ChatTemplate, History};
use serde::Serialize;

use super::Row;
use crate::sample::Renderer;

/// Longer texts are counted as this long.
const LONGEST: usize = 1 << 16;
/// Prompts remembered: the rows of a parallel corpus have one English twin for many languages.
const REMEMBERED: usize = 1 << 17;

/// Lengths before anything is cut, and what the cutoffs do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tokens {
    pub prompt: Percentiles,
    pub english: Percentiles,
    pub answer: Percentiles,
    pub truncated: usize,
    pub truncated_english: usize,
    /// Rows that do not fit however much of the prompt is cut.
    pub left_out: usize,
    pub zero_answer: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: usize,
    pub p90: usize,
    pub p99: usize,
    pub max: usize,
}

/// Counts the tokens of rows, on many threads at once.
pub struct Counter<'a> {
    renderer: Renderer<'a>,
    /// The template without its head, and the head's tokens: they need not be counted a million times.
    headless: ChatTemplate,
    head: usize,
    stop: usize,
    known: Mutex<HashMap<u64, Size>>,
}

/// The tokens of one row.
pub struct Counted {
    prompt: Size,
    english: Size,
    answer: usize,
}

#[derive(Clone, Copy)]
struct Size {
    all: usize,
    /// Those that may be cut: of the user's text, and all that was asked and answered before it.
    own: usize,
}

impl Size {
    /// Whether a prompt has to be cut to `limit` tokens; None where that leaves nothing of the user's text.
    fn cut(self, limit: usize) -> Option<bool> {
        let excess = self.all.saturating_sub(limit);
        (excess < self.own).then_some(excess > 0)
    }
}

impl<'a> Counter<'a> {
    /// # Errors
    /// The tokenizer lacks the template's stop token.
    pub fn new(renderer: Renderer<'a>) -> Result<Self> {
        let template = &renderer.template;
        let headless =
            ChatTemplate { before: template.before[template.head().len()..].to_owned().into(), ..template.clone() };
        let count = |template: &ChatTemplate| template.render(renderer.tokenizer, "x", AnchorRule::LastPrompt);
        let head = count(template)?.ids.len() - count(&headless)?.ids.len();
        Ok(Self { stop: renderer.stop()?.len(), headless, head, renderer, known: Mutex::default() })
    }

    /// # Errors
    /// As `Renderer::samples`.
    pub fn count(&self, row: &Row) -> Result<Counted> {
        let count = || -> Result<Counted> {
            Ok(Counted {
                prompt: self.prompt(row.before(), &row.instruction)?,
                english: self.prompt(row.before_en(), &row.instruction_en)?,
                answer: self.renderer.tokenizer.encode(&row.output)?.len() + self.stop,
            })
        };
        count().with_context(|| format!("row {:?}", row.id))
    }

    fn prompt(&self, before: History, text: &str) -> Result<Size> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((before, text));
        if let Some(size) = known().get(&hash) {
            return Ok(*size);
        }
        let Renderer { tokenizer, template, anchor, .. } = &self.renderer;
        let (template, head) = if before.system.is_some() { (template, 0) } else { (&self.headless, self.head) };
        let size = |before: History| -> Result<Size> {
            let prompt = template.render_after(tokenizer, before, text, *anchor)?;
            Ok(Size { all: head + prompt.ids.len(), own: prompt.content.len() })
        };
        let mut found = size(before)?;
        if !before.exchanges.is_empty() {
            let last = size(History { exchanges: &[], ..before })?;
            found.own = last.own + found.all - last.all;
        }
        let mut known = known();
        if known.len() == REMEMBERED {
            known.clear();
        }
        known.insert(hash, found);
        Ok(found)
    }
}

/// What the counted rows add up to.
#[derive(Default)]
pub struct Totals {
    tokens: Tokens,
    prompt: Lengths,
    english: Lengths,
    answer: Lengths,
}

impl Totals {
    pub fn add(&mut self, row: &Counted, counter: &Counter) {
        let Counted { prompt, english, answer } = *row;
        self.prompt.add(prompt.all);
        self.english.add(english.all);
        self.answer.add(answer);
        let cut = prompt.cut(counter.renderer.cutoff.saturating_sub(answer));
        match (cut, english.cut(counter.renderer.english_cutoff)) {
            (Some(cut), Some(cut_english)) => {
                self.tokens.truncated += usize::from(cut);
                self.tokens.truncated_english += usize::from(cut_english);
            }
            _ => self.tokens.left_out += 1,
        }
        self.tokens.zero_answer += usize::from(answer == counter.stop);
    }

    pub fn report(self) -> Tokens {
        Tokens {
            prompt: self.prompt.percentiles(),
            english: self.english.percentiles(),
            answer: self.answer.percentiles(),
            ..self.tokens
        }
    }
}

/// How often each length was seen.
#[derive(Default)]
struct Lengths(Vec<u64>);

impl Lengths {
    fn add(&mut self, length: usize) {
        let length = length.min(LONGEST);
        if self.0.len() <= length {
            self.0.resize(length + 1, 0);
        }
        self.0[length] += 1;
    }

    fn percentiles(&self) -> Percentiles {
        let all: u64 = self.0.iter().sum();
        let at = |percent: u64| {
            let mut before = 0;
            let reached = |count: &u64| {
                before += count;
                before * 100 >= all * percent
            };
            self.0.iter().position(reached).unwrap_or(0)
        };
        Percentiles { p50: at(50), p90: at(90), p99: at(99), max: self.0.len().saturating_sub(1) }
    }
}
