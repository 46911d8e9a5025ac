//! Which training texts stand in the evaluation sets: whole items, and runs of their words. Only hashes are kept.
//!
//! # What counts
//! Case, punctuation and spacing do not. A run is `n` words, 13 as for GPT-3 (arXiv 2005.14165, appendix C) and never
//! fewer than 8; a piece of an item that is shorter than `n` counts as a whole. Where a script has no spaces a Chinese or
//! Japanese character is half a word, a Thai, Lao, Khmer or Burmese one a quarter: about what their words have. What most
//! prompts of a file have in common is the benchmark's wording; a run with any of it in it is none, so that the same task
//! asked in the same words about something else is no overlap.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::records::Records;

/// The fewest words that are told from chance.
const SHORTEST: usize = 8;
/// Words whose repetition over the prompts of a file is its wording: in more than `COMMON` prompts, and half of them.
const WORDING: usize = 4;
const COMMON: usize = 5;
/// The weight of a word that stands between spaces.
const WORD: u8 = 4;
/// Stands before and after a prompt where its wording is looked for.
const EDGE: Unit = Unit { hash: 0x5bd1_e995, weight: WORD };

/// A word, or a character of a script without spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    hash: u64,
    weight: u8,
}

/// The words of a text.
pub fn units(text: &str, units: &mut Vec<Unit>) {
    units.clear();
    let (mut word, mut any) = (DefaultHasher::new(), false);
    let mut close = |word: &mut DefaultHasher, any: &mut bool, weight: u8| {
        if std::mem::take(any) {
            units.push(Unit { hash: std::mem::take(word).finish(), weight });
        }
    };
    for c in text.chars() {
        let weight = match c {
            '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' => WORD / 4,
            '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' => {
                WORD / 2
            }
            _ => WORD,
        };
        let alone = weight < WORD;
        // Marks belong to their letters in the scripts of India.
        let inside = c.is_alphanumeric() || matches!(c, '\u{0300}'..='\u{036f}' | '\u{0900}'..='\u{0dff}');
        if alone || !inside {
            close(&mut word, &mut any, WORD);
        }
        if alone || inside {
            c.to_lowercase().for_each(|c| c.hash(&mut word));
            any = true;
        }
        if alone {
            close(&mut word, &mut any, weight);
        }
    }
    close(&mut word, &mut any, WORD);
}

fn whole(units: &[Unit]) -> u64 {
    let mut hasher = DefaultHasher::new();
    units.hash(&mut hasher);
    hasher.finish()
}

/// In words.
fn weight(units: &[Unit]) -> usize {
    units.iter().map(|unit| usize::from(unit.weight)).sum::<usize>() / usize::from(WORD)
}

/// From each unit on, the units that just make up `words` words, with the hash of their order.
fn runs(units: &[Unit], words: usize) -> impl Iterator<Item = (Range<usize>, u64)> {
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
    /// `BASE * INVERSE` is 1.
    const INVERSE: u64 = 0xf1de_83e1_9937_733d;
    let needed = words * usize::from(WORD);
    let (mut end, mut weight, mut hash, mut leaving) = (0, 0, 0u64, 1u64);
    (0..units.len()).map_while(move |start| {
        while weight < needed {
            let unit = units.get(end)?;
            weight += usize::from(unit.weight);
            hash = hash.wrapping_mul(BASE).wrapping_add(unit.hash);
            leaving = leaving.wrapping_mul(BASE);
            end += 1;
        }
        let run = (start..end, hash);
        // `leaving` is the base to the power of the run's length; its first unit has one factor less.
        leaving = leaving.wrapping_mul(INVERSE);
        hash = hash.wrapping_sub(units[start].hash.wrapping_mul(leaving));
        weight -= usize::from(units[start].weight);
        Some(run)
    })
}

/// The prompts of a folder of evaluation sets, `BENCHMARK/split*/LANGUAGE.json[.gz]` of `{"instruction": ...}` lines.
pub struct Against {
    n: usize,
    benchmarks: Vec<String>,
    /// Whole prompts, and whole items without their benchmark's wording.
    items: HashMap<u64, u8>,
    /// By the words that they have, `SHORTEST` to `n`.
    runs: Vec<HashMap<u64, u8>>,
}

/// What a row has in common with the evaluation sets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shared {
    /// Number of the benchmark whose whole prompt or item it is.
    pub prompt: Option<u8>,
    /// Number of the first benchmark that has a run of words in common.
    pub run: Option<u8>,
}

impl Shared {
    /// What one of two texts has in common.
    pub fn or(self, other: Self) -> Self {
        Self { prompt: self.prompt.or(other.prompt), run: self.run.or(other.run) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overlap {
    pub prompts: usize,
    pub runs: usize,
    /// Benchmark to rows that share a prompt or a run of words with it.
    pub benchmarks: std::collections::BTreeMap<String, usize>,
}

impl Against {
    /// # Errors
    /// A folder without a single prompt, or a prompt file that cannot be read.
    pub fn load(folder: &Path, n: usize) -> Result<Self> {
        ensure!((SHORTEST..=100).contains(&n), "--words {n}: expected {SHORTEST} to 100; fewer in a row are chance");
        let list = |folder: &Path| -> Result<Vec<PathBuf>> {
            let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
            let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
            found.sort();
            Ok(found)
        };
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (mut benchmarks, mut files) = (Vec::new(), Vec::new());
        for benchmark in list(folder)?.into_iter().filter(|path| path.is_dir()).take(256) {
            let mut prompts = Vec::new();
            for split in list(&benchmark)?.iter().filter(|path| path.is_dir() && name(path).starts_with("split")) {
                prompts.extend(list(split)?.into_iter().filter(|path| name(path).contains(".json")));
            }
            if !prompts.is_empty() {
                let number = benchmarks.len() as u8;
                files.extend(prompts.into_iter().map(|path| (number, path)));
                benchmarks.push(name(&benchmark));
            }
        }
        ensure!(
            !files.is_empty(),
            "{}: expected BENCHMARK/split*/LANGUAGE.json[.gz] files of prompts, found none",
            folder.display()
        );
        let mut against = Self { n, benchmarks, items: HashMap::new(), runs: vec![HashMap::new(); n + 1 - SHORTEST] };
        // A few files at once: their prompts are in memory until their wording is known.
        for files in files.chunks(rayon::current_num_threads().max(1)) {
            let read: Vec<_> =
                files.par_iter().map(|(number, path)| Ok((*number, read(path)?))).collect::<Result<_>>()?;
            for (number, prompts) in read {
                against.add(number, &prompts);
            }
        }
        Ok(against)
    }

    /// Takes in the prompts of one file.
    fn add(&mut self, number: u8, prompts: &[Vec<Unit>]) {
        let mut seen: HashMap<u64, usize> = HashMap::new();
        let framed = |prompt: &[Unit]| [&[EDGE; WORDING - 1], prompt, &[EDGE; WORDING - 1]].concat();
        for prompt in prompts {
            let once: HashSet<u64> = runs(&framed(prompt), WORDING).map(|(_, hash)| hash).collect();
            once.into_iter().for_each(|hash| *seen.entry(hash).or_default() += 1);
        }
        let common = COMMON.max(prompts.len() / 2);
        for prompt in prompts {
            let mut wording = vec![false; prompt.len() + 2 * (WORDING - 1)];
            for (run, _) in runs(&framed(prompt), WORDING).filter(|(_, hash)| seen[hash] > common) {
                wording[run].fill(true);
            }
            let wording = &wording[WORDING - 1..][..prompt.len()];
            let own: Vec<(Unit, bool)> = prompt.iter().copied().zip(wording.iter().copied()).collect();
            let pieces = own.split(|(_, wording)| *wording).map(|piece| piece.iter().map(|(unit, _)| *unit));
            let pieces: Vec<Vec<Unit>> = pieces.map(Iterator::collect).collect();
            self.items.insert(whole(prompt), number);
            let item = pieces.concat();
            if weight(&item) >= WORDING {
                self.items.insert(whole(&item), number);
            }
            for piece in &pieces {
                let words = weight(piece);
                if words >= self.n {
                    self.runs[self.n - SHORTEST].extend(runs(piece, self.n).map(|(_, hash)| (hash, number)));
                } else if words >= SHORTEST {
                    self.runs[words - SHORTEST].extend(runs(piece, words).take(1).map(|(_, hash)| (hash, number)));
                }
            }
        }
    }

    /// What a text has in common with any prompt.
    pub fn shared(&self, text: &str, words: &mut Vec<Unit>) -> Shared {
        units(text, words);
        let run = |(at, known): (usize, &HashMap<u64, u8>)| {
            let mut found = runs(words, at + SHORTEST).filter(|_| !known.is_empty());
            found.find_map(|(_, hash)| known.get(&hash).copied())
        };
        Shared {
            prompt: self.items.get(&whole(words)).copied().filter(|_| !words.is_empty()),
            run: self.runs.iter().enumerate().find_map(run),
        }
    }

    /// Counts a row.
    pub fn count(&self, shared: Shared, overlap: &mut Overlap) {
        overlap.prompts += usize::from(shared.prompt.is_some());
        overlap.runs += usize::from(shared.run.is_some());
        if let Some(number) = shared.prompt.or(shared.run) {
            *overlap.benchmarks.entry(self.benchmarks[usize::from(number)].clone()).or_default() += 1;
        }
    }
}

/// The prompts of a file.
fn read(path: &Path) -> Result<Vec<Vec<Unit>>> {
    let mut prompts = Vec::new();
    for record in Records::open(path)? {
        let record = record.map_err(|fault| anyhow::anyhow!("{}:{fault}", path.display()))?;
        if record.text.trim_ascii().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_slice(&record.text)
            .with_context(|| format!("{}:{}: expected a prompt", path.display(), record.line))?;
        let Some(text) = value.get("instruction").and_then(Value::as_str) else {
            let fault = record.fault(0, "instruction", "a prompt", "none");
            anyhow::bail!("{}:{fault}", path.display());
        };
        let mut words = Vec::new();
        units(text, &mut words);
        prompts.push(words);
    }
    Ok(prompts)
}
