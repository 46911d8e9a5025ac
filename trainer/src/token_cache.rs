//! Token samples kept on disk between runs, one file per content: its name is the hash of all that the samples depend on.
//!
//! A file is `MAGIC`, the sha256 of the rest, the rest. One that is damaged is made again. This room knows no model.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cctuning::bundle::hex;
use cctuning::chat::Prompt;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::data::{Reading, read_rows_as};
use crate::mapped::Mapped;
use crate::run_folder::file_sha256;
use crate::run_folder::write_file_atomically;
use crate::sample::{Rendered, Renderer, Sample};

/// Changes when the same key would mean other samples: the way of reading rows, of rendering, or of writing them down.
const MAGIC: &[u8; 8] = b"cctok003";
const SUM_BYTES: usize = 32;

/// The samples of a file: from `dir` if they are there, else made and kept there. An empty `dir` keeps none.
///
/// # Errors
/// As `read_rows_as` and `Renderer::samples`; a `dir` that cannot be written is told as a warning.
pub fn samples(
    dir: &Path,
    file: &Path,
    reading: &Reading,
    renderer: &Renderer,
    tokenizer_json: &[u8],
) -> Result<(Vec<Sample>, Rendered)> {
    let make = || renderer.samples(&read_rows_as(file, reading)?);
    if dir.as_os_str().is_empty() {
        return make();
    }
    let before = state(file)?;
    let path = dir.join(format!("{}.tokens", key(file, reading, renderer, tokenizer_json)?));
    if path.exists() {
        // Mapped: what of the file is in memory is the system's to drop, beside the samples that are made of it.
        if let Some(found) = Mapped::open(&path).ok().and_then(|bytes| decode(&bytes)) {
            return Ok(found);
        }
        eprintln!("warning: {} is damaged and made again", path.display());
    }
    let (samples, rendered) = make()?;
    // What was read is not what was hashed if somebody wrote meanwhile.
    if state(file)? == before
        && let Err(error) = write_file_atomically(&path, &encode(&samples, &rendered))
    {
        eprintln!("warning: the tokens are not kept for the next run: {error:#}");
    }
    Ok((samples, rendered))
}

fn state(file: &Path) -> Result<(u64, std::time::SystemTime)> {
    let read = || fs::metadata(file).and_then(|data| Ok((data.len(), data.modified()?)));
    read().with_context(|| format!("cannot open the rows {}", file.display()))
}

/// The hash of all that the samples depend on.
fn key(file: &Path, reading: &Reading, renderer: &Renderer, tokenizer_json: &[u8]) -> Result<String> {
    let extensions: Vec<_> =
        file.file_name().unwrap_or_default().to_string_lossy().split('.').skip(1).map(String::from).collect();
    let parts = json!({
        "magic": MAGIC,
        "file": file_sha256(file)?,
        // The name says how the bytes are read.
        "extensions": extensions,
        "reading": reading,
        "tokenizer": hex(&Sha256::digest(tokenizer_json)),
        "template": renderer.template,
        "anchor": renderer.anchor,
        "cutoff": renderer.cutoff,
        "english_cutoff": renderer.english_cutoff,
    });
    Ok(hex(&Sha256::digest(parts.to_string())))
}

fn encode(samples: &[Sample], rendered: &Rendered) -> Vec<u8> {
    let mut file = [&MAGIC[..], &[0; SUM_BYTES]].concat();
    let number = |file: &mut Vec<u8>, number: usize| file.extend((number as u32).to_le_bytes());
    let text = |file: &mut Vec<u8>, text: &str| {
        number(file, text.len());
        file.extend(text.as_bytes());
    };
    let ids = |file: &mut Vec<u8>, ids: &[u32]| {
        number(file, ids.len());
        ids.iter().for_each(|id| file.extend(id.to_le_bytes()));
    };
    number(&mut file, rendered.truncated);
    number(&mut file, rendered.truncated_english);
    number(&mut file, rendered.left_out.len());
    rendered.left_out.iter().for_each(|id| text(&mut file, id));
    number(&mut file, samples.len());
    for Sample { id, lang, prompt, english, answer } in samples {
        text(&mut file, id);
        text(&mut file, lang);
        for Prompt { ids: tokens, anchor, content } in [prompt, english] {
            ids(&mut file, tokens);
            [*anchor, content.start, content.end].into_iter().for_each(|at| number(&mut file, at));
        }
        ids(&mut file, answer);
    }
    let (head, payload) = file.split_at_mut(MAGIC.len() + SUM_BYTES);
    head[MAGIC.len()..].copy_from_slice(&Sha256::digest(payload));
    file
}

/// None for whatever `encode` did not write.
fn decode(bytes: &[u8]) -> Option<(Vec<Sample>, Rendered)> {
    let (sum, payload) = bytes.strip_prefix(MAGIC)?.split_at_checked(SUM_BYTES)?;
    if Sha256::digest(payload)[..] != *sum {
        return None;
    }
    let mut rest = Rest(payload);
    let (truncated, truncated_english) = (rest.number()?, rest.number()?);
    let left_out = (0..rest.number()?).map(|_| rest.text()).collect::<Option<_>>()?;
    let samples = (0..rest.number()?).map(|_| rest.sample()).collect::<Option<_>>()?;
    rest.0.is_empty().then_some((samples, Rendered { truncated, truncated_english, left_out }))
}

/// What has not been read yet.
struct Rest<'b>(&'b [u8]);

impl Rest<'_> {
    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn ids(&mut self) -> Option<Vec<u32>> {
        let length = self.number()?.checked_mul(4)?;
        let (words, _) = self.take(length)?.as_chunks::<4>();
        Some(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    fn prompt(&mut self) -> Option<Prompt> {
        Some(Prompt { ids: self.ids()?, anchor: self.number()?, content: self.number()?..self.number()? })
    }

    fn sample(&mut self) -> Option<Sample> {
        let (id, lang) = (self.text()?, self.text()?);
        Some(Sample { id, lang, prompt: self.prompt()?, english: self.prompt()?, answer: self.ids()? })
    }
}
