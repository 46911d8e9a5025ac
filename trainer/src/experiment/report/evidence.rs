//! The finished cells of a plan, and scores over them: runs by items, aligned by the items' names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::SEED;
use crate::evaluate::credit;
use crate::experiment::cell::{Asked, CELL_FILE, Measured};
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::experiment::plan::Plan;
use crate::statistics::{Estimate, Weighed, crossed, ratio};

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
    items: Vec<Item>,
    /// Seed to the credits of all items.
    runs: BTreeMap<u64, Vec<f64>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Item {
    id: String,
    family: String,
    lang: String,
    fact: String,
}

/// Two ways on the same items with the same seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    pub estimate: Estimate,
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
        let all = names.iter().filter(|name| name.ends_with(CELL_FILE) && !name.starts_with('.')).count();
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
        Self::by(cells, |cell| Some(cell.test.readings.get(&reading)?.credits.clone()), keep)
    }

    /// Of anything that some seeds of one cell say of each test prompt.
    pub fn by(
        cells: &[&Measured],
        values: impl Fn(&Measured) -> Option<Vec<f64>>,
        keep: impl Fn(&Asked) -> bool,
    ) -> Self {
        let runs = cells.iter().filter_map(|cell| Some((cell.cell.seed, &cell.test.prompts[..], values(cell)?)));
        Self::gathered(runs, &keep)
    }

    pub fn validation(cells: &[&Measured], reading: Reading, keep: impl Fn(&Asked) -> bool) -> Self {
        let runs = cells.iter().filter_map(|cell| {
            let credits = cell.validation.readings.get(&reading)?.credits.clone();
            Some((cell.cell.seed, &cell.validation.prompts[..], credits))
        });
        Self::gathered(runs, &keep)
    }

    /// What one run says of some prompts.
    pub fn of_prompts(seed: u64, prompts: &[Asked], values: Vec<f64>) -> Self {
        Self::gathered([(seed, prompts, values)].into_iter(), &|_| true)
    }

    fn gathered<'a>(runs: impl Iterator<Item = (u64, &'a [Asked], Vec<f64>)>, keep: &dyn Fn(&Asked) -> bool) -> Self {
        let mut found: BTreeMap<u64, BTreeMap<&str, f64>> = BTreeMap::new();
        let mut items: Vec<Item> = Vec::new();
        for (seed, prompts, values) in runs {
            let first = found.is_empty();
            let run = found.entry(seed).or_default();
            for (asked, value) in prompts.iter().zip(values).filter(|(asked, _)| keep(asked)) {
                run.insert(&asked.id, value);
                if first {
                    let Asked { id, family, lang, fact, .. } = asked.clone();
                    items.push(Item { id, family, lang, fact });
                }
            }
        }
        items.retain(|item| found.values().all(|run| run.contains_key(item.id.as_str())));
        let credits = |run: BTreeMap<&str, f64>| items.iter().map(|item| run[item.id.as_str()]).collect();
        let runs = found.into_iter().map(|(seed, run)| (seed, credits(run))).collect();
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
        crossed(&self.credits(), &self.weighed(), SEED)
    }

    /// The sum of these values over that of others on the same items and seeds, each item with its weight.
    pub fn over(&self, other: &Self) -> Estimate {
        let items = self.weighed();
        let values = |scores: &Self| -> Vec<Vec<f64>> {
            let run = |run: &Vec<f64>| run.iter().zip(&items).map(|(value, item)| value * item.weight).collect();
            scores.runs.values().map(run).collect()
        };
        let even: Vec<Weighed> = items.iter().map(|item| Weighed { weight: 1.0, ..*item }).collect();
        ratio(&values(self), &values(other), &even, SEED)
    }

    fn credits(&self) -> Vec<Vec<f64>> {
        self.runs.values().cloned().collect()
    }

    /// Families are the blocks, facts the clusters.
    fn weighed(&self) -> Vec<Weighed> {
        let sorted = |pick: fn(&Item) -> &str| {
            let mut names: Vec<&str> = self.items.iter().map(pick).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        let (families, facts) = (sorted(|item| &item.family), sorted(|item| &item.fact));
        let item = |(item, weight): (&Item, f64)| Weighed {
            block: families.binary_search(&item.family.as_str()).unwrap_or_default(),
            cluster: facts.binary_search(&item.fact.as_str()).unwrap_or_default(),
            weight,
        };
        self.items.iter().zip(self.weights()).map(item).collect()
    }

    /// The same without its interval.
    pub fn centre(&self) -> f64 {
        let weights = self.weights();
        let run = |run: &Vec<f64>| run.iter().zip(&weights).map(|(credit, weight)| credit * weight).sum::<f64>();
        self.runs.values().map(run).sum::<f64>() / self.runs.len() as f64 / weights.iter().sum::<f64>()
    }

    /// What makes every family with every language count alike, however many items it has.
    fn weights(&self) -> Vec<f64> {
        let mut strata: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for item in &self.items {
            *strata.entry((&item.family, &item.lang)).or_default() += 1;
        }
        self.items.iter().map(|item| 1.0 / strata[&(item.family.as_str(), item.lang.as_str())] as f64).collect()
    }

    /// The same beside every seed of another: for what has no seed of its own.
    pub fn beside(&self, other: &Self) -> Self {
        let alone = self.runs.values().next();
        let runs = alone.into_iter().flat_map(|run| other.runs.keys().map(|&seed| (seed, run.clone()))).collect();
        Self { items: self.items.clone(), runs }
    }

    /// The mean of several ways, over the items and seeds that all of them have.
    pub fn mean_of(ways: &[Self]) -> Self {
        let share = 1.0 / ways.len() as f64;
        let sum = ways.iter().cloned().reduce(|sum, way| sum.paired(&way, |sum, own| sum + own)).unwrap_or_default();
        let runs = sum.runs.into_iter().map(|(seed, run)| (seed, run.iter().map(|credit| credit * share).collect()));
        Self { items: sum.items, runs: runs.collect() }
    }

    /// This minus another, over the items and seeds that both have.
    pub fn minus(&self, other: &Self) -> Difference {
        let paired = self.paired(other, |own, theirs| own - theirs);
        Difference { estimate: paired.estimate(), items: paired.items(), seeds: paired.seeds() }
    }

    fn paired(&self, other: &Self, of: fn(f64, f64) -> f64) -> Self {
        let places: BTreeMap<&str, usize> =
            other.items.iter().enumerate().map(|(at, item)| (item.id.as_str(), at)).collect();
        let shared: Vec<(usize, usize)> =
            self.items.iter().enumerate().filter_map(|(at, item)| Some((at, *places.get(item.id.as_str())?))).collect();
        let pairs = |(seed, run): (&u64, &Vec<f64>)| {
            let others = other.runs.get(seed)?;
            Some((*seed, shared.iter().map(|&(own, theirs)| of(run[own], others[theirs])).collect()))
        };
        let runs = self.runs.iter().filter_map(pairs).collect();
        Self { items: shared.iter().map(|&(own, _)| self.items[own].clone()).collect(), runs }
    }
}

/// What a constant answer earns: in every family and language the answer that most training rows there have, as the plan
/// names it. It earns the same beside every seed that was run, so that a run can be paired with it.
pub fn constant_answer(evidence: &Evidence, keep: impl Fn(&Asked) -> bool) -> Scores {
    let prompts = evidence.prompts();
    let earned = |asked: &Asked| {
        let answer = evidence.plan.constants.get(&asked.family).and_then(|languages| languages.get(&asked.lang));
        answer.map_or(0.0, |answer| credit(&asked.family, &asked.lang, answer, &asked.gold))
    };
    let credits: Vec<f64> = prompts.iter().map(earned).collect();
    Scores::gathered(evidence.cells.iter().map(|cell| (cell.cell.seed, prompts, credits.clone())), &keep)
}
