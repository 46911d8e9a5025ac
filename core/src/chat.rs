//! Chat templates: a user's text to a prompt with its anchor. The renderer knows where the anchor is; it is never
//! searched for.
//!
//! A template is data, so that one derived elsewhere travels in a manifest. Nothing here knows Jinja.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use core::fmt;
use core::ops::Range;
use core::str::FromStr;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow::{self, Borrowed};

/// What stands around a user's text, and what ends the answer. On disk a built-in one is its name, any other an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ChatTemplate {
    /// All before the user's text, with the only begin-of-text token there is.
    pub before: Cow<'static, str>,
    /// What closes the user's turn.
    pub after: Cow<'static, str>,
    /// What opens the answer; empty where closing the turn does.
    pub answer_tag: Cow<'static, str>,
    /// The control tokens that the three fixed texts are split on; the user's text never is.
    pub control: Cow<'static, [Cow<'static, str>]>,
    /// The token that ends an answer.
    pub stop: Cow<'static, str>,
    /// Whether white space around the user's text is cut off.
    #[serde(default)]
    pub trim: bool,
    /// The released code's anchor, counted from the prompt's end: 1 is the last token. None where that code has none.
    #[serde(default)]
    pub role_token_from_end: Option<usize>,
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
    /// The released code's position: the word `assistant` for Qwen2, the last content token for Mistral, the last prompt
    /// token otherwise.
    RoleToken,
    /// The last token before the answer tag, as the paper words it.
    BeforeAnswerTag,
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
    /// Llama 3 and 3.1 without a system message.
    pub const LLAMA3: Self = Self {
        before: Borrowed("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"),
        after: Borrowed("<|eot_id|>"),
        answer_tag: Borrowed("<|start_header_id|>assistant<|end_header_id|>\n\n"),
        control: Borrowed(&[
            Borrowed("<|begin_of_text|>"),
            Borrowed("<|start_header_id|>"),
            Borrowed("<|end_header_id|>"),
            Borrowed("<|eot_id|>"),
        ]),
        stop: Borrowed("<|eot_id|>"),
        trim: false,
        role_token_from_end: Some(1),
    };
    /// Qwen2 and Qwen2.5 (ChatML), with the system message that Qwen2.5 was tuned with.
    pub const QWEN2: Self = Self {
        before: Borrowed(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
             <|im_start|>user\n",
        ),
        after: Borrowed("<|im_end|>\n"),
        answer_tag: Borrowed("<|im_start|>assistant\n"),
        control: Borrowed(&[Borrowed("<|im_start|>"), Borrowed("<|im_end|>")]),
        stop: Borrowed("<|im_end|>"),
        trim: false,
        role_token_from_end: Some(2),
    };
    /// Mistral v0.3: one space after the opening tag, none before the closing one, which is the answer's beginning.
    pub const MISTRAL: Self = Self {
        before: Borrowed("<s>[INST] "),
        after: Borrowed("[/INST]"),
        answer_tag: Borrowed(""),
        control: Borrowed(&[Borrowed("<s>"), Borrowed("[INST]"), Borrowed("[/INST]")]),
        stop: Borrowed("</s>"),
        trim: false,
        role_token_from_end: Some(2),
    };
    /// `<|user|>…<|assistant|>…<|end|>`, for the small model trained here.
    pub const PLAIN: Self = Self {
        before: Borrowed("<|user|>"),
        after: Borrowed(""),
        answer_tag: Borrowed("<|assistant|>"),
        control: Borrowed(&[Borrowed("<|user|>"), Borrowed("<|assistant|>")]),
        stop: Borrowed("<|end|>"),
        trim: false,
        role_token_from_end: Some(1),
    };
    /// All of these with their names in recipes and manifests.
    pub const BUILT_IN: [(&'static str, Self); 4] =
        [("llama3", Self::LLAMA3), ("qwen2", Self::QWEN2), ("mistral", Self::MISTRAL), ("plain", Self::PLAIN)];

    /// Renders one user turn.
    ///
    /// # Errors
    /// The text is empty, the tokenizer is not the template's, or the template has no such anchor.
    pub fn render(&self, tokenizer: &Tokenizer, user: &str, rule: AnchorRule) -> Result<Prompt> {
        let user = if self.trim { user.trim() } else { user };
        if user.trim().is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let Self { before, after, answer_tag, .. } = self;
        let whole = [before, user, after, answer_tag].concat();
        let own = before.len()..before.len() + user.len();
        let tag = own.end + after.len();

        let mut tokens = Tokens { tokenizer, whole: &whole, done: 0, ids: Vec::new(), spans: Vec::new() };
        let closing = &whole[own.end..];
        for (at, token) in self.split(before).chain(self.split(closing).map(|(at, token)| (own.end + at, token))) {
            // Neighbouring texts are encoded as one: merges across their seam are the model's own.
            tokens.text_to(at)?;
            tokens.control(token, self.control_id(tokenizer, token)?);
        }
        tokens.text_to(whole.len())?;
        let Tokens { ids, spans, .. } = tokens;

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

    /// Ids that end an answer.
    ///
    /// # Errors
    /// The tokenizer is not the template's.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        Ok(vec![self.control_id(tokenizer, &self.stop)?])
    }

    /// The token that ends an answer.
    pub fn stop_token(&self) -> &str {
        &self.stop
    }

    /// The begin-of-text token: what the prompt begins with, if it opens neither the user's turn nor one before.
    pub fn begin_token(&self) -> Option<&str> {
        let (at, token) = self.split(&self.before).next()?;
        (at == 0 && self.turn_opens_at() > 0 && !self.before[token.len()..].contains(token)).then_some(token)
    }

    /// Name used in recipes, manifests and messages; `custom` for a template that is not built in.
    pub fn name(&self) -> &'static str {
        Self::BUILT_IN.iter().find(|(_, known)| known == self).map_or("custom", |(name, _)| name)
    }

    /// The built-in template whose control tokens a tokenizer has.
    pub fn detect(tokenizer: &Tokenizer) -> Option<Self> {
        let fits = |template: &Self| {
            let mut needed = template.control.iter().chain([&template.stop]);
            needed.all(|token| tokenizer.id(token).is_some())
        };
        Self::BUILT_IN.into_iter().map(|(_, template)| template).find(fits)
    }

    /// The same conversation in the template language of `transformers`, for a tokenizer_config.json.
    pub fn to_jinja(&self) -> String {
        let quote = |text: &str| {
            let text = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
            format!("'{text}'")
        };
        let again = self.turn_opens_at();
        let trim = if self.trim { " | trim" } else { "" };
        // Where a turn of the user's ends as the answer does, so does all that follows it.
        let end = if self.after.starts_with(&*self.stop) { &self.after } else { &self.stop };
        let [before, again, after, tag, end] =
            [&*self.before, &self.before[again..], &self.after, &self.answer_tag, end].map(quote);
        format!(
            "{{%- for message in messages -%}}\n\
             {{%- if message['role'] == 'user' -%}}\n\
             {{{{- ({before} if loop.first else {again}) + (message['content']{trim}) + {after} -}}}}\n\
             {{%- elif message['role'] == 'assistant' -%}}\n\
             {{{{- {tag} + message['content'] + {end} -}}}}\n\
             {{%- else -%}}\n\
             {{{{- raise_exception('this model knows the roles user and assistant, not ' + message['role']) -}}}}\n\
             {{%- endif -%}}\n\
             {{%- endfor -%}}\n\
             {{%- if add_generation_prompt -%}}\n\
             {{{{- {tag} -}}}}\n\
             {{%- endif -%}}"
        )
    }

    /// Where in `before` the user's turn opens: as the answer does, after everything that is said once.
    fn turn_opens_at(&self) -> usize {
        let header = self.split(&self.answer_tag).next().filter(|(at, _)| *at == 0).map(|(_, token)| token);
        let opens = header.and_then(|token| self.before.rfind(token));
        opens.or_else(|| self.split(&self.before).last().map(|(at, _)| at)).unwrap_or(0)
    }

    /// The control tokens in a fixed text, each with its place; of two at one place the longer.
    fn split<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (usize, &'t str)> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let found = |token: &'t Cow<'static, str>| Some((from + text[from..].find(&**token)?, &**token));
            let here = self.control.iter().filter(|token| !token.is_empty()).filter_map(found);
            let (at, token) = here.min_by_key(|(at, token)| (*at, usize::MAX - token.len()))?;
            from = at + token.len();
            Some((at, token))
        })
    }

    fn control_id(&self, tokenizer: &Tokenizer, token: &str) -> Result<u32> {
        let missing = || Error::MissingToken { template: self.name().into(), token: token.into() };
        tokenizer.id(token).ok_or_else(missing)
    }
}

/// A prompt while it is tokenised, each token with its bytes in the whole text.
struct Tokens<'a> {
    tokenizer: &'a Tokenizer,
    whole: &'a str,
    done: usize,
    ids: Vec<u32>,
    spans: Vec<Range<usize>>,
}

impl Tokens<'_> {
    fn text_to(&mut self, end: usize) -> Result<()> {
        if end > self.done {
            let (ids, spans) = self.tokenizer.encode_spans(&self.whole[self.done..end])?;
            self.ids.extend(ids);
            self.spans.extend(spans.into_iter().map(|span| span.start + self.done..span.end + self.done));
            self.done = end;
        }
        Ok(())
    }

    fn control(&mut self, token: &str, id: u32) {
        self.ids.push(id);
        self.spans.push(self.done..self.done + token.len());
        self.done += token.len();
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
        let known = Self::BUILT_IN.into_iter().find(|(known, _)| *known == name);
        known.map(|(_, template)| template).ok_or_else(|| {
            let names = Self::BUILT_IN.map(|(name, _)| name).join(", ");
            format!("unknown chat template {name:?}; expected one of {names}, or an object that spells one out")
        })
    }
}

impl Serialize for ChatTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> core::result::Result<S::Ok, S::Error> {
        match self.name() {
            "custom" => Self::serialize(self, serializer),
            name => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for ChatTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> core::result::Result<Self, D::Error> {
        struct Stored;

        impl<'de> Visitor<'de> for Stored {
            type Value = ChatTemplate;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a chat template or an object that spells one out")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> core::result::Result<ChatTemplate, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> core::result::Result<ChatTemplate, A::Error> {
                ChatTemplate::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(Stored)
    }
}
