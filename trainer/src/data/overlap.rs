//! Which training texts stand in the evaluation sets: whole prompts, and runs of words in common. Only hashes are kept.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::records::Records;

/// A run of words in more than this many prompts of one file is the benchmark's own phrasing.
const PHRASING: u32 = 5;

/// The hash of a text whose case, punctuation and spacing do not count, and of its words. A letter of a script without
/// spaces counts as a word.
pub fn normalised(text: &str, words: &mut Vec<u64>) -> u64 {
    words.clear();
    let (mut word, mut any) = (DefaultHasher::new(), false);
    let mut close = |word: &mut DefaultHasher, any: &mut bool| {
        if std::mem::take(any) {
            words.push(std::mem::take(word).finish());
        }
    };
    for c in text.chars() {
        let alone = matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
            | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}');
        // Marks belong to their letters in the scripts of India.
        let inside = c.is_alphanumeric() || matches!(c, '\u{0300}'..='\u{036f}' | '\u{0900}'..='\u{0dff}');
        if alone || !inside {
            close(&mut word, &mut any);
        }
        if alone || inside {
            c.to_lowercase().for_each(|c| c.hash(&mut word));
            any = true;
        }
        if alone {
            close(&mut word, &mut any);
        }
    }
    close(&mut word, &mut any);
    let mut whole = DefaultHasher::new();
    words.hash(&mut whole);
    whole.finish()
}

/// The hash of every run of `n` words.
fn runs(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
    let leaving = (0..n).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = 0u64;
    (0..words.len()).filter_map(move |at| {
        hash = hash.wrapping_mul(BASE).wrapping_add(words[at]);
        if at >= n {
            hash = hash.wrapping_sub(words[at - n].wrapping_mul(leaving));
        }
        (at + 1 >= n).then_some(hash)
    })
}

/// The prompts of a folder of evaluation sets, `BENCHMARK/split*/LANGUAGE.json[.gz]` of `{"instruction": ...}` lines.
pub struct Against {
    n: usize,
    benchmarks: Vec<String>,
    prompts: HashMap<u64, u8>,
    runs: HashMap<u64, u8>,
}

/// What a row has in common with the evaluation sets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shared {
    /// Number of the benchmark whose whole prompt it is.
    pub prompt: Option<u8>,
    /// Number of the first benchmark that has a run of words in common.
    pub run: Option<u8>,
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
        ensure!(n >= 1, "--words {n}: expected at least 1");
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
        let (mut prompts, mut runs) = (HashMap::new(), HashMap::new());
        // A few files at once: their runs of words are counted before those of the phrasing are dropped.
        for files in files.chunks(rayon::current_num_threads().max(1)) {
            let read: Vec<_> =
                files.par_iter().map(|(number, path)| Ok((*number, read(path, n)?))).collect::<Result<_>>()?;
            for (number, (wholes, counts)) in read {
                prompts.extend(wholes.into_iter().map(|hash| (hash, number)));
                let own = counts.into_iter().filter(|(_, count)| *count <= PHRASING);
                runs.extend(own.map(|(hash, _)| (hash, number)));
            }
        }
        Ok(Self { n, benchmarks, prompts, runs })
    }

    /// What a text has in common with any prompt.
    pub fn shared(&self, text: &str, words: &mut Vec<u64>) -> Shared {
        let whole = normalised(text, words);
        Shared {
            prompt: self.prompts.get(&whole).copied().filter(|_| !words.is_empty()),
            run: runs(words, self.n).find_map(|hash| self.runs.get(&hash).copied()),
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

type Prompts = (Vec<u64>, HashMap<u64, u32>);

/// The hashes of a file's prompts, and in how many of them every run of words stands.
fn read(path: &Path, n: usize) -> Result<Prompts> {
    let (mut wholes, mut counts, mut words) = (Vec::new(), HashMap::new(), Vec::new());
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
        wholes.push(normalised(text, &mut words));
        let once: HashSet<u64> = runs(&words, n).collect();
        once.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
    }
    Ok((wholes, counts))
}
