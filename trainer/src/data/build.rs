//! The paper's data settings beside plain fine-tuning: +EN, +MT and +SDRRL, each the given rows and further ones made
//! from them. A pure function of rows and seed, but for the answers that `distill` asks a model for.
//!
//! # Departures
//! The paper does not say what stands before a translation or how many rows of which kind SDRRL adds; see `distill`.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::distill::{self, Distill};
use super::{Row, read_rows_as};
use crate::interrupt::Interrupt;
use crate::recipe::Recipe;
use crate::run_folder::{file_sha256, write_file_atomically};

#[derive(Args)]
pub struct BuildArgs {
    /// Rows to start from
    file: PathBuf,
    #[arg(long, value_enum)]
    setting: Setting,
    /// JSON lines to write; what they were made from stands beside them in OUT.json
    #[arg(long)]
    out: PathBuf,
    /// The model that answers English prompts itself: a folder, or org/name on the Hub (sdrrl only)
    #[arg(long, required_if_eq("setting", "sdrrl"))]
    model: Option<PathBuf>,
    /// Rows of each kind that sdrrl adds, over the rows given
    #[arg(long, default_value_t = 0.15)]
    share: f64,
    /// Seeds which rows these are
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// The English version of every row
    En,
    /// A translation task for every row: the English output into the row's language
    Mt,
    /// Self-distillation: the model's own English answers, code-switched rows, partial translation, completion
    Sdrrl,
}

/// What a setting adds, and how many rows it could not be made for.
#[derive(Debug, Default, PartialEq)]
pub struct Added {
    pub rows: Vec<Row>,
    /// Rows of another language without an English output.
    pub without_english: usize,
    /// Rows whose language has no English name here.
    pub without_name: usize,
    /// Answers of the model itself that did not end within the limit.
    pub unended: usize,
}

impl Added {
    /// Tells a person which of the model's own answers are no rows, if there are such.
    pub fn tell_unended(&self, max_new_tokens: usize) {
        if self.unended > 0 {
            println!(
                "left out: {} of the model's own answers did not end within eval.max_new_tokens = {max_new_tokens}; raise it",
                self.unended
            );
        }
    }
}

/// The English version of every row of another language.
pub fn english(rows: &[Row]) -> Added {
    let mut added = Added::default();
    for row in rows.iter().filter(|row| !is_english(&row.lang)) {
        match &row.output_en {
            None => added.without_english += 1,
            Some(output) => added.rows.push(Row {
                id: format!("{}-en", row.id),
                task: row.task.clone(),
                lang: "en".into(),
                instruction: row.instruction_en.clone(),
                instruction_en: row.instruction_en.clone(),
                output: output.clone(),
                output_en: Some(output.clone()),
                system: row.before_en().system.map(String::from),
                history: row.history_en.clone(),
                history_en: row.history_en.clone(),
                ..Row::default()
            }),
        }
    }
    added
}

/// A translation task for every row of another language. Its instruction is English and so its own twin.
pub fn translation(rows: &[Row]) -> Added {
    let mut added = Added::default();
    for row in rows.iter().filter(|row| !is_english(&row.lang)) {
        match (&row.output_en, language_name(&row.lang)) {
            (None, _) => added.without_english += 1,
            (_, None) => added.without_name += 1,
            (Some(english), Some(name)) => {
                let instruction = translation_prompt(name, english);
                added.rows.push(Row {
                    id: format!("{}-mt", row.id),
                    task: "translation".into(),
                    lang: row.lang.clone(),
                    instruction_en: instruction.clone(),
                    instruction,
                    output: row.output.clone(),
                    ..Row::default()
                });
            }
        }
    }
    added
}

/// As the paper words it.
pub fn translation_prompt(language: &str, english: &str) -> String {
    format!("Translate the following sentence from English to {language}.\n {english}")
}

pub fn is_english(lang: &str) -> bool {
    lang == "en" || lang == "eng"
}

/// English names of the languages of the evaluation sets and the shared tables, by ISO 639 code.
pub fn language_name(code: &str) -> Option<&'static str> {
    const NAMES: &str = "af Afrikaans am Amharic ar Arabic bem Bemba bg Bulgarian bn Bengali ca Catalan cs Czech \
        da Danish de German el Greek en English es Spanish et Estonian eu Basque fa Persian fi Finnish fr French \
        gl Galician ha Hausa he Hebrew hi Hindi ht Haitian hu Hungarian id Indonesian ig Igbo it Italian ja Japanese \
        ka Georgian km Khmer ko Korean ml Malayalam mr Marathi ms Malay my Burmese ne Nepali nl Dutch pa Punjabi \
        pl Polish pt Portuguese qu Quechua ro Romanian ru Russian rw Kinyarwanda so Somali sv Swedish sw Swahili \
        ta Tamil te Telugu th Thai tl Tagalog tr Turkish tw Twi uk Ukrainian ur Urdu vi Vietnamese yo Yoruba \
        zh Chinese zu Zulu";
    let mut words = NAMES.split_whitespace();
    std::iter::from_fn(|| Some((words.next()?, words.next()?))).find(|(known, _)| *known == code).map(|(_, name)| name)
}

/// Writes the rows of a setting and what they were made from; false when a person stopped it, and nothing is written.
///
/// # Errors
/// A fault in the rows, a setting that adds not one row, a model that cannot be used.
pub fn build(args: &BuildArgs, recipe: &Recipe, interrupt: &Interrupt) -> Result<bool> {
    ensure!(args.share > 0.0 && args.share <= 1.0, "--share {}: expected a number above 0, at most 1", args.share);
    let mut rows = read_rows_as(&args.file, &recipe.data.reading())?;
    let given = rows.len();
    let added = match (args.setting, &args.model) {
        (Setting::En, _) => english(&rows),
        (Setting::Mt, _) => translation(&rows),
        (Setting::Sdrrl, Some(model)) => {
            let distill = Distill { rows: &rows, share: args.share, seed: args.seed };
            match distill::with_model(&distill, model, recipe, interrupt)? {
                Some(added) => added,
                None => return Ok(false),
            }
        }
        (Setting::Sdrrl, None) => anyhow::bail!("--setting sdrrl: expected --model, whose own answers are added"),
    };
    added.tell_unended(recipe.eval.max_new_tokens);
    let Added { rows: new, without_english, without_name, unended } = added;
    ensure!(
        !new.is_empty(),
        "{}: nothing to add: {without_english} rows have no `output_en`, the English answer, {without_name} are of a language \
         without a known name, and the others are English",
        args.file.display()
    );
    let added = new.len();
    rows.extend(new);
    let mut lines = Vec::new();
    for row in &rows {
        serde_json::to_writer(&mut lines, row)?;
        lines.push(b'\n');
    }
    let provenance = json!({
        "setting": args.setting,
        "from": args.file,
        "from_sha256": file_sha256(&args.file)?,
        "sha256": cctuning::bundle::hex(&Sha256::digest(&lines)),
        "rows_given": given,
        "rows_added": added,
        "without_output_en": without_english,
        "without_language_name": without_name,
        "unended_answers": unended,
        "model": args.model,
        "share": args.share,
        "seed": args.seed,
        "max_new_tokens": recipe.eval.max_new_tokens,
        "trainer": env!("CARGO_PKG_VERSION"),
    });
    let mut beside = args.out.clone().into_os_string();
    beside.push(".json");
    write_file_atomically(Path::new(&beside), serde_json::to_string_pretty(&provenance)?.as_bytes())?;
    write_file_atomically(&args.out, &lines)?;
    println!("{} written: {given} rows and {added} added", args.out.display());
    if without_english + without_name > 0 {
        println!(
            "nothing added for {without_english} rows without `output_en` and {without_name} of an unnamed language"
        );
    }
    Ok(true)
}
