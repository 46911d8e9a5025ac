//! The training loop, top to bottom: order, step, log, checkpoint, resume.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use cctuning::bundle::hex;
use cctuning::checkpoint::Storage;
use cctuning::config::ModelConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::batches::Order;
use crate::device::is_cpu;
use crate::interrupt::Interrupt;
use crate::log::Log;
use crate::memory;
use crate::model_folder::{ModelFolder, load_weights};
use crate::optim::{AdamW, Stepped};
use crate::parallel::cores;
use crate::plan::{self, Largest};
use crate::progress::Progress;
use crate::recipe::{Data, Optim, Recipe};
use crate::run_folder::{self, read_if_there, stream_file_atomically, write_file_atomically};
use crate::sample::Sample;
use crate::schedule;
use crate::step::{ConnectionStats, Method, step};

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// What a checkpoint remembers beside weights and moments. The order of the data, the learning rate and the noise are
/// pure functions of the recipe and the step, so this is all.
#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    /// Method, data and recipe, to refuse resuming another run.
    recipe: String,
}

#[derive(Serialize)]
struct Entry {
    step: usize,
    loss: f64,
    grad_norm: f64,
    /// Share of the weights that moved.
    moved: f64,
    lr: f64,
    tokens: usize,
    tokens_per_second: f64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    connection: Option<ConnectionStats>,
    /// To the English twin, at the bottom and the middle layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    distances: Option<[f64; 2]>,
}

/// How a training run ended.
pub enum Ended {
    /// All steps were taken; `newest` is the checkpoint of the last.
    Finished { folder: Box<ModelFolder>, newest: PathBuf },
    /// A person asked to stop; the checkpoint holds everything that resuming needs.
    Interrupted,
}

/// Trains `folder`'s model on `samples`; it is taken, so that the weights it began with do not stay in memory. Checkpoints and the log are written below `out`; a run that was stopped there
/// goes on where its newest whole checkpoint stands.
pub fn train(
    label: &str,
    mut folder: ModelFolder,
    samples: &[Sample],
    method: Method,
    recipe: &Recipe,
    out: &Path,
    interrupt: &Interrupt,
) -> Result<Ended> {
    if samples.is_empty() {
        bail!("there is nothing to train on: the data holds no rows");
    }
    fits(&folder.config, folder.model.model.context(), samples, method)?;
    let fingerprint = fingerprint(recipe, method, &folder, samples)?;
    let checkpoints = out.join("checkpoints");
    let _held = run_folder::hold(out)?;
    run_folder::sweep(out)?;
    run_folder::sweep(&checkpoints)?;
    let optim = &recipe.optim;
    let mut order = Order::new(samples.len(), optim.batch_size, recipe.data.seed);
    let all = order.steps_per_epoch() * optim.epochs;
    let total = if optim.max_steps > 0 { all.min(optim.max_steps) } else { all };

    memory::forget_peak();
    memory::keep_freed(folder.config.vocab_size * folder.config.d_model * size_of::<f32>());
    let device = folder.model.device();
    let mut optimizer = AdamW::new(optim, recipe.cc.decision_lr_mult);
    let recipe_file = out.join("recipe.toml");
    let (mut done, mut rounded_otherwise) = (0, false);
    if let Some(checkpoint) = run_folder::newest_valid(&checkpoints)? {
        let read = || -> Result<State> { Ok(serde_json::from_slice(&fs::read(checkpoint.join(STATE_FILE))?)?) };
        let state = read().with_context(|| checkpoint.join(STATE_FILE).display().to_string())?;
        if state.recipe != fingerprint {
            bail!(
                "{} is of another run: {}. Resume with what it was started with ({}), or give another run.out",
                checkpoint.display(),
                differences(&state.recipe, &fingerprint),
                recipe_file.display()
            );
        }
        let before = read_if_there(&recipe_file)?.and_then(|text| toml::from_slice::<Recipe>(&text).ok());
        let at_once = |recipe: &Recipe| (recipe.optim.micro_tokens, recipe.optim.recompute);
        rounded_otherwise = before.is_some_and(|before| at_once(&before) != at_once(recipe));
        folder.model = load_weights(&checkpoint, &folder.config, optim.seed, &device)?;
        optimizer.resume(&checkpoint.join(OPTIMIZER_FILE), state.step, &device)?;
        done = state.step;
    }
    // Only now: a refused run must not overwrite the recipe of the one that stands here.
    write_file_atomically(&recipe_file, recipe.to_toml()?.as_bytes())?;
    let mut log = Log::open(&out.join("log.jsonl"), done)?;
    let mut progress = Progress::new(label, total, done);
    if done > 0 {
        let rest = if done < total { "" } else { ": nothing is left to train" };
        progress.say(&format!("resuming {} after step {done} of {total}{rest}", label.trim()));
        if rounded_otherwise {
            progress.say("with other optim.micro_tokens or optim.recompute: the same but for rounding");
        }
    }

    for at in done..total {
        let started = Instant::now();
        let batch: Vec<&Sample> = order.batch(at).iter().map(|&row| &samples[row]).collect();
        let cc;
        let now = match method {
            Method::Sft | Method::Dft(_) => method,
            Method::Cc(settings) => {
                cc = settings.at(at, total);
                Method::Cc(&cc)
            }
        };
        let result = step(&folder.model, &batch, now, optim.into(), at);
        let lr = schedule::lr(at, total, optim);
        let (updated, Stepped { grad_norm, moved }) = optimizer.step(folder.model, result.gradients, lr);
        folder.model = updated;
        if !result.loss.is_finite() || !grad_norm.is_finite() {
            let ids: Vec<&str> = batch.iter().map(|sample| sample.id.as_str()).collect();
            bail!(
                "step {}: loss {} and gradient norm {grad_norm}; the newest checkpoint is from before. Lower optim.lr, or look at rows {ids:?}",
                at + 1,
                result.loss
            );
        }
        let done = at + 1;
        if done % recipe.run.log_every == 0 || done == total {
            log.write(&Entry {
                step: done,
                loss: result.loss,
                grad_norm,
                moved,
                lr,
                tokens: result.tokens,
                tokens_per_second: result.tokens as f64 / started.elapsed().as_secs_f64(),
                connection: result.connection,
                distances: result.distances,
            })?;
        }
        progress.step(done, result.loss as f32, result.tokens);
        let stop = interrupt.requested();
        let due = recipe.run.save_every > 0 && done % recipe.run.save_every == 0;
        if stop || due || done == total {
            let state = State { step: done, recipe: fingerprint.clone() };
            save(&folder, &optimizer, &state, &checkpoints)?;
            run_folder::prune(&checkpoints, recipe.run.keep)?;
        }
        if stop && done < total {
            progress.say(&format!("{label} stopped after step {done} of {total}; the same command goes on from there"));
            return Ok(Ended::Interrupted);
        }
    }
    progress.say(&held(&folder, recipe, method, samples));
    Ok(Ended::Finished { folder: Box::new(folder), newest: checkpoints.join(checkpoint_name(total)) })
}

fn checkpoint_name(step: usize) -> String {
    format!("step-{step}")
}

fn save(folder: &ModelFolder, optimizer: &AdamW, state: &State, checkpoints: &Path) -> Result<()> {
    run_folder::write_atomically(checkpoints, &checkpoint_name(state.step), |path| {
        folder.save_model(&folder.model, path, Storage::F32)?;
        stream_file_atomically(&path.join(OPTIMIZER_FILE), |out| optimizer.save(out))?;
        fs::write(path.join(STATE_FILE), serde_json::to_vec(state)?)?;
        Ok(())
    })?;
    Ok(())
}

/// Everything that decides the losses but for rounding, a line each: the method, the weights it starts from, the samples
/// as they are read, and of the recipe what is not known by these. Whoever ran out of memory goes on with smaller
/// micro-batches.
fn fingerprint(recipe: &Recipe, method: Method, folder: &ModelFolder, samples: &[Sample]) -> Result<String> {
    let method = match method {
        Method::Sft => "sft",
        Method::Cc(_) => "cc",
        Method::Dft(_) => "dft",
    };
    let Recipe { data, model, optim, .. } = Recipe::default();
    let recipe = Recipe {
        data: Data { seed: recipe.data.seed, ..data },
        model,
        optim: Optim { micro_tokens: optim.micro_tokens, recompute: optim.recompute, ..recipe.optim.clone() },
        cc: recipe.cc.clone(),
        dft: recipe.dft.clone(),
        ..Recipe::default()
    };
    let (mut weights, mut data) = (Sha256::new(), Sha256::new());
    folder.model.visit(&mut Hash(&mut weights));
    samples.iter().for_each(|sample| data.update(format!("{sample:?}")));
    let [weights, data] = [weights, data].map(|hash| hex(&hash.finalize()));
    Ok(format!("method = {method:?}\nweights = {weights:?}\nsamples = {data:?}\n{}", recipe.to_toml()?))
}

/// Which lines of two fingerprints are not the same, for people.
fn differences(before: &str, now: &str) -> String {
    let shorter = |line: &str| line.chars().take(40).collect::<String>();
    let pairs = before.lines().zip(now.lines()).filter(|(before, now)| before != now);
    let told: Vec<String> = pairs.map(|(before, now)| format!("{} (now {})", shorter(before), shorter(now))).collect();
    if told.is_empty() { "it was made by another version of this trainer".into() } else { told.join(", ") }
}

/// Hashes every weight, one tensor after the other.
struct Hash<'a>(&'a mut Sha256);

impl ModuleVisitor for Hash<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.update(param.val().into_data().as_bytes());
    }
}

/// The most memory that was held, beside the plan for these rows.
fn held(folder: &ModelFolder, recipe: &Recipe, method: Method, samples: &[Sample]) -> String {
    let (cc, largest) = (matches!(method, Method::Cc(_)), Largest::of(samples, recipe));
    let planned = plan::plan(&folder.config, recipe, cc, cores(&folder.model.device()), largest).peak_bytes;
    // What a GPU holds, the process does not.
    match memory::peak().filter(|_| is_cpu(&folder.model.device())) {
        Some(peak) => format!("held {} of memory at most, planned {}", plan::size(peak as f64), plan::size(planned)),
        None => format!("planned {} of memory", plan::size(planned)),
    }
}

/// What can be trained, and is seldom meant.
pub fn doubts(folder: &ModelFolder, recipe: &Recipe) -> Vec<String> {
    /// Numbers in the weights from which on a model is no longer one to try things on.
    const REAL: u64 = 100_000_000;
    let lr = recipe.optim.lr;
    let as_if_small = folder.config.parameters() > REAL && lr == Recipe::default().optim.lr;
    let dropout = folder.source.config["attention_dropout"].as_f64().filter(|&share| share > 0.0);
    let doubts = [
        as_if_small.then(|| {
            format!("optim.lr {lr} is meant for the small shipped model; the paper's is in `--preset paper-hparams`")
        }),
        dropout.map(|share| format!("config.json has attention_dropout {share}; this trainer drops nothing out")),
    ];
    doubts.into_iter().flatten().collect()
}

/// What the recipe alone cannot know: whether rows and layer exist in this model.
fn fits(config: &ModelConfig, context: usize, samples: &[Sample], method: Method) -> Result<()> {
    match method {
        Method::Sft => {}
        Method::Cc(cc) => cc.connection().check(config.n_layers).context("[cc] of the recipe")?,
        // What is read of the last block no further layer would use.
        Method::Dft(dft) => {
            let ([bottom, middle], n) = (dft.layers(config.n_layers), config.n_layers);
            if bottom.max(middle) + 1 >= n {
                bail!(
                    "[dft] of the recipe: `dft.bottom` = {} and `dft.middle` = {} are the blocks {} and {} of {n}, expected two before the last; set lower shares",
                    dft.bottom,
                    dft.middle,
                    bottom + 1,
                    middle + 1
                );
            }
        }
    }
    for sample in samples {
        let longest = sample.len().max(sample.english.ids.len());
        if longest > context {
            bail!(
                "row {:?} has {longest} tokens and the model reads {context}; set data.cutoff and data.english_cutoff to {context}",
                sample.id
            );
        }
    }
    Ok(())
}

/// Supervised tokens and rows per language, for the start of a run.
pub fn describe(samples: &[Sample]) -> String {
    let mut languages: HashMap<&str, usize> = HashMap::new();
    for sample in samples {
        *languages.entry(&sample.lang).or_default() += 1;
    }
    let mut languages: Vec<_> = languages.into_iter().collect();
    languages.sort();
    let tokens: usize = samples.iter().map(Sample::len).sum();
    let answers: usize = samples.iter().map(|sample| sample.answer.len()).sum();
    let list: Vec<String> = languages.iter().map(|(lang, rows)| format!("{lang} {rows}")).collect();
    format!("{} rows ({}), {tokens} tokens, {answers} of them answers", samples.len(), list.join(", "))
}
