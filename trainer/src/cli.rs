//! The command line: arguments become one validated recipe before any weight is read, then one `match`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use cctuning::chat::Prompt;
use cctuning::checkpoint::Storage;
use cctuning::generate::Source;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::benchmark_eval::{BenchmarkArgs, Questions};
use crate::compare::{self, CompareArgs};
use crate::data::build::{BuildArgs, build};
use crate::data::verb::{CheckArgs, check};
use crate::data::{read_rows, read_rows_as};
use crate::experiment::{ExperimentArgs, experiment};
use crate::export::Content;
use crate::fit::verb::FitArgs;
use crate::generate::{GenerateArgs, SourceArg};
use crate::inputs::{CORPUS_SEED, announce, model, prompts, renderer, samples, training_samples};
use crate::interrupt::Interrupt;
use crate::model_folder::{Layout, ModelFolder, TRANSFORM_FILE, save_transform};
use crate::recipe::{Cc, Data, Place, Preset, Recipe};
use crate::step::MethodName;
use crate::train::{Ended, describe};
use crate::transplant::{TransplantArgs, transplant};
use crate::{
    benchmark_eval, corpus, evaluate, export, fit, generate, hub, interrupt, plan, pretrain, train, weight_files,
};

#[derive(Parser)]
#[command(version, about, arg_required_else_help = false)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Fine-tune ML-SFT and CC-Tuning, fit W_T, evaluate, export: the default
    Run(RecipeArgs),
    /// Make the base checkpoint from nothing, on the shipped corpus
    Pretrain(RecipeArgs),
    /// Fine-tune one model
    Train {
        #[arg(long, value_enum)]
        method: MethodName,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
    /// Say what memory a training run will need, part by part, before anything is loaded
    Plan(plan::PlanArgs),
    /// Fit the Transform Matrix of a CC-Tuned model folder, into that folder
    Fit(FitArgs),
    /// Answer the prompts of a data file and count the right answers
    Eval {
        /// The model folder, or org/name[@revision] on the Hub
        folder: PathBuf,
        /// JSON-lines triples
        #[arg(long, required_unless_present = "benchmarks", conflicts_with = "benchmarks")]
        data: Option<PathBuf>,
        #[command(flatten)]
        benchmarks: Box<BenchmarkArgs>,
        #[arg(long, value_enum, default_value = "none")]
        source: SourceArg,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
    /// Compare two evaluations of the benchmarks, item by item
    Compare(CompareArgs),
    /// Answer one prompt, streaming
    Generate(GenerateArgs),
    /// Pass activations between all layers of English and other prompts (XTransplant) and map what that changes
    Transplant {
        #[command(flatten)]
        args: TransplantArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
    /// Write a model folder or a web bundle
    #[command(subcommand)]
    Export(ExportVerb),
    /// Measure the paper's matrix of trainings and write RESULTS.md; goes on where it was stopped
    Experiment(ExperimentArgs),
    /// Check training rows, or build the paper's data settings from them
    #[command(subcommand)]
    Data(DataVerb),
    /// Check one fixture folder against our arithmetic, quantity by quantity
    Verify {
        /// Folder with case.json, expected.safetensors and a checkpoint
        folder: PathBuf,
    },
}

#[derive(Subcommand)]
enum DataVerb {
    /// Find all faults of some files, then report what is in them
    Check {
        #[command(flatten)]
        args: CheckArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
    /// Print the sizes of the shipped corpus, per language and family
    Stats,
    /// Write the rows of one of the paper's data settings
    Build {
        #[command(flatten)]
        args: BuildArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
    },
}

#[derive(Subcommand)]
enum ExportVerb {
    /// Hugging Face folder in another precision
    Hf {
        folder: PathBuf,
        #[arg(long)]
        out: PathBuf,
        #[arg(long, value_enum, default_value = "bf16")]
        dtype: Dtype,
        /// Largest file of weights, as in 500MB or 4GB; more than one of them get an index
        #[arg(long, default_value = "4GB", value_parser = export::shard_size)]
        shard_size: usize,
        /// Without Decision Maker, W_T and cctuning.json: for programs that refuse a tensor they do not know, as vLLM and
        /// llama.cpp's converter do
        #[arg(long)]
        plain: bool,
    },
    /// Web bundle from a vanilla and a CC-Tuned folder (W_T fitted) of the same shape
    Bundle {
        #[arg(long)]
        vanilla: PathBuf,
        #[arg(long)]
        cc: PathBuf,
        /// JSON-lines triples whose first prompts of each language become examples
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        out: PathBuf,
        #[arg(long, default_value_t = 40)]
        max_new_tokens: usize,
    },
}

#[derive(Args, Default)]
pub struct RecipeArgs {
    /// TOML file; see `recipe.toml` in any run folder for all keys
    #[arg(long)]
    recipe: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "default")]
    preset: Preset,
    /// Overrides one value: `--set optim.lr=1e-4`
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

impl From<Dtype> for Storage {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
        }
    }
}

impl RecipeArgs {
    /// The recipe they make.
    pub fn load(&self) -> Result<Recipe> {
        self.load_over(Vec::new())
    }

    /// The same for a model folder: what no argument names stays as the folder says that its model was trained, and prompts
    /// may have all that the model reads.
    pub fn load_for(&self, folder: &ModelFolder) -> Result<Recipe> {
        let cutoff = folder.model.model.context();
        let start = Recipe {
            cc: Cc { anchor: folder.settings.anchor, ..Cc::around(&folder.settings.connection) },
            data: Data { cutoff, english_cutoff: cutoff, ..Data::default() },
            ..Recipe::default()
        };
        Recipe::load_over(start, self.preset, self.recipe.as_deref(), &self.set)
    }

    /// As [`Self::load`], with a verb's own assignments under those of `--set`.
    pub fn load_over(&self, mut under: Vec<String>) -> Result<Recipe> {
        under.extend(self.set.iter().cloned());
        Recipe::load(self.preset, self.recipe.as_deref(), &under)
    }
}

/// Parses the arguments, does what they ask and says how it ended.
pub fn run() -> ExitCode {
    match dispatch(Cli::parse().verb.unwrap_or(Verb::Run(RecipeArgs::default()))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when the verb did all it was asked, false when a person stopped it.
fn dispatch(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Run(args) => {
            let recipe = args.load()?;
            only_builtin("run", "data.train", &recipe.data.train)?;
            let started = Instant::now();
            let device = announce();
            let done = crate::run::run(
                &recipe,
                &corpus::generate(CORPUS_SEED)?,
                model(&recipe, &device)?,
                &Interrupt::install()?,
            )?;
            println!("\n{:.0} s in all", started.elapsed().as_secs_f64());
            Ok(done)
        }
        Verb::Pretrain(args) => {
            let recipe = args.load()?;
            only_builtin("pretrain", "data.train", &recipe.data.train)?;
            only_builtin("pretrain", "model.path", &recipe.model.path)?;
            pretrain::pretrain(
                &corpus::generate(CORPUS_SEED)?,
                &recipe,
                &recipe.run.out,
                &announce(),
                &Interrupt::install()?,
            )
        }
        Verb::Train { method, recipe } => train_one(method, &recipe.load()?),
        Verb::Plan(args) => plan::run(&args).map(|()| true),
        Verb::Fit(args) => fit::verb::run(&args),
        Verb::Eval { folder, data, benchmarks, source, recipe } => {
            eval_folder(&folder, data.as_deref(), &benchmarks, source.into(), &recipe)
        }
        Verb::Compare(args) => compare::run(&args).map(|()| true),
        Verb::Generate(args) => generate::generate(&args).map(|()| true),
        Verb::Transplant { args, recipe } => {
            let template = recipe.load()?.model.template.named();
            let folder = ModelFolder::load(&args.folder, template, 0, &announce())?;
            let recipe = recipe.load_for(&folder)?;
            let samples = samples(&recipe, &folder, &args.rows(&recipe)?)?;
            transplant(&args, &folder, samples, recipe.cc.seed, &Interrupt::install()?)
        }
        Verb::Experiment(args) => experiment(&args),
        Verb::Data(DataVerb::Check { args, recipe }) => check(&args, &recipe.load()?, &Interrupt::install()?),
        Verb::Data(DataVerb::Stats) => {
            print!("{}", corpus::stats(CORPUS_SEED)?);
            Ok(true)
        }
        Verb::Data(DataVerb::Build { args, recipe }) => build(&args, &recipe.load()?, &Interrupt::install()?),
        Verb::Export(ExportVerb::Hf { folder, out, dtype, shard_size, plain }) => {
            let folder = hub::resolve(&folder)?;
            let place = |path: &Path| path.canonicalize().ok();
            ensure!(
                place(&out).is_none() || place(&out) != place(&folder),
                "--out {}: the folder that is exported; its files would be written over, so name another",
                out.display()
            );
            let loaded = ModelFolder::load(&folder, None, 0, &Device::flex())?;
            let layout = Layout { storage: dtype.into(), shard_bytes: shard_size, connection: !plain };
            loaded.save_as(&loaded.model, &out, layout)?;
            println!("{} written", out.display());
            if let (Some(transform), false) = (&loaded.transform, plain) {
                save_transform(&out, transform)?;
                println!(
                    "other programs answer without the connection; its Decision Maker and {TRANSFORM_FILE} are for `trainer generate`"
                );
            }
            Ok(true)
        }
        Verb::Export(ExportVerb::Bundle { vanilla, cc, data, out, max_new_tokens }) => {
            export_bundle(&vanilla, &cc, &data, &out, max_new_tokens)
        }
        Verb::Verify { folder } => crate::verify::verify(&folder),
    }
}

/// Some verbs are about what is shipped; a path would be ignored there, which nobody wants to find out later.
pub fn only_builtin(verb: &str, key: &str, place: &Place) -> Result<()> {
    match place {
        Place::Builtin => Ok(()),
        Place::Path(path) => bail!(
            "{key} = {:?}: `{verb}` works on what is shipped; leave the key out, or use `trainer train`, `fit` and `eval`",
            path.display().to_string()
        ),
    }
}

fn train_one(method: MethodName, recipe: &Recipe) -> Result<bool> {
    let mut folder = model(recipe, &announce())?;
    for warning in train::doubts(&folder, recipe) {
        eprintln!("warning: {warning}");
    }
    folder.settings.anchor = recipe.cc.anchor;
    folder.settings.connection = recipe.cc.connection();
    let renderer = renderer(recipe, &folder.tokenizer, &folder.settings);
    let samples = training_samples(recipe, &renderer, &folder.tokenizer_json)?;
    println!("training on {}", describe(&samples));
    let out = &recipe.run.out;
    let model = out.join("model");
    match train::train("train", folder, &samples, method.of(recipe), recipe, out, &Interrupt::install()?)? {
        Ended::Interrupted => Ok(false),
        Ended::Finished { folder, newest } => {
            // Whoever asks for a finished run again keeps what was fitted to it.
            let stands = ModelFolder::is_whole(&model) && weight_files::same(&newest, &model)?;
            if !stands {
                folder.save_model(&folder.model, &model, Storage::F32)?;
            }
            println!("{} {}", model.display(), if stands { "stands" } else { "written" });
            Ok(true)
        }
    }
}

fn eval_folder(
    path: &Path,
    data: Option<&Path>,
    asked: &BenchmarkArgs,
    source: Source,
    recipe: &RecipeArgs,
) -> Result<bool> {
    // Before the weights are read: a wrong name should not cost a minute.
    let named = recipe.load()?;
    let questions = asked.benchmarks.as_ref().map(|folder| Questions::load(folder, asked, &named)).transpose()?;
    let mut folder = ModelFolder::load(path, named.model.template.named(), 0, &announce())?;
    let recipe = &recipe.load_for(&folder)?;
    folder.settings.anchor = recipe.cc.anchor;
    folder.settings.connection = recipe.cc.connection();
    if let Some(questions) = questions {
        let options = crate::run::options(recipe, &folder, source)?;
        let out = asked.out.as_deref().unwrap_or(&recipe.run.out);
        return benchmark_eval::evaluate((path, &folder), &questions, &options, recipe, out, &Interrupt::install()?);
    }
    let data = data.context("--data or --benchmarks says what to ask")?;
    let rows = evaluate::at_most(recipe.eval.limit, read_rows_as(data, &recipe.data.reading())?);
    let samples = prompts(recipe, &folder, &rows, recipe.eval.max_new_tokens)?;
    let mut prompts: Vec<(&Prompt, &Prompt)> = samples.iter().map(|sample| (&sample.prompt, &sample.english)).collect();
    if source == Source::Shuffled {
        let others = evaluate::others(samples.len(), recipe.cc.seed)?;
        prompts.iter_mut().zip(others).for_each(|(pair, other)| pair.1 = &samples[other].prompt);
    }
    let options = crate::run::options(recipe, &folder, source)?;
    let answers =
        evaluate::answer(&folder.model, &folder.config, folder.folded_transform().as_ref(), &prompts, &options)?;
    let credits = evaluate::credits(&samples, &answers, &folder.tokenizer)?;
    let mut languages: Vec<&str> = samples.iter().map(|sample| sample.lang.as_str()).collect();
    languages.sort_unstable();
    languages.dedup();
    for lang in languages {
        let (percent, asked) = evaluate::percent(&samples, &credits, |sample| sample.lang == lang);
        println!("{lang:<8}{percent:>6.1} % of {asked}");
    }
    println!("mean    {:>6.1} %", evaluate::percent(&samples, &credits, |_| true).0);
    Ok(true)
}

fn export_bundle(vanilla: &Path, cc: &Path, data: &Path, out: &Path, max_new_tokens: usize) -> Result<bool> {
    let device = Device::flex();
    let (vanilla, cc_path) = (ModelFolder::load(vanilla, None, 0, &device)?, cc);
    let cc = ModelFolder::load(cc_path, None, 0, &device)?;
    let transform = cc
        .transform
        .as_ref()
        .with_context(|| format!("{}: no {TRANSFORM_FILE}; fit one first with `trainer fit {0}`", cc_path.display()))?;
    let bytes = export::bundle(
        &Content {
            title: &format!("{} and its vanilla twin", cc_path.display()),
            origin: "trainer export bundle",
            vanilla: &vanilla,
            cc: &cc,
            transform,
            examples: &export::examples(&read_rows(data)?),
            max_new_tokens,
        },
        out,
    )?;
    println!("{} written, {:.1} MB", out.display(), bytes as f64 / 1e6);
    Ok(true)
}
