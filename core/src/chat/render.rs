//! A user's text, and what was said before it, to token ids with their anchor.

use super::{AnchorRule, ChatTemplate};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use core::ops::Range;

/// What was said before a user's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct History<'t> {
    /// What the model is told beforehand.
    pub system: Option<&'t str>,
    /// Questions with their answers, the oldest first.
    pub exchanges: &'t [[String; 2]],
}

/// A rendered prompt, ready to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids up to the end of the answer tag.
    pub ids: Vec<u32>,
    /// The position that the method reads and writes.
    pub anchor: usize,
    /// Positions of the user's own tokens.
    pub content: Range<usize>,
}

impl ChatTemplate {
    fn kept<'t>(&self, text: &'t str) -> &'t str {
        if self.trim { text.trim() } else { text }
    }

    /// Renders one user turn.
    ///
    /// # Errors
    /// The text is empty, the tokenizer is not the template's, or the template has no such anchor.
    pub fn render(&self, tokenizer: &Tokenizer, user: &str, rule: AnchorRule) -> Result<Prompt> {
        self.render_after(tokenizer, History::default(), user, rule)
    }

    /// Renders the user turn that follows a history, whose answers have the ids that they were given in.
    ///
    /// # Errors
    /// As [`Self::render`], or the template has no place for such a history.
    pub fn render_after(
        &self,
        tokenizer: &Tokenizer,
        history: History,
        user: &str,
        rule: AnchorRule,
    ) -> Result<Prompt> {
        if user.trim().is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let no_place = |turn| Error::NoPlace { template: self.name().into(), turn };
        let mut text = Text { template: self, tokenizer, whole: String::new(), cuts: Vec::new() };
        match history.system {
            None => text.fixed(&self.before)?,
            Some(system) => {
                let [open, close] = self.system.as_ref().ok_or_else(|| no_place("system text"))?;
                text.fixed(open)?;
                text.whole += self.kept(system);
                text.fixed(close)?;
            }
        }
        let closing = [&*self.after, &self.answer_tag].concat();
        for [question, answer] in history.exchanges {
            let next = self.next.as_ref().ok_or_else(|| no_place("second question"))?;
            text.whole += self.kept(question);
            text.fixed(&closing)?;
            text.cut();
            text.whole += answer;
            text.cut();
            text.fixed(next)?;
        }
        let start = text.whole.len();
        text.whole += self.kept(user);
        let own = start..text.whole.len();
        text.fixed(&closing)?;
        let tag = text.whole.len() - self.answer_tag.len();
        let (ids, spans) = text.tokens()?;

        let touches = |span: &Range<usize>| span.end > own.start && span.start < own.end;
        let first = spans.iter().position(touches).unwrap_or(0);
        let last = spans.iter().rposition(touches).unwrap_or(0);
        let anchor = match rule {
            AnchorRule::LastPrompt => Some(ids.len() - 1),
            AnchorRule::RoleToken => self.role_token_from_end.and_then(|back| ids.len().checked_sub(back.max(1))),
            AnchorRule::BeforeAnswerTag => spans.iter().rposition(|span| span.start < tag),
        };
        let anchor = anchor.ok_or_else(|| Error::NoRoleToken { template: self.name().into() })?;
        Ok(Prompt { anchor, content: first..last + 1, ids })
    }
}

/// A prompt before it is tokenised: the text and where it is cut.
struct Text<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    whole: String,
    /// Bytes that are one control token with its id; no bytes and no id between texts that are encoded apart. What
    /// stands between two cuts is encoded as one: merges across its seams are the model's own.
    cuts: Vec<(Range<usize>, Option<u32>)>,
}

impl Text<'_> {
    /// A text of the template's own, with its control tokens.
    fn fixed(&mut self, text: &str) -> Result<()> {
        let start = self.whole.len();
        for (at, token) in self.template.split(text) {
            let id = self.template.control_id(self.tokenizer, token)?;
            self.cuts.push((start + at..start + at + token.len(), Some(id)));
        }
        self.whole += text;
        Ok(())
    }

    fn cut(&mut self) {
        self.cuts.push((self.whole.len()..self.whole.len(), None));
    }

    /// Ids, each with its bytes in the text.
    fn tokens(self) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let (mut ids, mut spans, mut done) =
            (Vec::with_capacity(self.whole.len() / 3), Vec::with_capacity(self.whole.len() / 3), 0);
        let end = (self.whole.len()..self.whole.len(), None);
        for (cut, control) in self.cuts.into_iter().chain([end]) {
            if cut.start > done {
                let (encoded, places) = self.tokenizer.encode_spans(&self.whole[done..cut.start])?;
                ids.extend(encoded);
                spans.extend(places.into_iter().map(|span| span.start + done..span.end + done));
            }
            if let Some(id) = control {
                ids.push(id);
                spans.push(cut.clone());
            }
            done = cut.end;
        }
        Ok((ids, spans))
    }
}

impl Prompt {
    /// Cuts the end of the user's text, never the template, so that the prompt has at most `limit` tokens. Returns
    /// whether anything was cut.
    ///
    /// # Errors
    /// Not even one token of the user's text would remain.
    pub fn truncate(&mut self, limit: usize) -> Result<bool> {
        let excess = self.ids.len().saturating_sub(limit);
        if excess >= self.content.len() {
            return Err(Error::PromptTooLong { found: self.ids.len(), limit });
        }
        self.ids.drain(self.content.end - excess..self.content.end);
        self.content.end -= excess;
        self.anchor -= excess;
        Ok(excess > 0)
    }
}
