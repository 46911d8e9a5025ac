//! Figures 3 and 4 and the further ablations: one thing changed against the main table's CC-Tuning, same data and seeds.

use std::fmt::Write as _;

use super::Section;
use super::evidence::{Evidence, Scores};
use super::markdown::{self, command, interval, points, verdict};
use crate::experiment::cell::{Asked, Measured};
use crate::experiment::matrix::{Cell, Group, Profile, Reading, Setting, Training};
use crate::plot::{Bar, Bars, Series};

/// Variants of a group as the plan has them, with their cells; the main table's CC-Tuning comes first.
fn arms<'e>(evidence: &'e Evidence, group: Group, main: &str) -> Vec<(String, Vec<&'e Measured>)> {
    let planned = evidence.plan.cells.iter().filter(|planned| planned.cell.group == group);
    let mut names: Vec<String> = Vec::new();
    for planned in planned {
        if !names.contains(&planned.cell.variant) {
            names.push(planned.cell.variant.clone());
        }
    }
    let cells = |variant: &str| evidence.of(Setting::MlSft, Training::Cc, variant);
    let mut arms = vec![(main.to_string(), cells(""))];
    arms.extend(names.into_iter().map(|name| (name.clone(), cells(&name))));
    arms.retain(|(_, cells)| !cells.is_empty());
    arms
}

/// The line that stands for a group of which no variant is measured.
fn unmeasured(evidence: &Evidence, group: Group, only: &str) -> Option<String> {
    let of_group = |cell: &Cell| cell.group == group;
    if evidence.cells.iter().any(|measured| of_group(&measured.cell)) {
        return None;
    }
    let plan = &evidence.plan;
    let [ours, full] = [plan.profile, Profile::Full].map(|profile| format!("--profile {}", profile.name()));
    Some(match plan.cells.iter().any(|planned| of_group(&planned.cell)) {
        true => format!("Not measured yet; {} does.\n", command(&plan.command, only)),
        false => {
            let measures = command(&plan.command.replace(&ours, &full), only);
            format!("Profile `{}` does not measure this; {measures} does.\n", plan.profile.name())
        }
    })
}

/// The table, the sentences and the data of one group.
fn compared(evidence: &Evidence, group: Group, main: &str) -> (String, String) {
    let arms = arms(evidence, group, main);
    let (mut rows, mut data, mut text) = (Vec::new(), Vec::new(), String::new());
    let Some((_, reference)) = arms.first() else { return ("Not measured yet.\n".into(), String::new()) };
    let plain = |variant: &str| {
        let sft = [variant, ""].map(|variant| evidence.of(Setting::MlSft, Training::Sft, variant));
        let sft = sft.into_iter().find(|cells| !cells.is_empty()).unwrap_or_default();
        Scores::of(&sft, Reading::None, Asked::foreign)
    };
    for (name, cells) in &arms {
        // Only seeds that both have: a mean over others would compare seeds, not variants.
        let scores = Scores::of(cells, Reading::Transform, Asked::foreign);
        let against = scores.minus(&Scores::of(reference, Reading::Transform, Asked::foreign));
        let twin = Scores::of(cells, Reading::Parallel, Asked::foreign);
        // Where nearly all of the twin's gain is.
        let story = Scores::of(cells, Reading::Parallel, |asked| asked.foreign() && asked.family == "story");
        let is_main = name == main;
        let validation = Scores::validation(cells, Reading::Transform, Asked::foreign);
        rows.push(vec![
            name.clone(),
            scores.seeds().to_string(),
            interval(&validation.estimate()),
            interval(&scores.estimate()),
            interval(&twin.estimate()),
            interval(&story.estimate()),
            if is_main { "–".into() } else { points(&against.estimate) },
            points(&scores.minus(&plain(name)).estimate),
        ]);
        if !is_main && against.seeds > 0 {
            let difference = points(&against.estimate);
            let said = match against.seeds {
                1 => "of one seed, which says nothing of the next".into(),
                _ => format!("and {}", verdict(&against.estimate)),
            };
            let _ = writeln!(text, "- {name} minus {main} is {difference} points {said}.");
        }
        for family in evidence.families() {
            let found = Scores::of(cells, Reading::Transform, |asked| asked.foreign() && asked.family == family);
            let e = found.estimate();
            let numbers = [e.mean, e.low, e.high].map(|value| value.to_string());
            data.push(
                [
                    vec![name.clone(), family],
                    numbers.to_vec(),
                    vec![found.items().to_string(), found.seeds().to_string()],
                ]
                .concat(),
            );
        }
    }
    let asked = ["validation", "test, W_T", "test, English twin", "its stories"];
    let head = [&["variant", "seeds"][..], &asked, &["W_T minus the main table's", "W_T minus ML-SFT"]].concat();
    let columns = ["variant", "family", "mean", "low", "high", "items", "seeds"];
    (format!("{}\n{text}", markdown::table(&head, &rows)), markdown::csv(&columns, &data))
}

/// Bars by family.
fn chart(evidence: &Evidence, group: Group, main: &str, title: &str) -> String {
    let families = evidence.families();
    let bars = |cells: &[&Measured], reading| -> Vec<Option<Bar>> {
        let bar = |family: &String| {
            let e = Scores::of(cells, reading, |asked| asked.foreign() && asked.family == *family).estimate();
            e.mean.is_finite().then(|| Bar { value: 100.0 * e.mean, interval: Some((100.0 * e.low, 100.0 * e.high)) })
        };
        families.iter().map(bar).collect()
    };
    let mut series: Vec<Series> = arms(evidence, group, main)
        .into_iter()
        .map(|(name, cells)| Series { name, bars: bars(&cells, Reading::Transform) })
        .collect();
    let sft = evidence.of(Setting::MlSft, Training::Sft, "");
    series.push(Series { name: "ML-SFT".into(), bars: bars(&sft, Reading::None) });
    Bars {
        title: title.into(),
        subtitle: "test with W_T, languages without English; lines are 95 % intervals over facts and seeds".into(),
        y: "%".into(),
        groups: families,
        series,
    }
    .svg()
}

fn figure(evidence: &Evidence, group: Group, only: &str, main: &str, name: &str, title: &str) -> Section {
    let number = name.trim_start_matches("figure-");
    let heading = format!("Figure {number}: {title}");
    if let Some(text) = unmeasured(evidence, group, only) {
        return Section { title: heading, text, files: Vec::new() };
    }
    let (text, data) = compared(evidence, group, main);
    let text = format!("{}\n\n![{title}](figures/{name}.svg)\n\n{text}", command(&evidence.plan.command, only));
    let chart = chart(evidence, group, main, title);
    Section { title: heading, text, files: vec![(format!("{name}.svg"), chart), (format!("{name}.csv"), data)] }
}

/// Figure 3.
pub fn pooling(evidence: &Evidence) -> Section {
    let mut section = figure(evidence, Group::Pool, "pool", "Decision Maker", "figure-3", "Who chooses the layer");
    if !section.files.is_empty() {
        section.text += "\nfixed(n) is always layer n, counted from 0 as recipes do.\n";
    }
    section
}

/// Figure 4.
pub fn sites(evidence: &Evidence) -> Section {
    figure(evidence, Group::Site, "site", "feed-forward", "figure-4", "Which output is passed across")
}

/// What the paper does not vary.
pub fn others(evidence: &Evidence) -> Section {
    let parts = [
        (Group::EnglishGrad, "english_grad", "detached English pass"),
        (Group::E, "e", "e = content mean"),
        (Group::Open, "open", "the recipe as it is"),
    ];
    let (mut text, mut files) = (String::new(), Vec::new());
    for (group, only, main) in parts {
        let flag = only.replace('_', "-");
        if let Some(line) = unmeasured(evidence, group, &flag) {
            let _ = writeln!(text, "{only}: {line}");
            continue;
        }
        let (found, data) = compared(evidence, group, main);
        let _ = write!(text, "{}\n\n{found}\n", command(&evidence.plan.command, &flag));
        files.push((format!("ablation-{only}.csv"), data));
    }
    Section { title: "Further ablations: the English gradient, e, and what the method leaves open".into(), text, files }
}
