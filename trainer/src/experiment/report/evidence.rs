//! The finished cells of a plan, and scores over them: runs by items, aligned by the items' names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::SEED;
use crate::evaluate::credit;
use crate::experiment::cell::{Answered, Asked, Measured};
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::experiment::plan::Plan;
use crate::statistics::{Estimate, crossed, mcnemar};

/// The families in the order of the paper's table.
const FAMILIES: [&str; 6] = ["entailment", "story", "choice", "question", "reading", "summary"];

pub struct Evidence {
    pub plan: Plan,
    /// In the order of the plan.
    pub cells: Vec<Measured>,
    /// Names of cells that are not measured.
    pub missing: Vec<String>,
    /// Files of cells that are not of this plan.
    pub stale: usize,
}

/// The credits of one way of training and asking.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Of the items: id, and family with language.
    items: Vec<(String, String)>,
    /// Seed to the credits of all items.
    runs: BTreeMap<u64, Vec<f64>>,
}

/// Two ways on the same items with the same seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    pub estimate: Estimate,
    /// Of a two-sided sign test over the items' means.
    pub p: f64,
    pub items: usize,
    pub seeds: usize,
}

impl Evidence {
    /// # Errors
    /// There is no plan, or a file is no cell.
    pub fn read(out: &Path) -> Result<Self> {
        let (plan, folder) = (Plan::read(out)?, out.join("cells"));
        let (mut cells, mut missing) = (Vec::new(), Vec::new());
        for planned in &plan.cells {
            match Measured::read(&folder, &planned.id)? {
                Some(cell) => cells.push(cell),
                None => missing.push(planned.cell.name()),
            }
        }
        let files = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let names = files.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names = names.collect::<std::io::Result<Vec<_>>>()?;
        let all = names.iter().filter(|name| name.ends_with(".json") && !name.starts_with('.')).count();
        let stale = all.saturating_sub(cells.len());
        Ok(Self { plan, cells, missing, stale })
    }

    /// The cells of one way of training, one for each seed.
    pub fn of(&self, setting: Setting, training: Training, variant: &str) -> Vec<&Measured> {
        let same = |found: &&Measured| {
            let cell = &found.cell;
            (cell.setting, cell.training, cell.variant.as_str()) == (setting, training, variant)
        };
        self.cells.iter().filter(same).collect()
    }

    /// The families that were asked for, in the order of the paper.
    pub fn families(&self) -> Vec<String> {
        let asked = self.cells.iter().flat_map(|cell| &cell.test.prompts).map(|asked| asked.family.as_str());
        let mut found: Vec<&str> = asked.collect();
        found.sort_unstable();
        found.dedup();
        found.sort_by_key(|family| FAMILIES.iter().position(|known| known == family).unwrap_or(FAMILIES.len()));
        found.into_iter().map(String::from).collect()
    }

    /// The languages that were asked for, without English.
    pub fn languages(&self) -> Vec<String> {
        let asked = self.cells.iter().flat_map(|cell| &cell.test.prompts).map(|asked| asked.lang.clone());
        let mut found: Vec<String> = asked.filter(|lang| lang != "en").collect();
        found.sort();
        found.dedup();
        found
    }

    /// The prompts of the test, as the first cell was asked them.
    pub fn prompts(&self) -> &[Asked] {
        self.cells.first().map_or(&[], |cell| &cell.test.prompts)
    }
}

impl Scores {
    /// Test credits of some seeds of one cell; what a seed was not asked is left out for all.
    pub fn of(cells: &[&Measured], reading: Reading, keep: impl Fn(&Asked) -> bool) -> Self {
        let runs = cells.iter().map(|cell| (cell.cell.seed, &cell.test));
        Self::gathered(runs, reading, &keep)
    }

    pub fn validation(cell: &Measured, reading: Reading, keep: impl Fn(&Asked) -> bool) -> Self {
        Self::gathered([(cell.cell.seed, &cell.validation)].into_iter(), reading, &keep)
    }

    fn gathered<'a>(
        runs: impl Iterator<Item = (u64, &'a Answered)>,
        reading: Reading,
        keep: &dyn Fn(&Asked) -> bool,
    ) -> Self {
        let mut found: BTreeMap<u64, BTreeMap<&str, f64>> = BTreeMap::new();
        let mut items: Vec<(String, String)> = Vec::new();
        for (seed, answered) in runs {
            let Some(answers) = answered.readings.get(&reading) else { continue };
            let kept = answered.prompts.iter().zip(&answers.credits).filter(|(asked, _)| keep(asked));
            let first = found.is_empty();
            let run = found.entry(seed).or_default();
            for (asked, &credit) in kept {
                run.insert(&asked.id, credit);
                if first {
                    items.push((asked.id.clone(), format!("{} {}", asked.family, asked.lang)));
                }
            }
        }
        items.retain(|(id, _)| found.values().all(|run| run.contains_key(id.as_str())));
        let runs = found.into_iter().map(|(seed, run)| (seed, items.iter().map(|(id, _)| run[id.as_str()]).collect()));
        let runs = runs.collect();
        Self { items, runs }
    }

    pub fn items(&self) -> usize {
        self.items.len()
    }

    pub fn seeds(&self) -> usize {
        self.runs.len()
    }

    /// The mean over families and languages of the means over items, over all seeds, with its interval.
    pub fn estimate(&self) -> Estimate {
        crossed(&self.runs.values().cloned().collect::<Vec<_>>(), &self.strata(), SEED)
    }

    /// The same without its interval.
    pub fn centre(&self) -> f64 {
        let mut strata: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
        for (at, (_, stratum)) in self.items.iter().enumerate() {
            let entry = strata.entry(stratum).or_default();
            entry.0 += self.runs.values().map(|run| run[at]).sum::<f64>() / self.runs.len() as f64;
            entry.1 += 1;
        }
        strata.values().map(|(sum, n)| sum / *n as f64).sum::<f64>() / strata.len() as f64
    }

    /// This minus another, over the items and seeds that both have.
    pub fn minus(&self, other: &Self) -> Difference {
        let places: BTreeMap<&str, usize> =
            other.items.iter().enumerate().map(|(at, (id, _))| (id.as_str(), at)).collect();
        let shared: Vec<(usize, usize)> =
            self.items.iter().enumerate().filter_map(|(at, (id, _))| Some((at, *places.get(id.as_str())?))).collect();
        let differences = |(seed, run): (&u64, &Vec<f64>)| {
            let others = other.runs.get(seed)?;
            Some((*seed, shared.iter().map(|&(own, theirs)| run[own] - others[theirs]).collect::<Vec<f64>>()))
        };
        let runs: BTreeMap<u64, Vec<f64>> = self.runs.iter().filter_map(differences).collect();
        let items = shared.iter().map(|&(own, _)| self.items[own].clone()).collect();
        let paired = Self { items, runs };
        let mean = |at: usize| paired.runs.values().map(|run| run[at]).sum::<f64>();
        let sign = |wanted: fn(f64) -> bool| (0..paired.items()).filter(|&at| wanted(mean(at))).count();
        let p = mcnemar(sign(|sum| sum < -1e-9), sign(|sum| sum > 1e-9)).p;
        Difference { estimate: paired.estimate(), p, items: paired.items(), seeds: paired.seeds() }
    }

    fn strata(&self) -> Vec<usize> {
        let mut names: Vec<&str> = self.items.iter().map(|(_, stratum)| stratum.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let place = |stratum: &String| names.binary_search(&stratum.as_str()).unwrap_or_default();
        self.items.iter().map(|(_, stratum)| place(stratum)).collect()
    }
}

/// What the best constant answer earns: in every family and language the gold answer that most test items there share,
/// given to all of them; the mean over both.
pub fn best_constant(prompts: &[Asked], keep: impl Fn(&Asked) -> bool) -> f64 {
    let mut strata: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for asked in prompts.iter().filter(|asked| keep(asked)) {
        strata.entry((&asked.family, &asked.lang)).or_default().push(&asked.gold);
    }
    let share = |((family, _), golds): (&(&str, &str), &Vec<&str>)| {
        let count = |answer: &str| golds.iter().filter(|gold| **gold == answer).count();
        // Of equally frequent answers the first.
        let answer = golds.iter().rev().max_by_key(|gold| count(gold)).copied().unwrap_or_default();
        golds.iter().map(|gold| credit(family, answer, gold)).sum::<f64>() / golds.len() as f64
    };
    strata.iter().map(share).sum::<f64>() / strata.len() as f64
}
