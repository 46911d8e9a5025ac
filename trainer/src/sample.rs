//! Rows become token samples: one tokenise function for every verb.

use anyhow::{Context, Result, bail};
use cctuning::Error;
use cctuning::chat::{AnchorRule, ChatTemplate, History, Prompt};
use cctuning::tokenizer::Tokenizer;
use rayon::prelude::*;

use crate::corpus::Item;
use crate::corpus::family::Family;
use crate::data::Row;
use crate::data::build::is_english;

/// One training or evaluation example in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub id: String,
    pub lang: String,
    pub prompt: Prompt,
    /// The prompt of the English twin.
    pub english: Prompt,
    /// The answer with its stop token.
    pub answer: Vec<u32>,
}

impl Sample {
    /// Whether the English twin is another prompt: it is not in an English row, nor in one that asks in English.
    pub fn has_twin(&self) -> bool {
        !is_english(&self.lang) && self.prompt.ids != self.english.ids
    }

    /// Tokens a training pass reads: everything but the last, which is only predicted.
    pub fn len(&self) -> usize {
        self.prompt.ids.len() + self.answer.len() - 1
    }

    /// As [`Row::family`].
    pub fn family(&self) -> &'static str {
        family(&self.id)
    }
}

impl Row {
    /// The task family of a row of the shipped corpus, which its id begins with; empty for any other row.
    pub fn family(&self) -> &'static str {
        family(&self.id)
    }

    /// What an id of the shipped corpus ends with: `fact` where the fact was held out, `phrasing` where its wording was.
    pub fn kind(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }
}

fn family(id: &str) -> &'static str {
    let first = id.split('/').next().unwrap_or_default();
    Family::ALL.map(Family::name).into_iter().find(|name| *name == first).unwrap_or_default()
}

/// How rows are turned into tokens.
pub struct Renderer<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: ChatTemplate,
    pub anchor: AnchorRule,
    /// Most tokens of prompt and answer.
    pub cutoff: usize,
    /// Most tokens of the English prompt.
    pub english_cutoff: usize,
}

/// What rendering did to a set of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    pub truncated: usize,
    pub truncated_english: usize,
    /// Ids of the rows that do not fit at all.
    pub left_out: Vec<String>,
}

impl Rendered {
    /// Tells a person, if there is anything to tell.
    pub fn report(&self) {
        let Self { truncated, truncated_english, left_out } = self;
        if truncated + truncated_english > 0 {
            println!("cut to fit: {truncated} prompts and {truncated_english} English twins");
        }
        if let Some(first) = left_out.first() {
            println!("left out: {} rows that cannot fit into the cutoffs, {first:?} the first of them", left_out.len());
        }
    }
}

/// A row in tokens.
#[derive(Default)]
struct Fitted {
    /// None where the row does not fit at all.
    sample: Option<Sample>,
    cut: bool,
    cut_english: bool,
}

impl Renderer<'_> {
    /// The ids that end an answer.
    ///
    /// # Errors
    /// The tokenizer lacks the template's stop token.
    pub fn stop(&self) -> Result<Vec<u32>> {
        Ok(self.template.stop_ids(self.tokenizer)?)
    }

    /// A prompt of at most `limit` tokens, and whether that took cutting: first what was asked and answered before, the
    /// oldest first, then the end of the user's text, never the template or the system text.
    ///
    /// # Errors
    /// As `ChatTemplate::render_after` and `Prompt::truncate`.
    fn prompt(&self, before: History, text: &str, limit: usize) -> cctuning::Result<(Prompt, bool)> {
        let render = |before| self.template.render_after(self.tokenizer, before, text, self.anchor);
        let (mut prompt, mut left) = (render(before)?, before);
        while prompt.ids.len() > limit
            && let [_, later @ ..] = left.exchanges
        {
            left.exchanges = later;
            prompt = render(left)?;
        }
        let cut = prompt.truncate(limit)?;
        Ok((prompt, cut || left != before))
    }

    /// One row in tokens. The answer is never cut.
    ///
    /// # Errors
    /// The tokenizer has no id for a piece of the text, or lacks a control token of the template, or the template has no
    /// place for what was said before.
    fn fit(&self, row: &Row, stop: &[u32], beside_answer: bool) -> Result<Fitted> {
        let fit = || -> Result<Fitted> {
            let mut answer = self.tokenizer.encode(&row.output)?;
            answer.extend(stop);
            let taken = if beside_answer { answer.len() } else { 0 };
            let prompt = self.prompt(row.before(), &row.instruction, self.cutoff.saturating_sub(taken));
            let english = self.prompt(row.before_en(), &row.instruction_en, self.english_cutoff);
            let fits = |prompt| match prompt {
                Ok(prompt) => Ok(Some(prompt)),
                Err(Error::PromptTooLong { .. }) => Ok(None),
                Err(error) => Err(error),
            };
            let Some(((prompt, cut), (english, cut_english))) = fits(prompt)?.zip(fits(english)?) else {
                return Ok(Fitted::default());
            };
            let sample = Sample { id: row.id.clone(), lang: row.lang.clone(), prompt, english, answer };
            Ok(Fitted { sample: Some(sample), cut, cut_english })
        };
        fit().with_context(|| format!("row {:?}", row.id))
    }

    /// The rows in order, without those that cannot fit.
    ///
    /// # Errors
    /// As [`Self::fit`], or when not one row fits.
    pub fn samples(&self, rows: &[Row]) -> Result<(Vec<Sample>, Rendered)> {
        self.fitted(rows, true)
    }

    /// The same where answers are not read beside their prompts, and take nothing of the cutoff.
    ///
    /// # Errors
    /// As [`Self::samples`].
    pub fn prompts(&self, rows: &[Row]) -> Result<(Vec<Sample>, Rendered)> {
        self.fitted(rows, false)
    }

    fn fitted(&self, rows: &[Row], beside_answer: bool) -> Result<(Vec<Sample>, Rendered)> {
        let stop = self.stop()?;
        let mut rendered = Rendered::default();
        let mut samples = Vec::with_capacity(rows.len());
        let fitted: Vec<Fitted> =
            rows.par_iter().map(|row| self.fit(row, &stop, beside_answer)).collect::<Result<_>>()?;
        for (row, Fitted { sample, cut, cut_english }) in rows.iter().zip(fitted) {
            match sample {
                Some(sample) => samples.push(sample),
                None => rendered.left_out.push(row.id.clone()),
            }
            rendered.truncated += usize::from(cut);
            rendered.truncated_english += usize::from(cut_english);
        }
        if let ([], Some(first)) = (&samples[..], rendered.left_out.first()) {
            bail!(
                "no row fits into data.cutoff = {} and data.english_cutoff = {} (row {first:?} is the first of {}); raise them",
                self.cutoff,
                self.english_cutoff,
                rows.len()
            );
        }
        Ok((samples, rendered))
    }
}

impl From<&Item> for Row {
    fn from(item: &Item) -> Self {
        let Item { id, task, lang, instruction, instruction_en, output, output_en } = item.clone();
        Self { id, task, lang, instruction, instruction_en, output, output_en: Some(output_en), ..Self::default() }
    }
}
