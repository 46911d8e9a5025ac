//! Where the points go between the base, fine-tuning, the English twin and W_T, and what the connection carries.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, decimals, interval, percent, points, verdict, within};
use super::transform::{Vectors, imitation};
use super::{SEED, Section};
use crate::experiment::cell::{Asked, Measured};
use crate::experiment::matrix::{Reading, Setting, Training};
use crate::statistics::{mean, over_runs};

/// How often the gold answers are shuffled.
const SHUFFLES: usize = 1000;

/// One way of training, and of asking.
type Arm = (Training, Reading);

const BASE: Arm = (Training::Nothing, Reading::None);
const SFT: Arm = (Training::Sft, Reading::None);
const ALONE: Arm = (Training::Cc, Reading::None);
const MATRIX: Arm = (Training::Cc, Reading::Transform);
const TWIN: Arm = (Training::Cc, Reading::Parallel);

/// What is subtracted from what, and how a person says it. The first three are of interest in every setting.
const STEPS: [(&str, Arm, Arm); 9] = [
    ("CC-Tuning with the English twin − ML-SFT", TWIN, SFT),
    ("CC-Tuning without a connection − ML-SFT", ALONE, SFT),
    ("W_T − no connection", MATRIX, ALONE),
    ("W_T − identity", MATRIX, (Training::Cc, Reading::Identity)),
    ("W_T − random direction", MATRIX, (Training::Cc, Reading::Random)),
    ("W_T − shuffled pair", MATRIX, (Training::Cc, Reading::Shuffled)),
    ("W_T − English twin", MATRIX, TWIN),
    ("ML-SFT − the base", SFT, BASE),
    ("ML-SFT asked in English − ML-SFT", (Training::Sft, Reading::English), SFT),
];

/// Why CC-Tuning stands where it stands.
pub fn points_go(evidence: &Evidence) -> Section {
    let mut text = format!("{}\n\n", command(&evidence.plan.command, "main"));
    let (steps, file) = differences(evidence);
    let _ = writeln!(
        text,
        "Differences in points, paired by item and seed. Without a connection and with a zero vector a model computes the same.\n\n{steps}"
    );
    let _ = writeln!(
        text,
        "How good W_T is where it is used: R2 on held-out pairs, against the mean of all vectors; then on the test prompts, \
         against the mean of each layer, of all layers' vectors and of those that are passed on. A layer whose vectors are \
         long and easily mapped makes the others high, whether or not it is ever taken.\n\n{}",
        passed(evidence)
    );
    let _ = writeln!(
        text,
        "The layer as an answer: how often the gold answer is the one that goes with the layer taken, of those families that \
         answer by a symbol. Where the layer alone tells it, the Decision Maker carries the answer across, whatever the vector \
         does; Figure 3 has the stories where nothing is chosen (fixed). By chance: the same where the gold answers are \
         shuffled, the mean of {SHUFFLES} shufflings and what 95 % of them stay below; only what is above that tells \
         anything. Prompts in other languages than English.\n\n{}",
        told_by_layer(evidence)
    );
    let _ = writeln!(
        text,
        "Learnt by heart: mean training loss over the last and the first twentieth of the steps on both sides of the \
         beginning of an epoch.\n\n{}",
        by_heart(evidence)
    );
    Section { title: "Why: where the points go".into(), text, files: vec![file] }
}

fn differences(evidence: &Evidence) -> (String, (String, String)) {
    let families = evidence.families();
    type Keep<'k> = Box<dyn Fn(&Asked) -> bool + 'k>;
    let mut columns: Vec<(&str, Keep)> = vec![
        ("mean", Box::new(Asked::foreign)),
        ("without story", Box::new(|asked| asked.foreign() && asked.family != "story")),
    ];
    for family in &families {
        columns.push((family, Box::new(move |asked| asked.foreign() && asked.family == *family)));
    }
    let (mut rows, mut data, mut said) = (Vec::new(), Vec::new(), String::new());
    for setting in Setting::ALL {
        let of = |(training, reading): Arm, keep: &Keep| Scores::of(&evidence.of(setting, training, ""), reading, keep);
        // The base is one, whatever was made of it.
        let beside = |arm: Arm, other: &Scores, keep: &Keep| match arm {
            BASE => of(BASE, keep).beside(other),
            arm => of(arm, keep),
        };
        let steps = if setting == Setting::MlSft { &STEPS[..] } else { &STEPS[..3] };
        for (name, arm, other) in steps {
            let minus = |keep: &Keep| {
                let ours = of(*arm, keep);
                ours.minus(&beside(*other, &ours, keep))
            };
            let found: Vec<_> = columns.iter().map(|(_, keep)| minus(keep)).collect();
            let all = &found[0];
            if all.seeds == 0 {
                continue;
            }
            if setting == Setting::MlSft {
                let _ = writeln!(said, "- {name}: {} points, which {}.", points(&all.estimate), verdict(&all.estimate));
            }
            let label = vec![setting.name().to_string(), name.to_string(), all.seeds.to_string()];
            for ((column, _), difference) in columns.iter().zip(&found) {
                let e = difference.estimate;
                let numbers = [e.mean, e.low, e.high].map(|value| value.to_string());
                let items = vec![difference.items.to_string()];
                data.push([label.clone(), vec![column.to_string()], numbers.to_vec(), items].concat());
            }
            rows.push([label, found.iter().map(|difference| points(&difference.estimate)).collect()].concat());
        }
    }
    let mut head = vec!["setting", "", "seeds"];
    head.extend(columns.iter().map(|(name, _)| *name));
    let file = ["setting", "difference", "seeds", "part", "mean", "low", "high", "items"];
    (format!("{}\n{said}", markdown::table(&head, &rows)), ("why.csv".into(), markdown::csv(&file, &data)))
}

fn passed(evidence: &Evidence) -> String {
    let row = |setting: Setting| {
        let cells = evidence.of(setting, Training::Cc, "");
        let fits: Vec<f64> =
            cells.iter().filter_map(|cell| Some(cell.fits.get(&Reading::Transform)?.heldout.r2)).collect();
        let [all, passed] =
            [Vectors::All, Vectors::Passed].map(|vectors| imitation(&cells, vectors, Asked::foreign)[1]);
        let numbers = [over_runs(&fits), all, passed].map(|estimate| within(&estimate, decimals(2)));
        let head = vec![setting.name().to_string(), fits.len().to_string()];
        (!fits.is_empty()).then(|| [head, numbers.to_vec()].concat())
    };
    let rows: Vec<Vec<String>> = Setting::ALL.into_iter().filter_map(row).collect();
    let head = ["setting", "seeds", "held-out pairs", "test prompts, all layers", "test prompts, what is passed on"];
    markdown::table(&head, &rows)
}

/// For each prompt, given the layer that was taken and the gold answer, whether that answer is the most frequent one of the
/// layer.
fn told(asked: &[(usize, &str)]) -> Vec<f64> {
    let mut golds: BTreeMap<usize, BTreeMap<&str, usize>> = BTreeMap::new();
    asked.iter().for_each(|&(layer, gold)| *golds.entry(layer).or_default().entry(gold).or_default() += 1);
    // Of equally frequent answers the first.
    let most =
        golds.iter().filter_map(|(&layer, golds)| Some((layer, *golds.iter().rev().max_by_key(|(_, n)| **n)?.0)));
    let most: BTreeMap<usize, &str> = most.collect();
    asked.iter().map(|&(layer, gold)| f64::from(most[&layer] == gold)).collect()
}

/// What [`told`] is given of the prompts of a cell; nothing where the cell was not asked so.
fn layers_and_golds<'c>(cell: &'c Measured, reading: Reading, keep: &dyn Fn(&Asked) -> bool) -> Vec<(usize, &'c str)> {
    let layers = cell.test.readings.get(&reading).map_or(&[][..], |answers| &answers.layers);
    let asked = cell.test.prompts.iter().zip(layers).filter(|(asked, _)| keep(asked));
    asked.map(|(asked, &layer)| (layer, asked.gold.as_str())).collect()
}

/// The same share where the golds of each cell are shuffled: the mean over shufflings, and what 95 % of them stay below. The
/// most frequent answer of a layer is found on the prompts that it is then counted on, which alone makes it right more often
/// than a guess.
fn told_by_chance(cells: &[&Measured], reading: Reading, keep: &dyn Fn(&Asked) -> bool) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut cells: Vec<_> = cells.iter().map(|cell| layers_and_golds(cell, reading, keep)).collect();
    let mut share = |asked: &mut Vec<(usize, &str)>| {
        let mut golds: Vec<&str> = asked.iter().map(|(_, gold)| *gold).collect();
        golds.shuffle(&mut rng);
        asked.iter_mut().zip(golds).for_each(|((_, gold), other)| *gold = other);
        mean(&told(asked))
    };
    let mut shares: Vec<f64> =
        (0..SHUFFLES).map(|_| mean(&cells.iter_mut().map(&mut share).collect::<Vec<_>>())).collect();
    shares.sort_by(f64::total_cmp);
    format!("{} ({})", percent(mean(&shares)), percent(shares[SHUFFLES * 95 / 100]))
}

fn told_by_layer(evidence: &Evidence) -> String {
    let cells = evidence.of(Setting::MlSft, Training::Cc, "");
    let mut rows = Vec::new();
    for family in evidence.families() {
        let keep = |asked: &Asked| asked.foreign() && asked.family == family;
        let asked = || evidence.prompts().iter().filter(|asked| keep(asked));
        // Symbols, not words.
        if asked().any(|asked| asked.gold.chars().count() > 1) {
            continue;
        }
        let share = |reading| {
            let of_cell = |cell: &Measured| {
                let told = told(&layers_and_golds(cell, reading, &keep));
                let mut left = told.iter();
                // A prompt that is not kept has no say.
                let spread = |asked: &Asked| keep(asked).then(|| left.next()).flatten().copied().unwrap_or(f64::NAN);
                (!told.is_empty()).then(|| cell.test.prompts.iter().map(spread).collect())
            };
            let found = Scores::by(&cells, of_cell, keep);
            (found.seeds(), [interval(&found.estimate()), told_by_chance(&cells, reading, &keep)])
        };
        let ((seeds, twin), (_, matrix)) = (share(Reading::Parallel), share(Reading::Transform));
        if seeds > 0 {
            let name = [family.clone(), seeds.to_string()].to_vec();
            rows.push([name, twin.to_vec(), matrix.to_vec(), vec![asked().count().to_string()]].concat());
        }
    }
    let head = ["family", "seeds", "English twin's layer, %", "by chance", "W_T's layer, %", "by chance", "n"];
    markdown::table(&head, &rows)
}

fn by_heart(evidence: &Evidence) -> String {
    let mut rows = Vec::new();
    for (setting, training) in Setting::ALL.into_iter().flat_map(|s| [(s, Training::Sft), (s, Training::Cc)]) {
        let cells = evidence.of(setting, training, "");
        let Some(epochs) = evidence.plan.epochs() else { continue };
        for epoch in 1..epochs {
            let around = cells.iter().filter_map(|cell| around(&cell.trained.as_ref()?.losses, epoch, epochs));
            let (before, after): (Vec<f64>, Vec<f64>) = around.unzip();
            if !before.is_empty() {
                let name = format!("{} {}", setting.name(), training.name());
                let counts = vec![name, before.len().to_string(), (epoch + 1).to_string()];
                let losses = [before, after].map(|losses| within(&over_runs(&losses), decimals(2)));
                rows.push([counts, losses.to_vec()].concat());
            }
        }
    }
    markdown::table(&["", "seeds", "epoch that begins", "loss before", "loss after"], &rows)
}

/// The mean loss of the twentieth before and of the one after an epoch begins.
fn around(losses: &[f64], epoch: usize, epochs: usize) -> Option<(f64, f64)> {
    let (width, at) = (losses.len().div_ceil(20), losses.len() * epoch / epochs);
    (at >= width && at + width <= losses.len() && width > 0)
        .then(|| (mean(&losses[at - width..at]), mean(&losses[at..at + width])))
}
