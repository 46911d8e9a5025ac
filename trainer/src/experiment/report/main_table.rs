//! Table 1: the data settings with and without CC-Tuning, by family, by what was held out, and by language.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Section;
use super::evidence::{Difference, Evidence, Scores, constant_answer};
use super::markdown::{self, command, interval, points, verdict};
use crate::experiment::cell::Asked;
use crate::experiment::matrix::{Reading, Setting, Training};

/// How each training is asked in the main table: CC-Tuning as the paper infers.
pub const ARMS: [(Training, Reading); 2] = [(Training::Sft, Reading::None), (Training::Cc, Reading::Transform)];

/// The scores of one arm, and its name.
fn arm(evidence: &Evidence, setting: Setting, at: usize, keep: impl Fn(&Asked) -> bool) -> Scores {
    let (training, reading) = ARMS[at];
    Scores::of(&evidence.of(setting, training, ""), reading, keep)
}

pub fn label(setting: Setting, training: Training) -> String {
    match (setting, training) {
        (Setting::MlSft, Training::Cc) => "CC-Tuning".into(),
        (setting, Training::Cc) => format!("CC-Tuning {}", setting.name()),
        (Setting::MlSft, _) => "ML-SFT".into(),
        (setting, _) => format!("ML-SFT {}", setting.name()),
    }
}

/// CC-Tuning minus ML-SFT of one setting.
pub fn gain(evidence: &Evidence, setting: Setting, keep: impl Fn(&Asked) -> bool + Copy) -> Difference {
    arm(evidence, setting, 1, keep).minus(&arm(evidence, setting, 0, keep))
}

/// The same over all settings, and the seeds that all of them have.
fn pooled_gain(evidence: &Evidence, keep: impl Fn(&Asked) -> bool + Copy) -> Difference {
    let [sft, cc] = [0, 1].map(|at| Scores::mean_of(&Setting::ALL.map(|setting| arm(evidence, setting, at, keep))));
    cc.minus(&sft)
}

/// A table with a row for each arm and one for each difference, over some columns; also as CSV.
fn arms_and_gains(
    evidence: &Evidence,
    columns: &[(String, Box<dyn Fn(&Asked) -> bool + '_>)],
    file: &str,
) -> (String, (String, String)) {
    let mut head = vec!["", "seeds"];
    head.extend(columns.iter().map(|(name, _)| name.as_str()));
    let (mut scores, mut gains, mut data) = (Vec::new(), Vec::new(), Vec::new());
    let mut gain_row = |name: &str, found: Vec<Difference>| {
        let seeds = found.first().map_or(0, |difference| difference.seeds);
        if seeds > 0 {
            let cells = found.iter().map(|difference| points(&difference.estimate));
            let name = format!("CC-Tuning − ML-SFT, {name}");
            gains.push([vec![name, seeds.to_string()], cells.collect()].concat());
        }
    };
    for setting in Setting::ALL {
        for (at, (training, _)) in ARMS.into_iter().enumerate() {
            let mut row = vec![label(setting, training), String::new()];
            for (column, keep) in columns {
                let found = arm(evidence, setting, at, keep);
                let estimate = found.estimate();
                row.push(interval(&estimate));
                row[1] = found.seeds().to_string();
                let numbers = [estimate.mean, estimate.low, estimate.high].map(|value| value.to_string());
                let names = [setting.name().into(), training.name().into(), column.clone()];
                let counts = [found.items().to_string(), found.seeds().to_string()];
                data.push([names.to_vec(), numbers.to_vec(), counts.to_vec()].concat());
            }
            if row[1] != "0" {
                scores.push(row);
            }
        }
        gain_row(setting.name(), columns.iter().map(|(_, keep)| gain(evidence, setting, keep)).collect());
    }
    gain_row("mean of the settings", columns.iter().map(|(_, keep)| pooled_gain(evidence, keep)).collect());
    let base = evidence.of(Setting::MlSft, Training::Nothing, "");
    if !base.is_empty() {
        let found = columns.iter().map(|(_, keep)| interval(&Scores::of(&base, Reading::None, keep).estimate()));
        scores.push([vec!["the base, not fine-tuned".into(), String::new()], found.collect()].concat());
    }
    let constant = columns.iter().map(|(_, keep)| interval(&constant_answer(evidence, keep).estimate()));
    scores.push([vec!["most frequent training answer".into(), String::new()], constant.collect()].concat());
    let count = |keep: &dyn Fn(&Asked) -> bool| evidence.prompts().iter().filter(|asked| keep(asked)).count();
    let counts = columns.iter().map(|(_, keep)| count(keep).to_string());
    scores.push([vec!["n (items)".into(), String::new()], counts.collect()].concat());
    let facts = |keep: &dyn Fn(&Asked) -> bool| {
        let kept = evidence.prompts().iter().filter(|asked| keep(asked));
        kept.map(|asked| &asked.fact).collect::<BTreeSet<_>>().len()
    };
    let counts = columns.iter().map(|(_, keep)| facts(keep).to_string());
    scores.push([vec!["facts they ask about".into(), String::new()], counts.collect()].concat());
    let text = format!("{}\n{}", markdown::table(&head, &scores), markdown::table(&head, &gains));
    let columns = ["setting", "training", "part", "mean", "low", "high", "items", "seeds"];
    (text, (file.into(), markdown::csv(&columns, &data)))
}

/// Table 1.
pub fn by_family(evidence: &Evidence) -> Section {
    let families = evidence.families();
    let mut columns: Vec<(String, Box<dyn Fn(&Asked) -> bool>)> = Vec::new();
    for family in &families {
        columns.push((family.clone(), Box::new(move |asked| asked.foreign() && asked.family == *family)));
    }
    columns.push(("mean".into(), Box::new(Asked::foreign)));
    let (table, file) = arms_and_gains(evidence, &columns, "table-1.csv");
    let mut text = format!("{}\n\n{table}\n", command(&evidence.plan.command, "main"));
    for setting in Setting::ALL {
        let all = gain(evidence, setting, Asked::foreign);
        if all.seeds == 0 {
            continue;
        }
        let higher = families.iter().filter(|family| {
            gain(evidence, setting, |asked| asked.foreign() && asked.family == **family).estimate.mean > 0.0
        });
        let _ = writeln!(
            text,
            "- {}: the mean difference is {} points and {}; it is positive in {} of {} families.",
            setting.name(),
            points(&all.estimate),
            verdict(&all.estimate),
            higher.count(),
            families.len()
        );
    }
    let all = pooled_gain(evidence, Asked::foreign);
    if all.seeds > 0 {
        let _ = writeln!(
            text,
            "- The mean of the settings, over the {} that all of them have: {} points, which {}. No interval is corrected for \
             there being {} settings.",
            markdown::seeds(all.seeds),
            points(&all.estimate),
            verdict(&all.estimate),
            Setting::ALL.len()
        );
    }
    let guessed = |at: usize| {
        let no_better = families.iter().filter(|family| {
            let keep = |asked: &Asked| asked.foreign() && asked.family == **family;
            let above = arm(evidence, Setting::MlSft, at, keep).minus(&constant_answer(evidence, keep));
            above.estimate.low <= 0.0
        });
        let names: Vec<&str> = no_better.map(String::as_str).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    };
    let _ = writeln!(
        text,
        "- Not above the most frequent training answer, paired by item (setting ML-SFT): ML-SFT in {}; CC-Tuning in {}.",
        guessed(0),
        guessed(1)
    );
    Section { title: "Table 1: six families, four data settings".into(), text, files: vec![file] }
}

/// Table 1 by what was held out.
pub fn by_kind(evidence: &Evidence) -> Section {
    let kind = |wanted: &'static str| move |asked: &Asked| asked.foreign() && asked.kind == wanted;
    let columns: Vec<(String, Box<dyn Fn(&Asked) -> bool>)> = vec![
        ("held-out facts".into(), Box::new(kind("fact"))),
        ("held-out phrasings".into(), Box::new(kind("phrasing"))),
        ("English, all".into(), Box::new(|asked| asked.lang == "en")),
    ];
    let (table, file) = arms_and_gains(evidence, &columns, "table-1-held-out.csv");
    let [facts, phrasings] = ["fact", "phrasing"].map(|name| gain(evidence, Setting::MlSft, kind(name)));
    let text = format!(
        "{}\n\nA held-out fact stands in the base text in English and nowhere in the language's own fine-tuning rows; of a \
         held-out phrasing only the wording is new.\n\n{table}\nIn the setting ML-SFT the difference on held-out facts \
         {}, on held-out phrasings it {}.\n",
        command(&evidence.plan.command, "main"),
        verdict(&facts.estimate),
        verdict(&phrasings.estimate)
    );
    Section { title: "Table 1, held-out facts and held-out phrasings apart".into(), text, files: vec![file] }
}

/// Table 1 by language, one table for each setting.
pub fn by_language(evidence: &Evidence) -> Option<Section> {
    let mut languages = evidence.languages();
    languages.insert(0, "en".into());
    let (mut text, mut data) = (String::new(), Vec::new());
    for setting in Setting::ALL {
        let (mut rows, mut apart) = (Vec::new(), 0);
        for lang in &languages {
            let keep = |asked: &Asked| asked.lang == *lang;
            let arms = [0, 1].map(|at| arm(evidence, setting, at, keep));
            if arms.iter().any(|scores| scores.seeds() == 0 || scores.items() == 0) {
                continue;
            }
            let difference = arms[1].minus(&arms[0]);
            apart += usize::from(difference.estimate.low > 0.0 || difference.estimate.high < 0.0);
            let [sft, cc] = [0, 1].map(|at| arms[at].estimate());
            let constant = constant_answer(evidence, keep).estimate();
            rows.push(vec![
                lang.clone(),
                interval(&sft),
                interval(&cc),
                points(&difference.estimate),
                interval(&constant),
                arms[0].items().to_string(),
            ]);
            for family in evidence.families() {
                let keep = |asked: &Asked| asked.lang == *lang && asked.family == family;
                let [sft, cc] = [0, 1].map(|at| arm(evidence, setting, at, keep));
                let numbers = [sft.centre(), cc.centre()].map(|value| value.to_string());
                let counts = [sft.items().to_string(), sft.seeds().to_string()];
                data.push(
                    [vec![setting.name().into(), lang.clone(), family.clone()], numbers.to_vec(), counts.to_vec()]
                        .concat(),
                );
            }
        }
        if !rows.is_empty() {
            let head = ["language", "ML-SFT", "CC-Tuning", "difference", "constant", "n"];
            let _ = write!(text, "{}\n\n{}\n", setting.name(), markdown::table(&head, &rows));
            let higher =
                rows.iter().filter(|row| row[0] != "en" && row[3].starts_with('+') && !row[3].starts_with("+0.0 "));
            let _ = writeln!(
                text,
                "CC-Tuning is higher in {} of {} languages without English. Of {} intervals {} leave out zero; chance alone makes one in twenty do so.\n",
                higher.count(),
                rows.len() - 1,
                rows.len(),
                apart
            );
        }
    }
    let columns = ["setting", "language", "family", "ml_sft", "cc_tuning", "items", "seeds"];
    let file = ("table-1-languages.csv".into(), markdown::csv(&columns, &data));
    (!text.is_empty()).then(|| Section {
        title: "Table 1 by language".into(),
        text: format!(
            "{}\n\nMean over families; every family apart in [the CSV](figures/table-1-languages.csv).\n\n{text}",
            command(&evidence.plan.command, "main")
        ),
        files: vec![file],
    })
}
