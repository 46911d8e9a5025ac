//! Chat templates: a user's text to a prompt with its anchor. The renderer knows where the anchor is; it is never
//! searched for.
//!
//! A template is data, so that one derived elsewhere travels in a manifest. Nothing here knows Jinja.

mod render;

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use core::fmt;
use core::str::FromStr;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow::{self, Borrowed};

pub use render::{History, Prompt};

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
    /// From the end of an answer to the user's next text; none where the model is asked once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Cow<'static, str>>,
    /// What takes the place of `before` around a system text; none where there is no place for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<[Cow<'static, str>; 2]>,
    /// The control tokens that these texts are split on, beside `stop`; no other text ever is.
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

impl ChatTemplate {
    /// Llama 3 and 3.1 without a system message.
    pub const LLAMA3: Self = Self {
        before: Borrowed("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"),
        after: Borrowed("<|eot_id|>"),
        answer_tag: Borrowed("<|start_header_id|>assistant<|end_header_id|>\n\n"),
        next: Some(Borrowed("<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n")),
        system: Some([
            Borrowed("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"),
            Borrowed("<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"),
        ]),
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
        next: Some(Borrowed("<|im_end|>\n<|im_start|>user\n")),
        system: Some([Borrowed("<|im_start|>system\n"), Borrowed("<|im_end|>\n<|im_start|>user\n")]),
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
        next: Some(Borrowed("</s>[INST] ")),
        system: None,
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
        next: Some(Borrowed("<|end|><|user|>")),
        system: None,
        control: Borrowed(&[Borrowed("<|user|>"), Borrowed("<|assistant|>")]),
        stop: Borrowed("<|end|>"),
        trim: false,
        role_token_from_end: Some(1),
    };
    /// All of these with their names in recipes and manifests.
    pub const BUILT_IN: [(&'static str, Self); 4] =
        [("llama3", Self::LLAMA3), ("qwen2", Self::QWEN2), ("mistral", Self::MISTRAL), ("plain", Self::PLAIN)];

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

    /// The begin-of-text token: what a prompt begins with, if no turn does.
    pub fn begin_token(&self) -> Option<&str> {
        let (at, token) = self.split(&self.before).next()?;
        let turns = [&self.before[token.len()..], &self.after, &self.answer_tag, self.next.as_deref().unwrap_or("")];
        (at == 0 && !turns.iter().any(|turn| turn.contains(token))).then_some(token)
    }

    /// The beginning of `before` whose tokens are the same whatever the user's text is.
    pub fn head(&self) -> &str {
        let last = self.split(&self.before).last();
        last.map_or("", |(at, _)| &self.before[..at])
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

    /// The same conversations in the template language of `transformers`, for a tokenizer_config.json.
    pub fn to_jinja(&self) -> String {
        let quote = |text: &str| {
            let text = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
            format!("'{text}'")
        };
        let raise = |said: &str| format!("raise_exception({})", quote(said));
        let trim = if self.trim { " | trim" } else { "" };
        // Where a turn of the user's ends as the answer does, so does all that follows it.
        let end = quote(if self.after.starts_with(&*self.stop) { &self.after } else { &self.stop });
        let [before, after, tag] = [&*self.before, &self.after, &self.answer_tag].map(quote);
        let next = self.next.as_deref().map_or_else(|| raise("this model is asked once"), quote);
        let system = match &self.system {
            Some([open, close]) => format!("{} + (messages[0]['content']{trim}) + {}", quote(open), quote(close)),
            None => raise("this model has no system turn"),
        };
        format!(
            "{{%- set system = messages[0]['role'] == 'system' -%}}\n\
             {{%- for message in (messages[1:] if system else messages) -%}}\n\
             {{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}}\n\
             {{{{- raise_exception('expected user and assistant in turn, found ' + message['role']) -}}}}\n\
             {{%- endif -%}}\n\
             {{%- if message['role'] == 'assistant' -%}}\n\
             {{{{- {tag} + message['content'] + ({end} if loop.last else {next}) -}}}}\n\
             {{%- else -%}}\n\
             {{%- if loop.first -%}}\n\
             {{{{- {system} if system else {before} -}}}}\n\
             {{%- endif -%}}\n\
             {{{{- (message['content']{trim}) + {after} -}}}}\n\
             {{%- endif -%}}\n\
             {{%- endfor -%}}\n\
             {{%- if add_generation_prompt -%}}\n\
             {{{{- {tag} -}}}}\n\
             {{%- endif -%}}"
        )
    }

    /// The control tokens in a fixed text, each with its place; of two at one place the longer.
    fn split<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (usize, &'t str)> {
        let longest_at = move |at: usize| {
            let here = self.control.iter().chain([&self.stop]).filter(|token| !token.is_empty());
            let here = here.filter(|token| text.as_bytes()[at..].starts_with(token.as_bytes()));
            here.max_by_key(|token| token.len())
        };
        let mut from = 0;
        core::iter::from_fn(move || {
            let (at, token) = (from..text.len()).find_map(|at| Some((at, longest_at(at)?)))?;
            from = at + token.len();
            Some((at, &**token))
        })
    }

    fn control_id(&self, tokenizer: &Tokenizer, token: &str) -> Result<u32> {
        let missing = || Error::MissingToken { template: self.name().into(), token: token.into() };
        tokenizer.id(token).ok_or_else(missing)
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
