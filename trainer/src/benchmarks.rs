//! The six benchmarks of the paper, read from a folder: prompts, gold answers, English twins.
//!
//! A benchmark is a folder with `split*/LANG.json`, the prompts, and `ans*/LANG.json`, the gold answers, one JSON value a
//! line, plain or gzipped. Line i of each language is the translation of line i of `en`. Knows no model and no rule of
//! scoring.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// Rows of MMMLU `ko`, from 0, that are other questions than the English rows of the same number.
const MMMLU_KO_ALONE: std::ops::RangeInclusive<usize> = 417..=426;
/// Faults that are named before reading ends.
const MAX_FAULTS: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Benchmark {
    Xnli,
    XStoryCloze,
    Mmmlu,
    Mkqa,
    Xquad,
    XlSum,
}

impl Benchmark {
    pub const ALL: [Self; 6] = [Self::Xnli, Self::XStoryCloze, Self::Mmmlu, Self::Mkqa, Self::Xquad, Self::XlSum];

    /// The name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xnli => "XNLI",
            Self::XStoryCloze => "XStoryCloze",
            Self::Mmmlu => "MMMLU",
            Self::Mkqa => "MKQA",
            Self::Xquad => "XQuAD",
            Self::XlSum => "XLSum",
        }
    }

    /// By name, in any case.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|one| one.name().eq_ignore_ascii_case(name)).with_context(|| {
            format!("there is no benchmark {name:?}; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }

    /// The labels of a multiple-choice benchmark; empty where the answer is free text.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Xnli => &["1", "2", "3"],
            Self::XStoryCloze => &["1", "2"],
            Self::Mmmlu => &["A", "B", "C", "D"],
            Self::Mkqa | Self::Xquad | Self::XlSum => &[],
        }
    }

    /// What an item asks, whatever its language: items of one question are translations of each other.
    pub fn question(self, lang: &str, id: &str) -> String {
        let row = id.rsplit('/').next().unwrap_or_default();
        let parallel = self != Self::XlSum && !row.parse().is_ok_and(|row| self.stands_alone(lang, row));
        if parallel { format!("{}/{row}", self.name()) } else { id.to_string() }
    }

    fn stands_alone(self, lang: &str, row: usize) -> bool {
        self == Self::Mmmlu && lang == "ko" && MMMLU_KO_ALONE.contains(&row)
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// `benchmark/language/row`, rows counted from 0.
    pub id: String,
    pub benchmark: Benchmark,
    pub lang: String,
    pub prompt: String,
    /// The English twin, where there is one.
    pub english: Option<String>,
    /// Any of them is right.
    pub gold: Vec<String>,
}

/// All items of one benchmark, language by language; `langs` empty asks for all.
///
/// # Errors
/// A folder or language is missing, or lines are not as expected: each by `file:line`.
pub fn load(folder: &Path, benchmark: Benchmark, langs: &[String]) -> Result<Vec<Item>> {
    let root = folder.join(benchmark.name());
    ensure!(
        root.is_dir(),
        "{}: no such folder; --benchmarks takes one that holds {}, each with prompts in split_sample/LANG.json and gold \
         answers in ans_sample/LANG.json, plain or .gz",
        root.display(),
        Benchmark::ALL.map(Benchmark::name).join(", ")
    );
    let prompts = either(&root, ["split_sample", "split"])?;
    let answers = either(&root, ["ans_sample", "ans"])?;
    let there = languages(&prompts)?;
    for lang in langs {
        ensure!(there.contains(lang), "{}: no language {lang:?}; there are {}", prompts.display(), there.join(", "));
    }
    let mut faults = Vec::new();
    let english_of_all = match there.iter().any(|lang| lang == "en") {
        true => Some(read_prompts(&prompts, "en", &mut faults)?),
        false => None,
    };
    let twins = root.join("split_sample_en");
    let mut items = Vec::new();
    for lang in there.iter().filter(|lang| langs.is_empty() || langs.contains(lang)) {
        let own = read_prompts(&prompts, lang, &mut faults)?;
        let gold = read_gold(&answers, lang, benchmark, &mut faults)?;
        // XLSum is not parallel across languages; its twins have a folder of their own.
        let english = match twins.is_dir() {
            true => Some(read_prompts(&twins, lang, &mut faults)?),
            false => english_of_all.clone(),
        };
        if own.len() != gold.len() {
            let (own, gold) = (own.len(), gold.len());
            faults.push(format!("{}: {lang} has {own} prompts and {gold} gold answers", root.display()));
        }
        if let Some(english) = &english
            && english.len() != own.len()
        {
            faults.push(format!(
                "{}: {lang} has {} prompts and {} English twins",
                root.display(),
                own.len(),
                english.len()
            ));
        }
        for (row, (prompt, gold)) in own.into_iter().zip(gold).enumerate() {
            let alone = benchmark.stands_alone(lang, row);
            let english = english.as_ref().filter(|_| !alone).and_then(|english| english.get(row).cloned());
            let id = format!("{}/{lang}/{row}", benchmark.name());
            items.push(Item { id, benchmark, lang: lang.clone(), prompt, english, gold });
        }
    }
    if !faults.is_empty() {
        let more = faults.len().saturating_sub(MAX_FAULTS);
        faults.truncate(MAX_FAULTS);
        if more > 0 {
            faults.push(format!("and {more} more"));
        }
        bail!("the benchmark {} cannot be used:\n  {}", benchmark.name(), faults.join("\n  "));
    }
    ensure!(!items.is_empty(), "{}: no items", root.display());
    Ok(items)
}

fn either(root: &Path, names: [&str; 2]) -> Result<PathBuf> {
    let found = names.iter().map(|name| root.join(name)).find(|path| path.is_dir());
    found.with_context(|| format!("{}: neither {} nor {} is there", root.display(), names[0], names[1]))
}

/// English first, the others by name.
fn languages(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        found.extend(name.strip_suffix(".json").map(String::from));
    }
    found.sort_by_key(|lang| (lang != "en", lang.clone()));
    found.dedup();
    Ok(found)
}

/// The lines of `folder/lang.json` or `folder/lang.json.gz`, and the path they came from.
fn read_lines(folder: &Path, lang: &str) -> Result<(PathBuf, String)> {
    let plain = folder.join(format!("{lang}.json"));
    let zipped = folder.join(format!("{lang}.json.gz"));
    let path = if plain.exists() { plain } else { zipped };
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut text = String::new();
    let read = match path.extension().is_some_and(|extension| extension == "gz") {
        true => MultiGzDecoder::new(file).read_to_string(&mut text),
        false => (&file).read_to_string(&mut text),
    };
    read.with_context(|| format!("{}: cannot be read as UTF-8 text; fetch it again", path.display()))?;
    Ok((path, text))
}

/// Every line through `take`, which says what it expected of a line that does not fit.
fn read_values<T>(
    (path, text): (PathBuf, String),
    faults: &mut Vec<String>,
    take: impl Fn(&Value) -> std::result::Result<T, String>,
) -> Vec<T> {
    let mut taken = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value = serde_json::from_str(line).map_err(|error| format!("expected one JSON value a line: {error}"));
        match value.and_then(|value| take(&value)) {
            Ok(one) => taken.push(one),
            Err(fault) => {
                let preview: String = line.chars().take(60).collect();
                faults.push(format!("{}:{}: {fault} | {preview}", path.display(), number + 1));
            }
        }
    }
    taken
}

fn read_prompts(folder: &Path, lang: &str, faults: &mut Vec<String>) -> Result<Vec<String>> {
    Ok(read_values(read_lines(folder, lang)?, faults, |value| match value["instruction"].as_str() {
        Some(text) if !text.trim().is_empty() => Ok(text.to_string()),
        _ => Err("expected an object with the non-empty string `instruction`".into()),
    }))
}

fn read_gold(folder: &Path, lang: &str, benchmark: Benchmark, faults: &mut Vec<String>) -> Result<Vec<Vec<String>>> {
    let options = benchmark.options();
    Ok(read_values(read_lines(folder, lang)?, faults, |value| match (benchmark, value) {
        (Benchmark::Mkqa, Value::Array(all)) if !all.is_empty() => {
            let texts: Option<Vec<String>> = all.iter().map(|one| one.as_str().map(String::from)).collect();
            texts.ok_or_else(|| "expected a list of strings".into())
        }
        (Benchmark::Mkqa, _) => Err("expected a list of one or more strings".into()),
        (_, Value::String(text)) if options.is_empty() && !text.trim().is_empty() => Ok(vec![text.clone()]),
        (_, Value::String(text)) if options.contains(&text.as_str()) => Ok(vec![text.clone()]),
        _ if options.is_empty() => Err("expected a non-empty string".into()),
        _ => Err(format!("expected one of {options:?}")),
    }))
}
