//! The default run, the whole system in one line: fine-tune twice from the same start, fit, evaluate, export.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use burn::tensor::Device;
use cctuning::chat::Prompt;
use cctuning::checkpoint::Storage;
use cctuning::generate::{GenerateOptions, Source};
use cctuning::model::CcModel;
use cctuning::sampling::Sampling;

use crate::corpus::family::Family;
use crate::corpus::{Corpus, Item, LANGUAGES};
use crate::data::Row;
use crate::evaluate::{answer_until, at_most, credits, percent};
use crate::export::{self, Content};
use crate::fit::{Reading, fit};
use crate::fit_report::Fitted;
use crate::inputs;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::recipe::Recipe;
use crate::run_folder::write_file_atomically;
use crate::sample::Sample;
use crate::step::Method;
use crate::train::{Ended, describe, train};

/// The columns of the table: name, whether the CC-Tuned model answers, and from where its connection comes.
const COLUMNS: [(&str, bool, Source); 5] = [
    ("vanilla", false, Source::None),
    ("CC, English", true, Source::Parallel),
    ("CC, W_T", true, Source::Transform),
    ("CC, identity", true, Source::Identity),
    ("CC, zero", true, Source::Zero),
];

/// Runs everything into `recipe.run.out`. False if a person stopped it; the same call goes on from there.
pub fn run(recipe: &Recipe, corpus: &Corpus, base: ModelFolder, interrupt: &Interrupt) -> Result<bool> {
    let out = &recipe.run.out;
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
    let Some(columns) = evaluate(recipe, &base, &sft, &cc, &fitted, &test, interrupt)? else { return Ok(false) };
    let table = render_table(&test, &columns);
    println!("{table}");
    write_file_atomically(&out.join("table.txt"), table.as_bytes())?;

    base.save_model(&sft, &out.join("sft/model"), Storage::F32)?;
    base.save_model(&cc, &out.join("cc/model"), Storage::F32)?;
    fitted.write(&out.join("cc/model"))?;
    let bundle = out.join("bundle");
    let rows: Vec<Row> = telling(&test, &columns, &corpus.test).into_iter().map(Row::from).collect();
    let bytes = write_bundle(recipe, &base, sft, cc, &fitted, &rows, &bundle)?;
    println!("{}", next_steps(out, &bundle, bytes));
    Ok(true)
}

fn evaluate(
    recipe: &Recipe,
    base: &ModelFolder,
    sft: &CcModel,
    cc: &CcModel,
    fitted: &Fitted,
    test: &[Sample],
    interrupt: &Interrupt,
) -> Result<Option<Vec<(&'static str, Vec<f64>)>>> {
    let folded = fitted.transform.fold(cc.model.decision_maker());
    let prompts: Vec<(&Prompt, &Prompt)> = test.iter().map(|sample| (&sample.prompt, &sample.english)).collect();
    let mut columns = Vec::new();
    for (name, connected, source) in COLUMNS {
        let options = options(recipe, base, source)?;
        let model = if connected { cc } else { sft };
        let stopped = || interrupt.requested();
        let answers = answer_until(model, &base.config, Some(&folded), &prompts, &options, &stopped)?;
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

/// Test rows in the order in which a page should offer them: per language one where the connection helped beside one where
/// it did not, as far as there are such.
fn telling<'i>(test: &[Sample], columns: &[(&str, Vec<f64>)], items: &'i [Item]) -> Vec<&'i Item> {
    let gain = |at: usize| columns[2].1[at] - columns[0].1[at];
    let gains: HashMap<&str, f64> =
        test.iter().enumerate().map(|(at, sample)| (sample.id.as_str(), gain(at))).collect();
    let rank = |item: &Item| {
        let language = LANGUAGES.iter().position(|language| language.code == item.lang);
        let family = Family::ALL.iter().position(|family| family.name() == item.task).unwrap_or_default();
        let wanted = if family.is_multiple_of(2) { -1.0 } else { 1.0 };
        (language, wanted * gains.get(item.id.as_str()).copied().unwrap_or_default())
    };
    let mut ranked: Vec<_> = items.iter().map(|item| (rank(item), item)).collect();
    ranked.sort_by(|(a, _), (b, _)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    ranked.into_iter().map(|(_, item)| item).collect()
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
    base: &ModelFolder,
    sft: CcModel,
    cc: CcModel,
    fitted: &Fitted,
    rows: &[Row],
    out: &Path,
) -> Result<u64> {
    // The page's host computes on whatever device it has; a bundle is made and proved on the CPU.
    let on_cpu = |model: CcModel| burn::module::Module::to_device(model, &Device::flex());
    let origin = format!("trainer run, seed {}, data seed {}", recipe.optim.seed, recipe.data.seed);
    export::bundle(
        &Content {
            title: "A small world in 22 languages",
            origin: &origin,
            vanilla: &base.with_model(on_cpu(sft))?,
            cc: &base.with_model(on_cpu(cc))?,
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
