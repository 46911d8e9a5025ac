//! The `generate` verb: prompts answered as they are decoded, one from the command line or many in a conversation.
//!
//! Every prompt stands by itself, as the method has it: nothing said before is part of it.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cctuning::bundle::Bundle;
use cctuning::chat::{ChatTemplate, Prompt};
use cctuning::decision_maker::Pool;
use cctuning::generate::{Connection, Decoding, GenerateOptions, Source, Stop};
use cctuning::sampling::Sampling;
use cctuning::tokenizer::{TextStream, Tokenizer};
use cctuning::transform_matrix::FoldedTransform;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::conversation::converse;
use crate::interrupt::AnswerInterrupt;
use crate::model_folder::ModelFolder;
use crate::{device, export};

/// What to ask, of which model, and how.
#[derive(Args)]
pub struct GenerateArgs {
    /// A model folder, or org/name[@revision] on the Hub
    #[arg(long, conflicts_with = "bundle")]
    folder: Option<PathBuf>,
    /// A web bundle
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Another chat template than a folder's own: llama3, qwen2, mistral or plain
    #[arg(long, conflicts_with = "bundle")]
    template: Option<ChatTemplate>,
    /// What to ask; without it prompts are read line by line
    #[arg(long)]
    prompt: Option<String>,
    /// Read prompts line by line also where the input is no terminal; `/help` lists what else can be said
    #[arg(long, conflicts_with = "prompt")]
    interactive: bool,
    /// English twin, for `--source parallel`
    #[arg(long)]
    english: Option<String>,
    /// Another prompt, whose activations `--source shuffled` takes
    #[arg(long)]
    other: Option<String>,
    /// Which of a bundle's models
    #[arg(long, value_enum, default_value = "cc")]
    model: ModelArg,
    /// Where the connection comes from; the default is the Transform Matrix if there is one
    #[arg(long, value_enum)]
    source: Option<SourceArg>,
    /// Use this layer instead of the Decision Maker's, counted from 1
    #[arg(long)]
    layer: Option<usize>,
    /// Which ids end an answer
    #[arg(long, value_enum, default_value = "template")]
    stop: StopArg,
    /// At most so many tokens; the default is 40, or what a bundle says
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON line per prompt with tokens, text and connection
    #[arg(long)]
    json: bool,
}

/// Which of a bundle's models.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum ModelArg {
    Vanilla,
    Cc,
}

/// A [`Source`] by its name.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
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

/// A [`Stop`] by its name.
#[derive(Clone, Copy, ValueEnum)]
enum StopArg {
    Template,
    Config,
    Both,
}

impl From<StopArg> for Stop {
    fn from(stop: StopArg) -> Self {
        match stop {
            StopArg::Template => Self::Template,
            StopArg::Config => Self::Config,
            StopArg::Both => Self::Both,
        }
    }
}

/// Loads what is asked, and answers.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let terminal = std::io::stdin().is_terminal();
    ensure!(
        args.prompt.is_some() || args.interactive || terminal,
        "say what to ask: --prompt TEXT, or --interactive to read prompts from the input, one a line"
    );
    let loaded = Loaded::load(args)?;
    let mut speaker = Speaker::new(&loaded, args)?;
    match &args.prompt {
        Some(prompt) => speaker.answer(prompt, &|| false),
        None => {
            let interrupt = AnswerInterrupt::install()?;
            converse(&mut speaker, &mut std::io::stdin().lock() as &mut dyn BufRead, terminal, &interrupt)
        }
    }
}

enum Loaded {
    Folder(Box<ModelFolder>, Option<FoldedTransform>),
    Bundle(Box<Bundle>),
}

impl Loaded {
    fn load(args: &GenerateArgs) -> Result<Self> {
        let device = device::choose().0;
        match (&args.folder, &args.bundle) {
            (None, None) => bail!("say which model answers: --folder DIR or --bundle DIR"),
            (Some(path), _) => {
                let folder = ModelFolder::load(path, args.template.clone(), 0, &device)?;
                let transform = folder.folded_transform();
                Ok(Self::Folder(Box::new(folder), transform))
            }
            (None, Some(path)) => Ok(Self::Bundle(Box::new(export::load(path, &device)?))),
        }
    }
}

/// A loaded model and what it is asked with; a conversation changes the public fields.
pub struct Speaker<'a> {
    loaded: &'a Loaded,
    args: &'a GenerateArgs,
    pub model: ModelArg,
    /// `None` is the model's own habit: the Transform Matrix if there is one.
    pub source: Option<Source>,
    /// Counted from 1; `None` leaves the choice to the connection's own pool.
    pub layer: Option<usize>,
    /// The English twin of the next prompts.
    pub english: Option<String>,
    /// The prompt whose activations the shuffled source takes.
    pub other: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    connection: Option<Connection>,
}

impl<'a> Speaker<'a> {
    fn new(loaded: &'a Loaded, args: &'a GenerateArgs) -> Result<Self> {
        let (english, other) = (args.english.clone(), args.other.clone());
        let source = args.source.map(Source::from);
        let mut speaker = Self { loaded, args, model: args.model, source, layer: None, english, other };
        speaker.set_layer(args.layer).map_err(|error| anyhow!("--{error}"))?;
        Ok(speaker)
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        match self.loaded {
            Loaded::Folder(folder, _) => folder.config.n_layers,
            Loaded::Bundle(bundle) => bundle.config.n_layers,
        }
    }

    /// Whether there are two models to choose from.
    pub fn has_two_models(&self) -> bool {
        matches!(self.loaded, Loaded::Bundle(_))
    }

    /// Takes this layer from now on.
    ///
    /// # Errors
    /// The model has no such layer.
    pub fn set_layer(&mut self, layer: Option<usize>) -> Result<()> {
        let n_layers = self.n_layers();
        if let Some(layer) = layer.filter(|layer| !(1..=n_layers).contains(layer)) {
            bail!("layer {layer}: this model has layers 1 to {n_layers}");
        }
        self.layer = layer;
        Ok(())
    }

    /// Where the connection comes from, the model's habit included.
    pub fn source(&self) -> Source {
        let habit = match self.loaded {
            Loaded::Folder(_, None) => Source::None,
            Loaded::Folder(_, Some(_)) => Source::Transform,
            Loaded::Bundle(_) if self.model == ModelArg::Vanilla => Source::None,
            Loaded::Bundle(_) => Source::Transform,
        };
        self.source.unwrap_or(habit)
    }

    fn tokenizer(&self) -> &'a Tokenizer {
        match self.loaded {
            Loaded::Folder(folder, _) => &folder.tokenizer,
            Loaded::Bundle(bundle) => &bundle.tokenizer,
        }
    }

    fn render(&self, text: &str) -> Result<Prompt> {
        Ok(match self.loaded {
            Loaded::Folder(folder, _) => {
                folder.settings.template.render(&folder.tokenizer, text, folder.settings.anchor)?
            }
            Loaded::Bundle(bundle) => bundle.prompt(text)?,
        })
    }

    fn options(&self) -> Result<GenerateOptions> {
        let args = self.args;
        let (template_stop, config, mut connection, longest) = match self.loaded {
            Loaded::Folder(folder, _) => {
                let settings = &folder.settings;
                (settings.template.stop_ids(&folder.tokenizer)?, &folder.config, settings.connection, 40)
            }
            Loaded::Bundle(bundle) => {
                let options = bundle.options(self.source())?;
                (options.stop_ids, &bundle.config, options.connection, options.max_new_tokens)
            }
        };
        if let Some(layer) = self.layer {
            connection.pool = Pool::Fixed(layer - 1);
        }
        let max_new_tokens = args.max_new_tokens.unwrap_or(longest);
        ensure!(
            args.temperature >= 0.0 && args.temperature.is_finite() && args.top_p > 0.0 && args.top_p <= 1.0,
            "--temperature {} --top-p {}: expected a temperature of 0 (always the likeliest token) or more, and top-p above \
             0, at most 1",
            args.temperature,
            args.top_p
        );
        let sampling = match args.temperature {
            0.0 => Sampling::Greedy,
            temperature => Sampling::TopP { temperature, top_p: args.top_p, seed: args.seed },
        };
        let stop_ids = Stop::from(args.stop).ids(&template_stop, config);
        Ok(GenerateOptions { max_new_tokens, sampling, source: self.source(), connection, stop_ids })
    }

    /// The other prompt that the source needs, if it needs one and there is one.
    fn companion(&self) -> Result<Option<Prompt>> {
        let text = match self.source() {
            Source::Parallel => &self.english,
            Source::Shuffled => &self.other,
            _ => &None,
        };
        text.as_deref().map(|text| self.render(text)).transpose()
    }

    fn decoding(&self, prompt: &Prompt) -> Result<Decoding<'a>> {
        let (prompts, other, options) = ([prompt], self.companion()?, self.options()?);
        let others: Vec<&Prompt> = other.iter().collect();
        Ok(match self.loaded {
            Loaded::Folder(folder, transform) => {
                Decoding::start(&folder.model, &folder.config, transform.as_ref(), &prompts, &others, options)?
            }
            Loaded::Bundle(bundle) => {
                let model = if self.model == ModelArg::Vanilla { &bundle.vanilla } else { &bundle.cc };
                Decoding::start(model, &bundle.config, Some(&bundle.transform), &prompts, &others, options)?
            }
        })
    }

    /// Streams the answer to standard output, or prints it as one JSON line. `stopped` is asked before every token.
    ///
    /// # Errors
    /// The prompt cannot be used, or the source lacks what it needs.
    pub fn answer(&mut self, text: &str, stopped: &dyn Fn() -> bool) -> Result<()> {
        let mut decoding = self.decoding(&self.render(text)?)?;
        let connection = burn::tensor::read_sync(decoding.connections())?.map(|mut rows| rows.remove(0));
        let mut out = std::io::stdout();
        let mut shown = TextStream::new(self.tokenizer());
        let mut tokens = Vec::new();
        while !stopped()
            && let Some(row) = burn::tensor::read_sync(decoding.next_tokens())?
        {
            let token = row[0].context("a single row goes on until it ends")?;
            tokens.push(token);
            if let (false, Some(text)) = (self.args.json, shown.push(token)?) {
                write!(out, "{text}")?;
                out.flush()?;
            }
        }
        if self.args.json {
            let text = self.tokenizer().decode(&tokens)?.trim().to_string();
            writeln!(out, "{}", serde_json::to_string(&Answer { tokens, text, connection })?)?;
            return Ok(());
        }
        writeln!(out, "{}", shown.finish())?;
        if stopped() {
            eprintln!("stopped after {} tokens", tokens.len());
        }
        if let Some(Connection { layer, probabilities, vector_norm, stream_norm }) = connection {
            let share = 100.0 * probabilities[layer];
            eprintln!(
                "layer {} chosen at {share:.0} %, vector {vector_norm:.2} on a stream of {stream_norm:.2}",
                layer + 1
            );
        }
        Ok(())
    }
}
