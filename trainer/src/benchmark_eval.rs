//! `trainer eval --benchmarks`: asks a model the benchmarks' questions and keeps every answer as it comes.
//!
//! The only room of the evaluation that knows tensors; rules, statistics and files have their own.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::read_sync;
use cctuning::bundle::hex;
use cctuning::chat::Prompt;
use cctuning::generate::{Decoding, GenerateOptions, Source};
use cctuning::transform_matrix::FoldedTransform;
use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::benchmarks::{Benchmark, Item, load};
use crate::evaluate::{batches, others, slots};
use crate::interrupt::Interrupt;
use crate::likelihood::Options;
use crate::lm_eval;
use crate::model_folder::ModelFolder;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::results::{self, ITEMS_FILE, Record, cells, read_records};
use crate::run_folder::write_file_atomically;
use crate::scorers;

/// What was asked, of which model: a run goes on only under the same.
const RUN_FILE: &str = "eval.json";
/// The key of the time of the first call.
const STARTED: &str = "started";

#[derive(Args)]
pub struct BenchmarkArgs {
    /// A folder with the six benchmarks of the paper: NAME/split_sample/LANG.json and NAME/ans_sample/LANG.json
    #[arg(long)]
    pub benchmarks: Option<PathBuf>,
    /// Only these: XNLI, XStoryCloze, MMMLU, MKQA, XQuAD, XLSum
    #[arg(long, value_delimiter = ',', requires = "benchmarks")]
    pub benchmark: Vec<String>,
    /// Only these languages, where a benchmark has them
    #[arg(long, value_delimiter = ',', requires = "benchmarks")]
    pub lang: Vec<String>,
    /// The first items of each benchmark and language; `eval.limit` of the recipe unless given, 0 asks all
    #[arg(long, requires = "benchmarks")]
    pub limit: Option<usize>,
    /// Every n-th item from the i-th: `1/4` to `4/4` for four processes, each with its own --out. To join them, put their
    /// items.jsonl into one, beside the eval.json of one of them, and call without --shard
    #[arg(long, value_name = "I/N", requires = "benchmarks")]
    pub shard: Option<String>,
    /// Where the answers and the summaries go, `run.out` of the recipe unless given; a run that was stopped goes on there
    #[arg(long, requires = "benchmarks")]
    pub out: Option<PathBuf>,
}

/// The questions of a run: all that could be asked, the numbers of those that the run asks, and of those among them that
/// this process does.
pub struct Questions {
    pub all: Vec<Item>,
    pub chosen: Vec<usize>,
    pub asked: Vec<usize>,
    /// Items of each benchmark and language at most; 0 is no limit.
    pub limit: usize,
}

impl Questions {
    /// # Errors
    /// The benchmarks cannot be read, or the arguments ask for what is not there.
    pub fn load(folder: &Path, args: &BenchmarkArgs, recipe: &Recipe) -> Result<Self> {
        let limit = args.limit.unwrap_or(recipe.eval.limit);
        let chosen: Vec<Benchmark> = match args.benchmark.is_empty() {
            true => Benchmark::ALL.into_iter().filter(|one| folder.join(one.name()).is_dir()).collect(),
            false => args.benchmark.iter().map(|name| Benchmark::named(name)).collect::<Result<_>>()?,
        };
        ensure!(
            !chosen.is_empty(),
            "{}: expected folders called {}; found none",
            folder.display(),
            Benchmark::ALL.map(Benchmark::name).join(", ")
        );
        let mut all = Vec::new();
        for benchmark in chosen {
            all.extend(load(folder, benchmark, &[])?);
        }
        for lang in &args.lang {
            ensure!(all.iter().any(|item| item.lang == *lang), "no chosen benchmark has the language {lang:?}");
        }
        let (shard, shards) = shard(args.shard.as_deref())?;
        let mut seen: BTreeMap<(Benchmark, &str), usize> = BTreeMap::new();
        let mut chosen = Vec::new();
        for (at, item) in all.iter().enumerate() {
            let seen = seen.entry((item.benchmark, &item.lang)).or_default();
            *seen += 1;
            if (limit == 0 || *seen <= limit) && (args.lang.is_empty() || args.lang.contains(&item.lang)) {
                chosen.push(at);
            }
        }
        let asked = chosen.iter().skip(shard).step_by(shards).copied().collect();
        Ok(Self { all, chosen, asked, limit })
    }
}

/// From 1 in writing to 0 in counting.
fn shard(text: Option<&str>) -> Result<(usize, usize)> {
    let Some(text) = text else { return Ok((0, 1)) };
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    match parts {
        Some((i, n)) if 1 <= i && i <= n => Ok((i - 1, n)),
        _ => bail!("--shard {text:?}: expected I/N with I from 1 to N, such as 1/4"),
    }
}

/// One question in tokens.
struct Asked<'i> {
    item: &'i Item,
    prompt: Prompt,
    /// The twin, or whose activations it is given.
    other: Prompt,
}

/// Asks what has no answer yet and writes the summaries. False when a person stopped it; the same call goes on.
///
/// # Errors
/// `out` holds another run, a prompt cannot be rendered, or the device or the disk fails.
pub fn evaluate(
    model: (&Path, &ModelFolder),
    questions: &Questions,
    options: &GenerateOptions,
    recipe: &Recipe,
    out: &Path,
    interrupt: &Interrupt,
) -> Result<bool> {
    let (model_path, folder) = model;
    let items: Vec<&Item> = questions.asked.iter().map(|&at| &questions.all[at]).collect();
    let (items, alone): (Vec<&Item>, Vec<&Item>) =
        items.into_iter().partition(|item| options.source != Source::Parallel || item.english.is_some());
    if let Some(first) = alone.first() {
        println!("left out: {} items without an English twin, {} the first of them", alone.len(), first.id);
    }
    ensure!(!items.is_empty(), "nothing is left to ask; take a higher --limit, more languages or fewer shards");
    let mut run = description(model_path, folder, questions, options, recipe)?;
    let done = go_on(out, &mut run)?;
    let known: HashSet<&str> = done.iter().map(|record| record.id.as_str()).collect();

    let donors = match options.source {
        Source::Shuffled => others(questions.all.len(), recipe.cc.seed)?,
        _ => Vec::new(),
    };
    let limit = folder.model.model.context().saturating_sub(options.max_new_tokens);
    let mut cut = 0;
    let mut render = |text: &str| -> Result<Prompt> {
        let mut prompt = folder.settings.template.render(&folder.tokenizer, text, folder.settings.anchor)?;
        cut += usize::from(prompt.truncate(limit)?);
        Ok(prompt)
    };
    let mut left = Vec::new();
    for &at in &questions.asked {
        let item = &questions.all[at];
        if known.contains(item.id.as_str()) || (options.source == Source::Parallel && item.english.is_none()) {
            continue;
        }
        let prompt = render(&item.prompt).with_context(|| item.id.clone())?;
        let other = match (options.source, &item.english) {
            (Source::Shuffled, _) => {
                let donor = &questions.all[donors[at]];
                render(&donor.prompt).with_context(|| donor.id.clone())?
            }
            (Source::Parallel, Some(english)) => render(english).with_context(|| format!("the twin of {}", item.id))?,
            _ => prompt.clone(),
        };
        left.push(Asked { item, prompt, other });
    }
    if cut > 0 {
        println!("cut to fit the model's context: {cut} prompts");
    }
    if !done.is_empty() {
        println!("{} of {} items are answered already", done.len(), items.len());
    }

    let choices = Options::of(folder, left.iter().map(|asked| asked.item.benchmark))?;
    let transform = folder.folded_transform();
    let path = out.join(ITEMS_FILE);
    let kept = || format!("cannot write {}: what was answered is kept, and the same call goes on", path.display());
    let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(kept)?;
    let mut progress = Progress::new("eval", items.len(), done.len());
    let mut answered = done.len();
    let lengths: Vec<usize> =
        left.iter().map(|asked| slots(&asked.prompt, &asked.other, options.max_new_tokens)).collect();
    for batch in batches(&lengths) {
        if interrupt.requested() {
            println!("stopped with {answered} of {} items answered; the same call goes on", items.len());
            return Ok(false);
        }
        let batch: Vec<&Asked> = batch.into_iter().map(|at| &left[at]).collect();
        let mut lines = Vec::new();
        for record in answer(folder, transform.as_ref(), &batch, options, &choices)? {
            serde_json::to_writer(&mut lines, &record)?;
            lines.push(b'\n');
        }
        file.write_all(&lines).and_then(|()| file.sync_data()).with_context(kept)?;
        answered += batch.len();
        progress.count(answered, "items");
    }
    drop((progress, file));
    finish(out, questions, &items, &run)?;
    Ok(true)
}

/// Puts the records into the order of the items and writes the summaries.
fn finish(out: &Path, questions: &Questions, items: &[&Item], run: &Value) -> Result<()> {
    let records = read_records(&out.join(ITEMS_FILE))?;
    let by_id: BTreeMap<&str, &Record> = records.iter().map(|record| (record.id.as_str(), record)).collect();
    let of_item =
        |item: &&Item| by_id.get(item.id.as_str()).copied().with_context(|| format!("{}: no answer", item.id));
    let in_order: Vec<&Record> = items.iter().map(of_item).collect::<Result<_>>()?;
    let mut lines = Vec::new();
    for record in &in_order {
        serde_json::to_writer(&mut lines, record)?;
        lines.push(b'\n');
    }
    write_file_atomically(&out.join(ITEMS_FILE), &lines)?;
    let items: Vec<Item> = items.iter().map(|&item| item.clone()).collect();
    let cells = cells(&items, &records);
    let mut unreachable: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for item in &items {
        for rule in scorers::unreachable(item) {
            let metric = scorers::metric(item.benchmark, &rule);
            unreachable.entry(format!("{} {metric}", item.benchmark.name())).or_default().push(&item.id);
        }
    }
    println!("{}", results::terminal(&cells));
    for (metric, ids) in &unreachable {
        println!("{metric}: the gold answer itself does not score 100 in {} of the items", ids.len());
    }
    let said = |key: &str| run[key].as_str().unwrap_or_default();
    let title = format!("{}, source {}", said("model"), said("source"));
    write_file_atomically(&out.join("summary.md"), results::markdown(&cells, &title).as_bytes())?;
    write_file_atomically(&out.join("summary.csv"), results::csv(&cells).as_bytes())?;
    write_file_atomically(&out.join("unreachable.json"), serde_json::to_string_pretty(&unreachable)?.as_bytes())?;
    let told = lm_eval::Run { model: said("model"), started: said(STARTED), arguments: run, all: &questions.all };
    lm_eval::write(out, &items, &in_order, &cells, &told)?;
    println!("{}: {ITEMS_FILE}, summary.md, summary.csv, unreachable.json, lm_eval", out.display());
    Ok(())
}

/// What an earlier call has answered already; `run` learns when the first call was.
fn go_on(out: &Path, run: &mut Value) -> Result<Vec<Record>> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let (described, items) = (out.join(RUN_FILE), out.join(ITEMS_FILE));
    // Before its first answer a run may still become another one.
    if !fs::metadata(&items).is_ok_and(|items| items.len() > 0) {
        run[STARTED] = json!(lm_eval::now());
        write_file_atomically(&described, serde_json::to_string_pretty(run)?.as_bytes())?;
        return Ok(Vec::new());
    }
    ensure!(described.exists(), "{}: holds {ITEMS_FILE} but no {RUN_FILE}; take another --out", out.display());
    let before = || -> Result<Value> { Ok(serde_json::from_slice(&fs::read(&described)?)?) };
    let before = before().with_context(|| format!("{}: not the description of a run", described.display()))?;
    // The same weights may lie elsewhere by now.
    let keys = run.as_object().into_iter().flat_map(|run| run.keys()).filter(|key| *key != "model");
    let other: Vec<String> = keys
        .filter(|key| before[key.as_str()] != run[key.as_str()])
        .map(|key| format!("{key}: {} there, {} now", before[key.as_str()], run[key.as_str()]))
        .collect();
    ensure!(
        other.is_empty(),
        "{}: holds answers of another run, take another --out or delete it:\n  {}",
        out.display(),
        other.join("\n  ")
    );
    run[STARTED] = before.get(STARTED).cloned().unwrap_or_else(|| json!(lm_eval::now()));
    let done = read_records(&items)?;
    // A half-written last line goes before anything is added behind it.
    let cut = || -> std::io::Result<()> {
        let whole = fs::read(&items)?.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        OpenOptions::new().write(true).open(&items)?.set_len(whole as u64)
    };
    cut().with_context(|| format!("cannot cut {} behind its last whole line", items.display()))?;
    Ok(done)
}

fn description(
    path: &Path,
    folder: &ModelFolder,
    questions: &Questions,
    options: &GenerateOptions,
    recipe: &Recipe,
) -> Result<Value> {
    let mut items = Sha256::new();
    for &at in &questions.chosen {
        let item = &questions.all[at];
        items.update(json!([item.id, item.prompt, item.english, item.gold]).to_string());
    }
    Ok(json!({
        "model": path.display().to_string(),
        "weights_sha256": fingerprint(path)?,
        "tokenizer_sha256": hex(&Sha256::digest(&folder.tokenizer_json)),
        "settings": folder.settings,
        "source": options.source,
        "connection": options.connection,
        "max_new_tokens": options.max_new_tokens,
        "stop_ids": options.stop_ids,
        "seed": recipe.cc.seed,
        "items": questions.chosen.len(),
        "limit": questions.limit,
        "items_sha256": hex(&items.finalize()),
    }))
}

/// Over names, lengths and samples of the safetensors files: training moves every part of them, and reading 16 GB at
/// each start would cost a minute.
fn fingerprint(path: &Path) -> Result<String> {
    const SAMPLES: u64 = 64;
    let path = crate::hub::resolve(path)?;
    let mut files: Vec<PathBuf> = fs::read_dir(&path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()
        .with_context(|| path.display().to_string())?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    for path in files {
        let mut file = fs::File::open(&path).with_context(|| path.display().to_string())?;
        let length = file.metadata()?.len();
        hash.update(format!("{:?} {length}", path.file_name()));
        for sample in 0..SAMPLES {
            file.seek(SeekFrom::Start(length / SAMPLES * sample))?;
            let read = file.read(&mut buffer)?;
            hash.update(&buffer[..read]);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The answers to one batch, and before them what the model holds of the options there, connection included.
fn answer(
    folder: &ModelFolder,
    transform: Option<&FoldedTransform>,
    batch: &[&Asked],
    options: &GenerateOptions,
    choices: &Options,
) -> Result<Vec<Record>> {
    let own: Vec<&Prompt> = batch.iter().map(|asked| &asked.prompt).collect();
    let others: Vec<&Prompt> = batch.iter().map(|asked| &asked.other).collect();
    let benchmarks: Vec<Benchmark> = batch.iter().map(|asked| asked.item.benchmark).collect();
    let mut decoding = Decoding::start(&folder.model, &folder.config, transform, &own, &others, options.clone())?;
    let likely = choices.log_probabilities(&mut decoding, &benchmarks)?;
    let tokens = read_sync(decoding.finish())?;
    let mut records = Vec::new();
    for ((asked, tokens), likely) in batch.iter().zip(tokens).zip(likely) {
        let Item { id, benchmark, lang, prompt, gold, .. } = asked.item;
        let text = folder.tokenizer.decode(&tokens)?;
        let mut scores = scorers::judge(asked.item, &text);
        if !likely.is_empty() {
            scores.extend(scorers::judge_likelihoods(benchmark.options(), &gold[0], &likely));
        }
        records.push(Record {
            id: id.clone(),
            lang: lang.clone(),
            benchmark: benchmark.name().into(),
            prompt_sha256: hex(&Sha256::digest(prompt)),
            stopped: tokens.len() < options.max_new_tokens,
            tokens,
            text,
            scores,
        });
    }
    Ok(records)
}
