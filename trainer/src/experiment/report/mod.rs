//! RESULTS.md and its figures, from whatever finished cells there are. Nothing is measured here, and no result is written
//! by hand: every number and every sentence comes from the cells.

mod ablations;
mod analyses;
mod choice;
mod deep_supervision;
mod evidence;
mod main_table;
mod markdown;
mod times;
mod transform;
mod why;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cell::{Asked, Measured};
use crate::run_folder::write_file_atomically;

pub use evidence::{Difference, Evidence, Scores, constant_answer};
use markdown::{interval, percent};

pub const RESULTS_FILE: &str = "RESULTS.md";
/// Seeds the draws behind every interval.
const SEED: u64 = 2506;

/// One heading's worth of the report.
pub struct Section {
    pub title: String,
    pub text: String,
    /// Files beside it: name and content.
    pub files: Vec<(String, String)>,
}

/// Writes everything that the cells of an experiment's folder can say.
///
/// # Errors
/// There is no plan, a cell cannot be read, or a file cannot be written.
pub fn write(out: &Path) -> Result<()> {
    let evidence = Evidence::read(out)?;
    let mut sections = vec![main_table::by_family(&evidence), main_table::by_kind(&evidence)];
    sections.extend(main_table::by_language(&evidence));
    sections.push(why::points_go(&evidence));
    sections.extend([transform::matrix_against_twin(&evidence), transform::layers(&evidence)]);
    sections.extend([times::training(&evidence), times::inference(&evidence)]);
    sections.extend([ablations::pooling(&evidence), ablations::sites(&evidence), ablations::others(&evidence)]);
    sections.push(deep_supervision::compared(&evidence));
    sections.extend([analyses::pairs(&evidence), analyses::losses(&evidence), analyses::states(&evidence)]);
    sections.extend([choice::layers(&evidence), choice::connection(&evidence), analyses::transplants(&evidence)]);
    sections.push(everything(&evidence));
    let (mut text, figures) = (head(&evidence), out.join("figures"));
    let mut written = BTreeSet::new();
    for section in sections {
        let _ = write!(text, "\n## {}\n\n{}\n", section.title, section.text.trim_end());
        for (name, content) in section.files {
            write_file_atomically(&figures.join(&name), content.as_bytes())?;
            written.insert(name);
        }
    }
    write_file_atomically(&out.join(RESULTS_FILE), text.as_bytes())?;
    // What an earlier report drew and this one does not would pass for one of these cells'.
    for entry in fs::read_dir(&figures).with_context(|| format!("cannot list {}", figures.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| !written.contains(&*name.to_string_lossy())) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// What a person wants to know of a cell as soon as it is done.
pub fn headline(cell: &Measured) -> String {
    let scores = cell.test.readings.keys().map(|&reading| {
        let scores = Scores::of(&[cell], reading, Asked::foreign);
        format!("{} {}", reading.name(), percent(scores.centre()))
    });
    scores.collect::<Vec<_>>().join(", ")
}

fn head(evidence: &Evidence) -> String {
    let Evidence { plan, cells, missing, stale } = evidence;
    let mut text =
        "# Results\n\nWritten by `trainer experiment` from the files in `cells/`; no line here is edited by hand.\n\n"
            .to_string();
    let _ = writeln!(text, "```sh\n{}\n```\n", plan.command);
    let _ = writeln!(
        text,
        "{} of {} cells of profile `{}` are measured.",
        cells.len(),
        plan.cells.len(),
        plan.profile.name()
    );
    if let Some(first) = cells.first() {
        let shape = first.model;
        let mut devices: Vec<&str> = cells.iter().map(|cell| cell.device.as_str()).collect();
        devices.sort_unstable();
        devices.dedup();
        let _ = writeln!(
            text,
            "The base has {} layers of width {} and {:.2} M parameters (sha256 {}...), the corpus is {}.... Device: {}.",
            shape.n_layers,
            shape.d_model,
            shape.parameters as f64 / 1e6,
            &plan.base_sha256[..12],
            &plan.corpus_sha256[..12],
            devices.join(", ")
        );
    }
    let _ = writeln!(
        text,
        "\nScores are percent of full credit on test prompts: exact answers, for `reading` answers that contain the gold \
         one, for `summary` ROUGE-L. Means are over languages without English. In brackets stands the 95 % interval of a \
         bootstrap over facts and seeds: items that ask for the same fact, story or event, in whatever language, wording or \
         family, are drawn together, because they are right or wrong together. The drawn seeds answer the same drawn facts; \
         of n of either n - 1 are drawn (Rao and Wu), and every family keeps its weight. Where one seed was run it is over \
         facts alone, and where only seeds are compared (errors, losses, times) it is Student's. Seeds vary the fine-tuning, \
         not the base. A difference is paired by item and seed; no interval is corrected for how many there are. The matrix \
         chooses nothing on these prompts, and its variants stand beside each other on validation too (last table); the \
         shipped base was chosen among others with a look at such prompts (`TRIED.md` of the shipped results)."
    );
    if !missing.is_empty() {
        let _ = writeln!(text, "\nMissing, not yet measured: {}.", missing.join("; "));
    }
    if *stale > 0 {
        let _ =
            writeln!(text, "\n{stale} files of `cells/` belong to another recipe, corpus or base and are left out.");
    }
    text
}

/// Every cell with its validation and test score: all that was tried.
fn everything(evidence: &Evidence) -> Section {
    let rows = evidence.cells.iter().flat_map(|cell| {
        cell.test.readings.keys().map(move |&reading| {
            let test = Scores::of(&[cell], reading, Asked::foreign);
            let validation = Scores::validation(&[cell], reading, Asked::foreign);
            vec![
                cell.cell.name(),
                reading.name().into(),
                interval(&validation.estimate()),
                interval(&test.estimate()),
                test.items().to_string(),
                cell.trained.as_ref().map_or(String::new(), |trained| trained.steps.to_string()),
            ]
        })
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let head = ["cell", "asked with", "validation", "test", "n", "steps"];
    Section {
        title: "Every cell".into(),
        text: format!(
            "`{}`\n\nMean over families and languages without English.\n\n{}",
            evidence.plan.command,
            markdown::table(&head, &rows)
        ),
        files: vec![("everything.csv".into(), markdown::csv(&head, &rows))],
    }
}
