//! What is in some files of rows: every fault, then counts. Memory holds hashes and counts, never texts.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

use super::build::is_english;
use super::lengths::{Counted, Counter, Percentiles, Tokens, Totals};
use super::overlap::{Against, Overlap, Shared, Unit};
use super::{Fault, Reading, Record, Records, Row, RowParser};
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// The most records judged side by side.
const BATCH: usize = 4096;
/// Bytes of records judged side by side: a batch of long ones is shorter.
const BATCH_BYTES: usize = 64 << 20;

/// All that is known of the files.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub rows: usize,
    pub languages: BTreeMap<String, usize>,
    pub faults: usize,
    /// The first of the faults.
    pub shown: Vec<FaultIn>,
    /// Rows of another language than English without an English instruction; faults, all of them.
    pub missing_twins: usize,
    /// Rows whose prompt and output stood in a row before.
    pub duplicates: usize,
    /// Rows of another language whose English instruction is the instruction itself.
    pub identical_twins: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    pub interrupted: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultIn {
    pub file: PathBuf,
    #[serde(flatten)]
    pub fault: Fault,
}

/// What is asked of a check.
pub struct Checks<'a> {
    pub reading: Reading,
    pub counter: Option<Counter<'a>>,
    pub against: Option<Against>,
    /// Faults kept for printing.
    pub show: usize,
}

/// Records judged side by side, and the fault that ended them.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    broken: Option<Fault>,
}

impl Batch {
    fn next(source: &mut Records) -> Self {
        let (mut batch, mut bytes) = (Self::default(), 0);
        while batch.records.len() < BATCH && bytes < BATCH_BYTES {
            match source.next() {
                None => break,
                Some(Ok(record)) => {
                    bytes += record.text.len();
                    batch.records.push(record);
                }
                Some(Err(fault)) => {
                    batch.broken = Some(fault);
                    break;
                }
            }
        }
        batch
    }
}

/// What one row adds to the report.
struct Judged {
    lang: String,
    /// Of the prompt and the output.
    hash: u64,
    identical_twin: bool,
    counted: Option<Counted>,
    shared: Shared,
}

impl Checks<'_> {
    /// Reads all files once.
    ///
    /// # Errors
    /// When a file cannot be opened; what is wrong inside stands in the report.
    pub fn run(&self, files: &[PathBuf], interrupt: &Interrupt) -> Result<Report> {
        let mut report = Report::default();
        let mut overlap = self.against.as_ref().map(|_| Overlap::default());
        let mut tokens = self.counter.as_ref().map(|counter| (counter, Totals::default()));
        let mut seen: HashSet<u64> = HashSet::new();
        for file in files {
            let mut records = Records::open(file)?;
            let mut parser: Option<RowParser> = None;
            let (mut rows, faults) = (0, report.faults);
            let mut progress = Progress::new(&format!("{}:", file.display()), 0, 0);
            let mut batch = Batch::next(&mut records);
            loop {
                let Some(first) = batch.records.first() else {
                    batch.broken.into_iter().for_each(|fault| self.note(&mut report, file, fault));
                    break;
                };
                let parser = &*parser.get_or_insert_with(|| RowParser::new(&self.reading, first));
                let mut judged: Result<Vec<_>> = Ok(Vec::new());
                // The next batch is read while this one is judged.
                let next = rayon::in_place_scope(|scope| {
                    scope.spawn(|_| {
                        let judge = |words: &mut Vec<Unit>, record| self.judge(parser, record, words);
                        judged = batch.records.par_iter().map_init(Vec::new, judge).collect();
                    });
                    Batch::next(&mut records)
                });
                let sound = judged?.into_iter().flat_map(|judged| {
                    judged.unwrap_or_else(|faults| {
                        faults.into_iter().for_each(|fault| self.note(&mut report, file, fault));
                        Vec::new()
                    })
                });
                for judged in sound.collect::<Vec<_>>() {
                    rows += 1;
                    *report.languages.entry(judged.lang).or_default() += 1;
                    report.duplicates += usize::from(!seen.insert(judged.hash));
                    report.identical_twins += usize::from(judged.identical_twin);
                    if let (Some(against), Some(overlap)) = (&self.against, &mut overlap) {
                        against.count(judged.shared, overlap);
                    }
                    if let (Some((counter, totals)), Some(counted)) = (&mut tokens, judged.counted) {
                        totals.add(&counted, counter);
                    }
                }
                batch.broken.into_iter().for_each(|fault| self.note(&mut report, file, fault));
                batch = next;
                progress.seen(report.rows + rows, "rows");
                if interrupt.requested() {
                    report.interrupted = true;
                    break;
                }
            }
            if rows == 0 && report.faults == faults && !report.interrupted {
                let nothing = Record { line: 1, column: 1, text: Vec::new() };
                self.note(&mut report, file, nothing.fault(0, "", "at least one row", "none"));
            }
            report.rows += rows;
            if report.interrupted {
                break;
            }
        }
        report.overlap = overlap;
        report.tokens = tokens.map(|(_, totals)| totals.report());
        Ok(report)
    }

    fn note(&self, report: &mut Report, file: &Path, fault: Fault) {
        report.faults += 1;
        let no_twin = fault.expected.contains("English twin");
        report.missing_twins += usize::from(no_twin && ["nothing", "an empty one", "null"].contains(&&*fault.found));
        if report.shown.len() < self.show {
            report.shown.push(FaultIn { file: file.into(), fault });
        }
    }

    fn judge(
        &self,
        parser: &RowParser,
        record: &Record,
        words: &mut Vec<Unit>,
    ) -> Result<std::result::Result<Vec<Judged>, Vec<Fault>>> {
        let rows = match parser.rows(record) {
            Ok(rows) => rows,
            Err(faults) => return Ok(Err(faults)),
        };
        Ok(Ok(rows.into_iter().map(|row| self.judge_row(row, words)).collect::<Result<_>>()?))
    }

    fn judge_row(&self, row: Row, words: &mut Vec<Unit>) -> Result<Judged> {
        let shared = self.against.as_ref().map_or_else(Shared::default, |against| {
            let own = [Some(&row.instruction), Some(&row.instruction_en), Some(&row.output), row.output_en.as_ref()];
            let before = [&row.history, &row.history_en].into_iter().flatten().flatten();
            let found = own.into_iter().flatten().chain(before).map(|text| against.shared(text, words));
            found.fold(Shared::default(), Shared::or)
        });
        let counted = self.counter.as_ref().map(|counter| counter.count(&row)).transpose()?;
        let prompt = (row.before(), &row.instruction, &row.output);
        Ok(Judged {
            hash: BuildHasherDefault::<DefaultHasher>::default().hash_one(prompt),
            identical_twin: !is_english(&row.lang) && row.instruction.trim() == row.instruction_en.trim(),
            lang: row.lang,
            counted,
            shared,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for FaultIn { file, fault } in &self.shown {
            writeln!(f, "{}:{fault}", file.display())?;
        }
        let hidden = self.faults - self.shown.len();
        if hidden > 0 {
            writeln!(f, "... and {hidden} faults more")?;
        }
        writeln!(f, "{:>10} rows without a fault, {} faults", self.rows, self.faults)?;
        for (lang, rows) in &self.languages {
            writeln!(f, "{rows:>10} {lang}")?;
        }
        writeln!(f, "{:>10} missing English twins", self.missing_twins)?;
        writeln!(
            f,
            "{:>10} identical twins (the instruction of another language is its English one)",
            self.identical_twins
        )?;
        writeln!(f, "{:>10} duplicates", self.duplicates)?;
        if let Some(tokens) = &self.tokens {
            for (name, lengths) in
                [("prompt", &tokens.prompt), ("English twin", &tokens.english), ("answer", &tokens.answer)]
            {
                let Percentiles { p50, p90, p99, max } = lengths;
                writeln!(f, "{name:>12} tokens: half have at most {p50}, 90 % {p90}, 99 % {p99}, all {max}")?;
            }
            writeln!(f, "{:>10} prompts and {} English twins truncated", tokens.truncated, tokens.truncated_english)?;
            writeln!(f, "{:>10} rows that cannot fit", tokens.left_out)?;
            writeln!(f, "{:>10} answers without a token", tokens.zero_answer)?;
        }
        if let Some(Overlap { prompts, runs, benchmarks }) = &self.overlap {
            writeln!(f, "{prompts:>10} rows have a whole item of an evaluation set, {runs} a run of its words")?;
            for (benchmark, rows) in benchmarks {
                writeln!(f, "{rows:>10} with {benchmark}")?;
            }
        }
        if self.interrupted {
            writeln!(f, "stopped before the end: the rows after these were not read")?;
        }
        Ok(())
    }
}
