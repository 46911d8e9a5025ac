//! Rows become token samples: one tokenise function for every verb.

use anyhow::{Context, Result, bail};
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
#[derive(Clone, Copy, Debug, Default)]
pub struct Rendered {
    pub truncated: usize,
    pub truncated_english: usize,
}

impl Renderer<'_> {
    /// A prompt, cut to `limit` tokens if need be; whether it was cut.
    pub fn prompt(&self, text: &str, limit: usize) -> Result<(Prompt, bool)> {
        let mut prompt = self.template.render(self.tokenizer, text, self.anchor)?;
        let cut = prompt.truncate(limit)?;
        Ok((prompt, cut))
    }

    /// All rows, in order. The user's text is cut to fit, never the template or the answer.
    pub fn samples(&self, rows: &[Row]) -> Result<(Vec<Sample>, Rendered)> {
        let stop = self.template.stop_ids(self.tokenizer)?;
        let mut rendered = Rendered::default();
        let samples = rows
            .iter()
            .map(|row| {
                let mut answer = self.tokenizer.encode(&row.output)?;
                answer.extend(&stop);
                let Some(room) = self.cutoff.checked_sub(answer.len()).filter(|&room| room > 0) else {
                    bail!("its answer has {} tokens and data.cutoff is {}; raise the cutoff", answer.len(), self.cutoff);
                };
                let (prompt, cut) = self.prompt(&row.instruction, room)?;
                let (english, cut_english) = self.prompt(&row.instruction_en, self.english_cutoff)?;
                rendered.truncated += usize::from(cut);
                rendered.truncated_english += usize::from(cut_english);
                Ok(Sample { id: row.id.clone(), lang: row.lang.clone(), prompt, english, answer })
            })
            .zip(rows)
            .map(|(sample, row): (Result<Sample>, &Row)| sample.with_context(|| format!("row {:?}", row.id)))
            .collect::<Result<_>>()?;
        Ok((samples, rendered))
    }
}

impl From<&Item> for Row {
    fn from(item: &Item) -> Self {
        let Item { id, task, lang, instruction, instruction_en, output, output_en } = item.clone();
        Self { id, task, lang, instruction, instruction_en, output, output_en: Some(output_en) }
    }
}
