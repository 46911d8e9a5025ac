//! The default run, the whole system in one line: fine-tune twice from the same start, fit, evaluate, export.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use burn::tensor::Device;
use cctuning::bundle::Example;
use cctuning::chat::Prompt;
use cctuning::checkpoint::Storage;
use cctuning::generate::{GenerateOptions, Source};
use cctuning::model::CcModel;
use cctuning::sampling::Sampling;
use cctuning::tokenizer::Tokenizer;

use crate::corpus::{Corpus, Item, LANGUAGES};
use crate::data::Row;
use crate::evaluate::{Score, answer, at_most, score};
use crate::export::{self, Content};
use crate::fit::{Reading, fit};
use crate::fit_report::Fitted;
use crate::interrupt::Interrupt;
use crate::model_folder::ModelFolder;
use crate::recipe::Recipe;
use crate::run_folder::write_file_atomically;
use crate::sample::{Renderer, Sample};
use crate::step::Method;
use crate::train::{Ended, describe, train};

/// Held-out prompts per language that the page offers.
const EXAMPLES_PER_LANGUAGE: usize = 6;

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
    let renderer = Renderer {
        tokenizer: &base.tokenizer,
        template: base.settings.template.clone(),
        anchor: recipe.cc.anchor,
        cutoff: recipe.data.cutoff,
        english_cutoff: recipe.data.english_cutoff,
    };
    let render = |items: &[Item]| -> Result<Vec<Sample>> {
        let (samples, rendered) = renderer.samples(&items.iter().map(Row::from).collect::<Vec<_>>())?;
        rendered.report();
        Ok(samples)
    };
    let samples = render(&corpus.train)?;
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
        Ended::Finished(folder) => folder.model,
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
        Ended::Finished(folder) => folder.model,
        Ended::Interrupted => return Ok(false),
    };

    let pairs = render(&corpus.pairs)?;
    let reading = Reading { model: &cc, site: recipe.cc.site, token_budget: recipe.optim.micro_tokens };
    let Some(fitted) = fit(reading, &pairs, &recipe.transform, false, interrupt)? else { return Ok(false) };
    println!("\n{}", fitted.summary());

    let test = at_most(recipe.eval.limit, render(&corpus.test)?);
    let table = evaluate(recipe, &base, &sft, &cc, &fitted, &test)?;
    println!("{table}");
    write_file_atomically(&out.join("table.txt"), table.as_bytes())?;

    base.save_model(&sft, &out.join("sft/model"), Storage::F32)?;
    base.save_model(&cc, &out.join("cc/model"), Storage::F32)?;
    fitted.write(&out.join("cc/model"))?;
    let bundle = out.join("bundle");
    let bytes = write_bundle(recipe, &base, sft, cc, &fitted, &corpus.test, &bundle)?;
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
) -> Result<String> {
    let folded = fitted.transform.fold(cc.model.decision_maker());
    let prompts: Vec<(&Prompt, &Prompt)> = test.iter().map(|sample| (&sample.prompt, &sample.english)).collect();
    let mut columns = Vec::new();
    for (name, connected, source) in COLUMNS {
        let options = options(recipe, base, source)?;
        let model = if connected { cc } else { sft };
        let answers = answer(model, &base.config, Some(&folded), &prompts, &options)?;
        columns.push((name, judge(test, &answers, &base.tokenizer)?));
    }
    Ok(render_table(&columns))
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

/// Scores over everything, held-out facts and held-out phrasings.
struct Judged {
    all: Score,
    facts: Score,
    phrasings: Score,
}

fn judge(test: &[Sample], answers: &[Vec<u32>], tokenizer: &Tokenizer) -> Result<Judged> {
    let part = |kind: &str| {
        let chosen = test.iter().zip(answers).filter(|(sample, _)| sample.id.ends_with(kind));
        let (samples, answers): (Vec<Sample>, Vec<Vec<u32>>) = chosen.map(|(s, a)| (s.clone(), a.clone())).unzip();
        score(&samples, &answers, tokenizer)
    };
    Ok(Judged { all: score(test, answers, tokenizer)?, facts: part("/fact")?, phrasings: part("/phrasing")? })
}

fn render_table(columns: &[(&str, Judged)]) -> String {
    let mut text = format!("{:<22}{:>5}", "right answers, %", "n");
    for (name, _) in columns {
        text += &format!("{name:>14}");
    }
    text.push('\n');
    let mut row = |label: &str, n: usize, value: &dyn Fn(&Judged) -> f64| {
        text += &format!("{label:<22}{n:>5}");
        for (_, judged) in columns {
            text += &format!("{:>14.1}", value(judged));
        }
        text.push('\n');
    };
    let first = &columns[0].1;
    for language in LANGUAGES {
        let n = first.all.languages.get(language.code).map_or(0, |&(_, asked)| asked);
        row(language.name, n, &|judged| judged.all.percent(language.code));
    }
    let foreign = |lang: &str| lang != "en";
    let asked = |score: &Score| score.languages.iter().filter(|(lang, _)| foreign(lang)).map(|(_, s)| s.1).sum();
    row("mean without English", asked(&first.all), &|judged| judged.all.mean(foreign));
    row("  held-out facts", asked(&first.facts), &|judged| judged.facts.mean(foreign));
    row("  held-out phrasings", asked(&first.phrasings), &|judged| judged.phrasings.mean(foreign));
    text
}

fn write_bundle(
    recipe: &Recipe,
    base: &ModelFolder,
    sft: CcModel,
    cc: CcModel,
    fitted: &Fitted,
    test: &[Item],
    out: &Path,
) -> Result<u64> {
    let examples: Vec<Example> = LANGUAGES
        .iter()
        .flat_map(|language| {
            // One of each task, then a second of each.
            let mut asked = BTreeMap::new();
            let own = test.iter().filter(|item| item.lang == language.code);
            let mut own: Vec<(usize, &Item)> = own
                .map(|item| {
                    let round = asked.entry(&item.task).or_insert(0);
                    *round += 1;
                    (*round, item)
                })
                .collect();
            own.sort_by_key(|&(round, _)| round);
            own.into_iter().map(|(_, item)| item).take(EXAMPLES_PER_LANGUAGE)
        })
        .map(|item| Example {
            lang: item.lang.clone(),
            prompt: item.instruction.clone(),
            english: item.instruction_en.clone(),
            gold: item.output.clone(),
        })
        .collect();
    // The page's host computes on whatever device it has; a bundle is made and proved on the CPU.
    let on_cpu = |model: CcModel| burn::module::Module::to_device(model, &Device::flex());
    let origin = format!("trainer run, seed {}, data seed {}", recipe.optim.seed, recipe.data.seed);
    export::bundle(
        &Content {
            title: "Small facts in eight languages",
            origin: &origin,
            vanilla: &base.with_model(on_cpu(sft))?,
            cc: &base.with_model(on_cpu(cc))?,
            transform: &fitted.transform,
            examples: &examples,
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
