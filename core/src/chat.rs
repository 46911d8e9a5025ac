//! Chat templates: a user's text to a prompt with its anchor. The renderer knows where the anchor is; it is never
//! searched for.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use core::ops::Range;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// The template a model was tuned with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatTemplate {
    /// Llama 3 and 3.1.
    Llama3,
    /// Qwen2 and Qwen2.5 (ChatML).
    Qwen2,
    /// `<|user|>…<|assistant|>…<|end|>`, for the small model trained here.
    Plain,
}

/// Which prompt position is the anchor.
///
/// # Departures
/// The released code finds it by counting special tokens, which for Qwen is the role word one before the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorRule {
    /// The last prompt token.
    #[default]
    LastPrompt,
    /// The released code's position: the word `assistant` for Qwen2, the last prompt token otherwise.
    RoleToken,
}

/// A rendered prompt, ready to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids up to the end of the assistant header.
    pub ids: Vec<u32>,
    /// The position that the method reads and writes.
    pub anchor: usize,
    /// Positions of the user's own tokens.
    pub content: Range<usize>,
}

enum Piece {
    Control(&'static str),
    Text(&'static str),
    User,
}

use Piece::{Control, Text, User};

impl ChatTemplate {
    /// Renders one user turn.
    ///
    /// # Errors
    /// The text is empty, or the tokenizer is not the template's.
    pub fn render(&self, tokenizer: &Tokenizer, user: &str, rule: AnchorRule) -> Result<Prompt> {
        if user.trim().is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut ids = Vec::new();
        let mut content = 0..0;
        let pieces = self.pieces();
        let mut at = 0;
        while at < pieces.len() {
            if let Control(token) = pieces[at] {
                ids.push(self.control(tokenizer, token)?);
                at += 1;
                continue;
            }
            // Neighbouring texts are encoded as one: merges across their seam are the model's own.
            let mut text = String::new();
            let mut own = 0..0;
            while let Some(Text(_) | User) = pieces.get(at) {
                match pieces[at] {
                    Text(fixed) => text.push_str(fixed),
                    _ => {
                        own = text.len()..text.len() + user.len();
                        text.push_str(user);
                    }
                }
                at += 1;
            }
            let (piece, spans) = tokenizer.encode_spans(&text)?;
            if !own.is_empty() {
                let touches = |span: &Range<usize>| span.end > own.start && span.start < own.end;
                let first = spans.iter().position(touches).unwrap_or(0);
                let last = spans.iter().rposition(touches).unwrap_or(0);
                content = ids.len() + first..ids.len() + last + 1;
            }
            ids.extend(piece);
        }
        let back = if *self == Self::Qwen2 && rule == AnchorRule::RoleToken { 2 } else { 1 };
        Ok(Prompt { anchor: ids.len() - back, content, ids })
    }

    /// Ids that end an answer.
    ///
    /// # Errors
    /// The tokenizer is not the template's.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        Ok(vec![self.control(tokenizer, self.stop_token())?])
    }

    /// The token that ends an answer.
    pub fn stop_token(&self) -> &'static str {
        match self {
            Self::Llama3 => "<|eot_id|>",
            Self::Qwen2 => "<|im_end|>",
            Self::Plain => "<|end|>",
        }
    }

    /// Name used in recipes and manifests.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Llama3 => "llama3",
            Self::Qwen2 => "qwen2",
            Self::Plain => "plain",
        }
    }

    /// The template whose control tokens a tokenizer has.
    pub fn detect(tokenizer: &Tokenizer) -> Option<Self> {
        [Self::Llama3, Self::Qwen2, Self::Plain].into_iter().find(|template| {
            let known = |piece: &Piece| !matches!(piece, Control(token) if tokenizer.id(token).is_none());
            template.pieces().iter().all(known)
        })
    }

    fn pieces(&self) -> &'static [Piece] {
        match self {
            Self::Llama3 => &[
                Control("<|begin_of_text|>"),
                Control("<|start_header_id|>"),
                Text("user"),
                Control("<|end_header_id|>"),
                Text("\n\n"),
                User,
                Control("<|eot_id|>"),
                Control("<|start_header_id|>"),
                Text("assistant"),
                Control("<|end_header_id|>"),
                Text("\n\n"),
            ],
            Self::Qwen2 => &[
                Control("<|im_start|>"),
                Text("system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
                Control("<|im_end|>"),
                Text("\n"),
                Control("<|im_start|>"),
                Text("user\n"),
                User,
                Control("<|im_end|>"),
                Text("\n"),
                Control("<|im_start|>"),
                Text("assistant\n"),
            ],
            Self::Plain => &[Control("<|user|>"), User, Control("<|assistant|>")],
        }
    }

    fn control(&self, tokenizer: &Tokenizer, token: &'static str) -> Result<u32> {
        tokenizer.id(token).ok_or(Error::MissingToken { template: self.name(), token })
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

impl FromStr for ChatTemplate {
    type Err = String;

    fn from_str(name: &str) -> core::result::Result<Self, String> {
        [Self::Llama3, Self::Qwen2, Self::Plain]
            .into_iter()
            .find(|template| template.name() == name)
            .ok_or_else(|| format!("unknown chat template {name:?}; expected llama3, qwen2 or plain"))
    }
}
