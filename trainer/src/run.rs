//! The default run, the whole system in one line: fine-tune twice from the same start, fit, evaluate, export what keeps the
//! direction of the measured differences.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use cctuning::chat::Prompt;
use cctuning::checkpoint::Storage;
use cctuning::generate::{GenerateOptions, Source};
use cctuning::model::CcModel;
use cctuning::sampling::Sampling;
use cctuning::transform_matrix::FoldedTransform;

use crate::corpus::family::Family;
use crate::corpus::{self, Corpus, Item, LANGUAGES};
use crate::data::Row;
use crate::evaluate::{answer_until, at_most, credits, percent};
use crate::export::{self, Content};
use crate::fit::{Reading, fit};
use crate::fit_report::Fitted;
use crate::inputs;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::recipe::Recipe;
use crate::run_folder::{sweep, write_file_atomically};
use crate::sample::Sample;
use crate::statistics::{Weighed, crossed};
use crate::step::Method;
use crate::train::{Ended, describe, train};

/// The columns of the table: name, and from where the connection comes; without one the vanilla model answers.
const COLUMNS: [(&str, Source); 5] = [
    ("vanilla", Source::None),
    ("CC, English", Source::Parallel),
    ("CC, W_T", Source::Transform),
    ("CC, identity", Source::Identity),
    ("CC, zero", Source::Zero),
];
/// Those that the page shows come first, and the bundle's models are asked for them.
const SHOWN: usize = 3;
const VANILLA: usize = 0;
const TRANSFORM: usize = 2;
/// Of the bootstrap.
const SEED: u64 = 2506;

/// A name, and the credit of each test row.
pub type Column = (&'static str, Vec<f64>);

/// Who answers, and how.
struct Models<'a> {
    vanilla: &'a CcModel,
    cc: &'a CcModel,
    transform: &'a FoldedTransform,
    options: &'a dyn Fn(Source) -> Result<GenerateOptions>,
}

/// Runs everything into `recipe.run.out`. False if a person stopped it; the same call goes on from there.
pub fn run(recipe: &Recipe, corpus: &Corpus, base: ModelFolder, interrupt: &Interrupt) -> Result<bool> {
    let out = &recipe.run.out;
    sweep(out)?;
    let mut base = base;
    base.settings.anchor = recipe.cc.anchor;
    base.settings.connection = recipe.cc.connection();
    let rows = |items: &[Item]| items.iter().map(Row::from).collect::<Vec<Row>>();
    let samples = inputs::samples(recipe, &base, &rows(&corpus.train))?;
    println!("training on {}", describe(&samples));

    let sft = match train(
        "ML-SFT   ",
        base.with_model(base.model.clone())?,
        &samples,
        Method::Sft,
        recipe,
        &out.join("sft"),
        interrupt,
    )? {
        Ended::Finished { folder, .. } => folder.model,
        Ended::Interrupted => return Ok(false),
    };
    write_file_atomically(&out.join("recipe.toml"), recipe.to_toml()?.as_bytes())?;
    let cc = match train(
        "CC-Tuning",
        base.with_model(base.model.clone())?,
        &samples,
        Method::Cc(&recipe.cc),
        recipe,
        &out.join("cc"),
        interrupt,
    )? {
        Ended::Finished { folder, .. } => folder.model,
        Ended::Interrupted => return Ok(false),
    };

    let pairs = inputs::samples(recipe, &base, &rows(&corpus.pairs))?;
    let reading = Reading { model: &cc, site: recipe.cc.site, token_budget: recipe.optim.micro_tokens };
    let Some(fitted) = fit(reading, &pairs, &recipe.transform, false, interrupt)? else { return Ok(false) };
    println!("\n{}", fitted.summary());

    let test = inputs::samples(recipe, &base, &at_most(recipe.eval.limit, rows(&corpus.test)))?;
    let models = Models {
        vanilla: &sft,
        cc: &cc,
        transform: &fitted.transform.fold(cc.model.decision_maker()),
        options: &|source| options(recipe, &base, source),
    };
    let Some(columns) = evaluate(&COLUMNS, &models, &base, &test, interrupt)? else { return Ok(false) };
    let table = render_table(&test, &columns);
    println!("{table}");
    write_file_atomically(&out.join("table.txt"), table.as_bytes())?;

    base.save_model(&sft, &out.join("sft/model"), Storage::F32)?;
    base.save_model(&cc, &out.join("cc/model"), Storage::F32)?;
    fitted.write(&out.join("cc/model"))?;

    // The page's host computes on whatever device it has; a bundle is made and proved on the CPU.
    let on_cpu = |model: CcModel| base.with_model(burn::module::Module::to_device(model, &Device::flex()));
    let folders = [on_cpu(sft)?, on_cpu(cc)?];
    // Its models are measured before a bundle takes its place, and its examples are chosen by what they answer.
    let trial = tempfile::Builder::new().prefix(".writing-bundle-").tempdir_in(out)?;
    write_bundle(recipe, &folders, &fitted, &rows(&corpus.test), trial.path())?;
    let stored = export::load(trial.path(), &Device::flex())?;
    let models = Models {
        vanilla: &stored.vanilla,
        cc: &stored.cc,
        transform: &stored.transform,
        options: &|source| Ok(stored.options(source)?),
    };
    let Some(in_8_bits) = evaluate(&COLUMNS[..SHOWN], &models, &base, &test, interrupt)? else { return Ok(false) };
    let kept = directions(&columns[..SHOWN], &in_8_bits, &weighed(&test, &corpus.test)?).with_context(|| {
        format!(
            "no bundle was written: 8 bits cannot hold what these models have learnt; train others, as with \
             `--set optim.seed={}`, or use sft/model and cc/model in {}, which are f32",
            recipe.optim.seed + 1,
            out.display()
        )
    })?;
    println!("{kept}");
    write_file_atomically(&out.join("table.txt"), format!("{table}\n{kept}").as_bytes())?;

    let gain =
        |(at, sample): (usize, &Sample)| (sample.id.clone(), in_8_bits[TRANSFORM].1[at] - in_8_bits[VANILLA].1[at]);
    let gains: HashMap<String, f64> = test.iter().enumerate().map(gain).collect();
    let offered: Vec<Row> = telling(&corpus.test, &gains).into_iter().map(Row::from).collect();
    let bundle = out.join("bundle");
    let bytes = write_bundle(recipe, &folders, &fitted, &offered, &bundle)?;
    println!("{}", next_steps(out, &bundle, bytes));
    Ok(true)
}

/// The credits of every column; None when a person stopped it.
fn evaluate(
    asked: &[(&'static str, Source)],
    models: &Models,
    base: &ModelFolder,
    test: &[Sample],
    interrupt: &Interrupt,
) -> Result<Option<Vec<Column>>> {
    let prompts: Vec<(&Prompt, &Prompt)> = test.iter().map(|sample| (&sample.prompt, &sample.english)).collect();
    let mut columns = Vec::new();
    for &(name, source) in asked {
        let options = (models.options)(source)?;
        let model = if source == Source::None { models.vanilla } else { models.cc };
        let stopped = || interrupt.requested();
        let answers = answer_until(model, &base.config, Some(models.transform), &prompts, &options, &stopped)?;
        let Some(answers) = answers else { return Ok(None) };
        let answers: Vec<Vec<u32>> = answers.into_iter().map(|(tokens, _)| tokens).collect();
        columns.push((name, credits(test, &answers, &base.tokenizer)?));
    }
    Ok(Some(columns))
}

/// Greedy answering with the recipe's connection.
pub fn options(recipe: &Recipe, base: &ModelFolder, source: Source) -> Result<GenerateOptions> {
    Ok(GenerateOptions {
        max_new_tokens: recipe.eval.max_new_tokens,
        sampling: Sampling::Greedy,
        source,
        connection: base.settings.connection,
        stop_ids: recipe.cc.stop.ids(&base.settings.template.stop_ids(&base.tokenizer)?, &base.config),
    })
}

/// What rows of the corpus count in a mean over languages without English: every language alike, as in [`percent`], and what
/// asks for one fact in one cluster, as in RESULTS.md.
fn weighed(test: &[Sample], items: &[Item]) -> Result<Vec<Weighed>> {
    let keys = corpus::keys()?;
    let units: HashMap<&str, &str> = items.iter().map(|item| (item.id.as_str(), item.unit())).collect();
    let (mut of_language, mut clusters) = (HashMap::new(), HashMap::new());
    test.iter().for_each(|sample| *of_language.entry(&sample.lang).or_insert(0.0) += 1.0);
    let weighed = |sample: &Sample| {
        let fact = units.get(sample.id.as_str()).and_then(|unit| keys.get(*unit));
        let next = clusters.len();
        let fact = fact.with_context(|| format!("{}: no such unit in the corpus", sample.id))?;
        let cluster = *clusters.entry(fact).or_insert(next);
        let block = Family::ALL.iter().position(|family| family.name() == sample.family()).unwrap_or_default();
        let weight = if sample.lang == "en" { 0.0 } else { 1.0 / of_language[&sample.lang] };
        Ok(Weighed { block, cluster, weight })
    };
    test.iter().map(weighed).collect()
}

/// Means of the models' columns with f32 weights and with those of the bundle, and whether every other column still stands on
/// the same side of the first one.
///
/// A difference that is noise may change its sign by a single prompt. So only one that is clear in f32 must keep it: one
/// whose 95 % interval over facts, paired by prompt, leaves out zero, which is what RESULTS.md calls above or below zero.
///
/// # Errors
/// A clear difference is gone or has turned.
pub fn directions(exact: &[Column], in_8_bits: &[Column], items: &[Weighed]) -> Result<String> {
    let asked: Vec<usize> = (0..items.len()).filter(|&at| items[at].weight > 0.0).collect();
    let weighed: Vec<Weighed> = asked.iter().map(|&at| items[at]).collect();
    let estimate = |credit: &dyn Fn(usize) -> f64| {
        crossed(&[asked.iter().map(|&at| 100.0 * credit(at)).collect()], &weighed, SEED)
    };
    let mut text = format!("{:<22}{:>5}", "all without English, %", asked.len());
    exact.iter().for_each(|(name, _)| text += &format!("{name:>14}"));
    for (weights, columns) in [("f32 weights", exact), ("the bundle's, 8 bits", in_8_bits)] {
        text += &format!("\n{weights:<27}");
        columns.iter().for_each(|(_, credits)| text += &format!("{:>14.1}", estimate(&|at| credits[at]).mean));
    }
    text.push('\n');
    for other in 1..exact.len() {
        let [before, after] =
            [exact, in_8_bits].map(|columns| estimate(&|at| columns[other].1[at] - columns[VANILLA].1[at]));
        // Sums of weighed numbers that are equal may differ in the last place.
        let [was, is] = [before, after].map(|difference| (difference.mean * 1e9).round().partial_cmp(&0.0));
        let measured = format!(
            "{} - {}: {:+.1} [{:+.1}, {:+.1}] in f32, {:+.1} in 8 bits",
            exact[other].0, exact[VANILLA].0, before.mean, before.low, before.high, after.mean
        );
        text += &match (was == is, before.low > 0.0 || before.high < 0.0) {
            (true, true) => format!("{measured}: the direction is kept\n"),
            (true, false) => format!("{measured}: the direction is kept, though in f32 it cannot be told from zero\n"),
            (false, false) => {
                format!("{measured}: the direction is not kept, but in f32 it could not be told from zero\n")
            }
            (false, true) => bail!("{measured}: a clear difference lost its direction"),
        };
    }
    Ok(text)
}

/// Test rows in the order in which a page should offer them. Of each language first the one where the connection helped most
/// and, of another family, the one where it harmed most; they are chosen together, so that both are there where they can be.
/// Then of every second family what it helped first, of the others what it harmed.
pub fn telling<'i>(items: &'i [Item], gains: &HashMap<String, f64>) -> Vec<&'i Item> {
    let gain = |item: &Item| gains.get(&item.id).copied().unwrap_or_default();
    let mut of_language: BTreeMap<usize, Vec<&Item>> = BTreeMap::new();
    for item in items {
        let language = LANGUAGES.iter().position(|language| language.code == item.lang);
        of_language.entry(language.unwrap_or(LANGUAGES.len())).or_default().push(item);
    }
    let mut ordered = Vec::new();
    for mut own in of_language.into_values() {
        let worth = |helped: &Item, harmed: &Item| {
            let (gain, loss) = (gain(helped), -gain(harmed));
            [gain.min(loss), gain, loss]
        };
        let pairs = own.iter().flat_map(|&helped| own.iter().map(move |&harmed| (helped, harmed)));
        let pair = pairs
            .filter(|(helped, harmed)| helped.task != harmed.task)
            .reduce(|best, next| if worth(next.0, next.1) > worth(best.0, best.1) { next } else { best });
        let rank = |item: &Item| {
            let place = match pair {
                Some((helped, _)) if helped.id == item.id => 0,
                Some((_, harmed)) if harmed.id == item.id => 1,
                _ => 2,
            };
            let family = Family::ALL.iter().position(|family| family.name() == item.task).unwrap_or_default();
            let wanted = if family.is_multiple_of(2) { -1.0 } else { 1.0 };
            (place, wanted * gain(item))
        };
        own.sort_by(|a, b| {
            let (a, b) = (rank(a), rank(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        ordered.extend(own);
    }
    ordered
}

/// One column for each way of answering: the families, then the languages.
fn render_table(test: &[Sample], columns: &[(&str, Vec<f64>)]) -> String {
    let mut text = format!("{:<22}{:>5}", "right answers, %", "n");
    for (name, _) in columns {
        text += &format!("{name:>14}");
    }
    text.push('\n');
    let mut row = |label: &str, keep: &dyn Fn(&Sample) -> bool| {
        let n = percent(test, &columns[0].1, keep).1;
        if n == 0 {
            return;
        }
        text += &format!("{label:<22}{n:>5}");
        for (_, credits) in columns {
            text += &format!("{:>14.1}", percent(test, credits, keep).0);
        }
        text.push('\n');
    };
    let foreign = |sample: &Sample| sample.lang != "en";
    for family in Family::ALL {
        row(family.name(), &|sample| foreign(sample) && sample.family() == family.name());
    }
    row("all without English", &foreign);
    row("  held-out facts", &|sample| foreign(sample) && sample.id.ends_with("/fact"));
    row("  held-out phrasings", &|sample| foreign(sample) && sample.id.ends_with("/phrasing"));
    for language in LANGUAGES {
        row(language.name, &|sample| sample.lang == language.code);
    }
    text
}

fn write_bundle(
    recipe: &Recipe,
    [vanilla, cc]: &[ModelFolder; 2],
    fitted: &Fitted,
    rows: &[Row],
    out: &Path,
) -> Result<u64> {
    let origin = format!("trainer run, seed {}, data seed {}", recipe.optim.seed, recipe.data.seed);
    export::bundle(
        &Content {
            title: "A small world in 22 languages",
            origin: &origin,
            vanilla,
            cc,
            transform: &fitted.transform,
            examples: &export::examples(rows),
            max_new_tokens: recipe.eval.max_new_tokens,
        },
        out,
    )
}

fn next_steps(out: &Path, bundle: &Path, bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    format!(
        "Everything is in {0}: sft/model and cc/model (Hugging Face layout, W_T beside the latter), log.jsonl beside each,\n\
         recipe.toml, table.txt, and the web bundle in {1} ({megabytes:.1} MB).\n\n\
         Next:\n\
         \x20 cargo run --release -p trainer -- generate --folder {0}/cc/model --prompt \"¿Cuál es la capital de Francia?\"\n\
         \x20 cargo xtask demo --bundle {1}",
        out.display(),
        bundle.display()
    )
}
