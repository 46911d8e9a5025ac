//! Rows become token samples: one tokenise function for every verb.

use anyhow::{Context, Result, bail};
use cctuning::Error;
use cctuning::chat::{AnchorRule, ChatTemplate, Prompt};
use cctuning::tokenizer::Tokenizer;

use crate::corpus::Item;
use crate::data::Row;

/// One training or evaluation example in tokens.
#[derive(Clone, Debug)]
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
    /// Tokens a training pass reads: everything but the last, which is only predicted.
    pub fn len(&self) -> usize {
        self.prompt.ids.len() + self.answer.len() - 1
    }
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
#[derive(Clone, Debug, Default)]
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

impl Renderer<'_> {
    /// A prompt, cut to `limit` tokens if need be; whether it was cut.
    fn prompt(&self, text: &str, limit: usize) -> cctuning::Result<(Prompt, bool)> {
        let mut prompt = self.template.render(self.tokenizer, text, self.anchor)?;
        let cut = prompt.truncate(limit)?;
        Ok((prompt, cut))
    }

    /// The rows in order, without those that cannot fit. The user's text is cut to fit, never the template or the answer.
    pub fn samples(&self, rows: &[Row]) -> Result<(Vec<Sample>, Rendered)> {
        let stop = self.template.stop_ids(self.tokenizer)?;
        let mut rendered = Rendered::default();
        let mut samples = Vec::with_capacity(rows.len());
        for row in rows {
            let mut answer = self.tokenizer.encode(&row.output)?;
            answer.extend(&stop);
            let room = self.cutoff.saturating_sub(answer.len());
            let fitted = self.prompt(&row.instruction, room);
            let fitted = fitted.and_then(|own| Ok((own, self.prompt(&row.instruction_en, self.english_cutoff)?)));
            let ((prompt, cut), (english, cut_english)) = match fitted {
                Ok(both) => both,
                Err(Error::PromptTooLong { .. }) => {
                    rendered.left_out.push(row.id.clone());
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("row {:?}", row.id)),
            };
            rendered.truncated += usize::from(cut);
            rendered.truncated_english += usize::from(cut_english);
            samples.push(Sample { id: row.id.clone(), lang: row.lang.clone(), prompt, english, answer });
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
        Self { id, task, lang, instruction, instruction_en, output, output_en: Some(output_en) }
    }
}
