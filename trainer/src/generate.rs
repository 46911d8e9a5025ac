//! The `generate` verb: one prompt, answered as it is decoded.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use cctuning::chat::Prompt;
use cctuning::config::ModelConfig;
use cctuning::decision_maker::Pool;
use cctuning::generate::{Connection, Decoding, GenerateOptions, Source};
use cctuning::model::CcModel;
use cctuning::sampling::Sampling;
use cctuning::tokenizer::{TextStream, Tokenizer};
use cctuning::transform_matrix::FoldedTransform;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::model_folder::ModelFolder;
use crate::{device, export};

/// What to ask, of which model, and how.
#[derive(Args)]
pub struct GenerateArgs {
    /// A model folder
    #[arg(long, conflicts_with = "bundle")]
    folder: Option<PathBuf>,
    /// A web bundle
    #[arg(long)]
    bundle: Option<PathBuf>,
    #[arg(long)]
    prompt: String,
    /// English twin, for `--source parallel`
    #[arg(long)]
    english: Option<String>,
    /// Which of a bundle's models
    #[arg(long, value_enum, default_value = "cc")]
    model: ModelArg,
    /// Where the connection comes from; the default is the Transform Matrix if there is one
    #[arg(long, value_enum)]
    source: Option<SourceArg>,
    /// Use this layer instead of the Decision Maker's, counted from 1
    #[arg(long)]
    layer: Option<usize>,
    #[arg(long, default_value_t = 40)]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON line with tokens, text and connection
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum ModelArg {
    Vanilla,
    Cc,
}

/// A [`Source`] by its name.
#[derive(Clone, Copy, ValueEnum)]
pub enum SourceArg {
    None,
    Parallel,
    Transform,
    Identity,
    Zero,
    Random,
    Shuffled,
}

impl From<SourceArg> for Source {
    fn from(source: SourceArg) -> Self {
        match source {
            SourceArg::None => Self::None,
            SourceArg::Parallel => Self::Parallel,
            SourceArg::Transform => Self::Transform,
            SourceArg::Identity => Self::Identity,
            SourceArg::Zero => Self::Zero,
            SourceArg::Random => Self::Random,
            SourceArg::Shuffled => Self::Shuffled,
        }
    }
}

/// Loads what is asked, and answers.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let device = device::choose().0;
    let english;
    match (&args.folder, &args.bundle) {
        (None, None) => bail!("say which model answers: --folder DIR or --bundle DIR"),
        (Some(path), _) => {
            let folder = ModelFolder::load(path, None, 0, &device)?;
            let render = |text: &str| folder.settings.template.render(&folder.tokenizer, text, folder.settings.anchor);
            let prompt = render(&args.prompt)?;
            english = args.english.as_deref().map(render).transpose()?;
            let transform = folder.folded_transform();
            let source = args.source.map(Source::from);
            let source = source.unwrap_or(if transform.is_some() { Source::Transform } else { Source::None });
            let options = GenerateOptions {
                max_new_tokens: args.max_new_tokens,
                sampling: args.sampling(),
                source,
                connection: folder.settings.connection,
                stop_ids: folder.settings.template.stop_ids(&folder.tokenizer)?,
            };
            let asked = Asked {
                model: &folder.model,
                config: &folder.config,
                tokenizer: &folder.tokenizer,
                transform: transform.as_ref(),
                prompt: &prompt,
                english: english.as_ref(),
                options: args.with_layer(options, folder.config.n_layers)?,
            };
            stream(asked, args.json)
        }
        (None, Some(path)) => {
            let bundle = export::load(path, &device)?;
            let prompt = bundle.prompt(&args.prompt)?;
            english = args.english.as_deref().map(|text| bundle.prompt(text)).transpose()?;
            let (model, default) = match args.model {
                ModelArg::Vanilla => (&bundle.vanilla, Source::None),
                ModelArg::Cc => (&bundle.cc, Source::Transform),
            };
            let mut options = bundle.options(args.source.map_or(default, Source::from))?;
            options.sampling = args.sampling();
            let asked = Asked {
                model,
                config: &bundle.config,
                tokenizer: &bundle.tokenizer,
                transform: Some(&bundle.transform),
                prompt: &prompt,
                english: english.as_ref(),
                options: args.with_layer(options, bundle.config.n_layers)?,
            };
            stream(asked, args.json)
        }
    }
}

impl GenerateArgs {
    fn sampling(&self) -> Sampling {
        match self.temperature {
            0.0 => Sampling::Greedy,
            temperature => Sampling::TopP { temperature, top_p: self.top_p, seed: self.seed },
        }
    }

    fn with_layer(&self, mut options: GenerateOptions, n_layers: usize) -> Result<GenerateOptions> {
        if let Some(layer) = self.layer {
            if !(1..=n_layers).contains(&layer) {
                bail!("--layer {layer}: this model has layers 1 to {n_layers}");
            }
            options.connection.pool = Pool::Fixed(layer - 1);
        }
        Ok(options)
    }
}

/// What a model is asked with.
struct Asked<'a> {
    model: &'a CcModel,
    config: &'a ModelConfig,
    tokenizer: &'a Tokenizer,
    transform: Option<&'a FoldedTransform>,
    prompt: &'a Prompt,
    english: Option<&'a Prompt>,
    options: GenerateOptions,
}

#[derive(Serialize)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    connection: Option<Connection>,
}

/// Streams the answer to the terminal, or prints it as one JSON line.
fn stream(asked: Asked, json: bool) -> Result<()> {
    let english: Vec<&Prompt> = asked.english.into_iter().collect();
    let mut decoding =
        Decoding::start(asked.model, asked.config, asked.transform, &[asked.prompt], &english, asked.options)?;
    let connection = burn::tensor::read_sync(decoding.connections())?.map(|mut rows| rows.remove(0));
    let mut stream = TextStream::new(asked.tokenizer);
    let mut tokens = Vec::new();
    while let Some(row) = burn::tensor::read_sync(decoding.next_tokens())? {
        let token = row[0].context("a single row goes on until it ends")?;
        tokens.push(token);
        if let (false, Some(text)) = (json, stream.push(token)?) {
            print!("{text}");
            std::io::stdout().flush()?;
        }
    }
    if json {
        let text = asked.tokenizer.decode(&tokens)?.trim().to_string();
        println!("{}", serde_json::to_string(&Answer { tokens, text, connection })?);
        return Ok(());
    }
    println!();
    if let Some(Connection { layer, probabilities, vector_norm, stream_norm }) = connection {
        let share = 100.0 * probabilities[layer];
        eprintln!(
            "layer {} chosen at {share:.0} %, vector {vector_norm:.2} on a stream of {stream_norm:.2}",
            layer + 1
        );
    }
    Ok(())
}
