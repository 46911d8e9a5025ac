//! Proves that a matrix of trainings measures the same twice, goes on where it was killed, never takes a cell for another
//! one's, and that its report says what its cells say.

#[path = "experiment/figures.rs"]
mod figures;
#[path = "experiment/items.rs"]
mod items;
#[path = "experiment/shipped.rs"]
mod shipped;
mod small_model;
#[path = "experiment/twice.rs"]
mod twice;
#[path = "experiment/why.rs"]
mod why;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use trainer::corpus::{self, Corpus, Item};
use trainer::experiment::cell::{Answered, Answers, Asked, CELL_FILE, Measured, Shape, Trained};
use trainer::experiment::matrix::{Cell, Group, Profile, Reading, Setting, Training, cells};
use trainer::experiment::plan::{Plan, Planned, constants};
use trainer::experiment::report::{self, Evidence, Scores, constant_answer};
use trainer::experiment::tsne::tsne;
use trainer::statistics::{Weighed, crossed, over_runs, signs};

/// Short trainings of a random model: the cells of one group, cut as short as they go.
fn experiment(dir: &Path, group: &str, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.current_dir(dir).env("BURN_DEVICE", "flex").stdin(Stdio::null());
    command.args(["experiment", "--only", group, "--out", out]);
    let fixed = [
        "model.path=model",
        "data.cutoff=120",
        "data.english_cutoff=120",
        "optim.max_steps=3",
        "optim.batch_size=4",
        "run.save_every=1",
        "eval.limit=1",
        "eval.max_new_tokens=2",
        "transform.pairs=60",
    ];
    for assignment in fixed.iter().chain(more) {
        command.args(["--set", assignment]);
    }
    command
}

#[track_caller]
fn finished(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the finished cells of a folder; a file that is being written has another name.
fn finished_cells(out: &Path) -> Vec<String> {
    let files = fs::read_dir(out.join("cells")).into_iter().flatten();
    let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).filter_map(|name| Some(name.strip_suffix(CELL_FILE)?.into())).collect()
}

/// The cells of a folder by name, without what a clock decides.
fn measured(out: &Path) -> BTreeMap<String, Measured> {
    let ids = finished_cells(out).into_iter();
    ids.map(|id| (id.clone(), Measured::read(&out.join("cells"), &id).unwrap().unwrap().timeless())).collect()
}

#[test]
fn a_matrix_measures_the_same_twice_goes_on_when_killed_and_measures_anew_what_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    small_model::write_folder(&dir.path().join("model"), 1);
    let [whole, killed] = ["whole", "killed"].map(|name| dir.path().join(name));
    let said = finished(experiment(dir.path(), "site", "whole", &[]));
    assert!(said.contains("cell 1 of 2") && said.contains("cell 2 of 2"), "{said}");
    let expected = measured(&whole);
    assert_eq!(expected.len(), 2);
    assert!(!whole.join("work").exists(), "checkpoints of finished cells are gone");

    let mut child =
        experiment(dir.path(), "site", "killed", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // In the middle of the second cell, with a checkpoint behind it.
    let begun = || {
        let ids = finished_cells(&killed);
        let begun =
            |work: fs::ReadDir| work.flatten().any(|cell| !ids.contains(&cell.file_name().into_string().unwrap()));
        ids.len() == 1 && fs::read_dir(killed.join("work")).is_ok_and(begun)
    };
    while !begun() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().ok();
    child.wait().unwrap();
    let before = measured(&killed).len();
    let said = finished(experiment(dir.path(), "site", "killed", &[]));
    assert_eq!(said.matches("cell ").count(), 2 - before, "only what is missing is measured:\n{said}");
    assert_eq!(measured(&killed), expected);

    let said = finished(experiment(dir.path(), "site", "whole", &[]));
    assert!(!said.contains("cell 1 of"), "all is done already:\n{said}");

    finished(experiment(dir.path(), "site", "whole", &["optim.lr=1e-3"]));
    let all = measured(&whole);
    assert_eq!(all.len(), 4, "another recipe's cells stand beside the former ones, and are not taken for them");
    let results = fs::read_to_string(whole.join("RESULTS.md")).unwrap();
    assert!(results.contains("2 files of `cells/` belong to another recipe"), "{results}");
    assert!(results.contains("Missing, not yet measured: ML-SFT SFT, seed 0;"), "{results}");
    let command = "experiment --profile quick --set model.path=model";
    assert!(results.contains(command), "the command stands beside the numbers");
}

#[test]
fn the_matrix_begins_with_one_seed_of_the_main_table_and_names_no_cell_twice() {
    for profile in [Profile::Quick, Profile::Full] {
        let cells = cells(profile, 6);
        let first: Vec<_> = cells[..8].iter().map(|cell| (cell.setting, cell.training, cell.seed)).collect();
        let expected = Setting::ALL.into_iter().flat_map(|s| [(s, Training::Sft, 0), (s, Training::Cc, 0)]);
        assert_eq!(first, expected.collect::<Vec<_>>());
        let ablation = cells.iter().position(|cell| !cell.variant.is_empty()).unwrap();
        assert!(cells[ablation..].iter().all(|cell| cell.group != Group::Main));
        let mut names: Vec<String> = cells.iter().map(|cell| cell.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cells.len());
        if profile == Profile::Full {
            let seeds = |variant: &str, setting| {
                let same = |cell: &&trainer::experiment::matrix::Cell| {
                    (cell.variant.as_str(), cell.setting, cell.training) == (variant, setting, Training::Cc)
                };
                cells.iter().filter(same).count()
            };
            assert!(Setting::ALL.into_iter().all(|setting| seeds("", setting) == 5));
            assert_eq!(seeds("pool = mean", Setting::MlSft), 3);
        }
        let supervised = cells.iter().filter(|cell| cell.training == Training::Dft);
        assert_eq!(supervised.count(), if profile == Profile::Full { 3 } else { 0 });
    }
}

/// Prompts in two families and three languages, English among them, `n` of each.
fn prompts(n: usize) -> Vec<Asked> {
    let mut prompts = Vec::new();
    for (family, lang) in ["choice", "question"].into_iter().flat_map(|f| ["en", "es", "sw"].map(|lang| (f, lang))) {
        for at in 0..n {
            let kind = if at % 2 == 0 { "fact" } else { "phrasing" };
            let (id, fact) = (format!("{family}/{at}/{lang}/{kind}"), format!("{family}/{at}"));
            let gold = if at % 4 == 0 { "B" } else { "A" }.to_string();
            prompts.push(Asked { id, lang: lang.into(), family: family.into(), kind: kind.into(), fact, gold });
        }
    }
    prompts
}

/// A folder of an experiment with ML-SFT, CC-Tuning and DFT, whose cells answer as `credit` says.
fn written(out: &Path, credit: impl Fn(Training, u64, usize, &Asked) -> f64) -> Plan {
    written_where(out, |cell| cell.group == Group::Main || cell.training == Training::Dft, credit)
}

/// The same of whatever cells of the setting ML-SFT.
fn written_where(
    out: &Path,
    keep: impl Fn(&Cell) -> bool,
    credit: impl Fn(Training, u64, usize, &Asked) -> f64,
) -> Plan {
    let planned: Vec<Planned> = cells(Profile::Full, 4)
        .into_iter()
        .filter(|cell| cell.setting == Setting::MlSft && keep(cell))
        .map(|cell| Planned { id: cell.slug(), cell })
        .collect();
    let constants = ["choice", "question"]
        .map(|family| (family.to_string(), ["en", "es", "sw"].map(|lang| (lang.to_string(), "A".to_string())).into()));
    let plan = Plan {
        profile: Profile::Full,
        command: "trainer experiment".into(),
        recipe: String::new(),
        corpus_sha256: "0".repeat(64),
        base_sha256: "0".repeat(64),
        constants: constants.into(),
        cells: planned,
    };
    plan.write(out).unwrap();
    fs::create_dir_all(out.join("cells")).unwrap();
    for Planned { id, cell } in &plan.cells {
        let prompts = prompts(8);
        let credits: Vec<f64> =
            prompts.iter().enumerate().map(|(at, asked)| credit(cell.training, cell.seed, at, asked)).collect();
        let answers = Answers { credits, ..Answers::default() };
        let readings = cell.readings.iter().map(|&reading| (reading, answers.clone())).collect();
        let test = Answered { prompts, readings };
        let measured = Measured {
            id: id.clone(),
            cell: cell.clone(),
            device: "none".into(),
            model: Shape { n_layers: 4, d_model: 8, parameters: 100 },
            trained: (cell.training == Training::Dft)
                .then(|| Trained { distances: Some([[0.4, 0.3], [0.2, 0.1]]), ..Trained::default() }),
            fits: BTreeMap::new(),
            validation: test.clone(),
            test,
            states: Vec::new(),
            transplanted: None,
            timed: None,
        };
        measured.write(&out.join("cells")).unwrap();
    }
    plan
}

#[test]
fn the_report_gives_the_means_and_differences_of_its_cells() {
    let dir = tempfile::tempdir().unwrap();
    // SFT has every second item right, whatever the seed; CC-Tuning has one in four more, DFT one in eight.
    written(dir.path(), |training, _, at, _| match training {
        Training::Sft => f64::from(at % 2 == 0),
        Training::Dft => f64::from(at % 2 == 0 || at % 8 == 1),
        _ => f64::from(at % 2 == 0 || at % 4 == 1),
    });
    let evidence = Evidence::read(dir.path()).unwrap();
    assert_eq!((evidence.families(), evidence.languages().len()), (vec!["choice".into(), "question".into()], 2));
    let sft = Scores::of(&evidence.of(Setting::MlSft, Training::Sft, ""), Reading::None, Asked::foreign);
    let cc = Scores::of(&evidence.of(Setting::MlSft, Training::Cc, ""), Reading::Transform, Asked::foreign);
    assert_eq!((sft.items(), sft.seeds(), sft.centre()), (32, 5, 0.5));
    let difference = cc.minus(&sft);
    assert_eq!((difference.items, difference.seeds), (32, 5));
    assert!((difference.estimate.mean - 0.25).abs() < 1e-12, "{difference:?}");
    assert!(difference.estimate.low > 0.0 && difference.estimate.high < 0.6, "{difference:?}");

    report::write(dir.path()).unwrap();
    let results = fs::read_to_string(dir.path().join(report::RESULTS_FILE)).unwrap();
    assert!(results.contains("ML-SFT: the mean difference is +25.0 ["), "{results}");
    assert!(results.contains("it is positive in 2 of 2 families"), "{results}");
    let table = fs::read_to_string(dir.path().join("figures/table-1.csv")).unwrap();
    assert!(table.contains("ML-SFT,SFT,choice,0.5,"), "{table}");
    assert!(
        results.contains("| most frequent training answer |  | 75.0 [42.9, 100.0] | 75.0 [42.9, 100.0] | 75.0 ["),
        "{results}"
    );
    assert!(results.contains("| facts they ask about |  | 8 | 8 | 16 |"), "{results}");
    assert!(results.contains("13 of 13 cells of profile `full` are measured"), "{results}");
    for row in ["| DFT | 3 | 62.5 [", "| DFT − ML-SFT | 3 |  | +12.5 [", "| CC-Tuning − DFT | 3 |  | +12.5 ["] {
        assert!(results.contains(row), "{row} is missing from\n{results}");
    }
    assert!(results.contains("from 0.4000 to 0.2000 at the bottom layer and from 0.3000 to 0.1000"), "{results}");
    let table = fs::read_to_string(dir.path().join("figures/dft.csv")).unwrap();
    assert!(table.contains("ML-SFT,mean,0.5,") && table.contains(",32,3\n"), "{table}");
}

#[test]
fn seeds_that_contradict_each_other_leave_a_difference_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    // The same items, but whether CC-Tuning helps depends on the seed alone.
    written(dir.path(), |training, seed, _, _| f64::from(training == Training::Cc) * f64::from(seed % 2 == 0));
    let evidence = Evidence::read(dir.path()).unwrap();
    let [sft, cc] = [(Training::Sft, Reading::None), (Training::Cc, Reading::Transform)]
        .map(|(training, reading)| Scores::of(&evidence.of(Setting::MlSft, training, ""), reading, |_| true));
    let difference = cc.minus(&sft).estimate;
    assert!((difference.mean - 0.6).abs() < 1e-12);
    assert!(difference.high - difference.low > 0.5, "{difference:?}");
}

#[test]
fn intervals_over_items_and_runs_are_as_wide_as_theory_says() {
    let n = 400;
    let alone: Vec<Weighed> = (0..n).map(|cluster| Weighed { block: 0, cluster, weight: 1.0 }).collect();
    let run: Vec<f64> = (0..n).map(|at| f64::from(at % 4 == 0)).collect();
    let one = crossed(std::slice::from_ref(&run), &alone, 1);
    let expected = (0.25f64 * 0.75 / (n - 1) as f64).sqrt();
    assert!((one.stderr / expected - 1.0).abs() < 0.1, "{} for {expected}", one.stderr);
    assert!((one.mean - 0.25).abs() < 1e-12);
    // Two runs without any spread of items: the standard error of a mean of two.
    let two = crossed(&[vec![0.0; 9], vec![1.0; 9]], &alone[..9], 1);
    assert!((two.stderr - 0.5).abs() < 0.05, "{two:?}");
    assert_eq!(one, crossed(&[run], &alone, 1), "the same seed draws the same");
    assert!(crossed(&[], &[], 1).mean.is_nan());
    // Student's, of three runs with a variance of 1.
    let few = over_runs(&[1.0, 2.0, 3.0]);
    assert!((few.mean - 2.0).abs() < 1e-12 && (few.high - 2.0 - 4.303 / 3f64.sqrt()).abs() < 1e-9, "{few:?}");
    // Weights are kept whatever is drawn.
    let weighed = [(0, 3.0), (1, 1.0)].map(|(block, weight)| Weighed { block, cluster: block, weight });
    assert_eq!(crossed(&[vec![1.0, 0.0]], &weighed, 1).low, 0.75);
}

fn item(family: &str, lang: &str, at: usize, output: &str) -> Item {
    Item {
        id: format!("{family}/{at}/{lang}/{}", ["fact", "phrasing"][at % 2]),
        task: family.into(),
        lang: lang.into(),
        instruction: String::new(),
        instruction_en: String::new(),
        output: output.into(),
        output_en: String::new(),
    }
}

#[test]
fn the_constant_answer_is_the_most_frequent_of_training_and_earns_its_share_of_the_test() {
    let train: Vec<Item> = ["no", "yes", "yes"].iter().enumerate().map(|(at, a)| item("choice", "es", at, a)).collect();
    let corpus = Corpus { train, validation: vec![], test: vec![], pairs: vec![] };
    assert_eq!(constants(&corpus)["choice"]["es"], "yes");

    let corpus = corpus::generate(2506).unwrap();
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), |_, _, _, _| 0.0);
    let mut evidence = Evidence::read(dir.path()).unwrap();
    evidence.plan.constants = constants(&corpus);
    evidence.cells.truncate(1);
    evidence.cells[0].test.prompts = corpus
        .test
        .iter()
        .map(|item| {
            let Item { id, lang, task, output, .. } = item.clone();
            Asked { id, lang, family: task, kind: String::new(), fact: item.unit().into(), gold: output }
        })
        .collect();
    for (family, options) in [("entailment", 3.0), ("story", 2.0), ("choice", 4.0)] {
        let earned = constant_answer(&evidence, |asked| asked.family == family).estimate();
        assert!((earned.mean - 1.0 / options).abs() < 0.15, "{family}: {earned:?}");
        assert!(earned.low < earned.mean && earned.mean < earned.high, "{family}: {earned:?}");
    }
}

#[test]
fn items_of_one_fact_are_one_piece_of_evidence_and_intervals_say_so() {
    // A hundred facts, a quarter of them known, each asked in twenty languages: 2,000 items, but 100 draws of a coin.
    let run: Vec<f64> = (0..2000).map(|at| f64::from((at / 20) % 4 == 0)).collect();
    let of = |cluster: &dyn Fn(usize) -> usize| {
        let items: Vec<Weighed> =
            (0..2000).map(|at| Weighed { block: at % 2, cluster: cluster(at), weight: 1.0 }).collect();
        (crossed(std::slice::from_ref(&run), &items, 1), signs(std::slice::from_ref(&run), &items).only_b)
    };
    let (together, facts) = of(&|at| at / 20);
    let (apart, items) = of(&|at| at);
    assert_eq!((together.mean, apart.mean, facts, items), (0.25, 0.25, 25, 500));
    let expected = (0.25f64 * 0.75 / 99.0).sqrt();
    assert!((together.stderr / expected - 1.0).abs() < 0.1, "{} for {expected}", together.stderr);
    assert!(together.stderr > 4.0 * apart.stderr, "{together:?} {apart:?}");
    assert!(together.high - together.low > 4.0 * (apart.high - apart.low));
}

#[test]
fn the_report_draws_a_fact_with_all_its_languages() {
    let width = |spread: &dyn Fn(&Asked) -> usize| {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), |_, _, _, asked| f64::from(spread(asked) % 2 == 0));
        let evidence = Evidence::read(dir.path()).unwrap();
        let cells = evidence.of(Setting::MlSft, Training::Sft, "");
        let found = Scores::of(&cells, Reading::None, |asked| asked.lang != "en").estimate();
        assert!((found.mean - 0.5).abs() < 1e-12);
        found.high - found.low
    };
    let number = |asked: &Asked| asked.fact.rsplit('/').next().unwrap().parse::<usize>().unwrap();
    // Half of the items are right either way: all languages on the same facts, or each on facts of its own.
    let (same, crosswise) = (width(&number), width(&|asked| number(asked) + usize::from(asked.lang == "es")));
    assert!(same > 0.2 && crosswise < 1e-9, "{same} {crosswise}");
}

#[test]
fn the_plane_keeps_clusters_apart_and_is_the_same_for_the_same_seed() {
    let points: Vec<Vec<f64>> =
        (0..60).map(|at| vec![f64::from(at % 3) * 50.0, f64::from(at % 7), f64::from(at % 5)]).collect();
    let places = tsne(&points, 3);
    assert_eq!(places, tsne(&points, 3));
    let distance = |a: usize, b: usize| (0..2).map(|axis| (places[a][axis] - places[b][axis]).powi(2)).sum::<f64>();
    for at in 0..60 {
        let nearest = (0..60).filter(|&other| other != at).min_by(|&a, &b| distance(at, a).total_cmp(&distance(at, b)));
        assert_eq!(nearest.unwrap() % 3, at % 3, "point {at} lies among another cluster");
    }
}

#[test]
fn ablations_that_a_profile_leaves_out_are_named_and_not_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = written(dir.path(), |_, _, _, _| 1.0);
    plan.profile = Profile::Quick;
    plan.command = "trainer experiment --profile quick --set a=1".into();
    plan.write(dir.path()).unwrap();
    let stale = dir.path().join("figures/figure-3.svg");
    fs::create_dir_all(stale.parent().unwrap()).unwrap();
    fs::write(&stale, "drawn by a report that had it").unwrap();
    report::write(dir.path()).unwrap();
    assert!(!stale.exists());
    let results = fs::read_to_string(dir.path().join(report::RESULTS_FILE)).unwrap();
    for only in ["pool", "site", "english-grad", "e"] {
        let command = format!("`trainer experiment --profile full --set a=1 --only {only}`");
        assert!(results.contains(&format!("Profile `quick` does not measure this; {command} does.")), "{results}");
    }
    assert!(!results.contains("figure-3.svg"));
    for name in ["figure-3.svg", "figure-4.svg", "ablation-e.csv"] {
        assert!(!dir.path().join("figures").join(name).exists(), "{name}");
    }
}
